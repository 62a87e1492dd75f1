"""What servers show beside the DNS: the policy of the policy host, and the certificates of the MX hosts.

The caller fetches and dials; here is judged what came of it. DANE by RFC 7672, MTA-STS by RFC 8461.
"""

import datetime
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from mailrail.core.dane.demand import DaneDemand
from mailrail.core.dane.match import verify
from mailrail.core.dane.names import tlsa_name
from mailrail.core.dane.reading import Link
from mailrail.core.dane.tlsa import TlsaRecord, judge
from mailrail.core.dnscheck.answers import Record, RecordState, shown
from mailrail.core.mtasts.answer import FetchFailed
from mailrail.core.mtasts.policy import Mode, Policy
from mailrail.core.mtasts.record import POLICY_PATH, policy_host

MOST_HOSTS: Final = 10
"""MX hosts of one domain that are looked at."""
_NOT_PROVEN: Final = "DNSSEC was not asked for: name a validating server with --resolver, and --trust-ad"


@dataclass(frozen=True, slots=True)
class MxHost:
    """What is known of one MX host."""

    host: str
    """Lower-case A-labels without the final dot."""
    base: str
    """Where its TLSA records are (RFC 7672 2.2.2); the host itself without an alias."""
    names: tuple[str, ...]
    """Of which its certificate must have one where a TLSA record names an issuer."""
    addresses: tuple[str, ...] = ()
    records: tuple[TlsaRecord, ...] = ()
    proven: bool | None = None
    """DNSSEC proves MX, addresses and TLSA records. None: no resolver is trusted to say so."""
    trouble: str = ""
    """Why addresses or records are not known; empty: they are."""
    chain: tuple[bytes, ...] = ()
    """The certificates that it presented, in DER, its own first."""
    unseen: str = ""
    """Why there are none; empty: there are."""


def tlsa_value(certificate: bytes) -> str:
    """The TLSA record of the public key of a certificate in DER, ready to copy: `3 1 1` (RFC 7672 3.1.1). Empty: the
    certificate cannot be read."""
    outline = Link(certificate).outline
    return "" if outline is None else f"3 1 1 {hashlib.sha256(outline.key).hexdigest()}"


def dane(seen: MxHost, port: int, now: datetime.datetime) -> Record:
    """Whether the TLSA records of a host are those of its certificates. `now`: aware."""
    value = tlsa_value(seen.chain[0]) if seen.chain else ""
    return _Dane(seen, tlsa_name(seen.base, port), value or "3 1 1 (the SHA-256 of its public key)").record(now)


@dataclass(frozen=True, slots=True)
class _Dane:
    seen: MxHost
    name: str
    value: str

    def record(self, now: datetime.datetime) -> Record:
        seen = self.seen
        if seen.trouble:
            return self._is(RecordState.UNKNOWN, seen.trouble)
        if not seen.records:
            unseen = f"; {seen.unseen}" if seen.unseen else ""
            return self._is(RecordState.MISSING, f"there is none, so DANE is not used{unseen}", optional=True)
        judged = judge(seen.records)
        if not judged.usable:
            return self._is(RecordState.MISMATCH, f"none can be used: {'; '.join(judged.ignored)}")
        if not seen.chain:
            return self._is(RecordState.UNKNOWN, seen.unseen or "it presented no certificate")
        verdict = verify(seen.chain, DaneDemand.of(seen.base, judged.usable, seen.names), now)
        if verdict.fault is not None:
            return self._is(RecordState.MISMATCH, verdict.fault.detail)
        if seen.proven is False:
            return self._is(RecordState.MISMATCH, "it matches, but DNSSEC does not prove it, so it counts for nobody")
        return self._is(RecordState.MATCH, "" if seen.proven else _NOT_PROVEN)

    def _is(self, state: RecordState, message: str, *, optional: bool = False) -> Record:
        return Record("DANE", "TLSA", self.name, self.value, state, message, optional=optional)


def address(seen: MxHost) -> Record | None:
    """An MX host without an address. None: it has one, or nobody knows."""
    if seen.addresses or seen.trouble:
        return None
    missing = "the MX host has no address"
    return Record("MX", "A", seen.host, "the address of the host", RecordState.MISSING, missing)


def policy(domain: str, found: Policy | FetchFailed, ours: Policy | None, hosts: Iterable[str]) -> Record:
    """Whether the policy host of a domain serves a policy, and one that names the MX hosts. `ours`: what we serve for
    the domain; None: nothing."""
    host = policy_host(domain)
    value = f"https://{host}{POLICY_PATH}"
    if isinstance(found, FetchFailed):
        return Record("MTA-STS", "HTTPS", host, value, RecordState.MISMATCH, found.reason)
    if ours is not None and found != ours:
        wrong = "it is not the policy of spec.mtaSts: something else answers there, or an old one is kept"
        return Record("MTA-STS", "HTTPS", host, value, RecordState.MISMATCH, wrong)
    outside = sorted(each for each in hosts if not found.matches(each))
    if outside and found.mode is not Mode.NONE:
        wrong = f"mode {found.mode}; the policy does not name the MX host {shown(outside)}"
        return Record("MTA-STS", "HTTPS", host, value, RecordState.MISMATCH, wrong)
    return Record("MTA-STS", "HTTPS", host, value, RecordState.MATCH, f"mode {found.mode}")
