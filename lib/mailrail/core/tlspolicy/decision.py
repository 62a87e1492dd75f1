"""What TLS one host needs, whether plaintext may follow, and why: one pure function (design 7, standards 1, 2, 4, 14).

    decide(Hop) → TlsDecision           before the host is dialled
    lacks(decision, Proven) → Refusal   what a connection lacks; None: it may carry the message

Four say what is needed, and all of them are heard: the message (REQUIRETLS, `TLS-Required: No`), the recipient's domain
(MTA-STS, DANE), the transport with its own `tls`, and the floors of ours that add up (`security`, `require`). Nothing
here degrades: a need that cannot be met is a refusal in words, never a weaker mode (promise 2). Only `TLS-Required: No`
and a TLS report pass over what the recipient's domain demands, and the decision names all that was passed over.

What becomes of a message that every host was refused for: core/outbound/host_failover.py. All as tables: `table.py`.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from mailrail.core.revision.revision import (
    Otherwise,
    TlsMinimum,
    TlsMode,
    TlsProof,
    Transport,
    TransportKind,
    Unanswered,
)
from mailrail.core.smtp.address import is_ip_address
from mailrail.core.smtp.reply import EnhancedCode
from mailrail.core.tlspolicy.demands import NOTHING, PROOF_NAMES, Demanded
from mailrail.core.tlspolicy.facts import (
    NO_DNSSEC,
    NO_STS,
    DnsFacts,
    Proven,
    Purpose,
    Requirement,
    StsFacts,
    StsPolicy,
    Tlsa,
)

__all__ = [
    "Cause",
    "Hop",
    "Ignored",
    "Proven",
    "PublishedProof",
    "Purpose",
    "Refusal",
    "RequireTls",
    "Requirement",
    "TlsDecision",
    "decide",
    "ignored_by",
    "lacks",
    "wants_tlsa",
]

TRY_LATER: Final = EnhancedCode(4, 7, 5)
"""A policy is not met now, and may be later (STS-14a)."""
NOT_SECURE: Final = EnhancedCode(5, 7, 5)
"""What we demand is not met, and our word is to fail."""
NO_TLS: Final = EnhancedCode(5, 7, 10)
"""REQUIRETLS: no TLS could be made, or none that verifies (RTLS-17a)."""
NO_REQUIRETLS: Final = EnhancedCode(5, 7, 30)
"""REQUIRETLS: it is not offered inside TLS, or the MX name is not proven (RTLS-17a)."""


@dataclass(frozen=True, slots=True)
class Hop:
    """Everything that bears on the decision for one host."""

    host: str
    """The name that we were configured or told by MX to connect to; the one that a certificate must carry."""
    configured: TlsMode | None
    """The mode of the transport; None for a host that the MX record names."""
    implicit: bool = False
    """TLS from the first octet (RFC 8314 3.3)."""
    carries_credentials: bool = False
    requirement: Requirement = Requirement.DEFAULT
    redacted: bool = False
    """A notification of a required message, without any of its header: nothing in it needs what the message required
    (RTLS-21a)."""
    purpose: Purpose = Purpose.MAIL
    sts: StsFacts = NO_STS
    dns: DnsFacts = NO_DNSSEC
    demanded: Demanded = NOTHING
    """The floors that we set, added up."""
    final: bool = False
    """LMTP: the hop is final delivery (RTLS-27a). What leaves is mail to others, so of the floors its own alone counts,
    and that is for whoever adds them up."""
    loopback: bool = False
    """All addresses of the host are on this machine."""

    @classmethod
    def by(cls, transport: Transport, host: str, *, by_mx: bool = False) -> "Hop":
        """What a transport says of a host that it leads to, and nothing else. `by_mx`: an MX record names the host, and
        a SOCKS proxy is no part of the hop (RTLS-25b)."""
        return cls(
            host,
            None if by_mx else transport.tls,
            implicit=transport.kind is TransportKind.SUBMISSIONS,
            carries_credentials=transport.username is not None and not by_mx,
            final=transport.kind is TransportKind.LMTP,  # RTLS-27b
        )


class Cause(StrEnum):
    """Why a host, or a connection, may not carry a message. The words are labels of metrics."""

    STS_UNANSWERED = "sts-unanswered"
    STS_MX = "sts-mx"
    TLSA_UNANSWERED = "tlsa-unanswered"
    MX_UNPROVEN = "mx-unproven"
    NO_PROOF = "no-proof"
    TLS_DISABLED = "tls-disabled"
    NO_TLS = "no-tls"
    CERTIFICATE = "certificate"
    TLSA = "tlsa"
    NO_REQUIRETLS = "no-requiretls"


class Ignored(StrEnum):
    """What was passed over because the message says `TLS-Required: No`, or is a TLS report. The words are labels of
    metrics; the reference counts the same (reference G)."""

    STS_UNANSWERED = "sts-unanswered"
    STS_MX = "sts-mx"
    TLSA_UNANSWERED = "tlsa-unanswered"
    CERTIFICATE = "certificate"
    TLSA = "tlsa"
    NO_TLS = "no-tls"


class PublishedProof(StrEnum):
    """What the destination has by which a host of it can be proven; of several the first. The words are labels of
    metrics."""

    DANE = "dane"  # TLSA records that can be used
    MTA_STS = "mta-sts"  # a policy in mode enforce lists the host
    TESTING = "sts-testing"  # so, in mode testing
    UNUSABLE = "tlsa-unusable"  # TLSA records, none of which can be used
    NOTHING = "nothing"


class RequireTls(StrEnum):
    """Whether MAIL FROM has the parameter REQUIRETLS."""

    NEVER = "never"
    MUST = "must"  # and who does not offer it inside TLS gets nothing (RTLS-14, RTLS-18)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a host, or a connection, does not get the message."""

    cause: Cause
    status: EnhancedCode
    """What it means for the message where no other host takes it; of category 4 or 5."""
    words: str

    def __str__(self) -> str:
        return self.words


@dataclass(frozen=True, slots=True)
class TlsDecision:
    """What to do about TLS with this host."""

    mode: TlsMode
    implicit: bool
    verify_name: str | None
    """PKIX verification against this name must succeed before anything is sent; None = it need not."""
    plaintext_may_follow: bool
    """After a failed handshake a new connection may go without TLS (TLS-07)."""
    reason: str
    """In words, for the log, explain and the delivery history."""
    refusal: Refusal | None = None
    """Set when this host must not get the message at all: it is not dialled."""
    verify_matching: str | None = None
    """The certificates must match these TLSA records (`DnsFacts.matching`) before anything is sent; None = they need
    not."""
    check_name: str | None = None
    """PKIX verification against this name is tried as well and reported, and its failure changes nothing."""
    check_matching: str | None = None
    """Likewise for TLSA records."""
    require_tls: RequireTls = RequireTls.NEVER
    on_failure: EnhancedCode = TRY_LATER
    """What it means where TLS cannot be made, or does not verify, and no other host takes the message."""
    particular: bool = False
    """What is demanded is so of this message, or of its sender: other mail to the host may do with less."""
    sts: bool = False
    """An MTA-STS policy in mode enforce lists the host."""
    ignored: tuple[Ignored, ...] = ()
    """What was passed over so far."""
    lenient: bool = False
    """What the recipient's domain demands is passed over where it is not met."""
    mx_proven: bool = True
    """DNSSEC or a policy in mode enforce proves the name of the host to be the destination's, or the configuration says
    it. Where none does, a certificate for that name is no proof of whom the mail went to (DANE-22)."""
    published: PublishedProof = PublishedProof.NOTHING
    """Demanded or not."""

    @property
    def verified(self) -> bool:
        """The server must be authenticated."""
        return self.verify_name is not None or self.verify_matching is not None


@dataclass(slots=True)
class _Needs:
    """What was asked for so far."""

    encrypted: bool = False
    name: bool = False
    matching: bool = False
    check_name: bool = False
    check_matching: bool = False

    @property
    def any(self) -> bool:
        return self.encrypted or self.verified

    @property
    def verified(self) -> bool:
        return self.name or self.matching


def wants_tlsa(hop: Hop) -> bool:
    """Whether TLSA records of a host that the configuration names make mail go that would not go without them
    (RTLS-25c). For all other mail to it they are not asked for (CHOICE): the transport's own `tls` says what is needed,
    and look-ups that fail must not stop it."""
    if hop.configured is None or hop.configured is TlsMode.NONE:
        return False
    security = hop.demanded.security
    if security.minimum is TlsMinimum.AUTHENTICATED:
        return TlsProof.DANE in security.proofs and TlsProof.PKIX not in security.proofs
    verified = hop.configured is TlsMode.VERIFIED or hop.carries_credentials
    return hop.requirement is Requirement.REQUIRED and not hop.redacted and not hop.final and not verified


def decide(hop: Hop) -> TlsDecision:
    """The decision for one host. The whole table is a test."""
    return _Decider(hop).decision()


class _Decider:
    def __init__(self, hop: Hop) -> None:
        self._hop = hop
        self._needs = _Needs()
        self._words: list[str] = []
        self._ignored: list[Ignored] = []
        # TLS-08: whatever was configured, a password goes to a proven server only.
        self._configured = TlsMode.VERIFIED if hop.carries_credentials else hop.configured
        self._strict = hop.requirement is Requirement.REQUIRED and not hop.redacted
        # RTLS-22a, TRPT-15. Who requires TLS gets it, whatever the message is for.
        self._lenient = not self._strict and (hop.requirement is Requirement.NO or hop.purpose is Purpose.TLS_REPORT)
        named = not is_ip_address(hop.host)
        self._sts = hop.sts if named else StsFacts(domain=hop.sts.domain)  # STS-09
        self._dane = hop.dns.dane if named else Tlsa.NONE  # DANE-21
        self._mx_proven = hop.dns.mx_proven and named
        self._proven_by: TlsProof | None = None  # as a floor, or REQUIRETLS, wants it
        if self._lenient:
            self._words.append(f"{self._leave}: TLS where it works, and what the destination demands where it is met")

    # --- what is needed ---------------------------------------------------------------------------------------------

    def decision(self) -> TlsDecision:
        """Hear all four. The first that refuses the host decides."""
        refusal = self._policy() or self._records() or self._message() or self._transport() or self._floor()
        return self._made(refusal)

    def _policy(self) -> Refusal | None:
        """MTA-STS of the recipient's domain."""
        sts, hop = self._sts, self._hop
        whose = f"the MTA-STS policy of {sts.domain}" if sts.domain else "the MTA-STS policy"
        trouble = f": {sts.trouble}" if sts.trouble else ""
        if trouble and sts.policy is StsPolicy.ABSENT:
            self._words.append(f"{sts.domain or 'the domain'} counts as one without MTA-STS policy{trouble}")
        elif trouble and sts.policy is not StsPolicy.UNKNOWN:
            self._words.append(f"{whose} that is cached holds on{trouble}")
        match sts.policy:
            case StsPolicy.UNKNOWN:  # STS-24b, STS-24c
                words = f"the DNS does not say whether {sts.domain or 'the domain'} has an MTA-STS policy"
                if self._passed_over(words, Ignored.STS_UNANSWERED):
                    return None
                return self._refused(Cause.STS_UNANSWERED, f"{words}, and none is cached{trouble}")
            case StsPolicy.ENFORCE if not sts.listed:  # STS-10a
                words = f"{whose} does not list {hop.host}"
                if self._lenient:
                    self._ignore(words, Ignored.STS_MX)
                    return None
                return self._refused(Cause.STS_MX, words)
            case StsPolicy.ENFORCE if self._lenient:
                self._needs.check_name = True
            case StsPolicy.ENFORCE:
                self._needs.name = True
                self._words.append(f"{whose} (enforce) lists {hop.host}, whose certificate must be valid for that name")
            case StsPolicy.TESTING:  # STS-12a
                self._needs.check_name = sts.listed
                self._words.append(f"{whose} is in mode testing, and is reported on alone")
            case StsPolicy.NONE | StsPolicy.ABSENT:
                pass
        return None

    def _records(self) -> Refusal | None:
        """DANE. What MTA-STS found makes no difference to it (STS-21a)."""
        host = self._hop.host
        match self._dane:
            case Tlsa.FAILED:  # DANE-03a
                words = f"the DNS does not say which TLSA records {host} has"
                # RTLS-11a: whoever goes on without an answer has no proof of the name in place of it.
                proven = not self._strict or self._mx_proven or self._sts.enforced
                if proven and self._passed_over(words, Ignored.TLSA_UNANSWERED):
                    return None
                return self._refused(Cause.TLSA_UNANSWERED, words)
            case Tlsa.USABLE if self._lenient:
                self._needs.check_matching = True
            case Tlsa.USABLE:  # DANE-14a
                self._needs.matching = True
                self._words.append(f"the certificate must match the TLSA records of {host} (DANE){self._without}")
            case Tlsa.UNUSABLE if self._lenient:
                pass
            case Tlsa.UNUSABLE:  # DANE-15a
                self._needs.encrypted = True
                words = f"{host} has TLSA records, none of them usable: encrypted, with any certificate"
                self._words.append(words + self._without)
            case Tlsa.NONE:  # DANE-16a
                pass
        return None

    @property
    def _without(self) -> str:
        ignored = self._hop.dns.ignored
        return f"; not counted: {'; '.join(ignored)}" if ignored else ""

    def _message(self) -> Refusal | None:
        """REQUIRETLS (RFC 8689 4.2.1)."""
        if not self._strict:
            return None
        hop = self._hop
        self._words.append("the message requires TLS (RFC 8689)")
        if hop.final:
            if hop.loopback or self._configured is TlsMode.VERIFIED:  # RTLS-27a
                return None
            return self._refused(Cause.NO_PROOF, f"{hop.host} is neither on this machine nor reached by verified TLS")
        if self._configured is None:
            # RTLS-11a, RTLS-12a: a policy in mode testing vouches for nothing.
            if not self._mx_proven and not self._sts.enforced:
                words = f"neither MTA-STS nor DNSSEC proves {hop.host} to be the destination's MX"
                return self._refused(Cause.MX_UNPROVEN, words)
        elif self._configured is not TlsMode.VERIFIED and self._dane is not Tlsa.USABLE:
            floor = hop.demanded.security.minimum
            if floor is not TlsMinimum.AUTHENTICATED:  # RTLS-25a
                cause = Cause.TLS_DISABLED if self._configured is TlsMode.NONE else Cause.NO_PROOF
                words = f"the transport says tls.mode {self._configured.capitalize()}, which proves nothing"
                return self._refused(cause, words)
        return None

    def _transport(self) -> Refusal | None:
        """The transport's own `tls`."""
        host = self._hop.host
        match self._configured:
            case None | TlsMode.NONE | TlsMode.OPPORTUNISTIC:
                pass
            case TlsMode.REQUIRED:
                self._needs.encrypted = True
                self._words.append("the transport says tls.mode Required: encrypted, not authenticated")
            case TlsMode.VERIFIED:
                self._needs.name = True
                self._words.append(f"verified TLS with {host} is required")
        return None

    def _floor(self) -> Refusal | None:
        """The floors of ours, and REQUIRETLS, for which a server must be authenticated as well."""
        hop, demanded, needs = self._hop, self._hop.demanded, self._needs
        security = demanded.security
        minimum = security.minimum
        if self._strict and not hop.final:
            minimum = TlsMinimum.AUTHENTICATED
        if security.minimum is not TlsMinimum.OPPORTUNISTIC:
            self._words.append(f"{demanded.by} says security.minimum {security.minimum.capitalize()}")
        if minimum is TlsMinimum.ENCRYPTED:
            needs.encrypted = True
        if minimum is TlsMinimum.AUTHENTICATED:
            proof = self._proof(security.proofs)
            if proof is None:
                return self._refused(Cause.NO_PROOF, self._unproven(security.proofs))
            self._proven_by = proof
            if proof is TlsProof.DANE:
                needs.matching = True
            else:
                needs.name = True
        if self._configured is TlsMode.NONE and needs.any:
            return self._refused(Cause.TLS_DISABLED, "the transport says tls.mode Disabled")
        return None

    def _proof(self, allowed: tuple[TlsProof, ...]) -> TlsProof | None:
        """The proof that the server must give; one that it must give anyway comes first."""
        given = {
            TlsProof.DANE: self._dane is Tlsa.USABLE,  # DANE-20a, DANE-20b; unusable records prove nothing (RTLS-13a)
            TlsProof.MTA_STS: self._sts.enforced,
            TlsProof.PKIX: True,
        }
        return next((proof for proof in TlsProof if proof in allowed and given[proof]), None)

    def _unproven(self, allowed: tuple[TlsProof, ...]) -> str:
        host, names = self._hop.host, " or ".join(PROOF_NAMES[proof] for proof in allowed)
        if not allowed:
            return f"{host} must be authenticated, and no proof is left that all demands allow"
        if TlsProof.DANE in allowed and not self._hop.dns.trusted:
            return f"{host} must be authenticated by {names}, and there is no resolver that is trusted for DNSSEC"
        return f"{host} must be authenticated by {names}, and it has none of that"

    # --- words and codes ----------------------------------------------------------------------------------------------

    def _passed_over(self, words: str, what: Ignored) -> bool:
        """Whether what the DNS did not answer is passed over."""
        if self._lenient:
            self._ignore(words, what)
            return True
        if self._hop.demanded.security.when_unanswered is Unanswered.PROCEED:
            self._words.append(f"{words}; whenUnanswered Proceed goes on as if it had none")
            return True
        return False

    def _ignore(self, words: str, what: Ignored) -> None:
        self._ignored.append(what)
        self._words.append(f"{words}, which is passed over ({self._leave})")

    @property
    def _leave(self) -> str:
        return "a TLS report" if self._hop.requirement is not Requirement.NO else "TLS-Required: No"

    def _refused(self, cause: Cause, words: str) -> Refusal:
        if self._sts.trouble and cause in (Cause.MX_UNPROVEN, Cause.NO_PROOF):
            words = f"{words} (MTA-STS: {self._sts.trouble})"
        if self._strict:
            words = f"the message requires TLS, and {words}"
        elif cause in _OURS:
            words = f"{self._owner} demands more: {words}"
        return Refusal(cause, self._status(cause), words)

    def _status(self, cause: Cause) -> EnhancedCode:
        if cause in (Cause.STS_UNANSWERED, Cause.TLSA_UNANSWERED):
            return TRY_LATER
        if self._strict:
            # RTLS-17a. A host that a policy does not list is not proven to be the domain's.
            return NO_REQUIRETLS if cause in (Cause.MX_UNPROVEN, Cause.STS_MX) else NO_TLS
        return NOT_SECURE if cause in _OURS and self._fails else TRY_LATER

    @property
    def _owner(self) -> str:
        return self._hop.demanded.by or "the destination"

    @property
    def _fails(self) -> bool:
        return self._hop.demanded.security.otherwise is Otherwise.FAIL

    @property
    def _on_failure(self) -> EnhancedCode:
        if self._strict:
            # Bad TLS of a hop of our own is our fault, and never a bounce (design 4, Attempt).
            return NO_TLS if self._configured is None else TRY_LATER
        if not self._floor_demands_more:
            return TRY_LATER
        minimum, needs = self._hop.demanded.security.minimum, self._needs
        by_floor = {TlsProof.DANE: not needs.name, None: False}.get(self._proven_by, not needs.matching)
        if minimum is TlsMinimum.ENCRYPTED:
            by_floor = not needs.verified
        # What the destination demands besides may be met later (STS-14a), whatever our word is.
        return NOT_SECURE if self._fails and by_floor else TRY_LATER

    @property
    def _floor_demands_more(self) -> bool:
        """A floor demands more than the transport says itself."""
        minimum = self._hop.demanded.security.minimum
        if self._configured is TlsMode.VERIFIED:
            return False
        if self._configured is TlsMode.REQUIRED:
            return minimum is TlsMinimum.AUTHENTICATED
        return minimum is not TlsMinimum.OPPORTUNISTIC

    def _made(self, refusal: Refusal | None) -> TlsDecision:
        hop, needs = self._hop, self._needs
        reason = "; ".join(self._words) or self._plainly()
        if refusal is not None:
            # Nothing is sent. Whoever reads the mode alone must not read less than was needed.
            return TlsDecision(TlsMode.VERIFIED, hop.implicit, hop.host, False, reason, refusal)
        mode = TlsMode.NONE if self._configured is TlsMode.NONE else TlsMode.OPPORTUNISTIC
        if needs.any:
            mode = TlsMode.VERIFIED if needs.verified else TlsMode.REQUIRED
        implicit = hop.implicit and mode is not TlsMode.NONE
        # TLS-07. A DMARC report goes in clear to who offers no TLS, and never because TLS failed.
        plaintext = mode is TlsMode.NONE or (
            mode is TlsMode.OPPORTUNISTIC and not implicit and hop.purpose is not Purpose.DMARC_REPORT
        )
        return TlsDecision(
            mode,
            implicit,
            hop.host if needs.name else None,
            plaintext,
            reason,
            verify_matching=hop.dns.matching if needs.matching else None,
            check_name=hop.host if needs.check_name and not needs.name else None,
            check_matching=hop.dns.matching if needs.check_matching and not needs.matching else None,
            require_tls=RequireTls.MUST if self._strict and not hop.final else RequireTls.NEVER,
            on_failure=self._on_failure,
            # What the transport says itself holds for all its mail.
            particular=self._floor_demands_more or (self._strict and self._configured is None),
            sts=self._sts.enforced,
            ignored=tuple(self._ignored),
            lenient=self._lenient,
            mx_proven=self._configured is not None or self._mx_proven or self._sts.enforced,
            published=self._published,
        )

    @property
    def _published(self) -> PublishedProof:
        sts = self._sts
        if self._dane is Tlsa.USABLE:
            return PublishedProof.DANE
        if sts.listed and sts.policy in _LISTING:
            return _LISTING[sts.policy]
        return PublishedProof.UNUSABLE if self._dane is Tlsa.UNUSABLE else PublishedProof.NOTHING

    def _plainly(self) -> str:
        match self._configured:
            case None:
                return "direct delivery: TLS where the MX host offers it"
            case TlsMode.NONE:
                return "the transport says tls.mode Disabled"
            case _:
                return "the transport says tls.mode Opportunistic: TLS where the server offers it"


_LISTING: Final = {StsPolicy.ENFORCE: PublishedProof.MTA_STS, StsPolicy.TESTING: PublishedProof.TESTING}
_OURS: Final = frozenset({Cause.NO_PROOF, Cause.TLS_DISABLED})
"""What a floor of ours, or REQUIRETLS, is not met by."""


# --- what a connection has shown ----------------------------------------------------------------------------------


def lacks(decision: TlsDecision, proven: Proven) -> Refusal | None:
    """What a connection that has shown this much lacks for a message under this decision; None: it may carry it (design
    4, Deliver). Whether the server offers REQUIRETLS is for the plan of the MAIL command (core/outbound/envelope.py):
    TLS is well, and other mail may use the connection (RTLS-15a)."""
    if decision.refusal is not None:
        return decision.refusal
    host = decision.verify_name
    if decision.mode in (TlsMode.REQUIRED, TlsMode.VERIFIED) and not proven.encrypted:
        return _lack(decision, Cause.NO_TLS, "the host offers no TLS, which is needed")
    # STS-21a, STS-21b: each that is asked for must be there.
    if host is not None and proven.verified_name != host:
        return _lack(decision, Cause.CERTIFICATE, f"the certificate is not valid for {host}")
    # An empty text stands for no records: it matches nothing.
    if decision.verify_matching is not None and not (proven.matched and proven.matched == decision.verify_matching):
        return _lack(decision, Cause.TLSA, "the certificate does not match the TLSA records")
    if decision.mode is TlsMode.VERIFIED and not decision.verified:
        return _lack(decision, Cause.NO_PROOF, "nothing says by what the server is authenticated")
    return None


def _lack(decision: TlsDecision, cause: Cause, words: str) -> Refusal:
    return Refusal(cause, decision.on_failure, words)


def ignored_by(decision: TlsDecision, proven: Proven) -> tuple[Ignored, ...]:
    """All that was passed over for a message that went over this connection (RTLS-22a), each once, for metrics."""
    found = list(decision.ignored)
    if decision.lenient:
        if not proven.encrypted:
            if decision.sts or decision.check_matching is not None:
                found.append(Ignored.NO_TLS)
        else:
            # A policy in mode testing is checked as well, and demands nothing.
            if decision.sts and decision.check_name is not None and proven.verified_name != decision.check_name:
                found.append(Ignored.CERTIFICATE)
            if decision.check_matching is not None and proven.matched != decision.check_matching:
                found.append(Ignored.TLSA)
    return tuple(dict.fromkeys(found))
