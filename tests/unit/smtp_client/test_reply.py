"""Replies are read whole, bounded and in any split (SOUT-15, RFC 5321 4.2)."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.smtp.reply import BadReply, EnhancedCode, Reply, ReplyParser, Severity


def test_a_single_line_reply_gives_code_text_and_enhanced_code() -> None:
    (reply,) = ReplyParser().feed(b"550 5.1.1 no such user\r\n")
    assert reply == Reply(550, ("5.1.1 no such user",), EnhancedCode(5, 1, 1))
    assert reply.text == "no such user"
    assert reply.permanent
    assert str(reply) == "550 5.1.1 no such user"


def test_a_multi_line_reply_is_one_reply() -> None:
    (reply,) = ReplyParser().feed(b"250-mx.example\r\n250-SIZE 1000\r\n250 PIPELINING\r\n")
    assert reply.lines == ("mx.example", "SIZE 1000", "PIPELINING")
    assert reply.enhanced is None


def test_a_code_without_text_is_a_reply() -> None:
    assert ReplyParser().feed(b"250\r\n354 \r\n") == [Reply(250, ("",)), Reply(354, ("",))]


def test_a_bare_lf_ends_a_reply_line_too() -> None:
    assert [r.code for r in ReplyParser().feed(b"250 a\n221 b\r\n")] == [250, 221]


def test_an_enhanced_code_of_another_class_is_text() -> None:
    (reply,) = ReplyParser().feed(b"550 2.1.1 what\r\n")
    assert reply.enhanced is None
    assert str(reply.status) == "5.0.0"


def test_an_unknown_code_counts_by_its_first_digit_SOUT_15() -> None:
    (reply,) = ReplyParser().feed(b"499 strange\r\n")
    assert reply.severity is Severity.TRANSIENT
    assert reply.transient


@pytest.mark.parametrize(
    "garbage",
    [b"hello\r\n", b"25\r\n", b"2500 x\r\n", b"150 x\r\n", b"650 x\r\n", b"250_x\r\n", b"\r\n", b"250-a\r\n251 b\r\n"],
)
def test_what_is_no_reply_is_refused(garbage: bytes) -> None:
    with pytest.raises(BadReply):
        ReplyParser().feed(garbage)


def test_replies_before_garbage_are_kept_with_the_fault() -> None:
    with pytest.raises(BadReply) as caught:
        ReplyParser().feed(b"250 ok\r\n550 5.7.1 no\r\n\x00\xff\r\n")
    assert [r.code for r in caught.value.complete] == [250, 550]


def test_an_endless_line_is_cut_off() -> None:
    parser = ReplyParser(max_line=100)
    assert parser.feed(b"250 " + b"x" * 90) == []
    with pytest.raises(BadReply, match="more than 100 octets"):
        parser.feed(b"x" * 10)


def test_an_endless_multi_line_reply_is_cut_off() -> None:
    parser = ReplyParser(max_lines=10)
    assert parser.feed(b"250-again\r\n" * 10) == []
    with pytest.raises(BadReply, match="more than 10 lines"):
        parser.feed(b"250-again\r\n")


def test_octets_outside_utf_8_stay_readable() -> None:
    (reply,) = ReplyParser().feed(b"550 caf\xe9\r\n")
    assert reply.text == "caf\\xe9"


def test_what_came_in_plaintext_is_forgotten_on_clear_TLS_02() -> None:
    parser = ReplyParser()
    assert parser.feed(b"220 go\r\n250-injected\r\n250-inj") == [Reply(220, ("go",))]
    parser.clear()
    assert parser.feed(b"250 real\r\n") == [Reply(250, ("real",))]


_codes = st.integers(200, 599)
_texts = st.text(st.characters(codec="utf-8", exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=60)


@given(st.lists(st.tuples(_codes, st.lists(_texts, min_size=1, max_size=4)), max_size=5), st.data())
def test_any_split_gives_the_same_replies(made: list[tuple[int, list[str]]], data: st.DataObject) -> None:
    wire = b"".join(Reply(code, tuple(lines)).encode() for code, lines in made)
    parser = ReplyParser()
    got: list[Reply] = []
    while wire:
        n = data.draw(st.integers(1, len(wire)))
        got += parser.feed(wire[:n])
        wire = wire[n:]
    assert [(r.code, list(r.lines)) for r in got] == made
    assert not parser.pending


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_arbitrary_bytes_never_break_anything_but_the_reply(chunks: list[bytes]) -> None:
    parser = ReplyParser(max_line=64, max_lines=4, max_reply=128)
    with contextlib.suppress(BadReply):
        for chunk in chunks:
            for reply in parser.feed(chunk):
                assert 200 <= reply.code <= 599
