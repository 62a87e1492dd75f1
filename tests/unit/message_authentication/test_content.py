"""The body of a message is hashed as it streams, for all signatures on it."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.message_authentication.scene import MESSAGE, NOW, signed

from mailrail.core.message.header import Header
from mailrail.core.message_authentication.content import ContentHasher, hash_content

from testkit.signed_mail import ed25519_key, sealed, signed_naively, split


def test_a_message_without_signatures_wants_no_body_hashed_DKIM_06() -> None:
    hasher = ContentHasher(Header(MESSAGE), NOW)
    assert not hasher.wants_body
    hasher.feed(b"At one?\r\n")
    assert hasher.finish().hashes == {}


@given(st.lists(st.integers(0, 60), max_size=6))
def test_a_body_in_any_pieces_has_the_hashes_of_the_whole_for_dkim_and_arc_DKIM_06(cuts: list[int]) -> None:
    message = sealed(signed_naively(MESSAGE, {"c": "simple/simple"}, ed25519_key()), 1)
    header, body = split(message)
    hasher = ContentHasher(header, NOW)
    assert hasher.wants_body
    edges = [0, *sorted(cuts), len(body)]
    for start, end in itertools.pairwise(edges):
        hasher.feed(body[start:end])
    found = hasher.finish()
    assert found.hashes == hash_content(message, NOW).hashes
    assert len(found.hashes) == 2  # simple for DKIM, relaxed for ARC
    assert (len(found.signatures), len(found.chain.sets)) == (1, 1)


@pytest.mark.parametrize("between", [b"\r\n", b""])
def test_where_the_empty_line_lacks_the_body_begins_with_the_first_line_that_is_no_field(between: bytes) -> None:
    head, _, _ = signed().partition(b"\r\n\r\n")
    whole = hash_content(head + b"\r\n\r\n" + b"no field\r\n", NOW).hashes
    assert hash_content(head + b"\r\n" + between + b"no field\r\n", NOW).hashes == whole
