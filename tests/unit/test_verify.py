"""What a review of a sealed trail finds, and what it must not find fault with; and proofs that stand alone."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec
import pytest

from gateway.audit import Record, chained, rfc3339, unix_seconds
from gateway.console import tops
from gateway.trail import archive
from gateway.trail import prove as proving
from gateway.trail.archive import Archive, segment_name
from gateway.trail.findings import KEPT
from gateway.trail.index import Query
from gateway.trail.merkle import inclusion, root_of
from gateway.trail.note import Checkpoint, Signer
from gateway.trail.prove import Leaves, ProofError, check_proof, prove
from gateway.trail.verify import Report, verify
from tests.bench.pages import sign
from tests.bench.search import build
from tests.running import until

NOON = unix_seconds("2030-01-31T12:00:00.000Z")
SIGNER = Signer("trail.example", b"s" * 32)
KEY = SIGNER.public
ONE, TWO = "host-1a2b3c4d", "host-5e6f7a8b"


class Trail:
    """Records as their writers make them, in the order in which they are sealed; one second passes with each."""

    def __init__(self) -> None:
        self.records: list[bytes] = []
        self.now = NOON
        self._ends: dict[str, tuple[int, str]] = {}
        self._serving: set[str] = set()

    def write(self, writer: str, stage: str, **more: object) -> str:
        """Add a writer's next record and return its name."""
        seq, prev = self._ends.get(writer, (0, ""))
        told = {"stage": stage, "writer": writer, "seq": seq, "prev": prev, "at": rfc3339(self.now), "account": "main", **more}
        record = msgspec.json.encode(msgspec.convert(told, Record))
        self.now += 1
        self._ends[writer] = (seq + 1, chained(record).hex())
        if stage in ("open", "close"):
            (self._serving.add if stage == "open" else self._serving.discard)(writer)
        self.records.append(record)
        return f"{writer}-{seq}"

    def note(self, at: float | None = None, tips: dict[str, int] | None = None, size: int | None = None) -> str:
        """Return the signed checkpoint of all there is, or of the first records."""
        size = len(self.records) if size is None else size
        told = {writer: self._ends[writer][0] - 1 for writer in self._serving} if tips is None else tips
        root = root_of([chained(record) for record in self.records[:size]])
        at_text = rfc3339(self.now if at is None else at)
        return SIGNER.sign(Checkpoint(origin=SIGNER.name, size=size, root=root, at=at_text, tips=told).text())

    def seal(self, folder: Path, at: float | None = None, tips: dict[str, int] | None = None, per_segment: int = 6) -> Path:
        """Make the archive of them."""
        folder.mkdir(exist_ok=True)
        for first in range(0, len(self.records), per_segment):
            (folder / segment_name(first)).write_bytes(joined(self.records[first : first + per_segment]))
        (folder / archive.HASHES).write_bytes(b"".join(chained(record) for record in self.records))
        (folder / archive.CHECKPOINT).write_text(self.note(at, tips))
        return folder


def joined(lines: Iterable[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def story() -> Trail:
    """Two servers and a command: calls answered, refused, broken off and taken over; one server closes, one is recovered."""
    trail = Trail()
    trail.write(ONE, "open", version="1.0.0")
    trail.write(TWO, "open", version="1.0.0")
    for _ in range(3):
        trail.write(ONE, "outcome", intent=trail.write(ONE, "intent", request_id="r1"), result="answered")
        trail.write(TWO, "refusal", intent=trail.write(TWO, "intent", request_id="r2"), decision="denied")
    trail.write(TWO, "refusal", decision="denied")
    trail.write("cli-00000001", "change", change="key.revoked", operator="op")
    crashed = trail.write(TWO, "intent", request_id="r3")
    trail.write(ONE, "beat")
    trail.write(TWO, "abort", intent=crashed, result="unknown", problem="unknown_outcome")
    trail.write(TWO, "close", why="recovered")
    trail.write(ONE, "beat")
    trail.write(ONE, "outcome", intent=trail.write(ONE, "intent", request_id="r4"), result="answered")
    return trail


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    return story().seal(tmp_path / "trail")


def messages(report: Report) -> str:
    return "\n".join(finding.message for finding in report.findings)


def edit(folder: Path, first: int, change: Callable[[list[bytes]], list[bytes]]) -> None:
    """Change the lines of one segment."""
    path = folder / segment_name(first)
    path.write_bytes(joined(change(path.read_bytes().splitlines())))


def flip(path: Path, place: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1
    path.write_bytes(raw)


def test_a_sealed_trail_is_sound(sealed: Path) -> None:
    """Nothing is found in it, and what was read is told."""
    steps: list[tuple[int, int]] = []
    report = verify(sealed, KEY, progress=lambda done, of: steps.append((done, of)))

    assert (report.status, report.findings) == (0, ())
    assert (report.records, report.writers) == (len(story().records), 3)
    assert report.checkpoint is not None and report.checkpoint.size == report.records
    assert steps[-1] == (report.records, report.records)


def test_what_the_sealer_makes_is_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The archive that the sealer writes, in several segments, is one that can be reviewed."""
    monkeypatch.setattr(archive, "SEGMENT_BYTES", 1000)
    trail = story()
    with Archive(tmp_path / "trail") as opened:
        for start in range(0, len(trail.records), 5):
            assert opened.add(trail.records[start : start + 5], {}, "main") == []
        opened.publish(trail.note())

    assert len(archive.segments(tmp_path / "trail")) > 2
    assert verify(tmp_path / "trail", KEY).findings == ()


def test_an_altered_row_is_named(sealed: Path) -> None:
    """Segment, line, writer and number; and no other row is blamed."""
    edit(sealed, 6, lambda lines: [*lines[:2], lines[2].replace(b"main", b"mair"), *lines[3:]])
    report = verify(sealed, KEY)

    assert report.status == 1
    assert report.findings[0].message == (f"00000000000000000006.jsonl line 3 ({TWO}-3): it is not the record that was sealed")
    assert report.counts == {"altered": 1, "incomplete": 0, "note": 0}


def test_a_row_that_is_no_longer_one_is_named(sealed: Path) -> None:
    """Whatever its bytes are."""
    edit(sealed, 0, lambda lines: [b"\xff\x00" * 9, *lines[1:3], b"[" * 100_000, *lines[4:]])
    report = verify(sealed, KEY)

    assert [finding.row for finding in report.findings[:2]] == [0, 3]
    assert report.counts["altered"] == 2


def test_a_missing_row_is_named(sealed: Path) -> None:
    """Where it stood; the rows behind it are not blamed."""
    edit(sealed, 6, lambda lines: [*lines[:2], *lines[3:]])
    report = verify(sealed, KEY)

    assert report.status == 2
    assert report.findings[0].message.startswith(f"00000000000000000006.jsonl line 3 ({TWO}-4): before it, record 8 is missing")
    assert all(finding.kind == "incomplete" for finding in report.findings)


def test_a_row_put_in_is_named(sealed: Path) -> None:
    """The rows behind it are not blamed."""
    edit(sealed, 6, lambda lines: [*lines[:2], lines[0].replace(b"main", b"mair"), *lines[2:]])
    report = verify(sealed, KEY)

    assert (report.status, report.counts["altered"], report.counts["incomplete"]) == (1, 1, 0)
    assert "line 3" in messages(report) and "it was not sealed, or not here" in messages(report)


def test_rows_behind_the_end_of_a_segment_are_altered(sealed: Path) -> None:
    """Also one that is only begun, which at the end of the newest segment would be a sealer at work."""
    edit(sealed, 0, lambda lines: [*lines, lines[0]])
    assert verify(sealed, KEY).status == 1
    edit(sealed, 0, lambda lines: lines[:-1])
    assert verify(sealed, KEY).status == 0
    with (sealed / segment_name(0)).open("ab") as file:
        file.write(b'{"stage":')
    assert verify(sealed, KEY).status == 1


def test_many_missing_rows_do_not_blame_what_is_there(tmp_path: Path) -> None:
    """Rows are found again behind gaps, however many there are."""
    trail = Trail()
    for _ in range(1000):
        trail.write("cli-00000001", "search")
    folder = trail.seal(tmp_path / "trail", per_segment=5000)
    edit(folder, 0, lambda lines: [line for number, line in enumerate(lines) if number // 50 % 2])
    report = verify(folder, KEY)

    assert (report.counts["altered"], report.counts["incomplete"], report.records) == (0, 10, 500)


def test_damaged_hashes_are_told_from_damaged_records(sealed: Path) -> None:
    """Where the records have the signed root, it is the file of hashes that is wrong."""
    flip(sealed / archive.HASHES, 32 * 7)
    report = verify(sealed, KEY)

    assert report.status == 1
    assert report.findings[0].message == (
        "hashes is damaged, 1 in it are wrong, the first that of 00000000000000000006.jsonl line 2; "
        "the records are what was signed"
    )
    assert report.counts["altered"] == 1


@pytest.mark.parametrize("size", [None, 0, 31, 32 * 9])
def test_missing_hashes_are_told_from_missing_records(sealed: Path, size: int | None) -> None:
    """They can be made again from the records."""
    (sealed / archive.HASHES).unlink() if size is None else os.truncate(sealed / archive.HASHES, size)
    report = verify(sealed, KEY)

    assert report.status == 2
    assert "the records are what was signed" in messages(report)


def test_records_and_hashes_written_anew_are_altered(tmp_path: Path) -> None:
    """Chains mended and hashes computed again: the root is another than was signed, as nobody else can sign."""
    trail, folder = story(), tmp_path / "trail"
    note = trail.note()
    trail.records[-1] = trail.records[-1].replace(b"answered", b"refused")
    trail.seal(folder)
    (folder / archive.CHECKPOINT).write_text(note)
    report = verify(folder, KEY)

    assert report.status == 1
    assert "both were written anew" in messages(report)


def test_records_written_anew_without_their_hashes_are_altered(sealed: Path) -> None:
    """Who takes the file of hashes away does not hide that the records are not what was signed."""
    edit(sealed, 6, lambda lines: [lines[0].replace(b"main", b"mair"), *lines[1:]])
    (sealed / archive.HASHES).unlink()
    report = verify(sealed, KEY)
    assert report.status == 1
    assert "both were written anew" in messages(report)


@pytest.mark.parametrize(
    ("note", "status"),
    [
        (None, 2),
        (b"", 1),
        (b"\xff\xfe", 1),
        (b"a\n\n\xe2\x80\x94 trail.example AAAA\n", 1),
        (Signer("trail.example", b"t" * 32).sign("trail.example\n0\nAAAA\nat x\n").encode(), 1),
        (Signer("other.example", b"s" * 32).sign("other.example\n0\nAAAA\nat x\n").encode(), 1),
        (SIGNER.sign("other.example\n0\nAAAA\nat x\n").encode(), 1),
        (SIGNER.sign("no checkpoint\n").encode(), 1),
    ],
)
def test_a_checkpoint_that_does_not_hold(sealed: Path, note: bytes | None, status: int) -> None:
    """It is told, and rows that differ from their hashes are named all the same."""
    path = sealed / archive.CHECKPOINT
    path.unlink() if note is None else path.write_bytes(note)
    report = verify(sealed, KEY)
    assert (report.status, report.checkpoint) == (status, None)

    edit(sealed, 6, lambda lines: [lines[0].replace(b"main", b"mair"), *lines[1:]])
    assert "00000000000000000006.jsonl line 1" in verify(sealed, KEY).findings[0].message


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    """It is a finding, as are things that are no files where files should be."""
    assert verify(tmp_path / "nowhere", KEY).status == 2
    for name in (archive.HASHES, segment_name(0)):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / archive.CHECKPOINT)
    assert verify(tmp_path, KEY).status == 2


def test_a_line_without_end_is_not_read_whole(sealed: Path) -> None:
    """A segment of one line of many bytes is torn."""
    (sealed / segment_name(6)).write_bytes(b"x" * 3_000_000 + b"\n")
    assert "line 1: it is torn" in messages(verify(sealed, KEY))


@pytest.mark.parametrize("first", [0, 6, 18])
def test_a_missing_segment_is_told_once(sealed: Path, first: int) -> None:
    """Its first and last record; at the end, also whose records are missing."""
    (sealed / segment_name(first)).unlink()
    report = verify(sealed, KEY)

    assert report.status == 2
    end = min(first + 6, len(story().records))
    assert f"records {first} to {end - 1} are missing" in messages(report)
    assert report.counts["incomplete"] == (2 if first == 18 else 1)


def removed(tmp_path: Path, **altered: str) -> Path:
    """The archive of a trail whose first two segments were removed, and that says so."""
    trail = story()
    told = {"before": "0", "after": "12", "subject": root_of([chained(one) for one in trail.records[:12]]).hex(), **altered}
    trail.write("cli-00000002", "change", change="trail.removed", operator="op", **told)
    folder = trail.seal(tmp_path / "trail")
    for first in (0, 6):
        (folder / segment_name(first)).unlink()
    return folder


def test_removed_segments_are_no_loss(tmp_path: Path) -> None:
    """Where the trail says that they were removed, chains begin in the middle, at a record that was sealed."""
    report = verify(removed(tmp_path), KEY)
    assert (report.status, report.findings) == (0, ())


def test_damaged_hashes_behind_removed_segments(tmp_path: Path) -> None:
    """The root is then that of the hashes of what was removed, and of the records."""
    folder = removed(tmp_path)
    flip(folder / archive.HASHES, 32 * 20)
    assert "the records are what was signed" in messages(verify(folder, KEY))
    flip(folder / archive.HASHES, 32 * 3)
    assert "the records are what was signed" not in messages(verify(folder, KEY))


@pytest.mark.parametrize(
    ("altered", "status"),
    [({"after": "6"}, 1), ({"subject": "00" * 32}, 1), ({"after": "x"}, 1), ({"after": "999"}, 1), ({"after": "9" * 5000}, 1)],
)
def test_a_removal_of_something_else_does_not_count(tmp_path: Path, altered: dict[str, str], status: int) -> None:
    """What was removed has to be what the record says: its places and its root."""
    report = verify(removed(tmp_path, **altered), KEY)
    assert report.status == status
    assert "are missing, and the trail does not say that they were removed" in messages(report)


def test_more_than_what_was_removed_is_missing(tmp_path: Path) -> None:
    """The record of a removal does not cover the segment after it."""
    folder = removed(tmp_path)
    (folder / segment_name(12)).unlink()
    report = verify(folder, KEY)

    assert report.status == 2
    assert "records 12 to 17 are missing" in messages(report)


def test_records_that_were_never_sealed_are_missed(tmp_path: Path) -> None:
    """The record behind the gap is named, and where the gap begins."""
    trail = Trail()
    trail.write(ONE, "open")
    trail.write(ONE, "beat")
    trail.write(ONE, "beat")
    del trail.records[1]
    report = verify(trail.seal(tmp_path / "trail"), KEY)

    assert report.status == 2
    assert f"line 2 ({ONE}-2): the records before it, from {ONE}-1 on, are missing" in messages(report)


def test_the_first_records_of_a_writer_are_missed(tmp_path: Path) -> None:
    """Nothing stands for them but what the next one names."""
    trail = Trail()
    trail.write(ONE, "open")
    trail.write(ONE, "beat")
    del trail.records[0]
    assert f"from {ONE}-0 on" in messages(verify(trail.seal(tmp_path / "trail"), KEY))


def test_a_record_cannot_name_another_than_the_one_before(tmp_path: Path) -> None:
    """Records taken out before they were sealed are missed, also where the next one names what is there instead."""
    trail = Trail()
    for stage in ("open", "beat", "beat", "beat"):
        trail.write(ONE, stage)
    record = msgspec.json.decode(trail.records[3])
    trail.records[1:] = [msgspec.json.encode(record | {"prev": chained(trail.records[0]).hex()})]
    report = verify(trail.seal(tmp_path / "trail"), KEY)

    assert report.status == 2
    assert f"line 2 ({ONE}-3): the records before it, from {ONE}-1 on, are missing" in messages(report)


def test_records_that_came_late_are_not_missed(tmp_path: Path) -> None:
    """Whatever order they were sealed in, also where several gaps are closed from behind."""
    for seed in range(20):
        trail = story()
        random.Random(seed).shuffle(trail.records)
        assert verify(trail.seal(tmp_path / str(seed)), KEY).findings == ()


def test_a_copy_is_sound_and_a_fork_is_not(tmp_path: Path) -> None:
    """The same record twice is the same; two of one name are not, whichever came first."""
    trail = story()
    trail.records += trail.records[3:9]
    assert verify(trail.seal(tmp_path / "copies"), KEY).findings == ()

    trail = story()
    theirs = [record for record in trail.records if msgspec.json.decode(record)["writer"] == TWO]
    trail.records = [record for record in trail.records if record not in theirs[1:]]
    trail.records += [*theirs[5:], *theirs[2:5], theirs[5], theirs[1]]
    assert verify(trail.seal(tmp_path / "late"), KEY).findings == ()

    for number, place in enumerate((len(trail.records), 2)):
        trail = story()
        fork = trail.records[3].replace(b"answered", b"refused")
        trail.records[place:place] = [fork, fork]
        report = verify(trail.seal(tmp_path / f"fork{number}"), KEY)
        assert report.status == 1
        assert f"({ONE}-2): another record was written under this name" in messages(report)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("place", [-1, 15])
def test_a_record_that_does_not_name_the_one_before(tmp_path: Path, place: int, late: bool) -> None:
    """Signed or not, it is not what its writer wrote: the last of a chain, or one that is alone and names another."""
    trail = story()
    record = msgspec.json.decode(trail.records[place])
    trail.records[place] = msgspec.json.encode(record | {"prev": "ab" * 32})
    if late:
        trail.records.reverse()
    report = verify(trail.seal(tmp_path / "trail"), KEY)

    assert (report.status, report.counts["altered"]) == (1, 1)
    assert f"({record['writer']}-{record['seq']}): it does not name" in report.findings[0].message


def test_what_was_sealed_and_is_no_record(tmp_path: Path) -> None:
    """It has a right hash, and is said to be none."""
    trail = story()
    trail.records[4:4] = [b"rubbish", b'{"stage":"beat","writer":"w","seq":-1,"at":""}', b""]
    report = verify(trail.seal(tmp_path / "trail"), KEY)
    assert report.counts["altered"] == 3
    assert "line 5: it is no record" in messages(report)


def test_a_writer_that_fell_silent(tmp_path: Path) -> None:
    """Five minutes without a beat before the checkpoint; a writer that closed, and a command, may be silent."""
    trail = story()
    beat = trail.now - 1
    assert verify(trail.seal(tmp_path / "at", at=beat + 300), KEY).status == 0
    report = verify(trail.seal(tmp_path / "after", at=beat + 301), KEY)

    assert report.status == 2
    assert messages(report) == f"{ONE} fell silent at {rfc3339(beat)}, after {ONE}-10: was it recovered?"


def test_a_call_without_end(tmp_path: Path) -> None:
    """Of a writer that closed it is missing; of one that goes on it may be under way; another may have ended it."""
    trail = Trail()
    trail.write(ONE, "open")
    intent = trail.write(ONE, "intent")
    assert verify(trail.seal(tmp_path / "open"), KEY).status == 0
    trail.write(ONE, "close")
    report = verify(trail.seal(tmp_path / "closed"), KEY)
    assert report.status == 2
    assert f"line 2 ({ONE}-1): the call has no end" in messages(report)
    trail.write("cli-00000001", "abort", intent=intent, result="unknown", problem="unknown_outcome")
    assert verify(trail.seal(tmp_path / "ended"), KEY).status == 0


@pytest.mark.parametrize("order", ["iee", "eie", "eei", "iec"])
def test_a_call_has_one_end(tmp_path: Path, order: str) -> None:
    """Whichever of its records is sealed first; a change that was not made is none."""
    trail = story()
    seq = max(json.loads(record)["seq"] for record in trail.records if json.loads(record)["writer"] == ONE) + 1
    name, row = f"{ONE}-{seq}", -1
    for kind in order:
        if kind == "i":
            assert trail.write(ONE, "intent", request_id="r5") == name
        elif kind == "e":
            row = len(trail.records)
            trail.write("host-00000009", "outcome", intent=name, result="answered")
        else:
            change = trail.write("cli-00000002", "change", change="limit.changed", operator="op")
            trail.write("cli-00000002", "abort", intent=change, result="unknown", problem="unknown_outcome")
    report = verify(trail.seal(tmp_path / "trail", per_segment=100), KEY)
    if order == "iec":
        assert report.findings == ()
    else:
        assert report.status == 1
        assert messages(report) == f"{segment_name(0)} line {row + 1}: {name} has an end already, and this is another"


def test_a_writer_has_to_reach_its_tip(tmp_path: Path) -> None:
    """What the sealer signed of a writer has to be there."""
    for tips in ({ONE: 11}, {"host-9": 0}):
        report = verify(story().seal(tmp_path / str(tips[next(iter(tips))]), tips=tips), KEY)
        assert report.status == 2
        assert "was sealed up to" in messages(report)


def test_what_came_after_the_checkpoint_is_not_sealed_yet(sealed: Path) -> None:
    """It is counted and not looked at, and may be torn."""
    last = archive.segments(sealed)[-1][1]
    with last.open("ab") as file:
        file.write(b"x\ny\n{")
    with (sealed / archive.HASHES).open("ab") as file:
        file.write(b"z" * 40)
    (sealed / segment_name(len(story().records) + 2)).write_bytes(b"z\n")
    report = verify(sealed, KEY)

    assert report.status == 0
    assert messages(report) == "3 records came after the checkpoint: they are not sealed yet"


def test_an_older_checkpoint(sealed: Path, tmp_path: Path) -> None:
    """The trail must hold what it held then, and must not have been put back."""
    trail = story()
    earlier = trail.note(at=NOON, tips={}, size=9)
    assert verify(sealed, KEY, older=earlier).status == 0
    assert verify(sealed, KEY, older=trail.note(at=NOON, tips={}, size=0)).status == 0

    (sealed / archive.CHECKPOINT).write_text(earlier)
    report = verify(sealed, KEY, older=trail.note())
    assert (report.status, "it was put back" in messages(report)) == (2, True)

    trail.records[3] = trail.records[3].replace(b"answered", b"refused")
    anew = trail.seal(tmp_path / "anew")
    report = verify(anew, KEY, older=earlier)
    assert report.status == 1
    assert "the first 9 records are not those that were signed" in messages(report)


@pytest.mark.parametrize("older", ["", "\ud800\n\n\u2014 a b\n", Signer("x", b"x" * 32).sign("x\n0\nAAAA\nat x\n")])
def test_an_older_checkpoint_that_is_none(sealed: Path, older: str) -> None:
    """It is told."""
    report = verify(sealed, KEY, older=older)
    assert report.status == 1
    assert "the older checkpoint does not hold" in messages(report)


def test_since_leaves_out_what_is_older(tmp_path: Path) -> None:
    """What is left out is only held against the root; chains begin at records that are in it."""
    trail = story()
    trail.now += 10 * 86_400
    trail.write(ONE, "beat")
    for _ in range(20):
        trail.write(ONE, "outcome", intent=trail.write(ONE, "intent"), result="answered")
    folder = trail.seal(tmp_path / "trail")
    late = verify(folder, KEY, since=trail.now - 3600)
    early = verify(folder, KEY, since=NOON)

    assert (late.status, early.status) == (0, 0)
    assert late.records < early.records == len(trail.records)

    flip(folder / archive.HASHES, 5)
    assert verify(folder, KEY, since=trail.now - 3600).status == 1


def test_since_does_not_believe_a_row_that_was_altered(tmp_path: Path) -> None:
    """A segment is not left out for what an altered row of the next one tells of its time."""
    trail = Trail()
    for _ in range(10):
        trail.write("cli-00000001", "search")
    folder = trail.seal(tmp_path / "trail")
    edit(folder, 6, lambda lines: [line.replace(b"2030", b"2020") for line in lines])
    assert verify(folder, KEY, since=NOON).records == 10


def test_since_and_removed_segments(tmp_path: Path) -> None:
    """The record of the removal counts, also where it stands in what is left out."""
    trail = story()
    told = {"before": "0", "after": "6", "subject": root_of([chained(one) for one in trail.records[:6]]).hex()}
    trail.write("cli-00000002", "change", change="trail.removed", operator="op", **told)
    for _ in range(12):
        trail.write(ONE, "beat")
    trail.now += 10 * 86_400
    for _ in range(20):
        trail.write(ONE, "beat")
    folder = trail.seal(tmp_path / "trail")
    (folder / segment_name(0)).unlink()
    report = verify(folder, KEY, since=trail.now - 60)

    assert (report.status, report.records) == (0, 26)


def test_since_and_a_writer_that_fell_silent_before(tmp_path: Path) -> None:
    """It is missed, although none of its records is read."""
    trail = story()
    trail.now += 10 * 86_400
    for days in (0, 2):
        trail.now += days * 86_400
        for _ in range(20):
            trail.write("cli-00000003", "search")
    report = verify(trail.seal(tmp_path / "trail"), KEY, since=trail.now - 60)

    assert report.status == 2
    assert f"{ONE} fell silent before" in messages(report)


def test_findings_are_counted_and_not_all_kept(tmp_path: Path) -> None:
    """The first ones are kept."""
    trail = Trail()
    for _ in range(3 * KEPT):
        trail.write("cli-00000001", "search")
    folder = trail.seal(tmp_path / "trail", per_segment=KEPT)
    for first in range(0, 3 * KEPT, KEPT):
        edit(folder, first, lambda lines: [line.replace(b"main", b"mair") for line in lines])
    report = verify(folder, KEY)

    assert (report.counts["altered"], len(report.findings)) == (3 * KEPT, KEPT)
    assert [finding.row for finding in report.findings] == list(range(KEPT))


def test_what_a_record_says_cannot_spoil_the_report(tmp_path: Path) -> None:
    """A writer's name may hold anything; a message is one line that a terminal prints."""
    trail = Trail()
    for _ in range(2):
        trail.write("host\n\x1b[2J\u202e" + "x" * 1000, "search")
    del trail.records[0]
    (finding,) = verify(trail.seal(tmp_path / "trail"), KEY).findings
    assert finding.message.isprintable() and len(finding.message) < 400


# ---- Proofs.


def hashes_of(folder: Path, count: int) -> list[bytes]:
    leaves = [chained(str(number).encode()) for number in range(count)]
    (folder / archive.HASHES).write_bytes(b"".join(leaves))
    return leaves


def test_the_file_of_hashes_is_the_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its roots and proofs are those of the tree, for every size and place, however it is cut."""
    monkeypatch.setattr(proving, "_CHUNK", 8)
    leaves = hashes_of(tmp_path, 70)
    with Leaves(archive.open_hashes(tmp_path)) as file:
        for size in range(71):
            assert file.root(size) == root_of(leaves[:size])
            for place in range(size):
                assert file.inclusion(place, size) == inclusion(leaves[:size], place)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 97, 4095, 4096, 4097, 10_000])
def test_an_independent_tree_says_the_same(tmp_path: Path, size: int) -> None:
    """pymerkle, written by others from RFC 9162: the same roots, the same proofs."""
    pymerkle = pytest.importorskip("pymerkle")
    entries = [str(number).encode() for number in range(size)]
    tree = pymerkle.InmemoryTree.init_from_entries(entries, algorithm="sha256")
    leaves = hashes_of(tmp_path, size)
    with Leaves(archive.open_hashes(tmp_path)) as file:
        assert file.root(size) == root_of(leaves) == tree.get_root()
        for place in {0, size // 3, size // 2, size - 1}:
            theirs = tree.prove_inclusion(place + 1)
            assert file.inclusion(place, size) == theirs.path[1:]
            pymerkle.verify_inclusion(chained(entries[place]), tree.get_root(), theirs)


def proof(folder: Path, places: Sequence[int] = (2, 4)) -> dict[str, object]:
    made = prove(folder, places, (folder / archive.CHECKPOINT).read_text())
    document: dict[str, object] = json.loads(json.dumps(made))
    return document


def test_every_record_can_be_proved(sealed: Path) -> None:
    """With the document and the public key alone, and to the byte."""
    records = story().records
    document = proof(sealed, range(len(records)))
    assert [(one.place, one.record) for one in check_proof(document, KEY)] == list(enumerate(records))


def test_a_record_that_is_no_text_can_be_proved(tmp_path: Path) -> None:
    """Its bytes are then in base64."""
    trail = story()
    trail.records[3] = b"\xff\x00"
    assert check_proof(proof(trail.seal(tmp_path / "trail"), [3]), KEY)[0].record == b"\xff\x00"


@pytest.mark.parametrize(
    ("places", "reason"),
    [([], "no record to prove"), ([23], "not sealed yet"), ([-1], "not sealed yet"), ([7], "is it not there|not in")],
)
def test_what_cannot_be_proved(sealed: Path, places: list[int], reason: str) -> None:
    """It is said why not."""
    (sealed / segment_name(6)).unlink()
    with pytest.raises(ProofError, match=reason):
        proof(sealed, places)


def test_no_proof_is_made_of_what_is_not_sealed(sealed: Path) -> None:
    """A record or hash that was altered is found before the proof is handed over."""
    edit(sealed, 0, lambda lines: [line.replace(b"main", b"mair") for line in lines])
    with pytest.raises(ProofError, match="verify the trail"):
        proof(sealed)
    with pytest.raises(ProofError, match="cannot be read"):
        prove(sealed, [1], "no note")


def _without(name: str) -> Callable[[dict[str, object]], object]:
    return lambda document: {key: value for key, value in document.items() if key != name}


def _row(**changed: object) -> Callable[[dict[str, object]], object]:
    def change(document: dict[str, object]) -> object:
        rows = document["records"]
        assert isinstance(rows, list)
        return document | {"records": [rows[0], {key: value for key, value in (rows[1] | changed).items() if value is not ...}]}

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda document: None, "no proof"),
        (lambda document: [document], "no proof"),
        (lambda document: document | {"records": 7}, "no proof"),
        (lambda document: document | {"records": []}, "proves no record"),
        (lambda document: document | {"format": "other/1"}, "format"),
        (lambda document: document | {"checkpoint": str(document["checkpoint"]).replace("\n23\n", "\n22\n")}, "does not hold"),
        (lambda document: document | {"checkpoint": "\ud800\n\n\u2014 trail.example AAAA\n"}, "checkpoint"),
        (lambda document: document | {"checkpoint": SIGNER.sign(f"other\n23\n{'A' * 43}=\nat x\n")}, "not of trail.example"),
        (lambda document: document | {"checkpoint": Signer("other", b"o" * 32).sign("o\n1\nAAAA\nat x\n")}, "not signed by"),
        (_without("format"), "no proof"),
        (_without("checkpoint"), "no proof"),
        (_without("records"), "no proof"),
        (_row(place=3), "record 2 is not at place 3"),
        (_row(place=-1), "not at place"),
        (_row(place=10**30), "not at place|no proof"),
        (_row(place="4"), "no proof"),
        (_row(record="{}"), "another record"),
        (_row(record="\ud800"), "not written as it should be"),
        (_row(record=...), "not there once"),
        (_row(record_base64="AAAA"), "not there once"),
        (_row(record=..., record_base64="?"), "not written as it should be"),
        (_row(record=..., record_base64="\u00e4"), "not written as it should be"),
        (_row(proof=[]), "not at place"),
        (_row(proof=["zz"]), "not written as it should be"),
        (_row(proof=["00" * 31]), "no list of hashes"),
        (_row(proof=["00" * 32] * 10_000), "not at place"),
        (_row(proof="00"), "no proof"),
    ],
)
def test_a_proof_that_is_none(sealed: Path, change: Callable[[dict[str, object]], object], reason: str) -> None:
    """Whatever is wrong with it, it is said in one line."""
    document = proof(sealed)
    assert len(check_proof(document, KEY)) == 2
    with pytest.raises(ProofError, match=reason) as raised:
        check_proof(change(document), KEY)
    assert str(raised.value).isprintable()


def test_what_proofs_have_in_common_is_made_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for much of it; a proof is the same with it, and what stops it is told by the proof."""
    sealed = tmp_path / "archive"
    build(sealed, 101)
    sign(sealed)
    monkeypatch.setattr(proving, "_CHUNK", 2)
    monkeypatch.setattr(tops, "_LEAVES_MAX", 0)
    with archive.Reader(sealed) as reader:
        size, made = reader.state.size, tops.Tops(sealed)
        where = reader.index.find(Query(), limit=3)

        assert not made.near(size)
        until(lambda: made.near(size), what="the hashes")
        assert Leaves.held(made._hashes) == size - size % 2
        note = (sealed / archive.CHECKPOINT).read_text()
        assert made.prove(reader, where, note) == proving.prove_found(reader, where)

        (sealed / archive.HASHES).rename(sealed / "elsewhere")
        missing = tops.Tops(sealed)
        assert not missing.near(size)
        until(lambda: missing.near(size), what="the end of trying")
        with pytest.raises(OSError, match=archive.HASHES):
            missing.prove(reader, where, note)
