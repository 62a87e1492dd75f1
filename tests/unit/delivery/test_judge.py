"""What becomes of a recipient when an attempt ends (design 4 Retry and 9; DSN-05 to DSN-10; LSE-04)."""

import itertools

import pytest

from mailrail.core.delivery.judge import EXPIRED, Judgement, Standing, judge
from mailrail.core.delivery.outcome import HopKind, Outcome, of_reply, of_trouble
from mailrail.core.dsn.due import Asked, DsnKind, SenderAuthentication, due
from mailrail.core.revision.revision import RetrySchedule
from mailrail.core.smtp.answer import Stage, Trouble
from mailrail.core.smtp.reply import Reply
from mailrail.pb.queue.v1 import types_pb2

SCHEDULE = RetrySchedule()
BUSY = of_reply(Reply.of(450, "4.2.0", "later"), stage=Stage.RCPT)
GONE = of_reply(Reply.of(550, "5.1.1", "who?"), stage=Stage.RCPT)
TAKEN = of_reply(Reply(250), stage=Stage.END)


def after(verdict: object, now: float = 10.0, **facts: object) -> Judgement:
    standing = Standing(**{"accepted": 0.0, "attempts": 1, **facts})  # type: ignore[arg-type]
    return judge(verdict, standing, SCHEDULE, now=now, jitter=0.0)  # type: ignore[arg-type]


def test_a_temporary_failure_waits_for_the_next_attempt() -> None:
    found = after(BUSY)
    assert (found.outcome, found.retry_in, found.dsn) == (Outcome.DEFERRED, 450.0, None)


def test_a_permanent_failure_is_final_at_any_attempt_and_answered() -> None:
    found = after(GONE)
    assert (found.outcome, found.final, found.dsn, str(found.status)) == (Outcome.FAILED, True, DsnKind.FAILED, "5.1.1")


def test_the_delayed_notification_comes_once_after_the_failed_fifth_attempt_DSN_09() -> None:
    told = [after(BUSY, attempts=n, delayed_dsn_decided=n > 5).dsn for n in range(1, 9)]
    assert told == [None, None, None, None, DsnKind.DELAYED, None, None, None]
    assert after(BUSY, attempts=5).will_retry_until is not None
    assert after(BUSY, attempts=5, quiet=True).dsn is None


def test_an_expired_message_fails_with_4_4_7_DSN_17() -> None:
    found = after(BUSY, now=5 * 86400.0, attempts=20)
    assert (found.final, found.status, found.dsn) == (True, EXPIRED, DsnKind.FAILED)


def test_missing_transports_and_refused_passwords_are_counted_attempts_and_never_bounces() -> None:
    for verdict in (
        of_trouble(Trouble.MISSING),
        of_reply(Reply.of(535, "5.7.8", "no"), stage=Stage.AUTH, hop=HopKind.OWN),
        of_trouble(Trouble.TLS, stage=Stage.HANDSHAKE, hop=HopKind.OWN),
    ):
        found = after(verdict)
        assert (found.outcome, str(found.status), found.dsn) == (Outcome.DEFERRED, "4.3.5", None)


def test_a_null_sender_is_never_answered_and_the_postmaster_is_told_DSN_10_DSN_24() -> None:
    found = after(GONE, null_sender=True)
    assert (found.final, found.dsn, found.tell_postmaster) == (True, None, True)
    assert after(BUSY, attempts=5, null_sender=True).dsn is None
    assert after(TAKEN, null_sender=True, notify=Asked.SUCCESS).dsn is None


def test_a_hop_without_dsn_makes_us_say_relayed_and_one_with_dsn_does_not_DSN_05() -> None:
    assert after(TAKEN, notify=Asked.SUCCESS).dsn is DsnKind.RELAYED
    assert after(TAKEN).dsn is None
    passed = of_reply(Reply(250), stage=Stage.END, passes_dsn=True)
    assert after(passed, notify=Asked.SUCCESS).dsn is None
    lmtp = of_reply(Reply(250), stage=Stage.END, hop=HopKind.FINAL)
    assert after(lmtp, notify=Asked.SUCCESS).dsn is DsnKind.DELIVERED


COMBINATIONS = [Asked.UNSET, Asked.NEVER] + [
    Asked.of(words) for n in (1, 2, 3) for words in itertools.combinations(("SUCCESS", "FAILURE", "DELAY"), n)
]


@pytest.mark.parametrize("notify", COMBINATIONS)
@pytest.mark.parametrize("kind", list(DsnKind))
def test_the_matrix_of_notify_DSN_05_DSN_07_DSN_08_DSN_09(notify: Asked, kind: DsnKind) -> None:
    keyword = {DsnKind.FAILED: "FAILURE", DsnKind.DELAYED: "DELAY"}.get(kind, "SUCCESS")
    expected = keyword in notify.keywords if notify else kind in (DsnKind.FAILED, DsnKind.DELAYED)
    yes, unknown = SenderAuthentication.YES, SenderAuthentication.UNKNOWN
    assert due(kind, notify, null_sender=False, sender_authentication=yes) is expected
    assert due(kind, notify, null_sender=True, sender_authentication=yes) is False
    ours_alone = expected and kind is DsnKind.FAILED
    assert due(kind, notify, null_sender=False, sender_authentication=unknown) is ours_alone


@pytest.mark.parametrize("notify", COMBINATIONS)
@pytest.mark.parametrize("kind", list(DsnKind))
def test_a_forged_sender_is_told_nothing_DSN_26b(notify: Asked, kind: DsnKind) -> None:
    assert not due(kind, notify, null_sender=False, sender_authentication=SenderAuthentication.FORGED)


def test_the_numbers_of_sender_authentication_are_those_of_the_proto() -> None:
    names = {"UNKNOWN": "UNSPECIFIED"}
    for member in SenderAuthentication:
        name = f"SENDER_AUTHENTICATION_{names.get(member.name, member.name)}"
        assert int(types_pb2.SenderAuthentication.Value(name)) == int(member)
    assert len(types_pb2.SenderAuthentication.items()) == len(SenderAuthentication)


def test_notify_keywords_are_read_in_any_case_and_never_stands_alone_DSN_01() -> None:
    assert Asked.of(["success", "Delay"]).keywords == ("SUCCESS", "DELAY")
    assert Asked.of([]) is Asked.UNSET
    with pytest.raises(ValueError, match="alone"):
        Asked.of(["NEVER", "SUCCESS"])
    with pytest.raises(ValueError, match="not a NOTIFY keyword"):
        Asked.of(["SOMETIMES"])
