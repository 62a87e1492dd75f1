"""The last step of a compilation: conditions for each object, and findings with file and line, from all notes."""

from collections.abc import Collection, Sequence
from typing import Final

from mailrail.core.config.diagnostics import (
    Condition,
    ConditionType,
    Diagnostics,
    Finding,
    ListenerVerdict,
    ObjectStatus,
    Reason,
    Severity,
    Status,
    ready,
)
from mailrail.core.config.pieces import GatewayPiece, parents_of
from mailrail.core.config.reading import Candidate, Input, Remark, Version
from mailrail.core.config.settling import Settlement
from mailrail.core.revision.revision import ObjectRef, Revision

_SEVERITY: Final = {
    ConditionType.ACCEPTED: Severity.ERROR,
    ConditionType.RESOLVED_REFS: Severity.WAITING,
    ConditionType.SHADOWED: Severity.WARNING,
    ConditionType.AMBIGUOUS: Severity.WARNING,
}
_MESSAGES_SHOWN: Final = 3


def _joined(notes: Sequence[Remark]) -> str:
    texts = list(dict.fromkeys(n.message for n in notes))
    more = f" (and {len(texts) - _MESSAGES_SHOWN} more)" if len(texts) > _MESSAGES_SHOWN else ""
    return "; ".join(texts[:_MESSAGES_SHOWN]) + more


def _conditions(notes: Sequence[Remark], unused: str = "") -> tuple[Condition, ...]:
    by_type: dict[ConditionType, list[Remark]] = {}
    for note in notes:
        by_type.setdefault(note.type, []).append(note)
    result: list[Condition] = []
    for kind, good in ((ConditionType.ACCEPTED, Reason.ACCEPTED), (ConditionType.RESOLVED_REFS, Reason.RESOLVED_REFS)):
        found = by_type.get(kind)
        if found:
            result.append(Condition(kind, Status.FALSE, found[0].reason, _joined(found)))
        else:
            result.append(Condition(kind, Status.TRUE, good))
    if unused:
        result.append(Condition(ConditionType.PROGRAMMED, Status.FALSE, Reason.NOT_IN_USE, unused))
    else:
        result.append(Condition(ConditionType.PROGRAMMED, Status.UNKNOWN, Reason.PENDING))
    for kind in (ConditionType.SHADOWED, ConditionType.AMBIGUOUS):
        found = by_type.get(kind)
        if found:
            result.append(Condition(kind, Status.TRUE, found[0].reason, _joined(found)))
    return tuple(result)


_FINE: Final = _conditions(())
_FINE_AND_READY: Final = (*_FINE, ready(_FINE))


def _in_use(revision: Revision) -> set[tuple[ObjectRef, ObjectRef | None]]:
    """What services get of each object; of a route by what it is attached to."""
    used: set[tuple[ObjectRef, ObjectRef | None]] = set()
    for parts in (revision.gateways, revision.domains, revision.accounts, revision.transports):
        used.update((part.ref, None) for part in parts)
    for levels in (revision.account_routes, revision.domain_routes, revision.global_routes):
        used.update((rule.route, level.parent) for level in levels for rule in level.rules)
    return used


_NOT_RUN: Final = "no service runs it, see the other conditions"
_HELD: Final = "nothing is published until it can be read; services run on what they have of it"


def _unused(candidate: Candidate, serving: Version | None, accepted: bool, used: bool) -> str:
    """Why no service can run the object as it is now; empty when they can."""
    if accepted or (serving is not None and serving is candidate.newest):
        return "" if used else _NOT_RUN
    if serving is None:
        return _NOT_RUN
    which = f"generation {serving.generation}" if serving.generation is not None else "its last accepted version"
    now = f"generation {candidate.generation}" if candidate.generation is not None else "the newest version"
    return f"{now} is not accepted; {which} {'serves on' if used else 'stays, and no service runs it'}"


_ACCEPTED: Final = Condition(ConditionType.ACCEPTED, Status.TRUE, Reason.ACCEPTED)
_PENDING: Final = Condition(ConditionType.PROGRAMMED, Status.UNKNOWN, Reason.PENDING)
_EDIT_REFUSED: Final = Condition(
    ConditionType.ACCEPTED,
    Status.FALSE,
    Reason.NOT_IN_USE,
    "the gateway is not accepted as it is now, see its conditions",
)


def _listeners(
    candidate: Candidate, serving: Version | None, notes: Sequence[Remark], unused: str, open_names: Collection[str]
) -> tuple[ListenerVerdict, ...]:
    """Each listener of a gateway as the object has it now. One that an edit leaves alone is accepted though the edit is
    refused. `unused`: why no service runs the gateway as it is now. `open_names`: listeners in the revision."""
    newest = candidate.newest or serving
    if newest is None or not isinstance(newest.piece, GatewayPiece):
        return ()
    shown = newest.piece.listeners
    in_force = serving.piece.listeners if serving and isinstance(serving.piece, GatewayPiece) else ()
    if serving is newest:  # also if it cannot be read any more: it runs as it is
        notes = [note for note in notes if note.type is not ConditionType.ACCEPTED]
    accepted = not any(note.type is ConditionType.ACCEPTED for note in notes)
    serves = accepted or (serving is not None and not serving.new)
    said: dict[tuple[ConditionType, str], Remark] = {}
    for note in notes:
        listeners = shown if note.type is ConditionType.ACCEPTED and candidate.newest else in_force
        match note.path:
            case ("spec", "listeners", int(position), *_) if position < len(listeners):
                said.setdefault((note.type, listeners[position].part.name), note)
    found: list[ListenerVerdict] = []
    for listener in shown:
        refused = said.get((ConditionType.ACCEPTED, listener.part.name))
        lacking = said.get((ConditionType.RESOLVED_REFS, listener.part.name))
        verdict, programmed = _ACCEPTED, _PENDING
        if refused is not None:
            verdict = Condition(ConditionType.ACCEPTED, Status.FALSE, refused.reason, refused.message)
        elif not serves or listener not in in_force:
            verdict = _EDIT_REFUSED
        if verdict is not _ACCEPTED:
            programmed = Condition(ConditionType.PROGRAMMED, Status.FALSE, Reason.NOT_IN_USE, unused)
        elif listener.part.name not in open_names:
            reason, message = (lacking.reason, lacking.message) if lacking else (Reason.NOT_IN_USE, _NOT_RUN)
            programmed = Condition(ConditionType.PROGRAMMED, Status.FALSE, reason, message)
        found.append(ListenerVerdict(listener.part.name, listener.part.port, verdict, programmed))
    return tuple(found)


def diagnose(
    read_in: Input, settled: Settlement, notes: Sequence[Remark], revision: Revision, held: Collection[ObjectRef]
) -> Diagnostics:
    """What is to be told of every object that was read, and of every document.

    While objects are `held`, the revision is not published and lacks them. What it says of an object that did not
    change may be for want of them, so nothing is said of those: what was said at the last publish holds.
    """
    by_ref: dict[ObjectRef, list[Remark]] = {}
    for note in notes:
        by_ref.setdefault(note.ref, []).append(note)
    used = _in_use(revision)
    routes = {ref for ref, parent in used if parent is not None}
    open_names = {gateway.ref: {listener.name for listener in gateway.listeners} for gateway in revision.gateways}
    findings = list(read_in.findings)
    objects: list[ObjectStatus] = []
    for ref in sorted(read_in.candidates):
        candidate = read_in.candidates[ref]
        mine = by_ref.get(ref)
        serving = settled.versions.get(ref)
        of = parents_of(serving.piece) if serving is not None else ()
        runs = (ref, None) in used or ref in routes
        if mine is None and runs:  # nearly every object, nearly always
            listeners = _listeners(candidate, serving, (), "", open_names.get(ref, ()))
            parents = tuple((parent, _FINE) for parent in of)
            objects.append(ObjectStatus(ref, candidate.generation, _FINE_AND_READY, parents, listeners))
            continue
        if held and candidate.newest is not None and not candidate.newest.new:
            continue
        if held and serving is candidate.newest:  # it waits, and what was published before it serves on
            serving = candidate.before
        mine = mine or []
        accepted = not any(note.type is ConditionType.ACCEPTED for note in mine)
        for note in mine:
            place = candidate.document.place_of(note.path) if candidate.document is not None else candidate.place
            message = note.message
            if note.type is ConditionType.ACCEPTED:
                kept = serving is not None or ref in read_in.lost
                message += "; its last accepted version stays in use" if kept else "; it is left out"
            findings.append(Finding(place, _SEVERITY[note.type], note.reason, message, ref))
        unused = _HELD if ref in held else _unused(candidate, serving, accepted, runs)
        conditions = _conditions(mine, unused)
        listeners = _listeners(candidate, serving, mine, unused, open_names.get(ref, ()))
        parents = tuple(
            (
                parent,
                _conditions(
                    [n for n in mine if n.parent in (None, parent)],
                    _unused(candidate, serving, accepted, (ref, parent if ref in routes else None) in used),
                ),
            )
            for parent in of
        )
        objects.append(ObjectStatus(ref, candidate.generation, (*conditions, ready(conditions)), parents, listeners))
    findings.sort(key=lambda f: (f.place, str(f.ref), f.severity, f.message))
    return Diagnostics(tuple(objects), tuple(dict.fromkeys(findings)))
