"""The resources as last read. Watches put and remove; an authoritative list of a kind replaces all of it.

A watch that restarts lists what there is and says nothing of what went meanwhile, so removal is believed from three
sources: a DELETED event, a list that lacks the object, and a count that differs (which makes somebody list). A list is
older than events that arrived while it was read: it neither removes what is newer than it nor brings back the dead.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from mailrail.core.resources import KINDS
from mailrail.core.revision.revision import ObjectRef
from mailrail_operator.model import Observed

DEAD_REMEMBERED: Final = 20_000
"""Identities of deleted objects that are kept; a list takes seconds, so far fewer would do."""


class ObjectStore:
    """Objects by reference. `changed` is set when one of them means something else than before.

    `restated` is called with the object as it was and as it is when only its status is another.
    """

    def __init__(self, restated: Callable[[Observed, Observed], None] = lambda before, seen: None) -> None:
        self._restated = restated
        self._objects: dict[ObjectRef, Observed] = {}
        self._dead: dict[str, None] = {}  # uids, oldest first
        self.changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._objects)

    def objects(self) -> dict[ObjectRef, Observed]:
        """All of them, as they are now."""
        return dict(self._objects)

    def get(self, ref: ObjectRef) -> Observed | None:
        """One of them."""
        return self._objects.get(ref)

    def count(self, kind: str, namespace: str | None = None) -> int:
        """How many of a kind, in one namespace or in all."""
        return sum(r.kind == kind and namespace in (None, r.namespace) for r in self._objects)

    def put(self, body: Mapping[str, Any]) -> None:
        """An object as an event or a write gave it. One that is being deleted is gone; an older one is not news."""
        seen = Observed.of(body)
        if seen.uid in self._dead:
            return
        if "deletionTimestamp" in body["metadata"]:
            self.remove(seen.ref, seen.uid)
            return
        before = self._objects.get(seen.ref)
        if before is not None and before.uid == seen.uid and _version(before) > _version(seen):
            return
        self._objects[seen.ref] = seen
        if before is None or (before.uid, before.generation) != (seen.uid, seen.generation):
            self.changed.set()
        elif before.status != seen.status:
            self._restated(before, seen)

    def remove(self, ref: ObjectRef, uid: str) -> None:
        """An object that was deleted; if it was made anew meanwhile, that one stays."""
        self._dead[uid] = None
        while len(self._dead) > DEAD_REMEMBERED:
            del self._dead[next(iter(self._dead))]
        before = self._objects.get(ref)
        if before is not None and before.uid == uid:
            del self._objects[ref]
            self.changed.set()

    def replace(
        self, kind: str, namespace: str | None, bodies: Iterable[Mapping[str, Any]], version: str
    ) -> set[ObjectRef]:
        """All there was of a kind at a resource version, in one namespace or in all. Returns what went unheard."""
        listed: set[ObjectRef] = set()
        for body in bodies:
            listed.add(Observed.of(body).ref)
            self.put(body)
        at = _number(version)
        gone = {
            ref
            for ref, seen in self._objects.items()
            if ref.kind == kind and namespace in (None, ref.namespace) and ref not in listed and _version(seen) <= at
        }
        for ref in gone:
            self.remove(ref, self._objects[ref].uid)
        return gone


def _version(seen: Observed) -> int:
    """Resource versions of one object grow; one that is no number compares as the oldest and is always replaced."""
    return _number(str(seen.body["metadata"].get("resourceVersion", "")))


def _number(version: str) -> int:
    return int(version) if version.isascii() and version.isdigit() and len(version) <= 20 else -1


def is_ours(body: Mapping[str, Any]) -> bool:
    """Whether it is one of our kinds."""
    return body.get("kind") in KINDS


def referenced_secrets(namespace: str, spec: Any) -> Iterator[tuple[str, str]]:
    """Namespace and name of every Secret that a spec names: `secretRef: {name}` and `...SecretRef: {name}`."""
    if isinstance(spec, Mapping):
        for key, value in spec.items():
            if (key == "secretRef" or key.endswith("SecretRef")) and isinstance(value, Mapping):
                name = value.get("name")
                if isinstance(name, str) and name:
                    yield namespace, name
            else:
                yield from referenced_secrets(namespace, value)
    elif isinstance(spec, list | tuple):
        for value in spec:
            yield from referenced_secrets(namespace, value)
