"""What a message demands of TLS, from the commit to its end: kept, changed by administrators, inherited (RFC 8689)."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

import grpc
import pytest
from prometheus_client import REGISTRY

from mailrail.core.dsn.due import DsnKind
from mailrail.core.revision import revision as rev
from mailrail.kit import postgres
from mailrail.kit.postgres import Login
from mailrail.pb.queue.v1 import admin_pb2, admin_pb2_grpc, lease_pb2, mailbox_pb2, mailbox_pb2_grpc, types_pb2
from mailrail_queue.admin import changes as admin_changes
from mailrail_queue.admin.administration import Administration
from mailrail_queue.admin.base import CALLER, AdminContext
from mailrail_queue.admin.changes import grouped
from mailrail_queue.delivery.verdicts import attempt_recipient_of
from mailrail_queue.rpc.admin import MAILBOX, QUEUE_ADMIN, administration_services
from mailrail_queue.settings import QueueSettings
from mailrail_queue.store import results as result_store
from mailrail_queue.store import timeline
from mailrail_queue.store import waiting as waiting_store
from mailrail_queue.store.connection import Database
from mailrail_queue.store.results import Ending
from mailrail_queue.upkeep.sweeping import Upkeep

from testkit.conditions import eventually
from testkit.queue import RunningQueue, a_revision, result_of, running_queue
from testkit.stored_mail import Rig
from testkit.stored_mail import rig as make_rig

DEFAULT, REQUIRED, NO = (
    types_pb2.TLS_REQUIREMENT_UNSPECIFIED,
    types_pb2.TLS_REQUIREMENT_REQUIRED,
    types_pb2.TLS_REQUIREMENT_NO,
)
Entry = tuple[str, int, int, str]


@dataclass
class Tls:
    """An administrator on a rig."""

    rig: Rig
    do: Administration

    async def set(self, requirement: int, reason: str = "", **chosen: Any) -> set[int]:
        """The ids that the call says it changed."""
        result = await self.do.changes.set_tls(self.rig.connection, admin_pb2.Filter(**chosen), requirement, reason)
        assert len(result.listed) == result.count.recipients, "none is counted twice"
        return {change.recipient_id for change in result.listed}

    async def stored(self) -> dict[int, int]:
        """What each live recipient demands now."""
        return dict(await self.rig.rows("SELECT id, tls_requirement FROM recipient ORDER BY id"))

    async def shown(self, message_id: bytes) -> dict[int, list[Entry]]:
        """Each recipient's changes as people are told them: who, from, to, why."""
        found = await self.do.listing.message(self.rig.connection, message_id)
        return {
            each.recipient.id: [
                (e.actor, getattr(e.tls_set, "from"), e.tls_set.to, e.tls_set.reason) for e in each.entries
            ]
            for each in found.recipients
        }

    async def finish(self, *ids: int) -> None:
        rows = await self.rig.rows("SELECT id, message_id, version FROM recipient WHERE id = ANY(%s)", list(ids))
        endings = [
            Ending(i, m.bytes, 0, v, result_store.DELIVERED, types_pb2.OUTCOME_RELAYED, None) for i, m, v in rows
        ]
        assert await result_store.finish(self.rig.connection, endings) == set(ids)


@pytest.fixture
async def tls(database_for: Callable[..., str]) -> AsyncIterator[Tls]:
    async with make_rig(database_for("queue")) as rig:
        CALLER.set("cli")
        context = AdminContext(lambda: rig.router, lambda: rig.addresses, rig.notifier, rig.woken.append)
        yield Tls(rig, Administration(context))


async def test_of_a_message_all_recipients_are_changed_whichever_was_named_and_the_timeline_says_so_ADM_05(
    tls: Tls,
) -> None:
    bob, carl = await tls.rig.accept("bob@there.example", "carl@relayed.example")
    (dora,) = await tls.rig.accept("dora@there.example")
    assert await tls.set(NO, "their certificate expired", recipient_ids=[bob.id]) == {bob.id, carl.id}
    assert await tls.stored() == {bob.id: NO, carl.id: NO, dora.id: DEFAULT}
    told: Entry = ("cli", DEFAULT, NO, "their certificate expired")
    assert await tls.shown(bob.message_id) == {bob.id: [told], carl.id: [told]}
    assert await tls.shown(dora.message_id) == {dora.id: []}
    assert await tls.set(REQUIRED, to="carl@") == {bob.id, carl.id}
    assert (await tls.shown(bob.message_id))[bob.id] == [told, ("cli", NO, REQUIRED, "")]


async def test_the_entry_has_its_time(tls: Tls) -> None:
    (bob,) = await tls.rig.accept("bob@there.example")
    (before,), *_ = await tls.rig.rows("SELECT now()")
    await tls.set(NO, recipient_ids=[bob.id])
    found = await tls.do.listing.message(tls.rig.connection, bob.message_id)
    (entry,) = found.recipients[0].entries
    assert abs(entry.at.ToDatetime().timestamp() - before.replace(tzinfo=None).timestamp()) < 60


async def test_a_call_that_is_repeated_answers_alike_and_tells_it_once(tls: Tls) -> None:
    (bob,) = await tls.rig.accept("bob@there.example")
    for _ in range(3):
        assert await tls.set(NO, message_ids=[bob.message_id]) == {bob.id}
    assert len((await tls.shown(bob.message_id))[bob.id]) == 1


async def test_a_change_that_fails_leaves_neither_the_change_nor_its_entry(tls: Tls) -> None:
    (bob,) = await tls.rig.accept("bob@there.example")
    await tls.rig.connection.execute("ALTER TABLE timeline ADD CONSTRAINT refused CHECK (false) NOT VALID")
    with pytest.raises(Exception, match="refused"):
        await tls.set(NO, recipient_ids=[bob.id])
    assert await tls.stored() == {bob.id: DEFAULT}


async def test_a_large_message_and_many_small_ones_are_changed_once_each_by_small_transactions(
    tls: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin_changes, "BATCH", 4)
    monkeypatch.setattr(admin_changes, "_SET_TLS", admin_changes._SET_TLS.replace("LIMIT 500", "LIMIT 4"))
    sizes = (1, 1, 13, 4, 2, 1, 3)
    made = [await tls.rig.accept(*(f"r{m}.{n}@there.example" for n in range(k))) for m, k in enumerate(sizes)]
    ids = {recipient.id for message in made for recipient in message}
    assert await tls.set(NO, all=True) == ids
    assert set((await tls.stored()).values()) == {NO}
    assert await tls.rig.rows("SELECT count(*), count(DISTINCT recipient_id) FROM timeline") == [(len(ids), len(ids))]
    assert await tls.rig.rows("SELECT DISTINCT version FROM recipient") == [(2,)]
    # One recipient of each message is found, and all of them are changed.
    assert await tls.set(DEFAULT, to=".0@") == ids
    assert set((await tls.stored()).values()) == {DEFAULT}


async def test_a_message_whose_recipients_lie_apart_is_changed_once(tls: Tls, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the block of ids ended within it, and the next one was given after those of others."""
    monkeypatch.setattr(admin_changes, "BATCH", 2)
    apart = [one.id for one in await tls.rig.accept(*(f"apart{n}@there.example" for n in range(4)))]
    others = [one.id for n in range(7) for one in await tls.rig.accept(f"other{n}@there.example")]
    await tls.rig.connection.execute("UPDATE recipient SET id = id + 1000 WHERE id = ANY(%s)", (apart[2:],))
    assert await tls.set(NO, all=True) == {*apart[:2], *(identity + 1000 for identity in apart[2:]), *others}
    assert await tls.rig.rows("SELECT DISTINCT version, tls_requirement FROM recipient") == [(2, NO)]


def test_messages_are_changed_together_up_to_so_many_recipients_and_a_larger_one_alone() -> None:
    a, b, c, d, e = (UUID(int=number) for number in range(5))
    assert grouped([(a, 1), (b, 2), (c, 9), (d, 4), (e, 1)], 4) == [[a, b], [c], [d], [e]]
    assert grouped([], 4) == []


async def test_history_keeps_the_timeline_of_each_recipient_that_is_final_ADM_05(tls: Tls) -> None:
    bob, carl = await tls.rig.accept("bob@there.example", "carl@there.example")
    (plain,) = await tls.rig.accept("plain@there.example")
    await tls.set(NO, "why", recipient_ids=[bob.id])
    await tls.finish(bob.id)
    await tls.finish(plain.id)
    told: Entry = ("cli", DEFAULT, NO, "why")
    assert await tls.shown(bob.message_id) == {bob.id: [told], carl.id: [told]}
    await sweep(tls)
    assert await tls.shown(bob.message_id) == {bob.id: [told], carl.id: [told]}
    assert await tls.rig.rows("SELECT recipient_id FROM timeline") == [(carl.id,)]
    assert await tls.rig.rows("SELECT id, tls_requirement, timeline IS NULL FROM history ORDER BY id") == [
        (bob.id, NO, False),
        (plain.id, DEFAULT, True),
    ]


async def sweep(tls: Tls) -> None:
    database = Database(Login.of(tls.rig.url), "upkeep test")
    await Upkeep(QueueSettings(database_url=tls.rig.url), database).sweep()
    await database.close()


async def test_the_sweeper_goes_through_all_of_the_timeline_and_adds_to_what_history_has_ADM_05(
    tls: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mailrail_queue.upkeep.sweeping._ATTEMPTS_STEP", 2)
    made = [recipient for _ in range(5) for recipient in await tls.rig.accept("bob@there.example")]
    await tls.set(NO, "first", all=True)
    for each in made[1:]:
        await tls.finish(each.id)
    database = Database(Login.of(tls.rig.url), "upkeep test")
    upkeep = Upkeep(QueueSettings(database_url=tls.rig.url), database)
    await upkeep.sweep(everything=False)
    assert await tls.rig.rows("SELECT recipient_id FROM timeline") == [(made[0].id,)]
    for each in made[1:]:  # an administrator's call saw the recipient a moment before it ended
        late = types_pb2.TimelineEntry(actor="cli", tls_set=types_pb2.TlsSet(reason="late")).SerializeToString()
        await tls.rig.connection.execute(
            "INSERT INTO timeline (recipient_id, message_id, data) VALUES (%s, %s, %s)",
            (each.id, UUID(bytes=each.message_id), late),
        )
    monkeypatch.setattr("mailrail_queue.upkeep.sweeping._TIMELINE_STEPS", 1)
    for _ in range(4):
        await upkeep.sweep(everything=False)
    await database.close()
    assert await tls.rig.rows("SELECT recipient_id FROM timeline") == [(made[0].id,)]
    assert await tls.rig.rows("SELECT DISTINCT array_length(timeline, 1) FROM history") == [(2,)]
    (shown,) = (await tls.shown(made[1].message_id)).values()
    assert [why for *_, why in shown] == ["first", "late"]


async def test_of_a_recipient_that_is_changed_without_end_the_first_and_the_newest_entries_stay_ADM_05(
    tls: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timeline, "MOST_ENTRIES", 4)
    (bob,) = await tls.rig.accept("bob@there.example")
    for number in range(7):
        await tls.set(REQUIRED if number % 2 else NO, str(number), recipient_ids=[bob.id])
    assert [why for *_, why in (await tls.shown(bob.message_id))[bob.id]] == ["0", "1", "5", "6"]


async def test_a_reason_and_a_name_are_bounded(tls: Tls) -> None:
    CALLER.set("x" * 5000)
    (bob,) = await tls.rig.accept("bob@there.example")
    await tls.set(NO, "because \0 " + "y" * 5000, recipient_ids=[bob.id])
    ((data,),) = await tls.rig.rows("SELECT data FROM timeline")
    assert len(data) < 1500


async def test_an_attempt_under_way_goes_on_as_it_began_and_the_next_one_is_under_the_new_word_ADM_02_ADM_05(
    database: str,
) -> None:
    async with running_queue(database) as q:
        ingress, outbound = await q.ingress(), await q.outbound()
        await ingress.accept("user@d.example")
        await eventually(outbound.has(1))
        async with administrator(q) as admin:
            request = admin_pb2.SetTlsRequirementRequest(
                filter=admin_pb2.Filter(to="user@"), tls_requirement=REQUIRED, reason="asked by the sender"
            )
            answer = await admin.SetTlsRequirement(request)
        assert [change.state for change in answer.changes] == [admin_pb2.CHANGE_STATE_PENDING]
        assert outbound.cancelled == set()
        first = outbound.deliveries[0]
        assert first.envelope.tls_requirement == DEFAULT
        outbound.finish(first, outcome=types_pb2.OUTCOME_DEFERRED)
        await q.until("SELECT token IS NULL FROM recipient")
        await q.sql("UPDATE recipient SET due = now()")
        await eventually(outbound.has(2))
        assert outbound.deliveries[1].envelope.tls_requirement == REQUIRED


@asynccontextmanager
async def stub_of(q: RunningQueue, service: str, stub: Callable[[grpc.aio.Channel], Any]) -> AsyncIterator[Any]:
    """A service that the command line asks, in front of a queue."""
    server = grpc.aio.server()
    async with postgres.pool(Login.of(q.url), "queue", size=2) as pool:
        servicer, add = administration_services(q.queue, pool)[service]
        add(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield stub(channel)
        await server.stop(0)


@asynccontextmanager
async def administrator(q: RunningQueue) -> AsyncIterator["admin_pb2_grpc.QueueAdminServiceAsyncStub"]:
    async with stub_of(q, QUEUE_ADMIN, admin_pb2_grpc.QueueAdminServiceStub) as stub:
        yield stub


# --- what is inherited, and how it ends ---


@pytest.mark.parametrize("requirement", [REQUIRED, NO])
async def test_each_copy_of_an_alias_and_each_forwarded_one_has_the_requirement_of_the_message_RTLS_10_RTLS_24_RTLS_27c(
    database: str, requirement: types_pb2.TlsRequirement.ValueType
) -> None:
    async with running_queue(database) as q:
        ingress, outbound = await q.ingress(), await q.outbound()
        team = [
            types_pb2.EnvelopeRecipient(address=address, rcpt_to="team@home.example")
            for address in ("alice@home.example", "friend@elsewhere.example", "friend@third.example")
        ]
        await ingress.accept(*team, tls_requirement=requirement)  # type: ignore[arg-type]
        await eventually(outbound.has(2))
        assert {d.recipients[0].address for d in outbound.deliveries} == {team[1].address, team[2].address}
        assert [d.envelope.tls_requirement for d in outbound.deliveries] == [requirement] * 2
        outbound.finish(*outbound.deliveries)
        await q.until("SELECT count(*) = 3 FROM history WHERE tls_requirement = %s", requirement)
        async with stub_of(q, MAILBOX, mailbox_pb2_grpc.MailboxServiceStub) as mail:
            (kept,) = (await mail.ListMessages(mailbox_pb2.ListMessagesRequest())).messages
        assert kept.tls_requirement == requirement


@pytest.mark.parametrize(
    ("asked", "now", "demanded"),
    [
        (REQUIRED, REQUIRED, REQUIRED),
        (NO, NO, NO),
        (DEFAULT, DEFAULT, DEFAULT),
        # An administrator changed it for the way to the recipient.
        (REQUIRED, NO, REQUIRED),
        (DEFAULT, REQUIRED, REQUIRED),
        (DEFAULT, NO, DEFAULT),
        (NO, DEFAULT, DEFAULT),
        (NO, REQUIRED, REQUIRED),
    ],
)
async def test_a_notification_demands_the_strictest_of_what_was_asked_and_what_holds_now_RTLS_19a_RTLS_19c(
    tls: Tls, asked: int, now: int, demanded: int
) -> None:
    recipients = await tls.rig.accept("bob@there.example", tls=asked, tls_requirement=asked)
    if now != asked:
        await tls.set(now, recipient_ids=[recipients[0].id])
    waiting = await waiting_store.live(tls.rig.connection, [recipients[0].id])
    await tls.rig.fail(attempt_recipient_of(waiting[0]))
    ((raw, body),) = await tls.rig.rows("SELECT envelope, body FROM message WHERE account = 'mail/postmaster'")
    assert types_pb2.Envelope.FromString(raw).tls_requirement == demanded
    assert await tls.rig.rows("SELECT tls_requirement FROM recipient") == [(demanded,)]
    assert (b"\r\nTLS-Required: No\r\n" in body) is (demanded == NO)


@pytest.mark.parametrize("kind", DsnKind)
@pytest.mark.parametrize("requirement", [REQUIRED, NO])
async def test_every_kind_of_notification_has_the_requirement_of_its_message_RTLS_19a_RTLS_19c(
    tls: Tls, kind: DsnKind, requirement: int
) -> None:
    (bob,) = await tls.rig.accept("bob@there.example", tls=requirement, tls_requirement=requirement)
    refusal = tls.rig.refused(bob)
    told = replace(refusal, judgement=replace(refusal.judgement, dsn=kind, will_retry_until=1.8e9))
    async with tls.rig.connection.transaction():
        await tls.rig.notifier.notify(tls.rig.connection, [told])
    ((raw,),) = await tls.rig.rows("SELECT envelope FROM message WHERE account = 'mail/postmaster'")
    assert types_pb2.Envelope.FromString(raw).tls_requirement == requirement


def refused(delivery: lease_pb2.Delivery, status: str, words: str, *, outcome: Any) -> lease_pb2.DeliveryResult:
    """What outbound says where TLS kept the message from every host: its own words, of no server."""
    result = result_of(delivery, outcome)
    for found in result.recipients:
        found.attempt.status = found.attempt.reply.enhanced = status
        found.attempt.reply.code, found.attempt.reply.remote = 0, False
        found.attempt.reply.lines[:] = [words]
    return result


async def notification(q: RunningQueue) -> tuple[types_pb2.Envelope, str]:
    """The only one that was made: its envelope and its text."""
    await q.until("SELECT count(*) = 1 FROM message WHERE account IS NOT NULL")
    ((raw, body),) = await q.sql("SELECT envelope, body FROM message WHERE account IS NOT NULL")
    return types_pb2.Envelope.FromString(raw), body.decode()


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("5.7.10", "the message requires TLS and STARTTLS is not offered by mx1"),
        ("5.7.10", "the message requires TLS and the certificate of mx1 has expired"),
        ("5.7.30", "mx1 does not offer REQUIRETLS inside TLS"),
        ("5.7.30", "neither an MTA-STS policy nor DNSSEC proves mx1"),
    ],
)
async def test_mail_that_requires_tls_and_cannot_have_it_fails_at_once_with_one_notification_RTLS_16c_RTLS_17b_RTLS_20(
    database: str, status: str, words: str
) -> None:
    async with running_queue(database) as q:
        ingress, outbound = await q.ingress(), await q.outbound()
        await ingress.accept(
            "user@d.example",
            body=b"Subject: hello\r\n\r\nthe secret\r\n",
            tls_requirement=REQUIRED,
            dsn_return=types_pb2.DSN_RETURN_FULL,
        )
        await eventually(outbound.has(1))
        outbound.send(
            results=[refused(outbound.deliveries[0], status, words, outcome=types_pb2.OUTCOME_FAILED)], credit=1
        )
        envelope, text = await notification(q)
        assert envelope.tls_requirement == REQUIRED
        assert f"\r\nStatus: {status} (" in text
        assert words in " ".join(text.split())
        assert "Content-Type: text/rfc822-headers" in text
        assert "the secret" not in text
        await eventually(outbound.has(2))
        assert outbound.deliveries[1].recipients[0].address == "sender@away.example"
        assert outbound.deliveries[1].envelope.tls_requirement == REQUIRED
        outbound.finish(outbound.deliveries[1])
        await q.until("SELECT count(*) = 2 FROM history")
        assert await q.one("SELECT attempts FROM history WHERE address = 'user@d.example'") == 1
        assert await q.one("SELECT count(*) FROM dsn") == 1


async def test_mail_that_may_go_without_tls_to_a_server_that_insists_on_it_comes_back_RTLS_23(database: str) -> None:
    async with running_queue(database) as q:
        ingress, outbound = await q.ingress(), await q.outbound()
        await ingress.accept("user@d.example", tls_requirement=NO)
        await eventually(outbound.has(1))
        said = {"code": 530, "enhanced": "5.7.0", "text": "must issue STARTTLS first"}
        outbound.finish(outbound.deliveries[0], outcome=types_pb2.OUTCOME_FAILED, **said)
        envelope, text = await notification(q)
        assert envelope.tls_requirement == NO
        assert "\r\nTLS-Required: No\r\n" in text
        assert "Action: failed" in text
        assert "must issue STARTTLS first" in text


async def test_mail_whose_policy_is_not_met_waits_is_told_of_and_goes_once_the_policy_is_right_STS_14b(
    database: str,
) -> None:
    retry = rev.RetrySchedule(delays=(1,), delayed_dsn_after=2)
    words = "mx1.d.example is not in the MTA-STS policy of d.example"
    async with running_queue(database, a_revision(retry=retry)) as q:
        ingress, outbound = await q.ingress(), await q.outbound()
        await ingress.accept("user@d.example", submitted=True, mail_from="alice@home.example")
        for attempt in (1, 2):
            await eventually(outbound.has(attempt))
            result = refused(outbound.deliveries[-1], "4.7.5", words, outcome=types_pb2.OUTCOME_DEFERRED)
            outbound.send(results=[result], credit=1)
            await q.until("SELECT token IS NULL AND attempts = %s FROM recipient WHERE address LIKE 'user@%%'", attempt)
            await q.sql("UPDATE recipient SET due = now() WHERE address LIKE 'user@%'")
        await eventually(outbound.has(3))
        text = await q.one("SELECT body FROM message WHERE envelope <> '' AND mail_from = ''")
        assert b"Action: delayed" in text
        assert b"\r\nStatus: 4.7.5 (" in text
        assert words in " ".join(text.decode().split())
        outbound.finish(outbound.deliveries[-1])
        await q.until("SELECT count(*) = 1 FROM history WHERE address LIKE 'user@%%' AND outcome = 2")


# --- what is counted ---


def counted(metric: str, **labels: str) -> float:
    value = REGISTRY.get_sample_value(f"mailrail_queue_{metric}_total", labels)
    return value or 0.0


@pytest.mark.parametrize(
    ("requirement", "facts", "labels"),
    [
        (DEFAULT, None, ("default", "clear")),
        (DEFAULT, types_pb2.TlsFacts(verdict="offered by nobody"), ("default", "clear")),
        (DEFAULT, types_pb2.TlsFacts(version="TLSv1.3"), ("default", "none")),
        (NO, types_pb2.TlsFacts(version="TLSv1.3", proof=types_pb2.TLS_PROOF_PKIX), ("no", "pkix")),
        (REQUIRED, types_pb2.TlsFacts(version="TLSv1.3", proof=types_pb2.TLS_PROOF_DANE), ("required", "dane")),
        (REQUIRED, types_pb2.TlsFacts(version="TLSv1.3", proof=types_pb2.TLS_PROOF_MTA_STS), ("required", "mta_sts")),
    ],
)
async def test_mail_that_went_is_counted_by_what_it_demanded_and_what_proved_the_server(
    database: str, requirement: Any, facts: types_pb2.TlsFacts | None, labels: tuple[str, str]
) -> None:
    names = {"requirement": labels[0], "proof": labels[1]}
    before = counted("tls_recipients", **names)
    async with running_queue(database) as q:
        ingress, outbound = await q.ingress(), await q.outbound()
        await ingress.accept("user@d.example", "alice@home.example", tls_requirement=requirement)
        await eventually(outbound.has(1))
        result = result_of(outbound.deliveries[0])
        if facts is not None:
            result.recipients[0].attempt.tls.CopyFrom(facts)
        outbound.send(results=[result], credit=1)
        await eventually(lambda: counted("tls_recipients", **names) == before + 1)
        await q.until("SELECT count(*) = 2 FROM history")  # the built-in mailbox is no next hop
        assert counted("tls_recipients", **names) == before + 1


@pytest.mark.parametrize(
    ("requirement", "status", "cause", "outcome", "reason"),
    [
        (REQUIRED, "5.7.30", types_pb2.TLS_CAUSE_MX_UNPROVEN, types_pb2.OUTCOME_FAILED, "mx_unproven"),
        (REQUIRED, "5.7.10", types_pb2.TLS_CAUSE_CERTIFICATE, types_pb2.OUTCOME_FAILED, "certificate"),
        (REQUIRED, "4.7.5", types_pb2.TLS_CAUSE_TLSA_UNANSWERED, types_pb2.OUTCOME_DEFERRED, "tlsa_unanswered"),
        (REQUIRED, "5.7.30", types_pb2.TLS_CAUSE_UNSPECIFIED, types_pb2.OUTCOME_FAILED, "other"),
        (REQUIRED, "5.1.1", types_pb2.TLS_CAUSE_UNSPECIFIED, types_pb2.OUTCOME_FAILED, None),
        (DEFAULT, "4.7.5", types_pb2.TLS_CAUSE_STS_MX, types_pb2.OUTCOME_DEFERRED, None),
    ],
)
async def test_errors_of_mail_with_requiretls_are_counted_by_reason(
    database: str, requirement: Any, status: str, cause: Any, outcome: Any, reason: str | None
) -> None:
    def errors() -> dict[tuple[str, ...], float]:
        found = (f for f in REGISTRY.collect() if f.name == "mailrail_queue_requiretls_errors")
        return {tuple(s.labels.values()): s.value for f in found for s in f.samples if s.name.endswith("_total")}

    before = errors()
    async with running_queue(database) as q:
        ingress, outbound = await q.ingress(), await q.outbound()
        await ingress.accept("user@d.example", tls_requirement=requirement)
        await eventually(outbound.has(1))
        result = refused(outbound.deliveries[0], status, "in words", outcome=outcome)
        result.recipients[0].attempt.tls_cause = cause
        outbound.send(results=[result], credit=1)
        await eventually(lambda: outbound.deliveries[0].token in outbound.committed)
        changed = {labels for labels, value in errors().items() if value > before.get(labels, 0.0)}
    word = "failed" if outcome == types_pb2.OUTCOME_FAILED else "deferred"
    assert changed == (set() if reason is None else {(reason, word)})
