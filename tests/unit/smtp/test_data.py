"""Where a message ends: SIN-02, SIN-03, SIN-04, and text in BDAT chunks."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.smtp.data import DataScanner, LineEndWatch

from testkit.smuggling import ENDS, WITH_BARE_LINE_ENDS


def scan(*pieces: bytes) -> tuple[bytes, DataScanner]:
    scanner = DataScanner()
    content = b""
    for piece in pieces:
        if scanner.finished:
            scanner.rest += piece
        else:
            content += scanner.feed(piece)
    return content, scanner


@pytest.mark.parametrize(
    ("wire", "content", "rest"),
    [
        (b".\r\n", b"", b""),
        (b".\r\nQUIT\r\n", b"", b"QUIT\r\n"),
        (b"\r\n.\r\n", b"\r\n", b""),
        (b"a\r\n.\r\n", b"a\r\n", b""),
        (b"a\r\n..\r\n.\r\n", b"a\r\n.\r\n", b""),
        (b"..a\r\n.\r\n", b".a\r\n", b""),
        (b".a\r\n...b\r\n.\r\nNOOP\r\n", b"a\r\n..b\r\n", b"NOOP\r\n"),
        (b"a.\r\nb\r\n.\r\n", b"a.\r\nb\r\n", b""),
    ],
)
def test_only_a_dot_between_two_crlf_ends_the_data_and_stuffing_is_removed_SIN_04(
    wire: bytes, content: bytes, rest: bytes
) -> None:
    got, scanner = scan(wire)
    assert (got, scanner.rest, scanner.finished, scanner.bare_line_end) == (content, rest, True, False)
    assert scan(*(bytes([octet]) for octet in wire))[0] == content


@pytest.mark.parametrize("ending", ENDS)
def test_what_merely_looks_like_an_end_does_not_end_the_data_SIN_02(ending: bytes) -> None:
    smuggled = b"MAIL FROM:<evil@example.org>\r\n"
    content, scanner = scan(b"a" + ending + smuggled + b".\r\n", b"NOOP\r\n")
    assert scanner.rest == b"NOOP\r\n"
    assert b"MAIL FROM:<evil@example.org>" in content
    assert scanner.bare_line_end == (ending in WITH_BARE_LINE_ENDS)


def test_a_bare_line_end_is_seen_across_pieces_SIN_03() -> None:
    for wire, bare in ((b"a\rb\r\n.\r\n", True), (b"a\nb\r\n.\r\n", True), (b"a\r\nb\r\n.\r\n", False)):
        for at in range(len(wire)):
            assert scan(wire[:at], wire[at:])[1].bare_line_end is bare


alphabet = st.lists(st.sampled_from([b"\r\n", b"\r", b"\n", b".", b"..", b"a", b"\r\n.", b"\x00"]), max_size=30)


@given(alphabet, st.lists(st.integers(0, 80), max_size=6))
def test_no_split_changes_what_is_read(parts: list[bytes], cuts: list[int]) -> None:
    wire = b"".join(parts) + b"\r\n.\r\nNOOP\r\n"
    whole, scanner = scan(wire)
    places = [0, *sorted(min(cut, len(wire)) for cut in cuts), len(wire)]
    pieces = [wire[a:b] for a, b in pairwise(places)]
    again, other = scan(*pieces)
    assert (again, other.rest, other.bare_line_end) == (whole, scanner.rest, scanner.bare_line_end)
    assert other.stuffed == scanner.stuffed == (b"\r\n." in (b"\r\n" + wire)[: -len(b"\r\n.\r\n" + other.rest)])


@given(st.lists(st.sampled_from([b"\r\n.", b".", b"\r\n", b"\r", b"\n", b"." * 70, b"a" * 1024]), max_size=60))
def test_a_long_message_is_read_as_plain_searches_read_it_SIN_02(parts: list[bytes]) -> None:
    wire = b"".join(parts) + b"\r\n.\r\nNOOP\r\n"
    content, scanner = scan(wire)
    whole, _, rest = (b"\r\n" + wire).partition(b"\r\n.\r\n")
    text = whole + b"\r\n"
    assert scanner.rest == rest
    assert content == text.replace(b"\r\n.", b"\r\n")[2:]
    assert scanner.stuffed is (b"\r\n." in text)
    assert scanner.bare_line_end is (b"\r" in text.replace(b"\r\n", b"") or b"\n" in text.replace(b"\r\n", b""))


@given(st.lists(st.sampled_from([b"a", b".", b"..b", b"", b"c.d"]), max_size=12))
def test_what_a_sender_stuffs_comes_out_as_it_was(lines: list[bytes]) -> None:
    stuffed = b"".join((b"." + line if line.startswith(b".") else line) + b"\r\n" for line in lines)
    content, scanner = scan(stuffed + b".\r\n")
    assert content == b"".join(line + b"\r\n" for line in lines)
    assert not scanner.bare_line_end


@given(alphabet, st.integers(0, 80))
def test_line_ends_in_chunks_are_watched_and_repaired_in_any_split(parts: list[bytes], cut: int) -> None:
    text = b"".join(parts)
    for repair in (False, True):
        watch = LineEndWatch(repair=repair)
        got = watch.feed(text[:cut]) + watch.feed(text[cut:]) + watch.finish()
        clean = text.replace(b"\r\n", b"")
        assert watch.bare_line_end == (b"\r" in clean or b"\n" in clean)
        assert got == (
            b"\r\n".join(text.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")) if repair else text
        )


@given(alphabet)
def test_line_ends_are_whole_where_cr_lf_and_crlf_are_equally_many_SIN_03(parts: list[bytes]) -> None:
    data = b"".join(parts)
    pairs = data.count(b"\r\n")
    bare = data.count(b"\r") != pairs or data.count(b"\n") != pairs
    watch = LineEndWatch()
    watch.feed(data)
    watch.finish()
    assert watch.bare_line_end is bare
    scanner = DataScanner()
    scanner.feed(data + b"\r\n.\r\n")
    scanner.restart()
    scanner.feed(b"x" + data + b"x\r\n.\r\n")
    if scanner.finished and not scanner.rest:
        assert scanner.bare_line_end is bare
