"""Step 2 of a compilation: which versions go together.

Who owns each domain name, address and login (`ownership`), that every gateway has its postmaster, that no
alias leads back to itself. Who loses falls back to its last accepted version, and all is judged anew until nothing
changes.
"""

from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from mailrail.core.config.diagnostics import ConditionType, Reason
from mailrail.core.config.grants import Attachment, Grant, refusal
from mailrail.core.config.ownership import Wish, decide, grouped
from mailrail.core.config.pieces import (
    AccountPiece,
    DomainPiece,
    GatewayPiece,
    Piece,
    RoutePiece,
    TransportPiece,
    full_address,
)
from mailrail.core.config.reading import Input, Remark, Version
from mailrail.core.config.recipients import POSTMASTER, AddressBook, Node
from mailrail.core.config.state import CompilerState, NameClaim
from mailrail.core.limits import EXPANSION_LIMIT
from mailrail.core.resources.problems import Path, show_path
from mailrail.core.revision.revision import ObjectRef

_PORT, _HOSTNAME = "port", "hostname"
_CONFLICTS: Final = {_PORT: Reason.PORT_CONFLICT, _HOSTNAME: Reason.HOSTNAME_CONFLICT}
"""Reasons of what gateways want, by the first word of its key."""
_P = TypeVar("_P", bound=Piece)


@dataclass(frozen=True, slots=True)
class AccountAddresses:
    """The full addresses of one account; `@domain` stands for every address of its domain."""

    both: tuple[str, ...] = ()
    receive: tuple[str, ...] = ()
    send_as: tuple[str, ...] = ()

    @property
    def received(self) -> tuple[str, ...]:
        """All that it receives mail for: nobody else may."""
        return self.both + self.receive

    @property
    def any(self) -> tuple[str, ...]:
        """All of them."""
        return self.both + self.receive + self.send_as


class Settlement:
    """One choice of versions: who attaches to whom, and what is claimed."""

    def __init__(
        self,
        read_in: Input,
        refusals: "Refusals",
        claims: Mapping[str, tuple[NameClaim, ...]],
        port_map: Mapping[int, int],
        own_ports: Mapping[int, str],
    ) -> None:
        self._input, self._refusals, self._claims = read_in, refusals, claims
        self._port_map, self._own_ports = port_map, own_ports
        self.versions: dict[ObjectRef, Version] = {}
        for ref in sorted(read_in.candidates):
            version = read_in.candidates[ref].version(refusals.count(ref))
            if version is not None:
                self.versions[ref] = version
        self.gateways = self._of(GatewayPiece)
        self.domains = self._of(DomainPiece)
        self.accounts = self._of(AccountPiece)
        self.transports = self._of(TransportPiece)
        self.routes = self._of(RoutePiece)
        self.new_claims: tuple[NameClaim, ...] = ()
        self.forbidden: set[ObjectRef] = set()
        """What its gateway or domain does not let attach."""
        self.gateway_of: dict[ObjectRef, ObjectRef] = {}
        self.domain_of: dict[ObjectRef, ObjectRef] = {}
        self.addresses_of: dict[ObjectRef, AccountAddresses] = {}
        self._own_names: dict[ObjectRef, frozenset[str]] = {}

    def _of(self, kind: type[_P]) -> dict[ObjectRef, _P]:
        return {ref: v.piece for ref, v in self.versions.items() if isinstance(v.piece, kind)}

    def refusal(self, grants: Sequence[Grant] | None, asked: Attachment) -> str | None:
        """Why an object may not refer to another whose list this is; None if it may."""
        return refusal(grants, asked, self._input.namespaces)

    def absence(self, ref: ObjectRef, absent: str = "does not exist yet") -> str:
        """Of an object that cannot be used: whether it is there at all."""
        if ref not in self._input.candidates:
            return absent
        return "is not in use, see its status" if ref in self.versions else "is refused, see its status"

    def withheld(self, parent: ObjectRef, owner: ObjectRef, name: str | None = None) -> str | None:
        """Why a gateway does not let a domain of that name attach, or a domain an account; None if it does. Asked of
        objects that are there, and of those that are gone and whose claim is kept."""
        of = self.gateways[parent] if parent.kind == "MailGateway" else self.domains[parent]
        return self.refusal(of.grants, Attachment(parent, owner, domain_name=name))

    def attach(self) -> Iterator[Remark]:
        """Attach domains to gateways and accounts to domains; what is missing or not allowed is noted."""
        for ref, domain in self.domains.items():
            parent = domain.gateway
            path: Path = ("spec", "gatewayRef", "name")
            if parent not in self.gateways:
                yield waits(ref, parent, path, self.absence(parent))
            elif why := self.withheld(parent, ref, domain.part.name):
                self.forbidden.add(ref)
                yield forbidden(ref, parent, path, why)
            else:
                self.gateway_of[ref] = parent
        for ref, account in self.accounts.items():
            parent = account.domain
            path = ("spec", "domainRef", "name")
            if parent not in self.domains:
                yield waits(ref, parent, path, self.absence(parent))
            elif why := self.withheld(parent, ref):
                self.forbidden.add(ref)
                yield forbidden(ref, parent, path, why)
            elif parent not in self.gateway_of:
                self.domain_of[ref] = parent
                yield Remark(
                    ref,
                    ConditionType.RESOLVED_REFS,
                    Reason.PARENT_NOT_FOUND,
                    f"its {parent} is not attached to a gateway yet",
                    path,
                    parent,
                )
            else:
                self.domain_of[ref] = parent
        for ref, parent in self.domain_of.items():
            yield from self._take_addresses(ref, parent)

    def _take_addresses(self, ref: ObjectRef, domain: ObjectRef) -> Iterator[Remark]:
        """Give an account its addresses; those that it does not get are noted."""
        name, account = self.domains[domain].part.name, self.accounts[ref]
        kept: dict[str, dict[str, None]] = {"addresses": {}, "receive": {}, "sendAs": {}}
        received = ChainMap(kept["addresses"], kept["receive"])
        for field, texts in (
            ("addresses", account.addresses),
            ("receive", account.receive),
            ("sendAs", account.send_as),
        ):
            for position, text in enumerate(texts):
                full = f"@{name}" if text == "@" else full_address(text, name)
                if full.rpartition("@")[2] != name:
                    why, reason = f"is not an address of its domain {name}", Reason.TARGET_NOT_FOUND
                else:
                    why, reason = self._reserved(ref, domain, field, full, received), Reason.REF_NOT_PERMITTED
                if why:
                    path = ("spec", field, position)
                    message = f"{show_path(path)}: {full} {why}; it is left out"
                    yield Remark(ref, ConditionType.RESOLVED_REFS, reason, message, path, domain)
                else:
                    kept[field][full] = None
        self.addresses_of[ref] = AccountAddresses(*(tuple(kept[field]) for field in kept))

    def _reserved(self, ref: ObjectRef, domain: ObjectRef, field: str, full: str, received: Mapping[str, None]) -> str:
        """Why an account of another namespace than its domain's does not get an address of it; empty if it does.

        It may take names that nobody has, and send as what it receives. All else is mail of the domain's other users:
        what the domain itself says, the unknown rest (`@`), and what goes to others by a separator.
        """
        if ref.namespace == domain.namespace:
            return ""
        local = full.rpartition("@")[0]
        only = f"which only accounts in namespace {domain.namespace} may have"
        if not local:
            return f"stands for every address, {only}"
        if field == "sendAs":
            return "" if full in received else f"is not among the addresses that it receives, {only}"
        if local in self._names_of(domain):
            return f"belongs to {domain} itself"
        if any(mark in local[1:] for mark in self.domains[domain].part.separators):
            return f"has a separator, {only}"
        return ""

    def _names_of(self, domain: ObjectRef) -> frozenset[str]:
        """Local parts that a domain says itself. Made once, as every address of accounts of other namespaces asks."""
        names = self._own_names.get(domain)
        if names is None:
            piece = self.domains[domain]
            names = self._own_names[domain] = frozenset(
                (POSTMASTER, *(a.local for a in piece.aliases), *piece.part.listed)
            )
        return names

    def by_name(self) -> dict[str, ObjectRef]:
        """The domain of each name: the one that is attached, else the first that waits to be."""
        found: dict[str, ObjectRef] = {}
        for ref in (*self.gateway_of, *(r for r in self.domains if r not in self.forbidden)):
            found.setdefault(self.domains[ref].part.name, ref)
        return found

    def login_of(self, ref: ObjectRef) -> str | None:
        """The name to log in with, lower case; None where no address is left to take it from."""
        login = self.accounts[ref].login
        if login is not None and self._is_own(ref, login):
            return login.casefold()
        found = self.addresses_of.get(ref, AccountAddresses())
        return next((a for a in found.any if not a.startswith("@")), None)

    def _is_own(self, ref: ObjectRef, login: str) -> bool:
        """A login that looks like an address is one of the account's domain, or of the account itself where it is of
        another namespace: those of others are theirs to use."""
        domain = self.domain_of.get(ref)
        if domain is None or "@" not in login:
            return True
        if ref.namespace != domain.namespace:
            return full_address(login, "") in self.addresses_of[ref].received
        return login.rpartition("@")[2].casefold() == self.domains[domain].part.name

    def foreign_logins(self) -> Iterator[Remark]:
        """Accounts whose login is an address of another domain."""
        for ref, account in self.accounts.items():
            login = account.login
            if login is not None and not self._is_own(ref, login):
                new = self.versions[ref].new
                domain = self.domain_of[ref]
                whose = "an address of its domain" if ref.namespace == domain.namespace else "one of its addresses of"
                name = self.domains[domain].part.name
                yield Remark(
                    ref,
                    ConditionType.ACCEPTED if new else ConditionType.RESOLVED_REFS,
                    Reason.INVALID,
                    f"spec.login: {login} is not {whose} {name}; a login with an @ must be one",
                    ("spec", "login"),
                )

    def _wishes(self) -> Iterator[Wish]:
        """Every name that some object wants for itself alone, with the field that says so.

        A gateway that cannot serve for want of its postmaster keeps nobody from its ports.
        """
        lacking = {ref for ref, _, _ in self.postmasters()}
        for ref, gateway in self.gateways.items():
            if ref in lacking:
                continue
            name, created = gateway.part.hostname, self._created(ref)
            yield Wish(f"{_HOSTNAME} {name}", ref, ref, ("spec", "hostname"), f"the hostname {name}", created)
            for position, listener in enumerate(li.part for li in gateway.listeners):
                at: Path = ("spec", "listeners", position, "port")
                key = f"{_PORT} {self._real(listener.port)}"
                yield Wish(key, ref, ref, at, self._port_words(listener.port), created)
        for ref, parent in self.gateway_of.items():
            name, created = self.domains[ref].part.name, self._created(ref)
            yield Wish(f"domain {name}", ref, parent, ("spec", "domainName"), f"the domain {name}", created)
        for ref, parent in self.domain_of.items():
            if parent not in self.gateway_of:
                continue
            created, owned = self._created(ref), self.addresses_of[ref]
            for field, addresses in (("addresses", owned.both), ("receive", owned.receive)):
                for address in addresses:
                    path: Path = ("spec", field)
                    yield Wish(f"address {address}", ref, parent, path, f"the address {address}", created)
            login = self.login_of(ref)
            if login is not None:
                yield Wish(f"login {login}", ref, parent, ("spec", "login"), f"the login {login}", created)

    def _real(self, port: int) -> int:
        """The port that ingress opens for a listener's."""
        return self._port_map.get(port, port)

    def _port_words(self, port: int) -> str:
        real = self._real(port)
        return f"port {port}" + (f" (really {real})" if real != port else "")

    def taken_by_ingress(self, port: int) -> str:
        """Why no listener can have a port; empty if one can."""
        use = self._own_ports.get(self._real(port))
        return f"{self._port_words(port)} is ingress's own, for {use}: give the listener another" if use else ""

    def impossible_ports(self) -> Iterator[Remark]:
        """Gateways of which two listeners end at one real port, though they say two; and edits of gateways that want a
        port which ingress itself has. What was accepted before that was known goes on without the listener."""
        for ref, gateway in self.gateways.items():
            first: dict[int, str] = {}
            for position, listener in enumerate(li.part for li in gateway.listeners):
                real = self._real(listener.port)
                why = self.taken_by_ingress(listener.port) if self.versions[ref].new else ""
                if first.setdefault(real, listener.name) != listener.name:
                    why = f"port {listener.port} is really {real}, which {first[real]} has already"
                if why:
                    path: Path = ("spec", "listeners", position, "port")
                    message = f"{show_path(path)}: {why}"
                    yield Remark(ref, ConditionType.ACCEPTED, Reason.PORT_CONFLICT, message, path)
                    break

    def _created(self, ref: ObjectRef) -> str:
        """When an object was made; files do not say so."""
        return self.versions[ref].piece.created if self._input.in_cluster else ""

    def _released(self, claim: NameClaim) -> bool:
        """Whether the object of a claim gave the name up, or lost the right to it; else it is gone for a while."""
        if (
            claim.owner in self.gateways
            or claim.owner in self.gateway_of
            or self.domain_of.get(claim.owner) in self.gateway_of
        ):
            return True  # it is there and could have it
        parent = claim.parent
        if claim.owner in self.forbidden or parent in self.forbidden:
            return True
        name = claim.key.partition(" ")[2] if claim.owner.kind == "MailDomain" else None
        return parent in self.versions and self.withheld(parent, claim.owner, name) is not None

    def conflicts(self) -> dict[ObjectRef, Remark]:
        """Who loses a name that two want, and what to say of it.

        A loser whose winner loses something else is left for the next round: the name may become free for it.
        """
        decided = decide(self._wishes(), self._claims, self._released, self._input.now)
        self.new_claims = tuple(decided.claims)
        losers = {
            ref: Remark(
                ref,
                ConditionType.ACCEPTED,
                _CONFLICTS.get(loss.wish.key.partition(" ")[0], Reason.CONFLICTED),
                loss.message,
                loss.wish.path,
            )
            for ref, loss in decided.losses.items()
        }
        certain = {ref: note for ref, note in losers.items() if decided.losses[ref].winner not in losers}
        return certain or losers

    def postmasters(self) -> Iterator[tuple[ObjectRef, ObjectRef, str]]:
        """Gateways whose postmaster is not there: gateway, account, and what is missing."""
        for ref, gateway in self.gateways.items():
            account = gateway.part.postmaster
            if account not in self.accounts:
                yield ref, account, f"{account} {self.absence(account, 'does not exist')}"
            elif account not in self.domain_of:
                wanted = self.accounts[account].domain
                yield ref, account, f"{account} has no domain: {wanted} {self.absence(wanted, 'does not exist')}"
            elif self.domain_of[account] not in self.gateway_of:
                yield ref, account, f"{self.domain_of[account]} of {account} is not attached to a gateway"


def waits(ref: ObjectRef, parent: ObjectRef, path: Path, absence: str) -> Remark:
    """`ref` is attached to something that is not there, or cannot be used."""
    message = f"{show_path(path)}: {parent} {absence}"
    return Remark(ref, ConditionType.RESOLVED_REFS, Reason.PARENT_NOT_FOUND, message, path, parent)


def forbidden(ref: ObjectRef, parent: ObjectRef, path: Path, why: str) -> Remark:
    """`ref` is attached to something that does not let it."""
    message = f"{show_path(path)}: {why}"
    return Remark(ref, ConditionType.RESOLVED_REFS, Reason.REF_NOT_PERMITTED, message, path, parent)


class Refusals:
    """What was refused so far."""

    def __init__(self) -> None:
        self.notes: list[Remark] = []
        self._counts: dict[ObjectRef, int] = {}

    def count(self, ref: ObjectRef) -> int:
        """How many versions of the object were refused."""
        return self._counts.get(ref, 0)

    def refuse(self, notes: Iterable[Remark]) -> bool:
        """Fall back by one version for each note that says so. Whether there was one: then all is judged anew."""
        refused = [note for note in notes if note.type is ConditionType.ACCEPTED]
        for note in refused:
            self._counts[note.ref] = self.count(note.ref) + 1
        self.notes += refused
        return bool(refused)


def settle(
    read_in: Input, previous: CompilerState, port_map: Mapping[int, int], own_ports: Mapping[int, str]
) -> tuple[Settlement, list[Remark]]:
    """Refuse and fall back until all versions go together. Each round refuses at least one version, or ends."""
    claims = grouped(previous.claims)
    refusals = Refusals()
    while True:
        settled = Settlement(read_in, refusals, claims, port_map, own_ports)
        notes = list(settled.attach())
        foreign = list(settled.foreign_logins())
        if refusals.refuse(settled.impossible_ports()) or refusals.refuse(foreign):
            continue
        if refusals.refuse(settled.conflicts().values()):
            continue
        missing = list(settled.postmasters())
        if any(_retain_postmaster(read_in, settled, account) for _, account, _ in missing):
            continue
        lacking = [
            Remark(
                gateway,
                ConditionType.ACCEPTED if settled.versions[gateway].new else ConditionType.RESOLVED_REFS,
                Reason.POSTMASTER_NOT_FOUND,
                f"spec.postmaster.accountRef: {what}; a gateway needs its postmaster",
                ("spec", "postmaster", "accountRef", "name"),
            )
            for gateway, _, what in missing
        ]
        if refusals.refuse(lacking):
            continue
        directory = _directory(settled)
        cycle = directory.cycle()
        changed = [ref for ref in domains_of(settled, cycle) if settled.versions[ref].new]
        if changed:
            refusals.refuse((cycle_note(max(changed), cycle),))
            continue
        if not cycle and _refuse_too_large(settled, directory, refusals):
            continue
        return settled, [*refusals.notes, *notes, *foreign, *lacking, *_kept(read_in, settled)]


def _kept(read_in: Input, settled: Settlement) -> Iterator[Remark]:
    """A gateway serves on with a postmaster that was deleted, and says so."""
    for ref, gateway in settled.gateways.items():
        account = gateway.part.postmaster
        for needed in (account, settled.domain_of.get(account)):
            if needed in read_in.retained:
                yield Remark(
                    ref,
                    ConditionType.RESOLVED_REFS,
                    Reason.POSTMASTER_NOT_FOUND,
                    f"spec.postmaster.accountRef: {needed} was deleted; it stays in use while it is needed",
                    ("spec", "postmaster", "accountRef", "name"),
                )


def _retain_postmaster(read_in: Input, settled: Settlement, account: ObjectRef) -> bool:
    """Bring back a postmaster account that was deleted, or its domain. Whether that changed anything."""
    if account not in settled.accounts:
        return account not in read_in.candidates and read_in.retain(account)
    domain = settled.accounts[account].domain
    if domain not in settled.domains:
        return domain not in read_in.candidates and read_in.retain(domain)
    return False


def _directory(settled: Settlement) -> AddressBook:
    """The domains as far as resolution needs them."""
    domains = {ref: settled.domains[ref] for ref in settled.by_name().values()}
    return AddressBook(
        (domain.with_aliases() for domain in domains.values()),
        frozenset(
            address
            for ref, owned in settled.addresses_of.items()
            if settled.domain_of[ref] in domains
            for address in owned.received
        ),
    )


def _refuse_too_large(settled: Settlement, directory: AddressBook, refusals: Refusals) -> bool:
    """Refuse the edit that makes an alias lead to too many addresses: that of its own domain first, else of one that
    it passes through. Whether there was such an edit."""
    by_name = settled.by_name()
    for node, passed in directory.too_large().items():
        own = by_name[node.domain]
        edited = [ref for name in passed if settled.versions[ref := by_name[name]].new]
        if edited:
            return refusals.refuse((too_large_note(own if own in edited else max(edited), node),))
    return False


def domains_of(settled: Settlement, cycle: Sequence[Node]) -> list[ObjectRef]:
    """The domains that a cycle of aliases passes through."""
    by_name = settled.by_name()
    return [by_name[name] for name in sorted({node.domain for node in cycle})]


def cycle_note(ref: ObjectRef, cycle: Sequence[Node], kind: ConditionType = ConditionType.ACCEPTED) -> Remark:
    """An alias or catch-all of `ref` is part of a cycle."""
    first = cycle[0]
    way = " → ".join(str(n) for n in (*cycle[:6], *(("…",) if len(cycle) > 6 else ()), first))
    path: Path = ("spec", "catchAll") if first.local is None else ("spec", "aliases")
    return Remark(ref, kind, Reason.ALIAS_CYCLE, f"{show_path(path)}: leads back to itself: {way}", path)


def too_large_note(ref: ObjectRef, node: Node, kind: ConditionType = ConditionType.ACCEPTED) -> Remark:
    """An alias of `ref`, or one that leads through it, leads to too many addresses."""
    path: Path = ("spec", "catchAll") if node.local is None else ("spec", "aliases")
    message = (
        f"{show_path(path)}: {node} leads to more than {EXPANSION_LIMIT} addresses, those that other aliases stand for "
        "counted with them; shorten it, or let a mailing list manager send to so many"
    )
    if kind is not ConditionType.ACCEPTED:
        message += "; mail for it is deferred"
    return Remark(ref, kind, Reason.ALIAS_TOO_LARGE, message, path)
