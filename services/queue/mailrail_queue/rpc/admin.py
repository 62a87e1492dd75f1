"""gRPC of administration: messages in and out, no decisions.

These calls have connections of their own, so that an administrator's wide filter never waits for mail, nor mail for it.
"""

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

from mailrail.pb.queue.v1 import admin_pb2, admin_pb2_grpc, mailbox_pb2_grpc, probe_pb2_grpc, transports_pb2_grpc
from mailrail_queue.admin.administration import Administration
from mailrail_queue.admin.base import AdminContext, stamp
from mailrail_queue.admin.filters import NotFound, message_id_argument
from mailrail_queue.admin.listing import RecipientPage
from mailrail_queue.app import QueueProcess
from mailrail_queue.mailbox import store as mailbox
from mailrail_queue.rpc.answering import Context, Pool, Rows, answering
from mailrail_queue.rpc.mailbox import MailboxServicer
from mailrail_queue.rpc.probe import ProbeServicer
from mailrail_queue.rpc.transports import TransportServicer

QUEUE_ADMIN = "mailrail.queue.v1.QueueAdminService"
MAILBOX = "mailrail.queue.v1.MailboxService"
TRANSPORTS = "mailrail.queue.v1.TransportService"
PROBES = "mailrail.queue.v1.ProbeService"
CALLERS = {
    QUEUE_ADMIN: frozenset({"cli"}),
    MAILBOX: frozenset({"cli", "dmarc"}),
    TRANSPORTS: frozenset({"operator", "cli"}),
    PROBES: frozenset({"operator"}),
}
"""Roles of certificates that may call each service. Who would call for other people is not let in before their rights
are checked here, too."""


class QueueAdminServicer(admin_pb2_grpc.QueueAdminServiceServicer):
    """The queue as an administrator sees and changes it."""

    def __init__(
        self,
        administration: Administration,
        rows: Rows,
        *,
        shards_owned: Callable[[], int],
        outbound_processes: Callable[[], int],
        window: Callable[[str], tuple[int, int] | None],
    ) -> None:
        """`window`: transactions in flight and the window of a site, where this process knows it."""
        self._do = administration
        self._rows = rows
        self._shards_owned = shards_owned
        self._outbound_processes = outbound_processes
        self._window = window

    async def ListRecipients(
        self, request: admin_pb2.ListRecipientsRequest, context: Context
    ) -> admin_pb2.ListRecipientsResponse:
        async with answering(context, request), self._rows.use() as connection:
            page = await self._do.listing.recipients(connection, request.filter, request.page_size, request.page_token)
            return _with_page(admin_pb2.ListRecipientsResponse(), page)

    async def GetMessage(self, request: admin_pb2.GetMessageRequest, context: Context) -> admin_pb2.GetMessageResponse:
        async with answering(context, request), self._rows.use() as connection:
            return await self._do.listing.message(connection, request.message_id)

    async def GetContent(
        self, request: admin_pb2.GetContentRequest, context: Context
    ) -> AsyncIterator[admin_pb2.GetContentResponse]:
        async with answering(context, request):
            message_id = message_id_argument(request.message_id)
            sent = False
            async for part in mailbox.content_for(self._rows.use, message_id):
                sent = True
                yield admin_pb2.GetContentResponse(data=part)
            if not sent:
                raise NotFound("the content of this message was deleted")

    async def GetStats(self, request: admin_pb2.GetStatsRequest, context: Context) -> admin_pb2.GetStatsResponse:
        async with answering(context, request), self._rows.use() as connection:
            answer = await self._do.listing.stats(connection)
            answer.shards_owned, answer.outbound_processes = self._shards_owned(), self._outbound_processes()
            return answer

    async def ListSites(self, request: admin_pb2.ListSitesRequest, context: Context) -> admin_pb2.ListSitesResponse:
        async with answering(context, request), self._rows.use() as connection:
            found, token = await self._do.listing.sites(connection, request.page_size, request.page_token)
            for site in found:
                if (known := self._window(site.name)) is not None:
                    site.in_flight, site.window = known
            return admin_pb2.ListSitesResponse(sites=found, next_page_token=token)

    async def ListHistory(
        self, request: admin_pb2.ListHistoryRequest, context: Context
    ) -> admin_pb2.ListHistoryResponse:
        async with answering(context, request), self._rows.use() as connection:
            page = await self._do.listing.history(connection, request.filter, request.page_size, request.page_token)
            return _with_page(admin_pb2.ListHistoryResponse(), page)

    async def Hold(self, request: admin_pb2.HoldRequest, context: Context) -> admin_pb2.HoldResponse:
        async with answering(context, request), self._rows.change() as connection:
            done = await self._do.changes.hold(connection, request.filter, request.reason)
            return admin_pb2.HoldResponse(changes=done.listed, count=done.count)

    async def Unhold(self, request: admin_pb2.UnholdRequest, context: Context) -> admin_pb2.UnholdResponse:
        async with answering(context, request), self._rows.change() as connection:
            done = await self._do.changes.unhold(connection, request.filter)
            return admin_pb2.UnholdResponse(changes=done.listed, count=done.count)

    async def Kick(self, request: admin_pb2.KickRequest, context: Context) -> admin_pb2.KickResponse:
        async with answering(context, request), self._rows.change() as connection:
            done = await self._do.changes.kick(connection, request.filter)
            return admin_pb2.KickResponse(changes=done.listed, count=done.count)

    async def Schedule(self, request: admin_pb2.ScheduleRequest, context: Context) -> admin_pb2.ScheduleResponse:
        async with answering(context, request), self._rows.change() as connection:
            done = await self._do.changes.schedule(connection, request)
            return admin_pb2.ScheduleResponse(changes=done.listed, count=done.count)

    async def Fail(self, request: admin_pb2.FailRequest, context: Context) -> admin_pb2.FailResponse:
        async with answering(context, request), self._rows.change() as connection:
            done = await self._do.changes.fail(connection, request.filter, request.reason)
            return admin_pb2.FailResponse(changes=done.listed, count=done.count)

    async def Drop(self, request: admin_pb2.DropRequest, context: Context) -> admin_pb2.DropResponse:
        async with answering(context, request), self._rows.change() as connection:
            done = await self._do.changes.drop(connection, request.filter)
            return admin_pb2.DropResponse(changes=done.listed, count=done.count)

    async def SetTransport(
        self, request: admin_pb2.SetTransportRequest, context: Context
    ) -> admin_pb2.SetTransportResponse:
        async with answering(context, request), self._rows.change() as connection:
            ref = request.transport if request.HasField("transport") else None
            name = f"{ref.namespace}/{ref.name}" if ref is not None else None
            done = await self._do.changes.set_transport(connection, request.filter, name)
            return admin_pb2.SetTransportResponse(changes=done.listed, count=done.count)

    async def SetTlsRequirement(
        self, request: admin_pb2.SetTlsRequirementRequest, context: Context
    ) -> admin_pb2.SetTlsRequirementResponse:
        async with answering(context, request), self._rows.change() as connection:
            done = await self._do.changes.set_tls(connection, request.filter, request.tls_requirement, request.reason)
            return admin_pb2.SetTlsRequirementResponse(changes=done.listed, count=done.count)

    async def CreateHoldRule(
        self, request: admin_pb2.CreateHoldRuleRequest, context: Context
    ) -> admin_pb2.CreateHoldRuleResponse:
        async with answering(context, request), self._rows.change() as connection:
            rule, held = await self._do.hold_rules.create(connection, request.rule)
            return admin_pb2.CreateHoldRuleResponse(rule=rule, held=held)

    async def ListHoldRules(
        self, request: admin_pb2.ListHoldRulesRequest, context: Context
    ) -> admin_pb2.ListHoldRulesResponse:
        async with answering(context, request), self._rows.use() as connection:
            return admin_pb2.ListHoldRulesResponse(rules=await self._do.hold_rules.all(connection))

    async def DeleteHoldRule(
        self, request: admin_pb2.DeleteHoldRuleRequest, context: Context
    ) -> admin_pb2.DeleteHoldRuleResponse:
        async with answering(context, request), self._rows.change() as connection:
            await self._do.hold_rules.delete(connection, request.id)
            return admin_pb2.DeleteHoldRuleResponse()

    async def Explain(self, request: admin_pb2.ExplainRequest, context: Context) -> admin_pb2.ExplainResponse:
        async with answering(context, request), self._rows.use() as connection:
            return await self._do.explainer.explain(connection, request)

    async def DiffRevision(
        self, request: admin_pb2.DiffRevisionRequest, context: Context
    ) -> AsyncIterator[admin_pb2.DiffRevisionResponse]:
        compared = self._do.differences.compare(self._rows.use, request)
        async with answering(context, request), contextlib.aclosing(compared) as answers:
            async for answer in answers:
                yield answer


_Answer = TypeVar("_Answer", admin_pb2.ListRecipientsResponse, admin_pb2.ListHistoryResponse)


def _with_page(answer: _Answer, page: RecipientPage) -> _Answer:
    answer.recipients.extend(page.recipients)
    answer.next_page_token, answer.incomplete = page.next_token, page.incomplete
    stamp(answer.looked_to, page.looked_to)
    return answer


def administration_services(queue: QueueProcess, pool: Pool) -> dict[str, tuple[Any, Callable[[Any, Any], None]]]:
    """The services of this module in front of a queue."""
    rows = Rows(pool)
    administration = Administration(
        AdminContext(
            queue.router,
            queue.mailboxes.addresses,
            queue.notifier,
            queue.worklist.wake_everybody,
            queue.database.now,
            lambda site: queue.counting.large.get(site, 0),
        )
    )

    def window(name: str) -> tuple[int, int] | None:
        site = queue.dispatcher.sites.get(name)
        return (site.window.in_flight, int(site.window.size)) if site is not None and not site.is_local else None

    admin = QueueAdminServicer(
        administration,
        rows,
        shards_owned=lambda: len(queue.worklist.ownership.epochs),
        outbound_processes=lambda: len(queue.dispatcher.streams),
        window=window,
    )
    return {
        QUEUE_ADMIN: (admin, admin_pb2_grpc.add_QueueAdminServiceServicer_to_server),
        MAILBOX: (
            MailboxServicer(rows, queue.mailboxes.addresses),
            mailbox_pb2_grpc.add_MailboxServiceServicer_to_server,
        ),
        PROBES: (ProbeServicer(rows), probe_pb2_grpc.add_ProbeServiceServicer_to_server),
        TRANSPORTS: (TransportServicer(rows), transports_pb2_grpc.add_TransportServiceServicer_to_server),
    }
