"""Whether the names of the client's address lead back to it (RFC 8601 3, method `iprev`)."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from mailrail.core.lookups import Asking, DnsOutcome, DnsQuestion
from mailrail.core.shown import shown_text
from mailrail.core.spf.macro import name_of
from mailrail.core.spf.record import IpAddress

NAMES_LIMIT: Final = 10
"""Names of one address that are looked up; more are passed over, as SPF does (RFC 7208 5.5)."""
QUESTION_LIMIT: Final = 1 + NAMES_LIMIT
"""Questions of one evaluation."""


class IprevResult(StrEnum):
    """The results, in the words of RFC 8601 2.7.3."""

    PASS = "pass"  # noqa: S105 - no password
    FAIL = "fail"
    """There are names, and none leads back."""
    TEMPERROR = "temperror"
    PERMERROR = "permerror"
    """There is no name."""


@dataclass(frozen=True, slots=True)
class IprevVerdict:
    """What came of one address."""

    result: IprevResult
    client: IpAddress
    reason: str
    """Why, in plain words: printable ASCII, bounded."""
    name: str = ""
    """The first name that leads back; empty unless it passes."""


def check_names(client: IpAddress) -> Asking[IprevVerdict]:
    """Ask for the names of an address, and for the addresses of those. Never raises."""
    (answer,) = yield (DnsQuestion(client.reverse_pointer, "PTR"),)
    if answer.outcome is DnsOutcome.TROUBLE:
        return IprevVerdict(IprevResult.TEMPERROR, client, f"the DNS did not say what the name of {client} is")
    names = tuple(dict.fromkeys(name for name in answer.names[:NAMES_LIMIT] if name_of(name) == name))
    if not names:
        return IprevVerdict(IprevResult.PERMERROR, client, f"{client} has no name in the DNS")
    answers = yield tuple(DnsQuestion(name, "A" if client.version == 4 else "AAAA") for name in names)
    for name, each in zip(names, answers, strict=True):
        if client in each.addresses:
            reason = f"{client} has the name {shown_text(name)}, which leads back to it"
            return IprevVerdict(IprevResult.PASS, client, reason, name)
    if any(each.outcome is DnsOutcome.TROUBLE for each in answers):
        reason = f"the DNS did not say where {shown_text(names[0])} leads, which is a name of {client}"
        return IprevVerdict(IprevResult.TEMPERROR, client, reason)
    reason = f"{client} has the name {shown_text(names[0])}, which does not lead back to it"
    if len(names) > 1:
        reason = f"{client} has {len(names)} names, such as {shown_text(names[0])}, and none leads back to it"
    return IprevVerdict(IprevResult.FAIL, client, reason)
