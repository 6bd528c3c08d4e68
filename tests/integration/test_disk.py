"""The journal's disk fails: beside Redis calls go on and it is told; without Redis none is made that no disk has."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.chaos.promise import M1, M2, Answer, assert_kept, body_of
from tests.e2e.test_main_job import assert_refused
from tests.running import UNSET, Process, Stack, until

_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Disk:
    """The disk of a gateway's journal, which can be made to fail."""

    stack: Stack
    fail: Callable[[], object]
    mend: Callable[[], object]


def ask(stack: Stack) -> tuple[Answer, httpx.Response]:
    number = next(_numbers)
    headers = {"Authorization": f"Bearer {stack.key}", "X-Request-Id": Answer(number, 0).request_id}
    response = stack.http.post(stack.url + UNSET, json=body_of(number), headers=headers)
    return Answer(number, response.status_code), response


def called(stack: Stack, count: int = 5) -> list[Answer]:
    """Make calls that succeed."""
    answers = [ask(stack)[0] for _ in range(count)]
    assert [answer.status for answer in answers] == [200] * count
    return answers


def refused(stack: Stack, count: int = 5) -> list[Answer]:
    """Make calls that nobody can record."""
    answers = []
    for _ in range(count):
        answer, response = ask(stack)
        assert_refused(response, 503, "ledger_unavailable")
        answers.append(answer)
    return answers


def checks(stack: Stack) -> dict[str, str]:
    """Return what of readiness is not well."""
    told = stack.http.get(stack.url + "/readyz").json()["checks"]
    return {name: answer for name, answer in told.items() if answer != "ok"}


def until_refused(stack: Stack) -> list[Answer]:
    """Make calls until one is refused."""
    answers = [ask(stack)[0]]
    while answers[-1].status == 200:
        assert len(answers) < 1000
        answers.append(ask(stack)[0])
    return answers


def until_told(stack: Stack) -> list[Answer]:
    """Make calls that succeed until the disk takes no more: its last page may have room for some."""
    answers = called(stack, 1)
    while "account.test.journal" not in checks(stack):
        assert len(answers) < 1000
        answers += called(stack, 1)
    return answers


def journal_of(stack: Stack) -> Path:
    return stack.folder / "state" / "journal" / "test"


def assert_all_told(stack: Stack, answers: list[Answer]) -> None:
    """Assert that Redis and the disk have the same records in the end, each once, and that they tell of every answer."""
    before = {answer.request_id for answer in answers}

    def whole() -> bool:
        rows = stack.whole_stream()
        told = sum(
            row.get("count", 1) for row in rows if row["stage"] in ("outcome", "refusal") and row.get("request_id") in before
        )
        lines = [line for path in sorted(journal_of(stack).glob("*.jsonl")) for line in path.read_bytes().splitlines()]
        journalled = [json.loads(line) for line in lines]
        writers = {row["writer"] for row in journalled}
        # Both in the order of each writer.
        sent = sorted((row for row in rows if row["writer"] in writers), key=lambda row: row["writer"])
        return told == len(answers) and journalled == sent

    until(whole, seconds=30, what="Redis and the disk having all there is")
    assert_kept(stack.whole_stream(), stack.vendor_calls(), answers)


@pytest.fixture
def begin(start: Callable[..., Stack]) -> Callable[..., Stack]:
    """Start a stack with a masking that all calls are about."""

    def begun(**sections: str) -> Stack:
        stack = start(**sections)
        stack.set_masking(M1, M2)
        return stack

    return begun


def fails(begin: Callable[..., Stack], function: str, error: str) -> Disk:
    """Start a gateway with a disk that fails as long as it is told to."""
    stack = begin()
    stack.gateway.stop()
    switch = stack.folder / "failing"
    command = [sys.executable, "-m", "tests.chaos.failing", function, error, str(switch), "serve", "--port", "0"]
    stack.gateway = Process(stack.folder, "on-a-failing-disk", [*command, "--config", str(stack.config)], stack._environ)
    stack.url = stack.gateway.address()
    until(stack._ready, what="the gateway being ready")
    return Disk(stack, switch.touch, switch.unlink)


def mounted(folder: Path, *words: str) -> None:
    """Mount something over a folder; skip the test where that may not be done."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", *words, str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this machine lets no test mount anything: {done.stderr.strip()}")


@pytest.fixture(params=["full", "ENOSPC", "EIO", "EROFS"])
def disk(begin: Callable[..., Stack], request: pytest.FixtureRequest) -> Iterator[Disk]:
    """A small disk that is filled, and disks that say so of themselves, amid a write."""
    if request.param != "full":
        yield fails(begin, "write", request.param)
        return
    stack = begin(audit="disk_free_bytes_min = 0")
    stack.gateway.stop()
    mounted(journal_of(stack), "-t", "tmpfs", "-o", "size=256k", "tmpfs")
    filler = journal_of(stack) / "filler"

    def fill() -> None:
        with filler.open("wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                return

    try:
        stack.start_gateway()
        yield Disk(stack, fill, filler.unlink)
        stack.gateway.stop()
    finally:
        subprocess.run(["umount", str(journal_of(stack))], check=True)


def test_beside_redis_calls_go_on(disk: Disk) -> None:
    """They are made and recorded, readiness and log tell of it, once; what the disk did not take, it has in the end."""
    stack = disk.stack
    answers = called(stack)
    disk.fail()
    answers += until_told(stack) + called(stack, 20)

    assert checks(stack) == {"account.test.journal": "OSError"}
    assert stack.http.get(stack.url + "/readyz").status_code == 503
    assert stack.gateway_log().count('"journal.broken"') == 1
    disk.mend()
    assert_all_told(stack, answers + called(stack))
    assert stack.gateway_log().count('"journal.broken"') == 1


def test_without_redis_none_is_made(disk: Disk) -> None:
    """They are refused, and the vendor is not asked, until the disk is well again; every record is there in the end, once."""
    stack = disk.stack
    answers = called(stack)
    stack.redis.kill()
    answers += called(stack)
    disk.fail()
    answers += until_refused(stack)
    before = len(stack.vendor_calls())
    answers += refused(stack, 20)
    assert len(stack.vendor_calls()) == before

    disk.mend()
    answers += called(stack)
    stack.redis.start()
    assert_all_told(stack, answers)


def test_what_is_not_known_to_be_on_the_disk_is_not_made(begin: Callable[..., Stack]) -> None:
    """Written, and not synced: without Redis that is no record; beside it nobody waits for it."""
    disk = fails(begin, "fdatasync", "EIO")
    stack = disk.stack
    disk.fail()
    answers = called(stack)
    path = max(journal_of(stack).glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns)
    stack.redis.kill()
    answers += refused(stack)
    assert len(stack.vendor_calls()) == 5
    assert checks(stack).keys() >= {"account.test.ledger", "account.test.journal"}
    assert stack.gateway_log().count('"journal.broken"') == 1

    # What the failed sync left unwritten counts as written from then on: another file takes its place.
    before = path.stat().st_ino
    disk.mend()
    until(lambda: "account.test.journal" not in checks(stack), what="the journal being well")
    assert path.stat().st_ino != before
    answers += called(stack)
    stack.redis.start()
    assert_all_told(stack, answers)


def test_a_folder_that_cannot_be_written_is_told_at_the_start(begin: Callable[..., Stack]) -> None:
    """One line and a status, before any caller is served."""
    stack = begin()
    stack.gateway.stop()
    folder = journal_of(stack)
    mounted(folder, "--bind", str(folder))
    try:
        mounted(folder, "-o", "remount,bind,ro")
        gateway = stack.spawn_gateway(name="read-only")
        until(lambda: not gateway.alive(), what=f"the end of {gateway.name}")
    finally:
        subprocess.run(["umount", str(folder)], check=True)
    assert gateway.popen.returncode == 1
    assert "Read-only file system" in gateway.output()
    assert "Traceback" not in gateway.output()
    stack.start_gateway()
    assert_all_told(stack, called(stack))


def test_a_disk_with_too_little_room_is_left_to_others(begin: Callable[..., Stack]) -> None:
    """Below the bound nothing is recorded there alone; beside Redis calls go on."""
    stack = begin()
    stack.gateway.stop()
    stack.config.write_text(stack.config.read_text().replace("[audit]", f"[audit]\ndisk_free_bytes_min = {2**50}"))
    stack.gateway = stack.spawn_gateway()
    stack.url = stack.gateway.address()
    answers = called(stack)
    assert checks(stack) == {"account.test.journal": "OSError"}
    stack.redis.kill()
    answers += refused(stack)
    assert len(stack.vendor_calls()) == 5
    stack.redis.start()
    until(lambda: "account.test.redis" not in checks(stack), what="Redis being back")
    assert_all_told(stack, answers + called(stack))


@pytest.mark.parametrize("bound", ["journal_bytes_max = 20000", "journal_seconds_max = 2"])
def test_no_more_waits_than_may(begin: Callable[..., Stack], bound: str) -> None:
    """From there on calls are refused, and their refusals summed; when Redis is back, all that waited is told."""
    stack = begin(audit=bound)
    answers = called(stack)
    stack.redis.kill()
    answers += until_refused(stack)
    assert len(answers) > 6
    before = len(stack.vendor_calls())
    answers += refused(stack, 150)
    assert len(stack.vendor_calls()) == before
    assert checks(stack)["account.test.ledger"] == "LedgerDown"

    stack.redis.start()
    until(lambda: checks(stack) == {}, what="all being well")
    assert_all_told(stack, answers + called(stack))
    sums = [row["count"] for row in stack.stream() if "count" in row]
    assert sum(sums) > 100
