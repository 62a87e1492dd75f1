"""Hold rules: which mail waits for an administrator (reference F3 and H27).

A rule is the AND of the fields that it sets, both for what is queued when the rule is made and for what comes later:
an unset field says nothing, so a rule for one recipient domain never catches null-sender mail to another. A rule with
no field set holds everything.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HoldRule:
    """One rule. None = not set. Domains are lower-case A-labels."""

    id: int
    account: str | None = None
    """`namespace/name` of the account that sent the mail."""
    sender_domain: str | None = None
    recipient_domain: str | None = None
    comment: str = ""

    def matches(self, *, account: str | None, sender_domain: str, recipient_domain: str) -> bool:
        """Whether mail with these facts is to be held. A null sender has the empty domain, which no rule names."""
        return (
            (self.account is None or self.account == account)
            and (self.sender_domain is None or self.sender_domain == sender_domain)
            and (self.recipient_domain is None or self.recipient_domain == recipient_domain)
        )

    @property
    def reason(self) -> str:
        """What the hold says on a recipient."""
        return f"hold rule {self.id}" + (f": {self.comment}" if self.comment else "")


def first_match(
    rules: Iterable[HoldRule], *, account: str | None, sender_domain: str, recipient_domain: str
) -> HoldRule | None:
    """The first rule that holds this mail, or None."""
    for rule in rules:
        if rule.matches(account=account, sender_domain=sender_domain, recipient_domain=recipient_domain):
            return rule
    return None
