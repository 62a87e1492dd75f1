"""gRPC in: what outbound tells about itself, and recipient verification. Messages to domain types, no decisions."""

import asyncio
from collections import OrderedDict
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc

from mailrail.core.revision.revision import ObjectRef
from mailrail.core.smtp.address import AddressError, domain_to_ascii
from mailrail.core.smtp.answer import Answer, Stage
from mailrail.core.tlspolicy.indicators import Indicator, Light
from mailrail.kit import clock
from mailrail.pb.outbound.v1 import outbound_pb2, outbound_pb2_grpc
from mailrail_outbound.app import Outbound
from mailrail_outbound.domain_security import DomainSecurityReader
from mailrail_outbound.pool import Pool

SERVICE = "mailrail.outbound.v1.OutboundService"

_KEEP = {
    outbound_pb2.VerifyRecipientResponse.VERDICT_ACCEPTED: 3600.0,
    outbound_pb2.VerifyRecipientResponse.VERDICT_REFUSED: 600.0,
    outbound_pb2.VerifyRecipientResponse.VERDICT_UNREACHABLE: 10.0,
}
_ENTRIES = 50_000
_Key = tuple[str, str, str]  # transport, its digest, address


class OutboundServicer(outbound_pb2_grpc.OutboundServiceServicer):
    """outbound.proto, OutboundService."""

    def __init__(self, app: Outbound, pool: Pool, security: DomainSecurityReader) -> None:
        self._app = app
        self._pool = pool
        self._security = security
        self._known: OrderedDict[_Key, tuple[float, outbound_pb2.VerifyRecipientResponse]] = OrderedDict()
        self._asking: dict[_Key, asyncio.Task[outbound_pb2.VerifyRecipientResponse]] = {}

    async def VerifyRecipient(  # noqa: N802, RUF100
        self, request: outbound_pb2.VerifyRecipientRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> outbound_pb2.VerifyRecipientResponse:
        """Cached: an hour when accepted, ten minutes when refused, moments when out of reach. What a transport that has
        changed since then said does not count."""
        key = (request.transport, self._app.digest(_ref(request.transport)), request.address)
        known = self._known.get(key)
        if known is not None and known[0] > clock.now():
            return known[1]
        asking = self._asking.get(key)
        if asking is None:
            asking = asyncio.create_task(self._ask(request))
            self._asking[key] = asking
            asking.add_done_callback(lambda _: self._asking.pop(key, None))
        response = await asyncio.shield(asking)
        self._known[key] = (clock.now() + _KEEP[response.verdict], response)
        self._known.move_to_end(key)
        while len(self._known) > _ENTRIES:
            self._known.popitem(last=False)
        return response

    async def _ask(self, request: outbound_pb2.VerifyRecipientRequest) -> outbound_pb2.VerifyRecipientResponse:
        answer = await self._app.verify(request.address, _ref(request.transport))
        reply = answer.reply
        return outbound_pb2.VerifyRecipientResponse(
            verdict=_verdict(answer),
            code=reply.code if reply is not None else 0,
            enhanced=str(reply.enhanced) if reply is not None and reply.enhanced is not None else "",
            text=reply.text[:512] if reply is not None else answer.detail[:512],
        )

    async def GetDomainSecurity(  # noqa: N802, RUF100
        self, request: outbound_pb2.GetDomainSecurityRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> outbound_pb2.GetDomainSecurityResponse:
        """See the agreement; INVALID_ARGUMENT for what is no domain."""
        try:
            domain = domain_to_ascii(request.domain.strip().removesuffix("."))
        except AddressError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{request.domain[:100]!r} is no domain: {error}")
        found = await self._security.of(domain, request.transport)
        return outbound_pb2.GetDomainSecurityResponse(**{name: _indicator(each) for name, each in found.each()})

    async def ListConnections(  # noqa: N802, RUF100
        self, request: outbound_pb2.ListConnectionsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> outbound_pb2.ListConnectionsResponse:
        """Every open connection."""
        response = outbound_pb2.ListConnectionsResponse()
        now, wall = asyncio.get_running_loop().time(), datetime.now(UTC)
        for connection in self._pool.connections:
            facts = connection.tls_facts
            entry = response.connections.add(
                transport=connection.transport_name,
                host=connection.host,
                ip=connection.ip,
                port=connection.key.port,
                tls=f"{facts.version} {facts.cipher}" if facts is not None else "",
                identity=connection.key.identity,
                busy=connection.busy,
                messages=connection.session.transactions,
            )
            entry.opened.FromDatetime(wall - timedelta(seconds=now - connection.opened))
        return response


_LIGHTS = {
    Light.YES: outbound_pb2.SecurityIndicator.LIGHT_YES,
    Light.NO: outbound_pb2.SecurityIndicator.LIGHT_NO,
    Light.UNKNOWN: outbound_pb2.SecurityIndicator.LIGHT_UNKNOWN,
    Light.ERROR: outbound_pb2.SecurityIndicator.LIGHT_ERROR,
}


def _indicator(found: Indicator) -> outbound_pb2.SecurityIndicator:
    details = [line[:500] for line in found.details[:50]]
    made = outbound_pb2.SecurityIndicator(light=_LIGHTS[found.light], sentence=found.sentence[:500], details=details)
    if found.seen is not None:
        made.seen.FromNanoseconds(int(found.seen * 1e9))
    return made


def _ref(transport: str) -> ObjectRef:
    namespace, _, name = transport.rpartition("/")
    return ObjectRef("MailTransport", namespace, name)


def _verdict(answer: Answer) -> outbound_pb2.VerifyRecipientResponse.Verdict.ValueType:
    # What is said to MAIL, or before it, says nothing about a recipient, and is not remembered as if it did (SOUT-08).
    if answer.stage is Stage.RCPT and answer.remote and answer.reply is not None:
        if answer.reply.completed:
            return outbound_pb2.VerifyRecipientResponse.VERDICT_ACCEPTED
        # 552 is "too many recipients" by history: it says nothing about this one.
        if answer.reply.permanent and answer.reply.code != 552:
            return outbound_pb2.VerifyRecipientResponse.VERDICT_REFUSED
    return outbound_pb2.VerifyRecipientResponse.VERDICT_UNREACHABLE
