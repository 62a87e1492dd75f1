"""A mail at a report address, judged: who sent it, whether that is proven, and what it reports (DAGG-21, TRPT-20).

Anybody can send a report on any domain, and figures that somebody made up are worse than none. So a report counts if
its sender is proven: a DMARC report by DMARC of its author, a TLS report by a DKIM signature of its submitter (RFC 8460
3). Who that is was found when the mail came in, and stands in our own Authentication-Results, which no stranger can
write (AR-01). That is looked at first: nothing is unpacked for those who are not proven at all.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from mailrail.core.authres.foreign import authserv_ids
from mailrail.core.authres.read import read_results
from mailrail.core.authres.results import ResultsError, ResultsField
from mailrail.core.dkim.verify import DkimOutcome, DkimResult
from mailrail.core.dmarc.authors import author_domains
from mailrail.core.dmarc.facts import ascii_domain
from mailrail.core.dmarc.report.read import ReceivedAggregate, read_aggregate
from mailrail.core.dmarc.walk import is_at_or_below
from mailrail.core.message.header import HEADER_LIMIT, Header, has_too_many_fields
from mailrail.core.reports.incoming import ReportKind, carried_report
from mailrail.core.reports.unpack import BOUNDS, Bounds, ReportError
from mailrail.core.tlsrpt.read import ReceivedTlsReport, read_tls_report
from mailrail.core.tlsrpt.trust import trusted_submitter

AHEAD: Final = 24 * 3600
"""Seconds by which a period may end after the report came: some senders count days in their own time."""
_FIELDS_LIMIT: Final = 100  # Authentication-Results fields of a message that are looked at


@dataclass(frozen=True, slots=True)
class ReportReader:
    """Who reads, and what counts."""

    hostnames: Collection[str]
    """Of our gateways: they write Authentication-Results under these names, and TLS reports may be about them."""
    domains: Collection[str]
    """Ours. Lower-case A-labels, as the host names."""
    any_sender: bool = False
    """Reports count of senders that are not proven, too."""
    bounds: Bounds = BOUNDS

    def sender(self, header: Header, *, by_us: bool = False) -> "SenderProof":
        """Who sent a mail, by what we found when it came in. `by_us`: our own queue made it, and nobody else.

        Raises ReportError if nothing proves who it was.
        """
        authors = author_domains(header.named(b"from", 2))
        author = authors.domains[0] if len(authors.domains) == 1 and not authors.more else ""
        if by_us:
            return SenderProof(author, author, (), trusted=True)
        found = self._own_results(header)
        passed = _passed(found, "dmarc", "from")
        signers = _passed(found, "dkim", "d")
        # DMRC-01: of several authors none is the one who reports.
        proven = author if author in passed else ""
        if not proven and not signers and not self.any_sender:
            raise ReportError(_unproven(found, author))
        return SenderProof(proven, author, signers, trusted=self.any_sender)

    def _own_results(self, header: Header) -> ResultsField | None:
        """Our own field: the first under a name of ours. None: there is none, or nothing in it can be read."""
        ids = authserv_ids(self.hostnames)
        for field in header.named(b"authentication-results", _FIELDS_LIMIT):
            try:
                found = read_results(field.value)
            except ResultsError:
                continue
            if authserv_ids((found.authserv_id,)) <= ids:
                return found
        return None

    def read(self, mail: bytes, sender: "SenderProof", header: Header, now: float) -> "ReceivedReport":
        """The report of a mail. `now`: when it came, in Unix seconds. Raises ReportError, which says why it does not
        count."""
        carried = carried_report(mail, self.bounds)
        if carried.kind is ReportKind.DMARC:
            aggregate = read_aggregate(carried.octets)
            if not sender.trusted and not sender.proven:
                raise ReportError(f"its sender is not proven: DMARC does not pass for {sender.author or 'its author'}")
            _timely(aggregate.end, now)
            self._about_us((aggregate.policy.domain,))
            return ReceivedReport(sender.proven or sender.author, aggregate)
        tls = read_tls_report(carried.octets)
        if sender.trusted:
            submitter = sender.author
        else:
            passed = [DkimResult(DkimOutcome.PASS, "", domain) for domain in sender.signers]
            submitter = trusted_submitter(header, passed)
        _timely(tls.end, now)
        self._about_us(dict.fromkeys(policy.domain for policy in tls.policies))
        return ReceivedReport(submitter, tls)

    def _about_us(self, domains: Iterable[str]) -> None:
        """A report is about a domain of ours or one above it, whose record may be the one that was found; a TLS report
        may be about a host of ours, too, whose TLSA records were used (TRPT-02b)."""
        told = [domain for domain in domains if domain]
        for domain in map(ascii_domain, told):
            ours = (*self.domains, *self.hostnames)
            if "." in domain and any(is_at_or_below(each, domain) or is_at_or_below(domain, each) for each in ours):
                return
        raise ReportError(f"it is about {', '.join(told[:3]) or 'no domain'}, and not about a domain of ours")


@dataclass(frozen=True, slots=True)
class SenderProof:
    """Who sent a report. Domains are lower-case A-labels; empty: none."""

    proven: str
    """The author domain, if DMARC passed for it."""
    author: str
    """Of a message with one author domain; whoever it was could write it."""
    signers: tuple[str, ...]
    """Of valid DKIM signatures."""
    trusted: bool = False
    """It needs no proof."""

    @property
    def name(self) -> str:
        """By which mails of one sender are counted together."""
        return self.proven or (self.signers[0] if self.signers else self.author)


@dataclass(frozen=True, slots=True)
class ReceivedReport:
    """A report that counts."""

    submitter: str
    """The domain that vouches for it."""
    report: ReceivedAggregate | ReceivedTlsReport

    @property
    def kind(self) -> ReportKind:
        """What it is about."""
        return ReportKind.DMARC if isinstance(self.report, ReceivedAggregate) else ReportKind.TLS

    @property
    def domain(self) -> str:
        """The policy domain; of a TLS report the first that it names."""
        if isinstance(self.report, ReceivedAggregate):
            return self.report.policy.domain
        return next((policy.domain for policy in self.report.policies if policy.domain), "")


def report_header(mail: bytes) -> Header:
    """The header of a mail. Raises ReportError if it has more than is read."""
    head = mail[: HEADER_LIMIT + 1]
    if has_too_many_fields(head):
        raise ReportError("the header of the mail has too many fields")
    header = Header(head)
    if len(header.block) > HEADER_LIMIT:
        raise ReportError(f"the header of the mail has more than {HEADER_LIMIT} octets")
    return header


def _timely(end: int, now: float) -> None:
    if end > now + AHEAD:
        raise ReportError("its period ends in the future")


def _passed(found: ResultsField | None, method: str, property: str) -> tuple[str, ...]:
    if found is None:
        return ()
    named = [r.value("header", property) or "" for r in found.results if (r.method, r.result) == (method, "pass")]
    return tuple(dict.fromkeys(domain for each in named if (domain := ascii_domain(each))))


def _unproven(found: ResultsField | None, author: str) -> str:
    if found is None:
        return "nothing proves who sent it: there are no Authentication-Results of ours in it"
    told = ", ".join(f"{r.method}={r.result}" for r in found.results if r.method in ("spf", "dkim", "dmarc"))
    return f"nothing proves that it is of {author or 'its author'}: {told or 'nothing was checked'}"
