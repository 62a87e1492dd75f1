"""What was found about who sent a message, and what follows from it."""

from dataclasses import dataclass, field
from typing import Final

from mailrail.core.arc.chain import ArcResult
from mailrail.core.dkim.verify import SIGNATURES_LIMIT, DkimResult
from mailrail.core.dmarc.disposition import DmarcAction, DmarcDisposition, EnforcementRules
from mailrail.core.dmarc.evaluate import DmarcEvaluation
from mailrail.core.dmarc.psl import SuffixList
from mailrail.core.dmarc.report.facts import ReportedReason
from mailrail.core.dsn.due import SenderAuthentication
from mailrail.core.message_authentication.iprev import IprevVerdict
from mailrail.core.smtp.address import Address
from mailrail.core.smtp.reply import Reply
from mailrail.core.spf.evaluation import VOID_LIMIT
from mailrail.core.spf.record import IpAddress
from mailrail.core.spf.result import SpfResult, SpfVerdict

MAY_BE_REFUSED: Final = frozenset({SpfResult.FAIL, SpfResult.TEMPERROR, SpfResult.PERMERROR})
"""Results of SPF that can refuse a message by themselves. A softfail never does (SPF-13)."""


@dataclass(frozen=True, slots=True)
class ClientIdentity:
    """Who hands a message over, by the connection and by what it said."""

    address: IpAddress
    """As the socket has it, or the real client's where a trusted relay or proxy told it."""
    helo: str
    """As the client said it."""
    sender: Address | None
    """The reverse-path; None: the null one."""


@dataclass(frozen=True, slots=True)
class AuthenticationRules:
    """How an installation goes about it."""

    hostname: str
    """Under which results are written (the authserv-id of RFC 8601 2.5)."""
    enforcement: EnforcementRules = field(default_factory=EnforcementRules)
    trusted_forwarders: tuple[str, ...] = ()
    """Networks and domains: `dmarc.disposition.trusted_forwarder`."""
    suffixes: SuffixList | None = None
    """Go by this list of public suffixes; None: by the tree walk (DMRC-20a)."""
    refused_spf: frozenset[SpfResult] = frozenset({SpfResult.FAIL})
    """Results of SPF that refuse a message where no DMARC record decides; others than MAY_BE_REFUSED mean nothing."""
    spf_void_limit: int = VOID_LIMIT


@dataclass(frozen=True, slots=True)
class MessageVerdict:
    """All that was found about one message."""

    client: ClientIdentity
    """With an address as the DNS has it."""
    iprev: IprevVerdict
    spf_helo: SpfVerdict | None
    """Of the HELO name. None: it is no domain name, or the reverse-path is null and `spf` is the same."""
    spf: SpfVerdict
    """Of MAIL FROM; for a null reverse-path of postmaster at the HELO name (SPF-10)."""
    dkim: tuple[DkimResult, ...]
    """In the order of the signatures; past SIGNATURES_LIMIT they are counted and not evaluated."""
    arc: ArcResult
    dmarc: DmarcEvaluation
    disposition: DmarcDisposition
    """What DMARC makes of the message, with the reasons of an override."""
    exceptions: tuple[ReportedReason, ...]
    """What is known here that explains a failure: the message comes from a forwarder that is trusted."""
    sender: SenderAuthentication
    """Whether MAIL FROM belongs to whoever sent the message (DSN-26b)."""
    reply: Reply | None
    """To the end of the content, if the message is refused or deferred; None: it is accepted."""
    results: bytes
    """The Authentication-Results field to put on top, with its line end (AR-02 says where)."""

    @property
    def action(self) -> DmarcAction:
        """What becomes of the message, whichever rule said it."""
        if self.reply is None:
            return self.disposition.action
        return DmarcAction.DEFER if self.reply.transient else DmarcAction.REJECT

    @property
    def evaluated_dkim(self) -> tuple[DkimResult, ...]:
        """The results of the signatures that were evaluated (DKIM-01)."""
        return self.dkim[:SIGNATURES_LIMIT]

    @property
    def lacks_answers(self) -> bool:
        """Whether the DNS did not answer something that might have changed a result. ARC has no such result."""
        found = [self.iprev.result, self.spf.result, *(each.outcome for each in self.evaluated_dkim)]
        found += [self.spf_helo.result] if self.spf_helo is not None else []
        found += [each.result for each in self.dmarc.verdicts]
        return "temperror" in found
