"""Administration and mailbox over gRPC: pages, streams, and errors that say what to do."""

import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import grpc
import pytest

from mailrail.kit import postgres as pools
from mailrail.pb.queue.v1 import admin_pb2, admin_pb2_grpc, mailbox_pb2, mailbox_pb2_grpc, types_pb2
from mailrail_queue.admin import change_result as changes
from mailrail_queue.admin import changes as admin_changes
from mailrail_queue.admin import listing as admin_listing
from mailrail_queue.admin.administration import Administration
from mailrail_queue.admin.base import AdminContext
from mailrail_queue.app import NotConfigured
from mailrail_queue.mailbox import store as mailbox
from mailrail_queue.rpc import mailbox as mailbox_rpc
from mailrail_queue.rpc.admin import QueueAdminServicer
from mailrail_queue.rpc.answering import Rows
from mailrail_queue.rpc.mailbox import MailboxServicer

from testkit.stored_mail import BODY, Rig
from testkit.stored_mail import rig as make_rig


@dataclass
class Service:
    """A running server, what is behind it, and stubs to it."""

    rig: Rig
    admin: "admin_pb2_grpc.QueueAdminServiceAsyncStub"
    mail: "mailbox_pb2_grpc.MailboxServiceAsyncStub"
    configured: bool = True


@pytest.fixture
async def service(database_for: Callable[..., str]) -> AsyncIterator[Service]:
    url = database_for("queue")
    async with make_rig(url) as rig, pools.pool(pools.Login.of(url), "queue", size=3) as pool:
        found: Service

        def router() -> object:
            if not found.configured:
                raise NotConfigured("no configuration revision has come yet")
            return rig.router

        context = AdminContext(router, lambda: rig.addresses, rig.notifier, rig.woken.append)  # type: ignore[arg-type]
        administration = Administration(context)
        rows = Rows(pool)
        server = grpc.aio.server()
        admin = QueueAdminServicer(
            administration, rows, shards_owned=lambda: 256, outbound_processes=lambda: 2, window=lambda site: None
        )
        admin_pb2_grpc.add_QueueAdminServiceServicer_to_server(admin, server)
        mailbox_pb2_grpc.add_MailboxServiceServicer_to_server(MailboxServicer(rows, lambda: rig.addresses), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            admin_stub: admin_pb2_grpc.QueueAdminServiceAsyncStub = admin_pb2_grpc.QueueAdminServiceStub(channel)
            mail_stub: mailbox_pb2_grpc.MailboxServiceAsyncStub = mailbox_pb2_grpc.MailboxServiceStub(channel)
            found = Service(rig, admin_stub, mail_stub)
            yield found
        await server.stop(0)


async def refused(call: object) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    return caught.value.code(), caught.value.details() or ""


async def test_a_condition_of_a_later_release_is_refused_and_not_left_out(service: Service) -> None:
    """Left out, it would have dropped more than the administrator named."""
    (bob,) = await service.rig.accept("bob@there.example")
    condition = bytes([0xFA, 0x06, 1]) + b"x"  # field 111, a text
    everything = admin_pb2.Filter(all=True)
    narrowed = admin_pb2.Filter.FromString(everything.SerializeToString() + condition)
    plain = admin_pb2.DropRequest(filter=everything).SerializeToString()
    for request in (admin_pb2.DropRequest(filter=narrowed), admin_pb2.DropRequest.FromString(plain + condition)):
        code, text = await refused(service.admin.Drop(request))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "a field (number 111) that this queue does not know" in text
    listed = await service.admin.ListRecipients(admin_pb2.ListRecipientsRequest())
    assert [r.id for r in listed.recipients] == [bob.id]


async def test_who_reads_content_slowly_keeps_nobody_from_administration(service: Service) -> None:
    (bob,) = await service.rig.accept("bob@there.example")
    await service.rig.connection.execute("UPDATE message SET body = convert_to(repeat('x', 20000000), 'UTF8')")
    request = admin_pb2.GetContentRequest(message_id=bob.message_id)
    slow = [service.admin.GetContent(request) for _ in range(3)]  # as many as there are connections
    assert all([await call.read() for call in slow])
    assert (await service.admin.GetStats(admin_pb2.GetStatsRequest())).shards_owned == 256
    for call in slow:
        call.cancel()


async def test_a_message_says_how_many_recipients_it_has_where_it_does_not_show_them_all(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past ten thousand the rest was left out without a word."""
    many = await service.rig.accept(*(f"r{n}@there.example" for n in range(5)))
    request = admin_pb2.GetMessageRequest(message_id=many[0].message_id)
    for most, shown in ((10, 5), (5, 5), (2, 2)):
        monkeypatch.setattr(admin_listing, "MOST_RECIPIENTS", most)
        found = await service.admin.GetMessage(request)
        assert (len(found.recipients), found.recipients_total) == (shown, 5)


async def test_all_mailboxes_are_listed_however_many_there_are(service: Service) -> None:
    await service.rig.connection.execute(
        "INSERT INTO mailbox (account, path) SELECT 'mail/alice', 'box ' || n FROM generate_series(1, 10001) n"
    )
    found = await service.mail.ListMailboxes(mailbox_pb2.ListMailboxesRequest(account="mail/alice"))
    assert len([m for m in found.mailboxes if m.path.startswith("box ")]) == 10_001


async def test_every_call_of_administration_answers(service: Service) -> None:
    (bob,) = await service.rig.accept("bob@there.example")
    chosen = admin_pb2.Filter(recipient_ids=[bob.id])
    a = service.admin
    listed = await a.ListRecipients(admin_pb2.ListRecipientsRequest())
    assert [r.id for r in listed.recipients] == [bob.id]
    assert (await a.GetStats(admin_pb2.GetStatsRequest())).shards_owned == 256
    assert [s.name for s in (await a.ListSites(admin_pb2.ListSitesRequest())).sites] == ["domain:there.example"]
    assert (await a.GetMessage(admin_pb2.GetMessageRequest(message_id=bob.message_id))).size == len(BODY)
    content = [part.data async for part in a.GetContent(admin_pb2.GetContentRequest(message_id=bob.message_id))]
    assert b"".join(content) == BODY
    assert (await a.Explain(admin_pb2.ExplainRequest(recipient_id=bob.id))).attempt == 1
    assert len((await a.Hold(admin_pb2.HoldRequest(filter=chosen, reason="x"))).changes) == 1
    assert len((await a.Unhold(admin_pb2.UnholdRequest(filter=chosen))).changes) == 1
    assert len((await a.Kick(admin_pb2.KickRequest(filter=chosen))).changes) == 1
    moved = admin_pb2.ScheduleRequest(filter=chosen)
    moved.from_now.seconds = 60
    assert len((await a.Schedule(moved)).changes) == 1
    to = admin_pb2.SetTransportRequest(filter=chosen)
    to.transport.namespace, to.transport.name = "mail", "relay"
    assert len((await a.SetTransport(to)).changes) == 1
    tls = admin_pb2.SetTlsRequirementRequest(filter=chosen, tls_requirement=types_pb2.TLS_REQUIREMENT_REQUIRED)
    assert len((await a.SetTlsRequirement(tls)).changes) == 1
    rule = (await a.CreateHoldRule(admin_pb2.CreateHoldRuleRequest(rule=admin_pb2.HoldRule(to_domain="z.org")))).rule
    assert [r.id for r in (await a.ListHoldRules(admin_pb2.ListHoldRulesRequest())).rules] == [rule.id]
    await a.DeleteHoldRule(admin_pb2.DeleteHoldRuleRequest(id=rule.id))
    assert len((await a.Fail(admin_pb2.FailRequest(filter=chosen, reason="no"))).changes) == 1
    assert len((await a.Drop(admin_pb2.DropRequest(filter=admin_pb2.Filter(all=True)))).changes) == 1  # the DSN
    history = await a.ListHistory(admin_pb2.ListHistoryRequest(page_size=1))
    assert (len(history.recipients), history.next_page_token != "") == (1, True)


@pytest.mark.parametrize("call", ["hold", "fail"])
async def test_a_change_counts_all_that_it_met_and_names_some(
    service: Service, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "LISTED", 2)
    monkeypatch.setattr(admin_changes, "BATCH", 2)
    stored = [r.id for n in range(5) for r in await service.rig.accept(f"user{n}@there.example")]
    everyone = admin_pb2.Filter(all=True)
    if call == "hold":
        answer: admin_pb2.HoldResponse | admin_pb2.FailResponse
        answer = await service.admin.Hold(admin_pb2.HoldRequest(filter=everyone))
    else:
        answer = await service.admin.Fail(admin_pb2.FailRequest(filter=everyone))  # but not the notifications of it
    assert [c.recipient_id for c in answer.changes] == sorted(stored)[:2]
    assert (answer.count.recipients, answer.count.pending, answer.count.truncated) == (5, 0, True)


async def test_errors_say_what_to_do(service: Service) -> None:
    a = service.admin
    code, text = await refused(a.Hold(admin_pb2.HoldRequest()))
    assert (code, "set `all`" in text) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    code, text = await refused(a.GetMessage(admin_pb2.GetMessageRequest(message_id=uuid.uuid4().bytes)))
    assert code is grpc.StatusCode.NOT_FOUND
    code, text = await refused(
        a.ListRecipients(admin_pb2.ListRecipientsRequest(filter=admin_pb2.Filter(to_domain="not a domain")))
    )
    assert (code, "not a domain" in text) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    endless = admin_pb2.ScheduleRequest(filter=admin_pb2.Filter(all=True))
    endless.from_now.seconds = 10**12
    timeless = admin_pb2.ListRecipientsRequest()
    timeless.filter.queued_after.seconds = 10**15
    for call in (
        a.Schedule(endless),
        a.ListRecipients(timeless),
        a.ListRecipients(admin_pb2.ListRecipientsRequest(filter=admin_pb2.Filter(recipient_ids=[2**64 - 1]))),
        a.ListRecipients(admin_pb2.ListRecipientsRequest(filter=admin_pb2.Filter(to="a\0b"))),
        a.DeleteHoldRule(admin_pb2.DeleteHoldRuleRequest(id=2**64 - 1)),
        a.Explain(admin_pb2.ExplainRequest(recipient_id=2**64 - 1)),
    ):
        code, _ = await refused(call)
        assert code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
    service.configured = False
    code, text = await refused(a.Explain(admin_pb2.ExplainRequest(to="a@b.org")))
    assert (code, text) == (grpc.StatusCode.UNAVAILABLE, "no configuration revision has come yet")


async def test_a_mailbox_is_listed_read_flagged_and_emptied(service: Service) -> None:
    rig, m = service.rig, service.mail
    for number in range(3):
        (alice,) = await rig.accept("alice@here.example", body=BODY.replace(b"hello", b"hello %d" % number))
        await mailbox.put(
            rig.connection,
            [
                mailbox.Entry(
                    "mail/alice", "Inbox", alice.message_id, alice.id, "alice@here.example", "bob@there.example"
                )
            ],
        )
    (box,) = (await m.ListMailboxes(mailbox_pb2.ListMailboxesRequest(account="alice"))).mailboxes
    assert (box.account.name, box.path, box.messages, box.unseen) == ("alice", "Inbox", 3, 3)
    page = await m.ListMessages(mailbox_pb2.ListMessagesRequest(account="alice", page_size=2))
    rest = await m.ListMessages(
        mailbox_pb2.ListMessagesRequest(account="mail/alice", page_size=2, page_token=page.next_page_token)
    )
    assert [x.subject for x in (*page.messages, *rest.messages)] == ["hello 2", "hello 1", "hello 0"]
    everybody = await m.ListMessages(mailbox_pb2.ListMessagesRequest())
    assert len(everybody.messages) == 3
    newest = page.messages[0]
    parts = [p async for p in m.ReadMessage(mailbox_pb2.ReadMessageRequest(id=newest.id, mark_seen=True))]
    assert list(parts[0].message.flags) == ["\\Seen"]
    assert b"".join(p.data for p in parts).startswith(b"Return-Path: <bob@there.example>\r\n")
    assert (await m.SetFlags(mailbox_pb2.SetFlagsRequest(ids=[newest.id], add=["\\Flagged", "todo"]))).changed == 1
    assert (await m.DeleteMessages(mailbox_pb2.DeleteMessagesRequest(ids=[newest.id]))).deleted == 1
    code, _ = await refused(anext(aiter(m.ReadMessage(mailbox_pb2.ReadMessageRequest(id=newest.id)))))
    assert code is grpc.StatusCode.NOT_FOUND


async def put(service: Service, path: str, subject: bytes, **envelope: object) -> int:
    """A message in a mailbox of the postmaster's; its id."""
    (to,) = await service.rig.accept("admin@here.example", body=BODY.replace(b"hello", subject), **envelope)  # type: ignore[arg-type]
    entry = mailbox.Entry("mail/postmaster", path, to.message_id, to.id, "admin@here.example", "bob@there.example")
    await mailbox.put(service.rig.connection, [entry])
    found = await service.mail.ListMessages(mailbox_pb2.ListMessagesRequest(account="mail/postmaster", path=path))
    return found.messages[0].id


async def test_messages_without_a_flag_are_listed(service: Service) -> None:
    ids = [await put(service, "Postmaster", b"%d" % number) for number in range(3)]
    await service.mail.SetFlags(mailbox_pb2.SetFlagsRequest(ids=ids[1:2], add=["$Taken"]))
    listed = mailbox_pb2.ListMessagesRequest(account="postmaster", page_size=1, without_flag="$Taken")
    first = await service.mail.ListMessages(listed)
    listed.page_token = first.next_page_token
    second = await service.mail.ListMessages(listed)
    assert [m.id for m in (*first.messages, *second.messages)] == [ids[2], ids[0]]
    assert second.next_page_token == ""
    listed.without_flag = "$Other"
    assert (await refused(service.mail.ListMessages(listed)))[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert (await refused(service.mail.ListMessages(mailbox_pb2.ListMessagesRequest(without_flag="a b"))))[0] is (
        grpc.StatusCode.INVALID_ARGUMENT
    )


async def test_who_reads_reports_reads_no_other_mail_COR_1(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """dmarc opens what strangers sent."""
    m, other, report = (
        service.mail,
        await put(service, "Inbox", b"private"),
        await put(service, "Postmaster/reports", b"report"),
    )
    monkeypatch.setattr(mailbox_rpc, "caller_roles", lambda context: frozenset({"dmarc"}))
    boxes = await m.ListMailboxes(mailbox_pb2.ListMailboxesRequest())
    assert [found.path for found in boxes.mailboxes] == ["Postmaster/reports"]
    listed = mailbox_pb2.ListMessagesRequest(account="mail/postmaster", path="Postmaster/reports")
    assert [found.id for found in (await m.ListMessages(listed)).messages] == [report]
    assert [part async for part in m.ReadMessage(mailbox_pb2.ReadMessageRequest(id=report))]
    assert (await m.SetFlags(mailbox_pb2.SetFlagsRequest(ids=[report], add=["$Taken"]))).changed == 1
    for call in (
        m.ListMessages(mailbox_pb2.ListMessagesRequest()),
        m.ListMessages(mailbox_pb2.ListMessagesRequest(account="mail/postmaster", path="Inbox")),
        m.ListMessages(mailbox_pb2.ListMessagesRequest(account="mail/alice", path="Postmaster/reports")),
        m.SetFlags(mailbox_pb2.SetFlagsRequest(ids=[report, other], add=["$Taken"])),
        m.DeleteMessages(mailbox_pb2.DeleteMessagesRequest(ids=[report])),
    ):
        code, text = await refused(call)
        assert (code, "dmarc" in text) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    code, _ = await refused(anext(aiter(m.ReadMessage(mailbox_pb2.ReadMessageRequest(id=other, mark_seen=True)))))
    assert code is grpc.StatusCode.NOT_FOUND
    monkeypatch.undo()
    (kept,) = (await m.ListMessages(mailbox_pb2.ListMessagesRequest(account="postmaster", path="Inbox"))).messages
    assert list(kept.flags) == []


async def test_what_our_queue_made_a_message_for_is_told_and_what_others_say_is_not(service: Service) -> None:
    for origin, told in (
        (types_pb2.ORIGIN_SYSTEM, types_pb2.PURPOSE_DMARC_REPORT),
        (types_pb2.ORIGIN_MX, types_pb2.PURPOSE_UNSPECIFIED),
    ):
        number = await put(service, f"box {origin}", b"x", purpose=types_pb2.PURPOSE_DMARC_REPORT)
        await service.rig.connection.execute(
            "UPDATE message SET envelope = %s WHERE id = (SELECT message_id FROM mailbox_message WHERE id = %s)",
            (types_pb2.Envelope(origin=origin, purpose=types_pb2.PURPOSE_DMARC_REPORT).SerializeToString(), number),
        )
        (found,) = (await service.mail.ListMessages(mailbox_pb2.ListMessagesRequest(path=f"box {origin}"))).messages
        assert found.purpose == told


@pytest.mark.parametrize("flag", ["", "\\Bogus", "two words", "x" * 65, "new\nline", "né"])
async def test_what_is_no_flag_is_refused(service: Service, flag: str) -> None:
    code, text = await refused(service.mail.SetFlags(mailbox_pb2.SetFlagsRequest(ids=[1], add=[flag])))
    assert (code, "is not a flag" in text) == (grpc.StatusCode.INVALID_ARGUMENT, True)


async def test_mailbox_calls_name_what_they_need(service: Service) -> None:
    m = service.mail
    for call in (
        m.ListMessages(mailbox_pb2.ListMessagesRequest(path="x" * 256)),
        m.ListMessages(mailbox_pb2.ListMessagesRequest(account="alice", page_token="zed")),
        m.SetFlags(mailbox_pb2.SetFlagsRequest()),
        m.DeleteMessages(mailbox_pb2.DeleteMessagesRequest(ids=[2**64 - 1])),
    ):
        code, _ = await refused(call)
        assert code is grpc.StatusCode.INVALID_ARGUMENT


async def test_content_of_which_a_part_is_gone_ends_in_an_error_and_not_early(service: Service) -> None:
    (bob,) = await service.rig.accept("alice@here.example", body=BODY + b"x" * 1_500_000)
    await service.rig.rows("DELETE FROM chunk WHERE number = 1 RETURNING number")
    request = admin_pb2.GetContentRequest(message_id=bob.message_id)
    with pytest.raises(grpc.aio.AioRpcError, match="a part of the stored message is missing") as lost:
        [part async for part in service.admin.GetContent(request)]
    assert lost.value.code() is grpc.StatusCode.DATA_LOSS
