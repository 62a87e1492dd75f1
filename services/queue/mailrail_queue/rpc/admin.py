"""gRPC of administration and of the built-in mailbox: messages in and out, errors to status; no decisions.

Errors: INVALID_ARGUMENT with what to change, NOT_FOUND, UNAVAILABLE while Postgres or the configuration is out of
reach, DEADLINE_EXCEEDED when a filter takes too long over a large queue. These calls have connections of their own, so
that an administrator's wide filter never waits for mail, nor mail for it.
"""

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import grpc
import psycopg
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from mailrail.kit.postgres import settle, why_read_only
from mailrail.pb.queue.v1 import admin_pb2, admin_pb2_grpc, mailbox_pb2, mailbox_pb2_grpc
from mailrail_queue.admin.administration import Administration
from mailrail_queue.admin.filters import BadRequest, NotFound, page_size
from mailrail_queue.app import NotConfigured, QueueProcess
from mailrail_queue.mailbox import delivery as mailbox
from mailrail_queue.mailbox.delivery import FLAGS, PATH_LIMIT, SEEN, ContentIncomplete, Listed, MailboxDelivery
from mailrail_queue.notify.dsn import Notifier
from mailrail_queue.routing.addresses import Addresses
from mailrail_queue.store import columns
from mailrail_queue.store.mail import Connection

Context = grpc.aio.ServicerContext[Any, Any]
Pool = AsyncConnectionPool[Connection]

QUEUE_ADMIN = "mailrail.queue.v1.QueueAdminService"
MAILBOX = "mailrail.queue.v1.MailboxService"
CALLERS = {QUEUE_ADMIN: frozenset({"console", "cli"}), MAILBOX: frozenset({"console", "cli"})}
"""Who may administer."""

_KEYWORD_LIMIT = 64
_MOST_IDS = 10_000


class answering:
    """Turns what goes wrong inside into a status that says what to do."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        match error:
            case BadRequest():
                await self._context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            case NotFound():
                await self._context.abort(grpc.StatusCode.NOT_FOUND, str(error))
            case ContentIncomplete():
                await self._context.abort(grpc.StatusCode.DATA_LOSS, str(error))
            case NotConfigured():
                await self._context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
            case psycopg.errors.QueryCanceled():
                text = "the database took too long: narrow the filter, or name recipients"
                await self._context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, text)
            case psycopg.DataError():
                text = f"a value is not one that can be looked for: {str(error).strip()}"
                await self._context.abort(grpc.StatusCode.INVALID_ARGUMENT, text)
            case psycopg.OperationalError() | PoolTimeout() | OSError():
                text = f"the database is out of reach: {str(error).strip()}"
                await self._context.abort(grpc.StatusCode.UNAVAILABLE, text)
            case psycopg.Error():  # else UNKNOWN, and the name of a class
                text = f"the database refused: {str(error).strip()}"
                await self._context.abort(grpc.StatusCode.INTERNAL, text)


class Rows:
    """Connections for administration, set up for the statements of this service."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    @asynccontextmanager
    async def use(self) -> AsyncIterator[Connection]:
        """One connection. Raises psycopg_pool.PoolTimeout, and psycopg.OperationalError where nothing is written."""
        async with self._pool.connection() as connection:
            columns.register(connection.adapters)
            await connection.execute("SET statement_timeout = '30s'")
            await connection.execute("SET lock_timeout = '10s'")
            try:
                yield connection
            except psycopg.errors.ReadOnlySqlTransaction as error:  # the pool gives it up when it leads to a standby
                raise psycopg.OperationalError(why_read_only(connection, error)) from error

    @asynccontextmanager
    async def change(self) -> AsyncIterator[Connection]:
        """The same for a call that changes something: what it found done is durable too when it answers (DUR-01).

        Raises also psycopg.OperationalError.
        """
        async with self.use() as connection:
            try:
                yield connection
            except NotFound:  # as after a call that was cut off and did it
                await settle(connection)
                raise
            await settle(connection)


class QueueAdminServicer(admin_pb2_grpc.QueueAdminServiceServicer):
    """The queue as an administrator sees and changes it."""

    def __init__(
        self,
        administration: Administration,
        rows: Rows,
        *,
        shards_owned: Callable[[], int] = lambda: 0,
        outbound_nodes: Callable[[], int] = lambda: 0,
        window: Callable[[str], tuple[int, int] | None] = lambda site: None,
    ) -> None:
        """`window`: transactions in flight and the window of a site, where this process knows it."""
        self._do = administration
        self._rows = rows
        self._shards_owned = shards_owned
        self._outbound_nodes = outbound_nodes
        self._window = window

    async def ListRecipients(
        self, request: admin_pb2.ListRecipientsRequest, context: Context
    ) -> admin_pb2.ListRecipientsResponse:
        async with answering(context), self._rows.use() as connection:
            found, token = await self._do.recipients(connection, request.filter, request.page_size, request.page_token)
            return admin_pb2.ListRecipientsResponse(recipients=found, next_page_token=token)

    async def GetMessage(self, request: admin_pb2.GetMessageRequest, context: Context) -> admin_pb2.GetMessageResponse:
        async with answering(context), self._rows.use() as connection:
            return await self._do.message(connection, request.message_id)

    async def GetContent(
        self, request: admin_pb2.GetContentRequest, context: Context
    ) -> AsyncIterator[admin_pb2.GetContentResponse]:
        async with answering(context):
            if len(request.message_id) != 16:
                raise BadRequest("a message id has 16 octets")
            sent = False
            async for part in mailbox.content_for(self._rows.use, UUID(bytes=request.message_id)):
                sent = True
                yield admin_pb2.GetContentResponse(data=part)
            if not sent:
                raise NotFound("the content of this message is not kept any more")

    async def GetStats(self, request: admin_pb2.GetStatsRequest, context: Context) -> admin_pb2.GetStatsResponse:
        async with answering(context), self._rows.use() as connection:
            answer = await self._do.stats(connection)
            answer.shards_owned, answer.outbound_nodes = self._shards_owned(), self._outbound_nodes()
            return answer

    async def ListSites(self, request: admin_pb2.ListSitesRequest, context: Context) -> admin_pb2.ListSitesResponse:
        async with answering(context), self._rows.use() as connection:
            found, token = await self._do.sites(connection, request.page_size, request.page_token)
            for site in found:
                if (known := self._window(site.name)) is not None:
                    site.in_flight, site.window = known
            return admin_pb2.ListSitesResponse(sites=found, next_page_token=token)

    async def ListHistory(
        self, request: admin_pb2.ListHistoryRequest, context: Context
    ) -> admin_pb2.ListHistoryResponse:
        async with answering(context), self._rows.use() as connection:
            found, token = await self._do.history(connection, request.filter, request.page_size, request.page_token)
            return admin_pb2.ListHistoryResponse(recipients=found, next_page_token=token)

    async def Hold(self, request: admin_pb2.HoldRequest, context: Context) -> admin_pb2.HoldResponse:
        async with answering(context), self._rows.change() as connection:
            done = await self._do.hold(connection, request.filter, request.reason)
            return admin_pb2.HoldResponse(changes=done.listed, count=done.count)

    async def Unhold(self, request: admin_pb2.UnholdRequest, context: Context) -> admin_pb2.UnholdResponse:
        async with answering(context), self._rows.change() as connection:
            done = await self._do.unhold(connection, request.filter)
            return admin_pb2.UnholdResponse(changes=done.listed, count=done.count)

    async def Kick(self, request: admin_pb2.KickRequest, context: Context) -> admin_pb2.KickResponse:
        async with answering(context), self._rows.change() as connection:
            done = await self._do.kick(connection, request.filter)
            return admin_pb2.KickResponse(changes=done.listed, count=done.count)

    async def Schedule(self, request: admin_pb2.ScheduleRequest, context: Context) -> admin_pb2.ScheduleResponse:
        async with answering(context), self._rows.change() as connection:
            done = await self._do.schedule(connection, request)
            return admin_pb2.ScheduleResponse(changes=done.listed, count=done.count)

    async def Fail(self, request: admin_pb2.FailRequest, context: Context) -> admin_pb2.FailResponse:
        async with answering(context), self._rows.change() as connection:
            done = await self._do.fail(connection, request.filter, request.reason)
            return admin_pb2.FailResponse(changes=done.listed, count=done.count)

    async def Drop(self, request: admin_pb2.DropRequest, context: Context) -> admin_pb2.DropResponse:
        async with answering(context), self._rows.change() as connection:
            done = await self._do.drop(connection, request.filter)
            return admin_pb2.DropResponse(changes=done.listed, count=done.count)

    async def SetTransport(
        self, request: admin_pb2.SetTransportRequest, context: Context
    ) -> admin_pb2.SetTransportResponse:
        async with answering(context), self._rows.change() as connection:
            ref = request.transport if request.HasField("transport") else None
            name = f"{ref.namespace}/{ref.name}" if ref is not None else None
            done = await self._do.set_transport(connection, request.filter, name)
            return admin_pb2.SetTransportResponse(changes=done.listed, count=done.count)

    async def SetTlsRequirement(
        self, request: admin_pb2.SetTlsRequirementRequest, context: Context
    ) -> admin_pb2.SetTlsRequirementResponse:
        async with answering(context), self._rows.change() as connection:
            done = await self._do.set_tls(connection, request.filter, request.tls_requirement)
            return admin_pb2.SetTlsRequirementResponse(changes=done.listed, count=done.count)

    async def CreateHoldRule(
        self, request: admin_pb2.CreateHoldRuleRequest, context: Context
    ) -> admin_pb2.CreateHoldRuleResponse:
        async with answering(context), self._rows.change() as connection:
            rule, held = await self._do.create_hold_rule(connection, request.rule)
            return admin_pb2.CreateHoldRuleResponse(rule=rule, held=held)

    async def ListHoldRules(
        self, request: admin_pb2.ListHoldRulesRequest, context: Context
    ) -> admin_pb2.ListHoldRulesResponse:
        async with answering(context), self._rows.use() as connection:
            return admin_pb2.ListHoldRulesResponse(rules=await self._do.hold_rules(connection))

    async def DeleteHoldRule(
        self, request: admin_pb2.DeleteHoldRuleRequest, context: Context
    ) -> admin_pb2.DeleteHoldRuleResponse:
        async with answering(context), self._rows.change() as connection:
            await self._do.delete_hold_rule(connection, request.id)
            return admin_pb2.DeleteHoldRuleResponse()

    async def Explain(self, request: admin_pb2.ExplainRequest, context: Context) -> admin_pb2.ExplainResponse:
        async with answering(context), self._rows.use() as connection:
            return await self._do.explain(connection, request)


class MailboxServicer(mailbox_pb2_grpc.MailboxServiceServicer):
    """Reading the built-in mailboxes."""

    def __init__(self, rows: Rows, addresses: Callable[[], Addresses]) -> None:
        self._rows = rows
        self._addresses = addresses

    def _account(self, name: str) -> str:
        """The stored name of an account. Of one that is gone the mail is still there, so its name is taken as it is."""
        with contextlib.suppress(NotConfigured):
            found = self._addresses().account(name)
            if found is not None:
                return f"{found.ref.namespace}/{found.ref.name}"
        return name

    async def ListMailboxes(
        self, request: mailbox_pb2.ListMailboxesRequest, context: Context
    ) -> mailbox_pb2.ListMailboxesResponse:
        async with answering(context), self._rows.use() as connection:
            answer = mailbox_pb2.ListMailboxesResponse()
            account = self._account(request.account) if request.account else ""
            for owner, path, messages, unseen in await mailbox.mailboxes(connection, account):
                answer.mailboxes.add(account=mailbox.account_pb(owner), path=path, messages=messages, unseen=unseen)
            return answer

    async def ListMessages(
        self, request: mailbox_pb2.ListMessagesRequest, context: Context
    ) -> mailbox_pb2.ListMessagesResponse:
        async with answering(context), self._rows.use() as connection:
            if len(request.path) > PATH_LIMIT:
                raise BadRequest(f"a mailbox path has at most {PATH_LIMIT} characters")
            size = page_size(request.page_size)
            before = _before(request.page_token)
            account = self._account(request.account) if request.account else ""
            found = await mailbox.listed(connection, account, request.path, before, size + 1)
            answer = mailbox_pb2.ListMessagesResponse(messages=[_message(m) for m in found[:size]])
            if len(found) > size:
                answer.next_page_token = str(found[size - 1].id)
            return answer

    async def ReadMessage(
        self, request: mailbox_pb2.ReadMessageRequest, context: Context
    ) -> AsyncIterator[mailbox_pb2.ReadMessageResponse]:
        async with answering(context):
            async with self._rows.use() as connection:
                found = await mailbox.one(connection, request.id)
                if found is None:
                    raise NotFound(f"no message {request.id}")
                if request.mark_seen and SEEN not in found.flags:
                    await mailbox.set_flags(connection, [found.id], [SEEN], [])
                    found.flags.append(SEEN)
            yield mailbox_pb2.ReadMessageResponse(message=_message(found), data=found.prefix)
            whole = False
            async for part in mailbox.content_for(self._rows.use, found.message_id):
                whole = True
                yield mailbox_pb2.ReadMessageResponse(data=part)
            if not whole:
                raise ContentIncomplete("what is stored of this message is gone")

    async def SetFlags(self, request: mailbox_pb2.SetFlagsRequest, context: Context) -> mailbox_pb2.SetFlagsResponse:
        async with answering(context), self._rows.change() as connection:
            for flag in (*request.add, *request.remove):
                _check_flag(flag)
            ids = _ids(request.ids)
            changed = await mailbox.set_flags(connection, ids, list(request.add), list(request.remove))
            return mailbox_pb2.SetFlagsResponse(changed=changed)

    async def DeleteMessages(
        self, request: mailbox_pb2.DeleteMessagesRequest, context: Context
    ) -> mailbox_pb2.DeleteMessagesResponse:
        async with answering(context), self._rows.change() as connection:
            return mailbox_pb2.DeleteMessagesResponse(deleted=await mailbox.delete(connection, _ids(request.ids)))


def _ids(given: Any) -> list[int]:
    if not given:
        raise BadRequest("name the messages by their ids")
    if len(given) > _MOST_IDS:
        raise BadRequest(f"at most {_MOST_IDS} messages a call")
    if any(i >= 2**63 for i in given):
        raise BadRequest("there is no such id")
    return list(given)


def _check_flag(flag: str) -> None:
    """System flags by name, keywords as atoms (RFC 9051 2.3.2). Raises BadRequest."""
    if flag in FLAGS:
        return
    atom = flag.isascii() and flag.isprintable() and not set(flag) & set(' (){%*"\\]')
    if not flag or len(flag) > _KEYWORD_LIMIT or not atom:
        raise BadRequest(f"{flag!r} is no flag: {', '.join(sorted(FLAGS))}, or a keyword of letters and digits")


def _before(token: str) -> int:
    if not token:
        return 2**63 - 1
    if not (token.isascii() and token.isdigit() and len(token) < 19):
        raise BadRequest("the page token is not one of ours")
    return int(token)


def _message(found: Listed) -> mailbox_pb2.MailboxMessage:
    answer = mailbox_pb2.MailboxMessage(
        id=found.id,
        account=mailbox.account_pb(found.account),
        path=found.path,
        flags=found.flags,
        size=found.size,
        to=found.header_to,
        subject=found.subject,
        message_id=found.header_message_id,
        in_reply_to=found.in_reply_to,
        references=found.references,
        recipient=found.recipient,
        reverse_path=found.reverse_path,
        dsn=found.dsn,
        note=found.note,
    )
    setattr(answer, "from", found.header_from)
    answer.received.FromDatetime(found.received)
    return answer


def administration_services(queue: QueueProcess, pool: Pool) -> dict[str, tuple[Any, Callable[[Any, Any], None]]]:
    """The services of this module in front of a queue."""
    rows = Rows(pool)
    mailboxes = MailboxDelivery(queue.router)
    administration = Administration(
        queue.router,
        mailboxes.addresses,
        Notifier(queue.router, mailboxes, queue.worklist.woken_or_peer),
        changed=queue.worklist.administered,
        clock=queue.database.now,
    )

    def window(name: str) -> tuple[int, int] | None:
        site = queue.dispatcher.sites.get(name)
        return (site.window.in_flight, int(site.window.size)) if site is not None and not site.here else None

    admin = QueueAdminServicer(
        administration,
        rows,
        shards_owned=lambda: len(queue.worklist.ownership.epochs),
        outbound_nodes=lambda: len(queue.dispatcher.streams),
        window=window,
    )
    return {
        QUEUE_ADMIN: (admin, admin_pb2_grpc.add_QueueAdminServiceServicer_to_server),
        MAILBOX: (
            MailboxServicer(rows, mailboxes.addresses),
            mailbox_pb2_grpc.add_MailboxServiceServicer_to_server,
        ),
    }
