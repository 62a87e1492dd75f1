"""What an aggregate report tells of one message, and of the policy that it was held against (RFC 9990 3.1).

Equal facts are one record with a count (DAGG-03). So what a record does not have is not among them: when the message
came, and who it was for beyond the domain.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Final

from mailrail.core.dkim.verify import DkimOutcome
from mailrail.core.reports.clean import clean
from mailrail.core.smtp.address import AddressError, domain_to_ascii, plain_ip
from mailrail.core.spf.result import SpfResult

SIGNATURES_LIMIT: Final = 100
"""Of one record (DAGG-05)."""
REASONS_LIMIT: Final = 10
"""Of one record."""
_NAME_LIMIT: Final = 255  # characters of a domain or selector
_WORDS_LIMIT: Final = 200  # characters of a text for people
_OF_ONE_MESSAGE = re.compile(r"[0-9]{3,}")  # octets of its body, times of its signature


class ReportedDisposition(StrEnum):
    """What was done with a message, and what a policy asks for (`disposition`; `p`, `sp` and `np` have no PASS)."""

    NONE = "none"
    PASS = "pass"  # noqa: S105 - no password
    """It passed, and the policy enforces."""
    QUARANTINE = "quarantine"
    REJECT = "reject"


class ReasonType(StrEnum):
    """Why what was done differs from what the policy asks."""

    LOCAL_POLICY = "local_policy"
    MAILING_LIST = "mailing_list"
    OTHER = "other"
    POLICY_TEST_MODE = "policy_test_mode"
    TRUSTED_FORWARDER = "trusted_forwarder"


class SignatureAlignment(IntEnum):
    """How the domain of a signature stands to the author's, closest first."""

    STRICT = 0
    RELAXED = 1
    NONE = 2


@dataclass(frozen=True, slots=True)
class ReportedPolicy:
    """`policy_published`. A tag that is absent is None."""

    domain: str
    """Where the record was found; A-labels in lower case."""
    p: ReportedDisposition
    sp: ReportedDisposition | None = None
    np: ReportedDisposition | None = None
    strict_dkim: bool = False
    """`adkim=s`."""
    strict_spf: bool = False
    """`aspf=s`."""
    fo: str = ""
    """As it is written; empty: absent."""
    testing: bool = False
    """`t=y`."""
    public_suffix_list: bool = False
    """It was found by that list, and not by the tree walk (DMRC-20c)."""


@dataclass(frozen=True, slots=True)
class ReportedReason:
    """`reason`."""

    type: ReasonType
    comment: str = ""


@dataclass(frozen=True, slots=True)
class ReportedSignature:
    """`dkim`: one signature that was tried."""

    domain: str
    selector: str
    result: DkimOutcome
    alignment: SignatureAlignment = SignatureAlignment.NONE
    """Puts it into order, and is not told."""
    human: str = ""
    """`human_result`."""


@dataclass(frozen=True, slots=True)
class ReportedSpf:
    """`spf`: the MAIL FROM identity, which with a null path is postmaster at the HELO name (RFC 7208 2.4)."""

    domain: str
    result: SpfResult
    human: str = ""
    null_path: bool = False
    """The domain is that of HELO. RFC 7489 has a scope for it."""


@dataclass(frozen=True, slots=True)
class ReportedMessage:
    """A record without its count. `reported_message` makes it."""

    source_ip: str
    disposition: ReportedDisposition
    dkim_aligned: bool
    """Before any override (DAGG-04)."""
    spf_aligned: bool
    header_from: str
    envelope_from: str
    """Domain of MAIL FROM; empty: the null path."""
    envelope_to: str = ""
    """Domain of the recipient; empty: it is not told."""
    reasons: tuple[ReportedReason, ...] = ()
    signatures: tuple[ReportedSignature, ...] = ()
    spf: ReportedSpf | None = None
    """None: there was no identity to check."""


def reported_message(
    source: IPv4Address | IPv6Address,
    *,
    disposition: ReportedDisposition,
    asked: ReportedDisposition,
    dkim_aligned: bool,
    spf_aligned: bool,
    header_from: str,
    envelope_from: str,
    envelope_to: str = "",
    reasons: Iterable[ReportedReason] = (),
    signatures: Iterable[ReportedSignature] = (),
    spf: ReportedSpf | None = None,
) -> ReportedMessage:
    """The facts in their one form: strangers chose the names, which are cleaned, bounded and put into A-labels.

    `asked`: what the policy asks for this message, be it by p, sp or np. DAGG-04: `dkim_aligned` and `spf_aligned` are
    the results before overrides. Where neither is, and what was done is not what was asked, there is a reason: without
    one of the caller's it is local policy.
    """
    given = [ReportedReason(each.type, clean(each.comment, _WORDS_LIMIT)) for each in reasons][:REASONS_LIMIT]
    if not given and not dkim_aligned and not spf_aligned and disposition is not asked:
        given = [ReportedReason(ReasonType.LOCAL_POLICY)]
    return ReportedMessage(
        source_ip=str(ip_address(plain_ip(source).packed)),  # without a zone of this machine (`fe80::1%eth0`)
        disposition=disposition,
        dkim_aligned=dkim_aligned,
        spf_aligned=spf_aligned,
        header_from=_domain(header_from),
        envelope_from=_domain(envelope_from),
        envelope_to=_domain(envelope_to),
        reasons=tuple(given),
        signatures=tuple(map(_signature, sorted(signatures, key=_rank)[:SIGNATURES_LIMIT])),
        spf=ReportedSpf(_domain(spf.domain), spf.result, clean(spf.human, _WORDS_LIMIT), spf.null_path)
        if spf is not None
        else None,
    )


def _rank(signature: ReportedSignature) -> int:
    """DAGG-05: those that pass first, the closest to the author's domain before others; then those that fail."""
    return signature.alignment if signature.result is DkimOutcome.PASS else len(SignatureAlignment)


def _signature(given: ReportedSignature) -> ReportedSignature:
    return ReportedSignature(
        _domain(given.domain),
        clean(given.selector, _NAME_LIMIT),
        given.result,
        given.alignment,
        # With such numbers each message would be a record of its own.
        _OF_ONE_MESSAGE.sub("...", clean(given.human, _WORDS_LIMIT)),
    )


def _domain(text: str) -> str:
    """In lower-case A-labels; what is no domain name stays what it is, cleaned."""
    text = clean(text, _NAME_LIMIT).lower().removesuffix(".")
    if text.isascii():
        return text
    try:
        return domain_to_ascii(text, in_address=True)
    except AddressError:
        return text


def encode(message: ReportedMessage) -> bytes:
    """All but the address, as canonical JSON: equal facts give equal octets."""
    spf = message.spf
    made = [
        message.disposition.value,
        int(message.dkim_aligned),
        int(message.spf_aligned),
        message.header_from,
        message.envelope_from,
        message.envelope_to,
        [[reason.type.value, reason.comment] for reason in message.reasons],
        [[s.domain, s.selector, s.result.value, int(s.alignment), s.human] for s in message.signatures],
        [spf.domain, spf.result.value, spf.human, int(spf.null_path)] if spf is not None else None,
    ]
    return json.dumps(made, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")


def decode(source_ip: str, octets: bytes) -> ReportedMessage:
    """What `encode` made, of this release or an older one. Raises ValueError."""
    try:
        made: Any = json.loads(octets)
        disposition, dkim, spf_aligned, header_from, envelope_from, envelope_to, reasons, signatures, spf = made[:9]
        return ReportedMessage(
            str(ip_address(source_ip)),
            ReportedDisposition(disposition),
            bool(dkim),
            bool(spf_aligned),
            str(header_from),
            str(envelope_from),
            str(envelope_to),
            tuple(ReportedReason(ReasonType(type), str(comment)) for type, comment, *_ in reasons),
            tuple(
                ReportedSignature(str(d), str(s), DkimOutcome(result), SignatureAlignment(alignment), str(human))
                for d, s, result, alignment, human, *_ in signatures
            ),
            ReportedSpf(str(spf[0]), SpfResult(spf[1]), str(spf[2]), bool(spf[3])) if spf is not None else None,
        )
    except (TypeError, IndexError, AttributeError, KeyError) as error:
        raise ValueError(f"not the facts of a message: {error!r}") from error


def encode_policy(policy: ReportedPolicy) -> bytes:
    """A policy as canonical JSON, besides its domain."""
    tags = (policy.p, policy.sp, policy.np)
    made = [
        *(tag.value if tag is not None else None for tag in tags),
        int(policy.strict_dkim),
        int(policy.strict_spf),
        policy.fo,
        int(policy.testing),
        int(policy.public_suffix_list),
    ]
    return json.dumps(made, separators=(",", ":")).encode()


def decode_policy(domain: str, octets: bytes) -> ReportedPolicy:
    """What `encode_policy` made, of this release or an older one. Raises ValueError."""
    try:
        made: Any = json.loads(octets)
        p, sp, np, strict_dkim, strict_spf, fo, testing, public_suffix_list = made[:8]
        return ReportedPolicy(
            domain,
            ReportedDisposition(p),
            None if sp is None else ReportedDisposition(sp),
            None if np is None else ReportedDisposition(np),
            bool(strict_dkim),
            bool(strict_spf),
            str(fo)[:_NAME_LIMIT],
            bool(testing),
            bool(public_suffix_list),
        )
    except (TypeError, IndexError, AttributeError, KeyError, RecursionError) as error:
        raise ValueError(f"not a policy: {error!r}") from error
