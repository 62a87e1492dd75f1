"""What rows hold as messages of protobuf, read so that one that was corrupt harms no other.

Storage that lies, a hand that wrote in the database: a row may come back as bytes that are no message. Whoever walks
many rows must not stop at one. What only describes (attempts that were, addresses that were dialled) is shown or taken
as not known; mail whose recipient or envelope cannot be read is not sent, but put on hold with the reason and kept.
"""

from typing import Final

from google.protobuf.message import DecodeError

from mailrail.core.tlspolicy.facts import Requirement
from mailrail.pb.queue.v1 import lease_pb2, types_pb2

REQUIREMENTS: Final = {
    Requirement.DEFAULT: types_pb2.TLS_REQUIREMENT_UNSPECIFIED,
    Requirement.REQUIRED: types_pb2.TLS_REQUIREMENT_REQUIRED,
    Requirement.NO: types_pb2.TLS_REQUIREMENT_NO,
}
_REQUIREMENTS: Final = {number: requirement for requirement, number in REQUIREMENTS.items()}
RECIPIENT_UNREADABLE = "the stored recipient is corrupt"
ENVELOPE_UNREADABLE = "the stored envelope is corrupt"
CONTENT_MISSING = "the stored message is missing: there is nothing to send"
CONTENT_INCOMPLETE = "a part of the stored message is missing: it cannot be sent"
ATTEMPT_UNREADABLE = "the stored attempt is corrupt"


def is_recipient(data: bytes) -> bool:
    """Whether these bytes are an EnvelopeRecipient."""
    try:
        types_pb2.EnvelopeRecipient.FromString(data)
    except DecodeError:
        return False
    return True


def is_envelope(data: bytes) -> bool:
    """Whether these bytes are an Envelope."""
    try:
        types_pb2.Envelope.FromString(data)
    except DecodeError:
        return False
    return True


def recipient_of(data: bytes, address: str) -> types_pb2.EnvelopeRecipient:
    """The EnvelopeRecipient of a row; where it cannot be read, of its address alone."""
    try:
        return types_pb2.EnvelopeRecipient.FromString(data)
    except DecodeError:
        return types_pb2.EnvelopeRecipient(address=address, rcpt_to=address)


def envelope_of(data: bytes | None) -> types_pb2.Envelope:
    """The Envelope of a message; an empty one where it cannot be read."""
    try:
        return types_pb2.Envelope.FromString(data or b"")
    except DecodeError:
        return types_pb2.Envelope()


def attempt_of(data: bytes | None) -> types_pb2.Attempt:
    """A finished attempt; one that only says so where it cannot be read."""
    try:
        return types_pb2.Attempt.FromString(data or b"")
    except DecodeError:
        return types_pb2.Attempt(reason=ATTEMPT_UNREADABLE)


def requirement_of(number: int) -> Requirement:
    """A stored `TlsRequirement`; one of a later release counts as required: it is never weakened."""
    return _REQUIREMENTS.get(types_pb2.TlsRequirement.ValueType(number), Requirement.REQUIRED)


def timeline_entry_of(data: bytes) -> types_pb2.TimelineEntry:
    """An entry of a timeline; an empty one where it cannot be read."""
    try:
        return types_pb2.TimelineEntry.FromString(data)
    except DecodeError:
        return types_pb2.TimelineEntry()


def dialled_of(data: bytes | None) -> dict[str, list[str]]:
    """Host → addresses that were dialled before, oldest host first; none where it cannot be read."""
    if not data:
        return {}
    try:
        return {h.host: list(h.ips) for h in lease_pb2.DeliveryResult.FromString(data).dialled_hosts}
    except DecodeError:
        return {}
