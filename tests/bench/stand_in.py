"""`python -m bench.stand_in`: the cheapest neighbours that ingress and outbound can have, to measure each alone.

One process, gRPC without TLS: a config service with one fixed revision, a queue that accepts every commit at once and
stores nothing, and a queue that hands out as many equal deliveries as it is told (a number on its standard input).
"""

import argparse
import asyncio
import itertools
import sys
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from mailrail.core.limits import CHUNK_SIZE, INLINE_LIMIT
from mailrail.core.revision.revision import (
    Gateway,
    GatewayLimits,
    Listener,
    ListenerProtocol,
    ObjectRef,
    Revision,
    RouteLevel,
    Rule,
    Transport,
    TransportKind,
    checksum,
    encode,
)
from mailrail.kit.run import new_event_loop
from mailrail.pb.config.v1 import config_pb2, config_pb2_grpc
from mailrail.pb.queue.v1 import enqueue_pb2, enqueue_pb2_grpc, lease_pb2, lease_pb2_grpc, types_pb2

GATEWAY = ObjectRef("MailGateway", "default", "bench")
SINK = ObjectRef("MailTransport", "default", "sink")
STREAM_CREDIT = 32 * 1024 * 1024  # octets (ACC-07)
BATCH = 64
PREFIX = b"Received: from bench by bench; Sun, 22 Nov 2026 18:00:00 +0000\r\n"


def revision(listen_port: int, sink: tuple[str, int]) -> Revision:
    """One MX listener that takes any recipient, one transport to the sink."""
    return Revision(
        gateways=(
            Gateway(
                ref=GATEWAY,
                hostname="bench.test",
                listeners=(Listener("mx", ListenerProtocol.MX, listen_port, None, accept_any_recipient=True),),
                postmaster=ObjectRef("MailAccount", "default", "postmaster"),
                limits=GatewayLimits(connections_per_ip=10_000),
            ),
        ),
        transports=(Transport(ref=SINK, kind=TransportKind.SMTP, host=sink[0], port=sink[1]),),
        global_routes=(
            RouteLevel(GATEWAY, (Rule(ObjectRef("MailRoute", "default", "all"), 0, "all", (), transport=SINK),)),
        ),
    )


M = TypeVar("M", bound=Message)


def known(kind: type[M], **fields: Any) -> M:
    """A message with those of the fields that its type has: the services may be of a commit that lacks the newest."""
    return kind(**{name: value for name, value in fields.items() if name in kind.DESCRIPTOR.fields_by_name})


def content(size: int) -> bytes:
    """A message's header and text, about so many octets."""
    line = b"x" * 76 + b"\r\n"
    return b"Subject: bench\r\n\r\n" + line * max(1, (size - 18) // len(line))


class Config(config_pb2_grpc.ConfigServiceServicer):
    """Streams the one revision and hears reports."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def Watch(
        self, request: config_pb2.WatchRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[config_pb2.WatchResponse]:
        digest = checksum(self._body)
        yield config_pb2.WatchResponse(revision=1, checksum=digest, body=self._body)
        while True:
            await asyncio.sleep(5)
            yield config_pb2.WatchResponse(revision=1, checksum=digest)

    async def Report(
        self, request: config_pb2.ReportRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> config_pb2.ReportResponse:
        return config_pb2.ReportResponse(head=1)


class Enqueue(enqueue_pb2_grpc.EnqueueServiceServicer):
    """Accepts everything and gives the credit back."""

    async def Enqueue(
        self,
        requests: AsyncIterator[enqueue_pb2.EnqueueRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[enqueue_pb2.EnqueueResponse]:
        yield enqueue_pb2.EnqueueResponse(credit=STREAM_CREDIT)
        async for request in requests:
            answer = enqueue_pb2.EnqueueResponse()
            for frame in request.frames:
                if frame.HasField("commit"):
                    answer.results.add(message_id=frame.message_id, accepted=True)
                    answer.credit += len(frame.commit.body) + len(frame.commit.prefix)
                elif frame.HasField("chunk"):
                    answer.credit += len(frame.chunk.data)
            yield answer


class Leases(lease_pb2_grpc.LeaseServiceServicer):
    """Hands out equal deliveries, as many as were ordered, within the credit."""

    def __init__(self, size: int, digest: str) -> None:
        self._ordered = 0
        self._tokens = itertools.count(1)
        self._wake = asyncio.Event()
        self._content = content(size)
        now = Timestamp()
        now.FromDatetime(datetime.now(UTC).replace(tzinfo=None))
        self._pattern = lease_pb2.Delivery(
            remaining_seconds=115,
            config_revision=1,
            transport=types_pb2.ObjectRef(kind=SINK.kind, namespace=SINK.namespace, name=SINK.name),
            transport_digest=digest,
            site="transport default/sink",
            domain="sink.test",
            envelope=types_pb2.Envelope(
                mail_from="source@source.test",
                gateway=types_pb2.ObjectRef(kind=GATEWAY.kind, namespace=GATEWAY.namespace, name=GATEWAY.name),
                received=now,
                config_revision=1,
            ),
            prefix=PREFIX,
            size=len(PREFIX) + len(self._content),
            attempt=1,
        )
        if len(self._content) <= INLINE_LIMIT:
            self._pattern.body = self._content

    def order(self, count: int) -> None:
        """So many more deliveries."""
        self._ordered += count
        self._wake.set()

    def _next(self) -> lease_pb2.Delivery:
        delivery = lease_pb2.Delivery()
        delivery.CopyFrom(self._pattern)
        delivery.token = next(self._tokens)
        delivery.message_id = uuid.uuid4().bytes
        delivery.recipients.add(id=delivery.token, address="sink@sink.test")
        return delivery

    async def Lease(
        self, requests: AsyncIterator[lease_pb2.LeaseRequest], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[lease_pb2.LeaseResponse]:
        credit = 0
        committed: list[int] = []

        async def hear() -> None:
            nonlocal credit
            async for request in requests:
                credit += request.credit
                committed.extend(result.token for result in request.results if result.done)
                self._wake.set()

        hearing = asyncio.create_task(hear())
        try:
            yield lease_pb2.LeaseResponse()
            while not hearing.done():
                await self._wake.wait()
                self._wake.clear()
                while committed or (credit and self._ordered):
                    count = min(credit, self._ordered, BATCH)
                    credit -= count
                    self._ordered -= count
                    answer = lease_pb2.LeaseResponse(deliveries=[self._next() for _ in range(count)])
                    answer.committed.extend(committed)
                    committed.clear()
                    yield answer
        finally:
            hearing.cancel()

    async def FetchContent(
        self, request: lease_pb2.FetchContentRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[lease_pb2.FetchContentResponse]:
        for start in range(request.offset, len(self._content), CHUNK_SIZE):
            yield lease_pb2.FetchContentResponse(data=self._content[start : start + CHUNK_SIZE])


async def serve(listen_port: int, sink: tuple[str, int], size: int) -> None:
    """Serve until standard input closes."""
    compiled = revision(listen_port, sink)
    server = grpc.aio.server()
    # what the stand-ins do not define answers UNIMPLEMENTED, and nobody asks
    config = Config(encode(compiled))  # type: ignore[abstract]
    config_pb2_grpc.add_ConfigServiceServicer_to_server(config, server)
    enqueue_pb2_grpc.add_EnqueueServiceServicer_to_server(Enqueue(), server)  # type: ignore[abstract]
    leases = Leases(size, compiled.transports[0].digest)
    lease_pb2_grpc.add_LeaseServiceServicer_to_server(leases, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"serving on 127.0.0.1:{port}", flush=True)
    orders = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    async for line in orders:
        leases.order(int(line))
    await server.stop(0)


def main() -> None:
    """The command line: which port the listener has, where the sink is, how large messages are."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen-port", type=int, default=0)
    parser.add_argument("--sink", required=True)
    parser.add_argument("--size", type=int, default=2048)
    chosen = parser.parse_args()
    host, _, port = chosen.sink.rpartition(":")
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(serve(chosen.listen_port, (host, int(port)), chosen.size))


if __name__ == "__main__":
    main()
