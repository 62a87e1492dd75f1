"""What ingress saw under DMARC goes to the dmarc service, and no client ever waits for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address

import pytest

from mailrail.core.dmarc.disposition import EnforcementRules
from mailrail.core.dmarc.report.facts import ReportedDisposition, decode
from mailrail.core.lookups import answered
from mailrail.core.message_authentication.authenticate import authenticate
from mailrail.core.message_authentication.content import hash_content
from mailrail.core.message_authentication.verdict import AuthenticationRules, ClientIdentity, MessageVerdict
from mailrail.core.smtp.address import parse_address
from mailrail.pb.dmarc.v1 import record_pb2
from mailrail_ingress import metrics
from mailrail_ingress.dmarc_records import DmarcRecorder, EvaluationCounts
from mailrail_ingress.ports import RecordedRecipients
from mailrail_ingress.settings import IngressSettings

from testkit.conditions import eventually
from testkit.dmarc import running_dmarc
from testkit.dns_table import DnsTable

NOW = 1_767_225_600.0
OURS = RecordedRecipients("ours.example")
SETTINGS = IngressSettings(plaintext=True, dmarc_seconds=0.05)


def judged(
    record: str = "v=DMARC1; p=reject; rua=mailto:d@sender.example",
    *,
    author: str = "ann@sender.example",
    client: str = "192.0.2.1",
    dns: DnsTable | None = None,
    defer: bool = False,
) -> MessageVerdict:
    """Of a message that passes by SPF where it comes from 192.0.2.1."""
    table = dns or DnsTable()
    table.add("sender.example", "TXT", "v=spf1 ip4:192.0.2.1 -all")
    if record:
        table.add("_dmarc.sender.example", "TXT", record)
    identity = ClientIdentity(ip_address(client), "mail.sender.example", parse_address("ann@sender.example"))
    rules = AuthenticationRules("mx.ours.example", EnforcementRules(defer_on_temperror=defer))
    content = hash_content(f"From: {author}\r\n\r\nhello\r\n".encode(), NOW)
    return answered(authenticate(identity, content, rules), table)


def counted(
    verdict: MessageVerdict, *recipients: RecordedRecipients, refused: bool = False, octets: int = 1_000_000
) -> record_pb2.RecordRequest:
    counts = EvaluationCounts(octets)
    counts.add(verdict, recipients or (OURS,), refused=refused, now=NOW)
    return counts.take() or record_pb2.RecordRequest()


def test_a_message_is_told_with_what_its_report_needs_DMRC_17a() -> None:
    (told,) = counted(judged()).evaluations
    assert (told.policy_domain, told.our_domain, told.organization) == (
        "sender.example",
        "ours.example",
        "sender.example",
    )
    assert (told.messages, told.interval_hours, told.seen.seconds) == (1, 24, NOW)
    message = decode(told.source_ip, told.facts)
    assert (message.source_ip, message.spf_aligned, message.disposition) == (
        "192.0.2.1",
        True,
        ReportedDisposition.PASS,
    )


@pytest.mark.parametrize("refused", [False, True])
def test_a_message_that_any_filter_refused_counts_as_well_DMRC_17a(refused: bool) -> None:
    told = counted(judged(), refused=refused)
    expected = record_pb2.CAUSE_REFUSED if refused else record_pb2.CAUSE_UNSPECIFIED
    assert [each.cause for each in told.evaluations] == [expected]
    assert [(each.our_domain, each.domain) for each in told.contacts] == (
        [] if refused else [("ours.example", "sender.example")]
    )


def test_mail_to_a_report_address_is_told_as_such_DAGG_18() -> None:
    (told,) = counted(judged(), RecordedRecipients("ours.example", report_address=True), refused=True).evaluations
    assert told.cause == record_pb2.CAUSE_REPORT_ADDRESS


def test_equal_messages_are_one_entry_and_each_domain_of_ours_has_its_own() -> None:
    counts = EvaluationCounts(1_000_000)
    for _ in range(3):
        counts.add(judged(), (OURS, RecordedRecipients("other.example")), refused=False, now=NOW)
    batch = counts.take()
    assert batch is not None
    assert {(each.our_domain, each.messages) for each in batch.evaluations} == {
        ("ours.example", 3),
        ("other.example", 3),
    }
    assert counts.take() is None
    assert counts.octets == 0


@pytest.mark.parametrize("record", ["", "v=DMARC1; p=reject", "v=DMARC1; p=reject; rua=mailto:a@b.example,,; ri=7200"])
def test_who_asks_for_no_reports_is_not_told_of(record: str) -> None:
    told = counted(judged(record)).evaluations
    assert [each.interval_hours for each in told] == ([2] if "rua" in record else [])


def test_a_message_that_is_deferred_comes_again_and_then_it_counts() -> None:
    dns = DnsTable()
    dns.fail("_dmarc.sender.example", "TXT")
    verdict = judged("", dns=dns, defer=True)
    assert not counted(verdict).evaluations


def test_memory_is_bounded_and_what_does_not_fit_is_counted() -> None:
    counts, dropped = EvaluationCounts(10_000), 0
    for number in range(200):
        verdict = judged(client=f"198.51.100.{number % 100}", author=f"a@n{number}.sender.example")
        dropped += counts.add(verdict, (OURS,), refused=False, now=NOW)
    assert 5_000 < counts.octets <= 10_000
    assert dropped > 150
    batch = counts.take()
    assert batch is not None
    assert len(batch.evaluations) == 200 - dropped


@contextmanager
def dropped_since() -> Iterator[list[float]]:
    before, found = metrics.EVALUATIONS_DROPPED.of().number, [0.0]
    yield found
    found[0] = metrics.EVALUATIONS_DROPPED.of().number - before


async def test_batches_reach_the_dmarc_service_and_are_counted_once(database: str) -> None:
    async with running_dmarc(database) as dmarc:
        settings = replace(SETTINGS, dmarc_target=f"127.0.0.1:{dmarc.port}")
        async with DmarcRecorder(settings).running() as recorder:
            for _ in range(5):
                recorder.record(judged(), (OURS,), refused=False)
            await eventually(lambda: len(recorder) == 0)
        assert await dmarc.sql("SELECT domain, sum(messages)::int FROM evaluation GROUP BY domain") == [
            ("sender.example", 5)
        ]
        assert await dmarc.sql("SELECT our_domain, domain FROM contact") == [("ours.example", "sender.example")]


async def test_what_is_left_at_the_end_is_brought_before_the_process_goes(database: str) -> None:
    async with running_dmarc(database) as dmarc:
        settings = replace(SETTINGS, dmarc_target=f"127.0.0.1:{dmarc.port}", dmarc_seconds=3600.0)
        async with DmarcRecorder(settings).running() as recorder:
            recorder.record(judged(), (OURS,), refused=False)
        assert await dmarc.sql("SELECT sum(messages)::int FROM evaluation") == [(1,)]


async def test_while_dmarc_is_away_mail_is_counted_in_memory_and_brought_later(database: str) -> None:
    async with running_dmarc(database) as first:
        port = first.port
    recorder = DmarcRecorder(replace(SETTINGS, dmarc_target=f"127.0.0.1:{port}"))
    async with recorder.running():
        recorder.record(judged(), (OURS,), refused=False)
        async with running_dmarc(database, grpc_listen=f"127.0.0.1:{port}") as second:
            await eventually(lambda: len(recorder) == 0)
            assert await second.sql("SELECT sum(messages)::int FROM evaluation") == [(1,)]


async def test_a_mistake_of_ours_costs_no_client_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mailrail_ingress.dmarc_records.reportable", lambda *_, **__: 1 / 0)
    with dropped_since() as dropped:
        DmarcRecorder(replace(SETTINGS, dmarc_target="127.0.0.1:1")).record(judged(), (OURS,), refused=False)
    assert dropped == [1]


async def test_without_a_target_nothing_is_kept() -> None:
    with dropped_since() as dropped:
        async with DmarcRecorder(SETTINGS).running() as recorder:
            recorder.record(judged(), (OURS,), refused=False)
            assert len(recorder) == 0
    assert dropped == [0]
