"""Pages in a real browser: signed in by a role, in any width and scheme, and failed by whatever the browser complains of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import axe_playwright_python
from playwright.sync_api import Browser, ConsoleMessage, Page, Request

from tests.console.running import Console

Scheme = Literal["light", "dark"]
WIDTHS = (1280, 360)
SCHEMES: tuple[Scheme, ...] = ("light", "dark")
_AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js").read_text()
# Only what is told is brought over: all that passed, with its HTML, would take longer than the rules.
_RUN = """axe.run({resultTypes: ["violations"]}).then(found => [
  found.passes.length, found.violations.map(one => [one.id, one.nodes.slice(0, 3).map(node => node.html.slice(0, 200))])])"""


@contextmanager
def visiting(
    browser: Browser, console: Console, width: int = 1280, scheme: Scheme = "light", *, script: bool = True
) -> Iterator[Page]:
    """Open a page of one's own; fails at the end where the browser reported an error or a breach of the policy."""
    context = browser.new_context(
        base_url=console.url, viewport={"width": width, "height": 900}, color_scheme=scheme, java_script_enabled=script
    )
    page, wrong = context.new_page(), list[str]()
    page.on("console", lambda message: wrong.append(_told(message)) if _is_wrong(message) else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("requestfailed", lambda request: wrong.append(f"{request.url} {request.failure}") if _failed(request) else None)
    try:
        yield page
    finally:
        context.close()
    assert not wrong, wrong


def signed_in(page: Page, console: Console, role: str) -> None:
    """Sign in with the key of a role, by the form, as a person does."""
    console.forget_tries()
    page.goto("/sign-in")
    page.get_by_label("Console key").fill(console.keys[role])
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/overview")


def overflows(page: Page) -> bool:
    """Say whether the page is wider than its window."""
    return bool(page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"))


def complaints(page: Page) -> list[Any]:
    """Return what axe has to say against a page: rules, each with the first elements that break it."""
    page.evaluate(_AXE)
    passed, wrong = page.evaluate(_RUN)
    assert passed > 10
    return list(wrong)


def _is_wrong(message: ConsoleMessage) -> bool:
    # A refusal's status is the point of some tests, and Chromium tells it as an error.
    return message.type in ("error", "warning") and "the server responded with a status of 4" not in message.text


def _told(message: ConsoleMessage) -> str:
    return f"{message.type}: {message.text} at {message.location}"


def _failed(request: Request) -> bool:
    # Whoever goes on to the next page does not wait for the rest of this one.
    return request.failure != "net::ERR_ABORTED"
