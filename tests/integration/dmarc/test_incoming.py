"""Reports of others: read once each, kept, listed; what is none is refused, and the mail stays (DAGG-21, TRPT-20)."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from mailrail.core.revision.revision import Domain, DomainDelivery, Gateway, ObjectRef, Revision
from mailrail.kit import clock
from mailrail.pb.dmarc.v1 import received_pb2, received_pb2_grpc
from mailrail.pb.queue.v1 import types_pb2
from mailrail_dmarc.incoming import REFUSED, TAKEN, IncomingReports, Looked
from mailrail_dmarc.store.connection import database as opened

from testkit.dmarc import QUICK, RunningDmarc, running_dmarc
from testkit.report_mail import CAME, PASSES, ReportMailbox, aggregate, report_mail, report_mailbox

SAMPLES = Path(__file__).parents[4] / "shared" / "data"
POSTMASTER = ObjectRef("MailAccount", "mail", "postmaster")
GATEWAY = Gateway(ObjectRef("MailGateway", "mail", "g"), "mx.our.example", (), POSTMASTER)
ELSE = ("example.com", "company-y.example", "server.com", "xxxxxxxx.xx")
"""Domains that samples of TLS reports are about."""
DISTINCT = "SELECT submitter, report_id, good, bad, rows, left_out FROM received ORDER BY id"


def revision(*domains: str) -> Revision:
    return Revision(
        gateways=(GATEWAY,),
        domains=tuple(Domain(ObjectRef("MailDomain", "mail", n), n, DomainDelivery.MAILBOX) for n in domains),
    )


@pytest.fixture
async def mailbox() -> AsyncIterator[ReportMailbox]:
    async with report_mailbox() as found:
        yield found


@contextlib.asynccontextmanager
async def reading(
    url: str, mailbox: ReportMailbox, *domains: str, **settings: Any
) -> AsyncIterator[tuple[IncomingReports, RunningDmarc]]:
    """A reader, and the process that lists what it read."""
    ours = revision(*(domains or ("our.example",)))
    changed = replace(QUICK, database_url=url, **settings)
    async with running_dmarc(url, read=False) as dmarc, opened(changed) as found:
        yield IncomingReports(changed, found, mailbox.channel, lambda: ours), dmarc


async def test_a_report_is_kept_and_its_mail_marked_read(database: str, mailbox: ReportMailbox) -> None:
    async with reading(database, mailbox) as (reader, dmarc):
        number = mailbox.put(report_mail(aggregate(rows=3)))
        assert await reader.look() == Looked(counted=1)
        assert await dmarc.sql(DISTINCT) == [("rep.example", "id-1", 2, 4, 3, 0)]
        assert await dmarc.sql("SELECT host(source), messages, dkim FROM received_record ORDER BY number") == [
            ("192.0.2.1", 2, "pass"),
            ("192.0.2.1", 2, "fail"),
            ("192.0.2.1", 2, "fail"),
        ]
        assert mailbox.flags[number] == {TAKEN, "\\Seen"}
        assert await reader.look() == Looked()


async def test_a_report_that_comes_twice_counts_once(database: str, mailbox: ReportMailbox) -> None:
    async with reading(database, mailbox) as (reader, dmarc):
        for _ in range(3):
            mailbox.put(report_mail(aggregate()))
        mailbox.put(report_mail(aggregate(), "other.example"))  # an id is unique for its sender alone
        assert await reader.look() == Looked(counted=2, again=2)
        assert len(await dmarc.sql(DISTINCT)) == 2
        assert await dmarc.sql("SELECT count(*), count(DISTINCT report) FROM received_mail") == [(4, 2)]


async def test_who_is_killed_before_the_mail_is_marked_counts_it_once(database: str, mailbox: ReportMailbox) -> None:
    async with reading(database, mailbox) as (reader, dmarc):
        mailbox.put(report_mail(aggregate()))
        mailbox.put(report_mail(b"junk"))
        for _ in range(2):
            mailbox.flags_fail = True
            with pytest.raises(grpc.aio.AioRpcError):
                await reader.look()
            mailbox.flags_fail = False
        await reader.look()
        assert len(await dmarc.sql(DISTINCT)) == 1
        assert await dmarc.sql("SELECT id, outcome FROM received_mail ORDER BY id") == [(1, 1), (2, 3)]
        assert all(TAKEN in flags for flags in mailbox.flags.values())


async def test_two_replicas_that_read_the_same_mail_count_it_once(database: str, mailbox: ReportMailbox) -> None:
    async with reading(database, mailbox) as (one, dmarc), reading(database, mailbox) as (other, _):
        for number in range(6):
            mailbox.put(report_mail(aggregate(number)))
        found = await asyncio.gather(one.look(), other.look())
        assert sum(each.counted for each in found) == 6
        assert len(await dmarc.sql(DISTINCT)) == 6


async def test_what_does_not_count_is_kept_with_its_reason_and_the_mail_stays(
    database: str, mailbox: ReportMailbox
) -> None:
    bomb = report_mail(b"<feedback>" + b" " * 40_000_000)
    for mail in (report_mail(aggregate(), results=""), bomb, report_mail(aggregate(domain="foreign.example"))):
        mailbox.put(mail)
    async with reading(database, mailbox) as (reader, dmarc):
        assert await reader.look() == Looked(refused=3)
        assert await dmarc.sql(DISTINCT) == []
        reasons = [row[0] for row in await dmarc.sql("SELECT reason FROM received_mail ORDER BY id")]
    wanted = ("nothing proves", "unpacks to more than", "not about a domain of ours")
    assert [words in reason for reason, words in zip(reasons, wanted, strict=True)] == [True] * 3
    assert all(flags == {TAKEN, REFUSED} for flags in mailbox.flags.values())  # not seen: the postmaster may look
    assert len(mailbox.mails) == 3


async def test_a_mail_is_looked_at_again_once_its_flag_is_taken_away(database: str, mailbox: ReportMailbox) -> None:
    number = mailbox.put(report_mail(aggregate(domain="new.example")))
    async with reading(database, mailbox) as (reader, _):
        assert await reader.look() == Looked(refused=1)
    mailbox.flags[number].clear()
    async with reading(database, mailbox, "new.example") as (reader, dmarc):
        assert await reader.look() == Looked(counted=1)
        assert await dmarc.sql("SELECT outcome, reason FROM received_mail") == [(1, "")]


async def test_a_sender_has_so_many_reports_an_hour_and_the_others_wait(database: str, mailbox: ReportMailbox) -> None:
    for number in range(5):
        mailbox.put(report_mail(aggregate(number), f"h{number}.rep.example"))
    mailbox.put(report_mail(aggregate(), "other.test"))
    async with reading(database, mailbox, received_per_hour=2) as (reader, dmarc):
        assert await reader.look() == Looked(counted=3, waiting=3)
        read = len(mailbox.reads)
        assert await reader.look() == Looked(waiting=3)
        assert len(mailbox.reads) == read  # nor is their mail fetched all the time
        await dmarc.sql("UPDATE received_mail SET looked = looked - interval '2 hours'")
    async with reading(database, mailbox, received_per_hour=2) as (reader, _):
        assert (await reader.look()).counted == 2


async def test_of_a_report_without_room_the_sums_are_kept(database: str, mailbox: ReportMailbox) -> None:
    async with reading(database, mailbox, received_rows=4) as (reader, dmarc):
        for number in range(3):
            mailbox.put(report_mail(aggregate(number, rows=3)))
        await reader.look()
        assert [row[2:] for row in await dmarc.sql(DISTINCT)] == [(2, 4, 3, 0), (2, 4, 1, 2), (2, 4, 0, 3)]


async def test_a_mail_that_cannot_be_read_keeps_no_other_from_being_read(
    database: str, mailbox: ReportMailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        mailbox.put(report_mail(aggregate(number)))
    mailbox.broken = {2}
    async with reading(database, mailbox) as (reader, _):
        assert await reader.look() == Looked(counted=2, waiting=1)
        assert mailbox.flags[2] == set()
        mailbox.broken.clear()
        monkeypatch.setattr(clock, "now", lambda: 10.0**12)
        assert await reader.look() == Looked(counted=1)


async def test_a_report_that_our_own_queue_made_needs_no_proof(database: str, mailbox: ReportMailbox) -> None:
    mailbox.put(report_mail(aggregate(), "our.example", ""), types_pb2.PURPOSE_DMARC_REPORT)
    async with reading(database, mailbox) as (reader, dmarc):
        assert await reader.look() == Looked(counted=1)
        assert [row[0] for row in await dmarc.sql(DISTINCT)] == ["our.example"]


async def test_reports_are_listed_and_found_by_domain_sender_kind_and_address(
    database: str, mailbox: ReportMailbox
) -> None:
    mailbox.put(report_mail(aggregate(1, source="2001:db8::1")))
    mailbox.put(report_mail(aggregate(2, domain="sub.our.example"), "other.test"))
    mailbox.put(report_mail((SAMPLE_TLS).encode(), "other.test"))
    mailbox.put(report_mail(b"junk"))
    async with reading(database, mailbox) as (reader, dmarc):
        assert await reader.look() == Looked(counted=3, refused=1)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{dmarc.port}") as channel:
            stub: received_pb2_grpc.ReceivedServiceAsyncStub = received_pb2_grpc.ReceivedServiceStub(channel)

            async def ids(**wanted: Any) -> list[str]:
                request = received_pb2.ListReceivedRequest(page_size=1, **wanted)
                found: list[str] = []
                while True:
                    page = await stub.ListReceived(request)
                    found += [one.report_id for one in page.reports]
                    request.page_token = page.next_page_token
                    if not page.next_page_token:
                        return found

            assert sorted(await ids()) == ["id-1", "id-2", "tls-1"]
            assert await ids(domain="Sub.Our.example.") == ["id-2"]
            assert await ids(source="2001:DB8::1") == ["id-1"]
            assert await ids(submitter="rep.example") == ["id-1"]
            assert await ids(kind=received_pb2.REPORT_KIND_TLS) == ["tls-1"]
            assert await ids(domain="none.example") == []
            page = await stub.ListReceived(received_pb2.ListReceivedRequest())
            reports = {one.report_id: one for one in page.reports}
            whole = await stub.GetReceived(received_pb2.GetReceivedRequest(id=reports["id-1"].id))
            assert (whole.records[0].source, whole.records[0].messages, whole.more) == ("2001:db8::1", 2, 0)
            whole = await stub.GetReceived(received_pb2.GetReceivedRequest(id=reports["tls-1"].id))
            (policy,) = whole.policies
            assert (policy.type, policy.successful, policy.failed) == ("sts", 5, 2)
            assert json.loads(policy.details)["failures"] == [
                {"result": "certificate-expired", "sessions": 2, "receiving_host": "mx.our.example"}
            ]
            (refused,) = (await stub.ListRefused(received_pb2.ListRefusedRequest())).mails
            assert (refused.id, refused.sender, "neither XML nor JSON" in refused.reason) == (4, "rep.example", True)
            for call in (
                stub.ListReceived(received_pb2.ListReceivedRequest(source="nobody")),
                stub.ListReceived(received_pb2.ListReceivedRequest(domain="a b")),
                stub.ListReceived(received_pb2.ListReceivedRequest(page_token="zed")),
                stub.ListRefused(received_pb2.ListRefusedRequest(page_token="zed")),
                stub.GetReceived(received_pb2.GetReceivedRequest(id=2**64 - 1)),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call
                assert caught.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)


SAMPLE_TLS = json.dumps(
    {
        "organization-name": "Other",
        "date-range": {"start-datetime": "2026-05-31T00:00:00Z", "end-datetime": "2026-05-31T23:59:59Z"},
        "contact-info": "tls@other.test",
        "report-id": "tls-1",
        "policies": [
            {
                "policy": {"policy-type": "sts", "policy-domain": "our.example"},
                "summary": {"total-successful-session-count": 5, "total-failure-session-count": 2},
                "failure-details": [
                    {
                        "result-type": "certificate-expired",
                        "receiving-mx-hostname": "mx.our.example",
                        "failed-session-count": 2,
                    }
                ],
            }
        ],
    }
)


async def test_reports_are_forgotten_after_some_days_and_their_mail_stays(
    database: str, mailbox: ReportMailbox
) -> None:
    mailbox.put(report_mail(aggregate()))
    async with reading(database, mailbox, received_days=30) as (reader, dmarc):
        await reader.look()
        await dmarc.sql("UPDATE received SET came = came - interval '31 days'")
        await dmarc.sql("UPDATE received_mail SET looked = looked - interval '31 days'")
        await reader.look()
        for table in ("received", "received_record", "received_mail"):
            assert await dmarc.sql(f"SELECT count(*) FROM {table}") == [(0,)]
    assert len(mailbox.mails) == 1


def _facts() -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    """Samples of real senders with what is known of them."""
    for folder in ("dmarc/viewer", "dmarc/mox", "dmarc/tierpod", "tlsrpt/viewer", "tlsrpt/isseis"):
        for name, facts in yaml.safe_load((SAMPLES / folder / "expected.yml").read_text()).items():
            yield f"{folder}/{name}", (SAMPLES / folder / name).read_bytes(), facts
    for file in (*sorted((SAMPLES / "dmarc/samples").iterdir()), SAMPLES / "tlsrpt/google.com_smtp_tls_report.eml"):
        yield f"else/{file.name}", file.read_bytes(), {}


@pytest.mark.skipif(not SAMPLES.exists(), reason="the public samples are not beside the project")
async def test_reports_of_real_senders_are_kept_with_the_right_figures_DAGG_21(
    database: str, mailbox: ReportMailbox
) -> None:
    facts = list(_facts())
    for number, (name, octets, _) in enumerate(facts):
        sender = f"s{number}.example"
        proof = PASSES.format(sender).encode()
        if name.endswith(".eml"):  # who sent it then is not who sends it now
            octets = proof + b"From: a@" + sender.encode() + b"\r\n" + _without_author(octets)
            mailbox.put(octets)
        else:
            mailbox.put(report_mail(octets, sender))
    told = {str(each[2].get("domain", "")) for each in facts} - {""}
    async with reading(database, mailbox, *told, *ELSE) as (reader, dmarc):
        await reader.look()
        kept = {
            row[0]: row[1:]
            for row in await dmarc.sql(
                "SELECT m.id, r.organization, r.domain, r.good, r.bad, r.rows "
                "FROM received_mail m LEFT JOIN received r ON r.id = m.report"
            )
        }
        refused = dict(await dmarc.sql("SELECT id, reason FROM received_mail WHERE outcome = 3"))
    assert len(kept) == len(facts)
    for number, (name, _, known) in enumerate(facts, 1):
        if "org" not in known:  # it has an outcome, and a reason if it does not count
            assert refused.get(number, "it counts"), name
            continue
        assert number not in refused, (name, refused.get(number))
        organization, domain, good, bad, rows = kept[number]
        assert organization.lower() == str(known["org"]).lower(), name
        if name.startswith("dmarc"):
            assert (domain, good + bad) == (known["domain"], known["messages"]), name
            assert rows == known["records"] or name.endswith("test2.xml"), name  # of which another reader makes 12
        else:
            assert (good, bad) == (known["successful"], known["failed"]), name


def _without_author(mail: bytes) -> bytes:
    """A mail without the fields that say who sent it."""
    lines, skipping = mail.split(b"\n"), False
    kept: list[bytes] = []
    for at, line in enumerate(lines):
        if line in (b"", b"\r"):
            return b"\n".join(kept + lines[at:])
        if line[:1] not in (b" ", b"\t"):
            skipping = line.partition(b":")[0].lower() in (b"from", b"tls-report-submitter")
        if not skipping:
            kept.append(line)
    return b"\n".join(kept)


def test_the_mail_came_after_the_periods_of_the_samples() -> None:
    assert CAME.timestamp() > 1780271999
