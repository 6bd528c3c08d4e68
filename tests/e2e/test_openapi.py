"""The API's description: sound in itself, kept by the running gateway, and one with the page that is made of it."""

from __future__ import annotations

import html
import json
import os
import re
import subprocess
import sys
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from gateway import docs
from gateway.errors import Problem
from gateway.openapi import describe_api
from tests.running import SET, UNSET, Stack, until

# Not switched off: what readiness says, and what is due to who waits a millisecond, is not the server's fault. That the vendor
# is never to blame otherwise is looked at below, by the trail.
SETTINGS = """
[[operations]]
include-path = "/readyz"
checks.not_a_server_error.expected-statuses = ["2xx", "4xx", 503]
[[operations]]
include-path = "/api/v2/Masking/unset"
checks.not_a_server_error.expected-statuses = ["2xx", "4xx", 504]
"""
WAITED = {"deadline_passed", "upstream_timeout"}


@pytest.fixture(scope="module")
def document(stack: Stack) -> dict[str, Any]:
    """What the gateway serves."""
    return stack.http.get(stack.url + "/openapi.json").json()


def schemathesis(stack: Stack, folder: Path, *words: str, headers_only: bool = False) -> str:
    """Run Schemathesis on the gateway, with a key of its own, and return what it says; fails where it found anything."""
    key, key_id, secret = stack.issue("described")
    settings = folder / "schemathesis.toml"
    settings.write_text(SETTINGS)
    environ = {
        "SCHEMATHESIS_HOOKS": "tests.e2e.schemathesis_hooks", "PYTHONPATH": os.getcwd(),
        "DESCRIBED_SSID_KEY": key, "DESCRIBED_USERID": key_id, "DESCRIBED_TOKEN": secret, "DESCRIBED_ACCOUNT": "test",
        "DESCRIBED_SET": stack.sandbox_url + SET, "DESCRIBED_SSID": stack.vendor_ssid,
        **({"DESCRIBED_HEADERS_ONLY": "1"} if headers_only else {}),
    }  # fmt: skip
    done = subprocess.run(
        [Path(sys.executable).with_name("schemathesis"), "--config-file", settings, "run", stack.url + "/openapi.json",
         "--header", f"Authorization: Bearer {key}", "--generation-deterministic", "--no-color", "--continue-on-failure", *words],
        capture_output=True, text=True, timeout=280, env={**os.environ, **environ},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "No issues found" in done.stdout, done.stdout[-3000:]
    return done.stdout


@pytest.mark.timeout(300)
def test_the_gateway_does_what_the_document_says(stack: Stack, tmp_path: Path) -> None:
    """Schemathesis finds no difference, by examples, by every boundary, by chance; most of its calls are really made."""
    told = schemathesis(stack, tmp_path, "--checks", "all", "--max-examples", "60")

    assert re.search(r"(\d+) generated, \1 passed", told), told[-800:]
    for phase in ("Examples", "Coverage", "Fuzzing"):
        assert f"✅ {phase}" in told
    records = [record for record in stack.stream() if record.get("service") == "described"]
    ended = [record["problem"] for record in records if "problem" in record]
    assert len([record for record in records if record["stage"] == "outcome" and record["result"] == "answered"]) > 50
    assert {problem for problem in ended if Problem[problem].value.status >= 500} <= WAITED
    assert {"expiry_duration_invalid", "expiry_time_invalid", "field_unknown", "field_type", "number_invalid",
            "request_timeout_malformed"} <= set(ended)  # fmt: skip


@pytest.mark.timeout(300)
def test_no_proof_is_optional(stack: Stack, tmp_path: Path) -> None:
    """What succeeds with a key fails without one and with a wrong one, in each of the headers."""
    schemathesis(stack, tmp_path, "--checks", "ignored_auth", "--phases", "examples,coverage", headers_only=True)


def test_the_document_is_sound(document: dict[str, Any]) -> None:
    """By OpenAPI 3.1's own schema; and every example is what its schema says."""
    OpenAPIV31SpecValidator(document).validate()
    shown = list(examples(document))

    assert len(shown) > 2 * len(Problem)
    for schema, value in shown:
        validator = Draft202012Validator({**schema, "components": document["components"]})
        validator.validate(value)


def examples(document: dict[str, Any]) -> Iterator[tuple[dict[str, Any], Any]]:
    """Yield every example with its schema: of bodies, headers and parameters."""
    todo: list[Any] = [document]
    for part in todo:
        if isinstance(part, dict):
            todo.extend(part.values())
            if "schema" in part:
                told = part.get("examples", {})
                yield from ((part["schema"], one["value"]) for one in told.values())
                if "example" in part:
                    yield part["schema"], part["example"]
        elif isinstance(part, list):
            todo.extend(part)


def test_every_problem_is_shown_in_both_forms(document: dict[str, Any]) -> None:
    """Each with its status, and an example of what is sent."""
    responses = document["paths"][UNSET]["post"]["responses"]
    for problem in Problem:
        row = problem.value
        content = responses[str(row.status)]["content"]
        plain = content["application/json"]["examples"][problem.slug]["value"]
        assert (plain["code"], plain["error"], plain["message"], plain["origin"], plain["retryable"]) == (
            row.code, problem.slug, row.message, row.origin, row.retryable,
        )  # fmt: skip
        form = content["application/problem+json"]["examples"][problem.slug]["value"]
        assert (form["status"], form["detail"]) == (row.status, row.message)


def test_every_header_and_proof_is_there(document: dict[str, Any], stack: Stack) -> None:
    """What the gateway reads, and tells browsers that they may send or see, is described."""
    unset, parts = document["paths"][UNSET]["post"], document["components"]
    origin = {"Origin": "https://panel.example"}
    asked = stack.http.options(stack.url + UNSET, headers=origin).headers["access-control-allow-headers"]
    answered = stack.http.get(stack.url + UNSET, headers=origin).headers["access-control-expose-headers"]
    told = {parameter["name"] for parameter in unset["parameters"]}
    told |= {scheme.get("name", "Authorization") for scheme in parts["securitySchemes"].values()}

    assert set(asked.split(", ")) == told | {"Content-Type"}
    assert set(answered.split(", ")) <= set(parts["headers"])
    assert {"ssid", "userId", "token"} <= set(parts["schemas"]["Unset"]["properties"])


def as_described(answer: httpx.Response, document: dict[str, Any]) -> dict[str, Any]:
    """Hold an answer against the document, headers and body; return the body."""
    described = document["paths"][UNSET]["post"]["responses"][str(answer.status_code)]
    for name, reference in described["headers"].items():
        header = document["components"]["headers"][name]
        if header.get("required") or name in answer.headers:
            value = answer.headers[name]
            Draft202012Validator(header["schema"]).validate(int(value) if header["schema"].get("type") == "integer" else value)
            assert reference == {"$ref": f"#/components/headers/{name}"}
    told = {name.lower() for name in document["components"]["headers"]} & set(answer.headers)
    assert told <= {name.lower() for name in described["headers"]}, answer.headers
    schema = described["content"][answer.headers["content-type"].split(";")[0]]["schema"]
    Draft202012Validator({**schema, "components": document["components"]}).validate(answer.json())
    return answer.json()


@pytest.mark.parametrize("accept", ["application/json", "application/problem+json"])
def test_a_used_up_limit_is_as_described(start: Callable[..., Stack], accept: str) -> None:
    """429, with what is left, when to come again, and by which policies."""
    stack = start(quotas='[policies.caller]\nrate = "1/h"\nburst = 1')
    document = stack.http.get(stack.url + "/openapi.json").json()
    m1, m2 = stack.masked()
    assert "ratelimit" in stack.unset(m1=m1, m2=m2).headers
    refused = stack.unset(m1=m1, m2=m2, headers={"Accept": accept})

    body = as_described(refused, document)
    assert (refused.status_code, body["error"], body["policy"], body["violated-policies"]) == (
        429,
        "quota_exceeded",
        "caller",
        ["caller"],
    )
    assert refused.headers["retry-after"] == str(body["retry_after"])
    assert {"ratelimit", "ratelimit-policy"} <= set(refused.headers)
    assert refused.headers["content-type"].startswith(accept)


def test_what_no_schema_leads_to_is_as_described(stack: Stack, document: dict[str, Any]) -> None:
    """Answers given again, another call under a key, an unknown key, and the vendor in its several moods."""
    m1, m2 = stack.masked()
    once = {"Idempotency-Key": f"described-{m1}"}
    for _ in range(2):
        again = stack.unset(m1=m1, m2=m2, headers=once)
        as_described(again, document)
    assert again.headers["idempotency-replayed"] == "true"
    assert as_described(stack.unset(m1=m2, headers=once), document)["error"] == "idempotency_mismatch"
    assert as_described(stack.unset(m1=m1, key="gk_live_0000000000_0"), document)["error"] == "credential_malformed"
    assert as_described(stack.http.get(stack.url + UNSET), document)["error"] == "method_not_allowed"
    waiting = {"Idempotency-Key": f"running-{m1}"}
    stack.clear_vendor_calls()
    stack.fault(answer="slow", delay_ms=700)
    first = threading.Thread(target=lambda: stack.unset(m1=m1, m2=m2, headers=waiting))
    first.start()
    until(lambda: stack.vendor_calls(), what="the vendor being called")
    assert as_described(stack.unset(m1=m1, m2=m2, headers=waiting), document)["retry_after"] == 1
    first.join()
    for code in (1501, 1503, 1505, 1009, 1012, 1014, 9999):
        stack.fault(force_code=code)
        body = as_described(stack.unset(m1=m1, m2=m2), document)
        assert body["origin"] == "vendor"


def test_a_whole_number_is_one_however_it_is_written(stack: Stack) -> None:
    """JSON has one kind of number: `-1.0` and `9e9` are integers to JSON Schema, and to the vendor's reader."""
    m1, m2 = stack.masked()

    answer = stack.unset(f'{{"m1": {m1}.0, "m2": "{m2}", "expiry_duration": -1.0}}'.encode())
    assert answer.status_code == 200, answer.text
    assert json.loads(stack.vendor_calls()[-1]["body"]) == {"ssid": stack.vendor_ssid, "m1": m1, "m2": m2, "expiry_duration": -1}
    for bad in (b"1e400", b"1e300", b"-1.5", b"9007199254740993.0"):
        refused = stack.unset(b'{"m1": "' + m1.encode() + b'", "expiry_duration": ' + bad + b"}")
        assert refused.json()["error"] == "expiry_duration_invalid", bad


def test_the_page_and_its_headers(stack: Stack) -> None:
    """It loads nothing, runs nothing, and no other page may frame it; the style is the one that its policy names."""
    answer = stack.http.get(stack.url + "/docs")
    style = re.search(r"<style>(.*?)</style>", answer.text, re.DOTALL)

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert style is not None
    digest = b64encode(sha256(style[1].encode()).digest()).decode()
    assert answer.headers["content-security-policy"] == (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert "<script" not in answer.text
    assert not re.findall(r'(?:src|href)="(?!#|/openapi\.json|data:)', answer.text)
    head = stack.http.head(stack.url + "/docs")
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", answer.headers["content-length"])
    posted = stack.http.post(stack.url + "/docs")
    assert (posted.status_code, posted.json()["error"], set(posted.headers["allow"].split(", "))) == (
        405, "method_not_allowed", {"GET", "HEAD"},
    )  # fmt: skip
    assert stack.http.get(stack.url + "/docs/").status_code == 404


def test_the_page_says_what_the_document_says(stack: Stack, document: dict[str, Any]) -> None:
    """Every text and example of the call is on it, and every address."""
    page = stack.http.get(stack.url + "/docs").text
    text = html.unescape(re.sub(r"<[^>]+>", "", page))
    call = document["paths"][UNSET]["post"]
    told = [part["description"] for part in (*call["parameters"], *document["components"]["headers"].values())]
    told += [scheme["description"] for scheme in document["components"]["securitySchemes"].values()]
    told += [field["description"] for field in document["components"]["schemas"]["Unset"]["properties"].values()]
    told += [field["description"] for field in document["components"]["schemas"]["Error"]["properties"].values()]
    told += [call["summary"].rstrip("."), *call["description"].split("\n\n"), *document["paths"]]
    shown = [sample["source"] for sample in call["x-codeSamples"]]
    for content in (call["requestBody"], *call["responses"].values()):
        for form in content["content"].values():
            shown += [json.dumps(one["value"], indent=2, ensure_ascii=False) for one in form["examples"].values()]

    assert len(told) > 30
    assert len(shown) > 2 * len(Problem)
    for sentence in told:
        assert sentence.replace("`", "") in text, sentence
    for example in shown:
        assert example in text


def test_the_page_escapes_what_the_document_says() -> None:
    """Whatever stands in a description, a name or an example is text."""
    hostile = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&`<b>`"
    document = describe_api(hostile)
    document["info"]["description"] = document["paths"][UNSET]["post"]["summary"] = hostile
    document["paths"][UNSET]["post"]["parameters"][0] |= {"name": hostile, "description": hostile, "example": hostile}
    document["paths"][UNSET]["post"]["requestBody"]["content"]["application/json"]["examples"]["end"] = {
        "summary": hostile, "value": {hostile: hostile},
    }  # fmt: skip

    page = docs.render(document).html

    assert page.count("&lt;script&gt;alert(1)") >= 7
    for tag in ("<script", "<img", "<b>"):
        assert tag not in page


def test_what_is_published_by_a_command_is_what_is_served(stack: Stack, document: dict[str, Any]) -> None:
    """For a folder of documents, without a gateway that runs."""
    done = [
        subprocess.run(
            [sys.executable, "-m", "gateway", "openapi", *words], capture_output=True, text=True, check=True, timeout=60
        )
        for words in ((), ("--html",))
    ]

    assert json.loads(done[0].stdout) == document
    assert done[1].stdout == stack.http.get(stack.url + "/docs").text + "\n"
