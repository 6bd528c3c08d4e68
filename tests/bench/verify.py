"""`python -m tests.bench.verify`: how many sealed records a second are reviewed, beside hashing the same lines and no more.

Nobody who checks a trail can do less than hash each of its lines once; the ratio to that says what the rest costs: the
tree, the chains, and decoding. Rounds are interleaved, so that a noisy neighbour disturbs both alike; all times are of the
processor. Also what one proof costs, and how much memory a review takes beside the interpreter's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any

from gateway.audit import chained, rfc3339
from gateway.trail.archive import CHECKPOINT, HASHES, SEGMENT_BYTES, lines, segment_name, segments
from gateway.trail.merkle import Tree
from gateway.trail.note import Checkpoint, Signer
from gateway.trail.prove import check_proof, prove
from gateway.trail.verify import verify
from tests.bench.__main__ import machine

NOON = 1_896_091_200.0
SIGNER = Signer("bench.example", b"b" * 32)
_TOLD = (
    '"request_id":"%032x","account":"main","service":"crm","key_id":"7f3k9q2mab","key_version":1,"proof":"key",'
    '"source":"10.0.0.7","operation":"end","m1":"%032x","m1_country":"IN","m1_last2":"10","pseudonym_key":"k1",'
    '"expiry_duration":-1,'
)
_ENDED = (
    '"decision":"allowed","intent":"%s","result":"answered","origin":"vendor","status":200,"upstream_status":200,'
    '"slot":"primary","credential":"v1","limits":"caller=99/100","duration_ms":12.3}'
)


def records(count: int, writers: int) -> Iterator[bytes]:
    """Yield what some gateways write in their order: each opens, then calls of two records each."""
    ends: list[tuple[int, str]] = [(0, "")] * writers
    for number in range(count):
        which = number // 2 % writers
        seq, prev = ends[which]
        writer = f"host-{which:08x}"
        stage = "open" if seq == 0 else "intent" if seq % 2 else "outcome"
        told = f'{{"stage":"{stage}","writer":"{writer}","seq":{seq},' + (f'"prev":"{prev}",' if prev else "")
        told += f'"at":"{rfc3339(NOON + number / 1000)}",'
        if stage == "open":
            told += '"account":"main"}'
        else:
            told += _TOLD % (number, number * 7)
            told += '"slot":"primary"}' if stage == "intent" else _ENDED % f"{writer}-{seq - 1}"
        record = told.encode()
        ends[which] = (seq + 1, chained(record).hex())
        yield record


def build(folder: Path, count: int, writers: int) -> int:
    """Write an archive and return how many bytes its records take."""
    tree, written, total = Tree(), SEGMENT_BYTES, 0
    with ExitStack() as files:
        hashes = files.enter_context((folder / HASHES).open("wb"))
        for place, record in enumerate(records(count, writers)):
            if written >= SEGMENT_BYTES:
                segment, written = files.enter_context((folder / segment_name(place)).open("wb")), 0
            leaf = chained(record)
            tree.extend((leaf,))
            hashes.write(leaf)
            written += segment.write(record + b"\n")
            total += len(record)
    at = rfc3339(NOON + count / 1000)
    note = SIGNER.sign(Checkpoint(origin=SIGNER.name, size=count, root=tree.root, at=at, tips={}).text())
    (folder / CHECKPOINT).write_text(note)
    return total


def seconds(work: Callable[[], object]) -> float:
    """Return what something takes of the processor."""
    start = time.process_time()
    work()
    return time.process_time() - start


def hash_all(folder: Path) -> None:
    """Do what nobody can do without."""
    for _, path in segments(folder):
        for line in lines(path):
            sha256(line).digest()


def review(folder: Path) -> None:
    report = verify(folder, SIGNER.public)
    assert report.findings == (), report.findings[:3]


def peak_kb() -> int:
    """Return the most memory this process has had. Not `getrusage`, which goes on from the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def memory_mb(folder: Path) -> float:
    """Return how much a process grows by a review, beside what it is when it has imported all."""
    ours = "import sys\nfrom pathlib import Path\nfrom tests.bench.verify import peak_kb, review\n"
    ours += "before = peak_kb()\nreview(Path(sys.argv[1]))\nprint((peak_kb() - before) / 1024)"
    done = subprocess.run([sys.executable, "-c", ours, str(folder)], check=True, capture_output=True, text=True)
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.verify", description=__doc__)
    parser.add_argument("--records", type=int, default=500_000)
    parser.add_argument("--writers", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gwb") as name:
        folder = Path(name)
        record_bytes = build(folder, asked.records, asked.writers) / asked.records
        bare, reviewed = [], []
        for _ in range(asked.rounds):
            bare.append(seconds(lambda: hash_all(folder)))
            reviewed.append(seconds(lambda: review(folder)))
        more = memory_mb(folder)
        note, made = (folder / CHECKPOINT).read_text(), []
        proved = seconds(lambda: made.append(prove(folder, [asked.records // 3], note)))
        checked = seconds(lambda: check_proof(made[0], SIGNER.public))
    figures: dict[str, Any] = {
        "records": asked.records,
        "record_bytes": round(record_bytes),
        "verify_per_second": round(asked.records / median(reviewed)),
        "sha256_per_second": round(asked.records / median(bare)),
        "verify_to_sha256": round(median(reviewed) / median(bare), 2),
        "verify_memory_mb": round(more, 1),
        "prove_seconds": round(proved, 3),
        "check_proof_ms": round(checked * 1000, 2),
    }
    if asked.json:
        print(json.dumps({"machine": machine(), **figures}, indent=2))
    else:
        print("\n".join(f"{name:20} {value:>12,}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
