"""Five indicators of how well mail to a domain is protected, and whether REQUIRETLS may be selected by itself.

    domain_security(what was learned, MTA-STS, DNS) → DomainSecurity
    selection(ways, ...) → RequireTlsChoice

STARTTLS and REQUIRETLS are what the last session with the domain showed, MTA-STS, DNSSEC and DANE what the DNS says
now. Each is yes, no, unknown or error, with a sentence and the time that it is of, and none fails the others (BAR-01a).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum

from mailrail.core.outbound.learned import LearnedDomain
from mailrail.core.tlspolicy.facts import DnsFacts, StsPolicy, Tlsa


class Light(StrEnum):
    """What one indicator shows."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Indicator:
    """One of the five."""

    light: Light
    sentence: str
    seen: float | None = None
    """When it was so, in seconds since the epoch; None: never."""
    details: tuple[str, ...] = ()
    """What it rests on: lines of the policy; TLSA records, and why some do not count."""


@dataclass(frozen=True, slots=True)
class DomainSecurity:
    """The five, in the order in which they are shown."""

    starttls: Indicator
    mta_sts: Indicator
    dnssec: Indicator
    dane: Indicator
    require_tls: Indicator

    def each(self) -> tuple[tuple[str, Indicator], ...]:
        """All of them, by name."""
        return tuple((field.name, getattr(self, field.name)) for field in fields(self))


@dataclass(frozen=True, slots=True)
class LookupFailure:
    """Something could not be found out."""

    reason: str
    """In words."""
    at: float


@dataclass(frozen=True, slots=True)
class KnownPolicy:
    """MTA-STS of the domain."""

    policy: StsPolicy
    at: float
    """When it was looked up, or fetched."""
    words: str = ""
    """Why it is not known (UNKNOWN), or could not be had (ABSENT)."""
    lines: tuple[str, ...] = ()
    """Of the policy, where there is one."""


@dataclass(frozen=True, slots=True)
class KnownHosts:
    """The MX hosts of the domain, as the DNS has them."""

    at: float
    trusted: bool
    """There is a resolver that is trusted for DNSSEC."""
    secure: bool = False
    """The MX records and each alias that leads to them; or that there are none."""
    host: str = ""
    """The first one that was found; empty: none."""
    dns: DnsFacts | LookupFailure | None = None
    """Of that host; `LookupFailure`: its addresses cannot be had. None: it was not asked for."""
    records: tuple[str, ...] = ()
    """TLSA records of that host that can be used, `3 1 1 ab12...`."""


def domain_security(
    learned: LearnedDomain | LookupFailure | None,
    policy: KnownPolicy | LookupFailure,
    hosts: KnownHosts | LookupFailure,
) -> DomainSecurity:
    """The five. `learned`: of direct delivery, or of the transport that the mail goes by; None: no session yet."""
    return DomainSecurity(
        _learned(
            learned,
            lambda known: known.offered.starttls,
            "the last session was over TLS",
            "the last session was without TLS",
        ),
        _mta_sts(policy),
        _dnssec(hosts),
        _dane(hosts),
        _learned(
            learned,
            lambda known: known.offered.requiretls,
            "the last session offered REQUIRETLS inside TLS",
            "the last session did not offer REQUIRETLS",
        ),
    )


def _learned(
    learned: LearnedDomain | LookupFailure | None, shown: Callable[[LearnedDomain], bool], yes: str, no: str
) -> Indicator:
    match learned:
        case None:
            return Indicator(Light.UNKNOWN, "no session with the domain is known")
        case LookupFailure():
            return Indicator(Light.ERROR, f"what was learned cannot be read: {learned.reason}", learned.at)
    found = shown(learned)
    return Indicator(Light.YES if found else Light.NO, yes if found else no, learned.seen)


def _mta_sts(policy: KnownPolicy | LookupFailure) -> Indicator:
    if isinstance(policy, LookupFailure):
        return Indicator(Light.ERROR, f"the MTA-STS policy cannot be read: {policy.reason}", policy.at)
    match policy.policy:
        case StsPolicy.ENFORCE:
            return Indicator(Light.YES, "an MTA-STS policy in mode enforce", policy.at, policy.lines)
        case StsPolicy.TESTING:
            words = "an MTA-STS policy in mode testing, which holds nothing back"
            return Indicator(Light.NO, words, policy.at, policy.lines)
        case StsPolicy.NONE:
            return Indicator(Light.NO, "an MTA-STS policy in mode none", policy.at, policy.lines)
        case StsPolicy.ABSENT if policy.words:
            return Indicator(Light.ERROR, f"the MTA-STS policy cannot be had: {policy.words}", policy.at)
        case StsPolicy.ABSENT:
            return Indicator(Light.NO, "no MTA-STS policy", policy.at)
        case StsPolicy.UNKNOWN:
            why = policy.words or "the DNS does not answer"
            return Indicator(Light.ERROR, f"whether there is an MTA-STS policy is not known: {why}", policy.at)


def _dnssec(hosts: KnownHosts | LookupFailure) -> Indicator:
    if isinstance(hosts, LookupFailure):
        return Indicator(Light.ERROR, f"the MX records cannot be had: {hosts.reason}", hosts.at)
    if not hosts.trusted:
        return Indicator(Light.UNKNOWN, "no resolver is trusted for DNSSEC", hosts.at)
    if hosts.secure:
        return Indicator(Light.YES, "DNSSEC proves the MX records", hosts.at)
    return Indicator(Light.NO, "the MX records are not signed", hosts.at)


def _dane(hosts: KnownHosts | LookupFailure) -> Indicator:
    dnssec = _dnssec(hosts)
    if isinstance(hosts, LookupFailure) or dnssec.light in (Light.UNKNOWN, Light.ERROR):
        return Indicator(Light.UNKNOWN, f"without DNSSEC nothing is known of it: {dnssec.sentence}", dnssec.seen)
    if not hosts.secure:
        return Indicator(Light.NO, "the MX records are not signed, so TLSA records prove nothing", hosts.at)
    if not hosts.host:
        return Indicator(Light.UNKNOWN, "the domain has no MX host", hosts.at)
    match hosts.dns:
        case None:
            return Indicator(Light.UNKNOWN, f"TLSA records of {hosts.host} were not asked for", hosts.at)
        case LookupFailure():
            return Indicator(Light.ERROR, f"{hosts.host} cannot be looked up: {hosts.dns.reason}", hosts.dns.at)
    if not hosts.dns.address_secure:
        return Indicator(Light.NO, f"the addresses of {hosts.host} are not signed", hosts.at)
    match hosts.dns.tlsa:
        case Tlsa.FAILED:
            return Indicator(Light.ERROR, f"the TLSA records of {hosts.host} cannot be had", hosts.at)
        case Tlsa.NONE:
            return Indicator(Light.NO, f"{hosts.host} has no TLSA records", hosts.at)
        case Tlsa.UNUSABLE:  # BAR-02: they satisfy nothing
            words = f"{hosts.host} has TLSA records, none of them usable"
            return Indicator(Light.NO, words, hosts.at, hosts.dns.ignored)
        case Tlsa.USABLE:
            words = f"{hosts.host} has TLSA records, and DNSSEC proves them"
            ignored = (f"not counted: {why}" for why in hosts.dns.ignored)
            return Indicator(Light.YES, words, hosts.at, (*hosts.records, *ignored))


# --- whether REQUIRETLS is selected ---------------------------------------------------------------------------------


class RecipientPath(StrEnum):
    """The way of a recipient by today's routes."""

    DIRECT = "direct"
    MAILBOX = "mailbox"  # the built-in one: final delivery
    TRANSPORT = "transport"  # to a host that the configuration names
    OTHER = "other"  # it waits, or fails


@dataclass(frozen=True, slots=True)
class RecipientWay:
    """What is known of one of To, Cc and Bcc."""

    address: str
    path: RecipientPath
    security: DomainSecurity | None = None
    """By that path; None: it is not known yet, or cannot be had."""
    verified: bool = False
    """The transport's TLS is verified (`decide` has no refusal for it with REQUIRETLS)."""
    valid: bool = True
    """It is an address, and ingress would accept it."""


@dataclass(frozen=True, slots=True)
class RequireTlsChoice:
    """What Automatic means for a message."""

    require_tls: bool
    reasons: tuple[str, ...]
    """Why not, for each recipient that keeps it from being selected; or the one reason that holds for all."""


def obstacle(way: RecipientWay) -> str | None:
    """What keeps one recipient from getting mail with REQUIRETLS; None: it is known to be able to."""
    if not way.valid:
        return f"{way.address} is not accepted"
    if way.path is RecipientPath.MAILBOX:
        return None
    if way.path is RecipientPath.OTHER:
        return f"mail to {way.address} goes nowhere now"
    if way.security is None:
        return f"how mail to {way.address} is protected is not known"
    if way.path is RecipientPath.TRANSPORT:
        if not way.verified:
            return f"the transport for {way.address} does not verify its host"
    elif Light.YES not in (way.security.mta_sts.light, way.security.dane.light):
        return f"neither MTA-STS nor DANE proves the server of {way.address}"
    if way.security.require_tls.light is not Light.YES:
        return f"{way.address}: {way.security.require_tls.sentence}"
    return None


def selection(ways: Sequence[RecipientWay], *, answers_list: bool) -> RequireTlsChoice:
    """Whether a message goes with REQUIRETLS where its sender leaves the choice to us (BAR-08a).

    `ways`: of every To, Cc and Bcc; Reply-To does not count. `answers_list`: it replies to a message of a mailing list,
    whose members nobody knows (reference H8).
    """
    if answers_list:
        return RequireTlsChoice(False, ("it answers a mailing list, whose members are not known",))
    if not ways:
        return RequireTlsChoice(False, ("there is no recipient yet",))
    reasons = tuple(reason for way in ways if (reason := obstacle(way)) is not None)
    return RequireTlsChoice(not reasons, reasons)
