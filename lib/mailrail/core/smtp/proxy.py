"""The PROXY protocol, versions 1 and 2: what a load balancer says about a client before it speaks (PRX-01..04).

aiosmtpd has a parser, but it pulls from an asyncio stream, octet by octet; a listener that parses in its read callback
needs one that takes what has come and says whether that is a header, part of one, or none. This one is bounded: at most
107 octets (version 1) or `V2_LIMIT` (version 2) are ever waited for. What follows the header may be the first octets of
a TLS handshake, which cannot be given back to a socket, so `may_read` tells how much can be read without touching it.
"""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

V1_LIMIT: Final = 107
"""Octets of the longest version 1 line with its end."""
V2_LIMIT: Final = 4096
"""Octets of a version 2 header with its TLVs. The format allows 65551; balancers send some hundred."""
_SHORTEST: Final = len(b"PROXY UNKNOWN\r\n")
SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"

_UNSPECIFIED: Final = 0
_INET, _INET6, _UNIX = 1, 2, 3
_STREAM, _DATAGRAM = 1, 2


class ProxyError(ValueError):
    """What came is no PROXY header: the connection is closed without a word (PRX-01)."""


@dataclass(frozen=True, slots=True)
class Proxied:
    """A whole header. `client` is None where the connection's own address is to be used (LOCAL, UNKNOWN; PRX-02)."""

    client: IPv4Address | IPv6Address | None
    port: int
    length: int
    """Octets that the header took; what follows is the client's."""


def parse(data: bytes) -> Proxied | None:
    """Read a header at the start of `data`; None while more octets are needed. Raises ProxyError."""
    if data[:1] == b"\r":
        return _version_2(data)
    if not data.startswith(b"PROXY "[: len(data)]):
        raise ProxyError("no PROXY header")
    return _version_1(data)


def may_read(data: bytes) -> int:
    """How many octets can be read next without reading past the header that `data` begins; at least 1."""
    if len(data) < _SHORTEST:
        return _SHORTEST - len(data)
    if data[:1] != b"\r" or len(data) < 16:
        return 1  # the end of a line is found by looking at each octet
    return max(1, min(16 + int.from_bytes(data[14:16], "big"), V2_LIMIT) - len(data))


def _version_1(data: bytes) -> Proxied | None:
    end = data.find(b"\r\n", 0, V1_LIMIT)
    if end < 0:
        if len(data) >= V1_LIMIT:
            raise ProxyError("version 1 line has no end")
        return None
    words = data[:end].split(b" ")
    if len(words) >= 2 and words[1] == b"UNKNOWN":
        return Proxied(None, 0, end + 2)
    if len(words) != 6 or words[1] not in (b"TCP4", b"TCP6"):
        raise ProxyError("version 1 line is malformed")
    family = IPv4Address if words[1] == b"TCP4" else IPv6Address
    try:
        client, _ = family(words[2].decode("ascii")), family(words[3].decode("ascii"))
    except ValueError as error:
        raise ProxyError("version 1 line has a bad address") from error
    # Python reads a zone behind a percent sign, and a zone may be any text. The format has none (section 2.1).
    if b"%" in words[2] + words[3]:
        raise ProxyError("version 1 line has a bad address")
    for word in words[4:]:
        if not word.isdigit() or len(word) > 5 or int(word) > 65535 or (word[:1] == b"0" and word != b"0"):
            raise ProxyError("version 1 line has a bad port")
    return Proxied(client, int(words[4]), end + 2)


def _version_2(data: bytes) -> Proxied | None:
    if not data.startswith(SIGNATURE[: len(data)]):
        raise ProxyError("no PROXY header")
    if len(data) < 16:
        return None
    version, command = data[12] >> 4, data[12] & 15
    family, transport = data[13] >> 4, data[13] & 15
    length = int.from_bytes(data[14:16], "big")
    if version != 2 or command > 1:
        raise ProxyError("version 2 header has an unknown version or command")
    if 16 + length > V2_LIMIT:
        raise ProxyError("version 2 header is too long")
    if len(data) < 16 + length:
        return None
    if command == 0:
        return Proxied(None, 0, 16 + length)
    if family > _UNIX or transport > _DATAGRAM:
        raise ProxyError("version 2 header has an unknown family or transport")
    if family == _UNSPECIFIED:
        return Proxied(None, 0, 16 + length)
    if transport != _STREAM or family not in (_INET, _INET6):
        raise ProxyError("version 2 header is not about a TCP connection")
    size = 4 if family == _INET else 16
    if length < 2 * size + 4:
        raise ProxyError("version 2 header is shorter than its addresses")
    raw = data[16 : 16 + size]
    port = int.from_bytes(data[16 + 2 * size : 18 + 2 * size], "big")
    return Proxied(IPv4Address(raw) if family == _INET else IPv6Address(raw), port, 16 + length)
