"""Aggregate reports go out: one for each policy domain and period, whoever is killed when."""

import asyncio
import email
import email.policy
import gzip
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from email.message import EmailMessage
from ipaddress import ip_address
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from mailrail.core.dkim.key import write_key_record
from mailrail.core.dmarc.evaluate import DmarcResult
from mailrail.core.dmarc.report.facts import ReportedDisposition, ReportedPolicy
from mailrail.core.dmarc.report.read import ReceivedAggregate, read_aggregate
from mailrail.core.lookups import answered
from mailrail.core.message_authentication.authenticate import authenticate
from mailrail.core.message_authentication.content import hash_content
from mailrail.core.message_authentication.verdict import AuthenticationRules, ClientIdentity
from mailrail.core.smtp.address import parse_address
from mailrail.pb.dmarc.v1 import record_pb2
from mailrail.pb.queue.v1 import types_pb2
from mailrail_dmarc.store.reports import MailState, ReportState

from testkit.dmarc import NOON, RunningDmarc, batch, contact, evaluation, record, reporting_revision, running_dmarc
from testkit.dns import DnsServer, Failure
from testkit.dns_table import DnsTable
from testkit.queue import RunningQueue, running_queue
from testkit.signed_mail import rsa_key

HOUR = int(NOON.timestamp()) // 3600
MIDNIGHT = HOUR - HOUR % 24 + 24
"""The end of the day."""
MAILS = "SELECT address, state FROM report_mail ORDER BY address"
REPORTS = "SELECT domain, begin_hour, end_hour, state FROM report ORDER BY end_hour, domain"
STEPS = ("store addresses", "try", "submit", "submitted", "store outcome", "finish")


class Killed(BaseException):
    """The process is gone."""


@dataclass
class Scene:
    """A dmarc service between a DNS and a queue."""

    dmarc: RunningDmarc
    dns: DnsServer
    queue: RunningQueue
    url: str

    async def send(self, before: int = MIDNIGHT, domain: str = "") -> list[tuple[str, int]]:
        """Send now."""
        return await self.dmarc.process.scheduler.send_now(before, domain)

    async def record(self, *evaluations: record_pb2.Evaluation, **more: Any) -> None:
        """Tell of messages."""
        await record(self.dmarc.port, batch(*evaluations, **more))

    async def mails(self) -> list[tuple[list[str], EmailMessage]]:
        """What the queue has: recipients and content of each message, oldest first."""
        found = []
        for number, body in await self.queue.sql("SELECT id, body FROM message WHERE NOT barred ORDER BY id"):
            rows = await self.queue.sql("SELECT address FROM recipient WHERE message_id = %s ORDER BY 1", number)
            mail = email.message_from_bytes(bytes(body), policy=email.policy.default)
            assert isinstance(mail, EmailMessage)
            found.append(([row[0] for row in rows], mail))
        return found

    async def addresses(self) -> list[str]:
        """Who gets mail."""
        return sorted(address for to, _ in await self.mails() for address in to)


def report_in(mail: EmailMessage) -> ReceivedAggregate:
    (file,) = mail.iter_attachments()
    octets = file.get_content()
    assert isinstance(octets, bytes)
    return read_aggregate(gzip.decompress(octets))


@pytest.fixture
def dns() -> Iterator[DnsServer]:
    with DnsServer() as server:
        server.add("_dmarc.sender.example", "TXT", '"v=DMARC1; p=reject; rua=mailto:d@sender.example"')
        yield server


@asynccontextmanager
async def scene(url: str, dns: DnsServer, *, signed: bool = True, **settings: Any) -> AsyncIterator[Scene]:
    async with (
        running_queue(url) as queue,
        running_dmarc(
            url,
            revision=reporting_revision(signed=signed),
            resolver=dns.endpoint,
            queue_target=f"127.0.0.1:{queue.port}",
            **settings,
        ) as dmarc,
    ):
        yield Scene(dmarc, dns, queue, url)


async def test_a_plain_address_gets_one_report_and_an_hour_later_none_DAGG_01b(database: str, dns: DnsServer) -> None:
    async with scene(database, dns) as here:
        await here.record(evaluation(messages=3), evaluation(source="2001:db8::1", passed=False))
        assert await here.send() == [("sender.example", MIDNIGHT)]
        assert await here.send(MIDNIGHT + 1) == []
        ((to, mail),) = await here.mails()
        assert to == ["d@sender.example"]
        assert mail["From"] == "postmaster@mx.home.example"
        report = report_in(mail)
        assert (report.begin, report.end) == ((MIDNIGHT - 24) * 3600, MIDNIGHT * 3600 - 1)
        assert report.messages == 4
        assert await here.dmarc.sql(REPORTS) == [("sender.example", MIDNIGHT - 24, MIDNIGHT, ReportState.SENT)]
        assert await here.dmarc.sql("SELECT count(*) FROM evaluation") == [(0,)]
        assert await here.dmarc.sql("SELECT records, covered FROM domain") == [(0, MIDNIGHT)]


async def test_a_report_is_mail_of_ours_in_the_envelope_of_a_report(database: str, dns: DnsServer) -> None:
    async with scene(database, dns) as here:
        await here.record(evaluation())
        await here.send()
        ((data,),) = await here.queue.sql("SELECT envelope FROM message WHERE NOT barred")
        envelope = types_pb2.Envelope.FromString(bytes(data))
        assert envelope.mail_from == "postmaster@mx.home.example"
        assert envelope.purpose == types_pb2.PURPOSE_DMARC_REPORT
        assert envelope.origin == types_pb2.ORIGIN_SYSTEM
        assert envelope.account.name == "alice"


async def test_a_report_passes_DMARC_by_the_signature_of_the_queue_DAGG_10_DKIM_10b(
    database: str, dns: DnsServer
) -> None:
    key, revision = rsa_key(), reporting_revision()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    async with scene(database, dns) as here:
        paths = {each.private_key.path: pem for domain in revision.domains for each in domain.dkim}
        here.queue.queue.signer.configure(revision, paths)
        await here.record(evaluation())
        await here.send()
        ((prefix, body, size),) = await here.queue.sql("SELECT prefix, body, size FROM message WHERE NOT barred")
    content = bytes(prefix) + bytes(body)
    assert size == len(content)
    table = DnsTable()
    table.add("_dmarc.home.example", "TXT", "v=DMARC1; p=reject")
    table.add("s1._domainkey.home.example", "TXT", write_key_record(key.public_key()))
    client = ClientIdentity(ip_address("192.0.2.1"), "mx.home.example", parse_address("postmaster@mx.home.example"))
    asking = authenticate(client, hash_content(content, time.time()), AuthenticationRules("mx.else.test"))
    verdict = answered(asking, table)
    assert [each.result for each in verdict.dmarc.verdicts] == [DmarcResult.PASS]


async def test_two_days_are_two_reports_and_a_third_day_waits_until_it_is_over_DAGG_02b(
    database: str, dns: DnsServer
) -> None:
    async with scene(database, dns) as here:
        await here.record(*(evaluation(seen=NOON + timedelta(days=day)) for day in range(3)))
        fixer = here.dmarc.process.scheduler._fixer
        assert await fixer.fix_due(MIDNIGHT + 25) == 2
        assert [row[1:3] for row in await here.dmarc.sql(REPORTS)] == [
            (MIDNIGHT - 24, MIDNIGHT),
            (MIDNIGHT, MIDNIGHT + 24),
        ]


@pytest.mark.parametrize("lost", STEPS)
async def test_a_process_that_is_killed_at_any_step_leaves_neither_none_nor_two(
    database: str, dns: DnsServer, lost: str
) -> None:
    dns.set("_dmarc.sender.example", "TXT", '"v=DMARC1; p=none; rua=mailto:a@sender.example,mailto:b@sender.example"')
    met = []

    async def kill(step: str) -> None:
        met.append(step)
        if step == lost:
            raise Killed

    async with scene(database, dns, step=kill) as here:
        await here.record(evaluation())
        with pytest.raises(Killed):
            await here.send()
        await here.dmarc.sql("UPDATE report SET due = now()")
    assert met[-1] == lost
    async with scene(database, dns) as again:
        await again.send()
        assert await again.addresses() == ["a@sender.example", "b@sender.example"]
        assert [state for _, state in await again.dmarc.sql(MAILS)] == [MailState.QUEUED] * 2
        assert [row[3] for row in await again.dmarc.sql(REPORTS)] == [ReportState.SENT]
        ids = {report_in(mail).id for _, mail in await again.mails()}
        assert len(ids) == 1


async def test_a_process_that_was_away_until_the_mail_is_history_sends_no_second_one(
    database: str, dns: DnsServer
) -> None:
    async def kill(step: str) -> None:
        if step == "submitted":
            raise Killed

    async with scene(database, dns, step=kill) as here:
        await here.record(evaluation())
        with pytest.raises(Killed):
            await here.send()
        await here.dmarc.sql("UPDATE report SET due = now()")
        outbound = await here.queue.outbound()
        outbound.answer = None
        await here.queue.until("SELECT count(*) = 1 FROM recipient")
        while not outbound.deliveries:
            await asyncio.sleep(0.05)
        outbound.finish(*outbound.deliveries)
        await here.queue.until("SELECT count(*) = 1 FROM history")
        await here.queue.sql("DELETE FROM message")
    async with scene(database, dns) as again:
        await again.send()
        assert await again.mails() == []
        assert await again.dmarc.sql(MAILS) == [("d@sender.example", MailState.QUEUED)]


async def test_several_processes_send_one_report_for_each_domain_and_period(database: str, dns: DnsServer) -> None:
    for number in range(5):
        dns.add(f"_dmarc.s{number}.example", "TXT", f'"v=DMARC1; p=none; rua=mailto:d@s{number}.example"')
    async with scene(database, dns) as one, scene(database, dns) as other:
        await one.record(*(evaluation(f"s{number}.example") for number in range(5)))
        await asyncio.gather(one.send(), other.send(), one.send(), other.send())
        await one.send()
        assert await one.addresses() == [f"d@s{number}.example" for number in range(5)]


async def test_three_addresses_are_three_mails_and_nobody_sees_the_others_DAGG_11b(
    database: str, dns: DnsServer
) -> None:
    uris = ",".join(f"mailto:{name}@sender.example" for name in "abc")
    dns.set("_dmarc.sender.example", "TXT", f'"v=DMARC1; p=none; rua={uris}"')
    async with scene(database, dns) as here:
        await here.record(evaluation())
        await here.send()
        found = [(to, mail["To"]) for to, mail in await here.mails()]
        assert sorted(found) == [([f"{name}@sender.example"], f"{name}@sender.example") for name in "abc"]


@pytest.mark.parametrize(
    ("record", "confirmed", "expected"),
    [
        ("rua=mailto:d@else.test", {}, []),
        ("rua=mailto:d@else.test", {"": "v=DMARC1"}, ["d@else.test"]),
        (
            "rua=mailto:d@else.test",
            {"": "v=DMARC1; rua=mailto:good1@else.test,mailto:good2@else.test,mailto:bad@third.test"},
            ["good1@else.test", "good2@else.test"],
        ),
        ("", {}, []),
        ("rua=https://else.test/", {}, []),
    ],
)
async def test_an_address_at_another_organization_gets_reports_by_its_consent_alone_DAGG_14(
    database: str, dns: DnsServer, record: str, confirmed: dict[str, str], expected: list[str]
) -> None:
    dns.set("_dmarc.sender.example", "TXT", f'"v=DMARC1; p=none; {record}"')
    for text in confirmed.values():
        dns.add("sender.example._report._dmarc.else.test", "TXT", f'"{text}"')
    async with scene(database, dns) as here:
        await here.record(evaluation())
        await here.send()
        assert await here.addresses() == expected
        state = ReportState.SENT if expected else ReportState.NOBODY
        assert [row[3] for row in await here.dmarc.sql(REPORTS)] == [state]


async def test_while_the_DNS_does_not_answer_what_was_counted_is_kept_and_each_address_gets_one_DAGG_15(
    database: str, dns: DnsServer
) -> None:
    dns.set("_dmarc.sender.example", "TXT", '"v=DMARC1; p=none; rua=mailto:d@sender.example,mailto:d@else.test"')
    dns.fail("sender.example._report._dmarc.else.test", Failure.SERVFAIL)
    async with scene(database, dns) as here:
        await here.record(evaluation())
        await here.send()
        assert [row[3] for row in await here.dmarc.sql(REPORTS)] == [ReportState.OPEN]
        dns.mend("sender.example._report._dmarc.else.test")
        dns.add("sender.example._report._dmarc.else.test", "TXT", '"v=DMARC1"')
    async with scene(database, dns) as again:
        await again.send()
        assert await again.addresses() == ["d@else.test", "d@sender.example"]
        assert [row[3] for row in await again.dmarc.sql(REPORTS)] == [ReportState.SENT]


async def test_a_domain_whose_record_is_gone_has_no_report_and_the_list_says_why(database: str, dns: DnsServer) -> None:
    dns.remove("_dmarc.sender.example")
    async with scene(database, dns) as here:
        await here.record(evaluation())
        await here.send()
        ((state, detail),) = await here.dmarc.sql("SELECT state, detail FROM report")
        assert (state, "no DMARC record" in detail) == (ReportState.NOBODY, True)


@pytest.mark.parametrize(("until", "expected"), [("1 day", []), ("-1 day", ["d@sender.example"])])
async def test_an_address_that_is_suppressed_gets_none_until_then(
    database: str, dns: DnsServer, until: str, expected: list[str]
) -> None:
    async with scene(database, dns) as here:
        await here.dmarc.sql(
            "INSERT INTO suppression (address, until) VALUES ('d@sender.example', now() + %s::interval)", until
        )
        await here.record(evaluation())
        await here.send()
        assert await here.addresses() == expected


@pytest.mark.parametrize(
    ("uris", "expected"),
    [
        ("mailto:small@sender.example!1,mailto:large@sender.example!10t", ["large@sender.example"]),
        ("mailto:small@sender.example!1", ["small@sender.example"]),
    ],
)
async def test_sizes_count_where_they_are_to_and_then_a_word_goes_in_place_of_the_report(
    database: str, dns: DnsServer, uris: str, expected: list[str]
) -> None:
    dns.set("_dmarc.sender.example", "TXT", f'"v=DMARC1; p=none; rua={uris}"')
    async with scene(database, dns, honour_sizes=True) as here:
        await here.record(evaluation())
        await here.send()
        ((to, mail),) = await here.mails()
        assert to == expected
        is_word = mail["Subject"].startswith("DMARC aggregate reporting error report for sender.example")
        assert is_word == (expected == ["small@sender.example"])
        assert not is_word or "Submitting-URI: mailto:small@sender.example" in mail.get_content()


@pytest.mark.parametrize(
    ("cause", "known", "expected"),
    [
        (record_pb2.CAUSE_UNSPECIFIED, "", True),
        (record_pb2.CAUSE_REPORT_ADDRESS, "sender.example", False),
        (record_pb2.CAUSE_REFUSED, "", False),
        (record_pb2.CAUSE_REFUSED, "sender.example", True),
        (record_pb2.CAUSE_REFUSED, "mail.sender.example", True),
        (record_pb2.CAUSE_REFUSED, "other-sender.example", False),
    ],
)
async def test_what_makes_no_report_necessary_makes_none_DAGG_18(
    database: str, dns: DnsServer, cause: "record_pb2.Cause.ValueType", known: str, expected: bool
) -> None:
    async with scene(database, dns) as here:
        ((today,),) = await here.dmarc.sql("SELECT now()")
        contacts = [contact("ours.example", known, today)] if known else []
        await here.record(evaluation(cause=cause), contacts=contacts)
        await here.send()
        assert (await here.addresses() != []) == expected
        assert await here.dmarc.sql("SELECT count(*) FROM evaluation") == [(0,)]


async def test_what_is_optional_is_told_where_there_is_a_report_DAGG_18(database: str, dns: DnsServer) -> None:
    async with scene(database, dns) as here:
        await here.record(evaluation(), evaluation(source="192.0.2.9", cause=record_pb2.CAUSE_REPORT_ADDRESS))
        await here.send()
        ((_, mail),) = await here.mails()
        assert sorted(row.source_ip for row in report_in(mail).records) == ["192.0.2.1", "192.0.2.9"]


async def test_a_policy_that_changes_within_the_day_is_told_as_it_was_last_DAGG_19(
    database: str, dns: DnsServer
) -> None:
    async with scene(database, dns) as here:
        for hours, p in ((0, ReportedDisposition.NONE), (3, ReportedDisposition.QUARANTINE)):
            policy = ReportedPolicy("sender.example", p)
            await here.record(evaluation(policy=policy, seen=NOON + timedelta(hours=hours)))
        await here.send()
        ((_, mail),) = await here.mails()
        assert report_in(mail).policy.p == "quarantine"


async def test_a_shorter_interval_is_honoured_and_a_setting_turns_that_off_DMRC_03b(
    database: str, dns: DnsServer
) -> None:
    async with scene(database, dns, short_intervals=False) as here:
        await here.record(evaluation(interval=1))
        assert await here.dmarc.process.scheduler._fixer.fix_due(HOUR + 2) == 0
    async with scene(database, dns) as here:
        assert await here.dmarc.process.scheduler._fixer.fix_due(HOUR + 2) == 1
        assert [row[1:3] for row in await here.dmarc.sql(REPORTS)] == [(HOUR, HOUR + 1)]


async def test_without_a_signing_key_nothing_leaves_and_what_was_counted_is_kept(database: str, dns: DnsServer) -> None:
    async with scene(database, dns, signed=False) as here:
        assert "DKIM key" in here.dmarc.process.scheduler.missing
        await here.record(evaluation())
        await here.send()
        assert await here.mails() == []
    async with scene(database, dns) as here:
        await here.send()
        assert await here.addresses() == ["d@sender.example"]


async def test_while_the_queue_is_away_the_report_waits(database: str, dns: DnsServer) -> None:
    async with running_dmarc(
        database, revision=reporting_revision(), resolver=dns.endpoint, queue_target="127.0.0.1:1"
    ) as dmarc:
        await record(dmarc.port, batch(evaluation()))
        await dmarc.process.scheduler.send_now(MIDNIGHT, "")
        assert [row[3] for row in await dmarc.sql(REPORTS)] == [ReportState.OPEN]
    async with scene(database, dns) as here:
        await here.send()
        assert await here.addresses() == ["d@sender.example"]


async def test_an_address_of_a_domain_of_ours_is_delivered_here_and_one_that_does_not_exist_ends_it(
    database: str, dns: DnsServer
) -> None:
    uris = "mailto:alice@home.example,mailto:nobody@home.example"
    dns.add("_dmarc.home.example", "TXT", f'"v=DMARC1; p=none; rua={uris}"')
    async with scene(database, dns) as here:
        await here.record(evaluation("home.example"))
        await here.send()
        assert await here.dmarc.sql(MAILS) == [
            ("alice@home.example", MailState.QUEUED),
            ("nobody@home.example", MailState.REFUSED),
        ]


async def test_the_form_of_RFC_7489_goes_to_those_who_want_it(database: str, dns: DnsServer) -> None:
    async with scene(database, dns, form_7489=("sender.example",)) as here:
        await here.record(evaluation())
        await here.send()
        ((_, mail),) = await here.mails()
        (file,) = mail.iter_attachments()
        assert b"<feedback>" in gzip.decompress(file.get_content())


async def test_a_report_that_finds_no_way_for_so_long_is_given_up(database: str, dns: DnsServer) -> None:
    dns.fail("_dmarc.sender.example", Failure.SERVFAIL)
    async with scene(database, dns, keep_days=1) as here:
        await here.record(evaluation())
        await here.dmarc.process.scheduler._fixer.fix_due(MIDNIGHT)
        assert await here.send(MIDNIGHT) == [("sender.example", MIDNIGHT)]
        assert [row[3] for row in await here.dmarc.sql(REPORTS)] == [ReportState.EXPIRED]
