"""What a process cannot carry out of the revision that it runs; it says so to config, for status and people."""

from dataclasses import dataclass
from typing import Final

from mailrail.core.revision.revision import ObjectRef

PORT_CONFLICT: Final = "PortConflict"
"""Another listener of the same revision has the port. Only a new revision ends it."""
PORT_UNAVAILABLE: Final = "PortUnavailable"
"""The system refuses the port: another process has it, or this one may not open it. It is tried again."""
POSTGRES_UNAVAILABLE: Final = "PostgresUnavailable"
"""The process works without its database, and mail that needs what is there waits."""
PENDING: Final = "Pending"
"""It was not tried yet."""


@dataclass(frozen=True, slots=True)
class RevisionProblem:
    """One thing that a process cannot carry out, though it uses the rest."""

    object: ObjectRef
    part: str
    """Of the object, such as `listeners/mx`; empty: all of it."""
    reason: str
    """One word in CamelCase, as a condition in Kubernetes has it."""
    message: str


def listener_part(name: str) -> str:
    """`RevisionProblem.part` of a listener."""
    return f"listeners/{name}"
