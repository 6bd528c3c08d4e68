"""`gateway leak-check`: secrets and numbers are planted, every path is driven, and every sink is searched for them.

Nothing of the operator's is used: a gateway, a sandbox and an embedded server of the check's own, in a folder that is
removed. What is found in a sink it has no business in is printed with its form, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import re
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final
from urllib.parse import quote, urlsplit

import httpx
import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from http_message_signatures import HTTPMessageSigner, algorithms

from gateway import embedded
from gateway.config import Redis
from gateway.ledger.connect import connect
from gateway.model import UNSET_PATH
from gateway.processes import Child, ProcessError, command
from gateway.sandbox.faults import ANSWERS
from gateway.trail.export import FORMATS
from gateway.trail.note import Signer
from gateway.trail.table import leak_table, show

_SET_PATH: Final = "/api/v2/Masking/set"
_ISSUER: Final = "https://issuer.leak-check.example"
_CODES: Final = (1000, 1009, 1014, 1039, 1504, 1999)
_SHORTEST: Final = 8
_SLOW_ANSWERS: Final = frozenset(("stalled", "one_byte"))
_CONFIG: Final = """\
[server]
port = {port}
ops_port = {ops_port}
state_dir = {state}
header_timeout_ms = 1000
body_timeout_ms = 1000
lame_duck_seconds = 0
[redis]
url = "{redis}"
[accounts.main]
brand = "{brand}"
[accounts.main.primary]
ssid = {{ file = {ssid} }}
[accounts.main.secondary]
user_id = {{ env = "LEAK_CHECK_USER" }}
token = {{ command = [{python}, "-c", "import os; print(os.environ['LEAK_CHECK_TOKEN'])"] }}
[upstream]
read_timeout_ms = 500
total_timeout_ms = 1000
rejections_to_switch = 2
probe_seconds = 1
[issuers.here]
issuer = "{issuer}"
audience = "leak-check"
jwks_file = {jwks}
[workloads.pods]
issuer = "here"
subject = "system:serviceaccount:leak:check"
[policies.caller]
rate = "100000/s"
burst = 100000
[policies.number]
rate = "1/h"
burst = 120
[policies.account]
rate = "100000/s"
burst = 100000
[audit]
pseudonym_key = {{ env = "LEAK_CHECK_PSEUDONYM_KEY" }}
sealing = "serve"
signing_key = {{ file = {signing} }}
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something secret where it must not be."""

    sink: str
    planted: str
    form: str
    """How it was written there: text, base64, and so on."""


@dataclass(slots=True)
class Planted:
    """What no sink may hold, by name."""

    vendor: dict[str, str] = field(default_factory=dict)
    """Ours and the vendor's: for nobody but the vendor."""
    callers: dict[str, str] = field(default_factory=dict)
    """The callers' own: in no log, not at the vendor; a caller may be shown its own."""
    numbers: dict[str, str] = field(default_factory=dict)
    """In no log; the vendor gets them."""


def forms(secret: str) -> dict[str, bytes]:
    """Return a secret as text, reversed, in both hexes, percent-encoded, in UTF-16 and base64 at each alignment.

    Raises: ValueError for one so short that it would be found where nobody wrote it.
    """
    if len(secret) < _SHORTEST:
        raise ValueError(f"a secret of {len(secret)} characters is found by chance: plant one of {_SHORTEST} or more")
    raw = secret.encode()
    found = {
        "text": raw,
        "reversed": raw[::-1],
        "hex": raw.hex().encode(),
        "HEX": raw.hex().upper().encode(),
        "percent": "".join(f"%{byte:02X}" for byte in raw).encode(),
        "quoted": quote(secret, safe="").encode(),
        "utf-16": secret.encode("utf-16-le"),
    }
    for shift in range(3):
        # Without the letters that depend on what stands before and after it.
        inner = base64.b64encode(b"\0" * shift + raw)[(0, 2, 3)[shift] + (1 if shift else 0) : -4]
        found[f"base64+{shift}"] = inner
        found[f"base64url+{shift}"] = inner.translate(bytes.maketrans(b"+/", b"-_"))
    return found


def scan(sinks: Mapping[str, bytes], planted: Mapping[str, str]) -> list[Finding]:
    """Return everything planted that stands in a sink, in any form; numbers also with separators between digits."""
    found = [
        Finding(sink, name, form)
        for name, secret in planted.items()
        for form, needle in forms(secret).items()
        for sink, content in sinks.items()
        if needle in content
    ]
    for name, secret in planted.items():
        if secret.isdigit():  # In no form above, but easily read.
            spaced = re.compile("[ ().-]?".join(secret).encode())
            found += [Finding(sink, name, "spaced") for sink, content in sinks.items() if spaced.search(content)]
    return found


def run(arguments: argparse.Namespace) -> int:
    """Plant, drive, search, print; 0 when nothing was found, 1 when something was or the check could not be made."""
    began = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="gw-leak-") as folder, ExitStack() as stack:
            check = _Check(Path(folder), stack)
            check.drive()
            sinks = check.sinks()
            findings = check.search(sinks)
    except ProcessError as error:
        print(f"gateway: {error}", file=sys.stderr)
        return 1
    rows = [
        {"sink": name, "bytes": len(content), "found": sorted({f"{f.planted} ({f.form})" for f in findings if f.sink == name})}
        for name, content in sinks.items()
    ]
    if arguments.json:
        for row in rows:
            print(json.dumps(row))
    else:
        show(leak_table(rows))
        print(f"{check.planted_count()} secrets and numbers, {check.calls} requests, {len(sinks)} sinks", end="")
        print(f", {time.monotonic() - began:.0f} s: {len(findings) or 'no'} leaks")
    return 1 if findings else 0


class _Check:
    """One run: the processes, what was planted in them, and what came out."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self.calls = 0
        self._answers: list[bytes] = []
        self._outputs: dict[str, bytes] = {}
        self._journals = self._vendor_got = b""
        mark = secrets.token_hex(4)
        # Distinct beginnings, so that no one of them is found in another.
        self._ssid, self._user, self._token = f"ven-ssid-{mark}-Aq7", f"ven-user-{mark}-Bq7", f"ven-token-{mark}-Cq7"
        self._alien, self._pseudonym_key = f"ali-cred-{mark}-Dq7", secrets.token_hex(32)
        self._m1, self._m2 = f"98{secrets.randbelow(10**8):08d}", f"97{secrets.randbelow(10**8):08d}"
        self._sealing_key = Signer.generate("leak-check")
        self._planted = Planted(
            vendor={
                "vendor ssid": self._ssid,
                "vendor token": self._token,
                "pseudonym key": self._pseudonym_key,
                "signing key": self._sealing_key.encoded,
            },
            callers={"alien credential": self._alien},
            numbers={"m1": self._m1, "m2": self._m2},
        )
        self._start()

    def planted_count(self) -> int:
        """Return how many things were planted."""
        return len(self._planted.vendor) + len(self._planted.callers) + len(self._planted.numbers)

    def _start(self) -> None:
        self._store = embedded.start(self._folder / "store")
        self._stack.callback(self._close_store)
        environ = {"SANDBOX_SSID": self._ssid}
        words = ["sandbox", "--port", "0", "--user-id", self._user, "--token", self._token]
        self._sandbox = Child(self._stack, "sandbox", self._folder, words, environ)
        self._brand = self._sandbox.wait_for_address()
        self._workload_key = ec.generate_private_key(ec.SECP256R1())
        published = json.loads(jwt.get_algorithm_by_name("ES256").to_jwk(self._workload_key.public_key()))
        (self._folder / "jwks.json").write_text(json.dumps({"keys": [published | {"kid": "k"}]}))
        (self._folder / "ssid").write_text(self._ssid + "\n")
        (self._folder / "signing").write_text(self._sealing_key.text())
        self._config = self._folder / "gateway.toml"
        port, ops_port = _free_ports(2)
        self._ops = f"http://127.0.0.1:{ops_port}"
        self._config.write_text(
            _CONFIG.format(
                port=port,
                ops_port=ops_port,
                state=json.dumps(str(self._folder / "state")),
                redis=self._store.url,
                brand=self._brand,
                ssid=json.dumps(str(self._folder / "ssid")),
                signing=json.dumps(str(self._folder / "signing")),
                python=json.dumps(sys.executable),
                issuer=_ISSUER,
                jwks=json.dumps(str(self._folder / "jwks.json")),
            )
        )
        self._environ = {
            "LEAK_CHECK_USER": self._user,
            "LEAK_CHECK_TOKEN": self._token,
            "LEAK_CHECK_PSEUDONYM_KEY": self._pseudonym_key,
            "GATEWAY_CONFIG": str(self._config),
        }
        self._gateway = Child(self._stack, "gateway", self._folder, ["serve"], self._environ)
        self._url = self._gateway.wait_for_address()
        self._http = self._stack.enter_context(httpx.Client(timeout=20, trust_env=False))

    def _close_store(self) -> None:
        self._store.close()  # Not the one it was when the stack was made: it is stopped and started on the way.

    def drive(self) -> None:
        """Send everything that may be sent, rightly and wrongly, and let everything fail that can."""
        self._issue()
        self._ways_to_call()
        self._wrong_calls()
        self._vendor_faults()
        self._broken_http()
        self._commands()
        self._without_redis()
        self._vendor_got = self._http.get(f"{self._brand}/_sandbox/calls").content
        self._sandbox.stop()
        self._call(self._good)
        self._gateway.stop()

    def _issue(self) -> None:
        self._key, self._key_id, self._key_secret = self._issued("leak")
        self._expired, _, expired_secret = self._issued("late", "--expires", "0s")
        bound, _, bound_secret = self._issued("bound", "--network", "192.0.2.0/24")
        revoked, revoked_id, revoked_secret = self._issued("gone")
        self._command("keys", "revoke", revoked_id)
        self._refused = (self._expired, bound, revoked)
        self._planted.callers |= {
            "key": self._key, "key secret": self._key_secret, "expired key": expired_secret, "bound key": bound_secret,
            "revoked key": revoked_secret,
        }  # fmt: skip
        now = int(time.time())
        claims = {"iss": _ISSUER, "aud": "leak-check", "sub": "system:serviceaccount:leak:check", "iat": now, "exp": now + 600}
        self._jwt = jwt.encode(claims, self._workload_key, "ES256", headers={"kid": "k"})
        self._old_jwt = jwt.encode({**claims, "exp": now - 600}, self._workload_key, "ES256", headers={"kid": "k"})
        self._planted.callers |= {
            f"{name} token": made.split(".")[2] for name, made in (("good", self._jwt), ("old", self._old_jwt))
        }
        self._signer = ed25519.Ed25519PrivateKey.generate()
        pem = self._folder / "signer.pem"
        pem.write_bytes(self._signer.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        made = self._command("keys", "issue", "signing", "--public-key", str(pem), "--json", keep=False)
        self._signer_id = json.loads(made)["id"]
        mask = self._http.post(self._brand + _SET_PATH, json={"ssid": self._ssid, "m1": self._m1, "m2": self._m2}).json()["mask"]
        self._mask = str(mask)
        self._planted.numbers["mask"] = self._mask
        self._good = {"m1": self._m1, "m2": self._m2, "expiry_duration": 60}

    def _issued(self, service: str, *words: str) -> tuple[str, str, str]:
        # Shown once, to the operator who asked: the one output that may hold it.
        made = json.loads(self._command("keys", "issue", service, "--json", *words, keep=False))
        return made["key"], made["id"], made["secret"]

    def _ways_to_call(self) -> None:
        good = self._good
        self._call(good)
        self._call({"ssid": self._key, **good}, None)
        self._call({"userId": self._key_id, "token": self._key_secret, "mask": int(self._mask), "expiry_duration": 5}, None)
        self._call(good, None, {"X-API-Key": self._key})
        self._call(good, self._jwt)
        body = json.dumps(good).encode()
        for content in (body, body, body + b" "):
            self._call(content, None, self._signature(body, "leak-check-nonce"))
        self._call(good, headers={"Accept": "application/problem+json", "traceparent": f"00-{'a' * 32}-{'b' * 16}-01"})

    def _wrong_calls(self) -> None:
        m1, m2, good = self._m1, self._m2, self._good
        for key in (*self._refused, self._old_jwt, self._jwt[:-3], self._key[:-1], self._alien, f"{self._key} {self._key}"):
            self._call(good, key)
        for header in ("X-Request-Id", "X-Gateway-Account", "traceparent", "X-Forwarded-For"):
            for value in (self._key, f"call-{m1}"):
                self._call(good, headers={header: value})
        self._call(good, headers={"X-API-Key": self._expired})
        for body in (
            {"ssid": self._alien, **good}, {"userId": m1, "token": self._alien, **good}, {**good, m1: m2}, {**good, self._key: 1},
            {"m1": m1, "m2": f"+91{m1}"}, {"m1": m1, "m2": m2 + "x"}, {"m1": m1, "expiry_duration": m2 + "abc"},
            {"m1": m1, "expiry_time": m2 + m1}, {"m1": [m1]}, {"m1": {"m1": m1}},
        ):  # fmt: skip
            self._call(body, None if "ssid" in body or "userId" in body else self._key)
        for raw in (
            f'{{"m1": {m1}, "m2": +91{m2}}}',
            f'{{"m1": "{m1}", "m1": "{m2}"}}',
            f'{{"{m1 * 5}": 1',
            f'["{m1}"]',
            m1 * 4000,
        ):
            self._call(raw.encode())

    def _vendor_faults(self) -> None:
        for answer in ANSWERS.keys() - _SLOW_ANSWERS:
            self._switch("faults", {"answer": answer, "times": 1})
            self._call(self._good)
        for code in _CODES:
            self._switch("faults", {"force_code": code, "times": 1})
            self._call(self._good)
        for ended in (self._ssid, self._user):  # One rejected, then both, then both good again.
            self._switch("sessions", {"credential": ended, "ended_with": 1014})
            for _ in range(4):
                self._call(self._good)
        for ended in (self._ssid, self._user):
            self._switch("sessions", {"credential": ended, "ended_with": None})
        self._wait_until_ready()
        for _ in range(121):
            self._call({"mask": self._mask, "expiry_duration": 5})

    def _broken_http(self) -> None:
        key, m1 = self._key, self._m1
        basic = base64.b64encode(key.encode()).decode()
        body = json.dumps({"ssid": key, **self._good})
        head = f"POST {UNSET_PATH} HTTP/1.1\r\nHost: g\r\n"
        for raw in (
            f"POST {UNSET_PATH}?ssid={key} HTTP/1.1\r\nHost: g\r\n\r\n",
            f"{head}Content-Length: x\r\n\r\n{body}",
            f"{head}Content-Length: \r\n\r\n{body}",
            f"{head}Content-Length: 900\r\n\r\n{body}",
            f"GET /{m1}/{key} HTTP/1.1\r\nHost: {m1}\r\n\r\n",
            f"{key} {m1} HTTP/9.9\r\n\r\n",
            f"{head}Authorization: Basic {basic}\r\nContent-Length: 1\r\n\r\n{{",
            f"{head}X-{key}: {m1}\r\nContent-Length: 2\r\n\r\n{{}}",
        ):
            self._answers.append(_exchanged(self._url, raw.encode()))
            self.calls += 1
        for path in ("/readyz", f"/readyz?account={self._key}", "/metrics", "/openapi.json", f"/{m1}"):
            url = self._ops if path == "/metrics" else self._url
            self._outputs[f"GET {path.partition('?')[0].replace(m1, '…')}"] = self._http.get(url + path).content
            self.calls += 1

    def _commands(self) -> None:
        commands = (
            ("keys", "list"), ("keys", "list", "--json"), ("keys", "revoke", "nobody"), ("keys", "extend", self._key_id, "1d"),
            ("audit", "tail", "-n", "500"), ("audit", "search", "--json"), ("audit", "search", "--number", self._m1),
            ("limits", "show", "--number", self._m1), ("limits", "show", "--json"), ("limits", "history"),
            ("limits", "set", f"number:{self._m1}", "1/s", "--for", "1s", "--why", "leak check"),
            ("limits", "set", "leak", "9/s", "--for", "1s", "--why", f"asked by {self._m2}, with {self._key}"),
            ("limits", "set", f"{self._key}:{self._m2}x", "9/s", "--for", "1s", "--why", "leak check"),
            ("limits", "replay", "--since", "1h"), ("limits", "replay", "--json", "--rate", "1/s", "--burst", "1"),
            ("upstream", "list"), ("upstream", "check"), ("upstream", "promote"), ("upstream", "rollback"),
            ("audit", "unknown", "--json"), ("audit", "report"), ("audit", "pseudonym-keys"),
            ("audit", "prove", "nobody-asked-this"),
            ("audit", "verify", "--json"), *(("audit", "export", f"--format={name}") for name in FORMATS),
            ("check",), ("check", "--offline"), ("--version",),
        )  # fmt: skip
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda words: self._command(*words), commands))

    def _without_redis(self) -> None:
        self._store.close()
        self._call(self._good)
        self._call({"m1": self._m1}, None)
        self._command("audit", "tail")
        journal = self._folder / "state" / "journal"
        deadline = time.monotonic() + 5
        while not self._journals and time.monotonic() < deadline:
            self._journals = b"".join(path.read_bytes() for path in journal.rglob("*.jsonl"))
        self._store = embedded.start(self._folder / "store")
        self._wait_until_ready()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + 15
        while self._http.get(self._url + "/readyz").json()["status"] != "ok":
            if time.monotonic() > deadline:
                raise ProcessError("the gateway did not become ready again; nothing was checked after that")
            time.sleep(0.05)

    def sinks(self) -> dict[str, bytes]:
        """Return everything that was written anywhere, by the name of the place."""
        store = self._folder / "store"
        redis = Redis(url=self._store.url)
        return {
            "gateway's log": self._gateway.out.read_bytes(),
            "gateway's standard error": self._gateway.err.read_bytes(),
            **self._outputs,
            "journal on disk": self._journals,
            "Redis, as it reads": asyncio.run(_contents(redis)),
            "Redis, on disk": b"".join(path.read_bytes() for path in store.rglob("*") if path.is_file()),
            "state folder": b"".join(path.read_bytes() for path in (self._folder / "state").rglob("*") if path.is_file()),
            "answers to callers": b"\n".join(self._answers),
            "what the vendor got": self._vendor_got,
        }

    def search(self, sinks: Mapping[str, bytes]) -> list[Finding]:
        """Return what was found where it must not be."""
        planted = self._planted
        logs = {name: content for name, content in sinks.items() if name not in ("answers to callers", "what the vendor got")}
        return [
            *scan(logs, planted.vendor | planted.callers | planted.numbers),
            # A caller may be shown its own number and key; the vendor gets its own credential and the numbers.
            *scan({"answers to callers": sinks["answers to callers"]}, planted.vendor),
            *scan(
                {"what the vendor got": sinks["what the vendor got"]},
                planted.callers | {name: planted.vendor[name] for name in ("pseudonym key", "signing key")},
            ),
        ]

    def _call(self, body: Any, key: str | None = "", headers: dict[str, str] | None = None) -> None:
        sent = {} if key is None else {"Authorization": f"Bearer {key or self._key}"}
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = self._http.post(self._url + UNSET_PATH, content=content, headers=sent | (headers or {}))
        self._answers.append(answer.content + repr(answer.headers.raw).encode())
        self.calls += 1

    def _command(self, *words: str, keep: bool = True) -> str:
        done = command(words, self._environ)
        if keep:
            name = f"gateway {' '.join(words[:3])}".replace(self._key_id, "ID")
            self._outputs[name] = (done.stdout + done.stderr).encode()
        return done.stdout

    def _switch(self, what: str, switches: Mapping[str, Any]) -> None:
        self._http.post(f"{self._brand}/_sandbox/{what}", json=switches)

    def _signature(self, body: bytes, nonce: str) -> dict[str, str]:
        request = SimpleNamespace(method="POST", url=self._url + UNSET_PATH, headers={})
        resolver = SimpleNamespace(resolve_private_key=lambda _: self._signer)
        signer = HTTPMessageSigner(signature_algorithm=algorithms.ED25519, key_resolver=resolver)  # type: ignore[arg-type]
        covered = ("@method", "@target-uri")
        signer.sign(request, key_id=self._signer_id, nonce=nonce, body=body, covered_component_ids=covered)
        headers: dict[str, str] = request.headers
        return headers


def _free_ports(count: int) -> list[int]:
    with ExitStack() as held:  # All at once, so that no two are one.
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _exchanged(url: str, raw: bytes) -> bytes:
    """Return what comes back for bytes that a client library would not send."""
    parts = urlsplit(url)
    answer = b""
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=1.5) as connection:
        connection.sendall(raw)
        try:
            while chunk := connection.recv(65_536):
                answer += chunk
        except (TimeoutError, ConnectionError):
            pass
    return answer


async def _contents(settings: Redis) -> bytes:
    """Return every key and value, as Redis tells them."""
    found: list[Any] = []
    async with connect(settings, None, read_seconds=10.0).client as client:
        async for key in client.scan_iter():
            kind = await client.type(key)
            read = {
                b"string": client.get,
                b"hash": client.hgetall,
                b"set": client.smembers,
                b"zset": lambda key: client.zrange(key, 0, -1),
                b"stream": client.xrange,
            }
            found.append((key, await read[kind](key)))
    return repr(found).encode()
