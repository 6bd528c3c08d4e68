"""Who may do what in the console, what every answer says, and what is left of it in the trail."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest

from gateway.console.routes import ROUTES
from gateway.console.visit import Route
from tests.console.running import HOSTILE, Console, Visitor, path_of
from tests.running import until

ROLES = (None, "auditor", "operator")
GETS = [route for route in ROUTES if route.method == "GET"]
PAGES = [route for route in GETS if route.twin]


@pytest.fixture(scope="session")
def visitors(console: Console) -> dict[str | None, Visitor]:
    """One visitor of each role."""
    return {role: console.browser(role) for role in ROLES}


def test_signing_in_and_out(console: Console) -> None:
    """A session begins with a key and ends with the button; both stand in the trail, and no key does."""
    visitor = console.browser()
    assert visitor.get("/callers").headers["location"] == "/sign-in?next=%2Fcallers"

    answer = visitor.sign_in(console.keys["auditor"], next="/callers?state=all")
    assert (answer.status_code, answer.headers["location"]) == (303, "/callers?state=all")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and "Path=/" in cookie and "Secure" not in cookie
    kept = visitor.cookies["console"]
    assert "an-auditor" in visitor.get("/callers").text

    assert visitor.send_form("/sign-out", {"csrf": visitor.csrf()}).headers["location"] == "/sign-in"
    visitor.cookies.set("console", kept)
    assert visitor.get("/callers").status_code == 303

    told = [record for record in console.records() if record.get("change", "").startswith("console.signed")]
    assert [record["change"] for record in told][-2:] == ["console.signed_in", "console.signed_out"]
    assert told[-1]["operator"] == "console:an-auditor"
    assert told[-2]["source"] == "127.0.0.1"
    assert console.keys["auditor"].split("_")[-1] not in json.dumps(console.records())


def test_a_session_has_a_new_id_each_time_and_redis_knows_none(console: Console) -> None:
    """What was there before signing in is not what is there after, and Redis holds digests alone."""
    visitor = console.browser()
    visitor.cookies.set("console", "chosen-by-somebody-else")
    visitor.sign_in(console.keys["auditor"])
    first = visitor.cookies.get("console", path="/", domain="127.0.0.1")
    visitor.cookies.clear()
    visitor.cookies.set("console", first)
    answer = visitor.sign_in(console.keys["auditor"])
    second = answer.cookies["console"]

    assert len({"chosen-by-somebody-else", first, second}) == 3
    assert len(second) >= 43
    with console.redis.client() as client:
        kept = b" ".join(
            key + (client.get(key) or b"") for key in client.scan_iter("*console:session*") if client.type(key) == b"string"
        )
    assert second.encode() not in kept and first.encode() not in kept
    visitor.cookies.clear()
    visitor.cookies.set("console", first)
    assert visitor.get("/callers").status_code == 303, "the session before it has ended"


@pytest.mark.parametrize("key", ["", "gc_auditor_0123456789_" + "A" * 33, "gk_live_crmkeyid00_" + "A" * 33, HOSTILE])
def test_a_wrong_key_is_refused_and_recorded(console: Console, key: str) -> None:
    """Nobody is told why; the trail is."""
    before = len(console.records())
    answer = console.browser().sign_in(key)

    assert answer.status_code == 401
    assert "not a key that is good here" in answer.text
    assert "<script>alert" not in answer.text
    assert "set-cookie" not in answer.headers
    denied = [record for record in console.records()[before:] if record.get("change") == "console.sign_in_denied"]
    assert [(record["decision"], record["source"]) for record in denied] == [("denied", "127.0.0.1")]


def test_tries_are_bounded(begin: Callable[..., Console]) -> None:
    """After ten tries in a minute not even a good key is looked at, and the trail does not grow by more of them."""
    console = begin()
    visitor = console.browser()
    answers = [visitor.sign_in("gc_auditor_nothing") for _ in range(14)]

    assert [answer.status_code for answer in answers] == [401] * 10 + [429] * 4
    assert visitor.sign_in(console.keys["operator"]).status_code == 429
    denied = [record["why"] for record in console.records() if record.get("change") == "console.sign_in_denied"]
    assert denied == ["no key of the console"] * 10 + ["too many tries"]


def test_sessions_end_with_their_key_and_their_time(begin: Callable[..., Console]) -> None:
    """Revoking a key ends its sessions with their next request; so does time, idle or whole."""
    console = begin(console="session_hours = 1")
    visitor = console.browser("operator")
    assert visitor.get("/callers").status_code == 200
    console.cli("console", "revoke", "an-operator")
    assert visitor.get("/callers").status_code == 303
    assert visitor.sign_in(console.keys["operator"]).status_code == 401

    idle, old = console.browser("auditor"), console.browser("auditor")
    with console.redis.client() as client:
        names = list(client.scan_iter("*console:session:*"))
        assert len(names) == 2
        assert all(0 < client.pttl(name) <= 30 * 60_000 for name in names)
        for name in names:
            session = json.loads(client.get(name))
            client.set(name, json.dumps({**session, "began_at": time.time() - 3601}), ex=1000)
    assert old.get("/callers").status_code == 303
    with console.redis.client() as client:
        for name in client.scan_iter("*console:session:*"):
            client.delete(name)
    assert idle.get("/callers").status_code == 303


def test_keys_are_issued_listed_and_revoked(begin: Callable[..., Console]) -> None:
    """Each has an end if it was given one, is shown once, and every change is in the trail."""
    console = begin()
    key = console.issue("ada@ops", "operator", "--days", "1")
    rows = {row["name"]: row for row in map(json.loads, console.cli("console", "list", "--json").stdout.splitlines())}
    assert rows["ada@ops"]["expires_at"] == pytest.approx(time.time() + 86_400, abs=60)
    assert key.split("_")[-1] not in console.cli("console", "list").stdout

    again = console.issue("ada@ops", "auditor")
    assert "several keys" in console.cli("console", "revoke", "ada@ops", check=False).stderr
    console.cli("console", "revoke", key.split("_")[2])
    console.cli("console", "revoke", "ada@ops")
    assert again != key
    assert "neither the id" in console.cli("console", "revoke", "ada@ops", check=False).stderr
    changes = [record["change"] for record in console.records() if record.get("subject") == "ada@ops"]
    assert changes == ["console.key_issued"] * 2 + ["console.key_revoked"] * 2


@pytest.mark.parametrize("role", ROLES, ids=str)
@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_the_table_of_roles(visitors: dict[str | None, Visitor], route: Route, role: str | None) -> None:
    """Each route is had by the roles that the table names, and by no other; a twin in JSON by the same ones."""
    visitor = visitors[role]
    allowed = route.role is None or role == "operator" or role == route.role
    if route.method == "POST":
        # Without a token: who may have it is told that, everybody else that it is not theirs.
        answer = visitor.send_form(path_of(route), {"key": "no key"} if route.role is None else {})
        expected = 401 if role is None or route.role is None else 403
        assert answer.status_code in (expected, 429)
        if role is not None and route.role is not None:
            assert ("no longer good" in answer.text) == allowed
        return
    page = visitor.get(path_of(route))
    if route.path.startswith("/sign-in/oidc"):
        assert page.status_code == 404, "there is no provider here"
        return
    if not route.twin:
        assert page.status_code == (200 if allowed else 303 if role is None else 403)
        return
    twin = visitor.get(path_of(route) + ".json")
    if allowed:
        assert (page.status_code, twin.status_code) == (200, 200)
        assert twin.headers["content-type"] == "application/json"
        assert isinstance(twin.json(), dict)
    elif role is None:
        assert (page.status_code, twin.status_code) == (303, 401)
        assert page.headers["location"].startswith("/sign-in")
    else:
        assert (page.status_code, twin.status_code) == (403, 403)
        assert "crmkeyid00" not in twin.text


def test_auditors_can_change_nothing() -> None:
    """Whatever is not reading needs an operator, but for signing in and out.

    A search is a form to keep numbers out of addresses, and a review of the trail one since it takes its time.
    """
    reading = ("/sign-in", "/sign-out", "/audit", "/integrity/verify")
    changing = [route for route in ROUTES if route.method != "GET" and route.path not in reading]

    assert changing
    assert {route.role for route in changing} == {"operator"}


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "", "http://127.0.0.1:1", "http://127.0.0.1"],
    ids=["other", "null", "none", "port", "bare"],
)
def test_forms_of_other_sites_do_nothing(console: Console, visitors: dict[str | None, Visitor], origin: str) -> None:
    """A form needs our origin, and that is looked at before the token; also where nobody is signed in."""
    visitor = visitors["operator"]
    form = {"csrf": visitor.csrf(), "why": "from elsewhere"}
    answers = [visitor.send_form("/callers/dialkeyid0/revoke", form, origin=origin)]
    answers += [console.browser().send_form("/sign-in", {"key": console.keys["operator"]}, origin=origin)]

    for answer in answers:
        assert answer.status_code == 403
        assert "set-cookie" not in answer.headers
    assert visitor.get("/callers/dialkeyid0.json").json()["rows"][0]["state"] == "live"


def test_somebody_is_signed_out_everywhere(begin: Callable[..., Console]) -> None:
    """All sessions of one are over with their next request, nobody else's, and it is recorded; signing in anew is free."""
    console = begin()
    ada, bob = console.issue("ada", "operator"), console.issue("bob", "auditor")
    browsers = [console.browser() for _ in range(3)]
    for browser, key in zip(browsers, (ada, ada, bob), strict=True):
        assert browser.sign_in(key).status_code == 303

    console.cli("console", "sign-out", "console:ada")

    assert [browser.get("/callers").status_code for browser in browsers] == [303, 303, 200]
    assert browsers[0].sign_in(ada).status_code == 303
    assert browsers[0].get("/callers").status_code == 200
    console.cli("console", "sign-out", "console:ada")
    assert browsers[0].get("/callers").status_code == 303
    told = [record for record in console.records() if record.get("change") == "console.sessions_ended"]
    assert [(record["subject"], record["account"]) for record in told] == [("console:ada", ":keys")] * 2
    assert "oidc:ada@example.com" in console.cli("console", "sign-out", "ada", check=False).stderr


@pytest.mark.parametrize("token", [None, "", "x" * 43])
def test_forms_need_the_sessions_own_token(console: Console, visitors: dict[str | None, Visitor], token: str | None) -> None:
    """Not none, not an empty one, not another session's."""
    visitor = visitors["operator"]
    form = {"why": "without a token"} if token is None else {"why": "with a wrong one", "csrf": token}
    others = {**form, "csrf": console.browser("operator").csrf()} if token else form

    for sent in (form, others):
        assert visitor.send_form("/callers/dialkeyid0/revoke", sent).status_code == 403
    assert visitor.send_form("/callers/dialkeyid0/revoke", form, **{"sec-fetch-site": "cross-site"}).status_code == 403
    assert visitor.get("/callers/dialkeyid0.json").json()["rows"][0]["state"] == "live"


def test_every_answer_says_what_browsers_may_do(console: Console, visitors: dict[str | None, Visitor]) -> None:
    """Pages, twins, refusals, redirects, files, and what is not there."""
    paths = [path_of(route) for route in GETS]
    paths += [f"{path}.json" for path in paths] + [
        "/",
        "/nowhere",
        "/livez",
        "/static/x/console.css",
        "/static/x/nothing",
        "/overview.xml",
    ]
    answers = [visitor.get(path) for visitor in visitors.values() for path in paths]
    answers += [visitors[None].post("/overview"), visitors[None].get("/overview", headers={"host": "evil.example"})]
    answers += [visitors[None].send_form("/sign-in", {"key": "x" * 70_000})]

    assert {answer.status_code for answer in answers} >= {200, 303, 401, 403, 404, 405, 413, 421}
    for answer in answers:
        told = answer.headers
        assert told["content-security-policy"].startswith("default-src 'none'; "), answer.url
        assert "unsafe" not in told["content-security-policy"]
        assert told["x-content-type-options"] == "nosniff"
        assert told["referrer-policy"] == "same-origin"
        assert told["cross-origin-opener-policy"] == told["cross-origin-resource-policy"] == "same-origin"
        assert told["cache-control"] == "no-store"
        assert "strict-transport-security" not in told
        assert "server" not in told


def test_behind_https_cookies_are_secure(begin: Callable[..., Console]) -> None:
    """Where browsers come by https, the cookie is for that host and https alone, and plain forms are another site's."""
    console = begin(console='public_url = "https://console.internal"')
    visitor = console.browser()
    assert visitor.get("/sign-in").status_code == 421
    sent = {"host": "console.internal", "origin": "https://console.internal"}
    answer = visitor.send_form("/sign-in", {"key": console.keys["auditor"]}, **sent)

    assert answer.headers["set-cookie"].startswith("__Host-console=")
    assert "Secure" in answer.headers["set-cookie"]
    assert "Domain" not in answer.headers["set-cookie"]
    assert answer.headers["strict-transport-security"] == "max-age=31536000"
    assert visitor.send_form("/sign-in", {}, host="console.internal", origin="http://console.internal").status_code == 403


@pytest.mark.parametrize(
    "path", ["//evil.example", "https://evil.example", "/\\evil.example", "/a\r\nx: y", "javascript:alert(1)"]
)
def test_signing_in_leads_nowhere_else(console: Console, path: str) -> None:
    """The page that was wanted is one of ours, or the overview."""
    visitor = console.browser()
    assert visitor.get("/sign-in", params={"next": path}).text.count('name="next" value=""') == 1
    assert visitor.sign_in(console.keys["auditor"], next=path).headers["location"] == "/overview"


def test_what_is_stored_is_shown_as_text(console: Console, visitors: dict[str | None, Visitor]) -> None:
    """Whatever stands in a note, a name or a query is never part of the page."""
    shown = 0
    for visitor in (visitors["auditor"], visitors["operator"]):
        for path in (*map(path_of, PAGES), "/callers/dialkeyid0", "/callers?state=all"):
            for params in ({}, {"service": HOSTILE, "state": HOSTILE, "next": HOSTILE}):
                page = visitor.get(path, params=params).text
                shown += "&lt;script&gt;" in page
                assert "<script" not in page and "<img src=x" not in page, path
    assert shown > 3


def test_nothing_secret_is_shown(console: Console, visitors: dict[str | None, Visitor]) -> None:
    """No key, digest or id of a session is in any page or twin."""
    with console.redis.client() as client:
        digests = [version["digest"] for entry in client.hvals("gw:{:keys}:keys") for version in json.loads(entry)["versions"]]
        digests += [json.loads(entry)["digest"] for entry in client.hvals("gw:{:keys}:console:keys")]
    secrets = [*digests, *(key.split("_")[-1] for key in console.keys.values()), "pseudonym-key-for-tests"]
    for role in ("auditor", "operator"):
        visitor = visitors[role]
        for path in map(path_of, GETS):
            for text in (visitor.get(path).text, visitor.get(path + ".json").text):
                assert not [secret for secret in (*secrets, visitor.cookies["console"]) if secret in text], path


def test_a_key_is_revoked_for_a_reason(begin: Callable[..., Console]) -> None:
    """Asked first, then done, told once, and recorded with the reason and who it was."""
    console = begin()
    console.fill(calls=0)
    visitor = console.browser("operator")
    assert "cannot be undone" in visitor.get("/callers/crmkeyid00.1/revoke").text
    form = {"csrf": visitor.csrf(), "why": ""}
    answer = visitor.send_form("/callers/crmkeyid00.1/revoke", form)
    assert answer.status_code == 400 and "Give the reason" in answer.text
    answer = visitor.send_form("/callers/crmkeyid00.1/revoke", {**form, "why": "leaked by 9876543210"})
    assert answer.status_code == 400 and "telephone number" in answer.text and "9876543210" not in answer.text
    assert "9876543210" not in json.dumps(console.records())

    answer = visitor.send_form("/callers/crmkeyid00.1/revoke", {**form, "why": HOSTILE})
    assert answer.headers["location"] == "/callers/crmkeyid00"
    page = visitor.get("/callers/crmkeyid00").text
    assert "Revoked crmkeyid00.1 of crm; 3 calls under it are still under way." in page
    assert "Revoked crmkeyid00.1" not in visitor.get("/callers/crmkeyid00").text
    assert [row["state"] for row in visitor.get("/callers/crmkeyid00.json").json()["rows"]] == ["revoked", "live"]
    record = next(record for record in console.records() if record.get("change") == "key.revoked")
    assert (record["operator"], record["why"], record["key_id"]) == ("console:an-operator", HOSTILE, "crmkeyid00")


def test_the_end_of_a_key_is_changed(begin: Callable[..., Console]) -> None:
    """To a span that is offered, or to none."""
    console = begin()
    console.fill(calls=0)
    visitor = console.browser("operator")
    form = {"csrf": visitor.csrf(), "why": "still in use", "ends": "30d"}
    assert visitor.send_form("/callers/crmkeyid00.1/extend", {**form, "ends": "9999w"}).status_code == 400
    assert visitor.send_form("/callers/crmkeyid00.1/extend", form).status_code == 303

    first, second = visitor.get("/callers/crmkeyid00.json").json()["rows"]
    assert first["expires_at"] == pytest.approx(time.time() + 30 * 86_400, abs=60)
    assert second["expires_at"] is None
    record = next(record for record in console.records() if record.get("change") == "key.extended")
    assert (record["operator"], record["why"]) == ("console:an-operator", "still in use")


def test_without_redis_pages_say_so(begin: Callable[..., Console]) -> None:
    """Plainly, in the same frame, as page and as JSON; and all goes on when it is back."""
    console = begin()
    visitor = console.browser("operator")
    console.redis.kill()
    for answer in (visitor.get("/callers"), visitor.sign_in(console.keys["auditor"])):
        assert answer.status_code == 503
        assert "Redis does not answer" in answer.text and "Masking Gateway" in answer.text
        assert "Traceback" not in answer.text and "Error" not in answer.text
    twin = visitor.get("/callers.json")
    assert (twin.status_code, twin.json()["problem"]) == (503, "Redis is away")
    assert visitor.get("/livez").status_code == 200

    console.redis.start()
    until(lambda: visitor.get("/callers").status_code == 200, what="the console going on")


def test_beyond_this_machine_it_wants_to_know_its_address(console: Console) -> None:
    """It would be plain http with a cookie that anybody on the way may read."""
    done = console.cli("console", "--host", "0.0.0.0", check=False)

    assert done.returncode == 2
    assert "console.public_url" in done.stderr


def test_serving_callers_never_loads_it() -> None:
    """What `gateway serve` imports has nothing of the console's."""
    import subprocess
    import sys

    program = "import sys, gateway.cli.main, gateway.server; print([n for n in sys.modules if 'console' in n and 'gateway' in n or n == 'jinja2'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)

    assert done.stdout.strip() == "[]", done.stderr


def test_a_person_is_not_kept_waiting(visitors: dict[str | None, Visitor]) -> None:
    """Each page is there within two seconds."""
    for path in (path_of(route) for route in GETS if not route.path.startswith("/sign-in/oidc")):
        times = []
        for _ in range(3):  # A machine that is busy is slow once.
            begun = time.monotonic()
            assert visitors["operator"].get(path).status_code == 200
            times.append(time.monotonic() - begun)
        assert min(times) < 2, path
