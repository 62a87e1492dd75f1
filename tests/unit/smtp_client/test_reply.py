"""Replies are read whole, bounded and in any split (SOUT-15, RFC 5321 4.2)."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.smtp.reply import MAX_LINE, MAX_LINES, BadReply, EnhancedCode, Reply, ReplyClass, ReplyParser


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
    assert reply.severity is ReplyClass.TRANSIENT
    assert reply.transient


@pytest.mark.parametrize(
    "garbage",
    [b"hello\r\n", b"25\r\n", b"2500 x\r\n", b"150 x\r\n", b"650 x\r\n", b"250_x\r\n", b"\r\n", b"250-a\r\nb\r\n"],
)
def test_what_is_no_reply_is_refused(garbage: bytes) -> None:
    with pytest.raises(BadReply):
        ReplyParser().feed(garbage)


def test_replies_before_garbage_are_kept_with_the_fault() -> None:
    with pytest.raises(BadReply) as caught:
        ReplyParser().feed(b"250 ok\r\n550 5.7.1 no\r\n\x00\xff\r\n")
    assert [r.code for r in caught.value.complete] == [250, 550]


@pytest.mark.parametrize("octets", [600, 2000, 4000, 9000, 70_000])
def test_text_past_the_bounds_is_dropped_and_the_code_stays_RFC_5321_4_5_3_1_5(octets: int) -> None:
    parser = ReplyParser()
    wire = b"250 2.0.0 " + b"x" * (octets - 10) + b"\r\n221 bye\r\n"
    got = [reply for i in range(0, len(wire), 1500) for reply in parser.feed(wire[i : i + 1500])]
    taken, bye = got
    assert (taken.code, taken.enhanced) == (250, EnhancedCode(2, 0, 0))
    assert len(taken.lines[0]) == min(octets, MAX_LINE) - 4
    assert taken.cut is (octets > MAX_LINE)
    assert bye == Reply(221, ("bye",))  # the bound of one reply says nothing of the next


def test_lines_past_the_bound_are_dropped_and_the_last_code_stays() -> None:
    (reply,) = ReplyParser().feed(b"250-and again\r\n" * 300 + b"250 done\r\n")
    assert (reply.code, len(reply.lines), reply.cut) == (250, MAX_LINES, True)
    (reply,) = ReplyParser(max_reply=100).feed(b"550-5.1.1 " + b"x" * 60 + b"\r\n550-" + b"y" * 60 + b"\r\n550 z\r\n")
    assert (reply.code, str(reply.status), reply.cut) == (550, "5.1.1", True)


def test_of_lines_with_different_codes_the_last_one_counts() -> None:
    (reply,) = ReplyParser().feed(b"250-2.0.0 ok\r\n451 4.3.0 not quite\r\n")
    assert (reply.code, str(reply.status)) == (451, "4.3.0")
    (reply,) = ReplyParser().feed(b"250-ok\r\n251 fine\r\n")
    assert (reply.code, reply.lines) == (251, ("ok", "fine"))


@pytest.mark.parametrize("wire", [b"250 " + b"x" * 5000, b"250-again\r\n" * 500, b"250-" + b"x" * 5000])
def test_a_reply_without_an_end_is_read_so_far_and_no_further_SOUT_15(wire: bytes) -> None:
    parser = ReplyParser(max_read=4096)
    read = 0
    with pytest.raises(BadReply, match="no end within 4096 octets"):  # noqa: PT012
        for read in range(0, len(wire), 100):
            assert parser.feed(wire[read : read + 100]) == []
    assert 3900 <= read <= 4100
    assert parser.partial is not None
    assert parser.partial.code == 250


@pytest.mark.parametrize(
    ("wire", "code"),
    [
        (b"250", 250),
        (b"250 2.0.0 tak", 250),
        (b"250-", 250),
        (b"250-2.0.0 taken\r\n25", 250),
        (b"250-taken\r\n451 no", 451),
        (b"220 hello\r\n550 5.", 550),
        (b"250 " + b"x" * 3000, 250),
        (b"25", 0),
        (b"", 0),
        (b"250 ok\r\n", 0),
    ],
)
def test_the_code_of_a_reply_is_known_before_its_end(wire: bytes, code: int) -> None:
    for size in (1, 7, 10_000):
        parser = ReplyParser()
        for i in range(0, len(wire), size):
            parser.feed(wire[i : i + size])
        assert (parser.partial.code if parser.partial is not None else 0) == code


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
    parser = ReplyParser(max_line=64, max_lines=4, max_reply=128, max_read=256)
    with contextlib.suppress(BadReply):
        for chunk in chunks:
            for reply in parser.feed(chunk):
                assert 200 <= reply.code <= 599
