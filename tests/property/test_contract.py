"""What the gateway takes, and what becomes of everything else."""

from __future__ import annotations

import json
import string

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import keys
from gateway.config import Validation
from gateway.document import read_document
from gateway.errors import Problem, Refusal
from gateway.model import Bindings, Call, Caller, UpstreamAnswer, UpstreamRequest
from gateway.normalisation import normalise, outcome_of
from gateway.numbers import Pseudonyms, read_number
from gateway.sandbox.maskings import Maskings, Rejected, Unknowns
from gateway.validation import Validator

CALLER = Caller("crm", "0123456789", Bindings())
VALIDATOR = Validator(Validation())

written = st.builds(
    lambda form, rest: form.format(rest, rest[:5], rest[5:]),
    st.sampled_from(["{0}", "0{0}", "91{0}", "+91{0}", "+91 {1} {2}", "{1}-{2}", "(0){1} {2}"]),
    st.from_regex(r"[6-9][0-9]{9}", fullmatch=True),
)
value = st.one_of(
    written, st.none(), st.booleans(), st.floats(), st.integers(-(10**14), 10**14), st.text(max_size=12),
    st.text(string.digits + "+-. ()", max_size=16), st.lists(st.integers(), max_size=2),
)  # fmt: skip
bodies = st.dictionaries(st.sampled_from(["m1", "m2", "mask", "expiry_time", "expiry_duration"]), value)


def validated(body: object) -> Call | Refusal:
    try:
        return VALIDATOR.validate(read_document(json.dumps(body).encode(), 16_384), CALLER, "main")
    except Refusal as refusal:
        return refusal


def forwarded(call: Call) -> dict:
    fields: dict = {name: number.sent for name, number in call.numbers.items()}
    fields |= {} if call.expiry_time is None else {"expiry_time": call.expiry_time}
    return fields | ({} if call.expiry_duration is None else {"expiry_duration": call.expiry_duration})


@settings(max_examples=600, deadline=None)
@given(bodies)
def test_what_we_take_the_vendor_takes(body: dict) -> None:
    """A call that passes validation meets no fault of form at the sandbox: only that there is no such masking."""
    call = validated(body)
    if isinstance(call, Refusal):
        assert call.problem.value.status == 400
        return
    try:
        Maskings(1, lambda: 1_800_000_000.0).unset(forwarded(call), Unknowns())
    except Rejected as rejected:
        assert rejected.code == 1012, body


@settings(max_examples=300, deadline=None)
@given(written, written)
def test_one_number_is_one_number(one: str, two: str) -> None:
    """However a number is written it has one form and one pseudonym; equal numbers are the vendor's 1501."""
    first, second = read_number(one, "IN"), read_number(two, "IN")
    assert first is not None
    assert second is not None
    digits = [re_digits(text)[-10:] for text in (one, two)]

    assert (first.e164 == second.e164) == (digits[0] == digits[1])
    pseudonyms = Pseudonyms(Secret_("k" * 32), "k1")
    assert (pseudonyms.of(first.e164) == pseudonyms.of(second.e164)) == (first.e164 == second.e164)
    answer = validated({"m1": one, "m2": two})
    assert isinstance(answer, Refusal) == (first.e164 == second.e164)


def re_digits(text: str) -> str:
    return "".join(letter for letter in text if letter.isdigit())


def Secret_(text: str):  # noqa: ANN201
    from gateway.model import Secret

    return Secret(text)


@settings(max_examples=500, deadline=None)
@given(
    st.one_of(st.binary(max_size=200), st.text(max_size=100).map(str.encode), bodies.map(lambda body: json.dumps(body).encode()))
)
def test_reading_a_body_is_total(body: bytes) -> None:
    """Any bytes give fields or a fault with a row, never an exception."""
    document = read_document(body, 16_384)

    assert (document.fault is None) or document.fault.problem in (Problem.body_malformed, Problem.field_duplicate)
    assert not (document.fault and document.fields)


@settings(max_examples=500, deadline=None)
@given(
    st.integers(100, 599), st.booleans(),
    st.one_of(
        st.binary(max_size=200),
        st.fixed_dictionaries({}, optional={
            "status": st.one_of(st.sampled_from(["success", "error", "SUCCESS"]), st.integers(), st.none()),
            "code": st.one_of(st.sampled_from([1501, 1014, 9999, "1503", 200, True, 1.5, None]), st.text(max_size=5)),
            "message": st.one_of(st.text(max_size=400), st.none(), st.integers(), st.just("your ssid-secret here")),
            "msg": st.sampled_from(["error", "success"]), "msg_text": st.text(max_size=20),
        }).map(lambda body: json.dumps(body).encode()),
    ),
)  # fmt: skip
def test_normalising_is_total(status: int, complete: bool, body: bytes) -> None:
    """Whatever the vendor says becomes one outcome in the one shape, and no credential is in it."""
    call = validated({"m1": "9876543210"})
    assert isinstance(call, Call)
    request = UpstreamRequest(b"{}", ("ssid-secret",))
    try:
        outcome = normalise(UpstreamAnswer(status, body, None, complete), request, call, "r")
        assert (outcome.status, outcome.slug, outcome.result) == (200, "success", "answered")
        assert 200 <= status < 300
    except Refusal as refusal:
        outcome = outcome_of(refusal, "r")
        assert outcome.status >= 400
    assert outcome.body["request_id"] == "r"
    assert "ssid-secret" not in json.dumps(outcome.body)
    assert len(outcome.body["message"]) <= 300


@settings(max_examples=200, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(0, 50), st.characters(codec="ascii"))
def test_a_key_is_read_as_it_was_made_and_a_slip_is_noticed(random, position: int, letter: str) -> None:
    """Minting and reading agree; one wrong character of the key is recognised without asking anyone."""
    key_id = keys.mint_id(random.choice)
    key, secret = keys.mint(random.choice, key_id)

    presented = keys.parse(key)
    assert presented is not None
    assert presented == keys.pair(key_id, secret)
    assert presented.digest == keys.digest(secret)
    place = 8 + position % (len(key) - 8)
    slipped = key[:place] + letter + key[place + 1 :]
    assert slipped == key or keys.parse(slipped) is None
