"""The re-encoder changes labels and encodings and nothing else, for every hop (EXT-08, SOUT-18, RFC 2045)."""

import base64
import binascii
import email
import email.message
import re
import time

import pytest
from hypothesis import example, given, settings
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


def test_octets_that_do_not_belong_into_base64_become_others_that_decoders_pass_over_RFC_2045_6_8() -> None:
    head = b"MIME-Version: 1.0\r\nContent-Type: image/x\r\nContent-Transfer-Encoding: base64\r\n\r\n"
    assert reencode(head + b"AA\xe9EC\r\n", Target.SEVEN_BIT) == head + b"AA?EC\r\n"


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
def test_a_header_with_a_lone_cr_or_lf_is_refused_and_makes_no_new_field_SOUT_12a(
    before: bytes, lone: bytes, target: Target
) -> None:
    content = before + b"X: a" + lone + b"Bcc: victim@example.org\r\n\r\nbody\xff\r\n"
    with pytest.raises(Unconvertible, match="header"):
        reencode(content, target)
    encoder = Reencoder(target)
    with pytest.raises(Unconvertible):
        b"".join(encoder.feed(bytes([octet])) for octet in content)


def test_what_is_no_field_and_no_part_cannot_become_one_SOUT_12a() -> None:
    preamble = LATIN.replace(b"text/plain", b"multipart/mixed; boundary=b") + b"x\n--b\nBcc: y\r\n--b\r\n\r\n--b--\r\n"
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


# --- what is made of parts ------------------------------------------------------------------------------------------

WORDS = "Grüße aus Köln".encode()
PART = b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n" + WORDS + b"\r\n"


def mixed(content_type: bytes, label: bytes = b"8bit", *, boundary: bytes = b"bb", before: bytes = b"") -> bytes:
    mark = b"--" + boundary
    return b"MIME-Version: 1.0\r\nContent-Type: %s\r\nContent-Transfer-Encoding: %s\r\n\r\n%s%s--\r\n" % (
        content_type,
        label,
        before + (mark + b"\r\n" + PART) * 2,
        mark,
    )


@pytest.mark.parametrize("label", [b"base64", b"quoted-printable", b"utf-8", b"x-what", b"(8) base64", b"8bit;", b""])
@pytest.mark.parametrize("before", [b"", b"This is a message in MIME.\r\n", b"\r\n"])
def test_a_label_that_no_multipart_may_have_is_ignored_and_its_parts_are_encoded_RFC_2045_6_4(
    label: bytes, before: bytes
) -> None:
    """Octets that are no base64 were dropped from the parts: `Gre aus Kln`."""
    content = mixed(b"multipart/mixed; boundary=bb", label, before=before)
    out = reencode(content, Target.SEVEN_BIT)
    assert is_seven_bit(out)
    assert parsed(out) == [("text/plain", WORDS)] * 2
    assert email.message_from_bytes(out)["Content-Transfer-Encoding"] == "7bit"
    assert out.count(b"Content-Transfer-Encoding: quoted-printable") == 2
    assert before in out


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        (b'multipart/mixed; boundary*0="b"; boundary*1="b"', b"bb"),
        (b"multipart/mixed; boundary*=us-ascii''b%62", b"bb"),
        (b'multipart/related; start="<x;boundary=zz>"; boundary=bb', b"bb"),
        (b"multipart/mixed (why; boundary=zz); boundary=bb", b"bb"),
        (b"multipart/mixed; boundary=bb cc", b"bb cc"),
        (b"multipart/mixed; boundary=bb cc", b"bb"),
        (b"multipart/mixed; boundary=bb (why)", b"bb"),
        (b"multipart/mixed;\r\n\tboundary\r\n =\r\n bb", b"bb"),
        (b"multipart/mixed; x=" + b"y" * 9000 + b"; boundary=bb", b"bb"),
    ],
)
def test_a_boundary_is_read_as_every_reader_reads_it_RFC_2046_5_1_1(content_type: bytes, boundary: bytes) -> None:
    """By a pattern it was missed, or found where it is not: the whole became base64, or went out as it was."""
    out = reencode(mixed(content_type, boundary=boundary), Target.SEVEN_BIT)
    assert out.isascii()
    assert out.count(b"\r\n--" + boundary) == 3
    assert out.count(b"Gr=C3=BC=C3=9Fe aus K=C3=B6ln\r\n--" + boundary) == 2
    assert b"base64" not in out


@pytest.mark.parametrize(
    "content_type", [b"multipart/mixed", b'multipart/mixed; boundary=""', b"multipart/mixed; boundary=zz"]
)
@pytest.mark.parametrize("label", [b"8bit", b"base64", b"quoted-printable"])
def test_a_multipart_whose_parts_nobody_finds_stays_readable_and_whole(content_type: bytes, label: bytes) -> None:
    content = mixed(content_type, label)
    out = reencode(content, Target.SEVEN_BIT)
    assert is_seven_bit(out)
    assert b"\r\n--bb\r\nContent-Type: text/plain; charset" in out
    assert b"base64" not in out
    if label == b"base64":  # the library decodes what is no base64
        content = content.replace(label, b"8bit", 1)
    assert parsed(out) == parsed(content)
    plain = content.replace(WORDS, b"plain").replace(b"8bit", b"7bit")
    assert reencode(plain, Target.SEVEN_BIT) == plain


@pytest.mark.parametrize("subtype", [b"delivery-status", b"partial; id=x; number=1", b"disposition-notification"])
def test_what_must_be_seven_bit_and_not_encoded_stays_readable_RFC_3464_2_1(subtype: bytes) -> None:
    """A report in base64 tells no reader of reports which recipient failed."""
    report = (
        b"Reporting-MTA: dns; a.example\r\n\r\nFinal-Recipient: rfc822; b@c.example\r\nDiagnostic-Code: x; K\xf6ln\r\n"
    )
    content = (
        b"MIME-Version: 1.0\r\nContent-Type: multipart/report; boundary=bb\r\n\r\n--bb\r\nContent-Type: message/"
        + subtype
        + b"\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
        + report
        + b"--bb--\r\n"
    )
    out = reencode(content, Target.SEVEN_BIT)
    assert out == content.replace(b"8bit", b"7bit").replace(b"\xf6", b"?")


def test_a_message_with_utf8_inside_is_encoded_like_a_part_RFC_6532_3_7() -> None:
    inner = "Subject: Köln\r\n\r\nGrüße\r\n".encode()
    content = b"MIME-Version: 1.0\r\nContent-Type: message/global\r\nContent-Transfer-Encoding: 8bit\r\n\r\n" + inner
    out = reencode(content, Target.SEVEN_BIT)
    assert is_seven_bit(out)
    assert _decoded(out) == inner


def test_preamble_and_epilogue_lose_their_eight_bit_octets_and_nothing_else_does_RFC_2046_5_1_1() -> None:
    before, after = "Für Leser ohne MIME\r\n".encode(), "Schluß\r\n".encode()
    content = mixed(b"multipart/mixed; boundary=bb", before=before) + after
    out = reencode(content, Target.SEVEN_BIT)
    assert is_seven_bit(out)
    assert b"F??r Leser ohne MIME\r\n--bb" in out
    assert out.endswith(b"--bb--\r\nSchlu??\r\n")
    assert parsed(out) == parsed(content)
    assert reencode(content, Target.EIGHT_BIT) == content


@pytest.mark.parametrize("label", [b"base64", b"quoted-printable"])
def test_a_message_in_a_message_that_is_encoded_against_the_rule_keeps_what_it_is_RFC_2045_6_4(label: bytes) -> None:
    inner = b"Subject: x\r\nMIME-Version: 1.0\r\n" + PART
    head = b"MIME-Version: 1.0\r\nContent-Type: message/rfc822\r\nContent-Transfer-Encoding: " + label + b"\r\n\r\n"
    encoded = base64.encodebytes(inner) if label == b"base64" else binascii.b2a_qp(inner, istext=True)
    encoded = encoded.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    for target in Target:
        # What really is encoded stays so, for those readers that decode it.
        assert reencode(head + encoded, target) == head + encoded
        assert reencode(head + b"\r\n" + encoded, target) == head + b"\r\n" + encoded
    out = reencode(head + inner, Target.SEVEN_BIT)
    assert is_seven_bit(out)
    assert parsed(out) == [("text/plain", WORDS + b"\r\n")]
    assert out.startswith(head.replace(label, b"7bit"))


def test_what_is_called_base64_and_is_none_becomes_what_it_is_called() -> None:
    """Whoever looks at such a part sees text, and has to see the same text afterwards."""
    head = b"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: base64\r\n\r\n"
    for begins in (b"", b"\r\n", b"Hallo\r\n", b"--x\r\n"):
        out = reencode(head + begins + WORDS + b"\r\n", Target.SEVEN_BIT)
        assert is_seven_bit(out)
        assert b"base64" not in out
        assert parsed(out) == [("text/plain", begins + WORDS + b"\r\n")]
        seven = head + begins + b"plain text\r\n"
        assert reencode(seven, Target.SEVEN_BIT) == seven
    # Somebody has put a footer below it: decoders stop before, and what they have decoded has to stay.
    footed = head + base64.encodebytes(b"x" * 100).replace(b"\n", b"\r\n") + b"-- \r\n" + WORDS + b"\r\n"
    out = reencode(footed, Target.SEVEN_BIT)
    assert is_seven_bit(out)
    assert len(out) == len(footed)
    assert parsed(out) == parsed(footed)
    # A report must stay one.
    report = head.replace(b"text/plain; charset=utf-8", b"message/delivery-status") + b"A: \xff\r\n\r\nB: \xff\r\n"
    assert reencode(report, Target.SEVEN_BIT) == report.replace(b"base64", b"7bit").replace(b"\xff", b"?")


def test_an_encoding_that_nobody_knows_stays_named_where_nothing_has_to_change() -> None:
    """Called 7bit, what was attached is no longer decoded by those who know it."""
    attached = (
        b"Content-Type: application/x\r\nContent-Transfer-Encoding: x-uuencode\r\n\r\nbegin 644 a\r\n#86%A\r\nend\r\n"
    )
    content = mixed(b"multipart/mixed; boundary=bb").replace(b"--bb--", b"--bb\r\n" + attached + b"--bb--")
    assert attached in reencode(content, Target.SEVEN_BIT)


def test_a_header_that_lacks_its_empty_line_ends_where_readers_end_it() -> None:
    part = b"Content-Type: text/plain; charset=utf-8\r\nno field, but text\r\n\r\n" + WORDS + b"\r\n"
    content = b"MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=bb\r\n--bb\r\n" + part + b"--bb--\r\n"
    out = reencode(content, Target.SEVEN_BIT)
    assert is_seven_bit(out)
    assert parsed(out) == parsed(content) == [("text/plain", b"no field, but text\r\n\r\n" + WORDS)]
    assert reencode(content, Target.EIGHT_BIT) == content


@pytest.mark.parametrize(
    "label", [b"", b"Content-Transfer-Encoding: 8bit\r\n", b"Content-Transfer-Encoding: base64\r\n"]
)
@pytest.mark.parametrize("late", [False, True])
def test_a_part_with_an_endless_header_keeps_its_octets(label: bytes, late: bool) -> None:
    long = b"X: " + b"x" * 300_000 + b"\r\n"
    body = base64.encodebytes(WORDS).replace(b"\n", b"\r\n") if b"base64" in label else WORDS + b"\r\n"
    fields = long + label if late else label + long
    content = b"MIME-Version: 1.0\r\n" + fields + b"\r\n" + body
    out = reencode(content, Target.SEVEN_BIT)
    assert is_seven_bit(out)
    assert parsed(out) == parsed(content)
    assert long in out
    assert out.count(b"Content-Transfer-Encoding:") == 1


_ways = st.sampled_from(
    [
        b'boundary="%s"',
        b"boundary=%s",
        b"BOUNDARY = %s",
        b'boundary*0="%s"',
        b"boundary*=''%s",
        b'start="<x;boundary=zz>"; boundary=%s',
        b'charset="a\\"b"; boundary=%s; x=y',
        b"boundary=%s zz",
    ]
)
_labels = st.sampled_from([b"", b"", b"7bit", b"8bit", b"base64", b"quoted-printable", b"utf-8", b"BINARY (really)"])
_odd = st.sampled_from([b"", b"", b"\r\n", b"plain\r\n", "Für alle\r\n".encode(), b"\xff\r\n--\r\n"])
_lines = st.lists(
    st.sampled_from(
        [b"", b"plain", "Grüße".encode(), b"\xff\xfe", b"a=3Db", b"=", b"--", b"From x", b"x: y", b"QUJD", b" "]
    )
).map(b"\r\n".join)


@st.composite
def _hostile(draw: st.DrawFn, name: bytes = b"b") -> bytes:
    """An entity as careless or hostile software makes it: labels that are not allowed, odd spellings, missing ends."""
    kind = draw(st.sampled_from(["text", "text", "data", "multipart", "multipart", "lost", "message"]))
    if len(name) > 4:
        kind = "text"
    label = draw(_labels)
    if kind in ("text", "data"):
        label = draw(st.sampled_from([b"", b"7bit", b"8bit", b"x-odd"]))
        what = draw(st.sampled_from([b"text/plain; charset=utf-8", b"text/html"])) if kind == "text" else b"a/b"
        body = draw(_lines)
    elif kind == "message":
        what, body = b"message/rfc822", b"Subject: x\r\n" + draw(_hostile(name + b"m"))
        # Whether an encoded message is really encoded shows in its octets; here it never is.
        label = draw(st.sampled_from([label, b"", b"8bit"])) if label != b"quoted-printable" else b""
    else:
        way = draw(_ways)
        what = b"multipart/mixed; " + way % (name if kind == "multipart" else b"other")
        mark = name + b" zz" if way.endswith(b"zz") else name
        parts = [draw(_hostile(name + b"%d" % i)) for i in range(draw(st.integers(0, 3)))]
        ends = draw(st.sampled_from([b"--" + mark + b"--\r\n", b"--" + mark + b"-- \t\r\n", b""]))
        body = draw(_odd) + b"".join(b"--" + mark + b"\r\n" + part + b"\r\n" for part in parts) + ends
        body += draw(_odd) if ends else b""
        if not parts or kind == "lost":
            # What the library makes of base64 that is none is anybody's guess.
            label = label.replace(b"base64", b"")
    fields = [b"Content-Type: " + what, *([b"Content-Transfer-Encoding: " + label] if label else [])]
    if draw(st.booleans()):
        fields.reverse()
    return b"\r\n".join(fields) + b"\r\n\r\n" + body


def _tree(message: email.message.Message) -> object:
    """Types of all entities, and what is in the leaves, as the standard library reads them."""
    if message.is_multipart():
        return message.get_content_type(), [_tree(part) for part in message.get_payload()]  # type: ignore[arg-type]
    payload = message.get_payload(decode=True)
    assert isinstance(payload, bytes)
    return message.get_content_type(), payload.rstrip(b"\r\n")


@settings(max_examples=1000)
@given(_hostile(), st.sampled_from(list(Target)), st.integers(1, 80), st.sampled_from([10, 10_000]))
def test_whatever_software_makes_of_mime_has_the_same_parts_with_the_same_content_afterwards_EXT_08(
    entity: bytes, target: Target, step: int, hold: int
) -> None:
    content = b"MIME-Version: 1.0\r\n" + entity
    encoder = Reencoder(target, hold=hold)
    out = b"".join(encoder.feed(content[i : i + step]) for i in range(0, len(content), step)) + encoder.finish()
    assert _tree(email.message_from_bytes(out)) == _tree(email.message_from_bytes(content))
    assert not _bare(out)
    if target is Target.SEVEN_BIT:
        assert is_seven_bit(out)


@pytest.mark.parametrize(
    "content",
    [
        b"".join(b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (i, i) for i in range(30_000)),
        b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"--b\r\n\r\n" * 100_000,
        b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"--bb\r\n" * 200_000,
        b"Content-Type: message/rfc822\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n" * 10_000 + b"\xff",
        b"Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64\r\n\r\n" * 10_000 + b"\xff",
        b"Content-Type: multipart/mixed; boundary=b\r\nContent-Transfer-Encoding: base64\r\n\r\n"
        + b"\xff\r\n" * 300_000,
        b"Content-Type: " + b"(\r\n " * 40_000 + b"\r\n\r\n\xff",
        b"Content-Type: x/y\r\n" + b" ;a=b\r\n" * 30_000 + b"\r\n\xff",
        b"X: y\r\n" * 100_000 + b"\r\n\xff",
    ],
    ids=[
        "depth",
        "parts",
        "near boundaries",
        "doubt",
        "doubt at once",
        "no boundary",
        "comments",
        "parameters",
        "header",
    ],
)
def test_a_hostile_structure_takes_time_in_proportion_to_its_size(content: bytes) -> None:
    begun = time.process_time()
    out = reencode(content, Target.SEVEN_BIT)
    assert time.process_time() - begun < 20  # squares of it would be hours
    assert is_seven_bit(out)


LONG = b"word " * 400


def _longest(content: bytes) -> int:
    return max(map(len, content.split(b"\r\n")))


def _shorten(content: bytes, *, step: int = 0, hold: int = 10_000, release: bool = False) -> bytes:
    encoder = Reencoder(Target.EIGHT_BIT, hold=hold, longest_line=998, keep_signed=True)
    step = step or len(content)
    out = b""
    for at in range(0, len(content), step):
        out += encoder.feed(content[at : at + step])
        if release:
            out += encoder.release()
    return out + encoder.finish()


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (b"Subject: x\r\n\r\n", LONG),
        (b"Subject: x\r\n\r\n", b"short\r\n" + LONG + b"\r\nshort"),
        (LATIN, b"caf\xe9 " * 300),
        (LATIN.replace(b"8bit", b"quoted-printable"), b"=C3=BC =3D" * 300),
        (LATIN.replace(b"8bit", b"quoted-printable"), b"ab=C3--" * 300),
        (b"MIME-Version: 1.0\r\nContent-Type: a/b\r\n\r\n", b"{" * 5000),
        (
            b"MIME-Version: 1.0\r\nContent-Type: a/b\r\nContent-Transfer-Encoding: base64\r\n\r\n",
            base64.b64encode(bytes(3000)),
        ),
    ],
)
@pytest.mark.parametrize("step", [1, 700, 100_000])
def test_a_line_above_998_is_encoded_or_broken_and_reads_the_same_SOUT_12b(head: bytes, body: bytes, step: int) -> None:
    content = head + body + b"\r\n"
    out = _shorten(content, step=step)
    assert _longest(out) <= 998
    assert [payload.rstrip() for _, payload in parsed(out)] == [payload.rstrip() for _, payload in parsed(content)]


def test_only_the_part_with_a_long_line_changes_SOUT_12b() -> None:
    def mixed(part: bytes) -> bytes:
        return (
            b"MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\npreamble\r\n--b\r\n\r\nshort\r\n"
            + b"--b\r\nContent-Type: text/html\r\n"
            + part
            + b"\r\n--b\r\nContent-Type: a/b\r\n\r\n\xff\r\n--b--\r\n"
        )

    out = _shorten(mixed(b"\r\n" + LONG))
    quoted = out.partition(b"Content-Type: text/html\r\n")[2].partition(b"\r\n--b\r\n")[0]
    assert quoted.startswith(b"Content-Transfer-Encoding: quoted-printable\r\n\r\nword ")
    assert out == mixed(quoted)
    assert _shorten(mixed(b"\r\nshort")) == mixed(b"\r\nshort")


def test_a_header_line_above_998_is_folded_at_its_blanks_and_reads_the_same_SOUT_12b() -> None:
    ids = b"".join(b" <%d@example.org>" % number for number in range(200))
    content = b"References:" + ids + b"\r\nX: " + b"y" * 2000 + b"\r\n\r\nbody\r\n"
    out = _shorten(content)
    head, _, body = out.partition(b"\r\n\r\n")
    assert head.replace(b"\r\n ", b" ") == content.partition(b"\r\n\r\n")[0]
    assert body == b"body\r\n"
    assert [len(line) > 998 for line in head.split(b"\r\n")] == [False] * 5 + [True]  # one word cannot be folded


@pytest.mark.parametrize("hold", [10, 100_000])
def test_what_a_signature_covers_stays_whatever_its_lines_RFC_1847(hold: int) -> None:
    signed = (
        b"Content-Type: multipart/signed; boundary=s\r\n\r\n--s\r\nContent-Type: multipart/mixed; boundary=t\r\n\r\n"
        b"--t\r\n\r\n" + LONG + b"\r\n--t--\r\n\r\n--s\r\nContent-Type: a/signature\r\n\r\nAAAA\r\n--s--\r\n"
    )
    content = b"MIME-Version: 1.0\r\n" + signed
    assert _shorten(content, hold=hold) == content
    mixed = b"MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=o\r\n\r\n--o\r\n%s\r\n--o\r\n\r\n%s\r\n"
    out = _shorten(mixed % (signed, LONG), hold=hold)
    assert signed in out
    assert out.count(b"word " * 50) == signed.count(b"word " * 50)


def test_a_multipart_whose_parts_are_not_found_keeps_its_label_SOUT_12b() -> None:
    content = b"MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=lost\r\n\r\n" + LONG + b"\r\n"
    assert _shorten(content) == content
    assert _shorten(content, hold=10) == content


@given(_hostile(), st.integers(1, 80), st.sampled_from([10, 10_000]), st.booleans(), st.booleans())
def test_shorter_lines_have_the_same_parts_with_the_same_content_SOUT_12b(
    entity: bytes, step: int, hold: int, long: bool, release: bool
) -> None:
    content = b"MIME-Version: 1.0\r\n" + entity.replace(b"\r\nplain", b"\r\n" + LONG if long else b"\r\nplain")
    out = _shorten(content, step=step, hold=hold, release=release)
    assert _tree(email.message_from_bytes(out)) == _tree(email.message_from_bytes(content))
    assert not _bare(out)


@given(st.lists(st.integers(0, 90)), st.integers(1, 4000))
def test_encoded_content_passes_in_one_piece_as_it_does_line_by_line(lengths: list[int], step: int) -> None:
    body = b"".join(b"QUJD" * length + b"\r\n" for length in lengths)
    head = b"MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=QU\r\n\r\n--QU\r\nContent-Type: a/b\r\n"
    content = head + b"Content-Transfer-Encoding: base64\r\n\r\n" + body * 40 + b"--QU--\r\n"
    assert _shorten(content, step=step) == content
