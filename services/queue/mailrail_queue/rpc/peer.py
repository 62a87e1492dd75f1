"""gRPC of the other replicas: hints."""

from mailrail.core.route.site import SHARDS
from mailrail.pb.queue.v1 import peer_pb2, peer_pb2_grpc
from mailrail_queue.app import QueueProcess
from mailrail_queue.rpc.answering import Context


class PeerServicer(peer_pb2_grpc.PeerServiceServicer):
    """Hints of other replicas."""

    def __init__(self, queue: QueueProcess) -> None:
        self._queue = queue

    async def Wake(self, request: peer_pb2.WakeRequest, context: Context) -> peer_pb2.WakeResponse:
        self._queue.worklist.wake_shards(n for n in request.shards if n < SHARDS)
        return peer_pb2.WakeResponse()
