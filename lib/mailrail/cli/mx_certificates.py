"""What the MX hosts of a domain show: their addresses, TLSA records, and the certificates behind STARTTLS.

Nothing is sent but EHLO and STARTTLS. A stranger names the hosts and answers as he likes: hosts, lines and time
are bounded, and only the Internet is dialled for names of strangers (SOUT-19).
"""

import asyncio
import contextlib
import ssl
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Final

from mailrail.core.dane.names import Expansion, NextHopDomain, TlsaAnswer, next_candidate, reference_names, tlsa_name
from mailrail.core.dnscheck.served import MOST_HOSTS, MxHost
from mailrail.core.outbound.targets import Mx, NoHosts, may_be_dialled, mx_hosts
from mailrail.core.smtp.address import address_literal
from mailrail.kit.resolver import DnsRecords, DnsResolver, LookupFailed, NoSuchDomain
from mailrail_outbound.tls import TlsStream, client_context, in_words
from mailrail_outbound.tls_policy.dane import tlsa_answer

_WITHIN: Final = 20.0
"""Seconds for all that is said to one address."""
_LINE: Final = 4096  # octets of a line of a reply
_MOST_LINES: Final = 100  # of one reply
_SHOWN: Final = 200  # characters of a reply


class NotShown(Exception):
    """A host showed no certificate; the text says why."""


async def look_at_hosts(
    domain: str,
    resolver: DnsResolver,
    *,
    port: int,
    addresses: int,
    networks: tuple[IPv4Network | IPv6Network, ...] | None,
) -> list[MxHost]:
    """Every MX host of a domain, the best first, MOST_HOSTS at most. Never raises: a domain whose hosts are not known
    has none. `addresses`: of a host that are dialled at most. `networks`: besides the Internet; None: any address."""
    try:
        mx = await resolver.mx_answer(domain)
    except (LookupFailed, NoSuchDomain):
        return []
    hosts = mx_hosts(domain, mx.records, own_names=frozenset(), random=lambda: 0.0)
    if isinstance(hosts, NoHosts):
        return []
    looks = (_look_at(domain, mx, host, resolver, port, addresses, networks) for host in hosts.names[:MOST_HOSTS])
    return await asyncio.gather(*looks)


async def _look_at(
    domain: str,
    mx: DnsRecords[Mx],
    host: str,
    resolver: DnsResolver,
    port: int,
    most: int,
    networks: tuple[IPv4Network | IPv6Network, ...] | None,
) -> MxHost:
    try:
        found = await resolver.address_answer(host, ("ipv4", "ipv6"))
        # Whether it is proven is told beside what is there: an unsigned zone may have records, too.
        expansion = Expansion(host, found.name, secure=True)
        asked: list[TlsaAnswer] = []
        while (base := next_candidate(expansion, asked)) is not None:
            asked.append(await _tlsa(resolver, base, port))
    except NoSuchDomain:
        return MxHost(host, host, (host,))
    except LookupFailed as error:
        return MxHost(host, host, (host,), trouble=str(error))
    answer = next((each for each in asked if each.records), asked[-1])
    proven = (mx.secure and found.secure and answer.secure) if resolver.trusted else None
    next_hop = NextHopDomain(Expansion(domain, mx.name, secure=True), implicit=not mx.records)
    names = reference_names(answer.base, expansion, next_hop)
    chain, unseen = await _shown(answer.base, found.records[:most], port, networks)
    return MxHost(host, answer.base, names, found.records, answer.records, proven, chain=chain, unseen=unseen)


async def _tlsa(resolver: DnsResolver, base: str, port: int) -> TlsaAnswer:
    """Whether they are secure or not. Raises LookupFailed."""
    try:
        return tlsa_answer(base, await resolver.answer(tlsa_name(base, port), "TLSA"))
    except NoSuchDomain as error:
        return tlsa_answer(base, error)


async def _shown(
    name: str, addresses: Sequence[str], port: int, networks: tuple[IPv4Network | IPv6Network, ...] | None
) -> tuple[tuple[bytes, ...], str]:
    """The certificates of the first address that shows any, or why none does."""
    reasons = []
    for address in addresses:
        if networks is not None and not may_be_dialled(address, networks):
            reasons.append(f"{address} is no address of the Internet")
            continue
        try:
            return await certificates(name, address, port), ""
        except NotShown as error:
            reasons.append(f"{address} port {port}: {error}")
    return (), "; ".join(reasons)


async def certificates(name: str, address: str, port: int) -> tuple[bytes, ...]:
    """What a server presents for a name (SNI), in DER, its own certificate first. Raises NotShown."""
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(_WITHIN):
            reader, writer = await asyncio.open_connection(address, port, limit=_LINE)
            await _expect(reader, 220)
            source = ip_address(writer.get_extra_info("sockname")[0].partition("%")[0])
            writer.write(f"EHLO {address_literal(source)}\r\n".encode())
            offered = await _expect(reader, 250)
            if not any(line.upper().split()[:1] == ["STARTTLS"] for line in offered[1:]):
                raise NotShown("it does not offer STARTTLS")
            writer.write(b"STARTTLS\r\n")
            await _expect(reader, 220)
            return await _handshake(name, reader, writer)
    except TimeoutError:
        raise NotShown(f"no answer within {_WITHIN:.0f} s") from None
    except ssl.SSLError as error:
        raise NotShown(f"TLS failed: {in_words(error)}") from error
    except OSError as error:
        raise NotShown(error.strerror or str(error) or type(error).__name__) from error
    finally:
        if writer is not None:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def _handshake(name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[bytes, ...]:
    """Raises NotShown, ssl.SSLError."""
    tls = TlsStream(client_context(verify=False), name, verified_name=None)
    done = tls.handshake()
    while not done:
        writer.write(tls.outgoing())
        data = await reader.read(_LINE)
        if not data:
            raise NotShown("it closed the connection within the TLS handshake")
        done = tls.handshake(data)
    writer.write(tls.outgoing())
    return tls.chain()


async def _expect(reader: asyncio.StreamReader, code: int) -> list[str]:
    """The lines of a reply with this code, without it. Raises NotShown."""
    lines: list[str] = []
    while len(lines) < _MOST_LINES:
        try:
            line = (await reader.readline()).decode("utf-8", "replace").rstrip("\r\n")
        except ValueError:
            raise NotShown(f"it said a line of more than {_LINE} octets") from None
        if not line:
            raise NotShown("it closed the connection")
        if line[:3] != str(code):
            raise NotShown(f"it answered {line[:_SHOWN]}")
        lines.append(line[4:])
        if line[3:4] != "-":
            return lines
    raise NotShown(f"its reply has more than {_MOST_LINES} lines")
