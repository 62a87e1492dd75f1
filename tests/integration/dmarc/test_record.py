"""What ingress tells of mail is counted, once, and within bounds."""

import asyncio
import contextlib
from datetime import timedelta

import grpc
import pytest

from mailrail.pb.dmarc.v1 import record_pb2
from mailrail_dmarc import metrics

from testkit.dmarc import NOON, batch, contact, evaluation, record, running_dmarc, sql

COUNTED = "SELECT domain, hour, host(source), cause, messages FROM evaluation ORDER BY domain, hour, source, cause"
HOUR = int(NOON.timestamp()) // 3600


async def test_messages_with_equal_facts_are_one_row_with_a_count_DAGG_03(database: str) -> None:
    async with running_dmarc(database) as dmarc:
        first, second = batch(evaluation(), evaluation(), evaluation(source="2001:db8::1")), batch(evaluation())
        assert await record(dmarc.port, first, second) == [first.batch_id, second.batch_id]
        assert await dmarc.sql(COUNTED) == [
            ("sender.example", HOUR, "192.0.2.1", 0, 3),
            ("sender.example", HOUR, "2001:db8::1", 0, 1),
        ]
        assert await dmarc.sql("SELECT records FROM domain") == [(2,)]


async def test_a_message_that_was_refused_counts_as_well_DMRC_17a(database: str) -> None:
    async with running_dmarc(database) as dmarc:
        await record(dmarc.port, batch(evaluation(passed=False, cause=record_pb2.CAUSE_REFUSED)))
        assert [row[3:] for row in await dmarc.sql(COUNTED)] == [(2, 1)]


async def test_a_batch_that_comes_again_is_counted_once(database: str) -> None:
    async with running_dmarc(database) as dmarc:
        same = batch(evaluation())
        assert await record(dmarc.port, same) == await record(dmarc.port, same) == [same.batch_id]
        assert [row[4] for row in await dmarc.sql(COUNTED)] == [1]


async def test_many_streams_at_once_lose_nothing_and_wait_for_each_other_in_one_order(database: str) -> None:
    async with running_dmarc(database) as dmarc:
        names = [f"s{n}.example" for n in range(20)]

        async def stream(number: int) -> None:
            order = names if number % 2 else names[::-1]
            batches = [batch(*(evaluation(name) for name in order)) for _ in range(5)]
            assert len(await record(dmarc.port, *batches)) == 5

        await asyncio.gather(*(stream(number) for number in range(8)))
        assert await dmarc.sql("SELECT domain, sum(messages)::int FROM evaluation GROUP BY domain ORDER BY domain") == [
            (name, 40) for name in sorted(names)
        ]


async def test_what_comes_late_for_a_period_that_is_over_counts_for_the_next(database: str) -> None:
    async with running_dmarc(database) as dmarc:
        await record(dmarc.port, batch(evaluation()))
        await dmarc.sql("UPDATE domain SET covered = %s", HOUR + 12)
        await record(dmarc.port, batch(evaluation()))
        assert [row[1] for row in await dmarc.sql(COUNTED)] == [HOUR, HOUR + 12]


async def test_the_policy_of_an_hour_is_the_one_that_was_seen_last(database: str) -> None:
    async with running_dmarc(database) as dmarc:
        early, late = evaluation(interval=1, seen=NOON + timedelta(minutes=2)), evaluation(seen=NOON)
        await record(dmarc.port, batch(early), batch(late))
        assert await dmarc.sql("SELECT interval_hours FROM domain_hour") == [(1,)]


async def test_a_zone_takes_no_more_than_its_share_and_what_is_dropped_is_counted(database: str) -> None:
    before = metrics.EVALUATIONS.of("dropped").number
    async with running_dmarc(database, zone_records=10) as dmarc:
        for number in range(8):
            await record(dmarc.port, batch(evaluation(f"n{number}.stranger.example", messages=3)))
        await record(dmarc.port, batch(evaluation("other.test")))
        domains = {row[0] for row in await dmarc.sql(COUNTED)}
    assert domains == {"n0.stranger.example", "n1.stranger.example", "other.test"}
    assert metrics.EVALUATIONS.of("dropped").number - before == 18


async def test_all_together_take_no_more_than_is_set(database: str) -> None:
    async with running_dmarc(database, records=1) as dmarc:
        await record(dmarc.port, batch(evaluation("a.test")))
    async with running_dmarc(database, records=1) as dmarc:
        await record(dmarc.port, batch(evaluation("b.test"), contacts=[contact("ours.example", "b.test", NOON)]))
        assert [row[0] for row in await dmarc.sql(COUNTED)] == ["a.test"]


@pytest.mark.parametrize(
    "changes",
    [
        {"policy_domain": ""},
        {"policy_domain": "Sender.example"},
        {"policy_domain": "a\0b.example"},
        {"policy_domain": "x" * 300},
        {"source_ip": "192.0.2.999"},
        {"facts": b"{}"},
        {"facts": b"[" * 50_000},
        {"facts": b"x" * 70_000},
        {"policy": b"[]"},
        {"messages": 0},
        {"our_domain": "a b\n"},
    ],
)
async def test_what_cannot_be_read_is_left_out_and_the_rest_of_the_batch_counts(
    database: str, changes: dict[str, object]
) -> None:
    wrong = evaluation("wrong.test")
    for name, value in changes.items():
        setattr(wrong, name, value)
    async with running_dmarc(database) as dmarc:
        assert len(await record(dmarc.port, batch(wrong, evaluation("right.test")))) == 1
        assert [row[0] for row in await dmarc.sql(COUNTED)] == ["right.test"]


async def test_a_clock_that_is_ahead_puts_nothing_into_the_future(database: str) -> None:
    async with running_dmarc(database) as dmarc:
        await record(dmarc.port, batch(evaluation(seen=NOON.replace(year=9000))))
        assert await dmarc.sql("SELECT hour * 3600 <= extract(epoch FROM now()) FROM evaluation") == [(True,)]


async def test_a_batch_without_an_id_is_refused(database: str) -> None:
    async with running_dmarc(database) as dmarc:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await record(dmarc.port, batch(evaluation(), batch_id=b"short"))
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_while_the_database_is_away_nothing_is_acknowledged(database: str) -> None:
    async with running_dmarc(database) as dmarc:
        same = batch(evaluation())
        await sql(database, "ALTER TABLE batch RENAME TO gone")
        with contextlib.suppress(grpc.aio.AioRpcError):
            assert await record(dmarc.port, same) == []
        await sql(database, "ALTER TABLE gone RENAME TO batch")
        assert await record(dmarc.port, same) == [same.batch_id]
        assert [row[4] for row in await dmarc.sql(COUNTED)] == [1]


async def test_switched_off_it_takes_what_comes_and_keeps_nothing(database: str) -> None:
    async with running_dmarc(database, reports=False) as dmarc:
        assert len(await record(dmarc.port, batch(evaluation()))) == 1
        assert await dmarc.sql(COUNTED) == []


async def test_the_last_day_of_mail_with_somebody_is_kept(database: str) -> None:
    async with running_dmarc(database) as dmarc:
        days = [NOON - timedelta(days=1), NOON, NOON - timedelta(days=2)]
        await record(dmarc.port, *(batch(contacts=[contact("ours.example", "a.test", day)]) for day in days))
        assert await dmarc.sql("SELECT our_domain, domain, day FROM contact") == [
            ("ours.example", "a.test", NOON.date())
        ]
