"""What the compiler says about each object: conditions with reasons from a closed list, and findings for a console.

Conditions follow the habits of the Gateway API: positive ones are always present, `Shadowed` and `Ambiguous` only while
true. The reasons are part of the interface (design 5): scripts may compare them, so each is listed here with what it
means and what to do, and the reference page is made from this list.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from mailrail.core.limits import EXPANSION_LIMIT
from mailrail.core.revision.problem import RevisionProblem
from mailrail.core.revision.revision import ObjectRef, Role


class ConditionType(StrEnum):
    """What a condition speaks of."""

    ACCEPTED = "Accepted"  # this version of the object is valid, and is what the revision was made of
    RESOLVED_REFS = "ResolvedRefs"  # everything that it names is there and may be used
    PROGRAMMED = "Programmed"  # every live service that reads it runs it
    SHADOWED = "Shadowed"  # only while true: part of it can never apply
    AMBIGUOUS = "Ambiguous"  # only while true: a mere name decides between two rules
    READY = "Ready"  # the sum of the positive ones


class Status(StrEnum):
    """Kubernetes' three values."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


WARNINGS: Final = frozenset({ConditionType.SHADOWED, ConditionType.AMBIGUOUS})
"""Conditions that are there only while they are true."""


class Reason(StrEnum):
    """Why a condition is what it is. Closed: a new reason is a change of the interface."""

    ACCEPTED = "Accepted"
    INVALID = "Invalid"
    UNREADABLE = "Unreadable"
    NOT_SUPPORTED = "NotSupported"
    DUPLICATE = "Duplicate"
    CONFLICTED = "Conflicted"
    PORT_CONFLICT = "PortConflict"
    PORT_UNAVAILABLE = "PortUnavailable"
    HOSTNAME_CONFLICT = "HostnameConflict"
    ALIAS_CYCLE = "AliasCycle"
    ALIAS_TOO_LARGE = "AliasTooLarge"
    POSTMASTER_NOT_FOUND = "PostmasterNotFound"
    RESOLVED_REFS = "ResolvedRefs"
    PARENT_NOT_FOUND = "ParentNotFound"
    TRANSPORT_NOT_FOUND = "TransportNotFound"
    TRANSPORT_NOT_USABLE = "TransportNotUsable"
    SECRET_NOT_FOUND = "SecretNotFound"  # noqa: S105 - the name of a reason
    SECRET_INVALID = "SecretInvalid"  # noqa: S105 - the name of a reason
    FILE_NOT_FOUND = "FileNotFound"
    REF_NOT_PERMITTED = "RefNotPermitted"
    TARGET_NOT_FOUND = "TargetNotFound"
    SECURITY_NOT_POSSIBLE = "SecurityNotPossible"
    DOMAIN_NOT_FOUND = "DomainNotFound"
    SIGNING_NOT_POSSIBLE = "SigningNotPossible"
    HIDDEN_BY_RULE = "HiddenByRule"
    NEVER_MATCHES = "NeverMatches"
    HIDDEN_BY_ACCOUNT = "HiddenByAccount"
    SAME_PRIORITY = "SamePriority"
    PENDING = "Pending"
    PROGRAMMED = "Programmed"
    REJECTED = "Rejected"
    PINNED = "Pinned"
    NOT_STORED = "NotStored"
    NOT_IN_USE = "NotInUse"
    READY = "Ready"
    NOT_READY = "NotReady"


REASONS: Final[dict[Reason, str]] = {
    Reason.ACCEPTED: "The document is valid and in use.",
    Reason.INVALID: "The document breaks a rule of its kind; the message says where. Its last accepted version stays "
    "in use; a document that was never accepted is left out.",
    Reason.UNREADABLE: "The file cannot be parsed, so all its documents count as unchanged.",
    Reason.NOT_SUPPORTED: "This version of Mailrail cannot read an object, neither as it is nor as another version "
    "accepted it. It runs on as that version compiled it. If that cannot be read either, the message says so: then the "
    "running configuration stays in force, and nothing is published until the object is mended or deleted. Or the API "
    "server no longer shows fields of it, because its CRDs are, or were, older: they stay in force, and the message "
    "names them.",
    Reason.DUPLICATE: "Two documents have the same kind, namespace and name; the first by file and line counts.",
    Reason.CONFLICTED: "Another object has the same domain name, address or login: it claimed it first, or is older. "
    "Names of a deleted object are kept for ten minutes.",
    Reason.PORT_CONFLICT: "A listener of another gateway, or another listener of this one, has the port, perhaps under "
    "another number that is mapped to the same real one; the older gateway keeps it. Or the port is ingress's own.",
    Reason.PORT_UNAVAILABLE: "An ingress process cannot open the listener's port: another program has it, or the "
    "process may not open it. The message names the process; it tries again by itself.",
    Reason.HOSTNAME_CONFLICT: "Another gateway has the same hostname; the older one keeps it.",
    Reason.ALIAS_CYCLE: "An alias or a catch-all leads back to itself.",
    Reason.ALIAS_TOO_LARGE: f"An alias leads to more than {EXPANSION_LIMIT:,} addresses, including aliases on the way. "
    "If the edit that caused this could not be refused, mail for the alias is deferred (451 4.3.5).",
    Reason.POSTMASTER_NOT_FOUND: "The gateway's postmaster account, its domain or its domain's gateway does not exist.",
    Reason.RESOLVED_REFS: "Every object that this one refers to exists.",
    Reason.PARENT_NOT_FOUND: "The object that this one attaches to does not exist yet.",
    Reason.TRANSPORT_NOT_FOUND: "A transport does not exist; its mail is deferred and never sent another way.",
    Reason.TRANSPORT_NOT_USABLE: "A transport exists and cannot be used: it is refused, or its Secret is missing. Its "
    "mail is deferred and never sent another way.",
    Reason.SECRET_NOT_FOUND: "A Secret, or the key in it, does not exist. What needs it does not work until it exists.",
    Reason.SECRET_INVALID: "A Secret exists, but its content cannot be used.",
    Reason.FILE_NOT_FOUND: "A caFile does not exist, or files cannot be used (they can in local mode only).",
    Reason.REF_NOT_PERMITTED: "The target's attach[] does not permit what this object asks; the message says which "
    "power it lacks.",
    Reason.TARGET_NOT_FOUND: "An alias or a catch-all leads to an address of ours that does not exist. Mail for the "
    "alias goes to its other addresses, and ingress logs a warning.",
    Reason.SECURITY_NOT_POSSIBLE: "The floors (security, require.tls) add up to what nothing can meet: no proof is "
    "left that all of them allow, or the transport dials its host without TLS, or that host can never give such a "
    "proof. The mail waits, or fails where a floor says so; the message names who demands what.",
    Reason.DOMAIN_NOT_FOUND: "A MailDomain that dkim.alsoSignAs names does not exist; mail goes out without that "
    "signature.",
    Reason.SIGNING_NOT_POSSIBLE: "No DKIM key of the domain can sign by itself: it has Ed25519 keys alone, which many "
    "verifiers do not know. Or a domain that dkim.alsoSignAs names has no key that signs. Mail goes out without that "
    "signature.",
    Reason.HIDDEN_BY_RULE: "An earlier rule of the same level matches all the mail that this rule matches.",
    Reason.NEVER_MATCHES: "No mail can match this rule at its level, or with its recipient domains.",
    Reason.HIDDEN_BY_ACCOUNT: "An account has the address of this alias; accounts are asked first.",
    Reason.SAME_PRIORITY: "A rule of another route with equal priority matches the same mail and names another "
    "transport; only the names of the routes decide.",
    Reason.PENDING: "Some live service does not run a revision with the object yet.",
    Reason.PROGRAMMED: "Every live service that reads the object runs a revision with it.",
    Reason.REJECTED: "A service could not use the revision and keeps its last good one.",
    Reason.PINNED: "Head is pinned to an older revision; unpin to activate newer ones.",
    Reason.NOT_IN_USE: "No service runs the object as it is now: it is not accepted, or what it attaches to or needs "
    "is missing. After a refused edit the message names the generation that serves on.",
    Reason.NOT_STORED: "The config service does not have what was published last: its database was restored, replaced "
    "or failed over. It is published again by itself.",
    Reason.READY: "Accepted, resolved and programmed.",
    Reason.NOT_READY: "One of the other conditions is not true.",
}


@dataclass(frozen=True, slots=True, order=True)
class SourceLocation:
    """Where a document is: a file and a line counted from 1. Empty and 0 for objects that came from an API server."""

    origin: str = ""
    line: int = 0

    def __str__(self) -> str:
        return f"{self.origin}:{self.line}" if self.line else self.origin


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition of one object, or of its attachment to one parent."""

    type: ConditionType
    status: Status
    reason: Reason
    message: str = ""


@dataclass(frozen=True, slots=True)
class ListenerVerdict:
    """What is to say about one listener of a gateway, as the object has it now."""

    name: str
    port: int
    accepted: Condition
    programmed: Condition
    """False where no process can have it open; else Unknown, and the processes know."""


@dataclass(frozen=True, slots=True)
class ObjectStatus:
    """All that is to say about an object: conditions of its own, per parent for what attaches, and per listener."""

    ref: ObjectRef
    generation: int | None
    conditions: tuple[Condition, ...]
    parents: tuple[tuple[ObjectRef, tuple[Condition, ...]], ...] = ()
    listeners: tuple[ListenerVerdict, ...] = ()

    def condition(self, kind: ConditionType, parent: ObjectRef | None = None) -> Condition | None:
        """The condition of that type, of the object or of one parent."""
        conditions = self.conditions if parent is None else dict(self.parents).get(parent, ())
        return next((c for c in conditions if c.type is kind), None)


class Severity(StrEnum):
    """Whether something was refused, does not work for now, or works and is probably not meant."""

    ERROR = "error"
    WAITING = "waiting"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line for a console: where, what, why. Nothing secret is ever in it."""

    place: SourceLocation
    severity: Severity
    reason: Reason
    message: str
    ref: ObjectRef | None = None

    def __str__(self) -> str:
        where = f"{self.place}: " if self.place.origin else ""
        who = f"{self.ref}: " if self.ref else ""
        return f"{where}{who}{self.message}"


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """The compiler's verdict: the state of every object, and the findings in order of place."""

    objects: tuple[ObjectStatus, ...] = ()
    findings: tuple[Finding, ...] = ()

    def of(self, kind: str, name: str, namespace: str = "default") -> ObjectStatus:
        """The status of one object. Raises KeyError when the compiler never saw it."""
        wanted = ObjectRef(kind, namespace, name)
        for status in self.objects:
            if status.ref == wanted:
                return status
        raise KeyError(str(wanted))

    @property
    def errors(self) -> tuple[Finding, ...]:
        """What was refused."""
        return tuple(f for f in self.findings if f.severity is Severity.ERROR)

    def warned(self) -> Mapping[tuple[str, ConditionType], int]:
        """(kind, condition) → objects that have it, or have it at one parent: conditions that are there only while
        something is probably not meant so."""
        found: Counter[tuple[str, ConditionType]] = Counter()
        for status in self.objects:
            conditions = {c.type for group in (status.conditions, *(of for _, of in status.parents)) for c in group}
            for kind in conditions & WARNINGS:
                found[status.ref.kind, kind] += 1
        return found

    def encode(self, limit: int | None = None) -> str:
        """The findings as a JSON list. With a `limit`, as they are stored with a revision: so many of them, what was
        refused first, and one more that says how many are not shown."""
        shown = self.findings
        if limit is not None and len(shown) > limit:
            order = list(Severity)
            shown = tuple(sorted(sorted(shown, key=lambda f: order.index(f.severity))[:limit], key=lambda f: f.place))
            last = shown[-1]
            more = f"{len(self.findings) - limit} more findings are not shown"
            shown = (*shown, Finding(SourceLocation(), last.severity, last.reason, more))
        return json.dumps(
            [
                {
                    "object": str(f.ref) if f.ref else None,
                    "origin": f.place.origin or None,
                    "line": f.place.line or None,
                    "severity": f.severity,
                    "reason": f.reason,
                    "message": f.message,
                }
                for f in shown
            ],
            ensure_ascii=False,
            separators=(",", ":"),
        )


@dataclass(frozen=True, slots=True)
class ConsumerState:
    """What one process reported: which revision it runs, and one that it could not use."""

    node: str
    role: Role
    revision: int
    rejected: int = 0
    error: str = ""
    live: bool = True
    problems: tuple[RevisionProblem, ...] = ()
    """With the revision that it runs."""
    gateway: str = ""
    """NAMESPACE/NAME of the MailGateway that it serves; empty: all."""


ROLES_OF_KIND: Final[dict[str, tuple[Role, ...]]] = {
    "MailGateway": (Role.INGRESS, Role.QUEUE),
    "MailDomain": (Role.INGRESS, Role.QUEUE),
    "MailAccount": (Role.INGRESS, Role.QUEUE),
    "MailTransport": (Role.QUEUE, Role.OUTBOUND),
    "MailRoute": (Role.QUEUE,),
}
"""Which services must run a revision before an object of that kind counts as programmed."""


def programmed(
    consumers: Iterable[ConsumerState], first: int, roles: Sequence[Role], *, pinned: int | None = None
) -> Condition:
    """`Programmed` of an object that first appeared, as it is now, in revision `first` (CFG-05).

    A role without live consumers does not block and is named; a process cut off from the config service may still run
    an older revision, and the message claims nothing else.
    """
    if pinned is not None and pinned < first:
        return Condition(
            ConditionType.PROGRAMMED,
            Status.FALSE,
            Reason.PINNED,
            f"head is pinned to revision {pinned}; this needs revision {first}: unpin to activate it",
        )
    live = sorted((c for c in consumers if c.live and c.role in roles), key=lambda c: (c.role, c.node))
    for consumer in live:
        if consumer.rejected >= first and consumer.revision < first:
            return Condition(
                ConditionType.PROGRAMMED,
                Status.FALSE,
                Reason.REJECTED,
                f"{consumer.role} {consumer.node} rejected revision {consumer.rejected}: {consumer.error}",
            )
    behind = [f"{c.role} {c.node}" for c in live if c.revision < first]
    if behind:
        more = f" and {len(behind) - 3} more" if len(behind) > 3 else ""
        return Condition(
            ConditionType.PROGRAMMED,
            Status.UNKNOWN,
            Reason.PENDING,
            f"revision {first} is not yet run by {', '.join(behind[:3])}{more}",
        )
    absent = [role for role in roles if all(c.role is not role for c in live)]
    message = f"revision {first} is run by every live service that reads it"
    if absent:
        message += f"; no live {' or '.join(absent)}"
    return Condition(ConditionType.PROGRAMMED, Status.TRUE, Reason.PROGRAMMED, message)


def ready(conditions: Sequence[Condition]) -> Condition:
    """`Ready`, the sum of the positive conditions. What somebody must do outside (DNS) is no part of it."""
    for condition in conditions:
        positive = condition.type in (ConditionType.ACCEPTED, ConditionType.RESOLVED_REFS, ConditionType.PROGRAMMED)
        if positive and condition.status is not Status.TRUE:
            return Condition(ConditionType.READY, condition.status, Reason.NOT_READY, condition.message)
    return Condition(ConditionType.READY, Status.TRUE, Reason.READY)
