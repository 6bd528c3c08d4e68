"""kill -9 at every point of a call, of an heir and of a sealer: what was made is told once, and what nobody knows is said to be."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator

import httpx
import pytest

from gateway.trail.note import PublicKey
from gateway.trail.verify import verify
from tests.chaos.killing import CALLS, DOOMED, HALF_SENT, HEIRS, SEALERS, TORN
from tests.chaos.processes import descendants
from tests.chaos.promise import FIRST_EXPIRY, M1, M2, Answer, archive_of, assert_kept, body_of, seal, sealed, settled
from tests.running import UNSET, Process, Stack, until

NUMBER = int(DOOMED) - FIRST_EXPIRY
SEALING = 'sealing = "serve"'
APART = 'sealing = "apart"'
_numbers = itertools.count()


def call(stack: Stack, number: int) -> list[Answer]:
    """Make a call; return its answer, if it got one."""
    headers = {"Authorization": f"Bearer {stack.key}", "X-Request-Id": Answer(number, 0).request_id}
    try:
        answer = stack.http.post(stack.url + UNSET, json=body_of(number), headers=headers)
    except httpx.TransportError:
        return []
    return [Answer(number, answer.status_code)]


def doomed(stack: Stack, point: str, *words: str) -> Process:
    """Start a command that kills itself at a point; it seals nothing beside."""
    config = stack.folder / "doomed.toml"
    config.write_text(stack.config.read_text().replace(SEALING, APART))
    command = [sys.executable, "-m", "tests.chaos.killing", point, *words, "--config", str(config)]
    return Process(stack.folder, f"doomed-{next(_numbers)}", command, stack._environ)


def died(stack: Stack, process: Process) -> None:
    """Wait until it did, and let it count as dead at once."""
    until(lambda: not process.alive(), what=f"the death of {process.name}: {process.output()}")
    assert process.popen.returncode == -signal.SIGKILL, process.output()
    with stack.redis.client() as client:
        client.delete("gw:{test}:processes")


def kept(stack: Stack, answers: Iterable[Answer] = ()) -> None:
    """Assert that the sealed trail is sound, and keeps its promise."""
    archive = archive_of(stack)
    assert_kept(sealed(archive), stack.vendor_calls(), answers)
    report = verify(archive, PublicKey.parse((archive / "public.key").read_text().strip()))
    assert report.status == 0, report.findings


@pytest.fixture(scope="module")
def sealing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A gateway that lives, seals, and is the heir of those that die beside it."""
    with Stack(tmp_path_factory.mktemp("killing"), audit=SEALING, read_ms=2900) as stack:
        stack.set_masking(M1, M2)
        yield stack
        stack.gateway.stop()
        assert stack.cli("audit", "verify").returncode == 0


UNTOLD = {"before the intent is journalled", TORN}
KNOWN = {
    "after the outcome is settled",
    "after the outcome is journalled",
    "when the outcome is sent",
    "when the outcome is answered",
}


@pytest.mark.parametrize("point", [*CALLS, TORN])
def test_a_gateway_dies_amid_a_call(sealing: Stack, point: str) -> None:
    """Another one closes what it left open; a call without an intent was not made, one with an outcome is known."""
    sealing.clear_vendor_calls()
    gateway, own = doomed(sealing, point, "serve", "--port", "0"), sealing.url
    sealing.url = gateway.address()
    before = len(sealed(archive_of(sealing)))
    answers = call(sealing, NUMBER)
    died(sealing, gateway)
    sealing.url = own
    settled(sealing)

    kept(sealing)
    records = [r for r in sealed(archive_of(sealing))[before:] if r.get("request_id") == Answer(NUMBER, 0).request_id]
    assert [record["stage"] for record in records] == (
        [] if point in UNTOLD else ["intent", "outcome"] if point in KNOWN else ["intent", "abort"]
    )
    assert len(sealing.vendor_calls()) == (0 if "intent" in point or point == "before the vendor is called" else 1)
    if answers:
        assert (point, answers[0].status) == (point, 200)


@pytest.mark.parametrize("point", [*HEIRS, HALF_SENT])
def test_an_heir_dies(sealing: Stack, point: str) -> None:
    """A call's gateway is killed while the vendor acts, then the one that carries it on: the third tells it, once."""
    stack, number = sealing, next(_numbers)
    stack.fault(answer="slow", delay_ms=20_000)
    caller = threading.Thread(target=call, args=(stack, number))
    before, known = len(stack.vendor_calls()), len(stack.whole_stream())
    caller.start()
    until(lambda: len(stack.vendor_calls()) > before, what="the vendor being called")
    for pid in (stack.gateway.pid, *descendants(stack.gateway.pid)):
        os.kill(pid, signal.SIGKILL)
    stack.gateway.popen.wait()
    caller.join()
    stack.no_faults()
    heir = doomed(stack, point, "serve", "--port", "0")
    if "remove" in point:
        # It removes what is sealed, and not before.
        until(lambda: any(row.get("why") == "recovered" for row in stack.whole_stream()[known:]), what="the dead being closed")
        seal(stack)
    died(stack, heir)
    stack.start_gateway()
    settled(stack)

    kept(stack)
    told = [record for record in sealed(archive_of(stack)) if record.get("request_id") == Answer(number, 0).request_id]
    assert [(record["stage"], record.get("problem")) for record in told] == [("intent", None), ("abort", "unknown_outcome")]


@pytest.fixture(scope="module")
def unsealing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A gateway beside which nothing is sealed unless it is asked for."""
    with Stack(tmp_path_factory.mktemp("unsealed"), audit=APART, read_ms=2900) as stack:
        stack.set_masking(M1, M2)
        yield stack
        stack.gateway.stop()
        seal(stack)
        assert stack.cli("audit", "verify").returncode == 0


@pytest.mark.parametrize("point", SEALERS)
def test_a_sealer_dies(unsealing: Stack, point: str) -> None:
    """The next one finds what it left half done, and every record is sealed once."""
    stack = unsealing
    answers = [*call(stack, next(_numbers)), *call(stack, next(_numbers))]

    died(stack, doomed(stack, point, "audit", "seal"))
    answers += call(stack, next(_numbers))
    settled(stack, 30, lambda: seal(stack))

    assert [answer.status for answer in answers] == [200, 200, 200]
    kept(stack, answers)


CLAIMED = {point for point in CALLS if point not in {*UNTOLD, "after the intent is journalled", "before the intent is sent"}}
"""Where Redis was sent the intent, so that it may have the claim."""
KINDS = {"an instant": {}, "an instant, and minutes from now": {"expiry_duration": 60}}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("point", [*CALLS, TORN])
def test_a_gateway_dies_amid_a_call_with_a_key(sealing: Stack, point: str, kind: str) -> None:
    """The retry gets the answer where it is known; else it is made where twice is once, and told that nobody knows where not."""
    stack, twice_is_once = sealing, not KINDS[kind]
    fields = {**body_of(NUMBER), **KINDS[kind]}
    headers = {"Authorization": f"Bearer {stack.key}", "Idempotency-Key": f"{point}, {kind}".replace(" ", "_").replace(",", "")}
    stack.clear_vendor_calls()
    gateway, own = doomed(stack, point, "serve", "--port", "0"), stack.url
    try:
        first = stack.http.post(gateway.address() + UNSET, json=fields, headers=headers).content
    except httpx.TransportError:
        first = None
    died(stack, gateway)
    made = len(stack.vendor_calls())

    def over() -> httpx.Response | None:
        answer = stack.http.post(own + UNSET, json=fields, headers=headers)
        return None if answer.json().get("error") == "idempotency_running" else answer

    retry = until(over, what="the key not being held")

    told = (retry.status_code, retry.json().get("error"), retry.headers.get("idempotency-replayed"))
    calls = len(stack.vendor_calls())
    if point in KNOWN:
        assert (told, made, calls) == ((200, None, "true"), 1, 1)
        assert first in (None, retry.content)
    elif twice_is_once or point not in CLAIMED:
        assert (told, calls - made) == ((200, None, None), 1)
    else:
        assert (told, calls - made) == ((409, "idempotency_unknown", None), 0)
    assert twice_is_once or calls <= 1
