"""The log's levels change while the gateway runs: on every process, for a while, and recorded."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.running import Stack, until


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A gateway of two workers, and a second one beside it."""
    with Stack(tmp_path_factory.mktemp("pair"), workers=2) as stack:
        stack.other = stack.spawn_gateway(name="other")
        stack.other_url = stack.other.address()
        for process in (stack.gateway, stack.other):
            until(lambda process=process: process.output().count("gateway.opened") == 2, what="both workers")
        yield stack
        stack.other.stop()


@pytest.fixture(autouse=True)
def _as_the_settings_say(pair: Stack) -> Iterator[None]:
    yield
    with pair.redis.client() as client:
        client.delete("gw:{:keys}:levels")
    time.sleep(2.0)


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def drive(stack: Stack) -> list[set[str]]:
    """Call both gateways, on new connections, until each worker had some; return the logger names of the lines since, of each."""
    processes = stack.gateway, stack.other
    before = [len(process.output()) for process in processes]
    for _ in range(12):
        m1, m2 = stack.masked()
        for url in (stack.url, stack.other_url):
            answer = stack.http.post(
                url + "/api/v2/Masking/unset", json={"m1": m1, "m2": m2, "expiry_duration": -1},
                headers={"Authorization": f"Bearer {stack.key}", "Connection": "close"},
            )  # fmt: skip
            assert answer.status_code in (200, 404, 409, 400, 422), answer.text
    time.sleep(0.1)
    return [
        {f"{line['logger']} {line['level']}" for line in lines(process.output()[start:])}
        for process, start in zip(processes, before, strict=True)
    ]


def test_a_module_is_told_to_say_more_everywhere(pair: Stack) -> None:
    """Debug lines of the module, and of no other, within a second, on four workers; and none again when its time is over."""
    assert drive(pair) == [{"gateway.calls info"}] * 2

    done = pair.cli("log", "set", "debug", "--module", "ledger", "--for", "9s", "--why", "ticket 4711")
    ends = time.monotonic() + 9
    assert "ledger: info -> debug, for 9s" in done.stdout
    until(lambda: drive(pair) == [{"gateway.calls info", "gateway.ledger debug"}] * 2, 7, "the module saying more")
    for process in (pair.gateway, pair.other):
        answered = [line for line in lines(process.output()) if line["event"] == "ledger.answered"]
        assert {"account", "answer", "duration_ms", "at"} <= answered[0].keys()
    time.sleep(max(0.0, ends - time.monotonic()))
    until(lambda: drive(pair) == [{"gateway.calls info"}] * 2, what="the module saying no more")
    shown = {row["module"]: row for row in lines(pair.cli("log", "show", "--json").stdout)}
    assert (shown["ledger"]["level"], shown["ledger"]["left_seconds"]) == ("info", None)


def test_all_modules_and_one_that_is_told_apart(pair: Stack) -> None:
    """A change of all holds where there is none of the module; a module silenced stays so."""
    pair.cli("log", "set", "debug", "--for", "1h")
    pair.cli("log", "set", "error", "--module", "gateway.calls")
    until(lambda: drive(pair) == [{"gateway.ledger debug", "gateway.upstream debug"}] * 2, what="all but one saying more")
    shown = {row["module"]: row for row in lines(pair.cli("log", "show", "--json").stdout)}
    assert (shown["gateway"]["level"], shown["calls"]["level"], shown["vault"]["level"]) == ("debug", "error", "debug")
    assert 3500 < shown["calls"]["left_seconds"] <= 3600
    assert "calls" in pair.cli("log", "show").stdout

    pair.cli("log", "reset", "--module", "calls")
    everything = {"gateway.calls info", "gateway.ledger debug", "gateway.upstream debug"}
    until(lambda: drive(pair) == [everything] * 2, what="all saying more")


def test_a_library_says_more_and_still_no_words_of_its_own(pair: Stack) -> None:
    """Where and what kind alone, whatever the level: asyncio's own debug line comes with the loop, httpx's with no call of ours."""
    pair.cli("log", "set", "debug", "--module", "asyncio")
    pair.cli("log", "set", "debug", "--module", "aiohttp")
    time.sleep(2.0)
    drive(pair)
    told = [
        line for process in (pair.gateway, pair.other) for line in lines(process.output()) if line["event"].startswith("library.")
    ]
    assert all(line.keys() <= {"event", "logger", "where", "error", "level", "trace_id", "span_id"} for line in told)
    pair.cli("log", "reset", "--module", "asyncio")
    pair.cli("log", "reset", "--module", "aiohttp")


def test_changes_are_recorded_with_who_and_why(pair: Stack) -> None:
    """Beside those of keys: before, after, until, by whom and why."""
    pair.cli("log", "set", "warning", "--module", "vault", "--for", "10m", "--why", "too much")
    pair.cli("log", "reset", "--module", "vault")
    made, ended = [record for record in pair.stream(":keys") if record.get("subject") == "vault"]

    assert (made["stage"], made["change"], made["before"], made["after"], made["why"]) == (
        "change",
        "log.set",
        "info",
        "warning",
        "too much",
    )
    assert made["operator"]
    assert made["until"]
    assert (ended["change"], ended["before"], ended["after"]) == ("log.reset", "warning", "info")
    assert "until" not in ended


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["set", "debug", "--module", "nothing"], "--module: there is no 'nothing'"),
        (["set", "debug", "--for", "8d"], "--for: must be from 1s to 7d"),
        (["set", "debug", "--for", "0s"], "--for: must be from 1s to 7d"),
        (["set", "debug", "--why", "call 9876543210"], "--why: may hold a telephone number"),
        (["reset", "--module", "vault"], "nothing is changed of vault"),
        (["set", "loud"], "invalid choice: 'loud'"),
    ],
)
def test_what_cannot_be_set_is_said(pair: Stack, words: list[str], told: str) -> None:
    """With the field and what would be right."""
    done = pair.cli("log", *words, check=False)

    assert done.returncode == 2
    assert told in done.stderr


def test_a_change_ends_while_redis_is_away(start: Callable[..., Stack]) -> None:
    """What cannot be read again still ends when it was to."""
    stack = start(audit='on_store_error = "spool"')
    stack.cli("log", "set", "debug", "--module", "upstream", "--for", "8s")
    set_at = time.monotonic()
    until(lambda: stack.unset(m1=stack.masked()[0]) and "upstream.answered" in stack.gateway_log(), what="a debug line")
    stack.redis.kill()
    time.sleep(max(0.0, set_at + 10.0 - time.monotonic()))
    before = stack.gateway_log().count("upstream.answered")
    assert stack.unset(m1=stack.masked()[0]).status_code == 200

    assert stack.gateway_log().count("upstream.answered") == before
    stack.redis.start()
