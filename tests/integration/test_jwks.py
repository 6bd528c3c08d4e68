"""Key sets from files and addresses: rotation, outages, and answers that are none."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from gateway.jwks import Jwks, JwksSettings
from gateway.tokens import IssuerRules, TokenFault, verify

NOW = 1_800_000_000
RULES = IssuerRules("cluster", "https://issuer.example", "masking-gateway", ("ES256",), 30, 86_400)
OLD = ec.generate_private_key(ec.SECP256R1())
NEW = ec.generate_private_key(ec.SECP256R1())


def document(**keys: ec.EllipticCurvePrivateKey) -> bytes:
    algorithm = jwt.get_algorithm_by_name("ES256")
    listed = [json.loads(algorithm.to_jwk(key.public_key())) | {"kid": kid, "use": "sig"} for kid, key in keys.items()]
    return json.dumps({"keys": listed}).encode()


def token(key: ec.EllipticCurvePrivateKey, kid: str) -> str:
    claims = {"iss": RULES.issuer, "aud": [RULES.audience], "sub": "s", "iat": NOW, "exp": NOW + 600}
    return jwt.encode(claims, key, "ES256", headers={"kid": kid})


class Clock:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


class Told:
    """What `changed` was told."""

    def __init__(self) -> None:
        self.facts: list[tuple[str, bool, str]] = []

    def __call__(self, name: str, good: bool, why: str) -> None:
        self.facts.append((name, good, why))


class Issuer:
    """An address that publishes keys, as long as it is up."""

    def __init__(self) -> None:
        self.body = document(old=OLD)
        self.status = 200
        self.seconds = 0.0
        self.asked: list[dict[str, str]] = []
        self.paths: list[str] = []
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked.append({name.lower(): value for name, value in self.headers.items()})
                issuer.paths.append(self.path)
                body = issuer.body
                if issuer.seconds:
                    time.sleep(issuer.seconds)
                try:
                    self.send_response(issuer.status)
                    if issuer.status != 200:
                        self.send_header("Location", f"{issuer.url}-elsewhere")
                    self.end_headers()
                    self.wfile.write(body)
                except OSError:
                    pass

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/keys"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    made = Issuer()
    yield made
    made.close()


def settings(url: str = "", file: Path | str = "", **more: Any) -> JwksSettings:
    base = JwksSettings(
        file=str(file), url=url, ca_file="", bearer_file="", max_age_seconds=600, stale_seconds_max=3600, timeout_seconds=5.0
    )
    return replace(base, **more)


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, 60))


async def until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        await asyncio.sleep(0.01)


class opened:
    """One issuer's keys, with a clock and what was told."""

    def __init__(self, source: JwksSettings, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self.clock = Clock()
        self.told = Told()
        self.jwks = Jwks({"i": source}, self.told, self.clock, transport)

    async def __aenter__(self) -> Self:
        await self.jwks.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.jwks.aclose()

    def kids(self) -> set[str]:
        current = self.jwks.current("i")
        return set() if current is None else set(current.keys)


def test_keys_are_read_from_an_address(issuer: Issuer) -> None:
    """Once, without credentials, and told once."""

    async def story() -> None:
        async with opened(settings(issuer.url)) as it:
            assert it.kids() == {"old"}
            assert it.jwks.problems() == {}
            assert it.told.facts == [("i", True, "")]
            assert len(issuer.asked) == 1
            assert "authorization" not in issuer.asked[0]
            assert issuer.asked[0]["accept-encoding"] == "identity"

    run(story())


def test_the_bearer_is_read_each_time(issuer: Issuer, tmp_path: Path) -> None:
    """Platforms renew it; without it nothing is asked."""
    bearer = tmp_path / "token"
    bearer.write_text("first\n")

    async def story() -> None:
        async with opened(settings(issuer.url, bearer_file=str(bearer))) as it:
            bearer.write_text("second\n")
            await it.jwks.refresh("i")
            assert [asked["authorization"] for asked in issuer.asked] == ["Bearer first", "Bearer second"]

            for content, why in ((None, "FileNotFoundError"), ("ä", "UnicodeEncodeError"), ("a\nb", "LocalProtocolError")):
                bearer.unlink() if content is None else bearer.write_text(content, encoding="utf-8")
                it.clock.seconds += 10
                await it.jwks.refresh("i")
                assert it.told.facts[-1] == ("i", False, why)
            assert len(issuer.asked) == 2

    run(story())


def test_rotation(issuer: Issuer) -> None:
    """A new key is found when a token names it; the removed one is refused from then on."""

    async def story() -> None:
        async with opened(settings(issuer.url)) as it:
            first = it.jwks.current("i")
            assert verify(token(OLD, "old"), RULES, first, NOW)
            issuer.body = document(new=NEW)
            with pytest.raises(TokenFault) as caught:
                verify(token(NEW, "new"), RULES, first, NOW)
            assert caught.value.kind == "key_unknown"

            assert await it.jwks.refresh("i") is True
            assert verify(token(NEW, "new"), RULES, it.jwks.current("i"), NOW)
            with pytest.raises(TokenFault) as caught:
                verify(token(OLD, "old"), RULES, it.jwks.current("i"), NOW)
            assert caught.value.kind == "key_unknown"
            assert it.told.facts == [("i", True, ""), ("i", True, "")]

    run(story())


def test_an_address_is_asked_again_in_its_turn(issuer: Issuer) -> None:
    """Nobody needs to name an unknown key: at the latest after `max_age_seconds` a removed one is gone."""

    async def story() -> None:
        async with opened(settings(issuer.url, max_age_seconds=1)) as it:
            issuer.body = document(new=NEW)
            await until(lambda: it.kids() == {"new"})

    run(story())


def test_an_issuer_that_publishes_no_key_has_none(issuer: Issuer) -> None:
    """That is no outage: every key was taken back."""

    async def story() -> None:
        async with opened(settings(issuer.url)) as it:
            issuer.body = b'{"keys": []}'
            assert await it.jwks.refresh("i") is False
            assert it.kids() == set()
            assert it.jwks.problems() == {"i": "has no public key that could verify a token"}

            issuer.body = document(old=OLD)
            it.clock.seconds += 10
            assert await it.jwks.refresh("i") is True
            assert it.kids() == {"old"}
            assert [good for _, good, _ in it.told.facts] == [True, False, True]

    run(story())


def test_an_outage_is_bridged_up_to_the_bound(issuer: Issuer) -> None:
    """The last keys serve until `stale_seconds_max` after they were read, and again once they are read again."""

    async def story() -> None:
        async with opened(settings(issuer.url, stale_seconds_max=100)) as it:
            issuer.status = 503
            it.clock.seconds += 100
            assert await it.jwks.refresh("i") is False
            assert it.kids() == {"old"}
            assert it.jwks.problems() == {}

            it.clock.seconds += 0.001
            assert it.kids() == set()
            assert it.jwks.problems() == {"i": "HTTP 503"}

            it.clock.seconds += 10
            await it.jwks.refresh("i")
            assert it.told.facts == [("i", True, ""), ("i", False, "HTTP 503")]

            issuer.status = 200
            it.clock.seconds += 10
            assert await it.jwks.refresh("i") is False
            assert it.kids() == {"old"}
            assert it.jwks.problems() == {}
            assert it.told.facts[2:] == [("i", True, "")]

    run(story())


def test_an_unreachable_issuer_stops_nothing(issuer: Issuer) -> None:
    """Opening tells of it; it is tried again soon, however long `max_age_seconds` is."""
    issuer.status = 500

    async def story() -> None:
        async with opened(settings(issuer.url, max_age_seconds=1)) as it:
            assert it.jwks.current("i") is None
            assert it.jwks.problems() == {"i": "HTTP 500"}
            issuer.status = 200
            await until(lambda: it.kids() == {"old"})

    run(story())


def test_failure_is_retried_before_its_turn(issuer: Issuer) -> None:
    """Ten seconds at most."""

    async def story() -> None:
        async with opened(settings(issuer.url, max_age_seconds=3600)) as it:
            assert 2880 <= it.jwks._pause("i") <= 3600
            issuer.status = 500
            await it.jwks.refresh("i")
            assert 8 <= it.jwks._pause("i") <= 10

    run(story())


def test_nobody_listens() -> None:
    """The reason is the kind of error."""

    async def story() -> None:
        async with opened(settings("http://127.0.0.1:1/keys")) as it:
            assert it.jwks.problems() == {"i": "ConnectError"}

    run(story())


def test_refresh_is_limited_and_shared(issuer: Issuer) -> None:
    """A hundred tokens with made-up keys make one request in ten seconds."""

    async def story() -> None:
        async with opened(settings(issuer.url)) as it:
            issuer.seconds = 0.1
            issuer.body = document(old=OLD, new=NEW)
            changes = await asyncio.gather(*(it.jwks.refresh("i") for _ in range(100)))
            assert changes == [True] * 100
            assert len(issuer.asked) == 2

            issuer.seconds = 0
            it.clock.seconds += 9.9
            assert [await it.jwks.refresh("i") for _ in range(100)] == [False] * 100
            assert len(issuer.asked) == 2

            it.clock.seconds += 0.1
            assert [await it.jwks.refresh("i") for _ in range(100)] == [False] * 100
            assert len(issuer.asked) == 3

    run(story())


def test_an_old_answer_overtakes_no_new_one(issuer: Issuer) -> None:
    """Whoever asks while a reading is under way joins it: a key that was removed does not come back by a late answer."""

    async def story() -> None:
        async with opened(settings(issuer.url, max_age_seconds=1)) as it:
            issuer.seconds = 0.3
            await until(lambda: len(issuer.asked) == 2)  # Of its own accord, and slow.
            issuer.seconds = 0
            issuer.body = document(new=NEW)
            assert await it.jwks.refresh("i") is False
            assert len(issuer.asked) == 2
            assert await it.jwks.refresh("i") is True
            assert it.kids() == {"new"}

    run(story())


def test_who_hangs_up_takes_nothing_from_the_others(issuer: Issuer) -> None:
    """The shared reading goes on."""

    async def story() -> None:
        async with opened(settings(issuer.url)) as it:
            issuer.seconds = 0.1
            issuer.body = document(new=NEW)
            first = asyncio.create_task(it.jwks.refresh("i"))
            second = asyncio.create_task(it.jwks.refresh("i"))
            await until(lambda: len(issuer.asked) == 2)
            first.cancel()
            assert await second is True
            assert first.cancelled()

    run(story())


def test_closing_ends_what_is_under_way(issuer: Issuer) -> None:
    """A waiting refresh ends as well, and no task is left."""

    async def story() -> None:
        before = asyncio.all_tasks()
        it = opened(settings(issuer.url))
        await it.jwks.open()
        issuer.seconds = 0.3
        waiting = asyncio.create_task(it.jwks.refresh("i"))
        await until(lambda: len(issuer.asked) == 2)
        await it.jwks.aclose()
        assert await waiting is False
        assert asyncio.all_tasks() == before

    run(story())


def test_keys_do_not_change_by_being_read_again(issuer: Issuer) -> None:
    """The same object, untold, although the document is written another way."""

    async def story() -> None:
        async with opened(settings(issuer.url)) as it:
            first = it.jwks.current("i")
            issuer.body = json.dumps(json.loads(issuer.body) | {"x": 1}, indent=1).encode()
            assert await it.jwks.refresh("i") is False
            assert it.jwks.current("i") is first
            assert len(it.told.facts) == 1

    run(story())


@pytest.mark.parametrize(
    ("status", "body", "why"),
    [
        (200, b"x" * (1024 * 1024 + 1), "longer than 1 MiB"),
        (200, b"{", "is not JSON"),
        (200, b"\xff\xfe", "is not JSON"),
        (200, b"[" * 100_000, "is not JSON"),
        (200, b"", "is not JSON"),
        (200, b"[]", "is not a JSON Web Key Set: it has no list 'keys'"),
        (200, b"<html>secret</html>", "is not JSON"),
        (302, b"", "HTTP 302"),
        (301, document(new=NEW), "HTTP 301"),
        (206, document(new=NEW), "HTTP 206"),
        (401, b"secret", "HTTP 401"),
    ],
)
def test_what_is_no_key_set_leaves_the_last(issuer: Issuer, status: int, body: bytes, why: str) -> None:
    """The reason names no contents, and no redirection is followed."""

    async def story() -> None:
        async with opened(settings(issuer.url)) as it:
            issuer.status, issuer.body = status, body
            assert await it.jwks.refresh("i") is False
            assert it.kids() == {"old"}
            assert it.told.facts[1:] == [("i", False, why)]
            assert set(issuer.paths) == {"/keys"}

    run(story())


def test_a_slow_issuer_is_given_up(issuer: Issuer) -> None:
    """After the time for the whole reading, however it is spent."""
    issuer.seconds = 0.4

    async def story() -> None:
        async with opened(settings(issuer.url, timeout_seconds=0.1)) as it:
            assert it.jwks.problems() in ({"i": "TimeoutError"}, {"i": "ReadTimeout"}, {"i": "ConnectTimeout"})

    run(story())


def test_an_endless_trickle_is_given_up() -> None:
    """No single wait is long; all of them together are."""

    class Trickle(httpx.AsyncByteStream):
        async def __aiter__(self):
            while True:
                yield b" "
                await asyncio.sleep(0.01)

    async def story() -> None:
        transport = httpx.MockTransport(lambda _: httpx.Response(200, stream=Trickle()))
        async with opened(settings("https://issuer.example/keys", timeout_seconds=0.1), transport) as it:
            assert it.jwks.problems() == {"i": "TimeoutError"}

    run(story())


def test_nothing_is_unpacked() -> None:
    """A compressed answer was not asked for: it is no JSON, and never grows."""

    async def story() -> None:
        packed = httpx.MockTransport(
            lambda _: httpx.Response(
                200, headers={"Content-Encoding": "gzip"}, stream=httpx.ByteStream(gzip.compress(document(old=OLD)))
            )
        )
        async with opened(settings("https://issuer.example/keys"), packed) as it:
            assert it.jwks.problems() == {"i": "is not JSON"}

    run(story())


def test_an_unforeseen_error_is_a_reason() -> None:
    """Whatever a transport raises, reading goes on."""

    def broken(_: httpx.Request) -> httpx.Response:
        raise ZeroDivisionError("secret")

    async def story() -> None:
        async with opened(settings("https://issuer.example/keys"), httpx.MockTransport(broken)) as it:
            assert it.told.facts == [("i", False, "ZeroDivisionError")]

    run(story())


@pytest.mark.parametrize(
    "source",
    [
        settings("http://issuer.example/keys"),
        settings("http://127.0.0.1.evil.example/keys"),
        settings("http://127.0.0.1@evil.example/keys"),
        settings("http://10.0.0.1/keys"),
        settings("ftp://127.0.0.1/keys"),
        settings("issuer.example/keys"),
        settings("https://"),
        settings("https://issuer.example:port/keys"),
        settings(),
        settings("https://issuer.example/keys", "keys.json"),
    ],
)
def test_a_source_that_is_none_or_not_safe_is_refused(source: JwksSettings) -> None:
    """Before anything is opened."""
    with pytest.raises(ValueError, match="issuer i: "):
        Jwks({"i": source}, Told())


@pytest.mark.parametrize("url", ["http://localhost:1/k", "http://127.8.8.8/k", "http://[::1]:1/k", "https://issuer.example/k"])
def test_this_machine_needs_no_tls(url: str) -> None:
    """And everybody else has it."""
    Jwks({"i": settings(url)}, Told())


def test_untrusted_tls_is_refused(issuer: Issuer) -> None:
    """An address that speaks no TLS, or authorities that cannot be read, are told by kind."""

    async def story() -> None:
        async with opened(settings(issuer.url.replace("http:", "https:"))) as it:
            assert it.jwks.problems() == {"i": "ConnectError"}
        async with opened(settings("https://127.0.0.1:1/k", ca_file="/nonexistent")) as it:
            assert it.jwks.problems() == {"i": "FileNotFoundError"}

    run(story())


def test_a_file_changes_by_its_link(tmp_path: Path) -> None:
    """As Kubernetes does it: a link to a folder is exchanged, the file's own path stays a link."""
    for version, body in (("v1", document(old=OLD)), ("v2", document(new=NEW))):
        (tmp_path / version).mkdir()
        (tmp_path / version / "keys.json").write_bytes(body)
        os.utime(tmp_path / version / "keys.json", (1, 1))
    (tmp_path / "..data").symlink_to("v1")
    (tmp_path / "keys.json").symlink_to("..data/keys.json")

    async def story() -> None:
        async with opened(settings(file=tmp_path / "keys.json")) as it:
            assert it.kids() == {"old"}
            (tmp_path / "..tmp").symlink_to("v2")
            (tmp_path / "..tmp").rename(tmp_path / "..data")
            await until(lambda: it.kids() == {"new"})
            assert it.told.facts == [("i", True, ""), ("i", True, "")]

    run(story())


def test_a_broken_file_leaves_the_last(tmp_path: Path) -> None:
    """Half-written, gone, or no key set: told once each, and taken up again when it is mended."""
    file = tmp_path / "keys.json"
    file.write_bytes(document(old=OLD))

    async def story() -> None:
        async with opened(settings(file=file)) as it:
            file.write_bytes(document(new=NEW)[:20])
            await until(lambda: it.told.facts[-1] == ("i", False, "is not JSON"))
            assert it.kids() == {"old"}
            file.unlink()
            await until(lambda: it.told.facts[-1] == ("i", False, "FileNotFoundError"))
            assert it.kids() == {"old"}
            file.write_bytes(document(new=NEW))
            await until(lambda: it.kids() == {"new"})
            assert it.told.facts[-1] == ("i", True, "")
            assert it.jwks.problems() == {}

    run(story())


def test_a_file_that_comes_back_is_taken_again(tmp_path: Path) -> None:
    """Although it is the very same one."""
    file = tmp_path / "keys.json"
    file.write_bytes(document(old=OLD))

    async def story() -> None:
        async with opened(settings(file=file)) as it:
            file.rename(tmp_path / "away")
            await it.jwks.refresh("i")
            assert it.told.facts[-1] == ("i", False, "FileNotFoundError")
            (tmp_path / "away").rename(file)
            await until(lambda: it.told.facts[-1] == ("i", True, ""))

    run(story())


def test_a_broken_file_is_bridged_up_to_the_bound(tmp_path: Path) -> None:
    """A file has the same bound as an address."""
    file = tmp_path / "keys.json"
    file.write_bytes(document(old=OLD))

    async def story() -> None:
        async with opened(settings(file=file, stale_seconds_max=700)) as it:
            file.write_bytes(b"x" * (1024 * 1024 + 1))
            await until(lambda: it.told.facts[-1] == ("i", False, "longer than 1 MiB"))
            it.clock.seconds += 701
            assert it.kids() == set()
            assert it.jwks.problems() == {"i": "longer than 1 MiB"}

    run(story())


def test_a_good_file_never_grows_stale(tmp_path: Path) -> None:
    """It is read again in its turn, although it did not change."""
    file = tmp_path / "keys.json"
    file.write_bytes(document(old=OLD))

    async def story() -> None:
        async with opened(settings(file=file)) as it:
            it.clock.seconds += 10_000
            assert it.kids() == set()
            await until(lambda: it.kids() == {"old"})
            assert len(it.told.facts) == 1

    run(story())


def test_a_file_can_be_asked_again_at_once(tmp_path: Path) -> None:
    """An unknown key does not wait for the next look."""
    file = tmp_path / "keys.json"
    file.write_bytes(document(old=OLD))

    async def story() -> None:
        async with opened(settings(file=file)) as it:
            file.write_bytes(document(old=OLD, new=NEW))
            assert await it.jwks.refresh("i") is True
            assert it.kids() == {"old", "new"}

    run(story())


def test_issuers_do_not_wait_for_one_another(issuer: Issuer, tmp_path: Path) -> None:
    """One is down, the other serves."""
    file = tmp_path / "keys.json"
    file.write_bytes(document(old=OLD))
    issuer.status = 500

    async def story() -> None:
        jwks = Jwks({"up": settings(file=file), "down": settings(issuer.url)}, Told())
        await jwks.open()
        assert jwks.current("up") is not None
        assert jwks.problems() == {"down": "HTTP 500"}
        await jwks.aclose()

    run(story())
