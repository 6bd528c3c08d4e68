"""Every page as an auditor and as an operator sees it, on a desk and on a telephone, by day and by night."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from gateway.console.routes import NAVIGATION, ROUTES
from tests.browser.visiting import SCHEMES, WIDTHS, Scheme, complaints, overflows, signed_in, visiting
from tests.console.running import Console, path_of

PATHS = [path_of(route) for route in ROUTES if route.method == "GET" and route.role == "auditor" and route.twin]
CHANGING = [path_of(route, "crmkeyid00.1") for route in ROUTES if route.method == "GET" and route.role == "operator"]


@pytest.mark.parametrize("role", ["auditor", "operator"])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_each_page(chromium: Browser, console: Console, tmp_path: Path, width: int, scheme: Scheme, role: str) -> None:
    """None is wider than its window, each has one heading of the first rank, and neither the browser nor axe has anything to say against it."""
    with visiting(chromium, console, width, scheme) as page:
        page.goto("/sign-in")
        page.screenshot(path=tmp_path / "sign-in.png", full_page=True)
        assert complaints(page) == []
        signed_in(page, console, role)
        wrong: dict[str, list[Any]] = {}
        for path in (*PATHS, *(CHANGING if role == "operator" else ())):
            answer = page.goto(path)
            assert answer is not None and answer.status == 200
            assert not overflows(page), path
            expect(page.get_by_role("heading", level=1)).to_have_count(1)
            expect(page.get_by_role("main")).to_be_visible()
            wrong |= {path: told for told in [complaints(page)] if told}
            page.screenshot(path=tmp_path / f"{path.strip('/').replace('/', '-')}.png", full_page=True)
        assert wrong == {}
        page.get_by_role("button", name="Sign out").click()
        page.wait_for_url("**/sign-in")


def test_an_auditor_is_offered_nothing_to_change(chromium: Browser, console: Console) -> None:
    """What is not allowed is not shown, and says so where it is asked for all the same."""
    with visiting(chromium, console) as page:
        signed_in(page, console, "auditor")
        page.goto("/callers/crmkeyid00")
        expect(page.get_by_role("link", name="Revoke")).to_have_count(0)
        page.goto("/callers/crmkeyid00/revoke")
        expect(page.get_by_role("heading", level=1)).to_have_text("Not for your role")
        expect(page.get_by_role("navigation")).to_be_visible()


@pytest.mark.parametrize("script", [True, False], ids=["script", "no-script"])
def test_an_operator_revokes_a_key(chromium: Browser, begin: Callable[..., Console], script: bool) -> None:
    """By pages alone, from the list to the notice, whether the browser runs scripts or not."""
    console = begin()
    console.fill(calls=0)
    with visiting(chromium, console, script=script) as page:
        signed_in(page, console, "operator")
        page.get_by_role("link", name="Callers").click()
        page.get_by_role("link", name="dialkeyid0.1").click()
        page.get_by_role("link", name="Revoke", exact=True).click()
        page.get_by_label("Reason").fill("found in a log")
        page.get_by_role("button", name="Revoke").click()
        expect(page.get_by_role("status")).to_contain_text("Revoked dialkeyid0.1 of dialler")
        expect(page.get_by_role("row", name="revoked")).to_have_count(1)


def test_the_keyboard_is_enough(chromium: Browser, console: Console) -> None:
    """The first stop leads past the navigation, and every stop is seen."""
    with visiting(chromium, console) as page:
        page.goto("/sign-in")
        expect(page.get_by_label("Console key")).to_be_focused()
        page.keyboard.type(console.keys["auditor"])
        page.keyboard.press("Enter")
        page.wait_for_url("**/overview")
        page.keyboard.press("Tab")
        expect(page.get_by_text("To the content")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.get_by_role("main")).to_be_focused()
        page.goto("/callers")
        for _ in range(2 + len(NAVIGATION)):
            page.keyboard.press("Tab")
            outlined = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert outlined == "solid", page.evaluate("document.activeElement.outerHTML")


def test_a_page_that_breaks_the_policy_fails_the_test(chromium: Browser, console: Console) -> None:
    """The tests here see what they are to see."""
    with pytest.raises(AssertionError, match="Content Security Policy"), visiting(chromium, console) as page:
        page.goto("/sign-in")
        page.evaluate("document.head.append(Object.assign(document.createElement('style'), {textContent: 'p{color:red}'}))")
