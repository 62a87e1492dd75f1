"""gRPC of the operator: whether its probe has arrived (decision 20)."""

from mailrail.pb.queue.v1 import probe_pb2 as pb
from mailrail.pb.queue.v1 import probe_pb2_grpc
from mailrail_queue.admin.filters import message_id_argument
from mailrail_queue.rpc.answering import Context, Rows, answering
from mailrail_queue.store import probes


class ProbeServicer(probe_pb2_grpc.ProbeServiceServicer):
    """Looks into history, and leaves nothing of a probe there."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    async def TakeProbe(self, request: pb.TakeProbeRequest, context: Context) -> pb.TakeProbeResponse:
        async with answering(context), self._rows.use() as connection:
            arrived = await probes.take(connection, message_id_argument(request.message_id))
            return pb.TakeProbeResponse(arrived=arrived)
