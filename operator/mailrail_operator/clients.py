"""The config service, seen from the operator: who runs what. Publishing is the kit's (`mailrail.kit.publisher`)."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc

from mailrail.core.config.diagnostics import ConsumerState
from mailrail.core.config.state import UnreadableState
from mailrail.core.config.stored import StoredRevision
from mailrail.core.revision.problem import RevisionProblem
from mailrail.core.revision.revision import ObjectRef, Role
from mailrail.kit import rpc
from mailrail.kit.publisher import newest_of
from mailrail.kit.settings import ServiceSettings
from mailrail.pb.config.v1 import config_pb2 as pb
from mailrail.pb.config.v1 import config_pb2_grpc
from mailrail_operator.model import SealingKey

_ROLES = frozenset(role.value for role in Role)
_OUT_OF_REACH = frozenset((grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED))
_TIMEOUT = 5.0
"""Seconds."""


def words_of(error: Exception) -> str | None:
    """What a service said when a question failed, or why it could not be asked."""
    return error.details() if isinstance(error, grpc.aio.AioRpcError) else str(error)


def why_unpublished(error: Exception) -> str:
    """What keeps a configuration from being published, for statuses."""
    words = words_of(error) or type(error).__name__
    if isinstance(error, UnreadableState):
        return f"what the config service has cannot be read: {words}"
    if isinstance(error, grpc.aio.AioRpcError) and error.code() not in _OUT_OF_REACH:
        return f"the config service does not take it: {words}"
    return f"the config service is unreachable: {words}"


@dataclass(frozen=True, slots=True)
class ConfigStanding:
    """What the config service knows."""

    consumers: tuple[ConsumerState, ...]
    """Everyone that reports."""
    head: int
    pinned: bool
    newest: StoredRevision


class ConfigView:
    """Questions on one channel. Raises grpc.aio.AioRpcError; then a new channel is due, for certificates rotate."""

    def __init__(self, stub: "config_pb2_grpc.ConfigServiceAsyncStub") -> None:  # a name that the stubs alone have
        self._stub = stub

    async def standing(self) -> ConfigStanding:
        """Who runs what, and what the store holds."""
        response = await self._stub.ListConsumers(pb.ListConsumersRequest(), timeout=_TIMEOUT)
        found = tuple(
            ConsumerState(
                c.process,
                Role(c.role),
                c.revision,
                c.rejected,
                c.error,
                c.live,
                tuple(
                    RevisionProblem(ObjectRef(p.kind, p.namespace, p.name), p.part, p.reason, p.message)
                    for p in c.problems
                ),
                c.gateway,
            )
            for c in response.consumers
            if c.role in _ROLES
        )
        return ConfigStanding(found, response.head, response.pinned, newest_of(response))

    async def sealing_keys(self) -> tuple[SealingKey, ...]:
        """Which keys stored values were sealed with, by id."""
        response = await self._stub.ListSealingKeys(pb.ListSealingKeysRequest(), timeout=_TIMEOUT)
        return tuple(SealingKey(k.key_id, in_use=k.head_values > 0) for k in response.keys)


@asynccontextmanager
async def view(settings: ServiceSettings) -> AsyncIterator[ConfigView]:
    """A view while the context lasts."""
    async with rpc.channel(settings, settings.config_target, "config") as channel:
        yield ConfigView(config_pb2_grpc.ConfigServiceStub(channel))
