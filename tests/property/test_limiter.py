"""The limiter in Redis and the one in memory against a model with a virtual clock: one verdict, all or nothing, in bounds."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from fractions import Fraction

import msgspec
import pytest
import redis as redis_py
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.ledger.store import _ADMIT, _figures
from gateway.limiter import Limiter, verdict
from gateway.model import Charge, Limit, Verdict
from tests.running import Redis

START = 1_700_000_000_000_000
LIMITS = {
    "a": Limit("a", False, "local", 3, 100_000),
    "b": Limit("b", False, "local", 1, 1_000_000),
    "c": Limit("c", False, "local", 10, 37_000),
    "shadow": Limit("shadow", True, "local", 2, 300_000),
    "new": Limit("new", False, "local", 4, 200_000, life_ms=700),
    "shadow-new": Limit("shadow-new", True, "local", 3, 500_000, life_ms=2000),
    "places": Limit("places", False, "local", 2, life_ms=400),
    "shadow-places": Limit("shadow-places", True, "local", 1, life_ms=900),
}
PLAIN = ("a", "b", "c")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis_py.Redis]:
    with Redis(tmp_path_factory.mktemp("limiter")) as running, running.client() as client:
        yield client


def virtual(script: str) -> str:
    """Return the script with its clock in the test's hands; what expires by itself is expired by `expire`."""
    clock = "redis.call('TIME')"
    assert script.count(clock) == 1
    ours = "(function() local us = tonumber(redis.call('GET', 'clock')) return {math.floor(us / 1000000), us % 1000000} end)()"
    script = script.replace(clock, ours)
    for life in ("'PX', math.ceil((at - now) / 1000)", "'PX', life"):
        assert life in script
        script = script.replace(life, "'PX', 100000000")
    return script.replace("redis.call('PEXPIRE', KEYS[limit.key], life)", "")


SCRIPT = virtual(_ADMIT.text)
_writers = itertools.count()


def charges_of(names: list[str], numbers: list[str]) -> tuple[Charge, ...]:
    return tuple(
        Charge(LIMITS[name], f"q:{name}", "", tuple(f"q:{name}/{number}" for number in numbers) if name.endswith("new") else None)
        for name in names
    )


class Server:
    """The real script, with what it keeps of touched numbers expired by the virtual clock."""

    def __init__(self, client: redis_py.Redis) -> None:
        self.client = client
        self.touched: dict[str, int] = {}
        client.flushall()

    def decide(self, charges: tuple[Charge, ...], now: int, holder: str) -> Verdict:
        gone = [key for key, until in self.touched.items() if until <= now]
        for key in gone:
            self.client.delete(key)
            del self.touched[key]
        status, at, *figures = evaluate(self.client, charges, now, holder)
        assert at == now
        if status == b"admitted":
            for charge, figure in zip(charges, figures, strict=True):
                if figure > 0:
                    for key in charge.touched or ():
                        self.touched.setdefault(key, now + charge.limit.life_ms * 1000)
        return verdict(charges, now, figures)


def evaluate(
    client: redis_py.Redis, charges: tuple[Charge, ...], now: int, record: str, epoch: int = 0, slot: str = "primary",
    version: str = "", until: int = 0, nonce_ms: int = 0,
) -> list:  # fmt: skip
    client.set("clock", now)
    keys = ["tips", "audit", "epoch", "slot", "version", "open", "nonce"]
    for charge in charges:
        keys += [charge.key, *(charge.touched or ())]
    figures = b"".join(_figures(charge.limit, len(charge.touched or ())) for charge in charges)
    # Each record is the first of a writer of its own: chains are not what is tried here.
    link = (f"host-{next(_writers)}", "first", 0, "", "ab" * 32, "{}", record)
    return client.eval(SCRIPT, len(keys), *keys, *link, epoch, slot, version, until, "k.1", nonce_ms, figures)


class Model:
    """GCRA by its definition, in fractions: a bucket of `burst` units that grow back one an interval; nothing else is known."""

    def __init__(self) -> None:
        self.spent: dict[str, tuple[int, Fraction]] = {}

    def level(self, name: str, now: int) -> Fraction:
        at, spent = self.spent.get(name, (now, Fraction(0)))
        return max(Fraction(0), spent - Fraction(now - at, LIMITS[name].interval_us))

    def admit(self, now: int, names: list[str]) -> bool:
        if any(self.level(name, now) + 1 > LIMITS[name].burst for name in names):
            return False
        self.spent |= {name: (now, self.level(name, now) + 1) for name in names}
        return True


steps = st.integers(0, 400_000)
some = st.lists(st.sampled_from(sorted(LIMITS)), min_size=1, max_size=5, unique=True)
numbers = st.lists(st.sampled_from("uvwxyz"), min_size=1, max_size=3, unique=True)
patient = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@patient
@given(st.lists(st.tuples(steps, some, numbers), max_size=60))
def test_the_script_and_the_memory_agree(server: redis_py.Redis, calls: list[tuple[int, list[str], list[str]]]) -> None:
    """Every figure of every verdict: rates, new numbers, places, shadow; a place given back is free in both."""
    redis, memory, now = Server(server), Limiter(), START
    held: list[str] = []
    for number, (step, names, touched) in enumerate(calls):
        now += step
        charges, holder = charges_of(names, touched), f"w-{number}"

        found = redis.decide(charges, now, holder)

        assert found == memory.decide(charges, now, holder)
        if not found.refused:
            held.append(holder)
        if number % 3 == 2 and held:
            gone = held.pop(0)
            places = [f"q:{name}" for name in ("places", "shadow-places")]
            memory.release(places, gone)
            for key in places:
                server.zrem(key, gone)


@patient
@given(st.lists(st.tuples(steps, st.lists(st.sampled_from(PLAIN), min_size=1, max_size=3, unique=True)), max_size=60))
def test_the_script_and_the_model_agree(server: redis_py.Redis, calls: list[tuple[int, list[str]]]) -> None:
    """Every verdict is the model's; a refused call leaves every limit as it was, and nothing open; each has its intent."""
    server.flushall()
    model, now, admitted = Model(), START, 0
    for number, (step, names) in enumerate(calls):
        now += step
        before = {name: server.get(f"q:{name}") for name in LIMITS}

        status = evaluate(server, charges_of(names, []), now, f"w-{number}")[0]

        assert status == (b"admitted" if model.admit(now, names) else b"denied")
        admitted += status == b"admitted"
        after = {name: server.get(f"q:{name}") for name in LIMITS}
        changed = {name for name in LIMITS if before[name] != after[name]}
        assert changed == (set(names) if status == b"admitted" else set())
    assert server.xlen("audit") == len(calls)
    assert server.hlen("open") == admitted


@patient
@given(st.sampled_from(PLAIN), st.lists(st.integers(0, 200_000), max_size=80), st.integers(1, 4))
def test_no_window_admits_more_than_its_bound(name: str, steps: list[int], share: int) -> None:
    """In any window of any length at most burst + length ÷ interval pass; of `share` processes alike, share − 1 more."""
    limit = LIMITS[name]
    limiters = [Limiter(share) for _ in range(share)]
    now, passed = START, []
    for number, step in enumerate(steps):
        now += step
        for limiter in limiters:
            if not limiter.decide(charges_of([name], []), now, f"w-{number}").refused:
                passed.append(now)

    for first in range(len(passed)):
        for last in range(first, len(passed)):
            bound = limit.burst + share - 1 + (passed[last] - passed[first]) / limit.interval_us
            assert last - first + 1 <= bound


@patient
@given(st.lists(st.tuples(st.integers(0, 200_000), numbers), max_size=40), st.integers(1, 4))
def test_shares_of_new_numbers_keep_their_bound(calls: list[tuple[int, list[str]]], share: int) -> None:
    """Units, not calls: of `share` processes together at most share − 1 more than burst + time ÷ interval."""
    limit = Limit("new", False, "local", 4, 200_000, life_ms=1)
    limiters = [Limiter(share) for _ in range(share)]
    now, drawn = START, 0
    for number, (step, touched) in enumerate(calls):
        now += step + 1000  # Every number is new again.
        for limiter in limiters:
            charge = Charge(limit, "q:new", "", tuple(f"q:new//{one}" for one in touched))
            drawn += 0 if limiter.decide((charge,), now, f"w-{number}").refused else len(touched)
        assert drawn <= limit.burst + share - 1 + (now - START) / limit.interval_us


@patient
@given(st.lists(st.tuples(steps, numbers), max_size=60))
def test_shadow_never_refuses_and_is_charged_as_if_it_did(calls: list[tuple[int, list[str]]]) -> None:
    """A limit in shadow says at each call what the same limit, enforced alone, would have said."""
    shadow, enforced, now = Limiter(), Limiter(), START
    sharp = Limit("shadow-new", False, "local", 3, 500_000, life_ms=2000)
    for number, (step, touched) in enumerate(calls):
        now += step
        (charge,) = charges_of(["shadow-new"], touched)

        seen = shadow.decide((charge,), now, f"w-{number}")
        said = enforced.decide((Charge(sharp, charge.key, "", charge.touched),), now, f"w-{number}")

        assert seen.refused == ()
        assert [m.remaining for m in seen.meters] == [m.remaining for m in said.meters]
        assert bool(seen.shadow_refused) == bool(said.refused)


def test_memory_is_given_back() -> None:
    """What no longer matters is forgotten: a hundred thousand numbers leave as much as the last few."""
    limiter = Limiter()
    limit = Limit("n", False, "local", 1, 1000)
    for number in range(100_000):
        limiter.decide((Charge(limit, f"q:{number}"),), START + number * 1000, "w")

    assert len(limiter._times) < 25_000
    under_way = Limit("n.concurrency", False, "local", 1, 0, life_ms=1)
    for number in range(100_000):
        limiter.decide((Charge(under_way, f"c:{number}"),), START + number * 1_000_000, "w")
    assert len(limiter._places) < 25_000


def rated(interval_us: int, burst: int, *, shadow: bool = False) -> tuple[Charge]:
    return (Charge(Limit("x", shadow, "local", burst, interval_us), "q:x"),)


@pytest.mark.parametrize("shadow", [False, True])
def test_a_burst_that_was_lowered_for_a_moment_gives_nothing_away(server: redis_py.Redis, shadow: bool) -> None:
    """What was used of the larger burst stays used, also where the smaller one refused, or was only tried in shadow."""
    server.flushall()
    large, small = rated(1_000_000, 20), rated(1_000_000, 1, shadow=shadow)
    assert [evaluate(server, large, START, f"w-{n}")[0] for n in range(21)] == [b"admitted"] * 20 + [b"denied"]

    assert evaluate(server, small, START, "w-30")[0] == (b"admitted" if shadow else b"denied")

    assert evaluate(server, large, START, "w-31")[0] == b"denied"
    assert evaluate(server, small, START + 18_999_999, "w-32")[2] < 0
    assert evaluate(server, small, START + 20_000_000, "w-33")[2] > 0


@pytest.mark.parametrize("shadow", [False, True])
def test_a_rate_that_was_lowered_holds_from_its_first_refusal_on(server: redis_py.Redis, shadow: bool) -> None:
    """Ten used at ten a second, then one an hour: a second later none has grown back, whoever was refused between."""
    server.flushall()
    for number in range(10):
        assert evaluate(server, rated(100_000, 10), START, f"w-{number}")[0] == b"admitted"
    memory = Limiter()
    for number in range(10):
        memory.decide(rated(100_000, 10), START, f"w-{number}")
    slow = rated(3_600_000_000, 10, shadow=shadow)

    for later in (0, 500_000, 1_000_000, 3_599_999_999):
        assert evaluate(server, slow, START + later, "w-20")[2] < 0
        assert memory.decide(slow, START + later, "w-20").meters[0].admitted is False
    assert evaluate(server, slow, START + 3_600_000_000, "w-21")[2] > 0
    assert memory.decide(slow, START + 3_600_000_000, "w-21").meters[0].admitted


def test_a_clock_that_goes_back_costs_one_burst_at_most(server: redis_py.Redis) -> None:
    """After a failover to a server whose clock is an hour behind, a limit is full, and no more than that."""
    server.flushall()
    server.set("q:b", f"{START + 3_600_000_000} 1000000 1")

    assert evaluate(server, charges_of(["b"], []), START, "w-1")[0] == b"denied"
    assert evaluate(server, charges_of(["b"], []), START + 999_999, "w-2")[0] == b"denied"
    assert evaluate(server, charges_of(["b"], []), START + 1_000_000, "w-3")[0] == b"admitted"


def test_a_raised_limit_works_at_once(server: redis_py.Redis) -> None:
    """The units used stay used, and grow back at the new rate: of a day's two, both used, to ten a second with burst ten."""
    server.flushall()
    day = Charge(Limit("x", False, "local", 2, 43_200_000_000), "q:x")
    raised = Charge(Limit("x", False, "local", 10, 100_000), "q:x")
    assert [evaluate(server, (day,), START, f"w-{n}")[0] for n in range(3)] == [b"admitted", b"admitted", b"denied"]

    (_, now, at) = evaluate(server, (raised,), START, "w-3")

    assert verdict((raised,), now, [at]).meters[0].remaining == 7


@pytest.mark.parametrize(
    "junk", ["1", "", "nan", f"{START} 7", f"{START} 0 1", "-5 7 1", f"{START} 7 0", f"{START} 7 9 1", "x" * 100]
)
def test_what_no_limiter_wrote_counts_as_nothing(server: redis_py.Redis, junk: str) -> None:
    """A value of another kind under a limit's name refuses nobody, breaks nothing, and is written over."""
    server.flushall()
    server.set("q:b", junk)

    assert evaluate(server, charges_of(["b"], []), START, "w-1")[0] == b"admitted"
    assert server.get("q:b") == f"{START + 1_000_000} 1000000 1".encode()


def test_a_place_of_a_killed_process_is_free_in_time(server: redis_py.Redis) -> None:
    """Nobody gave it back: it is taken until its life is over, and not a moment longer."""
    server.flushall()
    charges = charges_of(["places"], [])
    assert [evaluate(server, charges, START, f"w-{n}")[0] for n in range(3)] == [b"admitted", b"admitted", b"denied"]

    assert evaluate(server, charges, START + 399_999, "w-4")[0] == b"denied"
    assert evaluate(server, charges, START + 400_000, "w-5")[0] == b"admitted"


def test_what_was_decided_by_old_knowledge_charges_nothing(server: redis_py.Redis) -> None:
    """A process with old keys, slot or limits is sent back to look, before anything is spent; newer keys are good."""
    server.flushall()
    charges = charges_of(["a"], [])
    server.mset({"epoch": 7, "version": "v2"})

    def decided(epoch: int, slot: str, version: str = "v2", until: int = 0) -> list:
        return evaluate(server, charges, START, "w-1", epoch, slot, version, until)

    assert decided(6, "primary") == [b"outdated", b"7", b"primary", b"v2"]
    assert decided(7, "secondary") == [b"outdated", b"7", b"primary", b"v2"]
    assert decided(7, "primary", "v1") == [b"outdated", b"7", b"primary", b"v2"]
    assert decided(7, "primary", "") == [b"outdated", b"7", b"primary", b"v2"]
    # What one of its limits was changed to has ended.
    assert decided(7, "primary", "v2", START) == [b"outdated", b"7", b"primary", b"?"]
    assert server.xlen("audit") == 5
    assert server.hlen("open") == 0
    assert server.get("q:a") is None
    assert decided(8, "primary", "v2", START + 1)[0] == b"admitted"
    server.set("slot", "secondary")
    assert decided(8, "primary") == [b"outdated", b"7", b"secondary", b"v2"]
    assert decided(8, "", "*")[0] == b"admitted"


def test_a_nonce_is_good_once(server: redis_py.Redis) -> None:
    """It is spent with the call: a refused call leaves it, an admitted one takes it, for as long as was asked."""
    server.flushall()
    charges = charges_of(["a"], [])
    server.set("q:a", f"{START + 3_600_000_000} 100000 3")

    assert evaluate(server, charges, START, "w-1", nonce_ms=60_000)[0] == b"denied"
    assert not server.exists("nonce")
    server.delete("q:a")
    assert evaluate(server, charges, START, "w-1", nonce_ms=60_000)[0] == b"admitted"
    assert 0 < server.pttl("nonce") <= 60_000
    assert evaluate(server, charges, START, "w-2", nonce_ms=60_000) == [b"replayed"]
    assert server.xlen("audit") == 3
    assert server.hkeys("open") == [b"w-1"]


def test_figures_are_what_the_script_reads() -> None:
    """Shadow, interval, tolerance or places, life, numbers."""
    assert msgspec.msgpack.decode(_figures(LIMITS["new"], 2)) == [0, 200_000, 600_000, 700, 2]
    assert msgspec.msgpack.decode(_figures(LIMITS["shadow-places"], 0)) == [1, 0, 1, 900, 0]
