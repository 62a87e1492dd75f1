"""Whether the certificates that a server presented match its TLSA records (RFC 7671 5, RFC 7672 3).

A chain is what its server sent: in any order, with certificates that belong to no chain, made to be slow to read. So
certificates, octets, signatures and steps of the search are all bounded, and what lies beyond a bound matches nothing.

`cryptography` has a verifier of its own. It follows the rules of browsers for public authorities, which issuers that
only a TLSA record names often do not, and it knows no public key as an anchor: the search is ours, the arithmetic its.
"""

import datetime
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

from mailrail.core.dane.demand import DaneDemand
from mailrail.core.dane.names import is_named
from mailrail.core.dane.reading import Link, public_key
from mailrail.core.dane.tlsa import Matching, Selector, TlsaRecord, Usage
from mailrail.core.lookups import NAME_LIMIT
from mailrail.core.tlsrpt.result_type import NOT_YET_VALID, TLSA_MISMATCH, ResultType, TlsFault

MOST_CERTIFICATES: Final = 20
"""Certificates of a chain that are looked at; real ones have up to five."""
MOST_OCTETS: Final = 102_400
"""Octets of a chain; OpenSSL takes no more in a handshake."""
MOST_SIGNATURES: Final = 32
"""Signatures that are verified for one chain; real ones have up to five. One takes up to 2 ms (binary curves)."""
MOST_STEPS: Final = 1000
"""Certificates that are considered as somebody's issuer, each as often as the search comes by."""
_MOST_NAMES = 4  # of a certificate that are told

_DIGESTS: Final[dict[int, str]] = {Matching.SHA256: "sha256", Matching.SHA512: "sha512"}


@dataclass(frozen=True, slots=True)
class DaneVerdict:
    """What came of the comparison: a record that matches, or a fault."""

    record: TlsaRecord | None
    """One that matches; None: none does, and the server is not authenticated."""
    fault: TlsFault | None
    """Why none does."""
    until: datetime.datetime | None = None
    """When the first certificate expires that the match rests upon; None: on none whose time counts (DANE-10)."""

    @property
    def matched(self) -> bool:
        """Whether the server is authenticated."""
        return self.record is not None


def verify(chain: Sequence[bytes], demand: DaneDemand, now: datetime.datetime) -> DaneVerdict:
    """Compare what a server presented, certificates in DER with its own first, with what DANE asks. `now`: aware."""
    if not chain:
        return _none(ResultType.VALIDATION_FAILURE, "no-certificate", "the server presented no certificate")
    if sum(map(len, chain)) > MOST_OCTETS:
        words = f"the server's certificates have more than {MOST_OCTETS} octets"
        return _none(ResultType.VALIDATION_FAILURE, "chain-too-large", words)
    leaf = Link(chain[0])
    # DANE-19: one match is enough; those that name the server's own certificate ask least.
    own = [each for each in demand.records if each.usage == Usage.DANE_EE]
    for record in own:
        if _is_it(record, leaf):
            return DaneVerdict(record, None)  # DANE-10: names, dates and issuers are the TLSA record's business now
    issuers = [each for each in demand.records if each.usage == Usage.DANE_TA]
    if not issuers:
        return _mismatch(demand, "the server's certificate")
    return _Search(leaf, chain[1:MOST_CERTIFICATES], issuers, demand, now).verdict()


def fault_of_name(der: bytes, name: str) -> TlsFault | None:
    """What is wrong with the names of a server's certificate that must have this one (DANE-13); None: nothing."""
    return _fault_of_names(Link(der), (name,))


class _Search:
    """For a chain from the server's certificate to an issuer that a record names (DANE-11)."""

    def __init__(
        self,
        leaf: Link,
        others: Iterable[bytes],
        records: Sequence[TlsaRecord],
        demand: DaneDemand,
        now: datetime.datetime,
    ) -> None:
        self._leaf = leaf
        self._demand = demand
        self._now = now
        self._signatures = MOST_SIGNATURES
        self._steps = MOST_STEPS
        self._signed: dict[tuple[bytes, bytes], bool] = {}
        self._forbidden: dict[bytes, str | None] = {}
        self._fault: TlsFault | None = None
        links = [Link(der) for der in dict.fromkeys(others) if der != leaf.der]
        self._anchors: dict[bytes, TlsaRecord] = {}
        """Certificates that a record names."""
        self._keys: list[tuple[CertificatePublicKeyTypes, TlsaRecord]] = []
        """Keys of issuers that records have whole: they vouch though no certificate has them."""
        for record in records:
            for link in links:
                if _is_it(record, link):
                    self._anchors.setdefault(link.der, record)
            if record.matching != Matching.FULL:
                continue
            if record.selector == Selector.CERTIFICATE and record.data != leaf.der:
                # A certificate written out in the record need not be sent (RFC 7671 5.2.2).
                self._anchors.setdefault(record.data, record)
                links.append(Link(record.data))
            elif record.selector == Selector.PUBLIC_KEY and (key := public_key(record.data)) is not None:
                self._keys.append((key, record))
        # Issuers that a record names come first, so that the shortest way to one is found.
        unique = {link.der: link for link in links if not link.unreadable}
        self._links = sorted(unique.values(), key=lambda link: link.der not in self._anchors)

    def verdict(self) -> DaneVerdict:
        """The outcome."""
        if not self._anchors and not self._keys:
            return _mismatch(self._demand, "a certificate that the server presented")
        fault = self._fault_of_leaf()
        if fault is None:
            found = self._climb([self._leaf])
            if found is not None:
                return found
            fault = self._fault or TlsFault(
                ResultType.CERTIFICATE_NOT_TRUSTED,
                "no-chain",
                f"no chain leads from the server's certificate to the issuer that the TLSA records of "
                f"{self._demand.base} name",
            )
        return DaneVerdict(None, fault)

    def _fault_of_leaf(self) -> TlsFault | None:
        leaf = self._leaf
        if leaf.unreadable:
            return _untrusted("unreadable-certificate", "the server's certificate cannot be read")
        fault = self._fault_of_time(leaf, "the server's certificate")
        if fault is not None:
            return fault
        if leaf.why_no_server is not None:
            return _untrusted("unfit-certificate", f"the server's certificate is refused: {leaf.why_no_server}")
        return _fault_of_names(leaf, self._demand.names)

    def _fault_of_time(self, link: Link, what: str) -> TlsFault | None:
        assert link.life is not None
        begins, ends = link.life
        if self._now > ends:
            words = f"{what} expired at {ends:%Y-%m-%d %H:%M} UTC"
            return TlsFault(ResultType.CERTIFICATE_EXPIRED, "certificate-expired", words)
        if self._now < begins:
            words = f"{what} is not valid before {begins:%Y-%m-%d %H:%M} UTC"
            return TlsFault(ResultType.VALIDATION_FAILURE, NOT_YET_VALID, words)
        return None

    def _climb(self, path: list[Link]) -> DaneVerdict | None:
        """Go on from the last certificate of a path, each of which signed the one before it."""
        last = path[-1]
        if last.der in self._anchors:  # never the server's own: it is no issuer
            return self._arrived(path, self._anchors[last.der])
        for key, record in self._keys:
            if self._vouches(last, key, record.data):
                verdict = self._arrived(path, record)
                if verdict is not None:
                    return verdict
        assert last.outline is not None
        for link in self._links:
            if link.outline is None or link.outline.subject != last.outline.issuer or link in path:
                continue
            self._steps -= 1
            if self._steps < 0:
                self._note(_untrusted("chain-too-complex", "the server's certificates make too many chains to try"))
                return None
            fault = self._fault_of_issuer(link, path)
            if fault is not None:
                self._note(fault)
            elif link.key is not None and self._vouches(last, link.key, link.der):
                verdict = self._climb([*path, link])
                if verdict is not None:
                    return verdict
        return None

    def _fault_of_issuer(self, link: Link, path: list[Link]) -> TlsFault | None:
        fault = self._fault_of_time(link, "a certificate of an issuer")
        if fault is not None:
            return fault
        if link.why_no_issuer is not None:
            return _untrusted("unfit-issuer", f"a certificate of an issuer is refused: {link.why_no_issuer}")
        # RFC 5280 4.2.1.9: those that were issued by themselves do not count.
        if link.path_length is not None and sum(not each.issued_by_itself for each in path[1:]) > link.path_length:
            return _untrusted("path-too-long", "an issuer may not have so many issuers below it")
        return None

    def _arrived(self, path: list[Link], record: TlsaRecord) -> DaneVerdict | None:
        """The path leads to an issuer that a record names: a match, if all of its issuers allow these names."""
        for link in path[1:]:
            if (why := self._why_forbidden(link)) is not None:
                self._note(_untrusted("name-constraints", f"an issuer may not vouch for this server: {why}"))
                return None
        return DaneVerdict(record, None, min(link.life[1] for link in path if link.life is not None))

    def _why_forbidden(self, issuer: Link) -> str | None:
        """Why an issuer may not vouch for the names of the server's certificate (RFC 5280 4.2.1.10)."""
        if issuer.der not in self._forbidden:
            constraints = issuer.constraints
            self._forbidden[issuer.der] = None if constraints is None else self._breach(constraints)
        return self._forbidden[issuer.der]

    def _breach(self, constraints: x509.NameConstraints) -> str | None:
        permitted = constraints.permitted_subtrees or []
        excluded = constraints.excluded_subtrees or []
        hosts = {each.value.lower() for each in permitted if isinstance(each, x509.DNSName)}
        forbidden = {each.value.lower() for each in excluded if isinstance(each, x509.DNSName)}
        # What a wildcard stands for counts as well: a host below one that is excluded is not let in by it.
        for name in (*self._leaf.dns_names, *_names_among(self._leaf, self._demand.names)):
            if len(name) > NAME_LIMIT:
                return "this server's certificate has names that no host can have"
            above = _above(name)
            if hosts and hosts.isdisjoint(above):
                return f"{_shown(name)} is not among the names that it may vouch for"
            if not forbidden.isdisjoint(above):
                return f"{_shown(name)} is among the names that it may not vouch for"
        others = [type(each) for each in (*permitted, *excluded) if not isinstance(each, x509.DNSName)]
        presented = [type(each) for each in self._leaf.other_names]
        if x509.DirectoryName in others or not set(others).isdisjoint(presented):
            return "its constraints are on other names than those of hosts, and this server's certificate has such"
        return None

    def _vouches(self, link: Link, key: CertificatePublicKeyTypes, whose: bytes) -> bool:
        """Whether the key signed the certificate; `whose`: what the answer is remembered by."""
        known = self._signed.get((link.der, whose))
        if known is None:
            if self._signatures == 0:
                self._note(_untrusted("chain-too-complex", "the server's certificates have too many signatures to try"))
                return False
            self._signatures -= 1
            known = self._signed[link.der, whose] = link.signed_with(key)
        return known

    def _note(self, fault: TlsFault) -> None:
        self._fault = self._fault or fault


def _names_among(leaf: Link, names: Sequence[str]) -> list[str]:
    """Those of the names that the certificate has (DANE-12a, DANE-13)."""
    return [name for name in names if any(is_named(each, name) for each in leaf.dns_names)]


def _fault_of_names(leaf: Link, names: Sequence[str]) -> TlsFault | None:
    if _names_among(leaf, names):
        return None
    presented = ", ".join(map(_shown, leaf.dns_names[:_MOST_NAMES])) or "no DNS name"
    more = f" and {len(leaf.dns_names) - _MOST_NAMES} more" if len(leaf.dns_names) > _MOST_NAMES else ""
    wanted = " or ".join(map(_shown, names)) or "any name that may be asked for"
    words = f"the server's certificate is for {presented}{more}, not for {wanted}"
    return TlsFault(ResultType.CERTIFICATE_HOST_MISMATCH, "host-mismatch", words)


def _is_it(record: TlsaRecord, link: Link) -> bool:
    """Whether a record names this certificate, as far as octets go (RFC 6698 2.1)."""
    of_key = record.selector == Selector.PUBLIC_KEY
    return record.data == link.written(of_key=of_key, digest=_DIGESTS.get(record.matching, ""))


def _above(name: str) -> set[str]:
    """A name and all that it is below, as subtrees have them: `example.com` holds itself and what is below it,
    `.example.com` only the latter, the empty one everything (RFC 5280 4.2.1.10)."""
    labels = name.split(".")
    tails = [".".join(labels[i:]) for i in range(len(labels))]
    return {"", *tails, *(f".{tail}" for tail in tails[1:])}


def _mismatch(demand: DaneDemand, what: str) -> DaneVerdict:
    # TRPT-07a: RFC 8460 has no result type for it.
    said = ", ".join(map(str, demand.records[:_MOST_NAMES]))
    more = f" and {len(demand.records) - _MOST_NAMES} more" if len(demand.records) > _MOST_NAMES else ""
    words = f"no TLSA record of {demand.base} names {what}: {said}{more}"
    return _none(ResultType.VALIDATION_FAILURE, TLSA_MISMATCH, words)


def _none(type: ResultType, reason: str, detail: str) -> DaneVerdict:
    return DaneVerdict(None, TlsFault(type, reason, detail))


def _untrusted(reason: str, detail: str) -> TlsFault:
    return TlsFault(ResultType.CERTIFICATE_NOT_TRUSTED, reason, detail)


def _shown(name: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in name[:255])
