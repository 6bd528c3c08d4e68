"""The copy of the trail in a real S3-compatible server, over a real socket: sound whenever it stops, and never a burden."""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import obstore
import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from obstore.store import S3Store
from werkzeug.serving import make_server

from gateway.audit import Record, chained, rfc3339
from gateway.trail import archive as archives
from gateway.trail import copies
from gateway.trail.archive import Archive, lines, segments
from gateway.trail.copies import Copies, CopyError
from gateway.trail.note import Checkpoint, Signer
from gateway.trail.verify import Report, verify

SIGNER = Signer.generate("tests")
NOON = 1_900_000_000.0
_MD5 = re.compile(rb"[0-9a-f]{32}(?=[^<]*</ETag>)")
_numbers = itertools.count(1)

Answer = tuple[str, bool]
"""A status to answer a request with, and whether the request is carried out all the same."""


class Store:
    """A server with one bucket for each test, that can be told to fail."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._serve, threaded=True)
        self.endpoint = f"http://127.0.0.1:{self._server.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.begin()

    def begin(self) -> None:
        """Make a new bucket, and be well."""
        self.fault: Callable[[str], Answer | None] = lambda request: None
        self.encrypts = False
        """Its tags are no MD5 of what was sent."""
        self.requests: list[str] = []
        self.bucket = f"trail-{next(_numbers)}"
        httpx.put(f"{self.endpoint}/{self.bucket}", timeout=30).raise_for_status()
        self.url = f"s3://{self.bucket}/copies/one"
        self.client = S3Store(self.bucket, prefix="copies/one", endpoint=self.endpoint, client_options={"allow_http": True})

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _serve(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        request = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO'].rpartition('/')[2]}"
        self.requests.append(request)
        answer = self.fault(request)
        if answer is None or answer[1]:
            told = list(self._app(environ, start_response if answer is None else lambda *_: None))
            if answer is None:
                return [_MD5.sub(b"0" * 32, part) for part in told] if self.encrypts else told
        start_response(answer[0], [("Content-Length", "0")])
        return [b""]

    def put(self) -> list[str]:
        """Return the names of the objects that were written, in order."""
        return [name for method, _, name in (one.partition(" ") for one in self.requests) if method == "PUT"]

    def names(self) -> list[str]:
        return [meta["path"] for page in obstore.list(self.client) for meta in page]

    def read(self, name: str) -> bytes:
        return bytes(obstore.get(self.client, name).bytes())

    def bring_down(self, folder: Path) -> Report:
        """Do what any S3 tool does, and verify."""
        folder.mkdir()
        for name in self.names():
            (folder / name).write_bytes(self.read(name))
        return verify(folder, SIGNER.public)


class Trail:
    """An archive that grows round by round, as a sealer makes it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.archive = Archive(folder)
        self.records: list[bytes] = []
        self.seq, self.prev = 0, ""
        self.now = NOON

    def seal(self, count: int, **more: Any) -> None:
        fresh = []
        for _ in range(count):
            self.now += 1
            record = Record(stage="beat" if self.seq else "open", at=rfc3339(self.now), account="a", writer="host-1")
            record = msgspec.structs.replace(record, seq=self.seq, prev=self.prev, **more)
            fresh.append(msgspec.json.encode(record))
            self.seq, self.prev = self.seq + 1, chained(fresh[-1]).hex()
        self.records += fresh
        for start in range(0, count, 4):
            self.archive.add(fresh[start : start + 4], {}, "a")
        self.now += 1
        tree, at, tips = self.archive.tree, rfc3339(self.now), {"host-1": self.seq - 1}
        self.archive.publish(SIGNER.sign(Checkpoint(origin="tests", size=tree.size, root=tree.root, at=at, tips=tips).text()))


@pytest.fixture(scope="module")
def server() -> Iterator[Store]:
    patch = pytest.MonkeyPatch()
    patch.setenv("AWS_ACCESS_KEY_ID", "key-id-for-tests")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "secret-for-tests")
    patch.setenv("AWS_REGION", "us-east-1")
    store = Store()
    yield store
    store.close()
    patch.undo()


@pytest.fixture
def store(server: Store) -> Store:
    server.begin()
    return server


@pytest.fixture
def trail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trail]:
    """Some records make a segment, fewer an object."""
    monkeypatch.setattr(archives, "SEGMENT_BYTES", 2000)
    monkeypatch.setattr(copies, "_OBJECT_BYTES", 900)
    trail = Trail(tmp_path / "trail")
    yield trail
    trail.archive.__exit__()


def test_a_copy_that_is_brought_down_is_the_trail(store: Store, trail: Trail, tmp_path: Path) -> None:
    """Round by round, over many segments; and each object is written once, but for the checkpoint."""
    copy = Copies(store.url, store.endpoint)
    assert copy.copy(trail.folder) == 0  # Nothing is sealed yet.
    for round_, count in enumerate([1, 3, 40, 0, 7]):
        trail.seal(count)
        wrote = copy.copy(trail.folder)
        report = store.bring_down(tmp_path / f"down{round_}")

        assert wrote >= (3 if count else 1)
        assert (report.status, report.records) == (0, len(trail.records))
        assert copy.copy(trail.folder) == 0

    down = tmp_path / "down4"
    assert len(segments(trail.folder)) > 3
    assert [line for _, path in segments(down) for line in lines(path)] == trail.records
    written = [name for name in store.put() if name != "checkpoint"]
    assert len(written) == len(set(written))
    assert all(path.stat().st_size < 1300 for _, path in segments(down))


@pytest.mark.parametrize("carried_out", [False, True], ids=["before", "after"])
def test_a_copier_that_dies_between_any_two_writes_leaves_a_sound_copy(
    store: Store, trail: Trail, tmp_path: Path, carried_out: bool
) -> None:
    """Just before a write, or just after it; and the next one goes on from there, when more was sealed."""
    trail.seal(5)
    Copies(store.url, store.endpoint).copy(trail.folder)
    for dies_at in range(100):
        trail.seal(17)
        countdown = itertools.count(-dies_at)
        store.fault = lambda request: ("403 No", carried_out) if request.startswith("PUT") and next(countdown) >= 0 else None
        try:
            Copies(store.url, store.endpoint).copy(trail.folder)
        except CopyError:
            pass
        else:
            break
        finally:
            store.fault = lambda request: None
        report = store.bring_down(tmp_path / f"died{dies_at}")
        assert report.status == 0, report.findings

        trail.seal(2)
        Copies(store.url, store.endpoint).copy(trail.folder)
        report = store.bring_down(tmp_path / f"went-on{dies_at}")
        assert (report.status, report.records) == (0, len(trail.records))
    assert dies_at > 6  # Records, hashes, records, hashes, … and the checkpoint.


def test_a_write_whose_answer_is_lost_is_known_as_ones_own(store: Store, trail: Trail, tmp_path: Path) -> None:
    """The library sends it again, the store says that it is there, and it is what was sent."""
    trail.seal(20)
    lost = set[str]()

    def fault(request: str) -> Answer | None:
        if not request.startswith("PUT") or request in lost:
            return None
        lost.add(request)
        return "500 Lost", True

    store.fault = fault
    Copies(store.url, store.endpoint).copy(trail.folder)

    assert len(lost) > 6
    assert store.bring_down(tmp_path / "down").status == 0


def test_a_trail_whose_beginning_was_removed_is_copied(store: Store, trail: Trail, tmp_path: Path) -> None:
    """The hashes of what is not there any more are copied, and the copy is as sound as the trail."""
    trail.seal(60)
    before, root = trail.archive.older_than(rfc3339(NOON + 40))
    trail.seal(1, stage="change", change="trail.removed", after=str(before), subject=root.hex())
    trail.archive.remove(before)
    assert before > 10

    Copies(store.url, store.endpoint).copy(trail.folder)
    report = store.bring_down(tmp_path / "down")

    assert (report.status, report.records) == (0, len(trail.records) - before)


@pytest.mark.parametrize(
    "change", [lambda sent: sent.replace(b"beat", b"boot", 1), lambda sent: sent + sent, lambda sent: sent[:-9]]
)
def test_an_object_that_was_altered_in_the_store_is_told(store: Store, trail: Trail, change: Callable[[bytes], bytes]) -> None:
    """By its name, and no other is; whether it is as long as it was, longer or shorter."""
    trail.seal(60)
    copy = Copies(store.url, store.endpoint)
    copy.copy(trail.folder)
    rounds = len(segments(trail.folder))
    assert set.union(*(copy.altered(trail.folder) for _ in range(rounds))) == set()

    name = [name for name in store.names() if name.endswith(".jsonl")][7]
    obstore.put(store.client, name, change(store.read(name)))

    assert [found for _ in range(rounds) if (found := copy.altered(trail.folder))] == [{name}]


def test_a_store_whose_tags_tell_nothing_is_compared_by_length(store: Store, trail: Trail) -> None:
    """Where it encrypts, say: one object is fetched to know that, and no more are."""
    store.encrypts = True
    trail.seal(60)
    copy = Copies(store.url, store.endpoint)
    copy.copy(trail.folder)
    store.requests.clear()
    rounds = len(segments(trail.folder))

    assert [copy.altered(trail.folder) for _ in range(rounds)] == [set()] * rounds
    assert sum(request.endswith(".jsonl") for request in store.requests) == 1
    name = archives.segment_name(0)
    obstore.put(store.client, name, store.read(name)[:-9])
    assert copy.altered(trail.folder) == {name}


def test_nothing_is_ever_overwritten(store: Store, trail: Trail, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands under a name that is due stays, and is told; also where the store knows no conditional writes."""
    trail.seal(5)
    for conditional in ("etag", "disabled"):
        monkeypatch.setenv("AWS_CONDITIONAL_PUT", conditional)
        copy = Copies(store.url, store.endpoint)
        trail.seal(30)
        copy.copy(trail.folder)
        due = archives.segment_name(len(trail.records))
        obstore.put(store.client, due, b"{}\n")
        trail.seal(1)

        for again in (copy, Copies(store.url, store.endpoint)):
            with pytest.raises(CopyError, match=f"{due} in the store holds something else"):
                again.copy(trail.folder)
        assert store.read(due) == b"{}\n"
        obstore.delete(store.client, due)


def test_another_trail_is_told_apart(store: Store, trail: Trail, tmp_path: Path) -> None:
    """A copy is added to by its own archive only: not by another one, nor by one that was put back."""
    trail.seal(50)
    Copies(store.url, store.endpoint).copy(trail.folder)
    before = {name: store.read(name) for name in store.names()}
    for count, account in ((3, "a"), (70, "b")):
        other = Trail(tmp_path / account)
        other.seal(count, account=account)

        with other.archive, pytest.raises(CopyError, match="holds"):
            Copies(store.url, store.endpoint).copy(other.folder)
    assert {name: store.read(name) for name in store.names()} == before


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("403 Forbidden", "the store forbids it"),
        ("401 Unauthorized", "the store does not accept the credentials"),
        ("500 Oh", "the store answered 500"),
        ("slow", "the store did not answer in time"),
        ("down", "the store cannot be reached"),
    ],
)
def test_a_store_that_fails_is_told_once_and_sealing_goes_on(
    store: Store, trail: Trail, tmp_path: Path, fault: str, words: str
) -> None:
    """No round waits for it; once it is well again, that is told too, and all that is missing is copied."""
    told: list[str] = []
    took: list[float] = []

    def answer(request: str) -> Answer | None:
        time.sleep(1.0 if fault == "slow" else 0.0)
        return fault, False

    async def rounds(until: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not until():
            assert time.monotonic() < deadline, told
            began = time.monotonic()
            await asyncio.to_thread(trail.seal, 1)
            took.append(time.monotonic() - began)
            await asyncio.sleep(0.02)

    async def run() -> None:
        copy = Copies(
            store.url, "http://127.0.0.1:1" if fault == "down" else store.endpoint, answer_seconds=0.3 if fault == "slow" else 5.0
        )
        async with copy.following(trail.folder, lambda error: told.append(str(error)), every_seconds=0.02):
            if fault == "down":
                await rounds(lambda: len(told) > 0 and len(trail.records) > 40)
                return
            await rounds(lambda: "checkpoint" in store.put())
            store.fault, failed = answer, len(store.requests)
            await rounds(lambda: len(store.requests) >= failed + 3 and len(told) > 0)
            assert told == [words]
            store.fault = lambda request: None
            await rounds(lambda: len(told) > 1)
            trail.seal(30)

    asyncio.run(run())

    assert told == ([words] if fault == "down" else [words, "None"])
    # A disk that is busy makes one slow; to wait for the store would make nearly all so.
    assert sorted(took)[len(took) * 9 // 10] < 0.5
    if fault != "down":
        report = store.bring_down(tmp_path / "down")
        assert (report.status, report.records) == (0, len(trail.records))


def test_what_was_altered_is_told_once_while_copying_goes_on(
    store: Store, trail: Trail, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reason to look, not to stop."""
    monkeypatch.setattr(copies, "_COMPARE_EVERY_SECONDS", 0.0)
    trail.seal(30)
    Copies(store.url, store.endpoint).copy(trail.folder)
    name = archives.segment_name(0)
    obstore.put(store.client, name, b"{}\n")
    told: list[str] = []

    async def run() -> None:
        async with Copies(store.url, store.endpoint).following(trail.folder, lambda error: told.append(str(error)), 0.01):
            store.requests.clear()
            while store.put().count("checkpoint") < 20:
                trail.seal(1)
                await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(run(), 30))

    assert told == [f"{name} in the store holds something else than the archive"]
    assert store.bring_down(tmp_path / "down").status == 1


def test_the_end_does_not_wait_for_ever(store: Store, trail: Trail, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trail that was never copied is large: the sealer ends, and how much is left is told."""
    monkeypatch.setattr(copies, "_LAST_SECONDS", 0.0)
    trail.seal(200)
    told: list[str] = []

    async def run() -> None:
        async with Copies(store.url, store.endpoint).following(trail.folder, lambda error: told.append(str(error)), 60):
            pass

    asyncio.run(run())

    assert len(told) == 1 and told[0].endswith("records were left when the sealer ended")


def test_a_bucket_that_is_not_there_is_told(store: Store, trail: Trail) -> None:
    """In one line, without the address."""
    trail.seal(1)

    with pytest.raises(CopyError) as caught:
        Copies("s3://nowhere/x", store.endpoint).copy(trail.folder)
    assert str(caught.value) == "the store answered 404"


def test_a_damaged_archive_is_not_copied(store: Store, trail: Trail) -> None:
    """Where records or hashes are missing that are signed, no checkpoint says that they are copied."""
    for name in (archives.segment_name(0), "hashes"):
        trail.seal(3)
        path = trail.folder / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-5])

        with pytest.raises(CopyError, match=f"{name} is shorter than what was sealed"):
            Copies(store.url, store.endpoint).copy(trail.folder)
        path.write_bytes(whole)
    assert "checkpoint" not in store.names()


@pytest.mark.parametrize(
    "url", ["", "bucket", "https://bucket/x", "s3://", "s3:///x", "s3://user:word@bucket/x", "s3://b?x", "s3://["]
)
def test_an_address_of_another_kind_is_refused(url: str) -> None:
    """Before anything is sent, and without saying it again: somebody may have put a secret there."""
    with pytest.raises(CopyError, match=r"^the address of a copy is s3://BUCKET or s3://BUCKET/PREFIX$"):
        Copies(url)


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """It names what to install."""
    monkeypatch.setitem(sys.modules, "obstore", None)

    with pytest.raises(CopyError, match=r"masking-gateway\[s3\]"):
        Copies("s3://bucket")
