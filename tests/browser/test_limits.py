"""Limits in a real browser: changed by pages alone, and asked of history with a chart that is seen and read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.visiting import SCHEMES, WIDTHS, Scheme, overflows, signed_in, visiting
from tests.console.running import Console

QUESTION = "/limits/main/caller/replay?rate=1/h&burst=3&since=1d"


@pytest.mark.parametrize("script", [True, False], ids=["script", "no-script"])
def test_an_operator_changes_a_limit(chromium: Browser, begin: Callable[..., Console], script: bool) -> None:
    """From the list to the notice: a wrong rate is told at its field, and what is right is looked at before it is made."""
    console = begin()
    console.fill(calls=0)
    with visiting(chromium, console, script=script) as page:
        signed_in(page, console, "operator")
        page.get_by_role("link", name="Limits").click()
        page.get_by_role("region", name="Limits of main").get_by_role("link", name="caller").click()
        page.get_by_role("row", name="crm").get_by_role("link", name="Change").click()
        expect(page.get_by_label("For whom")).to_have_value("crm")
        page.get_by_label("Rate").fill("5")
        page.get_by_label("Reason").fill("campaign over")
        page.get_by_role("button", name="Look at it first").click()
        expect(page.locator("#rate-fault")).to_contain_text('Must be a text like "50/s"')
        expect(page.get_by_label("Reason")).to_have_value("campaign over")
        page.get_by_label("Rate").fill("5/s")
        page.get_by_label("Burst").fill("50")
        page.get_by_role("button", name="Look at it first").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Change caller for crm?")
        expect(page.get_by_text("At worst 55 pass in 1 s; 150 before.")).to_be_visible()
        page.get_by_role("button", name="Change it").click()
        expect(page.get_by_role("status")).to_contain_text("caller:crm: 50/s burst 100 enforce → 5/s burst 50 enforce, for 2h.")
        page.get_by_role("row", name="crm").get_by_role("link", name="Reset").click()
        page.get_by_label("Reason").fill("too small")
        page.get_by_role("button", name="End it").click()
        expect(page.get_by_role("status")).to_contain_text("caller:crm: 5/s burst 50 enforce → 50/s burst 100 enforce.")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_pages_with_much_to_say(chromium: Browser, console: Console, tmp_path: Path, width: int, scheme: Scheme) -> None:
    """The chart, a form with faults, and the page before a change fit their window."""
    with visiting(chromium, console, width, scheme) as page:
        signed_in(page, console, "operator")
        page.goto(QUESTION)
        chart = page.get_by_role("img", name="Calls and would-be refusals")
        box = chart.bounding_box()
        assert box is not None and box["width"] > width * 0.6 and box["height"] > 100
        assert page.locator("rect.refusals").count() > 3
        page.get_by_text("with refusals, in numbers").click()
        expect(page.get_by_role("table", name="Would-be refusals over time")).to_be_visible()
        assert not overflows(page)
        page.screenshot(path=tmp_path / "chart.png", full_page=True)
        page.goto("/limits/main/caller/change?subject=dialler")
        page.get_by_label("Rate").fill("fast")
        page.get_by_label("Burst").fill("lots")
        page.get_by_label("Reason").fill("x" * 200)
        page.get_by_role("button", name="Look at it first").click()
        expect(page.locator(".fault")).to_have_count(2)
        assert not overflows(page)
        page.screenshot(path=tmp_path / "faults.png", full_page=True)
        page.get_by_label("Rate").fill("5/s")
        page.get_by_label("Burst").fill("50")
        page.get_by_role("button", name="Look at it first").click()
        expect(page.get_by_role("button", name="Change it")).to_be_visible()
        assert not overflows(page)
        page.screenshot(path=tmp_path / "confirm.png", full_page=True)


def test_an_auditor_asks_and_changes_nothing(chromium: Browser, console: Console) -> None:
    """The question is theirs too, by the form; changing is not offered."""
    with visiting(chromium, console) as page:
        signed_in(page, console, "auditor")
        page.goto("/limits/main/caller")
        expect(page.get_by_role("link", name="Change", exact=True)).to_have_count(0)
        expect(page.get_by_role("link", name="Reset")).to_have_count(0)
        page.get_by_role("link", name="What if?").click()
        page.get_by_label("Rate").fill("1/h")
        page.get_by_label("Burst").fill("3")
        page.get_by_role("button", name="Ask").click()
        expect(page.get_by_role("region", name="By caller").get_by_role("row", name="dialler")).to_be_visible()
