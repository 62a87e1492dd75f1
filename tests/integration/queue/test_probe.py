"""A mail probe in the queue: it ends there, counts as no mail, and nothing of it stays (decision 20)."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import grpc
from prometheus_client.registry import REGISTRY

from mailrail.core.probe import probe_address
from mailrail.core.revision.sealing import Keyring
from mailrail.kit import postgres
from mailrail.pb.queue.v1 import probe_pb2, probe_pb2_grpc, types_pb2
from mailrail_queue.rpc.answering import Rows
from mailrail_queue.rpc.probe import ProbeServicer

from testkit.conditions import eventually
from testkit.queue import RunningQueue, running_queue

KEYS = Keyring({"k1": bytes(32)})


@asynccontextmanager
async def service(url: str) -> AsyncIterator["probe_pb2_grpc.ProbeServiceAsyncStub"]:
    """What the operator asks."""
    server = grpc.aio.server()
    async with postgres.pool(postgres.Login.of(url), "queue", size=1) as pool:
        probe_pb2_grpc.add_ProbeServiceServicer_to_server(ProbeServicer(Rows(pool)), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield probe_pb2_grpc.ProbeServiceStub(channel)
        await server.stop(0)


def figures() -> dict[str, float]:
    """What alerts and objectives look at."""
    found: dict[str, float] = {}
    for family in REGISTRY.collect():
        if family.name in ("mailrail_queue_attempts", "mailrail_queue_first_attempt_seconds", "mailrail_queue_dsns"):
            found |= {f"{s.name}{s.labels}": s.value for s in family.samples if s.value}
    return found


async def taken(stub: "probe_pb2_grpc.ProbeServiceAsyncStub", message_id: bytes) -> bool:
    return (await stub.TakeProbe(probe_pb2.TakeProbeRequest(message_id=message_id))).arrived


async def until_taken(stub: "probe_pb2_grpc.ProbeServiceAsyncStub", message_id: bytes) -> None:
    async def arrived() -> bool | None:
        return await taken(stub, message_id)

    condition: Callable[[], bool | Awaitable[bool | None] | None] = arrived
    await eventually(condition)


async def probe(q: RunningQueue, number: int = 0) -> bytes:
    """A probe as ingress commits it; its message id."""
    ingress = await q.ingress()
    address = probe_address(KEYS, time.time() + 60 * number)
    return await ingress.accept(address, mail_from="", origin=types_pb2.ORIGIN_SYSTEM, purpose=types_pb2.PURPOSE_PROBE)


async def test_a_probe_arrives_without_outbound_and_nothing_of_it_stays(database: str) -> None:
    async with running_queue(database) as q, service(database) as stub:
        before = figures()
        for number in range(3):  # in shards of several owners, as minutes go by
            message_id = await probe(q, number)
            await until_taken(stub, message_id)
            assert not await taken(stub, message_id), "it was taken"
        for table in ("message", "recipient", "history", "mailbox_message", "dsn", "event"):
            assert await q.one(f"SELECT count(*) FROM {table}") == 0, table
        assert figures() == before


async def test_a_probe_that_nobody_takes_leaves_history_with_its_content(database: str) -> None:
    async with running_queue(database) as q:
        await probe(q)
        ingress, outbound = await q.ingress(), await q.outbound()
        await ingress.accept("user@d.example", mail_from="", origin=types_pb2.ORIGIN_SYSTEM)
        await eventually(lambda: outbound.deliveries)
        outbound.finish(outbound.deliveries[0])
        await q.until("SELECT count(*) = 2 FROM history")
        await q.queue.upkeep.sweep()
        assert await q.one("SELECT count(*) FROM history") == 2, "the operator may still ask for it"
        await q.sql("UPDATE history SET finished = finished - interval '11 minutes'")
        await q.queue.upkeep.sweep()
        assert await q.one("SELECT count(*) FROM message") == 0
        assert await q.one("SELECT string_agg(address, ' ') FROM history") == "user@d.example"


async def test_a_hold_rule_for_everybody_does_not_hold_a_probe(database: str) -> None:
    async with running_queue(database) as q, service(database) as stub:
        await q.sql(
            "INSERT INTO hold_rule (comment) VALUES ('everybody'); UPDATE hold_version SET version = version + 1"
        )
        ingress = await q.ingress()
        await ingress.accept("user@d.example")
        await q.until("SELECT count(*) = 1 FROM recipient WHERE held_since IS NOT NULL")
        await until_taken(stub, await probe(q))


async def test_mail_that_is_no_probe_is_never_taken(database: str) -> None:
    async with running_queue(database) as q, service(database) as stub:
        ingress = await q.ingress()
        outbound = await q.outbound()
        message_id = await ingress.accept("user@d.example")
        await eventually(lambda: outbound.deliveries)
        outbound.finish(outbound.deliveries[0])
        await q.until("SELECT count(*) = 1 FROM history")
        assert not await taken(stub, message_id)
        assert await q.one("SELECT count(*) FROM history") == 1


async def test_a_user_who_writes_to_the_domain_of_probes_gets_no_arrival(database: str) -> None:
    async with running_queue(database) as q:
        outbound = await q.outbound()
        ingress = await q.ingress()
        await ingress.accept(probe_address(KEYS, time.time()))
        await eventually(lambda: outbound.deliveries)  # as any foreign domain: it ends in a bounce
