"""The re-encoder changes labels and encodings and nothing else, for every hop (EXT-08, SOUT-18, RFC 2045)."""

import base64
import binascii
import email
import email.message
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mailrail.core.message.reencode import Reencoder, Target, Unconvertible, reencode


def leaves(message: email.message.Message) -> list[tuple[str, bytes]]:
    """Type and decoded content of each leaf, nested messages included, in order."""
    if message.is_multipart():
        return [leaf for part in message.get_payload() for leaf in leaves(part)]  # type: ignore[arg-type]
    payload = message.get_payload(decode=True)
    assert isinstance(payload, bytes)
    return [(message.get_content_type(), payload)]


def parsed(content: bytes) -> list[tuple[str, bytes]]:
    return leaves(email.message_from_bytes(content))


def is_seven_bit(content: bytes) -> bool:
    return content.isascii() and b"\0" not in content and not _bare(content)


def _bare(content: bytes) -> bool:
    return content.count(b"\r\n") != content.count(b"\r") or content.count(b"\r\n") != content.count(b"\n")


LATIN = b"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=iso-8859-1\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"


def test_eight_bit_text_becomes_quoted_printable() -> None:
    out = reencode(LATIN + b"caf\xe9 = good \r\n.\r\n", Target.SEVEN_BIT)
    assert out == LATIN.replace(b"8bit", b"quoted-printable") + b"caf=E9 =3D good=20\r\n=2E\r\n"


def test_text_that_is_seven_bit_after_all_is_only_relabelled() -> None:
    out = reencode(LATIN + b"coffee\r\n", Target.SEVEN_BIT)
    assert out == LATIN.replace(b"8bit", b"7bit") + b"coffee\r\n"


def test_eight_bit_text_stays_for_an_eight_bit_hop() -> None:
    assert reencode(LATIN + b"caf\xe9\r\n", Target.EIGHT_BIT) == LATIN + b"caf\xe9\r\n"


def test_binary_becomes_base64_in_lines_of_76() -> None:
    body = bytes(range(256)) * 3
    content = b"MIME-Version: 1.0\r\nContent-Type: image/x\r\nContent-Transfer-Encoding: BINARY\r\n\r\n" + body
    for target in Target:
        out = reencode(content, target)
        assert is_seven_bit(out)
        assert b"Content-Transfer-Encoding: base64\r\n" in out
        assert max(map(len, out.split(b"\r\n"))) <= 76
        assert parsed(out) == [("image/x", body)]


def test_a_message_without_mime_gets_the_fields_it_lacks() -> None:
    out = reencode(b"From: a@b\r\nSubject: x\r\n\r\ngr\xfc\xdfe\r\n", Target.SEVEN_BIT)
    added = b"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=unknown-8bit\r\n"
    assert out.startswith(b"From: a@b\r\nSubject: x\r\n" + added)
    assert parsed(out) == [("text/plain", b"gr\xfc\xdfe\r\n")]


def test_other_header_fields_stay_byte_for_byte() -> None:
    header = (
        b"X-Odd:   spaced \t\r\n\tfolded\r\nSubject: caf\xc3\xa9\r\nMIME-Version: 1.0\r\n"
        b"content-transfer-ENCODING:\r\n 8bit (really)\r\nDKIM-Signature: v=1;\r\n  b=abc\r\n\r\n"
    )
    out = reencode(header + b"\xff\r\n", Target.SEVEN_BIT)
    head = out.split(b"\r\n\r\n")[0] + b"\r\n"
    expected = header[:-2].replace(
        b"content-transfer-ENCODING:\r\n 8bit (really)\r\n", b"Content-Transfer-Encoding: quoted-printable\r\n"
    )
    assert head == expected + b"Content-Type: text/plain; charset=unknown-8bit\r\n"


NESTED = (
    b'MIME-Version: 1.0\r\nContent-Type: multipart/mixed;\r\n boundary="out er"\r\n'
    b"Content-Transfer-Encoding: 8bit\r\n"
    b"\r\npreamble\r\n--out er\r\nContent-Type: multipart/alternative; boundary=in\r\n\r\n"
    b"--in\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\nh\xc3\xa9\r\n"
    b"--in\r\nContent-Type: text/html\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\nh=C3=A9 and \xc3\xa9\r\n"
    b"--in--\r\n--out er\r\nContent-Type: message/rfc822\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
    b"Subject: inner\r\nMIME-Version: 1.0\r\nContent-Type: text/plain\r\n"
    b"Content-Transfer-Encoding: 8bit\r\n\r\n\xe9\r\n"
    b"--out er\r\n\r\nplain and fine\r\n--out er\r\nContent-Type: application/pdf\r\n"
    b"Content-Transfer-Encoding: base64\r\n\r\n"
    b"AAEC\r\n--out er--\r\nepilogue\r\n"
)


def test_nested_parts_are_followed_and_nothing_is_encoded_twice() -> None:
    out = reencode(NESTED, Target.SEVEN_BIT)
    assert is_seven_bit(out)
    assert parsed(out) == parsed(NESTED)
    assert out.count(b"8bit") == 0
    assert b"plain and fine\r\n--out er\r\n" in out
    assert b"\r\nAAEC\r\n" in out
    assert out.endswith(b"--out er--\r\nepilogue\r\n")
    assert b"h=C3=A9 and =C3=A9" in out


def test_an_eight_bit_hop_gets_a_nested_message_unchanged() -> None:
    assert reencode(NESTED, Target.EIGHT_BIT) == NESTED


def test_an_empty_part_stays_empty() -> None:
    content = (
        b"Content-Type: multipart/mixed; boundary=b\r\nMIME-Version: 1.0\r\n\r\n--b\r\nContent-Type: text/plain\r\n\r\n"
        b"--b\r\nContent-Transfer-Encoding: 8bit\r\n\r\n\xff\r\n--b--\r\n"
    )
    assert parsed(reencode(content, Target.SEVEN_BIT)) == parsed(content)


def test_octets_that_do_not_belong_into_base64_are_left_out() -> None:
    head = b"MIME-Version: 1.0\r\nContent-Type: image/x\r\nContent-Transfer-Encoding: base64\r\n\r\n"
    assert reencode(head + b"AA\xe9EC\r\n", Target.SEVEN_BIT) == head + b"AAEC\r\n"


def test_a_soft_break_never_makes_a_boundary() -> None:
    line = b"\xe9" + b"x" * 71 + b"--b\r\n"
    for shift in range(8):
        body = b"y" * shift + line
        content = (
            b"MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
            b"--b\r\nContent-Type: text/plain\r\nContent-Transfer-Encoding: 8bit\r\n\r\n" + body + b"\r\n--b--\r\n"
        )
        out = reencode(content, Target.SEVEN_BIT)
        assert out.count(b"\r\n--b") == 2
        assert parsed(out) == parsed(content)


def test_lines_without_end_are_worked_on_in_pieces() -> None:
    body = b"\xe9" * 300_000
    encoder = Reencoder(Target.SEVEN_BIT, hold=1000)
    out = b"".join([encoder.feed(LATIN), *(encoder.feed(body[i : i + 7001]) for i in range(0, len(body), 7001))])
    out += encoder.finish()
    assert is_seven_bit(out)
    assert parsed(out) == [("text/plain", body)]


def test_a_long_part_holds_no_more_than_its_bound_before_it_is_put_out() -> None:
    encoder = Reencoder(Target.SEVEN_BIT, hold=10_000)
    encoder.feed(LATIN)
    put_out = sum(len(encoder.feed(b"caf\xe9 " * 20 + b"\r\n")) for _ in range(1000))
    assert put_out > 90_000


def test_content_cut_off_inside_a_header_or_a_part_comes_out_whole() -> None:
    for end in range(len(NESTED)):
        piece = NESTED[:end].removesuffix(b"\r")  # a CR alone would make it binary
        out = reencode(piece, Target.EIGHT_BIT)
        assert out == piece


_line = st.binary(max_size=30).map(lambda b: b.replace(b"\r", b"").replace(b"\n", b""))
_text = st.lists(st.one_of(_line, st.sampled_from([b"--b", b"--b--", b"--c", b"-", b".", b" ", b"x" * 80 + b"\xff"])))


@given(_text.map(b"\r\n".join), st.sampled_from(list(Target)), st.integers(1, 50), st.integers(1, 200))
@example(b"", Target.SEVEN_BIT, 1, 1)
def test_any_text_survives_any_split_and_any_hold(body: bytes, target: Target, step: int, hold: int) -> None:
    content = LATIN + body
    encoder = Reencoder(target, hold=hold)
    out = b"".join(encoder.feed(content[i : i + step]) for i in range(0, len(content), step)) + encoder.finish()
    assert _decoded(out) == body
    if target is Target.SEVEN_BIT:
        assert is_seven_bit(out)


@given(st.binary(max_size=400), st.sampled_from(list(Target)), st.integers(1, 60), st.sampled_from([5, 10_000]))
def test_any_binary_survives(body: bytes, target: Target, step: int, hold: int) -> None:
    content = b"MIME-Version: 1.0\r\nContent-Type: a/b\r\nContent-Transfer-Encoding: binary\r\n\r\n" + body
    encoder = Reencoder(target, hold=hold)
    out = b"".join(encoder.feed(content[i : i + step]) for i in range(0, len(content), step)) + encoder.finish()
    assert _decoded(out) == body
    assert b"\0" not in out
    assert not _bare(out)


def _decoded(out: bytes) -> bytes:
    """The body as RFC 2045 decodes it, by its label; the standard library trims what is not canonical."""
    head, body = out.split(b"\r\n\r\n", 1)
    label = head.rsplit(b"Transfer-Encoding: ", 1)[1].split(b"\r\n")[0]
    if label == b"base64":
        return base64.b64decode(body)
    return binascii.a2b_qp(body) if label == b"quoted-printable" else body


@st.composite
def _entities(draw: st.DrawFn, name: bytes = b"b") -> bytes:
    """A MIME entity: text or binary parts in multiparts and messages, labelled as any software might."""
    kind = draw(st.sampled_from(["leaf", "leaf", "mixed", "signed", "message"])) if len(name) < 5 else "leaf"
    label = draw(st.sampled_from([b"", b"7bit", b"8bit", b"binary"]))
    fields = b"Content-Transfer-Encoding: " + label + b"\r\n" if label else b""
    if kind == "leaf":
        body = draw(st.binary(max_size=90) if label == b"binary" else _text.map(b"\r\n".join))
        body = body.replace(b"\0", b"") if label != b"binary" else body
        kind_of_leaf = draw(st.sampled_from([b"", b"Content-Type: text/html\r\n", b"Content-Type: a/b\r\n"]))
        return kind_of_leaf + fields + b"\r\n" + body.replace(b"--", b"-+")
    if kind == "message":
        inner = draw(_entities(name + b"m"))
        return b"Content-Type: message/rfc822\r\n" + fields + b"\r\nSubject: x\r\n" + inner
    parts = [draw(_entities(name + b"%d" % i)) for i in range(draw(st.integers(1, 3)))]
    lines = b"".join(b"--" + name + b"\r\n" + part + b"\r\n" for part in parts)
    return b'Content-Type: multipart/%s; boundary="%s"\r\n%s\r\npreamble\r\n%s--%s--\r\nepilogue' % (
        kind.encode(),
        name,
        fields,
        lines,
        name,
    )


def _contents(entity: bytes) -> list[bytes]:
    """The decoded content of each leaf, with preambles and epilogues, in order, as RFC 2045 and RFC 2046 read them."""
    head, body = (b"", entity[2:]) if entity.startswith(b"\r\n") else entity.split(b"\r\n\r\n", 1)
    boundary = re.search(rb'boundary="(\w+)"', head)
    if boundary is not None:
        before, *parts = re.split(rb"(?:\A|\r\n)--" + boundary[1] + rb"(?:--)?(?=\r\n)", body)
        *inner, after = parts
        return [before, *[leaf for part in inner for leaf in _contents(part[2:])], after]
    if b"message/rfc822" in head:
        return _contents(body)
    label = re.search(rb"Transfer-Encoding: (\S+)", head)
    if label is not None and label[1] == b"base64":
        return [base64.b64decode(body)]
    return [binascii.a2b_qp(body) if label is not None and label[1] == b"quoted-printable" else body]


@given(_entities(), st.sampled_from(list(Target)), st.integers(1, 50), st.sampled_from([1, 40, 10_000]))
def test_every_part_of_any_nested_message_survives_signed_ones_too(
    entity: bytes, target: Target, step: int, hold: int
) -> None:
    content = b"MIME-Version: 1.0\r\n" + entity
    encoder = Reencoder(target, hold=hold)
    out = b"".join(encoder.feed(content[i : i + step]) for i in range(0, len(content), step)) + encoder.finish()
    before, after = _contents(content), _contents(out)
    # The end of the last line is DATA's to give.
    assert after[:-1] == before[:-1]
    assert after[-1].removesuffix(b"\r\n") == before[-1].removesuffix(b"\r\n")
    assert b"\0" not in out
    assert not _bare(out)
    if target is Target.SEVEN_BIT:
        assert out.isascii()
        if hold == 10_000 and is_seven_bit(content) and b"binary" not in content:
            assert out.replace(b"8bit", b"7bit") == content.replace(b"8bit", b"7bit")


@given(st.binary(max_size=600), st.sampled_from(list(Target)))
def test_no_bytes_break_the_reencoder(content: bytes, target: Target) -> None:
    try:
        out = reencode(content, target)
    except Unconvertible:
        assert _bare(content)
    else:
        assert not _bare(out)


@pytest.mark.parametrize("target", list(Target))
@pytest.mark.parametrize("lone", [b"\r", b"\n"])
@pytest.mark.parametrize("before", [b"", LATIN.replace(b"text/plain", b"multipart/mixed; boundary=b") + b"--b\r\n"])
def test_a_header_with_a_lone_cr_or_lf_is_refused_and_makes_no_new_field_SOUT_12(
    before: bytes, lone: bytes, target: Target
) -> None:
    content = before + b"X: a" + lone + b"Bcc: victim@example.org\r\n\r\nbody\xff\r\n"
    with pytest.raises(Unconvertible, match="header"):
        reencode(content, target)
    encoder = Reencoder(target)
    with pytest.raises(Unconvertible):
        b"".join(encoder.feed(bytes([octet])) for octet in content)


def test_what_is_no_field_and_no_part_cannot_become_one_SOUT_12() -> None:
    preamble = LATIN.replace(b"text/plain", b"multipart/mixed; boundary=b") + b"x\n--b\nBcc: y\r\n--b--\r\n"
    assert b"x --b Bcc: y\r\n" in reencode(preamble, Target.SEVEN_BIT)
    long = b"X: " + b"x" * 300_000 + b"\r\nY: a\nBcc: y\r\n\r\n"
    assert b"\r\nY: a Bcc: y\r\n" in reencode(long, Target.SEVEN_BIT)


@pytest.mark.parametrize("depth", [50, 150])
def test_depth_is_bounded(depth: int) -> None:
    content = b"MIME-Version: 1.0\r\n"
    for i in range(depth):
        content += b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (i, i)
    content += b"Content-Transfer-Encoding: 8bit\r\n\r\n\xff\r\n"
    out = reencode(content, Target.SEVEN_BIT)
    assert is_seven_bit(out)
