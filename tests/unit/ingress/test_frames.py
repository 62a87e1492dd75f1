"""Frames for the queue are what protobuf would have written: each is read back and compared with one it made itself."""

from datetime import UTC, datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.revision.revision import ObjectRef
from mailrail.core.smtp.address import Address
from mailrail.core.smtp.line_facts import PLAIN, UNKNOWN, WHOLE
from mailrail.core.smtp.parameters import (
    NO_MAIL_PARAMETERS,
    BodyType,
    FutureRelease,
    MailParameters,
    Notify,
    Return,
)
from mailrail.core.tlspolicy.decision import Requirement
from mailrail.pb.queue.v1 import enqueue_pb2, types_pb2
from mailrail_ingress.frames import abort_frame, chunk_frame, commit_frame
from mailrail_ingress.ports import ExpandedRecipient, Origin, Provenance, ReceivedMessage

# Lengths around those where protobuf writes one more octet of length; what the octets say does not matter to it.
_words = st.sampled_from(["", "a", "ж", "x" * 127, "x" * 128, "жж" * 40, "y" * 4095, "y" * 4096, "z" * 20_000])
_refs = st.builds(ObjectRef, st.sampled_from(["MailDomain", "MailAccount"]), _words, _words)
_octets = st.sampled_from([b"x" * size for size in (0, 1, 127, 128, 4095, 4096, 20_000, 70_000)])
_moments = st.integers(0, 4_000_000_000_000_000).map(lambda micro: micro / 1_000_000)
_parameters = st.just(NO_MAIL_PARAMETERS) | st.builds(
    MailParameters,
    size=st.none() | st.integers(0, 10**12),
    body=st.none() | st.sampled_from(BodyType),
    smtputf8=st.booleans(),
    ret=st.none() | st.sampled_from(Return),
    envid=st.none() | _words,
    release=st.none() | st.builds(FutureRelease, st.just(datetime(2027, 1, 1, 12, 30, tzinfo=UTC)), _words),
)
_messages = st.builds(
    ReceivedMessage,
    id=st.binary(min_size=16, max_size=16),
    provenance=st.builds(
        Provenance, st.sampled_from(Origin), _refs, st.none() | _refs, _words, _words, st.integers(0, 2**40)
    ),
    sender=st.none() | st.builds(Address, _words, _words),
    parameters=_parameters,
    auth=st.none() | _words,
    message_id=st.none() | _words,
    subject=st.none() | _words,
    received=_moments,
    eight_bit=st.booleans(),
    recipients=st.lists(
        st.builds(
            ExpandedRecipient,
            address=_words,
            rcpt_to=_words,
            notify=st.lists(st.sampled_from(Notify), max_size=3).map(tuple),
            orcpt=st.none() | _words,
            expanded=st.booleans(),
            domain=st.none() | _refs,
            account=st.none() | _refs,
            mailbox=_words,
        ),
        max_size=3,
    ),
    prefix=_octets,
    body=st.none() | _octets,
    size=st.integers(0, 2**40),
    lines=st.sampled_from([UNKNOWN, WHOLE, PLAIN]),
    requirement=st.sampled_from(Requirement),
)


_TLS = {
    Requirement.DEFAULT: types_pb2.TLS_REQUIREMENT_UNSPECIFIED,
    Requirement.REQUIRED: types_pb2.TLS_REQUIREMENT_REQUIRED,
    Requirement.NO: types_pb2.TLS_REQUIREMENT_NO,
}


def _ref(ref: ObjectRef | None) -> types_pb2.ObjectRef | None:
    return None if ref is None else types_pb2.ObjectRef(kind=ref.kind, namespace=ref.namespace, name=ref.name)


def _made_by_protobuf(message: ReceivedMessage) -> enqueue_pb2.EnqueueRequest:
    origin, said = message.provenance, message.parameters
    body_type = f"BODY_TYPE_{said.body.name}" if said.body is not None else "BODY_TYPE_UNSPECIFIED"
    probe = origin.origin is Origin.PROBE
    dsn_return = f"DSN_RETURN_{said.ret.name}" if said.ret is not None else "DSN_RETURN_UNSPECIFIED"
    envelope = types_pb2.Envelope(
        mail_from=str(message.sender) if message.sender is not None else "",
        body_type=types_pb2.BodyType.Value(body_type),
        smtputf8=said.smtputf8,
        envelope_id=said.envid,
        dsn_return=types_pb2.DsnReturn.Value(dsn_return),
        auth=message.auth,
        origin=types_pb2.ORIGIN_SYSTEM if probe else types_pb2.Origin.Value(f"ORIGIN_{origin.origin.name}"),
        purpose=types_pb2.PURPOSE_PROBE if probe else types_pb2.PURPOSE_UNSPECIFIED,
        gateway=_ref(origin.gateway),
        account=_ref(origin.account),
        message_id=message.message_id,
        subject=message.subject,
        future_release_request=said.release.request if said.release is not None else None,
        client_ip=origin.client_ip,
        client_name=origin.client_name,
        eight_bit=message.eight_bit,
        config_revision=origin.revision,
        whole_lines=message.lines.whole,
        undotted=message.lines.undotted,
        tls_requirement=_TLS[message.requirement],
    )
    envelope.received.FromMicroseconds(int(message.received) * 1_000_000 + int(message.received % 1 * 1_000_000))
    if said.release is not None:
        envelope.release.FromDatetime(said.release.at)
    recipients = [
        types_pb2.EnvelopeRecipient(
            address=one.address,
            original_recipient=one.orcpt,
            notify=[word.value for word in one.notify],
            rcpt_to=one.rcpt_to,
            expanded=one.expanded,
            mailbox_account=_ref(one.account),
            mailbox=one.mailbox,
            domain=_ref(one.domain),
        )
        for one in message.recipients
    ]
    content: dict[str, Any] = {"prefix": message.prefix, "body": message.body, "size": message.size}
    commit = enqueue_pb2.Commit(envelope=envelope, recipients=recipients, **content)
    return enqueue_pb2.EnqueueRequest(frames=[enqueue_pb2.EnqueueFrame(message_id=message.id, commit=commit)])


@given(_messages)
def test_a_commit_says_what_protobuf_would_have_said_of_the_message_ACC_01a(message: ReceivedMessage) -> None:
    assert enqueue_pb2.EnqueueRequest.FromString(b"".join(commit_frame(message))) == _made_by_protobuf(message)


@given(_messages, st.integers(1, 2**53))
def test_a_commit_says_until_when_it_may_be_stored_ACC_04(message: ReceivedMessage, until: int) -> None:
    expected = _made_by_protobuf(message)
    expected.frames[0].commit.valid_until = until
    assert enqueue_pb2.EnqueueRequest.FromString(b"".join(commit_frame(message, until))) == expected


@given(st.binary(min_size=16, max_size=16), _octets, st.integers(0, 2**63))
def test_a_chunk_says_how_large_its_body_will_be_ACC_07(message_id: bytes, data: bytes, size: int) -> None:
    request = enqueue_pb2.EnqueueRequest.FromString(b"".join(chunk_frame(message_id, data, size)))
    chunk = enqueue_pb2.BodyChunk(data=data, size=size)
    assert list(request.frames) == [enqueue_pb2.EnqueueFrame(message_id=message_id, chunk=chunk)]


@given(st.binary(min_size=16, max_size=16), _octets, _messages)
def test_frames_that_are_joined_are_one_request_ACC_07(
    message_id: bytes, data: bytes, message: ReceivedMessage
) -> None:
    joined = abort_frame(message_id) + b"".join(chunk_frame(message_id, data)) + b"".join(commit_frame(message))
    request = enqueue_pb2.EnqueueRequest.FromString(joined)
    assert request.frames[0] == enqueue_pb2.EnqueueFrame(message_id=message_id, abort=enqueue_pb2.Abort())
    assert request.frames[1] == enqueue_pb2.EnqueueFrame(message_id=message_id, chunk=enqueue_pb2.BodyChunk(data=data))
    assert request.frames[2:] == _made_by_protobuf(message).frames[:]
