"""From documents to one revision: pure, deterministic, and careful with what already works (CFG-01).

    compile(sources, previous, keys) → Compiled(revision, diagnostics, state, ...)

The work, in order:

1. Read every document with the typed models. A broken one is refused and its last accepted version takes its place.
   Objects of a file that cannot be read count as unchanged.
2. Settle, until nothing changes: who owns each domain name, address and login (the older claim wins); that every
   gateway has its postmaster; that no alias leads back to itself. Who loses falls back to the last accepted version.
3. Resolve references. What is missing is named and its mail deferred, never sent by another way.
4. Order the rules of each level: priority, then namespace/name, then position. Find hidden and ambiguous rules.

The order in which documents arrive has no influence: they are sorted first. The input of the next compilation is
`Compiled.state`, which the config service stores with each revision.
"""

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

from mailrail.core.config.diagnostics import (
    Condition,
    ConditionType,
    Diagnostics,
    Finding,
    ObjectStatus,
    Place,
    Reason,
    Severity,
    Status,
    ready,
)
from mailrail.core.config.loader import Document, Loaded, Unreadable
from mailrail.core.config.precedence import Placed, ambiguous, shadowed
from mailrail.core.config.recipients import Directory, End, Node
from mailrail.core.config.revision import (
    Account,
    AccountLimits,
    Alias,
    Delivery,
    DkimKey,
    Domain,
    Gateway,
    GatewayLimits,
    Listener,
    Match,
    ObjectRef,
    Protocol,
    Recipients,
    RetrySchedule,
    Revision,
    RouteLevel,
    Rule,
    TlsMode,
    Transport,
    TransportKind,
    TransportLimits,
    checksum,
    encode,
)
from mailrail.core.config.sealing import Keyring
from mailrail.core.config.secret_uses import (
    AccountCredentials,
    SecretDocument,
    SecretProblem,
    SecretUses,
    Unread,
    Value,
    read_secret,
)
from mailrail.core.config.state import Accepted, Claim, State
from mailrail.core.resources import (
    API_VERSION,
    KINDS,
    AnyResource,
    InvalidResource,
    MailAccount,
    MailDomain,
    MailGateway,
    MailRoute,
    MailTransport,
    canonical,
    read,
)
from mailrail.core.resources.base import AllowedNamespaces, NamespacedRef, Retry, TransportTls
from mailrail.core.resources.domain import TransportDelivery
from mailrail.core.resources.gateway import ListenerSpec
from mailrail.core.resources.problems import Path, Problem, show_path, shown
from mailrail.core.resources.transport import LmtpSpec, SmtpSpec, SubmissionSpec

DEFAULT_MECHANISMS: Final = (
    "SCRAM-SHA-256-PLUS",
    "SCRAM-SHA-256",
    "SCRAM-SHA-1-PLUS",
    "SCRAM-SHA-1",
    "PLAIN",
    "LOGIN",
)
"""What a submission listener offers by itself, strongest first; CRAM-MD5 only where it is written (design 5)."""
_STRONGEST_FIRST: Final = (*DEFAULT_MECHANISMS[:4], "CRAM-MD5", *DEFAULT_MECHANISMS[4:])
_SAME_NAMESPACE: Final = AllowedNamespaces.model_validate({})
_NO_TLS_SETTINGS: Final = TransportTls.model_validate({})
_UID_SPACE: Final = uuid.UUID("6d61696c-7261-5c6c-8000-6163636f756e")


@dataclass(frozen=True, slots=True)
class Sources:
    """All documents there are, in any order, with what could not be read."""

    documents: tuple[Document, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()
    namespaces: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # labels by name, for selectors
    files: Mapping[str, bytes] | None = None  # contents for caFile by path; None: not in local mode

    @classmethod
    def of(cls, *loaded: Loaded, files: Mapping[str, bytes] | None = None) -> "Sources":
        """The documents of several files."""
        return cls(
            tuple(d for one in loaded for d in one.documents),
            tuple(u for one in loaded for u in one.unreadable),
            files=files,
        )


@dataclass(frozen=True, slots=True)
class Options:
    """What is not written in resources."""

    captive: bool = False  # local mode on loopback: the mx listener takes any recipient (design 10)
    port_offset: int = 0  # added to every listener's port (local mode)


@dataclass(frozen=True, slots=True)
class Compiled:
    """What one compilation gives."""

    revision: Revision
    encoded: bytes
    checksum: str
    diagnostics: Diagnostics
    state: State
    values: Mapping[str, Value] = field(repr=False)  # by SecretRef.path; those kept from the last revision are absent
    summary: str = ""


# --- versions -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Version:
    """One version of one object: as just written, or as accepted before."""

    ref: ObjectRef
    resource: AnyResource
    source: str
    origin: str
    new: bool  # differs from what was accepted before


@dataclass(slots=True)
class _Candidate:
    """An object with its newest valid version and the one accepted before."""

    ref: ObjectRef
    document: Document | None
    place: Place
    newest: _Version | None
    before: _Version | None
    generation: int | None = None

    def version(self, refusals: int) -> _Version | None:
        """The newest valid version; after one refusal the one before it; after that none."""
        versions = [v for v in (self.newest, self.before) if v is not None]
        return versions[refusals] if refusals < len(versions) else None


@dataclass(frozen=True, slots=True)
class _Note:
    """Something to say about an object."""

    ref: ObjectRef
    type: ConditionType
    reason: Reason
    message: str
    path: Path = ()
    parent: ObjectRef | None = None


_R = TypeVar("_R", bound=AnyResource)


class _Input:
    """Step 1: what the documents say."""

    def __init__(self, sources: Sources, previous: State) -> None:
        self.findings: list[Finding] = []
        self.notes: list[_Note] = []
        self.candidates: dict[ObjectRef, _Candidate] = {}
        self.secrets: dict[tuple[str, str], SecretDocument] = {}
        self.broken_secrets: dict[tuple[str, str], str] = {}
        self.namespaces: dict[str, Mapping[str, str]] = dict(sources.namespaces)
        self.retained: set[ObjectRef] = set()
        unreadable = {u.place.origin for u in sources.unreadable}
        for item in sorted(sources.unreadable, key=lambda u: (u.place, u.reason)):
            self.findings.append(
                Finding(
                    item.place, Severity.ERROR, Reason.UNREADABLE, f"{item.reason}; its documents stay as they were"
                )
            )
        self._accepted = {a.ref: a for a in previous.accepted}
        prepared = [(d, d.source or canonical(d.content) if is_resource(d.content) else "") for d in sources.documents]
        for document, source in sorted(prepared, key=lambda pair: (pair[0].place, pair[1])):
            if not self._read_document(document, source):
                unreadable.add(document.place.origin)
        self.unreadable = Unread(unreadable)
        for accepted in previous.accepted:
            if accepted.ref not in self.candidates and accepted.origin in self.unreadable:
                self._unchanged(accepted)

    def _finding(self, document: Document, path: Path, message: str, ref: ObjectRef | None = None) -> None:
        self.findings.append(Finding(document.place_of(path), Severity.ERROR, Reason.INVALID, message, ref))

    def _identity(self, document: Document) -> ObjectRef | None:
        """Kind, namespace and name; None after saying what is wrong with them."""
        content = document.content
        kind, version, metadata = content.get("kind"), content.get("apiVersion"), content.get("metadata")
        if not isinstance(kind, str) or (kind not in KINDS and kind not in ("Secret", "Namespace")):
            known = f"{', '.join(KINDS)} or Secret"
            given = "is missing" if kind is None else f"{shown(kind)} is not known here"
            self._finding(document, ("kind",), f"kind: {given}; one of {known}")
            return None
        wanted = API_VERSION if kind in KINDS else "v1"
        if version != wanted:
            given = "is missing;" if version is None else f"is {shown(version)};"
            self._finding(document, ("apiVersion",), f"apiVersion: {given} a {kind} has {wanted}")
            return None
        name = metadata.get("name") if isinstance(metadata, Mapping) else None
        namespace = metadata.get("namespace", "default") if isinstance(metadata, Mapping) else "default"
        if not isinstance(name, str) or not name or len(name) > 253:
            self._finding(document, ("metadata", "name"), f"metadata.name: a {kind} needs a name")
            return None
        if not isinstance(namespace, str) or not namespace or len(namespace) > 63:
            self._finding(document, ("metadata", "namespace"), "metadata.namespace: is not a name")
            return None
        return ObjectRef(kind, namespace, name)

    def _read_document(self, document: Document, source: str) -> bool:
        """Take a document in. False when it cannot be said which object it is."""
        ref = self._identity(document)
        if ref is None:
            return False
        if ref.kind == "Namespace":
            labels = document.content["metadata"].get("labels")
            if isinstance(labels, Mapping):
                self.namespaces[ref.name] = {k: v for k, v in labels.items() if isinstance(v, str)}
            return True
        key = (ref.namespace, ref.name)
        known = ref in self.candidates or (ref.kind == "Secret" and (key in self.secrets or key in self.broken_secrets))
        if known:
            self.findings.append(
                Finding(
                    document.place,
                    Severity.ERROR,
                    Reason.DUPLICATE,
                    "is written twice; the first one counts, by file name and line",
                    ref,
                )
            )
            return True
        if ref.kind == "Secret":
            try:
                self.secrets[key] = read_secret(document.content, ref.namespace, ref.name, document.place.origin)
            except SecretProblem as problem:
                self.broken_secrets[key] = str(problem)
                self._finding(document, (), f"{problem}; what was taken from it before stays in use", ref)
            return True
        self._read_resource(document, ref, source)
        return True

    def _before(self, ref: ObjectRef) -> _Version | None:
        accepted = self._accepted.get(ref)
        if accepted is None:
            return None
        try:
            return _Version(ref, read(accepted.source, ref.kind), accepted.source, accepted.origin, new=False)
        except InvalidResource:  # accepted by a version of the software that had other rules
            return None

    def _read_resource(self, document: Document, ref: ObjectRef, source: str) -> None:
        metadata = document.content["metadata"]
        generation = metadata.get("generation")
        candidate = _Candidate(
            ref, document, document.place, None, None, generation if isinstance(generation, int) else None
        )
        self.candidates[ref] = candidate
        accepted = self._accepted.get(ref)
        try:
            resource = read(source, ref.kind)
        except InvalidResource as error:
            candidate.before = self._before(ref)
            for problem in error.problems:
                self.notes.append(_Note(ref, ConditionType.ACCEPTED, Reason.INVALID, _sentence(problem), problem.path))
            return
        if accepted is not None and accepted.source == source:
            candidate.newest = _Version(ref, resource, source, document.place.origin, new=False)
            return
        candidate.before = self._before(ref)
        candidate.newest = _Version(ref, resource, source, document.place.origin, new=True)

    def _unchanged(self, accepted: Accepted) -> None:
        before = self._before(accepted.ref)
        if before is not None:
            self.candidates[accepted.ref] = _Candidate(accepted.ref, None, Place(accepted.origin), before, None)

    def retain(self, ref: ObjectRef) -> bool:
        """Keep an object that was deleted, because a gateway cannot do without it. Whether there was one."""
        accepted = self._accepted.get(ref)
        if ref in self.candidates or accepted is None:
            return ref in self.candidates
        self._unchanged(accepted)
        if ref in self.candidates:
            self.retained.add(ref)
        return ref in self.candidates


def _sentence(problem: Problem) -> str:
    return f"{show_path(problem.path)}: {problem.message}" if problem.path else problem.message


# --- settling ---------------------------------------------------------------------------------------------------


def _reference(ref: NamespacedRef, kind: str, owner: ObjectRef) -> ObjectRef:
    return ObjectRef(kind, ref.namespace or owner.namespace, ref.name)


def _full_address(text: str, domain: str) -> str:
    """An address with its domain, local part lower case; `text` may be a local part alone."""
    local, at, name = text.rpartition("@")
    return f"{local.casefold()}@{name or domain}" if at else f"{text.casefold()}@{domain}"


def account_uid(ref: ObjectRef, uid: str | None) -> str:
    """What SCRAM salts hang on: Kubernetes' UID, or in local mode one made of namespace and name."""
    return uid if uid is not None else str(uuid.uuid5(_UID_SPACE, f"{ref.namespace}/{ref.name}"))


class _Settled:
    """Step 2 and 3 for one choice of versions: who attaches to whom, and what is claimed."""

    def __init__(self, read_in: _Input, refusals: "_Refusals", claims: Mapping[str, Claim]) -> None:
        self._input, self._refusals, self._claims = read_in, refusals, claims
        self.versions: dict[ObjectRef, _Version] = {}
        for ref in sorted(read_in.candidates):
            version = read_in.candidates[ref].version(refusals.count(ref))
            if version is not None:
                self.versions[ref] = version
        self.gateways = self._of(MailGateway)
        self.domains = self._of(MailDomain)
        self.accounts = self._of(MailAccount)
        self.transports = self._of(MailTransport)
        self.routes = self._of(MailRoute)
        self.new_claims: dict[str, Claim] = {}
        self.gateway_of: dict[ObjectRef, ObjectRef] = {}
        self.domain_of: dict[ObjectRef, ObjectRef] = {}
        self.addresses_of: dict[ObjectRef, tuple[str, ...]] = {}

    def _of(self, kind: type[_R]) -> dict[ObjectRef, _R]:
        return {ref: v.resource for ref, v in self.versions.items() if isinstance(v.resource, kind)}

    def permitted(self, allowed: AllowedNamespaces, target: ObjectRef, owner: ObjectRef) -> bool:
        """Whether objects of the owner's namespace may refer to the target."""
        if owner.namespace == target.namespace or allowed.from_ == "All":
            return True
        if allowed.from_ == "Same" or allowed.selector is None:
            return False
        labels = self._input.namespaces.get(owner.namespace, {})
        return all(labels.get(k) == v for k, v in allowed.selector.match_labels.items())

    def attach(self) -> Iterator[_Note]:
        """Attach domains to gateways and accounts to domains; what is missing or not allowed is noted."""
        for ref, domain in self.domains.items():
            parent = _reference(domain.spec.gateway_ref, "MailGateway", ref)
            gateway = self.gateways.get(parent)
            path: Path = ("spec", "gatewayRef", "name")
            if gateway is None:
                yield _waits(ref, parent, path)
            elif not self.permitted(gateway.spec.allowed_namespaces, parent, ref):
                yield _forbidden(ref, parent, path)
            else:
                self.gateway_of[ref] = parent
        for ref, account in self.accounts.items():
            parent = _reference(account.spec.domain_ref, "MailDomain", ref)
            owner = self.domains.get(parent)
            path = ("spec", "domainRef", "name")
            if owner is None:
                yield _waits(ref, parent, path)
            elif not self.permitted(owner.spec.allowed_namespaces, parent, ref):
                yield _forbidden(ref, parent, path)
            elif parent not in self.gateway_of:
                self.domain_of[ref] = parent
                yield _Note(
                    ref,
                    ConditionType.RESOLVED_REFS,
                    Reason.PARENT_NOT_FOUND,
                    f"its {parent} is not attached to a gateway; it waits for that",
                    path,
                    parent,
                )
            else:
                self.domain_of[ref] = parent
        for ref, account in self.accounts.items():
            parent_ref = self.domain_of.get(ref)
            if parent_ref is None:
                continue
            name = self.domains[parent_ref].spec.domain_name
            addresses: list[str] = []
            for position, text in enumerate(account.spec.addresses):
                full = f"@{name}" if text == "@" else _full_address(text, name)
                if full.rpartition("@")[2] != name:
                    yield _Note(
                        ref,
                        ConditionType.RESOLVED_REFS,
                        Reason.TARGET_NOT_FOUND,
                        f"spec.addresses[{position}]: {full} is not an address of its domain {name}; it is left out",
                        ("spec", "addresses", position),
                        parent_ref,
                    )
                elif full not in addresses:
                    addresses.append(full)
            self.addresses_of[ref] = tuple(addresses)

    def login_of(self, ref: ObjectRef) -> str | None:
        """The name to log in with, lower case; None where no address is left to take it from."""
        login = self.accounts[ref].spec.login
        if login is not None:
            return login.casefold()
        return next((a for a in self.addresses_of.get(ref, ()) if not a.startswith("@")), None)

    def _wanted(self) -> Iterator[tuple[str, ObjectRef, Path, str]]:
        """Every name that some object wants for itself alone, with the field that says so."""
        for ref, domain in self.domains.items():
            name = domain.spec.domain_name
            yield f"domain {name}", ref, ("spec", "domainName"), f"the domain {name}"
        for ref in self.accounts:
            if ref not in self.domain_of:
                continue
            for address in self.addresses_of[ref]:
                yield f"address {address}", ref, ("spec", "addresses"), f"the address {address}"
            login = self.login_of(ref)
            if login is not None:
                yield f"login {login}", ref, ("spec", "login"), f"the login {login}"

    def conflicts(self) -> dict[ObjectRef, tuple[str, _Note]]:
        """Who loses a name that two want: the name and what to say. The older claim wins, then namespace and name.

        A loser whose winner loses something else is left for the next round: the name may become free for it.
        """
        wanted: dict[str, list[tuple[ObjectRef, Path, str]]] = {}
        for key, ref, path, words in self._wanted():
            wanted.setdefault(key, []).append((ref, path, words))
        losers: dict[ObjectRef, tuple[str, _Note]] = {}
        winner_of: dict[ObjectRef, ObjectRef] = {}
        for key, claimants in wanted.items():
            now = {ref for ref, _, _ in claimants}
            everyone = now | self._refusals.waiting.get(key, set())
            claim = self._claims.get(key)
            before = tuple(r for r in claim.claimants if r in everyone) if claim is not None else ()
            order = before + tuple(sorted(everyone.difference(before)))
            self.new_claims[key] = Claim(key, order)
            if len(now) == 1:
                continue
            winner = next(r for r in order if r in now)
            for ref, path, words in claimants:
                if ref != winner and ref not in losers:
                    # Another team's object is not named.
                    who = str(winner) if winner.namespace == ref.namespace else "an object of another namespace"
                    note = _Note(ref, ConditionType.ACCEPTED, Reason.CONFLICTED, f"{words} belongs to {who}", path)
                    losers[ref], winner_of[ref] = (key, note), winner
        certain = {ref: loss for ref, loss in losers.items() if winner_of[ref] not in losers}
        return certain or losers

    def postmasters(self) -> Iterator[tuple[ObjectRef, ObjectRef, str]]:
        """Gateways whose postmaster is not there: gateway, account, and what is missing."""
        for ref, gateway in self.gateways.items():
            account = _reference(gateway.spec.postmaster.account_ref, "MailAccount", ref)
            if account not in self.accounts:
                yield ref, account, f"{account} is not there"
            elif account not in self.domain_of:
                wanted = _reference(self.accounts[account].spec.domain_ref, "MailDomain", account)
                yield ref, account, f"{account} has no domain: {wanted} is not there"
            elif self.domain_of[account] not in self.gateway_of:
                yield ref, account, f"{self.domain_of[account]} of {account} is attached to no gateway"


def _waits(ref: ObjectRef, parent: ObjectRef, path: Path) -> _Note:
    message = f"{show_path(path)}: {parent} is not there; it waits for it"
    return _Note(ref, ConditionType.RESOLVED_REFS, Reason.PARENT_NOT_FOUND, message, path, parent)


def _forbidden(ref: ObjectRef, parent: ObjectRef, path: Path) -> _Note:
    message = f"{show_path(path)}: {parent} does not let namespace {ref.namespace} attach (allowedNamespaces)"
    return _Note(ref, ConditionType.RESOLVED_REFS, Reason.REF_NOT_PERMITTED, message, path, parent)


class _Refusals:
    """What was refused so far, and which names the refused ones wait for."""

    def __init__(self) -> None:
        self.notes: list[_Note] = []
        self.waiting: dict[str, set[ObjectRef]] = {}
        self._counts: dict[ObjectRef, int] = {}

    def count(self, ref: ObjectRef) -> int:
        """How many versions of the object were refused."""
        return self._counts.get(ref, 0)

    def refuse(self, note: _Note, name: str | None = None) -> None:
        """Fall back by one version; with a name the object waits for it, in its place of the order of claims."""
        self._counts[note.ref] = self.count(note.ref) + 1
        self.notes.append(note)
        if name is not None:
            self.waiting.setdefault(name, set()).add(note.ref)


def _settle(read_in: _Input, previous: State) -> tuple[_Settled, list[_Note]]:
    """Refuse and fall back until all versions go together. Each round refuses at least one version, or ends."""
    claims = {c.key: c for c in previous.claims}
    refusals = _Refusals()
    while True:
        settled = _Settled(read_in, refusals, claims)
        notes = list(settled.attach())
        losers = settled.conflicts()
        for name, note in losers.values():
            refusals.refuse(note, name)
        if losers:
            continue
        missing = list(settled.postmasters())
        if any(_retain_postmaster(read_in, settled, account) for _, account, _ in missing):
            continue
        lacking = [
            _Note(
                gateway,
                ConditionType.ACCEPTED if settled.versions[gateway].new else ConditionType.RESOLVED_REFS,
                Reason.POSTMASTER_NOT_FOUND,
                f"spec.postmaster.accountRef: {what}; a gateway needs its postmaster",
                ("spec", "postmaster", "accountRef", "name"),
            )
            for gateway, _, what in missing
        ]
        refused = [note for note in lacking if note.type is ConditionType.ACCEPTED]
        for note in refused:
            refusals.refuse(note)
        if refused:
            continue
        cycle = _cycle(settled)
        changed = [ref for ref in _domains_of(settled, cycle) if settled.versions[ref].new]
        if changed:
            refusals.refuse(_cycle_note(max(changed), cycle))
            continue
        return settled, [*refusals.notes, *notes, *lacking, *_kept(read_in, settled)]


def _kept(read_in: _Input, settled: _Settled) -> Iterator[_Note]:
    """A gateway serves on with a postmaster that was deleted, and says so."""
    for ref, gateway in settled.gateways.items():
        account = _reference(gateway.spec.postmaster.account_ref, "MailAccount", ref)
        for needed in (account, settled.domain_of.get(account)):
            if needed in read_in.retained:
                yield _Note(
                    ref,
                    ConditionType.RESOLVED_REFS,
                    Reason.POSTMASTER_NOT_FOUND,
                    f"spec.postmaster.accountRef: {needed} was deleted; it is kept as long as its postmaster is needed",
                    ("spec", "postmaster", "accountRef", "name"),
                )


def _retain_postmaster(read_in: _Input, settled: _Settled, account: ObjectRef) -> bool:
    """Bring back a postmaster account that was deleted, or its domain. Whether that changed anything."""
    if account not in settled.accounts:
        return account not in read_in.candidates and read_in.retain(account)
    domain = _reference(settled.accounts[account].spec.domain_ref, "MailDomain", account)
    if domain not in settled.domains:
        return domain not in read_in.candidates and read_in.retain(domain)
    return False


# --- cycles of aliases ------------------------------------------------------------------------------------------


def _aliases(domain: MailDomain) -> tuple[Alias, ...]:
    name = domain.spec.domain_name
    return tuple(
        sorted(
            (
                Alias(a.local_part.casefold(), tuple(dict.fromkeys(_full_address(t, name) for t in a.to)))
                for a in domain.spec.aliases
            ),
            key=lambda a: a.local,
        )
    )


def _directory(settled: _Settled) -> Directory:
    """The domains as far as resolution needs them."""
    return Directory(
        (
            Domain(
                ref,
                d.spec.domain_name,
                _delivery(d)[0],
                recipients=d.spec.recipients or Recipients.LISTED,
                listed=tuple(local.casefold() for local in d.spec.listed),
                aliases=_aliases(d),
                separators=d.spec.separators,
                catch_all=_full_address(d.spec.catch_all, d.spec.domain_name) if d.spec.catch_all else None,
            )
            for ref, d in settled.domains.items()
        ),
        frozenset(a for addresses in settled.addresses_of.values() for a in addresses),
    )


def _cycle(settled: _Settled) -> tuple[Node, ...]:
    return _directory(settled).cycle()


def _domains_of(settled: _Settled, cycle: Sequence[Node]) -> list[ObjectRef]:
    names = {node.domain for node in cycle}
    return [ref for ref, d in settled.domains.items() if d.spec.domain_name in names]


def _cycle_note(ref: ObjectRef, cycle: Sequence[Node], kind: ConditionType = ConditionType.ACCEPTED) -> _Note:
    first = cycle[0]
    way = " → ".join(str(n) for n in (*cycle[:6], *(("…",) if len(cycle) > 6 else ()), first))
    path: Path = ("spec", "catchAll") if first.local is None else ("spec", "aliases")
    return _Note(ref, kind, Reason.ALIAS_CYCLE, f"{show_path(path)}: leads back to itself: {way}", path)


# --- the revision -----------------------------------------------------------------------------------------------


def _delivery(domain: MailDomain) -> tuple[Delivery, ObjectRef | None]:
    choice = domain.spec.delivery
    if isinstance(choice, TransportDelivery):
        return Delivery.TRANSPORT, _reference(choice.transport_ref, "MailTransport", _ref_of(domain))
    return (Delivery.MAILBOX if choice == "mailbox" else Delivery.NONE), None


def _ref_of(resource: AnyResource) -> ObjectRef:
    return ObjectRef(resource.kind, resource.metadata.namespace, resource.metadata.name)


def _retry(spec: Retry | None, base: RetrySchedule) -> RetrySchedule:
    if spec is None:
        return base
    return RetrySchedule(
        delays=spec.delays_seconds or base.delays,
        lifetime=spec.lifetime_seconds or base.lifetime,
        null_sender_lifetime=spec.null_sender_lifetime_seconds or base.null_sender_lifetime,
        max_attempts=spec.max_attempts or base.max_attempts,
        delayed_dsn_after=spec.delayed_dsn_after or base.delayed_dsn_after,
    )


class _Build:
    """Step 3 and 4: the parts of the revision, with notes about what they lack."""

    def __init__(self, settled: _Settled, secrets: SecretUses, options: Options) -> None:
        self._settled, self._secrets, self._options = settled, secrets, options
        self.notes: list[_Note] = []
        self._usable: dict[ObjectRef, Transport] = {}

    def _unresolved(
        self, ref: ObjectRef, reason: Reason, message: str, path: Path, parent: ObjectRef | None = None
    ) -> None:
        text = f"{show_path(path)}: {message}"
        self.notes.append(_Note(ref, ConditionType.RESOLVED_REFS, reason, text, path, parent))

    def revision(self) -> Revision:
        """Everything together. Transports first: what cannot be used counts as missing for whoever names it."""
        for ref, transport in self._settled.transports.items():
            usable = self._transport(ref, transport)
            if usable is not None:
                self._usable[ref] = usable
        clear_text = {
            ref
            for ref, gateway in self._settled.gateways.items()
            if any("CRAM-MD5" in (li.mechanisms or ()) for li in gateway.spec.listeners)
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
        domains = self._with_targets(domains, accounts)
        account_routes, domain_routes, global_routes = self._routes(
            {a.ref for a in accounts}, {d.ref: d for d in domains}
        )
        return Revision(
            gateways=gateways,
            domains=tuple(self._without_cycles(domains, accounts)),
            accounts=tuple(accounts),
            transports=tuple(self._usable.values()),
            account_routes=account_routes,
            domain_routes=domain_routes,
            global_routes=global_routes,
        )

    # --- transports ---

    def _transport(self, ref: ObjectRef, resource: MailTransport) -> Transport | None:
        spec = resource.spec
        limits = TransportLimits()
        if spec.limits is not None:
            limits = TransportLimits(
                spec.limits.max_connections,
                spec.limits.max_connections_per_destination,
                spec.limits.messages_per_second,
                spec.limits.recipients_per_message or limits.recipients_per_message,
            )
        try:
            if spec.smtp is not None:
                return self._hop(ref, TransportKind.SMTP, spec.smtp, TlsMode.OPPORTUNISTIC, limits)
            if spec.submission is not None:
                return self._hop(ref, TransportKind.SUBMISSION, spec.submission, TlsMode.VERIFIED, limits)
            if spec.submissions is not None:
                return self._hop(ref, TransportKind.SUBMISSIONS, spec.submissions, TlsMode.VERIFIED, limits)
            if spec.lmtp is not None:
                return self._hop(ref, TransportKind.LMTP, spec.lmtp, TlsMode.NONE, limits)
            if spec.direct is not None:
                return Transport(
                    ref,
                    TransportKind.DIRECT,
                    families=spec.direct.ip_families,
                    source_addresses=spec.direct.source_addresses,
                    limits=limits,
                )
            if spec.socks is not None:
                host, _, port = spec.socks.address.rpartition(":")
                login = None
                if spec.socks.auth is not None:
                    login = self._secrets.login(ref, spec.socks.auth.secret_ref.name, None)
                return Transport(
                    ref,
                    TransportKind.SOCKS,
                    username=login.username if login else None,
                    password=login.password if login else None,
                    families=spec.socks.ip_families,
                    proxy_host=host.strip("[]"),
                    proxy_port=int(port),
                    remote_ips=spec.socks.remote_ips,
                    remote_hostname=spec.socks.remote_hostname,
                    limits=limits,
                )
            assert spec.fail is not None, "the union rule saw to one member"
            return Transport(ref, TransportKind.FAIL, code=spec.fail.code, text=spec.fail.text, limits=limits)
        except SecretProblem as problem:
            member = next(m for m in type(spec).model_fields if getattr(spec, m) is not None)
            self._unresolved(
                ref, problem.reason, f"{problem}; mail for this transport is deferred until it is", ("spec", member)
            )
            return None

    def _hop(
        self,
        ref: ObjectRef,
        kind: TransportKind,
        spec: SmtpSpec | SubmissionSpec | LmtpSpec,
        default: TlsMode,
        limits: TransportLimits,
    ) -> Transport:
        tls = spec.tls or _NO_TLS_SETTINGS
        authorities = None
        if tls.ca_secret_ref is not None:
            authorities = self._secrets.authorities(ref, tls.ca_secret_ref.name, tls.ca_secret_ref.key)
        elif tls.ca_file is not None:
            authorities = self._secrets.authorities_file(ref, tls.ca_file)
        login = None
        mechanisms: tuple[str, ...] = ()
        if isinstance(spec, SubmissionSpec) and spec.auth is not None:
            login = self._secrets.login(ref, spec.auth.secret_ref.name, spec.auth.username)
            mechanisms = spec.auth.mechanisms or ()
        return Transport(
            ref,
            kind,
            host=spec.host.strip("[]"),
            port=spec.port,
            tls=TlsMode(tls.mode) if tls.mode is not None else default,
            ca=authorities,
            username=login.username if login else None,
            password=login.password if login else None,
            mechanisms=mechanisms,
            limits=limits,
        )

    def _missing(self, target: ObjectRef, owner: ObjectRef) -> tuple[Reason, str] | None:
        """Why a transport cannot be used by an object; None if it can."""
        resource = self._settled.transports.get(target)
        if resource is None:
            return Reason.TRANSPORT_NOT_FOUND, f"{target} is not there; matching mail is deferred until it is"
        if not self._settled.permitted(resource.spec.allowed_namespaces, target, owner):
            message = f"{target} does not let namespace {owner.namespace} use it (allowedNamespaces); mail is deferred"
            return Reason.REF_NOT_PERMITTED, message
        if target not in self._usable:
            return Reason.TRANSPORT_NOT_FOUND, f"{target} cannot be used for now; matching mail is deferred: see there"
        return None

    # --- accounts and gateways ---

    def _account(self, ref: ObjectRef, resource: MailAccount, clear_text: set[ObjectRef]) -> Account | None:
        domain = self._settled.domain_of.get(ref)
        if domain is None or domain not in self._settled.gateway_of:
            return None
        addresses, login = self._settled.addresses_of[ref], self._settled.login_of(ref)
        if not addresses or login is None:
            return None
        spec = resource.spec
        uid = account_uid(ref, resource.metadata.uid)
        credentials = AccountCredentials()
        if spec.credentials_secret_ref is not None:
            try:
                credentials = self._secrets.account(
                    ref,
                    spec.credentials_secret_ref.name,
                    uid,
                    clear_text=self._settled.gateway_of[domain] in clear_text,
                )
            except SecretProblem as problem:
                self._unresolved(
                    ref, problem.reason, f"{problem}; nobody can log in", ("spec", "credentialsSecretRef", "name")
                )
        limits = AccountLimits()
        if spec.limits is not None:
            limits = AccountLimits(
                spec.limits.messages_per_day, spec.limits.recipients_per_day, spec.limits.message_bytes
            )
        return Account(ref, uid, domain, login, addresses, credentials.scram, credentials.password, limits)

    def _gateway(self, ref: ObjectRef, resource: MailGateway, accounts: Sequence[Account]) -> Gateway:
        spec = resource.spec
        mine = [a for a in accounts if self._settled.gateway_of[a.domain] == ref]
        usable = {name for a in mine for name, _ in a.scram}
        if usable:
            usable |= {"PLAIN", "LOGIN"}
        usable |= {f"{name}-PLUS" for name in usable if name.startswith("SCRAM-")}
        if any(a.password is not None for a in mine):
            usable.add("CRAM-MD5")
        listeners = [
            built
            for position, listener in enumerate(spec.listeners)
            if (built := self._listener(ref, position, listener, usable)) is not None
        ]
        limits = GatewayLimits()
        if spec.limits is not None:
            li = spec.limits
            limits = GatewayLimits(
                message_size=li.message_bytes or limits.message_size,
                recipients=li.recipients or limits.recipients,
                connections=li.connections or limits.connections,
                connections_per_ip=li.connections_per_ip or limits.connections_per_ip,
                errors=li.errors or limits.errors,
                idle_timeout=li.idle_seconds or limits.idle_timeout,
                transaction_timeout=li.transaction_seconds or limits.transaction_timeout,
                future_release=li.future_release_seconds or limits.future_release,
            )
        base = Gateway(ref, spec.hostname, (), _reference(spec.postmaster.account_ref, "MailAccount", ref))
        return replace(
            base,
            listeners=tuple(listeners),
            postmaster_mailbox=spec.postmaster.mailbox,
            require_tls_extension=spec.require_tls_extension,
            dmarc_reports=spec.dmarc_reports,
            tls_reports=spec.tls_reports,
            retry=_retry(spec.retry, base.retry),
            limits=limits,
            history_days=spec.history_days or base.history_days,
            dsn_full_limit=spec.dsn_full_bytes or base.dsn_full_limit,
        )

    def _listener(self, ref: ObjectRef, position: int, spec: ListenerSpec, usable: set[str]) -> Listener | None:
        port = spec.port + self._options.port_offset
        if port > 65535:  # uvloop would take it modulo 65536
            message = (
                f"{spec.port} and the port offset {self._options.port_offset} are no port; this listener stays shut"
            )
            self._unresolved(ref, Reason.INVALID, message, ("spec", "listeners", position, "port"))
            return None
        certificate = None
        if spec.tls is not None:
            name = spec.tls.certificate_secret_ref.name
            certificate, problem = self._secrets.certificate(ref, spec.name, name)
            if problem is not None:
                # A listener that lost its TLS would be a silent downgrade, so without any certificate it stays shut.
                effect = "its last certificate stays in use" if certificate else "this listener stays shut until it is"
                path: Path = ("spec", "listeners", position, "tls", "certificateSecretRef", "name")
                self._unresolved(ref, problem.reason, f"{problem}; {effect}", path)
                if certificate is None:
                    return None
        offered: tuple[str, ...] = ()
        if spec.protocol is not Protocol.MX:
            wanted: Sequence[str] = spec.mechanisms or DEFAULT_MECHANISMS
            offered = tuple(m for m in _STRONGEST_FIRST if m in wanted and m in usable)
        return Listener(
            spec.name,
            spec.protocol,
            port,
            certificate,
            require_tls=spec.tls is not None and spec.tls.mode == "required",
            proxy_protocol=spec.proxy_protocol is not None,
            proxy_trusted_cidrs=spec.proxy_protocol.trusted_cidrs if spec.proxy_protocol is not None else (),
            mechanisms=offered,
            accept_any_recipient=self._options.captive and spec.protocol is Protocol.MX,
        )

    # --- domains ---

    def _domain(
        self, ref: ObjectRef, resource: MailDomain, gateway: ObjectRef, schedules: Mapping[ObjectRef, RetrySchedule]
    ) -> Domain:
        spec = resource.spec
        delivery, transport = _delivery(resource)
        if transport is not None:
            missing = self._missing(transport, ref)
            if missing is not None:
                self._unresolved(ref, missing[0], missing[1], ("spec", "delivery", "transportRef", "name"))
                if missing[0] is Reason.REF_NOT_PERMITTED:
                    # Named so that nobody serves it: what may not be used is as if it were not there.
                    transport = ObjectRef(transport.kind, transport.namespace, f"{transport.name} (not permitted)")
        keys: list[DkimKey] = []
        for position, key in enumerate(spec.dkim):
            try:
                secret = key.private_key_secret_ref
                used = self._secrets.dkim_key(ref, key.selector, key.algorithm, secret.name, secret.key)
                keys.append(DkimKey(key.selector, key.algorithm, used))
            except SecretProblem as problem:
                self._unresolved(
                    ref,
                    problem.reason,
                    f"{problem}; it does not sign",
                    ("spec", "dkim", position, "privateKeySecretRef"),
                )
        return Domain(
            ref,
            spec.domain_name,
            delivery,
            transport,
            spec.recipients or Recipients.LISTED,
            tuple(sorted({local.casefold() for local in spec.listed})),
            _aliases(resource),
            spec.separators,
            _full_address(spec.catch_all, spec.domain_name) if spec.catch_all is not None else None,
            _retry(spec.retry, schedules[gateway]) if spec.retry is not None else None,
            tuple(keys),
            gateway,
        )

    def _without_cycles(self, domains: Sequence[Domain], accounts: Sequence[Account]) -> Iterable[Domain]:
        """Cycles that no edit made, but a deletion (an account that stood before an alias): their aliases are cut."""
        addresses = frozenset(a for account in accounts for a in account.addresses)
        served = {d.name: d for d in domains}
        while cycle := Directory(served.values(), addresses).cycle():
            last = max(cycle, key=lambda n: (n.domain, n.local or ""))
            domain = served[last.domain]
            if last.local is None:
                served[last.domain] = replace(domain, catch_all=None)
            else:
                kept = tuple(a for a in domain.aliases if a.local != last.local)
                served[last.domain] = replace(domain, aliases=kept)
            self.notes.append(_cycle_note(domain.ref, cycle, ConditionType.RESOLVED_REFS))
        return served.values()

    def _with_targets(self, domains: Sequence[Domain], accounts: Sequence[Account]) -> list[Domain]:
        """Say which aliases an account hides, and which targets do not exist. A catch-all that leads nowhere is cut."""
        result: list[Domain] = []
        addresses = frozenset(a for account in accounts for a in account.addresses)
        directory = Directory(domains, addresses)
        for domain in domains:
            written = [a.local_part.casefold() for a in self._settled.domains[domain.ref].spec.aliases]
            for alias in domain.aliases:
                path: Path = ("spec", "aliases", written.index(alias.local))
                if f"{alias.local}@{domain.name}" in addresses:
                    message = f"{show_path(path)}: an account has {alias.local}@{domain.name}; the alias never applies"
                    self.notes.append(
                        _Note(domain.ref, ConditionType.SHADOWED, Reason.HIDDEN_BY_ACCOUNT, message, path)
                    )
                for target in alias.targets:
                    if directory.lookup(target) is End.NOBODY:
                        self._unresolved(domain.ref, Reason.TARGET_NOT_FOUND, f"{target} does not exist", path)
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
        for ref, route in sorted(self._settled.routes.items(), key=lambda item: (item[1].spec.priority, item[0])):
            rules = [self._rule(ref, route, index) for index in range(len(route.spec.rules))]
            for parent in dict.fromkeys(_reference(p, p.kind, ref) for p in route.spec.parent_refs):
                position = next(i for i, p in enumerate(route.spec.parent_refs) if _reference(p, p.kind, ref) == parent)
                if self._attached(ref, parent, ("spec", "parentRefs", position, "name"), accounts, domains):
                    levels.setdefault(parent, []).extend(Placed(rule, route.spec.priority) for rule in rules)
        received = {d.name: d for d in domains.values() if d.delivery is not Delivery.NONE}
        for parent, placed in levels.items():
            self._warn(parent, placed, received, domains)
        built: dict[str, list[RouteLevel]] = {"MailAccount": [], "MailDomain": [], "MailGateway": []}
        for parent in sorted(levels):
            built[parent.kind].append(RouteLevel(parent, tuple(p.rule for p in levels[parent])))
        return tuple(built["MailAccount"]), tuple(built["MailDomain"]), tuple(built["MailGateway"])

    def _attached(
        self,
        ref: ObjectRef,
        parent: ObjectRef,
        path: Path,
        accounts: set[ObjectRef],
        domains: Mapping[ObjectRef, Domain],
    ) -> bool:
        there = parent in accounts or parent in domains or parent in self._settled.gateways
        if not there:
            self.notes.append(_waits(ref, parent, path))
            return False
        allowed = _SAME_NAMESPACE
        if parent.kind == "MailGateway":
            allowed = self._settled.gateways[parent].spec.allowed_namespaces
        elif parent.kind == "MailDomain":
            allowed = self._settled.domains[parent].spec.allowed_namespaces
        if self._settled.permitted(allowed, parent, ref):
            return True
        self.notes.append(_forbidden(ref, parent, path))
        return False

    def _rule(self, ref: ObjectRef, route: MailRoute, index: int) -> Rule:
        spec = route.spec.rules[index]
        matches = tuple(Match(m.to_domains, m.from_domains, m.minimum_attempts) for m in spec.matches)
        name = spec.name if spec.name is not None else str(index)
        if spec.transport_ref is None:
            return Rule(ref, index, name, matches, None)
        target = _reference(spec.transport_ref, "MailTransport", ref)
        missing = self._missing(target, ref)
        if missing is not None:
            self._unresolved(ref, missing[0], missing[1], ("spec", "rules", index, "transportRef", "name"))
        return Rule(ref, index, name, matches, target, missing=missing is not None)

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
                f"never applies: {_named(by, rule)} takes its mail",
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
        self.notes.append(_Note(rule.route, kind, reason, f"{show_path(path)} {message}", path, parent))


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
        if sender is not None and match.from_domains and not any(_admits(p, sender) for p in match.from_domains):
            reasons.append(f"it is attached to {sender}, whose mail no fromDomains of it matches")
        elif match.to_domains and all(p in received for p in match.to_domains):
            reasons.append("its toDomains are domains of ours, whose `delivery` decides and no route")
        else:
            return ""
    return reasons[0]


def _admits(pattern: str, domain: str) -> bool:
    return pattern == domain or (pattern.startswith(".") and pattern != "." and f".{domain}".endswith(pattern))


# --- the verdict ------------------------------------------------------------------------------------------------

_SEVERITY: Final = {
    ConditionType.ACCEPTED: Severity.ERROR,
    ConditionType.RESOLVED_REFS: Severity.WAITING,
    ConditionType.SHADOWED: Severity.WARNING,
    ConditionType.AMBIGUOUS: Severity.WARNING,
}
_MESSAGES_SHOWN: Final = 3


def _joined(notes: Sequence[_Note]) -> str:
    texts = list(dict.fromkeys(n.message for n in notes))
    more = f" (and {len(texts) - _MESSAGES_SHOWN} more)" if len(texts) > _MESSAGES_SHOWN else ""
    return "; ".join(texts[:_MESSAGES_SHOWN]) + more


def _conditions(notes: Sequence[_Note]) -> tuple[Condition, ...]:
    by_type: dict[ConditionType, list[_Note]] = {}
    for note in notes:
        by_type.setdefault(note.type, []).append(note)
    result: list[Condition] = []
    for kind, good in ((ConditionType.ACCEPTED, Reason.ACCEPTED), (ConditionType.RESOLVED_REFS, Reason.RESOLVED_REFS)):
        found = by_type.get(kind)
        if found:
            result.append(Condition(kind, Status.FALSE, found[0].reason, _joined(found)))
        else:
            result.append(Condition(kind, Status.TRUE, good))
    result.append(Condition(ConditionType.PROGRAMMED, Status.UNKNOWN, Reason.PENDING))
    for kind in (ConditionType.SHADOWED, ConditionType.AMBIGUOUS):
        found = by_type.get(kind)
        if found:
            result.append(Condition(kind, Status.TRUE, found[0].reason, _joined(found)))
    return tuple(result)


_FINE: Final = _conditions(())
_FINE_AND_READY: Final = (*_FINE, ready(_FINE))


def _parents_of(resource: AnyResource, ref: ObjectRef) -> tuple[ObjectRef, ...]:
    if isinstance(resource, MailRoute):
        return tuple(dict.fromkeys(_reference(p, p.kind, ref) for p in resource.spec.parent_refs))
    if isinstance(resource, MailDomain):
        return (_reference(resource.spec.gateway_ref, "MailGateway", ref),)
    if isinstance(resource, MailAccount):
        return (_reference(resource.spec.domain_ref, "MailDomain", ref),)
    return ()


def _diagnose(read_in: _Input, settled: _Settled, notes: Sequence[_Note]) -> Diagnostics:
    by_ref: dict[ObjectRef, list[_Note]] = {}
    for note in notes:
        by_ref.setdefault(note.ref, []).append(note)
    findings = list(read_in.findings)
    objects: list[ObjectStatus] = []
    for ref in sorted(read_in.candidates):
        candidate = read_in.candidates[ref]
        mine = by_ref.get(ref)
        serving = settled.versions.get(ref)
        if mine is None:  # nearly every object, nearly always
            of = _parents_of(serving.resource, ref) if serving is not None else ()
            objects.append(ObjectStatus(ref, candidate.generation, _FINE_AND_READY, tuple((p, _FINE) for p in of)))
            continue
        for note in mine:
            place = candidate.document.place_of(note.path) if candidate.document is not None else candidate.place
            message = note.message
            if note.type is ConditionType.ACCEPTED:
                message += "; its last accepted version stays in use" if serving else "; it is left out"
            findings.append(Finding(place, _SEVERITY[note.type], note.reason, message, ref))
        conditions = _conditions(mine)
        parents: tuple[tuple[ObjectRef, tuple[Condition, ...]], ...] = ()
        if serving is not None:
            parents = tuple(
                (parent, _conditions([n for n in mine if n.parent in (None, parent)]))
                for parent in _parents_of(serving.resource, ref)
            )
        objects.append(ObjectStatus(ref, candidate.generation, (*conditions, ready(conditions)), parents))
    findings.sort(key=lambda f: (f.place, str(f.ref), f.severity, f.message))
    return Diagnostics(tuple(objects), tuple(dict.fromkeys(findings)))


def _summary(revision: Revision) -> str:
    rules = sum(
        len(level.rules)
        for levels in (revision.account_routes, revision.domain_routes, revision.global_routes)
        for level in levels
    )
    counts = (
        (len(revision.gateways), "gateway"),
        (len(revision.domains), "domain"),
        (len(revision.accounts), "account"),
        (len(revision.transports), "transport"),
        (rules, "rule"),
    )
    return ", ".join(f"{n} {word}{'' if n == 1 else 's'}" for n, word in counts)


def compile(sources: Sources, previous: State, keys: Keyring, options: Options | None = None) -> Compiled:
    """All documents, and the state of the last compilation, to one revision with its diagnostics (CFG-01).

    Never raises for what documents say: that is in the diagnostics. Equal input gives equal bytes, in whatever order
    the documents come. `keys` gives the digests of secrets and the salts of verifiers (CFG-02, CFG-03); values are made
    only when `Compiled.values` is asked for them.
    """
    read_in = _Input(sources, previous)
    settled, notes = _settle(read_in, previous)
    secrets = SecretUses(
        read_in.secrets, read_in.broken_secrets, sources.files, previous.uses, read_in.unreadable, keys
    )
    build = _Build(settled, secrets, options or Options())
    revision = build.revision()
    encoded = encode(revision)
    everything = [*read_in.notes, *notes, *build.notes]
    state = State(
        accepted=tuple(Accepted(v.ref, v.source, v.origin) for _, v in sorted(settled.versions.items())),
        claims=tuple(settled.new_claims[key] for key in sorted(settled.new_claims)),
        uses=tuple(secrets.uses[key] for key in sorted(secrets.uses)),
    )
    return Compiled(
        revision,
        encoded,
        checksum(encoded),
        _diagnose(read_in, settled, everything),
        state,
        secrets.values,
        _summary(revision),
    )


def is_resource(content: Mapping[str, Any]) -> bool:
    """Whether a document is one of our kinds."""
    kind = content.get("kind")
    return isinstance(kind, str) and kind in KINDS
