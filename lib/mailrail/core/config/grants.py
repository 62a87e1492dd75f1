"""Who may refer to whom, and with which powers: the `attach[]` of the object that is referred to (decision 18)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from mailrail.core.resources.attach import AnyAttach, GatewayAttach, LabelRequirement, LabelSelector, TransportAttach
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


def _holds(requirement: LabelRequirement, labels: Mapping[str, str]) -> bool:
    value = labels.get(requirement.key)
    match requirement.operator:
        case "In":
            return value in requirement.values
        case "NotIn":
            return value not in requirement.values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None


def selects(selector: LabelSelector, labels: Mapping[str, str]) -> bool:
    """Whether a namespace with these labels is selected, as Kubernetes does it."""
    return all(labels.get(k) == v for k, v in selector.match_labels.items()) and all(
        _holds(r, labels) for r in selector.match_expressions
    )


def _about(entry: AnyAttach, asked: Attachment, namespaces: Mapping[str, Mapping[str, str]]) -> bool:
    """Whether an entry is about the kind and the namespace of who asks. An unknown namespace is never selected."""
    if asked.owner.kind not in entry.kinds:
        return False
    match entry.namespaces.from_:
        case "All":
            return True
        case "Same":
            return asked.owner.namespace == asked.target.namespace
    labels = namespaces.get(asked.owner.namespace)
    return labels is not None and entry.namespaces.selector is not None and selects(entry.namespaces.selector, labels)


def _covers(pattern: str, name: str) -> bool:
    """As in a route, but that `.` stands for every name."""
    return pattern == "." or covers(pattern, name)


def _names(entry: AnyAttach) -> tuple[str, ...] | None:
    return entry.domain_names if isinstance(entry, GatewayAttach) else None


def _lowest(entry: AnyAttach) -> int:
    return 0 if isinstance(entry, TransportAttach) else entry.minimum_priority or 0


def refusal(
    attach: Sequence[AnyAttach] | None, asked: Attachment, namespaces: Mapping[str, Mapping[str, str]]
) -> str | None:
    """Which power the owner lacks, and who could give it; None if it may refer to the target.

    `namespaces` are labels by name. One entry must permit all that is asked.
    """
    verb = "name it in" if asked.target.kind == "MailTransport" else "attach"
    text = f"{asked.target} does not let namespace {asked.owner.namespace} {verb} a {asked.owner.kind}"
    if attach is None:
        return None if asked.owner.namespace == asked.target.namespace else f"{text} (it has no attach[])"
    about = [entry for entry in attach if _about(entry, asked, namespaces)]
    if not about:
        return f"{text} (no entry of its attach[] is about these)"
    name, priority = asked.domain_name, asked.priority
    named = [e for e in about if name is None or (names := _names(e)) is None or any(_covers(p, name) for p in names)]
    if not named:
        listed = [pattern for entry in about for pattern in _names(entry) or ()]
        more = f" and {len(listed) - _NAMES_SHOWN} more" if len(listed) > _NAMES_SHOWN else ""
        return f"{text} named {name} (attach[].domainNames {', '.join(listed[:_NAMES_SHOWN])}{more})"
    lowest = min(_lowest(entry) for entry in named)
    if priority is not None and priority < lowest:
        return f"{text} with priority {priority} (attach[].minimumPriority {lowest})"
    return None
