"""The short way to read a number, and the library's: whatever is written, they agree."""

from __future__ import annotations

import phonenumbers
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.numbers import _home, _searched

REGIONS = [region for region in sorted(phonenumbers.SUPPORTED_REGIONS) if _home(region) is not None]


def examples(region: str) -> list[str]:
    kinds = (phonenumbers.PhoneNumberType.FIXED_LINE, phonenumbers.PhoneNumberType.MOBILE, phonenumbers.PhoneNumberType.TOLL_FREE)
    found = (phonenumbers.example_number_for_type(region, kind) for kind in kinds)
    return [phonenumbers.national_significant_number(number) for number in found if number] or ["9876543210"]


@st.composite
def written(draw: st.DrawFn) -> tuple[str, str]:
    """A region, and a text much like one of its numbers: some digits are others, one is missing or too many."""
    region = draw(st.sampled_from(["IN", "IN", *REGIONS]))
    digits = list(draw(st.sampled_from(examples(region))))
    for place in draw(st.lists(st.integers(0, len(digits) - 1), max_size=6)):
        digits[place] = draw(st.sampled_from("0123456789"))
    text = "".join(digits)[draw(st.integers(0, 1)) :] + draw(st.sampled_from(["", "", "", "7"]))
    home = _home(region)
    assert home is not None
    before = draw(st.sampled_from(["", "", home.prefix, home.prefix[1:], "0", "00" + home.prefix[1:], home.prefix + "0"]))
    return region, before + text


@settings(max_examples=1500, deadline=None)
@given(written())
def test_what_is_read_at_home_is_what_the_library_reads(case: tuple[str, str]) -> None:
    """In every country that has a code of its own."""
    region, text = case
    home = _home(region)
    assert home is not None
    found = home.read(text)
    assert found is None or found == _searched(text, region)


@pytest.mark.parametrize("text", ["9876543210", "+919876543210"])
def test_it_is_taken_where_most_numbers_are_written_so(text: str) -> None:
    """Or all of this would be of no use."""
    home = _home("IN")
    assert home is not None
    found = home.read(text)
    assert found is not None
    assert (found.sent, found.e164, found.country) == (text, "+919876543210", "IN")


def test_countries_that_share_a_code_are_searched() -> None:
    """The number has to tell which of them it is of."""
    assert _home("US") is None
