"""How ids are laid out."""

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core import ids

CELLS = st.integers(0, ids.CELLS - 1)
HISTORIES = st.integers(0, ids.HISTORIES - 1)
COUNTERS = st.integers(0, ids.COUNTERS - 1)
NUMBERS = st.integers(0, ids.RECIPIENTS - 1)


@given(CELLS, HISTORIES, COUNTERS)
def test_a_token_gives_back_what_it_was_made_of_and_is_a_positive_bigint_HIS_02(c: int, h: int, n: int) -> None:
    token = ids.pack_token(h, n, c)
    assert 0 <= token < 2**63
    assert ids.unpack_token(token) == (c, h, n)
    assert ids.history_of(token) == h


@given(HISTORIES, HISTORIES, COUNTERS, COUNTERS)
def test_tokens_of_two_histories_are_never_the_same_HIS_02(one: int, other: int, n: int, m: int) -> None:
    assert (ids.pack_token(one, n) == ids.pack_token(other, m)) == ((one, n) == (other, m))


@given(CELLS, NUMBERS)
def test_a_recipient_id_is_a_positive_bigint_and_says_its_cell_and_counter(c: int, n: int) -> None:
    number = c << 56 | n
    assert 0 <= number < 2**63
    assert ids.unpack_recipient(number) == (c, n)


@given(st.integers(0, 2**64 - 1))
def test_whatever_a_stranger_sends_as_a_token_can_be_taken_apart(token: int) -> None:
    cell, history, counter = ids.unpack_token(token)
    assert 0 <= cell < ids.CELLS
    assert 0 <= history == ids.history_of(token) < ids.HISTORIES
    assert 0 <= counter < ids.COUNTERS


@pytest.mark.parametrize("parts", [(ids.HISTORIES, 0), (-1, 0), (0, ids.COUNTERS), (0, -1), (0, 0, ids.CELLS)])
def test_a_part_that_does_not_fit_is_refused_and_never_cut_off(parts: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="no token has"):
        ids.pack_token(*parts)


@given(st.floats(0, 2**37), st.binary(min_size=10, max_size=10), CELLS)
def test_a_message_id_is_a_uuid_of_version_7_and_says_its_cell(now: float, dice: bytes, cell: int) -> None:
    made = ids.message_id(now, dice, cell)
    parsed = uuid.UUID(bytes=made)
    assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
    assert int.from_bytes(made[:6], "big") == int(now * 1000)
    assert ids.began(made) == int(now * 1000) / 1000
    assert made[9] == cell


def test_a_message_id_of_the_header_has_the_same_number_in_every_process_with_or_without_brackets() -> None:
    assert ids.header_key("<one@here.example>") == ids.header_key("one@here.example") == 8725249506432562104
    assert ids.header_key("<One@here.example>") != ids.header_key("<one@here.example>")


@given(st.text(st.characters(codec="utf-8")))
def test_the_number_of_a_message_id_fits_a_bigint(text: str) -> None:
    assert -(2**63) <= ids.header_key(text) < 2**63
