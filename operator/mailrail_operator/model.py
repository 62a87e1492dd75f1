"""What the operator read, and what it is to write: values between the decisions (plan, dnscheck) and the shells."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from mailrail.core.config.diagnostics import Condition, ConsumerState, Diagnostics, ObjectStatus
from mailrail.core.config.state import SecretUse
from mailrail.core.dnscheck.answers import DnsVerdict
from mailrail.core.revision.revision import ObjectRef
from mailrail_operator.transport_health import TransportHealth

CONTROLLER_NAME: Final = "mailrail.dev/operator"
"""Who judges an object, and the field manager of what it writes; a second installation in one cluster has another."""


@dataclass(frozen=True, slots=True)
class Controller:
    """An operator as statuses name it."""

    name: str
    former: frozenset[str] = frozenset()
    """Names of controllers that are gone for good and whose objects are this one's now."""

    def follows(self, judge: str) -> bool:
        """Whether an object of that judge (empty: of nobody yet) is this one's without more ado."""
        return judge in ("", self.name) or judge in self.former


def conditions_of(status: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The conditions by type that a status has, or a part of one."""
    return {c["type"]: c for c in status.get("conditions") or () if isinstance(c, Mapping) and "type" in c}


@dataclass(frozen=True, slots=True)
class Observed:
    """One custom resource as last read."""

    ref: ObjectRef
    uid: str
    generation: int
    spec: Mapping[str, Any]
    status: Mapping[str, Any]
    body: Mapping[str, Any] = field(repr=False)

    @property
    def judged_by(self) -> str:
        """The controller whose words the status is; empty: nobody's yet."""
        return str(self.status.get("controllerName") or "")

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> "Observed":
        """From an object of the API server. Raises KeyError or TypeError when it is not one of our kinds."""
        metadata = body["metadata"]
        return cls(
            ObjectRef(body["kind"], metadata["namespace"], metadata["name"]),
            metadata["uid"],
            int(metadata.get("generation", 0)),
            body.get("spec") or {},
            body.get("status") or {},
            body,
        )


@dataclass(frozen=True, slots=True)
class Tracked:
    """Since which revision (`first`) services can know an object as it is now; whether all of them once ran it."""

    fingerprint: str
    first: int
    confirmed: bool


@dataclass(frozen=True, slots=True)
class SealingKey:
    """A key that stored values were sealed with."""

    id: str
    in_use: bool
    """Head needs it; else only a rollback would."""


@dataclass(frozen=True, slots=True)
class Running:
    """The configuration as the config service knows it."""

    newest: int = 0
    """The revision that was published last."""
    checksum: str = ""
    head: int = 0
    """The revision that services should run."""
    pinned: bool = False
    consumers: tuple[ConsumerState, ...] = ()
    keys: tuple[SealingKey, ...] = ()
    difference: str = ""
    """Why the store does not have what was published last; empty: it has."""


class EventType(StrEnum):
    """Kubernetes' two types."""

    NORMAL = "Normal"
    WARNING = "Warning"


@dataclass(frozen=True, slots=True)
class EventRecord:
    """A Kubernetes event to record: a condition changed."""

    type: EventType
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Change:
    """A status to write, whole, and the events that go with it."""

    ref: ObjectRef
    uid: str
    status: Mapping[str, Any]
    notes: tuple[EventRecord, ...]
    judged_by: str = ""
    """Who judged the object when this was planned: if that is another by now, this is out of date."""
    ends: tuple[str, ...] = ()
    """Controllers whose words in the status go once this is written."""


@dataclass(frozen=True, slots=True)
class ClusterView:
    """Everything that a plan is made from, as it is at one moment."""

    objects: Mapping[ObjectRef, Observed]
    diagnostics: Diagnostics
    """Of the last publish."""
    uses: tuple[SecretUse, ...]
    """Of the last publish."""
    running: Running
    dns: Mapping[ObjectRef, DnsVerdict]
    now: str
    """RFC 3339, whole seconds."""
    waiting: str = ""
    """Why nothing was published since, for the objects that the last publish does not cover."""
    controller: Controller = Controller(CONTROLLER_NAME)
    health: Mapping[ObjectRef, TransportHealth] | None = field(default_factory=dict)
    """Of transports; empty where nobody asks the queue. None: it has not answered yet, and what is written stays."""
    keys: Mapping[ObjectRef, tuple[Mapping[str, Any], ...]] = field(default_factory=dict)
    """DKIM keys of domains as their statuses have them, of the last publish."""
    arrival_seconds: float = 0.0
    """How long a new object may miss another before that is said."""


@dataclass(frozen=True, slots=True)
class ObjectFacts:
    """What others say of one object: with the object itself and who runs what, all that its status is made of."""

    verdict: ObjectStatus | None
    """The compiler's; None until the last publish covers the object as it is now."""
    secrets: tuple[str, ...]
    """Paths of the Secrets that the object uses."""
    attached: int
    dns: DnsVerdict | None
    health: TransportHealth | None = None
    keys: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class SettledObject:
    """An object whose status is as it should be, and everything that made it so."""

    seen: Observed
    facts: ObjectFacts
    programmed: Condition
    ready: str | None
    """None: another controller judges it."""


@dataclass(frozen=True, slots=True)
class ObjectMemory:
    """What a plan hands to the next plan about one object."""

    tracked: Tracked | None
    settled: SettledObject | None = None
    unjudged_since: str = ""
    """As in ObjectJudge."""


@dataclass(frozen=True, slots=True)
class StatusPlan:
    """What is to be written, and what is to be remembered until the next plan."""

    changes: tuple[Change, ...]
    memory: Mapping[ObjectRef, ObjectMemory]
    counts: Mapping[tuple[str, str], int]
    """(kind, value of Ready) → objects."""
    others: Mapping[str, int]
    """Kind → objects that another controller judges."""
    arriving: bool
    """Nothing was said yet of new objects that miss others: plan again soon."""
