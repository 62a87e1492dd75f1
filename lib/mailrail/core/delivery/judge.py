"""What becomes of a recipient when an attempt ends: final or tried again, when, and whether the sender is told.

Brings `outcome`, `schedule` and the DSN matrix together in one pure function, so that the queue only writes down what
it says (design 4 Retry and 9; FIN-01). Also the rule of interrupted attempts (LSE-04).
"""

from dataclasses import dataclass

from mailrail.core.delivery.outcome import Outcome, Verdict
from mailrail.core.delivery.schedule import is_last, retry_delay, will_retry_until
from mailrail.core.dsn.due import Asked, DsnKind, SenderAuthentication, due
from mailrail.core.revision.revision import RetrySchedule
from mailrail.core.smtp.reply import EnhancedCode

EXPIRED = EnhancedCode(4, 4, 7)
"""Delivery time expired (RFC 3463 3.5); final with class 4, as RFC 3464 2.3.4 allows (DSN-17)."""
_FORGED = int(SenderAuthentication.FORGED)
INTERRUPTIONS_FORGIVEN = 10
"""Interrupted attempts of a recipient that do not count (LSE-04); those beyond do."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a recipient stands when an attempt ends. Times are Unix seconds."""

    accepted: float
    attempts: int
    """Counted attempts, this one included."""
    uncounted_seconds: float = 0.0
    """Seconds spent on hold or before a FUTURERELEASE time."""
    null_sender: bool = False
    sender_authentication: int = SenderAuthentication.YES
    """Of SenderAuthentication: who may be answered (see `dsn.due`)."""
    notify: Asked = Asked.UNSET
    delayed_dsn_decided: bool = False
    quiet: bool = False
    """A report of ours: no delayed notification (reference D2)."""
    max_attempts: int | None = None


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is to be written down."""

    outcome: Outcome
    status: EnhancedCode
    retry_in: float | None
    """Seconds until the next attempt; None when final."""
    dsn: DsnKind | None
    """The notification that is due now, if any."""
    will_retry_until: float | None = None
    """With `DsnKind.DELAYED`: the time of the last attempt to come."""
    tell_postmaster: bool = False
    """A failed message with a null sender, or a forged one: no mail is made, a copy goes to the postmaster's mailbox
    (DSN-10, DSN-24, DSN-26b)."""

    @property
    def final(self) -> bool:
        """The recipient is done."""
        return self.retry_in is None


def judge(verdict: Verdict, standing: Standing, schedule: RetrySchedule, *, now: float, jitter: float) -> Judgement:
    """What becomes of a recipient with this verdict. `jitter` in -1..1."""
    asked = standing.notify

    def is_due(kind: DsnKind) -> bool:
        return due(kind, asked, null_sender=standing.null_sender, sender_authentication=standing.sender_authentication)

    if verdict.outcome in (Outcome.DELIVERED, Outcome.RELAYED):
        kind = DsnKind.DELIVERED if verdict.outcome is Outcome.DELIVERED else DsnKind.RELAYED
        dsn = kind if not verdict.dsn_passed_on and is_due(kind) else None
        return Judgement(verdict.outcome, verdict.status, None, dsn)
    last = verdict.outcome is Outcome.FAILED or is_last(
        schedule,
        attempts=standing.attempts,
        now=now,
        accepted=standing.accepted,
        uncounted_seconds=standing.uncounted_seconds,
        null_sender=standing.null_sender,
        max_attempts=standing.max_attempts,
    )
    if last:
        status = verdict.status if verdict.outcome is Outcome.FAILED else EXPIRED
        dsn = DsnKind.FAILED if is_due(DsnKind.FAILED) else None
        # DSN-26b: nor may a forged sender be answered.
        unanswerable = standing.null_sender or standing.sender_authentication == _FORGED
        return Judgement(Outcome.FAILED, status, None, dsn, tell_postmaster=unanswerable)
    delayed = (
        not standing.delayed_dsn_decided
        and not standing.quiet
        and standing.attempts >= schedule.delayed_dsn_after
        and is_due(DsnKind.DELAYED)
    )
    until = None
    if delayed:
        until = will_retry_until(
            schedule,
            attempts=standing.attempts,
            last_attempt=now,
            accepted=standing.accepted,
            uncounted_seconds=standing.uncounted_seconds,
            null_sender=standing.null_sender,
            max_attempts=standing.max_attempts,
        )
    retry_in = retry_delay(schedule, standing.attempts, jitter)
    return Judgement(
        Outcome.DEFERRED, verdict.status, retry_in, DsnKind.DELAYED if delayed else None, will_retry_until=until
    )
