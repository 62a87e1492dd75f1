"""What administrators are told of a long queue is what its owners counted, with the time, and costs no pass (QRY-07, QRY-08)."""

# ruff: noqa: E501 -- statements keep their own lines

from collections.abc import Callable
from datetime import UTC

import psycopg
import pytest

from mailrail.pb.queue.v1 import admin_pb2
from mailrail_queue.admin import listing as admin_listing
from mailrail_queue.admin.base import AdminContext
from mailrail_queue.admin.filters import NotCounted, PageTokens
from mailrail_queue.admin.listing import Listing
from mailrail_queue.routing.router import Router

from testkit.backlog import DEAD, Backlog, seed
from testkit.plans import explained
from testkit.queue import running_queue
from testkit.stored_mail import revision

SEEDED = Backlog(40_000, sites=500, held=300, leased=700, per_message=2)
BRUTE = """SELECT count(*), count(*) FILTER (WHERE token IS NULL AND held_since IS NULL AND due <= now()),
    count(*) FILTER (WHERE token IS NOT NULL), count(*) FILTER (WHERE held_since IS NOT NULL) FROM recipient"""


@pytest.fixture
def url(database_for: Callable[..., str]) -> str:
    """A database with a long queue."""
    found = database_for("queue")
    with psycopg.connect(found, autocommit=True) as connection:
        seed(connection, SEEDED)
    return found


def a_listing(counted: Callable[[str], int] = lambda _: 0) -> Listing:
    router = Router(1, revision())
    return Listing(AdminContext(lambda: router, lambda: None, None, lambda _: None, counted=counted))  # type: ignore[arg-type, return-value]


def figures(answer: admin_pb2.GetStatsResponse) -> tuple[int, int, int, int]:
    return answer.queued, answer.due, answer.leased, answer.on_hold


async def test_a_long_queue_is_told_as_its_owners_counted_it_with_the_time_QRY_07(url: str) -> None:
    quiet = running_queue(url, look_seconds=600.0, sweep_seconds=600.0, count_seconds=600.0)
    async with quiet as q, q.queue.owner.lane.use():  # nothing moves meanwhile
        await q.queue.counting.count()
        (expected,) = await q.sql(BRUTE)
        async with explained(url, "force_custom_plan") as found:
            answer = await a_listing().stats(found.connection)
        assert figures(answer) == expected
        assert answer.HasField("counted")
        assert answer.counted.ToDatetime(UTC) == await q.one("SELECT min(counted) FROM census")
        assert answer.oldest.ToDatetime(UTC) == await q.one("SELECT min(queued) FROM recipient")
        assert sum(plan.buffers for plan in found.plans) < 5_000, "no pass over recipients or messages"
        assert q.queue.counting.large[f"domain:{DEAD}"] > 15_000


async def test_of_many_stored_messages_number_and_size_are_estimates_and_said_to_be(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO queue.census (shard, waiting, due, held) SELECT n, 0, 0, 0 FROM generate_series(0, 255) n"
        )
        row = connection.execute("SELECT count(*), sum(size) FROM queue.message").fetchone()
    assert row is not None
    async with explained(url, "force_custom_plan") as found:
        answer = await a_listing().stats(found.connection)
    assert answer.estimated
    assert answer.messages == pytest.approx(row[0], rel=0.2)
    assert answer.bytes == pytest.approx(int(row[1]), rel=0.2)


async def test_what_is_short_is_counted_by_the_call(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin_listing, "EXACT", 50_000)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET search_path = queue")
        expected = connection.execute(BRUTE).fetchone()
    async with explained(url, "force_custom_plan") as found:
        answer = await a_listing().stats(found.connection)
    assert figures(answer) == expected
    assert not answer.HasField("counted")
    assert (answer.messages, answer.bytes, answer.estimated) == (20_000, 40_000_000, False)


async def test_a_long_queue_that_nobody_counted_yet_is_not_said_to_be_empty_QRY_08(url: str) -> None:
    async with explained(url, "force_custom_plan") as found:
        with pytest.raises(NotCounted, match="ask again in a minute"):
            await a_listing().stats(found.connection)


async def test_of_a_large_site_the_list_shows_what_its_owner_counted(url: str) -> None:
    async with explained(url, "force_custom_plan") as found:
        listing = a_listing({f"domain:{DEAD}": 19_000}.__getitem__)
        ((dead, *_), _) = await listing.sites(found.connection, 50, PageTokens("sites").make("domain:de"))
    assert (dead.name, dead.queued, dead.queued_at_least) == (f"domain:{DEAD}", 19_000, True)
