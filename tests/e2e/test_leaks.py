"""`gateway leak-check` finds nothing, and would find something; secrets do not print; few places reveal one."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.leak_check import forms, scan
from gateway.trail.note import Signer
from tests.running import VENDOR_SSID


def leak_check(folder: Path, **environ: str) -> tuple[int, list[dict]]:
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "leak-check", "--json"],
        capture_output=True, text=True, timeout=280, env={**os.environ, "TMPDIR": str(folder), **environ},
    )  # fmt: skip
    assert done.stderr == ""
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.timeout(300)
def test_nothing_leaks(tmp_path: Path) -> None:
    """Over every path and every sink; each sink that must have something in it was really read."""
    status, rows = leak_check(tmp_path)

    assert [row for row in rows if row["found"]] == []
    assert status == 0
    sizes = {row["sink"]: row["bytes"] for row in rows}
    assert len(sizes) > 20
    for sink in ("gateway's log", "Redis, as it reads", "Redis, on disk", "journal on disk", "answers to callers", "what the vendor got", "GET /metrics",
                 "gateway audit search --json", "gateway keys list", "gateway check"):  # fmt: skip
        assert sizes[sink] > 100, sink
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timeout(300)
def test_a_leak_is_found(tmp_path: Path) -> None:
    """A gateway that is broken so that it tells a number, as it is or encoded, is caught: status 1, sink and form named."""
    (tmp_path / "sitecustomize.py").write_text(
        """
import base64, sys
from gateway import numbers
from gateway.telemetry import LogObserver
last = [""]
of = numbers.Pseudonyms.of
def leaking(self, e164):
    last[0] = e164
    return of(self, e164)
def recorded(self, record):
    self._logger.info("x", told=last[0])
    sys.stderr.write(base64.b64encode(b"=" + last[0].encode()).decode())
numbers.Pseudonyms.of = leaking
LogObserver.recorded = recorded
"""
    )
    folder = tmp_path / "t"
    folder.mkdir()

    status, rows = leak_check(folder, PYTHONPATH=os.pathsep.join((str(tmp_path), str(Path.cwd()))))

    assert status == 1
    found = {row["sink"]: row["found"] for row in rows}
    assert any(told.endswith(" (text)") for told in found["gateway's log"])
    assert any("(base64" in told for told in found["gateway's standard error"])


def test_forms_find_what_they_look_for() -> None:
    """A hidden secret is found in each form, at each alignment; a number also with separators."""
    for prefix in (b"", b"x", b"xy", b"xyz"):
        hidden = base64.b64encode(prefix + VENDOR_SSID.encode() + b"tail")
        assert any(found.form.startswith("base64") for found in scan({"s": hidden}, {"n": VENDOR_SSID})), prefix
    assert {found.form for found in scan({"s": b"+91 98123-45678"}, {"n": "9812345678"})} == {"spaced"}
    assert scan({"s": b"98123x45678"}, {"n": "9812345678"}) == []
    assert len(forms("a+b/c=d?e")) == 13
    with pytest.raises(ValueError, match="a secret of 7 characters is found by chance: plant one of 8 or more"):
        forms("a+b/c=d")


def test_a_signing_key_is_looked_for_whole() -> None:
    """Also one whose base64 is full of the plus sign that parts a key's fields."""
    signer = Signer("leak-check", b"\xef\xbe" + 10 * b"\xfb\xef\xbe")

    assert signer.encoded == "Ae++" + 40 * "+"
    assert signer.text().endswith(f"+{signer.encoded}")
    assert Signer.parse(signer.text()) == signer


def test_secrets_do_not_print() -> None:
    """repr, str, formats, JSON, pickle and a traceback with locals show nothing."""
    program = f"""
import json, pickle, sys, traceback
from gateway.model import Secret, UpstreamRequest, VendorCredential
secret = Secret({VENDOR_SSID!r})
print(secret, repr(secret), f"{{secret}}", "%s" % secret, [secret], {{"a": secret}}, UpstreamRequest({VENDOR_SSID.encode()!r}, ({VENDOR_SSID!r},)), VendorCredential("primary", "v", secret, forms=({VENDOR_SSID!r},)))
for act in (lambda: json.dumps(secret), lambda: pickle.dumps(secret), lambda: hash(secret)):
    try: act(); sys.exit(3)
    except TypeError: pass
try: raise ValueError(secret)
except ValueError: traceback.print_exception(*sys.exc_info())
import msgspec
try: print(msgspec.json.encode(secret))
except TypeError: pass
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ, timeout=60)

    assert done.returncode == 0, done.stderr
    assert VENDOR_SSID not in done.stdout + done.stderr.replace(program, "")


def test_only_the_exchange_reveals() -> None:
    """`reveal()` is called where a credential is exchanged, a key is used or somebody is connected to, and nowhere else."""
    calls = {
        path.relative_to("gateway").as_posix(): path.read_text().count(".reveal()")
        for path in Path("gateway").rglob("*.py")
        if ".reveal()" in path.read_text()
    }

    assert calls == {
        "app.py": 1,
        "check.py": 1,
        "cli/seal.py": 1,
        "console/provider.py": 2,
        "credentials.py": 4,
        "ledger/connect.py": 1,
        "numbers.py": 1,
        "stores.py": 1,
        "vault.py": 2,
    }
