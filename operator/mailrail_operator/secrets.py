"""Secrets that resources name: read by name when needed, kept in memory by version, never written anywhere.

A Secret that could not be read for a while is handed to the compiler as unreadable, so that what was made from it stays
in use (CFG-01); one that is not there revokes what it gave.
"""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

import aiohttp

from mailrail.core.config.diagnostics import SourceLocation
from mailrail.core.config.loader import Document, Unreadable
from mailrail.kit.kubernetes import Api, ApiError, core_path
from mailrail_operator import metrics
from mailrail_operator.watches import MetadataWatch

Key = tuple[str, str]
_AT_A_TIME = 16


class Secrets:
    """What is known of Secrets. `watch` knows which exist and their versions; without its rights they are polled."""

    def __init__(self, api: Api, watch: MetadataWatch) -> None:
        self._api, self._watch = api, watch
        self._cached: dict[Key, tuple[str, Document]] = {}
        self._limit = asyncio.Semaphore(_AT_A_TIME)
        self.referenced: frozenset[Key] = frozenset()

    async def read(self, keys: Iterable[Key]) -> tuple[list[Document], list[Unreadable]]:
        """The Secrets of these names, those that are there, and those that could not be read."""
        self.referenced = frozenset(keys)
        for key in self._cached.keys() - self.referenced:
            del self._cached[key]
        wanted = sorted(self.referenced)
        found = await asyncio.gather(*(self._one(key) for key in wanted))
        return (
            [d for d in found if isinstance(d, Document)],
            [d for d in found if isinstance(d, Unreadable)],
        )

    async def poll(self) -> bool:
        """Read all again, for want of a watch. Whether anything changed."""
        before = {key: version for key, (version, _) in self._cached.items()}
        self._cached.clear()
        await self.read(self.referenced)
        return before != {key: version for key, (version, _) in self._cached.items()}

    async def _one(self, key: Key) -> Document | Unreadable | None:
        if self._watch.permitted:
            metadata = self._watch.metadata.get(key)
            if metadata is None:
                self._cached.pop(key, None)
                return None
            cached = self._cached.get(key)
            if cached is not None and cached[0] == metadata["resourceVersion"]:
                return cached[1]
        elif key in self._cached:
            return self._cached[key][1]
        return await self._fetch(key)

    async def _fetch(self, key: Key) -> Document | Unreadable | None:
        origin = f"secret {key[0]}/{key[1]}"
        async with self._limit:
            try:
                body = await self._api.get(core_path("secrets", *key))
            except (ApiError, aiohttp.ClientError, TimeoutError, OSError) as error:
                metrics.SECRET_READS.labels("failed").inc()
                words = f"{error.code}" if isinstance(error, ApiError) else "the API server is unreachable"
                return Unreadable(SourceLocation(origin), f"the Secret cannot be read ({words})")
        if body is None:
            metrics.SECRET_READS.labels("absent").inc()
            self._cached.pop(key, None)
            return None
        metrics.SECRET_READS.labels("read").inc()
        document = _document(body, key, origin)
        self._cached[key] = (body["metadata"]["resourceVersion"], document)
        return document


def _document(body: Mapping[str, Any], key: Key, origin: str) -> Document:
    """The parts that count, without annotations, in which tools like to keep copies."""
    content = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"namespace": key[0], "name": key[1]},
        "type": body.get("type", "Opaque"),
        "data": body.get("data") or {},
    }
    return Document(content, SourceLocation(origin))
