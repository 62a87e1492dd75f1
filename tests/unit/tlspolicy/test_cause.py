"""Why TLS kept a message from a host: one word for metrics, the wire and people."""

import pytest

from mailrail.core.smtp.answer import Answer, Stage, Trouble
from mailrail.core.smtp.reply import Reply
from mailrail.core.tlspolicy.cause import cause_of
from mailrail.core.tlspolicy.decision import Cause
from mailrail.core.tlsrpt.result_type import NOT_YET_VALID, TLSA_MISMATCH, ResultType, TlsFault
from mailrail.pb.queue.v1 import types_pb2


def fault(type: ResultType, reason: str = "x") -> TlsFault:
    return TlsFault(type, reason, "in words")


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (Answer(Stage.PLAN, None, Trouble.TLS_DEMAND, cause=Cause.MX_UNPROVEN), Cause.MX_UNPROVEN),
        (Answer(Stage.PLAN, None, Trouble.TLS_POLICY, cause=Cause.STS_MX), Cause.STS_MX),
        (Answer(Stage.PLAN, None, Trouble.REQUIRETLS), Cause.NO_REQUIRETLS),
        (Answer(Stage.STARTTLS, None, Trouble.TLS, fault=fault(ResultType.STARTTLS_NOT_SUPPORTED)), Cause.NO_TLS),
        (Answer(Stage.HANDSHAKE, None, Trouble.TLS), Cause.NO_TLS),
        (Answer(Stage.HANDSHAKE, None, Trouble.TLS, fault=fault(ResultType.VALIDATION_FAILURE)), Cause.NO_TLS),
        (
            Answer(Stage.HANDSHAKE, None, Trouble.TLS, fault=fault(ResultType.CERTIFICATE_EXPIRED)),
            Cause.CERTIFICATE,
        ),
        (
            Answer(Stage.HANDSHAKE, None, Trouble.TLS, fault=fault(ResultType.VALIDATION_FAILURE, NOT_YET_VALID)),
            Cause.CERTIFICATE,
        ),
        (
            Answer(Stage.HANDSHAKE, None, Trouble.TLS, fault=fault(ResultType.VALIDATION_FAILURE, TLSA_MISMATCH)),
            Cause.TLSA,
        ),
        (
            Answer(Stage.HANDSHAKE, None, Trouble.TLS_DEMAND, fault=fault(ResultType.CERTIFICATE_EXPIRED)),
            Cause.CERTIFICATE,
        ),
        (Answer(Stage.STARTTLS, None, Trouble.TLS_POLICY), Cause.NO_TLS),
        (Answer(Stage.CONNECT, None, Trouble.UNREACHABLE), None),
        (Answer(Stage.RCPT, Reply.of(550, None, "no such user")), None),
    ],
)
def test_each_answer_has_the_cause_that_it_is_of(answer: Answer, cause: Cause | None) -> None:
    assert cause_of(answer) is cause


def test_the_wire_has_a_word_for_each_cause_and_no_other() -> None:
    assert {f"TLS_CAUSE_{cause.name}" for cause in Cause} | {"TLS_CAUSE_UNSPECIFIED"} == set(types_pb2.TlsCause.keys())
