"""Whether a report mail comes from whom it says: a TLS report counts only with a DKIM signature (RFC 8460 3, TRPT-20).

Without it anybody could tell a domain that its TLS fails, or that all is well.
"""

from collections.abc import Iterable
from typing import Final

from mailrail.core.dkim.key import MAIL
from mailrail.core.dkim.verify import DkimOutcome, DkimResult
from mailrail.core.dmarc.authors import author_domains
from mailrail.core.dmarc.facts import ascii_domain
from mailrail.core.dmarc.walk import is_at_or_below
from mailrail.core.message.header import Header
from mailrail.core.reports.unpack import ReportError

SERVICES: Final = (MAIL, b"tlsrpt")
"""TRPT-20: what a key may be for that signs a report. Who verifies the mail gives these to `dkim.verify`."""
_SUBMITTER: Final = b"tls-report-submitter"


def trusted_submitter(header: Header, results: Iterable[DkimResult]) -> str:
    """The domain that vouches for a report mail, in lower-case A-labels. `results`: of its signatures, by `SERVICES`.

    The submitter is who the mail says it is: TLS-Report-Submitter, or the author where that field lacks. The signature
    is of that domain or of one above it, whose owner can sign for it anyway. Raises ReportError.
    """
    submitter = _submitter(header)
    valid = [one.domain for one in results if one.outcome is DkimOutcome.PASS]
    if any("." in signer and is_at_or_below(submitter, signer) for signer in valid):
        return submitter
    others = f"; there are some of {', '.join(valid[:3])}" if valid else ""
    raise ReportError(f"the mail has no valid DKIM signature of {submitter}, which says that it reports{others}")


def _submitter(header: Header) -> str:
    fields = header.named(_SUBMITTER, 2)
    if len(fields) > 1:
        raise ReportError("the mail has several TLS-Report-Submitter fields")
    if fields:
        submitter = ascii_domain(fields[0].text)
        if not submitter:
            raise ReportError("the TLS-Report-Submitter of the mail is no domain name")
        return submitter
    authors = author_domains(header.named(b"from", 2))
    if len(authors.domains) != 1 or authors.more:
        raise ReportError("the mail has neither a TLS-Report-Submitter nor authors of one domain")
    return authors.domains[0]
