"""What a result is written as, and how a late one counts: no database takes part (FIN-01, LSE-03, LSE-04, HIS-03)."""

from dataclasses import replace

import pytest

from mailrail.core.delivery.judge import Judgement
from mailrail.core.delivery.outcome import Outcome, Verdict
from mailrail.core.dsn.due import Asked, DsnKind
from mailrail.pb.queue.v1 import lease_pb2, types_pb2
from mailrail_queue.delivery.ports import AttemptRecipient
from mailrail_queue.delivery.sorting import (
    NOT_DIALLED_DELAY,
    POLICY_UNREAD_DELAY,
    NextRoute,
    Sorted,
    Weight,
    sort,
    weigh_late,
)
from mailrail_queue.routing.router import RoutePlan
from mailrail_queue.store import results as result_store
from mailrail_queue.store.results import Deferral, Ending
from mailrail_queue.store.rows import dialled_of
from mailrail_queue.store.waiting import Waiting

from testkit.dispatching import Bench

TOKEN = 77
DELIVERED, RELAYED, CAPTURED = types_pb2.OUTCOME_DELIVERED, types_pb2.OUTCOME_RELAYED, types_pb2.OUTCOME_CAPTURED
DEFERRED, FAILED, CANCELLED = types_pb2.OUTCOME_DEFERRED, types_pb2.OUTCOME_FAILED, types_pb2.OUTCOME_CANCELLED
NOT_ATTEMPTED, UNKNOWN = types_pb2.OUTCOME_NOT_ATTEMPTED, types_pb2.OUTCOME_UNSPECIFIED


class Judge:
    """Answers as it is told, and keeps what it was asked."""

    def __init__(
        self, *, retry_in: float | None = None, dsn: DsnKind | None = None, tell_postmaster: bool = False
    ) -> None:
        self.asked: list[Verdict] = []
        self._retry_in, self._dsn, self._tell = retry_in, dsn, tell_postmaster

    def __call__(self, verdict: Verdict, recipient: AttemptRecipient) -> Judgement:
        self.asked.append(verdict)
        return Judgement(verdict.outcome, verdict.status, self._retry_in, self._dsn, tell_postmaster=self._tell)


def sorted_as(
    outcome: types_pb2.Outcome.ValueType,
    judge: Judge,
    *,
    domain: str = "x.example",
    notify: Asked = Asked.UNSET,
    dialled: bool = False,
    lacking: str = "",
    status: str = "5.6.3",
    next_route: NextRoute = lambda recipient, tried: None,
) -> Sorted:
    """A result with this outcome, sorted. `lacking`: the extension that no host of the transport has,
    and `status`: what outbound says of it."""
    delivery = Bench().lease(domain)
    recipient = replace(delivery.recipients[0], notify=int(notify), version=4)
    result = lease_pb2.DeliveryResult(token=TOKEN)
    if dialled:
        result.dialled_hosts.add(host="mx.x.example", ips=["192.0.2.1"])
    found = result.recipients.add(id=recipient.id)
    found.attempt.outcome = outcome
    found.attempt.reply.enhanced = "4.2.0" if outcome == DEFERRED else "5.1.1" if outcome == FAILED else "2.0.0"
    if outcome == NOT_ATTEMPTED:
        found.attempt.status = status
    if lacking:
        found.lacking.extension = lacking
        found.attempt.reply.enhanced = status
        found.attempt.reply.lines.append(f"lacks {lacking}")
    return sort(found, recipient, TOKEN, delivery.plan, result, judge, next_route)


@pytest.mark.parametrize("outcome", [DELIVERED, RELAYED])
def test_mail_that_is_delivered_and_of_which_nobody_asked_to_hear_is_not_even_judged_FIN_01(
    outcome: types_pb2.Outcome.ValueType,
) -> None:
    judge = Judge()
    found = sorted_as(outcome, judge)
    assert isinstance(found.change, Ending)
    assert (found.change.state, found.change.outcome, found.change.token, found.change.version) == (
        result_store.DELIVERED,
        outcome,
        TOKEN,
        4,
    )
    assert (found.notice, found.arrival, judge.asked) == (None, None, [])


def test_who_asked_to_hear_of_success_is_told_if_the_judge_says_so() -> None:
    found = sorted_as(DELIVERED, Judge(dsn=DsnKind.DELIVERED), notify=Asked.SUCCESS)
    assert found.notice is not None
    assert found.notice.judgement.dsn is DsnKind.DELIVERED
    assert sorted_as(DELIVERED, Judge(), notify=Asked.SUCCESS).notice is None


@pytest.mark.parametrize(("outcome", "domain"), [(CAPTURED, "x.example"), (DELIVERED, "home.example")])
def test_captured_mail_and_mail_of_a_mailbox_arrive_in_the_transaction_of_their_ending_FIN_01(
    outcome: types_pb2.Outcome.ValueType, domain: str
) -> None:
    found = sorted_as(outcome, Judge(), domain=domain)
    assert isinstance(found.change, Ending)
    assert found.arrival is not None
    assert found.arrival.recipient.id == found.change.id


def test_what_was_not_dialled_is_undone_without_being_judged_LSE_04() -> None:
    judge = Judge()
    found = sorted_as(NOT_ATTEMPTED, judge, dialled=True)
    assert found.change == Deferral(found.change.id, b"m" * 16, TOKEN, 4, NOT_DIALLED_DELAY, None)
    assert judge.asked == []


def test_what_goes_back_because_no_policy_can_be_read_is_not_asked_for_again_in_a_second_LSE_04() -> None:
    """An outage of outbound's Postgres may last for hours, with all mail of a queue that is well."""
    found = sorted_as(NOT_ATTEMPTED, Judge(), status="4.7.5")
    assert isinstance(found.change, Deferral)
    assert found.change == Deferral(found.change.id, b"m" * 16, TOKEN, 4, POLICY_UNREAD_DELAY, None)
    assert POLICY_UNREAD_DELAY >= 10 * NOT_DIALLED_DELAY


def test_what_was_aborted_for_an_administrator_goes_back_at_once_with_its_record_ADM_02() -> None:
    judge = Judge()
    change = sorted_as(CANCELLED, judge, dialled=True).change
    assert isinstance(change, Deferral)
    assert (change.retry_in, change.cancelled, judge.asked) == (0.0, True, [])
    assert types_pb2.Attempt.FromString(change.last_attempt or b"").outcome == CANCELLED
    assert dialled_of(change.dialled_hosts) == {"mx.x.example": ["192.0.2.1"]}


@pytest.mark.parametrize("outcome", [DEFERRED, UNKNOWN])
def test_what_is_tried_again_waits_as_long_as_the_judge_says(outcome: types_pb2.Outcome.ValueType) -> None:
    judge = Judge(retry_in=300.0)
    found = sorted_as(outcome, judge, dialled=True)
    change = found.change
    assert isinstance(change, Deferral)
    assert (change.retry_in, change.delayed_dsn_decided, change.cancelled) == (300.0, False, False)
    assert types_pb2.Attempt.FromString(change.last_attempt or b"").outcome == DEFERRED
    assert dialled_of(change.dialled_hosts) == {"mx.x.example": ["192.0.2.1"]}
    assert found.notice is None
    assert [verdict.outcome for verdict in judge.asked] == [Outcome.DEFERRED]


@pytest.mark.parametrize(
    ("lacking", "status", "recorded"),
    [("8BITMIME", "5.6.3", "4.6.3"), ("SMTPUTF8", "5.6.7", "4.6.7"), ("SMTPUTF8", "5.6.9", "4.6.9")],
)
def test_mail_that_a_transport_cannot_take_goes_to_the_next_rule_at_once_without_being_judged_SOUT_18c(
    lacking: str, status: str, recorded: str
) -> None:
    judge, plan = Judge(), Bench().lease("other.example").plan
    asked: list[types_pb2.LackingTransport] = []

    def next_route(recipient: AttemptRecipient, tried: types_pb2.LackingTransport) -> tuple[RoutePlan, bytes]:
        asked.append(tried)
        return plan, b"remembered"

    found = sorted_as(FAILED, judge, dialled=True, lacking=lacking, status=status, next_route=next_route)
    change = found.change
    assert isinstance(change, Deferral)
    assert (change.retry_in, change.site, change.lacking) == (0.0, plan.key, b"remembered")
    assert (found.notice, judge.asked, [t.extension for t in asked]) == (None, [], [lacking])
    attempt = types_pb2.Attempt.FromString(change.last_attempt or b"")
    assert (attempt.outcome, attempt.status, attempt.reply.enhanced) == (DEFERRED, recorded, recorded)
    assert list(attempt.reply.lines) == [f"lacks {lacking}, so the next rule is tried: {plan.decision.rule}"]
    assert dialled_of(change.dialled_hosts) == {"mx.x.example": ["192.0.2.1"]}


def test_content_that_no_further_rule_takes_fails_as_the_reply_says_SOUT_18c() -> None:
    judge = Judge()
    change = sorted_as(FAILED, judge, lacking="8BITMIME").change
    assert isinstance(change, Ending)
    assert (change.state, [str(v.status) for v in judge.asked]) == (result_store.FAILED, ["5.6.3"])


def test_only_a_failure_for_the_extension_alone_is_passed_on_SOUT_18c() -> None:
    def next_route(recipient: AttemptRecipient, tried: types_pb2.LackingTransport) -> tuple[RoutePlan, bytes]:
        raise AssertionError("no other route is asked for")

    sorted_as(DEFERRED, Judge(retry_in=300.0), lacking="8BITMIME", next_route=next_route)
    sorted_as(RELAYED, Judge(), lacking="8BITMIME", next_route=next_route)
    sorted_as(FAILED, Judge(), next_route=next_route)


def test_a_delayed_notification_is_decided_with_the_deferral_that_gives_cause_for_it() -> None:
    found = sorted_as(DEFERRED, Judge(retry_in=300.0, dsn=DsnKind.DELAYED))
    assert isinstance(found.change, Deferral)
    assert found.change.delayed_dsn_decided
    assert found.notice is not None


@pytest.mark.parametrize("outcome", [FAILED, DEFERRED])
def test_the_last_attempt_fails_the_recipient_and_the_reply_itself_stays_as_it_came(
    outcome: types_pb2.Outcome.ValueType,
) -> None:
    found = sorted_as(outcome, Judge(dsn=DsnKind.FAILED))
    assert isinstance(found.change, Ending)
    assert (found.change.state, found.change.outcome) == (result_store.FAILED, FAILED)
    assert types_pb2.Attempt.FromString(found.change.last_attempt or b"").outcome == FAILED
    assert found.notice is not None
    assert found.notice.attempt.outcome == FAILED


@pytest.mark.parametrize(("tells", "dsn"), [(True, None), (False, None), (False, DsnKind.FAILED)])
def test_of_a_failure_the_sender_or_the_postmaster_or_nobody_is_told_DSN_10(tells: bool, dsn: DsnKind | None) -> None:
    found = sorted_as(FAILED, Judge(dsn=dsn, tell_postmaster=tells))
    assert (found.notice is not None) == (tells or dsn is not None)


def stored(token: int | None, message_id: bytes = b"m" * 16) -> Waiting:
    """A recipient as it is in the database, leased under this token."""
    waiting = object.__new__(Waiting)
    waiting.id, waiting.token, waiting.message_id = 1, token, message_id
    return waiting


@pytest.mark.parametrize(
    ("outcome", "waiting", "other", "is_local", "weight"),
    [
        (DELIVERED, stored(TOKEN), False, False, Weight.WHOLE),
        (DEFERRED, stored(TOKEN), False, False, Weight.WHOLE),
        (DELIVERED, stored(TOKEN + 1), False, False, Weight.WHOLE),
        (CAPTURED, stored(None), False, False, Weight.WHOLE),
        (DEFERRED, stored(TOKEN + 1), False, False, Weight.RECORD),
        (FAILED, stored(None), False, False, Weight.RECORD),
        (DELIVERED, None, False, False, Weight.NONE),
        (DELIVERED, stored(TOKEN, b"n" * 16), False, False, Weight.NONE),
        (RELAYED, stored(None), True, False, Weight.WHOLE),
        (DELIVERED, stored(TOKEN), True, True, Weight.NONE),
        (FAILED, stored(TOKEN), True, False, Weight.NONE),
        (DELIVERED, stored(TOKEN, b"n" * 16), True, False, Weight.NONE),
    ],
)
def test_a_late_result_counts_if_it_succeeded_or_its_lease_still_stands_LSE_03_HIS_03(
    outcome: int, waiting: Waiting | None, other: bool, is_local: bool, weight: Weight
) -> None:
    assert weigh_late(outcome, waiting, TOKEN, b"m" * 16, other_history=other, is_local=is_local) is weight
