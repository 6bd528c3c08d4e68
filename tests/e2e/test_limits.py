"""Limits as ops meet them: seen, changed live, tried in shadow, explained, and asked of history."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from gateway.audit import rfc3339
from gateway.ledger.limits import SAVE
from tests.e2e.test_main_job import assert_refused
from tests.integration.test_scale_out import WIDE, gateways
from tests.running import Stack, until

WHY = ("--why", "trying it out")


def call(stack: Stack, **fields: Any) -> str:
    """Make one call for a fresh number; return the policy that refused it, or `passed`."""
    answer = stack.unset(**({"m1": stack.fresh_numbers()[0]} | fields))
    return answer.json()["policy"] if answer.status_code == 429 else "passed"


def shown(stack: Stack, *words: str) -> dict[str, dict[str, Any]]:
    rows = map(json.loads, stack.cli("limits", "show", "--json", *words).stdout.splitlines())
    return {f"{row['policy']}:{row['subject']}" if row["subject"] else row["policy"]: row for row in rows}


def explained(stack: Stack, request_id: str) -> dict[str, dict[str, Any]]:
    stack.records(request_id)
    rows = map(json.loads, stack.cli("limits", "explain", request_id, "--json").stdout.splitlines())
    return {f"{row['policy']}:{row['field']}" if row["field"] else row["policy"]: row for row in rows}


def test_policies_of_every_kind(start: Callable[..., Stack]) -> None:
    """By several things at once, for some operations, for some services, for one subject more than for others."""
    stack = start(quotas=WIDE + """
[policies.caller]
rate = "1/d"
burst = 5
[policies.caller.subjects.big]
burst = 7
[policies.moves]
by = ["caller", "operation"]
operations = ["reschedule"]
rate = "1/d"
burst = 2
[policies.small]
by = ["caller"]
services = ["crm"]
rate = "1/d"
burst = 4
[policies.elsewhere]
by = ["account"]
accounts = ["other"]
rate = "1/d"
burst = 1
[accounts.other]
brand = "SANDBOX"
services = ["nobody"]
primary = { ssid = { env = "VENDOR_SSID" } }
""".replace("SANDBOX", "http://127.0.0.1:9"))  # fmt: skip
    big, _, _ = stack.issue("big")

    assert [call(stack, expiry_duration=5) for _ in range(3)] == ["passed", "passed", "moves"]
    assert [call(stack) for _ in range(3)] == ["passed", "passed", "small"]
    made = [stack.unset(m1=stack.fresh_numbers()[0], key=big).status_code for _ in range(8)]
    assert made == [404] * 7 + [429]


def test_every_policy_can_be_off(start: Callable[..., Stack]) -> None:
    """Then nothing is limited, nothing is told of limits, and calls are recorded all the same."""
    stack = start(
        quotas="".join(f'[policies.{name}]\nmode = "off"\n' for name in ("caller", "number", "account", "sweep", "repeat"))
    )

    answer = stack.unset(m1=stack.fresh_numbers()[0])

    assert answer.status_code == 404
    assert "ratelimit" not in answer.headers
    assert [record["stage"] for record in stack.records(answer.headers["x-request-id"])] == ["intent", "outcome"]
    assert shown(stack)["caller"]["mode"] == "off"


def test_a_live_change_is_in_force_at_the_next_call_everywhere(start: Callable[..., Stack]) -> None:
    """On two gateways of two workers, without a restart; it ends by itself, or is reset; each change stands in the trail."""
    stack = start(workers=2, quotas=WIDE + '[policies.caller]\nrate = "1000/s"\nburst = 1000')
    with gateways(stack, 2) as urls:

        def refused() -> int:
            count = 0
            for number in range(16):
                stack.url = urls[number % 2]
                count += call(stack) == "caller"
            return count

        assert refused() == 0
        done = stack.cli("limits", "set", "crm", "1/d", "--burst", "4", "--for", "1h", *WHY)
        assert "caller:crm: 1000/s burst 1000 enforce → 1/d burst 4 enforce until" in done.stdout
        # Units used stay used; of the 16 before, at a thousand a second, none is left.
        assert refused() == 12
        assert shown(stack)["caller:crm"]["used"] == 4
        assert shown(stack)["caller:crm"]["why"] == "trying it out"

        stack.cli("limits", "reset", "crm", *WHY)
        assert refused() == 0
        stack.cli("limits", "set", "caller:crm", "1/d", "--burst", "1", "--for", "6s", *WHY)
        assert refused() >= 14
        until(lambda: refused() == 0, what="the change ending by itself")

    history = [json.loads(line) for line in stack.cli("limits", "history", "--json").stdout.splitlines()]
    assert [row["change"] for row in history] == ["limit.set", "limit.reset", "limit.set"]
    first = history[0]
    assert (first["policy"], first["subject"], first["why"]) == ("caller", "crm", "trying it out")
    assert (first["before"], first["after"]) == ("1000/s burst 1000 enforce", "1/d burst 4 enforce")
    assert first["until"] > first["at"]
    assert first["operator"]


def test_a_raised_limit_helps_at_once(start: Callable[..., Stack]) -> None:
    """A caller that was refused for a day passes with the next call; what it used stays used."""
    stack = start(quotas=WIDE + '[policies.caller]\nrate = "1/d"\nburst = 3')
    assert [call(stack) for _ in range(4)] == ["passed"] * 3 + ["caller"]

    stack.cli("limits", "set", "crm", "2/d", "--burst", "5", "--for", "1h", *WHY)

    assert [call(stack) for _ in range(3)] == ["passed", "passed", "caller"]


def test_one_number_is_limited_without_being_written_down(start: Callable[..., Stack]) -> None:
    """A live change for one telephone number, in any way of writing it; others are as they were."""
    stack = start(quotas=WIDE)
    m1, m2 = stack.fresh_numbers()

    done = stack.cli("limits", "set", f"number:+91 {m1[:5]} {m1[5:]}", "1/d", "--burst", "1", "--for", "1h", *WHY)

    assert [call(stack, m1=m1), call(stack, m1="0" + m1), call(stack, m1=m2), call(stack, m1=m2)] == ["passed", "number"] + [
        "passed"
    ] * 2
    assert m1 not in done.stdout + json.dumps(stack.stream())
    assert (
        shown(stack, "--number", m1)[next(name for name in shown(stack, "--number", m1) if name.startswith("number:"))]["used"]
        == 1
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("set", "crn", "5/s", "--for", "1h", *WHY), "neither a policy nor a service 'crn'"),
        (("set", "crm", "5", "--for", "1h", *WHY), "rate: must be a text like"),
        (("set", "crm", "--for", "1h", *WHY), "nothing to change"),
        (("set", "crm", "5/s", *WHY), "--for: is missing"),
        (("set", "crm", "5/s", "--for", "100d", *WHY), "--for: must be from 1s to 90d"),
        (("set", "crm", "5/s", "--for", "1h"), "--why: give the reason"),
        (("set", "crm", "5/s", "--for", "1h", "--why", "asked by 98765 43210"), "--why: may hold a telephone number"),
        (("set", "crm", "5/s", "--burst", "0", "--for", "1h", *WHY), "burst: must be a whole number"),
        (("set", "nothing:crm", "5/s", "--for", "1h", *WHY), "there is no policy 'nothing'"),
        (("set", "caller:crm/end", "5/s", "--for", "1h", *WHY), "write caller:CALLER"),
        (("set", "number:abc", "5/s", "--for", "1h", *WHY), "is not a telephone number"),
        (("set", "sweep", "--burst", "2", "--for", "1h", *WHY), "must be 3 or more"),
        (("set", "hard", "90/s", "--for", "1h", *WHY), "admits up to 99 in a window of hard_limit 50/s"),
        (("set", "crm", "5/s", "--for", "1h", "--account", "x", *WHY), "there is no [accounts.x]"),
        (("apply", "nowhere.toml", "--dry-run"), "No such file"),
        (("explain", "never-was-one"), "there is no record of this request"),
        (("replay", "--rate", "5/s"), "--rate, --burst: a limit is both"),
        (("replay", "--rate", "fast", "--burst", "4"), "--rate: must be a text like"),
        (("replay", "--rate", "5/s", "--burst", "4", "--by", "moon"), "--by: must be a list of"),
        (("replay", "--since", "soon"), "--since: must be a span"),
    ],
)  # fmt: skip
def test_wrong_words_get_one_clear_line(bounded: Stack, words: tuple[str, ...], told: str) -> None:
    """Status 2, the reason and the fix; nothing is changed."""
    done = bounded.cli("limits", *words, check=False)

    assert done.returncode == 2, done.stdout
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
    with bounded.redis.client() as client:
        assert client.hlen("gw:{test}:limits") == 0


@pytest.fixture(scope="module")
def bounded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    quotas = WIDE + '[policies.hard]\nby = ["account"]\nrate = "40/s"\nburst = 10\nhard_limit = "50/s"'
    with Stack(tmp_path_factory.mktemp("bounded"), quotas=quotas) as stack:
        yield stack


def test_a_single_number_is_limited_where_its_policy_is_off(start: Callable[..., Stack]) -> None:
    """What the command says holds, also where nobody else is limited."""
    stack = start(quotas=WIDE + '[policies.fewer]\nby = ["number"]\nrate = "100/s"\nburst = 100\nmode = "off"\n')
    m1, m2 = stack.fresh_numbers()
    words = ("--mode", "enforce", "--burst", "1", "--for", "1h", *WHY)
    assert stack.cli("limits", "set", f"fewer:+91{m1}", "1/d", *words).returncode == 0

    assert [call(stack, m1=m1), call(stack, m1=m1), call(stack, m1=m2), call(stack, m1=m2)] == [
        "passed",
        "fewer",
        "passed",
        "passed",
    ]


def test_no_combination_of_changes_passes_a_hard_limit(start: Callable[..., Stack]) -> None:
    """Each change is right with the others and without them, whichever ends first; the account's own is shown."""
    stack = start(quotas='[policies.vendor]\nby = ["account"]\nrate = "60/s"\nburst = 40\nhard_limit = "100/s"\n')
    words = ("--for", "1h", "--why", "trial")
    assert stack.cli("limits", "set", "vendor", "20/s", *words).returncode == 0

    refused = stack.cli("limits", "set", "vendor:test", "--burst", "80", *words, check=False)

    assert refused.returncode == 2
    assert "once the change of vendor has ended" in refused.stderr
    assert stack.cli("limits", "set", "vendor:test", "--burst", "30", *words).returncode == 0
    assert [
        row["burst"]
        for row in map(json.loads, stack.cli("limits", "show", "--json").stdout.splitlines())
        if row["subject"] == "test"
    ] == [30]
    unknown = stack.cli("limits", "set", "vendor:nobody", "--burst", "30", *words, check=False)
    assert "has no account 'nobody'" in unknown.stderr


def test_operators_at_once_lose_no_change(start: Callable[..., Stack]) -> None:
    """Four changes of one limit at the same moment are all in force, each with its record."""
    stack = start(quotas=WIDE)
    changes = (("9/m",), ("--burst", "11"), ("--concurrency", "5"), ("--mode", "shadow"))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda words: stack.cli("limits", "set", "number", *words, "--for", "1h", *WHY), changes))

    after = shown(stack)["number"]
    assert (after["rate"], after["burst"], after["concurrency"], after["mode"]) == ("9/m", 11, 5, "shadow")
    history = [json.loads(line) for line in stack.cli("limits", "history", "--json").stdout.splitlines()]
    assert [row["before"] for row in history[1:]] == [row["after"] for row in history[:-1]]
    assert len(history) == 4
    # Whoever decided by an older state is sent back: nothing is changed, and the trail says that it was not.
    records = {f"{record['writer']}-{record['seq']}": record for record in stack.stream()}
    not_made = [record["intent"] for record in records.values() if record["stage"] == "abort"]
    assert sum(record["stage"] == "change" for record in records.values()) == 4 + len(not_made)
    assert {records[name]["stage"] for name in not_made} <= {"change"}
    with stack.redis.client() as client:
        names = ("gw:{test}:tips", "gw:{test}:audit", "gw:{test}:limits", "gw:{test}:limits:version")
        before = client.hgetall(names[2])
        link = ("host-x", "first", 0, "", "ab" * 32, "{}", "host-x-0")
        assert client.eval(SAVE.text, 4, *names, *link, "an older version", 0, 1, "number", "{}") == [b"stale"]
        assert client.hgetall(names[2]) == before


def test_shadow_is_seen_everywhere_and_refuses_nobody(start: Callable[..., Stack]) -> None:
    """Recorded as shadow_deny, counted in metrics and `show`, explained; never told to the caller."""
    stack = start(quotas=WIDE + '[policies.tried]\nby = ["caller"]\nrate = "1/d"\nburst = 2\nmode = "shadow"')

    last = [stack.unset(m1=stack.fresh_numbers()[0]) for _ in range(5)][-1]

    assert last.status_code == 404
    assert "tried" not in last.text + last.headers["ratelimit"] + last.headers["ratelimit-policy"]
    outcomes = [stack.records(last.headers["x-request-id"])[-1]]
    assert outcomes[0]["shadow_deny"] == "tried"
    assert sum("shadow_deny" in record for record in stack.stream()) == 3
    assert 'gateway_limit_refused_total{account="test",mode="shadow_deny",policy="tried"} 3.0' in stack.metrics()
    until(lambda: shown(stack)["tried"]["shadow_refused_last_hour"] == 3, what="the count being written")
    row = explained(stack, last.headers["x-request-id"])["tried"]
    assert (row["mode"], row["verdict"], row["left"]) == ("shadow", "would have refused", 0)

    stack.cli("limits", "set", "tried", "--mode", "enforce", "--for", "1h", *WHY)
    assert call(stack) == "tried"


def test_a_refusal_is_explained(start: Callable[..., Stack]) -> None:
    """What each limit had left, which refused, and from when a retry would have passed; the 429 says the same in short."""
    stack = start(
        quotas=WIDE
        + '[policies.caller]\nrate = "1/d"\nburst = 1\n[policies.also]\nby = ["caller", "operation"]\nrate = "1/h"\nburst = 1'
    )
    m1, m2 = stack.fresh_numbers()
    stack.unset(m1=m1, m2=m2)

    body = assert_refused(answer := stack.unset(m1=m1, m2=m2), 429, "quota_exceeded")
    rows = explained(stack, body["request_id"])

    assert body["policy"] == "caller"
    assert sorted(body["violated-policies"]) == ["also", "caller"]
    assert body["retry_after"] == int(answer.headers["retry-after"]) == rows["caller"]["retry_after_seconds"]
    assert {name for name, row in rows.items() if row["verdict"] == "refused"} == {"caller", "also"}
    assert rows["also"]["retry_after_seconds"] in (3599, 3600)
    assert {"number:m1", "number:m2", "account", "sweep", "repeat:m1", "repeat:m2"} <= rows.keys()
    assert rows["sweep"]["left"] == 998
    assert rows["caller"]["retry_at"] > stack.records(body["request_id"])[-1]["at"]
    table = stack.cli("limits", "explain", body["request_id"]).stdout
    assert "quota_exceeded, crm, test" in table
    # What was refused before the limits has nothing to explain.
    early = stack.unset(m1="nonsense").json()["request_id"]
    stack.records(early)
    assert "No limit was looked at" in stack.cli("limits", "explain", early).stdout


def test_a_sweep_is_noticed(start: Callable[..., Stack]) -> None:
    """Many distinct numbers use the guard up, known ones do not; enforced, new numbers are refused and known ones pass."""
    stack = start(
        quotas=WIDE
        + '[policies.sweep]\nrate = "4/d"\nburst = 6\nmode = "enforce"\n[policies.repeat]\nrate = "1/d"\nburst = 3\nmode = "enforce"'
    )
    numbers = [stack.fresh_numbers()[0] for _ in range(6)]

    assert [call(stack, m1=number) for number in numbers] == ["passed"] * 6
    assert call(stack) == "sweep"
    assert [call(stack, m1=number) for number in numbers] == ["passed"] * 6
    # One number again and again is the other guard's.
    assert [call(stack, m1=numbers[0]), call(stack, m1=numbers[0])] == ["passed", "repeat"]
    fields = stack.cli("audit", "search", "--problem", "quota_exceeded", "--json").stdout
    assert not any(number in fields for number in numbers)


def test_a_candidate_is_compared_and_applied(start: Callable[..., Stack], tmp_path: Path) -> None:
    """--dry-run shows the difference and changes nothing; without it the file's policies hold until their end."""
    stack = start(quotas=WIDE + '[policies.caller]\nrate = "100/s"\nburst = 100')
    file = tmp_path / "candidate.toml"
    file.write_text(
        '[policies.caller]\nrate = "1/d"\nburst = 2\n[policies.fresh]\nby = ["caller", "operation"]\nconcurrency = 3\n'
    )

    dry = stack.cli("limits", "apply", str(file), "--dry-run").stdout
    assert "test: caller: 100/s burst 100 enforce → 1/d burst 2 enforce" in dry
    assert "test: fresh: new: by caller+operation, concurrency 3 enforce" in dry
    assert [call(stack) for _ in range(4)] == ["passed"] * 4
    stack.cli("limits", "apply", str(file), "--for", "1h", *WHY)
    assert Counter(call(stack) for _ in range(4)) == {"passed": 2, "caller": 2}
    assert "unchanged" in stack.cli("limits", "apply", str(file), "--dry-run").stdout
    stack.cli("limits", "set", "caller", "--burst", "3", "--for", "1h", *WHY)
    assert [call(stack), call(stack)] == ["passed", "caller"]
    stack.cli("limits", "reset", "caller", *WHY)
    assert [call(stack) for _ in range(4)] == ["passed"] * 4
    file.write_text('[policies.caller]\nrate = "1/y"\n')
    wrong = stack.cli("limits", "apply", str(file), "--dry-run", check=False)
    assert wrong.returncode == 2
    assert "policies.caller.rate" in wrong.stderr
    file.write_text('[policies.fresh]\nby = ["caller"]\nconcurrency = 3\naccounts = ["nowhere"]\n')
    nowhere = stack.cli("limits", "apply", str(file), "--for", "1h", *WHY, check=False)
    assert nowhere.returncode == 2
    assert "policies.fresh.accounts" in nowhere.stderr


def test_a_place_is_given_back_on_every_path(start: Callable[..., Stack]) -> None:
    """One place, and call after call has it: answered, failed by the vendor, timed out, tried again with the other credential."""
    stack = start(
        quotas=WIDE + '[policies.one]\nby = ["account"]\nconcurrency = 1',
        upstream="", secondary='user_id = { env = "VENDOR_USER" }\ntoken = { env = "VENDOR_TOKEN" }',
        environ={"VENDOR_USER": "u-1", "VENDOR_TOKEN": "t-1"}, sandbox=("--user-id", "u-1", "--token", "t-1"),
    )  # fmt: skip
    for switches in (
        {},
        {"force_code": 1503},
        {"answer": "html_200"},
        {"force_code": 1014},
        {"answer": "slow", "delay_ms": 1700},
        {},
    ):
        stack.no_faults()
        if switches:
            stack.fault(**switches)
        assert call(stack) == "passed", switches
        assert shown(stack)["one"]["under_way"] == 0, switches


def test_history_is_asked(start: Callable[..., Stack], tmp_path: Path) -> None:
    """What a limit would have refused is what it does refuse; refused calls are demand too; reports are written."""
    stack = start(quotas=WIDE + '[policies.caller]\nrate = "1/d"\nburst = 5')
    other, _, _ = stack.issue("other")
    made = [call(stack) for _ in range(8)]
    for _ in range(3):
        stack.unset(m1=stack.fresh_numbers()[0], key=other)
    stack.unset(m1="nonsense")
    settled = until(lambda: sum(record["stage"] != "intent" for record in stack.stream()) == 12, what="all records")
    assert settled

    words = ("limits", "replay", "--since", "1h", "--rate", "1/d", "--burst", "2", "--json")
    report = json.loads(stack.cli(*words).stdout)
    by_service = {caller["service"]: caller for caller in report["callers"]}
    assert (by_service["crm"]["calls"], by_service["crm"]["refused_then"], by_service["crm"]["would_be_refused"]) == (8, 3, 6)
    assert (by_service["other"]["calls"], by_service["other"]["would_be_refused"]) == (3, 1)
    assert by_service["crm"]["burst_needed"] == 8
    assert "candidate: at 1/d, burst 8" in report["smallest"][0]
    # The policies in force say what they said.
    same = json.loads(stack.cli("limits", "replay", "--since", "1h", "--json", "--service", "crm").stdout)
    assert [(row["service"], row["would_be_refused"]) for row in same["callers"]] == [("crm", made.count("caller"))]
    assert any("concurrency" in line for line in report["unknown"])

    page, plot = tmp_path / "r.html", tmp_path / "r.svg"
    done = stack.cli(
        "limits", "replay", "--since", "1h", "--rate", "1/d", "--burst", "2", "--html", str(page), "--svg", str(plot)
    )
    assert "would refuse" in done.stdout
    assert "records read" in done.stderr
    assert "What this cannot know" in page.read_text()
    assert "<script" not in page.read_text()
    assert plot.read_text().startswith("<svg")
    ever = json.loads(stack.cli("limits", "replay", "--since", "999999w", "--json").stdout)
    assert sum(caller["calls"] for caller in ever["callers"]) == 11
    empty = stack.cli("limits", "replay", "--since", "2000-01-01", "--until", "2000-01-02")
    assert "There is no call in that span." in empty.stdout


def test_a_long_history_takes_no_more_memory(start: Callable[..., Stack]) -> None:
    """Ten times the records, through the command: the process grows by less than a fifth."""
    stack = start(quotas=WIDE)
    words = [sys.executable, "-m", "gateway", "limits", "replay", "--since", "1h", "--rate", "5/s", "--burst", "9", "--json"]
    measured = (
        "import resource, subprocess, sys; done = subprocess.run(sys.argv[1:], capture_output=True, text=True, check=True)\n"
    )
    measured += "print(done.stdout, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    written = 0

    def peak(count: int) -> tuple[int, int]:
        nonlocal written
        begun = time.time() - 3000
        with stack.redis.client() as client:
            pipeline = client.pipeline(transaction=False)
            for written in range(written, count):
                record = {
                    "stage": "intent", "writer": "w", "seq": written, "at": rfc3339(begun + written / 100), "request_id": "r",
                    "account": "test", "service": f"s{written % 7}", "operation": "end", "m1": f"{written:032x}", "pseudonym_key": "k1",
                    "decision": "allowed",
                }  # fmt: skip
                pipeline.xadd("gw:{test}:audit", {"r": json.dumps(record)})
                if written % 5000 == 4999:
                    pipeline.execute()
            pipeline.execute()
        command = [sys.executable, "-c", measured, *words, "--config", str(stack.config)]
        environ = {**os.environ, **stack._environ}
        report, _, kilobytes = subprocess.run(command, capture_output=True, text=True, check=True, env=environ).stdout.rpartition(
            " "
        )
        return sum(caller["calls"] for caller in json.loads(report)["callers"]), int(kilobytes)

    few, small = peak(20_000)
    many, large = peak(200_000)

    assert (few, many) == (20_000, 200_000)
    assert large < 1.2 * small


def test_what_nobody_can_read_of_a_limit_counts_as_unused(start: Callable[..., Stack]) -> None:
    """A key of a limit that something else wrote is neither shown as used nor in anybody's way."""
    stack = start(quotas=WIDE + '[policies.whole]\nby = ["account"]\nrate = "1/d"\nburst = 5')
    assert [call(stack), call(stack)] == ["passed"] * 2
    assert shown(stack)["whole"]["used"] == pytest.approx(2, abs=0.1)
    with stack.redis.client() as client:
        (key,) = (one for one in client.scan_iter("gw:{test}:*whole*") if client.type(one) == b"string")
        client.set(key, "9 1 -3 odd")

    assert shown(stack)["whole"]["used"] == 0
    assert call(stack) == "passed"


def test_limits_that_were_renamed_are_told(start: Callable[..., Stack], tmp_path: Path) -> None:
    """The old name is a fault that says the new one; so is what could break the vendor's quota."""
    file = tmp_path / "g.toml"
    file.write_text('[accounts.a]\nbrand = "http://127.0.0.1:1"\nprimary = { ssid = { env = "X" } }\n[quotas.caller]\nrate = "1/s"\nburst = 1\n'
                    '[policies.account]\nrate = "90/s"\nburst = 20\nhard_limit = "100/s"\n[policies.none]\nby = ["caller"]\n')  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "check", "--offline", "--config", str(file)], capture_output=True, text=True
    )

    assert "90/s with burst 20 admits up to 109 in a window of hard_limit 100/s" in done.stdout
    assert "is now policies: write [policies.caller] for [quotas.caller]" in done.stdout
    assert "limits nothing; give rate and burst, or concurrency" in done.stdout
