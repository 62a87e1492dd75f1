"""What is known of the lines of content is true, and what it spares changes nothing of what is sent (SOUT-12a)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.smtp.line_facts import PLAIN, UNKNOWN, WHOLE, LineFacts
from mailrail.core.smtp.stuffing import Stuffer, has_bare_line_ends, stuff, stuff_parts

_octets = st.lists(st.sampled_from([b"a", b".", b"..", b"\r\n", b"\r\n.", b"\r\n\r\n", b"x" * 2048]), max_size=12).map(
    b"".join
)
_any_octets = st.lists(st.sampled_from([b"a", b".", b"\r\n", b"\r\n.", b"\r", b"\n", b"\0"]), max_size=8).map(b"".join)


def facts_of(content: bytes) -> LineFacts:
    """By plain searches."""
    dotted = content.startswith(b".") or b"\r\n." in content
    return LineFacts(b"\0" not in content and not has_bare_line_ends(content), not dotted)


def implied(said: LineFacts, true: LineFacts) -> bool:
    """Nothing is said that is not so."""
    return (true.whole or not said.whole) and (true.undotted or not said.undotted)


@given(_any_octets, _any_octets)
def test_what_is_said_of_prefix_and_body_together_is_so(prefix: bytes, body: bytes) -> None:
    assert implied(facts_of(body).below(prefix), facts_of(prefix + body))


@pytest.mark.parametrize(
    ("prefix", "lines"),
    [
        (b"", PLAIN),
        (b"Received: x\r\n", PLAIN),
        (b"Received: x", UNKNOWN),
        (b"Received: x\n", UNKNOWN),
        (b".Received: x\r\n", WHOLE),
        (b"Received: x\r\n.y: z\r\n", WHOLE),
        (b"Received: x\ny: z\r\n", LineFacts(whole=False, undotted=True)),
        (b"Received: \0\r\n", LineFacts(whole=False, undotted=True)),
    ],
)
def test_a_prefix_is_looked_at(prefix: bytes, lines: LineFacts) -> None:
    assert PLAIN.below(prefix) == lines
    assert UNKNOWN.below(prefix) == UNKNOWN


@given(_octets, _octets, st.booleans())
def test_content_in_parts_is_stuffed_as_the_whole_is_SOUT_12a(prefix: bytes, body: bytes, told: bool) -> None:
    lines = facts_of(body).below(prefix)
    parts = stuff_parts(prefix, body, undotted=told and lines.undotted)
    assert b"".join(parts) == stuff(prefix + body)


@given(st.lists(_octets, max_size=6))
def test_content_that_streams_is_stuffed_as_if_nothing_were_known_SOUT_12a(pieces: list[bytes]) -> None:
    lines = facts_of(b"".join(pieces))
    stuffer = Stuffer(whole=lines.whole, undotted=lines.undotted)
    assert b"".join(map(stuffer.feed, pieces)) + stuffer.finish() == stuff(b"".join(pieces))
