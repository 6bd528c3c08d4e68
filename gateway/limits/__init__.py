"""The limits of accounts as operators see, change and try them, at a command line or in the console."""
