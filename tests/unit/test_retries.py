"""When to try again: how long to pause, and how many retries an account has."""

from __future__ import annotations

import pytest

from gateway.errors import Problem
from gateway.model import Bindings, Call, Caller
from gateway.retries import Budget, Retries, worth_another_try


def call(minutes: int | None = None, instant: int | None = None) -> Call:
    return Call(Caller("crm", "k", Bindings()), "a", "end", {}, instant, minutes)


def test_pauses_grow_and_differ() -> None:
    """From half of 0.1 s on, twice as long each time, to 2 s."""
    shortest, longest = (Retries(3, 10.0, lambda chance=chance: chance) for chance in (0.0, 1.0))

    assert [shortest.pause_seconds(before) for before in range(7)] == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0])
    assert [longest.pause_seconds(before) for before in range(7)] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0])


def test_a_tenth_of_the_calls() -> None:
    """Five at first, then one for each ten calls, all failing at one instant."""
    budget, spent = Budget(), 0
    for _ in range(1000):
        budget.earn()
        spent += budget.spend(0.0)

    assert spent == 105


def test_calm_saves_no_storm() -> None:
    """Whatever went well before, an outage begins with ten at most."""
    budget = Budget()
    for _ in range(100_000):
        budget.earn()

    assert sum(budget.spend(0.0) for _ in range(100)) == 10


def test_who_calls_seldom_may_retry_too() -> None:
    """One in five seconds, however few the calls are; and no more than ten after a day."""
    budget = Budget()
    assert sum(budget.spend(0.0) for _ in range(10)) == 5

    assert [budget.spend(second) for second in (4.0, 5.5, 6.0, 10.6)] == [False, True, False, True]
    assert sum(budget.spend(90_000.0) for _ in range(100)) == 10


def test_what_is_worth_another_try() -> None:
    """What was not made, always; what may have been, where twice is once; an answer, never."""
    kinds = {
        "end": call(),
        "end now": call(-1),
        "instant": call(None, 1_900_000_000),
        "end, and an instant": call(-1, 1_900_000_000),
        "minutes": call(60),
        "no minutes": call(0),
        "minutes, and an instant": call(60, 1_900_000_000),
    }
    once = set(list(kinds)[:4])

    for problem in Problem:
        found = {name for name, made in kinds.items() if worth_another_try(problem, made)}
        if problem is Problem.upstream_unreachable:
            assert found == set(kinds)
        elif problem in (Problem.upstream_timeout, Problem.upstream_broken):
            assert found == once
        else:
            assert found == set(), problem
