"""The whole service between a fake queue, a fake config service and a scripted server: leases, batches, renewals."""

import asyncio
import base64
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import grpc
import psutil
import pytest

from mailrail.core.ids import pack_token
from mailrail.core.revision.revision import ObjectRef, Revision, TlsMode, Transport, TransportKind, checksum, encode
from mailrail.core.smtp.answer import Trouble
from mailrail.kit import clock, rpc
from mailrail.pb.config.v1 import config_pb2, config_pb2_grpc
from mailrail.pb.queue.v1 import lease_pb2, lease_pb2_grpc, types_pb2
from mailrail.sink import Options, Sink
from mailrail_outbound import clients
from mailrail_outbound.__main__ import start
from mailrail_outbound.ports import Delivery, DeliveryReport, Result
from mailrail_outbound.settings import OutboundSettings

from testkit.conditions import eventually
from testkit.dns import DnsServer
from testkit.outbound import MESSAGE, SETTINGS, OutboundBench, StreamedBody, transport
from testkit.smtp_peer import Action, Hang, Held, Slow, SmtpPeer


class FakeConfig(config_pb2_grpc.ConfigServiceServicer):
    """Streams one revision, and others when told."""

    def __init__(self) -> None:
        self.number = 0
        self.body = b""
        self.reported = config_pb2.ReportRequest()
        """What the service said of itself last."""
        self.changed = asyncio.Condition()

    async def publish(self, revision: Revision) -> int:
        self.number += 1
        self.body = encode(revision)
        async with self.changed:
            self.changed.notify_all()
        return self.number

    async def Watch(self, request: config_pb2.WatchRequest, context: Any) -> AsyncIterator[config_pb2.WatchResponse]:
        seen = 0
        while True:
            async with self.changed:
                while self.number <= seen:
                    await self.changed.wait()
                seen = self.number
                message = config_pb2.WatchResponse(revision=seen, checksum=checksum(self.body), body=self.body)
            yield message

    async def Report(self, request: config_pb2.ReportRequest, context: Any) -> config_pb2.ReportResponse:
        self.reported = request
        return config_pb2.ReportResponse(head=self.number)


class FakeQueue(lease_pb2_grpc.LeaseServiceServicer):
    """Hands out what the test gives it and keeps what comes back."""

    def __init__(self) -> None:
        self.hellos: list[lease_pb2.Hello] = []
        self.results: dict[int, lease_pb2.DeliveryResult] = {}
        self.alive: list[int] = []
        self.clocks: list[float] = []
        self.credit = 0
        self.credit_octets = 0
        self.counts_octets = True
        self.went_away = False
        self.resolved: dict[int, list[str]] = {}
        self.batches: list[int] = []
        self.commit = True
        self.fetched: list[int] = []
        self.fetching = 0
        self.stalls = False
        self.breaks_after: int | None = None  # pieces of content
        self.bodies: dict[bytes, bytes] = {}
        self.outgoing: asyncio.Queue[lease_pb2.LeaseResponse | None] = asyncio.Queue()

    async def Lease(self, requests: AsyncIterator[lease_pb2.LeaseRequest], context: Any) -> AsyncIterator[Any]:
        async def read() -> None:
            async for request in requests:
                if request.HasField("hello"):
                    self.hellos.append(request.hello)
                self.clocks.append(request.clock)
                self.credit += request.credit
                self.credit_octets += request.credit_octets
                self.alive += request.alive
                self.resolved |= {each.token: list(each.mx_hosts) for each in request.resolved}
                self.went_away |= request.go_away
                if request.results:
                    self.batches.append(len(request.results))
                for result in request.results:
                    self.results[result.token] = result
                if request.results and self.commit:
                    self.outgoing.put_nowait(lease_pb2.LeaseResponse(committed=[r.token for r in request.results]))

        reader = asyncio.create_task(read())
        try:
            yield lease_pb2.LeaseResponse(counts_octets=self.counts_octets)
            while (response := await self.outgoing.get()) is not None:
                yield response
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def FetchContent(self, request: lease_pb2.FetchContentRequest, context: Any) -> AsyncIterator[Any]:
        self.fetched.append(request.token)
        body = self.bodies.get(request.message_id)
        if body is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such content")
            return
        self.fetching += 1
        try:
            if self.stalls:
                await asyncio.Event().wait()
            for start_at in range(request.offset, len(body), 262144):
                if self.breaks_after is not None and start_at >= self.breaks_after * 262144:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "stopping")
                yield lease_pb2.FetchContentResponse(data=body[start_at : start_at + 262144])
        finally:
            self.fetching -= 1

    def hand_out(self, *deliveries: lease_pb2.Delivery) -> None:
        self.outgoing.put_nowait(lease_pb2.LeaseResponse(deliveries=deliveries))


class World:
    """A running outbound service with its neighbours."""

    def __init__(self, queue: FakeQueue, config: FakeConfig) -> None:
        self.queue = queue
        self.config = config
        self.stop = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self.queue_server: grpc.aio.Server | None = None
        self.queue_port = 0
        self.tokens = iter(range(1, 10**6))

    def delivery(self, via: Transport | None, **fields: Any) -> lease_pb2.Delivery:
        made: dict[str, Any] = {
            "token": next(self.tokens),
            "message_id": secrets.token_bytes(16),
            "remaining_seconds": 120.0,
            "config_revision": self.config.number,
            "domain": "example.org",
            "envelope": types_pb2.Envelope(mail_from="a@sender.example"),
            "recipients": [lease_pb2.DeliveryRecipient(id=7, address="b@example.org")],
            "body": MESSAGE,
            "size": len(MESSAGE),
            "attempt": 1,
        }
        if via is not None:
            made["transport"] = types_pb2.ObjectRef(kind=via.ref.kind, namespace=via.ref.namespace, name=via.ref.name)
            made["transport_digest"] = via.digest
        made.update(fields)
        return lease_pb2.Delivery(**{name: value for name, value in made.items() if value is not None})

    async def result(self, token: int) -> lease_pb2.RecipientResult:
        await eventually(lambda: token in self.queue.results, within=60)
        return self.queue.results[token].recipients[0]


@contextlib.asynccontextmanager
async def world(
    tmp_path: Path,
    *transports: Transport,
    more_queues: Sequence[int] = (),
    counts_octets: bool = True,
    **settings: object,
) -> AsyncIterator[World]:
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "k1").write_bytes(base64.b64encode(b"k" * 32))
    config, queue = FakeConfig(), FakeQueue()  # type: ignore[abstract]
    queue.counts_octets = counts_octets
    await config.publish(Revision(transports=transports))
    here = World(queue, config)
    config_server, queue_server = grpc.aio.server(), grpc.aio.server()
    config_pb2_grpc.add_ConfigServiceServicer_to_server(config, config_server)
    lease_pb2_grpc.add_LeaseServiceServicer_to_server(queue, queue_server)
    config_port = config_server.add_insecure_port("127.0.0.1:0")
    here.queue_port = queue_server.add_insecure_port("127.0.0.1:0")
    here.queue_server = queue_server
    await config_server.start()
    await queue_server.start()
    made: OutboundSettings = replace(
        SETTINGS,
        sealing_keys_dir=keys,
        config_target=f"127.0.0.1:{config_port}",
        queue_target=",".join(f"127.0.0.1:{port}" for port in (here.queue_port, *more_queues)),
        **settings,  # type: ignore[arg-type]
    )
    here.task = asyncio.create_task(start(made, here.stop))
    try:
        await eventually(lambda: len(queue.hellos) > 0, within=60)
        yield here
    finally:
        here.stop.set()
        await asyncio.wait_for(here.task, 60)
        await config_server.stop(0)
        if here.queue_server is not None:
            await here.queue_server.stop(0)


async def test_a_leased_message_is_delivered_and_its_result_committed(tmp_path: Path) -> None:
    async with Sink() as peer:
        via = transport(TransportKind.SMTP, host=peer.host, port=peer.port, tls=TlsMode.NONE)
        async with world(tmp_path, via) as here:
            await eventually(lambda: here.queue.credit == SETTINGS.capacity)
            assert here.queue.credit_octets == SETTINGS.held_octets
            delivery = here.delivery(via, prefix=b"Received: here\r\n")
            here.queue.hand_out(delivery)
            result = await here.result(delivery.token)
            assert result.id == 7
            assert result.attempt.outcome == types_pb2.OUTCOME_DELIVERED
            assert result.attempt.reply.code == 250
            assert result.attempt.reply.remote
            assert list(result.attempt.reply.lines) == ["taken"]
            assert result.attempt.remote_ip == peer.host
            assert result.attempt.outbound == "outbound-1"
            assert result.dsn_passed_on
            assert here.queue.results[delivery.token].done
            assert peer.messages[0].content == b"Received: here\r\n" + MESSAGE
            await eventually(lambda: here.queue.credit == SETTINGS.capacity + 1)
            assert here.queue.credit_octets == SETTINGS.held_octets + len(b"Received: here\r\n" + MESSAGE)


async def test_a_queue_that_counts_no_octets_is_given_credit_for_what_fits_at_64_KiB_each(tmp_path: Path) -> None:
    async with Sink() as peer:
        via = transport(TransportKind.SMTP, host=peer.host, port=peer.port, tls=TlsMode.NONE)
        async with world(tmp_path, via, counts_octets=False, held_octets=10 * 65536) as here:
            delivery = here.delivery(via)
            here.queue.hand_out(delivery)
            await here.result(delivery.token)
            await eventually(lambda: here.queue.credit == 11)


async def test_many_stalled_sites_with_large_content_hold_no_more_memory_than_there_are_octets_for(
    tmp_path: Path,
) -> None:
    """A queue that keeps to its credit has 300 messages of 1 MiB for 100 servers, none of which reads or answers."""
    mib = 1024 * 1024
    async with contextlib.AsyncExitStack() as stack:
        late = Held("451 4.3.0 not now")
        answers: list[Action] = [*[late] * 10, *[Hang("354 go")] * 90]
        peers = [await stack.enter_async_context(SmtpPeer(replies={"DATA": each})) for each in answers]
        hops = [
            transport(TransportKind.SMTP, f"hop{i}", host=peer.host, port=peer.port, tls=TlsMode.NONE)
            for i, peer in enumerate(peers)
        ]
        here = await stack.enter_async_context(world(tmp_path, *hops, held_octets=64 * mib, end_timeout=600.0))
        queue = here.queue
        await eventually(lambda: queue.credit == SETTINGS.capacity)
        before = psutil.Process().memory_info().rss
        given = 0
        body = b"Subject: x\r\n\r\n" + b"x" * (mib - 14)
        while queue.credit_octets >= mib and given < 300:
            queue.credit_octets -= mib
            queue.hand_out(here.delivery(hops[given % len(hops)], body=body, size=mib))
            given += 1
        assert given == 64
        await eventually(lambda: sum("DATA" in peer.commands for peer in peers) == 64, within=60)
        # What is held, once more in the buffers of the sockets, and what gRPC and the allocator keep.
        assert psutil.Process().memory_info().rss - before < 4 * 64 * mib
        late.release.set()
        await eventually(lambda: len(queue.results) == 10, within=60)
        await eventually(lambda: queue.credit_octets == 10 * mib)


async def test_MX_hosts_are_told_before_any_of_them_answers_SHD_03(tmp_path: Path, database: str) -> None:
    tarpit = Held("220 at last")
    async with SmtpPeer(replies={"GREETING": tarpit}) as peer:
        with DnsServer() as dns:
            dns.add("example.org", "MX", "20 second.test.", "10 first.test.")
            dns.add("first.test", "A", peer.host)
            async with world(tmp_path, resolver=dns.endpoint, direct_port=peer.port, database_url=database) as here:
                delivery = here.delivery(None)
                here.queue.hand_out(delivery)
                await eventually(lambda: here.queue.resolved)
                assert here.queue.resolved == {delivery.token: ["first.test", "second.test"]}
                assert not here.queue.results
                here.queue.resolved.clear()
                here.queue.outgoing.put_nowait(None)  # the stream ends: the next one tells them again
                await eventually(lambda: here.queue.resolved)
                assert here.queue.resolved == {delivery.token: ["first.test", "second.test"]}
                tarpit.release.set()
                result = await here.result(delivery.token)
                assert result.attempt.outcome == types_pb2.OUTCOME_DELIVERED


async def test_content_above_the_inline_limit_is_fetched_while_it_is_sent_LSE_06(tmp_path: Path) -> None:
    body = b"Subject: large\r\n\r\n" + b"".join(b".line %d\r\n" % i for i in range(60_000))
    async with Sink() as peer:
        via = transport(TransportKind.SMTP, host=peer.host, port=peer.port, tls=TlsMode.NONE)
        async with world(tmp_path, via) as here:
            delivery = here.delivery(via, body=None, size=len(body) + 13, prefix=b"Received: x\r\n")
            here.queue.bodies[delivery.message_id] = body
            here.queue.hand_out(delivery)
            result = await here.result(delivery.token)
            assert result.attempt.outcome == types_pb2.OUTCOME_DELIVERED
            assert peer.messages[0].content == b"Received: x\r\n" + body


async def test_content_that_is_gone_ends_the_attempt_without_a_final_dot(tmp_path: Path) -> None:
    async with Sink() as peer:
        via = transport(TransportKind.SMTP, host=peer.host, port=peer.port, tls=TlsMode.NONE)
        async with world(tmp_path, via) as here:
            delivery = here.delivery(via, body=None, size=100_000)
            here.queue.hand_out(delivery)
            result = await here.result(delivery.token)
            assert result.attempt.outcome == types_pb2.OUTCOME_DEFERRED
            assert peer.messages == []


async def test_another_replica_goes_on_with_content_where_the_first_broke_off_LSE_06(tmp_path: Path) -> None:
    body = bytes(range(32, 126)) * 10_000 + b"\r\n"
    async with Sink(Options(line_limit=2**20)) as peer, contextlib.AsyncExitStack() as stack:
        via = transport(TransportKind.SMTP, host=peer.host, port=peer.port, tls=TlsMode.NONE)
        other = FakeQueue()
        server = grpc.aio.server()
        lease_pb2_grpc.add_LeaseServiceServicer_to_server(other, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        stack.push_async_callback(server.stop, 0)
        async with world(tmp_path, via, more_queues=[port]) as here:
            await eventually(lambda: len(other.hellos) > 0, within=60)
            delivery = here.delivery(via, body=None, size=len(body))
            here.queue.bodies[delivery.message_id] = other.bodies[delivery.message_id] = body
            here.queue.breaks_after = 1
            here.queue.hand_out(delivery)
            result = await here.result(delivery.token)
            assert result.attempt.outcome == types_pb2.OUTCOME_DELIVERED
            assert len(here.queue.fetched) == len(other.fetched) == 1
            assert peer.messages[0].content == body


async def test_content_is_let_go_of_by_whoever_has_read_enough_LSE_06(tmp_path: Path) -> None:
    body = b"Subject: large\r\n\r\n" + b"\xc3\xa9\r\n" * 2_000_000
    async with Sink() as peer:
        via = transport(TransportKind.SMTP, host=peer.host, port=peer.port, tls=TlsMode.NONE)
        async with world(tmp_path, via) as here:
            envelope = types_pb2.Envelope(mail_from="a@sender.example", smtputf8=True, eight_bit=True)
            delivery = here.delivery(via, body=None, size=len(body), envelope=envelope)
            here.queue.bodies[delivery.message_id] = body
            here.queue.hand_out(delivery)
            result = await here.result(delivery.token)
            assert result.attempt.outcome == types_pb2.OUTCOME_DELIVERED
            assert len(here.queue.fetched) == 2  # for a look at the header, and to be sent
            await eventually(lambda: here.queue.fetching == 0)


async def test_content_that_nobody_can_give_is_returned_unattempted_LSE_04() -> None:
    async with Sink() as peer:
        via = transport(TransportKind.SMTP, host=peer.host, port=peer.port, tls=TlsMode.NONE)
        async with OutboundBench.running(via) as bench:
            body = StreamedBody(MESSAGE)
            body.within_reach = False
            report = await bench.deliver(bench.delivery(via, content=body, size=len(MESSAGE)))
            assert [each.result for each in report.recipients] == [Result.NOT_ATTEMPTED]
            assert peer.connections == 0


@asynccontextmanager
async def no_room(wait: float) -> AsyncIterator[tuple[OutboundBench, Callable[[], Delivery], Callable[[], Delivery]]]:
    """A process all of whose room for large content is taken, and makers of a large and of a small delivery.

    In the end the room is given back, and whoever stood in line has kept none of it.
    """
    async with SmtpPeer(replies={"END": [Hang(), "250 2.0.0 taken"]}) as peer:
        via = transport(TransportKind.SMTP, host=peer.host, port=peer.port, tls=TlsMode.NONE)
        settings: dict[str, Any] = {"streamed_content": 600_000, "streamed_content_wait": wait}
        async with OutboundBench.running(via, **settings) as bench:

            def large() -> Delivery:
                return bench.delivery(via, content=StreamedBody(MESSAGE), size=len(MESSAGE))

            begun = bench.begin(large())
            await eventually(lambda: "DATA" in peer.commands, within=60)
            yield bench, large, lambda: bench.delivery(via)
            for connection in bench.pool.connections:
                connection.abort(Trouble.CLOSED, "by the test")
            await begun
            assert (await bench.deliver(large())).recipients[0].result is Result.DELIVERED


async def test_large_content_waits_for_room_and_is_returned_unattempted_when_none_comes_LSE_04() -> None:
    async with no_room(wait=0.2) as (bench, large, small):
        report = await bench.deliver(large())
        assert [each.result for each in report.recipients] == [Result.NOT_ATTEMPTED]
        assert (await bench.deliver(small())).recipients[0].result is Result.DELIVERED


async def test_large_content_that_waits_for_room_is_broken_off_at_once_ADM_02() -> None:
    async with no_room(wait=600.0) as (bench, large, _):
        waits = large()
        waiting = bench.begin(waits)
        bench.app.cancel(waits.lease.token)
        report = await asyncio.wait_for(waiting, 60)
        assert [each.result for each in report.recipients] == [Result.CANCELLED]


async def test_a_delivery_waits_for_its_revision_and_then_goes_LSE_07(tmp_path: Path) -> None:
    async with Sink() as peer:
        via = transport(TransportKind.SMTP, host=peer.host, port=peer.port, tls=TlsMode.NONE)
        async with world(tmp_path, revision_wait=10.0) as here:
            delivery = here.delivery(via, config_revision=2)
            here.queue.hand_out(delivery)
            await here.config.publish(Revision(transports=(via,)))
            result = await here.result(delivery.token)
            assert result.attempt.outcome == types_pb2.OUTCOME_DELIVERED


async def test_a_revision_that_does_not_come_returns_the_delivery_unattempted_LSE_07(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        delivery = here.delivery(None, config_revision=99)
        here.queue.hand_out(delivery)
        result = await here.result(delivery.token)
        assert result.attempt.outcome == types_pb2.OUTCOME_NOT_ATTEMPTED
        assert not result.attempt.dialled


@pytest.mark.parametrize("digest", ["different", ""])
async def test_a_transport_that_changed_or_is_missing_returns_the_delivery_LSE_07(tmp_path: Path, digest: str) -> None:
    via = transport(TransportKind.SMTP, host="127.0.0.1", port=9, tls=TlsMode.NONE)
    async with world(tmp_path, *([via] if digest else [])) as here:
        delivery = here.delivery(via, transport_digest=digest)
        here.queue.hand_out(delivery)
        result = await here.result(delivery.token)
        assert result.attempt.outcome == types_pb2.OUTCOME_NOT_ATTEMPTED


async def test_what_runs_is_said_to_be_alive_and_a_cancel_breaks_it_off_LSE_01_ADM_02(tmp_path: Path) -> None:
    async with SmtpPeer(replies={"DATA": Hang()}) as peer:
        via = transport(TransportKind.SMTP, host=peer.host, port=peer.port, tls=TlsMode.NONE)
        async with world(tmp_path, via, alive_seconds=0.1, data_timeout=60.0) as here:
            delivery = here.delivery(via)
            here.queue.hand_out(delivery)
            await eventually(lambda: delivery.token in here.queue.alive)
            here.queue.outgoing.put_nowait(lease_pb2.LeaseResponse(cancel=[delivery.token]))
            result = await here.result(delivery.token)
            assert result.attempt.outcome == types_pb2.OUTCOME_CANCELLED


@pytest.mark.parametrize("octets", [1000, 300_000])
@pytest.mark.parametrize("extensions", [["PIPELINING"], ["PIPELINING", "CHUNKING"]])
async def test_a_cancel_after_the_final_dot_changes_nothing_ADM_02(
    tmp_path: Path, extensions: list[str], octets: int
) -> None:
    message = MESSAGE + b"line\r\n" * (octets // 6)
    reply = Held("250 2.0.0 taken")
    async with SmtpPeer(extensions=extensions, replies={"END": [reply, reply.reply]}) as peer:
        via = transport(TransportKind.SMTP, host=peer.host, port=peer.port, tls=TlsMode.NONE)
        async with world(tmp_path, via) as here:
            held = here.delivery(via, body=None if octets > 65536 else message, size=len(message))
            here.queue.bodies[held.message_id] = message
            here.queue.hand_out(held)
            await peer.until(lambda p: len(p.messages) == 1)
            # Outbound hears the two in this order, so the end of the second says that the cancel was heard.
            here.queue.outgoing.put_nowait(lease_pb2.LeaseResponse(cancel=[held.token]))
            after = here.delivery(via)
            here.queue.hand_out(after)
            assert (await here.result(after.token)).attempt.outcome == types_pb2.OUTCOME_RELAYED
            assert held.token not in here.queue.results
            assert not peer.sessions[0].closed
            reply.release.set()
            result = await here.result(held.token)
            assert result.attempt.outcome == types_pb2.OUTCOME_RELAYED
            assert result.attempt.reply.code == 250
            assert len(peer.messages) == 2


async def test_deliveries_of_another_history_are_broken_off_before_the_final_dot_HIS_03(tmp_path: Path) -> None:
    async with SmtpPeer(replies={"DATA": Hang()}) as peer:
        via = transport(TransportKind.SMTP, host=peer.host, port=peer.port, tls=TlsMode.NONE)
        async with world(tmp_path, via, alive_seconds=0.1, data_timeout=60.0) as here:
            here.queue.outgoing.put_nowait(lease_pb2.LeaseResponse(history=7))
            old = here.delivery(via, token=pack_token(7, 1))
            here.queue.hand_out(old)
            await eventually(lambda: old.token in here.queue.alive)
            here.queue.outgoing.put_nowait(lease_pb2.LeaseResponse(history=7))  # the same: it goes on
            new = here.delivery(via, token=pack_token(9, 1))
            here.queue.outgoing.put_nowait(lease_pb2.LeaseResponse(history=9, deliveries=[new]))
            result = await here.result(old.token)
            assert result.attempt.outcome == types_pb2.OUTCOME_CANCELLED
            assert here.queue.results[old.token].message_id == old.message_id
            here.queue.alive.clear()
            await eventually(lambda: new.token in here.queue.alive)
            assert new.token not in here.queue.results
            assert peer.messages == []


async def test_two_deliveries_with_one_token_are_neither_dropped_nor_mixed_up_HIS_03(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with SmtpPeer(replies={"DATA": Hang()}) as peer:
        via = transport(TransportKind.SMTP, host=peer.host, port=peer.port, tls=TlsMode.NONE)
        async with world(tmp_path, via, alive_seconds=0.1, data_timeout=60.0) as here:
            first = here.delivery(via)
            here.queue.hand_out(first)
            await eventually(lambda: first.token in here.queue.alive)
            here.queue.hand_out(first)  # the very same: it goes on
            second = here.delivery(via, token=first.token, recipients=[lease_pb2.DeliveryRecipient(id=8)])
            here.queue.hand_out(second)
            result = await here.result(first.token)
            assert (result.id, result.attempt.outcome) == (8, types_pb2.OUTCOME_NOT_ATTEMPTED)
            assert here.queue.results[first.token].message_id == second.message_id
            here.queue.alive.clear()
            await eventually(lambda: first.token in here.queue.alive, what="the first goes on")
            assert "two deliveries have the same token" in capsys.readouterr().out


async def test_a_delivery_that_cannot_be_understood_costs_neither_its_stream_nor_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = clients._Link.delivery_from_wire

    def crashing(link: Any, wire: Any, now: float) -> Any:
        if b"poison" in wire.body:
            raise RuntimeError("a mistake of ours")
        return read(link, wire, now)

    monkeypatch.setattr(clients._Link, "delivery_from_wire", crashing)
    async with Sink() as peer:
        via = transport(TransportKind.SMTP, host=peer.host, port=peer.port, tls=TlsMode.NONE)
        async with world(tmp_path, via) as here:
            await eventually(lambda: here.queue.credit == SETTINGS.capacity)  # it comes in two requests
            deliveries = [here.delivery(via, body=body) for body in (MESSAGE, MESSAGE + b"poison\r\n", MESSAGE)]
            here.queue.hand_out(*deliveries)
            outcomes = [(await here.result(each.token)).attempt.outcome for each in deliveries]
            taken, later = types_pb2.OUTCOME_DELIVERED, types_pb2.OUTCOME_DEFERRED
            assert outcomes == [taken, later, taken]
            assert len(here.queue.hellos) == 1
            await eventually(lambda: here.queue.credit == SETTINGS.capacity + 3)


async def test_a_requirement_of_a_later_release_is_deferred_and_never_weakened(tmp_path: Path) -> None:
    async with Sink() as peer:
        via = transport(TransportKind.SMTP, host=peer.host, port=peer.port, tls=TlsMode.NONE)
        async with world(tmp_path, via) as here:
            envelope = types_pb2.Envelope(mail_from="a@b.example").SerializeToString()
            later = types_pb2.Envelope.FromString(envelope + bytes([7 << 3, 99]))
            assert later.tls_requirement == 99
            delivery = here.delivery(via, envelope=later)
            here.queue.hand_out(delivery)
            assert (await here.result(delivery.token)).attempt.outcome == types_pb2.OUTCOME_DEFERRED
            assert not peer.messages


async def test_an_outcome_is_told_though_the_words_with_it_cannot_be_LSE_08(tmp_path: Path) -> None:
    async with Sink() as peer:
        via = transport(TransportKind.SMTP, host=peer.host, port=peer.port, tls=TlsMode.NONE)
        # A host name that no message of ours can hold: as a mistake of ours, or of a library, would make one.
        async with world(tmp_path, via) as here:
            monkey = clients._fill_connection
            clients._fill_connection = lambda seen, attempt: monkey(replace(seen, host="\ud800"), attempt)
            try:
                delivery = here.delivery(via)
                here.queue.hand_out(delivery)
                result = await here.result(delivery.token)
            finally:
                clients._fill_connection = monkey
            assert result.attempt.outcome == types_pb2.OUTCOME_DELIVERED
            assert (result.attempt.status, result.attempt.reply.remote) == ("2.0.0", False)  # nobody said our words
            assert here.queue.results[delivery.token].done
            assert len(here.queue.hellos) == 1


async def test_replicas_that_cannot_be_looked_for_are_looked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoints, tries = rpc.endpoints, []

    async def crashing(target: str) -> list[str]:
        tries.append(target)
        if len(tries) == 1:
            raise UnicodeError("a label that is too long")
        return await endpoints(target)

    monkeypatch.setattr(rpc, "endpoints", crashing)
    async with Sink() as peer:
        via = transport(TransportKind.SMTP, host=peer.host, port=peer.port, tls=TlsMode.NONE)
        async with world(tmp_path, via) as here:
            delivery = here.delivery(via)
            here.queue.hand_out(delivery)
            assert (await here.result(delivery.token)).attempt.outcome == types_pb2.OUTCOME_DELIVERED
            assert len(tries) > 1


async def test_a_replica_that_is_gone_is_kept_in_mind_only_for_its_results(monkeypatch: pytest.MonkeyPatch) -> None:
    class Nobody:
        running: ClassVar[dict[int, tuple[int, ...]]] = {}
        under_way = 0

    found = ["127.0.0.1:1"]

    async def endpoints(target: str) -> list[str]:
        return found

    monkeypatch.setattr(rpc, "endpoints", endpoints)
    client = clients.LeaseClient(SETTINGS, lambda: 0)
    await client._look_for_replicas(Nobody())  # type: ignore[arg-type]
    (link,) = client._links.values()
    link.add_result(DeliveryReport(1, b"", 0, 0, [], {}, ()))
    found.clear()
    await client._look_for_replicas(Nobody())  # type: ignore[arg-type]
    assert client._links != {}  # its result is still to be written
    link.give_up()
    await client._look_for_replicas(Nobody())  # type: ignore[arg-type]
    assert client._links == {}


async def test_content_that_the_queue_does_not_go_on_with_is_not_waited_for_for_ever_LSE_06(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "_PIECE_WITHIN", 0.3)
    monkeypatch.setattr(clients, "_FETCH_WITHIN", 0.3)
    async with Sink() as peer:
        via = transport(TransportKind.SMTP, host=peer.host, port=peer.port, tls=TlsMode.NONE)
        async with world(tmp_path, via) as here:
            body = b"Subject: x\r\n\r\n" + "ü".encode() * 300_000
            envelope = types_pb2.Envelope(mail_from="a@sender.example", smtputf8=True, eight_bit=True)
            delivery = here.delivery(via, body=None, size=len(body), envelope=envelope)
            here.queue.bodies[delivery.message_id] = body
            here.queue.stalls = True
            here.queue.hand_out(delivery)
            result = await here.result(delivery.token)
            assert result.attempt.outcome == types_pb2.OUTCOME_NOT_ATTEMPTED
            assert "sent nothing" in " ".join(result.attempt.reply.lines)
            await eventually(lambda: here.queue.fetching == 0)


async def test_a_delivery_that_was_read_late_has_no_more_of_its_lease_than_is_left_LSE_02(tmp_path: Path) -> None:
    async with Sink() as peer:
        via = transport(TransportKind.SMTP, host=peer.host, port=peer.port, tls=TlsMode.NONE)
        async with world(tmp_path, via) as here:
            await eventually(lambda: here.queue.clocks != [])
            late, fresh = here.delivery(via), here.delivery(via)
            # As by a process that was frozen for 100 s with the delivery unread: 20 s of 120 are left.
            read_before = here.queue.clocks[-1] - 100
            here.queue.outgoing.put_nowait(lease_pb2.LeaseResponse(deliveries=[late], clock=read_before))
            result = await here.result(late.token)
            assert result.attempt.outcome == types_pb2.OUTCOME_NOT_ATTEMPTED
            assert peer.connections == 0
            here.queue.outgoing.put_nowait(lease_pb2.LeaseResponse(deliveries=[fresh], clock=here.queue.clocks[-1]))
            assert (await here.result(fresh.token)).attempt.outcome == types_pb2.OUTCOME_DELIVERED


async def test_a_renewal_that_was_read_late_renews_for_what_is_left_LSE_01(tmp_path: Path) -> None:
    async with SmtpPeer(replies={"DATA": Slow("354 go", 1.0)}) as peer:
        via = transport(TransportKind.SMTP, host=peer.host, port=peer.port, tls=TlsMode.NONE)
        async with world(tmp_path, via) as here:
            await eventually(lambda: here.queue.clocks != [])
            delivery = here.delivery(via, remaining_seconds=30.5)
            here.queue.hand_out(delivery)
            await eventually(lambda: "DATA" in peer.commands)
            renewal = lease_pb2.Renewal(token=delivery.token, remaining_seconds=120)
            late = lease_pb2.LeaseResponse(renewals=[renewal], clock=here.queue.clocks[-1] - 100)
            here.queue.outgoing.put_nowait(late)
            result = await here.result(delivery.token)
            assert "too little of the lease" in " ".join(result.attempt.reply.lines)
            assert peer.messages == []


async def test_the_queue_is_told_our_clock_with_each_request_and_every_few_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mailrail_outbound.clients._CLOCK_TOLD", 0.05)
    async with world(tmp_path) as here:
        await eventually(lambda: len(here.queue.clocks) >= 4)
        assert all(told > 0 for told in here.queue.clocks)
        assert here.queue.clocks == sorted(here.queue.clocks)


async def test_time_in_which_the_machine_was_suspended_counts_against_a_lease_LSE_02(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with SmtpPeer(replies={"DATA": Slow("354 go", 0.5)}) as peer:
        via = transport(TransportKind.SMTP, host=peer.host, port=peer.port, tls=TlsMode.NONE)
        async with world(tmp_path, via) as here:
            delivery = here.delivery(via)
            here.queue.hand_out(delivery)
            await eventually(lambda: "DATA" in peer.commands)
            now = clock.now
            monkeypatch.setattr(clock, "now", lambda: now() + 3600)  # and the loop's clock stood still
            result = await here.result(delivery.token)
            assert "too little of the lease" in " ".join(result.attempt.reply.lines)
            assert peer.messages == []


async def test_a_broken_stream_is_opened_again_and_unacknowledged_results_go_out_again_LSE_02(tmp_path: Path) -> None:
    async with SmtpPeer(replies={"END": ["250 first", Hang()]}) as peer:
        via = transport(TransportKind.SMTP, host=peer.host, port=peer.port, tls=TlsMode.NONE)
        async with world(tmp_path, via) as here:
            here.queue.commit = False
            done, running = here.delivery(via), here.delivery(via)
            here.queue.hand_out(done)
            await here.result(done.token)
            here.queue.hand_out(running)
            await eventually(lambda: len(peer.sessions[0].accepted) > 0 or len(peer.commands) > 5)
            here.queue.results.clear()
            here.queue.commit = True
            here.queue.outgoing.put_nowait(None)  # the queue ends the stream
            await eventually(lambda: len(here.queue.hellos) == 2, within=60)
            # What is done is listed as well, or the queue would take it for lost before its result comes (LSE-02).
            assert [w.token for w in here.queue.hellos[1].in_progress] == [running.token, done.token]
            assert list(here.queue.hellos[1].in_progress[1].recipient_ids) == [7]
            await here.result(done.token)


async def test_many_results_share_a_message(tmp_path: Path) -> None:
    async with Sink() as peer:
        via = transport(TransportKind.SMTP, host=peer.host, port=peer.port, tls=TlsMode.NONE)
        async with world(tmp_path, via) as here:
            deliveries = [here.delivery(via) for _ in range(200)]
            here.queue.hand_out(*deliveries)
            await eventually(lambda: len(here.queue.results) == 200, within=60)
            assert len(peer.messages) == 200
            assert len(here.queue.batches) < 150


async def test_a_stop_takes_no_more_work_and_finishes_what_runs(tmp_path: Path) -> None:
    async with Sink() as peer:
        via = transport(TransportKind.SMTP, host=peer.host, port=peer.port, tls=TlsMode.NONE)
        async with world(tmp_path, via) as here:
            here.queue.hand_out(*[here.delivery(via) for _ in range(50)])
            await eventually(lambda: peer.connections > 0)
            here.stop.set()
            assert here.task is not None
            await asyncio.wait_for(asyncio.shield(here.task), 60)
            assert here.queue.went_away
            assert len(here.queue.results) == len(peer.messages) == 50


async def test_what_a_transport_said_of_a_recipient_is_forgotten_when_the_transport_changes() -> None:
    from mailrail.pb.outbound.v1 import outbound_pb2
    from mailrail_outbound.rpc import OutboundServicer

    from testkit.outbound import OutboundBench

    ask = outbound_pb2.VerifyRecipientRequest(address="b@example.org", transport="default/smtp")
    verdicts = outbound_pb2.VerifyRecipientResponse
    async with Sink() as takes, Sink() as refuses:
        refuses.answers.give("RCPT", "550 5.1.1 no")
        before, after = (
            transport(TransportKind.SMTP, host=peer.host, port=peer.port, tls=TlsMode.NONE) for peer in (takes, refuses)
        )
        async with OutboundBench.running(before) as bench:
            unused: Any = None
            context: Any = None
            servicer = OutboundServicer(bench.app, bench.pool, unused)
            assert (await servicer.VerifyRecipient(ask, context)).verdict == verdicts.VERDICT_ACCEPTED
            bench.configure(2, [after])
            assert (await servicer.VerifyRecipient(ask, context)).verdict == verdicts.VERDICT_REFUSED


async def test_verification_and_the_list_of_connections_are_answered(tmp_path: Path) -> None:
    from mailrail.pb.outbound.v1 import outbound_pb2, outbound_pb2_grpc

    from testkit.ports import free_port

    replies = {"RCPT": lambda session, line: "550 5.1.1 no" if "nobody" in line else None}
    async with SmtpPeer(replies=replies) as peer:
        via = transport(TransportKind.LMTP, "store", host=peer.host, port=peer.port, tls=TlsMode.NONE)
        port = free_port("127.0.0.1")
        async with (
            world(tmp_path, via, grpc_listen=f"127.0.0.1:{port}"),
            grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
        ):
            stub = outbound_pb2_grpc.OutboundServiceStub(channel)
            verdicts = outbound_pb2.VerifyRecipientResponse
            ask = outbound_pb2.VerifyRecipientRequest
            good = await stub.VerifyRecipient(ask(address="somebody@example.org", transport="default/store"))
            bad = await stub.VerifyRecipient(ask(address="nobody@example.org", transport="default/store"))
            lost = await stub.VerifyRecipient(ask(address="x@example.org", transport="default/missing"))
            assert good.verdict == verdicts.VERDICT_ACCEPTED
            assert (bad.verdict, bad.code, bad.enhanced) == (verdicts.VERDICT_REFUSED, 550, "5.1.1")
            assert lost.verdict == verdicts.VERDICT_UNREACHABLE
            before = len(peer.commands)
            await stub.VerifyRecipient(ask(address="nobody@example.org", transport="default/store"))
            assert len(peer.commands) == before
            listed = await stub.ListConnections(outbound_pb2.ListConnectionsRequest())
            assert [(c.transport, c.host, c.busy) for c in listed.connections] == [("default/store", peer.host, False)]
            assert ObjectRef("MailTransport", "default", "store") == via.ref
