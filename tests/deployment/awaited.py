"""What deployment files name and the project does not have yet; empty once it has."""

AWAITED_COMMANDS = {"console"}
