"""Watches: kopf for our kinds, in a thread of its own; one small watch of metadata for Secrets and namespaces.

kopf is kept thin, because its richer parts each have a price (`docs/decisions`): handlers of single events alone, no
indexes, timers, daemons or finalizers, nothing written into objects. An event becomes an entry of the store. kopf
counts every task of its loop as its own, so it has its own loop; events cross over one by one.

The content of a Secret is never watched: the API server is asked for metadata, and who needs a value reads it by name.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import aiohttp
import kopf

from mailrail.core.resources import KINDS
from mailrail.core.resources.crd import GROUP, VERSION
from mailrail.core.revision.revision import ObjectRef
from mailrail.kit import log
from mailrail.kit.kubernetes import PAGE, Api, ApiCredentials, ApiError
from mailrail_operator import metrics
from mailrail_operator.store import ObjectStore, is_ours

_LOGIN_MINUTES: Final = 15
"""Then kopf asks again, so that a rotated token file is read."""
_BACKOFF: Final = (0.2, 0.5, 1.0, 2.0, 5.0)

OnRelist = Callable[[str], None]
"""A kind was listed by a watch: there was a gap, in which deletions may have gone unheard."""


class ResourceWatch:
    """kopf in a thread; `ended` is set when it stopped by itself."""

    def __init__(
        self, credentials: ApiCredentials, namespaces: Sequence[str], store: ObjectStore, on_relist: OnRelist
    ) -> None:
        self._credentials, self._namespaces = credentials, tuple(namespaces)
        self._store, self._on_relist = store, on_relist
        self._loop = asyncio.get_running_loop()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kopf", daemon=True)
        self.ended = asyncio.Event()
        self.error: BaseException | None = None
        logging.getLogger("kopf").setLevel(logging.ERROR)  # what matters is counted and logged here

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    async def stop(self) -> None:
        """Stop, and wait for the thread for a while."""
        self._stop.set()
        await asyncio.to_thread(self._thread.join, 8.0)

    def _run(self) -> None:
        try:
            asyncio.run(self._watch())
        except BaseException as error:  # the thread's last word goes to the loop that waits for it
            self.error = error
        finally:
            with contextlib.suppress(RuntimeError):  # the loop is closed already
                self._loop.call_soon_threadsafe(self.ended.set)

    async def _watch(self) -> None:
        registry = kopf.OperatorRegistry()

        @kopf.on.login(registry=registry)
        async def login(**_: Any) -> kopf.ConnectionInfo:
            known = self._credentials
            return kopf.ConnectionInfo(
                server=known.server,
                ca_data=known.ca or None,
                token=known.current_token() or None,
                certificate_data=known.certificate or None,
                private_key_data=known.key or None,
                default_namespace=known.namespace,
                expiration=datetime.now(UTC) + timedelta(minutes=_LOGIN_MINUTES),
            )

        async def on_event(event: Mapping[str, Any], **_: Any) -> None:
            self._loop.call_soon_threadsafe(self._take, event.get("type"), event["object"])

        for model in KINDS.values():
            kopf.on.event(GROUP, VERSION, model.PLURAL, registry=registry)(on_event)
        settings = kopf.OperatorSettings()
        settings.posting.enabled = False
        settings.scanning.disabled = True  # needs rights on CRDs and namespaces
        settings.watching.chunk_size = PAGE
        settings.watching.connect_timeout = 5
        settings.networking.error_backoffs = (0.2, 0.5, 1, 2, 5)
        settings.persistence.finalizer = f"{GROUP}/unused"
        settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=GROUP)
        settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=GROUP)
        await kopf.operator(
            registry=registry,
            settings=settings,
            standalone=True,
            clusterwide=not self._namespaces,
            namespaces=self._namespaces,
            stop_flag=self._stop,
        )

    def _take(self, kind_of_event: str | None, body: Mapping[str, Any]) -> None:
        if not is_ours(body):
            return
        metrics.LAST_WATCH.set(time.time())
        if kind_of_event == "DELETED":
            metadata = body["metadata"]
            ref = ObjectRef(body["kind"], metadata["namespace"], metadata["name"])
            self._store.remove(ref, metadata["uid"])
            return
        self._store.put(body)
        if kind_of_event is None:
            self._on_relist(body["kind"])


class MetadataWatch:
    """Metadata of one kind of Kubernetes' objects, by (namespace, name); never their content.

    `changed` is called with the key whenever an object came, changed or went. `refused` holds the paths that the API
    server does not let us list or watch; of those nothing is known.
    """

    def __init__(self, api: Api, paths: Sequence[str], changed: Callable[[tuple[str, str]], None]) -> None:
        self._api, self._paths, self._changed = api, tuple(paths), changed
        self.metadata: dict[tuple[str, str], Mapping[str, Any]] = {}
        self.refused: set[str] = set()
        self.synced = asyncio.Event()
        self._listed: set[str] = set()
        self._log = log.get_logger()

    @property
    def permitted(self) -> bool:
        """Whether everything may be watched; only then is absence known."""
        return not self.refused

    async def run(self) -> None:
        """List and watch until cancelled."""
        await asyncio.gather(*(self._follow(path) for path in self._paths))

    async def _follow(self, path: str) -> None:
        mine: set[tuple[str, str]] = set()
        failures = 0
        while True:
            try:
                version = await self._list(path, mine)
                while True:  # the server ends a watch as it was asked to; it goes on from where it was
                    version = await self._watch(path, version, mine)
                    failures = 0  # not by a list that works: when watches alone fail, each round would list all
                    metrics.LAST_WATCH.set(time.time())
            except ApiError as error:
                if error.code == 403:
                    if path not in self.refused:
                        self._log.warning(
                            "not permitted to watch; give the operator this right", path=path, error=str(error)
                        )
                    self.refused.add(path)
                    self._note_listed(path)
                    await asyncio.sleep(60)
                    continue
                if error.code != 410:
                    self._log.warning("watch ended", path=path, error=str(error))
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                self._log.warning("watch ended", path=path, error=str(error) or type(error).__name__)
            await asyncio.sleep(_BACKOFF[min(failures, len(_BACKOFF) - 1)])
            failures += 1

    def _note_listed(self, path: str) -> None:
        self._listed.add(path)
        if len(self._listed) == len(self._paths):
            self.synced.set()

    async def _list(self, path: str, mine: set[tuple[str, str]]) -> str:
        items, version = await self._api.list(path, metadata=True)
        listed = {self._put(item, mine) for item in items}
        for key in mine - listed:
            self._drop(key, mine)
        self.refused.discard(path)
        self._note_listed(path)
        return version

    async def _watch(self, path: str, version: str, mine: set[tuple[str, str]]) -> str:
        async for event in self._api.watch_metadata(path, version):
            metrics.LAST_WATCH.set(time.time())
            item = event["object"]
            if event["type"] == "ERROR":
                raise ApiError(int(item.get("code") or 500), str(item.get("message")))
            version = item["metadata"]["resourceVersion"]
            if event["type"] == "DELETED":
                self._drop(_key(item), mine)
            elif event["type"] != "BOOKMARK":
                self._put(item, mine)
        return version

    def _put(self, item: Mapping[str, Any], mine: set[tuple[str, str]]) -> tuple[str, str]:
        key = _key(item)
        mine.add(key)
        before = self.metadata.get(key)
        self.metadata[key] = {k: item["metadata"].get(k) for k in ("uid", "resourceVersion", "labels")}
        if before is None or before["resourceVersion"] != self.metadata[key]["resourceVersion"]:
            self._changed(key)
        return key

    def _drop(self, key: tuple[str, str], mine: set[tuple[str, str]]) -> None:
        mine.discard(key)
        if self.metadata.pop(key, None) is not None:
            self._changed(key)


def _key(item: Mapping[str, Any]) -> tuple[str, str]:
    return item["metadata"].get("namespace", ""), item["metadata"]["name"]
