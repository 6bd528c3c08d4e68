"""Anything at all where a credential belongs: always one clear refusal, never a call; and no clock tells who has a key."""

from __future__ import annotations

import base64
import gc
import json
import random
import time
from statistics import median

import httpx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway import keys
from gateway.authentication import Authenticator, Known
from gateway.document import read_document
from gateway.errors import Refusal
from gateway.keys import KeyEntry, KeyVersion, Registry
from gateway.model import Arrival
from tests.running import UNSET, Stack

NUMBER = "9811111111"
latin = st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=255, blacklist_characters="\x7f"), max_size=120)
keyish = st.from_regex(r"gk_(live|test)_[0-9a-z]{10}_[0-9A-Za-z]{33}", fullmatch=True)
tokenish = st.builds(
    lambda header, claims, end: ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in (header, claims)) + "." + end,
    st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "jku", "x5u"]), st.sampled_from(["none", "HS256", "RS256", "ES256", "", "k", None, 1, ["b64"]]), max_size=4),
    st.dictionaries(st.sampled_from(["iss", "sub", "aud", "exp", "iat", "nbf"]), st.sampled_from(["https://issuer", "crm", 0, 2**53, -1, 1e308, None, [], {}]), max_size=6),
    st.from_regex(r"[A-Za-z0-9_-]{0,90}", fullmatch=True),
)  # fmt: skip
value = st.one_of(latin, keyish, tokenish)
signature_input = st.one_of(
    latin,
    st.from_regex(
        r'[a-z]{1,4}=\(("@method"|"@path"|"content-digest"| |;sf|;key="x"){0,5}\);created=-?[0-9]{1,20};keyid="[0-9a-z]{10}"(;nonce="[a-z]{8}")?(;alg="[a-z0-9-]{1,12}")?',
        fullmatch=True,
    ),
)
headers = st.lists(
    st.one_of(
        st.tuples(st.just("Authorization"), st.one_of(value, value.map(lambda text: f"Bearer {text}"), value.map(lambda text: f"Basic {text}"))),
        st.tuples(st.just("X-API-Key"), value),
        st.tuples(st.just("Signature-Input"), signature_input),
        st.tuples(st.just("Signature"), st.one_of(latin, st.from_regex(r"[a-z]{1,4}=:[A-Za-z0-9+/]{0,88}={0,2}:", fullmatch=True))),
        st.tuples(st.just("Content-Digest"), st.one_of(latin, st.just("sha-256=:AAAA:"))),
        st.tuples(st.just("X-Gateway-Account"), latin),
    ),
    max_size=5,
)  # fmt: skip
fields = st.dictionaries(
    st.sampled_from(["ssid", "userId", "token"]),
    st.one_of(value, st.integers(), st.none(), st.booleans(), st.lists(value, max_size=2)),
    max_size=3,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(headers, fields)
def test_anything_is_refused_in_the_one_shape(stack: Stack, headers: list[tuple[str, str]], fields: dict[str, object]) -> None:
    """401 (or 400 or 403 for the rest of it) with the one shape, under load or not; the gateway goes on."""
    content = json.dumps({"m1": NUMBER, **fields}).encode()
    sent = [(name.encode(), text.strip().encode("latin-1")) for name, text in headers]

    answer = stack.http.post(stack.url + UNSET, content=content, headers=sent)

    assert answer.status_code in (400, 401, 403), answer.text
    body = answer.json()
    assert body["status"] == "error"
    assert body["origin"] == "gateway"
    for _, text in headers:
        if len(text.strip()) > 20:
            assert text.strip() not in answer.text


def test_no_call_came_of_it(stack: Stack) -> None:
    """After all that the vendor has heard of none of it, and a good call is served."""
    assert not any(NUMBER in call["body"] for call in stack.vendor_calls())
    m1, m2 = stack.masked()
    assert stack.unset(m1=m1, m2=m2).status_code == 200


def overlap(first: list[float], second: list[float]) -> float:
    """Return how often a time of the first kind is longer than one of the second: a half where nothing tells them apart."""
    ordered = sorted([(at, 0) for at in first] + [(at, 1) for at in second])
    below, longer = 0, 0.0
    for _, kind in ordered:
        if kind == 1:
            below += 1
        else:
            longer += below
    return longer / (len(first) * len(second))


def test_no_time_tells_whether_a_key_is_known() -> None:
    """In the stage itself, without the noise of sockets: a known id with a wrong secret and an unknown id take the same time."""
    chance = random.Random(7)
    entries = {}
    for _ in range(1000):
        key_id = keys.mint_id(chance.choice)
        versions = tuple(KeyVersion(number, 0.0, keys.digest(str(chance.random()))) for number in range(1, chance.randint(2, 4)))
        entries[key_id] = KeyEntry(key_id, "crm", versions)
    known = Known(Registry(1, entries), {})
    authenticator = Authenticator({}, {}, 300)
    document = read_document(b'{"m1": "9800000001"}', 1000)
    ids = list(entries)
    times: tuple[list[float], list[float]] = ([], [])
    gc.disable()
    try:
        for round_number in range(6000):
            kind = round_number % 2
            key_id = chance.choice(ids) if kind == 0 else keys.mint_id(chance.choice)
            key, _ = keys.mint(chance.choice, key_id)
            arrival = Arrival("r" * 8, 1.0, b"", authorization=(f"Bearer {key}",))
            began = time.perf_counter()
            try:
                authenticator.authenticate(arrival, document, known)
            except Refusal as refusal:
                times[kind].append(time.perf_counter() - began)
                assert refusal.problem.slug == "credential_unknown"
    finally:
        gc.enable()

    assert len(times[0]) == len(times[1]) == 3000
    assert 0.75 < median(times[0]) / median(times[1]) < 1.33


def test_no_answer_tells_by_its_time_whether_a_key_is_known(stack: Stack) -> None:
    """Over a socket: neither kind of refusal is slower, and both cost the same look at Redis."""
    chance = random.Random(11)
    known_ids = [stack.issue("timing")[1] for _ in range(3)]
    times: tuple[list[float], list[float]] = ([], [])
    body = b'{"m1": "9800000001"}'
    with httpx.Client(trust_env=False, timeout=10) as client:
        for round_number in range(1600):
            kind = round_number % 2
            key_id = chance.choice(known_ids) if kind == 0 else keys.mint_id(chance.choice)
            key, _ = keys.mint(chance.choice, key_id)
            headers = {"Authorization": f"Bearer {key}"}
            began = time.perf_counter()
            answer = client.post(stack.url + UNSET, content=body, headers=headers)
            times[kind].append(time.perf_counter() - began)
            assert answer.json()["error"] == "credential_unknown"

    # With 800 of each, chance alone strays 0.014 from a half as its standard deviation: this is five of them.
    assert abs(overlap(*times) - 0.5) < 0.075
