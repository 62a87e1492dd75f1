"""What others report about us, for people: messages in and out, no decisions."""

import json
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any, Final, NoReturn

import grpc

from mailrail.core.dmarc.facts import ascii_domain
from mailrail.pb.dmarc.v1 import received_pb2, received_pb2_grpc
from mailrail_dmarc.store import received as store
from mailrail_dmarc.store.connection import DATABASE_ERRORS, Connection, DmarcDatabase
from mailrail_dmarc.store.received import ReceivedKind, WantedReports

Context = grpc.aio.ServicerContext[Any, Any]

_PAGE: Final = 50
_PAGE_LIMIT: Final = 500
_ROWS: Final = 5000
_MOST: Final = 2**63 - 1


class ReceivedServicer(received_pb2_grpc.ReceivedServiceServicer):
    """received.proto, ReceivedService."""

    def __init__(self, database: DmarcDatabase) -> None:
        self._database = database

    async def ListReceived(
        self, request: received_pb2.ListReceivedRequest, context: Context
    ) -> received_pb2.ListReceivedResponse:
        """See the agreement. INVALID_ARGUMENT for what is no domain, address or token."""
        wanted = WantedReports(
            domain=await _domain(context, request.domain),
            kind=int(request.kind),
            submitter=await _domain(context, request.submitter),
            source=await _source(context, request.source),
        )
        before = await _number(context, request.page_token)
        size = _size(request.page_size)
        rows = await self._ask(context, lambda connection: store.listed(connection, wanted, before, size + 1))
        token = str(rows[size - 1][0]) if len(rows) > size else ""
        return received_pb2.ListReceivedResponse(reports=map(_received, rows[:size]), next_page_token=token)

    async def GetReceived(
        self, request: received_pb2.GetReceivedRequest, context: Context
    ) -> received_pb2.GetReceivedResponse:
        """See the agreement. NOT_FOUND."""
        number = min(request.id, _MOST)
        row = await self._ask(context, lambda connection: store.one(connection, number))
        if row is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no report {request.id}")
        answer = received_pb2.GetReceivedResponse(report=_received(row))
        if row[1] == ReceivedKind.DMARC:
            for found in await self._ask(context, lambda connection: store.records_of(connection, number, _ROWS)):
                answer.records.add(**_named(received_pb2.ReceivedRecord, found))
        else:
            for found in await self._ask(context, lambda connection: store.policies_of(connection, number, _ROWS)):
                answer.policies.add(**_named(received_pb2.ReceivedPolicy, found))
        answer.more = answer.report.rows + answer.report.left_out - len(answer.records) - len(answer.policies)
        return answer

    async def ListRefused(
        self, request: received_pb2.ListRefusedRequest, context: Context
    ) -> received_pb2.ListRefusedResponse:
        """See the agreement. INVALID_ARGUMENT for what is no token."""
        try:
            text = request.page_token
            before = datetime.fromisoformat(text) if text else datetime.max.replace(tzinfo=UTC)
            before.astimezone(UTC)
        except (ValueError, OverflowError):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the page token is not valid")
        size = _size(request.page_size)
        rows = await self._ask(context, lambda connection: store.refused(connection, before, size + 1))
        answer = received_pb2.ListRefusedResponse()
        for number, looked, sender, subject, reason in rows[:size]:
            answer.mails.add(id=number, sender=sender, subject=subject, reason=reason).looked.FromDatetime(looked)
        if len(rows) > size:
            answer.next_page_token = rows[size - 1][1].isoformat()
        return answer

    async def _ask(self, context: Context, question: Any) -> Any:
        """The answer of Postgres; UNAVAILABLE while it is away."""
        try:
            async with self._database.connection() as connection:
                found: Connection = connection
                return await question(found)
        except DATABASE_ERRORS as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"Postgres: {str(error).strip()[:300]}")


def _received(row: tuple[Any, ...]) -> received_pb2.Received:
    made = received_pb2.Received(
        id=row[0],
        kind=row[1],
        submitter=row[2],
        organization=row[3],
        report_id=row[4],
        domain=row[5],
        good=row[9],
        bad=row[10],
        rejected=row[11],
        rows=row[12],
        left_out=row[13],
        head=json.dumps(row[14]),
    )
    for name, at in (("begin", 6), ("end", 7), ("came", 8)):
        getattr(made, name).FromDatetime(row[at])
    return made


def _named(kind: Any, row: tuple[Any, ...]) -> dict[str, Any]:
    """A row by the fields of a message, whose last one is JSON."""
    return dict(zip((field.name for field in kind.DESCRIPTOR.fields), (*row[:-1], json.dumps(row[-1])), strict=True))


def _size(asked: int) -> int:
    return min(asked or _PAGE, _PAGE_LIMIT)


async def _refuse(context: Context, text: str) -> NoReturn:
    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, text)
    raise AssertionError


async def _domain(context: Context, written: str) -> str:
    found = ascii_domain(written.strip()) if written else ""
    if written and not found:
        await _refuse(context, f"{written[:100]!r} is no domain")
    return found


async def _source(context: Context, written: str) -> str | None:
    try:
        return str(ip_address(written.strip())) if written else None
    except ValueError:
        await _refuse(context, f"{written[:100]!r} is no IP address")


async def _number(context: Context, token: str) -> int:
    if token and not (token.isascii() and token.isdigit() and len(token) < 19):
        await _refuse(context, "the page token is not valid")
    return int(token) if token else _MOST
