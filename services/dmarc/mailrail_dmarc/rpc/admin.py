"""Administration by gRPC: what is counted, what was sent, and to whom nothing goes."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Final

import grpc

from mailrail.core.dmarc.report.build import AggregateForm
from mailrail.core.dmarc.report.period import HOUR
from mailrail.core.smtp.address import parse_address
from mailrail.pb.dmarc.v1 import admin_pb2, admin_pb2_grpc
from mailrail_dmarc.aggregate import TooLarge
from mailrail_dmarc.app import DmarcProcess
from mailrail_dmarc.store import admin as store
from mailrail_dmarc.store import reports
from mailrail_dmarc.store.admin import moment
from mailrail_dmarc.store.connection import DATABASE_ERRORS, Connection
from mailrail_dmarc.store.reports import ReportState, StoredReport

Context = grpc.aio.ServicerContext[Any, Any]

_PAGE: Final = 100
_MOST: Final = 1000
_PREVIEW: Final = 16 * 1024 * 1024
_COMMENT: Final = 500


class DmarcAdminServicer(admin_pb2_grpc.DmarcAdminServiceServicer):
    """See admin.proto. UNAVAILABLE while Postgres is away, INVALID_ARGUMENT for what makes no sense."""

    def __init__(self, process: DmarcProcess) -> None:
        self._process = process

    @asynccontextmanager
    async def _answering(self, context: Context) -> AsyncIterator[Connection]:
        """A transaction for a call; its errors become a status."""
        try:
            async with self._process.database.transaction() as connection:
                yield connection
        except DATABASE_ERRORS as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"Postgres: {str(error).strip()[:300]}")
        except ValueError as error:  # AddressError is one
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error)[:300])

    async def ListDomains(
        self, request: admin_pb2.ListDomainsRequest, context: Context
    ) -> admin_pb2.ListDomainsResponse:
        response = admin_pb2.ListDomainsResponse()
        async with self._answering(context) as connection:
            found, last = await store.domains(connection, request.page_token, _size(request.page_size))
        response.next_page_token = last
        for each in found:
            told = response.domains.add(
                domain=each.domain,
                messages=each.messages,
                send_report=each.required,
                dispositions=each.dispositions,
                interval_hours=each.interval,
            )
            told.first.FromDatetime(moment(each.first))
            told.last.FromDatetime(moment(each.last))
        return response

    async def ListEvaluations(
        self, request: admin_pb2.ListEvaluationsRequest, context: Context
    ) -> admin_pb2.ListEvaluationsResponse:
        response = admin_pb2.ListEvaluationsResponse()
        size = _size(request.page_size)
        async with self._answering(context) as connection:
            found = await store.evaluations(connection, request.domain.lower(), request.page_token, size)
        for each in found:
            message = each.message
            told = response.evaluations.add(
                source_ip=message.source_ip,
                messages=each.messages,
                cause=int(each.cause),
                disposition=message.disposition.value,
                dkim_aligned=message.dkim_aligned,
                spf_aligned=message.spf_aligned,
                header_from=message.header_from,
                envelope_from=message.envelope_from,
                envelope_to=message.envelope_to,
                reasons=[f"{reason.type.value} {reason.comment}".strip() for reason in message.reasons],
            )
            told.hour.FromDatetime(moment(each.hour))
        response.next_page_token = found[-1].token if len(found) == size else ""
        return response

    async def RemoveEvaluations(
        self, request: admin_pb2.RemoveEvaluationsRequest, context: Context
    ) -> admin_pb2.RemoveEvaluationsResponse:
        async with self._answering(context) as connection:
            removed = await store.remove(connection, request.domain.lower())
        return admin_pb2.RemoveEvaluationsResponse(messages=removed)

    async def SendReports(
        self, request: admin_pb2.SendReportsRequest, context: Context
    ) -> admin_pb2.SendReportsResponse:
        response = admin_pb2.SendReportsResponse()
        try:
            done = await self._process.scheduler.send_now(_before(request), request.domain.lower())
        except DATABASE_ERRORS as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"Postgres: {str(error).strip()[:300]}")
            raise
        async with self._answering(context) as connection:
            for key in done:
                report = await store.one(connection, *key)
                if report is not None:
                    await _tell(connection, report, response.reports.add())
        return response

    async def PreviewReport(
        self, request: admin_pb2.PreviewReportRequest, context: Context
    ) -> admin_pb2.PreviewReportResponse:
        process, domain = self._process, request.domain.lower()
        gateway = process.scheduler.gateway
        if gateway is None:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, process.scheduler.missing)
            raise AssertionError
        async with self._answering(context) as connection:
            found = await reports.uncovered(connection, domain, _before(request))
        if found is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"nothing is counted for {domain} that no report has")
            raise AssertionError
        period, policy = found
        submitter = gateway.submitter(process.settings)
        now = datetime.now(UTC)
        imagined = StoredReport(domain, period, submitter.domain, policy, ReportState.OPEN, "", 0, 0, now, None)
        try:
            form = AggregateForm(process.settings.form)
            xml = await process.maker.preview(imagined, submitter, form, _PREVIEW)
        except TooLarge as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
            raise
        return admin_pb2.PreviewReportResponse(xml=xml or b"")

    async def ListReports(
        self, request: admin_pb2.ListReportsRequest, context: Context
    ) -> admin_pb2.ListReportsResponse:
        response = admin_pb2.ListReportsResponse(missing=self._process.scheduler.missing)
        size = _size(request.page_size)
        async with self._answering(context) as connection:
            after = None
            if request.page_token:
                domain, _, end = request.page_token.partition(" ")
                after = await store.one(connection, domain, int(end))
            found = await store.listed(connection, request.domain.lower(), after, size)
            for report in found:
                await _tell(connection, report, response.reports.add())
        if len(found) == size:
            response.next_page_token = f"{found[-1].domain} {found[-1].period.end}"
        return response

    async def ListSuppressions(
        self, request: admin_pb2.ListSuppressionsRequest, context: Context
    ) -> admin_pb2.ListSuppressionsResponse:
        response = admin_pb2.ListSuppressionsResponse()
        size = _size(request.page_size)
        async with self._answering(context) as connection:
            found = await store.suppressions(connection, int(request.page_token or 0), size)
        for each in found:
            _suppression(each, response.suppressions.add())
        response.next_page_token = str(found[-1].id) if len(found) == size else ""
        return response

    async def Suppress(self, request: admin_pb2.SuppressRequest, context: Context) -> admin_pb2.SuppressResponse:
        response = admin_pb2.SuppressResponse()
        async with self._answering(context) as connection:
            until = request.until.ToDatetime(tzinfo=UTC)
            address = _address(request.address)
            found = await store.suppress(connection, address, until, request.comment[:_COMMENT].replace("\0", ""))
            _suppression(found, response.suppression)
        return response

    async def Unsuppress(self, request: admin_pb2.UnsuppressRequest, context: Context) -> admin_pb2.UnsuppressResponse:
        async with self._answering(context) as connection:
            there = await store.unsuppress(connection, _address(request.address))
        if not there:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"{request.address[:300]} is not on the list")
        return admin_pb2.UnsuppressResponse()


def _address(text: str) -> str:
    """As it is stored. Raises AddressError."""
    return str(parse_address(text))


def _size(asked: int) -> int:
    return min(asked or _PAGE, _MOST)


def _before(request: "admin_pb2.SendReportsRequest | admin_pb2.PreviewReportRequest") -> int:
    """The hour before which all that was seen is meant."""
    if request.HasField("before"):
        return int(request.before.seconds) // HOUR
    return int(time.time()) // HOUR + 1


async def _tell(connection: Connection, report: StoredReport, told: admin_pb2.Report) -> None:
    told.domain, told.detail = report.domain, report.detail
    told.state = admin_pb2.ReportState.ValueType(report.state)
    told.messages, told.tries = report.messages, report.tries
    told.begin.FromDatetime(moment(report.period.begin))
    told.end.FromDatetime(moment(report.period.end))
    for each in await reports.mails(connection, report):
        told.mails.add(
            address=each.address,
            message_id=each.message_id.bytes,
            state=int(each.state),
            detail=each.detail,
        )


def _suppression(found: store.SuppressedAddress, told: admin_pb2.Suppression) -> None:
    told.address, told.comment = found.address, found.comment
    told.inserted.FromDatetime(found.inserted)
    told.until.FromDatetime(found.until)
