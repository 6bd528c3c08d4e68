"""The admit script against a pure model with a virtual clock: the same verdicts, all or nothing, never over the bound."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources

import pytest
import redis as redis_py
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.running import Redis

LIMITS = {"a": (100_000, 3), "b": (1_000_000, 1), "c": (37_000, 10)}
"""Name: (interval in microseconds, burst)."""
START = 1_700_000_000_000_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis_py.Redis]:
    with Redis(tmp_path_factory.mktemp("limiter")) as running, running.client() as client:
        yield client


def virtual(script: str) -> str:
    """Return the script with its clock, and the life of its keys, in the test's hands."""
    clock, life = "redis.call('TIME')", "math.ceil((at - now) / 1000))"
    assert clock in script
    assert life in script
    ours = "(function() local us = tonumber(redis.call('GET', 'clock')) return {math.floor(us / 1000000), us % 1000000} end)()"
    return script.replace(clock, ours).replace(life, "100000000)")


SCRIPT = virtual((resources.files("gateway.ledger") / "admit.lua").read_text())


class Model:
    """GCRA by its definition: each quota has one theoretical arrival time."""

    def __init__(self) -> None:
        self.times: dict[str, int] = {}

    def admit(self, now: int, names: list[str]) -> bool:
        times = {name: max(self.times.get(name, now), now) for name in names}
        if any(times[name] - now > LIMITS[name][0] * (LIMITS[name][1] - 1) for name in names):
            return False
        self.times.update({name: times[name] + LIMITS[name][0] for name in names})
        return True


def ask(client: redis_py.Redis, now: int, names: list[str], record: str) -> bool:
    client.set("clock", now)
    keys = ["epoch", "slot", "audit", "open", "nonce", *(f"q:{name}" for name in names)]
    drawn = [figure for name in names for figure in (LIMITS[name][0], LIMITS[name][0] * (LIMITS[name][1] - 1))]
    status = client.eval(SCRIPT, len(keys), *keys, 0, "primary", record, "k.1", "{}", 0, *drawn)[0]
    assert status in (b"admitted", b"denied")
    return bool(status == b"admitted")


calls = st.lists(
    st.tuples(st.integers(0, 400_000), st.lists(st.sampled_from(sorted(LIMITS)), min_size=1, max_size=3, unique=True)),
    max_size=60,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls)
def test_the_script_and_the_model_agree(server: redis_py.Redis, calls: list[tuple[int, list[str]]]) -> None:
    """Every verdict is the model's; a refused call leaves every quota as it was, and no record."""
    server.flushall()
    model, now, admitted = Model(), START, 0
    for number, (step, names) in enumerate(calls):
        now += step
        before = {name: server.get(f"q:{name}") for name in LIMITS}

        verdict = ask(server, now, names, f"w-{number}")

        assert verdict == model.admit(now, names)
        admitted += verdict
        after = {name: server.get(f"q:{name}") for name in LIMITS}
        changed = {name for name in LIMITS if before[name] != after[name]}
        assert changed == (set(names) if verdict else set())
    assert server.xlen("audit") == server.hlen("open") == admitted


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(LIMITS)), st.lists(st.integers(0, 200_000), max_size=80))
def test_no_window_admits_more_than_its_bound(server: redis_py.Redis, name: str, steps: list[int]) -> None:
    """In any window of any length at most burst + length ÷ interval calls pass."""
    server.flushall()
    interval, burst = LIMITS[name]
    now, passed = START, []
    for number, step in enumerate(steps):
        now += step
        if ask(server, now, [name], f"w-{number}"):
            passed.append(now)

    for first in range(len(passed)):
        for last in range(first, len(passed)):
            assert last - first + 1 <= burst + (passed[last] - passed[first]) / interval


def test_a_lowered_limit_works_at_once(server: redis_py.Redis) -> None:
    """A time stored under a larger burst is cut to what today's limit would have stored."""
    server.flushall()
    server.set("q:b", START + 3_600_000_000)

    assert not ask(server, START, ["b"], "w-1")
    assert not ask(server, START + 999_999, ["b"], "w-2")
    assert ask(server, START + 1_000_000, ["b"], "w-3")


def decided(server: redis_py.Redis, epoch: int, slot: str, nonce_ms: int = 0, record: str = "w-1") -> list:
    keys = ["epoch", "slot", "audit", "open", "nonce", "q:a"]
    return server.eval(SCRIPT, len(keys), *keys, epoch, slot, record, "k.1", "{}", nonce_ms, 100_000, 200_000)


def test_what_was_decided_by_old_knowledge_charges_nothing(server: redis_py.Redis) -> None:
    """A process with old keys, or another slot, is sent back to look, before anything is spent; newer keys are good."""
    server.flushall()
    server.set("epoch", 7)
    server.set("clock", START)

    assert decided(server, 6, "primary") == [b"outdated", b"7", b"primary"]
    assert decided(server, 7, "secondary") == [b"outdated", b"7", b"primary"]
    assert server.xlen("audit") == 0
    assert server.get("q:a") is None
    assert decided(server, 8, "primary")[0] == b"admitted"
    server.set("slot", "secondary")
    assert decided(server, 8, "primary") == [b"outdated", b"7", b"secondary"]
    assert decided(server, 8, "")[0] == b"admitted"


def test_a_nonce_is_good_once(server: redis_py.Redis) -> None:
    """It is spent with the call: a refused call leaves it, an admitted one takes it, for as long as was asked."""
    server.flushall()
    server.set("clock", START)
    server.set("q:a", START + 3_600_000_000)

    assert decided(server, 0, "primary", 60_000)[0] == b"denied"
    assert not server.exists("nonce")
    server.delete("q:a")
    assert decided(server, 0, "primary", 60_000)[0] == b"admitted"
    assert 0 < server.pttl("nonce") <= 60_000
    assert decided(server, 0, "primary", 60_000) == [b"replayed"]
    assert server.xlen("audit") == 1
