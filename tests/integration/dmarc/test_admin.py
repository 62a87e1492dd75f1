"""Administration: what is counted, what was sent, and to whom nothing goes."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest

from mailrail.core.dmarc.report.read import read_aggregate
from mailrail.pb.dmarc.v1 import admin_pb2, admin_pb2_grpc, record_pb2

from testkit.dmarc import NOON, batch, evaluation, record, reporting_revision, running_dmarc
from testkit.dns import DnsServer

MIDNIGHT = NOON.replace(hour=0, minute=0) + timedelta(days=1)
Stub = Any


@pytest.fixture
def dns() -> Iterator[DnsServer]:
    with DnsServer() as server:
        server.add("_dmarc.sender.example", "TXT", '"v=DMARC1; p=reject; rua=mailto:d@else.test"')
        yield server


@asynccontextmanager
async def administering(
    url: str, dns: DnsServer, *told: record_pb2.Evaluation, signed: bool = True
) -> AsyncIterator[Stub]:
    revision = reporting_revision(signed=signed)
    async with (
        running_dmarc(url, revision=revision, resolver=dns.endpoint, queue_target="127.0.0.1:1") as dmarc,
        grpc.aio.insecure_channel(f"127.0.0.1:{dmarc.port}") as channel,
    ):
        if told:
            await record(dmarc.port, batch(*told))
        yield admin_pb2_grpc.DmarcAdminServiceStub(channel)


def before(moment: datetime) -> dict[str, Any]:
    request = admin_pb2.SendReportsRequest()
    request.before.FromDatetime(moment)
    return {"before": request.before}


async def test_what_is_counted_is_told_by_domain(database: str, dns: DnsServer) -> None:
    told = (
        evaluation(messages=2),
        evaluation(passed=False, source="192.0.2.2", seen=NOON - timedelta(hours=2)),
        evaluation(cause=record_pb2.CAUSE_REPORT_ADDRESS),
        evaluation("optional.example", cause=record_pb2.CAUSE_REPORT_ADDRESS, interval=6),
    )
    async with administering(database, dns, *told) as stub:
        first = await stub.ListDomains(admin_pb2.ListDomainsRequest(page_size=1))
        second = await stub.ListDomains(admin_pb2.ListDomainsRequest(page_size=1, page_token=first.next_page_token))
        (optional,), (sender,) = first.domains, second.domains
        assert (optional.domain, optional.send_report, optional.interval_hours) == ("optional.example", False, 6)
        assert (sender.domain, sender.messages, sender.send_report) == ("sender.example", 4, True)
        assert list(sender.dispositions) == ["pass", "reject"]
        assert sender.last.seconds - sender.first.seconds == 7200


async def test_evaluations_of_a_domain_go_oldest_first_by_pages(database: str, dns: DnsServer) -> None:
    told = [evaluation(source=f"192.0.2.{n}", seen=NOON - timedelta(hours=n % 3)) for n in range(1, 8)]
    async with administering(database, dns, *told) as stub:
        seen: list[tuple[int, str]] = []
        token = ""
        while True:
            request = admin_pb2.ListEvaluationsRequest(domain="Sender.Example", page_size=3, page_token=token)
            page = await stub.ListEvaluations(request)
            seen += [(each.hour.seconds, each.source_ip) for each in page.evaluations]
            if not (token := page.next_page_token):
                break
        assert len(seen) == 7
        assert seen == sorted(seen)
        assert (page.evaluations[0].header_from, page.evaluations[0].disposition) == ("sender.example", "pass")


async def test_what_is_removed_is_never_reported(database: str, dns: DnsServer) -> None:
    async with administering(database, dns, evaluation(messages=5), evaluation("other.example")) as stub:
        removed = await stub.RemoveEvaluations(admin_pb2.RemoveEvaluationsRequest(domain="sender.example"))
        assert removed.messages == 5
        left = await stub.ListDomains(admin_pb2.ListDomainsRequest())
        assert [each.domain for each in left.domains] == ["other.example"]
        again = await stub.RemoveEvaluations(admin_pb2.RemoveEvaluationsRequest(domain="sender.example"))
        assert again.messages == 0


async def test_a_preview_shows_the_report_and_changes_nothing(database: str, dns: DnsServer) -> None:
    async with administering(database, dns, evaluation(messages=2)) as stub:
        request = admin_pb2.PreviewReportRequest(domain="sender.example", **before(MIDNIGHT))
        shown = read_aggregate((await stub.PreviewReport(request)).xml)
        assert (shown.messages, shown.policy.domain) == (2, "sender.example")
        assert shown.end == int(MIDNIGHT.timestamp()) - 1
        assert (await stub.PreviewReport(request)).xml
        with pytest.raises(grpc.aio.AioRpcError) as nothing:
            await stub.PreviewReport(admin_pb2.PreviewReportRequest(domain="nobody.example"))
        assert nothing.value.code() is grpc.StatusCode.NOT_FOUND


async def test_reports_are_sent_by_hand_and_listed_with_what_came_of_them(database: str, dns: DnsServer) -> None:
    async with administering(database, dns, evaluation()) as stub:
        sent = await stub.SendReports(admin_pb2.SendReportsRequest(**before(MIDNIGHT)))
        (report,) = sent.reports
        assert report.state == admin_pb2.REPORT_STATE_NOBODY
        assert "else.test does not confirm" in report.detail
        assert report.end.seconds == MIDNIGHT.timestamp()
        listed = await stub.ListReports(admin_pb2.ListReportsRequest())
        assert list(listed.reports) == [report]
        assert listed.missing == ""


async def test_the_list_says_what_keeps_reports_from_leaving(database: str, dns: DnsServer) -> None:
    async with administering(database, dns, signed=False) as stub:
        assert "DKIM key" in (await stub.ListReports(admin_pb2.ListReportsRequest())).missing


async def test_addresses_are_suppressed_until_a_time_and_taken_off_again(database: str, dns: DnsServer) -> None:
    until = datetime(2030, 1, 1, tzinfo=UTC)
    async with administering(database, dns) as stub:
        for comment in ("first", "later"):
            request = admin_pb2.SuppressRequest(address="d@Else.Test", comment=comment)
            request.until.FromDatetime(until)
            await stub.Suppress(request)
        ((one),) = (await stub.ListSuppressions(admin_pb2.ListSuppressionsRequest())).suppressions
        assert (one.address, one.comment, one.until.ToDatetime(tzinfo=UTC)) == ("d@else.test", "later", until)
        await stub.Unsuppress(admin_pb2.UnsuppressRequest(address="d@else.test"))
        with pytest.raises(grpc.aio.AioRpcError) as gone:
            await stub.Unsuppress(admin_pb2.UnsuppressRequest(address="d@else.test"))
        assert gone.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("call", "request_"),
    [
        ("Suppress", admin_pb2.SuppressRequest(address="no address")),
        ("ListEvaluations", admin_pb2.ListEvaluationsRequest(domain="a.example", page_token="x")),
        ("ListSuppressions", admin_pb2.ListSuppressionsRequest(page_token="x")),
    ],
)
async def test_what_makes_no_sense_is_refused(database: str, dns: DnsServer, call: str, request_: Any) -> None:
    async with administering(database, dns) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await getattr(stub, call)(request_)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
