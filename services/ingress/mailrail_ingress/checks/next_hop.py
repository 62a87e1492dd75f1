"""Whether the next hop of a domain knows a recipient: `ports.Verification` over outbound, which asks it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import grpc

from mailrail.core.revision.revision import ObjectRef
from mailrail.core.route.recipients import VERIFICATION_UNAVAILABLE
from mailrail.core.smtp.reply import Reply
from mailrail.kit import rpc
from mailrail.kit.settings import BadSettings
from mailrail.pb.outbound.v1 import outbound_pb2, outbound_pb2_grpc
from mailrail_ingress.settings import IngressSettings

_UNKNOWN_THERE: Final = Reply.of(550, "5.1.1", "no such user here")


class OutboundVerification:
    """`ports.Verification`: outbound asks the next hop, and keeps what it learned."""

    def __init__(self, settings: IngressSettings) -> None:
        self._settings = settings
        self._channel: grpc.aio.Channel | None = None
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["OutboundVerification"]:
        """Ready to ask while the context lasts."""
        try:
            yield self
        finally:
            await self._drop()

    async def _drop(self) -> None:
        """The next question opens a new channel, with the certificate as it is then; what is asked now may end."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close(grace=5)

    def verify(self, address: str, transport: ObjectRef, done: Callable[[Reply | None], None]) -> None:
        """See ports.Verification."""
        task = self._loop.create_task(self._ask(address, transport, done))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, address: str, transport: ObjectRef, done: Callable[[Reply | None], None]) -> None:
        verdicts = outbound_pb2.VerifyRecipientResponse
        refusal: Reply | None = VERIFICATION_UNAVAILABLE
        lost = False
        try:
            if self._channel is None:
                self._channel = rpc.channel(self._settings, self._settings.outbound_target, "outbound")
            stub: outbound_pb2_grpc.OutboundServiceAsyncStub = outbound_pb2_grpc.OutboundServiceStub(self._channel)
            response = await stub.VerifyRecipient(
                outbound_pb2.VerifyRecipientRequest(
                    address=address, transport=f"{transport.namespace}/{transport.name}"
                ),
                timeout=60,
            )
            if response.verdict == verdicts.VERDICT_ACCEPTED:
                refusal = None
            elif response.verdict == verdicts.VERDICT_REFUSED:
                refusal = _UNKNOWN_THERE
        except (grpc.aio.AioRpcError, BadSettings) as error:
            lost = isinstance(error, grpc.aio.AioRpcError) and error.code() is grpc.StatusCode.UNAVAILABLE
        finally:
            # Whatever happened, the client waits for a word: a channel that is dropped cancels what others ask on it.
            done(refusal)
        if lost:
            await self._drop()
