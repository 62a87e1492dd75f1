"""What a server said goes to the queue, and on into a DSN, as it was said (DSN-16, reference H9)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.delivery.outcome import HopKind
from mailrail.core.outbound.host_failover import verdict_on
from mailrail.core.revision.revision import TlsProof
from mailrail.core.smtp.answer import Answer, Stage, Trouble
from mailrail.core.smtp.reply import Reply, ReplyParser
from mailrail.core.tlspolicy.decision import Cause
from mailrail.pb.queue.v1 import lease_pb2, types_pb2
from mailrail_outbound.clients import fill_result
from mailrail_outbound.ports import ConnectionFacts, DeliveryReport, RecipientReport, Result, TlsReport
from mailrail_queue.delivery.verdicts import as_said, not_dialled, verdict_of
from mailrail_queue.notify.dsn import reply_of


def told(answer: Answer, hop: HopKind = HopKind.FOREIGN) -> lease_pb2.RecipientResult:
    """What the queue hears of an answer."""
    verdict = verdict_on(answer, hop=hop)
    report = RecipientReport(1, Result(verdict.outcome.value), verdict, remote=verdict.reply is not None)
    result = lease_pb2.DeliveryResult()
    fill_result(DeliveryReport(1, b"m", 0, 0, [report], {}, ()), result, "node")
    return lease_pb2.RecipientResult.FromString(result.recipients[0].SerializeToString())


@pytest.mark.parametrize(
    ("said", "stage", "hop", "status"),
    [
        ("550 No such user here", Stage.RCPT, HopKind.FOREIGN, "5.0.0"),
        ("550 4.2.2 over quota", Stage.RCPT, HopKind.FOREIGN, "5.0.0"),
        ("450 5.1.1 mailbox unknown for now", Stage.RCPT, HopKind.FOREIGN, "4.0.0"),
        ("552 5.2.2 mailbox full", Stage.RCPT, HopKind.FOREIGN, "4.2.2"),
        ("554 5.7.1 no SMTP service here", Stage.GREETING, HopKind.FOREIGN, "4.7.1"),
        ("535 5.7.8 bad credentials", Stage.AUTH, HopKind.OWN, "4.3.5"),
        ("550-5.1.1 no such user\r\n550 ask the postmaster", Stage.RCPT, HopKind.FOREIGN, "5.1.1"),
        ("550-no such user\r\n550 5.1.1 ask the postmaster", Stage.RCPT, HopKind.FOREIGN, "5.1.1"),
        ("550-5.1.1 no such user\r\n550-5.1.1\r\n550 5.1.1  bye", Stage.RCPT, HopKind.FOREIGN, "5.1.1"),
        ("550 5.01.1 odd", Stage.RCPT, HopKind.FOREIGN, "5.1.1"),
        ("421 4.3.2", Stage.MAIL, HopKind.FOREIGN, "4.3.2"),
        ("550", Stage.END, HopKind.FOREIGN, "5.0.0"),
    ],
)
def test_a_reply_is_kept_as_it_was_said_and_our_judgement_beside_it_DSN_16a(
    said: str, stage: Stage, hop: HopKind, status: str
) -> None:
    (reply,) = ReplyParser().feed(f"{said}\r\n".encode())
    heard = told(Answer(stage, reply), hop)
    assert heard.attempt.status == status
    assert str(verdict_of(heard).status) == status
    quoted = reply_of(heard.attempt)
    assert quoted is not None
    assert (quoted.code, quoted.lines) == (reply.code, reply.lines)
    if len(reply.lines) == 1:
        assert as_said(heard.attempt) == str(reply)


@given(
    st.lists(st.from_regex(r"(5\.[0-9]{1,3}\.[0-9]{1,3} {0,2})?[ -~]{0,12}", fullmatch=True), min_size=1, max_size=3)
)
def test_a_reply_is_made_again_from_its_parts(lines: list[str]) -> None:
    wire = "".join(f"550{'-' if i < len(lines) - 1 else ' '}{line}\r\n" for i, line in enumerate(lines))
    (reply,) = ReplyParser().feed(wire.encode())
    enhanced, texts = reply.parts
    assert Reply.of(reply.code, enhanced, *texts).lines == reply.lines
    assert enhanced in (None, reply.enhanced)


def test_a_failure_without_a_reply_is_told_in_our_words_with_our_status() -> None:
    heard = told(Answer(Stage.CONNECT, None, Trouble.UNREACHABLE, "connection refused"))
    assert (heard.attempt.status, heard.attempt.reply.enhanced, heard.attempt.reply.remote) == ("4.4.1", "4.4.1", False)
    assert reply_of(heard.attempt) is None


def test_an_attempt_that_dialled_nothing_quotes_the_last_reply_and_claims_no_new_one() -> None:
    (reply,) = ReplyParser().feed(b"554 5.7.1 no SMTP service here\r\n")
    last = told(Answer(Stage.GREETING, reply)).attempt
    last.mx_host, last.remote_ip, last.dialled = "mx.example.org", "192.0.2.1", True
    attempt = not_dialled(last)
    assert reply_of(attempt) is None
    assert (attempt.status, attempt.mx_host, attempt.remote_ip, attempt.dialled) == ("4.7.1", "", "", False)
    (line,) = attempt.reply.lines
    assert line.endswith("mx.example.org said 554 5.7.1 no SMTP service here")
    ours = types_pb2.Attempt(status="4.4.1")
    ours.reply.lines.append("no connection to the next hop")
    assert not_dialled(ours).reply.lines[0].endswith("backoff: no connection to the next hop")


@pytest.mark.parametrize("resumed", [False, True])
def test_the_history_says_of_a_verified_server_whether_its_session_was_resumed_TLS_10e(resumed: bool) -> None:
    (reply,) = ReplyParser().feed(b"250 2.0.0 taken\r\n")
    verdict = verdict_on(Answer(Stage.END, reply), hop=HopKind.FOREIGN)
    seen = ConnectionFacts("mx", "192.0.2.1", "", TlsReport("TLSv1.3", "AES", TlsProof.PKIX, "because", True, resumed))
    result = lease_pb2.DeliveryResult()
    report = RecipientReport(1, Result.DELIVERED, verdict, seen, remote=True)
    fill_result(DeliveryReport(1, b"m", 0, 0, [report], {}, ()), result, "node")
    tls = types_pb2.Attempt.FromString(result.recipients[0].attempt.SerializeToString()).tls
    assert (tls.proof, tls.resumed) == (types_pb2.TLS_PROOF_PKIX, resumed)


@pytest.mark.parametrize("proof", [None, *TlsProof])
def test_the_queue_hears_what_proved_the_server_and_what_it_offered(proof: TlsProof | None) -> None:
    verdict = verdict_on(Answer(Stage.END, Reply.of(250, None, "taken")), hop=HopKind.FOREIGN)
    tls = TlsReport("TLSv1.3", "AES", proof, "because", True, requiretls=proof is not None)
    report = RecipientReport(1, Result.RELAYED, verdict, ConnectionFacts("mx", "192.0.2.1", "", tls), remote=True)
    result = lease_pb2.DeliveryResult()
    fill_result(DeliveryReport(1, b"m", 0, 0, [report], {}, ()), result, "node")
    found = result.recipients[0].attempt.tls
    assert types_pb2.TlsProof.Name(found.proof) == f"TLS_PROOF_{proof.name if proof is not None else 'UNSPECIFIED'}"
    assert found.requiretls is (proof is not None)


@pytest.mark.parametrize("cause", Cause)
def test_the_queue_hears_why_tls_kept_a_message_from_a_host_that_was_not_dialled(cause: Cause) -> None:
    verdict = verdict_on(Answer(Stage.PLAN, None, Trouble.TLS_DEMAND, "words"), hop=HopKind.FOREIGN)
    report = RecipientReport(1, Result.FAILED, verdict, tls_cause=cause)
    result = lease_pb2.DeliveryResult()
    fill_result(DeliveryReport(1, b"m", 0, 0, [report], {}, ()), result, "node")
    attempt = result.recipients[0].attempt
    assert types_pb2.TlsCause.Name(attempt.tls_cause) == f"TLS_CAUSE_{cause.name}"
    assert not attempt.dialled
