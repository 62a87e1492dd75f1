"""Step 3 of a compilation: the parts of the revision, from versions that go together.

References are resolved; what is missing is named, and its mail deferred. The rules of each level are put in order, and
those that can never apply, or that another one contradicts, are noted.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from mailrail.core.config.diagnostics import ConditionType, Reason
from mailrail.core.config.floors import has_floors, impossible_floors
from mailrail.core.config.grants import Attachment, Grant
from mailrail.core.config.pieces import (
    AccountPiece,
    DomainPiece,
    GatewayPiece,
    ListenerPiece,
    RoutePiece,
    TransportPiece,
    parents_of,
)
from mailrail.core.config.precedence import Placed, ambiguous, shadowed
from mailrail.core.config.reading import Remark
from mailrail.core.config.recipients import AddressBook, End, Node
from mailrail.core.config.secret_uses import AccountCredentials, SecretProblem, SecretUses
from mailrail.core.config.settling import Settlement, cycle_note, forbidden, too_large_note, waits
from mailrail.core.dkim.key import RSA, key_type_of
from mailrail.core.dkim.rotation import ConfiguredKey, KeyStage, stages
from mailrail.core.dkim.signature import KeyName
from mailrail.core.resources.problems import Path, show_path
from mailrail.core.revision.revision import (
    FLOORS_FORMAT,
    Account,
    DkimKey,
    Domain,
    DomainDelivery,
    Gateway,
    Listener,
    ListenerProtocol,
    ObjectRef,
    RetrySchedule,
    Revision,
    RouteLevel,
    Rule,
    Transport,
)
from mailrail.core.route.explain import covers


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """What is not written in resources."""

    captive: bool = False
    """Local mode on loopback: the MX listener takes any recipient (design 10)."""
    port_offset: int = 0
    """Added to every listener's port (local mode)."""
    port_map: Mapping[int, int] = field(default_factory=dict)
    """Ports that ingress opens under another number: two listeners that end at one are in conflict."""
    own_ports: Mapping[int, str] = field(default_factory=dict)
    """Real ports that ingress itself listens on, with what for: no listener may have them."""


class Build:
    """Step 3: the parts of the revision, with notes about what they lack."""

    def __init__(
        self,
        settled: Settlement,
        secrets: SecretUses,
        options: BuildOptions,
        keys_seen: Mapping[tuple[str, str], float],
        now: float,
    ) -> None:
        """`keys_seen`: as in Sources. `now`: Unix time."""
        self._settled, self._secrets, self._options = settled, secrets, options
        self._keys_seen, self._now = keys_seen, now
        self.notes: list[Remark] = []
        self.again_at: int | None = None
        """Unix time, whole seconds, when a DKIM key enters another stage by time alone; None: none does."""
        self._usable: dict[ObjectRef, Transport] = {}

    def _unresolved(
        self, ref: ObjectRef, reason: Reason, message: str, path: Path, parent: ObjectRef | None = None
    ) -> None:
        text = f"{show_path(path)}: {message}"
        self.notes.append(Remark(ref, ConditionType.RESOLVED_REFS, reason, text, path, parent))

    def revision(self) -> Revision:
        """Everything together. Transports first: what cannot be used counts as missing for whoever names it."""
        for ref, transport in self._settled.transports.items():
            usable = self._transport(ref, transport)
            if usable is not None:
                self._usable[ref] = usable
        clear_text = {
            ref
            for ref, gateway in self._settled.gateways.items()
            if any("CRAM-MD5" in li.part.mechanisms for li in gateway.listeners)
        }
        accounts = [
            built
            for ref, account in self._settled.accounts.items()
            if (built := self._account(ref, account, clear_text)) is not None
        ]
        gateways = tuple(self._gateway(ref, gateway, accounts) for ref, gateway in self._settled.gateways.items())
        schedules = {g.ref: g.retry for g in gateways}
        domains = [
            self._domain(ref, domain, self._settled.gateway_of[ref], schedules)
            for ref, domain in self._settled.domains.items()
            if ref in self._settled.gateway_of
        ]
        domains = self._with_signers(self._with_targets(domains, accounts))
        account_routes, domain_routes, global_routes = self._routes(
            {a.ref for a in accounts}, {d.ref: d for d in domains}
        )
        made = Revision(
            gateways=gateways,
            domains=tuple(self._without_cycles(domains, accounts)),
            accounts=tuple(accounts),
            transports=tuple(self._usable.values()),
            account_routes=account_routes,
            domain_routes=domain_routes,
            global_routes=global_routes,
        )
        if not has_floors(made):
            return made
        self.notes += (
            Remark(found.ref, ConditionType.RESOLVED_REFS, Reason.SECURITY_NOT_POSSIBLE, found.message, found.path)
            for found in impossible_floors(made)
        )
        return replace(made, format=FLOORS_FORMAT)

    # --- transports ---

    def _transport(self, ref: ObjectRef, piece: TransportPiece) -> Transport | None:
        """The transport with what it takes from Secrets."""
        made = piece.part
        try:
            if piece.authorities is not None:
                made = replace(made, ca=self._secrets.authorities(ref, piece.authorities))
            elif piece.authorities_file is not None:
                made = replace(made, ca=self._secrets.authorities_file(ref, piece.authorities_file))
            if piece.login is not None:
                login = self._secrets.login(ref, piece.login, made.username)
                made = replace(made, username=login.username, password=login.password)
        except SecretProblem as problem:
            self._unresolved(
                ref,
                problem.reason,
                f"{problem}; until that is mended, mail for this transport is deferred",
                ("spec", piece.member),
            )
            return None
        return made

    def _missing(self, target: ObjectRef, owner: ObjectRef) -> tuple[Reason, str] | None:
        """Why a transport cannot be used by an object; None if it can."""
        piece = self._settled.transports.get(target)
        if piece is None:
            absence = self._settled.absence(target, "")
            if absence:
                return Reason.TRANSPORT_NOT_USABLE, f"{target} {absence}; matching mail is deferred"
            return Reason.TRANSPORT_NOT_FOUND, f"{target} does not exist; until it does, matching mail is deferred"
        why = self._settled.refusal(piece.grants, Attachment(target, owner))
        if why is not None:
            return Reason.REF_NOT_PERMITTED, f"{why}; matching mail is deferred"
        if target not in self._usable:
            return (
                Reason.TRANSPORT_NOT_USABLE,
                f"{target} cannot be used now, see its status; matching mail is deferred",
            )
        return None

    # --- accounts and gateways ---

    def _account(self, ref: ObjectRef, piece: AccountPiece, clear_text: set[ObjectRef]) -> Account | None:
        domain = self._settled.domain_of.get(ref)
        if domain is None or domain not in self._settled.gateway_of:
            return None
        owned, login = self._settled.addresses_of[ref], self._settled.login_of(ref)
        if not owned.any or login is None:
            return None
        credentials = AccountCredentials()
        if piece.credentials is not None:
            try:
                credentials = self._secrets.account(
                    ref, piece.credentials, piece.uid, clear_text=self._settled.gateway_of[domain] in clear_text
                )
            except SecretProblem as problem:
                self._unresolved(
                    ref,
                    problem.reason,
                    f"{problem}; the account cannot log in",
                    ("spec", "credentialsSecretRef", "name"),
                )
        return Account(
            ref,
            piece.uid,
            domain,
            login,
            owned.both,
            credentials.scram,
            credentials.password,
            piece.limits,
            owned.receive,
            owned.send_as,
        )

    def _gateway(self, ref: ObjectRef, piece: GatewayPiece, accounts: Sequence[Account]) -> Gateway:
        mine = [a for a in accounts if self._settled.gateway_of[a.domain] == ref]
        usable = {name for a in mine for name, _ in a.scram}
        if usable:
            usable |= {"PLAIN", "LOGIN"}
        usable |= {f"{name}-PLUS" for name in usable if name.startswith("SCRAM-")}
        if any(a.password is not None for a in mine):
            usable.add("CRAM-MD5")
        listeners = [
            built
            for position, listener in enumerate(piece.listeners)
            if (built := self._listener(ref, position, listener, usable)) is not None
        ]
        return replace(piece.part, listeners=tuple(listeners))

    def _listener(self, ref: ObjectRef, position: int, piece: ListenerPiece, usable: set[str]) -> Listener | None:
        written = piece.part
        port = written.port + self._options.port_offset
        if port > 65535:  # uvloop would take it modulo 65536
            offset = self._options.port_offset
            message = f"{written.port} plus the port offset {offset} is not a port; the listener stays closed"
            self._unresolved(ref, Reason.INVALID, message, ("spec", "listeners", position, "port"))
            return None
        if why := self._settled.taken_by_ingress(written.port):  # in use since before that was refused
            message = f"{why}; the listener stays closed"
            self._unresolved(ref, Reason.PORT_CONFLICT, message, ("spec", "listeners", position, "port"))
            return None
        certificate = None
        if piece.certificate is not None:
            certificate, problem = self._secrets.certificate(ref, written.name, piece.certificate)
            if problem is not None:
                # A listener that lost its TLS would be a silent downgrade, so without any certificate it stays closed.
                effect = (
                    "its last certificate stays in use"
                    if certificate
                    else "until that is mended, the listener stays closed"
                )
                path: Path = ("spec", "listeners", position, "tls", "certificateSecretRef", "name")
                self._unresolved(ref, problem.reason, f"{problem}; {effect}", path)
                if certificate is None:
                    return None
        return replace(
            written,
            port=port,
            certificate=certificate,
            mechanisms=tuple(m for m in written.mechanisms if m in usable),
            accept_any_recipient=self._options.captive and written.protocol is ListenerProtocol.MX,
        )

    # --- domains ---

    def _domain(
        self, ref: ObjectRef, piece: DomainPiece, gateway: ObjectRef, schedules: Mapping[ObjectRef, RetrySchedule]
    ) -> Domain:
        made, retry = piece.with_aliases(), piece.retry
        if made.transport is not None:
            missing = self._missing(made.transport, ref)
            if missing is not None:
                self._unresolved(ref, missing[0], missing[1], ("spec", "delivery", "transport", "ref", "name"))
                if missing[0] is Reason.REF_NOT_PERMITTED:
                    # Named so that nobody serves it: what may not be used is as if it were not there.
                    named = made.transport
                    nobodys = ObjectRef(named.kind, named.namespace, f"{named.name} (not permitted)")
                    made = replace(made, transport=nobodys)
        if piece.keys:
            made = replace(made, dkim=self._keys(ref, piece))
        return made if retry is None else replace(made, retry=retry.over(schedules[gateway]))

    def _keys(self, ref: ObjectRef, piece: DomainPiece) -> tuple[DkimKey, ...]:
        """The keys of a domain, each in its stage. A key that cannot be used is as if it were not there, and mail goes
        out without its signature: none is lost or waits for that."""
        path: Path = ("spec", "dkim", "selectors")
        made: list[DkimKey] = []
        configured: list[ConfiguredKey] = []
        for position, source in enumerate(piece.keys):
            try:
                private_key, record = self._secrets.dkim_key(ref, source)
            except SecretProblem as problem:
                message = f"{problem}; until that is mended, mail is not signed with it"
                where: Path = (*path, position, "privateKeySecretRef", "name")
                self._unresolved(ref, problem.reason, message, where)
                continue
            key_type = key_type_of(record)
            name = str(KeyName(piece.part.name, source.selector))
            configured.append(
                ConfiguredKey(source.selector, key_type, source.sign, self._keys_seen.get((name, record)))
            )
            made.append(DkimKey(source.selector, f"{key_type}-sha256", private_key, KeyStage.NEW, record))
        found, again_at = stages(configured, self._now)
        if again_at is not None:
            at = math.ceil(again_at)
            self.again_at = at if self.again_at is None else min(at, self.again_at)
        types = {each.key_type for each in configured if found[each.selector] is KeyStage.SIGNING}
        if types and RSA not in types:
            # DKIM-08b: Ed25519 is never alone.
            message = "no RSA key signs, and Ed25519 never signs alone: add an RSA key; mail is not signed"
            self._unresolved(ref, Reason.SIGNING_NOT_POSSIBLE, message, path)
            found = {selector: _not_signing(stage) for selector, stage in found.items()}
        return tuple(replace(key, stage=found[key.selector]) for key in made)

    def _with_signers(self, domains: Sequence[Domain]) -> list[Domain]:
        """Name the domains whose keys sign, too."""
        known = {domain.ref: domain for domain in domains}
        result: list[Domain] = []
        for domain in domains:
            names: list[str] = []
            for position, target in enumerate(self._settled.domains[domain.ref].also_sign_as):
                problem = self._lacks(domain, target, known.get(target))
                if problem is None:
                    names.append(known[target].name)
                else:
                    path: Path = ("spec", "dkim", "alsoSignAs", position, "name")
                    self._unresolved(domain.ref, problem[0], f"{problem[1]}; mail goes out without its signature", path)
            result.append(replace(domain, also_sign_as=tuple(dict.fromkeys(names))) if names else domain)
        return result

    def _lacks(self, domain: Domain, target: ObjectRef, found: Domain | None) -> tuple[Reason, str] | None:
        """Why another domain's keys cannot sign the mail of this one; None if they can."""
        if found is None:
            return Reason.DOMAIN_NOT_FOUND, f"{target} does not exist or is not in use"
        why = self._settled.refusal(self._settled.domains[target].grants, Attachment(target, domain.ref))
        if why is not None:
            return Reason.REF_NOT_PERMITTED, why
        if not any(key.signs for key in found.dkim):
            return Reason.SIGNING_NOT_POSSIBLE, f"{target} has no key that signs"
        return None

    def _without_cycles(self, domains: Sequence[Domain], accounts: Sequence[Account]) -> Iterable[Domain]:
        """Cycles that no edit made, but a deletion (an account that stood before an alias): their aliases are cut."""
        addresses = frozenset(a for account in accounts for a in account.received)
        served = {d.name: d for d in domains}
        while cycle := AddressBook(served.values(), addresses).cycle():
            last = max(cycle, key=lambda n: (n.domain, n.local or ""))
            domain = served[last.domain]
            if last.local is None:
                served[last.domain] = replace(domain, catch_all=None)
            else:
                kept = tuple(a for a in domain.aliases if a.local != last.local)
                served[last.domain] = replace(domain, aliases=kept)
            self.notes.append(cycle_note(domain.ref, cycle, ConditionType.RESOLVED_REFS))
        for node in AddressBook(served.values(), addresses).too_large():
            # No edit made it either. It stays, so that mail for it waits: cut, it would be refused for good.
            self.notes.append(too_large_note(served[node.domain].ref, node, ConditionType.RESOLVED_REFS))
        return served.values()

    def _with_targets(self, domains: Sequence[Domain], accounts: Sequence[Account]) -> list[Domain]:
        """Say which aliases an account hides, and which targets do not exist. A catch-all that leads nowhere is cut."""
        result: list[Domain] = []
        addresses = frozenset(a for account in accounts for a in account.received)
        directory = AddressBook(domains, addresses)
        for domain in domains:
            written = [alias.local for alias in self._settled.domains[domain.ref].aliases]
            for alias in domain.aliases:
                path: Path = ("spec", "aliases", written.index(alias.local))
                if f"{alias.local}@{domain.name}" in addresses:
                    message = f"{show_path(path)}: an account has {alias.local}@{domain.name}; the alias never applies"
                    self.notes.append(
                        Remark(domain.ref, ConditionType.SHADOWED, Reason.HIDDEN_BY_ACCOUNT, message, path)
                    )
                for target in alias.targets:
                    if directory.lookup(target) is End.NOBODY:
                        message = f"{target} does not exist; mail for the alias goes on without it"
                        self._unresolved(domain.ref, Reason.TARGET_NOT_FOUND, message, path)
            if domain.catch_all is not None and directory.lookup(domain.catch_all) in (
                End.NOBODY,
                Node(domain.name, None),
            ):
                path = ("spec", "catchAll")
                self._unresolved(domain.ref, Reason.TARGET_NOT_FOUND, f"{domain.catch_all} does not exist", path)
                domain = replace(domain, catch_all=None)
            result.append(domain)
        return result

    # --- routes ---

    def _routes(
        self, accounts: set[ObjectRef], domains: Mapping[ObjectRef, Domain]
    ) -> tuple[tuple[RouteLevel, ...], tuple[RouteLevel, ...], tuple[RouteLevel, ...]]:
        levels: dict[ObjectRef, list[Placed]] = {}
        for ref, route in sorted(self._settled.routes.items(), key=lambda item: (item[1].priority, item[0])):
            rules = [self._rule(ref, rule) for rule in route.rules]
            for parent in parents_of(route):
                position = route.attached.index(parent)
                if self._attached(ref, route, parent, ("spec", "parentRefs", position, "name"), accounts, domains):
                    levels.setdefault(parent, []).extend(Placed(rule, route.priority) for rule in rules)
        received = {d.name: d for d in domains.values() if d.delivery is not DomainDelivery.NONE}
        for parent, placed in levels.items():
            self._warn(parent, placed, received, domains)
        built: dict[str, list[RouteLevel]] = {"MailAccount": [], "MailDomain": [], "MailGateway": []}
        for parent in sorted(levels):
            built[parent.kind].append(RouteLevel(parent, tuple(p.rule for p in levels[parent])))
        return tuple(built["MailAccount"]), tuple(built["MailDomain"]), tuple(built["MailGateway"])

    def _attached(
        self,
        ref: ObjectRef,
        route: RoutePiece,
        parent: ObjectRef,
        path: Path,
        accounts: set[ObjectRef],
        domains: Mapping[ObjectRef, Domain],
    ) -> bool:
        there = parent in accounts or parent in domains or parent in self._settled.gateways
        if not there:
            self.notes.append(waits(ref, parent, path, self._settled.absence(parent)))
            return False
        grants: Sequence[Grant] | None = None  # an account is for routes of its own namespace
        if parent.kind == "MailGateway":
            grants = self._settled.gateways[parent].grants
        elif parent.kind == "MailDomain":
            grants = self._settled.domains[parent].grants
        why = self._settled.refusal(grants, Attachment(parent, ref, priority=route.priority))
        if why is None:
            return True
        self.notes.append(forbidden(ref, parent, path, why))
        return False

    def _rule(self, ref: ObjectRef, rule: Rule) -> Rule:
        if rule.transport is None:
            return rule
        missing = self._missing(rule.transport, ref)
        if missing is None:
            return rule
        self._unresolved(ref, missing[0], missing[1], ("spec", "rules", rule.index, "transportRef", "name"))
        return replace(rule, missing=True)

    def _warn(
        self,
        parent: ObjectRef,
        placed: Sequence[Placed],
        received: Mapping[str, Domain],
        domains: Mapping[ObjectRef, Domain],
    ) -> None:
        rules = [p.rule for p in placed]
        hidden = {o.later: o.earlier for o in shadowed(rules)}
        for later, earlier in hidden.items():
            rule, by = rules[later], rules[earlier]
            self._warning(
                parent,
                rule,
                ConditionType.SHADOWED,
                Reason.HIDDEN_BY_RULE,
                f"never applies: {_named(by, rule)} matches the same mail first",
            )
        sender = domains[parent].name if parent.kind == "MailDomain" else None
        for position, rule in enumerate(rules):
            why = _never(rule, sender, received)
            if why and position not in hidden:
                self._warning(parent, rule, ConditionType.SHADOWED, Reason.NEVER_MATCHES, f"never applies: {why}")
        for pair in ambiguous(placed):
            if pair.later in hidden:
                continue
            for one, other in ((pair.later, pair.earlier), (pair.earlier, pair.later)):
                message = (
                    f"matches the same mail as {_named(rules[other], rules[one])}, which has the same priority and "
                    "another transport; give one of the routes a lower priority number"
                )
                self._warning(parent, rules[one], ConditionType.AMBIGUOUS, Reason.SAME_PRIORITY, message)

    def _warning(self, parent: ObjectRef, rule: Rule, kind: ConditionType, reason: Reason, message: str) -> None:
        path: Path = ("spec", "rules", rule.index)
        self.notes.append(Remark(rule.route, kind, reason, f"{show_path(path)} {message}", path, parent))


def _not_signing(stage: KeyStage) -> KeyStage:
    return KeyStage.NEW if stage is KeyStage.SIGNING else stage


def _named(rule: Rule, seen_from: Rule) -> str:
    if rule.route == seen_from.route:
        return f"spec.rules[{rule.index}]"
    return f"rule {rule.name} of {rule.route}"


def _never(rule: Rule, sender: str | None, received: Mapping[str, Domain]) -> str:
    """Why no mail can reach a rule; empty if some can."""
    if not rule.matches:
        return ""
    reasons: list[str] = []
    for match in rule.matches:
        if sender is not None and match.from_domains and not any(covers(p, sender) for p in match.from_domains):
            reasons.append(f"none of its fromDomains matches {sender}, to which it is attached")
        elif match.to_domains and all(p in received for p in match.to_domains):
            reasons.append("its toDomains are domains of ours, where `delivery` decides and not a route")
        else:
            return ""
    return reasons[0]
