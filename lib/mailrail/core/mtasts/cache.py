"""The life of a cached policy: when it is used, fetched, refreshed and given up (RFC 8461 3.3, 5.1, 8.3, 10.2).

The shell looks up the record, reads the cache, asks `next_step`, and asks `after_fetch` once it has fetched. Each
verdict says why, in words for the timeline. All times are seconds since the epoch, by one clock: a policy that one
process fetched is used by others, and after restarts.

What makes MTA-STS worth anything is that an attacker cannot take it away: whoever blocks the DNS or the policy host
changes nothing for as long as a policy is cached (STS-16a).
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from mailrail.core.mtasts.answer import FetchFailed
from mailrail.core.mtasts.policy import Mode, Policy
from mailrail.core.mtasts.record import StsRecord
from mailrail.core.policy_record import NoRecord

FETCH_AGAIN: Final = 300.0
"""Seconds after a failed fetch before the policy of the same id is fetched again (STS-18a)."""
REFRESH: Final = 86_400.0
"""Seconds after a fetch before a policy is fetched anew without being asked for (STS-19a)."""
REFRESH_AGAIN: Final = 3600.0
"""Seconds after a failed fetch before a policy is fetched anew without being asked for."""
SHORT_LIVED: Final = 3600
"""Seconds of life below which a policy is fetched for deliveries alone."""
LATELY: Final = 31 * 86_400.0
"""Seconds since the last mail to a domain after which its policy is not refreshed any more (STS-25)."""
DEFER_LIMIT: Final = 4 * 3600.0
"""Seconds for which failing look-ups of the record hold back mail to a domain without a cached policy (STS-24a)."""
OUTAGE_ENDS: Final = 86_400.0
"""Seconds without a look-up of the record after which one that failed before is no part of the same outage: nobody
knows what the DNS said meanwhile. More than lies between two attempts at a message (core/delivery/schedule.py)."""


@dataclass(frozen=True, slots=True)
class CachedPolicy:
    """A policy as it was fetched."""

    id: str
    """Of the record when it was fetched."""
    policy: Policy
    fetched: float
    """When the last successful fetch ended."""

    @property
    def expires(self) -> float:
        """The end of its life, which only another successful fetch puts off (STS-17a)."""
        return self.fetched + self.policy.max_age


@dataclass(frozen=True, slots=True)
class LastFailure:
    """The last fetch for a domain, if it failed."""

    id: str
    """Of the record at that time."""
    at: float
    failed: FetchFailed


@dataclass(frozen=True, slots=True)
class DnsTrouble:
    """The look-up of the record gave no answer that could be believed."""

    reason: str
    since: float
    """When look-ups of this record began to fail, with no answer since (`failing_since`)."""
    refused: bool = False
    """The servers of the zone answer other questions, and this one with REFUSED or NOTIMP."""


class PolicyStep(StrEnum):
    """What is to be done for a delivery."""

    USE = "use"
    """Deliver by `policy`."""
    FETCH = "fetch"
    """Fetch, then ask `after_fetch`."""
    WITHOUT = "without"
    """Deliver as to a domain without MTA-STS. Nothing is verified by it, and nothing may be shown as verified."""
    DEFER = "defer"
    """Do not deliver now, unless whoever sends the mail says to go on (`whenUnanswered`, STS-24b)."""


@dataclass(frozen=True, slots=True)
class PolicyVerdict:
    """What is to be done, and why."""

    step: PolicyStep
    reason: str
    policy: Policy | None = None
    """With USE."""
    failed: FetchFailed | None = None
    """The fetch whose failure led here; for TLS reports, which want it for every attempt."""
    trouble: str = ""
    """What is wrong with the record, the policy or the way to them, in words; empty: nothing."""


def failing_since(since: float, last: float, now: float) -> float:
    """Since when look-ups of a record fail, of which one fails now; before it they failed from `since` to `last`."""
    return since if now - last < OUTAGE_ENDS else now


def next_step(
    cached: CachedPolicy | None,
    record: StsRecord | NoRecord | DnsTrouble,
    failure: LastFailure | None,
    now: float,
) -> PolicyVerdict:
    """What to do for a delivery, by what is known before any fetch.

    `cached`: what the cache has for the policy domain, expired or not. `record`: what the DNS says now. `failure`: the
    last fetch, if it failed.
    """
    live = cached if cached is not None and now < cached.expires else None
    if isinstance(record, StsRecord):
        if live is not None and live.id == record.id:
            return _use(live, "as the record says")
        if failure is not None and failure.id == record.id and 0 <= now - failure.at < FETCH_AGAIN:
            # STS-18a: one dead host must not be asked for each message.
            return _failed(live, failure.failed)
        if live is not None:
            return PolicyVerdict(PolicyStep.FETCH, f"the record has the new id {record.id}")
        return PolicyVerdict(PolicyStep.FETCH, "the record says that there is a policy, and none is cached")
    if live is not None:
        # STS-16a: the record is only a hint that there is something new. What was promised holds.
        return replace(_use(live, record.reason), trouble=record.reason)
    if isinstance(record, NoRecord):
        trouble = record.reason if record.faulty else ""
        return PolicyVerdict(PolicyStep.WITHOUT, f"no MTA-STS policy: {record.reason}", trouble=trouble)
    return _without_dns(record, now)


def after_fetch(
    cached: CachedPolicy | None, record: StsRecord, fetched: Policy | FetchFailed, now: float
) -> tuple[PolicyVerdict, CachedPolicy | None]:
    """What to do after a fetch that ended now, and what the cache is to hold from now on.

    STS-25: a policy that was fetched replaces the cached one, a weaker one too: else nobody could leave MTA-STS. It is
    used for the delivery that waited for it, however short its life.
    """
    if isinstance(fetched, Policy):
        fresh = CachedPolicy(record.id, fetched, now)
        return _use(fresh, "just fetched"), fresh
    return _failed(cached if cached is not None and now < cached.expires else None, fetched), cached


def refresh_at(cached: CachedPolicy) -> float | None:
    """From when on a policy is fetched anew although no delivery asks for it (STS-19a): so that whoever blocks the
    policy host has to do it for the whole of max_age before a policy ends. None for one that lives too shortly."""
    life = cached.policy.max_age
    return None if life < SHORT_LIVED else cached.fetched + min(REFRESH, life / 2)


def is_reported(cached: CachedPolicy | None, now: float) -> bool:
    """Whether a failed fetch is told to the domain and to the operator (STS-20, STS-25): not while the policy that is
    cached says that the domain has left MTA-STS."""
    return cached is None or now >= cached.expires or cached.policy.mode is not Mode.NONE


def _use(cached: CachedPolicy, why: str) -> PolicyVerdict:
    return PolicyVerdict(PolicyStep.USE, f"MTA-STS policy {cached.id}, mode {cached.policy.mode}: {why}", cached.policy)


def _failed(live: CachedPolicy | None, failed: FetchFailed) -> PolicyVerdict:
    if live is None:
        # STS-15a: trust on first use. Nobody has told us yet what to insist on.
        reason = f"no MTA-STS policy is known, and it could not be fetched: {failed.reason}"
        return PolicyVerdict(PolicyStep.WITHOUT, reason, failed=failed, trouble=failed.reason)
    used = _use(live, f"still the cached one, since a new one could not be fetched: {failed.reason}")
    return replace(used, failed=failed, trouble=failed.reason)


def _without_dns(trouble: DnsTrouble, now: float) -> PolicyVerdict:
    # STS-24a: an attacker who can break one look-up must not thereby turn MTA-STS off for a domain that we meet for the
    # first time. But zones that cannot be asked for such a record are real, and their mail must not wait for ever.
    why = f"the DNS does not say whether there is an MTA-STS policy: {trouble.reason}"
    if trouble.refused:
        so = "its servers refuse this question alone, so it counts as none"
    elif now - trouble.since >= DEFER_LIMIT:
        so = f"for {DEFER_LIMIT / 3600:.0f} hours now, so it counts as none"
    else:
        return PolicyVerdict(PolicyStep.DEFER, why, trouble=trouble.reason)
    return PolicyVerdict(PolicyStep.WITHOUT, f"{why}; {so}", trouble=f"{trouble.reason}; {so}")
