"""Trace Context: what is read of any header at all, against the grammar written another way."""

from __future__ import annotations

import string

from hypothesis import example, given
from hypothesis import strategies as st

from gateway.tracecontext import Parent, read_parent, read_state

HEX = "0123456789abcdef"
hex_of = lambda length: st.text(HEX, min_size=length, max_size=length)  # noqa: E731
parents = st.builds(
    "-".join, st.lists(st.one_of(hex_of(2), hex_of(32), hex_of(16), st.text(HEX + "-.AZ g", max_size=34)), max_size=6)
)
good = st.tuples(hex_of(2), hex_of(32), hex_of(16), hex_of(2), st.one_of(st.just(""), st.text(string.printable, max_size=9)))


def expected(text: str) -> tuple[str, str, bool] | None:
    """Take a `traceparent` apart by hand, as section 3.2 and 4.3 of the recommendation say."""
    if len(text) < 55 or any(text[place] != "-" for place in (2, 35, 52)):
        return None
    version, trace, span, flags, rest = text[:2], text[3:35], text[36:52], text[53:55], text[55:]
    if not set(version + trace + span + flags) <= set(HEX) or version == "ff" or set(trace) == {"0"} or set(span) == {"0"}:
        return None
    if rest and (version == "00" or not rest.startswith("-")):
        return None
    return trace, span, int(flags, 16) % 2 == 1


@given(st.one_of(parents, st.text(max_size=80), good.map(lambda parts: "-".join(parts[:4]) + parts[4])))
@example("00-" + "1" * 32 + "-" + "2" * 16 + "-01")
@example("00-" + "1" * 32 + "-" + "2" * 16 + "-01-")
@example("01-" + "1" * 32 + "-" + "2" * 16 + "-03-x")
@example("00-" + "1" * 32 + "-" + "2" * 16 + "-01\n")
@example("00-" + "١" * 32 + "-" + "2" * 16 + "-01")
def test_a_parent_is_read_by_the_rules(text: str) -> None:
    """Of any text at all; and nothing raises."""
    found = read_parent([text])
    wanted = expected(text)
    if "\n" in text[55:]:  # No header has one.
        return

    assert (found and (found.trace_id, found.span_id, found.sampled)) == wanted


@given(good)
def test_a_good_parent_comes_back_as_it_was(parts: tuple[str, str, str, str, str]) -> None:
    """What is written by the rules is read whole, and twice is none."""
    version, trace, span, flags, _ = parts
    text = f"{version}-{trace}-{span}-{flags}"
    found = read_parent([text])

    assert read_parent([text, text]) is None
    if version != "ff" and set(trace) != {"0"} and set(span) != {"0"}:
        assert found == Parent(trace, span, int(flags, 16) % 2 == 1)


keys = st.from_regex(r"[a-z][a-z0-9_*/-]{0,20}(@[a-z][a-z0-9]{0,13})?", fullmatch=True)
values = st.from_regex(r"[ -+\--<>-~]{0,60}[!-+\--<>-~]", fullmatch=True)
members = st.lists(st.tuples(keys, values), max_size=40)


@given(members, st.integers(1, 40))
def test_a_state_keeps_its_order_and_its_bounds(pairs: list[tuple[str, str]], each: int) -> None:
    """However it is cut into headers: at most 32 members and 512 characters, in order, and none that was not there."""
    texts = [",".join(f"{key}={value}" for key, value in pairs[at : at + each]) for at in range(0, len(pairs), each)]
    found = read_state(texts)

    assert len(found) <= 32
    assert len(",".join(f"{key}={value}" for key, value in found)) <= 512
    rest = iter([(key, value.strip()) if not value.strip(" ") else (key, value) for key, value in pairs])
    assert all(member in rest for member in found)
    if len(pairs) > 32 or len({key for key, _ in pairs}) < len(pairs):
        assert found == ()


@given(st.lists(st.text(max_size=60), max_size=5))
def test_any_state_at_all_is_read_or_dropped(texts: list[str]) -> None:
    """Nothing raises, and what is kept could be sent on."""
    assert all(key and value and "," not in key + value and "=" not in key + value for key, value in read_state(texts))


@given(
    st.integers(6_000_000_000, 999_999_999_999),
    st.sampled_from(["{}", "+{}", "a{}b", "x:{}"]),
    st.sampled_from(["", "-", " ", "."]),
)
def test_no_number_is_kept(number: int, shape: str, between: str) -> None:
    """However it is written: as a value, within one, with anything between its digits."""
    digits = between.join(str(number))

    assert read_state([f"a={shape.format(digits)},ok=1"]) == (("ok", "1"),)
    assert read_state([f"a{number}=1,ok=1"]) == (("ok", "1"),)
