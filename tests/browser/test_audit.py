"""The audit trail in a real browser: searched by a number that no address ever holds, and read down to its proof."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.visiting import SCHEMES, WIDTHS, Scheme, overflows, signed_in, visiting
from tests.console.running import Console


@pytest.mark.parametrize("script", [True, False], ids=["script", "no-script"])
def test_a_number_is_typed_and_stands_nowhere(chromium: Browser, console: Console, script: bool) -> None:
    """Not in the address, not in what the browser sends on, not in its history; and it can be taken away again."""
    with visiting(chromium, console, script=script) as page:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(f"{request.url} {request.headers.get('referer', '')}"))
        signed_in(page, console, "auditor")
        page.get_by_role("link", name="Audit").click()
        page.get_by_label("Number").fill("+91 98765 43210")
        page.get_by_label("Decision").select_option("denied")
        page.get_by_role("button", name="Search").click()
        page.wait_for_url("**/audit?*pseudonyms=*")
        expect(page.get_by_text("No record fits.")).to_be_visible()
        expect(page.get_by_label("Decision")).to_have_value("denied")
        expect(page.get_by_label("Another number")).to_have_value("")
        page.get_by_role("link", name="any number").click()
        page.wait_for_url("**/audit?decision=denied")
        expect(page.get_by_role("row")).to_have_count(51)
        page.go_back()
        assert not [text for text in (*asked, page.content()) if "98765" in text.replace("+919876543210", "")]


def test_what_is_wrong_stands_beside_its_field(chromium: Browser, console: Console) -> None:
    """And the field names it for who cannot see that."""
    with visiting(chromium, console) as page:
        signed_in(page, console, "auditor")
        page.goto("/audit")
        page.get_by_label("From").fill("yesterday")
        page.get_by_label("Number").fill("12")
        page.get_by_role("button", name="Search").click()
        expect(page.get_by_label("From")).to_have_value("yesterday")
        for label, told in (("From", "Write a span back"), ("Number", "not a telephone number")):
            expect(page.get_by_label(label)).to_have_attribute("aria-invalid", "true")
            described = page.get_by_label(label).get_attribute("aria-describedby")
            expect(page.locator(f"#{described}")).to_contain_text(told)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_from_the_list_to_the_proof(chromium: Browser, console: Console, tmp_path: Path, width: int, scheme: Scheme) -> None:
    """A row leads to its story, whose proof is a file; and older pages lead back."""
    with visiting(chromium, console, width, scheme) as page:
        signed_in(page, console, "auditor")
        page.goto("/audit?account=main&stage=outcome&service=crm")
        first = page.locator("tbody tr").first.inner_text()
        page.get_by_role("link", name="Older").click()
        assert page.locator("tbody tr").first.inner_text() != first
        page.get_by_role("link", name="Newer").click()
        assert page.locator("tbody tr").first.inner_text() == first
        page.screenshot(path=tmp_path / "list.png", full_page=True)
        # The link in the row lies over all of it.
        page.locator("tbody tr td").nth(1).click(force=True)
        expect(page.get_by_text("sealed and proved")).to_be_visible()
        for each in page.locator("details").all():
            each.locator("summary").click(position={"x": 3, "y": 5})
        assert not overflows(page)
        page.screenshot(path=tmp_path / "story.png", full_page=True)
        with page.expect_download() as proof:
            page.get_by_role("link", name="Proof as a file").click()
        assert proof.value.suggested_filename.endswith(".proof")
        assert "masking-gateway-proof/1" in Path(proof.value.path()).read_text()
