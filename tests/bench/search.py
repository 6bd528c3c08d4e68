"""`python -m tests.bench.search`: how fast a sealed trail is indexed, how large its index is, and how long it takes to find things.

Makes an archive by the sealer's own hands: a month of calls of twenty services with a million numbers, two records a call, some
of them sealed hours late. Then asks it what reviewers ask. Each query is the newest page of 100 with its records read, in a
process that has just opened the archive (`first`), and then again (`again`: the median of seven).
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from bisect import bisect
from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate, islice
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from gateway.audit import Record, chained, rfc3339
from gateway.trail.archive import INDEX, Archive, Reader
from gateway.trail.index import Query
from tests.bench.__main__ import machine

START = 1_900_000_000.0
SPAN_SECONDS = 30 * 86_400.0
AT_ONCE = 10_000
NUMBERS = 1_000_000
SERVICES = [f"service-{number:02d}" for number in range(20)]
SHARES = list(accumulate(1 / (number + 1) for number in range(20)))
FAULTS = [("refused", "masking_not_expired", 1503), ("refused", "quota_exceeded", None), ("refused", "malformed", 1500),
          ("failed", "upstream_failed", 1501), ("unknown", "upstream_timeout", None)]  # fmt: skip
RARE = ("refused", "not_masked", 1504)
WRITERS = 8
LATE_SECONDS = 3 * 3600.0


def pseudonym(number: int) -> str:
    return f"{number * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128:032x}"


class Writers:
    """Numbers and chains records as the gateway's processes do."""

    def __init__(self) -> None:
        self._tips = [(-1, "") for _ in range(WRITERS)]

    def encoded(self, writer: int, record: Record) -> bytes:
        seq, prev = self._tips[writer]
        record.writer, record.seq, record.prev = f"host-{writer:08x}", seq + 1, prev
        line = msgspec.json.encode(record)
        self._tips[writer] = (seq + 1, chained(line).hex())
        return line


def records(count: int) -> Iterator[bytes]:
    """Yield a month of records in the order of their sealing, the same ones each time."""
    chance, writers, made = random.Random(1), Writers(), 0
    rare = {count // 7, count // 3, count // 2}
    while made < count:
        at = START + SPAN_SECONDS * made / count
        if made % 500_000 < 2_000 and made > 500_000:
            at -= LATE_SECONDS  # A journal.
        service = bisect(SHARES, chance.random() * SHARES[-1])
        number, writer = chance.randrange(NUMBERS), chance.randrange(WRITERS)
        fields: dict[str, Any] = {
            "request_id": f"{chance.getrandbits(128):032x}", "account": "main", "service": SERVICES[service],
            "key_id": f"key{service:02d}{chance.randrange(2)}abcde", "key_version": 1, "proof": "key",
            "source": f"10.0.{service}.{chance.randrange(10)}", "operation": "end", "m1": pseudonym(number), "m1_country": "IN",
            "m1_last2": f"{number % 100:02d}", "expiry_duration": -1, "pseudonym_key": "k1" if made < count // 2 else "k2",
            "decision": "allowed",
        }  # fmt: skip
        if chance.random() < 0.5:
            fields |= {"m2": pseudonym(chance.randrange(NUMBERS)), "m2_country": "IN", "m2_last2": "10"}
        intent = Record(stage="intent", at=rfc3339(at), slot="primary", credential="v1a2b3c4d5", **fields)
        yield writers.encoded(writer, intent)
        result, problem, code = FAULTS[chance.randrange(len(FAULTS))] if chance.random() < 0.1 else ("answered", None, None)
        if any(made <= place < made + 2 for place in rare):
            result, problem, code = RARE
        refused = result == "refused" and code is None
        yield writers.encoded(
            writer,
            Record(
                stage="refusal" if refused else "outcome", at=rfc3339(at + 0.02), intent=intent.id, result=result,
                problem=problem, code=code, origin="gateway" if refused else "vendor", status=200 if problem is None else 404,
                upstream_status=200, slot="primary", credential="v1a2b3c4d5", limits="caller=99/100 number:m1=9/10",
                duration_ms=20.1, **(fields | ({"decision": "denied"} if refused else {})),
            ),
        )  # fmt: skip
        made += 2


def build(folder: Path, count: int) -> dict[str, float]:
    sealing, made = 0.0, records(count)
    with Archive(folder) as archive:
        while batch := list(islice(made, AT_ONCE)):
            started = time.perf_counter()
            wrong = archive.add(batch, {}, "main")
            sealing += time.perf_counter() - started
            assert not wrong, wrong[0]
        size = archive.state.size
    index = folder / INDEX
    bytes_of_index = index.stat().st_size
    started = time.perf_counter()
    with Archive(folder):
        reopening = time.perf_counter() - started
    index.unlink()
    started = time.perf_counter()
    with Archive(folder):
        rebuilding = time.perf_counter() - started
    return {
        "records": size,
        "sealed_per_second": size / sealing,
        "rebuilt_per_second": size / rebuilding,
        "reopen_seconds": reopening,
        "index_bytes_per_record": bytes_of_index / size,
        "segment_bytes_per_record": sum(path.stat().st_size for path in folder.glob("*.jsonl")) / size,
    }


def queries() -> dict[str, Query]:
    middle = START + SPAN_SECONDS / 2
    often, seldom = SERVICES[0], SERVICES[-1]
    return {
        "everything": Query(),
        "a number, under two keys": Query(pseudonyms=(pseudonym(4711), "f" * 32)),
        "a number no record has": Query(pseudonyms=("f" * 32,)),
        "a request id": Query(request_id=json.loads(next(records(2)))["request_id"]),
        "the busiest service": Query(service=often),
        "a code that came 3 times": Query(code=1504),
        "a key and a result": Query(key_id="key070abcde", result="failed"),
        "four frequent words": Query(service=often, decision="allowed", stage="outcome", result="answered"),
        "two frequent words, none has both": Query(decision="denied", result="answered"),
        "busiest service, another's source: none": Query(service=often, source="10.0.19.3"),
        "busiest service, a number: few or none": Query(service=often, pseudonyms=(pseudonym(4711),)),
        "ten minutes": Query(since=middle, until=middle + 600),
        "ten minutes, rare service, a problem": Query(since=middle, until=middle + 600, service=seldom, problem="malformed"),
        "half a month, two words, none has both": Query(since=middle, decision="denied", result="answered"),
        "one second, the busiest service": Query(since=middle, until=middle + 1, service=often),
    }


def timed(asked: Callable[[], int]) -> tuple[int, float]:
    started = time.perf_counter()
    found = asked()
    return found, (time.perf_counter() - started) * 1000


def first_page(query: Query, reader: Reader) -> int:
    return len(list(reader.records(reader.index.find(query, newest_first=True, limit=100))))


def ask(folder: Path) -> list[dict[str, Any]]:
    rows = []
    asked: dict[str, Callable[[Reader], int]] = {name: partial(first_page, query) for name, query in queries().items()}
    asked["report of the month"] = lambda reader: len(reader.index.report())
    asked["report of a day"] = lambda reader: len(reader.index.report(START + 86_400, START + 2 * 86_400))
    asked["pseudonym keys"] = lambda reader: len(reader.index.pseudonym_keys())
    for name, one in asked.items():
        with Reader(folder) as reader:
            found, first = timed(partial(one, reader))
            again = median(timed(partial(one, reader))[1] for _ in range(7))
        rows.append({"query": name, "found": found, "first_ms": first, "again_ms": again})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.search", description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--records", type=int, default=1_000_000, help="10,000,000 need 10 GB and half an hour")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gwb") as folder:
        built = build(Path(folder), arguments.records)
        rows = ask(Path(folder))
    if arguments.json:
        print(json.dumps({"machine": machine(), "built": built, "rows": rows}, indent=1))
        return 0
    print(machine())
    for name, figure in built.items():
        print(f"{name}: {figure:,.{1 if figure < 100 else 0}f}")
    print("| query | found | first ms | again ms |\n|---|--:|--:|--:|")
    for row in rows:
        print(f"| {row['query']} | {row['found']} | {row['first_ms']:.1f} | {row['again_ms']:.1f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
