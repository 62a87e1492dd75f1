"""Notifications are made in the transaction that gives cause for them (FIN-01; design 9; standards 9)."""

import asyncio
import email
import email.policy
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from mailrail.core.delivery.judge import Judgement
from mailrail.core.delivery.outcome import Outcome
from mailrail.core.dsn.build import Dsn, build
from mailrail.core.dsn.due import DsnKind
from mailrail.core.route.site import shard
from mailrail.core.smtp.reply import EnhancedCode
from mailrail.pb.queue.v1 import types_pb2
from mailrail_queue.delivery.ports import Notice
from mailrail_queue.mailbox import store as mailbox
from mailrail_queue.notify import dsn as dsn_module
from mailrail_queue.store import results as result_store
from mailrail_queue.store.results import Ending

from testkit.read_dsn import ReadDsn, read
from testkit.stored_mail import BODY, Rig, revision
from testkit.stored_mail import rig as make_rig


@pytest.fixture
async def rig(database_for: Callable[..., str]) -> AsyncIterator[Rig]:
    async with make_rig(database_for("queue")) as made:
        yield made


async def dsns(rig: Rig) -> list[tuple[types_pb2.Envelope, list[str], bytes]]:
    """(envelope, recipients, content) of every message that the queue made."""
    found = []
    for identity, raw, prefix, body in await rig.rows(
        "SELECT id, envelope, prefix, body FROM message WHERE account = 'mail/postmaster' ORDER BY accepted"
    ):
        addresses = [r[0] for r in await rig.rows("SELECT address FROM recipient WHERE message_id = %s", identity)]
        if body is None:
            body = b"".join([part async for part in mailbox.content(rig.connection, identity)])
        found.append((types_pb2.Envelope.FromString(raw), addresses, prefix + body))
    return found


async def only(rig: Rig) -> tuple[types_pb2.Envelope, ReadDsn, bytes]:
    (envelope, _, content), *others = await dsns(rig)
    assert not others
    return envelope, read(content), content


async def test_a_refused_recipient_gives_one_dsn_to_the_sender_threaded_DSN_07_DSN_11(rig: Rig) -> None:
    (bob,) = await rig.accept("bob@there.example")
    await rig.fail(bob)
    envelope, dsn, content = await only(rig)
    message = email.message_from_bytes(content, policy=email.policy.SMTP)
    assert message["References"] == message["In-Reply-To"] == "<one@here.example>"
    assert (envelope.mail_from, envelope.origin, envelope.account.name) == ("", types_pb2.ORIGIN_SYSTEM, "postmaster")
    assert envelope.purpose == types_pb2.PURPOSE_NOTIFICATION
    assert envelope.message_id == message["Message-ID"]
    assert (envelope.whole_lines, envelope.undotted) == (False, False), (
        "nobody saw its lines: outbound looks (SOUT-12a)"
    )
    (told,) = dsn.recipients
    assert (told.recipient, told.action, told.code) == ("bob@there.example", DsnKind.FAILED, 550)
    assert (told.remote_mta, dsn.original_message_id) == ("mx.there.example", "<one@here.example>")
    ((address, site, notify, token),) = await rig.rows("SELECT address, site, envelope_recipient, token FROM recipient")
    assert (address, site, token) == ("alice@here.example", "mailbox", None)
    rcpt = types_pb2.EnvelopeRecipient.FromString(notify)
    assert (list(rcpt.notify), rcpt.mailbox_account.name) == (["NEVER"], "alice")
    assert rig.woken == [{shard("here.example")}]


@pytest.mark.parametrize(("size", "apart"), [(1000, False), (500_000, True)])
async def test_a_large_message_that_goes_back_whole_is_encoded_while_the_loop_goes_on_DSN_19(
    rig: Rig, size: int, apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []

    def watched(*arguments: Any, **named: Any) -> Dsn:
        threads.append(threading.current_thread())
        return build(*arguments, **named)

    monkeypatch.setattr(dsn_module, "build", watched)
    body = b"Subject: x\r\n\r\n" + "Grüße\r\n".encode() * (size // 9)
    (bob,) = await rig.accept("bob@there.example", body=body, dsn_return=types_pb2.DSN_RETURN_FULL)
    await rig.fail(bob)
    assert [thread is not threading.main_thread() for thread in threads] == [apart]
    _, _, content = await only(rig)
    assert content.count(b"Gr=C3=BC=C3=9Fe\r\n") == size // 9


@pytest.mark.parametrize(("account", "listed"), [(None, 50), ("mail/alice", 120)])
async def test_a_sender_that_did_not_authenticate_gets_fifty_recipients_and_a_number_DSN_26c(
    rig: Rig, account: str | None, listed: int
) -> None:
    body = b"Subject: x\r\n\r\n" + (b"x" * 70 + b"\r\n") * 1000
    failed = await rig.accept(
        *(f"user{n}@there.example" for n in range(120)),
        account=account,
        body=body,
        dsn_return=types_pb2.DSN_RETURN_FULL,
    )
    await rig.fail(*failed)
    _, _, content = await only(rig)
    assert content.count(b"\r\nFinal-Recipient: ") == listed
    assert (b"\r\n70 more recipients are not listed here.\r\n" in content) is (listed < 120)
    assert (b"x" * 70 in content) is (account is not None)  # RET=FULL: up to 64 KiB


async def test_an_owner_hears_of_a_dsn_when_it_is_committed_whoever_else_commits_before_SHD_02(rig: Rig) -> None:
    (bob,) = await rig.accept("bob@there.example")

    async with rig.notifier.transaction(rig.connection) as notify:
        await notify([rig.refused(bob)])
        assert rig.woken == []  # nobody could see it yet
    assert rig.woken == [{shard("here.example")}]


async def test_a_dsn_to_a_foreign_sender_is_routed_like_any_mail(rig: Rig) -> None:
    (bob,) = await rig.accept("bob@there.example", mail_from="x@relayed.example")
    await rig.fail(bob)
    assert await rig.rows("SELECT address, site, due <= now() FROM recipient") == [
        ("x@relayed.example", "transport:mail/relay", True)
    ]


async def test_a_dsn_to_an_alias_of_ours_reaches_all_it_stands_for(rig: Rig) -> None:
    (bob,) = await rig.accept("bob@there.example", mail_from="team@here.example")
    await rig.fail(bob)
    ((_, addresses, _),) = await dsns(rig)
    assert sorted(addresses) == ["alice@here.example", "carol@there.example"]


async def test_a_recipient_gets_one_dsn_of_a_kind_however_often_it_is_told_FIN_01(rig: Rig) -> None:
    (bob,) = await rig.accept("bob@there.example")
    notice = rig.refused(bob)
    for _ in range(3):
        async with rig.connection.transaction():
            await rig.notifier.notify(rig.connection, [notice])
    assert len(await dsns(rig)) == 1
    delayed = replace(notice.judgement, dsn=DsnKind.DELAYED, outcome=Outcome.DEFERRED, will_retry_until=1.8e9)
    async with rig.connection.transaction():
        await rig.notifier.notify(rig.connection, [replace(notice, judgement=delayed)])
    assert len(await dsns(rig)) == 2


async def test_the_id_of_a_dsn_is_sorted_by_time_as_all_message_ids_are_ACC_04(rig: Rig) -> None:
    (bob,) = await rig.accept("bob@there.example")
    before = int(time.time() * 1000)
    await rig.fail(bob)
    ((made,),) = await rig.rows("SELECT dsn_message_id FROM dsn")
    assert made.version == 7
    assert before <= int.from_bytes(made.bytes[:6], "big") <= time.time() * 1000


async def test_a_rolled_back_transaction_leaves_neither_state_nor_dsn_FIN_01(rig: Rig) -> None:
    (bob,) = await rig.accept("bob@there.example")

    async def broken() -> None:
        async with rig.connection.transaction():
            await result_store.finish(
                rig.connection,
                [Ending(bob.id, bob.message_id, 0, 1, result_store.FAILED, types_pb2.OUTCOME_FAILED, b"")],
            )
            await rig.notifier.notify(rig.connection, [rig.refused(bob)])
            await rig.connection.execute("SELECT 1/0")

    with pytest.raises(psycopg.errors.DivisionByZero):
        await broken()
    assert await dsns(rig) == []
    assert await rig.rows("SELECT count(*) FROM dsn") == [(0,)]
    assert await rig.rows("SELECT id FROM recipient") == [(bob.id,)]
    await rig.fail(bob)
    assert len(await dsns(rig)) == 1


async def test_two_transactions_at_once_make_one_dsn_FIN_01(rig: Rig, database_for: Callable[..., str]) -> None:
    (bob,) = await rig.accept("bob@there.example")
    url = rig.connection.info.dsn
    password = rig.connection.info.password
    async with make_rig(f"{url} password={password}") as other:
        other_ready = asyncio.Event()

        async def tell(one: Rig) -> None:
            async with one.connection.transaction():
                other_ready.set()
                await one.notifier.notify(one.connection, [rig.refused(bob)])

        await asyncio.gather(tell(rig), tell(other))
    assert len(await dsns(rig)) == 1


async def test_recipients_of_one_transaction_share_a_dsn_DSN_21(rig: Rig) -> None:
    recipients = await rig.accept("a@there.example", "b@there.example", "c@other.example")
    await rig.fail(*recipients)
    _, dsn, _ = await only(rig)
    assert [r.recipient for r in dsn.recipients] == ["a@there.example", "b@there.example", "c@other.example"]


@pytest.mark.parametrize(
    ("notify", "told"), [((), True), (("NEVER",), False), (("SUCCESS",), False), (("FAILURE",), True)]
)
async def test_notify_decides_whether_a_failure_is_told_DSN_07(rig: Rig, notify: tuple[str, ...], told: bool) -> None:
    (bob,) = await rig.accept("bob@there.example", notify=notify)
    await rig.fail(bob)
    assert bool(await dsns(rig)) is told


async def test_a_failed_null_sender_message_makes_no_mail_but_a_copy_for_the_postmaster_DSN_24(rig: Rig) -> None:
    (bob,) = await rig.accept("bob@there.example", mail_from="", account=None)
    await rig.fail(bob)
    assert await dsns(rig) == []
    ((account, path, _, unseen),) = await mailbox.mailboxes(rig.connection, "")
    assert (account, path, unseen) == ("mail/postmaster", "Postmaster", 1)
    (copy,) = await mailbox.list_messages(rig.connection, account, "", 2**62, 10)
    assert copy.note == "could not be delivered to bob@there.example: 550 5.1.1 no such user"
    assert copy.prefix == b""
    await rig.fail(bob)  # again: nothing more


async def test_the_loop_of_bounces_ends_at_zero_DSN_24(rig: Rig) -> None:
    (bob,) = await rig.accept("bob@there.example", mail_from="gone@relayed.example")
    await rig.fail(bob)
    ((identity, message_id, raw),) = await rig.rows("SELECT id, message_id, envelope_recipient FROM recipient")
    bounced = replace(
        bob,
        id=identity,
        message_id=message_id.bytes,
        null_sender=True,
        envelope_recipient=raw,
        address="gone@relayed.example",
    )
    await rig.fail(bounced)
    assert await rig.rows("SELECT count(*) FROM recipient") == [(0,)]
    assert len(await dsns(rig)) == 1
    (copy,) = await mailbox.list_messages(rig.connection, "mail/postmaster", "Postmaster", 2**62, 10)
    assert copy.dsn


@pytest.mark.parametrize("forged", [True, False])
async def test_forged_mail_that_fails_is_told_to_the_postmaster_and_never_to_its_sender_DSN_26b(
    rig: Rig, forged: bool
) -> None:
    (bob,) = await rig.accept("bob@there.example", mail_from="victim@stranger.example", account=None, forged=forged)
    judgement = rig.judged(bob, 550, "5.1.1")
    told = None if forged else DsnKind.FAILED
    assert (judgement.outcome, judgement.dsn, judgement.tell_postmaster) == (Outcome.FAILED, told, forged)
    await rig.fail(bob)
    await rig.fail(bob)  # again: nothing more
    assert len(await dsns(rig)) == (not forged)
    copies = await mailbox.list_messages(rig.connection, "mail/postmaster", "Postmaster", 2**62, 10)
    assert [(copy.recipient, copy.dsn) for copy in copies] == ([("bob@there.example", False)] if forged else [])


async def test_mail_of_strangers_is_answered_only_when_our_delivery_failed_DSN_26a(rig: Rig) -> None:
    (bob,) = await rig.accept(
        "bob@there.example", mail_from="x@stranger.example", account=None, notify=("SUCCESS", "DELAY", "FAILURE")
    )
    assert rig.judged(bob, 250).dsn is None
    assert rig.judged(bob, 450, attempts=5).dsn is None
    await rig.fail(bob)
    assert len(await dsns(rig)) == 1


async def test_a_protected_message_gives_a_protected_dsn_without_its_body_RTLS_19a_RTLS_20(rig: Rig) -> None:
    (bob,) = await rig.accept(
        "bob@there.example",
        tls=types_pb2.TLS_REQUIREMENT_REQUIRED,
        dsn_return=types_pb2.DSN_RETURN_FULL,
        tls_requirement=types_pb2.TLS_REQUIREMENT_REQUIRED,
    )
    await rig.fail(bob)
    envelope, _, content = await only(rig)
    assert envelope.tls_requirement == types_pb2.TLS_REQUIREMENT_REQUIRED
    assert b"how are you" not in content
    assert await rig.rows("SELECT tls_requirement FROM recipient") == [(types_pb2.TLS_REQUIREMENT_REQUIRED,)]


async def test_ret_full_returns_all_of_a_large_message_up_to_the_limit_DSN_19(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mailrail_queue.notify.dsn.INLINE_LIMIT", 1024 * 1024)  # as if it had many recipients
    large = BODY + b"x" * 70 + b"\r\n" + (b"y" * 70 + b"\r\n") * 14_540
    (bob,) = await rig.accept("bob@there.example", body=large, dsn_return=types_pb2.DSN_RETURN_FULL)
    await rig.fail(bob)
    _, _, content = await only(rig)
    assert large in content
    assert (await rig.rows("SELECT chunks FROM message WHERE account = 'mail/postmaster'"))[0][0] == 5
    (carl,) = await rig.accept("carl@there.example", body=large * 3, dsn_return=types_pb2.DSN_RETURN_FULL)
    await rig.fail(carl)
    assert b"yyyy" not in (await dsns(rig))[1][2]


async def test_an_expanded_alias_is_told_by_its_own_address_DSN_23(rig: Rig) -> None:
    (one,) = await rig.accept(
        "member@there.example",
        rcpt_fields={"rcpt_to": "team@here.example", "expanded": True},
        notify=("SUCCESS",),
    )
    judgement = Judgement(Outcome.DELIVERED, EnhancedCode(2, 0, 0), None, DsnKind.EXPANDED)
    async with rig.connection.transaction():
        await rig.notifier.notify(rig.connection, [Notice(one, judgement, types_pb2.Attempt(number=0))])
    _, dsn, content = await only(rig)
    (told,) = dsn.recipients
    assert (told.recipient, told.action, told.last_attempt) == ("team@here.example", DsnKind.EXPANDED, None)
    assert b"member@there.example" not in content


@pytest.mark.parametrize("request_", ["for;3600", "until;2027-01-31T12:00:00Z"])
async def test_mail_that_was_to_wait_and_failed_is_told_of_with_what_was_asked_for_OPT_02(
    rig: Rig, request_: str
) -> None:
    (bob,) = await rig.accept("bob@there.example", future_release_request=request_)
    await rig.fail(bob)
    _, _, content = await only(rig)
    assert f"\r\nFuture-Release-Request: {request_}\r\n".encode() in content


async def test_envelope_id_and_original_recipient_come_back_DSN_14_DSN_15(rig: Rig) -> None:
    (bob,) = await rig.accept(
        "bob@there.example", envelope_id="QQ+2B1", rcpt_fields={"original_recipient": "rfc822;Bob+2Bx@There.example"}
    )
    await rig.fail(bob)
    _, dsn, _ = await only(rig)
    assert (dsn.envelope_id, dsn.recipients[0].original_recipient) == ("QQ+1", "Bob+x@There.example")


async def test_no_id_is_kept_that_a_new_timeline_may_give_to_another_ACC_06(rig: Rig) -> None:
    bob, carl = await rig.accept("bob@there.example", "carl@there.example")
    await rig.fail(bob)
    # A server that had not heard of the block was promoted: another process gets it, and uses it.
    ((used,),) = await rig.rows("SELECT max(id) FROM recipient")
    await rig.connection.execute("UPDATE recipient SET id = id + 1 WHERE id = %s", (used,))
    await rig.fail(carl)
    assert len(await dsns(rig)) == 2


async def test_a_dsn_is_held_by_a_rule_that_names_the_postmaster_account_H27(rig: Rig) -> None:
    await rig.connection.execute("INSERT INTO hold_rule (account, comment) VALUES ('mail/postmaster', 'look')")
    (bob,) = await rig.accept("bob@there.example")
    await rig.fail(bob)
    assert await rig.rows("SELECT hold_reason, held_since IS NOT NULL FROM recipient") == [("hold rule 1: look", True)]
    assert rig.woken == []


async def test_a_deleted_sender_domain_fails_nothing_FIN_04(rig: Rig) -> None:
    (bob,) = await rig.accept("bob@there.example")
    rig.configure(revision(domains=(), accounts=revision().accounts[1:]))
    await rig.fail(bob)
    assert await rig.rows("SELECT address, site FROM recipient") == [("alice@here.example", "domain:here.example")]
