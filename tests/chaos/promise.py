"""What the trail promises, held against what the vendor got and what callers were answered.

Every call has an expiry of its own, by which its records, the vendor's own list and its caller's answer find one another.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gateway.trail.archive import lines, read_state, segments
from tests.running import Stack, until

FIRST_EXPIRY: Final = 1_900_000_000
M1, M2 = "9876543210", "9876543211"
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a caller was answered."""

    number: int
    """Of the call; its request id and expiry are made of it."""
    status: int

    @property
    def request_id(self) -> str:
        return f"chaos-{self.number:08d}"


def body_of(number: int) -> Row:
    """Return the body of a call."""
    return {"m1": M1, "m2": M2, "expiry_time": FIRST_EXPIRY + number}


def archive_of(stack: Stack) -> Path:
    return stack.folder / "state" / "archive"


def sealed(folder: Path) -> list[Row]:
    """Return every sealed record."""
    size = read_state(folder).size
    return [json.loads(line) for _, path in segments(folder) for line in lines(path)][:size]


def seal(stack: Stack) -> None:
    """Seal what there is; a sealer that died keeps its lease for a while, which is taken from it."""
    with stack.redis.client() as client:
        client.delete("gw:{:keys}:sealer")
    stack.cli("audit", "seal", "--once")


def settled(stack: Stack, seconds: float = 30.0, seal: Callable[[], None] = lambda: None, living: int = 1) -> None:
    """Wait until the dead have been carried on: no journal stands but those of the living, and all that was written is sealed.

    What is not in the archive then is lost. `seal` is called again and again where nobody else seals; `living`: how many
    processes serve.
    """
    journals, archive = stack.folder / "state" / "journal" / "test", archive_of(stack)

    def whole() -> bool:
        seal()
        with stack.redis.client() as client:
            names = {name.decode() for name in client.zrange("gw:{test}:processes", 0, -1)}
            tips = {name.decode(): int(tip.split()[0]) for name, tip in client.hgetall("gw:{test}:tips").items()}
        there = {path.name.rsplit(".", 2)[0] for path in journals.glob("*.jsonl")}
        known = read_state(archive).tips
        return (
            len(names) == living
            and there <= names
            and all(name in known and known[name].seq >= tips[name] for name in names & tips.keys())
        )

    until(whole, seconds=seconds, what=f"all journals being sealed: {sorted(path.name for path in journals.iterdir())}")


def assert_kept(records: Iterable[Row], calls: Iterable[Row], answers: Iterable[Answer] = (), *, tries: int = 1) -> Counter[str]:
    """Assert the promise, and return what was seen, for whoever reads it.

    `records`: all that are sealed. `calls`: what the vendor got. `answers`: what callers got, as far as they got any.
    `tries`: how often a call may be made, where the vendor fails.
    """
    seen: Counter[str] = Counter()
    identities: Counter[str] = Counter()
    intents: dict[str, Row] = {}
    ends: defaultdict[str, list[Row]] = defaultdict(list)
    by_request: defaultdict[str, list[Row]] = defaultdict(list)
    summed = 0
    for record in records:
        name = f"{record['writer']}-{record['seq']}"
        identities[name] += 1
        by_request[record.get("request_id", "")].append(record)
        if record["stage"] == "intent":
            intents[name] = record
        elif "intent" in record and record["stage"] in ("outcome", "refusal", "abort"):
            ends[record["intent"]].append(record)
        summed += record.get("count", 1) - 1
        seen[record["stage"]] += 1
    twice = [name for name, count in identities.items() if count > 1]
    assert twice == [], f"two records under one identity: {twice[:5]}"
    open_ = [intent for name, intent in intents.items() if name not in ends]
    assert open_ == [], f"intents that nothing closes: {open_[:5]}"
    closed_twice = [found for found in ends.values() if len(found) > 1]
    assert closed_twice == [], f"intents that were closed twice: {closed_twice[:5]}"
    closing_nothing = [found for name, found in ends.items() if name not in intents]
    assert closing_nothing == [], f"what closes an intent there is not: {closing_nothing[:5]}"

    by_expiry = defaultdict(list)
    for name, intent in intents.items():
        if "expiry_time" in intent:
            by_expiry[intent["expiry_time"]].append((intent, ends[name][0]))
    got = Counter(json.loads(call["body"])["expiry_time"] for call in calls)
    for expiry, count in got.items():
        told = by_expiry[expiry]
        # An intent that was decided anew, or refused, is not that of a call.
        made = [end for _, end in told if end["stage"] == "outcome" or end.get("result") == "unknown"]
        assert len(made) >= count, f"the vendor was called without a record: {expiry}: {told}"
        assert count <= tries, f"called too often: {expiry}: {told}"
        seen["calls"] += 1

    lost = []
    for answer in answers:
        found = [record for record in by_request[answer.request_id] if record["stage"] != "intent"]
        seen[f"answered {answer.status}"] += 1
        fitting = [record for record in found if record.get("status") == answer.status]
        if fitting:
            good = answer.status != 200 or fitting[-1]["result"] == "answered"
            assert good, f"{answer} against {found}"
        else:
            assert answer.status != 200, f"{answer}, and the trail tells otherwise: {found}"
            assert not found, f"{answer} against {found}"
            lost.append(answer)
    # A flood of refusals is told as one record with their number.
    assert len(lost) <= summed, f"answers of which the trail tells nothing: {lost}"
    seen["refused, and in a sum"] = len(lost)
    return seen
