"""`python -m tests.bench.pages`: how long the console's audit pages take before a long history.

Makes the archive of `tests.bench.search`, with as many records beside it in Redis as no sealer took yet, and asks the console
for each page over HTTP, signed in, `--times` times each: the median and the 95th percentile. `first` is the first of all; that of a
story says that its proof is being prepared.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from urllib.parse import urlencode

import msgspec

from gateway.audit import Record, chained, rfc3339
from gateway.ledger.names import Names
from gateway.trail.archive import CHECKPOINT, PUBLIC_KEY, Archive
from gateway.trail.note import Checkpoint, Signer
from gateway.trail.search import decode
from tests.bench.__main__ import machine
from tests.bench.search import SERVICES, SPAN_SECONDS, START, build, pseudonym, records
from tests.console.running import Console, Visitor

LIVE = 5_000


def sign(folder: Path) -> None:
    """Sign what there is, as a sealer does."""
    signer = Signer.generate("bench")
    with Archive(folder) as archive:
        tips = {name: tip.seq for name, tip in archive.state.tips.items()}
        checkpoint = Checkpoint(
            origin=signer.name, size=archive.state.size, root=archive.tree.root, at=rfc3339(time.time()), tips=tips
        )
    (folder / CHECKPOINT).write_text(signer.sign(checkpoint.text()))
    (folder / PUBLIC_KEY).write_text(f"{signer.public}\n")


def write_live(console: Console, count: int) -> None:
    """Write records that no sealer took yet."""
    with console.redis.client() as client:
        prev, pipe = "", client.pipeline(transaction=False)
        for seq in range(count):
            record = Record(
                stage="outcome", writer="live-0", seq=seq, prev=prev, at=rfc3339(time.time()), account="main",
                request_id=f"live{seq:028d}", service=SERVICES[0], decision="allowed", result="answered", duration_ms=20.0,
            )  # fmt: skip
            line = msgspec.json.encode(record)
            prev = chained(line).hex()
            pipe.xadd(Names("main").audit, {"r": line})
        pipe.execute()


def paths(count: int) -> dict[str, str]:
    middle = START + SPAN_SECONDS / 2
    old = next(records(2))
    row = decode(old)
    assert row is not None

    def search(**words: str) -> str:
        return f"/audit?{urlencode(words)}"

    return {
        "the newest": "/audit",
        "a number": search(pseudonyms=pseudonym(4711)),
        "a number no record has": search(pseudonyms="f" * 32),
        "the busiest service": search(service=SERVICES[0]),
        "a code that came 3 times": search(code="1504"),
        "two frequent words, none has both": search(decision="denied", result="answered"),
        "half a month, two words, none has both": search(since=rfc3339(middle), decision="denied", result="answered"),
        "ten minutes": search(since=rfc3339(middle), until=rfc3339(middle + 600)),
        "the story of the oldest request": f"/audit/{row['request_id']}",
        "the story of the oldest record": f"/audit/{row['writer']}-{row['seq']}",
        "its proof": f"/audit/{row['request_id']}.proof",
        "the story of a live request": f"/audit/live{count // 2:028d}",
    }


def timed(ask: Callable[[], object]) -> float:
    started = time.perf_counter()
    ask()
    return (time.perf_counter() - started) * 1000


def get(visitor: Visitor, path: str) -> str:
    answer = visitor.get(path)
    assert answer.status_code == 200, (path, answer.status_code, answer.text[-500:])
    return answer.text


def deep(visitor: Visitor, pages: int) -> str:
    """Return the address of a page far down."""
    path = "/audit"
    for _ in range(pages):
        path = json.loads(get(visitor, path.replace("/audit", "/audit.json")))["older"]
    return path


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.pages", description=__doc__)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--times", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="gwb") as folder, Console(Path(folder) / "c") as console:
        archive = Path(folder) / "c" / "state" / "archive"
        build(archive, arguments.records)
        sign(archive)
        write_live(console, LIVE)
        visitor = console.browser("auditor")
        asked = paths(LIVE) | {"a page 200 further down": deep(visitor, 200)}
        for name, path in asked.items():
            first = timed(lambda path=path: get(visitor, path))
            took = [timed(lambda path=path: get(visitor, path)) for _ in range(arguments.times)]
            rows.append({"page": name, "first_ms": first, "median_ms": median(took), "p95_ms": quantiles(took, n=20)[-1]})
    if arguments.json:
        print(json.dumps({"machine": machine(), "records": arguments.records, "live": LIVE, "rows": rows}, indent=1))
        return 0
    print(machine())
    print("| page | first ms | median ms | p95 ms |\n|---|--:|--:|--:|")
    for row in rows:
        print(f"| {row['page']} | {row['first_ms']:.0f} | {row['median_ms']:.0f} | {row['p95_ms']:.0f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
