"""Secrets from where the settings point: every source, every fault, and two files that belong together."""

from __future__ import annotations

import itertools
import os
import threading
import time
from pathlib import Path

import pytest

from gateway.config import Credential, SecretReference
from gateway.model import Secret
from gateway.vault import SecretUnreadable, Vault, open_to_others, read_secret

KEY = Secret("k" * 32)


def file(path: Path) -> SecretReference:
    return SecretReference("file", (str(path),))


@pytest.mark.parametrize("content", ["s3cret", "s3cret\n", "s3cret\r\n", "s3cret\n\n\n"])
def test_line_ends_are_not_part_of_a_secret(tmp_path: Path, content: str) -> None:
    """Editors and mounts add them; a file, a variable and a command are read alike."""
    path = tmp_path / "secret"
    path.write_bytes(content.encode())

    assert read_secret(file(path), {}).reveal() == "s3cret"
    assert read_secret(SecretReference("env", ("S",)), {"S": content}).reveal() == "s3cret"
    assert read_secret(SecretReference("command", ("cat", str(path))), {}).reveal() == "s3cret"


def test_what_is_no_secret_is_told_without_it(tmp_path: Path) -> None:
    """Empty, of several lines, not text, not there, not runnable, failing, hanging: one sentence with the place."""
    cases: list[tuple[SecretReference, str]] = [(SecretReference("env", ("NOT_SET",)), "environment variable NOT_SET is empty")]
    for name, content, told in (
        ("empty", b"\n", "is empty"),
        ("two", b"abc-one\nabc-two", "more than one line"),
        ("bytes", b"\xff\xfe", "not UTF-8"),
    ):
        (tmp_path / name).write_bytes(content)
        cases.append((file(tmp_path / name), told))
    cases.append((file(tmp_path / "gone"), "No such file"))
    cases.append((SecretReference("command", ("/nonexistent",)), "cannot be run"))
    cases.append((SecretReference("command", ("sh", "-c", "echo abc-one; exit 3")), "ended with status 3"))
    cases.append((SecretReference("command", ("printf", "abc-\\377")), "not UTF-8"))
    for reference, told in cases:
        with pytest.raises(SecretUnreadable, match=told) as caught:
            read_secret(reference, {})
        assert "abc-" not in str(caught.value)


def test_a_command_that_hangs_is_ended() -> None:
    """Within its time-out, and named."""
    began = time.monotonic()
    with pytest.raises(SecretUnreadable, match="command sleep did not finish in 1 s"):
        read_secret(SecretReference("command", ("sleep", "60")), {}, command_seconds=1)

    assert time.monotonic() - began < 30


def test_open_files_are_noticed(tmp_path: Path) -> None:
    """Readable by everybody, or writable by others than the owner."""
    path = tmp_path / "secret"
    path.write_text("x")
    found = {mode: (path.chmod(mode), open_to_others(str(path)))[1] for mode in (0o400, 0o600, 0o640, 0o644, 0o620, 0o602)}

    assert found == {0o400: False, 0o600: False, 0o640: False, 0o644: True, 0o620: True, 0o602: True}


def test_a_pair_is_read_whole(tmp_path: Path) -> None:
    """While a link is exchanged for one new version after another, no id is taken with the token of another version."""
    versions = [tmp_path / f"v{number}" for number in range(400)]
    for number, folder in enumerate(versions):
        folder.mkdir()
        (folder / "user").write_text(f"user-{number}")
        (folder / "token").write_text(f"token-{number}")
    link = tmp_path / "now"
    link.symlink_to(versions[0])
    credential = Credential(user_id=file(link / "user"), token=file(link / "token"))
    vault = Vault({"primary": credential}, {}, KEY, 60, lambda *_: None)

    seen = set()

    def swap() -> None:
        for folder in itertools.islice(itertools.cycle(versions), 100 * len(versions)):
            if len(seen) > 2:
                break
            fresh = tmp_path / "fresh"
            fresh.symlink_to(folder)
            os.replace(fresh, link)

    swapper = threading.Thread(target=swap)
    swapper.start()
    while swapper.is_alive():
        vault._read("primary")
        loaded = vault.loaded["primary"]
        assert loaded.user_id is not None
        assert loaded.token is not None
        seen.add((loaded.user_id.reveal().partition("-")[2], loaded.token.reveal().partition("-")[2]))
    swapper.join()

    assert len(seen) > 2
    assert [pair for pair in seen if pair[0] != pair[1]] == []


def test_one_value_has_one_name_everywhere(tmp_path: Path) -> None:
    """The version tells replicas apart by nothing, values by their key, and nothing of the value."""
    environ = {"S": "vendor-session-1234567890"}
    credential = Credential(ssid=SecretReference("env", ("S",)))

    def version(key: Secret, values: dict[str, str]) -> str:
        return Vault({"primary": credential}, values, key, 60, lambda *_: None).loaded["primary"].version

    assert version(KEY, environ) == version(KEY, dict(environ))
    assert version(KEY, environ) != version(Secret("l" * 32), environ)
    assert version(KEY, environ) != version(KEY, {"S": "vendor-session-1234567891"})
    assert version(KEY, environ) not in environ["S"].encode().hex()
