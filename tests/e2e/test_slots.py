"""The vendor's credentials: two slots of an account, who is active, and what happens when the vendor rejects one or both."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.e2e.test_main_job import assert_refused
from tests.running import VENDOR_SSID, Stack, until

SECOND = 'user_id = { env = "SECOND_USER" }\ntoken = { env = "SECOND_TOKEN" }'
ENVIRON = {"SECOND_USER": "sandbox-user", "SECOND_TOKEN": "sandbox-token"}


def two_slots(start: Callable[..., Stack], **more: Any) -> Stack:
    settings: dict[str, Any] = {"secondary": SECOND, "environ": ENVIRON, "rejections": 3, "upstream": "probe_seconds = 1"}
    return start(**{**settings, **more})


def end_session(stack: Stack, credential: str, code: int | None) -> None:
    body = {"credential": credential, "ended_with": code}
    assert stack.http.post(stack.sandbox_url + "/_sandbox/sessions", json=body).status_code == 204


def call(stack: Stack, pair: tuple[str, str]) -> Any:
    return stack.unset(m1=pair[0], m2=pair[1], expiry_duration=60)


def active(stack: Stack) -> str:
    rows = [json.loads(line) for line in stack.cli("upstream", "list", "--json").stdout.splitlines()]
    return str(next(row["slot"] for row in rows if row["state"] == "active"))


def alarms(stack: Stack) -> list[str]:
    lines = [json.loads(line) for line in stack.gateway_log().splitlines() if line.startswith("{")]
    return [line["event"] for line in lines if line["event"].startswith("credential.")]


def test_a_rejected_credential_costs_no_call(start: Callable[..., Stack]) -> None:
    """1014 on the first, the second is tried, and after three in a row it is active; no caller notices."""
    stack = two_slots(start)
    pair = stack.masked()
    assert call(stack, pair).status_code == 200
    stack.clear_vendor_calls()
    end_session(stack, VENDOR_SSID, 1014)

    answers = [call(stack, pair) for _ in range(6)]

    assert [answer.status_code for answer in answers] == [200] * 6
    assert active(stack) == "secondary"
    # Three calls were tried twice, the others went to the second at once.
    assert [call["answered_code"] for call in stack.vendor_calls()] == [1014, None] * 3 + [None] * 3
    found = until(lambda: rows if len(rows := stack.records(answers[0].json()["request_id"])) == 4 else None, what="four records")
    intent, rejected, again, answered = sorted(found, key=lambda row: (row.get("attempt", 1), row["stage"] == "outcome"))
    assert [row["stage"] for row in (intent, rejected, again, answered)] == ["intent", "outcome"] * 2
    assert [row["slot"] for row in (intent, rejected, again, answered)] == ["primary"] * 2 + ["secondary"] * 2
    assert [row.get("attempt") for row in (intent, rejected, again, answered)] == [None, None, 2, 2]
    assert (rejected["problem"], rejected["result"], answered["result"]) == ("upstream_credential_rejected", "failed", "answered")
    assert len({row["credential"] for row in (intent, again)}) == 2
    assert alarms(stack).count("credential.switched") == 1
    (change,) = [row for row in stack.stream() if row["stage"] == "change"]
    assert (change["change"], change["operator"], change["slot"]) == ("slot.switched", "gateway", "secondary")
    assert stack.http.get(stack.url + "/readyz").json()["status"] == "ok"
    metrics = stack.metrics()
    assert 'gateway_credential_active{account="test",slot="secondary"} 1.0' in metrics
    assert 'gateway_credential_rejected{account="test",slot="primary"} 1.0' in metrics


def test_every_process_follows_a_switch(start: Callable[..., Stack]) -> None:
    """What one gateway found out, another decides by at its next call, without asking the vendor in vain."""
    stack = two_slots(start)
    other = stack.spawn_gateway(name="other")
    url = other.address()
    pair = stack.masked()
    end_session(stack, VENDOR_SSID, 1020)
    for _ in range(3):
        assert call(stack, pair).status_code == 200
    stack.clear_vendor_calls()
    stack.url = url

    assert call(stack, pair).status_code == 200
    assert [call["answered_code"] for call in stack.vendor_calls()] == [None]
    other.stop()


def test_one_odd_answer_does_not_switch(start: Callable[..., Stack]) -> None:
    """A rejection now and then, with successes between, changes nothing; each such call succeeds all the same."""
    stack = two_slots(start)
    pair = stack.masked()
    for _ in range(5):
        end_session(stack, VENDOR_SSID, 1014)
        assert call(stack, pair).status_code == 200
        end_session(stack, VENDOR_SSID, None)
        assert call(stack, pair).status_code == 200

    assert active(stack) == "primary"
    assert "credential.switched" not in alarms(stack)


def test_invalid_parameters_may_mean_the_credential(start: Callable[..., Stack]) -> None:
    """1000 after a credential that worked: where the other one is taken, it was the credential."""
    stack = two_slots(start)
    pair = stack.masked()
    assert call(stack, pair).status_code == 200
    end_session(stack, VENDOR_SSID, 1000)

    assert [call(stack, pair).status_code for _ in range(5)] == [200] * 5
    assert active(stack) == "secondary"


def test_a_callers_wrong_parameters_switch_nothing(start: Callable[..., Stack]) -> None:
    """1000 from both is the caller's: it gets it, and its next ones are not tried twice."""
    stack = two_slots(start)
    pair = stack.masked()
    assert call(stack, pair).status_code == 200
    stack.clear_vendor_calls()
    stack.fault(force_code=1000)

    for _ in range(8):
        assert_refused(call(stack, pair), 400, "vendor_parameters_invalid", origin="vendor")
    assert len(stack.vendor_calls()) == 9
    stack.no_faults()
    assert call(stack, pair).status_code == 200
    assert active(stack) == "primary"
    assert alarms(stack) == ["credential.loaded"] * 2


def test_both_rejected_is_said_and_recovers_by_itself(start: Callable[..., Stack]) -> None:
    """503 with its own slug, an alarm, readiness down; the vendor is left in peace but for a try now and then."""
    stack = two_slots(start)
    pair = stack.masked()
    end_session(stack, VENDOR_SSID, 1014)
    end_session(stack, "sandbox-user", 1014)

    for _ in range(4):
        body = assert_refused(call(stack, pair), 503, "upstream_credentials_rejected")
        assert body["retryable"]
    until(lambda: "credential.none_left" in alarms(stack), what="the alarm")
    ready = stack.http.get(stack.url + "/readyz")
    assert ready.status_code == 503
    assert ready.json()["checks"]["account.test.credential"] == "CredentialsRejected"
    stack.clear_vendor_calls()
    began = time.monotonic()
    answers = [call(stack, pair) for _ in range(20)]
    tries = 2 + int(time.monotonic() - began)
    assert {answer.json()["error"] for answer in answers} == {"upstream_credentials_rejected"}
    assert len(stack.vendor_calls()) <= 2 * tries
    end_session(stack, "sandbox-user", None)

    until(lambda: call(stack, pair).status_code == 200, what="calls being served again")
    assert stack.http.get(stack.url + "/readyz").status_code == 200
    until(lambda: active(stack) == "secondary", what="the good one being active")


def test_the_only_credential_rejected_is_said(start: Callable[..., Stack]) -> None:
    """Without a second one the caller learns whose fault it is, and the vendor is not asked without end."""
    stack = start(rejections=3, upstream="probe_seconds = 600")
    pair = stack.masked()
    assert call(stack, pair).status_code == 200
    end_session(stack, VENDOR_SSID, 1014)

    answers = [call(stack, pair) for _ in range(5)]
    assert [answer.json()["error"] for answer in answers] == ["upstream_credential_rejected"] * 3 + [
        "upstream_credentials_rejected"
    ] * 2
    assert stack.http.get(stack.url + "/readyz").status_code == 503


def test_a_second_try_is_charged_to_the_account(start: Callable[..., Stack]) -> None:
    """The vendor counts both calls, so do we: without a unit left there is no second try."""
    quotas = '[policies.account]\nrate = "1/h"\nburst = 3'
    stack = two_slots(start, quotas=quotas)
    pair = stack.masked()
    end_session(stack, VENDOR_SSID, 1014)

    assert call(stack, pair).status_code == 200
    assert_refused(call(stack, pair), 502, "upstream_credential_rejected", origin="vendor")
    assert_refused(call(stack, pair), 429, "quota_exceeded")
    assert len(stack.vendor_calls()) == 3


def test_operators_check_promote_and_roll_back(start: Callable[..., Stack]) -> None:
    """A bad credential is not promoted; a good one is, at the next call; and back. The proving calls are recorded."""
    stack = two_slots(start)
    pair = stack.masked()
    end_session(stack, "sandbox-user", 1014)
    checked = stack.cli("upstream", "check", "--json", check=False)
    refused = stack.cli("upstream", "promote", check=False)

    rows = [json.loads(line) for line in checked.stdout.splitlines()]
    assert checked.returncode == 1
    assert [(row["slot"], row["good"]) for row in rows] == [("primary", True), ("secondary", False)]
    assert refused.returncode == 2
    assert "secondary is rejected" in refused.stderr
    assert active(stack) == "primary"

    end_session(stack, "sandbox-user", None)
    stack.cli("upstream", "promote")
    answer = call(stack, pair)
    assert stack.records(answer.json()["request_id"])[-1]["slot"] == "secondary"
    assert call(stack, pair).status_code == 200
    stack.cli("upstream", "rollback")
    answer = call(stack, pair)
    assert stack.records(answer.json()["request_id"])[-1]["slot"] == "primary"
    changes = [row for row in stack.stream() if row["stage"] == "change"]
    assert [row["change"] for row in changes] == ["slot.promoted", "slot.rolled_back"]
    proving = [row for row in stack.stream() if str(row.get("service", "")).startswith("operator:")]
    # Recorded before it was made; and the vendor never acted on one.
    assert [row["stage"] for row in proving] == ["intent", "outcome"] * 4
    assert not any(sent["acted"] for sent in stack.vendor_calls() if "910000000000" in sent["body"])
    assert "primary" in stack.cli("upstream", "check", "--slot", "primary").stdout


def test_a_credential_that_stands_by_may_be_missing(start: Callable[..., Stack]) -> None:
    """Nothing to promote, and nothing to try: said in one line."""
    stack = start()

    done = stack.cli("upstream", "promote", check=False)
    assert done.returncode == 2
    assert "[accounts.test.secondary] is empty" in done.stderr
    assert stack.cli("upstream", "check").returncode == 0


def test_an_exchanged_link_is_taken_up_whole(start: Callable[..., Stack], tmp_path: Path) -> None:
    """Kubernetes swaps one link for a folder of files; id and token change together, under load, and no call is refused."""

    def version(name: str, user: str, token: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "user").write_text(user + "\n")
        (folder / "token").write_text(token + "\r\n")
        return folder

    first = version("v1", "sandbox-user", "sandbox-token")
    second = version("v2", "sandbox-user", "sandbox-token")
    link = tmp_path / "now"
    link.symlink_to(first)
    stack = start(credential=f'user_id = {{ file = "{link}/user" }}\ntoken = {{ file = "{link}/token" }}', rejections=3)
    pair = stack.masked()
    statuses: list[int] = []
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            statuses.append(call(stack, pair).status_code)

    worker = threading.Thread(target=load)
    worker.start()
    for number in range(6):
        fresh = tmp_path / f"swap{number}"
        fresh.symlink_to(second if number % 2 == 0 else first)
        os.replace(fresh, link)
        time.sleep(0.3)
    stop.set()
    worker.join()
    assert set(statuses) == {200}
    # A bad pair is taken up too, and a good one after it.
    bad = tmp_path / "bad"
    bad.symlink_to(version("v3", "sandbox-user", "wrong"))
    os.replace(bad, link)
    until(lambda: call(stack, pair).status_code == 502, what="the new pair being used")
    good = tmp_path / "good"
    good.symlink_to(first)
    os.replace(good, link)
    until(lambda: call(stack, pair).status_code == 200, what="the good pair being used")


def test_a_half_written_secret_is_not_taken(start: Callable[..., Stack], tmp_path: Path) -> None:
    """A file that is empty, cut or unreadable leaves the last value in use, and is told."""
    path = tmp_path / "ssid"
    path.write_text(VENDOR_SSID)
    path.chmod(0o644)
    stack = start(credential=f'ssid = {{ file = "{path}" }}', rejections=3, read_ms=2900)
    pair = stack.masked()
    assert "secret.found" in stack.gateway_log()

    path.write_text("")
    until(lambda: "credential.unreadable" in stack.gateway_log(), what="the fault being told")
    assert call(stack, pair).status_code == 200
    ready = stack.http.get(stack.url + "/readyz")
    assert (ready.status_code, ready.json()["status"]) == (200, "degraded")  # The last value serves.
    assert ready.json()["checks"]["account.test.secrets"] == "SecretUnreadable"
    for cut in range(1, len(VENDOR_SSID)):  # Written slowly, letter by letter.
        path.write_text(VENDOR_SSID[:cut])
        written = time.monotonic()
        time.sleep(0.05)
        assert call(stack, pair).status_code == 200
        if time.monotonic() - written > 0.3:  # What stands for as long as that is taken for whole.
            break
    path.write_text(VENDOR_SSID + "\n\n")
    until(lambda: stack.http.get(stack.url + "/readyz").json()["status"] == "ok", what="the file being good again")
    assert call(stack, pair).status_code == 200


def test_one_good_slot_is_enough_to_start(start: Callable[..., Stack], tmp_path: Path) -> None:
    """A file that is missing at the start is told, and the other credential serves; without any, the start is refused."""
    missing = tmp_path / "missing"
    stack = start(credential=f'ssid = {{ file = "{missing}" }}', secondary=SECOND, environ=ENVIRON, rejections=3)
    pair = stack.masked()

    answer = call(stack, pair)
    assert answer.status_code == 200
    assert stack.records(answer.json()["request_id"])[-1]["slot"] == "secondary"
    assert "secret.found" in stack.gateway_log()
    assert stack.cli("check", check=False).returncode == 1
    missing.write_text(VENDOR_SSID)
    until(lambda: stack.records(call(stack, pair).json()["request_id"])[0]["slot"] == "primary", what="the file being found")
    missing.unlink()
    assert stack.cli("serve", "--port", "0", check=False, environ={"SECOND_TOKEN": ""}).returncode == 2


def test_a_key_that_is_revoked_between_two_tries_gets_no_second(start: Callable[..., Stack]) -> None:
    """The vendor rejects the first try slowly; by then the key is revoked, and the second is not made."""
    stack = two_slots(start, read_ms=2900)
    pair = stack.masked()
    end_session(stack, VENDOR_SSID, 1014)
    stack.fault(answer="slow", delay_ms=1200)
    answers: list[Any] = []
    caller = threading.Thread(target=lambda: answers.append(call(stack, pair)))
    caller.start()
    until(stack.vendor_calls, what="the vendor being called")
    with stack.redis.client() as client:  # As `keys revoke` does it, without its waiting for the call.
        entry = json.loads(client.hget("gw:{:keys}:keys", stack.key_id))
        entry["versions"][0]["revoked_at"] = time.time()
        client.hset("gw:{:keys}:keys", stack.key_id, json.dumps(entry))
        client.set("gw:{test}:epoch", client.incr("gw:{:keys}:epoch"))
    caller.join()

    assert_refused(answers[0], 502, "upstream_credential_rejected", origin="vendor")
    assert len(stack.vendor_calls()) == 1
    # Another key's end does not stand in the way.
    other, other_id, _ = stack.issue("other")
    mine = stack.issue("mine")[0]
    stack.clear_vendor_calls()
    caller = threading.Thread(target=lambda: answers.append(stack.unset(m1=pair[0], m2=pair[1], expiry_duration=60, key=mine)))
    caller.start()
    until(stack.vendor_calls, what="the vendor being called")
    stack.cli("keys", "revoke", other_id)
    caller.join()
    assert answers[1].status_code == 200
    assert len(stack.vendor_calls()) == 2


def test_a_command_is_run_again(start: Callable[..., Stack], tmp_path: Path) -> None:
    """What a command prints is taken up with its next run; one that fails or hangs leaves the last value."""
    source, script = tmp_path / "source", tmp_path / "fetch"
    source.write_text("other-session")
    script.write_text(f"#!/bin/sh\ncat {source}\n")
    script.chmod(0o700)
    stack = start(credential=f'ssid = {{ command = ["{script}"] }}', upstream="command_seconds = 1")
    pair = stack.masked()
    assert_refused(call(stack, pair), 502, "upstream_credential_rejected", origin="vendor")

    source.write_text(VENDOR_SSID + "\n")
    until(lambda: call(stack, pair).status_code == 200, what="the new value being used")
    source.unlink()
    until(lambda: "credential.unreadable" in stack.gateway_log(), what="the fault being told")
    assert call(stack, pair).status_code == 200


def test_accounts_stand_apart(start: Callable[..., Stack]) -> None:
    """One account's dead credential, or silent vendor, neither stops nor slows another's calls."""
    slow = start()
    stack = start(
        rejections=2,
        more=f"""
[accounts.bad]
brand = "SANDBOX"
services = ["bad"]
[accounts.bad.primary]
ssid = {{ env = "BAD" }}
[accounts.stuck]
brand = "{slow.sandbox_url}"
services = ["stuck"]
[accounts.stuck.primary]
ssid = {{ env = "VENDOR_SSID" }}
""",
        environ={"BAD": "not-a-session"},
        # Most calls of the silent vendor fail, and are to go on failing.
        upstream="connections_max = 4\nbreaker_calls = 0",
    )
    slow.fault(answer="stall_before")
    bad, stuck = stack.issue("bad")[0], stack.issue("stuck")[0]
    pair = stack.masked()
    alone = [call(stack, pair) for _ in range(40)]
    statuses: list[str] = []

    def hammer(key: str) -> None:
        for _ in range(4):
            statuses.append(stack.unset(m1=pair[0], m2=pair[1], key=key).json()["error"])

    workers = [threading.Thread(target=hammer, args=(key,)) for key in (bad, stuck) for _ in range(8)]
    for worker in workers:
        worker.start()
    beside = [call(stack, pair) for _ in range(40)]
    ready = stack.http.get(stack.url + "/readyz").json()
    for worker in workers:
        worker.join()

    assert {answer.status_code for answer in (*alone, *beside)} == {200}
    assert set(statuses) <= {"upstream_credential_rejected", "upstream_credentials_rejected", "upstream_timeout", "upstream_busy"}
    # A silent vendor holds its own calls for that long.
    assert sorted(answer.elapsed for answer in beside)[-3].total_seconds() < 1.5
    assert ready["status"] == "degraded"
    assert ready["checks"]["account.bad.credential"] == "CredentialsRejected"
    assert stack.http.get(stack.url + "/readyz").status_code == 200
    assert stack.http.get(stack.url + "/readyz?account=bad").status_code == 503
    assert stack.http.get(stack.url + "/readyz?account=test").status_code == 200
    with stack.redis.client() as client:
        assert client.xlen("gw:{bad}:audit") > 0
    found = stack.cli("audit", "search", "--json", "--account", "stuck").stdout.splitlines()
    assert {json.loads(line)["account"] for line in found} == {"stuck"}


def test_a_service_of_two_accounts_says_which(start: Callable[..., Stack]) -> None:
    """The first by default, another by `X-Gateway-Account`; the vendor gets that account's credential."""
    more = '[accounts.second]\nbrand = "SANDBOX"\nservices = ["crm", "both"]\n[accounts.second.primary]\nuser_id = { env = "SECOND_USER" }\ntoken = { env = "SECOND_TOKEN" }\n[accounts.third]\nbrand = "SANDBOX"\nservices = ["both"]\n[accounts.third.primary]\nssid = { env = "VENDOR_SSID" }'
    stack = start(more=more, environ=ENVIRON)
    pair = stack.masked()
    both = stack.issue("both")[0]
    narrow = stack.issue("both", "--account", "third")[0]
    sent = []
    for key, headers in ((both, {}), (both, {"X-Gateway-Account": "third"}), (narrow, {})):
        stack.clear_vendor_calls()
        body = {"m1": pair[0], "m2": pair[1], "expiry_duration": 60}
        assert stack.unset(body, key=key, headers=headers).status_code == 200
        sent.append("ssid" in json.loads(stack.vendor_calls()[0]["body"]))

    assert sent == [False, True, True]
    assert_refused(stack.unset(m1=pair[0], key=narrow, headers={"X-Gateway-Account": "second"}), 403, "account_not_permitted")
