"""gRPC of the operator: which transports do not work."""

from mailrail.pb.queue.v1 import transports_pb2 as pb
from mailrail.pb.queue.v1 import transports_pb2_grpc
from mailrail_queue.delivery.verdicts import as_said, backoff_reason_of
from mailrail_queue.routing.router import TRANSPORT, named_pb
from mailrail_queue.rpc.answering import Context, Rows, answering
from mailrail_queue.store import sites
from mailrail_queue.store.rows import attempt_of

_MOST_CHARACTERS = 500


class TransportServicer(transports_pb2_grpc.TransportServiceServicer):
    """Reads what owners wrote of transports into the table `site`."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    async def ListFailingTransports(
        self, request: pb.ListFailingTransportsRequest, context: Context
    ) -> pb.ListFailingTransportsResponse:
        answer = pb.ListFailingTransportsResponse()
        async with answering(context), self._rows.use() as connection:
            for found in await sites.failing_transports(connection):
                attempt = attempt_of(found.last_error)
                one = answer.transports.add(
                    transport=named_pb(TRANSPORT, found.name),
                    reason=backoff_reason_of(attempt),
                    last_error=as_said(attempt)[:_MOST_CHARACTERS],
                )
                one.backoff_until.FromDatetime(found.backoff_until)
        return answer
