"""The decision as tables that people read: scripts/generate_tls_decision.py prints them, and a test holds each cell
against what the rules say.

A table is two lists of facts, one for its rows and one for its columns; each cell is what `decide` says of both. What
becomes of a message that no host took: core/outbound/tls_endings.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Final

from mailrail.core.revision.revision import ALL_PROOFS, Otherwise, Security, TlsMinimum, TlsMode, TlsProof, Unanswered
from mailrail.core.tlspolicy.decision import Hop, RequireTls, TlsDecision, decide
from mailrail.core.tlspolicy.demands import Demand, Demanded, add_up
from mailrail.core.tlspolicy.facts import DnsFacts, Purpose, Requirement, StsFacts, StsPolicy, Tlsa

HOST: Final = "mx.example.org"
_SECURE: Final = DnsFacts(trusted=True, mx_secure=True, address_secure=True)

Facts = Mapping[str, Any]
"""Fields of `Hop`."""


@dataclass(frozen=True, slots=True)
class Table:
    """One table."""

    title: str
    intro: str
    corner: str
    """What the rows are."""
    columns: tuple[tuple[str, Facts], ...]
    rows: tuple[tuple[str, Facts], ...]

    def hop(self, row: int, column: int) -> Hop:
        """What is asked for a cell."""
        base = Hop(HOST, None)
        return replace(base, **{**self.columns[column][1], **self.rows[row][1]})

    def cells(self) -> tuple[tuple[str, ...], ...]:
        """What each cell says, row by row."""
        return tuple(
            tuple(cell(decide(self.hop(row, column))) for column in range(len(self.columns)))
            for row in range(len(self.rows))
        )


def cell(decision: TlsDecision) -> str:
    """A decision in few words; LEGEND says what they mean."""
    if decision.refusal is not None:
        return f"refused {decision.refusal.status}"
    proofs = [
        word
        for word, wanted in (("name", decision.verify_name), ("TLSA", decision.verify_matching))
        if wanted is not None
    ]
    match decision.mode:
        case TlsMode.NONE:
            words = "clear"
        case TlsMode.OPPORTUNISTIC:
            words = "may" if decision.plaintext_may_follow else "may once"
        case TlsMode.REQUIRED:
            words = "encrypted"
        case TlsMode.VERIFIED:
            words = " and ".join(proofs)
    if decision.require_tls is RequireTls.MUST:
        words += ", REQUIRETLS"
    checked = [
        word
        for word, wanted in (("name", decision.check_name), ("TLSA", decision.check_matching))
        if wanted is not None
    ]
    if checked:
        words += f" ({' and '.join(checked)} checked)"
    if decision.ignored:
        words += f" (over {', '.join(decision.ignored)})"
    return words


LEGEND: Final = (
    ("clear", "TLS is not used."),
    (
        "may",
        "TLS if the server offers it, with any certificate; after a failure a new connection goes without (TLS-07).",
    ),
    ("may once", "TLS if the server offers it, with any certificate; after a failure never without TLS."),
    ("encrypted", "TLS, with any certificate; never without TLS."),
    ("name", "TLS with a certificate that is valid for the host's name; never without TLS."),
    ("TLSA", "TLS with a certificate that matches the TLSA records (DANE); never without TLS."),
    ("name and TLSA", "Both. One that passes never makes up for the other (STS-21)."),
    ("REQUIRETLS", "The server must offer it inside TLS, and MAIL FROM has it (RTLS-14, RTLS-18)."),
    ("(... checked)", "It is checked and reported, and the mail goes whatever comes of it."),
    ("(over ...)", "What `TLS-Required: No`, or a TLS report, passes over before the host is dialled."),
    (
        "refused 4.7.5",
        "The host is passed over without being dialled. Where no other host takes the mail, it is tried later.",
    ),
    ("refused 5.7.x", "Likewise, but where no other host takes the mail, it fails."),
)

_POLICIES: Final[tuple[tuple[str, Facts], ...]] = (
    ("absent, or the fetch failed", {"sts": StsFacts(StsPolicy.ABSENT)}),
    ("`none`", {"sts": StsFacts(StsPolicy.NONE)}),
    ("`testing`, lists the host", {"sts": StsFacts(StsPolicy.TESTING, True)}),
    ("`testing`, does not list it", {"sts": StsFacts(StsPolicy.TESTING, False)}),
    ("`enforce`, lists the host", {"sts": StsFacts(StsPolicy.ENFORCE, True)}),
    ("`enforce`, does not list it", {"sts": StsFacts(StsPolicy.ENFORCE, False)}),
    ("the DNS does not answer", {"sts": StsFacts(StsPolicy.UNKNOWN)}),
)
_RECORDS: Final[tuple[tuple[str, Facts], ...]] = (
    ("no trusted resolver, or MX insecure", {"dns": DnsFacts(address_secure=True, tlsa=Tlsa.USABLE, matching="set")}),
    ("MX secure, no TLSA", {"dns": _SECURE}),
    ("TLSA unusable", {"dns": replace(_SECURE, tlsa=Tlsa.UNUSABLE)}),
    ("TLSA usable", {"dns": replace(_SECURE, tlsa=Tlsa.USABLE, matching="set")}),
    ("TLSA not answered", {"dns": replace(_SECURE, tlsa=Tlsa.FAILED)}),
)


def _direct(title: str, intro: str, **facts: Any) -> Table:
    columns = tuple((label, {**known, **facts}) for label, known in _RECORDS)
    return Table(title, intro, "MTA-STS policy", columns, _POLICIES)


def floor(
    minimum: TlsMinimum,
    proofs: tuple[TlsProof, ...] = ALL_PROOFS,
    otherwise: Otherwise = Otherwise.DEFER,
    when_unanswered: Unanswered | None = None,
) -> Demanded:
    """One floor of ours."""
    return add_up((Demand("the gateway", Security(minimum, proofs, otherwise, when_unanswered)),))


_PROOF_WORDS: Final = {TlsProof.DANE: "DANE", TlsProof.MTA_STS: "MTASTS", TlsProof.PKIX: "PKIX"}
_FLOORS: Final[tuple[tuple[str, Facts], ...]] = (
    ("Opportunistic", {"demanded": floor(TlsMinimum.OPPORTUNISTIC)}),
    ("Encrypted", {"demanded": floor(TlsMinimum.ENCRYPTED)}),
    *(
        (
            f"Authenticated, [{', '.join(_PROOF_WORDS[proof] for proof in proofs)}]",
            {"demanded": floor(TlsMinimum.AUTHENTICATED, proofs)},
        )
        for count in (3, 2, 1)
        for proofs in combinations(TlsProof, count)
    ),
    (
        "Authenticated, [DANE], otherwise Fail",
        {"demanded": floor(TlsMinimum.AUTHENTICATED, (TlsProof.DANE,), Otherwise.FAIL)},
    ),
    (
        "Opportunistic, whenUnanswered Proceed",
        {"demanded": floor(TlsMinimum.OPPORTUNISTIC, when_unanswered=Unanswered.PROCEED)},
    ),
)  # fmt: skip
_HOSTS: Final[tuple[tuple[str, Facts], ...]] = (
    ("neither MTA-STS nor DANE", {}),
    ("`enforce` lists it", {"sts": StsFacts(StsPolicy.ENFORCE, True)}),
    ("TLSA usable", _RECORDS[3][1]),
    ("both", {"sts": StsFacts(StsPolicy.ENFORCE, True), **_RECORDS[3][1]}),
    ("TLSA unusable", _RECORDS[2][1]),
    ("MTA-STS not answered", {"sts": StsFacts(StsPolicy.UNKNOWN)}),
    ("TLSA not answered", _RECORDS[4][1]),
)
_MODES: Final[tuple[tuple[str, Facts], ...]] = (
    ("`tls.mode: Disabled`", {"configured": TlsMode.NONE}),
    ("`tls.mode: Opportunistic`", {"configured": TlsMode.OPPORTUNISTIC}),
    ("`tls.mode: Required`", {"configured": TlsMode.REQUIRED}),
    ("`tls.mode: Verified`", {"configured": TlsMode.VERIFIED}),
    ("with a login, whatever the mode", {"configured": TlsMode.OPPORTUNISTIC, "carries_credentials": True}),
)

TABLES: Final = (
    _direct(
        "Direct delivery: mail that says nothing of TLS",
        "The recipient's domain decides, by MTA-STS and DANE (STS-10, STS-12, STS-14, STS-15, STS-24, DANE-03, "
        "DANE-05, DANE-14, DANE-15, DANE-16).",
    ),
    _direct(
        "Direct delivery: mail with REQUIRETLS",
        "The MX name must be proven, by DNSSEC or a policy in mode `enforce`, and the certificate by PKIX or DANE "
        "(RTLS-11, RTLS-12, RTLS-13, RTLS-17).",
        requirement=Requirement.REQUIRED,
    ),
    _direct(
        "Direct delivery: mail with `TLS-Required: No`",
        "What the domain demands is followed where it works, and never keeps the mail from going (RTLS-22). A TLS "
        "report is sent in the same way (TRPT-15).",
        requirement=Requirement.NO,
    ),
    _direct(
        "Direct delivery: a DMARC report",
        "As other mail, but after TLS failed it never goes in clear (DAGG-17).",
        purpose=Purpose.DMARC_REPORT,
    ),
    Table(
        "Direct delivery: floors of ours",
        "What `security` and `require` demand, added up (decision 18), beside what the domain demands. For DANE alone "
        "(DANE-20) this is Postfix's `dane-only`.",
        "`security`",
        _HOSTS,
        _FLOORS,
    ),
    Table(
        "A transport with a host of its own",
        "The host is named by the configuration, so no MX record needs a proof. REQUIRETLS goes by a transport only "
        "where the server's name is verified (RTLS-25). The table has hosts without TLSA records. Records are asked "
        "for where mail goes by them alone: with REQUIRETLS where `tls` verifies nothing, and where `security.proofs` "
        "has DANE and not PKIX. They then decide as for an MX host (RTLS-25c). No MTA-STS policy is asked for "
        "(STS-09c).",
        "transport",
        (
            ("other mail", {}),
            ("REQUIRETLS", {"requirement": Requirement.REQUIRED}),
            ("`TLS-Required: No`", {"requirement": Requirement.NO}),
            ("minimum Encrypted", {"demanded": floor(TlsMinimum.ENCRYPTED)}),
            ("minimum Authenticated", {"demanded": floor(TlsMinimum.AUTHENTICATED)}),
            (
                "both, REQUIRETLS",
                {"demanded": floor(TlsMinimum.AUTHENTICATED), "requirement": Requirement.REQUIRED},
            ),
        ),
        _MODES,
    ),
    Table(
        "A mail store by LMTP, which is final delivery",
        "REQUIRETLS ends with final delivery: on this machine, or over verified TLS (RTLS-27).",
        "transport",
        (
            ("other mail", {"final": True}),
            ("REQUIRETLS", {"final": True, "requirement": Requirement.REQUIRED}),
            ("REQUIRETLS, on this machine", {"final": True, "requirement": Requirement.REQUIRED, "loopback": True}),
        ),
        _MODES[:4],
    ),
)
"""All of it."""

POSTFIX: Final = (
    ("`none`", "`smtp: {tls: {mode: Disabled}}` of a transport; not for direct delivery"),
    (
        "`may`",
        "`minimum: Opportunistic`, the default; but MTA-STS and DANE of the destination are followed where they are "
        "known",
    ),
    ("`encrypt`", "`minimum: Encrypted`, or `tls.mode: Required` for a host of your own"),
    ("`dane`", "the default, with a resolver that is trusted for DNSSEC"),
    ("`dane-only`", "`minimum: Authenticated, proofs: [DANE]`"),
    (
        "`verify`",
        "`minimum: Authenticated, proofs: [PKIX]`: the certificate is valid for the MX host, which the DNS may have "
        "made up",
    ),
    (
        "`secure`",
        "`minimum: Authenticated, proofs: [DANE, MTASTS]`: who the MX hosts are is proven, too; or `tls.mode: "
        "Verified` for a host of your own",
    ),
    ("`fingerprint`", "nothing of the kind"),
)
"""The levels of smtp_tls_security_level, with what is nearest to them."""
