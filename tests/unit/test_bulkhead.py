"""The breaker by its clock, and the places of an account: who waits, who is refused, and in which order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from gateway.bulkhead import FAILURES, Breaker, Bulkhead, Place, State
from gateway.errors import Problem, Refusal


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def breaker(clock: Clock, calls: int = 4, seen: list[State] | None = None) -> Breaker:
    return Breaker(calls, 2.0, clock, (lambda state: seen.append(state)) if seen is not None else lambda _: None)


def tell(one: Breaker, *problems: Problem | None) -> None:
    for problem in problems:
        one.told(problem, probe=one.ask())


def wait_of(one: Breaker) -> int:
    with pytest.raises(Refusal) as caught:
        one.ask()
    assert caught.value.problem is Problem.upstream_paused
    assert caught.value.retry_after_seconds is not None
    return caught.value.retry_after_seconds


def opened(clock: Clock) -> Breaker:
    one = breaker(clock)
    tell(one, *[Problem.upstream_timeout] * 4)
    return one


def test_it_opens_when_every_second_call_fails_and_not_before() -> None:
    """Counted over ten seconds, from a number of calls on; what the vendor says of one call is no failure."""
    clock, seen = Clock(), list[State]()
    one = breaker(clock, seen=seen)
    tell(one, *[Problem.upstream_broken] * 3)
    clock.now += 10
    tell(one, None, None, Problem.vendor_failed, Problem.masking_not_found, Problem.vendor_internal)
    clock.now += 9
    tell(one, Problem.upstream_timeout)
    assert seen == []
    tell(one, Problem.upstream_unreachable)
    assert seen == []
    tell(one, Problem.upstream_unreachable)
    assert seen == ["open"]
    assert wait_of(one) == 2


def test_nothing_is_judged_where_that_is_switched_off() -> None:
    """However much fails."""
    one = breaker(Clock(), calls=0)
    tell(one, *[Problem.upstream_timeout] * 1000)
    assert one.state == "closed"


def test_single_probes_close_it() -> None:
    """One at a time; what would be a second one is refused, and three good ones are enough."""
    clock = Clock()
    one = opened(clock)
    clock.now += 1.9
    assert wait_of(one) == 1
    clock.now += 0.1
    for _ in range(3):
        assert one.ask()
        assert wait_of(one) == 1
        assert one.state == "half-open"
        one.told(None, probe=True)
    assert one.state == "closed"
    # What was counted before it opened counts no more.
    tell(one, Problem.upstream_timeout, Problem.upstream_timeout, Problem.upstream_timeout)
    assert one.state == "closed"


def test_each_probe_in_vain_doubles_the_pause() -> None:
    """Up to a minute."""
    clock = Clock()
    one = opened(clock)
    waits = []
    for _ in range(7):
        clock.now += 60
        assert one.ask()
        one.told(Problem.upstream_timeout, probe=True)
        waits.append(wait_of(one))
    assert waits == [4, 8, 16, 32, 60, 60, 60]


def test_a_probe_that_never_reached_the_vendor_makes_room_for_another() -> None:
    """It was refused by a limit, say."""
    clock = Clock()
    one = opened(clock)
    clock.now += 2
    assert one.ask()
    one.dropped()
    assert one.ask()


def test_what_was_asked_before_it_opened_changes_nothing() -> None:
    """Its answer is of another time."""
    clock = Clock()
    one = opened(clock)
    one.told(None, probe=False)
    one.told(Problem.upstream_timeout, probe=False)
    assert one.state == "open"
    assert wait_of(one) == 2


def in_loop(work: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(work())  # type: ignore[arg-type]


def bulkhead(clock: Clock, places: int = 1, waiting: int = 2, seconds: float = 60.0) -> Bulkhead:
    return Bulkhead(places, waiting, seconds, breaker(clock))


async def entered(one: Bulkhead, order: list[int], number: int) -> Place:
    place = await one.enter()
    order.append(number)
    return place


def test_who_waits_longest_is_next() -> None:
    """And a place is given on, so that nobody slips in between."""

    async def work() -> None:
        one, order = bulkhead(Clock()), list[int]()
        first = await entered(one, order, 0)
        tasks = [asyncio.create_task(entered(one, order, number)) for number in (1, 2)]
        await asyncio.sleep(0)
        assert (one.in_use, one.waiting) == (1, 2)
        first.leave()
        late = asyncio.create_task(entered(one, order, 3))
        (await tasks[0]).leave()
        (await tasks[1]).leave()
        (await late).leave()
        assert order == [0, 1, 2, 3]
        assert (one.in_use, one.waiting) == (0, 0)

    in_loop(work)


def test_the_oldest_makes_room() -> None:
    """It has waited longest in vain."""

    async def work() -> None:
        one, order = bulkhead(Clock()), list[int]()
        first = await entered(one, order, 0)
        tasks = [asyncio.create_task(entered(one, order, number)) for number in range(1, 6)]
        await asyncio.sleep(0)
        first.leave()
        (await tasks[3]).leave()
        (await tasks[4]).leave()
        refused = await asyncio.gather(*tasks[:3], return_exceptions=True)
        assert [error.problem for error in refused if isinstance(error, Refusal)] == [Problem.upstream_busy] * 3
        assert order == [0, 4, 5]
        assert (one.in_use, one.waiting) == (0, 0)

    in_loop(work)


def test_nobody_waits_for_ever_nor_for_a_vendor_that_fails() -> None:
    """After a while, or once it is known that it fails, whoever waits is told."""

    async def work() -> None:
        one = bulkhead(Clock(), seconds=0.01)
        place = await one.enter()
        with pytest.raises(Refusal) as caught:
            await one.enter()
        assert caught.value.problem is Problem.upstream_busy
        assert one.waiting == 0

        one = bulkhead(Clock(), places=5, waiting=5)
        places = [await one.enter() for _ in range(5)]
        waiting = asyncio.create_task(one.enter())
        await asyncio.sleep(0)
        for place in places:
            place.told(Problem.upstream_timeout)
        with pytest.raises(Refusal) as caught:
            await waiting
        assert caught.value.problem is Problem.upstream_paused

    in_loop(work)


def test_who_gives_up_takes_no_place_along() -> None:
    """Whether it was its turn already or not."""

    async def work() -> None:
        one = bulkhead(Clock())
        first = await one.enter()
        waits, turn = asyncio.create_task(one.enter()), asyncio.create_task(one.enter())
        await asyncio.sleep(0)
        waits.cancel()
        await asyncio.gather(waits, return_exceptions=True)
        assert one.waiting == 1
        first.leave()
        turn.cancel()  # It was given the place, and has not taken it yet.
        await asyncio.gather(turn, return_exceptions=True)
        assert (one.in_use, one.waiting) == (0, 0)

    in_loop(work)


def test_a_probe_that_gives_up_makes_room() -> None:
    """Or nobody would look again whether the vendor is well."""

    async def work() -> None:
        clock = Clock()
        one = bulkhead(clock)
        place = await one.enter()
        for _ in range(4):
            place.told(Problem.upstream_timeout)
        clock.now += 2
        probe = asyncio.create_task(one.enter())
        await asyncio.sleep(0)
        probe.cancel()
        await asyncio.gather(probe, return_exceptions=True)
        place.leave()
        (await one.enter()).leave()
        (await one.enter()).leave()
        assert one.breaker.state == "half-open"

    in_loop(work)


def test_every_fault_of_tls_is_the_vendors() -> None:
    """Whatever is wrong with the certificate, no call is made for a while."""
    assert {problem for problem in Problem if problem.slug.startswith("upstream_tls_")} <= FAILURES
