"""Our reader of PROXY headers beside aiosmtpd's: what one takes for a header, the other must.

Sections are those of proxy-protocol.txt (HAProxy). Where the two differ, `DIFFERENCES` says why, with the section.
"""

import asyncio
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

import pytest
from aiosmtpd.proxy_protocol import ProxyData, get_proxy
from hypothesis import given, settings
from hypothesis import strategies as st

from mailrail.core.smtp.proxy import SIGNATURE, V2_LIMIT, ProxyError, parse


@dataclass(frozen=True)
class Header:
    """A header that was accepted."""

    client: IPv4Address | IPv6Address | None
    """None: the connection's own address is to be used."""
    port: int
    length: int


def ours(wire: bytes) -> Header | None:
    """What our parser accepts; None if it refuses, or waits for more."""
    try:
        found = parse(wire)
    except ProxyError:
        return None
    return Header(found.client, found.port, found.length) if found is not None else None


class _Reader:
    """The octets as aiosmtpd reads them; it is never made to wait, so it needs no loop."""

    def __init__(self, wire: bytes) -> None:
        self.wire, self.at = wire, 0

    async def read(self, n: int = -1) -> bytes:
        found = self.wire[self.at : self.at + n]
        self.at += len(found)
        return found

    async def readexactly(self, n: int) -> bytes:
        if len(self.wire) - self.at < n:
            raise asyncio.IncompleteReadError(b"", n)
        return await self.read(n)

    async def readuntil(self, separator: bytes = b"\n") -> bytes:
        end = self.wire.find(separator, self.at)
        if end < 0:
            raise asyncio.IncompleteReadError(b"", None)
        return await self.read(end + len(separator) - self.at)


def theirs(wire: bytes) -> Header | None:
    """What aiosmtpd accepts; None if it refuses, or the octets end before it is done."""
    reader = _Reader(wire)
    try:
        get_proxy(reader).send(None)
    except StopIteration as stop:
        found: ProxyData = stop.value
    except asyncio.IncompleteReadError:
        return None
    if not found.valid:
        return None
    if found.command == 0 or not isinstance(found.src_addr, IPv4Address | IPv6Address):
        return Header(None, 0, reader.at)
    assert found.src_port is not None
    return Header(found.src_addr, found.src_port, reader.at)


# --- where they differ -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """A kind of octets that one of the two accepts alone."""

    reason: str
    we_accept: bool
    applies: Callable[[bytes], bool]
    example: bytes


def _version_2(wire: bytes) -> bool:
    return wire.startswith(SIGNATURE) and len(wire) >= 16


def _command(wire: bytes) -> int:
    return wire[12] & 15


def _line(wire: bytes) -> list[bytes]:
    """The words of a version 1 line."""
    return wire.partition(b"\r\n")[0].split(b" ")


def binary(command: int, family: int, payload: bytes, *, version: int = 2, length: int | None = None) -> bytes:
    """A version 2 header; `family` is the whole octet."""
    size = len(payload) if length is None else length
    return SIGNATURE + bytes([version << 4 | command, family]) + size.to_bytes(2, "big") + payload


DIFFERENCES = [
    Difference(
        "2.2: of LOCAL the block is discarded, including the family; aiosmtpd judges family and addresses all the same",
        True,
        lambda wire: _version_2(wire) and _command(wire) == 0,
        binary(0, 0xF1, b""),
    ),
    Difference(
        "2.1: of UNKNOWN all is ignored until CRLF; aiosmtpd stops at a bare LF, which ends nothing",
        True,
        lambda wire: wire.startswith(b"PROXY UNKNOWN ") and b"\n" in wire.partition(b"\r\n")[0],
        b"PROXY UNKNOWN a\nb\r\n",
    ),
    Difference(
        "2.2: UNSPEC may be accepted or rejected, and what is not TCP falls back to it: no SMTP client comes by UDP or "
        "a UNIX socket, so we reject",
        False,
        lambda wire: _version_2(wire) and _command(wire) == 1 and wire[13] not in (0x00, 0x01, 0x02, 0x11, 0x21),
        binary(1, 0x12, bytes(12)),
    ),
    Difference(
        "2.2 allows 65535 octets behind the length; we wait for no more than fits V2_LIMIT",
        False,
        lambda wire: _version_2(wire) and 16 + int.from_bytes(wire[14:16], "big") > V2_LIMIT,
        binary(1, 0x11, bytes(V2_LIMIT)),
    ),
    Difference(
        "2.1: only TCP4 and TCP6 are allowed; aiosmtpd takes any word from TCP to 4 or 6",
        False,
        lambda wire: _line(wire)[1:2] not in ([b"TCP4"], [b"TCP6"], [b"UNKNOWN"]),
        b"PROXY TCP44 192.0.2.1 192.0.2.2 1 2\r\n",
    ),
    Difference(
        "2.1: a port is a decimal integer; aiosmtpd takes what Python takes for one, with underscores and blanks",
        False,
        lambda wire: any(not word.isdigit() for word in _line(wire)[4:6]),
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1_0 2\r\n",
    ),
]


@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda difference: difference.reason[:3] + "-")
def test_each_listed_difference_is_still_there(difference: Difference) -> None:
    assert difference.applies(difference.example)
    accepted = (ours(difference.example) is not None, theirs(difference.example) is not None)
    assert accepted == (difference.we_accept, not difference.we_accept), difference.reason


# --- headers -----------------------------------------------------------------------------------------------------


def agree(wire: bytes) -> None:
    """Both accept the same header of these octets, or the difference has a listed reason."""
    we, they = ours(wire), theirs(wire)
    if we == they:
        return
    assert we is None or they is None, f"both accept, but different headers: {we} and {they}"
    assert any(one.we_accept is (we is not None) and one.applies(wire) for one in DIFFERENCES), (
        f"we: {we}, aiosmtpd: {they}"
    )


_ADDRESSES = ["192.0.2.1", "192.0.2.01", "1.2.3", "::", "FE80::1", "fe80::1%eth0", "::ffff:192.0.2.1", "[::1]", ""]
_PORTS = ["0", "65535", "65536", "00", "025", "-1", "+5", "1_0", "5\t", "", "123456"]
_SPOILED = [
    ["proxy", "PROXY ", ""],
    ["TCP4", "TCP6", "UNKNOWN", "UDP4", "TCP", "TCP44", "unknown", ""],
    _ADDRESSES,
    _ADDRESSES,
    _PORTS,
    _PORTS,
    ["\n", "\r", "\n\r\n", " \r\n", "\t\r\n", " more\r\n", " " * 60 + "\r\n", ""],
]
"""What stands in for each word of a line, and for its end."""
LINES = [
    ["PROXY", "TCP4", "192.0.2.1", "198.51.100.1", "5000", "25", "\r\n"],
    ["PROXY", "TCP6", "2001:db8::1", "2001:DB8:0:0:0:0:0:0002", "0", "65535", "\r\n"],
    ["PROXY", "UNKNOWN", "a", "b", "c", "d", "\r\n"],
]


def line(words: Sequence[str]) -> bytes:
    """A version 1 header of these words; the last is its end."""
    return (" ".join(words[:-1]) + words[-1]).encode()


def test_lines_with_one_or_two_spoiled_words_are_read_as_aiosmtpd_reads_them_PRX_01() -> None:
    for words in LINES:
        agree(line(words))
        for one, other in itertools.combinations_with_replacement(range(len(words)), 2):
            for a, b in itertools.product(_SPOILED[one], _SPOILED[other]):
                spoiled = [*words]
                spoiled[one], spoiled[other] = a, b
                agree(line(spoiled) + b"EHLO client.example\r\n")


def test_every_version_command_and_family_is_read_as_aiosmtpd_reads_it_PRX_01_PRX_02() -> None:
    sizes = (0, 11, 12, 35, 36, 215, 216, 230)
    for version, command, family in itertools.product((1, 2, 3), (0, 1, 2, 15), range(256)):
        for size in sizes if version == 2 else (12,):
            agree(binary(command, family, bytes(range(size)), version=version) + b"EHLO client.example\r\n")


_HEADERS = [
    *map(line, LINES),
    b"PROXY UNKNOWN\r\n",
    binary(0, 0x00, b""),
    binary(1, 0x00, b"\x03\x00\x04abcd"),
    binary(1, 0x11, bytes(range(1, 13))),
    binary(1, 0x21, bytes(range(1, 37)) + b"\x04\x00\x01x"),
]


@settings(max_examples=200)
@given(st.sampled_from(_HEADERS), st.data())
def test_headers_with_a_changed_lost_or_added_octet_are_read_as_aiosmtpd_reads_them_PRX_01(
    header: bytes, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(header) - 1))
    octet = data.draw(st.one_of(st.binary(max_size=1), st.sampled_from([b"\r", b"\n", b" ", b"0", b"%"])))
    agree(header[:at] + octet + header[at + data.draw(st.integers(0, 1)) :] + b"\x16\x03\x01")
    agree(header[:at])


@given(st.text("ab01:. \r\n", max_size=110))
def test_lines_of_unknown_are_read_as_aiosmtpd_reads_them_PRX_01(words: str) -> None:
    agree(f"PROXY UNKNOWN{words}\r\n".encode())
