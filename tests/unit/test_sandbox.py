"""The stand-in's state and codes, in process: each code by its real cause, each switch by what it changes."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json

import httpx
import pytest

from gateway.sandbox.contract import TEXTS
from gateway.sandbox.faults import ANSWERS, DELIVERIES, read_faults
from gateway.sandbox.server import Config, create_app

UNSET = "/api/v2/Masking/unset"
SET = "/api/v2/Masking/set"
A, B, C, D = "9000000001", "9000000002", "9000000003", "9000000004"


class Vendor:
    """The sandbox as an ASGI application, with a clock that stands still."""

    def __init__(self, **config) -> None:
        self.now = 1_800_000_000.0
        self.app = create_app(Config(**{"ssids": ("s", "standby"), **config}), lambda: self.now)

    def http(self, method: str, path: str, **options) -> httpx.Response:
        async def once() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://vendor") as client:
                return await client.request(method, path, **options)

        return asyncio.run(once())

    def call(self, path: str, **fields) -> httpx.Response:
        credential = {} if {"ssid", "userId", "token"} & set(fields) else {"ssid": "s"}
        return self.http("POST", path, content=json.dumps({**credential, **fields}))

    def set(self, m1: str = A, m2: str = B, **fields) -> str:
        answer = self.call(SET, m1=m1, m2=m2, **fields).json()
        assert answer["status"] == "success", answer
        return answer["mask"]

    def code(self, path: str = UNSET, **fields) -> int | None:
        return self.call(path, **fields).json().get("code")

    def ends(self) -> list[float]:
        """Return in how many seconds each live masking ends."""
        return [masking["ends_at"] - self.now for masking in self.http("GET", "/_sandbox/maskings").json()]

    def switch(self, **switches) -> httpx.Response:
        return self.http("POST", "/_sandbox/faults", json=switches)

    def calls(self) -> list[dict]:
        return self.http("GET", "/_sandbox/calls").json()


@pytest.fixture
def vendor() -> Vendor:
    return Vendor(read_only_ssids=("ro",), suspended_ssids=("off",), pool=2)


def test_success_is_the_documented_body(vendor: Vendor) -> None:
    """The 51 bytes, with the documented ETag."""
    vendor.set()
    answer = vendor.call(UNSET, m1=A, m2=B)

    assert answer.content == b'{"status":"success","message":"Your masking unset"}'
    assert answer.headers["etag"] == 'W/"33-iVSeHn74crq18BBrCjWlZ6Ed1xo"'


def test_an_error_has_the_documented_shape_and_its_own_etag(vendor: Vendor) -> None:
    """Status, message and a numeric code under HTTP 200."""
    answer = vendor.call(UNSET, m1=A)
    digest = base64.b64encode(hashlib.sha1(answer.content).digest()).decode()[:27]

    assert (answer.status_code, answer.json()) == (200, {"status": "error", "message": "No data found", "code": 1012})
    assert answer.headers["etag"] == f'W/"{len(answer.content):x}-{digest}"'


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({}, 1000),
        ({"m1": "", "mask": None}, 1000),
        ({"m1": "12"}, 1005),
        ({"m1": "not a number"}, 1005),
        ({"m1": "0000"}, 1005),
        ({"m1": True}, 1005),
        ({"m1": A, "m2": "+91 90000 00001"}, 1501),
        ({"m1": A, "m2": "0" + A}, 1501),
        ({"m1": A, "expiry_duration": "soon"}, 1502),
        ({"m1": A, "expiry_duration": 1.5}, 1502),
        ({"m1": A, "expiry_duration": True}, 1502),
        ({"m1": A, "expiry_time": "tomorrow"}, 1502),
        ({"m1": A, "expiry_duration": 5, "expiry_time": "tomorrow"}, 1502),
        ({"m1": "9111111111"}, 1012),
        ({"m1": A, "m2": C}, 1012),
    ],
)
def test_unset_refuses_by_its_real_cause(vendor: Vendor, fields: dict, code: int) -> None:
    """What is wrong with the fields decides the code, and nothing is changed."""
    vendor.set()

    assert vendor.code(**fields) == code
    assert len(vendor.ends()) == 1


@pytest.mark.parametrize(
    ("credential", "code"),
    [
        ({"ssid": "s"}, 1012),
        ({"ssid": "standby"}, 1012),
        ({"userId": "sandbox-user", "token": "sandbox-token"}, 1012),
        ({"ssid": ""}, 1000),
        ({"userId": "sandbox-user"}, 1000),
        ({"ssid": "s", "userId": "sandbox-user", "token": "sandbox-token"}, 1000),
        ({"ssid": "s", "token": "sandbox-token"}, 1000),
        ({"ssid": "wrong"}, 1014),
        ({"ssid": ["s"]}, 1014),
        ({"userId": "sandbox-user", "token": "wrong"}, 1014),
        ({"ssid": "ro"}, 1015),
        ({"ssid": "off"}, 1039),
    ],
)
def test_a_credential_is_one_form_and_right(vendor: Vendor, credential: dict, code: int) -> None:
    """1012 is the answer once one is let in: there is no such masking."""
    assert vendor.code(m1=A, **credential) == code


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'"x"', b"null", b'{"ssid":"s","m1":NaN}', b'{"ssid":"s","m1":+919}', b"\xff"]
)
def test_a_body_that_is_no_json_object_is_1047(vendor: Vendor, body: bytes) -> None:
    """Empty, cut, of another type, or with what only lenient parsers read."""
    assert vendor.http("POST", UNSET, content=body).json()["code"] == 1047


@pytest.mark.parametrize("media", ["application/json", "text/plain", "application/x-www-form-urlencoded", None])
def test_the_content_type_decides_nothing(vendor: Vendor, media: str | None) -> None:
    """The documented samples send whatever their client sends."""
    vendor.set()
    headers = {"Content-Type": media} if media else {}

    assert vendor.http("POST", UNSET, content=b'{"ssid":"s","m1":"9000000001"}', headers=headers).json()["status"] == "success"


def test_set_refuses_a_living_pair_and_an_empty_pool(vendor: Vendor) -> None:
    """1503 for the pair in any order, 1505 for one more than the pool, and both end with the masking."""
    vendor.set(A, B)
    assert vendor.code(SET, m1="0" + B, m2="+91" + A) == 1503
    vendor.set(C, D)
    assert vendor.code(SET, m1=A, m2=C) == 1505
    assert vendor.call(UNSET, m1=A, m2=B).json()["status"] == "success"

    assert vendor.set(B, A)


@pytest.mark.parametrize(("fields", "code"), [({"m1": A}, 1000), ({"m1": A, "m2": A}, 1501), ({"m1": A, "m2": "x"}, 1005)])
def test_set_needs_two_numbers(vendor: Vendor, fields: dict, code: int) -> None:
    """Both, different, and numbers."""
    assert vendor.code(SET, **fields) == code


@pytest.mark.parametrize("written", ["9876543210", "09876543210", "919876543210", "+91 98765 43210", 9876543210])
def test_a_number_is_the_same_however_written(vendor: Vendor, written: object) -> None:
    """As text or as a JSON number, with and without the country."""
    vendor.set("9876543210", B)

    assert vendor.call(UNSET, m1=written).json()["status"] == "success"
    assert vendor.ends() == []


@pytest.mark.parametrize("kind", [str, int])
def test_a_mask_may_be_text_or_a_number(vendor: Vendor, kind: type) -> None:
    """The documented sample sends it unquoted; only that masking ends."""
    mask = vendor.set()
    vendor.set(C, D)

    assert vendor.call(UNSET, mask=kind(mask)).json()["status"] == "success"
    assert [masking["m1"] for masking in vendor.http("GET", "/_sandbox/maskings").json()] == ["91" + C]
    assert vendor.code(mask=kind(mask)) == 1012


@pytest.mark.parametrize(
    ("fields", "switches", "ends"),
    [
        ({}, {}, []),
        ({"expiry_duration": -1}, {}, []),
        ({"expiry_duration": "-1"}, {}, []),
        ({"expiry_duration": 60}, {}, [3600.0]),
        ({"expiry_duration": "60"}, {}, [3600.0]),
        ({"expiry_time": 1_800_000_100}, {}, [100.0]),
        ({"expiry_time": "1800000100"}, {}, [100.0]),
        ({"expiry_time": "2027-01-15T08:01:40Z"}, {}, [100.0]),
        ({"expiry_time": "2027-01-15T13:31:40+05:30"}, {}, [100.0]),
        ({"expiry_time": "2027-01-15T08:01:40"}, {}, [100.0]),
        ({"expiry_time": 1_799_999_999}, {}, []),
        ({"expiry_duration": 0}, {}, []),
        ({"expiry_duration": "0"}, {"duration_zero": "ignore"}, [86_400.0]),
        ({"expiry_duration": 60, "expiry_time": 1_800_000_100}, {}, [3600.0]),
        ({"expiry_duration": 0, "expiry_time": 1_800_000_100}, {}, []),
        ({"expiry_duration": 60, "expiry_time": 1_800_000_100}, {"both_expiry_fields": "time"}, [100.0]),
    ],
)
def test_an_unset_ends_or_reschedules(vendor: Vendor, fields: dict, switches: dict, ends: list[float]) -> None:
    """In how many seconds the masking ends after the call; it was set for a day."""
    vendor.set()
    vendor.switch(**switches)

    assert vendor.call(UNSET, m1=A, **fields).json()["status"] == "success"
    assert vendor.ends() == ends


def test_a_duration_of_zero_may_be_refused(vendor: Vendor) -> None:
    """The third plausible answer to an undocumented question."""
    vendor.set()
    vendor.switch(duration_zero="refuse")

    assert vendor.code(m1=A, expiry_duration=0) == 1502


def test_one_number_in_several_maskings_ends_all_or_is_refused(vendor: Vendor) -> None:
    """As the switch says."""
    vendor.set(A, B)
    vendor.set(A, C)
    vendor.switch(several="refuse")
    assert vendor.code(m1=A) == 1000
    vendor.switch(several="all")

    assert vendor.code(m1=A) is None
    assert vendor.ends() == []


def test_an_expiry_comes_with_the_clock(vendor: Vendor) -> None:
    """Not a second early, and the number returns to the pool; later maskings are not forgotten."""
    vendor.set(A, B, expiry_duration=1)
    vendor.set(C, D, expiry_duration=2)
    advance = {"advance_seconds": 59}
    vendor.http("POST", "/_sandbox/clock", json=advance)
    assert len(vendor.ends()) == 2
    vendor.now += 1
    assert len(vendor.ends()) == 1
    assert vendor.code(m1=A) == 1012
    vendor.now += 60

    assert vendor.ends() == []
    assert vendor.code(m1=C) == 1012


def test_each_of_several_expiries_comes_at_its_own_time() -> None:
    """One that has come does not hide the next, however they were set."""
    vendor = Vendor()
    for last, minutes in enumerate((3, 1, 2)):
        vendor.set(f"900000010{last}", f"900000020{last}", expiry_duration=minutes)
    left = []
    for _ in range(3):
        vendor.now += 60
        left.append(len(vendor.ends()))

    assert left == [2, 1, 0]


@pytest.mark.parametrize("code", sorted(TEXTS))
@pytest.mark.parametrize(("status", "shape"), [(200, "code"), (422, "code"), (500, "msg")])
def test_any_code_can_be_forced_in_any_shape(vendor: Vendor, code: int, status: int, shape: str) -> None:
    """Status and shape are switches of their own, and nothing is done."""
    vendor.set()
    vendor.switch(force_code=code, error_status=status, error_shape=shape)
    answer = vendor.call(UNSET, m1=A)

    current = {"status": "error", "message": TEXTS[code], "code": code}
    assert answer.status_code == status
    assert answer.json() == (current if shape == "code" else {"msg": "error", "msg_text": TEXTS[code]})
    assert len(vendor.ends()) == 1


def test_1504_is_forced_on_set_too(vendor: Vendor) -> None:
    """A code that belongs to `set` is of use there."""
    vendor.switch(force_code=1504, times=1)

    assert vendor.code(SET, m1=A, m2=B) == 1504
    assert vendor.code(SET, m1=A, m2=B) is None


def test_a_set_errs_as_the_host_does_but_is_not_spoiled(vendor: Vendor) -> None:
    """It prepares the call under test, so an answer's fault waits for the unset."""
    vendor.switch(answer="html_502", error_status=400, times=1)
    assert vendor.call(SET, m1=A).status_code == 400
    vendor.set()

    assert vendor.call(UNSET, m1=A).status_code == 502


def test_switches_hold_for_so_many_calls(vendor: Vendor) -> None:
    """Then they are off."""
    vendor.switch(force_code=1014, times=2)

    assert [vendor.code(m1=A) for _ in range(3)] == [1014, 1014, 1012]


def test_switches_are_told_and_reset(vendor: Vendor) -> None:
    """What is told can be sent back."""
    assert vendor.switch(answer="slow", delay_ms=1, several="refuse").status_code == 204
    told = vendor.http("GET", "/_sandbox/faults").json()
    assert (told["answer"], told["delay_ms"], told["several"], told["error_status"]) == ("slow", 1, "refuse", 200)
    assert vendor.switch(**told).status_code == 204
    vendor.http("DELETE", "/_sandbox/faults")

    assert vendor.http("GET", "/_sandbox/faults").json()["answer"] is None


@pytest.mark.parametrize(
    "switches",
    [
        {"colour": 1}, {"answer": "nonsense"}, {"answer": []}, {"error_status": 204}, {"error_status": "500"}, {"error_status": None},
        {"error_shape": "xml"}, {"force_code": "1014"}, {"delay_ms": -1}, {"act": 1}, {"times": 0}, {"times": True},
        {"duration_zero": "banana"}, {"both_expiry_fields": "both"}, {"several": None},
    ],
)  # fmt: skip
def test_a_wrong_switch_is_named_and_changes_nothing(vendor: Vendor, switches: dict) -> None:
    """The answer begins with the switch's name."""
    answer = vendor.switch(**switches)

    assert answer.status_code == 400
    assert answer.json()["error"].startswith(f"{next(iter(switches))}: ")
    assert vendor.code(m1=A) == 1012


@pytest.mark.parametrize("body", [b"", b"[]", b'{"advance_seconds":"x"}', b'{"advance_seconds":1e999}', b"{}"])
def test_a_wrong_clock_is_refused(vendor: Vendor, body: bytes) -> None:
    """A clock that is not a number would end every masking, or none."""
    assert vendor.http("POST", "/_sandbox/clock", content=body).status_code == 400


@pytest.mark.parametrize("name", sorted(set(ANSWERS) - DELIVERIES - {"huge"}))
@pytest.mark.parametrize("act", [True, False])
def test_act_decides_whether_a_faulty_answer_took_effect(vendor: Vendor, name: str, act: bool) -> None:
    """Whatever is answered, and the record says so."""
    vendor.set()
    vendor.switch(answer=name, act=act)
    answer = vendor.call(UNSET, m1=A)

    last = vendor.calls()[-1]
    assert (last["acted"], last["answered_status"]) == (act, answer.status_code)
    assert len(vendor.ends()) == (0 if act else 1)


def test_calls_are_recorded_and_cleared(vendor: Vendor) -> None:
    """In order, with what came and what was answered; the sequence goes on."""
    vendor.set()
    vendor.http("POST", UNSET + "?x=1", content=b'{"ssid":"wrong","m1":"1"}', headers={"X-Odd": "1"})
    first, second = vendor.calls()

    assert (first["sequence"], first["path"], first["answered_code"], first["acted"]) == (1, SET, None, True)
    assert (second["sequence"], second["path"], second["answered_code"], second["acted"]) == (2, UNSET + "?x=1", 1014, False)
    assert second["body"] == '{"ssid":"wrong","m1":"1"}'
    assert ["x-odd", "1"] in second["headers"]
    assert second["received_at"] == vendor.now
    vendor.http("DELETE", "/_sandbox/calls")
    vendor.set(C, D)
    assert [call["sequence"] for call in vendor.calls()] == [3]


def test_records_are_bounded_and_can_be_off() -> None:
    """The oldest go first; without recording there are none."""
    few, none = Vendor(recorded_max=2), Vendor(recorded_max=0)
    for vendor in (few, none):
        for _ in range(3):
            vendor.code(m1=A)

    assert [call["sequence"] for call in few.calls()] == [2, 3]
    assert none.calls() == []


def test_a_followed_redirect_is_recorded(vendor: Vendor) -> None:
    """So that a client which carries its credential elsewhere is seen."""
    vendor.http("POST", "/_sandbox/elsewhere", content=b"secret")

    assert [(call["path"], call["body"]) for call in vendor.calls()] == [("/_sandbox/elsewhere", "secret")]


@pytest.mark.parametrize(("method", "path", "status"), [("OPTIONS", UNSET, 204), ("GET", UNSET, 405), ("GET", "/other", 404)])
def test_other_methods_and_paths(vendor: Vendor, method: str, path: str, status: int) -> None:
    """A browser may read each of these answers."""
    answer = vendor.http(method, path)

    assert answer.status_code == status
    assert answer.headers["access-control-allow-origin"] == "*"
    assert vendor.calls() == []


@pytest.mark.parametrize("name", sorted(DELIVERIES - {"slow"}))
def test_a_fault_of_the_socket_is_refused_in_process(vendor: Vendor, name: str) -> None:
    """It is not silently left out."""
    vendor.switch(answer=name)

    with pytest.raises(ConnectionError, match=name):
        vendor.code(m1=A)


def test_no_switch_is_the_documented_behaviour() -> None:
    """An empty object is every default."""
    assert read_faults({}).told() == {
        "error_status": 200, "error_shape": "code", "force_code": None, "answer": None, "delay_ms": 50, "act": None, "times": None,
        "duration_zero": "end", "both_expiry_fields": "duration", "several": "all",
    }  # fmt: skip
