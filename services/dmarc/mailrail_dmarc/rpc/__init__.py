"""What others call: the Record stream of ingress and outbound, and administration."""

from collections.abc import Callable
from typing import Any

from mailrail.pb.dmarc.v1 import admin_pb2_grpc, received_pb2_grpc, record_pb2_grpc
from mailrail_dmarc.app import DmarcProcess
from mailrail_dmarc.rpc.admin import DmarcAdminServicer
from mailrail_dmarc.rpc.received import ReceivedServicer
from mailrail_dmarc.rpc.record import RecordServicer

RECORD = "mailrail.dmarc.v1.RecordService"
RECEIVED = "mailrail.dmarc.v1.ReceivedService"
ADMIN = "mailrail.dmarc.v1.DmarcAdminService"
CALLERS = {
    RECORD: frozenset({"ingress", "outbound"}),
    RECEIVED: frozenset({"cli"}),
    ADMIN: frozenset({"cli"}),
}
"""Roles of certificates that may call each service."""

Services = dict[str, tuple[Any, Callable[[Any, Any], None]]]


def services(process: DmarcProcess) -> Services:
    """The gRPC services in front of a process."""
    return {
        RECORD: (RecordServicer(process), record_pb2_grpc.add_RecordServiceServicer_to_server),
        RECEIVED: (ReceivedServicer(process.database), received_pb2_grpc.add_ReceivedServiceServicer_to_server),
        ADMIN: (DmarcAdminServicer(process), admin_pb2_grpc.add_DmarcAdminServiceServicer_to_server),
    }
