"""The header is held back, the body streams past: ACC-01, EXT-09."""

import email

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.message.content_reader import LONGEST_LINE, SMALL, ContentFault, ContentReader
from mailrail.core.message.header import FIELDS_LIMIT, Header


def keep(header: Header) -> bytes:
    return header.block


def without_bcc(header: Header) -> bytes:
    return header.without(list(header.named(b"bcc"))) + b"X-Added: 1\r\n"


def take(reader: ContentReader, *pieces: bytes) -> bytes:
    return b"".join(reader.feed(piece) for piece in pieces) + reader.finish()


def test_the_header_is_edited_and_the_body_is_untouched() -> None:
    reader = ContentReader(without_bcc)
    assert (
        take(reader, b"A: b\r\nBcc: c", b"@d\r\n", b"\r\nBcc: body\r\n") == b"A: b\r\nX-Added: 1\r\n\r\nBcc: body\r\n"
    )
    assert reader.size == 31
    assert not reader.eight_bit


def test_nothing_comes_out_before_the_header_is_whole_and_all_after_it() -> None:
    reader = ContentReader(keep)
    assert reader.feed(b"A: b\r\n\r") == b""
    assert reader.feed(b"\nbody") == b"A: b\r\n\r\nbody"
    assert reader.feed(b"more") == b"more"
    assert reader.finish() == b""
    assert reader.size == 16


def test_a_message_without_an_empty_line_is_all_header() -> None:
    assert take(ContentReader(without_bcc), b"A: b\r\nBcc: c\r\n") == b"A: b\r\nX-Added: 1\r\n"
    assert take(ContentReader(keep), b"") == b""


def test_content_that_begins_with_no_field_asks_for_an_empty_line_above_it() -> None:
    plain = ContentReader(keep)
    assert take(plain, b"hello\r\n") == b"hello\r\n"
    assert plain.needs_separator
    for content in (b"A: b\r\n\r\nx", b"\r\nx", b""):
        reader = ContentReader(keep)
        take(reader, content)
        assert not reader.needs_separator


def test_a_header_that_a_line_breaks_off_gets_the_empty_line_that_lacks_SIN_02() -> None:
    content = b"A: b\r\nno field\r\nBcc: c\r\n\r\nbody"
    for edit, block in ((keep, b"A: b\r\n"), (without_bcc, b"A: b\r\nX-Added: 1\r\n")):
        reader = ContentReader(edit)
        assert take(reader, content) == block + b"\r\nno field\r\nBcc: c\r\n\r\nbody"
        assert not reader.needs_separator
        assert reader.size == len(block) + len(content) - 4
    assert take(ContentReader(without_bcc), b"no field\r\n") == b"X-Added: 1\r\n\r\nno field\r\n"


def test_a_refusal_ends_the_output() -> None:
    reader = ContentReader(lambda header: None)
    assert take(reader, b"A: b\r\n\r\nbody", b"more") == b""
    assert reader.fault is None


def test_a_header_above_the_limit_is_refused_in_bounded_memory() -> None:
    fold = b" " + b"x" * 60_000 + b"\r\n"
    for pieces in ([b"A:\r\n" + fold * 5 + b"\r\n"], [(b"A: " + b"b" * 300 + b"\r\n") * 10] * 90):
        reader = ContentReader(keep)
        assert take(reader, *pieces) == b""
        assert reader.fault is ContentFault.LONG_HEADER


@pytest.mark.parametrize("more", ["", "\r\nbody\r\n", "\r\n" + "text\r\n" * 50_000, "no field\r\n"])
@pytest.mark.parametrize("field", ["a:\r\n", "Received: from a\r\n\tby b\r\n"])
def test_a_header_of_more_fields_than_any_mail_has_is_refused_unread(field: str, more: str) -> None:
    judged: list[Header] = []

    def judge(header: Header) -> bytes:
        judged.append(header)
        return header.block

    reader = ContentReader(judge)
    reader.feed((field * (FIELDS_LIMIT + 1) + more).encode())
    reader.finish()
    assert (reader.fault, judged) == (ContentFault.MANY_FIELDS, [])
    just = ContentReader(judge)
    just.feed((field * FIELDS_LIMIT + more).encode())
    just.finish()
    assert just.fault is None
    assert len(judged[0].fields) == FIELDS_LIMIT


def test_lines_of_a_body_without_a_header_are_no_fields() -> None:
    reader = ContentReader(keep)
    content = b"no field at all\r\n" + b"time: goes by\r\n" * 5000 + b"\r\n"
    assert reader.feed(content) + reader.finish() == content
    assert reader.fault is None


def test_a_large_body_without_a_header_is_a_body() -> None:
    for line, lines in ((b"just text\r\n", True), (b"x" * 60_000 + b"\r\n", True), (b"x" * 70_000, False)):
        reader = ContentReader(keep, lines=lines)
        content = line * (600_000 // len(line))
        assert take(reader, *(content[at : at + 65_536] for at in range(0, len(content), 65_536))) == content
        assert reader.needs_separator


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
    reader = ContentReader(keep)
    stored = take(reader, *pieces)
    if max(map(len, content.split(b"\n"))) > LONGEST_LINE:
        assert reader.fault is ContentFault.LONG_LINE
    else:
        assert reader.fault is None or reader.fault is ContentFault.LONG_HEADER
        assert reader.fault or stored.replace(b"\r\n", b"") == content.replace(b"\r\n", b"")


def test_octets_above_127_are_noticed_wherever_they_are_EXT_09() -> None:
    for content in ("A: ä\r\n\r\n", "A: b\r\n\r\nä"):
        reader = ContentReader(keep)
        take(reader, content.encode())
        assert reader.eight_bit


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


HEAD = b"Subject: x\r\n\r\n"
LONG = b"word " * 400


def shortened(content: bytes, step: int = 65_536) -> tuple[bytes, ContentReader]:
    reader = ContentReader(keep, shorten=True)
    out = take(reader, *(content[at : at + step] for at in range(0, len(content), step)))
    assert reader.size == len(out)
    assert reader.held == 0
    return out, reader


def test_lines_above_998_are_shortened_on_request_however_large_the_message_SOUT_12d() -> None:
    for body in (LONG, b"short\r\n" * SMALL + LONG, LONG + b"\r\n" + b"short\r\n" * 200_000):
        out, reader = shortened(HEAD + body + b"\r\n")
        assert max(map(len, out.split(b"\r\n"))) <= 998
        assert reader.fault is None
        payload = email.message_from_bytes(out).get_payload(decode=True)
        assert isinstance(payload, bytes)
        assert payload.replace(b"\r\n", b"\n") == (body + b"\r\n").replace(b"\r\n", b"\n")


def test_a_message_without_a_long_line_is_untouched_SOUT_12d() -> None:
    small = HEAD + b"x" * 998 + b"\r\n" + "grüße\r\n".encode()
    out, reader = shortened(small)
    assert out == small
    assert reader.eight_bit
    large = (
        b"MIME-Version: 1.0\r\nContent-Type: a/b\r\nContent-Transfer-Encoding: base64\r\n\r\n"
        + (b"QUJD" * 19 + b"\r\n") * 5000
    )
    out, reader = shortened(large)
    assert out == large
    assert not reader.eight_bit


def test_what_its_author_signed_is_not_shortened_SOUT_12d() -> None:
    signed = b"DKIM-Signature: v=1; a=b\r\n" + HEAD + LONG + b"\r\n"
    assert shortened(signed)[0] == signed


def test_binary_content_has_no_lines_to_shorten_SOUT_12d() -> None:
    reader = ContentReader(keep, lines=False, shorten=True)
    assert take(reader, HEAD + LONG) == HEAD + LONG


@pytest.mark.parametrize("lines", [1000, 60_000])
def test_memory_is_given_back_before_a_message_is_whole_ACC_07(lines: int) -> None:
    reader = ContentReader(keep, shorten=True)
    content = HEAD + b"short\r\n" * lines
    out = reader.feed(content)
    assert reader.held > 7000
    out += reader.release()
    assert reader.held < 100
    out += reader.feed(b"more\r\n") + reader.finish()
    assert email.message_from_bytes(out).get_payload(decode=True) == content[len(HEAD) :] + b"more\r\n"
    assert reader.size == len(out)
    assert ContentReader(keep).release() == b""


FIELDS = b"From: ada@home.example\r\nSubject: s\r\n\r\n"


@pytest.mark.parametrize("line", [b"From ada@home.example Mon Jan  5 10:00:00 2026", b">From ada", b">>From a:b c"])
@pytest.mark.parametrize("step", [1, 1000])
def test_a_line_of_a_mailbox_file_above_the_header_becomes_a_field(line: bytes, step: int) -> None:
    content = line + b"\r\n" + FIELDS + b"From me\r\n"
    reader = ContentReader(lambda header: header.without(header.named(b"subject")))
    out = take(reader, *(content[at : at + step] for at in range(0, len(content), step)))
    assert out == b"X-Mailbox-Line: " + line + b"\r\nFrom: ada@home.example\r\n\r\nFrom me\r\n"
    assert not reader.needs_separator


@pytest.mark.parametrize(
    "content",
    [
        b"From : ada@home.example\r\nSubject: s\r\n\r\n",
        b"From ada\r\n\r\nbody",
        b"From where I stand\r\nthere is no header.\r\n",
        b"From here",
    ],
)
def test_other_first_lines_stay_what_they_are(content: bytes) -> None:
    assert take(ContentReader(keep), content) == content
