"""Names in DANE for SMTP: where TLSA records are, and which names a certificate may have (RFC 7672 2.2, 3.2).

Nothing is looked up here. That an answer is secure (RFC 4033 5) is a fact that the caller has from a resolver which is
trusted to say so.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mailrail.core.dane.tlsa import TlsaRecord
from mailrail.core.smtp.address import is_ip_address


@dataclass(frozen=True, slots=True)
class Expansion:
    """Where the aliases of a name lead. Names are lower-case A-labels without the final dot."""

    name: str
    """As it was asked for."""
    expanded: str
    """The name at the end of all aliases; `name` itself without one."""
    secure: bool
    """The whole answer is, each alias on the way included."""
    alias_secure: bool = False
    """`name` is an alias and that record is secure, although what it leads to may not be. Where `secure` does not hold
    it takes a look-up of its own to know (RFC 7672 2.2.2)."""


@dataclass(frozen=True, slots=True)
class NextHopDomain:
    """The domain that mail goes to, as the look-up of its MX records gave it."""

    mx: Expansion
    """`secure`: the MX records, or that there are none, and each alias that leads to them."""
    implicit: bool = False
    """There are none: the domain is the host (RFC 5321 5.1)."""


@dataclass(frozen=True, slots=True)
class TlsaAnswer:
    """What came of asking for the TLSA records of one base domain. A look-up that failed is no answer (DANE-02)."""

    base: str
    secure: bool
    """Each alias of the TLSA name included (DANE-08); none of them changes the base domain."""
    records: tuple[TlsaRecord, ...]
    """None where the answer is NXDOMAIN or NODATA."""


def tlsa_name(base: str, port: int) -> str:
    """Where the TLSA records of a base domain are (RFC 7672 2.2.3); `port`: the one that is dialled."""
    return f"_{port}._tcp.{base}"


def base_candidates(host: Expansion) -> tuple[str, ...]:
    """The base domains that TLSA records may belong to, the best first, for a host whose addresses were looked up;
    none: TLSA records must not be asked for (DANE-04, DANE-07)."""
    if is_ip_address(host.name):
        return ()  # DANE-21
    if host.secure:
        # RFC 7672 2.2.2: the end of all aliases, then the name itself, never what lies between.
        return (host.name,) if host.expanded == host.name else (host.expanded, host.name)
    if host.alias_secure:
        return (host.name,)  # DANE-24: an alias in a signed zone that leads into an unsigned one
    return ()


def next_candidate(host: Expansion, asked: Sequence[TlsaAnswer]) -> str | None:
    """The base domain whose TLSA records are to be asked for next, after these answers; None: no more need be asked."""
    if found(asked) is not None:
        return None
    known = {answer.base for answer in asked}
    return next((base for base in base_candidates(host) if base not in known), None)


def found(asked: Iterable[TlsaAnswer]) -> TlsaAnswer | None:
    """The answer that counts; None: DANE does not apply to this host (RFC 7672 2.2, DANE-16). An insecure answer has
    nothing that can be believed, and is no error (DANE-24)."""
    return next((answer for answer in asked if answer.secure and answer.records), None)


def reference_names(base: str, host: Expansion, domain: NextHopDomain | None) -> tuple[str, ...]:
    """The names of which a certificate must have one where an issuer is named, the base domain first (DANE-12a, RFC
    7672 3.2.2). `domain`: None for a host that was configured, not found by MX."""
    names = [base]
    if domain is None or domain.implicit:
        # The host is what was asked for, so its own name is one of them though an alias of it is the base.
        names.append(host.name)
    elif domain.mx.secure:
        names += [domain.mx.name, domain.mx.expanded]
    # DANE-05: an insecure MX proves no tie between domain and host, so the host alone can be authenticated.
    return tuple(dict.fromkeys(names))


def is_named(presented: str, reference: str) -> bool:
    """Whether a DNS-ID of a certificate is this host (DANE-13, RFC 9525 6.3): both in lower case. A wildcard is the
    whole first label and stands for exactly one; two labels at least must follow it."""
    if not presented.startswith("*."):
        return presented == reference
    parent = presented[2:]
    return "*" not in parent and "." in parent and reference.partition(".")[2] == parent
