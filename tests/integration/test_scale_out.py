"""Several gateways share one limit and admit exactly it: on one Redis, and on a cluster whose slots are moved under load."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import redis as redis_py

from tests.chaos.processes import descendants
from tests.running import PLAIN, UNSET, Process, Stack, free_port, server_at, until

WIDE = '[policies.number]\nrate = "1000000/s"\nburst = 1000000\n[policies.account]\nrate = "1000000/s"\nburst = 1000000\n'


@contextmanager
def gateways(stack: Stack, count: int) -> Iterator[list[str]]:
    """Start more gateways on the stack's settings, and give the addresses of all."""
    more = [stack.spawn_gateway(name=f"more{number}") for number in range(count - 1)]
    try:
        yield [stack.url, *(process.address() for process in more)]
    finally:
        for process in more:
            process.stop()


def answers(stack: Stack, urls: list[str], count: int, threads: int = 16) -> Counter[str]:
    """Make calls over all gateways at once, again where the gateway could not, and count what came of them."""

    def call(number: int) -> str:
        with httpx.Client(timeout=30, trust_env=False, verify=PLAIN) as http:
            for _ in range(400):
                headers = {"Authorization": f"Bearer {stack.key}"}
                answer = http.post(urls[number % len(urls)] + UNSET, json={"m1": stack.fresh_numbers()[0]}, headers=headers)
                if answer.status_code != 503:
                    break
                time.sleep(0.02)
            return str(answer.json().get("policy") or answer.json().get("error") or "success")

    with ThreadPoolExecutor(threads) as pool:
        return Counter(pool.map(call, range(count)))


def test_workers_have_one_view_and_a_journal_each(start: Callable[..., Stack]) -> None:
    """Whichever is asked counts for all of them, also for one that was killed; and each writes a trail of its own."""
    stack = start(workers=2, quotas=WIDE + '[policies.caller]\nrate = "1/d"\nburst = 10')
    line = 'gateway_limit_refused_total{account="test",mode="deny",policy="caller"}'

    def counted() -> set[float]:
        found = set()
        for _ in range(12):  # A new connection each, so that both are asked.
            rows = stack.metrics().splitlines()
            found.update(float(row.rpartition(" ")[2]) for row in rows if row.startswith(line))
        return found

    until(lambda: stack.gateway_log().count("gateway.opened") == 2, what="both workers")
    assert answers(stack, [stack.url], 50)["caller"] == 40
    until(lambda: counted() == {40.0}, what="one view")
    journals = {path.name.rsplit(".", 2)[0] for path in (stack.folder / "state" / "journal" / "test").glob("*.jsonl")}
    writers = {row["writer"] for row in stack.stream()}
    assert len(journals) == 2 and journals <= writers

    os.kill(descendants(stack.gateway.pid, "spawn_main")[0], signal.SIGKILL)
    until(stack._ready, what="another worker")
    assert counted() == {40.0}


def test_several_gateways_admit_exactly_the_limit(start: Callable[..., Stack]) -> None:
    """Three gateways of two workers, one limit of 90, 240 calls at once: 90 reach the vendor."""
    stack = start(workers=2, quotas=WIDE + '[policies.caller]\nrate = "1/d"\nburst = 90', read_ms=2900)
    with gateways(stack, 3) as urls:
        found = answers(stack, urls, 240)

    assert found == {"masking_not_found": 90, "caller": 150}
    assert len(stack.vendor_calls()) == 90


def test_calls_under_way_are_limited_over_gateways(start: Callable[..., Stack]) -> None:
    """Two gateways, three places: of twelve slow calls at once three are made, and then there are three places again."""
    stack = start(workers=2, quotas=WIDE + '[policies.slow]\nby = ["caller"]\nconcurrency = 3', read_ms=2900)
    stack.fault(answer="slow", delay_ms=1000)
    with gateways(stack, 2) as urls:
        first = answers(stack, urls, 12, threads=12)
        second = answers(stack, urls, 12, threads=12)

    assert first == second == {"masking_not_found": 3, "slow.concurrency": 9}
    with stack.redis.client() as client:
        assert client.keys("gw:{test}:limit:slow*") == []


class Cluster:
    """A three-node cluster on loopback, without replicas."""

    def __init__(self, folder: Path) -> None:
        self.ports = [free_port() for _ in range(3)]
        options = ("--cluster-enabled", "yes", "--appendonly", "yes")
        self.nodes: list[Process] = []
        for port in self.ports:
            self.nodes.append(server_at(folder / str(port), f"node{port}", port, *options))
        self.clients = [redis_py.Redis(port=port, socket_timeout=10) for port in self.ports]
        for number, client in enumerate(self.clients):
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", *((0, 5460), (5461, 10922), (10923, 16383))[number])
            client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for port in self.ports[1:]:
            self.clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", port)
        self.ids = [client.execute_command("CLUSTER", "MYID").decode() for client in self.clients]
        until(self.whole, seconds=40, what="the cluster being whole")

    def whole(self) -> bool:
        states = [client.execute_command("CLUSTER", "INFO") for client in self.clients]
        return all(b"cluster_state:ok" in state and b"cluster_known_nodes:3" in state for state in states)

    def owner(self, slot: int) -> int:
        for first, last, master, *_ in self.clients[0].execute_command("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return self.ports.index(int(master[1]))
        raise AssertionError(slot)

    def move(self, slot: int, to: int) -> None:
        """Move one slot the way `redis-cli --cluster reshard` does: mark it, carry its keys over, give it away."""
        of = self.owner(slot)
        if of == to:
            return
        source, target = self.clients[of], self.clients[to]
        target.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", self.ids[of])
        source.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", self.ids[to])
        while keys := source.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 10):
            source.execute_command("MIGRATE", "127.0.0.1", self.ports[to], "", 0, 5000, "KEYS", *keys)
        for client in (target, source, *self.clients):
            client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", self.ids[to])

    def stop(self) -> None:
        for client in self.clients:
            client.close()
        for node in self.nodes:
            node.popen.kill()
            node.popen.wait()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path / "cluster")
    yield made
    made.stop()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_cluster_is_resharded_under_load(start: Callable[..., Stack], cluster: Cluster) -> None:
    """The account's slot wanders over three nodes while two gateways call: exactly the limit passes, each call recorded once."""
    limit = '[policies.caller]\nrate = "1/d"\nburst = 150\non_store_error = "deny"\n'
    stack = start(quotas=WIDE + limit)
    stack.gateway.stop()
    text = stack.config.read_text().replace(stack.redis.url, f"redis://127.0.0.1:{cluster.ports[0]}")
    stack.config.write_text(text.replace("[redis]", "[redis]\ncluster = true"))
    stack.key, *_ = stack.issue("crm")
    stack.start_gateway()
    slots = [redis_py.cluster.key_slot(name) for name in (b"{test}", b"{:keys}")]
    over, moved = threading.Event(), Counter()

    def wander() -> None:
        while not over.is_set():
            for slot in slots:
                cluster.move(slot, (cluster.owner(slot) + 1) % 3)
                moved[slot] += 1
            time.sleep(0.05)

    mover = threading.Thread(target=wander)
    with gateways(stack, 2) as urls:
        mover.start()
        try:
            found = answers(stack, urls, 400, threads=8)
        finally:
            over.set()
            mover.join()

        assert found == {"masking_not_found": 150, "caller": 250}
        assert len(stack.vendor_calls()) == 150
        assert min(moved.values()) >= 3, moved
        log = stack.gateway_log()
        assert "CROSSSLOT" not in log
        with redis_py.RedisCluster(port=cluster.ports[0], host="127.0.0.1") as client:
            until(lambda: client.hlen("gw:{test}:open") == 0, what="every intent having its outcome")
            records = [json.loads(fields[b"r"]) for _, fields in client.xrange("gw:{test}:audit")]
            ends = Counter(record["problem"] for record in records if record["stage"] in ("outcome", "refusal"))
            assert (ends["masking_not_found"], ends["quota_exceeded"]) == (150, 250)
            ended = [record for record in records if record["stage"] in ("outcome", "refusal", "abort")]
            # Refused at once while Redis is slow, and asked again: it was never put to the ledger, so has no intent.
            assert {record["problem"] for record in ended if "intent" not in record} <= {"ledger_unavailable"}
            closed = Counter(record["intent"] for record in ended if "intent" in record)
            assert closed == Counter(f"{r['writer']}-{r['seq']}" for r in records if r["stage"] == "intent")
    shown = stack.cli("limits", "show", "--json").stdout
    assert '"used": 150' in shown
