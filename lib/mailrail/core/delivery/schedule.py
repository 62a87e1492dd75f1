"""When to try again, until when, and when the sender hears of the delay (design 4, Retry; RFC 5321 4.5.4.1; SOUT-07).

Attempts fall at 0, 7.5 m, 22.5 m, 52.5 m, 1 h 52 m, 3 h 52 m, 7 h 52 m, 15 h 52 m, then every 12 h. The first failure
after the lifetime (5 days; 1 day for a null sender) is final, as is the one that uses up `max_attempts`. Time on hold,
or before a FUTURERELEASE time, counts for neither (OPT-02): callers give it as `uncounted_seconds`.

All times are Unix seconds; jitter comes from the caller.
"""

from mailrail.core.revision.revision import RetrySchedule

JITTER_SHARE = 0.05
"""Part of a delay by which an attempt moves at most, either way: spreads what failed together."""
JITTER_LIMIT = 300.0
"""Seconds; keeps the 12 h steps from drifting by half an hour."""


def base_delay(schedule: RetrySchedule, attempts: int) -> int:
    """Seconds from attempt number `attempts` (from 1) to the next, before jitter. The last delay repeats."""
    return schedule.delays[min(max(attempts, 1), len(schedule.delays)) - 1]


def retry_delay(schedule: RetrySchedule, attempts: int, jitter: float) -> float:
    """Seconds until the next attempt after `attempts` counted ones; `jitter` in -1..1 is drawn by the caller."""
    delay = base_delay(schedule, attempts)
    return delay + max(-1.0, min(1.0, jitter)) * min(delay * JITTER_SHARE, JITTER_LIMIT)


def lifetime(schedule: RetrySchedule, null_sender: bool) -> int:
    """Seconds after accept, pauses not counted, from which on a failure is final."""
    return schedule.null_sender_lifetime if null_sender else schedule.lifetime


def expires_at(schedule: RetrySchedule, *, accepted: float, uncounted_seconds: float, null_sender: bool) -> float:
    """The time from which on a failure is final."""
    return accepted + uncounted_seconds + lifetime(schedule, null_sender)


def is_last(
    schedule: RetrySchedule,
    *,
    attempts: int,
    now: float,
    accepted: float,
    uncounted_seconds: float = 0.0,
    null_sender: bool = False,
    max_attempts: int | None = None,
) -> bool:
    """Whether a failure now, of attempt number `attempts`, is final. `max_attempts` is the message's own limit."""
    limits = [limit for limit in (schedule.max_attempts, max_attempts) if limit is not None]
    if limits and attempts >= min(limits):
        return True
    return now >= expires_at(schedule, accepted=accepted, uncounted_seconds=uncounted_seconds, null_sender=null_sender)


def will_retry_until(
    schedule: RetrySchedule,
    *,
    attempts: int,
    last_attempt: float,
    accepted: float,
    uncounted_seconds: float = 0.0,
    null_sender: bool = False,
    max_attempts: int | None = None,
) -> float:
    """The time of the last attempt that will be made should all fail, jitter aside (RFC 3464 2.3.9, reference H18).

    With the first eight delays and `max_attempts` 8 that is 14 h after the fifth attempt, not a round number of the
    text: the schedule itself is walked. The repeated last delay is divided out, so the walk is as long as the schedule.
    """
    expires = expires_at(schedule, accepted=accepted, uncounted_seconds=uncounted_seconds, null_sender=null_sender)
    limits = [limit for limit in (schedule.max_attempts, max_attempts) if limit is not None]
    limit = min(limits) if limits else None
    at, number = last_attempt, attempts
    while at < expires and (limit is None or number < limit):
        if number >= len(schedule.delays):
            step = max(1, schedule.delays[-1])
            steps = -int(-(expires - at) // step)  # rounded up: the first attempt at or after expiry still happens
            if limit is not None:
                steps = min(steps, limit - number)
            return at + steps * step
        at += base_delay(schedule, number)
        number += 1
    return at
