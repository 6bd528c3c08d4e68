"""Signing in at an OpenID provider in a real browser, which has its own mind about cookies, redirects and policies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.visiting import visiting
from tests.console.provider import Provider
from tests.console.running import Console
from tests.console.test_oidc import settings


@pytest.mark.parametrize("script", [True, False], ids=["script", "no-script"])
def test_to_the_provider_and_back(chromium: Browser, begin: Callable[..., Console], tmp_path: Path, script: bool) -> None:
    """To another site and back to the page that was wanted, with a cookie that no other site's navigation carries."""
    # For browsers `localhost` and 127.0.0.1 are different sites.
    with Provider("localhost") as provider:
        console = begin(**settings(tmp_path / "s", provider))
        console.fill(calls=0)
        with visiting(chromium, console, 360, script=script) as page:
            page.goto("/callers?state=all")
            page.screenshot(path=tmp_path / "sign-in.png", full_page=True)
            page.get_by_role("link", name="Sign in at localhost").click()
            page.get_by_role("link", name="I am Ada").click()
            page.wait_for_url("**/callers?state=all")
            expect(page.get_by_role("heading", level=1)).to_have_text("Callers")
            expect(page.get_by_text("oidc:ada@example.com")).to_be_visible()
            names = {cookie["name"]: cookie["sameSite"] for cookie in page.context.cookies()}
            assert names == {"console": "Strict"}
            page.get_by_role("button", name="Sign out").click()
            page.wait_for_url("**/sign-in")


def test_who_has_no_role_is_told_so(chromium: Browser, begin: Callable[..., Console], tmp_path: Path) -> None:
    """On the page of signing in, where a key still can be shown."""
    with Provider("localhost") as provider:
        provider.claims["groups"] = ["staff"]
        console = begin(**settings(tmp_path / "s", provider))
        with visiting(chromium, console) as page:
            page.goto("/sign-in")
            page.get_by_role("link", name="Sign in at localhost").click()
            page.get_by_role("link", name="I am Ada").click()
            expect(page.get_by_role("alert")).to_contain_text("none of your groups has a role here")
            expect(page.get_by_label("Console key")).to_be_visible()
