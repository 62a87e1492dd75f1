"""What servers that do not answer can take from others: connections to one address, and a share of all of them."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from mailrail.core.delivery.shares import SiteStanding
from mailrail.core.ids import message_id
from mailrail.kit import lookup_turns
from mailrail.sink import Sink
from mailrail_outbound.ports import DeliveryReport, RecipientReport, Result

from testkit.conditions import eventually
from testkit.dns import DnsServer, Failure
from testkit.outbound import MESSAGE, OutboundBench, StreamedBody
from testkit.ports import loopback_address
from testkit.servers import serve
from testkit.smtp_peer import Action, Hang, Held, SmtpPeer

LONG: dict[str, Any] = {"dns_timeout": 60.0, "greeting_timeout": 300.0, "command_timeout": 300.0, "end_timeout": 600.0}
"""As in production: nothing here ends because a server's time is over."""


class Net:
    """Domains whose MX hosts have addresses of their own, on one port."""

    def __init__(self, dns: DnsServer, stack: contextlib.AsyncExitStack) -> None:
        self._dns = dns
        self._stack = stack
        self.port = 0

    async def tarpit(self, greeting: Action, **replies: Action) -> SmtpPeer:
        """A server that greets like this."""
        script = {"GREETING": greeting, **replies}
        peer = SmtpPeer(host=loopback_address(), port=self.port, replies=script)
        await self._stack.enter_async_context(peer)
        self.port = peer.port
        return peer

    async def healthy(self, domain: str) -> Sink:
        """A domain with a server that takes mail."""
        sink = Sink(host=loopback_address(), port=self.port)
        await self._stack.enter_async_context(sink)
        self.port = sink.port
        self.domain(domain, sink.host)
        return sink

    def domain(self, domain: str, *addresses: str) -> None:
        """A domain with an MX host of its own."""
        self._dns.add(domain, "MX", f"10 mx.{domain}.")
        self._dns.add(f"mx.{domain}", "A", *addresses)

    def domains(self, count: int, address: str) -> list[str]:
        """Domains with MX hosts of their own, all at one address."""
        names = [f"d{i}.test" for i in range(count)]
        for name in names:
            self.domain(name, address)
        return names

    @contextlib.asynccontextmanager
    async def bench(self, **settings: Any) -> AsyncIterator[OutboundBench]:
        made = {**LONG, **settings}
        async with OutboundBench.running(resolver=self._dns.endpoint, direct_port=self.port, **made) as bench:
            yield bench


@pytest.fixture
def dns() -> Iterator[DnsServer]:
    with DnsServer() as server:
        yield server


@pytest.fixture
async def net(dns: DnsServer) -> AsyncIterator[Net]:
    async with contextlib.AsyncExitStack() as stack:
        yield Net(dns, stack)


def begin(bench: OutboundBench, *domains: str) -> list["asyncio.Future[DeliveryReport]"]:
    return [bench.begin(bench.delivery(None, domain=domain)) for domain in domains]


async def result(future: "asyncio.Future[DeliveryReport]") -> RecipientReport:
    async with asyncio.timeout(60):
        (found,) = (await future).recipients
    return found


async def test_200_domains_at_one_silent_address_get_few_connections_until_it_answers(net: Net) -> None:
    greeting = Held("220 at last")
    peer = await net.tarpit(greeting)
    domains = net.domains(200, peer.host)
    async with net.bench() as bench:
        waiting = begin(bench, *domains)
        await eventually(lambda: len(bench.resolved) == 200 and bench.pool.waiting == 200)
        await eventually(lambda: len(peer.sessions) == 2)
        assert bench.pool._servers.open == 2
        greeting.release.set()
        assert {(await result(each)).result for each in waiting} == {Result.DELIVERED}


@pytest.mark.parametrize("silent", ["GREETING", "MAIL"])
async def test_servers_that_do_not_answer_leave_half_of_all_connections_to_others_SOUT_20(
    net: Net, silent: str
) -> None:
    healthy = await net.healthy("healthy.test")
    script: dict[str, Action] = {"greeting": Hang()} if silent == "GREETING" else {"greeting": "220 hi", "MAIL": Hang()}
    tarpits = [await net.tarpit(**script) for _ in range(20)]
    for i, peer in enumerate(tarpits):
        net.domain(f"d{i}.test", peer.host)
    async with net.bench(connections=10) as bench:
        (first,) = begin(bench, "healthy.test")
        assert (await result(first)).result is Result.DELIVERED
        bench.pool.close_idle()
        await eventually(lambda: bench.pool._servers.open == 0)
        begin(bench, *(f"d{i}.test" for i in range(20)))
        most = 5 if silent == "GREETING" else 7
        await eventually(lambda: sum(len(peer.sessions) for peer in tarpits) >= 5 and len(bench.resolved) == 21)
        # All at once, so that each needs a connection of its own.
        for future in begin(bench, *["healthy.test"] * 10):
            assert (await result(future)).result is Result.DELIVERED
        assert len(healthy.messages) == 11
        assert sum(len(peer.sessions) for peer in tarpits) <= most


async def test_128_servers_that_read_no_content_leave_memory_for_large_mail_to_others_SHD_03(net: Net) -> None:
    healthy = await net.healthy("healthy.test")
    tarpits = [await net.tarpit("220 hi", DATA=Hang("354 go on")) for _ in range(128)]
    for i, peer in enumerate(tarpits):
        net.domain(f"d{i}.test", peer.host)
    async with net.bench() as bench:

        def large(domain: str) -> "asyncio.Future[DeliveryReport]":
            body = StreamedBody(MESSAGE)
            return bench.begin(bench.delivery(None, domain=domain, content=body, size=len(MESSAGE)))

        (first,) = begin(bench, "healthy.test")
        assert (await result(first)).result is Result.DELIVERED
        for i in range(128):
            large(f"d{i}.test")
        stalled = 0

        def all_hold_what_they_may() -> bool:
            nonlocal stalled
            stalled = sum("DATA" in peer.commands for peer in tarpits)
            return stalled >= 89  # a little less than seven tenths

        await eventually(all_hold_what_they_may, what=lambda: f"{stalled} of 128 are at DATA")
        for _ in range(3):
            assert (await result(large("healthy.test"))).result is Result.DELIVERED
        assert len(healthy.messages) == 4
        assert sum("DATA" in peer.commands for peer in tarpits) <= 90


async def test_who_never_answers_is_broken_off_for_others_past_the_allowance_and_not_before(net: Net) -> None:
    tarpits = [await net.tarpit(Hang()) for _ in range(8)]
    for i, peer in enumerate(tarpits):
        net.domain(f"d{i}.test", peer.host)
    async with net.bench(connections=8, slow_seconds=0.2, slow_connections=2) as bench:
        waiting = begin(bench, "d0.test", "d1.test", "d2.test", "d3.test")  # half of all
        await eventually(lambda: sum(len(peer.sessions) for peer in tarpits[:4]) == 4)
        loop = asyncio.get_running_loop()
        oldest = min(connection.asked for connection in bench.pool.connections)
        await eventually(lambda: loop.time() > oldest + 1.0)  # several looks
        assert not any(future.done() for future in waiting)  # nobody waits for what they hold
        waiting += begin(bench, "d4.test", "d5.test")
        await eventually(lambda: sum(len(peer.sessions) for peer in tarpits) == 6)
        broken = [await result(future) for future in waiting[:4] if future.done()]
        assert len(broken) == 2
        for each in broken:
            assert (each.result, each.site_failure, str(each.status)) == (Result.DEFERRED, True, "4.4.2")
            assert each.text.endswith(" did not answer in 0 s while others waited")
        assert not any(future.done() for future in waiting[4:])


@pytest.mark.parametrize("starttls", [Hang(), Hang("220 go")], ids=["no answer", "no handshake"])
async def test_who_is_broken_off_for_others_while_tls_begins_gets_no_mail_in_clear_TLS_07(
    net: Net, starttls: Hang
) -> None:
    """That others wait is no fault of its TLS."""
    tarpits = [await net.tarpit("220 hi", EHLO="250-mx\n250 STARTTLS", STARTTLS=starttls) for _ in range(8)]
    for i, peer in enumerate(tarpits):
        net.domain(f"d{i}.test", peer.host)
    async with net.bench(connections=8, slow_seconds=0.2, slow_connections=2, tls_timeout=300.0) as bench:
        waiting = begin(bench, *(f"d{i}.test" for i in range(8)))
        await eventually(lambda: any(future.done() for future in waiting))
        for each in [await result(future) for future in waiting if future.done()]:
            assert (each.result, str(each.status)) == (Result.DEFERRED, "4.4.2")
            assert each.text.endswith(" did not answer in 0 s while others waited")
    assert {command.split()[0] for peer in tarpits for command in peer.commands} == {"EHLO", "STARTTLS"}


async def test_an_address_of_which_nothing_is_known_has_a_moment_where_others_wait_to_try_theirs(net: Net) -> None:
    healthy = await net.healthy("healthy.test")
    tarpits = [await net.tarpit(Hang()) for _ in range(4)]
    for i, peer in enumerate(tarpits):
        net.domain(f"d{i}.test", peer.host)
    async with net.bench(connections=8, first_seconds=0.2, slow_connections=2) as bench:
        waiting = []
        for i, peer in enumerate(tarpits):  # half of all
            waiting += begin(bench, f"d{i}.test")
            await eventually(lambda: peer.sessions)  # noqa: B023
        loop = asyncio.get_running_loop()
        newest = max(connection.asked for connection in bench.pool.connections)
        await eventually(lambda: loop.time() > newest + 0.2)  # each has had its moment
        assert not any(each.done() for each in waiting)
        (first,) = begin(bench, "healthy.test")
        assert (await result(first)).result is Result.DELIVERED
        assert len(healthy.messages) == 1
        (broken_off,) = (each for each in waiting if each.done())
        assert broken_off is waiting[3], "those that wait longest may wait on, as far as the allowance goes"
        found = await result(broken_off)
        assert found.site_failure
        assert "while others waited" in found.text


async def test_where_a_crowd_waits_for_an_unknown_address_those_that_wait_longest_go_back_SHD_03(net: Net) -> None:
    greeting = Held("220 at last")
    peer = await net.tarpit(greeting)
    domains = net.domains(20, peer.host)
    async with net.bench(capacity=40) as bench:  # of which such addresses may have 20, and 18 are a crowd
        waiting = begin(bench, *domains)
        await eventually(lambda: any(each.done() for each in waiting))
        greeting.release.set()
        results = [(await result(each)).result for each in waiting]
        assert results.count(Result.NOT_ATTEMPTED) == 1, "beside the two that are dialled, 17 are no crowd"
        assert results.count(Result.DELIVERED) == 19


@pytest.mark.parametrize("standing", [SiteStanding.UNPROVEN, SiteStanding.SLOW])
async def test_the_first_mail_to_a_new_site_has_room_while_a_backlog_waits_for_a_tarpit_that_greets_SHD_03(
    net: Net, standing: SiteStanding
) -> None:
    tarpit = await net.tarpit("220 hi", MAIL=Hang())
    new = await net.healthy("new.test")
    async with net.bench(capacity=40, connections_per_destination=2) as bench:
        made = [
            bench.delivery(None, domain=domain, standing=standing)
            for domain in net.domains(20, tarpit.host)  # all that sites of such a standing may hold
        ]
        waiting = [bench.begin(delivery) for delivery in made]
        await eventually(lambda: any(each.done() for each in waiting))  # only now the queue may hand on another
        first = bench.begin(bench.delivery(None, domain="new.test", standing=SiteStanding.UNPROVEN))
        assert (await result(first)).result is Result.DELIVERED
        assert len(new.messages) == 1
        await eventually(lambda: sum(each.done() for each in waiting) == 3)
        for each in waiting:
            if each.done():
                found = await result(each)
                assert (found.result, found.dialled, found.site_failure) == (Result.NOT_ATTEMPTED, False, False)
        assert bench.pool.waiting == 15


async def test_mail_of_which_a_part_is_done_stays_where_a_crowd_waits(net: Net) -> None:
    """To give it back would count as an attempt."""
    greeting = Held("220 at last")
    peer = await net.tarpit(greeting)
    refusing = loopback_address()
    for i in range(20):
        net._dns.add(f"d{i}.test", "MX", f"10 dead{i}.test.", f"20 mx{i}.test.")
        net._dns.add(f"dead{i}.test", "A", refusing)
        net._dns.add(f"mx{i}.test", "A", peer.host)
    async with net.bench(capacity=40) as bench:
        waiting = begin(bench, *(f"d{i}.test" for i in range(20)))
        await eventually(lambda: bench.pool.waiting == 20)
        loop = asyncio.get_running_loop()
        now = loop.time()
        await eventually(lambda: loop.time() > now + 1.0)  # several looks
        assert not any(each.done() for each in waiting)
        greeting.release.set()
        assert {(await result(each)).result for each in waiting} == {Result.DELIVERED}


async def test_who_has_the_final_dot_is_never_broken_off_for_others_SOUT_20(net: Net) -> None:
    dots = [Held("250 2.0.0 taken") for _ in range(4)]
    tarpits = [await net.tarpit("220 hi", END=dot) for dot in dots]
    for i, peer in enumerate(tarpits):
        net.domain(f"d{i}.test", peer.host)
    silent = await net.tarpit(Hang())
    net.domain("silent.test", silent.host)
    async with net.bench(connections=4, slow_seconds=0.2, slow_connections=0) as bench:
        waiting = begin(bench, *(f"d{i}.test" for i in range(4)))
        await eventually(lambda: sum(bool(session.octets) for peer in tarpits for session in peer.sessions) == 2)
        loop = asyncio.get_running_loop()
        newest = max(connection.asked for connection in bench.pool.connections)
        await eventually(lambda: loop.time() > newest + 1.0)  # several looks
        assert not any(future.done() for future in waiting)
        for dot in dots:
            dot.release.set()
        assert {(await result(future)).result for future in waiting} == {Result.DELIVERED}


async def test_a_dial_that_does_not_connect_gives_way_too(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = [loopback_address() for _ in range(4)]
    for i, address in enumerate(addresses):
        net.domain(f"d{i}.test", address)
    healthy = await net.healthy("healthy.test")
    loop = asyncio.get_running_loop()

    class Silent:
        """The loop, on which nobody at these addresses answers a SYN."""

        def __getattr__(self, name: str) -> Any:
            return getattr(loop, name)

        async def create_connection(self, factory: Any, host: str, *args: Any, **named: Any) -> Any:
            if host in addresses:
                await asyncio.Event().wait()
            return await loop.create_connection(factory, host, *args, **named)

    async with net.bench(connections=2, connect_timeout=300.0, slow_seconds=0.2, slow_connections=0) as bench:
        monkeypatch.setattr(bench.pool, "_loop", Silent())
        waiting = begin(bench, *(f"d{i}.test" for i in range(4)), "healthy.test")
        assert (await result(waiting[-1])).result is Result.DELIVERED
        assert len(healthy.messages) == 1
        # The last one has nobody to give way to.
        await eventually(lambda: sum(future.done() for future in waiting[:4]) == 3)
        for future in filter(asyncio.Future.done, waiting[:4]):
            each = await result(future)
            assert (each.result, each.site_failure, str(each.status)) == (Result.DEFERRED, True, "4.4.1")
            assert "while others waited" in each.text


async def test_what_waits_for_an_address_fails_with_it(net: Net) -> None:
    dead = loopback_address()
    live = await net.healthy("healthy.test")
    for i in range(30):
        net.domain(f"d{i}.test", dead)
    net.domain("both.test", dead, live.host)
    async with net.bench(connections_first=1) as bench:
        waiting = begin(bench, *(f"d{i}.test" for i in range(30)), "both.test")
        for future in waiting[:30]:
            each = await result(future)
            assert (each.result, each.site_failure, str(each.status)) == (Result.DEFERRED, True, "4.4.1")
            assert each.ip == dead
        assert (await result(waiting[-1])).result is Result.DELIVERED


async def test_a_silent_address_in_the_second_place_gets_few_connections_too(net: Net) -> None:
    tarpit = await net.tarpit(Hang())
    for i in range(20):
        net.domain(f"d{i}.test", loopback_address(), tarpit.host)
    async with net.bench() as bench:
        begin(bench, *(f"d{i}.test" for i in range(20)))
        await eventually(lambda: bench.pool.waiting == 20 and bench.pool._servers.open == 2)
        await eventually(lambda: len(tarpit.sessions) == 2)


async def test_600_domains_at_one_mx_host_share_its_connections(net: Net) -> None:
    here = 0
    most = 0

    async def counted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal here, most
        here += 1
        most = max(most, here)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            writer.write(b"220 hi\r\n")
            while line := await reader.readline():
                if line == b"DATA\r\n":
                    writer.write(b"354 go\r\n")
                    await reader.readuntil(b"\r\n.\r\n")
                writer.write(b"250 ok\r\n")
                if line == b"QUIT\r\n":
                    break
        here -= 1

    async with serve(counted) as (address, net.port):
        for i in range(300):
            net._dns.add(f"d{i}.test", "MX", "10 mx.provider.test.")
            net.domain(f"own{i}.test", address)
        net._dns.add("mx.provider.test", "A", address)
        # An idle connection stays for ever: nothing moves because one ran out of its time.
        async with net.bench(idle_seconds=3600.0) as bench:
            waiting = begin(bench, *(f"d{i}.test" for i in range(300)))
            assert {(await result(future)).result for future in waiting} == {Result.RELAYED}
            assert most <= 20
            waiting = begin(bench, *(f"own{i}.test" for i in range(300)))
            assert {(await result(future)).result for future in waiting} == {Result.RELAYED}
            assert most <= 25  # some are on their way out while others come


async def test_the_first_mail_to_a_new_domain_is_looked_up_before_older_mail_at_silent_names_that_comes_later(
    net: Net, dns: DnsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup_turns, "FIRST_PATIENCE", 0.2)
    new = await net.healthy("new.test")
    before, after = ([f"{name}{i}.test" for i in range(20)] for name in ("before", "after"))
    for name in (*before, *after):
        dns.fail(name, Failure.SILENT)
    async with net.bench(lookups=4) as bench:

        def deliver(domain: str, began: float) -> "asyncio.Future[DeliveryReport]":
            return bench.begin(bench.delivery(None, domain=domain, message_id=message_id(began, bytes(10))))

        for domain in before:
            deliver(domain, 1000.0)
        await eventually(lambda: len(dns.queries) == 2)
        first = deliver("new.test", 2000.0)
        for domain in after:
            deliver(domain, 1000.0)
        assert (await result(first)).result is Result.DELIVERED
        asked = [query.name for query in dns.queries]
        assert set(asked[: asked.index("new.test")]) <= set(before)
        # One of them has the turn that its MX record was found in.
        assert len(set(asked[: asked.index("mx.new.test")]) & set(after)) <= 1
        assert len(new.messages) == 1


@pytest.mark.parametrize("old_mail_too", [False, True])
async def test_the_first_mail_to_a_new_site_is_dialled_before_older_mail_at_silent_servers_that_comes_later(
    net: Net, *, old_mail_too: bool
) -> None:
    leaving = [Held("421 4.3.2 come back later") for _ in range(4)]
    for i, greeting in enumerate(leaving):
        net.domain(f"leaving{i}.test", (await net.tarpit(greeting)).host)
    before, after = ([f"{name}{i}.test" for i in range(8)] for name in ("before", "after"))
    for name in (*before, *after):
        net.domain(name, (await net.tarpit(Hang())).host)
    new = await net.healthy("new.test")
    async with net.bench(connections=8, first_seconds=300.0) as bench:
        begun: list[asyncio.Future[DeliveryReport]] = []

        async def wait(*domains: str, began: float) -> None:
            for domain in domains:
                made = bench.delivery(None, domain=domain, message_id=message_id(began, bytes(10)))
                begun.append(bench.begin(made))
            await eventually(lambda: bench.pool.waiting == len(begun))

        await wait(*(f"leaving{i}.test" for i in range(4)), began=1000.0)  # they hold half of all connections
        await wait(*before, began=1000.0)
        if old_mail_too:
            await wait("new.test", began=500.0)
        await wait("new.test", began=2000.0)
        first = begun[-1]
        await wait(*after, began=1500.0)
        for greeting in leaving[:2]:
            greeting.release.set()
        assert (await result(first)).result is Result.DELIVERED
        assert len(new.messages) == 1 + old_mail_too


async def test_the_newest_mail_has_every_other_turn_at_an_address_that_takes_one_connection(net: Net) -> None:
    greeting = Held("220 at last")
    peer = await net.tarpit(greeting)
    names = ["first", "older", "newest", "newer"]
    for name in names:
        net.domain(f"{name}.test", peer.host)
    async with net.bench(connections_per_destination=1) as bench:
        waiting = []
        for name, began in zip(names, (1.0, 2.0, 4.0, 3.0), strict=True):
            made = bench.delivery(
                None, f"{name}@{name}.test", domain=f"{name}.test", message_id=message_id(began, bytes(10))
            )
            waiting.append(bench.begin(made))
            await eventually(lambda: bench.pool.waiting == len(waiting))
        greeting.release.set()
        assert {(await result(each)).result for each in waiting} == {Result.DELIVERED}
        # The first session gives somebody a turn, for which there is no room.
        order = [re.findall(r"<(\w+)@", message.rcpts[0])[0] for message in peer.messages]
        assert order == ["first", "older", "newest", "newer"]
