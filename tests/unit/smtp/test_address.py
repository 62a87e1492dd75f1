"""Addresses and paths: RFC 5321 4.1.2, 4.1.3 and RFC 6531 3.3 (rules SIN-05, SIN-09, SIN-10, SIN-12, EXT-10)."""

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.smtp.address import (
    Address,
    AddressError,
    NonAsciiAddress,
    domain_to_ascii,
    is_ip_address,
    parse_address,
    parse_forward_path,
    parse_reverse_path,
    plain_ip,
)


@pytest.mark.parametrize(
    ("path", "address"),
    [
        ("<ada@example.org>", Address("ada", "example.org")),
        ("<Ada.Lovelace@EXAMPLE.org>", Address("Ada.Lovelace", "example.org")),
        ("<a!b%c@example.org>", Address("a!b%c", "example.org")),
        ('<"ada"@example.org>', Address("ada", "example.org")),
        ('<"a b"@example.org>', Address("a b", "example.org")),
        ('<"a\\"b\\\\c"@example.org>', Address('a"b\\c', "example.org")),
        ('<"a@b>"@example.org>', Address("a@b>", "example.org")),
        ('<""@example.org>', Address("", "example.org")),
        ("<ada@[192.0.2.1]>", Address("ada", "[192.0.2.1]")),
        ("<ada@[IPv6:2001:DB8:0:0:0:0:0:1]>", Address("ada", "[IPv6:2001:db8::1]")),
        ("<ada@[ipv6:::ffff:192.0.2.1]>", Address("ada", "[IPv6:::ffff:c000:201]")),
        ("<@a.example:ada@example.org>", Address("ada", "example.org")),
        ("<@a.example,@b.example:ada@example.org>", Address("ada", "example.org")),
        ("<ada@localhost>", Address("ada", "localhost")),
        ("<ada@xn--bcher-kva.example>", Address("ada", "xn--bcher-kva.example")),
    ],
)
def test_paths_are_read_with_source_routes_dropped_and_case_kept_SIN_12(path: str, address: Address) -> None:
    assert parse_forward_path(path.encode()) == (address, "")
    assert parse_reverse_path(path.encode() + b" SIZE=1") == (address, " SIZE=1")


@pytest.mark.parametrize(
    "path",
    [
        "",
        "<ada@example.org",
        "ada@example.org>",
        "ada",
        "<ada>",
        "<@example.org>",
        "<ada@>",
        "<ada@.example.org>",
        "<ada@example..org>",
        "<ada@example.org..>",
        "<ada@.>",
        "<ada@-example.org>",
        "<ada@example-.org>",
        "<a b@example.org>",
        '<"ada@example.org>',
        '<"a"b@example.org>',
        '<"a\nb"@example.org>',
        '<"a\x00b"@example.org>',
        "<ada@example.org\r>",
        "<ada@[192.0.2.256]>",
        "<ada@[192.0.2.1>",
        "<ada@[IPv6:fe80::1%eth0]>",
        "<ada@[IPv6:]>",
        "<ada@[tag:x]>",
        "<ada@[]>",
        "<@a.example ada@example.org>",
        "<@a.example,ada@example.org>",
        "<<ada@example.org>>",
        "<ada@" + "a" * 64 + ".org>",
        "<" + "a" * 256 + "@example.org>",
        "<ada@" + "a." * 128 + "org>",
    ],
)
def test_what_is_not_a_path_is_refused_with_a_text_that_echoes_nothing(path: str) -> None:
    for parse in (parse_forward_path, parse_reverse_path):
        with pytest.raises(AddressError) as caught:
            parse(path.encode())
        assert str(caught.value).isascii()
        assert "ada" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "written"),
    [
        ("ada@example.org", "ada@example.org"),
        ("<foo..bar@docomo.example>", '"foo..bar"@docomo.example'),
        ("<foo.@docomo.example>", '"foo."@docomo.example'),
        ("<.foo@docomo.example>", '".foo"@docomo.example'),
        ("<bob@under_score.example>", "bob@under_score.example"),
        ("<bob@_dmarc.example>", "bob@_dmarc.example"),
        ("<alice@Example.org.>", "alice@example.org"),
    ],
)
def test_paths_that_other_servers_take_are_taken_and_written_as_the_standard_has_them(path: str, written: str) -> None:
    for parse in (parse_forward_path, parse_reverse_path):
        address, rest = parse(path.encode() + b" SIZE=1")
        assert (str(address), rest) == (written, " SIZE=1")
        assert parse_address(written) == address


def test_a_host_has_no_underscore() -> None:
    with pytest.raises(AddressError):
        domain_to_ascii("under_score.example")


def test_an_address_that_a_dual_stack_socket_shows_is_an_ipv4_address() -> None:
    assert plain_ip(IPv6Address("::ffff:192.0.2.1")) == IPv4Address("192.0.2.1")
    for address in (IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1"), IPv4Address(0), IPv6Address(0)):
        assert plain_ip(address) == address


def test_the_null_path_is_a_sender_and_never_a_recipient_SIN_10() -> None:
    assert parse_reverse_path(b"<> BODY=7BIT") == (None, " BODY=7BIT")
    with pytest.raises(AddressError):
        parse_forward_path(b"<>")


@pytest.mark.parametrize("spelling", ["Postmaster", "postmaster", "POSTMASTER"])
def test_postmaster_needs_no_domain_SIN_09(spelling: str) -> None:
    assert parse_forward_path(f"<{spelling}>".encode()) == (Address(spelling, ""), "")
    assert parse_forward_path(f"{spelling} NOTIFY=NEVER".encode()) == (Address(spelling, ""), " NOTIFY=NEVER")
    assert str(Address(spelling, "")) == spelling
    with pytest.raises(AddressError):
        parse_reverse_path(f"<{spelling}>".encode())


def test_the_least_sizes_of_the_standard_are_taken_SIN_05() -> None:
    local = "l" * 64
    domain = ".".join(["d" * 63] * 3 + ["e" * 63])
    assert len(domain) == 255
    assert parse_address(f"{local}@{domain}") == Address(local, domain)


def test_utf8_needs_the_extension_and_domains_become_a_labels_EXT_10() -> None:
    raw = "<жора@bücher.example>".encode()
    with pytest.raises(NonAsciiAddress):
        parse_forward_path(raw)
    with pytest.raises(NonAsciiAddress):
        parse_reverse_path("<ada@bücher.example>".encode())
    address, rest = parse_forward_path(raw, utf8=True)
    assert address == Address("жора", "xn--bcher-kva.example")
    assert rest == ""
    assert parse_address("ada@BÜCHER.example").domain == "xn--bcher-kva.example"


def test_bytes_that_are_no_utf8_are_refused_even_with_the_extension() -> None:
    with pytest.raises(AddressError):
        parse_forward_path(b"<\xff@example.org>", utf8=True)


@pytest.mark.parametrize("domain", ["a\u2024b.example", "\u00ad", "xn--a\u00fc.example", "ü" * 300, "-ü.example"])
def test_odd_international_domains_are_refused_or_become_plain_names(domain: str) -> None:
    try:
        assert parse_address(f"a@{domain}").domain.isascii()
    except AddressError:
        pass


def test_an_address_is_written_with_the_least_quoting() -> None:
    assert str(parse_address('"ada"@example.org')) == "ada@example.org"
    assert str(parse_address('"a b"@example.org')) == '"a b"@example.org'
    assert str(parse_address('""@example.org')) == '""@example.org'
    assert str(Address('a"\\', "example.org")) == '"a\\"\\\\"@example.org'


def test_mailboxes_compare_without_case_and_literals_know_their_ip() -> None:
    assert parse_address("ADA@Example.org").key == "ada@example.org"
    assert parse_address("a@[192.0.2.1]").ip == IPv4Address("192.0.2.1")
    assert parse_address("a@[IPv6:2001:db8::1]").ip == IPv6Address("2001:db8::1")
    assert parse_address("a@example.org").ip is None


def test_a_domain_is_made_lower_case_a_labels() -> None:
    assert domain_to_ascii("Example.ORG") == "example.org"
    assert domain_to_ascii("münchen.example") == "xn--mnchen-3ya.example"
    with pytest.raises(AddressError):
        domain_to_ascii("")
    with pytest.raises(AddressError):
        domain_to_ascii("[192.0.2.1]")


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=0, max_size=40))
def test_any_local_part_that_parses_survives_writing_and_reading(local: str) -> None:
    written = Address(local, "example.org")
    assert parse_address(str(written)) == written


@given(st.binary(max_size=120))
def test_no_bytes_make_the_parser_do_anything_but_answer_or_refuse(raw: bytes) -> None:
    for parse in (parse_forward_path, parse_reverse_path):
        try:
            parse(b"<" + raw, utf8=True)
        except AddressError:
            pass


@pytest.mark.parametrize("host", ["192.0.2.1", "[192.0.2.1]", "2001:db8::1", "[IPv6:2001:db8::1]", "[ipv6:::1]", "[x]"])
def test_an_address_in_place_of_a_host_is_no_name(host: str) -> None:
    assert is_ip_address(host)


@pytest.mark.parametrize("host", ["mx.example.com", "ipv6.example", "1.example", "localhost", ""])
def test_a_name_is_no_address(host: str) -> None:
    assert not is_ip_address(host)
