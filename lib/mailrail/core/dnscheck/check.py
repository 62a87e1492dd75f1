"""Which DNS records a MailDomain needs, and what is wrong with those that are there. Pure: answers go in.

    check(needs, answers) → Verdict, or the Questions that must be answered first

The caller looks up what is asked and calls again with all answers so far; a few rounds end it, because SPF is bounded.
The verdict is the condition `DNSConfigured`, which is no part of Ready: somebody must act outside the cluster, and
nothing in it waits for that.

Records: SPF (RFC 7208) must cover every address that the domain's mail can leave from, those of SOCKS proxies included;
DKIM (RFC 6376, 8463) must publish each signing key; DMARC (RFC 9989) here or at a parent domain; for domains that
receive: MX, MTA-STS (RFC 8461) and TLSRPT (RFC 8460). Each egress address needs a PTR whose name leads back to it.
"""

from collections.abc import Mapping, Sequence

from mailrail.core.dnscheck.answers import (
    Ask,
    DnsAnswer,
    DnsAnswers,
    DnsReason,
    DnsVerdict,
    Question,
    Record,
    RecordState,
)
from mailrail.core.dnscheck.mta_sts import NOT_SERVED, mta_sts
from mailrail.core.dnscheck.needs import Needs
from mailrail.core.dnscheck.records import dkim, dmarc, mx, ptr, tls_reports
from mailrail.core.dnscheck.spf import spf


def check(needs: Needs, known: Mapping[Question, DnsAnswer]) -> DnsVerdict | frozenset[Question]:
    """The verdict; or the questions whose answers it needs first."""
    answers = DnsAnswers(known)
    records: list[Record] = []
    for part in (spf, dkim, dmarc, mx, mta_sts, tls_reports):
        try:
            records += part(needs, answers)
        except Ask:
            continue
    for egress in needs.egress:
        try:
            records.append(ptr(egress, answers))
        except Ask:
            continue
    if answers.open:
        return frozenset(answers.open)
    return _verdict(needs, records)


def _verdict(needs: Needs, records: Sequence[Record]) -> DnsVerdict:
    wrong = [r for r in records if r.wanting]
    unknown = [r for r in records if r.state is RecordState.UNKNOWN]
    noted = "".join(f"; {note}" for note in needs.notes)
    if wrong:
        return DnsVerdict("False", DnsReason.RECORDS_MISSING, "; ".join(map(_words, wrong)) + noted, tuple(records))
    if unknown and all(r.held_back for r in unknown):
        return DnsVerdict("Unknown", DnsReason.PENDING, f"MTA-STS: {NOT_SERVED}{noted}", tuple(records))
    if unknown:
        names = ", ".join(dict.fromkeys(f"{r.purpose} {r.name}" for r in unknown))
        return DnsVerdict("Unknown", DnsReason.LOOKUP_FAILED, f"no answer for {names}{noted}", tuple(records))
    return DnsVerdict("True", DnsReason.CONFIGURED, "every record is there" + noted, tuple(records))


def _words(record: Record) -> str:
    if record.state is RecordState.MISSING:
        return f"{record.purpose}: publish {record.type} {record.name} {record.value}"
    return f"{record.purpose}: {record.message}"
