"""Overview."""

from gateway.console.visit import View, Visit


async def overview(_: Visit) -> View:
    """Show how it is."""
    return View("overview.html", "Overview", {})
