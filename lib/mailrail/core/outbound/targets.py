"""Where mail for a domain is dialled: MX hosts in order, addresses in order, and the key that connections go by.

RFC 5321 5.1, RFC 7505 (null MX), standards SOUT-01, SOUT-02, SOUT-03, SOUT-04, SOUT-05; address order minds
greylisting (reference F2): a server that answered 451 once knows the address that we came from and went to, so the
second attempt repeats it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import NamedTuple

from mailrail.core.lookups import NAME_LIMIT
from mailrail.core.revision.revision import TlsMode
from mailrail.core.smtp.answer import Trouble
from mailrail.core.smtp.client import ClientProtocol

_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052 2.1
_UNICAST = IPv6Network("2000::/3")  # all that IANA gives to networks of the Internet (RFC 4291 2.4)
MAX_HOSTS = 10
"""MX hosts considered in one attempt. RFC 5321 5.1 asks for at least two addresses; endless lists cost us time."""
MAX_ADDRESSES = 8
"""Addresses of one host that are dialled in one attempt."""
MAX_SESSIONS = 2
"""Addresses of one host that may refuse or drop a session in one attempt: each may take minutes."""


@dataclass(frozen=True, slots=True, order=True)
class Mx:
    """One MX record."""

    preference: int
    host: str
    """Lower-case A-labels without the final dot; empty for the root, as null MX says it. Never the name that an alias
    leads to (STS-08a)."""


@dataclass(frozen=True, slots=True)
class HostList:
    """The hosts to try, best first."""

    names: tuple[str, ...]
    implicit: bool = False
    """There was no MX record: the domain itself is the host."""


@dataclass(frozen=True, slots=True)
class NoHosts:
    """Nothing can be dialled, and why."""

    trouble: Trouble
    detail: str


def mx_hosts(
    domain: str, records: Sequence[Mx], *, own_names: frozenset[str], random: Callable[[], float]
) -> HostList | NoHosts:
    """The hosts of a domain whose MX lookup succeeded, perhaps with no records.

    `own_names` are our host names in lower case; `random` gives numbers in 0..1 for hosts of equal preference.
    """
    if not records:
        # SOUT-01: implicit MX. A domain that is our own host name would come straight back.
        if domain in own_names:
            return NoHosts(Trouble.LOOP, f"{domain} has no MX record and is this system")
        return HostList((domain,), implicit=True)
    if all(not mx.host for mx in records):
        return NoHosts(Trouble.NULL_MX, f"{domain} has a null MX record (RFC 7505)")  # SOUT-02
    # A root target among others is the domain's error (RFC 7505 3); the others are used.
    usable = [mx for mx in records if _plausible(mx.host)]
    ours = min((mx.preference for mx in usable if mx.host in own_names), default=None)
    if ours is not None:
        # SOUT-04: a host whose preference is not better than ours would hand the message back to us.
        usable = [mx for mx in usable if mx.preference < ours]
        if not usable:
            return NoHosts(Trouble.LOOP, f"the best MX of {domain} is this system")
    if not usable:
        return NoHosts(Trouble.NO_ADDRESS, f"no MX record of {domain} names a host")
    best: dict[str, int] = {}
    for mx in usable:
        best[mx.host] = min(mx.preference, best.get(mx.host, mx.preference))
    ranked = sorted((preference, random(), host) for host, preference in best.items())
    return HostList(tuple(host for _, _, host in ranked[:MAX_HOSTS]))


@lru_cache(maxsize=4096)
def is_public(address: str) -> bool:
    """Whether an address is one of the Internet: not loopback, link-local, private, multicast or reserved, nor such an
    IPv4 address inside an IPv6 one."""
    ip = ip_address(address)
    if isinstance(ip, IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo is not None else None)
        if inner is None and ip in _NAT64:
            inner = IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return inner.is_global and not inner.is_multicast
        if ip not in _UNICAST:
            # ::127.0.0.1, site-local fec0::/10, local NAT64: reserved or given up, not private by Python's tables
            return False
    return ip.is_global and not ip.is_multicast


def may_be_dialled(address: str, private_networks: tuple[IPv4Network | IPv6Network, ...]) -> bool:
    """Whether an address that a stranger's names lead to may be dialled, for mail to a recipient's domain (SOUT-19) or
    for the policy of one (STS-26a): those inside our own networks only where `private_networks` names them. Asked of
    the address that is dialled next, so that no second look-up can put another one in its place."""
    return is_public(address) or any(ip_address(address) in network for network in private_networks)


def _plausible(host: str) -> bool:
    # SOUT-05: an address in place of a name is a common mistake that RFC 5321 5.1 does not let us follow.
    if not host or len(host) > NAME_LIMIT or any(not label or len(label) > 63 for label in host.split(".")):
        return False
    try:
        ip_address(host)
    except ValueError:
        return True
    return False


def address_order(addresses: Sequence[str], dialled: Sequence[str]) -> tuple[str, ...]:
    """Addresses of one host, best first: `addresses` in resolver order, `dialled` at earlier attempts, oldest first.

    First attempt: resolver order. Later: the family that was not dialled last comes first; inside a family that was
    dialled exactly once, the address that was dialled (greylisting); else resolver order (reference F2).
    """
    if len(addresses) == 1:
        return tuple(addresses)
    unique = list(dict.fromkeys(addresses))
    if not dialled:
        return tuple(unique[:MAX_ADDRESSES])
    last = _version(dialled[-1])
    ordered: list[str] = []
    for version in (10 - last, last):  # 4 and 6
        family = [a for a in unique if _version(a) == version]
        before = [d for d in dialled if _version(d) == version]
        if len(before) == 1 and before[0] in family:
            family.remove(before[0])
            family.insert(0, before[0])
        ordered += family
    return tuple(ordered[:MAX_ADDRESSES])


def _version(address: str) -> int:
    return 6 if ":" in address else 4


class ConnectionKey(NamedTuple):
    """What must be equal for a connection to be used again (design 4, Deliver).

    `transport` is the digest of the transport, so whatever it says, credentials included, is part of the key; empty
    for plain direct delivery. For direct delivery `host` is the MX host: domains that share it and need the same TLS
    share its connections.
    """

    transport: str
    host: str
    port: int
    protocol: ClientProtocol
    hello_name: str
    source: str
    """Local addresses bound, or the proxy; empty when neither."""
    identity: str
    """SASL user name; empty without."""
    tls: TlsMode
    implicit_tls: bool
    verified: str
    """The name that the certificate was checked against; empty when it was not."""
    matched: str = ""
    """The TLSA records, and names, that the certificates had to match (`DaneDemand.matching`, RTLS-28); empty: none."""
    compared: str = ""
    """Those that they were compared with, whatever came of it: for reports (RTLS-22)."""
