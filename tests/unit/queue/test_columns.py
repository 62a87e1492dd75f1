"""Columns are what psycopg would have sent, only quicker."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.adapt import PyFormat, Transformer
from psycopg.types.array import ListBinaryDumper

from mailrail.kit.postgres import storable
from mailrail_queue.store import columns as c
from mailrail_queue.store.connection import Statement


def by_psycopg(values: list[object]) -> bytes:
    """The binary array that psycopg makes of a list."""
    found = Transformer().get_dumper(values, PyFormat.BINARY)
    assert isinstance(found, ListBinaryDumper)
    dumped = found.dump(values)
    assert dumped is not None
    return bytes(dumped)


@given(st.lists(st.binary(), min_size=1))
def test_octets_are_sent_as_psycopg_does(values: list[bytes]) -> None:
    assert c.octets(values).data == by_psycopg(list(values))


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1))
def test_bigints_can_be_read_back(values: list[int]) -> None:
    data = c.bigints(values).data
    assert struct.unpack(">iiIii", data[:20]) == (1, 0, 20, len(values), 1)
    assert [struct.unpack(">iq", data[at : at + 12])[1] for at in range(20, len(data), 12)] == values


@given(st.lists(st.none() | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))))
def test_texts_may_be_absent(values: list[str | None]) -> None:
    data = c.texts(values).data
    if not values:
        assert data == struct.pack(">iiI", 0, 0, 25)
        return
    assert struct.unpack(">ii", data[:8]) == (1, int(None in values))
    at, seen = 20, []
    while at < len(data):
        (length,) = struct.unpack(">i", data[at : at + 4])
        at += 4
        seen.append(None if length < 0 else data[at : at + length].decode())
        at += max(0, length)
    assert seen == values


def test_a_name_that_is_no_utf_8_is_refused_before_it_is_sent() -> None:
    with pytest.raises(UnicodeEncodeError):
        c.names(["\ud800"])


@given(st.lists(st.none() | st.text(), min_size=1))
def test_any_text_for_people_becomes_one_that_postgres_holds(values: list[str | None]) -> None:
    data = c.texts(values).data
    assert data == c.names([None if v is None else storable(v) for v in values]).data
    assert all(v is None or "\0" not in storable(v).encode().decode() for v in values)


def test_what_postgres_cannot_hold_is_shown_by_its_escape_and_all_else_is_left_alone() -> None:
    assert storable("no such\0user \udc80 ünï ✓") == r"no such\x00user \udc80 ünï ✓"


@given(st.sampled_from([0, 1, -5, 2**40]), st.integers(1, 40))
def test_a_column_of_one_value_is_packed_as_any_other(value: int, count: int) -> None:
    other = c.bigints([*[value] * count, value + 1]).data
    assert c.bigints([value] * count).data[20:] == other[20 : 20 + 12 * count]
    words = c.texts([*[str(value)] * count, "another"]).data
    alike = c.texts([str(value)] * count).data
    assert alike[20:] == words[20 : len(alike)]


@given(st.lists(st.none() | st.binary(), min_size=1))
def test_octets_may_be_absent(values: list[bytes | None]) -> None:
    data = c.octets(values).data
    assert struct.unpack(">ii", data[:8]) == (1, int(None in values))
    at, seen = 20, []
    while at < len(data):
        (length,) = struct.unpack(">i", data[at : at + 4])
        at += 4
        seen.append(None if length < 0 else data[at : at + length])
        at += max(0, length)
    assert seen == values


def test_parameters_of_a_statement_are_numbered_in_the_order_of_their_first_use() -> None:
    statement = Statement("x", "SELECT %(b)s, %(a)s, %(b)s LIKE '%%'")
    assert (statement.text, statement.order) == (b"SELECT $1, $2, $1 LIKE '%'", ("b", "a"))
