"""Limits in the console: seen as they are, changed as the command changes them, and asked of history within bounds."""

from __future__ import annotations

import html
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from gateway.audit import Record, rfc3339
from gateway.console import trial
from gateway.ledger.chain import Chain
from gateway.ledger.names import Names
from tests.console.running import HOSTILE, Console, Visitor
from tests.running import Process, Stack, until

CHANGE = {"rate": "1/d", "burst": "2", "concurrency": "", "mode": "", "for": "1h", "why": "ticket 4711"}


def confirmed(visitor: Visitor, path: str, **form: str) -> dict[str, str]:
    """Ask for a change; return the form of the page that says what it would mean."""
    answer = visitor.send_form(f"{path}/confirm", {"csrf": visitor.csrf(), **CHANGE, **form})
    assert answer.status_code == 200, answer.text
    return hidden(answer.text)


def hidden(page: str) -> dict[str, str]:
    page = page.partition("<main")[2]
    return {name: html.unescape(value) for name, value in re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', page)}


def made(visitor: Visitor, path: str, **form: str) -> str:
    """Change a limit, by both pages; return the notice."""
    answer = visitor.send_form(f"{path}/change", confirmed(visitor, path, **form))
    assert answer.status_code == 303, answer.text
    return html.unescape(re.findall(r'role="status">([^<]+)<', visitor.get(answer.headers["location"]).text)[0])


def changes(console: Console, account: str = "main") -> list[dict[str, Any]]:
    return [record for record in console.records(account) if record.get("change", "").startswith("limit.")]


def policies(visitor: Visitor, account: str = "main") -> dict[str, dict[str, Any]]:
    told = next(each for each in visitor.get("/limits.json").json()["accounts"] if each["account"] == account)
    return {row["policy"]: row for row in (*told["policies"], *told["guards"])}


@pytest.fixture
def filled(begin: Callable[..., Console]) -> Console:
    console = begin(more='[policies.account]\nrate = "60/s"\nburst = 40\nhard_limit = "100/s"')
    console.fill(calls=0)
    return console


def test_limits_are_told_as_the_command_tells_them(console: Console) -> None:
    """Terms, worst case, usage, refusals and live changes: the same as `gateway limits show`."""
    told = policies(console.browser("auditor"))
    rows = [json.loads(line) for line in console.cli("limits", "show", "--json", "--account", "main").stdout.splitlines()]

    assert list(told) == [row["policy"] for row in rows if row["subject"] is None]
    for row in rows:
        page = told[row["policy"]]
        if row["subject"] is None:
            for field in (
                "rate",
                "burst",
                "mode",
                "worst_case",
                "window_seconds",
                "refused_last_hour",
                "shadow_refused_last_hour",
            ):
                assert page[field] == row[field], field
        else:
            shown = next(each for each in page["first"] if each["subject"] == row["subject"])
            assert (shown["rate"], shown["changed_by"], shown["why"]) == (row["rate"], row["changed_by"], row["why"])
            assert abs(shown["used"] - row["used"]) <= 60, "it grows back meanwhile"
    assert told["caller"]["worst_case"] == 150
    assert {each["subject"] for each in told["caller"]["first"]} == {"crm", "dialler"}


def test_one_limit_tells_of_whom_it_refused_and_would_have(console: Console) -> None:
    """By service, from the records; of a limit in shadow what it would have."""
    visitor = console.browser("auditor")
    caller, sweep = (visitor.get(f"/limits/main/{name}.json").json() for name in ("caller", "sweep"))

    assert {row["service"] for row in caller["callers"]} <= {"crm", "dialler"}
    assert sum(row["refused"] for row in caller["callers"]) > 0
    assert all(row["would_be_refused"] == 0 for row in caller["callers"])
    assert sum(row["would_be_refused"] for row in sweep["callers"]) > 0
    assert all(row["refused"] == 0 for row in sweep["callers"])
    assert [(row["subject"], row["why"]) for row in caller["history"]] == [("dialler", HOSTILE)]


@pytest.mark.parametrize(
    "path", ["/limits/nowhere/caller", "/limits/main/nothing", "/limits/main/nothing/replay", f"/limits/main/{HOSTILE}"]
)
def test_what_is_not_there(console: Console, path: str) -> None:
    answer = console.browser("auditor").get(path)

    assert answer.status_code == 404
    assert "<script>alert" not in answer.text


@pytest.mark.parametrize(
    ("policy", "form", "field", "told"),
    [
        ("caller", {"rate": "5"}, "rate", 'must be a text like "50/s", "100/m", "1000/h" or "5000/d"'),
        ("caller", {"burst": "nine"}, "burst", "must be a whole number from 1 to 1000000000"),
        ("caller", {"burst": "0"}, "burst", "must be a whole number from 1 to 1000000000"),
        ("caller", {"concurrency": "-1"}, "concurrency", "must be a whole number from 0 to 1000000"),
        ("caller", {"mode": "sometimes"}, "mode", 'must be one of "enforce", "shadow", "off"'),
        ("caller", {"for": ""}, "for", "is missing; say how long, such as 2h"),
        ("caller", {"for": "soon"}, "for", "is not a span of time"),
        ("caller", {"for": "100d"}, "for", "must be from 1s to 90d"),
        ("caller", {"why": ""}, "why", "give the reason"),
        ("caller", {"why": "x" * 201}, "why", "give the reason in at most 200"),
        ("caller", {"why": "asked by 91234 56780"}, "why", "may hold a telephone number"),
        ("caller", {"subject": "<b>crm"}, "subject", "there is no service '(not shown)'"),
        ("caller", {"subject": HOSTILE}, "subject", "write caller:CALLER"),
        ("caller", {"subject": "crm/end"}, "subject", "write caller:CALLER"),
        ("number", {"subject": "abc"}, "subject", "is not a telephone number"),
        ("caller", {"rate": "", "burst": ""}, "", "nothing to change"),
        ("account", {"rate": "90/s", "burst": "40"}, "", "admits up to 129 in a window of hard_limit 100/s"),
        ("sweep", {"burst": "2", "rate": ""}, "", "must be 3 or more"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_next_to_its_field(
    bounded: Console, operator: Visitor, policy: str, form: dict[str, str], field: str, told: str
) -> None:
    """In the command's words; nothing is changed, and neither markup nor a number comes back."""
    token = operator.csrf()
    for page in ("confirm", "change"):
        answer = operator.send_form(f"/limits/main/{policy}/{page}", {"csrf": token, **CHANGE, **form})

        assert answer.status_code == 400
        text = html.unescape(answer.text)
        near = re.findall(rf'id="{field}-fault">([^\n]+?)</p>' if field else r'role="alert">([^\n]+?)</p>', text)
        assert near and told.lower() in near[0].lower()
        assert "91234" not in answer.text and "<b>" not in answer.text and "<script>alert" not in answer.text
        if field:
            assert re.search(rf'id="{field}" name="{field}" aria-invalid="true" aria-describedby="{field}-fault', answer.text)
    assert changes(bounded) == []


@pytest.fixture(scope="module")
def bounded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    more = '[policies.account]\nrate = "60/s"\nburst = 40\nhard_limit = "100/s"'
    with Console(tmp_path_factory.mktemp("bounded"), more=more) as running:
        yield running


@pytest.fixture(scope="module")
def operator(bounded: Console) -> Visitor:
    return bounded.browser("operator")


def test_a_change_is_looked_at_then_made_and_recorded(filled: Console) -> None:
    """The page before it tells the worst case against the vendor's quota; the record tells who, what, why and until when."""
    visitor = filled.browser("operator")
    asked = {"csrf": visitor.csrf(), **CHANGE, "subject": "crm", "rate": "90/s", "burst": "50", "why": HOSTILE}
    page = visitor.send_form("/limits/main/caller/confirm", asked)
    assert "50/s burst 100 enforce" in page.text and "90/s burst 50 enforce" in page.text
    assert "At worst 139 pass in 1 s; 150 before." in page.text
    assert "100/s, told by account: 139 of 100 at worst." in page.text and "more than the quota" in page.text
    assert "crm has used" in page.text and "its next call is refused" in page.text
    assert "<script>alert" not in page.text
    assert len(changes(filled)) == 1, "looking at it changes nothing"

    assert visitor.send_form("/limits/main/caller/change", hidden(page.text)).status_code == 303
    record = changes(filled)[-1]
    assert (record["operator"], record["source"], record["account"]) == ("console:an-operator", "127.0.0.1", "main")
    assert (record["policy"], record["subject"], record["why"]) == ("caller", "crm", HOSTILE)
    assert (record["before"], record["after"]) == ("50/s burst 100 enforce", "90/s burst 50 enforce")
    assert record["change"] == "limit.set" and record["until"] > record["at"]
    assert '"90/s"' in filled.cli("limits", "show", "--json").stdout

    form = {
        "csrf": visitor.csrf(),
        "subject": "crm",
        "why": "",
        "seen": hidden(visitor.get("/limits/main/caller/reset?subject=crm").text)["seen"],
    }
    answer = visitor.send_form("/limits/main/caller/reset", form)
    assert answer.status_code == 400 and 'id="why-fault"' in answer.text
    assert visitor.send_form("/limits/main/caller/reset", {**form, "why": "over"}).status_code == 303
    record = changes(filled)[-1]
    assert (record["change"], record["operator"], record["why"]) == ("limit.reset", "console:an-operator", "over")
    assert [row["change"] for row in visitor.get("/limits/main/caller.json").json()["history"]] == [
        "limit.reset",
        "limit.set",
        "limit.set",
    ]


def test_two_operators_do_not_overwrite_one_another(filled: Console) -> None:
    """Who confirms what is no longer so is told, and may confirm what is; a change of another limit is none of it."""
    one, other = filled.browser("operator"), filled.browser("operator")
    mine = confirmed(one, "/limits/main/caller", subject="crm")
    made(other, "/limits/main/sweep", rate="", burst="500")
    made(other, "/limits/main/caller", subject="crm", rate="7/s", burst="70", why="mine is newer")

    answer = one.send_form("/limits/main/caller/change", mine)
    assert answer.status_code == 409
    assert "Nothing was done: it was changed meanwhile by console:an-operator (mine is newer)" in answer.text
    assert "7/s burst 70 enforce" in answer.text
    assert changes(filled)[-1]["after"] == "7/s burst 70 enforce"

    assert one.send_form("/limits/main/caller/change", hidden(answer.text)).status_code == 303
    assert (changes(filled)[-1]["before"], changes(filled)[-1]["after"]) == ("7/s burst 70 enforce", "1/d burst 2 enforce")

    form = {"csrf": one.csrf(), "subject": "crm", "why": "over", "seen": mine["seen"]}
    assert one.send_form("/limits/main/caller/reset", form).status_code == 409
    assert changes(filled)[-1]["change"] == "limit.set"


def test_of_many_at_once_one_is_done(filled: Console) -> None:
    """Whoever confirms first; the others are told, and the trail has one change."""
    operators = [filled.browser("operator") for _ in range(5)]
    forms = [
        confirmed(visitor, "/limits/main/caller", subject="crm", rate=f"{number}/s")
        for number, visitor in enumerate(operators, 1)
    ]
    with ThreadPoolExecutor(5) as threads:
        answers = list(threads.map(lambda pair: pair[0].send_form("/limits/main/caller/change", pair[1]), zip(operators, forms)))

    assert sorted(answer.status_code for answer in answers) == [303, 409, 409, 409, 409]
    assert len([row for row in operators[0].get("/limits/main/caller.json").json()["history"] if row["subject"] == "crm"]) == 1


def test_a_number_is_never_written_down(bounded: Console, operator: Visitor) -> None:
    """It is typed once, and is a pseudonym from then on: in pages, in what is sent again, in the record."""
    visitor = operator
    form = confirmed(visitor, "/limits/main/number", subject="+91 91234 56780", rate="1/h", burst="1")
    assert re.fullmatch(r"[0-9a-f]{32}", form["subject"])
    visitor.send_form("/limits/main/number/change", form)

    page = visitor.get("/limits/main/number")
    assert form["subject"] in page.text and "56780" not in page.text
    assert "9123456780" not in json.dumps(bounded.records("main"))
    searched = [record for record in bounded.records() if record["stage"] == "search" and record["m1"] == form["subject"]]
    assert searched and {record["why"] for record in searched} == {"for the limit number"}
    for path, subject in (("number", "+919123456780"), ("caller", "crm/+919123456780")):
        for page in ("change", "reset"):
            assert "9123456780" not in visitor.get(f"/limits/main/{path}/{page}.json", params={"subject": subject}).text
        sent = visitor.send_form(f"/limits/main/{path}/confirm", {**form, "subject": subject, "rate": "fast"})
        assert sent.status_code == 400 and "9123456780" not in sent.text
    wrong = visitor.send_form("/limits/main/number/confirm", {**form, "subject": "+91 91234 56780", "rate": "fast"})
    assert wrong.status_code == 400 and "91234" not in wrong.text
    reset = visitor.get("/limits/main/number/reset", params={"subject": form["subject"]}).text
    assert visitor.send_form("/limits/main/number/reset", {**hidden(reset), "why": "over"}).status_code == 303
    with bounded.redis.client() as client:
        assert client.hlen("gw:{main}:limits") == 0


def test_a_service_may_have_any_name(filled: Console) -> None:
    """What stands in Redis is text in every page."""
    with filled.redis.client() as client:
        entry = json.loads(client.hget("gw:{:keys}:keys", "crmkeyid00"))
        client.hset("gw:{:keys}:keys", "crmkeyid00", json.dumps({**entry, "service": HOSTILE}))
        client.set(f"gw:{{main}}:limit:caller:{HOSTILE}", f"{int(time.time() * 1e6) + 90_000_000} 1000000 100")
    visitor = filled.browser("operator")

    for path in ("/limits", "/limits/main/caller", "/limits/main/caller/change"):
        page = visitor.get(path).text
        assert "&lt;script&gt;" in page
        assert "<script" not in page and "<img src=x" not in page, path


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    quotas = "".join(f'[policies.{name}]\nrate = "1000/s"\nburst = 1000\n' for name in ("caller", "number", "account"))
    with Stack(tmp_path_factory.mktemp("stack"), quotas=quotas) as running:
        yield running


@pytest.fixture(scope="module")
def beside(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visitor]:
    """An operator at a console beside a gateway that serves."""
    key = json.loads(stack.cli("console", "issue", "ada", "--role", "operator", "--json").stdout)["key"]
    words = [sys.executable, "-m", "gateway", "console", "--config", str(stack.config), "--port", "0"]
    console = Process(stack.folder, "console", words, stack._environ)
    visitor = Visitor(console.address())
    assert visitor.sign_in(key).status_code == 303
    yield visitor
    visitor.close()
    console.stop()


def called(stack: Stack) -> str:
    answer = stack.unset(m1=stack.fresh_numbers()[0])
    return answer.json()["policy"] if answer.status_code == 429 else "passed"


def test_a_change_is_in_force_at_the_next_call(stack: Stack, beside: Visitor) -> None:
    """Without a restart; it ends when it is reset, and by itself."""
    assert [called(stack) for _ in range(4)] == ["passed"] * 4
    told = made(beside, "/limits/test/caller", subject="crm")
    assert told == "caller:crm: 1000/s burst 1000 enforce → 1/d burst 2 enforce, for 1h."
    assert [called(stack) for _ in range(4)] == ["passed", "passed", "caller", "caller"]

    row = next(row for row in beside.get("/limits/test/caller.json").json()["subjects"] if row["subject"] == "crm")
    assert (row["used"], row["burst"], row["changed_by"]) == (2, 2, "console:ada")
    until(lambda: beside.get("/limits/test/caller.json").json()["refused_last_hour"] == 2, what="the refusals counted")
    until(lambda: [row["refused"] for row in beside.get("/limits/test/caller.json").json()["callers"]] == [2], what="the records")
    form = {**hidden(beside.get("/limits/test/caller/reset?subject=crm").text), "why": "over"}
    assert beside.send_form("/limits/test/caller/reset", form).status_code == 303
    assert called(stack) == "passed"

    made(beside, "/limits/test/caller", subject="crm", burst="1", **{"for": "4s"})
    assert [called(stack) for _ in range(2)][-1] == "caller"
    until(lambda: called(stack) == "passed", what="the change ending by itself")
    assert beside.get("/limits/test/caller/reset?subject=crm").text.count("Nothing is changed of it") == 1


def test_history_is_asked(stack: Stack, beside: Visitor) -> None:
    """The same answer as the command's: by caller, the smallest limit, and over time as a chart with its text."""
    for _ in range(6):
        called(stack)
    until(lambda: sum(record["stage"] == "intent" for record in stack.stream()) > 0, what="records")
    answer = beside.get("/limits/test/caller/replay", params={"rate": "1/d", "burst": "2", "since": "1d"})
    report = beside.get("/limits/test/caller/replay.json", params={"rate": "1/d", "burst": "2", "since": "1d"}).json()["report"]
    same = json.loads(stack.cli("limits", "replay", "--since", "1d", "--rate", "1/d", "--burst", "2", "--json").stdout)

    assert report["callers"] == same["callers"] != []
    assert [f"candidate: {line}" for line in report["smallest"]] == same["smallest"]
    assert report["refused"] == sum(row["would_be_refused"] for row in same["callers"]) > 0
    assert len(report["steps"]) == 96
    assert sum(step[1] for step in report["steps"]) == report["calls"]
    assert answer.text.count('class="refusals"') == sum(step[2] > 0 for step in report["steps"])
    assert 'role="img" aria-labelledby="chart-name chart-text"' in answer.text and 'id="chart-text"' in answer.text
    assert "Most refusals from" in answer.text
    assert "style=" not in answer.text


@pytest.mark.parametrize(
    ("words", "field", "told"),
    [
        ({"rate": "fast", "burst": "4"}, "rate", 'must be a text like "50/s"'),
        ({"rate": "5/s", "burst": "lots"}, "burst", "must be a whole number"),
        ({"rate": "5/s"}, "burst", "must be a whole number"),
        ({"burst": "4"}, "rate", "must be a text like"),
        ({"rate": "5/s", "burst": "4", "since": "9w"}, "since", "must be one of 1h, 1d, 7d"),
        ({"rate": HOSTILE, "burst": HOSTILE}, "rate", "must be a text like"),
    ],
)
def test_a_question_that_cannot_be_asked(console: Console, words: dict[str, str], field: str, told: str) -> None:
    answer = console.browser("auditor").get("/limits/main/caller/replay", params={"since": "1h", **words})

    assert answer.status_code == 400
    assert told.lower() in html.unescape(re.findall(rf'id="{field}-fault">(.+?)</p>', answer.text)[0]).lower()
    assert "<script>alert" not in answer.text


def test_a_long_history_is_read_within_bounds_and_stops_nobody(begin: Callable[..., Console]) -> None:
    """What is beyond the bound is said; a third question at once is told to wait; pages of others go on."""
    console = begin()
    wrote = trial._RECORDS_MAX + 20_000
    write_history(console, wrote)
    visitors = [console.browser("auditor") for _ in range(5)]
    params = {"rate": "1/h", "burst": "3", "since": "1d"}

    def asked(visitor: Visitor) -> httpx.Response:
        return visitor.get("/limits/main/caller/replay.json", params=params)

    slowest = 0.0
    with ThreadPoolExecutor(4) as threads:
        answers = [threads.submit(asked, visitor) for visitor in visitors[:4]]
        while not all(answer.done() for answer in answers):
            begun = time.monotonic()
            assert visitors[4].get("/callers").status_code == 200
            slowest = max(slowest, time.monotonic() - begun)

    statuses = sorted(answer.result().status_code for answer in answers)
    assert statuses == [200, 200, 503, 503]
    assert [answer.result().json()["busy"] for answer in answers if answer.result().status_code == 503] == [True, True]
    report = next(answer.result().json()["report"] for answer in answers if answer.result().status_code == 200)
    assert report["records"] <= trial._RECORDS_MAX
    assert report["since"] < report["capped_at"] < time.time()
    assert slowest < 5
    assert "this tells what was until" in visitors[0].get("/limits/main/caller/replay", params=params).text
    assert console.process.alive()


def write_history(console: Console, count: int) -> None:
    chain, begun = Chain("host-5f1c2a77"), time.time() - 3600 * 5
    with console.redis.client() as client:
        pipe = client.pipeline(transaction=False)
        for number in range(count):
            at = begun + number * 3600 * 5 / count
            made = Record(stage="intent", at=rfc3339(at), account="main", request_id=f"{number:032x}", service="crm", operation="end", m1=f"{number % 5000:032x}", pseudonym_key="k1")  # fmt: skip
            pipe.xadd(Names("main").audit, {"r": chain.link(made).record}, id=f"{int(at * 1000)}-{number}")
            if number % 5000 == 4999:
                pipe.execute()
        pipe.execute()
