"""Mail to sites that answer waits for no others (SHD-03, SHD-04, LSE-06), on a real Postgres and over real gRPC."""

import asyncio
from collections import Counter

from mailrail.pb.queue.v1 import lease_pb2, types_pb2

from testkit.conditions import eventually
from testkit.queue import FakeIngress, FakeOutbound, RunningQueue, commit_of, result_of, running_queue

LEASED = "SELECT count(*) FROM recipient WHERE token IS NOT NULL"


async def store(ingress: FakeIngress, domains: list[str]) -> None:
    """A message to each of these domains, in a few commits."""
    results = await asyncio.gather(*ingress.commit(*(commit_of(f"user@{name}") for name in domains)))
    assert all(result.accepted for result in results)


async def prove(q: RunningQueue, outbound: FakeOutbound, domain: str) -> None:
    """A delivery there is answered well."""
    before = len(outbound.deliveries)
    await (await q.ingress()).accept(f"first@{domain}")
    await eventually(outbound.has(before + 1))
    outbound.finish(*outbound.deliveries[before:])
    await q.until("SELECT count(*) = 0 FROM recipient WHERE site = %s", f"domain:{domain}")


async def test_due_mail_to_sites_that_never_answer_leaves_room_for_healthy_mail_SHD_03(database: str) -> None:
    async with running_queue(database) as q:
        ingress = await q.ingress()
        early = await q.outbound()
        await prove(q, early, "well.example")
        await early.close()
        await eventually(lambda: not q.queue.dispatcher.streams)
        await store(ingress, [f"tarpit{n}.example" for n in range(300) for _ in range(3)])  # nobody delivers: due
        outbound = await q.outbound(credit=100)
        await eventually(outbound.has(50))
        assert {each.standing for each in outbound.deliveries} == {lease_pb2.SITE_STANDING_UNPROVEN}
        await eventually(lambda: any(q.queue.worklist.parked))
        for n in range(20):
            before = len(outbound.deliveries)
            await ingress.accept(f"user{n}@well.example")
            await eventually(outbound.has(before + 1))
            delivery = outbound.deliveries[-1]
            assert delivery.domain == "well.example"
            assert delivery.standing == lease_pb2.SITE_STANDING_QUICK
            outbound.finish(delivery)
        assert await q.one(LEASED + " AND site <> 'domain:well.example'") <= 60, "leased is what can be sent"


async def test_sites_that_wait_for_a_share_have_it_in_turn_LSE_06(database: str) -> None:
    async with running_queue(database) as q:
        names = [f"d{n}.example" for n in range(200)]
        await store(await q.ingress(), names)
        outbound = await q.outbound(credit=20)
        done = 0
        while done < 200:
            await eventually(lambda: len(outbound.deliveries) > done)  # noqa: B023
            some = outbound.deliveries[done:]
            done += len(some)
            outbound.finish(*some)
        assert Counter(delivery.domain for delivery in outbound.deliveries) == dict.fromkeys(names, 1)


async def test_sites_that_wait_for_a_share_have_every_other_turn_beside_those_that_came_last_LSE_06(
    database: str,
) -> None:
    async with running_queue(database) as q:
        ingress = await q.ingress()
        old = [f"old{n}.example" for n in range(60)]
        await store(ingress, old)
        outbound = await q.outbound(credit=20)
        await eventually(lambda: any(q.queue.worklist.parked))
        done = 0
        while done < 2 * 60 + 40:  # some of those that had their turn wait for credit, where there are turns again
            await store(ingress, [f"new{done}-{n}.example" for n in range(3)])
            await eventually(lambda: len(outbound.deliveries) > done)  # noqa: B023
            # None is proven by its result, so the share stays what it is.
            outbound.finish(outbound.deliveries[done], site_failure=True, outcome=types_pb2.OUTCOME_DEFERRED)
            done += 1
        late = set(old) - {delivery.domain for delivery in outbound.deliveries}
        assert not late, "each that waited has gone"


async def test_the_first_mail_to_a_new_site_goes_before_all_that_waits_for_sites_that_never_answer_SHD_03(
    database: str,
) -> None:
    async with running_queue(database) as q:
        ingress = await q.ingress()
        await store(ingress, [f"tarpit{n}.example" for n in range(300) for _ in range(3)])
        outbound = await q.outbound(credit=100)
        await eventually(outbound.has(50))
        await eventually(lambda: any(q.queue.worklist.parked))
        await ingress.accept("first@new.example")
        for ended in range(20):  # of 250 sites that wait; some were called before it came
            outbound.finish(outbound.deliveries[ended], site_failure=True, outcome=types_pb2.OUTCOME_DEFERRED)
            await eventually(outbound.has(51 + ended))
        assert "new.example" in {delivery.domain for delivery in outbound.deliveries[50:]}


async def test_sites_that_wait_for_a_share_have_it_as_soon_as_credit_comes_back_LSE_06(database: str) -> None:
    async with running_queue(database, look_seconds=600.0) as q:  # no look at what is due helps
        ingress = await q.ingress()
        await store(ingress, [f"tarpit{n}.example" for n in range(100)])
        outbound = await q.outbound(credit=20)
        await eventually(lambda: any(q.queue.worklist.parked))
        await ingress.accept("first@new.example")
        done = 0
        while done < 101:
            await eventually(lambda: len(outbound.deliveries) > done)  # noqa: B023
            some = outbound.deliveries[done:]
            done += len(some)
            # Nothing more is due at these sites, so that no site of its own wakes what leases.
            outbound.finish(*some, site_failure=True, outcome=types_pb2.OUTCOME_DEFERRED)
        assert "new.example" in {delivery.domain for delivery in outbound.deliveries}


async def test_octets_bound_what_is_handed_out_beside_deliveries_SHD_03(database: str) -> None:
    async with running_queue(database) as q:
        outbound = await q.outbound(credit=1000, octets=100_000)
        await eventually(lambda: outbound.counts_octets)  # else outbound keeps most of its credit back
        await prove(q, outbound, "well.example")
        octets = len(outbound.deliveries[0].prefix) + len(outbound.deliveries[0].body)
        outbound.send(credit_octets=octets)
        ingress = await q.ingress()
        for n in range(5):
            await ingress.accept(f"user{n}@well.example", body=b"x" * 40_000)
        await eventually(outbound.has(4))
        (stream,) = q.queue.dispatcher.streams.values()
        sent = sum(len(d.prefix) + len(d.body) for d in outbound.deliveries[1:])
        assert stream.credit.octets == 100_000 - sent < 0
        assert len(outbound.deliveries) == 4
        outbound.send(results=[result_of(outbound.deliveries[1])], credit=1, credit_octets=sent // 3)
        await eventually(outbound.has(5))


async def test_domains_behind_one_host_share_a_limit_before_there_is_any_result_SHD_03(database: str) -> None:
    async with running_queue(database) as q:
        outbound = await q.outbound(octets=1 << 30)
        ingress = await q.ingress()
        names = [f"tarpit{n}.example" for n in range(30)]
        await store(ingress, names)
        await eventually(outbound.has(30))
        found = [
            lease_pb2.Resolved(token=d.token, mx_hosts=["mx.tarpit.example", f"mx2.{d.domain}"])
            for d in outbound.deliveries
        ]
        outbound.send(resolved=found)
        dispatcher = q.queue.dispatcher
        await eventually(lambda: all(dispatcher.sites[f"domain:{name}"].mx_group for name in names))
        await store(ingress, names)
        await ingress.accept("user@elsewhere.example")
        await eventually(outbound.has(31))
        assert outbound.deliveries[-1].domain == "elsewhere.example"
        assert len(outbound.deliveries) == 31
        outbound.finish(*outbound.deliveries[:11], mx_hosts=["mx.tarpit.example"])
        await eventually(lambda: len(outbound.deliveries) > 31)


async def test_due_mail_of_a_busy_site_has_half_of_the_turns_SHD_04(database: str) -> None:
    async with running_queue(database) as q:
        ingress = await q.ingress()
        await asyncio.gather(*ingress.commit(*(commit_of(f"old{n}@busy.example") for n in range(400))))
        q.queue.dispatcher.site_of_key("domain:busy.example", q.queue.router()).window.size = 20.0
        outbound = await q.outbound()
        done = fresh = 0
        while done < 300:  # each second of the site brings 20 results, and twice as much mail
            await asyncio.gather(*ingress.commit(*(commit_of(f"new{n}@busy.example") for n in range(40))))
            await eventually(lambda: len(outbound.deliveries) >= done + 10)  # noqa: B023
            some = outbound.deliveries[done : done + 20]
            done += len(some)
            outbound.finish(*some)
            fresh += sum(delivery.recipients[0].address.startswith("new") for delivery in some)
        assert fresh >= 0.3 * done
        assert done - fresh >= 0.3 * done
