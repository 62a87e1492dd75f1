"""Whose mail a message claims to be: the domains of its From field (RFC 9989 5.3.1, 11.5; DMRC-01)."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from mailrail.core.message.header import Field, HeaderError, mailboxes
from mailrail.core.smtp.reply import Reply

AUTHORS_LIMIT: Final = 10
"""Author domains that are evaluated (DMRC-01)."""


class AuthorFault(StrEnum):
    """Why there is no author domain; the values are sentences for people."""

    NO_FIELD = "the message has no From field"
    SEVERAL_FIELDS = "the message has several From fields"
    UNREADABLE = "the From field cannot be read for certain"
    NO_DOMAIN = "the From field names no author with a domain"


@dataclass(frozen=True, slots=True)
class AuthorDomains:
    """What the From field says."""

    domains: tuple[str, ...]
    """Lower-case A-labels, each once, in their order; at most AUTHORS_LIMIT."""
    fault: AuthorFault | None = None
    """Set if there is no domain: DMARC evaluates nothing then."""
    more: bool = False
    """There are others, which are not evaluated."""

    @property
    def refusal(self) -> Reply | None:
        """How the message is refused for its authors alone (CHOICE in DMRC-01): with several From fields, readers
        show what DMARC did not look at, and RFC 5322 3.6 allows one. None: it is not."""
        if self.fault is AuthorFault.SEVERAL_FIELDS:
            return Reply.of(550, "5.6.0", f"{self.fault}; RFC 5322 allows one")
        return None


def author_domains(fields: Sequence[Field]) -> AuthorDomains:
    """The author domains of a message with these From fields. Never raises.

    DMRC-01: domains count and not mailboxes, so several authors of one domain are one. An address literal is no domain
    that could publish anything.
    """
    if len(fields) != 1:
        return AuthorDomains((), AuthorFault.SEVERAL_FIELDS if fields else AuthorFault.NO_FIELD)
    domains: dict[str, None] = {}
    more = False
    try:
        for address in mailboxes(fields[0]).addresses:
            if address.is_literal or not address.domain or address.domain in domains:
                continue
            if len(domains) == AUTHORS_LIMIT:
                more = True
                break
            domains[address.domain] = None
    except HeaderError:
        return AuthorDomains((), AuthorFault.UNREADABLE)
    return AuthorDomains(tuple(domains), None if domains else AuthorFault.NO_DOMAIN, more)
