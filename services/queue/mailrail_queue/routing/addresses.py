"""Whose address it is: recipients of mail that the queue itself makes, resolved as ingress resolves those of others.

A DSN may go to one of our own users. `mailrail.core.route.recipients` finds its recipients: account, alias, the part
before a separator, what the domain says of others, catch-all; aliases are expanded once. Built once per revision.
"""

from dataclasses import dataclass

from mailrail.core.revision.revision import Account, Domain, DomainDelivery, Gateway, ObjectRef, Revision
from mailrail.core.route.recipients import Destination, Directory
from mailrail.core.smtp.address import AddressError, parse_address
from mailrail.core.smtp.reply import Reply

INBOX = "Inbox"
"""Where mail lands unless something else is said."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """A recipient as the queue stores it."""

    address: str
    domain: Domain | None
    """The MailDomain that receives it; None for a foreign address, or a domain that we only send for and that has no
    address for reports like it."""
    account: ObjectRef | None = None
    """With a built-in mailbox: whose."""
    mailbox: str = INBOX
    reports: bool = False
    """An address for reports."""


class Addresses:
    """The accounts, aliases and domains of one revision, by address."""

    def __init__(self, revision: Revision) -> None:
        self._revision = revision
        self._domains: dict[str, Domain] = {d.name: d for d in revision.domains}
        self._gateways: dict[ObjectRef, Gateway] = {g.ref: g for g in revision.gateways}
        self._directories: dict[ObjectRef, Directory] = {}
        self.accounts: dict[ObjectRef, Account] = {a.ref: a for a in revision.accounts}
        self.logins: dict[str, Account] = {a.login: a for a in revision.accounts}

    def account(self, name: str) -> Account | None:
        """An account by `namespace/name` or by login."""
        namespace, slash, rest = name.partition("/")
        found = self.accounts.get(ObjectRef("MailAccount", namespace, rest)) if slash else None
        return found or self.logins.get(name)

    def reports_mailboxes(self) -> set[tuple[str, str]]:
        """(account, path) of the mailboxes that take mail to report addresses."""
        return {(f"{g.postmaster.namespace}/{g.postmaster.name}", g.reports_mailbox) for g in self._gateways.values()}

    def resolve(self, address: str) -> tuple[Resolved, ...]:
        """The recipients that an address stands for, at least one. An address of ours that nobody has stands for
        itself, without an account: delivery finds that out.
        """
        domain = self._receiving(address.rpartition("@")[2].lower())
        directory = self._directory(domain)
        if directory is not None:
            try:
                found = directory.resolve(parse_address(address), authenticated=True)
            except AddressError:  # it was one when it was accepted; whatever it is now, delivery judges it
                return (Resolved(address, domain),)
            if not isinstance(found, Reply):
                return tuple(self._resolved(end) for end in found.destinations)
        return (Resolved(address, domain),)

    def _resolved(self, end: Destination) -> Resolved:
        domain = self._domains.get(end.address.domain) if end.reports else self._receiving(end.address.domain)
        return Resolved(str(end.address), domain, end.account, end.mailbox, end.reports)

    def _receiving(self, name: str) -> Domain | None:
        domain = self._domains.get(name)
        return domain if domain is not None and domain.delivery is not DomainDelivery.NONE else None

    def _directory(self, domain: Domain | None) -> Directory | None:
        """That of the domain's gateway, else of the first."""
        ref = (
            domain.gateway
            if domain is not None and domain.gateway in self._gateways
            else next(iter(self._gateways), None)
        )
        if ref is None:
            return None
        if ref not in self._directories:
            self._directories[ref] = Directory(self._revision, self._gateways[ref])
        return self._directories[ref]
