"""Whether MAIL FROM belongs to whoever sent the message, by SPF, DKIM and DMARC (DSN-26b; `dsn.due` goes by it)."""

from collections.abc import Iterable

from mailrail.core.dmarc.evaluate import DmarcResult, DmarcVerdict
from mailrail.core.dmarc.facts import FAIL, PASS, DkimFact, SpfFact, ascii_domain
from mailrail.core.dmarc.walk import is_at_or_below
from mailrail.core.dsn.due import SenderAuthentication


def sender_authenticated(
    mail_from_domain: str, spf: SpfFact, dkim: Iterable[DkimFact], verdicts: Iterable[DmarcVerdict]
) -> SenderAuthentication:
    """Of a message from a stranger. `mail_from_domain`: of the reverse-path; empty: it is null, and nobody is answered.

    Yes: SPF passes for that domain, or DMARC passes for it as the author's. Forged: SPF fails, and no valid signature
    is of that domain, of one above or below it, or aligned with an author. Else it is
    unknown.
    """
    domain = ascii_domain(mail_from_domain)
    if not domain:
        return SenderAuthentication.UNKNOWN
    verdicts = tuple(verdicts)
    spf_is_of_it = ascii_domain(spf.domain) == domain
    if spf.result == PASS and spf_is_of_it:
        return SenderAuthentication.YES
    if any(verdict.result is DmarcResult.PASS and verdict.author == domain for verdict in verdicts):
        return SenderAuthentication.YES
    signers = {ascii_domain(one.domain) for one in dkim if one.result == PASS} - {""}
    signed = any(verdict.dkim_aligned for verdict in verdicts) or any(
        is_at_or_below(signer, domain) or is_at_or_below(domain, signer) for signer in signers
    )
    if spf.result == FAIL and spf_is_of_it and not signed:
        return SenderAuthentication.FORGED
    return SenderAuthentication.UNKNOWN
