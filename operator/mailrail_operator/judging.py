"""Which of several operators judges an object: pure (CFG-11).

    judge_of(seen, verdict, unjudged_since, controller, now) → whether this one does, and whose words end with that

The operator that `status.controllerName` names judges the object: the status is its own, but for the entries of
`parents[]`, which have one controller each. Another one becomes the judge

- of an object that nobody judges yet;
- of an object that its services run, when the judge says that its own do not (`Programmed` is `NotInUse`), or has not
  looked at the present generation for ten minutes, so is gone;
- of all objects of a judge that it is told to succeed.

Two that both run an object, or both do not, leave it to the first: so nothing alternates. What the one before wrote
goes with it; if it lives, and its services run the object for some parent, it says so again in its entry.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from mailrail.core.config.diagnostics import ConditionType, ObjectStatus, Reason, Status
from mailrail_operator.model import Controller, Observed, conditions_of

GONE_SECONDS: Final = 600
"""A judge that has not looked at a generation for so long is gone: a living one does within seconds."""


@dataclass(frozen=True, slots=True)
class ObjectJudge:
    """Who judges an object."""

    ours: bool
    ends: tuple[str, ...] = ()
    """Controllers whose words go."""
    unjudged_since: str = ""
    """Since when the judge, another one, has not looked at the present generation; RFC 3339. Empty: it has."""


def judge_of(
    seen: Observed, verdict: ObjectStatus | None, unjudged_since: str, controller: Controller, now: str
) -> ObjectJudge:
    """`verdict`: what our compiler says of the object as it is now. `unjudged_since`: as found last."""
    by = seen.judged_by
    left = tuple(sorted(name for name in controller.former if name == by or status_fields(seen, name)))
    if controller.follows(by):
        return ObjectJudge(True, left)
    if int(seen.status.get("observedGeneration") or 0) < seen.generation:
        since = unjudged_since or now
        gone = datetime.fromisoformat(now) - datetime.fromisoformat(since)
        if runs(verdict) and gone.total_seconds() >= GONE_SECONDS:
            return ObjectJudge(True, (by, *left))
        return ObjectJudge(False, left, since)
    if runs(verdict) and _says_not_in_use(seen):
        return ObjectJudge(True, (by, *left))
    return ObjectJudge(False, left)


def runs(verdict: ObjectStatus | None) -> bool:
    """Whether services get the object as it is now, by the compiler's verdict."""
    found = None if verdict is None else verdict.condition(ConditionType.PROGRAMMED)
    return found is not None and found.status is not Status.FALSE


def status_fields(seen: Observed, manager: str) -> frozenset[str]:
    """Fields of the status that a field manager has, by the API server's own account (`conditions`, `parents`, ...)."""
    found: set[str] = set()
    for entry in seen.body["metadata"].get("managedFields") or ():
        if isinstance(entry, Mapping) and (entry.get("manager"), entry.get("subresource")) == (manager, "status"):
            fields: Any = entry.get("fieldsV1") or {}
            found.update(name.removeprefix("f:") for name in fields.get("f:status") or ())
    return frozenset(found)


def _says_not_in_use(seen: Observed) -> bool:
    found = conditions_of(seen.status).get(ConditionType.PROGRAMMED.value, {})
    return found.get("reason") == Reason.NOT_IN_USE.value
