"""Canonical headers and bodies (RFC 6376 3.4), and the hash of a body that streams."""

import hashlib
import itertools
import tracemalloc

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mailrail.core.dkim.canonical import (
    BodyForm,
    BodyHasher,
    Canonicalization,
    relaxed_field,
    simple_field,
)

from testkit.signed_mail import hashed, naive_body, naive_field

RELAXED, SIMPLE = Canonicalization.RELAXED, Canonicalization.SIMPLE
PARTS = [b"\r\n", b"\r", b"\n", b" ", b"\t", b"a", b"bc", b"  ", b"\r\n\r\n", b" \r\n", b"\x00", b"\xff"]
BODIES = st.lists(st.sampled_from(PARTS), max_size=40).map(b"".join)


def sha256(octets: bytes) -> bytes:
    return hashlib.sha256(octets).digest()


def test_the_examples_of_the_rfc_have_its_forms_DKIM_06() -> None:
    # RFC 6376 3.4.5
    a, b = b"A: X\r\n", b"B : Y\t\r\n\tZ  \r\n"
    assert relaxed_field(a) + relaxed_field(b) == b"a:X\r\nb:Y Z\r\n"
    assert simple_field(a) + simple_field(b) == a + b
    body = b" C \r\nD \t E\r\n\r\n\r\n"
    assert hashed([BodyForm(RELAXED)], body)[BodyForm(RELAXED)].digest == sha256(b" C\r\nD E\r\n")
    assert hashed([BodyForm(SIMPLE)], body)[BodyForm(SIMPLE)].digest == sha256(b" C \r\nD \t E\r\n")


@pytest.mark.parametrize("body", [b"", b"\r\n", b"\r\n\r\n\r\n"])
def test_an_empty_body_is_one_line_end_when_simple_and_nothing_when_relaxed_DKIM_06(body: bytes) -> None:
    both = hashed([BodyForm(RELAXED), BodyForm(SIMPLE)], body)
    assert both[BodyForm(SIMPLE)].digest == sha256(b"\r\n")
    assert both[BodyForm(RELAXED)].digest == sha256(b"")
    assert (both[BodyForm(SIMPLE)].size, both[BodyForm(RELAXED)].size) == (2, 0)


def test_lines_of_blanks_at_the_end_are_empty_when_relaxed_DKIM_06() -> None:
    assert hashed([BodyForm(RELAXED)], b"a\r\n \r\n\t\r\n")[BodyForm(RELAXED)].digest == sha256(b"a\r\n")
    assert hashed([BodyForm(RELAXED)], b" \t \r\n \t")[BodyForm(RELAXED)].digest == sha256(b"")


@given(BODIES, st.lists(st.integers(0, 60), max_size=8))
@example(b"a \t\r\n\r\n", [1, 2, 3, 4, 5])
def test_a_body_in_any_pieces_has_the_hash_of_its_lines_DKIM_06(body: bytes, cuts: list[int]) -> None:
    hasher = BodyHasher([BodyForm(RELAXED), BodyForm(SIMPLE)])
    for start, end in itertools.pairwise([0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]):
        hasher.feed(body[start:end])
    result = hasher.finish()
    for form, name in ((RELAXED, "relaxed"), (SIMPLE, "simple")):
        canonical = naive_body(body, name)
        assert result[BodyForm(form)].digest == sha256(canonical)
        assert result[BodyForm(form)].size == len(canonical)


@given(BODIES, st.lists(st.integers(0, 60), max_size=5), st.integers(1, 9))
def test_the_hash_of_a_beginning_is_that_of_its_octets_DKIM_06(body: bytes, lengths: list[int], size: int) -> None:
    wanted = [BodyForm(form, length) for form in (RELAXED, SIMPLE) for length in lengths]
    result = hashed(wanted, body, size)
    for form in wanted:
        canonical = naive_body(body, form.canonicalization.value.decode())
        assert result[form].size == len(canonical)
        assert result[form].digest == sha256(canonical[: form.length])


@pytest.mark.parametrize("octets", [b"\r\n", b" \t", b"\r", b"text of a line \r\n"])
def test_a_body_is_not_held_whatever_it_is_made_of_DKIM_06(octets: bytes) -> None:
    hasher = BodyHasher([BodyForm(RELAXED), BodyForm(SIMPLE), BodyForm(SIMPLE, 1 << 30)])
    piece = octets * (1000 // len(octets))
    tracemalloc.start()
    try:
        for _ in range(1000):
            hasher.feed(piece)
        hasher.finish()
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@given(st.lists(st.sampled_from([b" ", b"\t", b"\r\n ", b"x", b"yz", b":", b"\xe9"]), max_size=20).map(b"".join))
def test_a_relaxed_field_is_one_line_with_single_blanks_DKIM_06(value: bytes) -> None:
    field = b"Some-Name \t:" + value + b"\r\n"
    assert relaxed_field(field) == naive_field(field, "relaxed")
    assert simple_field(field) == field
