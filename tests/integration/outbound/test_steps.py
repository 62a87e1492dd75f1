"""How a delivery goes on: by calls while all is at hand, by a task where something must be awaited, and how it ends."""

import asyncio
from typing import Any

import pytest

from mailrail.core.outbound.host_failover import HostFailover
from mailrail.core.revision.revision import TlsMode, Transport, TransportKind, TransportLimits
from mailrail.core.sasl.client import Hashing
from mailrail.sink import Options, Sink
from mailrail_outbound.hosts import HostResolver
from mailrail_outbound.job import HostJob
from mailrail_outbound.ports import DeliveryReport, Result
from mailrail_outbound.smtp import ClientConnection

from testkit.ca import Authority
from testkit.conditions import eventually
from testkit.dns import DnsServer
from testkit.outbound import OutboundBench, submission, transport
from testkit.ports import loopback_address
from testkit.smtp_peer import Hang, SmtpPeer


def smarthost(peer: SmtpPeer | Sink, **fields: Any) -> Transport:
    return transport(TransportKind.SMTP, host=peer.host, port=peer.port, tls=TlsMode.NONE, **fields)


def tasks_of(action: Any) -> set["asyncio.Task[Any]"]:
    """The tasks that an action makes at once."""
    before = asyncio.all_tasks()
    action()
    return asyncio.all_tasks() - before


async def test_a_delivery_that_finds_all_at_hand_makes_no_task() -> None:
    async with Sink() as peer:
        via = smarthost(peer)
        async with OutboundBench.running(via) as bench:
            await bench.deliver(bench.delivery(via))
            await eventually(lambda: not any(connection.busy for connection in bench.pool.connections))
            second = bench.delivery(via)
            assert tasks_of(lambda: bench.begin(second)) == set()
            await eventually(lambda: len(bench.reports) == 2)
            assert [report.recipients[0].result for report in bench.reports] == [Result.DELIVERED] * 2


async def test_a_delivery_asks_the_dns_once_and_then_goes_by_what_is_kept() -> None:
    with DnsServer() as dns:
        dns.add("example.org", "MX", "10 one.example.org.")
        async with Sink(host=loopback_address()) as peer:
            dns.add("one.example.org", "A", peer.host)
            async with OutboundBench.running(resolver=dns.endpoint, direct_port=peer.port) as bench:
                first, second = bench.delivery(None), bench.delivery(None)
                assert tasks_of(lambda: bench.begin(first)) != set()
                await eventually(lambda: len(bench.reports) == 1)
                await eventually(lambda: not any(connection.busy for connection in bench.pool.connections))
                assert tasks_of(lambda: bench.begin(second)) == set()
                await eventually(lambda: len(bench.reports) == 2)
                one, other = (report.recipients[0] for report in bench.reports)
                assert (one.result, one.host, one.ip) == (other.result, other.host, other.ip)
                assert other.result is Result.DELIVERED
                assert dns.asked("example.org") == 1


async def test_a_login_that_crashes_while_it_is_worked_out_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def crashing(work: Hashing) -> bytes:
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(Hashing, "do", crashing)
    authority = Authority()
    async with SmtpPeer(
        tls=authority.issue("localhost").server_context(),
        extensions_after_tls=["AUTH SCRAM-SHA-256"],
        accounts={"u": "p"},
        iterations=100_000,
    ) as peer:
        via = submission("localhost", peer.port)
        secrets = {"ca": authority.pem, "password": b"p"}
        async with OutboundBench.running(via, secrets=secrets, auth_timeout=600.0) as bench:
            (result,) = (await bench.deliver(bench.delivery(via), within=20)).recipients
            assert (result.result, str(result.status)) == (Result.DEFERRED, "4.3.0")


async def test_a_job_that_is_over_before_it_is_waited_for_ends_the_delivery() -> None:
    async with Sink(Options(size_limit=500)) as peer:
        via = smarthost(peer)
        async with OutboundBench.running(via) as bench:
            await bench.deliver(bench.delivery(via))
            await eventually(lambda: not any(connection.busy for connection in bench.pool.connections))
            large = bench.delivery(via, content=b"Subject: x\r\n\r\n" + b"x" * 600 + b"\r\n")
            bench.app.take(large)
            # The connection that is at hand refused it by its SIZE: no octet was sent, and nothing is waited for.
            (result,) = bench.reports[-1].recipients
            assert bench.reports[-1].token == large.lease.token
            assert (result.result, str(result.status)) == (Result.FAILED, "5.3.4")
            assert bench.app.under_way == 0


async def test_a_report_that_cannot_be_handed_on_does_not_harm_the_connection() -> None:
    async with Sink() as peer:
        via = smarthost(peer)
        async with OutboundBench.running(via) as bench:
            lost: list[int] = []

            def fails(report: DeliveryReport) -> None:
                lost.append(report.token)
                raise ValueError("nobody takes it")

            kept, bench.app._report = bench.app._report, fails
            bench.app.take(bench.delivery(via))
            await eventually(lambda: len(lost) == 1)
            bench.app._report = kept
            report = await bench.deliver(bench.delivery(via))
            assert report.recipients[0].result is Result.DELIVERED
            assert peer.connections == 1


@pytest.mark.parametrize("stage", ["DATA", "GREETING"])
async def test_what_is_broken_off_by_the_end_of_the_process_is_not_reported_and_is_over_LSE_02(stage: str) -> None:
    async with SmtpPeer(replies={stage: Hang()}) as peer:
        via = smarthost(peer)
        async with OutboundBench.running(via) as bench:
            bench.app.take(bench.delivery(via))
            await eventually(lambda: len(peer.sessions) == 1)
            assert not await bench.app.drained(0.05)
            await bench.app.close()
            assert bench.reports == []
            assert bench.app.under_way == 0
            assert await bench.app.drained(0.05)


async def test_a_dial_that_crashes_defers_and_leaves_no_delivery_behind() -> None:
    async with Sink() as peer:
        via = transport(TransportKind.SMTP, host=peer.host, port=peer.port, tls=TlsMode.NONE)
        async with OutboundBench.running(via, hello_name="b\xfccher.example") as bench:
            (result,) = (await bench.deliver(bench.delivery(via))).recipients
            assert (result.result, bench.app.under_way) == (Result.DEFERRED, 0)
            assert "internal error" in result.text


async def test_what_a_server_has_taken_stays_taken_though_our_reckoning_crashes_LSE_08(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with SmtpPeer(replies={"RCPT": lambda s, line: "451 4.2.0 later" if "two@" in line else None}) as peer:
        via = smarthost(peer)
        async with OutboundBench.running(via) as bench:
            answered = HostFailover.record_answers
            crashes = [True]

            def crashing(failover: HostFailover, *arguments: Any, **named: Any) -> Any:
                if crashes and crashes.pop():
                    raise RuntimeError("a mistake of ours")
                return answered(failover, *arguments, **named)

            monkeypatch.setattr(HostFailover, "record_answers", crashing)
            report = await bench.deliver(bench.delivery(via, "one@example.org", "two@example.org"))
            one, two = report.recipients
            assert (one.result, str(one.reply)) == (Result.DELIVERED, "250 2.0.0 taken")
            assert (two.result, str(two.status)) == (Result.DEFERRED, "4.3.0")
            assert "internal error" in two.text
            (fine,) = (await bench.deliver(bench.delivery(via))).recipients
            assert (fine.result, bench.app.under_way) == (Result.DELIVERED, 0)
            assert len(peer.messages) == 2


async def test_what_one_host_has_taken_stays_taken_though_the_next_one_cannot_be_thought_of_LSE_08(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with DnsServer() as dns:
        dns.add("example.org", "MX", "10 one.example.org.")
        dns.add("example.org", "MX", "20 two.example.org.")
        replies = {"RCPT": ["250 ok", "451 4.2.0 later"]}
        async with SmtpPeer(host=loopback_address(), replies=replies) as peer:
            dns.add("one.example.org", "A", peer.host)
            addresses = HostResolver.addresses

            def crashing(hosts: HostResolver, name: str, *arguments: Any, **named: Any) -> Any:
                if name == "two.example.org":
                    raise RuntimeError("a mistake of ours")
                return addresses(hosts, name, *arguments, **named)

            monkeypatch.setattr(HostResolver, "addresses", crashing)
            async with OutboundBench.running(resolver=dns.endpoint, direct_port=peer.port) as bench:
                report = await bench.deliver(bench.delivery(None, "one@example.org", "two@example.org"))
                one, two = report.recipients
                assert (one.result, two.result) == (Result.DELIVERED, Result.DEFERRED)
                assert "internal error" in two.text


@pytest.mark.parametrize("where", ["transaction", "content_at_hand", "may_finish"])
async def test_a_job_that_crashes_ends_itself_alone(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Sink() as peer:
        via = smarthost(peer, limits=TransportLimits(connections=1))
        async with OutboundBench.running(via) as bench:
            works = getattr(HostJob, where)

            def crashing(job: HostJob, *arguments: Any) -> Any:
                if job._attempt.delivery.lease.token == 2:
                    raise RuntimeError("a mistake of ours")
                return works(job, *arguments)

            monkeypatch.setattr(HostJob, where, crashing)
            reports = await asyncio.gather(*(bench.deliver(bench.delivery(via)) for _ in range(4)))
            results = [report.recipients[0].result for report in reports]
            assert results == [Result.DELIVERED, Result.DEFERRED, Result.DELIVERED, Result.DELIVERED]
            assert str(reports[1].recipients[0].status) == "4.3.0"
            assert len(peer.messages) == 3
            assert bench.app.under_way == 0


async def test_one_that_cannot_be_told_that_its_host_failed_leaves_nobody_else_untold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    via = transport(TransportKind.SMTP, host=loopback_address(), port=1, tls=TlsMode.NONE)
    async with OutboundBench.running(via) as bench:
        failed = HostJob.end_without_session

        def crashing(job: HostJob, *arguments: Any) -> None:
            if job._attempt.delivery.lease.token == 1:
                raise RuntimeError("a mistake of ours")
            failed(job, *arguments)

        monkeypatch.setattr(HostJob, "end_without_session", crashing)
        reports = await asyncio.gather(*(bench.deliver(bench.delivery(via), within=20) for _ in range(3)))
        assert [str(report.recipients[0].status) for report in reports] == ["4.3.0", "4.4.1", "4.4.1"]


async def test_nobody_waits_for_a_connection_for_ever_LSE_04() -> None:
    async with SmtpPeer(replies={"DATA": Hang()}) as peer:
        via = smarthost(peer, limits=TransportLimits(connections=1))
        async with OutboundBench.running(via, connection_wait=0.3, data_timeout=60.0) as bench:
            busy, waits = bench.begin(bench.delivery(via)), bench.delivery(via)
            (result,) = (await bench.deliver(waits, within=20)).recipients
            assert result.result is Result.NOT_ATTEMPTED
            assert "no connection to 127.0.0.1 was free" in result.text
            assert not busy.done()
            assert bench.pool.waiting == 0


async def test_a_host_that_is_slow_to_greet_is_waited_for_and_judged_not_taken_for_busy_LSE_04() -> None:
    async with SmtpPeer(replies={"GREETING": Hang()}) as peer:
        via = smarthost(peer, limits=TransportLimits(connections=1))
        async with OutboundBench.running(via, connection_wait=0.2, greeting_timeout=1.0) as bench:
            dialled, waits = [
                (await report).recipients[0] for report in [bench.begin(bench.delivery(via)) for _ in "ab"]
            ]
            assert (dialled.result, dialled.site_failure) == (Result.DEFERRED, True)
            assert waits.result is Result.NOT_ATTEMPTED


async def test_draining_waits_for_the_last_delivery() -> None:
    async with Sink() as peer:
        via = smarthost(peer)
        async with OutboundBench.running(via) as bench:
            for _ in range(5):
                bench.app.take(bench.delivery(via))
            assert bench.app.under_way == 5
            assert await bench.app.drained(10.0)
            assert len(bench.reports) == 5


async def test_a_deadline_that_raises_costs_its_own_connection_and_no_other_SOUT_06(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with SmtpPeer(replies={"DATA": Hang()}) as one, SmtpPeer(replies={"DATA": Hang()}) as other:
        vias = [
            transport(TransportKind.SMTP, name, host=peer.host, port=peer.port, tls=TlsMode.NONE)
            for name, peer in (("one", one), ("other", other))
        ]
        failed: list[int] = []
        expire = ClientConnection.expire

        def fails(connection: ClientConnection, now: float) -> None:
            if connection.key.port == one.port:
                failed.append(1)
                raise RuntimeError("a mistake of ours")
            expire(connection, now)

        monkeypatch.setattr(ClientConnection, "expire", fails)
        async with OutboundBench.running(*vias, data_timeout=0.3) as bench:
            reports = await asyncio.gather(*(bench.deliver(bench.delivery(via), within=20) for via in vias))
            assert [report.recipients[0].result for report in reports] == [Result.DEFERRED] * 2
            assert "no reply to DATA in time" in reports[1].recipients[0].text
            assert len(failed) == 1
            await eventually(lambda: bench.pool.connections == [])
