"""Whatever one change is made to a sealed trail, by accident or by somebody without the signing key, the review tells of it."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gateway.audit import chained
from gateway.trail.archive import CHECKPOINT, HASHES, segment_name
from gateway.trail.verify import Report, verify
from tests.unit.test_verify import KEY, NOON, ONE, TWO, Trail, joined, story

PER_SEGMENT = 5
RECORDS = tuple(story().records)
FIRSTS = range(0, len(RECORDS), PER_SEGMENT)
Files = dict[str, bytes]
patient = settings(max_examples=150, deadline=None)


def files_of(trail: Trail) -> Files:
    with tempfile.TemporaryDirectory() as name:
        folder = trail.seal(Path(name), per_segment=PER_SEGMENT)
        return {path.name: path.read_bytes() for path in folder.iterdir()}


SEALED = files_of(story())
ROWS = st.integers(0, len(RECORDS) - 1)


def review(files: Files, older: str | None = None) -> Report:
    with tempfile.TemporaryDirectory() as name:
        for file, data in files.items():
            (Path(name) / file).write_bytes(data)
        return verify(Path(name), KEY, older=older)


def laid_out(records: list[bytes]) -> Files:
    """Return other records in segments as long as they were, the last one longer or shorter."""
    ends = [*FIRSTS[1:], max(len(records), FIRSTS[-1])]
    return {segment_name(first): joined(records[first:end]) for first, end in zip(FIRSTS, ends, strict=True)}


def hashes_of(records: list[bytes]) -> Files:
    return {HASHES: b"".join(chained(record) for record in records)}


def writer_of(record: bytes) -> str:
    return str(msgspec.json.decode(record)["writer"])


def mended(records: list[bytes]) -> list[bytes]:
    """Return records with every chain made whole again: numbered anew, each naming the one before."""
    ends: dict[str, tuple[int, str]] = defaultdict(lambda: (0, ""))
    names: dict[str, str] = {}
    found = []
    for record in records:
        told = msgspec.json.decode(record)
        seq, prev = ends[told["writer"]]
        names[f"{told['writer']}-{told['seq']}"] = f"{told['writer']}-{seq}"
        told["seq"], told["prev"] = seq, prev
        if "intent" in told:
            told["intent"] = names.get(told["intent"], told["intent"])
        found.append(msgspec.json.encode({name: value for name, value in told.items() if (name, value) != ("prev", "")}))
        ends[told["writer"]] = (seq + 1, chained(found[-1]).hex())
    return found


# ---- What one can do to the records; each returns other ones than there were.


def alter(data: st.DataObject, records: list[bytes]) -> list[bytes]:
    row = data.draw(ROWS)
    place = data.draw(st.integers(0, len(records[row]) - 1))
    raw = bytearray(records[row])
    raw[place] ^= data.draw(st.integers(1, 255))
    assume(b"\n" not in raw)
    return [*records[:row], bytes(raw), *records[row + 1 :]]


def lie(data: st.DataObject, records: list[bytes]) -> list[bytes]:
    """Change a record to another one that reads as well."""
    row = data.draw(ROWS)
    told = msgspec.json.decode(records[row])
    told[data.draw(st.sampled_from(["at", "account", "service", "request_id"]))] = data.draw(st.text(max_size=20))
    assume(msgspec.json.encode(told) != records[row])
    return [*records[:row], msgspec.json.encode(told), *records[row + 1 :]]


def drop(data: st.DataObject, records: list[bytes]) -> list[bytes]:
    row = data.draw(ROWS)
    return [*records[:row], *records[row + 1 :]]


def drop_writer(data: st.DataObject, records: list[bytes]) -> list[bytes]:
    writer = data.draw(st.sampled_from([ONE, TWO, "cli-00000001"]))
    return [record for record in records if writer_of(record) != writer]


def drop_tail(data: st.DataObject, records: list[bytes]) -> list[bytes]:
    return records[: data.draw(ROWS)]


def fork(data: st.DataObject, records: list[bytes]) -> list[bytes]:
    """Put a record with the name of another somewhere."""
    forked = records[data.draw(ROWS)].replace(b"main", b"mair")
    place = data.draw(st.integers(0, len(records)))
    assume(place < len(records))  # Behind the last one it is not sealed yet.
    return [*records[:place], forked, *records[place:]]


def swap(data: st.DataObject, records: list[bytes]) -> list[bytes]:
    one, two = data.draw(ROWS), data.draw(ROWS)
    assume(one != two)
    records[one], records[two] = records[two], records[one]
    return records


def splice(data: st.DataObject, records: list[bytes]) -> list[bytes]:
    """Let one writer have said what another one said."""
    row = data.draw(ROWS)
    told = msgspec.json.decode(records[row])
    told["writer"] = data.draw(st.sampled_from([ONE, TWO, "cli-00000001"]))
    assume(told["writer"] != writer_of(records[row]))
    return [*records[:row], msgspec.json.encode(told), *records[row + 1 :]]


def replace(data: st.DataObject, records: list[bytes]) -> list[bytes]:
    """Write one record over another."""
    row, other = data.draw(ROWS), data.draw(ROWS)
    assume(row != other)
    return [*records[:row], records[other], *records[row + 1 :]]


Attack = Callable[[st.DataObject, list[bytes]], list[bytes]]
ATTACKS: tuple[Attack, ...] = (alter, lie, drop, drop_writer, drop_tail, fork, swap, splice, replace)


@pytest.mark.parametrize("attack", ATTACKS)
@patient
@given(st.data())
def test_no_record_can_be_touched(attack: Attack, data: st.DataObject) -> None:
    """Not one altered, forged, moved or taken away, by somebody who leaves the hashes as they are."""
    report = review(SEALED | laid_out(attack(data, list(RECORDS))))
    assert report.status != 0
    assert report.findings[0].kind != "note"


@pytest.mark.parametrize("attack", ATTACKS)
@patient
@given(st.data())
def test_writing_the_hashes_anew_does_not_help(attack: Attack, data: st.DataObject) -> None:
    """Nor if all the chains behind it are mended: the root is signed."""
    records = attack(data, list(RECORDS))
    if attack is not alter and data.draw(st.booleans()):
        records = mended(records)
    assume(records[: len(RECORDS)] != list(RECORDS))
    assert review(SEALED | laid_out(records) | hashes_of(records)).status != 0


@patient
@given(st.data())
def test_no_byte_of_a_file_can_be_changed(data: st.DataObject) -> None:
    """Of no segment, of the hashes, and of the checkpoint."""
    name = data.draw(st.sampled_from(sorted(SEALED)))
    raw = bytearray(SEALED[name])
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    assert review(SEALED | {name: bytes(raw)}).status != 0


@patient
@given(st.data())
def test_no_file_can_be_cut(data: st.DataObject) -> None:
    """At no byte, so that no tail is lost unseen."""
    name = data.draw(st.sampled_from(sorted(SEALED)))
    end = data.draw(st.integers(0, len(SEALED[name]) - 1))
    assert review(SEALED | {name: SEALED[name][:end]}).status != 0


@patient
@given(st.data())
def test_no_file_can_be_spoilt(data: st.DataObject) -> None:
    """With whatever bytes, anywhere in it."""
    name = data.draw(st.sampled_from(sorted(SEALED)))
    raw = SEALED[name]
    start = data.draw(st.integers(0, len(raw) - 1))
    end = data.draw(st.integers(start, len(raw)))
    put = data.draw(st.binary(max_size=200))
    spoilt = raw[:start] + put + raw[end:]
    assume(not spoilt.startswith(raw))
    assert review(SEALED | {name: spoilt}).status != 0


@patient
@given(st.sets(st.sampled_from(sorted(SEALED)), min_size=1))
def test_no_file_can_be_taken_away(names: set[str]) -> None:
    """Neither the first segment, one in the middle or the newest, nor the hashes, nor the checkpoint, nor some of them."""
    report = review({name: data for name, data in SEALED.items() if name not in names})
    assert report.status == 2


@patient
@given(st.data())
def test_the_trail_cannot_be_put_back(data: st.DataObject) -> None:
    """An archive from before is sound in itself; who kept a checkpoint sees that it is from before."""
    size = data.draw(ROWS)
    before = story()
    earlier = before.note(at=NOON, tips={}, size=size)
    if data.draw(st.booleans()):
        files = SEALED | laid_out(before.records[:size]) | hashes_of(before.records[:size])
    else:
        files = SEALED
    put_back = files | {CHECKPOINT: earlier.encode()}

    assert review(put_back).status == 0
    assert review(put_back, older=story().note()).status == 2


@patient
@given(st.data())
def test_what_was_signed_twice_differently_is_told(data: st.DataObject) -> None:
    """Even the sealer cannot sign another past: who kept a checkpoint sees it."""
    row = data.draw(ROWS)
    kept = story().note(at=NOON, size=data.draw(st.integers(row + 1, len(RECORDS))))
    other = story()
    other.records = [*other.records[:row], other.records[row].replace(b"main", b"mair"), *other.records[row + 1 :]]
    assert review(files_of(other), older=kept).status == 1


@patient
@given(st.data())
def test_what_is_sound_stays_sound(data: st.DataObject) -> None:
    """Records sealed in whatever order, some of them twice, and whatever a sealer left behind its checkpoint."""
    trail = story()
    copies = data.draw(st.lists(st.sampled_from(RECORDS), max_size=5))
    trail.records = list(data.draw(st.permutations([*trail.records, *copies])))
    files = files_of(trail)
    newest = max(files.keys() - {CHECKPOINT, HASHES})
    for name in (newest, HASHES):
        files[name] += data.draw(st.binary(max_size=100))

    assert review(files, older=trail.note(at=NOON, tips={}, size=data.draw(ROWS))).status == 0
