"""Whose address it is: recipients of mail that the queue itself makes, resolved as ingress resolves those of others.

A DSN may go to one of our own users. Its recipient is then found as design section 5 says: account, alias, the part
before a separator, what the domain says of others, catch-all; aliases are expanded once. Built once per revision.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from mailrail.core.config.recipients import Directory, End, Node
from mailrail.core.config.revision import Account, Delivery, Domain, Gateway, ObjectRef, Revision

INBOX = "Inbox"
"""Where mail lands unless something else is said."""
_TARGETS = 1000
"""Recipients that one address may stand for; the compiler keeps aliases far below."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """A recipient as the queue stores it."""

    address: str
    domain: Domain | None
    """The MailDomain that receives it; None for a foreign address, or a domain that we only send for."""
    account: ObjectRef | None = None
    """With a built-in mailbox: whose."""
    mailbox: str = INBOX


class Addresses:
    """The accounts, aliases and domains of one revision, by address."""

    def __init__(self, revision: Revision) -> None:
        self._domains: dict[str, Domain] = {d.name: d for d in revision.domains}
        self._gateways: dict[ObjectRef, Gateway] = {g.ref: g for g in revision.gateways}
        self._first = revision.gateways[0] if revision.gateways else None
        self.accounts: dict[ObjectRef, Account] = {a.ref: a for a in revision.accounts}
        self.logins: dict[str, Account] = {a.login: a for a in revision.accounts}
        self._owners: dict[str, ObjectRef] = {
            _key(address): account.ref for account in revision.accounts for address in account.addresses
        }
        self._directory = Directory(revision.domains, frozenset(self._owners))

    def account(self, name: str) -> Account | None:
        """An account by `namespace/name` or by login."""
        namespace, slash, rest = name.partition("/")
        found = self.accounts.get(ObjectRef("MailAccount", namespace, rest)) if slash else None
        return found or self.logins.get(name)

    def postmaster(self, domain: Domain | None) -> tuple[ObjectRef, str] | None:
        """The postmaster's account and mailbox for a domain of ours, or of the installation."""
        gateway = self._gateways.get(domain.gateway) if domain is not None and domain.gateway is not None else None
        gateway = gateway or self._first
        return (gateway.postmaster, gateway.postmaster_mailbox) if gateway is not None else None

    def resolve(self, address: str) -> tuple[Resolved, ...]:
        """The recipients that an address stands for, at least one. An address of ours that nobody has stands for
        itself, without an account: delivery finds that out.
        """
        found: dict[str, Resolved] = {}
        seen: set[Node] = set()
        waiting = [address]
        while waiting and len(found) < _TARGETS:
            self._step(waiting.pop(), found, seen, waiting)
        return tuple(found.values()) or (Resolved(address, self._receiving(address)),)

    def _step(self, address: str, found: dict[str, Resolved], seen: set[Node], waiting: list[str]) -> None:
        local, _, name = address.rpartition("@")
        step = self._directory.lookup(f"{local}@{name.lower()}")
        domain = self._receiving(address)
        any_of_domain = self._owners.get("@" + domain.name) if domain is not None else None
        if isinstance(step, Node) and not (step.local is None and any_of_domain is not None):
            if step not in seen:
                seen.add(step)
                waiting.extend(reversed(self._directory.targets(step)))
            return
        account, mailbox = None, INBOX
        if domain is not None and domain.delivery is Delivery.MAILBOX:
            if step is End.ACCOUNT:
                account = self._owner(address, domain)
            elif step is End.POSTMASTER:
                master = self.postmaster(domain)
                account, mailbox = master if master is not None else (None, INBOX)
            else:
                account = any_of_domain
        found.setdefault(address, Resolved(address, domain, account, mailbox))

    def _receiving(self, address: str) -> Domain | None:
        domain = self._domains.get(address.rpartition("@")[2].lower())
        return domain if domain is not None and domain.delivery is not Delivery.NONE else None

    def _owner(self, address: str, domain: Domain) -> ObjectRef | None:
        local = address.rpartition("@")[0].casefold()
        for part in _parts(local, domain.separators):
            owner = self._owners.get(f"{part}@{domain.name}")
            if owner is not None:
                return owner
        return None


def _parts(local: str, separators: str) -> Iterable[str]:
    yield local
    cuts = [at for s in separators if (at := local.find(s)) > 0]
    if cuts:
        yield local[: min(cuts)]


def _key(address: str) -> str:
    local, _, domain = address.rpartition("@")
    return f"{local.casefold()}@{domain.lower()}"
