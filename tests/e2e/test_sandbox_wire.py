"""The stand-in, on the wire: the documented bytes, and each code by its real cause."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import httpx
import pytest

from tests.e2e.wire import Wire, post
from tests.running import SET, UNSET, Process

DOCUMENTED = {
    "content-type": "application/json; charset=utf-8",
    "connection": "keep-alive",
    "access-control-allow-origin": "*",
    "access-control-allow-methods": "POST, GET, OPTIONS, PATCH, DELETE",
    "access-control-allow-headers": "X-Requested-With,content-type",
    "access-control-allow-credentials": "true",
    "vary": "Origin",
    "etag": 'W/"33-iVSeHn74crq18BBrCjWlZ6Ed1xo"',
    "strict-transport-security": "max-age=31536000; includeSubDomains",
    "content-length": "51",
}


class Vendor:
    """The sandbox as a vendor's client sees it."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.url = process.address()
        self.http = httpx.Client(base_url=self.url, trust_env=False, timeout=10)

    def call(self, path: str, **fields: object) -> dict:
        return self.http.post(path, json={"ssid": "s", **fields}).json()

    def code(self, path: str, **fields: object) -> int | None:
        return self.call(path, **fields).get("code")


@pytest.fixture(scope="module")
def vendor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vendor]:
    words = ["--ssid", "s", "--read-only-ssid", "ro", "--suspended-ssid", "off", "--pool", "3"]
    process = Process(
        tmp_path_factory.mktemp("vendor"), "sandbox", [sys.executable, "-m", "gateway", "sandbox", "--port", "0", *words]
    )
    vendor = Vendor(process)
    yield vendor
    vendor.http.close()
    assert process.stop() == 0


@pytest.fixture(autouse=True)
def _fresh(vendor: Vendor) -> None:
    vendor.http.delete("/_sandbox/faults")
    vendor.http.post("/_sandbox/clock", json={"advance_seconds": 10**7})


def test_success_is_the_documented_bytes(vendor: Vendor) -> None:
    """51 bytes, and every documented header with its documented value."""
    vendor.call(SET, m1="9000000001", m2="9000000002")
    host, port = vendor.url.removeprefix("http://").split(":")
    with Wire(host, int(port)) as wire:
        wire.send(post(b'{"ssid":"s","m1":"9000000001","m2":"9000000002"}'))
        answer = wire.answer()

    assert answer is not None
    assert answer.body == b'{"status":"success","message":"Your masking unset"}'
    assert answer.headers == DOCUMENTED


def test_each_code_has_its_real_cause(vendor: Vendor) -> None:
    """No switch is needed for what the documentation explains."""
    vendor.call(SET, m1="9000000001", m2="9000000002")

    assert vendor.code(UNSET, m1="9000000001", m2="+91 90000 00001") == 1501
    assert vendor.code(UNSET, m1="9000000001", expiry_duration="soon") == 1502
    assert vendor.code(UNSET, m1="9000000001", expiry_duration=1.5) == 1502
    assert vendor.code(SET, m1="9000000002", m2="09000000001") == 1503
    assert vendor.code(UNSET) == 1000
    assert vendor.code(UNSET, m1="abc") == 1005
    assert vendor.code(UNSET, m1="9111111111") == 1012
    assert vendor.code(UNSET, ssid="wrong", m1="9000000001") == 1014
    assert vendor.code(UNSET, ssid="ro", m1="9000000001") == 1015
    assert vendor.code(UNSET, ssid="off", m1="9000000001") == 1039
    assert vendor.code(UNSET, userId="u", token="t", m1="9000000001") == 1000
    for body in (b"", b"{", b"[]"):
        assert vendor.http.post(UNSET, content=body).json()["code"] == 1047
    assert vendor.code(SET, m1="9000000003", m2="9000000004") is None
    assert vendor.code(SET, m1="9000000005", m2="9000000006") is None
    assert vendor.code(SET, m1="9000000007", m2="9000000008") == 1505


@pytest.mark.parametrize("code", [1504, 1009, 1010, 1032, 1020])
def test_the_other_codes_have_a_switch(vendor: Vendor, code: int) -> None:
    """What has no cause a client could bring about is forced."""
    vendor.http.post("/_sandbox/faults", json={"force_code": code, "times": 1})

    assert vendor.code(UNSET, m1="9000000001") == code
    assert vendor.code(UNSET, m1="9000000001") == 1012


def test_an_expiry_really_comes(vendor: Vendor) -> None:
    """A masking set for a minute is gone after it; one that was given longer is not."""
    vendor.call(SET, m1="9000000001", m2="9000000002", expiry_duration=1)
    vendor.call(SET, m1="9000000003", m2="9000000004", expiry_duration=1)
    assert vendor.call(UNSET, m1="9000000003", expiry_duration=60)["status"] == "success"

    vendor.http.post("/_sandbox/clock", json={"advance_seconds": 61})

    assert vendor.code(UNSET, m1="9000000001") == 1012
    assert vendor.call(UNSET, m1="9000000003", expiry_duration=-1)["status"] == "success"
    assert vendor.code(UNSET, m1="9000000003") == 1012


def test_it_records_what_it_received(vendor: Vendor) -> None:
    """Headers as written, body as sent, and what was answered."""
    vendor.http.delete("/_sandbox/calls")
    vendor.http.post(UNSET, content=b'{"ssid":"wrong","m1":"9000000001"}', headers={"X-Odd": "1"})

    (call,) = vendor.http.get("/_sandbox/calls").json()
    assert json.loads(call["body"]) == {"ssid": "wrong", "m1": "9000000001"}
    assert ["X-Odd", "1"] in call["headers"]
    assert (call["answered_code"], call["acted"]) == (1014, False)


def test_a_wrong_switch_is_named(vendor: Vendor) -> None:
    """The answer lists the switches there are."""
    answer = vendor.http.post("/_sandbox/faults", json={"colour": 1})

    assert answer.status_code == 400
    assert "colour: is not a switch" in answer.json()["error"]


def test_a_port_in_use_is_said_in_one_line(vendor: Vendor, tmp_path) -> None:
    """The reason and the fix, and a status other than 0."""
    port = vendor.url.rpartition(":")[2]
    second = Process(tmp_path, "second", [sys.executable, "-m", "gateway", "sandbox", "--port", port])

    assert second.popen.wait(timeout=20) == 1
    assert second.err.read_text().count("\n") == 1
    assert "pass --port N" in second.err.read_text()
