"""The parts of a message: what real mailers write, and what strangers write to hurt."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.message.multipart import DEPTH_LIMIT, PARTS_LIMIT, MessagePart, MultipartError, parts_of

MIXED = (
    b"From: a@b.example\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\npreamble\r\n"
    b"--x\r\n\r\nfirst\r\n--x\r\nContent-Type: application/gzip\r\nContent-Transfer-Encoding: base64\r\n"
    b'Content-Disposition: attachment; filename="a!b.gz"\r\n\r\naGVs\r\nbG8=\r\n--x--\r\nepilogue\r\n'
)


def only(message: bytes) -> MessagePart:
    (part,) = parts_of(message)
    return part


@pytest.mark.parametrize("message", [MIXED, MIXED.replace(b"\r\n", b"\n")], ids=["CRLF", "LF"])
def test_parts_come_in_their_order_and_decoded_without_preamble_and_epilogue(message: bytes) -> None:
    first, second = parts_of(message)
    assert (first.type.kind, first.body, first.name) == ("text/plain", b"first", "")
    assert (second.type.kind, second.body, second.name) == ("application/gzip", b"hello", "a!b.gz")


def test_a_message_that_is_no_multipart_is_one_part() -> None:
    assert only(b"Subject: x\n\nhello\n").body == b"hello\n"
    assert only(b"").body == b""
    assert only(b"no header at all").body == b"no header at all"


def test_the_line_of_a_mailbox_file_is_no_part_of_the_message() -> None:
    assert len(list(parts_of(b"From a@b.example Tue Apr 30 02:09:16 2019\n" + MIXED))) == 2


def test_a_multipart_that_never_ends_ends_with_the_message() -> None:
    assert [part.body for part in parts_of(b"Content-Type: multipart/mixed; boundary=x\n\n--x\n\nonly")] == [b"only"]


@pytest.mark.parametrize("boundary", [b"", b"; boundary=", b"; boundary=y"])
def test_a_multipart_without_its_boundary_is_one_part(boundary: bytes) -> None:
    message = b"Content-Type: multipart/mixed" + boundary + b"\n\n--x\n\nonly\n--x--\n"
    assert only(message).body == b"--x\n\nonly\n--x--\n"


def test_a_boundary_stands_on_a_line_of_its_own() -> None:
    message = b"Content-Type: multipart/mixed; boundary=x\n\n--x\n\na --x\n--xy\n--x \t\n\nb\n--x--\n"
    assert [part.body for part in parts_of(message)] == [b"a --x\n--xy", b"b"]


def test_the_parts_of_a_message_within_a_message_are_found() -> None:
    message = (
        b"Content-Type: multipart/mixed; boundary=o\n\n--o\nContent-Type: message/rfc822\n\n" + MIXED + b"\n--o--\n"
    )
    assert [part.body for part in parts_of(message)] == [b"first", b"hello"]


def test_a_digest_holds_messages() -> None:
    message = b"Content-Type: multipart/digest; boundary=o\n\n--o\n\nSubject: within\n\ntext\n--o--\n"
    assert only(message).body == b"text"


@pytest.mark.parametrize(
    ("field", "name"),
    [
        (b'Content-Disposition: attachment; filename="a.xml.gz"', "a.xml.gz"),
        (b"Content-Disposition: attachment; filename=a!b!1!2.xml.gz", "a!b!1!2.xml.gz"),
        (b'Content-Type: application/zip; name="b.zip"', "b.zip"),
        (b'Content-Disposition: attachment; filename="../../etc/pass\\\\wd"', "wd"),
        (b'Content-Disposition: attachment; filename="=?utf-8?q?=C3=A4.xml?="', "ä.xml"),
        (b"Content-Disposition: attachment; filename*=utf-8''%C3%A4.xml", "ä.xml"),
        (b'Content-Disposition: attachment;\n filename*0="long"; filename*1=".xml"', "long.xml"),
        (b"Content-Disposition: inline", ""),
        (b"Content-Disposition: ;;;=", ""),
    ],
)
def test_the_file_name_that_a_part_suggests_is_no_path(field: bytes, name: str) -> None:
    assert only(field + b"\n\nx").name == name


@pytest.mark.parametrize(
    ("text", "octets"),
    [
        (b"aGVsbG8=", b"hello"),
        (b"aGVs bG8\n", b"hello"),
        (b"aG*Vs\x00bG8====", b"hello"),
        (b"aGVsbG8=aGVsbG8=", b"hello"),
        (b"aGVsb", b"hel"),
        (b"====", b""),
    ],
)
def test_base64_is_read_as_far_as_it_is_whole(text: bytes, octets: bytes) -> None:
    assert only(b"Content-Transfer-Encoding: BASE64\n\n" + text).body == octets


def test_quoted_printable_and_unknown_encodings() -> None:
    assert only(b"Content-Transfer-Encoding: quoted-printable\n\na=3Db=\nc").body == b"a=bc"
    assert only(b"Content-Transfer-Encoding: x-uue\n\na=3D").body == b"a=3D"


def nested(depth: int) -> bytes:
    message = b"\n\nhello"
    for level in range(depth):
        line = b"--b%d" % level
        message = b"Content-Type: multipart/mixed; boundary=b%d\n\n%s\n%s\n%s--\n" % (level, line, message, line)
    return message


def test_depth_is_bounded() -> None:
    assert len(list(parts_of(nested(DEPTH_LIMIT - 1)))) == 1
    with pytest.raises(MultipartError, match="nested more than"):
        list(parts_of(nested(DEPTH_LIMIT)))


def test_the_number_of_parts_is_bounded() -> None:
    with pytest.raises(MultipartError, match=f"more than {PARTS_LIMIT} parts"):
        list(parts_of(b"Content-Type: multipart/mixed; boundary=x\n\n" + b"--x\n\na\n" * 100_000))


def test_lines_that_look_like_a_boundary_are_counted() -> None:
    with pytest.raises(MultipartError, match="look like a boundary"):
        list(parts_of(b"Content-Type: multipart/mixed; boundary=x\n\n" + b"\n--x!" * 100_000))


def test_a_header_is_bounded() -> None:
    with pytest.raises(MultipartError, match="too many fields"):
        list(parts_of(b"a:b\n" * 2000))
    with pytest.raises(MultipartError, match="octets"):
        list(parts_of(b"a: " + b"b" * 300_000 + b"\n\n"))


_PIECES = st.sampled_from(
    [
        b"Content-Type: multipart/mixed; boundary=x",
        b"Content-Type: message/rfc822",
        b"Content-Transfer-Encoding: base64",
        b"Content-Disposition: attachment; filename=",
        *(b"--x", b"--x--", b"\r\n", b"\n", b"=", b'"', b"\xff\x00", b"a"),
    ]
)


@given(st.lists(st.one_of(_PIECES, st.binary(max_size=20)), max_size=40).map(b"".join))
def test_nothing_but_the_named_error_is_raised(message: bytes) -> None:
    try:
        for part in parts_of(message):
            assert len(part.body) <= len(part.raw) <= len(message)
            assert part.name.isprintable()
    except MultipartError:
        pass


@given(st.binary(max_size=500))
def test_base64_that_is_well_written_is_read_octet_for_octet(octets: bytes) -> None:
    assert only(b"Content-Transfer-Encoding: base64\r\n\r\n" + base64.encodebytes(octets)).body == octets
