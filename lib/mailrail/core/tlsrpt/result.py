"""What one session tells in TLS reports: the policies that applied, and for each of them success or failure.

    sessions_of(applied, seen) → ReportedSession, ...

RFC 8460 counts sessions under each policy that applied, so one session makes several rows (TRPT-06a). The report of the
recipient's domain has its MTA-STS policy, or says that there is none, and has the TLSA records of the host as a further
policy (TRPT-03). Those records are a policy of the host's domain as well, which has a report of its own (TRPT-02a).
What was delivered all the same, in mode testing or because the message says `TLS-Required: No`, fails in the report: it
tells what the policy would have kept back (STS-12).

Not told: a report on TLS itself (TRPT-15a), and a host that TLS had no part in losing: no connection, a busy reply
(TRPT-09a).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

from mailrail.core.mtasts.answer import FetchFailed
from mailrail.core.mtasts.policy import Mode, Policy
from mailrail.core.tlspolicy.facts import Purpose, Tlsa
from mailrail.core.tlsrpt.facts import AppliedPolicy, FailedSession, PolicyType, ReportedSession
from mailrail.core.tlsrpt.result_type import NOT_OFFERED, ResultType, TlsFault

MX_NOT_LISTED: Final = "mx-mismatch"
"""The reason of a host that the policy does not list, for which RFC 8460 has no type (TRPT-08a)."""
_NOT_OFFERED: Final = TlsFault(ResultType.STARTTLS_NOT_SUPPORTED, NOT_OFFERED, "the server does not offer STARTTLS")


@dataclass(frozen=True, slots=True)
class HostPolicies:
    """What was known before a host was dialled."""

    domain: str
    """Of the recipient."""
    host: str
    """As the MX record names it."""
    sts: Policy | None = None
    """The policy that the delivery went by, whatever its mode."""
    fetch_failed: FetchFailed | None = None
    """A policy is announced, and the newest could not be had; `sts` is an older one, if one is cached."""
    tlsa: Tlsa = Tlsa.NONE
    """`DnsFacts.dane`."""
    base: str = ""
    """The TLSA base domain; empty: the host's name."""
    records: tuple[str, ...] = ()
    """TLSA records as a report has them, `3 1 1 ab12...`; of usable and of unusable ones."""
    dane_required: bool = False
    """DANE is the only proof that a floor of ours allows (DANE-20)."""

    @property
    def plain(self) -> bool:
        """No policy applies."""
        return self.sts is None and self.fetch_failed is None and self.tlsa is Tlsa.NONE and not self.dane_required


@dataclass(frozen=True, slots=True)
class SeenSession:
    """What a connection showed. It got as far as TLS could: one that broke before is none."""

    ip: str = ""
    local_ip: str = ""
    """That the host saw; empty where it is not known (SOCK-06)."""
    helo: str = ""
    """The name in the server's answer to EHLO."""
    encrypted: bool = False
    fault: TlsFault | None = None
    """Why there is no TLS; None without TLS: it was not offered."""
    valid: bool | None = None
    """The certificate is valid for the host, by PKIX; None: it was not looked at."""
    name_fault: TlsFault | None = None
    """Why it is not."""
    matched: bool | None = None
    """The certificates match the TLSA records; None: they were not compared."""
    records_fault: TlsFault | None = None
    """Why they do not."""


def sessions_of(
    applied: HostPolicies, seen: SeenSession | None, *, purpose: Purpose = Purpose.MAIL
) -> tuple[ReportedSession, ...]:
    """What one session with one host tells, each policy once in each report that it belongs to.

    `seen` None: a policy kept the host from being dialled. A session that follows without TLS, because TLS failed, is
    part of the one before.
    """
    if purpose is Purpose.TLS_REPORT:
        return ()
    if seen is not None and seen.encrypted and applied.plain:
        return _well(applied.domain)
    found = [*_of_domain(applied, seen)]
    dane = _of_records(applied, seen)
    if dane is not None:
        found.append(replace(dane, report=applied.domain))
        if dane.policy.domain != applied.domain:
            found.append(dane)  # TRPT-02a: its own report
    return tuple(found)


@lru_cache(maxsize=10_000)
def _well(domain: str) -> tuple[ReportedSession, ...]:
    """What most sessions tell: TLS, with a domain that has no policy."""
    return (ReportedSession(AppliedPolicy(PolicyType.NONE, domain)),)


def _of_domain(applied: HostPolicies, seen: SeenSession | None) -> Iterator[ReportedSession]:
    """The policy of the recipient's domain, or that it has none."""
    sts = applied.sts if applied.sts is not None and applied.sts.mode is not Mode.NONE else None
    announced = applied.sts is None or sts is not None  # STS-25: what fails under mode none is not told
    if applied.fetch_failed is not None and announced:
        failed, policy = applied.fetch_failed, _sts(applied, sts)
        yield ReportedSession(policy, FailedSession(ResultType(failed.trouble.value), information=failed.reason))
    if sts is None:
        if seen is not None:
            policy = AppliedPolicy(PolicyType.NONE, applied.domain)
            yield ReportedSession(policy, None if seen.encrypted else _failed(applied, seen, seen.fault))
        return
    policy = _sts(applied, sts)
    if not sts.matches(applied.host):
        fault = TlsFault(ResultType.VALIDATION_FAILURE, MX_NOT_LISTED, f"the policy does not list {applied.host}")
        yield ReportedSession(policy, _failed(applied, seen, fault))
    elif seen is not None and not seen.encrypted:
        yield ReportedSession(policy, _failed(applied, seen, seen.fault))
    elif seen is not None and seen.valid is not None:
        yield ReportedSession(policy, None if seen.valid else _failed(applied, seen, seen.name_fault))


def _of_records(applied: HostPolicies, seen: SeenSession | None) -> ReportedSession | None:
    """The TLSA records of the host (TRPT-07b)."""
    policy = AppliedPolicy(PolicyType.TLSA, applied.base or applied.host, applied.records)
    match applied.tlsa:
        case Tlsa.FAILED:
            fault = TlsFault(ResultType.DNSSEC_INVALID, "lookup-failed", "the TLSA records cannot be had")
            return ReportedSession(policy, _failed(applied, seen, fault))
        case Tlsa.UNUSABLE:
            fault = TlsFault(ResultType.TLSA_INVALID, "unusable", "none of the TLSA records can be used")
            return ReportedSession(policy, _failed(applied, seen, fault))
        case Tlsa.NONE:
            if not applied.dane_required:
                return None
            fault = TlsFault(ResultType.DANE_REQUIRED, "no-tlsa", "DANE is required and there are no TLSA records")
            return ReportedSession(policy, _failed(applied, seen, fault))
        case Tlsa.USABLE:
            if seen is None:
                return None  # another policy kept the host from being dialled
            if not seen.encrypted:
                return ReportedSession(policy, _failed(applied, seen, seen.fault))
            if seen.matched is None:
                return None
            return ReportedSession(policy, None if seen.matched else _failed(applied, seen, seen.records_fault))


def _sts(applied: HostPolicies, sts: Policy | None) -> AppliedPolicy:
    lines = tuple(str(sts).split("\r\n"))[:-1] if sts is not None else ()
    return AppliedPolicy(PolicyType.STS, applied.domain, lines, sts.mx if sts is not None else ())


def _failed(applied: HostPolicies, seen: SeenSession | None, fault: TlsFault | None) -> FailedSession:
    fault = fault or _NOT_OFFERED
    where = seen or SeenSession()
    return FailedSession(
        fault.type,
        sending_ip=where.local_ip,
        receiving_host=applied.host,
        receiving_helo=where.helo,
        receiving_ip=where.ip,
        reason_code=fault.reason,  # TRPT-08a: the two types that say too little without it always have one
    )
