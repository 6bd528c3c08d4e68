"""Signing in to the console by OpenID Connect: who gets in as what, and everything that nobody gets in by."""

from __future__ import annotations

import hmac
import json
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from gateway import config
from gateway.config import ConfigError
from tests.console.provider import (
    CLIENT,
    EC,
    OTHER,
    RSA,
    SECRET,
    WELL_KNOWN,
    Provider,
    answering,
    dripping,
    hanging_up,
    jwk,
    signed,
    silent,
    unsigned,
)
from tests.console.running import HOSTILE, Console, Visitor
from tests.running import free_port

ROLES = """auditor = ["console-auditors"]
operator = ["console-operators", "on-call"]"""


def settings(folder: Path, provider: Provider, more: str = "") -> dict[str, Any]:
    """Return what a console is started with that knows a provider."""
    port, secret = free_port(), folder / "client-secret"
    folder.mkdir(exist_ok=True)
    secret.write_text(SECRET)
    return {
        "port": port,
        "console": f"""public_url = "http://127.0.0.1:{port}"
[console.oidc]
issuer = "{provider.issuer}"
client_id = "{CLIENT}"
{ROLES}
{more or f'client_secret = {{ file = "{secret}" }}'}""",
    }


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Console, Provider]]:
    folder = tmp_path_factory.mktemp("oidc")
    with Provider() as provider, Console(folder / "c", **settings(folder, provider)) as console:
        yield console, provider


@pytest.fixture
def provider(pair: tuple[Console, Provider]) -> Provider:
    pair[1].behave()
    return pair[1]


@pytest.fixture
def console(pair: tuple[Console, Provider]) -> Console:
    pair[0].forget_tries()
    return pair[0]


def begun(visitor: Visitor, **query: str) -> str:
    """Begin to sign in, and return where the provider is asked."""
    answer = visitor.get("/sign-in/oidc", params=query)
    assert answer.status_code == 303, answer.text
    return answer.headers["location"]


def sign_in(console: Console, provider: Provider, visitor: Visitor | None = None, **more: str) -> httpx.Response:
    visitor = visitor or console.browser()
    return visitor.get(provider.consent(begun(visitor), **more))


def told(console: Console) -> dict[str, Any]:
    """Return the newest record of somebody who signed in, or did not."""
    return [record for record in console.records() if record.get("change", "").startswith("console.sign")][-1]


def denied(console: Console, answer: httpx.Response, status: int, why: str) -> None:
    """Nobody was signed in, and the trail says why in the same words."""
    assert answer.status_code == status, answer.text
    assert "set-cookie" not in answer.headers
    record = told(console)
    assert (record["change"], record["decision"], record["source"]) == ("console.sign_in_denied", "denied", "127.0.0.1")
    assert why in record["why"]
    for secret in (SECRET, "opaque-access", "eyJ"):
        assert secret not in answer.text + json.dumps(record) + console.process.output()


@pytest.mark.parametrize(
    ("groups", "role"),
    [
        (["staff", "console-operators"], "operator"),
        (["console-auditors"], "auditor"),
        ("console-auditors", "auditor"),
        (["console-auditors", "on-call"], "operator"),
        (["console-auditors", 7, None, ["on-call"]], "auditor"),
    ],
)
def test_groups_give_a_role(console: Console, provider: Provider, groups: Any, role: str) -> None:
    """A list or one text; who is in several has the most that any gives; and the trail names person, subject and provider."""
    provider.claims["groups"] = groups
    visitor = console.browser()
    answer = sign_in(console, provider, visitor)

    assert answer.status_code == 200
    assert "SameSite=strict" in next(each for each in answer.headers.get_list("set-cookie") if each.startswith("console="))
    page = visitor.get("/overview").text
    assert "oidc:ada@example.com" in page and f'<span class="role">{role}</span>' in page
    assert visitor.get("/callers").status_code == 200
    record = told(console)
    assert record["change"] == "console.signed_in"
    assert (record["operator"], record["subject"], record["after"]) == ("oidc:ada@example.com", "u-1", role)
    assert record["why"] == f"by {provider.issuer}"
    assert "key_id" not in record

    assert visitor.send_form("/sign-out", {"csrf": visitor.csrf()}).status_code == 303
    assert visitor.get("/callers").status_code == 303
    assert told(console)["operator"] == "oidc:ada@example.com"


def test_what_the_provider_is_asked(console: Console, provider: Provider) -> None:
    """A code, for this address, bound to this browser by state, nonce and challenge, each new; the verifier stays here."""
    visitor = console.browser()
    answer = visitor.get("/sign-in/oidc")
    first, second = (parse_qs(urlsplit(url).query) for url in (answer.headers["location"], begun(console.browser())))

    assert answer.headers["location"].startswith(f"{provider.issuer}/authorize?tenant=1&")
    assert first["redirect_uri"] == [f"{console.url}/sign-in/oidc/return"]
    assert first["scope"] == ["openid email"]
    for name in ("state", "nonce", "code_challenge"):
        assert first[name] != second[name] and len(first[name][0]) >= 43
    cookie = answer.headers["set-cookie"]
    for part in ("console-sign-in=", "HttpOnly", "Max-Age=600", "Path=/", "SameSite=lax"):
        assert part in cookie
    with console.redis.client() as client:
        names = list(client.scan_iter("*console:oidc:*"))
        assert names and all(0 < client.ttl(name) <= 600 for name in names)
        kept = b"".join(name + client.get(name) for name in names)
    assert visitor.cookies["console-sign-in"].encode() not in kept and first["state"][0].encode() not in kept


def test_the_page_of_signing_in_names_the_provider(console: Console, provider: Provider) -> None:
    """Beside the form for keys, which goes on to work; with the page that was wanted."""
    page = console.browser().get("/sign-in", params={"next": "/callers?state=all"}).text

    assert f"Sign in at {urlsplit(provider.issuer).netloc}" in page
    assert 'href="/sign-in/oidc?next=/callers%3Fstate%3Dall"' in page
    assert console.browser("auditor").get("/callers").status_code == 200


def test_where_there_is_no_provider_nothing_says_so(begin: Callable[..., Console]) -> None:
    """The form for keys stands alone."""
    visitor = begin().browser()

    assert "/sign-in/oidc" not in visitor.get("/sign-in").text
    for path in ("/sign-in/oidc", "/sign-in/oidc/return?code=c&state=s"):
        assert visitor.get(path).status_code == 404


def test_the_client_proves_itself_as_the_provider_takes_it(console: Console, provider: Provider) -> None:
    """By a header, or in the form where only that is taken, never in both; and not at all by what we do not know."""
    assert sign_in(console, provider).status_code == 200
    provider.discovery = {"token_endpoint_auth_methods_supported": ["client_secret_post"]}
    assert sign_in(console, provider).status_code == 200
    assert [("authorization" in headers, "client_secret" in form) for headers, form in provider.sent] == [
        (True, False),
        (False, True),
    ]
    provider.discovery = {"token_endpoint_auth_methods_supported": ["private_key_jwt"]}
    denied(console, sign_in(console, provider), 502, "takes neither")
    assert len(provider.sent) == 2


def test_a_public_client_over_tls(tmp_path: Path, begin: Callable[..., Console]) -> None:
    """Without a secret PKCE proves it; and only a certificate of `ca_file` is believed."""
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with Provider(secret=None, context=context) as provider:
        console = begin(**settings(tmp_path, provider, f'ca_file = "{tmp_path / "ca.pem"}"'))
        assert sign_in(console, provider).status_code == 200
        provider.discovery = {"token_endpoint": "http://127.0.0.1:1/token"}
        denied(console, console.browser().get("/sign-in/oidc"), 502, "no token_endpoint that begins with https://")
        trustme.CA().cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        denied(console, console.browser().get("/sign-in/oidc"), 502, "cannot be asked: ConnectError")


@pytest.mark.parametrize("key", [RSA, EC], ids=["rsa", "ec"])
def test_a_rotated_key_is_known_at_once(console: Console, provider: Provider, key: Any) -> None:
    """What the provider does not publish proves nothing; what it publishes now does."""
    provider.sign = lambda claims: signed(claims, key, "k2")
    denied(console, sign_in(console, provider), 502, "key_unknown")
    provider.keys = [jwk(key, "k2")]
    assert sign_in(console, provider).status_code == 200
    provider.sign = signed
    denied(console, sign_in(console, provider), 502, "key_unknown")


def confused(claims: dict[str, Any]) -> str:
    """Return a token whose HMAC is made with what everybody may read."""
    pem = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return unsigned(claims, "HS256", lambda text: hmac.digest(pem, text, "sha256"))


@pytest.mark.parametrize(
    ("sign", "why"),
    [
        (unsigned, "algorithm"),
        (confused, "algorithm"),
        (lambda claims: signed(claims, OTHER), "signature"),
        (lambda claims: signed(claims)[:-6] + "AAAAAA", "signature"),
        (lambda claims: unsigned(claims, "RS256"), "signature"),
        (lambda claims: signed({**claims, "pad": "x" * 70_000}), "malformed"),
        (lambda _: "no.token", "malformed"),
        (lambda _: "", "malformed"),
    ],
    ids=["none", "hmac", "other-key", "cut", "empty", "long", "text", "nothing"],
)
def test_tokens_that_nobody_signed(console: Console, provider: Provider, sign: Any, why: str) -> None:
    """Whatever the token says of how it is signed, it is the published key that decides."""
    provider.sign = sign
    denied(console, sign_in(console, provider), 502, f"ID token is not taken: {why}")


NOW = time.time()


@pytest.mark.parametrize(
    ("claims", "why"),
    [
        ({"nonce": "another"}, "nonce"),
        ({"nonce": None}, "nonce"),
        ({"nonce": ["x"]}, "nonce"),
        ({"aud": "another"}, "audience"),
        ({"aud": None}, "audience"),
        ({"aud": ["another", CLIENT]}, "azp"),
        ({"aud": [CLIENT], "azp": "another"}, "azp"),
        ({"iss": "https://another.example"}, "issuer_unknown"),
        ({"iss": None}, "claims"),
        ({"exp": NOW - 3600, "iat": NOW - 7200}, "expired"),
        ({"exp": None}, "claims"),
        ({"iat": None}, "claims"),
        ({"iat": NOW + 30 * 86_400, "exp": NOW + 31 * 86_400}, "not_yet"),
        ({"sub": None}, "sub"),
        ({"sub": "u\n1"}, "sub"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else value,
)
def test_tokens_for_somebody_else(console: Console, provider: Provider, claims: dict[str, Any], why: str) -> None:
    """Well signed, but not for this sign-in, this client or this time."""
    provider.claims |= claims
    denied(console, sign_in(console, provider), 502, f"ID token is not taken: {why}")


def test_several_audiences_with_us_as_the_party(console: Console, provider: Provider) -> None:
    """What is for others too is for us where it says that we asked."""
    provider.claims |= {"aud": ["another", CLIENT], "azp": CLIENT}
    assert sign_in(console, provider).status_code == 200


@pytest.mark.parametrize("groups", [None, [], "staff", ["Console-Operators"], {"console-operators": True}, [["on-call"]], 7])
def test_no_group_no_role(console: Console, provider: Provider, groups: Any) -> None:
    """Whoever has no role here is told who they are, and the trail who tried."""
    provider.claims["groups"] = groups
    answer = sign_in(console, provider)

    denied(console, answer, 403, "no role")
    assert "You are ada@example.com, but none of your groups has a role here" in answer.text
    assert (told(console)["operator"], told(console)["subject"]) == ("oidc:ada@example.com", "u-1")


@pytest.mark.parametrize(
    "claims",
    [{"email": email} for email in (None, "", " ada@example.com", "ada\n@example.com", "a\u202eda", "x" * 129, ["ada"], 7)]
    + [{"email_verified": unverified} for unverified in (False, "false")],
    ids=ascii,
)
def test_names_that_could_be_another_s(console: Console, provider: Provider, claims: dict[str, Any]) -> None:
    """A name is taken as it is or not at all: cleaned or cut, it would be somebody else's."""
    provider.claims |= claims
    denied(console, sign_in(console, provider), 403, "email")


def test_a_name_is_only_ever_text(console: Console, provider: Provider) -> None:
    """Also where it is HTML, on every page and in the refusal."""
    provider.claims["email"] = HOSTILE
    visitor = console.browser()
    assert sign_in(console, provider, visitor).status_code == 200
    provider.claims["groups"] = []
    for page in (visitor.get("/overview").text, sign_in(console, provider).text):
        assert "&lt;script&gt;" in page
        assert "<script" not in page and "<img src=x" not in page
    assert told(console)["operator"] == f"oidc:{HOSTILE}"


def test_a_return_is_good_once(console: Console, provider: Provider) -> None:
    """And whatever became of it: also one that failed is over."""
    visitor = console.browser()
    returning = provider.consent(begun(visitor))
    assert visitor.get(returning).status_code == 200
    visitor.cookies.clear()
    denied(console, visitor.get(returning), 400, "no sign-in under way")

    other = console.browser()
    asked = begun(other)
    cookie = other.cookies["console-sign-in"]
    assert other.get(provider.consent(asked, code="guessed")).status_code == 502
    assert "invalid_grant" in told(console)["why"]
    other.cookies.set("console-sign-in", cookie)
    denied(console, other.get(provider.consent(asked)), 400, "no sign-in under way")


def test_a_return_is_good_in_its_browser_alone(console: Console, provider: Provider) -> None:
    """Nobody is signed in by another's link; and that somebody tried it spoils nothing for whom it belongs to."""
    mine, others, fresh = console.browser(), console.browser(), console.browser()
    returning = provider.consent(begun(mine))
    begun(others)
    asked = len(provider.asked)
    for visitor in (others, fresh):
        denied(console, visitor.get(returning), 400, "no sign-in under way")
    assert len(provider.asked) == asked, "the code is told to nobody"
    assert mine.get(returning).status_code == 200


@pytest.mark.parametrize("state", ["", "x" * 43, HOSTILE])
def test_a_wrong_state_is_refused(console: Console, provider: Provider, state: str) -> None:
    """And the sign-in that is under way is not lost by it."""
    visitor = console.browser()
    url = begun(visitor)
    answer = visitor.get(provider.consent(url, state=state))
    denied(console, answer, 400, "no sign-in under way")
    assert HOSTILE not in answer.text
    assert visitor.get(provider.consent(url)).status_code == 200


def test_a_sign_in_takes_ten_minutes_at_most(console: Console, provider: Provider) -> None:
    """What Redis has let go of is over, whatever the browser still has."""
    visitor = console.browser()
    returning = provider.consent(begun(visitor))
    with console.redis.client() as client:
        for name in client.scan_iter("*console:oidc:*"):
            client.pexpire(name, 1)
    time.sleep(0.05)
    denied(console, visitor.get(returning), 400, "no sign-in under way")


@pytest.mark.parametrize(
    ("error", "shown"),
    [("access_denied", "access_denied"), (HOSTILE, "an error without a usable code"), ("a\nb", "an error without")],
)
def test_a_refusal_of_the_provider_is_told(console: Console, provider: Provider, error: str, shown: str) -> None:
    """Its code and, as text and cut, what it says; no code is used, even where one comes along."""
    detail = HOSTILE + "\n" + "y" * 5_000
    answer = sign_in(console, provider, error=error, error_description=detail)

    denied(console, answer, 403, f"provider: {shown}")
    assert shown in answer.text and "&lt;script&gt;alert(1)" in answer.text
    assert "<script" not in answer.text and "<img src=x" not in answer.text
    assert "yyyy" in answer.text and "y" * 200 not in answer.text and "yyyy" not in told(console)["why"]
    assert "/token" not in provider.asked


def test_who_sent_somebody_back(console: Console, provider: Provider) -> None:
    """Another issuer's code is told to nobody; a provider that says it names itself has to (RFC 9207)."""
    for issuer in ("https://another.example", provider.issuer + "/", HOSTILE):
        denied(console, sign_in(console, provider, iss=issuer), 403, "another issuer")
    assert sign_in(console, provider, iss=provider.issuer).status_code == 200
    provider.discovery = {"authorization_response_iss_parameter_supported": True}
    assert sign_in(console, provider, iss=provider.issuer).status_code == 200
    denied(console, sign_in(console, provider), 403, "another issuer")
    assert len(provider.sent) == 2


ELSEWHERE = {"location": "/realms/ops/elsewhere"}


@pytest.mark.parametrize("path", [WELL_KNOWN, "/token", "/keys"])
@pytest.mark.parametrize(
    "instead",
    [
        answering(200, b"<html>"),
        answering(200, b"[1]"),
        answering(200, b"[" * 100_000),
        answering(200, b"\xff\xfe"),
        answering(200, b'{"a": "' + b"x" * 1_200_000 + b'"}'),
        answering(200, b"{}"),
        answering(200, b"{}", **{"content-encoding": "gzip"}),
        answering(302, b"", **ELSEWHERE),
        answering(307, b"", **ELSEWHERE),
        answering(500, {"error": HOSTILE}),
        hanging_up,
    ],
    ids=["html", "list", "deep", "bytes", "huge", "empty", "gzip", "302", "307", "500", "hangs-up"],
)
def test_answers_that_cannot_be_used(console: Console, provider: Provider, path: str, instead: Any) -> None:
    """Each is told as what it is, in a page of ours, and signs in nobody."""
    provider.instead = {path: instead}
    visitor = console.browser()
    answer = visitor.get("/sign-in/oidc") if path == WELL_KNOWN else sign_in(console, provider, visitor)

    what = {WELL_KNOWN: "discovery document", "/token": "token endpoint", "/keys": "public keys"}[path]
    denied(console, answer, 502, what)
    assert "/elsewhere" not in provider.asked, "no redirect is followed"
    assert "Signing in there does not work now" in answer.text and "<script" not in answer.text
    assert console.browser("auditor").get("/callers").status_code == 200


@pytest.mark.parametrize(("path", "why"), [(WELL_KNOWN, "256 KiB"), ("/token", "256 KiB"), ("/keys", "1 MiB")])
def test_no_more_is_read_than_can_be_of_use(console: Console, provider: Provider, path: str, why: str) -> None:
    """An answer is left where it is too long, though all of it would be good."""
    good = {WELL_KNOWN: provider.document(), "/token": {"id_token": "a.b.c"}, "/keys": {"keys": provider.keys}}[path]
    provider.instead = {path: answering(200, {**good, "pad": "x" * 1_200_000})}
    visitor = console.browser()
    answer = visitor.get("/sign-in/oidc") if path == WELL_KNOWN else sign_in(console, provider, visitor)
    denied(console, answer, 502, why)


@pytest.mark.parametrize(("path", "instead"), [(WELL_KNOWN, silent), ("/token", dripping)], ids=["silent", "dripping"])
def test_answers_that_do_not_end(console: Console, provider: Provider, path: str, instead: Any) -> None:
    """Nobody waits for long, neither for the first byte nor for the last."""
    provider.instead = {path: instead}
    visitor, begun_at = console.browser(), time.monotonic()
    answer = visitor.get("/sign-in/oidc") if path == WELL_KNOWN else sign_in(console, provider, visitor)

    denied(console, answer, 502, "does not answer within 8 s")
    assert time.monotonic() - begun_at < 15


@pytest.mark.parametrize(
    "discovery",
    [
        {"issuer": "https://another.example"},
        {"issuer": None},
        {"authorization_endpoint": "javascript:alert(1)"},
        {"authorization_endpoint": "https://a@another.example/"},
        {"authorization_endpoint": "https://another.example/\r\nx: y"},
        {"token_endpoint": "http://another.example/token"},
        {"token_endpoint": "https://[::1/token"},
        {"token_endpoint": "https://another.example:port/token"},
        {"jwks_uri": "file:///etc/passwd"},
        {"jwks_uri": 7},
        {"jwks_uri": "https:///keys"},
    ],
    ids=str,
)
def test_discovery_is_not_believed_in_everything(console: Console, provider: Provider, discovery: dict[str, Any]) -> None:
    """It must be that issuer's, and name addresses that are safe to ask."""
    provider.discovery = discovery
    denied(console, console.browser().get("/sign-in/oidc"), 502, next(iter(discovery)))


@pytest.mark.parametrize(
    ("wanted", "got"),
    [
        ("/callers?state=all", "/callers?state=all"),
        ("", "/overview"),
        ("//evil.example", "/overview"),
        ("https://evil.example", "/overview"),
        ("/\\evil.example", "/overview"),
        ("/\t/evil.example", "/overview"),
        ("javascript:alert(1)", "/overview"),
        ("/" + "x" * 3000, "/overview"),
        ('/callers"><script>;url=//evil.example', "/callers&#34;&gt;&lt;script&gt;;url=//evil.example"),
    ],
    ids=ascii,
)
def test_signing_in_leads_to_what_was_wanted(console: Console, provider: Provider, wanted: str, got: str) -> None:
    """By a page of ours, and to no other site."""
    visitor = console.browser()
    page = visitor.get(provider.consent(begun(visitor, next=wanted))).text

    assert f'<meta http-equiv="refresh" content="0;url={got}">' in page
    assert f'href="{got}"' in page


@pytest.mark.parametrize(("name", "what"), [("token_endpoint", "token endpoint"), ("jwks_uri", "public keys")])
def test_an_address_that_is_none(console: Console, provider: Provider, name: str, what: str) -> None:
    """Found out when it is asked, and told like any other fault of the provider's."""
    provider.discovery = {name: "https://256.1.1.1/"}
    denied(console, sign_in(console, provider), 502, what)


def test_tries_are_bounded(console: Console, provider: Provider) -> None:
    """The provider is not asked for whoever asks too often; and the trail does not grow by returns that nobody began."""
    visitor = console.browser()
    answers = [visitor.get("/sign-in/oidc") for _ in range(12)]
    assert [answer.status_code for answer in answers] == [303] * 10 + [429] * 2
    assert provider.asked == [WELL_KNOWN] * 10
    assert visitor.get("/sign-in/oidc/return?state=x&code=y").status_code == 429
    assert visitor.sign_in(console.keys["auditor"]).status_code == 429
    assert [record["why"] for record in console.records() if record.get("why") == "too many tries"] == ["too many tries"]
    assert visitor.get(provider.consent(answers[9].headers["location"])).status_code == 200, "it was counted when it began"


def test_a_session_by_the_provider_ends(console: Console, provider: Provider) -> None:
    """After its time, whole, like any other."""
    visitor = console.browser()
    assert sign_in(console, provider, visitor).status_code == 200
    with console.redis.client() as client:
        for name in client.scan_iter("*console:session:*"):
            session = json.loads(client.get(name))
            assert session["who"].startswith(("oidc:", "console:"))
            client.set(name, json.dumps({**session, "began_at": time.time() - 10 * 3600 - 1}), ex=1000)
    assert visitor.get("/callers").status_code == 303


def test_somebody_who_left_is_signed_out(console: Console, provider: Provider) -> None:
    """By the name that records have, before the session's time is over."""
    visitor = console.browser()
    assert sign_in(console, provider, visitor).status_code == 200
    assert visitor.get("/callers").status_code == 200

    console.cli("console", "sign-out", told(console)["operator"])

    assert visitor.get("/callers").status_code == 303


def test_behind_https_the_cookie_is_the_hosts(tmp_path: Path, begin: Callable[..., Console]) -> None:
    """Also that of a sign-in under way."""
    with Provider() as provider:
        given = settings(tmp_path, provider)
        console = begin(console=given["console"].replace(f"http://127.0.0.1:{given['port']}", "https://console.internal"))
        answer = console.browser().get("/sign-in/oidc", headers={"host": "console.internal"})

    assert answer.headers["set-cookie"].startswith("__Host-console-sign-in=")
    assert "Secure" in answer.headers["set-cookie"] and "Domain" not in answer.headers["set-cookie"]
    asked = parse_qs(urlsplit(answer.headers["location"]).query)
    assert asked["redirect_uri"] == ["https://console.internal/sign-in/oidc/return"]


def test_without_its_secret_the_console_does_not_start(console: Console, provider: Provider) -> None:
    """The first who signs in is not the one to find out."""
    secret = next(console.folder.parent.glob("client-secret"))
    kept = secret.read_text()
    secret.unlink()
    try:
        done = console.cli("console", "--port", "0", check=False)
    finally:
        secret.write_text(kept)
    assert done.returncode == 2
    assert str(secret) in done.stderr and "Traceback" not in done.stderr


WHOLE = {"issuer": "https://sso.example.com", "client_id": "console", "operator": ["ops"]}


@pytest.mark.parametrize(
    ("oidc", "beside", "fault"),
    [
        (WHOLE, {}, "console.public_url: is missing"),
        ({**WHOLE, "client_id": ""}, None, "console.oidc.client_id: is missing"),
        ({**WHOLE, "issuer": ""}, None, "console.oidc.issuer: is missing"),
        ({**WHOLE, "issuer": "http://sso.example.com"}, None, "console.oidc.issuer: must be an address"),
        ({**WHOLE, "issuer": "https://sso.example.com?x=1"}, None, "console.oidc.issuer: must be an address"),
        ({**WHOLE, "operator": []}, None, "console.oidc.operator: is missing"),
        ({**WHOLE, "auditor": ["ops"]}, None, "console.oidc.auditor: names ops like operator"),
        ({**WHOLE, "scopes": ["email"]}, None, "console.oidc.scopes: must be a list of scopes"),
        ({**WHOLE, "client_secret": "hunter2"}, None, "console.oidc.client_secret: must be one of"),
        ({**WHOLE, "role_claim": ""}, None, "console.oidc.role_claim: must be the name of a claim"),
    ],
)
def test_settings_that_do_not_fit_are_named(oidc: dict[str, Any], beside: dict[str, Any] | None, fault: str) -> None:
    """Each by its field and the fix, and no secret is repeated."""
    account = {"brand": "https://v.example", "primary": {"ssid": {"env": "A"}}}
    given = {"public_url": "https://console.internal"} if beside is None else beside
    with pytest.raises(ConfigError) as caught:
        config.parse({"accounts": {"main": account}, "console": {**given, "oidc": oidc}}, {})
    assert [str(each) for each in caught.value.faults if str(each).startswith(fault)], caught.value
    assert len(caught.value.faults) == 1 and "hunter2" not in str(caught.value)
