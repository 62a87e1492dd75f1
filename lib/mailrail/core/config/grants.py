"""Who may refer to whom, and with which powers: the `attach[]` of the object that is referred to (decision 18)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from mailrail.core.resources.attach import AnyAttach, GatewayAttach, LabelSelector, TransportAttach
from mailrail.core.revision.revision import ObjectRef
from mailrail.core.route.explain import covers

_NAMES_SHOWN: Final = 3


@dataclass(frozen=True, slots=True)
class Attachment:
    """What one object asks of another that it refers to."""

    target: ObjectRef
    owner: ObjectRef
    domain_name: str | None = None
    """That a MailDomain claims."""
    priority: int | None = None
    """Of a MailRoute that attaches to a gateway or a domain."""


@dataclass(frozen=True, slots=True)
class LabelCondition:
    """A condition on one label, as Kubernetes has it."""

    key: str
    operator: str
    """In, NotIn, Exists or DoesNotExist."""
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Selection:
    """Which namespaces, by their labels: all conditions must hold."""

    labels: Mapping[str, str] = field(default_factory=dict)
    conditions: tuple[LabelCondition, ...] = ()


@dataclass(frozen=True, slots=True)
class Grant:
    """One entry of an `attach[]`."""

    kinds: tuple[str, ...]
    namespaces: str
    """Same, All or Selector."""
    selection: Selection | None = None
    domain_names: tuple[str, ...] | None = None
    """That may be claimed; None: every name."""
    lowest_priority: int = 0


def selection_of(selector: LabelSelector) -> Selection:
    """What a selector says."""
    conditions = tuple(LabelCondition(e.key, e.operator, e.values) for e in selector.match_expressions)
    return Selection(selector.match_labels, conditions)


def grant_of(entry: AnyAttach) -> Grant:
    """What an entry says."""
    of = entry.namespaces
    return Grant(
        entry.kinds,
        of.from_,
        selection_of(of.selector) if of.selector is not None else None,
        entry.domain_names if isinstance(entry, GatewayAttach) else None,
        0 if isinstance(entry, TransportAttach) else entry.minimum_priority or 0,
    )


def _holds(condition: LabelCondition, labels: Mapping[str, str]) -> bool:
    value = labels.get(condition.key)
    match condition.operator:
        case "In":
            return value in condition.values
        case "NotIn":
            return value not in condition.values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case _:  # of a later version: it selects nothing here
            return False


def selects(selection: Selection, labels: Mapping[str, str]) -> bool:
    """Whether a namespace with these labels is selected, as Kubernetes does it."""
    return all(labels.get(k) == v for k, v in selection.labels.items()) and all(
        _holds(condition, labels) for condition in selection.conditions
    )


def _about(entry: Grant, asked: Attachment, namespaces: Mapping[str, Mapping[str, str]]) -> bool:
    """Whether an entry is about the kind and the namespace of who asks. An unknown namespace is never selected."""
    if asked.owner.kind not in entry.kinds:
        return False
    match entry.namespaces:
        case "All":
            return True
        case "Same":
            return asked.owner.namespace == asked.target.namespace
    labels = namespaces.get(asked.owner.namespace)
    return labels is not None and entry.selection is not None and selects(entry.selection, labels)


def _covers(pattern: str, name: str) -> bool:
    """As in a route, but that `.` stands for every name."""
    return pattern == "." or covers(pattern, name)


def refusal(
    grants: Sequence[Grant] | None, asked: Attachment, namespaces: Mapping[str, Mapping[str, str]]
) -> str | None:
    """Which power the owner lacks, and who could give it; None if it may refer to the target.

    `namespaces` are labels by name. One entry must permit all that is asked.
    """
    verb = "name it in" if asked.target.kind == "MailTransport" else "attach"
    text = f"{asked.target} does not let namespace {asked.owner.namespace} {verb} a {asked.owner.kind}"
    if grants is None:
        return None if asked.owner.namespace == asked.target.namespace else f"{text} (it has no attach[])"
    about = [entry for entry in grants if _about(entry, asked, namespaces)]
    if not about:
        return f"{text} (no entry of its attach[] is about these)"
    name, priority = asked.domain_name, asked.priority
    named = [
        e for e in about if name is None or e.domain_names is None or any(_covers(p, name) for p in e.domain_names)
    ]
    if not named:
        listed = [pattern for entry in about for pattern in entry.domain_names or ()]
        more = f" and {len(listed) - _NAMES_SHOWN} more" if len(listed) > _NAMES_SHOWN else ""
        return f"{text} named {name} (attach[].domainNames {', '.join(listed[:_NAMES_SHOWN])}{more})"
    lowest = min(entry.lowest_priority for entry in named)
    if priority is not None and priority < lowest:
        return f"{text} with priority {priority} (attach[].minimumPriority {lowest})"
    return None
