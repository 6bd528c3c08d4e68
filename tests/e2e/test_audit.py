"""The trail as security reads it: sealed by a real gateway, searched, verified, proved, exported; by commands alone."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.running import Process, Stack, until

SEALING = 'sealing = "serve"'


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A gateway that seals beside its workers."""
    with Stack(tmp_path_factory.mktemp("sealed"), audit=SEALING) as running:
        yield running
        running.assert_alive()


def archive(stack: Stack) -> Path:
    return stack.folder / "state" / "archive"


def called(stack: Stack, **more: Any) -> tuple[str, str, str]:
    """Make one call, and return its request id and numbers once its outcome is sealed."""
    m1, m2 = stack.masked()
    request_id = str(stack.unset(m1=m1, m2=m2, expiry_duration=-1, **more).json()["request_id"])
    until(lambda: b"outcome" in sealed_lines(stack, request_id), what="the outcome being sealed")
    return request_id, m1, m2


def sealed_lines(stack: Stack, word: str) -> bytes:
    found = [path.read_bytes() for path in archive(stack).glob("*.jsonl")]
    return b"\n".join(line for lines in found for line in lines.splitlines() if word.encode() in line)


def rows(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_who_unset_this_number_and_when(sealed: Stack) -> None:
    """Any way of writing the number finds intent and outcome, sealed or not; the search stands in the trail."""
    request_id, m1, _ = called(sealed)
    for text in (m1, f"+91{m1}", f"0{m1}", f"+91 {m1[:5]} {m1[5:]}"):
        found = rows(sealed.cli("audit", "search", "--number", text, "--json", "--service", "crm"))
        assert [(row["stage"], row["request_id"]) for row in found] == [("intent", request_id), ("outcome", request_id)]
    until(lambda: b'"stage":"search"' in sealed_lines(sealed, found[0]["m1"]), what="the search being sealed")
    searches = rows(sealed.cli("audit", "search", "--number", m1, "--account", ":keys", "--json"))
    assert len(searches) == 5
    assert all(row["operator"] and row["m1"] == found[0]["m1"] for row in searches)
    assert m1 not in sealed_lines(sealed, "stage").decode()
    assert sealed.cli("audit", "search", "--number", "9800000000", "--json", "--service", "crm", check=False).returncode == 1


def test_pages_go_back_to_the_first_record(sealed: Stack) -> None:
    """The newest hundred, then those before, each once."""
    for _ in range(3):
        called(sealed)
    whole = rows(sealed.cli("audit", "search", "--json", "--account", "test"))
    told: list[dict[str, Any]] = []
    older = ""
    for _ in range(100):
        done = sealed.cli("audit", "search", "--json", "--account", "test", "--page", *([older] if older else []))
        told = [*rows(done), *told]
        if "--page" not in done.stderr:
            break
        older = done.stderr.split("--page ")[1].strip()
    key = [(row["writer"], row["seq"]) for row in told]
    assert len(key) == len(set(key))
    assert {(row["writer"], row["seq"]) for row in whole} <= set(key)
    assert sealed.cli("audit", "search", "--page", "nonsense", check=False).returncode == 2


def test_where_the_sealed_trail_is_elsewhere_commands_say_so(
    sealed: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Redis still has is not all there is, and nobody is to think so; beside the sealer there is nothing to say."""
    request_id, *_ = called(sealed)
    until(lambda: "gateway_checkpoint_records" in sealed.metrics(), what="a checkpoint")
    elsewhere = tmp_path / "elsewhere.toml"
    elsewhere.write_text(sealed.config.read_text().replace("[audit]", f'[audit]\narchive = "{tmp_path / "none"}"'))

    def says_so(*words: str) -> bool:
        done = sealed.cli(*words, check=False)
        assert done.returncode in (0, 1), done.stderr
        return "the sealed trail is not here" in done.stderr

    reading = [
        ("audit", "search", "--request-id", request_id), ("audit", "unknown"), ("limits", "history"),
        ("limits", "explain", request_id), ("limits", "replay", "--rate", "5/s", "--burst", "9", "--since", "1h"),
    ]  # fmt: skip
    assert not any(says_so(*words) for words in reading)
    monkeypatch.setattr(sealed, "config", elsewhere)
    assert [words for words in reading if not says_so(*words)] == []
    assert not says_so("keys", "list")


def test_sound_until_it_is_touched(sealed: Stack, tmp_path: Path) -> None:
    """0 for the trail as it is; 1 with the altered row's name; 2 for a tail cut off or a checkpoint rolled back; 3 for no trail."""
    request_id, *_ = called(sealed)
    public = (archive(sealed) / "public.key").read_text().strip()
    kept = archive(sealed) / "checkpoint"
    older = tmp_path / "older.note"
    older.write_bytes(kept.read_bytes())
    called(sealed)
    assert sealed.cli("audit", "verify").returncode == 0
    copy = tmp_path / "copy"
    copy.mkdir()
    until(lambda: _copied(archive(sealed), copy, public), what="a copy that a running sealer did not change meanwhile")
    words = ("audit", "verify", "--archive", str(copy), "--public-key", public, "--checkpoint", str(older))
    assert command(*words).returncode == 0

    (segment,) = copy.glob("*.jsonl")
    good = segment.read_bytes()
    lines = good.splitlines(keepends=True)
    number = next(n for n, line in enumerate(lines) if request_id.encode() in line and b'"outcome"' in line)
    segment.write_bytes(b"".join([*lines[:number], lines[number].replace(b'"answered"', b'"refused"'), *lines[number + 1 :]]))
    done = command(*words)
    assert done.returncode == 1
    assert f"line {number + 1} " in done.stdout.splitlines()[0]
    told = json.loads(command(*words, "--json").stdout)
    assert (told["verdict"], told["findings"][0]["kind"]) == ("altered", "altered")

    segment.write_bytes(b"".join(lines[:-1]))
    assert command(*words).returncode == 2
    segment.write_bytes(good)
    (copy / "checkpoint").write_bytes(older.read_bytes())
    newer = tmp_path / "newer.note"
    newer.write_bytes(kept.read_bytes())
    assert command(*words[:-1], str(newer)).returncode == 2

    assert command("audit", "verify", "--archive", str(tmp_path / "none"), "--public-key", public).returncode == 3
    assert command("audit", "verify", "--archive", str(copy), "--public-key", "x+y+z").returncode == 3


def _copied(source: Path, copy: Path, public: str) -> bool:
    for path in source.iterdir():
        if path.is_file():
            (copy / path.name).write_bytes(path.read_bytes())
    return command("audit", "verify", "--archive", str(copy), "--public-key", public).returncode == 0


def command(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a command that needs no settings, from elsewhere."""
    return subprocess.run([sys.executable, "-m", "gateway", *words], capture_output=True, text=True, timeout=60)


def test_a_proof_holds_without_the_trail(sealed: Stack, tmp_path: Path) -> None:
    """The document and the public key are enough; a changed word is seen."""
    request_id, *_ = called(sealed)
    public = (archive(sealed) / "public.key").read_text().strip()
    proof = tmp_path / "proof.json"
    proof.write_text(sealed.cli("audit", "prove", request_id).stdout)
    words = ("audit", "verify", "--proof", str(proof), "--public-key", public)

    done = command(*words)
    assert done.returncode == 0
    assert [row["stage"] for row in rows(done)] == ["intent", "outcome"]
    good = proof.read_text()
    proof.write_text(good.replace("answered", "refused!"))
    assert command(*words).returncode == 1
    proof.write_text("{")
    assert command(*words).returncode == 1
    assert sealed.cli("audit", "prove", "nobody-asked-this", check=False).returncode == 1


def test_exports_go_on_where_they_were(sealed: Stack, tmp_path: Path) -> None:
    """Every record once over two exports with a cursor, byte for byte; the other formats are readable."""
    called(sealed)
    cursor = tmp_path / "cursor"
    first = sealed.cli("audit", "export", "--cursor", str(cursor)).stdout.splitlines()
    called(sealed)
    second = sealed.cli("audit", "export", "--cursor", str(cursor)).stdout.splitlines()
    both = first + second
    assert second
    assert sealed_lines(sealed, "stage").decode().splitlines()[: len(both)] == both
    told = list(csv.DictReader(io.StringIO(sealed.cli("audit", "export", "--format", "csv").stdout)))
    assert len(told) >= len(both)
    assert {row["stage"] for row in told} >= {"open", "intent", "outcome", "change"}
    for name in ("ocsf", "ecs"):
        assert len(rows(sealed.cli("audit", "export", "--format", name, "--stage", "outcome"))) >= 2
    cursor.write_text("x")
    assert sealed.cli("audit", "export", "--cursor", str(cursor), check=False).returncode == 2


def test_the_report_counts_by_service_and_day(sealed: Stack) -> None:
    """Calls, answered, refused, failed, unknown; what nobody was authenticated for stands under nobody."""
    called(sealed)
    sealed.unset(m1="9812345678", key="gk_live_nonsense")

    def told() -> list[dict[str, Any]]:
        found = rows(sealed.cli("audit", "report", "--json"))
        return found if any(day["service"] is None for day in found) else []

    days = until(told, what="the refusal being sealed")
    crm = next(day for day in days if day["service"] == "crm")
    assert crm["calls"] == crm["answered"] + crm["refused"] + crm["failed"] + crm["unknown"] >= 1
    assert "nobody" in sealed.cli("audit", "report").stdout


def test_a_killed_gateway_leaves_no_call_untold(start: Callable[..., Stack]) -> None:
    """Kill -9 while the vendor is asked: the next gateway says that nobody knows, closes the dead writer, and all verifies."""
    stack = start(audit=SEALING)
    stack.killed_amid_a_call(**{"X-Request-Id": "killed-in-flight"})

    def unknown() -> list[dict[str, Any]]:
        return rows(stack.cli("audit", "unknown", "--json", check=False))

    (found,) = until(unknown, what="the call being listed as unknown")
    assert (found["stage"], found["problem"], found["request_id"]) == ("abort", "unknown_outcome", "killed-in-flight")
    until(lambda: b"recovered" in sealed_lines(stack, found["writer"]), what="the dead writer being closed and sealed")
    assert stack.cli("audit", "verify").returncode == 0
    journals = stack.folder / "state" / "journal" / "test"
    until(lambda: not list(journals.glob(f"{found['writer']}.*")), what="its journal being removed once it is sealed")


def test_a_writer_whose_journal_is_lost_is_closed_by_a_person(start: Callable[..., Stack]) -> None:
    """Nobody may close one that lives; of one that is lost, what was open is unknown, and the trail is whole again."""
    stack = start(audit=SEALING)
    m1, m2 = stack.masked()
    assert stack.unset(m1=m1, m2=m2).status_code == 200
    writer = stack.stream()[-1]["writer"]
    assert stack.cli("audit", "close", writer, "--why", "no", check=False).returncode == 2
    stack.gateway.popen.kill()
    stack.gateway.popen.wait()
    for path in (stack.folder / "state" / "journal" / "test").glob(f"{writer}.*"):
        path.unlink()
    with stack.redis.client() as client:
        client.hset("gw:{test}:open", f"{writer}-7", "1 k.1")
        client.delete("gw:{test}:processes")
    stack.start_gateway()

    done = stack.cli("audit", "close", writer, "--why", "its disk burnt")

    assert "1 calls of it have an unknown outcome" in done.stdout
    last = until(
        lambda: [row for row in stack.whole_stream() if row["writer"] == writer and row["stage"] == "close"], what="close"
    )
    assert last[0]["why"] == "its disk burnt"
    assert last[0]["operator"]
    assert stack.cli("audit", "close", "nobody-1234", "--why", "x", check=False).returncode == 2


def test_numbers_are_found_under_earlier_keys_until_one_is_destroyed(start: Callable[..., Stack]) -> None:
    """A rotated pseudonym key still finds; a destroyed one finds nothing any more, and is shown as such."""
    stack = start(audit=SEALING)
    request_id, m1, _ = called(stack)
    old = stack.config.read_text()
    rotated = old.replace('{ env = "PSEUDONYM_KEY" }', '{ env = "NEW_KEY" }\npseudonym_key_id = "k2"')
    both = rotated.replace(
        'pseudonym_key_id = "k2"', 'pseudonym_key_id = "k2"\npseudonym_keys = { k1 = { env = "PSEUDONYM_KEY" } }'
    )
    stack._environ["NEW_KEY"] = "another-pseudonym-key-0123456789abcdef"
    stack.gateway.stop()
    stack.config.write_text(both)
    stack.start_gateway()
    again = str(stack.unset(m1=m1).json()["request_id"])
    until(lambda: again.encode() in sealed_lines(stack, again), what="the second call being sealed")

    def ids(*words: str) -> set[str]:
        return {row["request_id"] for row in rows(stack.cli("audit", "search", "--number", m1, "--json", *words, check=False))}

    assert ids("--service", "crm") == {request_id, again}
    keys = {row["key"]: row["state"] for row in rows(stack.cli("audit", "pseudonym-keys", "--json"))}
    assert keys == {"k2": "current", "k1": "kept"}
    stack.config.write_text(rotated)
    assert ids("--service", "crm") == {again}
    keys = {row["key"]: row["state"] for row in rows(stack.cli("audit", "pseudonym-keys", "--json"))}
    assert keys == {"k2": "current", "k1": "destroyed"}


def test_the_signing_key_is_shown_once_and_never_overwritten(tmp_path: Path) -> None:
    """The public one is printed, the file is the owner's alone."""
    done = command("audit", "signing-key", str(tmp_path / "key"), "--name", "acme")
    assert done.stdout.startswith("acme+")
    assert "PRIVATE" not in done.stdout + done.stderr
    assert (tmp_path / "key").read_text().startswith("PRIVATE+KEY+acme+")
    assert (tmp_path / "key").stat().st_mode & 0o077 == 0
    assert command("audit", "signing-key", str(tmp_path / "key")).returncode == 2
    assert command("audit", "signing-key", str(tmp_path / "other"), "--name", "a b").returncode == 2


def test_the_sealer_is_apart_where_it_is_asked_to_be(start: Callable[..., Stack]) -> None:
    """`serve` seals nothing then; the command does, with a key of its own, says so in the log, and outlives Redis and a kill."""
    stack = start(audit='sealing = "apart"\nsigning_key = { file = "SIGNING" }'.replace("SIGNING", "/nonexistent"), log="")
    key = stack.folder / "signing"
    public = command("audit", "signing-key", str(key)).stdout.strip()
    stack.config.write_text(stack.config.read_text().replace("/nonexistent", str(key)))
    m1, m2 = stack.masked()
    stack.unset(m1=m1, m2=m2)
    assert not archive(stack).exists()
    words = [sys.executable, "-m", "gateway", "audit", "seal", "--config", str(stack.config)]
    sealer = Process(stack.folder, "sealer", words, stack._environ)
    until(lambda: "trail.sealed" in sealer.output(), what="the first seal")
    sealer.popen.kill()
    sealer.popen.wait()
    stack.unset(m1=m1)
    sealer = Process(stack.folder, "sealer2", words, stack._environ)
    until(lambda: "trail.sealed" in sealer.output(), seconds=30, what="a seal after the kill, when the lease is over")
    stack.redis.kill()
    until(lambda: "trail.not_sealed" in sealer.output(), what="the outage being told")
    stack.redis.start()
    size = sealed_lines(stack, "stage").count(b"\n")
    until(lambda: stack.unset(m1=m1).status_code != 503, what="the gateway being back")
    until(lambda: sealed_lines(stack, "stage").count(b"\n") > size, what="seals after the outage")
    assert sealer.stop() == 0
    done = command("audit", "verify", "--archive", str(archive(stack)), "--public-key", public)
    assert done.returncode == 0, done.stdout


def test_a_process_tells_of_itself(start: Callable[..., Stack], tmp_path: Path) -> None:
    """It opens with version and settings, tells of a changed credential and of Redis, and closes; other settings, other digest."""
    path = tmp_path / "ssid"
    path.write_text("first-value")
    stack = start(credential=f'ssid = {{ file = "{path}" }}')
    path.write_text("second-value")
    until(lambda: any(record.get("change") == "credential.loaded" for record in stack.whole_stream()), what="the change")
    stack.redis.kill()
    stack.unset(m1="9812345678")
    stack.redis.start()
    until(lambda: any(record["stage"] == "recovered" for record in stack.whole_stream()), what="the end of the outage")
    stack.gateway.stop()
    stack.config.write_text(stack.config.read_text().replace("read_timeout_ms = 1500", "read_timeout_ms = 1400"))
    stack.start_gateway()

    told = [record for record in stack.whole_stream() if record["stage"] not in ("intent", "outcome", "refusal", "abort")]
    assert [record["stage"] for record in told] == ["open", "change", "degraded", "recovered", "close", "open"]
    first, changed, *_, second = told
    assert (changed["slot"], changed["credential"]) == ("primary", changed["credential"])
    assert "value" not in json.dumps(told)
    assert first["version"] == second["version"]
    assert first["config"] != second["config"]


def test_a_store_that_is_not_there_stops_no_seal(start: Callable[..., Stack]) -> None:
    """It is told once in the log; a bad address is a fault in one line."""
    stack = start(audit='sealing = "apart"\ncopy_url = "s3://trail/a"\ncopy_endpoint = "http://127.0.0.1:1"')
    keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "hidden-store-key", "AWS_REGION": "here"}

    done = stack.cli("audit", "seal", "--once", environ=keys)

    assert done.stdout.count("trail.sealed") == 1
    assert done.stdout.count("trail.not_copied") == 1
    assert "hidden-store-key" not in done.stdout + done.stderr
    assert stack.cli("audit", "verify").returncode == 0
    stack.config.write_text(stack.config.read_text().replace("s3://trail/a", "ftp://trail"))
    bad = stack.cli("audit", "seal", "--once", environ=keys, check=False)
    assert (bad.returncode, bad.stderr.count("\n")) == (2, 1)
    assert "audit.copy_url" in bad.stderr
