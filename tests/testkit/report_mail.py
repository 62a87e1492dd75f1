"""A mailbox for reports without a queue behind it, and the mail that others send there."""

import asyncio
import base64
import contextlib
import gzip
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import grpc

from mailrail.pb.queue.v1 import mailbox_pb2, mailbox_pb2_grpc

CAME = datetime(2026, 6, 1, 12, tzinfo=UTC)
"""When the mail came."""
PASSES = "Authentication-Results: mx.our.example; dkim=pass header.d={0}; dmarc=pass header.from={0}\r\n"


@dataclass
class ReportMailbox(mailbox_pb2_grpc.MailboxServiceServicer):
    """`MailboxService` as far as dmarc calls it."""

    mails: dict[int, bytes] = field(default_factory=dict)
    flags: dict[int, set[str]] = field(default_factory=dict)
    purposes: dict[int, Any] = field(default_factory=dict)
    broken: set[int] = field(default_factory=set)
    """Whose content cannot be read."""
    flags_fail: bool = False
    """As for a process that is killed before it says what it has read."""
    reads: list[int] = field(default_factory=list)
    port: int = 0

    def put(self, mail: bytes, purpose: Any = 0) -> int:
        """A mail, and its id."""
        number = len(self.mails) + 1
        self.mails[number], self.flags[number], self.purposes[number] = mail, set(), purpose
        return number

    async def ListMessages(
        self, request: mailbox_pb2.ListMessagesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> mailbox_pb2.ListMessagesResponse:
        """Two a page, so that there are pages."""
        answer = mailbox_pb2.ListMessagesResponse()
        if (request.account, request.path) != ("mail/postmaster", "Postmaster/reports"):
            return answer
        before = int(request.page_token or 2**31)
        new = (number for number, flags in self.flags.items() if request.without_flag not in flags)
        found = sorted((number for number in new if number < before), reverse=True)
        for number in found[:2]:
            one = answer.messages.add(id=number, size=len(self.mails[number]), subject=f"report {number}")
            one.purpose = self.purposes[number]
            one.received.FromDatetime(CAME)
        answer.next_page_token = str(found[1]) if len(found) > 2 else ""
        return answer

    async def ReadMessage(
        self, request: mailbox_pb2.ReadMessageRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[mailbox_pb2.ReadMessageResponse]:
        """In pieces."""
        self.reads.append(request.id)
        if request.id in self.broken:
            await context.abort(grpc.StatusCode.DATA_LOSS, "the stored message is missing")
        mail = self.mails[request.id]
        for at in range(0, len(mail), 64 * 1024):
            yield mailbox_pb2.ReadMessageResponse(data=mail[at : at + 64 * 1024])

    async def SetFlags(
        self, request: mailbox_pb2.SetFlagsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> mailbox_pb2.SetFlagsResponse:
        """Or not."""
        if self.flags_fail:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "it is gone")
        for number in request.ids:
            self.flags[number] |= set(request.add)
        return mailbox_pb2.SetFlagsResponse(changed=len(request.ids))

    async def ListMailboxes(self, request: Any, context: Any) -> Any:
        """Nobody calls it."""
        raise NotImplementedError

    async def DeleteMessages(self, request: Any, context: Any) -> Any:
        """Nor this."""
        raise NotImplementedError

    def channel(self) -> grpc.aio.Channel:
        """To it."""
        return grpc.aio.insecure_channel(f"127.0.0.1:{self.port}")


@contextlib.asynccontextmanager
async def report_mailbox() -> AsyncIterator[ReportMailbox]:
    """One that answers while the context lasts."""
    found = ReportMailbox()
    server = grpc.aio.server()
    mailbox_pb2_grpc.add_MailboxServiceServicer_to_server(found, server)
    found.port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield found
    finally:
        await asyncio.shield(server.stop(0))


def aggregate(number: int = 1, *, domain: str = "our.example", rows: int = 1, source: str = "192.0.2.1") -> bytes:
    """A DMARC report with rows of two messages each, the first of which passes."""
    records = "".join(
        f"<record><row><source_ip>{source}</source_ip><count>2</count><policy_evaluated><disposition>none</disposition>"
        f"<dkim>{'fail' if row else 'pass'}</dkim><spf>fail</spf></policy_evaluated></row>"
        f"<identifiers><header_from>{domain}</header_from></identifiers></record>"
        for row in range(rows)
    )
    return (
        f"<feedback><report_metadata><org_name>Rep</org_name><report_id>id-{number}</report_id>"
        "<date_range><begin>1780185600</begin><end>1780271999</end></date_range></report_metadata>"
        f"<policy_published><domain>{domain}</domain><p>none</p></policy_published>{records}</feedback>"
    ).encode()


def report_mail(report: bytes, sender: str = "rep.example", results: str = PASSES) -> bytes:
    """A mail with a report, as ingress would have kept it. `results` without fields: nothing is proven."""
    head = f"{results.format(sender)}From: noreply@{sender}\r\nContent-Type: application/gzip\r\n"
    return head.encode() + b"Content-Transfer-Encoding: base64\r\n\r\n" + base64.encodebytes(gzip.compress(report))
