"""Asks the queue which transports do not work."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

import grpc

from mailrail.core.revision.revision import ObjectRef
from mailrail.kit import log, rpc
from mailrail.kit.settings import BadSettings
from mailrail.pb.queue.v1 import transports_pb2, transports_pb2_grpc
from mailrail_operator.clients import words_of
from mailrail_operator.settings import OperatorSettings
from mailrail_operator.transport_health import HealthReason, TransportHealth, health_of

_TIMEOUT: Final = 5.0
"""Seconds for one question."""


class TransportWatch:
    """Asks the queue from time to time. `failing` is None until it has answered once."""

    def __init__(self, settings: OperatorSettings, changed: Callable[[], None]) -> None:
        """`changed`: called when a transport begins or ceases to fail, or for another reason."""
        self._settings, self._changed = settings, changed
        self._log = log.get_logger()
        self.failing: Mapping[ObjectRef, TransportHealth] | None = None

    async def run(self) -> None:
        """Until cancelled. While the queue does not answer, what it said last stays."""
        while True:
            try:
                async with rpc.channel(self._settings, self._settings.queue_target, "queue") as channel:
                    await self._ask(transports_pb2_grpc.TransportServiceStub(channel))
            except (grpc.aio.AioRpcError, BadSettings) as error:
                self._log.info("cannot ask the queue about transports", error=words_of(error))
            await asyncio.sleep(self._settings.transports_seconds)

    async def _ask(self, stub: "transports_pb2_grpc.TransportServiceAsyncStub") -> None:
        """Ask on one channel until it fails."""
        while True:
            answer = await stub.ListFailingTransports(transports_pb2.ListFailingTransportsRequest(), timeout=_TIMEOUT)
            found = {
                ObjectRef(one.transport.kind, one.transport.namespace, one.transport.name): health_of(
                    one.reason, one.last_error
                )
                for one in answer.transports
            }
            if self.failing is None or _reasons(found) != _reasons(self.failing):
                self.failing = found
                self._changed()
            await asyncio.sleep(self._settings.transports_seconds)


def _reasons(failing: Mapping[ObjectRef, TransportHealth]) -> dict[ObjectRef, HealthReason]:
    """What counts as a change: replies often contain a time or an id, and are new each time."""
    return {ref: health.reason for ref, health in failing.items()}
