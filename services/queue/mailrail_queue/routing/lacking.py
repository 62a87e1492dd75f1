"""What a recipient's row remembers of transports that cannot take its message (SOUT-18c): between bytes and routing."""

from typing import Final

from google.protobuf.message import DecodeError

from mailrail.core.revision.revision import ObjectRef
from mailrail.core.route import LackingTransport
from mailrail.pb.queue.v1 import types_pb2

MOST: Final = 16
"""Transports remembered of a recipient. When the last of them lacks an extension too, that is final."""


def lacking_of(stored: bytes | None) -> tuple[LackingTransport, ...]:
    """LackingTransports as routing takes them."""
    return tuple(
        LackingTransport(
            ObjectRef(t.transport.kind, t.transport.namespace, t.transport.name) if t.HasField("transport") else None,
            t.transport_digest,
            t.extension,
        )
        for t in _read(stored).transports
    )


def with_lacking(stored: bytes | None, tried: types_pb2.LackingTransport) -> bytes | None:
    """LackingTransports with one more, or with what is known anew of one of them. None: there are too many."""

    def other(known: types_pb2.LackingTransport) -> bool:
        return known.HasField("transport") != tried.HasField("transport") or known.transport != tried.transport

    kept = [*filter(other, _read(stored).transports), tried]
    return types_pb2.LackingTransports(transports=kept).SerializeToString() if len(kept) <= MOST else None


def _read(stored: bytes | None) -> types_pb2.LackingTransports:
    """What is stored; nothing is known where it cannot be read: then a transport is tried once more."""
    try:
        return types_pb2.LackingTransports.FromString(stored or b"")
    except DecodeError:
        return types_pb2.LackingTransports()
