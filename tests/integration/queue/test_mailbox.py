"""The built-in mailbox: delivery into it is once and final, and people can read it (design 9; FIN-01, FIN-04)."""

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from uuid import UUID

import pytest

from mailrail.core.revision.revision import Alias
from mailrail.pb.queue.v1 import types_pb2
from mailrail_queue.delivery.ports import Arrival, AttemptRecipient
from mailrail_queue.mailbox import store as mailbox
from mailrail_queue.mailbox.delivery import CAPTURED, NoSuchAccount
from mailrail_queue.mailbox.store import SEEN
from mailrail_queue.store import results as result_store
from mailrail_queue.store.results import Ending

from testkit.stored_mail import BODY, Rig, revision
from testkit.stored_mail import rig as make_rig


@pytest.fixture
async def rig(database_for: Callable[..., str]) -> AsyncIterator[Rig]:
    async with make_rig(database_for("queue")) as made:
        yield made


def pending(rig: Rig, recipient: AttemptRecipient) -> Arrival:
    return Arrival(recipient, None, rig.attempt(types_pb2.OUTCOME_DELIVERED))


async def deliver(rig: Rig, *arrivals: Arrival) -> None:
    """One transaction: final, and in the mailbox (FIN-01)."""
    async with rig.connection.transaction():
        endings = [
            Ending(
                a.recipient.id,
                a.recipient.message_id,
                0,
                a.recipient.version,
                result_store.DELIVERED,
                a.attempt.outcome,
                b"",
            )
            for a in arrivals
        ]
        done = await result_store.finish(rig.connection, endings)
        await rig.mailboxes.deliver(rig.connection, [a for a in arrivals if a.recipient.id in done])


async def inbox(rig: Rig, account: str = "mail/alice", path: str = "") -> list[mailbox.Listed]:
    return await mailbox.list_messages(rig.connection, account, path, 2**62, 100)


async def whole(rig: Rig, found: mailbox.Listed) -> bytes:
    return found.prefix + b"".join([part async for part in mailbox.content(rig.connection, found.message_id)])


async def test_local_mail_lands_in_the_inbox_with_one_return_path_SIN_24a_OPT_06a(rig: Rig) -> None:
    (alice,) = await rig.accept("alice@here.example", mail_from="bob@there.example", account=None)
    await deliver(rig, pending(rig, alice))
    (found,) = await inbox(rig)
    assert (found.path, found.subject, found.header_from) == ("Inbox", "hello", "Alice <alice@here.example>")
    assert (found.header_message_id, found.recipient, found.reverse_path) == (
        "<one@here.example>",
        "alice@here.example",
        "bob@there.example",
    )
    content = await whole(rig, found)
    assert content == b"Return-Path: <bob@there.example>\r\nDelivered-To: alice@here.example\r\n" + BODY
    assert found.size == len(content)


async def test_a_recipient_is_delivered_once_however_often_it_is_tried_FIN_01(rig: Rig) -> None:
    (alice,) = await rig.accept("alice@here.example")
    for _ in range(3):
        await deliver(rig, pending(rig, alice))
        async with rig.connection.transaction():
            await rig.mailboxes.deliver(rig.connection, [pending(rig, alice)])
    assert len(await inbox(rig)) == 1


async def test_two_recipients_of_a_message_share_its_content(rig: Rig) -> None:
    recipients = await rig.accept("alice@here.example", "admin@here.example")
    await deliver(rig, *(pending(rig, p) for p in recipients))
    (first,), (second,) = await inbox(rig), await inbox(rig, "mail/postmaster")
    assert first.message_id == second.message_id
    assert await rig.rows("SELECT count(*) FROM message") == [(1,)]


async def test_a_large_message_is_read_whole(rig: Rig) -> None:
    large = BODY + (b"x" * 70 + b"\r\n") * 10_000
    (alice,) = await rig.accept("alice@here.example", body=large)
    await deliver(rig, pending(rig, alice))
    assert (await whole(rig, (await inbox(rig))[0])).endswith(large)


@pytest.mark.parametrize("size", [10, 300_000])
async def test_a_return_path_that_came_along_is_taken_out_at_delivery_SIN_24b(rig: Rig, size: int) -> None:
    foreign = b"Return-Path: <a@b.example>\r\nSubject: x\r\nreturn-path:\r\n <c@d.example>\r\n\r\n"
    text = b"Return-Path: <of the text@stays>\r\n" + b"y" * size + b"\r\n"
    (alice,) = await rig.accept("alice@here.example", body=foreign + text)
    await deliver(rig, pending(rig, alice))
    (found,) = await inbox(rig)
    parts = mailbox.delivered_content(lambda: contextlib.nullcontext(rig.connection), found.message_id)
    content = found.prefix + b"".join([part async for part in parts])
    assert content == found.prefix + b"Subject: x\r\n\r\n" + text
    assert found.size == len(content)


async def test_a_message_that_was_delivered_here_before_is_in_a_loop_OPT_06b(rig: Rig) -> None:
    (alice,) = await rig.accept("alice@here.example")
    before = b"Delivered-To: alice@here.example\r\nReceived: from x by mx.here.example; now\r\n\r\n"
    refusal = rig.mailboxes.refusal(alice, b"Received: from x by mx.here.example; now\r\n" + before)
    assert refusal is not None
    assert (refusal.code, refusal.enhanced) == (554, "5.4.6")
    assert rig.mailboxes.refusal(alice, b"Received: from x by mx.here.example; now\r\n\r\n" + before) is None


async def test_mail_of_a_deleted_account_waits_unless_another_has_the_address_FIN_04(rig: Rig) -> None:
    (alice,) = await rig.accept("alice@here.example")
    base = revision()
    rig.configure(revision(accounts=base.accounts[1:]))
    refusal = rig.mailboxes.refusal(alice)
    assert refusal is not None
    assert (refusal.code, refusal.enhanced) == (451, "4.3.5")
    with pytest.raises(NoSuchAccount):
        rig.mailboxes.place(alice)
    heir = replace(base.accounts[1], addresses=("admin@here.example", "alice@here.example"))
    rig.configure(revision(accounts=(heir,)))
    assert rig.mailboxes.refusal(alice) is None
    await deliver(rig, pending(rig, alice))
    assert len(await inbox(rig, "mail/postmaster")) == 1


async def test_a_notification_to_an_address_that_was_never_anybody_s_is_refused_for_good(rig: Rig) -> None:
    (ghost,) = await rig.accept("ghost@here.example", mail_from="", account="mail/postmaster")
    refusal = rig.mailboxes.refusal(ghost)
    assert refusal is not None
    assert (refusal.code, refusal.enhanced) == (550, "5.1.1")


async def test_captured_mail_lands_with_whoever_sent_it_and_says_where_it_would_have_gone(rig: Rig) -> None:
    (bob,) = await rig.accept("bob@relayed.example")
    attempt = rig.attempt(types_pb2.OUTCOME_CAPTURED, reason="MailRoute mail/r rule 0 at global level")
    attempt.transport.CopyFrom(types_pb2.ObjectRef(kind="MailTransport", namespace="mail", name="relay"))
    await deliver(rig, Arrival(bob, None, attempt))
    (found,) = await inbox(rig)
    assert found.path == CAPTURED
    assert found.note == "captured; mail/relay would have sent it: MailRoute mail/r rule 0 at global level"
    assert found.prefix == b""
    (eve,) = await rig.accept("bob@relayed.example", mail_from="x@y.example", account=None)
    await deliver(rig, Arrival(eve, None, rig.attempt(types_pb2.OUTCOME_CAPTURED)))
    assert [m.path for m in await inbox(rig, "mail/postmaster")] == [CAPTURED]


async def test_flags_are_set_and_mail_is_deleted_with_its_content_swept_later_FIN_02(rig: Rig) -> None:
    recipients = [p for _ in range(3) for p in await rig.accept("alice@here.example")]
    await deliver(rig, *(pending(rig, p) for p in recipients))
    found = await inbox(rig)
    assert await mailbox.set_flags(rig.connection, [found[0].id], [SEEN, "todo"], []) == 1
    assert (await inbox(rig))[0].flags == [SEEN, "todo"]
    await mailbox.set_flags(rig.connection, [found[0].id], ["todo"], ["todo"])
    assert (await inbox(rig))[0].flags == [SEEN]
    assert await mailbox.mailboxes(rig.connection, "mail/alice") == [("mail/alice", "Inbox", 3, 2)]
    assert await mailbox.delete(rig.connection, [found[0].id, found[1].id, 999]) == 2
    assert len(await inbox(rig)) == 1
    swept = {row[0] for row in await rig.rows("SELECT message_id FROM sweep_candidate")}
    assert swept == {found[0].message_id, found[1].message_id}


async def test_messages_are_listed_newest_first_from_where_a_page_ended(rig: Rig) -> None:
    recipients = [p for _ in range(5) for p in await rig.accept("alice@here.example")]
    for recipient in recipients:
        await deliver(rig, pending(rig, recipient))
    first = await mailbox.list_messages(rig.connection, "mail/alice", "Inbox", 2**62, 3)
    rest = await mailbox.list_messages(rig.connection, "mail/alice", "Inbox", first[-1].id, 3)
    ids = [m.id for m in (*first, *rest)]
    assert ids == sorted(ids, reverse=True)
    assert len(set(ids)) == 5
    assert await mailbox.list_messages(rig.connection, "mail/alice", "Other", 2**62, 3) == []


async def test_the_content_of_a_message_that_is_gone_is_nothing(rig: Rig) -> None:
    assert [part async for part in mailbox.content(rig.connection, UUID(int=5))] == []
    assert await mailbox.find_message(rig.connection, 5) is None


# --- whose address it is ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "accounts"),
    [
        ("alice@here.example", ["alice"]),
        ("ALICE@Here.Example", ["alice"]),
        ("alice+news@here.example", ["alice"]),
        ("postmaster@here.example", ["postmaster"]),
        ("team@here.example", ["alice", None]),
        ("team+x@here.example", ["alice", None]),
        ("nobody@here.example", [None]),
        ("x@elsewhere.example", [None]),
    ],
)
async def test_an_address_is_resolved_as_ingress_does(rig: Rig, address: str, accounts: list[str | None]) -> None:
    found = rig.addresses.resolve(address)
    assert [r.account.name if r.account is not None else None for r in found] == accounts


async def test_a_catch_all_and_an_account_for_a_whole_domain_take_the_rest(rig: Rig) -> None:
    base = revision()
    caught = replace(base.domains[0], catch_all="admin@here.example")
    rig.configure(revision(domains=(caught,)))
    (found,) = rig.addresses.resolve("nobody@here.example")
    assert (found.address, found.account) == ("nobody@here.example", base.accounts[1].ref)
    everything = replace(base.accounts[0], receive=("@here.example",))
    rig.configure(revision(accounts=(everything, base.accounts[1])))
    (found,) = rig.addresses.resolve("nobody@here.example")
    assert found.account == everything.ref
    assert [r.account for r in rig.addresses.resolve("admin@here.example")] == [base.accounts[1].ref]


async def test_aliases_that_lead_to_each_other_end(rig: Rig) -> None:
    base = revision()
    looped = replace(
        base.domains[0], aliases=(Alias("a", ("b@here.example",)), Alias("b", ("a@here.example", "alice@here.example")))
    )
    rig.configure(revision(domains=(looped,)))
    assert [r.address for r in rig.addresses.resolve("a@here.example")] == ["alice@here.example"]
