"""Whether a message is refused for what SPF and DMARC say, and with which reply (RFC 7372, RFC 9989 5.4)."""

from typing import Final

from mailrail.core.dmarc.disposition import DmarcDisposition
from mailrail.core.dmarc.evaluate import DmarcEvaluation, DmarcResult
from mailrail.core.dsn.due import SenderAuthentication
from mailrail.core.message_authentication.verdict import MAY_BE_REFUSED, AuthenticationRules
from mailrail.core.smtp.reply import Reply
from mailrail.core.spf.explanation import as_said_by
from mailrail.core.spf.result import SpfResult, SpfVerdict

_LINE: Final = 480
"""Characters of a line of a reply; with its codes it has at most 512 octets (RFC 5321 4.5.3.1.5)."""


def refusal(
    rules: AuthenticationRules,
    dmarc: DmarcEvaluation,
    disposition: DmarcDisposition,
    spf: SpfVerdict,
    spf_domain: SenderAuthentication,
    *,
    excepted: bool,
    late: bool,
) -> Reply | None:
    """The reply to the end of the content; None: the message is accepted.

    `spf_domain`: whether the domain that SPF checked belongs to whoever sent the message. `excepted`: the message comes
    from a forwarder that is trusted here. `late`: all the time for questions is used up.
    """
    if not rules.enforcement.enforce:
        return None
    if dmarc.authors.refusal is not None:
        return dmarc.authors.refusal  # DMRC-01
    if disposition.reply is not None:
        return disposition.reply
    if late and not excepted and dmarc.result is DmarcResult.TEMPERROR:
        # DMRC-13a accepts what the DNS cannot say. But whoever sends can make his part of it slow at will.
        return Reply.of(451, "4.4.3", "the DNS takes too long to say who sent this message")
    # SPF-14a: a domain with a DMARC record has said itself what a failure means; SPF alone decides only without one.
    if excepted or dmarc.result not in (None, DmarcResult.NONE):
        return None
    if spf.result not in rules.refused_spf & MAY_BE_REFUSED or spf_domain is SenderAuthentication.YES:
        return None
    if spf.result is SpfResult.FAIL and spf_domain is not SenderAuthentication.FORGED:
        return None  # SPF-14a: a valid signature of the domain outweighs the address
    return _of_spf(spf)


def _of_spf(spf: SpfVerdict) -> Reply:
    """SPF-13, with the codes of RFC 7372 3.2."""
    if spf.result is SpfResult.TEMPERROR:
        return Reply.of(451, "4.7.24", f"SPF of {spf.domain} cannot be evaluated now: the DNS does not answer")
    if spf.result is SpfResult.PERMERROR:
        return Reply.of(550, "5.7.24", f"SPF of {spf.domain} cannot be evaluated:", spf.reason[:_LINE])
    lines = ["SPF fails, and no DKIM signature proves the sender:", spf.reason[:_LINE]]
    if spf.explanation:
        # RFC 7208 6.2: the words of a stranger, who is named.
        lines.append(as_said_by(spf.record_domain or spf.domain, spf.explanation)[:_LINE])
    return Reply.of(550, "5.7.23", *lines)
