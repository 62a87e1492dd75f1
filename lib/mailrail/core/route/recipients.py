"""Who a recipient address stands for, and who may send as whom: the configuration, indexed once per revision.

Order: an address for reports, whatever becomes of other mail to the domain; an account's address, then an alias, then
both again for the part before a separator, then what the domain lists or, delivered by a transport, takes unseen;
`postmaster` of a received domain always resolves; then an account that owns `@domain`, then the catch-all. Local parts
compare without case (`folded`) and keep their spelling on the wire.

Aliases are followed to their ends here, once, at accept. The compiler refused cycles and aliases that lead to too many
addresses; what it could not refuse is refused here. The list of recipients is whole or there is none.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from mailrail.core.limits import EXPANSION_LIMIT
from mailrail.core.revision.revision import Account, Domain, DomainDelivery, Gateway, ObjectRef, Recipients, Revision
from mailrail.core.smtp.address import Address, AddressError, folded, parse_address
from mailrail.core.smtp.parameters import Notify, RcptParameters
from mailrail.core.smtp.reply import Reply

REMEMBERED_LIMIT: Final = 200_000
"""Addresses that aliases stand for and that are remembered: some 30 MB."""

NO_SUCH_USER: Final = Reply.of(550, "5.1.1", "no such user here")
RELAY_DENIED: Final = Reply.of(550, "5.7.1", "relaying denied: this server does not receive mail for that domain")
ROUTED: Final = Reply.of(550, "5.7.1", "relaying denied: the local part has a route to another host")
SEND_ONLY: Final = Reply.of(550, "5.7.1", "this domain does not receive mail here")
NOT_QUALIFIED: Final = Reply.of(554, "5.1.2", "the domain is not fully qualified")
NOT_YOUR_ADDRESS: Final = Reply.of(550, "5.7.1", "you may not send as this address")
ALIAS_TOO_LARGE: Final = Reply.of(
    451, "4.3.5", f"the address is misconfigured here: it stands for more than {EXPANSION_LIMIT} addresses"
)
"""Temporary: it is our configuration that is wrong, and the mail can go on when that is mended (RFC 3463 X.3.5)."""
ALIAS_BROKEN: Final = Reply.of(451, "4.3.5", "the address is misconfigured here: it stands for one that is not valid")
VERIFICATION_UNAVAILABLE: Final = Reply.of(451, "4.3.0", "the recipient cannot be verified for now; try again later")


class How(StrEnum):
    """By which rule an address resolved; for people and for tests."""

    EXACT = "exact"
    LISTED = "listed"
    ALIAS = "alias"
    SEPARATOR = "separator"
    ANY = "any"
    POSTMASTER = "postmaster"
    CATCH_ALL = "catch-all"
    REPORTS = "reports"
    FOREIGN = "foreign"
    CAPTIVE = "captive"


_UNSEEN: Final = frozenset({How.ANY, How.SEPARATOR, How.CATCH_ALL})
"""Where the local part is a stranger's words: nobody wrote it into the configuration."""


# These two are made for each RCPT. Nobody changes them; but freezing them would triple what making them costs.


@dataclass(slots=True)
class Destination:
    """One recipient that an address stands for."""

    address: Address
    domain: ObjectRef | None = None
    """The MailDomain it belongs to; None: foreign."""
    account: ObjectRef | None = None
    """Whose built-in mailbox takes it, in domains delivered there."""
    mailbox: str = "Inbox"
    verify: bool = False
    """Exists only if the next hop says so (recipients: Verify)."""
    reports: bool = False
    """An address for reports: the mailbox of `account` takes it, however the domain delivers."""


@dataclass(slots=True)
class Resolution:
    """What an address stands for: at least one destination."""

    how: How
    destinations: tuple[Destination, ...]
    missing: tuple[Address, ...] = ()
    """Addresses of ours that it should stand for as well and that do not exist: an account was deleted, say. Mail goes
    on to the others, as the compiler says at that object; whoever accepts mail has to say it too."""

    @property
    def several(self) -> bool:
        """A list rather than a forward: DSN parameters are treated differently (DSN-23)."""
        return len(self.destinations) > 1


def passed_on(parameters: RcptParameters, resolution: Resolution) -> tuple[RcptParameters, bool]:
    """DSN parameters of the copies, and whether an `expanded` DSN is due (DSN-23, RFC 3461 5.2.7).

    To one address they are passed on. To several, SUCCESS is answered by `expanded` and asked of no copy; what is left
    of NOTIFY=SUCCESS alone is NEVER, since an absent NOTIFY would ask for failures.
    """
    if not resolution.several or Notify.SUCCESS not in parameters.notify:
        return parameters, False
    left = tuple(word for word in parameters.notify if word is not Notify.SUCCESS)
    return RcptParameters(left or (Notify.NEVER,), parameters.orcpt), True


@dataclass(slots=True)
class _DomainIndex:
    domain: Domain
    accounts: dict[str, ObjectRef]
    """Lower-case local part → owner."""
    aliases: dict[str, tuple[Address, ...] | Reply]
    listed: frozenset[str]
    catch_all: tuple[Address, ...] | Reply
    """One or none."""
    reports: frozenset[str]
    """Local parts of its report addresses."""
    everyone: ObjectRef | None = None
    """The account that owns `@domain`."""


_Followed = tuple[tuple[Destination, ...], tuple[Address, ...]]
"""Where addresses lead, and those of them that do not exist."""


class Directory:
    """The recipients and senders of one gateway under one revision. Lookups cost the same however large it is."""

    def __init__(self, revision: Revision, gateway: Gateway) -> None:
        self._domains: dict[str, _DomainIndex] = {}
        for domain in revision.domains:
            self._domains[domain.name] = _DomainIndex(
                domain,
                {},
                {alias.local: _targets(alias.targets) for alias in domain.aliases},
                frozenset(domain.listed),
                _targets((domain.catch_all,)) if domain.catch_all else (),
                domain.reports.locals if domain.reports is not None else frozenset(),
            )
        self._transports = {domain.ref: domain.transport for domain in revision.domains}
        self._accounts: dict[ObjectRef, Account] = {account.ref: account for account in revision.accounts}
        self._sendable: dict[ObjectRef, tuple[frozenset[str], frozenset[str]]] = {}
        for account in revision.accounts:
            self._add(account)
        self._gateway = gateway
        self._followed: dict[int, _Followed | Reply] = {}  # by the identity of what an alias stands for
        self._remembered = 0  # addresses in there
        self._postmaster = self._accounts.get(gateway.postmaster)
        self._postmaster_address: tuple[Address, ...] = ()
        if self._postmaster is not None:
            own = self._postmaster.received or self._postmaster.send_as
            named = _addresses(text for text in own if not text.startswith("@"))
            self._postmaster_address = named[:1] or _addresses(f"postmaster{text}" for text in own)[:1]

    def _add(self, account: Account) -> None:
        lists = (account.addresses, account.receive, account.send_as)
        (both, whole), (received, whole_received), (sent, whole_sent) = map(_parted, lists)
        for name in whole + whole_received:
            index = self._domains.get(name)
            if index is not None and index.everyone is None:
                index.everyone = account.ref
        for address in both + received:
            index = self._domains.get(address.domain)
            if index is not None:
                index.accounts.setdefault(folded(address.local), account.ref)
        self._sendable[account.ref] = (frozenset(a.key for a in both + sent), frozenset(whole + whole_sent))

    # --- domains and accounts ---

    def is_ours(self, domain: str) -> bool:
        """Whether the domain has a MailDomain, received or not."""
        return domain in self._domains

    def transport(self, domain: ObjectRef | None) -> ObjectRef | None:
        """The delivery transport of one of our domains, None when it has none."""
        return self._transports.get(domain) if domain is not None else None

    def account(self, ref: ObjectRef) -> Account | None:
        """The account behind a reference."""
        return self._accounts.get(ref)

    # --- recipients ---

    def resolve(self, recipient: Address, *, authenticated: bool, captive: bool = False) -> Resolution | Reply:
        """Where mail for `recipient` goes, or what to say to RCPT instead.

        `authenticated`: the client logged in and may relay. `captive`: local mode takes any recipient (design 10).
        """
        if not recipient.domain:  # SIN-09
            return self._resolution(How.POSTMASTER, self._postmaster_ends())
        index = self._domains.get(recipient.domain)
        if index is not None and (reports := self._for_reports(recipient, index)) is not None:
            return Resolution(How.REPORTS, (reports,))
        if index is None or index.domain.delivery is DomainDelivery.NONE:
            if not authenticated and not captive:
                return RELAY_DENIED if index is None else SEND_ONLY
            if index is None and authenticated and not recipient.is_literal and "." not in recipient.domain:
                return NOT_QUALIFIED  # SUB-02a
        found = self._step(recipient)
        if found is not None:
            how, end = found
            if isinstance(end, Destination):
                if how in _UNSEEN and not authenticated and not captive and self._is_routed(end):
                    return ROUTED
                return Resolution(how, (end,))
            if isinstance(end, Reply):
                return end
            followed = self._postmaster_ends() if how is How.POSTMASTER else self._follow(end)
            if how is How.CATCH_ALL and not isinstance(followed, Reply):
                followed = self._under_given_address(recipient, followed[0]), followed[1]
            resolution = self._resolution(how, followed)
            if resolution is not NO_SUCH_USER:
                return resolution
        if captive and self._postmaster is not None:
            assert index is not None
            return Resolution(How.CAPTIVE, (self._own(recipient, index.domain, self._postmaster.ref),))
        return NO_SUCH_USER

    @staticmethod
    def _resolution(how: How, followed: "_Followed | Reply") -> Resolution | Reply:
        if isinstance(followed, Reply):
            return followed
        ends, missing = followed
        return Resolution(how, ends, missing) if ends else NO_SUCH_USER

    def _is_routed(self, end: Destination) -> bool:
        """Whether the next hop might read the local part as a route, and trust us with it (SIN-16)."""
        if end.domain is None or self._transports.get(end.domain) is None:
            return False
        return any(mark in end.address.local for mark in "@%!")

    def _step(self, address: Address) -> tuple[How, "Destination | tuple[Address, ...] | Reply"] | None:
        """One step from an address: where it ends, the addresses that it stands for, or why they cannot be told; None
        when it does not exist."""
        index = self._domains.get(address.domain)
        if index is not None and (reports := self._for_reports(address, index)) is not None:
            return How.REPORTS, reports
        if index is None or index.domain.delivery is DomainDelivery.NONE:
            return How.FOREIGN, Destination(address, index.domain.ref if index is not None else None)
        domain = index.domain
        local = folded(address.local)
        cut = 0
        for mark in domain.separators:
            at = local.find(mark, 1)
            if at > 0 and (at < cut or not cut):
                cut = at
        for part in (local, local[:cut]) if cut else (local,):
            tagged = part != local
            account = index.accounts.get(part)
            if account is not None:
                return How.SEPARATOR if tagged else How.EXACT, self._own(address, domain, account)
            targets = index.aliases.get(part)
            if targets is not None:
                return How.SEPARATOR if tagged else How.ALIAS, targets
            if part in index.listed:
                return How.SEPARATOR if tagged else How.LISTED, Destination(address, domain.ref)
        if local == "postmaster" and self._postmaster is not None:
            # RFC 5321 4.5.1: it always resolves; unclaimed, to the gateway's postmaster account.
            if domain.delivery is DomainDelivery.MAILBOX:
                return How.POSTMASTER, self._in_postmaster_mailbox(address, domain, self._postmaster.ref)
            return How.POSTMASTER, self._postmaster_address
        if domain.delivery is DomainDelivery.TRANSPORT and domain.recipients is not Recipients.LISTED:
            return How.ANY, Destination(address, domain.ref, verify=domain.recipients is Recipients.VERIFY)
        if index.everyone is not None:
            return How.CATCH_ALL, self._own(address, domain, index.everyone)
        return (How.CATCH_ALL, index.catch_all) if index.catch_all else None

    def _for_reports(self, address: Address, index: _DomainIndex) -> Destination | None:
        """The postmaster's mailbox for reports, if this is an address for them. It is one as it is written: what
        stands behind a separator does not lead there (reference A12)."""
        if not index.reports or self._postmaster is None or folded(address.local) not in index.reports:
            return None
        mailbox = self._gateway.reports_mailbox
        return Destination(address, index.domain.ref, self._postmaster.ref, mailbox, reports=True)

    def _follow(self, targets: tuple[Address, ...]) -> "_Followed | Reply":
        """The ends that addresses lead to, each once, and those addresses of ours that do not exist.

        They are looked for once: a large alias takes milliseconds, and anybody may name it in any number of RCPTs.
        `targets` is one of the index's own, which live as long as it does.
        """
        found = self._followed.get(id(targets))
        if found is None:
            found = self._find_ends(targets)
            size = 1 if isinstance(found, Reply) else len(found[0]) + len(found[1])
            if self._remembered + size > REMEMBERED_LIMIT:
                self._followed.clear()
                self._remembered = 0
            self._followed[id(targets)] = found
            self._remembered += size
        return found

    def _find_ends(self, targets: tuple[Address, ...]) -> "_Followed | Reply":
        """All of them, or a refusal: more than EXPANSION_LIMIT addresses, aliases on the way counted, are followed for
        nobody."""
        ends: dict[str, Destination] = {}
        missing: list[Address] = []
        seen: set[str] = set()
        waiting = list(reversed(targets))
        while waiting:
            target = waiting.pop()
            if target.key in seen:
                continue
            if len(seen) >= EXPANSION_LIMIT:
                return ALIAS_TOO_LARGE
            seen.add(target.key)
            found = self._step(target)
            if found is None:
                missing.append(target)
                continue
            _, end = found
            if isinstance(end, Destination):
                ends[target.key] = end
            elif isinstance(end, Reply):
                return end
            else:
                waiting.extend(reversed(end))
        return tuple(ends.values()), tuple(missing)

    def _own(self, address: Address, domain: Domain, account: ObjectRef) -> Destination:
        return Destination(address, domain.ref, account if domain.delivery is DomainDelivery.MAILBOX else None)

    def _in_postmaster_mailbox(self, address: Address, domain: Domain, account: ObjectRef) -> Destination:
        return Destination(address, domain.ref, account, self._gateway.postmaster_mailbox)

    def _postmaster_ends(self) -> "_Followed | Reply":
        """Where mail to the bare `Postmaster` goes (RFC 5321 2.3.5)."""
        followed = self._follow(self._postmaster_address)
        if isinstance(followed, Reply):
            return followed
        ends, missing = followed
        placed = tuple(
            replace(end, mailbox=self._gateway.postmaster_mailbox)
            if self._postmaster is not None and end.account == self._postmaster.ref
            else end
            for end in ends
        )
        return placed, missing

    def _under_given_address(self, given: Address, ends: tuple[Destination, ...]) -> tuple[Destination, ...]:
        """An account that catches all gets the mail under the address that was written, as people sort by it."""
        index = self._domains[given.domain]
        if len(ends) == 1 and ends[0].account is not None and index.domain.delivery is DomainDelivery.MAILBOX:
            return (Destination(given, index.domain.ref, ends[0].account),)
        return ends

    # --- senders ---

    def may_send(self, account: ObjectRef, address: Address) -> bool:
        """Whether the account owns the address: itself, with a tag behind a separator, or its whole domain (SUB-03)."""
        exact, whole = self._sendable.get(account, (frozenset(), frozenset()))
        if address.key in exact or address.domain in whole:
            return True
        index = self._domains.get(address.domain)
        if index is None:
            return False
        local = folded(address.local)
        cuts = [at for at in (local.find(mark, 1) for mark in index.domain.separators) if at > 0]
        return bool(cuts) and f"{local[: min(cuts)]}@{address.domain}" in exact


def _targets(texts: Iterable[str]) -> tuple[Address, ...] | Reply:
    """The addresses that an alias stands for: all of them. The compiler let through only valid ones; where one is not
    valid all the same, mail for the alias waits, and the rest of mail does not."""
    try:
        return tuple(parse_address(text) for text in texts)
    except AddressError:
        return ALIAS_BROKEN


def _parted(texts: tuple[str, ...]) -> tuple[tuple[Address, ...], tuple[str, ...]]:
    """The addresses among those of an account, and the domains of which it has every address (`@domain`)."""
    exact = _addresses(text for text in texts if not text.startswith("@"))
    return exact, tuple(text[1:] for text in texts if text.startswith("@"))


def _addresses(texts: Iterable[str]) -> tuple[Address, ...]:
    parsed: list[Address] = []
    for text in texts:
        try:
            parsed.append(parse_address(text))
        except AddressError:  # the compiler let none through; an account does without it, and its mail is refused
            continue
    return tuple(parsed)
