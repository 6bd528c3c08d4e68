"""The audit trail in the console: what is found, what is recorded of who searches, and what is told where parts are missing."""

from __future__ import annotations

import csv
import io
import json
import re
import time
from collections.abc import Callable
from itertools import islice, pairwise
from typing import Any

import msgspec
import pytest

from gateway.audit import Head, Record, chained, rfc3339, unix_seconds
from gateway.console.pages import make_templates
from gateway.ledger.chain import Chain
from gateway.ledger.names import Names
from gateway.trail.archive import Archive
from gateway.trail.story import RECORDS_MAX
from tests.bench.search import records as history
from tests.console.running import HOSTILE, WRITER, Console, Visitor

NUMBER = "+919876543210"
SEARCHED = ("why", "operator", "m1_last2")


@pytest.fixture(scope="module")
def visitor(console: Console) -> Visitor:
    return console.browser("auditor")


def told(visitor: Visitor, path: str) -> dict[str, Any]:
    """Return the JSON twin of a page."""
    where, mark, query = path.partition("?")
    answer = visitor.get(f"{where}.json{mark}{query}")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def written(console: Console, *made: Record, writer: str = "host-story") -> list[str]:
    """Write records of one writer to Redis, and return their names."""
    chain = Chain(writer)
    with console.redis.client() as client:
        for record in made:
            client.xadd(Names(record.account).audit, {"r": chain.link(record).record})
    return [record.id for record in made]


def searches(console: Console) -> list[tuple[Any, ...]]:
    return [tuple(record.get(name) for name in SEARCHED) for record in console.records() if record["stage"] == "search"]


def test_pages_lead_to_and_fro(visitor: Visitor) -> None:
    """Down to the oldest record and up again each page holds the same records; each record is told once, the newest first."""
    pages = [told(visitor, "/audit?account=main")]
    while pages[-1]["older"]:
        pages.append(told(visitor, pages[-1]["older"]))
    down = [[row["id"] for row in page["rows"]] for page in pages if page["rows"]]
    page, up = pages[len(down) - 1], [down[-1]]
    while page["newer"]:
        page = told(visitor, page["newer"])
        up.insert(0, [row["id"] for row in page["rows"]])

    assert len(down) > 10
    assert up == down
    every = [row for page in pages for row in page["rows"]]
    assert len({row["id"] for row in every}) == len(every)
    for page in pages:
        assert [row["at"] for row in page["rows"]] == sorted((row["at"] for row in page["rows"]), reverse=True)
    # From page to page the streams' order counts: a record's own time may be a moment before that of one written earlier.
    times = [unix_seconds(row["at"]) for row in every]
    assert all(later <= earlier + 1 for earlier, later in pairwise(times))
    assert every[-1]["id"] == f"{WRITER}-0"


@pytest.mark.parametrize(
    ("words", "holds"),
    [
        ("service=dialler", lambda row: row["who"] == "dialler"),
        ("decision=denied&problem=quota_exceeded", lambda row: (row["decision"], row["how"]) == ("denied", "quota_exceeded")),
        ("stage=change&account=:keys", lambda row: (row["stage"], row["account"]) == ("change", ":keys")),
        ("result=failed&key_id=crmkeyid00&source=10.1.2.3", lambda row: row["how"] == "upstream_timeout"),
        ("since=1h&stage=refusal", lambda row: row["at"] > rfc3339(time.time() - 3700) and row["stage"] == "refusal"),
        ("until=2h", lambda row: row["at"] < rfc3339(time.time() - 7100)),
    ],
)
def test_what_is_asked_for_is_found(visitor: Visitor, words: str, holds: Callable[[dict[str, Any]], bool]) -> None:
    """Fields combine, and nothing else is found."""
    rows = told(visitor, f"/audit?{words}")["rows"]

    assert rows
    assert all(map(holds, rows))


@pytest.mark.parametrize(
    ("words", "field", "message"),
    [
        ("since=yesterday", "since", "Write a span back from now"),
        ("until=2030-13-01", "until", "Write a span back from now"),
        ("code=abc", "code", "whole numbers"),
        ("stage=nothing", "stage", "There is no such stage"),
        ("account=nobody", "account", "There is no such account"),
        ("pseudonyms=xyz", "pseudonyms", "names no number"),
        (f"number={NUMBER}", "number", "must not stand in an address"),
        ("older=AAAA", "page", "leads to no page"),
        ("newer=e30x", "page", "leads to no page"),
        (f"service={'x' * 201}", "service", "longer than 200"),
    ],
)
def test_bad_input_is_told_beside_its_field(visitor: Visitor, words: str, field: str, message: str) -> None:
    """In the page, and in its twin by the field's name."""
    page, twin = visitor.get(f"/audit?{words}"), visitor.get(f"/audit.json?{words}")

    assert (page.status_code, twin.status_code) == (400, 400)
    assert message in page.text
    assert message in twin.json()["wrong"][field]
    assert twin.json()["rows"] == []
    if field != "page":
        assert page.text.count(f'id="{field}-fault"') == 1


def test_a_number_never_stands_in_an_address(begin: Callable[..., Console]) -> None:
    """A form brings it, its pseudonym leads on, and each search is in the trail: a form, a file, and once a session a link."""
    console = begin()
    visitor, form = console.browser("auditor"), {"number": "098765 43210", "service": "", "since": "7d"}
    form["csrf"] = visitor.csrf()
    answer = visitor.send_form("/audit", form)
    location = answer.headers["location"]
    assert answer.status_code == 303
    pseudonym = re.findall(r"pseudonyms=([0-9a-f]{32})\b", location)[0]
    assert re.search(r"since=20\d\d-", location), "a span means another time tomorrow"
    assert searches(console) == [(None, "console:an-auditor", "10")]

    call = {
        "account": "main",
        "request_id": "of-the-number",
        "service": "crm",
        "m1": pseudonym,
        "m1_country": "IN",
        "m1_last2": "10",
    }
    written(console, Record(stage="intent", at=rfc3339(time.time()), **call))
    page = visitor.get(location)
    assert page.text.count("IN ··10") == 2
    assert [row["id"] for row in told(visitor, location)["rows"]] == ["host-story-0"]
    assert len(searches(console)) == 1, "its own search was recorded"
    assert visitor.get(location.replace("/audit?", "/audit.csv?")).text.count("of-the-number") == 1
    assert searches(console)[1:] == [("as a file, csv", "console:an-auditor", None)]

    colleague = console.browser("operator")
    for _ in range(3):
        colleague.get(location)
    assert searches(console)[2:] == [("by a link", "console:an-operator", None)]
    for text in (page.text, location, console.process.output(), json.dumps(console.records())):
        assert "9876543210" not in text.replace("+919876543210", "").replace(" ", "")
    assert "09876543210" not in json.dumps(console.records()).replace(" ", "")


def test_earlier_pseudonym_keys_are_searched_too(begin: Callable[..., Console]) -> None:
    """Whatever key hid a number, it is found; and a number that is typed takes the place of the one before."""
    console = begin()
    visitor, form = console.browser("auditor"), {"number": NUMBER}
    before = visitor.send_form("/audit", {**form, "csrf": visitor.csrf()}).headers["location"].rpartition("=")[2]
    written(console, Record(stage="intent", at=rfc3339(time.time()), account="main", m1=before))
    kept = 'pseudonym_key_id = "k2"\npseudonym_keys = { k1 = { env = "PSEUDONYM_KEY" } }\npseudonym_key = { env = "NEW_KEY" }'
    console.config.write_text(console.config.read_text().replace('pseudonym_key = { env = "PSEUDONYM_KEY" }', kept))
    console.process.stop()
    console.environ["NEW_KEY"] = "another-pseudonym-key-0123456789abcdef"
    console.start()

    visitor = console.browser("auditor")
    found = visitor.send_form("/audit", {**form, "csrf": visitor.csrf(), "pseudonyms": "0" * 32}).headers["location"]
    names = re.findall(r"[0-9a-f]{32}", found)
    assert len(names) == 2 and names[1] == before and names[0] != before
    assert [row["id"] for row in told(visitor, found)["rows"]] == ["host-story-0"]


def test_a_wrong_number_is_not_shown_again(console: Console, visitor: Visitor) -> None:
    """It may be a right one with a slip, and no page tells numbers."""
    before = len(searches(console))
    answer = visitor.send_form("/audit", {"csrf": visitor.csrf(), "number": "98765432101234567", "since": "never"})

    assert answer.status_code == 400
    assert "not a telephone number" in answer.text and "Write a span back" in answer.text
    assert "98765432101" not in answer.text
    assert 'value="never"' in answer.text
    assert len(searches(console)) == before


def test_the_story_of_a_call(begin: Callable[..., Console]) -> None:
    """Each try with its end, how long it took, what the limits said, how the records hang together, and that all is sealed."""
    console = begin()
    now = time.time()
    common: dict[str, Any] = {
        "account": "main", "request_id": "a-request-of-two-tries", "service": "crm", "key_id": "crmkeyid00", "proof": "key",
        "operation": "reschedule", "m1": "a" * 32, "m1_country": "IN", "m1_last2": "10", "expiry_duration": 60,
    }  # fmt: skip
    ids = written(
        console,
        Record(stage="open", at=rfc3339(now - 9), account="main"),
        Record(stage="intent", at=rfc3339(now - 5), **common),
        Record(stage="outcome", at=rfc3339(now - 4.5), intent="host-story-1", result="failed", problem="upstream_timeout", duration_ms=500.0, limits="caller=99/100 sweep=0/1000?40", **common),
        Record(stage="intent", at=rfc3339(now - 5), attempt=2, **common),
        Record(stage="outcome", at=rfc3339(now - 4), intent="host-story-3", decision="allowed", result="answered", attempt=2, duration_ms=1000.0, limits="caller=0/100!7", degraded=True, **common),
        Record(stage="refusal", at=rfc3339(now - 1), decision="allowed", problem="answer_replayed", repeats="host-story-1", **{**common, "request_id": "repeated-it"}),
    )  # fmt: skip
    visitor = console.browser("auditor")
    story = told(visitor, "/audit/a-request-of-two-tries")
    assert [chapter["id"] for chapter in story["chapters"]] == ids[1:5]
    assert [chapter["follows"] for chapter in story["chapters"]] == [True] * 4
    assert [chapter["closes"] and chapter["closes"]["id"] for chapter in story["chapters"]] == [None, ids[1], None, ids[3]]
    assert [(round(bar["from_ms"]), round(bar["to_ms"])) for bar in story["timeline"]] == [(0, 500), (500, 1000)]
    assert [(line["policy"], line["verdict"], line["attempt"]) for line in story["limits"]] == [
        ("caller", "passed", 1), ("sweep", "would have refused", 1), ("caller", "refused", 2)
    ]  # fmt: skip
    assert story["degraded"] and story["ended"]["text"] == "answered"
    assert story["sealing"]["state"] == "none"
    assert told(visitor, f"/audit/{ids[2]}")["request_id"] == "a-request-of-two-tries"
    assert told(visitor, "/audit/repeated-it")["repeats"] == {"id": ids[1], "href": f"/audit/{ids[1]}"}
    assert visitor.get("/audit/repeated-it.proof").status_code == 400

    console.seal()
    page = visitor.get("/audit/a-request-of-two-tries").text
    assert "sealed and proved" in page
    for chapter, record in zip(
        told(visitor, "/audit/a-request-of-two-tries")["chapters"], console.records("main")[1:5], strict=True
    ):
        assert json.loads(chapter["raw"]) == record
        assert chapter["hash"] == chained(chapter["raw"].encode()).hex()
        assert chapter["place"] is not None
    proof = visitor.get("/audit/a-request-of-two-tries.proof")
    assert 'filename="a-request-of-two-tries.proof"' in proof.headers["content-disposition"]
    (console.folder / "x.proof").write_bytes(proof.content)
    assert console.cli("audit", "prove", "a-request-of-two-tries").stdout == proof.text + "\n"
    done = console.cli("audit", "verify", "--proof", str(console.folder / "x.proof"))
    assert "sound: 4 records" in done.stderr

    written(console, Record(stage="abort", at=rfc3339(now), result="unknown", **common), writer="host-late")
    assert "sealed in part" in visitor.get("/audit/a-request-of-two-tries").text
    assert re.search("the sealer signs every second|last signed .* ago", visitor.get("/audit/a-request-of-two-tries").text)


def test_what_was_altered_is_not_called_proved(begin: Callable[..., Console]) -> None:
    """A record, or a checkpoint, that is not what was signed."""
    console = begin()
    written(console, *(Record(stage="beat", at=rfc3339(time.time()), account="main", request_id=f"beat-{n}") for n in range(5)))
    console.seal()
    visitor = console.browser("auditor")
    assert "sealed and proved" in visitor.get("/audit/beat-3").text
    archive = console.folder / "state" / "archive"
    segment = archive / f"{0:020d}.jsonl"
    segment.write_bytes(segment.read_bytes().replace(b'"beat-3"', b'"beat-8"'))
    page = visitor.get("/audit/host-story-3").text
    assert "not proved" in page and "is not what was sealed" in page
    assert "does not follow on the record before it" in visitor.get("/audit/host-story-4").text

    note = (archive / "checkpoint").read_text()
    (archive / "checkpoint").write_text(note.replace("masking-gateway\n", "masking-gateway\n", 1).replace("at 20", "at 30", 1))
    page = visitor.get("/audit/beat-1").text
    assert "not proved" in page and "the checkpoint does not hold" in page


def test_each_pseudonym_of_a_link_is_recorded(begin: Callable[..., Console]) -> None:
    """Whoever puts together an address of many numbers is recorded for each, once a session; for a file each time."""
    console = begin()
    visitor = console.browser("auditor")
    one, two = "a" * 32, "b" * 32

    for path in (f"/audit.json?pseudonyms={one}", f"/audit.json?pseudonyms={one}.{two}", f"/audit.csv?pseudonyms={one}.{two}"):
        assert visitor.get(path).status_code == 200

    assert [record["m1"] for record in console.records() if record["stage"] == "search"] == [one, two, one, two]


def test_records_that_nobody_of_ours_wrote_break_no_page(begin: Callable[..., Console]) -> None:
    """Whoever could write to Redis once: what is odd is left out, and every page goes on, live and sealed."""
    console = begin()
    at = rfc3339(time.time())
    odd: list[dict[str, Any]] = [
        {"stage": "outcome", "count": "x", "result": "answered", "duration_ms": 1.0},
        {"stage": "outcome", "problem": ["a"], "service": {}, "duration_ms": "x", "result": "failed"},
        {"stage": "outcome", "limits": 5, "duration_ms": None, "attempt": None},
        {"stage": "outcome", "limits": "a=1/1!99999999999999 b=1/1!9999999999", "duration_ms": 5},
        {"stage": "change", "policy": "caller"},
        {"stage": "abort", "change": "limit.set"},
        {"stage": "refusal", "at": "soon", "policy": 7},
    ]
    with console.redis.client() as client:
        for seq, told_of in enumerate(odd):
            record = {"writer": "odd", "seq": seq, "at": at, "account": "main", "request_id": f"odd-request-{seq}", **told_of}
            client.xadd(Names("main").audit, {"r": json.dumps(record).encode()})
        deep = b'{"stage":"open","writer":"odd","seq":99,"at":"%s","account":"main","why":%s}' % (
            at.encode(),
            b"[" * 1000 + b"]" * 1000,
        )
        client.xadd(Names("main").audit, {"r": deep})
    visitor = console.browser("auditor")
    paths = ["/overview", "/audit", "/limits/main/caller", *(f"/audit/odd-request-{seq}" for seq in range(len(odd)))]

    for _ in range(2):
        assert [(path, visitor.get(path).status_code) for path in paths] == [(path, 200) for path in paths]
        console.seal()


def test_more_than_is_told_of_one_request_is_said(begin: Callable[..., Console]) -> None:
    """Callers choose request ids: many calls under one do not pass for few."""
    console = begin()
    common = {"at": rfc3339(time.time()), "account": "main", "request_id": "one-for-many"}
    written(console, *(Record(stage="beat", **common) for _ in range(RECORDS_MAX)))
    visitor = console.browser("auditor")
    assert "More is recorded" not in visitor.get("/audit/one-for-many").text
    written(console, Record(stage="beat", **common), writer="host-more")

    for _ in range(2):
        page = visitor.get("/audit/one-for-many").text
        assert f"than the {RECORDS_MAX} records told here" in page
        console.seal()


def test_a_proof_that_is_being_prepared_is_told_of(begin: Callable[..., Console]) -> None:
    """In place of a proof, without calling anything unproved."""
    console = begin()
    written(console, Record(stage="beat", at=rfc3339(time.time()), account="main", request_id="beat"))
    console.seal()
    data = told(console.browser("auditor"), "/audit/beat")
    data["sealing"] |= {"preparing": True, "proof": None, "paths": []}

    around = {"title": "", "session": None, "notice": "", "navigation": (), "path": "", "static": "", "version": "", "now": 0.0}
    page = make_templates().get_template("story.html").render(**data, **around)

    assert "proof in a moment" in page
    assert "sealed and proved" not in page and "not proved" not in page


def test_an_unknown_id(visitor: Visitor) -> None:
    """Is told to be one, whatever it is."""
    for name in ("nothing-here", f"{WRITER}-999999", f"{WRITER}-{9**30}", "%00", "..%2f..%2fetc", "a%2Fb", "%F0%9F%A6%8A"):
        answer = visitor.get(f"/audit/{name}")
        assert answer.status_code == 404, name
        assert "Nothing is recorded under this id" in answer.text


def test_a_request_id_hides_no_record(begin: Callable[..., Console]) -> None:
    """Callers choose request ids: one that is a record's name, and one that somebody else used."""
    console = begin()
    now = rfc3339(time.time())
    written(
        console,
        Record(stage="refusal", at=now, account="main", service="crm", request_id="shared-by-two"),
        Record(stage="refusal", at=now, account="main", service="dialler", request_id="shared-by-two"),
        Record(stage="refusal", at=now, account="main", service="crm", request_id="host-story-1"),
    )
    visitor = console.browser("auditor")

    assert [chapter["id"] for chapter in told(visitor, "/audit/host-story-1")["chapters"]] == ["host-story-0", "host-story-1"]
    assert "Several calls came under this request id" in visitor.get("/audit/shared-by-two").text
    assert [chapter["id"] for chapter in told(visitor, "/audit/host-story-2")["chapters"]] == ["host-story-2"]


def has_a_head(record: bytes) -> bool:
    try:
        msgspec.json.decode(record, type=Head)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False
    return True


def hostile_records() -> list[bytes]:
    """Return records with what runs where it is taken for more than text in every field, and with values of wrong types."""
    place = {"stage": "outcome", "seq": 0, "at": rfc3339(time.time()), "account": "main"}
    names = [name for name in Record.__struct_fields__ if name not in ("seq", "at")]
    every = {**dict.fromkeys(names, HOSTILE), "seq": 7, "at": HOSTILE}
    odd = [
        {**place, "writer": f"w-{number}", name: value}
        for number, (name, value) in enumerate(
            (name, value)
            for name in names
            if name not in ("stage", "writer", "account")
            for value in (HOSTILE, {"a": [HOSTILE]}, 1e300)
        )
    ]
    whole = {name: HOSTILE for name in names if Record.__annotations__[name] in ("str | None", "str")}
    usual = {**whole, **place, "writer": HOSTILE, "limits": f"<b>{HOSTILE.split()[0]}=1/2!3 ok=1/0"}
    return [json.dumps(row).encode() for row in (every, usual, *odd)] + [b"no json", b'{"stage": "x"', b"\xff\xfe", b"[]"]


@pytest.mark.parametrize("sealed", [False, True])
def test_records_are_text(begin: Callable[..., Console], sealed: bool) -> None:
    """Whoever writes to Redis, or to the archive, puts no markup into any page, and breaks none."""
    console = begin()
    made = hostile_records()
    if sealed:
        with Archive(console.folder / "state" / "archive") as archive:
            # What has no head no sealer takes.
            archive.add([record for record in made if has_a_head(record)], {}, "main")
    else:
        with console.redis.client() as client:
            for record in made:
                client.xadd(Names("main").audit, {"r": record})
    visitor, shown, stories = console.browser("auditor"), 0, 0
    page = told(visitor, "/audit?account=main")
    while True:
        for row in page["rows"]:
            text = visitor.get(row["href"]).text
            assert "<script" not in text and "<img src=x" not in text and "<b>" not in text, row
            shown += "&lt;script&gt;" in text
            stories += "Something went wrong" not in text
            assert "Something went wrong" not in text, row
        if not page["older"]:
            break
        text = visitor.get(page["older"]).text
        assert "<script" not in text and "<img src=x" not in text
        page = told(visitor, page["older"])
    text = visitor.get("/audit", params={"account": "main", "service": HOSTILE}).text
    assert "<script" not in text and "<img src=x" not in text and text.count("&lt;script&gt;") > 2
    assert stories > 100 and shown > 50
    for name, values in {
        "service": HOSTILE,
        "problem": HOSTILE,
        "request_id": HOSTILE,
        "since": HOSTILE,
        "stage": HOSTILE,
    }.items():
        text = visitor.get("/audit", params={name: values}).text
        assert "<script" not in text and ("&lt;script&gt;" in text) == (name != "stage"), name


def test_files_hold_what_was_found(visitor: Visitor) -> None:
    """Byte for byte as jsonl; as csv no cell is taken for a formula; by any field."""
    found = told(visitor, "/audit?decision=denied&account=main")
    lines = visitor.get("/audit.jsonl?decision=denied&account=main").text.splitlines()
    assert [f"{row['writer']}-{row['seq']}" for row in map(json.loads, lines)][:50] == [row["id"] for row in found["rows"]]
    assert len(lines) > 50
    table = list(csv.DictReader(io.StringIO(visitor.get("/audit.csv?decision=denied&account=main").text)))
    assert [row["request_id"] for row in table] == [json.loads(line)["request_id"] for line in lines]
    assert visitor.get("/audit.xlsx").status_code == 404
    assert "since" in visitor.get("/audit.csv?since=x").text


def test_a_formula_in_a_file_is_text(begin: Callable[..., Console]) -> None:
    """A service that is called like a formula, live or sealed."""
    console = begin()
    written(
        console,
        *(
            Record(stage="refusal", at=rfc3339(time.time()), account="main", service=f"{sign}cmd|' /C calc'!A0")
            for sign in "=+-@"
        ),
    )
    visitor = console.browser("auditor")
    for _ in range(2):
        table = list(csv.DictReader(io.StringIO(visitor.get("/audit.csv?account=main").text)))
        assert len(table) == 4
        assert all(row["service"].startswith('"\\u00') for row in table)
        console.seal()


def test_without_redis_what_is_sealed_is_told(begin: Callable[..., Console]) -> None:
    """To who was signed in: pages and stories go on, say what is missing, and no number is searched for unrecorded."""
    console = begin()
    ids = written(
        console, *(Record(stage="beat", at=rfc3339(time.time()), account="main", request_id=f"beat-{n}") for n in range(70))
    )
    console.seal()
    visitor, stranger = console.browser("auditor"), console.browser("operator")
    visitor.get("/audit")
    stranger.cookies.clear()
    stranger.cookies.set("console", "never-seen-here".ljust(43, "x"))
    console.redis.kill()

    page = visitor.get("/audit")
    assert page.status_code == 200
    assert "Redis does not answer: what is not sealed yet is missing here." in page.text
    first = told(visitor, "/audit?account=main")
    rows = [*first["rows"], *told(visitor, first["older"])["rows"]]
    assert [row["id"] for row in rows] == ids[::-1]
    assert "sealed and proved" in visitor.get("/audit/beat-3").text
    refused = visitor.get(f"/audit?pseudonyms={'a' * 32}")
    assert refused.status_code == 400 and "cannot be recorded" in refused.text
    assert visitor.get("/audit.csv").status_code == 503
    for path in ("/callers", "/overview"):
        assert visitor.get(path).status_code == 503
    assert stranger.get("/audit").status_code == 503


def test_a_session_that_ended_is_not_remembered(begin: Callable[..., Console]) -> None:
    """Signed out, or with a revoked key, nobody reads on because Redis is away."""
    console = begin()
    written(console, Record(stage="beat", at=rfc3339(time.time()), account="main"))
    console.seal()
    out, revoked = console.browser("auditor"), console.browser("operator")
    kept = out.cookies["console"]
    assert out.send_form("/sign-out", {"csrf": out.csrf()}).status_code == 303
    out.cookies.set("console", kept)
    console.cli("console", "revoke", "an-operator")
    assert revoked.get("/audit").status_code == 303
    console.redis.kill()

    assert out.get("/audit").status_code == 503
    assert revoked.get("/audit").status_code == 503


def test_a_broken_index_is_told(begin: Callable[..., Console]) -> None:
    """With the fix; what is live is shown, and without Redis nothing is."""
    console = begin()
    written(console, Record(stage="beat", at=rfc3339(time.time()), account="main", request_id="a-beat"))
    console.seal()
    written(console, Record(stage="beat", at=rfc3339(time.time()), account="main", request_id="live-beat"), writer="host-live")
    (console.folder / "state" / "archive" / "index.sqlite").write_bytes(b"no index" * 1000)
    visitor = console.browser("auditor")

    page = visitor.get("/audit")
    assert page.status_code == 200
    assert "gateway audit seal" in page.text and "makes it anew" in page.text
    assert "host-live-0" in page.text
    assert visitor.get("/audit/live-beat").status_code == 200
    answer = visitor.get("/audit.csv")
    assert answer.status_code == 400 and "would not be whole" in answer.text
    console.redis.kill()
    answer = visitor.get("/audit")
    assert answer.status_code == 503 and "The sealed trail cannot be read" in answer.text


def test_a_page_reads_a_bounded_number_of_records(begin: Callable[..., Console], monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the history is: of the sealed a page's worth, of the live what is allowed; and the next page goes on."""
    from gateway.trail.archive import Reader

    console = begin()
    folder = console.folder / "state" / "archive"
    with Archive(folder) as archive:
        archive.add(list(islice(history(20_000), 20_000)), {}, "main")
    chain, now = Chain("host-live"), rfc3339(time.time())
    with console.redis.client() as client:
        pipe = client.pipeline(transaction=False)
        for number in range(11_000):
            record = Record(stage="beat", at=now, account="main", service="only-once" if number == 5 else None)
            pipe.xadd(Names("main").audit, {"r": chain.link(record).record})
        pipe.execute()
    visitor = console.browser("auditor")

    first = told(visitor, "/audit?service=only-once&account=main")
    assert (first["rows"], first["cut"]) == ([], True)
    second = told(visitor, first["older"])
    assert [row["id"] for row in second["rows"]] == ["host-live-5"]
    assert second["older"] is None
    assert told(visitor, "/audit?service=service-03&account=main")["cut"], "the live ones come first"
    console.redis.kill()
    assert len(told(visitor, "/audit?service=service-03&account=main")["rows"]) == 50

    read = []
    true_records = Reader.records
    monkeypatch.setattr(Reader, "records", lambda self, where: (read.extend(where), true_records(self, where))[1])
    import asyncio

    from gateway.trail.search import Query, Trail

    with Reader(folder) as reader:
        page = asyncio.run(Trail(None, [Names("main").audit], reader).page(Query(service="service-00"), 50))
    assert len(page.found) == 50
    assert len(read) == 50
