"""The API's page in a real browser: it fits, it is readable by day and by night, and everybody can use it."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.visiting import SCHEMES, WIDTHS, Scheme, complaints, overflows, visiting
from tests.running import Stack


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page(chromium: Browser, stack: Stack, tmp_path: Path, width: int, scheme: Scheme) -> None:
    """Nothing to complain of for the browser, nor for axe; what is folded out is no wider than the window either."""
    with visiting(chromium, stack, width, scheme) as page:
        answer = page.goto("/docs")
        assert answer is not None
        assert answer.status == 200
        page.screenshot(path=tmp_path / "docs.png", full_page=True)
        page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true })")
        assert not overflows(page)
        # They are alike, and axe takes half a second for each.
        page.evaluate("[...document.querySelectorAll('details')].slice(1).forEach(part => { part.open = false })")
        assert complaints(page) == []


def test_the_keyboard_is_enough(chromium: Browser, stack: Stack) -> None:
    """The first stop leads past the contents, every stop is seen, and no example is cut off."""
    with visiting(chromium, stack) as page:
        page.goto("/docs")
        page.keyboard.press("Tab")
        expect(page.get_by_text("Skip to the call")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.get_by_role("main")).to_be_focused()
        for _ in range(40):
            page.keyboard.press("Tab")
            outlined = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert outlined == "solid", page.evaluate("document.activeElement.outerHTML")
        assert page.evaluate("[...document.querySelectorAll('pre')].every(block => block.scrollWidth <= block.clientWidth)")


def test_it_is_read_without_scripts_and_printed(chromium: Browser, stack: Stack, tmp_path: Path) -> None:
    """Every error is there without a script, and on paper, where there is nothing to click."""
    with visiting(chromium, stack, script=False) as page:
        page.goto("/docs#error-quota-exceeded")
        expect(page.get_by_role("rowheader", name="quota_exceeded")).to_be_in_viewport()
        page.emulate_media(media="print")
        expect(page.get_by_role("navigation")).to_be_hidden()
        expect(page.get_by_role("rowheader", name="quota_exceeded")).to_be_visible()
        assert page.pdf(path=tmp_path / "docs.pdf").startswith(b"%PDF")
