"""Keys through their life: issued, bound, used, rotated, extended, revoked; in force everywhere when a command returns."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
import tomllib
from collections.abc import Callable
from typing import Any, Self

import httpx
import pytest

from gateway import audit, config
from gateway.keys import KeyVersion
from gateway.ledger.registry import Changed
from gateway.stores import make_registry
from tests.e2e.test_main_job import assert_refused
from tests.running import PLAIN, UNSET, Stack, until

WIDE = '[policies.caller]\nrate = "1000000/s"\nburst = 1000000\n[policies.number]\nrate = "1000000/s"\nburst = 1000000\n[policies.account]\nrate = "1000000/s"\nburst = 1000000'


def listed(stack: Stack, key_id: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in stack.cli("keys", "list", "--json").stdout.splitlines()]
    return [row for row in rows if row["id"] == key_id]


def rotate(stack: Stack, name: str, *words: str) -> dict[str, Any]:
    return dict(json.loads(stack.cli("keys", "rotate", name, "--json", *words).stdout))


def test_both_secrets_are_good_until_the_overlap_ends(stack: Stack) -> None:
    """The id stays, in the records too; the old secret ends with the overlap, the new one does not."""
    old, key_id, old_secret = stack.issue("rotating")
    fresh = rotate(stack, "rotating", "--overlap", "7d")

    assert (fresh["id"], fresh["version"]) == (key_id, 2)
    assert fresh["key"] != old
    for key, version in ((old, 1), (fresh["key"], 2)):
        m1, m2 = stack.masked()
        answer = stack.unset(m1=m1, m2=m2, key=key)
        assert answer.status_code == 200
        intent, outcome = stack.records(answer.json()["request_id"])
        assert (intent["key_id"], intent["key_version"], outcome["key_version"]) == (key_id, version, version)
    m1, m2 = stack.masked()
    pair = {"userId": key_id, "token": fresh["secret"], "m1": m1, "m2": m2}
    assert stack.unset(pair, key=None).status_code == 200
    first, second = listed(stack, key_id)
    assert 6.9 * 86400 < first["expires_at"] - time.time() < 7.1 * 86400
    assert second["expires_at"] is None

    rotate(stack, key_id, "--overlap", "0s")
    assert_refused(stack.unset(m1=m1, key=old), 401, "credential_expired")
    assert_refused(stack.unset(m1=m1, key=fresh["key"]), 401, "credential_expired")


def test_an_overlap_shortens_and_never_lengthens(stack: Stack) -> None:
    """A key that was to end earlier still does; `extend` is how it lives longer."""
    key, key_id, _ = stack.issue("ending", "--expires", "1h")
    rotate(stack, key_id, "--overlap", "30d")

    assert listed(stack, key_id)[0]["expires_at"] - time.time() < 3700
    stack.cli("keys", "extend", f"{key_id}.1", "2d")
    assert listed(stack, key_id)[0]["expires_at"] - time.time() > 1.9 * 86400
    stack.cli("keys", "extend", f"{key_id}.1", "0s")
    assert_refused(stack.unset(m1="9876543210", key=key), 401, "credential_expired")


def test_one_version_is_revoked_and_the_other_goes_on(stack: Stack) -> None:
    """`revoke ID.VERSION` ends one secret, `revoke ID` all of them; a second time is no fault."""
    old, key_id, _ = stack.issue("halves")
    fresh = rotate(stack, "halves")["key"]

    stack.cli("keys", "revoke", f"{key_id}.1")
    assert_refused(stack.unset(m1="9876543210", key=old), 401, "credential_revoked")
    m1, m2 = stack.masked()
    assert stack.unset(m1=m1, m2=m2, key=fresh).status_code == 200
    stack.cli("keys", "revoke", key_id)
    stack.cli("keys", "revoke", key_id)
    assert_refused(stack.unset(m1=m1, key=fresh), 401, "credential_revoked")
    assert "no version '9'" in stack.cli("keys", "revoke", f"{key_id}.9", check=False).stderr
    assert "neither the id" in stack.cli("keys", "rotate", "halves", check=False).stderr


def test_a_service_with_two_keys_is_asked_which(stack: Stack) -> None:
    """`rotate SERVICE` does not guess."""
    _, one, _ = stack.issue("twofold")
    _, two, _ = stack.issue("twofold")

    done = stack.cli("keys", "rotate", "twofold", check=False)

    assert done.returncode == 2
    assert one in done.stderr
    assert two in done.stderr


def test_the_list_tells_who_still_uses_the_old_secret(start: Callable[..., Stack]) -> None:
    """Last use, shares of the service's requests, and whether a full quiet period has gone by."""
    stack = start(quotas=WIDE)
    old, key_id, _ = stack.issue("moving")
    fresh = rotate(stack, "moving")["key"]
    for key, times in ((old, 1), (fresh, 3)):
        for _ in range(times):
            # Refused for its form, and a use of the key all the same.
            assert stack.unset(m1="nonsense", key=key).status_code == 400

    def counted() -> bool:
        return [row["share_last_hour"] for row in listed(stack, key_id)] == [0.25, 0.75]

    until(counted, what="the requests being counted")
    first, second = listed(stack, key_id)
    assert (first["share_last_day"], second["share_last_day"]) == (0.25, 0.75)
    assert abs(first["last_used_at"] - time.time()) < 30
    assert not first["safe_to_revoke"]
    # A quiet period later, by the clock of what was written: nobody has used it since.
    with stack.redis.client() as client:
        client.hset("gw:{:keys}:used", f"{key_id}.1", f"{time.time() - 25 * 3600:.3f}")
        entry = json.loads(client.hget("gw:{:keys}:keys", key_id))
        entry["versions"][0]["created_at"] -= 30 * 86400
        client.hset("gw:{:keys}:keys", key_id, json.dumps(entry))
        client.incr("gw:{:keys}:epoch")
    first, second = listed(stack, key_id)
    assert first["safe_to_revoke"]
    assert not second["safe_to_revoke"]
    assert "25%" in stack.cli("keys", "list").stdout


def test_a_key_that_never_was_used_is_not_safe_at_once(stack: Stack) -> None:
    """A key issued a minute ago is waiting to be rolled out, not forgotten."""
    _, key_id, _ = stack.issue("fresh")

    assert [row["safe_to_revoke"] for row in listed(stack, key_id)] == [False]


def test_an_end_is_announced(start: Callable[..., Stack]) -> None:
    """In the log once a day, in the list, and as a metric; a key that ends later is not."""
    stack = start(workers=2)
    _, soon, _ = stack.issue("soon", "--expires", "3d")
    _, late, _ = stack.issue("late", "--expires", "90d")
    stack.gateway.stop()
    stack.start_gateway()

    until(lambda: "key.ends_soon" in stack.gateway_log(), what="the warning")
    warned = [json.loads(line) for line in stack.gateway_log().splitlines() if '"key.ends_soon"' in line]
    metrics = stack.metrics()
    assert [line["key_id"] for line in warned] == [soon]
    assert [row["ends_soon"] for row in (*listed(stack, soon), *listed(stack, late))] == [True, False]
    (value,) = [float(line.rsplit(" ", 1)[1]) for line in metrics.splitlines() if soon in line]
    assert 2.9 * 86400 < value < 3.1 * 86400


def test_metrics_are_for_their_networks(start: Callable[..., Stack]) -> None:
    """Who has keys here is nobody else's business."""
    stack = start(server='metrics_networks = ["10.0.0.0/8"]')

    assert stack.http.get(stack.ops_url + "/metrics").status_code == 403


def test_bindings_refuse_by_name(start: Callable[..., Stack]) -> None:
    """Operation, account, network and number: each refusal says which binding it was, and no call is made."""
    stack = start(
        more='[accounts.other]\nbrand = "SANDBOX"\nservices = ["elsewhere"]\n[accounts.other.primary]\nssid = { env = "VENDOR_SSID" }'
    )
    m1, m2 = stack.masked()
    cases = (
        (("--scope", "reschedule"), {"m1": m1, "m2": m2}, {}, "scope_missing", None),
        (("--account", "other"), {"m1": m1, "m2": m2}, {}, "account_not_permitted", None),
        ((), {"m1": m1, "m2": m2}, {"X-Gateway-Account": "other"}, "account_not_permitted", None),
        ((), {"m1": m1, "m2": m2}, {"X-Gateway-Account": "no such"}, "account_not_permitted", None),
        (("--network", "10.9.0.0/16", "--network", "2001:db8::/32"), {"m1": m1, "m2": m2}, {}, "source_not_permitted", None),
        (("--prefix", "+9199"), {"m1": m1, "m2": m2}, {}, "number_not_permitted", "m1"),
        (("--prefix", "+9198"), {"m1": m1, "m2": m2}, {}, "number_not_permitted", "m2"),
    )
    for words, body, headers, slug, field in cases:
        key, key_id, _ = stack.issue("bound", *words)
        answer = stack.unset(body, key=key, headers=headers)
        refused = assert_refused(answer, 403, slug)
        assert refused.get("field") == field
        (record,) = stack.records(refused["request_id"])
        assert (record["problem"], record["key_id"], record["service"]) == (slug, key_id, "bound")
        assert record["source"] == "127.0.0.1"
    assert stack.vendor_calls() == []
    good, _, _ = stack.issue(
        "bound", "--network", "127.0.0.0/8", "--prefix", "+9198", "--prefix", "+9199", "--scope", "end", "--account", "test"
    )
    assert stack.unset(m1=m1, m2=m2, key=good).status_code == 200
    for words in (("--network", "10.0.0.1/8"), ("--prefix", "98"), ("--account", "nowhere")):
        assert stack.cli("keys", "issue", "bad", *words, check=False).returncode == 2


def test_a_source_is_believed_from_trusted_proxies_alone(start: Callable[..., Stack]) -> None:
    """`X-Forwarded-For` counts from the right, past proxies we know; what a caller wrote itself does not."""
    stack = start(server='trusted_proxies = ["127.0.0.0/8", "10.1.0.0/16"]')
    key, _, _ = stack.issue("proxied", "--network", "192.0.2.0/24")
    m1, m2 = stack.masked()

    def call(forwarded: str) -> httpx.Response:
        return stack.unset(m1=m1, m2=m2, expiry_duration=60, key=key, headers={"X-Forwarded-For": forwarded})

    assert call("203.0.113.9, 192.0.2.7").status_code == 200
    assert call("192.0.2.7, 10.1.2.3").status_code == 200
    assert_refused(call("192.0.2.7, 203.0.113.9"), 403, "source_not_permitted")
    assert_refused(call("192.0.2.7, 9876543210"), 403, "source_not_permitted")
    assert_refused(call(""), 403, "source_not_permitted")
    assert not any("9876543210" in json.dumps(record) for record in stack.stream())


def test_every_change_of_a_key_is_recorded(stack: Stack) -> None:
    """Who issued, rotated, extended and revoked what, in the trail, without a secret."""
    _, key_id, secret = stack.issue("recorded")
    fresh = rotate(stack, key_id)
    stack.cli("keys", "extend", f"{key_id}.1", "9d")
    stack.cli("keys", "revoke", key_id)

    found = stack.cli("audit", "search", "--key-id", key_id, "--json").stdout
    rows = [json.loads(line) for line in found.splitlines()]
    assert [row["change"] for row in rows] == ["key.issued", "key.rotated", "key.extended", "key.revoked"]
    assert all(row["operator"] and row["service"] == "recorded" and row["stage"] == "change" for row in rows)
    assert secret not in found
    assert fresh["secret"] not in found
    assert "key.rotated" in stack.cli("audit", "search", "--key-id", key_id).stdout


def test_changes_at_the_same_time_lose_nothing(stack: Stack) -> None:
    """A rotation and a revocation that meet leave the key revoked, or with a secret made after it; none is undone."""
    _, key_id, _ = stack.issue("contested")
    done: list[int] = []
    workers = [
        threading.Thread(target=lambda words=words: done.append(stack.cli("keys", *words, check=False).returncode))
        for words in (("rotate", key_id), ("revoke", f"{key_id}.1"), ("rotate", key_id), ("extend", f"{key_id}.1", "5d"))
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()

    rows = listed(stack, key_id)
    assert done == [0, 0, 0, 0]
    assert [row["version"] for row in rows] == [1, 2, 3]
    assert [row["state"] for row in rows] == ["revoked", "live", "live"]


class Load:
    """Callers that never stop, over connections of their own, against several gateways."""

    def __init__(self, stack: Stack, urls: list[str], key: str, threads: int) -> None:
        self._stop = threading.Event()
        self.statuses: list[int] = []
        self._pair = stack.masked()
        self._workers = [threading.Thread(target=self._run, args=(urls[n % len(urls)], key)) for n in range(threads)]

    def _run(self, url: str, key: str) -> None:
        body = {"m1": self._pair[0], "m2": self._pair[1], "expiry_duration": 60}
        while not self._stop.is_set():
            with httpx.Client(trust_env=False, timeout=20) as client:
                for _ in range(20):  # Then a new connection: another worker may take it.
                    self.statuses.append(client.post(url + UNSET, json=body, headers={"X-API-Key": key}).status_code)

    def __enter__(self) -> Self:
        for worker in self._workers:
            worker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for worker in self._workers:
            worker.join()


def test_revoked_is_revoked_on_every_worker_of_every_gateway(start: Callable[..., Stack]) -> None:
    """Two gateways of four workers each under load: no vendor call begins after `keys revoke` has returned."""
    stack = start(workers=4, quotas=WIDE)
    second = stack.spawn_gateway(name="gateway2")
    urls = [stack.url, second.address()]
    stack.fault(answer="slow", delay_ms=30)
    for _ in range(3):
        key, key_id, _ = stack.issue("loaded")
        with Load(stack, urls, key, threads=8) as load:
            until(lambda load=load: load.statuses.count(200) > 60, what="calls being served")
            stack.cli("keys", "revoke", key_id)
            returned_at = time.time()
            until(lambda load=load: load.statuses[-40:] == [401] * 40, what="every call being refused")
        late = [call for call in stack.vendor_calls() if call["received_at"] > returned_at]
        assert late == []
        assert set(load.statuses) == {200, 401}
        # The records say the same: what was admitted before it, and nothing after.
        records = [record for record in stack.stream() if record.get("key_id") == key_id]
        ends = {
            record["intent"]: record
            for record in records
            if record["stage"] in ("outcome", "refusal", "abort") and "intent" in record
        }
        assert sum(end["stage"] == "outcome" for end in ends.values()) == load.statuses.count(200)
        assert {f"{r['writer']}-{r['seq']}" for r in records if r["stage"] == "intent"} == ends.keys()
        assert {end["problem"] for end in ends.values() if end["stage"] != "outcome"} <= {"credential_revoked", "decided_anew"}
        stack.clear_vendor_calls()
    assert second.stop() == 0


def test_revoke_waits_for_calls_that_were_admitted(start: Callable[..., Stack]) -> None:
    """They are over when the command returns; calls that wait for their turn were not admitted, and are refused."""
    stack = start(server="drain_seconds = 90", upstream="connections_max = 1\npool_timeout_ms = 40000", quotas=WIDE, read_ms=2900)
    m1, m2 = stack.masked()
    stack.fault(answer="slow", delay_ms=2000)
    key, key_id, _ = stack.issue("queued")
    statuses: list[int] = []

    def call() -> None:
        with httpx.Client(trust_env=False, timeout=100, verify=PLAIN) as client:
            body = {"m1": m1, "m2": m2, "expiry_duration": 60}
            statuses.append(client.post(stack.url + UNSET, json=body, headers={"X-API-Key": key}).status_code)

    callers = [threading.Thread(target=call) for _ in range(30)]
    for caller in callers:
        caller.start()
    waiting = 'gateway_upstream_calls{account="test",state="waiting"} 29.0'
    until(lambda: waiting in stack.metrics(), what="all but one waiting")

    done = stack.cli("keys", "revoke", key_id)
    returned_at = time.time()
    for caller in callers:
        caller.join()

    assert "no calls under it" in done.stdout
    assert set(statuses) == {200, 401}
    assert len(stack.vendor_calls()) == statuses.count(200)
    assert [call for call in stack.vendor_calls() if call["received_at"] > returned_at] == []


def test_one_of_two_changes_at_a_time_is_made_again(stack: Stack) -> None:
    """Who decided by an entry that has changed since writes nothing: a rotation cannot undo a revocation."""
    _, key_id, _ = stack.issue("raced")
    settings = config.parse(tomllib.loads(stack.config.read_text()), os.environ)

    async def race() -> None:
        one, two = make_registry(settings, os.environ), make_registry(settings, os.environ)
        record = audit.change("key.revoked", at=time.time(), request_id="raced-0001", account=":keys", operator="test")
        await one.refresh()
        await two.refresh()
        entry = one.current.entries[key_id]
        await one.save(entry.revoked(time.time()), record)
        with pytest.raises(Changed):
            await two.save(entry.rotated(KeyVersion(2, time.time(), "d" * 64), 60), record)
        await one.aclose()
        await two.aclose()

    asyncio.run(race())
    assert [row["state"] for row in listed(stack, key_id)] == ["revoked"]


def test_a_bad_entry_takes_no_other_along(start: Callable[..., Stack]) -> None:
    """What somebody wrote into Redis by hand is an unknown key, and told by the list."""
    stack = start()
    m1, m2 = stack.masked()
    with stack.redis.client() as client:
        client.hset("gw:{:keys}:keys", mapping={"badentry01": "{", "badentry02": '{"service": 1}', "badentry03": "[]"})
        client.set("gw:{:keys}:epoch", int(time.time() * 1_000_000))

    assert stack.unset(m1=m1, m2=m2, key=stack.issue("good")[0]).status_code == 200
    done = stack.cli("keys", "list", check=False)
    assert done.returncode == 1
    assert "badentry02" in done.stderr


def test_keys_of_one_account_reach_no_other(start: Callable[..., Stack]) -> None:
    """A revocation holds in an account that the operator's own settings do not name."""
    other = '[accounts.other]\nbrand = "SANDBOX"\nservices = ["crm"]\n[accounts.other.primary]\nssid = { env = "VENDOR_SSID" }'
    stack = start(more=other)
    m1, m2 = stack.masked()
    assert stack.unset(m1=m1, m2=m2, expiry_duration=60).status_code == 200
    full = stack.config.read_text()
    stack.config.write_text(full.replace(other.replace("SANDBOX", stack.sandbox_url), ""))

    stack.cli("keys", "revoke", stack.key_id)

    assert_refused(stack.unset(m1=m1, m2=m2), 401, "credential_revoked")
