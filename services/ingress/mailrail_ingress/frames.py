"""Frames of the Enqueue stream as octets, each ready to be joined with others to an EnqueueRequest.

A message object of protobuf is filled field by field, copied into each message around it and then written; that took a
fifth of all processor time that a message costs here. What varies is joined to octets instead, and what is the same for
many messages is written once. Numbers come from the generated code; tests read every frame back with it.
"""

from functools import lru_cache
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message as Protobuf
from google.protobuf.timestamp_pb2 import Timestamp

from mailrail.core.dsn.due import SenderAuthentication
from mailrail.core.revision.revision import ObjectRef
from mailrail.core.smtp.parameters import NO_MAIL_PARAMETERS, BodyType, MailParameters, Return
from mailrail.core.tlspolicy.decision import Requirement
from mailrail.pb.queue.v1 import enqueue_pb2, types_pb2
from mailrail_ingress.findings import findings_pb
from mailrail_ingress.ports import ExpandedRecipient, Origin, Provenance, ReceivedMessage

_BODY: Final = {
    None: types_pb2.BODY_TYPE_UNSPECIFIED,
    BodyType.SEVEN_BIT: types_pb2.BODY_TYPE_SEVEN_BIT,
    BodyType.EIGHT_BIT_MIME: types_pb2.BODY_TYPE_EIGHT_BIT_MIME,
    BodyType.BINARY_MIME: types_pb2.BODY_TYPE_BINARY_MIME,
}
_RETURN: Final = {
    None: types_pb2.DSN_RETURN_UNSPECIFIED,
    Return.FULL: types_pb2.DSN_RETURN_FULL,
    Return.HEADERS: types_pb2.DSN_RETURN_HEADERS,
}
_ORIGIN: Final = {
    Origin.MX: types_pb2.ORIGIN_MX,
    Origin.SUBMISSION: types_pb2.ORIGIN_SUBMISSION,
    Origin.PROBE: types_pb2.ORIGIN_SYSTEM,
}


# --- how protobuf writes ------------------------------------------------------------------------------------------

_LENGTH_FIRST: Final = 2
_DELIMITED: Final = frozenset({FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_MESSAGE})


def _varint(number: int) -> bytes:
    if number >= 1 << 21:
        low = bytes((number & 127 | 128, number >> 7 & 127 | 128, number >> 14 & 127 | 128))
        return low + _varint(number >> 21)
    written = bytearray()
    while number > 127:
        written.append(number & 127 | 128)
        number >>= 7
    written.append(number)
    return bytes(written)


class _Varints(dict[int, bytes]):
    """Numbers as they are written; small ones are kept."""

    def __missing__(self, number: int) -> bytes:
        return _varint(number)


_VARINT: Final = _Varints((number, _varint(number)) for number in range(4096))


def _key(kind: type[Protobuf], name: str) -> bytes:
    """What stands before the value of a field: its number, and whether octets or a number follow."""
    field = kind.DESCRIPTOR.fields_by_name[name]
    return _varint(field.number << 3 | (_LENGTH_FIRST if field.type in _DELIMITED else 0))


def _octets(key: bytes, octets: bytes) -> bytes:
    return key + _VARINT[len(octets)] + octets


def _text(key: bytes, text: str) -> bytes:
    octets = text.encode()
    return key + _VARINT[len(octets)] + octets


_FRAME: Final = _key(enqueue_pb2.EnqueueRequest, "frames")
_ID: Final = _key(enqueue_pb2.EnqueueFrame, "message_id")
_CHUNK: Final = _key(enqueue_pb2.EnqueueFrame, "chunk")
_COMMIT: Final = _key(enqueue_pb2.EnqueueFrame, "commit")
_ABORT: Final = _key(enqueue_pb2.EnqueueFrame, "abort")
_CHUNK_DATA: Final = _key(enqueue_pb2.BodyChunk, "data")
_CHUNK_SIZE: Final = _key(enqueue_pb2.BodyChunk, "size")
_ENVELOPE: Final = _key(enqueue_pb2.Commit, "envelope")
_RECIPIENTS: Final = _key(enqueue_pb2.Commit, "recipients")
_PREFIX: Final = _key(enqueue_pb2.Commit, "prefix")
_CONTENT: Final = _key(enqueue_pb2.Commit, "body")
_CONTENT_SIZE: Final = _key(enqueue_pb2.Commit, "size")
_VALID_UNTIL: Final = _key(enqueue_pb2.Commit, "valid_until")
_MAIL_FROM: Final = _key(types_pb2.Envelope, "mail_from")
_MESSAGE_ID: Final = _key(types_pb2.Envelope, "message_id")
_SUBJECT: Final = _key(types_pb2.Envelope, "subject")
_RECEIVED: Final = _key(types_pb2.Envelope, "received")
_EIGHT_BIT: Final = _key(types_pb2.Envelope, "eight_bit") + _varint(1)
_WHOLE_LINES: Final = _key(types_pb2.Envelope, "whole_lines") + _varint(1)
_UNDOTTED: Final = _key(types_pb2.Envelope, "undotted") + _varint(1)
_DEFAULT: Final = Requirement.DEFAULT
_REQUIREMENT: Final = {
    Requirement.REQUIRED: _key(types_pb2.Envelope, "tls_requirement") + _varint(types_pb2.TLS_REQUIREMENT_REQUIRED),
    Requirement.NO: _key(types_pb2.Envelope, "tls_requirement") + _varint(types_pb2.TLS_REQUIREMENT_NO),
}
_AUTHENTICATION: Final = _key(types_pb2.Envelope, "authentication")
_SENDER: Final = {
    SenderAuthentication.UNKNOWN: b"",
    SenderAuthentication.YES: _key(types_pb2.Envelope, "sender_authentication")
    + _varint(types_pb2.SENDER_AUTHENTICATION_YES),
    SenderAuthentication.FORGED: _key(types_pb2.Envelope, "sender_authentication")
    + _varint(types_pb2.SENDER_AUTHENTICATION_FORGED),
}
_SECONDS: Final = _key(Timestamp, "seconds")
_NANOS: Final = _key(Timestamp, "nanos")
_ADDRESS: Final = _key(types_pb2.EnvelopeRecipient, "address")
_ORCPT: Final = _key(types_pb2.EnvelopeRecipient, "original_recipient")
_NOTIFY: Final = _key(types_pb2.EnvelopeRecipient, "notify")
_RCPT_TO: Final = _key(types_pb2.EnvelopeRecipient, "rcpt_to")
_EXPANDED: Final = _key(types_pb2.EnvelopeRecipient, "expanded") + _varint(1)


# --- what is the same for many messages ---------------------------------------------------------------------------


def _ref(ref: ObjectRef | None) -> types_pb2.ObjectRef | None:
    return None if ref is None else types_pb2.ObjectRef(kind=ref.kind, namespace=ref.namespace, name=ref.name)


@lru_cache(maxsize=4096)
def _provenance(provenance: Provenance) -> bytes:
    """Fields of the envelope."""
    return types_pb2.Envelope(
        origin=_ORIGIN[provenance.origin],
        purpose=types_pb2.PURPOSE_PROBE if provenance.origin is Origin.PROBE else types_pb2.PURPOSE_UNSPECIFIED,
        gateway=_ref(provenance.gateway),
        account=_ref(provenance.account),
        client_ip=provenance.client_ip,
        client_name=provenance.client_name,
        config_revision=provenance.revision,
    ).SerializeToString()


def _said(parameters: MailParameters, auth: str | None) -> bytes:
    """Fields of the envelope that MAIL asked for."""
    release = parameters.release
    fields: dict[str, Any] = {
        "body_type": _BODY[parameters.body],
        "smtputf8": parameters.smtputf8,
        "envelope_id": parameters.envid,
        "dsn_return": _RETURN[parameters.ret],
        "auth": auth,
        "release": _timestamp(release.at.timestamp()) if release is not None else None,
        "future_release_request": release.request if release is not None else None,
    }
    return types_pb2.Envelope(**fields).SerializeToString()


@lru_cache(maxsize=4096)
def _home(domain: ObjectRef | None, account: ObjectRef | None, mailbox: str, reports: bool) -> bytes:
    """Fields of a recipient that say whose it is."""
    return types_pb2.EnvelopeRecipient(
        domain=_ref(domain), mailbox_account=_ref(account), mailbox=mailbox, reports=reports
    ).SerializeToString()


@lru_cache(maxsize=8)
def _seconds(seconds: int) -> bytes:
    return _SECONDS + _varint(seconds)


def _timestamp(at: float) -> Timestamp:
    whole = int(at)
    return Timestamp(seconds=whole, nanos=int((at - whole) * 1_000_000) * 1000)


# --- frames -------------------------------------------------------------------------------------------------------


def _recipient(recipient: ExpandedRecipient) -> bytes:
    address = recipient.address.encode()
    rcpt_to = address if recipient.rcpt_to is recipient.address else recipient.rcpt_to.encode()
    fields = _ADDRESS + _VARINT[len(address)] + address + _RCPT_TO + _VARINT[len(rcpt_to)] + rcpt_to
    fields += _home(recipient.domain, recipient.account, recipient.mailbox, recipient.reports)
    if recipient.orcpt is not None:
        fields += _text(_ORCPT, recipient.orcpt)
    for word in recipient.notify:
        fields += _text(_NOTIFY, word.value)
    if recipient.expanded:
        fields += _EXPANDED
    return _octets(_RECIPIENTS, fields)


def commit_frame(message: ReceivedMessage, valid_until: int = 0) -> tuple[bytes, ...]:
    """The last frame of a message: all that is known of it, and its body unless that went before. The body is a part.

    `valid_until`: Unix microseconds by the database's clock, after which it is not to be stored (ACC-04); 0: never.
    """
    envelope = _provenance(message.provenance)
    if message.parameters is not NO_MAIL_PARAMETERS or message.auth is not None:
        envelope += _said(message.parameters, message.auth)
    if message.sender is not None:
        envelope += _text(_MAIL_FROM, str(message.sender))
    if message.message_id is not None:
        envelope += _text(_MESSAGE_ID, message.message_id)
    if message.subject is not None:
        envelope += _text(_SUBJECT, message.subject)
    if message.eight_bit:
        envelope += _EIGHT_BIT
    if message.lines.whole:
        envelope += _WHOLE_LINES
    if message.lines.undotted:
        envelope += _UNDOTTED
    if message.requirement is not _DEFAULT:
        envelope += _REQUIREMENT[message.requirement]  # of the message, so each copy of an alias has it (RTLS-10)
    envelope += _SENDER[message.sender_authentication]
    if message.findings is not None:
        envelope += _octets(_AUTHENTICATION, findings_pb(message.findings).SerializeToString())
    whole = int(message.received)
    received = _seconds(whole) + _NANOS + _varint(int((message.received - whole) * 1_000_000) * 1000)
    envelope += _octets(_RECEIVED, received)
    recipients = message.recipients
    written = _recipient(recipients[0]) if len(recipients) == 1 else b"".join([_recipient(one) for one in recipients])
    prefix, body = message.prefix, message.body
    before = [_ENVELOPE, _VARINT[len(envelope)], envelope, written, _PREFIX, _VARINT[len(prefix)], prefix]
    after = _CONTENT_SIZE + _VARINT[message.size]
    if valid_until:
        after += _VALID_UNTIL + _varint(valid_until)
    if body is None:
        before.append(after)
        return (_frame(message.id, _COMMIT, b"".join(before)),)
    before += (_CONTENT, _VARINT[len(body)])
    first = b"".join(before)
    return _head(message.id, _COMMIT, len(first) + len(body) + len(after)) + first, body, after


def chunk_frame(message_id: bytes, data: bytes, size: int = 0) -> tuple[bytes, bytes]:
    """A part of a body that is too large for the commit. The data is a part of its own, not copied.

    `size`: octets that the whole body is expected to have; 0: not known, or said before.
    """
    key = _CHUNK_DATA + _VARINT[len(data)]
    if size:
        key = _CHUNK_SIZE + _VARINT[size] + key
    return _head(message_id, _CHUNK, len(key) + len(data)) + key, data


def abort_frame(message_id: bytes) -> bytes:
    """The chunks that went before are to be forgotten."""
    return _frame(message_id, _ABORT, b"")


def _frame(message_id: bytes, key: bytes, step: bytes) -> bytes:
    return _head(message_id, key, len(step)) + step


def _head(message_id: bytes, key: bytes, octets: int) -> bytes:
    """What stands before a step of so many octets."""
    head = _octets(_ID, message_id) + key + _VARINT[octets]
    return _FRAME + _VARINT[len(head) + octets] + head
