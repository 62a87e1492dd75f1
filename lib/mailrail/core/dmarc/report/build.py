"""The XML of an aggregate report, piece by piece: it need never be whole in memory (RFC 9990 3.1, appendix A).

Two forms. The one of RFC 9990 is the default; older consumers that search by plain element names want that of RFC 7489
appendix C, which has no namespace, and more that is required and less that can be said.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from typing import Final
from xml.sax.saxutils import escape

from mailrail.core.dmarc.report.facts import (
    ReasonType,
    ReportedDisposition,
    ReportedMessage,
    ReportedPolicy,
    ReportedReason,
    ReportedSpf,
)
from mailrail.core.reports.clean import clean
from mailrail.core.reports.names import ReportName
from mailrail.core.smtp.address import Address
from mailrail.core.spf.result import SpfResult

NAMESPACE: Final = "urn:ietf:params:xml:ns:dmarc-2.0"
ERROR_LIMIT: Final = 500
"""Characters of `error`: it is for people, and short (DAGG-20)."""
_PIECE: Final = 200  # records that are written at once


class AggregateForm(StrEnum):
    """Which RFC a report is written by."""

    RFC9990 = "rfc9990"
    RFC7489 = "rfc7489"


@dataclass(frozen=True, slots=True)
class AggregateHead:
    """What a report says once."""

    name: ReportName
    organization: str
    contact: Address
    policy: ReportedPolicy
    """Seen last in the period."""
    extra_contact: str = ""
    errors: tuple[str, ...] = ()
    """Faults of the record, in words: several records, an address that is none (DAGG-20)."""
    generator: str = "Mailrail"


def aggregate_report(
    head: AggregateHead, rows: Iterable[tuple[ReportedMessage, int]], form: AggregateForm = AggregateForm.RFC9990
) -> Iterator[bytes] | None:
    """The report; None: there is no row, so there is none (DAGG-03). `rows`: each different message with its count."""
    rest = iter(rows)
    first = next(rest, None)
    return _pieces(head, chain([first], rest), form is AggregateForm.RFC7489) if first is not None else None


def _pieces(head: AggregateHead, rows: Iterator[tuple[ReportedMessage, int]], old: bool) -> Iterator[bytes]:
    yield _head(head, old).encode()
    piece: list[str] = []
    for message, count in rows:
        piece.append(_record(message, count, old))
        if len(piece) == _PIECE:
            yield "".join(piece).encode()
            piece.clear()
    yield ("".join(piece) + "</feedback>\n").encode()


def _element(name: str, text: object) -> str:
    return f"<{name}>{escape(str(text))}</{name}>"


def _optional(name: str, text: str) -> str:
    return _element(name, text) if text else ""


def _head(head: AggregateHead, old: bool) -> str:
    """Everything before the records. The order is that of RFC 7489, which RFC 9990 allows as well."""
    period = head.name.period
    errors = [text for error in head.errors if (text := clean(error, ERROR_LIMIT))]
    if not old:
        errors = [clean("; ".join(errors), ERROR_LIMIT)] if errors else []
    return "".join(
        (
            '<?xml version="1.0" encoding="UTF-8"?>\n',
            "<feedback>\n" if old else f'<feedback xmlns="{NAMESPACE}">\n',
            _element("version", "1.0"),
            "\n<report_metadata>",
            _element("org_name", clean(head.organization)),
            _element("email", head.contact),
            _optional("extra_contact_info", clean(head.extra_contact)),
            _element("report_id", head.name.id),  # DAGG-06: the same as in Subject and file name
            "<date_range>",
            _element("begin", period.begin),
            _element("end", period.end),
            "</date_range>",
            *(_element("error", error) for error in errors),
            "" if old else _optional("generator", clean(head.generator)),
            "</report_metadata>\n",
            _policy(head.policy, old),
            "\n",
        )
    )


def _policy(policy: ReportedPolicy, old: bool) -> str:
    fields = [
        ("domain", policy.domain),
        ("adkim", "s" if policy.strict_dkim else "r"),
        ("aspf", "s" if policy.strict_spf else "r"),
        ("p", policy.p.value),
        ("sp", policy.sp.value if policy.sp is not None else policy.p.value if old else ""),
    ]
    if old:
        fields += [("pct", "100"), ("fo", clean(policy.fo) or "0")]
    else:
        fields += [
            ("np", policy.np.value if policy.np is not None else ""),
            ("fo", clean(policy.fo)),
            ("testing", "y" if policy.testing else "n"),
            # DMRC-20c
            ("discovery_method", "psl" if policy.public_suffix_list else "treewalk"),
        ]
    return "<policy_published>" + "".join(_optional(*field) for field in fields) + "</policy_published>"


def _record(message: ReportedMessage, count: int, old: bool) -> str:
    disposition = message.disposition
    if old and disposition is ReportedDisposition.PASS:
        disposition = ReportedDisposition.NONE
    return "".join(
        (
            "<record><row>",
            _element("source_ip", message.source_ip),
            _element("count", count),
            "<policy_evaluated>",
            _element("disposition", disposition.value),
            _element("dkim", "pass" if message.dkim_aligned else "fail"),  # DAGG-04: aligned, before overrides
            _element("spf", "pass" if message.spf_aligned else "fail"),
            *(_reason(reason, old) for reason in message.reasons),
            "</policy_evaluated></row><identifiers>",
            _optional("envelope_to", message.envelope_to),
            _element("envelope_from", message.envelope_from),
            _element("header_from", message.header_from),
            "</identifiers><auth_results>",
            *(
                "<dkim>"
                + _element("domain", signature.domain)
                + _element("selector", signature.selector)
                + _element("result", signature.result.value)
                + _optional("human_result", signature.human)
                + "</dkim>"
                for signature in message.signatures
            ),
            _spf(message, old),
            "</auth_results></record>\n",
        )
    )


def _reason(reason: ReportedReason, old: bool) -> str:
    type, comment = reason.type.value, reason.comment
    if old and reason.type is ReasonType.POLICY_TEST_MODE:  # which RFC 7489 does not know
        type, comment = ReasonType.OTHER.value, comment or reason.type.value
    return f"<reason>{_element('type', type)}{_optional('comment', comment)}</reason>"


def _spf(message: ReportedMessage, old: bool) -> str:
    spf = message.spf
    if spf is None:
        if not old:
            return ""
        spf = ReportedSpf(message.envelope_from, SpfResult.NONE)  # RFC 7489 wants one (reference H38)
    return (
        "<spf>"
        + _element("domain", spf.domain)
        + _element("scope", "helo" if old and spf.null_path else "mfrom")  # DAGG-05: mfrom is all that RFC 9990 has
        + _element("result", spf.result.value)
        + ("" if old else _optional("human_result", spf.human))
        + "</spf>"
    )
