"""The header is held back, the body streams past: ACC-01, EXT-09."""

from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.message.content_reader import HEADER_TOO_BIG, LINE_LIMIT, LINE_TOO_LONG, ContentReader
from mailrail.core.message.header import Header
from mailrail.core.smtp.reply import Reply

NO = Reply.of(554, "5.4.6", "loop")


def keep(header: Header) -> bytes:
    return header.block


def without_bcc(header: Header) -> bytes:
    return header.without(list(header.named(b"bcc"))) + b"X-Added: 1\r\n"


def take(intake: ContentReader, *pieces: bytes) -> bytes:
    return b"".join(intake.feed(piece) for piece in pieces) + intake.finish()


def test_the_header_is_edited_and_the_body_is_untouched() -> None:
    intake = ContentReader(without_bcc)
    assert (
        take(intake, b"A: b\r\nBcc: c", b"@d\r\n", b"\r\nBcc: body\r\n") == b"A: b\r\nX-Added: 1\r\n\r\nBcc: body\r\n"
    )
    assert intake.size == 31
    assert not intake.eight_bit


def test_nothing_comes_out_before_the_header_is_whole_and_all_after_it() -> None:
    intake = ContentReader(keep)
    assert intake.feed(b"A: b\r\n\r") == b""
    assert intake.feed(b"\nbody") == b"A: b\r\n\r\nbody"
    assert intake.feed(b"more") == b"more"
    assert intake.finish() == b""
    assert intake.size == 16


def test_a_message_without_an_empty_line_is_all_header() -> None:
    assert take(ContentReader(without_bcc), b"A: b\r\nBcc: c\r\n") == b"A: b\r\nX-Added: 1\r\n"
    assert take(ContentReader(keep), b"") == b""


def test_content_that_begins_with_no_field_asks_for_an_empty_line_above_it() -> None:
    plain = ContentReader(keep)
    assert take(plain, b"hello\r\n") == b"hello\r\n"
    assert plain.needs_separator
    for content in (b"A: b\r\n\r\nx", b"\r\nx", b""):
        intake = ContentReader(keep)
        take(intake, content)
        assert not intake.needs_separator


def test_a_header_that_a_line_breaks_off_gets_the_empty_line_that_lacks_SIN_02() -> None:
    content = b"A: b\r\nno field\r\nBcc: c\r\n\r\nbody"
    for edit, block in ((keep, b"A: b\r\n"), (without_bcc, b"A: b\r\nX-Added: 1\r\n")):
        intake = ContentReader(edit)
        assert take(intake, content) == block + b"\r\nno field\r\nBcc: c\r\n\r\nbody"
        assert not intake.needs_separator
        assert intake.size == len(block) + len(content) - 4
    assert take(ContentReader(without_bcc), b"no field\r\n") == b"X-Added: 1\r\n\r\nno field\r\n"


def test_a_refusal_ends_the_output() -> None:
    intake = ContentReader(lambda header: NO)
    assert take(intake, b"A: b\r\n\r\nbody", b"more") == b""
    assert intake.refusal is NO


def test_a_header_above_the_limit_is_refused_in_bounded_memory() -> None:
    fold = b" " + b"x" * 60_000 + b"\r\n"
    for pieces in ([b"A:\r\n" + fold * 5 + b"\r\n"], [b"A: b\r\n" * 1000] * 60):
        intake = ContentReader(keep)
        assert take(intake, *pieces) == b""
        assert intake.refusal is HEADER_TOO_BIG


def test_a_large_body_without_a_header_is_a_body() -> None:
    for line, lines in ((b"just text\r\n", True), (b"x" * 60_000 + b"\r\n", True), (b"x" * 70_000, False)):
        intake = ContentReader(keep, lines=lines)
        content = line * (600_000 // len(line))
        assert take(intake, *(content[at : at + 65_536] for at in range(0, len(content), 65_536))) == content
        assert intake.needs_separator


@given(
    st.lists(
        st.sampled_from([b"\r\n", b"x" * 30_000, b"y" * 35_537, b"z" * 65_536, b"A: b\r\n\r\n", b"."]), max_size=8
    ),
    st.lists(st.integers(0, 200_000), max_size=4),
)
def test_a_line_is_too_long_wherever_it_is_and_however_it_comes_SOUT_12c(parts: list[bytes], cuts: list[int]) -> None:
    content = b"".join(parts)
    places = sorted(min(cut, len(content)) for cut in cuts)
    pieces = [content[a:b] for a, b in zip([0, *places], [*places, len(content)], strict=True)]
    intake = ContentReader(keep)
    stored = take(intake, *pieces)
    if max(map(len, content.split(b"\n"))) > LINE_LIMIT:
        assert intake.refusal is LINE_TOO_LONG
    else:
        assert intake.refusal is None or intake.refusal is HEADER_TOO_BIG
        assert intake.refusal or stored.replace(b"\r\n", b"") == content.replace(b"\r\n", b"")


def test_octets_above_127_are_noticed_wherever_they_are_EXT_09() -> None:
    for content in ("A: ä\r\n\r\n", "A: b\r\n\r\nä"):
        intake = ContentReader(keep)
        take(intake, content.encode())
        assert intake.eight_bit


@given(
    st.lists(st.sampled_from([b"A: b\r\n", b"Bcc: x\r\n", b" fold\r\n", b"\r\n", b"text\r\n", b"\xff"]), max_size=12),
    st.lists(st.integers(0, 60), max_size=5),
)
def test_no_split_changes_what_is_stored(parts: list[bytes], cuts: list[int]) -> None:
    content = b"".join(parts)
    whole, split = ContentReader(without_bcc), ContentReader(without_bcc)
    expected = take(whole, content)
    places = sorted(min(cut, len(content)) for cut in cuts)
    pieces = [content[a:b] for a, b in zip([0, *places], [*places, len(content)], strict=True)]
    assert take(split, *pieces) == expected
    assert (split.size, split.eight_bit, split.needs_separator) == (
        len(expected),
        whole.eight_bit,
        whole.needs_separator,
    )
