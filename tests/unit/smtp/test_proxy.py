"""The PROXY protocol: PRX-01..04."""

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.smtp.proxy import SIGNATURE, Proxied, ProxyError, may_read, parse


def version_2(command: int, family: int, payload: bytes, *, transport: int = 1, version: int = 2) -> bytes:
    return (
        SIGNATURE + bytes([version << 4 | command, family << 4 | transport]) + len(payload).to_bytes(2, "big") + payload
    )


def addresses(client: str, server: str) -> bytes:
    return ip_address(client).packed + ip_address(server).packed + (5000).to_bytes(2, "big") + (25).to_bytes(2, "big")


GOOD = [
    (b"PROXY TCP4 192.0.2.1 198.51.100.1 5000 25\r\n", IPv4Address("192.0.2.1")),
    (b"PROXY TCP6 2001:db8::1 2001:db8::2 5000 25\r\n", IPv6Address("2001:db8::1")),
    (b"PROXY UNKNOWN\r\n", None),
    (b"PROXY UNKNOWN 1 2 3 4\r\n", None),
    (version_2(1, 1, addresses("192.0.2.1", "198.51.100.1")), IPv4Address("192.0.2.1")),
    (version_2(1, 1, addresses("192.0.2.1", "198.51.100.1") + b"\x03\x00\x04abcd"), IPv4Address("192.0.2.1")),
    (version_2(1, 2, addresses("2001:db8::1", "2001:db8::2")), IPv6Address("2001:db8::1")),
    (version_2(0, 0, b"", transport=0), None),
    (version_2(0, 1, addresses("192.0.2.1", "198.51.100.1")), None),
    (version_2(1, 0, b"", transport=0), None),
]


@pytest.mark.parametrize(("header", "client"), GOOD)
def test_a_header_is_read_whole_and_nothing_after_it_PRX_02(header: bytes, client: object) -> None:
    found = parse(header + b"EHLO c\r\n")
    assert isinstance(found, Proxied)
    assert (found.client, found.length) == (client, len(header))
    for cut in range(len(header)):
        assert parse(header[:cut]) is None


@pytest.mark.parametrize(("header", "client"), GOOD)
def test_reading_as_much_as_is_said_never_passes_the_header_PRX_03(header: bytes, client: object) -> None:
    stream = header + b"\x16\x03\x01 the client's first TLS record"
    have = b""
    while parse(have) is None:
        have = stream[: len(have) + may_read(have)]
    assert have == header


@pytest.mark.parametrize(
    "wire",
    [
        b"EHLO client.example\r\n",
        b"proxy TCP4 192.0.2.1 198.51.100.1 5000 25\r\n",
        b"PROXY\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.1 5000\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.1 5000 25 26\r\n",
        b"PROXY TCP4 2001:db8::1 2001:db8::2 5000 25\r\n",
        b"PROXY TCP6 192.0.2.1 198.51.100.1 5000 25\r\n",
        b"PROXY TCP6 fe80::1%a)(b 2001:db8::2 5000 25\r\n",
        b"PROXY TCP6 2001:db8::1 fe80::1%eth0 5000 25\r\n",
        b"PROXY UDP4 192.0.2.1 198.51.100.1 5000 25\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.1 65536 25\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.1 05000 25\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.1 -1 25\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.1 5000 25" + b" " * 107,
        b"PROXY TCP4 \xff 198.51.100.1 5000 25\r\n",
        b"\r\n\r\n\x00\r\nQUIX\n",
        version_2(1, 1, addresses("192.0.2.1", "198.51.100.1"), version=1),
        version_2(2, 1, addresses("192.0.2.1", "198.51.100.1")),
        version_2(1, 1, addresses("192.0.2.1", "198.51.100.1"), transport=2),
        version_2(1, 3, b"/" * 216),
        version_2(1, 4, b""),
        version_2(1, 0, b"", transport=3),
        version_2(1, 2, addresses("192.0.2.1", "198.51.100.1")),
        version_2(1, 1, b"\x00" * 4081),
    ],
)
def test_what_is_no_header_is_refused_PRX_01(wire: bytes) -> None:
    with pytest.raises(ProxyError):
        parse(wire)


@given(st.binary(max_size=300))
def test_any_octets_are_a_header_part_of_one_or_none(wire: bytes) -> None:
    assert may_read(wire) >= 1
    try:
        found = parse(wire)
    except ProxyError:
        return
    assert found is None or 0 < found.length <= len(wire)
