"""Decides what to write into status: pure, of what was read, what the compiler said and who runs what.

    plan(observed, diagnostics, uses, running, tracked, dns, now) → changes, events, what to remember

Rules (design 5, CFG-05):

- The positive conditions are always there; `Shadowed` and `Ambiguous` only while true; `observedGeneration` on each.
- A status is written only when it differs. `lastTransitionTime` moves only with `status`.
- Revision numbers and who runs them change for all objects at once, so they stand on MailGateway alone. What a
  condition of another object says of them is words; the words alone are no reason to write.
- `Programmed` is true once every live service that reads the object ran a revision with it. It stays true while
  processes come and go (a new one starts with head); it falls when the object or what it refers to changes, when head
  is rolled back behind it, and when a service rejects it.
- A condition that was written for a newer generation than ours is not overwritten: what we read is old.
- One Kubernetes event for each change of a condition for the worse, and one when it is well again.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from mailrail.core.config.diagnostics import (
    ROLES_OF_KIND,
    Condition,
    ConditionType,
    Diagnostics,
    ObjectStatus,
    Reason,
    Status,
    programmed,
    ready,
)
from mailrail.core.config.state import SecretUse
from mailrail.core.resources.status import DNS_RECORDS_LIMIT, MESSAGE_LIMIT
from mailrail.core.revision.revision import ObjectRef
from mailrail_operator.dnscheck import DnsVerdict
from mailrail_operator.model import (
    CONTROLLER_NAME,
    Change,
    EventRecord,
    EventType,
    Observed,
    Running,
    SettledObject,
    StatusPlan,
    Tracked,
)

_POSITIVE: Final = (ConditionType.ACCEPTED, ConditionType.RESOLVED_REFS, ConditionType.PROGRAMMED)
_NEGATIVE: Final = (ConditionType.SHADOWED, ConditionType.AMBIGUOUS)
DNS_CONFIGURED: Final = "DNSConfigured"
_GATEWAY: Final = "MailGateway"
_LEVELS: Final = {"MailAccount": "Account", "MailDomain": "Domain", "MailGateway": "Global"}
_NOTE_LIMIT: Final = 1024
"""Characters of the note of an event (events.k8s.io/v1)."""

Row = dict[str, Any]


def plan(
    observed: Mapping[ObjectRef, Observed],
    diagnostics: Diagnostics,
    uses: Iterable[SecretUse],
    running: Running,
    tracked: Mapping[ObjectRef, Tracked],
    dns: Mapping[ObjectRef, DnsVerdict],
    now: str,
    *,
    waiting: str = "",
    controller: str = CONTROLLER_NAME,
    settled: Mapping[ObjectRef, SettledObject] | None = None,
) -> StatusPlan:
    """Compare what should be written with what is there.

    `diagnostics` and `uses` are those of the last publish; `waiting` says why there was none since, for objects that
    it does not cover. `now` is RFC 3339, whole seconds. `settled` is that of the last plan: objects of which nothing
    that counts has changed are not looked at again, so that one change among thousands costs little.
    """
    settled = settled or {}
    judged = {status.ref: status for status in diagnostics.objects}
    used: dict[ObjectRef, list[str]] = {}
    for use in uses:
        used.setdefault(use.owner, []).append(use.ref.path)
    attached = _attached(observed, judged)
    of_programmed = _ProgrammedOf(running)
    changes: list[Change] = []
    remembered: dict[ObjectRef, Tracked] = {}
    still: dict[ObjectRef, SettledObject] = {}
    counts: Counter[tuple[str, str]] = Counter()
    for ref, seen in observed.items():
        verdict = judged.get(ref)
        if verdict is None or (verdict.generation or 0) != seen.generation:
            if ref in tracked:
                remembered[ref] = tracked[ref]
            if not waiting:
                continue  # the next compilation is on its way
            conditions = _pending(waiting)
            status = _status(seen, conditions, (), running, attached, dns.get(ref), now, controller)
            counts[(ref.kind, Status.UNKNOWN.value)] += 1
        else:
            paths = tuple(used.get(ref, ()))
            before = settled.get(ref)
            facts = (verdict, paths, attached.get(ref, 0), dns.get(ref))
            if before is not None and before.seen is seen and before.facts == facts:
                known = tracked[ref]
                condition, after = of_programmed(ref.kind, known)
                if condition == before.condition and ref.kind != _GATEWAY:
                    remembered[ref], still[ref] = after, before
                    counts[(ref.kind, before.ready)] += 1
                    continue
            known = _track(seen, verdict, paths, running, tracked.get(ref))
            condition, known = of_programmed(ref.kind, known)
            remembered[ref] = known
            conditions = _with(verdict.conditions, condition)
            parents = tuple((parent, _with(of, condition, summary=False)) for parent, of in verdict.parents)
            summary = _status_of(conditions, ConditionType.READY)
            counts[(ref.kind, summary)] += 1
            status = _status(seen, conditions, parents, running, attached, dns.get(ref), now, controller)
            if status is not None and same(seen.status, status):
                still[ref] = SettledObject(seen, facts, condition, summary)
                continue
        if status is not None and not same(seen.status, status):
            changes.append(Change(ref, seen.uid, status, _notes(seen.status, status)))
    return StatusPlan(tuple(sorted(changes, key=lambda c: c.ref)), remembered, counts, still)


# --- conditions -------------------------------------------------------------------------------------------------


def _pending(why: str) -> tuple[Condition, ...]:
    waiting = tuple(Condition(kind, Status.UNKNOWN, Reason.PENDING, why) for kind in _POSITIVE)
    return (*waiting, ready(waiting))


def _with(conditions: Sequence[Condition], of_programmed: Condition, *, summary: bool = True) -> tuple[Condition, ...]:
    """The compiler's conditions with the true `Programmed`, and their sum."""
    found = {c.type: c for c in conditions}
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
    seen: Observed, verdict: ObjectStatus, used: Iterable[str], running: Running, before: Tracked | None
) -> Tracked:
    fingerprint = _fingerprint(seen, verdict, used)
    if before is not None:
        return before if before.fingerprint == fingerprint else Tracked(fingerprint, running.newest, confirmed=False)
    # A new leader: what the status says was confirmed by the one before, as long as the object is still the same.
    written = _written(seen.status)
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


class _ProgrammedOf:
    """`Programmed` of every object; equal for all of a kind that go back to the same revision, so judged once."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self._pinned = running.head if running.pinned else None
        # A process that runs nothing yet starts with head; it takes back nothing that was confirmed.
        self._started = tuple(c for c in running.consumers if c.revision or c.rejected)
        self._judged: dict[tuple[str, int, bool], Condition] = {}

    def __call__(self, kind: str, known: Tracked) -> tuple[Condition, Tracked]:
        """The condition, and what is known after it."""
        key = (kind, known.first, known.confirmed)
        condition = self._judged.get(key)
        if condition is None:
            condition = self._judged[key] = self._judge(*key)
        confirmed = condition.status is Status.TRUE or (known.confirmed and kind == _GATEWAY)
        return condition, known if confirmed == known.confirmed else replace(known, confirmed=confirmed)

    def _judge(self, kind: str, first: int, confirmed: bool) -> Condition:
        running = self._running
        if kind == _GATEWAY and running.pinned and running.newest > running.head:
            message = f"head is pinned to revision {running.head}; {running.newest} waits for an unpin"
            return Condition(ConditionType.PROGRAMMED, Status.FALSE, Reason.PINNED, message)
        consumers = self._started if confirmed else running.consumers
        found = programmed(consumers, first, ROLES_OF_KIND[kind], pinned=self._pinned)
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


# --- the whole status --------------------------------------------------------------------------------------------


def _written(status: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {c["type"]: c for c in status.get("conditions") or () if isinstance(c, Mapping) and "type" in c}


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
    seen: Observed,
    conditions: Sequence[Condition],
    parents: Sequence[tuple[ObjectRef, Sequence[Condition]]],
    running: Running,
    attached: Mapping[ObjectRef, int],
    dns: DnsVerdict | None,
    now: str,
    controller: str,
) -> Row | None:
    """The status as it should be; None when somebody judged a newer generation than we read."""
    written = _written(seen.status)
    if any((c.get("observedGeneration") or 0) > seen.generation for c in written.values()):
        return None
    rows = _rows(conditions, seen.generation, written, now)
    if seen.ref.kind == "MailDomain":
        old = written.get(DNS_CONFIGURED, {})
        if dns is None and old.get("observedGeneration") == seen.generation:
            rows.insert(-1, dict(old))  # looked up before a restart; it holds until the next look
        else:
            found = dns or DnsVerdict.pending()
            row = _row(DNS_CONFIGURED, found.status, found.reason.value, found.message, seen.generation, old, now)
            rows.insert(-1, row)
    status: Row = {"conditions": rows}
    if parents:
        before = {
            (p["parentRef"]["kind"], p["parentRef"]["namespace"], p["parentRef"]["name"]): p
            for p in seen.status.get("parents") or ()
        }
        status["parents"] = [
            {
                "parentRef": {"kind": parent.kind, "namespace": parent.namespace, "name": parent.name},
                "controllerName": controller,
                "conditions": _rows(
                    of,
                    seen.generation,
                    _written(before.get((parent.kind, parent.namespace, parent.name), {})),
                    now,
                ),
            }
            for parent, of in parents
        ]
    status.update(_facts(seen, running, attached, dns))
    return status


def _facts(
    seen: Observed, running: Running, attached: Mapping[ObjectRef, int], dns: DnsVerdict | None
) -> dict[str, Any]:
    """What the columns of `kubectl get` show."""
    spec, count = seen.spec, attached.get(seen.ref, 0)
    match seen.ref.kind:
        case "MailGateway":
            live = [c for c in running.consumers if c.live]
            return {
                "domains": count,
                "config": {
                    "revision": running.head,
                    "newest": running.newest,
                    "checksum": f"sha256:{running.checksum}" if running.checksum else "",
                    "pinned": running.pinned,
                    "consumers": len(live),
                    "upToDate": sum(c.revision == running.head for c in live),
                    "rejecting": sum(c.rejected > c.revision for c in live),
                    "sealingKeys": [
                        {"id": key.id, "neededBy": "Head" if key.in_use else "History"} for key in running.keys
                    ],
                },
            }
        case "MailDomain":
            facts: dict[str, Any] = {"accounts": count}
            if dns is not None:
                facts["dnsRecords"] = [r.as_status() for r in dns.records[:DNS_RECORDS_LIMIT]]
            elif "dnsRecords" in seen.status:
                facts["dnsRecords"] = seen.status["dnsRecords"]
            return facts
        case "MailAccount":
            addresses = spec.get("addresses") or ()
            return {"addressCount": sum(not str(a).startswith("@") for a in addresses)}
        case "MailTransport":
            kind = next((k for k in spec if k not in ("limits", "allowedNamespaces")), "")
            return {"type": kind, "endpoint": _endpoint(kind, spec.get(kind)), "referencedBy": count}
        case _:
            refs = [p.get("kind", "") for p in spec.get("parentRefs") or () if isinstance(p, Mapping)]
            levels = dict.fromkeys(_LEVELS[kind] for kind in _LEVELS if kind in refs)
            return {"level": ", ".join(levels), "ruleCount": len(spec.get("rules") or ())}


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


def _attached(observed: Mapping[ObjectRef, Observed], judged: Mapping[ObjectRef, ObjectStatus]) -> Counter[ObjectRef]:
    """How many objects attach to each gateway and domain, and how many name each transport."""
    counts: Counter[ObjectRef] = Counter()
    for ref, seen in observed.items():
        if ref.kind in ("MailDomain", "MailAccount") and ref in judged:
            for parent, conditions in judged[ref].parents:
                resolved = next((c for c in conditions if c.type is ConditionType.RESOLVED_REFS), None)
                if resolved is None or resolved.reason not in (Reason.PARENT_NOT_FOUND, Reason.REF_NOT_PERMITTED):
                    counts[parent] += 1
        counts.update(set(_transports(seen)))
    return counts


def _transports(seen: Observed) -> Iterable[ObjectRef]:
    named: list[Any] = []
    if seen.ref.kind == "MailRoute":
        named = [rule.get("transportRef") for rule in seen.spec.get("rules") or () if isinstance(rule, Mapping)]
    elif seen.ref.kind == "MailDomain" and isinstance(seen.spec.get("delivery"), Mapping):
        named = [seen.spec["delivery"].get("transportRef")]
    for ref in named:
        if isinstance(ref, Mapping) and "name" in ref:
            yield ObjectRef("MailTransport", ref.get("namespace") or seen.ref.namespace, ref["name"])


# --- what differs -------------------------------------------------------------------------------------------------


def _meaning(status: Mapping[str, Any]) -> Any:
    """A status without the words that change for all objects at once."""

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
    parents = [
        (p.get("parentRef"), p.get("controllerName"), conditions(p, is_gateway)) for p in status.get("parents") or ()
    ]
    return conditions(status, is_gateway), parents, rest


def same(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether writing would change what anybody reads. Conditions that others wrote are not looked at."""
    ours = {c["type"] for c in new["conditions"]} | {k.value for k in _NEGATIVE}
    old = {**old, "conditions": [c for c in old.get("conditions") or () if c.get("type") in ours]}
    return bool(_meaning(old) == _meaning(new))


def _notes(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[EventRecord, ...]:
    """One event for each condition that became worse or well again."""
    before, after = _written(old), _written(new)
    notes: list[EventRecord] = []
    for kind in (*_POSITIVE, *_NEGATIVE):
        was, now = before.get(kind.value, {}), after.get(kind.value, {})
        changed = (was.get("status"), was.get("reason")) != (now.get("status"), now.get("reason"))
        bad = "True" if kind in _NEGATIVE else "False"
        if now.get("status") == bad and changed:
            notes.append(EventRecord(EventType.WARNING, now["reason"], _short(now["message"])))
        elif was.get("status") == bad and now.get("status") != bad and kind is not ConditionType.PROGRAMMED:
            reason = now.get("reason") or f"No{kind.value}"
            notes.append(
                EventRecord(EventType.NORMAL, reason, _short(now.get("message") or f"no longer: {was['reason']}"))
            )
    return tuple(notes)


def _short(text: str) -> str:
    return text if len(text) <= _NOTE_LIMIT else text[: _NOTE_LIMIT - 1] + "…"
