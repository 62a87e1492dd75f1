"""Decides what to write into status: pure, from what was read, what the compiler said and who runs what.

    plan(view, memory) → changes with their events, and the memory for the next plan

Rules (design 5, CFG-05):

- The positive conditions are always there; `Shadowed` and `Ambiguous` only while true; `observedGeneration` on each.
- A status is written only when it differs. `lastTransitionTime` moves only with `status`.
- Revision numbers and who runs them change for all objects at once, so they stand on MailGateway alone. What a
  condition of another object says of them is words; the words alone are no reason to write.
- `Programmed` is false of what no service can run, because it is in no revision, for each parent. Of all else it is
  true once every live service that reads the object ran a revision with it. It stays true while
  processes come and go (a new one starts with head); it falls when the object or what it refers to changes, when head
  is rolled back behind it, and when a service rejects it.
- A listener is programmed once every live ingress that serves its gateway has it open; a gateway is never more than its
  listeners are.
- A condition that was written for a newer generation than ours is not overwritten: what we read is old.
- What a new object misses may arrive a moment later: for some seconds nothing is said of that.
- One Kubernetes event for each change of a condition for the worse, and one when it is well again; what the store lost
  is told of the gateway alone.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache, partial
from typing import Any, Final

from mailrail.core.config.diagnostics import (
    ROLES_OF_KIND,
    Condition,
    ConditionType,
    ConsumerState,
    ListenerVerdict,
    ObjectStatus,
    Reason,
    Status,
    programmed,
    ready,
)
from mailrail.core.dnscheck.answers import DnsVerdict
from mailrail.core.resources.status import DNS_RECORDS_LIMIT, MESSAGE_LIMIT
from mailrail.core.resources.transport import MEMBERS
from mailrail.core.revision.problem import PENDING, PORT_CONFLICT, RevisionProblem, listener_part
from mailrail.core.revision.revision import ObjectRef, Role
from mailrail_operator.judging import ObjectJudge, judge_of, status_fields
from mailrail_operator.model import (
    Change,
    ClusterView,
    Controller,
    EventRecord,
    EventType,
    ObjectFacts,
    ObjectMemory,
    Observed,
    Running,
    SettledObject,
    StatusPlan,
    Tracked,
    conditions_of,
)
from mailrail_operator.transport_health import TransportHealth

_POSITIVE: Final = (ConditionType.ACCEPTED, ConditionType.RESOLVED_REFS, ConditionType.PROGRAMMED)
_NEGATIVE: Final = (ConditionType.SHADOWED, ConditionType.AMBIGUOUS)
_MAY_ARRIVE: Final = (
    Reason.PARENT_NOT_FOUND,
    Reason.POSTMASTER_NOT_FOUND,
    Reason.TRANSPORT_NOT_FOUND,
    Reason.SECRET_NOT_FOUND,
)
_SKEW: Final = 2
"""Seconds by which the API server's clock may be ahead of ours; an object from further ahead is not new for long."""
DNS_CONFIGURED: Final = "DNSConfigured"
HEALTHY: Final = "Healthy"
_GATEWAY: Final = "MailGateway"
_LISTENER: Final = "listener"
_ROLES: Final = ROLES_OF_KIND | {_LISTENER: (Role.INGRESS,)}
_LEVELS: Final = {"MailAccount": "Account", "MailDomain": "Domain", "MailGateway": "Global"}
_NOTE_LIMIT: Final = 1024
"""Characters of the note of an event (events.k8s.io/v1)."""

Row = dict[str, Any]


def plan(view: ClusterView, memory: Mapping[ObjectRef, ObjectMemory]) -> StatusPlan:
    """Compare the statuses that objects should have with those that they have. `memory` is that of the last plan."""
    facts = _facts(view)
    # Equal for all objects of a kind that wait for the same revision, so it is judged once for them.
    programmed_since = cache(partial(_programmed, view.running))
    changes: list[Change] = []
    remembered: dict[ObjectRef, ObjectMemory] = {}
    counts: Counter[tuple[str, str]] = Counter()
    others: Counter[str] = Counter()
    arriving = False
    for ref, seen in view.objects.items():
        known = memory.get(ref)
        since = known.unjudged_since if known is not None else ""
        whose = judge_of(seen, facts[ref].verdict, since, view.controller, view.now)
        if whose.ours and _arriving(view, seen, facts[ref].verdict):
            arriving = True
            counts[ref.kind, Status.UNKNOWN.value] += 1
            continue
        others[ref.kind] += not whose.ours
        made = _plan_object(view, seen, facts[ref], known, whose, programmed_since)
        if made.memory is not None:
            remembered[ref] = made.memory
        if made.ready is not None:
            counts[ref.kind, made.ready] += 1
        if made.status is not None:
            told = notes(seen.status, made.status) if whose.ours else ()
            changes.append(Change(ref, seen.uid, made.status, told, seen.judged_by, whose.ends))
    return StatusPlan(tuple(sorted(changes, key=lambda change: change.ref)), remembered, counts, others, arriving)


# --- one object ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _ObjectPlan:
    status: Row | None
    """What to write; None when nothing is to be written."""
    ready: str | None
    """For the counts."""
    memory: ObjectMemory | None


def _arriving(view: ClusterView, seen: Observed, verdict: ObjectStatus | None) -> bool:
    """Whether an object is so new that what it misses may be on its way: what is applied together arrives one by one.
    Until then it keeps the status that the API server gave it."""
    created = seen.body["metadata"].get("creationTimestamp")
    if verdict is None or not created:
        return False
    age = _seconds(view.now) - _seconds(created)
    if not -_SKEW <= age < view.arrival_seconds:
        return False
    judged = conditions_of(seen.status).get(ConditionType.ACCEPTED.value, {})
    if judged.get("reason", Reason.PENDING.value) != Reason.PENDING.value:
        return False
    return any(c.status is Status.FALSE and c.reason in _MAY_ARRIVE for c in verdict.conditions)


def _seconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()


def _facts(view: ClusterView) -> dict[ObjectRef, ObjectFacts]:
    judged = {status.ref: status for status in view.diagnostics.objects}
    secrets: dict[ObjectRef, list[str]] = {}
    for use in view.uses:
        secrets.setdefault(use.owner, []).append(use.ref.path)
    attached = _attached(view.objects, judged, view.controller.name)
    facts = {}
    for ref, seen in view.objects.items():
        verdict = judged.get(ref)
        if verdict is not None and (verdict.generation or 0) != seen.generation:
            verdict = None
        health = view.health.get(ref) if view.health is not None else None
        facts[ref] = ObjectFacts(
            verdict, tuple(secrets.get(ref, ())), attached[ref], view.dns.get(ref), health, view.keys.get(ref, ())
        )
    return facts


def _plan_object(
    view: ClusterView,
    seen: Observed,
    facts: ObjectFacts,
    known: ObjectMemory | None,
    whose: ObjectJudge,
    programmed_since: Callable[[str, int, bool], Condition],
) -> _ObjectPlan:
    if facts.verdict is None:
        return _plan_waiting(view, seen, facts, known, whose)
    settled = _still_settled(known, seen, facts, whose)
    before = known.tracked if known is not None else None
    if before is None or settled is None:
        own = _own_words(seen, view.controller)
        tracked = _track(seen, facts.verdict, facts.secrets, view.running, before, own)
    else:
        tracked = before
    condition = programmed_since(seen.ref.kind, tracked.first, tracked.confirmed)
    tracked = _confirm(tracked, condition, seen.ref.kind)
    since = whose.unjudged_since
    if settled is not None and settled.programmed == condition and seen.ref.kind != _GATEWAY:
        # One object among thousands changes, and the others must cost little. The status of a gateway also says who
        # runs what, so it is always compared.
        return _ObjectPlan(None, settled.ready, ObjectMemory(tracked, settled, since))
    if not whose.ours:
        entries = _entries_alone(view, seen, facts.verdict, condition)
        if entries is not None and (whose.ends or not unchanged(seen, entries, view.controller.name)):
            return _ObjectPlan(entries, None, ObjectMemory(tracked, None, since))
        return _ObjectPlan(None, None, ObjectMemory(tracked, SettledObject(seen, facts, condition, None), since))
    listeners = tuple(_open(view.running, seen.ref, one, tracked) for one in facts.verdict.listeners)
    condition = _never_more(condition, listeners)
    conditions = _with(facts.verdict.conditions, condition)
    parents = tuple((parent, _with(of, condition, summary=False)) for parent, of in facts.verdict.parents)
    summary = _status_of(conditions, ConditionType.READY)
    status = _status(view, seen, facts, conditions, parents, listeners)
    if status is not None and unchanged(seen, status, view.controller.name) and not whose.ends:
        return _ObjectPlan(None, summary, ObjectMemory(tracked, SettledObject(seen, facts, condition, summary)))
    return _ObjectPlan(status, summary, ObjectMemory(tracked))


def _plan_waiting(
    view: ClusterView, seen: Observed, facts: ObjectFacts, known: ObjectMemory | None, whose: ObjectJudge
) -> _ObjectPlan:
    """Of an object that the last publish does not cover as it is now. What was said of it as it is now holds, also what
    an earlier leader said: it runs on. Else it is said why nothing is known, once that is not for a moment alone."""
    memory = ObjectMemory(known.tracked if known is not None else None, None, whose.unjudged_since)
    if not whose.ours:
        return _ObjectPlan(None, None, memory)
    written = conditions_of(seen.status)
    judged = written.get(ConditionType.ACCEPTED.value, {})
    known_as_it_is = (
        judged.get("observedGeneration") == seen.generation and judged.get("reason") != Reason.PENDING.value
    )
    if known_as_it_is or not view.waiting:
        said = written.get(ConditionType.READY.value)
        return _ObjectPlan(None, str(said.get("status")) if said is not None else None, memory)
    status = _status(view, seen, facts, _pending(view.waiting), ())
    if status is not None and not seen.judged_by:
        del status["controllerName"]  # who knows nothing yet judges nothing
    if status is not None and unchanged(seen, status, view.controller.name):
        status = None
    return _ObjectPlan(status, Status.UNKNOWN.value, memory)


def _still_settled(
    known: ObjectMemory | None, seen: Observed, facts: ObjectFacts, whose: ObjectJudge
) -> SettledObject | None:
    """What the last plan settled, unless the object, its judge or what others say of it has changed since."""
    settled = None if known is None else known.settled
    if settled is None or (settled.ready is not None) is not whose.ours:
        return None
    return settled if settled.seen is seen and settled.facts == facts else None


# --- conditions -------------------------------------------------------------------------------------------------


def _pending(why: str) -> tuple[Condition, ...]:
    waiting = tuple(Condition(kind, Status.UNKNOWN, Reason.PENDING, why) for kind in _POSITIVE)
    return (*waiting, ready(waiting))


def _with(conditions: Sequence[Condition], of_programmed: Condition, *, summary: bool = True) -> tuple[Condition, ...]:
    """The compiler's conditions with the true `Programmed`, and their sum. What is in no revision nobody runs."""
    found = {c.type: c for c in conditions}
    if found[ConditionType.PROGRAMMED].status is Status.FALSE:
        of_programmed = found[ConditionType.PROGRAMMED]
    positive = [found[ConditionType.ACCEPTED], found[ConditionType.RESOLVED_REFS], of_programmed]
    negative = [found[kind] for kind in _NEGATIVE if kind in found]
    return (*positive, *negative, *((ready(positive),) if summary else ()))


def _status_of(conditions: Sequence[Condition], kind: ConditionType) -> str:
    return next((c.status.value for c in conditions if c.type is kind), Status.UNKNOWN.value)


def _fingerprint(seen: Observed, verdict: ObjectStatus, used: Iterable[str]) -> str:
    """What an object and its references are now; revision numbers have no part in it."""
    parts = [seen.uid, str(seen.generation), *sorted(used)]
    for parent, conditions in ((None, verdict.conditions), *verdict.parents):
        parts += [str(parent), *(f"{c.type} {c.status} {c.reason}" for c in conditions if c.type in _POSITIVE[:2])]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _track(
    seen: Observed,
    verdict: ObjectStatus,
    used: Iterable[str],
    running: Running,
    before: Tracked | None,
    written: Mapping[str, Mapping[str, Any]],
) -> Tracked:
    """`written`: our own words of the object, by type."""
    fingerprint = _fingerprint(seen, verdict, used)
    if before is not None:
        return before if before.fingerprint == fingerprint else Tracked(fingerprint, running.newest, confirmed=False)
    # A new leader: what the status says was confirmed by the one before, as long as the object is still the same.
    same = all(
        (old := written.get(c.type.value)) is not None
        and old.get("observedGeneration") == seen.generation
        and (old.get("status"), old.get("reason")) == (c.status.value, c.reason.value)
        for c in verdict.conditions
        if c.type in _POSITIVE[:2]
    )
    of_programmed = written.get(ConditionType.PROGRAMMED.value, {})
    confirmed = (
        same and of_programmed.get("status") == "True" and of_programmed.get("observedGeneration") == seen.generation
    )
    return Tracked(fingerprint, running.newest, confirmed)


def _programmed(running: Running, kind: str, first: int, confirmed: bool) -> Condition:
    """`Programmed` of the objects of a kind that services can know since revision `first`."""
    if running.difference:
        message = f"{running.difference}; it is published again"
        return Condition(ConditionType.PROGRAMMED, Status.FALSE, Reason.NOT_STORED, message)
    if kind == _GATEWAY and running.pinned and running.newest > running.head:
        message = f"head is pinned to revision {running.head}; {running.newest} waits for an unpin"
        return Condition(ConditionType.PROGRAMMED, Status.FALSE, Reason.PINNED, message)
    consumers = running.consumers
    if confirmed:
        # A process that runs nothing yet starts with head; it takes back nothing that was confirmed.
        consumers = tuple(c for c in consumers if c.revision or c.rejected)
    pinned = running.head if running.pinned else None
    found = programmed(consumers, first, _ROLES[kind], pinned=pinned)
    if confirmed and found.reason is Reason.PENDING:
        found = Condition(ConditionType.PROGRAMMED, Status.TRUE, Reason.PROGRAMMED)
    if kind == _GATEWAY:
        return found
    message = found.message
    if found.reason is Reason.PROGRAMMED:
        absent = message.partition("; ")[2]
        message = "every live service that reads it runs it" + (f"; {absent}" if absent else "")
    elif found.reason is Reason.PENDING:
        message = "not yet run by every live service that reads it; the MailGateway says by how many"
    return Condition(found.type, found.status, found.reason, message)


def _confirm(tracked: Tracked, condition: Condition, kind: str) -> Tracked:
    """A gateway stays confirmed while the store has it; another object only as long as it is programmed."""
    stays = kind == _GATEWAY and condition.reason is not Reason.NOT_STORED
    confirmed = condition.status is Status.TRUE or (tracked.confirmed and stays)
    return tracked if confirmed == tracked.confirmed else replace(tracked, confirmed=confirmed)


# --- listeners ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _OpenListener:
    """A listener with what ingress says of it."""

    verdict: ListenerVerdict
    programmed: Condition
    open_in: int | None


def _open(running: Running, gateway: ObjectRef, verdict: ListenerVerdict, tracked: Tracked) -> _OpenListener:
    if verdict.programmed.status is Status.FALSE:
        return _OpenListener(verdict, verdict.programmed, None)
    ingresses = [c for c in running.consumers if c.live and c.role is Role.INGRESS]
    serving = sorted(
        (c for c in ingresses if c.gateway in ("", f"{gateway.namespace}/{gateway.name}")), key=lambda c: c.node
    )
    part = listener_part(verdict.name)
    told = [(c, p) for c in serving for p in c.problems if (p.object, p.part) == (gateway, part)]
    troubled = {c.node for c, _ in told}
    open_in = sum(c.revision >= tracked.first and c.node not in troubled for c in serving)
    return _OpenListener(verdict, _listener_programmed(running, serving, ingresses, told, tracked), open_in)


def _listener_programmed(
    running: Running,
    serving: Sequence[ConsumerState],
    ingresses: Sequence[ConsumerState],
    told: Sequence[tuple[ConsumerState, RevisionProblem]],
    tracked: Tracked,
) -> Condition:
    kind = ConditionType.PROGRAMMED
    if ingresses and not serving:
        message = "every live ingress serves another gateway; start one with MAILRAIL_INGRESS_GATEWAY empty or this one"
        return Condition(kind, Status.FALSE, Reason.NOT_IN_USE, message)
    failing = [(c, p) for c, p in told if p.reason != PENDING]
    if failing:
        consumer, problem = failing[0]
        reason = Reason.PORT_CONFLICT if problem.reason == PORT_CONFLICT else Reason.PORT_UNAVAILABLE
        more = f"; so do {len(failing) - 1} more" if len(failing) > 1 else ""
        return Condition(kind, Status.FALSE, reason, f"ingress {consumer.node} says: {problem.message}{more}")
    found = _programmed(replace(running, consumers=tuple(serving)), _LISTENER, tracked.first, tracked.confirmed)
    if found.status is Status.TRUE and told:
        found = replace(found, status=Status.UNKNOWN, reason=Reason.PENDING)
    words = {
        Status.TRUE: "open in every live ingress that runs a revision" if serving else "no live ingress",
        Status.UNKNOWN: "not yet open in every live ingress",
    }
    return replace(found, message=words.get(found.status, found.message))


def _never_more(condition: Condition, listeners: Sequence[_OpenListener]) -> Condition:
    """`Programmed` of a gateway, which is no better than that of any of its listeners."""
    for status in (Status.FALSE, Status.UNKNOWN):
        if condition.status is status:
            return condition
        for one in listeners:
            if one.programmed.status is status:
                return replace(one.programmed, message=f"listener {one.verdict.name}: {one.programmed.message}")
    return condition


# --- objects that another controller judges --------------------------------------------------------------------------


def _own_words(seen: Observed, controller: Controller) -> dict[str, Mapping[str, Any]]:
    """The conditions that this controller wrote of an object: at the top, or for a parent."""
    if controller.follows(seen.judged_by):
        return conditions_of(seen.status)
    return next((conditions_of(entry) for entry in _entries(seen.status, controller.name)), {})


def _entries(status: Mapping[str, Any], controller: str) -> list[Mapping[str, Any]]:
    """The entries of `parents[]` that a controller wrote, by their keys: a list of several writers has no order."""
    mine = [p for p in status.get("parents") or () if p.get("controllerName") == controller]
    return sorted(mine, key=_entry_key)


def _entry_key(entry: Mapping[str, Any]) -> tuple[str, str, str]:
    return str(entry.get("kind")), str(entry.get("namespace")), str(entry.get("name"))


def _entries_alone(view: ClusterView, seen: Observed, verdict: ObjectStatus, condition: Condition) -> Row | None:
    """What to write into the status of an object that another controller judges: an entry for each parent for which our
    services run it, and nothing else. None when a newer generation was judged than we read."""
    if _is_older(seen):
        return None
    found = [(parent, _with(of, condition, summary=False)) for parent, of in verdict.parents]
    running = [(p, of) for p, of in found if all(c.reason is not Reason.NOT_IN_USE for c in of)]
    return {"parents": _parent_rows(view, seen, running)} if running else {}


# --- the whole status --------------------------------------------------------------------------------------------


def _row(kind: str, status: str, reason: str, message: str, generation: int, old: Mapping[str, Any], now: str) -> Row:
    message = message if len(message) <= MESSAGE_LIMIT else message[: MESSAGE_LIMIT - 1] + "…"
    since = old.get("lastTransitionTime") if old.get("status") == status else None
    return {
        "type": kind,
        "status": status,
        "observedGeneration": generation,
        "lastTransitionTime": since or now,
        "reason": reason,
        "message": message,
    }


def _rows(
    conditions: Sequence[Condition], generation: int, old: Mapping[str, Mapping[str, Any]], now: str
) -> list[Row]:
    return [
        _row(c.type.value, c.status.value, c.reason.value, c.message, generation, old.get(c.type.value, {}), now)
        for c in conditions
    ]


def _status(
    view: ClusterView,
    seen: Observed,
    facts: ObjectFacts,
    conditions: Sequence[Condition],
    parents: Sequence[tuple[ObjectRef, Sequence[Condition]]],
    listeners: Sequence[_OpenListener] = (),
) -> Row | None:
    """The status as it should be; None when another process judged a newer generation than we read."""
    if _is_older(seen):
        return None
    written = conditions_of(seen.status)
    rows = _rows(conditions, seen.generation, written, view.now)
    if seen.ref.kind == "MailDomain":
        rows.insert(-1, _dns_row(seen, facts.dns, written.get(DNS_CONFIGURED, {}), view.now))
    if facts.health is not None:
        rows.insert(-1, _health_row(seen, facts.health, written.get(HEALTHY, {}), view.now))
    elif view.health is None and HEALTHY in written:
        rows.insert(-1, dict(written[HEALTHY]))  # the leader before was told; it holds until the queue answers this one
    status: Row = {
        "controllerName": view.controller.name,
        "observedGeneration": seen.generation,
        "conditions": rows,
    }
    kept: Row = {}
    if _nothing_new(facts.verdict):
        own = _entries(seen.status, view.controller.name)
        kept = {"parents": own, "listeners": seen.status.get("listeners")}
    found = {"parents": _parent_rows(view, seen, parents), "listeners": _listener_rows(view, seen, listeners)}
    status |= {part: of_it for part, made in found.items() if (of_it := made or kept.get(part))}
    return status | _columns(view.running, seen, facts)


def _is_older(seen: Observed) -> bool:
    """Whether a newer generation was judged than we read."""
    return any((c.get("observedGeneration") or 0) > seen.generation for c in conditions_of(seen.status).values())


def _health_row(seen: Observed, health: TransportHealth, old: Mapping[str, Any], now: str) -> Row:
    """Written when its reason changes: the words of a server may be new at each attempt."""
    if (old.get("reason"), old.get("observedGeneration")) == (health.reason.value, seen.generation):
        return dict(old)
    return _row(HEALTHY, health.status, health.reason.value, health.message, seen.generation, old, now)


def _dns_row(seen: Observed, dns: DnsVerdict | None, old: Mapping[str, Any], now: str) -> Row:
    if dns is None and old.get("observedGeneration") == seen.generation:
        return dict(old)  # looked up before a restart; it holds until the next look
    found = dns or DnsVerdict.pending()
    return _row(DNS_CONFIGURED, found.status, found.reason.value, found.message, seen.generation, old, now)


def _parent_rows(
    view: ClusterView, seen: Observed, parents: Sequence[tuple[ObjectRef, Sequence[Condition]]]
) -> list[Row]:
    before = {_entry_key(entry): entry for entry in _entries(seen.status, view.controller.name)}
    rows = []
    for parent, conditions in parents:
        written = conditions_of(before.get((parent.kind, parent.namespace, parent.name), {}))
        rows.append(
            {
                "kind": parent.kind,
                "namespace": parent.namespace,
                "name": parent.name,
                "controllerName": view.controller.name,
                "conditions": _rows(conditions, seen.generation, written, view.now),
            }
        )
    return rows


def _listener_rows(view: ClusterView, seen: Observed, listeners: Sequence[_OpenListener]) -> list[Row]:
    before = {one["name"]: one for one in seen.status.get("listeners") or ()}
    rows = []
    for one in listeners:
        written = conditions_of(before.get(one.verdict.name, {}))
        row: Row = {"name": one.verdict.name, "port": one.verdict.port}
        if one.open_in is not None:
            row["openIn"] = one.open_in
        conditions = (one.verdict.accepted, one.programmed)
        rows.append(row | {"conditions": _rows(conditions, seen.generation, written, view.now)})
    return rows


def _columns(running: Running, seen: Observed, facts: ObjectFacts) -> Row:
    """What the columns of `kubectl get` show."""
    spec = seen.spec
    match seen.ref.kind:
        case "MailGateway":
            return {"domains": facts.attached, "config": _config_of(running)}
        case "MailDomain":
            columns: Row = {"accounts": facts.attached}
            if facts.dns is not None:
                columns["dnsRecords"] = [record.as_status() for record in facts.dns.records[:DNS_RECORDS_LIMIT]]
            elif "dnsRecords" in seen.status:
                columns["dnsRecords"] = seen.status["dnsRecords"]
            if facts.keys:
                columns["dkimKeys"] = list(facts.keys)
            elif facts.verdict is None and "dkimKeys" in seen.status:
                columns["dkimKeys"] = seen.status["dkimKeys"]
            return columns
        case "MailAccount":
            addresses = [a for field in ("addresses", "receive") for a in spec.get(field) or ()]
            return {"addressCount": sum(a != "@" for a in addresses)}
        case "MailTransport":
            kind = next((member for member in MEMBERS if member in spec), "")
            return {"type": kind, "endpoint": _endpoint(kind, spec.get(kind)), "referencedBy": facts.attached}
        case _:
            refs = [p.get("kind", "") for p in spec.get("parentRefs") or () if isinstance(p, Mapping)]
            levels = dict.fromkeys(_LEVELS[kind] for kind in _LEVELS if kind in refs)
            return {"level": ", ".join(levels), "ruleCount": len(spec.get("rules") or ())}


def _config_of(running: Running) -> Row:
    live = [c for c in running.consumers if c.live]
    return {
        "revision": running.head,
        "newest": running.newest,
        "checksum": f"sha256:{running.checksum}" if running.checksum else "",
        "pinned": running.pinned,
        "consumers": len(live),
        "upToDate": sum(c.revision == running.head for c in live),
        "rejecting": sum(c.rejected > c.revision for c in live),
        "sealingKeys": [{"id": key.id, "neededBy": "Head" if key.in_use else "History"} for key in running.keys],
    }


def _endpoint(kind: str, member: Any) -> str:
    """Where a transport goes: for people, never a secret."""
    if not isinstance(member, Mapping):
        return ""
    if kind == "socks":
        return str(member.get("address", ""))
    if kind == "fail":
        return str(member.get("code", ""))
    host, port = member.get("host"), member.get("port")
    return f"{host}:{port}" if host and port else str(host or "")


def _attached(
    observed: Mapping[ObjectRef, Observed], judged: Mapping[ObjectRef, ObjectStatus], controller: str
) -> Counter[ObjectRef]:
    """How many objects attach to each gateway and domain, and how many name each transport."""
    counts: Counter[ObjectRef] = Counter()
    for ref, seen in observed.items():
        if ref.kind in ("MailDomain", "MailAccount"):
            for parent, reason in _resolved(seen, judged.get(ref), controller):
                if reason not in (Reason.PARENT_NOT_FOUND, Reason.REF_NOT_PERMITTED):
                    counts[parent] += 1
        counts.update(set(_transports(seen)))
    return counts


def _nothing_new(verdict: ObjectStatus | None) -> bool:
    """Whether the last compilation cannot say where the object attaches, so that what was written of it holds."""
    if verdict is None or verdict.parents:
        return verdict is None
    accepted = verdict.condition(ConditionType.ACCEPTED)
    return accepted is not None and accepted.reason is Reason.NOT_SUPPORTED


def _resolved(seen: Observed, verdict: ObjectStatus | None, controller: str) -> Iterator[tuple[ObjectRef, str]]:
    """What an object attaches to, and the reason of its ResolvedRefs there."""
    if verdict is not None and not _nothing_new(verdict):
        for parent, conditions in verdict.parents:
            yield parent, next((c.reason for c in conditions if c.type is ConditionType.RESOLVED_REFS), "")
        return
    for entry in _entries(seen.status, controller):
        reason = conditions_of(entry).get(ConditionType.RESOLVED_REFS.value, {}).get("reason", "")
        yield ObjectRef(*_entry_key(entry)), str(reason)


def _transports(seen: Observed) -> Iterable[ObjectRef]:
    named: list[Any] = []
    if seen.ref.kind == "MailRoute":
        named = [rule.get("transportRef") for rule in seen.spec.get("rules") or () if isinstance(rule, Mapping)]
    elif seen.ref.kind == "MailDomain" and isinstance(delivery := seen.spec.get("delivery"), Mapping):
        named = [transport.get("ref")] if isinstance(transport := delivery.get("transport"), Mapping) else []
    for ref in named:
        if isinstance(ref, Mapping) and "name" in ref:
            yield ObjectRef("MailTransport", ref.get("namespace") or seen.ref.namespace, ref["name"])


# --- what differs -------------------------------------------------------------------------------------------------


def _meaning(status: Mapping[str, Any], controller: str) -> Any:
    """A status without the words that change for all objects at once, and without those of other controllers."""

    def conditions(of: Mapping[str, Any], config: bool) -> list[Any]:
        rows = []
        for c in of.get("conditions") or ():
            worded = config or c.get("type") not in (ConditionType.PROGRAMMED.value, ConditionType.READY.value)
            worded = worded or c.get("status") == "False"
            rows.append(
                (c.get("type"), c.get("status"), c.get("reason"), c.get("observedGeneration"))
                + ((c.get("message"),) if worded else ())
            )
        return sorted(rows, key=lambda row: str(row[0]))

    is_gateway = "config" in status
    rest = {k: v for k, v in status.items() if k not in ("conditions", "parents")}
    parents = [(_entry_key(entry), conditions(entry, is_gateway)) for entry in _entries(status, controller)]
    return conditions(status, is_gateway), parents, rest


def same(old: Mapping[str, Any], new: Mapping[str, Any], controller: str) -> bool:
    """Whether writing what a controller is to say would change what a reader learns. What others wrote does not count:
    conditions of other types, their entries of `parents[]`, and where `new` is such entries alone, everything else."""
    if "conditions" not in new:
        old = {"parents": old.get("parents")}
        return bool(_meaning(old, controller) == _meaning(new, controller))
    ours = {c["type"] for c in new["conditions"]} | {k.value for k in _NEGATIVE} | {HEALTHY}
    old = {**old, "conditions": [c for c in old.get("conditions") or () if c.get("type") in ours]}
    return bool(_meaning(old, controller) == _meaning(new, controller))


def unchanged(seen: Observed, status: Mapping[str, Any], controller: str) -> bool:
    """Whether writing a status would change nothing: neither what a reader learns, nor whose words they are."""
    if "conditions" not in status and status_fields(seen, controller) - {"parents"}:
        return False  # words from when nobody judged it, which are not ours to say
    return same(seen.status, status, controller)


def notes(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[EventRecord, ...]:
    """One event for each condition that became worse or well again."""
    before, after = conditions_of(old), conditions_of(new)
    found: list[EventRecord] = []
    for kind in (*(one.value for one in (*_POSITIVE, *_NEGATIVE)), HEALTHY):
        was, now = before.get(kind, {}), after.get(kind, {})
        changed = (was.get("status"), was.get("reason")) != (now.get("status"), now.get("reason"))
        bad = "True" if kind in _NEGATIVE else "False"
        if now.get("reason") == Reason.NOT_STORED.value and "config" not in new:
            continue  # of all objects at once: the gateway tells it
        if now.get("reason") == Reason.NOT_IN_USE.value:
            continue  # another condition says why
        if kind == HEALTHY and not now:
            continue  # nobody looks any more
        if now.get("status") == bad and changed:
            found.append(EventRecord(EventType.WARNING, now["reason"], _short(now["message"])))
        elif was.get("status") == bad and now.get("status") != bad and kind != ConditionType.PROGRAMMED:
            reason = now.get("reason") or f"No{kind}"
            found.append(
                EventRecord(EventType.NORMAL, reason, _short(now.get("message") or f"no longer: {was['reason']}"))
            )
    return tuple(found)


def _short(text: str) -> str:
    return text if len(text) <= _NOTE_LIMIT else text[: _NOTE_LIMIT - 1] + "…"
