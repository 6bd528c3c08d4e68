"""Redis goes away in every way it can: one bounded wait, one clear answer, nothing lost, and back by itself."""

from __future__ import annotations

import asyncio
import json
import signal
import ssl
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import trustme
from redis import Redis as Redis_

from gateway import embedded
from tests.chaos.threads import InThread
from tests.e2e.test_main_job import assert_refused
from tests.running import Process, Stack, free_port, listening_at, server_at, until

REFUSE = 'on_store_error = "refuse"'


def test_redis_stalls(start: Callable[..., Stack]) -> None:
    """A stopped Redis costs one bounded time-out; then the breaker answers, and no call is made."""
    stack = start(audit=REFUSE, redis_ms=1000)
    m1, m2 = stack.masked()
    stack.unset(m1=m1)
    stack.clear_vendor_calls()
    stack.redis.process.signal(signal.SIGSTOP)

    times = []
    for _ in range(6):
        begun = time.monotonic()
        body = assert_refused(stack.unset(m1=m1), 503, "ledger_unavailable")
        times.append(time.monotonic() - begun)
        assert body["retryable"] is True
    stack.redis.process.signal(signal.SIGCONT)

    # The first waits for its time-out; the breaker then answers without waiting.
    assert min(times) < max(times) / 2
    assert stack.vendor_calls() == []
    until(lambda: stack.unset(m1=m1, m2=m2).status_code in (200, 404), what="calls being served again")


def test_redis_is_killed_and_comes_back(start: Callable[..., Stack]) -> None:
    """Calls are refused, refusals are journalled and carried over, keys are still known, readiness says so."""
    stack = start(audit=REFUSE)
    m1, m2 = stack.masked()
    stack.redis.kill()

    refused = [assert_refused(stack.unset(m1=m1, m2=m2), 503, "ledger_unavailable")["request_id"] for _ in range(3)]
    ready = stack.http.get(stack.url + "/readyz")
    stack.redis.start()

    assert ready.status_code == 503
    assert ready.json()["checks"]["account.test.ledger"] == "LedgerDown"
    assert ready.json()["checks"]["account.test.credential"] == "ok"
    until(lambda: stack.unset(m1=m1, m2=m2).status_code == 200, what="calls being served again")
    for request_id in refused:
        assert stack.records(request_id)[-1]["problem"] == "ledger_unavailable"
    lines = stack.gateway_log()
    assert "ledger.lost" in lines
    assert "ledger.recovered" in lines


def test_an_outcome_outlives_redis_and_the_gateway(start: Callable[..., Stack]) -> None:
    """Redis dies during the call, then the gateway is killed: the next gateway carries the outcome over."""
    stack = start(read_ms=2900)
    m1, m2 = stack.masked()
    stack.fault(answer="slow", delay_ms=500)
    caller = threading.Thread(target=lambda: stack.unset(m1=m1, m2=m2, headers={"X-Request-Id": "outlives-all"}))
    caller.start()
    until(stack.vendor_calls, what="the vendor being called")
    stack.redis.kill()
    caller.join()
    journal = stack.folder / "state" / "journal" / "test"
    until(
        lambda: any(
            "outlives-all" in line and '"outcome"' in line
            for path in journal.glob("*.jsonl")
            for line in path.read_text().splitlines()
        ),
        what="the outcome being journalled",
    )
    stack.gateway.popen.kill()
    stack.gateway.popen.wait()

    stack.redis.start()
    stack.start_gateway()

    intent, outcome = stack.records("outlives-all")
    assert (intent["stage"], outcome["stage"], outcome["result"]) == ("intent", "outcome", "answered")
    with stack.redis.client() as client:
        assert client.hlen("gw:{test}:open") == 0


def test_a_killed_gateway_leaves_an_open_intent(start: Callable[..., Stack]) -> None:
    """Kill -9 between intent and outcome: the intent is there, and is known to be without an outcome."""
    import httpx

    stack = start(read_ms=2900)
    m1, m2 = stack.masked()
    stack.fault(answer="slow", delay_ms=3000)

    def call() -> None:
        with pytest.raises(httpx.TransportError):
            stack.unset(m1=m1, m2=m2, headers={"X-Request-Id": "killed-between"})

    caller = threading.Thread(target=call)
    caller.start()
    until(stack.vendor_calls, what="the vendor being called")
    stack.gateway.popen.kill()
    caller.join()

    (intent,) = [record for record in stack.stream() if record["request_id"] == "killed-between"]
    with stack.redis.client() as client:
        assert client.hkeys("gw:{test}:open") == [f"{intent['writer']}-{intent['seq']}".encode()]


def test_scripts_are_forgotten(start: Callable[..., Stack]) -> None:
    """After SCRIPT FLUSH, as after a failover, the next call works and is recorded once."""
    stack = start()
    m1, m2 = stack.masked()
    with stack.redis.client() as client:
        client.script_flush()

    answer = stack.unset(m1=m1, m2=m2)

    assert answer.status_code == 200
    assert [record["stage"] for record in stack.records(answer.json()["request_id"])] == ["intent", "outcome"]


def test_redis_is_full_or_read_only(start: Callable[..., Stack]) -> None:
    """A Redis that cannot keep a record gets no call made, and is used again when it can."""
    stack = start(audit=REFUSE)
    m1, m2 = stack.masked()
    stack.unset(m1=m1, m2=m2, expiry_duration=60)
    stack.clear_vendor_calls()
    with stack.redis.client() as client:
        for spoil, mend in (
            (lambda: client.config_set("maxmemory", "1"), lambda: client.config_set("maxmemory", "0")),
            (lambda: client.replicaof("127.0.0.1", 1), lambda: client.replicaof("NO", "ONE")),
        ):
            spoil()
            assert_refused(stack.unset(m1=m1, m2=m2), 503, "ledger_unavailable")
            assert stack.vendor_calls() == []
            mend()
            until(lambda: stack.unset(m1=m1, m2=m2, expiry_duration=60).status_code == 200, what="calls being served again")
            stack.clear_vendor_calls()


def test_a_revocation_holds_after_a_failover_that_lost_changes(start: Callable[..., Stack]) -> None:
    """The keys' own epoch fell behind an account's: calls go on, and the next change is above both and in force."""
    stack = start()
    other, other_id, _ = stack.issue("other")
    m1, m2 = stack.masked()
    now = int(time.time() + 1000) * 1_000_000
    with stack.redis.client() as client:
        for lost, ahead in ((7, now + 40), (9, now + 50)):
            client.set("gw:{:keys}:epoch", lost)
            client.set("gw:{test}:epoch", ahead)
            for key in (stack.key, other):
                answer = stack.unset(m1=m1, m2=m2, expiry_duration=60, key=key)
                assert answer.status_code == 200, answer.text

        stack.cli("keys", "revoke", other_id)

        assert_refused(stack.unset(m1=m1, m2=m2, key=other), 401, "credential_revoked")
        assert int(client.get("gw:{:keys}:epoch")) == int(client.get("gw:{test}:epoch")) == now + 51
    assert stack.unset(m1=m1, m2=m2, expiry_duration=60).status_code == 200


def test_a_gateway_starts_without_redis(start: Callable[..., Stack]) -> None:
    """It is alive and not ready, refuses calls as unrecordable, and needs no restart."""
    stack = start()
    stack.gateway.stop()
    stack.redis.kill()
    stack.gateway = stack.spawn_gateway()
    stack.url = stack.gateway.address()
    until(lambda: stack.http.get(stack.url + "/livez").status_code == 200, what="the gateway being alive")

    assert stack.http.get(stack.url + "/readyz").status_code == 503
    assert_refused(stack.unset(m1="9876543210"), 503, "ledger_unavailable")
    stack.redis.start()
    m1, m2 = stack.masked()
    until(lambda: stack.unset(m1=m1, m2=m2).status_code == 200, what="calls being served")


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_cluster(start: Callable[..., Stack], tmp_path: Path) -> None:
    """On a Redis Cluster a call is admitted by one script: every key of an account is in one slot."""
    port = free_port()
    node = server_at(tmp_path / "node", "node", port, "--cluster-enabled", "yes", "--appendonly", "yes")
    import redis as redis_py

    try:
        with redis_py.Redis(port=port) as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
            until(lambda: b"cluster_state:ok" in client.execute_command("CLUSTER", "INFO"), what="the cluster being up")
            stack = start()
            stack.gateway.stop()
            text = (
                stack.config.read_text()
                .replace(stack.redis.url, f"redis://127.0.0.1:{port}")
                .replace("[redis]", "[redis]\ncluster = true")
            )
            stack.config.write_text(text)
            stack.key, *_ = stack.issue("crm")
            stack.start_gateway()
            m1, m2 = stack.masked()

            assert stack.unset(m1=m1, m2=m2).status_code == 200
            until(
                lambda: (
                    [json.loads(fields[b"r"])["stage"] for _, fields in client.xrange("gw:{test}:audit")][1:]
                    == ["intent", "outcome"]
                ),
                what="both records",
            )
    finally:
        node.stop()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_sentinel_fails_over(start: Callable[..., Stack], tmp_path: Path) -> None:
    """The master dies, a replica is promoted, and calls go on without a restart."""
    import redis as redis_py

    ports = [free_port() for _ in range(3)]
    nodes = [
        server_at(tmp_path / "a", "master", ports[0], "--appendonly", "yes"),
        server_at(tmp_path / "b", "replica", ports[1], "--replicaof", f"127.0.0.1 {ports[0]}", "--repl-diskless-sync-delay", "0"),
    ]
    conf = tmp_path / "sentinel.conf"
    conf.write_text(
        f"port {ports[2]}\nbind 127.0.0.1\nsentinel monitor gw 127.0.0.1 {ports[0]} 1\n"
        "sentinel down-after-milliseconds gw 5000\nsentinel failover-timeout gw 10000\n"
    )
    nodes.append(Process(tmp_path, "sentinel", [embedded._binary(), str(conf), "--sentinel"]))
    listening_at(nodes[-1], ports[2])
    try:
        with (
            redis_py.Redis(port=ports[2], socket_timeout=5) as sentinel,
            redis_py.Redis(port=ports[1], socket_timeout=5) as replica,
        ):
            until(lambda: sentinel.sentinel_slaves("gw"), seconds=30, what="sentinel knowing the replica")
            until(lambda: replica.info("replication").get("master_link_status") == "up", what="replication")
            stack = start()
            stack.gateway.stop()
            text = stack.config.read_text().replace(
                f'url = "{stack.redis.url}"', f'sentinels = ["127.0.0.1:{ports[2]}"]\nsentinel_service = "gw"'
            )
            stack.config.write_text(text)
            stack.key, *_ = stack.issue("crm")
            stack.start_gateway()
            m1, m2 = stack.masked()
            assert stack.unset(m1=m1, m2=m2, expiry_duration=60).status_code == 200
            until(
                lambda: any(b'"outcome"' in fields[b"r"] for _, fields in replica.xrange("gw:{test}:audit")),
                what="the records on the replica",
            )

            # A revocation that a failover would undo is told, and one that it would not is not.
            _, doomed, _ = stack.issue("doomed")
            nodes[1].popen.send_signal(signal.SIGSTOP)
            lacking = stack.cli("keys", "revoke", doomed, check=False)
            nodes[1].popen.send_signal(signal.SIGCONT)
            assert lacking.returncode == 1
            assert "1 replicas of Redis lack it" in lacking.stderr
            assert stack.cli("keys", "revoke", doomed).stderr == ""
            # By this call at the latest the process has the keys as they are now, and goes on by them.
            assert stack.unset(m1=m1, m2=m2, expiry_duration=60).status_code == 200

            nodes[0].popen.kill()
            nodes[0].popen.wait()

            assert stack.unset(m1=m1, m2=m2, expiry_duration=60).status_code == 200
            until(
                lambda: 'gateway_degraded{account="test"} 0.0' in stack.metrics(),
                seconds=90, what="the breaker closing",
            )  # fmt: skip
            assert stack.unset(m1=m1, m2=m2).status_code == 200
            assert replica.info("replication")["role"] == "master"
    finally:
        for node in reversed(nodes):
            node.popen.kill()
            node.popen.wait()


def test_the_embedded_server_is_taken_over_from_a_killed_parent(tmp_path: Path) -> None:
    """Its data outlives its parent; whoever comes next owns it, and only the owner stops it."""
    folder = tmp_path / "e"
    program = f"import os,signal; from pathlib import Path; from gateway import embedded; s=embedded.start(Path({str(folder)!r})); print(s.url); os.kill(os.getpid(), signal.SIGKILL)"
    import subprocess

    import redis as redis_py

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with redis_py.Redis(unix_socket_path=str(folder / "redis.sock")) as client:
        client.set("kept", "1")

        owner = embedded.start(folder)
        guest = embedded.start(folder)
        guest.close()
        assert client.get("kept") == b"1"
    owner.close()
    assert not embedded._answers(folder / "redis.sock")
    again = embedded.start(folder)
    with redis_py.Redis(unix_socket_path=str(folder / "redis.sock")) as client:
        assert client.get("kept") == b"1"
    again.close()


def test_what_is_no_record_hides_no_other(start: Callable[..., Stack]) -> None:
    """Odd entries of the stream are passed over by search, history, explain and replay."""
    stack = start()
    m1, m2 = stack.masked()
    request_id = stack.unset(m1=m1, m2=m2).json()["request_id"]
    stack.records(request_id)
    with stack.redis.client() as client:
        for fields in ({"r": b"{"}, {"x": b"1"}, {"r": b"[]"}, {"r": b"\xff"}, {"r": b'{"stage":"intent"}'}):
            client.xadd("gw:{test}:audit", fields)

    assert request_id in stack.cli("audit", "search", "--request-id", request_id, "--json").stdout
    assert request_id in stack.cli("limits", "explain", request_id).stdout
    assert stack.cli("limits", "history").returncode == 0
    report = json.loads(stack.cli("limits", "replay", "--json").stdout)
    assert report["callers"][0]["calls"] == 1
    assert any("5 entries of the history" in line for line in report["unknown"])


def test_a_gateway_that_stops_while_redis_stalls_leaves_no_intent_open(start: Callable[..., Stack]) -> None:
    """The drain ends before Redis answers: the record of the refusal names the intent that Redis then takes after all."""
    stack = start(server="drain_seconds = 7", upstream="pool_timeout_ms = 100", redis_ms=10_000)
    request_id = "cut-off-by-the-drain"
    stack.records(stack.unset(m1=stack.fresh_numbers()[0]).json()["request_id"])
    stack.redis.process.signal(signal.SIGSTOP)

    answers: list[httpx.Response] = []

    def call() -> None:
        answers.append(stack.unset(m1=stack.fresh_numbers()[0], headers={"X-Request-Id": request_id}))

    caller = threading.Thread(target=call)
    caller.start()
    until(lambda: "gateway_requests_under_way 1.0" in stack.metrics(), what="the call waiting for Redis")
    stack.gateway.signal(signal.SIGTERM)
    caller.join()  # Cut off.
    stack.redis.process.signal(signal.SIGCONT)
    until(lambda: not stack.gateway.alive(), what="the gateway ending")

    assert_refused(answers[0], 500, "internal")
    intent, refusal = (record for record in stack.stream() if record["request_id"] == request_id)
    assert (intent["stage"], refusal["stage"]) == ("intent", "refusal")
    assert refusal["intent"] == f"{intent['writer']}-{intent['seq']}"
    with stack.redis.client() as client:
        assert client.hlen("gw:{test}:open") == 0


def test_a_gateway_that_leaves_looks_whether_redis_is_back(start: Callable[..., Stack]) -> None:
    """What waited is sent before it is gone, and no heir is needed."""
    stack = start()
    for kill in (lambda: None, stack.redis.kill):
        m1, m2 = stack.masked()
        kill()
        assert stack.unset(m1=m1, m2=m2).status_code == 200
    time.sleep(4)  # By now it looks every few seconds only.
    stack.redis.start()
    assert stack.gateway.stop() == 0
    stages = [row["stage"] for row in stack.whole_stream()]
    assert stages[-1] == "close"
    assert stages.count("intent") == stages.count("outcome") == 2


def test_a_drill_of_nothing_issues_no_key(start: Callable[..., Stack]) -> None:
    """Where no gateway answers, one line says so, and nothing was changed."""
    stack = start()
    before = stack.cli("keys", "list", "--json").stdout
    for url in ("http://[bad", "http://127.0.0.1:1", "nothing"):
        done = stack.cli("drill", "redis-down", "--for", "1s", "--url", url, check=False)
        assert done.returncode == 2
        assert "no gateway answers" in done.stderr
        assert "Traceback" not in done.stderr
    assert stack.cli("keys", "list", "--json").stdout == before


def test_the_search_finds_each_record_once(start: Callable[..., Stack]) -> None:
    """A record the journal carried over a second time is shown once."""
    stack = start()
    m1, m2 = stack.masked()
    request_id = stack.unset(m1=m1, m2=m2).json()["request_id"]
    stack.records(request_id)
    with stack.redis.client() as client:
        for _, fields in client.xrange("gw:{test}:audit"):
            client.xadd("gw:{test}:audit", fields)

    found = [
        json.loads(line)
        for line in stack.cli("audit", "search", "--number", f"+91 {m1[:5]} {m1[5:]}", "--json").stdout.splitlines()
    ]

    assert [record["stage"] for record in found] == ["intent", "outcome"]


def test_redis_with_password_and_tls(start: Callable[..., Stack], tmp_path: Path) -> None:
    """rediss:// with an authority of ours and a password by reference; a wrong password is a fault that `check` names."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    stack = start(environ={"REDIS_PASSWORD": "right"})
    with stack.redis.client() as client:
        client.config_set("requirepass", "right")
    stack.gateway.stop()
    with TlsFront(authority.issue_cert("127.0.0.1"), stack.redis.socket) as front:
        extra = f'ca_file = "{tmp_path / "ca.pem"}"\npassword = {{ env = "REDIS_PASSWORD" }}'
        text = (
            stack.config.read_text()
            .replace(stack.redis.url, f"rediss://127.0.0.1:{front.port}")
            .replace("[redis]", f"[redis]\n{extra}")
        )
        stack.config.write_text(text)
        assert stack.cli("check").stdout.strip() == "all is well"
        wrong = stack.cli("check", environ={"REDIS_PASSWORD": "wrong"}, check=False)
        stack.start_gateway()
        m1, m2 = stack.masked()

        assert stack.unset(m1=m1, m2=m2).status_code == 200
        assert wrong.returncode == 1
        assert "redis (line" in wrong.stdout
        assert "wrong" not in wrong.stdout + wrong.stderr
        stack.gateway.stop()
    with Redis_(unix_socket_path=str(stack.redis.socket), password="right") as client:
        client.config_set("requirepass", "")


class TlsFront(InThread):
    """Carries bytes between TLS connections and a Unix socket."""

    def __init__(self, certificate: trustme.LeafCert, path: Path) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(self._context)
        self._path = path
        super().__init__()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._carry, "127.0.0.1", 0, ssl=self._context)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        await self._end_the_rest()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_unix_connection(str(self._path))
        try:
            await asyncio.gather(self._pump(reader, forth), self._pump(back, writer))
        finally:
            forth.close()
            writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
        writer.close()
