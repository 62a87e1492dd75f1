"""Writes statuses, some at a time, beside the loop that publishes: five thousand never hold up a change of route.

A newer plan for an object replaces one that still waits, and waits for one that is being written: two writes of one
object at a time could end in the older one. Before each write the status is compared once more with what was last read
or written.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import aiohttp

from mailrail.core.resources.crd import GROUP, VERSION
from mailrail.core.revision.revision import ObjectRef
from mailrail.kit import log
from mailrail.kit.kubernetes import Api, ApiError
from mailrail_operator import metrics
from mailrail_operator.declared import Paths, is_refused_by_schema, undeclared, without
from mailrail_operator.model import Change, EventRecord
from mailrail_operator.plan import notes, unchanged
from mailrail_operator.store import ObjectStore

_BACKOFF: Final = 1.0
"""Seconds before the next write after the API server could not be reached, or had an error of its own."""
_PASSING: Final = (401, 429)
"""Refusals that pass by themselves: the token was rotated, or too much was asked. For others the next plan tries."""


class Writer:
    """Statuses that wait to be written. `may_write` says whether we still lead.

    `overtaken` is called after a write that the newest plan knew nothing of: it saw the status as it was before, took
    that for right, and has to look again.
    """

    def __init__(
        self,
        api: Api,
        store: ObjectStore,
        instance: str,
        controller: str,
        may_write: Callable[[], bool],
        overtaken: Callable[[], None],
    ) -> None:
        self._api, self._store, self._may_write = api, store, may_write
        self._instance, self._controller = instance, controller
        self._tell_overtaken = overtaken
        self._waiting: dict[ObjectRef, Change] = {}
        self._writing: set[ObjectRef] = set()
        self._overtaken: set[ObjectRef] = set()
        self._refused: set[ObjectRef] = set()  # no sense in trying again before the next plan; not written all the same
        self._undeclared: dict[str, Paths] = {}  # by kind; each plan asks once more, for CRDs are upgraded
        self._told: dict[str, Paths] = {}
        self._arrived = asyncio.Condition()
        self._log = log.get_logger()

    async def put(self, changes: Iterable[Change]) -> None:
        """Take the newest plan. What an older one wanted and this one does not is dropped: it is settled otherwise."""
        self._waiting = {change.ref: change for change in changes}
        self._overtaken = {ref for ref in self._writing if ref not in self._waiting}
        self._refused.clear()
        self._undeclared.clear()
        self._count()
        async with self._arrived:
            self._arrived.notify_all()

    async def run(self, writers: int) -> None:
        """Write until cancelled."""
        await asyncio.gather(*(self._work() for _ in range(writers)))

    async def _work(self) -> None:
        while True:
            async with self._arrived:
                await self._arrived.wait_for(lambda: self._free() is not None)
                ref = self._free()
                assert ref is not None
                change = self._waiting.pop(ref)
                self._writing.add(ref)
            try:
                await self._write(change)
            finally:
                self._writing.discard(ref)
                self._count()
            if ref in self._overtaken:
                self._overtaken.discard(ref)
                self._tell_overtaken()
            if ref in self._waiting:
                async with self._arrived:
                    self._arrived.notify()

    def _free(self) -> ObjectRef | None:
        """An object whose status waits and is not being written."""
        return next((ref for ref in self._waiting if ref not in self._writing), None)

    async def _write(self, change: Change) -> None:
        seen = self._store.get(change.ref)
        if not self._may_write() or seen is None or seen.uid != change.uid:
            return
        judges, judged_by_us = "controllerName" in change.status, seen.judged_by == self._controller
        if seen.judged_by != change.judged_by and not (judges and judged_by_us):
            self._tell_overtaken()
            return
        if unchanged(seen, self._declared(change), self._controller) and not change.ends:
            return
        ref = change.ref
        # Who becomes the judge writes over nobody's words unseen: of two that want it, one is refused and looks again.
        begins = judges and not judged_by_us
        version = seen.body["metadata"].get("resourceVersion") if begins else None
        try:
            body, whole = await self._apply_declared(change, version)
            for controller in change.ends:
                body = await self._apply(change, controller, {})
        except ApiError as error:
            gone = error.code in (404, 409)  # deleted, made anew or changed: the watch tells the rest
            metrics.STATUS_WRITES.labels("gone" if gone else "failed").inc()
            if not gone:
                self._log.error("cannot write a status", object=str(ref), error=str(error))
            passes = error.code in _PASSING or (error.code >= 500 and not is_refused_by_schema(str(error)))
            if passes or (error.code == 409 and begins):
                await self._later(change)
            elif not gone:
                self._refused.add(ref)
            return
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            metrics.STATUS_WRITES.labels("failed").inc()
            self._log.warning("cannot write a status", object=str(ref), error=str(error) or type(error).__name__)
            await self._later(change)
            return
        metrics.STATUS_WRITES.labels("written" if whole else "partial").inc()
        self._store.put(body)
        fresh = notes(seen.status, change.status)  # an older plan, written meanwhile, may have told the same
        for note in change.notes:
            if note in fresh:
                await self._record(change, note)

    def _declared(self, change: Change) -> Mapping[str, Any]:
        """What is to be written, without what the installed CRD is known not to declare."""
        declared: Mapping[str, Any] = without(change.status, self._undeclared.get(change.ref.kind, frozenset()))
        return declared

    async def _apply_declared(self, change: Change, version: str | None) -> tuple[dict[str, Any], bool]:
        """Write what the installed CRD declares; the object, and whether that was all. Raises ApiError."""
        kind = change.ref.kind
        while True:
            status = self._declared(change)
            try:
                return await self._apply(change, self._controller, status, version), status == change.status
            except ApiError as error:
                found = undeclared(str(error))
                if without(status, found) == status:
                    raise
            known = self._undeclared[kind] = self._undeclared.get(kind, frozenset()) | found
            if not known <= self._told.get(kind, frozenset()):
                self._told[kind] = known
                self._log.error(
                    "the CRD is older than this operator, and fields are left out of statuses: apply the CRDs of the"
                    " operator's version",
                    kind=kind,
                    fields=", ".join(sorted(".".join(path) for path in known)),
                )

    async def _apply(
        self, change: Change, controller: str, status: Mapping[str, Any], version: str | None = None
    ) -> dict[str, Any]:
        """Make `status` all that a controller says of the object; {} takes its words away. Raises ApiError."""
        ref = change.ref
        return await self._api.apply_status(
            ref.kind, ref.namespace, ref.name, change.uid, status, manager=controller, version=version
        )

    async def _later(self, change: Change) -> None:
        self._waiting.setdefault(change.ref, change)
        await asyncio.sleep(_BACKOFF)

    def _count(self) -> None:
        metrics.STATUS_PENDING.set(len(self._waiting.keys() | self._writing | self._refused))

    async def _record(self, change: Change, note: EventRecord) -> None:
        """A Kubernetes event; losing one loses nothing but a line."""
        ref, now = change.ref, datetime.now(UTC)
        body = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"generateName": f"{ref.name[:200]}-", "namespace": ref.namespace},
            "eventTime": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "reportingController": self._controller,
            "reportingInstance": self._instance[:128],
            "action": "Judge",
            "type": note.type.value,
            "reason": note.reason,
            "note": note.message,
            "regarding": {
                "apiVersion": f"{GROUP}/{VERSION}",
                "kind": ref.kind,
                "namespace": ref.namespace,
                "name": ref.name,
                "uid": change.uid,
            },
        }
        try:
            await self._api.call("POST", f"/apis/events.k8s.io/v1/namespaces/{ref.namespace}/events", body)
        except (ApiError, aiohttp.ClientError, TimeoutError, OSError) as error:
            self._log.warning("cannot record an event", object=str(ref), reason=note.reason, error=str(error))
