"""What a recipient remembers of transports that cannot take its message, in bytes and back (SOUT-18c)."""

from mailrail.core.revision.revision import ObjectRef
from mailrail.core.route import LackingTransport
from mailrail.pb.queue.v1 import types_pb2
from mailrail_queue.routing.lacking import MOST, lacking_of, with_lacking


def tried(name: str | None, *, digest: str = "d", extension: str = "8BITMIME") -> types_pb2.LackingTransport:
    found = types_pb2.LackingTransport(transport_digest=digest, extension=extension)
    if name is not None:
        found.transport.CopyFrom(types_pb2.ObjectRef(kind="MailTransport", namespace="mail", name=name))
    return found


def test_each_transport_is_remembered_once_as_it_was_tried_last_SOUT_18c() -> None:
    stored = None
    for one in (tried("relay"), tried(None, digest=""), tried("relay", digest="e", extension="BINARYMIME")):
        stored = with_lacking(stored, one)
    relay = ObjectRef("MailTransport", "mail", "relay")
    assert lacking_of(stored) == (LackingTransport(None, "", "8BITMIME"), LackingTransport(relay, "e", "BINARYMIME"))


def test_what_is_remembered_is_bounded_SOUT_18c() -> None:
    stored = None
    for number in range(MOST):
        stored = with_lacking(stored, tried(f"relay{number}"))
        assert stored is not None
    assert with_lacking(stored, tried("one-more")) is None
    assert with_lacking(stored, tried("relay0", digest="changed")) is not None


def test_bytes_that_cannot_be_read_are_as_if_nothing_was_known_SOUT_18c() -> None:
    assert lacking_of(None) == lacking_of(b"\xff") == ()
    assert with_lacking(b"\xff", tried("relay")) == with_lacking(None, tried("relay"))
