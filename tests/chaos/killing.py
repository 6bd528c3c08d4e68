"""The gateway's own commands in a process that kills itself at a named point: `python -m tests.chaos.killing POINT serve …`.

A point is a function of the product, and whether the process dies before it is called, after it has returned, or in its
middle; and of all calls of it the one at which it dies, by what it is called with.
"""

from __future__ import annotations

import inspect
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from gateway import stores
from gateway.cli import main as cli
from gateway.ledger import heir, journal
from gateway.ledger.connect import Connection, _Direct
from gateway.ledger.heir import Heir
from gateway.ledger.store import RedisLedger
from gateway.trail import archive
from gateway.trail.archive import Archive
from gateway.trail.index import Index
from gateway.trail.seal import Sealer
from gateway.upstream import HttpUpstream

DOOMED: Final = b"1987654321"
"""The expiry of the call that brings death."""


def always(*_: Any) -> bool:
    """Die at the first call."""
    return True


def telling(stage: str) -> Callable[..., bool]:
    """Die at the first call that is given the doomed call's record of a stage."""

    def matters(*given: Any) -> bool:
        text = repr(given)
        return f'"stage":"{stage}"' in text and DOOMED.decode() in text

    return matters


def named(name: str) -> Callable[..., bool]:
    """Die at the first call that is given a file of this name."""
    return lambda path, *_: Path(path).name.strip(".").removesuffix(".new") == name


@dataclass(frozen=True, slots=True)
class Point:
    """Where a process dies."""

    owner: Any
    """The class or module that has the function."""
    function: str
    when: Literal["before", "after"]
    matters: Callable[..., bool] = always
    """Whether it dies at a call with these arguments."""
    nth: int = 1
    """At which of them."""


_INTENT, _OUTCOME = telling("intent"), telling("outcome")
CALLS: Final = {
    "before the intent is journalled": Point(journal, "_append", "before", _INTENT),
    "after the intent is journalled": Point(journal, "_append", "after", _INTENT),
    "before the intent is sent": Point(Connection, "exchange", "before", _INTENT),
    "when the intent is sent": Point(_Direct, "send_packed_command", "after", _INTENT),
    "when the intent is answered": Point(Connection, "exchange", "after", _INTENT),
    "before the vendor is called": Point(HttpUpstream, "forward", "before"),
    "after the vendor answered": Point(HttpUpstream, "forward", "after"),
    "before the outcome is settled": Point(RedisLedger, "settle", "before"),
    "after the outcome is settled": Point(RedisLedger, "settle", "after"),
    "before the outcome is journalled": Point(journal, "_append", "before", _OUTCOME),
    "after the outcome is journalled": Point(journal, "_append", "after", _OUTCOME),
    "when the outcome is sent": Point(_Direct, "send_packed_command", "after", _OUTCOME),
    "when the outcome is answered": Point(Connection, "exchange", "after", _OUTCOME),
}
"""In the life of one call."""
TORN: Final = "amid the journal's write of the intent"
"""A point that no function ends at: half of a line reaches the disk."""
HEIRS: Final = {
    "before its lines are in the journal": Point(heir, "append_to", "before"),
    "when its lines are in the journal": Point(heir, "append_to", "after"),
    "before it sends": Point(Heir, "_send", "before"),
    "when it sent all": Point(Heir, "_send", "after"),
    "before it removes": Point(heir, "remove", "before"),
    "when it removed": Point(heir, "remove", "after"),
}
"""In the life of an heir."""
HALF_SENT: Final = "when it sent half"
SEALERS: Final = {
    "before the segment is on the disk": Point(os, "fdatasync", "before"),
    "when the segment is on the disk": Point(os, "fdatasync", "after"),
    "when the hashes are on the disk": Point(os, "fdatasync", "after", nth=2),
    "before the index": Point(Index, "add", "before"),
    "after the index": Point(Index, "add", "after"),
    "before the state": Point(archive, "write_whole", "before", named("state.json")),
    "when the new state has no name yet": Point(Path, "replace", "before", named("state.json")),
    "after the state": Point(archive, "write_whole", "after", named("state.json")),
    "before the checkpoint": Point(Archive, "publish", "before"),
    "after the checkpoint": Point(Archive, "publish", "after"),
    "when the writers are told": Point(Sealer, "_tell", "after"),
}
"""In the life of a sealer."""


def die() -> None:
    """End as a crash does."""
    os.kill(os.getpid(), signal.SIGKILL)


def set_up(point: Point) -> None:
    """Put death where it belongs."""
    function = getattr(point.owner, point.function)
    met = 0

    def met_now(given: tuple[Any, ...]) -> bool:
        nonlocal met
        met += point.matters(*given)
        return met == point.nth and point.matters(*given)

    def plain(*given: Any, **more: Any) -> Any:
        now = met_now(given)
        if now and point.when == "before":
            die()
        answer = function(*given, **more)
        if now:
            die()
        return answer

    async def awaited(*given: Any, **more: Any) -> Any:
        now = met_now(given)
        if now and point.when == "before":
            die()
        answer = await function(*given, **more)
        if now:
            die()
        return answer

    setattr(point.owner, point.function, awaited if inspect.iscoroutinefunction(function) else plain)


def tear_journal() -> None:
    """Die when half of the doomed intent is on the disk."""
    whole = journal._append

    def torn(file: int, data: bytes, size: int) -> None:
        if _INTENT(data):
            os.write(file, data[: len(data) // 2])
            die()
        whole(file, data, size)

    journal._append = torn


def send_half() -> None:
    """Die when an heir sent half of what it has to."""
    whole = Heir._send

    async def half(self: Heir, writer: str, links: list[Any], expected: int) -> bool:
        await whole(self, writer, links[: len(links) // 2], expected)
        die()
        return False

    Heir._send = half  # type: ignore[method-assign]


def name_writer(name: str) -> None:
    """Give every writer of this process the same name; in place of a death."""
    stores._writer = lambda: name


def main(point: str, words: list[str]) -> int:
    """Run one command of the gateway with death at a point in it."""
    if point == TORN:
        tear_journal()
    elif point == HALF_SENT:
        send_half()
    elif point.startswith("writer="):
        name_writer(point.removeprefix("writer="))
    else:
        set_up((CALLS | HEIRS | SEALERS)[point])
    return cli.main(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
