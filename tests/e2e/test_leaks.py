"""Sentinel secrets and numbers are planted, every path is driven, and every sink is searched in every form."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from tests.e2e.wire import Wire, post
from tests.running import PSEUDONYM_KEY, VENDOR_SSID, Stack, until

ALIEN = "a11en-vend0r-sess10n-7f7f"


def forms(secret: str) -> dict[str, bytes]:
    """Return a secret as text, base64 at each alignment, hex, percent-encoded and in UTF-16."""
    raw = secret.encode()
    aligned = {
        f"base64+{shift}": base64.b64encode(b"\0" * shift + raw)[(0, 2, 3)[shift] + (1 if shift else 0) : -4]
        for shift in range(3)
    }
    return {
        "text": raw, "reversed": raw[::-1], "hex": raw.hex().encode(), "HEX": raw.hex().upper().encode(),
        "percent": "".join(f"%{byte:02X}" for byte in raw).encode(), "quoted": quote(secret, safe="").encode(),
        "utf-16": secret.encode("utf-16-le"), **aligned,
    }  # fmt: skip


def test_forms_find_what_they_look_for() -> None:
    """The search itself works: a hidden secret is found in each form, at each alignment."""
    for prefix in (b"", b"x", b"xy", b"xyz"):
        hidden = base64.b64encode(prefix + VENDOR_SSID.encode() + b"tail")
        assert any(form in hidden for name, form in forms(VENDOR_SSID).items() if name.startswith("base64")), prefix


def test_no_secret_and_no_number_leaves(start: Callable[..., Stack]) -> None:
    """Over every path, errors included: logs, stream, Redis' keys, files, answers, commands' output."""
    stack = start(quotas='[quotas.number]\nrate = "1/h"\nburst = 40')
    m1, m2 = "9812345678", "9887654321"
    numbers = [m1, m2, f"91{m1}", f"+91{m2}"]
    mask = stack.set_masking(m1, m2)
    expired = stack.issue("late", "--expires", "0s")
    answers: list[bytes] = []

    def call(body: object, **more: object) -> None:
        answers.append(stack.unset(body, **more).content)  # type: ignore[arg-type]

    good = {"m1": m1, "m2": m2, "expiry_duration": 60}
    call(good)
    call({"ssid": stack.key, **good}, key=None)
    call({"userId": stack.key_id, "token": stack.key_secret, "mask": int(mask)}, key=None)
    call(good, headers={"X-Request-Id": f"call-{m1}"})
    call(good, headers={"X-Request-Id": stack.key})
    call(good, headers={"X-API-Key": expired[0]})
    call(good, key=expired[0])
    call({"ssid": ALIEN, **good}, key=None)
    call({"userId": m1, "token": ALIEN, **good}, key=None)
    call({**good, m1: m2})
    call({"m1": m1, "m2": f"+91{m1}"})
    call({"m1": m1, "m2": m2 + "x"})
    call({"m1": m1, "expiry_duration": m2 + "abc"})
    call({"m1": m1, "expiry_time": m2 + m1})
    call(f'{{"m1": {m1}, "m2": +91{m2}}}'.encode())
    call(f'{{"m1": "{m1}", "m1": "{m2}"}}'.encode())
    call(f'{{"{m1}{m1}{m1}{m1}{m1}": 1'.encode())
    for switch in (
        "html_502",
        "empty",
        "truncated",
        "cut",
        "reset",
        "close",
        "redirect",
        "echo",
        "code_text",
        "stall_before",
        "huge",
    ):
        stack.fault(answer=switch, times=1)
        call(good)
    for code in (1000, 1014, 1039, 1504, 1999):
        stack.fault(force_code=code, times=1)
        call(good)
    for _ in range(40):
        call({"mask": mask})
    for raw in (
        b"POST /api/v2/Masking/unset?ssid=%s HTTP/1.1\r\nHost: g\r\n\r\n" % stack.key.encode(),
        post(json.dumps({"ssid": stack.key, **good}).encode(), "Content-Length: x", length=False),
        f"GET /{m1}/{stack.key} HTTP/1.1\r\nHost: {m2}\r\n\r\n".encode(),
        post(b"{", f"Authorization: Basic {base64.b64encode(stack.key.encode()).decode()}"),
    ):
        with Wire(stack.host, stack.port) as wire:
            wire.send(raw)
            answer = wire.answer()
            answers.append(answer.body + repr(answer.headers).encode() if answer else b"")
    # Redis stops in the middle: what is journalled is a sink too.
    stack.redis.kill()
    call(good)
    call({"m1": m1}, key=None)
    journal = stack.folder / "state" / "journal"
    until(lambda: any(path.stat().st_size for path in journal.glob("*.jsonl")), what="the journal being written")
    journalled = {path.name: path.read_bytes() for path in journal.glob("*.jsonl")}
    stack.redis.start()
    until(lambda: stack.http.get(stack.url + "/readyz").status_code == 200, what="redis being back")
    commands = [
        stack.cli(*words, check=False)
        for words in (
            ("keys", "list"),
            ("keys", "list", "--json"),
            ("audit", "tail", "-n", "500"),
            ("audit", "search", "--json"),
            ("audit", "search", "--number", m1),
            ("check",),
            ("keys", "revoke", "nobody"),
        )
    ]
    stack.sandbox.stop()
    call({"m2": m2})
    stack.gateway.stop()

    with stack.redis.client() as client:
        dump = {f"redis key {key!r}": key + (client.dump(key) or b"") for key in client.scan_iter()}
        stream = json.dumps(
            [{k.decode(): v.decode() for k, v in fields.items()} for _, fields in client.xrange("gw:{test}:audit")]
        )
    sinks = {
        "stdout": stack.gateway.out.read_bytes(), "stderr": stack.gateway.err.read_bytes(), "stream": stream.encode(),
        **dump, **{f"journal {name}": content for name, content in journalled.items()},
        **{f"command {number}": (done.stdout + done.stderr).encode() for number, done in enumerate(commands)},
        **{f"file {path.name}": path.read_bytes() for path in stack.redis.folder.rglob("*.aof")},
    }  # fmt: skip
    secrets = {"vendor": VENDOR_SSID, "key": stack.key, "key secret": stack.key_secret, "expired": expired[2], "alien": ALIEN,
               "pseudonym key": PSEUDONYM_KEY, "command line": expired[0]}  # fmt: skip
    found = [
        (sink, name, form)
        for sink, content in sinks.items()
        for name, secret in {**secrets, **{f"number {n}": n for n in numbers}, "mask": mask}.items()
        for form, needle in forms(secret).items()
        if needle in content
    ]
    # A caller may be shown its own number and key, never the vendor's credential.
    found += [
        ("answer", name, form)
        for name in ("vendor", "pseudonym key")
        for form, needle in forms(secrets[name]).items()
        for content in answers
        if needle in content
    ]

    assert len(sinks["stdout"].splitlines()) > 60
    assert journalled
    assert found == []


def test_secrets_do_not_print() -> None:
    """repr, str, formats, JSON, pickle and a traceback with locals show nothing."""
    program = f"""
import json, pickle, sys, traceback
from gateway.model import Secret, UpstreamRequest
secret = Secret({VENDOR_SSID!r})
print(secret, repr(secret), f"{{secret}}", "%s" % secret, [secret], {{"a": secret}}, UpstreamRequest({VENDOR_SSID.encode()!r}, "v", ({VENDOR_SSID!r},)))
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
    """`reveal()` is called where a credential is exchanged, a key is used or a connection is opened, and nowhere else."""
    calls = {
        path.relative_to("gateway").as_posix(): path.read_text().count(".reveal()")
        for path in Path("gateway").rglob("*.py")
        if ".reveal()" in path.read_text()
    }

    assert calls == {"app.py": 1, "check.py": 1, "credentials.py": 4, "ledger/connect.py": 1, "numbers.py": 1, "vault.py": 2}
