"""Real processes for tests: a Redis-compatible server, the sandbox, the gateway. All on loopback or private sockets."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import httpx
import redis as redis_py

from gateway import embedded

VENDOR_SSID = "vendor-session-id-5e2b9c"
PSEUDONYM_KEY = "pseudonym-key-for-tests-0123456789abcdef"
UNSET = "/api/v2/Masking/unset"
SET = "/api/v2/Masking/set"
_numbers = itertools.count(1)
_ports = list(range(15_000, 22_000))


def until(done: Callable[[], Any], seconds: float = 60.0, what: str = "the condition") -> Any:
    """Return the first true answer of `done`; fail loudly at the deadline."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := done():
            return answer
        time.sleep(0.01)
    raise AssertionError(f"{what} did not come true in {seconds} s")


class Process:
    """A process with its output in files."""

    def __init__(self, folder: Path, name: str, words: list[str], environ: dict[str, str] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.out, self.err = folder / f"{name}.out", folder / f"{name}.err"
        self.name = name
        with self.out.open("a") as out, self.err.open("a") as err:
            self.popen = subprocess.Popen(words, stdout=out, stderr=err, env={**os.environ, **(environ or {})})

    @property
    def pid(self) -> int:
        return self.popen.pid

    def alive(self) -> bool:
        return self.popen.poll() is None

    def output(self) -> str:
        return self.out.read_text(errors="replace") + self.err.read_text(errors="replace")

    def address(self) -> str:
        """Wait for the address it says it listens on."""

        def found() -> str | None:
            assert self.alive(), f"{self.name} ended: {self.output()}"
            match = re.search(r"http://127\.0\.0\.1:(\d+)", self.out.read_text())
            if match:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", int(match[1]))) == 0:
                        return match[0]
            return None

        return str(until(found, seconds=60.0, what=f"{self.name} listening"))

    def signal(self, number: int) -> None:
        self.popen.send_signal(number)

    def stop(self) -> int:
        if self.alive():
            self.popen.send_signal(signal.SIGCONT)
            self.popen.terminate()
        try:
            return self.popen.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            return self.popen.wait()


class Redis:
    """A Redis-compatible server on a private socket, append-only file on."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.socket = folder / "r.sock"
        self.url = f"unix://{self.socket}"
        self._options = options

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.start()
        return self

    def start(self) -> None:
        words = [
            embedded._binary(),
            "--port",
            "0",
            "--unixsocket",
            str(self.socket),
            "--dir",
            str(self.folder),
            "--appendonly",
            "yes",
            "--maxmemory-policy",
            "noeviction",
            "--save",
            "",
            *self._options,
        ]
        self.process = Process(self.folder, "redis", words)
        until(self.answers, what="redis answering")

    def answers(self) -> bool:
        try:
            with redis_py.Redis.from_url(self.url, socket_timeout=1) as client:
                return bool(client.ping())
        except (redis_py.RedisError, OSError):
            return False

    def client(self) -> redis_py.Redis:
        return redis_py.Redis.from_url(self.url, socket_timeout=10)

    def kill(self) -> None:
        self.process.popen.kill()
        self.process.popen.wait()

    def __exit__(self, *_: object) -> None:
        self.process.stop()


def free_port() -> int:
    """Return a port that is free, as is the one of its cluster bus, 10,000 above.

    Both are below those the system gives to whoever asks for any: nobody else gets it before it is used, nor is it given twice.
    """
    while True:
        port = random.choice(_ports)
        with socket.socket() as probe, socket.socket() as bus, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            bus.bind(("127.0.0.1", port + 10_000))
            _ports.remove(port)
            return port


def server_at(folder: Path, name: str, port: int, *options: str) -> Process:
    words = [embedded._binary(), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "", *options]
    folder.mkdir(parents=True, exist_ok=True)
    process = Process(folder, name, words)
    listening_at(process, port)
    return process


def listening_at(process: Process, port: int) -> None:
    def answers() -> bool:
        assert process.alive(), f"{process.name} ended: {process.output()}"
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    until(answers, what=f"{process.name} listening")


PLAIN = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For clients that never speak TLS: to load certificates takes each 30 ms of CPU, and many that begin at once wait for it."""


class Stack:
    """Gateway, sandbox and Redis, as processes of their own."""

    def __init__(
        self,
        folder: Path,
        *,
        server: str = "",
        redis_ms: int = 5000,
        upstream: str = "",
        quotas: str | None = None,
        validation: str = "",
        audit: str = "",
        log: str = "",
        credential: str = 'ssid = { env = "VENDOR_SSID" }',
        secondary: str = "",
        rejections: int = 1000,
        read_ms: int = 1500,
        total_ms: int = 3000,
        more: str = "",
        sandbox: tuple[str, ...] = (),
        workers: int = 1,
        environ: dict[str, str] | None = None,
        redis_options: tuple[str, ...] = (),
    ) -> None:
        """`redis_ms`: long enough that a busy machine is no outage; a test of a silent Redis gives it less."""
        self.folder = folder
        self.vendor_ssid = VENDOR_SSID
        self._sections = {"upstream": upstream, "validation": validation, "audit": audit, "log": log}
        # Nobody balances calls over the gateway of a test, and each would wait when it ends.
        usual = {"lame_duck_seconds": 0, "header_timeout_ms": 1500, "body_timeout_ms": 1500}
        self._server = "\n".join([*(f"{name} = {value}" for name, value in usual.items() if name not in server), server])
        self._credential = credential
        self._secondary = f"[accounts.test.secondary]\n{secondary}" if secondary else ""
        self._more = more
        self._rejections = rejections
        self._redis_ms, self._read_ms, self._total_ms = redis_ms, read_ms, total_ms
        self._quotas = (
            quotas
            if quotas is not None
            else "\n".join(f'[policies.{name}]\nrate = "1000000/s"\nburst = 1000000' for name in ("caller", "number", "account"))
        )
        self._sandbox_words = sandbox
        self._workers = workers
        self._environ = {"VENDOR_SSID": VENDOR_SSID, "PSEUDONYM_KEY": PSEUDONYM_KEY, **(environ or {})}
        self.redis = Redis(folder / "r", *redis_options)

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.redis.__enter__()
        self.sandbox = Process(
            self.folder,
            "sandbox",
            [sys.executable, "-m", "gateway.sandbox", "--port", "0", "--ssid", VENDOR_SSID, *self._sandbox_words],
        )
        self.sandbox_url = self.sandbox.address()
        self.http = httpx.Client(timeout=30, trust_env=False)
        self.config = self.folder / "gateway.toml"
        self.config.write_text(self._document())
        self.start_gateway()
        self.key, self.key_id, self.key_secret = self.issue("crm")
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        self.gateway.stop()
        self.sandbox.stop()
        self.redis.__exit__()

    def start_gateway(self) -> None:
        port = free_port()
        self.gateway = self.spawn_gateway("--ops-port", str(port))
        self.url = self.gateway.address()
        self.ops_url = f"http://127.0.0.1:{port}"
        self.host, port = self.url.removeprefix("http://").split(":")
        self.port = int(port)
        until(lambda: self._ready(), what="the gateway being ready")

    def spawn_gateway(self, *words: str, name: str = "gateway") -> Process:
        """Start one more gateway process on the same settings."""
        for path in (self.folder / f"{name}.out", self.folder / f"{name}.err"):
            if path.exists():
                shutil.move(path, path.with_suffix(path.suffix + f".{time.monotonic_ns()}"))
        command = [
            sys.executable,
            "-m",
            "gateway",
            "serve",
            "--config",
            str(self.config),
            "--port",
            "0",
            "--workers",
            str(self._workers),
        ]
        return Process(self.folder, name, [*command, *words], self._environ)

    def _ready(self) -> bool:
        try:
            return self.http.get(self.url + "/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def _document(self) -> str:
        return f"""
[server]
port = 0
ops_port = 0
state_dir = "{self.folder / "state"}"
cors_origins = ["https://panel.example"]
{self._server}
[redis]
url = "{self.redis.url}"
timeout_ms = {self._redis_ms}
[accounts.test]
brand = "{self.sandbox_url}"
[accounts.test.primary]
{self._credential}
{self._secondary}
[upstream]
read_timeout_ms = {self._read_ms}
total_timeout_ms = {self._total_ms}
rejections_to_switch = {self._rejections}
{self._sections["upstream"]}
{self._more.replace("SANDBOX", self.sandbox_url)}
[validation]
{self._sections["validation"]}
{self._quotas}
[audit]
pseudonym_key = {{ env = "PSEUDONYM_KEY" }}
{self._sections["audit"]}
[log]
{self._sections["log"]}
"""

    def metrics(self) -> str:
        """Return what Prometheus would read now, by a connection of its own: workers share the port."""
        answer = httpx.get(self.ops_url + "/metrics", trust_env=False, verify=PLAIN, timeout=30)
        assert answer.status_code == 200, answer.text
        return answer.text

    @property
    def pid(self) -> int:
        return self.gateway.pid

    def assert_alive(self) -> None:
        assert self.gateway.alive(), self.gateway.output()
        assert self.sandbox.alive(), self.sandbox.output()

    def cli(self, *words: str, check: bool = True, environ: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run one gateway command on these settings."""
        done = subprocess.run(
            [sys.executable, "-m", "gateway", *words, "--config", str(self.config)],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, **self._environ, **(environ or {})},
        )
        assert not check or done.returncode == 0, done.stderr
        return done

    def issue(self, service: str, *words: str) -> tuple[str, str, str]:
        """Issue a key: (key, id, secret)."""
        made = json.loads(self.cli("keys", "issue", service, "--json", *words).stdout)
        return made["key"], made["id"], made["secret"]

    def fresh_numbers(self) -> tuple[str, str]:
        number = next(_numbers)
        return f"98{number:08d}", f"99{number:08d}"

    def set_masking(self, m1: str, m2: str) -> str:
        answer = self.http.post(self.sandbox_url + SET, json={"ssid": VENDOR_SSID, "m1": m1, "m2": m2}).json()
        assert answer["status"] == "success", answer
        return str(answer["mask"])

    def masked(self) -> tuple[str, str]:
        """Return two fresh numbers between which a masking is set."""
        m1, m2 = self.fresh_numbers()
        self.set_masking(m1, m2)
        return m1, m2

    def unset(
        self, body: Any = None, *, key: str | None = "", headers: dict[str, str] | None = None, **fields: Any
    ) -> httpx.Response:
        """Call the gateway; the stack's own key unless `key` says otherwise (None: none)."""
        sent = {} if key is None else {"Authorization": f"Bearer {key or self.key}"}
        sent.update(headers or {})
        content = body if isinstance(body, bytes) else json.dumps(fields if body is None else body).encode()
        return self.http.post(self.url + UNSET, content=content, headers=sent)

    def killed_amid_a_call(self, **headers: str) -> None:
        """Kill the gateway while the vendor is asked, and start another: the caller got no answer."""
        m1, m2 = self.masked()
        self.fault(answer="slow", delay_ms=1200)

        def call() -> None:
            with httpx.Client(trust_env=False, verify=PLAIN) as client, suppress(httpx.TransportError):
                client.post(self.url + UNSET, json={"m1": m1, "m2": m2}, headers={"X-API-Key": self.key, **headers})
                answered.append(m1)

        answered: list[str] = []
        caller = threading.Thread(target=call)
        caller.start()
        until(self.vendor_calls, what="the vendor being called")
        self.gateway.popen.kill()
        self.gateway.popen.wait()
        caller.join()
        assert not answered
        self.no_faults()
        self.start_gateway()

    def vendor_calls(self) -> list[dict[str, Any]]:
        return [call for call in self.http.get(self.sandbox_url + "/_sandbox/calls").json() if call["path"] == UNSET]

    def clear_vendor_calls(self) -> None:
        self.http.delete(self.sandbox_url + "/_sandbox/calls")

    def fault(self, **switches: Any) -> None:
        answer = self.http.post(self.sandbox_url + "/_sandbox/faults", json=switches)
        assert answer.status_code == 204, answer.text

    def no_faults(self) -> None:
        self.http.delete(self.sandbox_url + "/_sandbox/faults")

    def stream(self, account: str = "test") -> list[dict[str, Any]]:
        """Return every record of calls and changes in Redis, as it is; not what writers say of themselves."""
        return [record for record in self.whole_stream(account) if "request_id" in record]

    def whole_stream(self, account: str = "test") -> list[dict[str, Any]]:
        """Return every record of an account in Redis, those too that nobody waits for."""
        time.sleep(0.02)
        with self.redis.client() as client:
            return [json.loads(fields[b"r"]) for _, fields in client.xrange(f"gw:{{{account}}}:audit")]

    def records(self, request_id: str, account: str = "test") -> list[dict[str, Any]]:
        """Return a request's records, once its last one is there."""

        def whole() -> list[dict[str, Any]] | None:
            found = [record for record in self.stream(account) if record["request_id"] == request_id]
            over = (record for record in found if record["stage"] != "intent" and record.get("problem") != "decided_anew")
            return found if any(over) else None

        return list(until(whole, what=f"the last record of {request_id}"))

    def gateway_log(self) -> str:
        return self.gateway.output()
