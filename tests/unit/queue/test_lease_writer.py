"""What is to be written of leases is kept until Postgres took it (LSE-01, LSE-04)."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import psycopg
import pytest

from mailrail_queue.delivery.lease_writer import LeaseWriter, SiteBackoff
from mailrail_queue.delivery.parts import Parts
from mailrail_queue.delivery.ports import Schedule
from mailrail_queue.delivery.results import Finisher
from mailrail_queue.delivery.stream import OutboundStream
from mailrail_queue.settings import QueueSettings
from mailrail_queue.store import leases as lease_store
from mailrail_queue.store import sites as site_store
from mailrail_queue.store.connection import Connection, Lane

from testkit.dispatching import Bench

OUT_OF_REACH = psycopg.OperationalError("out of reach for a moment")


class FakeLane:
    """Fails as often as it is told, and keeps the statements that it was given."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.statements: list[tuple[str, dict[str, Any]]] = []

    @asynccontextmanager
    async def use(self) -> AsyncIterator[Connection]:
        if self.failures:
            self.failures -= 1
            raise OUT_OF_REACH
        yield cast(Connection, None)

    async def run(self, statement: str, parameters: dict[str, Any]) -> None:
        async with self.use():
            self.statements.append((statement, parameters))


def a_writer(bench: Bench, lane: FakeLane) -> LeaseWriter:
    """A writer on this lane, for the deliveries of a dispatcher."""
    nothing = cast(Any, None)
    parts = Parts(QueueSettings(database_url="", node_id="q"), nothing, nothing, bench.dispatcher, lambda: bench.router)
    return LeaseWriter(parts, cast(Lane, lane), cast(Finisher, None), cast(Schedule, None))


async def test_a_renewal_that_postgres_did_not_take_is_written_again_LSE_01(monkeypatch: pytest.MonkeyPatch) -> None:
    bench, lane, stream = Bench(), FakeLane(failures=1), OutboundStream("outbound-1")
    renewed: list[tuple[int, int]] = []

    async def renew(connection: Connection, seconds: float, leases: Sequence[tuple[int, int]]) -> set[int]:
        renewed.extend(leases)
        return {number for number, _ in leases}

    monkeypatch.setattr(lease_store, "renew", renew)
    writer = a_writer(bench, lane)
    delivery = bench.lease("x.example", seconds=40.0)
    writer.renew(delivery, stream)
    with pytest.raises(psycopg.OperationalError):
        await writer._write()
    assert delivery.deadline == bench.clock.now + 40.0
    await writer._write()
    assert renewed == [(delivery.recipients[0].id, delivery.token)]
    assert delivery.deadline == bench.clock.now + 120.0
    assert [r.token for response in stream.take() for r in response.renewals] == [delivery.token]
    await writer._write()
    assert len(renewed) == 1


async def test_a_backoff_that_changed_while_it_was_written_is_written_again_SHD_05() -> None:
    bench, lane = Bench(), FakeLane(failures=1)
    writer = a_writer(bench, lane)
    writer.note_backoff("domain:x.example", SiteBackoff(1, 60.0, b"error"))
    with pytest.raises(psycopg.OperationalError):
        await writer._write()
    writer.note_backoff("domain:x.example", None)
    await writer._write()
    assert lane.statements == [(site_store.RECOVER, {"name": "domain:x.example"})]
