"""The failover matrix, row by row, without a host (SOUT-13, LSE-08, reference H29, H43)."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mailrail.core.delivery.outcome import HopKind, Outcome, Scope
from mailrail.core.outbound.host_failover import HostFailover, verdict_on
from mailrail.core.outbound.tls_answers import tls_refused
from mailrail.core.smtp.answer import Answer, Stage, Trouble
from mailrail.core.smtp.reply import Reply
from mailrail.core.tlspolicy.decision import (
    NO_REQUIRETLS,
    NO_TLS,
    NOT_SECURE,
    TRY_LATER,
    Cause,
    Refusal,
)


def said(stage: Stage, code: int, enhanced: str | None = None) -> Answer:
    return Answer(stage, Reply.of(code, enhanced, "text"))


def one(*answers: Answer, hop: HopKind = HopKind.FOREIGN) -> tuple[bool, Outcome]:
    """A single recipient after these answers: does it want another host, and what is it in the end?"""
    failover = HostFailover(1, hop=hop)
    for answer in answers:
        if answer.stage in (Stage.GREETING, Stage.HELLO, Stage.CONNECT, Stage.HANDSHAKE, Stage.AUTH, Stage.PROXY):
            failover.record_session_failure(answer)
        elif answer.stage is Stage.PLAN:
            failover.record_refusals([(0, answer)])
        else:
            failover.record_answers([0], [answer], passes_dsn=False)
    wants_more = bool(failover.open)
    return wants_more, failover.conclude()[0].verdict.outcome


@pytest.mark.parametrize(
    ("answers", "wants_more", "outcome"),
    [
        ([said(Stage.GREETING, 554)], True, Outcome.FAILED),
        ([said(Stage.GREETING, 550)], True, Outcome.DEFERRED),
        ([said(Stage.GREETING, 421)], True, Outcome.DEFERRED),
        ([said(Stage.GREETING, 554), said(Stage.GREETING, 521)], True, Outcome.FAILED),
        ([said(Stage.GREETING, 554), Answer(Stage.CONNECT, None, Trouble.UNREACHABLE)], True, Outcome.DEFERRED),
        ([said(Stage.HELLO, 554)], True, Outcome.FAILED),
        ([said(Stage.MAIL, 451)], True, Outcome.DEFERRED),
        ([said(Stage.MAIL, 550)], False, Outcome.FAILED),
        ([said(Stage.RCPT, 550)], False, Outcome.FAILED),
        ([said(Stage.RCPT, 552)], True, Outcome.DEFERRED),
        ([said(Stage.RCPT, 450)], True, Outcome.DEFERRED),
        ([said(Stage.RCPT, 450), said(Stage.RCPT, 450)], False, Outcome.DEFERRED),
        ([said(Stage.RCPT, 421), said(Stage.RCPT, 421)], True, Outcome.DEFERRED),
        ([said(Stage.DATA, 451)], True, Outcome.DEFERRED),
        ([said(Stage.DATA, 554)], False, Outcome.FAILED),
        ([said(Stage.END, 451)], True, Outcome.DEFERRED),
        ([said(Stage.END, 554)], False, Outcome.FAILED),
        ([said(Stage.END, 250)], False, Outcome.RELAYED),
        ([Answer(Stage.MAIL, None, Trouble.CLOSED)], True, Outcome.DEFERRED),
        ([Answer(Stage.END, None, Trouble.CLOSED, uncertain=True)], False, Outcome.DEFERRED),
        ([Answer(Stage.CONTENT, None, Trouble.LEASE)], False, Outcome.DEFERRED),
        ([Answer(Stage.PLAN, None, Trouble.TOO_LARGE)], True, Outcome.FAILED),
        ([Answer(Stage.PLAN, None, Trouble.TOO_LARGE), said(Stage.GREETING, 421)], True, Outcome.DEFERRED),
        ([Answer(Stage.PLAN, None, Trouble.TOO_LARGE), said(Stage.GREETING, 550)], True, Outcome.DEFERRED),
        ([said(Stage.GREETING, 421), Answer(Stage.PLAN, None, Trouble.NEEDS_SMTPUTF8)], True, Outcome.DEFERRED),
        ([said(Stage.GREETING, 421), said(Stage.MAIL, 550)], False, Outcome.FAILED),
    ],
)
def test_the_matrix_of_SOUT_13(answers: list[Answer], wants_more: bool, outcome: Outcome) -> None:
    assert one(*answers) == (wants_more, outcome)


def test_too_many_recipients_goes_on_at_once_only_after_one_was_taken() -> None:
    failover = HostFailover(3, hop=HopKind.FOREIGN)
    answers = [said(Stage.END, 250), said(Stage.RCPT, 452), said(Stage.RCPT, 552)]
    assert failover.record_answers([0, 1, 2], answers, passes_dsn=False) == (1, 2)
    assert failover.record_answers([1, 2], [said(Stage.RCPT, 452), said(Stage.RCPT, 452)], passes_dsn=False) == ()
    assert failover.open == (1, 2)


@pytest.mark.parametrize(
    "answer",
    [
        said(Stage.AUTH, 535),
        said(Stage.MAIL, 530),
        Answer(Stage.HANDSHAKE, None, Trouble.TLS),
        Answer(Stage.AUTH, None, Trouble.AUTH),
        Answer(Stage.DNS, None, Trouble.NO_ADDRESS),
        Answer(Stage.PROXY, None, Trouble.PROXY),
        Answer(Stage.STARTTLS, Reply.of(554, None, "no"), Trouble.TLS),
    ],
)
def test_trouble_with_our_own_hop_is_the_transports_and_never_a_bounce_H29(answer: Answer) -> None:
    verdict = verdict_on(answer, hop=HopKind.OWN)
    assert (verdict.outcome, verdict.scope) == (Outcome.DEFERRED, Scope.TRANSPORT)
    assert str(verdict.status) == "4.3.5"


def test_lmtp_and_a_hop_that_takes_dsn_parameters_deliver_others_relay() -> None:
    taken = said(Stage.END, 250)
    assert verdict_on(taken, hop=HopKind.FINAL).outcome is Outcome.DELIVERED
    assert verdict_on(taken, hop=HopKind.FOREIGN, passes_dsn=True).outcome is Outcome.DELIVERED
    assert verdict_on(taken, hop=HopKind.FOREIGN).outcome is Outcome.RELAYED


def test_a_server_that_is_quoted_tells_more_than_one_that_was_not_reached() -> None:
    failover = HostFailover(1, hop=HopKind.FOREIGN)
    failover.record_answers([0], [said(Stage.MAIL, 451, "4.7.1")], passes_dsn=False)
    failover.record_session_failure(Answer(Stage.CONNECT, None, Trouble.UNREACHABLE, "dead"))
    assert failover.conclude()[0].verdict.reply == Reply.of(451, "4.7.1", "text")


@pytest.mark.parametrize(
    ("trouble", "status"),
    [(Trouble.NEEDS_8BITMIME, "5.6.3"), (Trouble.NEEDS_SMTPUTF8, "5.6.7"), (Trouble.UTF8_HEADER, "5.6.9")],
)
def test_mail_that_a_host_cannot_take_is_said_even_where_another_refuses_all_mail_SOUT_18c(
    trouble: Trouble, status: str
) -> None:
    lacks = Answer(Stage.PLAN, None, trouble, "it lacks an extension")
    for refusals in ([lacks, said(Stage.GREETING, 554)], [said(Stage.GREETING, 554), lacks]):
        failover = HostFailover(1, hop=HopKind.FOREIGN)
        for answer in refusals:
            if answer is lacks:
                failover.record_refusals([(0, answer)])
            else:
                failover.record_session_failure(answer)
        found = failover.conclude()[0]
        assert (found.answer, found.verdict.outcome, str(found.verdict.status)) == (lacks, Outcome.FAILED, status)


NO_MAIL_HERE = said(Stage.GREETING, 554, "5.7.1")


def concluded(*answers: Answer, hop: HopKind = HopKind.FOREIGN) -> tuple[Answer, Outcome, str]:
    """What decides about a single recipient, after all hosts have answered so."""
    failover = HostFailover(1, hop=hop)
    for answer in answers:
        if answer.stage is Stage.PLAN:
            failover.record_refusals([(0, answer)])
        elif answer.stage in (Stage.MAIL, Stage.RCPT):
            failover.record_answers([0], [answer], passes_dsn=False)
        else:
            failover.record_session_failure(answer)
    found = failover.conclude()[0]
    return found.answer, found.verdict.outcome, str(found.verdict.status)


@pytest.mark.parametrize(
    ("other", "outcome", "status"),
    [
        (Answer(Stage.PLAN, None, Trouble.TOO_LARGE), Outcome.FAILED, "5.3.4"),
        (Answer(Stage.PLAN, None, Trouble.NEEDS_SMTPUTF8), Outcome.FAILED, "5.6.7"),
        (Answer(Stage.PLAN, None, Trouble.TLS_DEMAND), Outcome.FAILED, "5.7.10"),
        (Answer(Stage.CONNECT, None, Trouble.UNREACHABLE), Outcome.DEFERRED, "4.4.1"),
        (said(Stage.GREETING, 550, "5.3.2"), Outcome.DEFERRED, "4.3.2"),
        (said(Stage.MAIL, 451, "4.7.1"), Outcome.DEFERRED, "4.7.1"),
        (said(Stage.RCPT, 450, "4.2.0"), Outcome.DEFERRED, "4.2.0"),
    ],
)
def test_a_greeting_of_no_mail_here_is_no_word_on_a_recipient_while_another_host_says_one_SOUT_13(
    other: Answer, outcome: Outcome, status: str
) -> None:
    for answers in ([NO_MAIL_HERE, other], [other, NO_MAIL_HERE], [NO_MAIL_HERE, other, NO_MAIL_HERE]):
        assert concluded(*answers) == (other, outcome, status)


def test_a_greeting_of_no_mail_here_is_final_where_every_host_says_so_and_never_of_our_own_hop_SOUT_13() -> None:
    assert concluded(NO_MAIL_HERE, NO_MAIL_HERE) == (NO_MAIL_HERE, Outcome.FAILED, "5.7.1")
    large = Answer(Stage.PLAN, None, Trouble.TOO_LARGE)
    assert concluded(NO_MAIL_HERE, large, hop=HopKind.OWN) == (NO_MAIL_HERE, Outcome.DEFERRED, "4.7.1")


def test_content_waits_for_a_host_that_may_take_it_before_another_route_does_SOUT_18c() -> None:
    failover = HostFailover(1, hop=HopKind.FOREIGN)
    failover.record_refusals([(0, Answer(Stage.PLAN, None, Trouble.NEEDS_8BITMIME, "no 8BITMIME"))])
    failover.record_session_failure(Answer(Stage.CONNECT, None, Trouble.UNREACHABLE, "dead"))
    assert failover.conclude()[0].verdict.outcome is Outcome.DEFERRED


def test_recipients_settled_elsewhere_are_left_out() -> None:
    failover = HostFailover(2, hop=HopKind.FOREIGN)
    failover.leave_out([0])
    assert failover.open == (1,)
    failover.record_session_failure(said(Stage.GREETING, 421))
    assert list(failover.conclude()) == [1]


def test_a_cancelled_session_settles_everybody_as_cancelled() -> None:
    failover = HostFailover(2, hop=HopKind.FOREIGN)
    failover.record_session_failure(Answer(Stage.DNS, None, Trouble.CANCELLED, "by an administrator"))
    assert failover.open == ()
    assert all(settled.cancelled for settled in failover.conclude().values())


_answers = st.builds(
    lambda stage, code, trouble, uncertain: Answer(
        stage, Reply(code) if trouble is None else None, trouble, uncertain=uncertain and stage is Stage.END
    ),
    st.sampled_from([Stage.MAIL, Stage.RCPT, Stage.DATA, Stage.END]),
    st.integers(400, 599),
    st.sampled_from([None, None, None, Trouble.CLOSED, Trouble.TIMEOUT, Trouble.PROTOCOL]),
    st.booleans(),
)


_TOO_MANY = [Answer(Stage.MAIL, Reply(400)), Answer(Stage.MAIL, Reply(400)), Answer(Stage.RCPT, Reply(452))]


@example([_TOO_MANY])
@given(st.lists(st.lists(_answers, min_size=3, max_size=3), max_size=5))
def test_everybody_is_settled_once_and_never_delivered_without_a_250(rounds: list[list[Answer]]) -> None:
    failover = HostFailover(3, hop=HopKind.FOREIGN)
    for answers in rounds:
        indexes = failover.open
        while indexes:  # those that were too many go into a further transaction, as a job sends them
            indexes = failover.record_answers(indexes, [answers[i] for i in indexes], passes_dsn=False)
    settled = failover.conclude() if rounds else {}
    for result in settled.values():
        assert result.verdict.outcome in (Outcome.DEFERRED, Outcome.FAILED)
    assert not rounds or set(settled) == {0, 1, 2}


TLS_REFUSALS = [
    Refusal(Cause.MX_UNPROVEN, NO_REQUIRETLS, "the MX name is not proven"),
    Refusal(Cause.NO_REQUIRETLS, NO_REQUIRETLS, "it is not offered inside TLS"),
    Refusal(Cause.NO_TLS, NO_TLS, "no TLS"),
    Refusal(Cause.STS_UNANSWERED, TRY_LATER, "the DNS does not answer"),
    None,  # nothing to do with TLS
]
"""Of a message with REQUIRETLS."""
FLOOR_REFUSALS = [Refusal(Cause.NO_PROOF, NOT_SECURE, "no proof that the floor allows"), *TLS_REFUSALS[3:]]
"""Of any other."""


@given(
    st.lists(st.sampled_from(TLS_REFUSALS), min_size=1, max_size=4)
    | st.lists(st.sampled_from(FLOOR_REFUSALS), min_size=1, max_size=4)
)
def test_tls_makes_a_message_fail_only_where_each_host_was_asked_and_will_never_do(
    refusals: list[Refusal | None],
) -> None:
    """RTLS-16b, RTLS-17a, RTLS-17b, RTLS-21a: a host that could not be asked may be the one that conforms."""
    failover = HostFailover(1, hop=HopKind.FOREIGN)
    for refusal in refusals:
        unreachable = Answer(Stage.CONNECT, None, Trouble.UNREACHABLE)
        failover.record_session_failure(unreachable if refusal is None else tls_refused(refusal))
    found = [refusal for refusal in refusals if refusal is not None]
    never = len(found) == len(refusals) and all(refusal.status.category == 5 for refusal in found)
    if FLOOR_REFUSALS[0] not in refusals:
        assert failover.wants_tls is never
    verdict = failover.conclude()[0].verdict
    assert (verdict.outcome is Outcome.FAILED) is never
    if never:
        causes = {str(refusal.status) for refusal in found}
        assert str(verdict.status) == next(code for code in ("5.7.30", "5.7.10", "5.7.5") if code in causes)
    elif len(found) == len(refusals):
        assert str(verdict.status) == "4.7.5"
