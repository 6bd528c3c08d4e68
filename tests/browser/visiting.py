"""Pages in a real browser: signed in by a role, in any width and scheme, and failed by whatever the browser complains of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from playwright.sync_api import Browser, ConsoleMessage, Page, Request

from tests.console.running import Console

Scheme = Literal["light", "dark"]
WIDTHS = (1280, 360)
SCHEMES: tuple[Scheme, ...] = ("light", "dark")


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


def _is_wrong(message: ConsoleMessage) -> bool:
    # A refusal's status is the point of some tests, and Chromium tells it as an error.
    return message.type in ("error", "warning") and "the server responded with a status of 4" not in message.text


def _told(message: ConsoleMessage) -> str:
    return f"{message.type}: {message.text} at {message.location}"


def _failed(request: Request) -> bool:
    # Whoever goes on to the next page does not wait for the rest of this one.
    return request.failure != "net::ERR_ABORTED"
