"""Shards and sites: the two ways in which the queue groups recipients (message-life SHD-01, SHD-03).

A *shard* says which queue replica owns a recipient: CRC-32 of its domain modulo 256, fixed for v1 because the
number is stored with every recipient. A *site* says which window and which backoff an attempt falls under. The two
are independent: a shard follows from the address alone, a site from the address and from where routing sends it.
"""

import zlib
from dataclasses import dataclass
from enum import StrEnum

from mailrail.core.revision.revision import ObjectRef, Transport, TransportKind

SHARDS = 256
"""Number of shards of version 1 (SHD-01)."""

_BY_TRANSPORT = frozenset({TransportKind.SMTP, TransportKind.SUBMISSION, TransportKind.SUBMISSIONS, TransportKind.LMTP})


def shard(domain: str) -> int:
    """The shard (0..255) of a recipient domain, given as lower-case A-labels or as an address literal (SHD-01).

    Case is folded here as well, since a shard computed from `Example.ORG` would put one domain under two owners.
    """
    return zlib.crc32(domain.lower().encode("utf-8", "surrogateescape")) % SHARDS


class SiteKind(StrEnum):
    """What a site stands for."""

    DOMAIN = "domain"  # direct delivery to the MX of one recipient domain
    PROXY = "proxy"  # one recipient domain through a named direct or SOCKS transport
    TRANSPORT = "transport"  # a smarthost, submission or LMTP server: one next hop for all domains
    LOCAL = "local"  # decided here, nothing is dialled: `fail` transports
    MAILBOX = "mailbox"  # the built-in mailbox
    MISSING = "missing"  # waits for a transport that does not exist (ADM-03 wakes it by this key)


@dataclass(frozen=True, slots=True)
class Site:
    """Carrier of a window and a backoff, never of routing (SHD-03).

    Direct delivery through a transport of its own (`direct` with source addresses, `socks`) is another site than plain
    direct delivery to the same domain: other addresses dial, so a refusal of the one says nothing about the other, and
    a route that switches to a proxy from the 4th attempt on must not inherit the backoff that made it necessary.
    """

    kind: SiteKind
    transport: ObjectRef | None = None
    domain: str = ""

    @property
    def key(self) -> str:
        """The text that is stored and compared; unique per site."""
        name = f"{self.transport.namespace}/{self.transport.name}" if self.transport else ""
        return ":".join(part for part in (self.kind.value, name, self.domain) if part)


MAILBOX = Site(SiteKind.MAILBOX)
"""The one site of all built-in mailboxes: no window, no backoff."""


def site_of(transport: Transport | None, recipient_domain: str) -> Site:
    """The site of an attempt by `transport` (None = plain direct delivery) to `recipient_domain` (SHD-03)."""
    domain = recipient_domain.lower()
    if transport is None:
        return Site(SiteKind.DOMAIN, None, domain)
    if transport.kind in _BY_TRANSPORT:
        return Site(SiteKind.TRANSPORT, transport.ref)
    if transport.kind is TransportKind.FAIL:
        return Site(SiteKind.LOCAL, transport.ref)
    return Site(SiteKind.PROXY, transport.ref, domain)


def site_of_missing(transport: ObjectRef | None, recipient_domain: str) -> Site:
    """The site under which recipients wait for a transport, or for a domain of ours, that is not there (ADM-03)."""
    return Site(SiteKind.MISSING, transport, "" if transport else recipient_domain.lower())
