"""Reading and writing headers as octets: SIN-13..15, SUB-03..05, TLS-06, design 9."""

import email
import email.policy
import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from email.errors import MessageError
from email.utils import getaddresses
from inspect import signature
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mailrail.core.message import header as header_module
from mailrail.core.message.header import (
    ADDRESSES_LIMIT,
    ADDRESSES_SIZE,
    SUBJECT_LIMIT,
    Header,
    HeaderError,
    Received,
    _loose_authors,
    date,
    header_end,
    mailboxes,
    message_id,
    subject,
    waives_tls,
    with_keyword,
)
from mailrail.core.smtp.address import Address, parse_address
from mailrail.core.smtp.tls import TlsFacts

NOON = datetime(2026, 11, 22, 12, 0, tzinfo=UTC).timestamp()


def fields(*lines: str) -> Header:
    return Header("".join(line + "\r\n" for line in lines).encode() + b"\r\nbody: no field\r\n")


def author_addresses(header: Header) -> Iterator[Address]:
    """The authors of all From fields."""
    for field in header.named(b"from"):
        yield from mailboxes(field).addresses


def test_fields_are_found_with_their_folds_and_the_body_is_not_looked_at() -> None:
    header = fields("Subject: a", "Received: from x", "\tby y", " with z", "X-Empty:", "received : obsolete")
    assert [field.name for field in header.fields] == [b"subject", b"received", b"x-empty", b"received"]
    assert header.fields[1].text == "from x\tby y with z"
    assert len(header.named(b"received")) == 2
    assert header.has(b"x-empty")
    assert not header.has(b"body")


@pytest.mark.parametrize(
    ("content", "block"),
    [
        (b"", b""),
        (b"\r\nbody", b""),
        (b"no header at all\r\nA: b\r\n", b""),
        (b" folded first\r\nA: b\r\n", b""),
        (b"A: b\r\nbroken line\r\nC: d\r\n\r\n", b"A: b\r\n"),
        (b"A: b", b"A: b"),
        (b"A: b\r\n c", b"A: b\r\n c"),
        (b"A: b\nC: d\n\nbinary", b"A: b\nC: d\n"),
    ],
)
def test_a_header_ends_at_the_first_line_that_is_none_of_it(content: bytes, block: bytes) -> None:
    assert Header(content).block == block


def test_taking_fields_out_leaves_every_other_octet_as_it_was_SIN_13() -> None:
    header = fields("A: 1 ", "Bcc: x@y", " z@y", "B:2", "BCC: q@y", "C :\t3")
    unwanted = [field for field in header.fields if field.name == b"bcc"]
    assert header.without(unwanted) == b"A: 1 \r\nB:2\r\nC :\t3\r\n"
    assert header.without([]) == header.block


def test_the_end_of_a_header_is_found_in_any_split() -> None:
    content = b"A: b\r\nC: d\r\n\r\nbody\r\n\r\n"
    for cut in range(len(content)):
        end = header_end(content[:cut])
        assert end == (12 if cut >= 14 else -1)
        assert header_end(content, cut if cut < 12 else 0) in (12, 20)
    assert header_end(b"\r\nbody") == 0


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["Message-ID: <a@b>"], "<a@b>"),
        (["message-id:", " <a.b-c@[192.0.2.1]>"], "<a.b-c@[192.0.2.1]>"),
        (["Subject: none"], None),
        (["Message-ID: <a@b>", "Message-ID: <a@b>"], None),
        (["Message-ID: a@b"], None),
        (["Message-ID: <ab>"], None),
        (["Message-ID: <a b@c>"], None),
        (["Message-ID: <a@b> <c@d>"], None),
        (["Message-ID: <жора@b>"], None),
        (["Message-ID: <" + "a" * 896 + "@b>"], "<" + "a" * 896 + "@b>"),
        (["Message-ID: <" + "a" * 897 + "@b>"], None),
    ],
)
def test_a_message_id_counts_when_there_is_just_one_that_parses(lines: list[str], expected: str | None) -> None:
    assert message_id(fields(*lines)) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Subject: plain", "plain"),
        ("Subject: =?utf-8?B?w6RiYw==?= x", "äbc x"),
        ("Subject: raw ä", "raw ä"),
        ("Subject: =?nonsense?B?w6RiYw==?=", "=?nonsense?B?w6RiYw==?="),
        ("Subject: =?é?Q?x?=", "=?é?Q?x?="),
        ("Subject: =?utf-8?B?!!!?= rest", "rest"),
        ("Subject: =?utf-8?Q?a=0D=0Ab?=", "a  b"),
        ("Subject: a\x07b", "a b"),
        ("Subject: " + "x" * 300, "x" * SUBJECT_LIMIT),
    ],
)
def test_a_subject_is_decoded_for_people_and_bounded(line: str, expected: str) -> None:
    assert subject(fields(line)) == expected


def test_no_subject_is_none() -> None:
    assert subject(fields("A: b")) is None


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["From: ada@example.org"], ["ada@example.org"]),
        (["From: Ada Lovelace <ada@example.org>"], ["ada@example.org"]),
        (['From: "Lovelace, Ada" <ada@example.org>, bob@example.net'], ["ada@example.org", "bob@example.net"]),
        (["From: =?utf-8?Q?Ad=C3=A1?= <ada@EXAMPLE.org>"], ["ada@example.org"]),
        (["From: Ada (the (first)) <ada@example.org> (\\))"], ["ada@example.org"]),
        (["From: ada@example.org, ,", " bob@example.org"], ["ada@example.org", "bob@example.org"]),
        (["From: Team: ada@example.org, Bob <bob@example.org>;"], ["ada@example.org", "bob@example.org"]),
        (["From: Nobody:;"], []),
        (["From: <@a.example,@b.example:ada@example.org>"], ["ada@example.org"]),
        (["From: <@a.example,,@b.example,:ada@example.org>"], ["ada@example.org"]),
        (['From: "a b"@example.org'], ['"a b"@example.org']),
        (["From: ada @ example . org"], ["ada@example.org"]),
        (["From: A. Lovelace <ada@[192.0.2.1]>"], ["ada@[192.0.2.1]"]),
        (["From: Жора <жора@example.org>"], ["жора@example.org"]),
        (["From: ada@example.org", "From: eve@example.net"], ["ada@example.org", "eve@example.net"]),
        (["From: [tag] Ada <ada@example.org>"], ["ada@example.org"]),
        (["From: Ada [tag", " two] <ada@example.org>\t"], ["ada@example.org"]),
        (['From: [x] "A." (Sales) Lovelace<ada@example.org>'], ["ada@example.org"]),
        (["From: ada@example.org <ada@example.org>"], ["ada@example.org", "ada@example.org"]),
        (["From: ada@example.org <eve@example.net>"], ["ada@example.org", "eve@example.net"]),
        (["Subject: no author"], []),
        (["From:"], []),
    ],
)
def test_every_author_is_found_SUB_03(lines: list[str], expected: list[str]) -> None:
    assert [str(address) for address in author_addresses(fields(*lines))] == expected


@pytest.mark.parametrize(
    "line",
    [
        "From: ada",
        "From: Ada @ Work <ada@example.org>",
        "From: x eve@example.net <ada@example.org>",
        "From: [eve@example.net] <ada@example.org>",
        'From: [x] "eve@example.net" <ada@example.org>',
        "From: [x] (eve@example.net) <ada@example.org>",
        "From: [x] (Ada <ada@example.org>",
        'From: [x] "Ada <ada@example.org>',
        "From: [x] Ada <ada@example.org> <eve@example.net>",
        "From: [x] Ada, Eve <ada@example.org>",
        "From: [x] A: Eve <ada@example.org>;",
        "From: [x] Ada\\ <ada@example.org>",
        "From: [x] <@eve.example:ada@example.org>",
        "From: [x] <ada@example.org>, eve@example.net",
        "From: [x] <>",
        "From: [x] ada@example.org",
        "From: ada@example.org eve@example.net",
        "From: ada@example.org; eve@example.net",
        "From: <ada@example.org",
        "From: <ada@example.org>>",
        "From: <>",
        "From: <@eve@example.net:ada@example.org>",
        "From: <@a.example@b.example:ada@example.org>",
        "From: <@eve.example ada@example.org>",
        'From: "ada@example.org',
        "From: (ada@example.org",
        "From: ada@",
        "From: @example.org",
        "From: Team: ada@example.org",
        "From: A: B: ada@example.org;;",
        "From: ada@example..org",
        "From: a\x00b@example.org",
        "From: " + "a@b.example," * 1001,
        "From: " + "a " * 100_000 + "<a@b.example>",
    ],
)
def test_an_author_that_cannot_be_read_for_certain_is_an_error(line: str) -> None:
    with pytest.raises(HeaderError):
        list(author_addresses(fields(line)))


@pytest.mark.parametrize(
    "block",
    [
        b"From: a@b.example,\r\n" + b" a@b.example,\r\n" * ADDRESSES_LIMIT,
        b"From: (" + b"x" * ADDRESSES_SIZE + b") a@b.example\r\n",
        ("From: " + ",".join(f"a@{chr(0x5D0 + i)}.example" for i in range(20)) * 50 + "\r\n").encode(),
    ],
)
def test_more_authors_than_anybody_has_are_refused_before_one_is_looked_at_SUB_03(
    block: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading them took a quarter of a second, in which no other client was served."""
    looked_at: list[str] = []
    monkeypatch.setattr(header_module, "parse_address", looked_at.append)
    with pytest.raises(HeaderError):
        next(author_addresses(Header(block)))
    assert looked_at == []


def test_authors_are_looked_at_one_after_the_other_as_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[str] = []

    def counted(text: str) -> Address:
        looked_at.append(text)
        return parse_address(text)

    monkeypatch.setattr(header_module, "parse_address", counted)
    authors = author_addresses(fields("From: " + ", ".join(f"a@א{i}.example" for i in range(50))))
    assert not all(author.domain == "b.example" for author in authors)
    assert len(looked_at) == 1


@pytest.mark.parametrize(
    ("flags", "keyword"),
    [
        ({"extended": False}, "SMTP"),
        ({"extended": False, "tls": True, "authenticated": True, "smtputf8": True}, "SMTP"),
        ({}, "ESMTP"),
        ({"tls": True}, "ESMTPS"),
        ({"authenticated": True}, "ESMTPA"),
        ({"tls": True, "authenticated": True}, "ESMTPSA"),
        ({"smtputf8": True}, "UTF8SMTP"),
        ({"smtputf8": True, "tls": True}, "UTF8SMTPS"),
        ({"smtputf8": True, "authenticated": True}, "UTF8SMTPA"),
        ({"smtputf8": True, "tls": True, "authenticated": True}, "UTF8SMTPSA"),
    ],
)
def test_the_with_keyword_says_how_mail_came_SIN_14(flags: dict[str, bool], keyword: str) -> None:
    assert (
        with_keyword(**({"extended": True, "tls": False, "authenticated": False, "smtputf8": False} | flags)) == keyword
    )


def trace(**changed: Any) -> bytes:
    given: dict[str, Any] = {
        "hello": "client.example",
        "client": ip_address("192.0.2.1"),
        "by": "mx.example.org",
        "protocol": "ESMTP",
        "tls": None,
    }
    recipient = changed.pop("recipient", "ada@example.org")
    return Received(**(given | changed)).field("0abc", recipient, NOON)


def test_received_says_from_by_with_id_for_and_when_SIN_13() -> None:
    assert trace() == (
        b"Received: from client.example ([192.0.2.1])\r\n\tby mx.example.org (Mailrail) with ESMTP\r\n\tid 0abc\r\n"
        b"\tfor <ada@example.org>;\r\n\tSun, 22 Nov 2026 12:00:00 +0000\r\n"
    )
    assert b"for" not in trace(recipient=None)


def test_received_says_that_mail_came_with_requiretls_between_with_and_id() -> None:
    assert b" with ESMTPS (requiretls)\r\n\tid 0abc\r\n" in trace(protocol="ESMTPS", require_tls=True)
    assert b"requiretls" not in trace(protocol="ESMTPS")


def test_received_never_makes_a_message_need_smtputf8_EXT_11() -> None:
    field = trace(recipient="josé@example.org", protocol="UTF8SMTP", hello="büro-pc")
    assert field.isascii()
    assert b"for" not in field


def test_received_names_the_client_in_one_spelling_SIN_13() -> None:
    assert b"([IPv6:2001:db8::1])" in trace(client=ip_address("2001:db8::1"))


def test_received_carries_the_tls_clause_with_the_registered_name_TLS_06() -> None:
    assert b"\ttls TLS_AES_128_GCM_SHA256 (TLSv1.3);" in trace(tls=TlsFacts("TLSv1.3", "TLS_AES_128_GCM_SHA256"))
    older = trace(tls=TlsFacts("TLSv1.2", "ECDHE-RSA-AES128-GCM-SHA256"))
    assert b"\ttls TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 (TLSv1.2);" in older


@pytest.mark.parametrize(
    ("hello", "written"),
    [
        ("[192.0.2.9]", b"from [192.0.2.9] ("),
        ("[IPv6:2001:DB8::9]", b"from [IPv6:2001:db8::9] ("),
        ("my_pc", b"from my_pc ("),
        ("a(b);c", b"from a?b??c ("),
        ("[evil);", b"from ?evil?? ("),
    ],
)
def test_a_greeting_name_can_put_nothing_else_into_received(hello: str, written: bytes) -> None:
    assert written in trace(hello=hello)


@pytest.mark.parametrize(
    ("lines", "waived"),
    [
        (["TLS-Required: No"], True),
        (["tls-required:no"], True),
        (["TLS-REQUIRED:\t NO  "], True),
        (["TLS-Required:", " No"], True),
        (["TLS-Required: No", "Subject: x", "TLS-Required: no"], True),
        (["TLS-Required: No", "TLS-Required: bogus"], False),
        (["TLS-Required: bogus", "TLS-Required: No"], False),
        (["TLS-Required: No", "TLS-Required:"], False),
        (["TLS-Required: Yes"], False),
        (["TLS-Required: No, really"], False),
        (["TLS-Required: No (because)"], False),
        (["TLS-Required: N", " o"], False),
        (["TLS-Required: \udcff"], False),
        (["TLS-Required:"], False),
        (["TLS-Required-Not: No"], False),
        (["X-TLS-Required: No"], False),
        (["Subject: x", " TLS-Required: No"], False),
        ([], False),
    ],
)
def test_tls_is_waived_where_each_field_says_no_and_nothing_else_RTLS_09(lines: list[str], waived: bool) -> None:
    block = "".join(line + "\r\n" for line in lines).encode("utf-8", "surrogateescape")
    assert waives_tls(Header(block + b"\r\nTLS-Required: No\r\n")) is waived


def test_dates_have_a_numeric_zone() -> None:
    assert date(NOON + 0.9) == "Sun, 22 Nov 2026 12:00:00 +0000"


@given(st.binary(max_size=400))
def test_any_octets_can_be_read_as_a_header(content: bytes) -> None:
    header = Header(content)
    assert content.startswith(header.block)
    assert header.without(header.fields) == b""
    message_id(header)
    subject(header)
    with suppress(HeaderError):
        list(author_addresses(header))


@given(st.text(max_size=120))
def test_any_from_field_is_read_or_refused(value: str) -> None:
    with suppress(HeaderError):
        list(author_addresses(Header(b"From: " + value.replace("\n", " ").encode("utf-8", "surrogatepass") + b"\r\n")))


_ADA = "<ada@home.example>"
_author_pieces = st.sampled_from(
    [
        *'[]()<>@"\\,:;. \txж\udcff\x0b',
        "\r\n ",
        _ADA,
        "ada@home.example",
        "ceo@home.example",
        "<ceo@home.example>",
        "=?utf-8?q?x?=",
    ]
)


@example([".", "ceo@home.example", _ADA])
@example(['"', "\r\n ", ".", "]", '"', _ADA])
@given(st.lists(_author_pieces, max_size=10) | st.lists(_author_pieces, max_size=5).map(lambda x: [*x, _ADA]))
def test_no_reader_finds_an_author_that_was_not_judged_where_the_name_is_read_loosely_SUB_03(pieces: list[str]) -> None:
    value = "".join(pieces)

    def same(found: str) -> str:
        # As it is compared: domains in A-labels, a local part in quotes where it needs them. The library leaves the
        # angle brackets of an address on if a quoted string before it is folded.
        return str(parse_address(found.strip("<>")))

    try:
        judged = {str(author) for author in _loose_authors(value.replace("\r\n", ""))}
    except HeaderError:
        return
    raw = f"From: {value}\r\n\r\n".encode("utf-8", "surrogateescape")
    assert {str(author) for author in author_addresses(Header(raw))} <= judged
    parsed = email.message_from_bytes(raw)
    strictly = [{"strict": True}, {"strict": False}] if "strict" in signature(getaddresses).parameters else [{}]
    texts = [value, value.replace("\r\n", "")]
    if value.isascii():  # else what the library shows of it is not what is there
        texts.append(str(parsed["from"]))
    for text in texts:
        for how in strictly:
            for _, found in getaddresses([text], **how):
                assert "@" not in found or same(found) in judged
        assert {same(found) for found in re.findall(r"<([^<>]*)>", text)} <= judged
    if not value.isascii():
        return
    modern = email.message_from_bytes(raw, policy=email.policy.SMTP)
    with suppress(AttributeError, IndexError, TypeError, MessageError):  # the library breaks on some of these
        assert all("@" not in one.addr_spec or same(one.addr_spec) in judged for one in modern["from"].addresses)


_charsets = st.sampled_from(["utf-8", "us-ascii", "utf-16", "idna", "zlib", "é", "\u212a", "", " ", "a*b"]) | st.text(
    max_size=9
)
_words = st.tuples(_charsets, st.sampled_from("qQbB?x"), st.text(max_size=20)).map("=?{0[0]}?{0[1]}?{0[2]}?=".format)


@given(st.lists(_words | st.text(max_size=5), max_size=5).map(" ".join))
def test_whatever_encoded_words_say_a_subject_is_text_for_people_or_as_it_came_RFC_2047_6_3(text: str) -> None:
    content = b"Subject: " + text.replace("\n", " ").encode("utf-8", "surrogatepass") + b"\r\n"
    found = subject(Header(content))
    assert found is not None
    assert found.isprintable()
    assert len(found) <= SUBJECT_LIMIT


@given(
    st.lists(st.sampled_from([b"a", b"@", b".", b'"', b"<", b">", b",", b" ", b"\xff", b"\xed\xa0\x80", "é".encode()]))
)
def test_an_author_of_any_octets_is_read_or_refused_SUB_03(pieces: list[bytes]) -> None:
    with suppress(HeaderError):
        for author in author_addresses(Header(b"From: " + b"".join(pieces) + b"\r\n")):
            str(author).encode()


_pieces = st.sampled_from(
    [
        b"Subject",
        b"subject",
        b"subject-x",
        b"x",
        b":",
        b": a",
        b" ",
        b"\t",
        b"\r\n",
        b"\n",
        b"\r\n ",
        b"\r",
        b"\xff",
        b":\r\n",
    ]
)


@given(st.lists(_pieces, max_size=40))
def test_searching_for_a_name_finds_what_a_list_of_all_fields_has(pieces: list[bytes]) -> None:
    content = b"".join(pieces)
    header = Header(content)
    assert b"".join(content[field.start : field.end] for field in header.fields) == header.block
    for name in (b"subject", b"x", b"subject-x", b"received"):
        assert header.named(name) == [field for field in header.fields if field.name == name]
