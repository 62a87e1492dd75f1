"""The life of a recipient as one table: its states, and who enters and leaves each (design 4; LSE, FIN, ADM).

`step` is the only way from one state to the next. What the table does not list cannot happen: it raises `IllegalStep`
and changes nothing. Hold, schedule, transport and TLS changes of a leased recipient are noted beside the state and take
effect when the attempt ends (ADM-02), which is why DEFERRED leads to HELD when a hold waits.
"""

from enum import StrEnum


class State(StrEnum):
    """Where a recipient is. The last three are final."""

    QUEUED = "queued"  # waits for its next attempt, which may be due
    HELD = "held"  # waits for an administrator; its time does not count (design 4, Attempt)
    LEASED = "leased"  # an attempt runs under a token
    DELIVERED = "delivered"  # delivered, relayed or captured; `outcome` says which
    FAILED = "failed"
    CANCELLED = "cancelled"  # dropped by an administrator


class Event(StrEnum):
    """What happens to a recipient."""

    ACCEPT = "accept"  # stored due (SHD-02)
    ACCEPT_LEASED = "accept-leased"  # stored with its first lease (born leased)
    ACCEPT_HELD = "accept-held"  # a hold rule matches
    LEASE = "lease"  # the owner commits an attempt (LSE-01)
    BACKOFF = "backoff"  # a counted attempt without a dial: its site is in backoff (SHD-05)
    DELIVER = "deliver"
    DEFER = "defer"
    DEFER_HELD = "defer-held"  # deferred or interrupted while a hold was pending (ADM-02)
    FAIL = "fail"
    EXPIRE = "expire"  # the lease ran out (LSE-04)
    UNDO = "undo"  # outbound did not dial: the attempt is undone (LSE-04)
    LATE_DELIVERY = "late-delivery"  # delivered under an old token (LSE-03)
    HOLD = "hold"
    UNHOLD = "unhold"
    ADMIN_FAIL = "admin-fail"
    ADMIN_DROP = "admin-drop"


class IllegalStep(RuntimeError):
    """The table has no such transition: our own mistake, not the mail's."""


FINAL = frozenset({State.DELIVERED, State.FAILED, State.CANCELLED})
LIVE = frozenset(State) - FINAL

STEPS: dict[tuple[State | None, Event], State] = {
    (None, Event.ACCEPT): State.QUEUED,
    (None, Event.ACCEPT_LEASED): State.LEASED,
    (None, Event.ACCEPT_HELD): State.HELD,
    (State.QUEUED, Event.LEASE): State.LEASED,
    (State.QUEUED, Event.BACKOFF): State.QUEUED,
    (State.QUEUED, Event.FAIL): State.FAILED,  # the attempt without a dial was the last (4.4.7), or a `fail` transport
    (State.QUEUED, Event.DELIVER): State.DELIVERED,  # into the built-in mailbox, in one transaction
    (State.QUEUED, Event.HOLD): State.HELD,
    (State.QUEUED, Event.ADMIN_FAIL): State.FAILED,
    (State.QUEUED, Event.ADMIN_DROP): State.CANCELLED,
    (State.QUEUED, Event.LATE_DELIVERY): State.DELIVERED,
    (State.HELD, Event.UNHOLD): State.QUEUED,
    (State.HELD, Event.ADMIN_FAIL): State.FAILED,
    (State.HELD, Event.ADMIN_DROP): State.CANCELLED,
    (State.HELD, Event.LATE_DELIVERY): State.DELIVERED,
    (State.LEASED, Event.DELIVER): State.DELIVERED,
    (State.LEASED, Event.LATE_DELIVERY): State.DELIVERED,  # revokes the newer lease
    (State.LEASED, Event.DEFER): State.QUEUED,
    (State.LEASED, Event.DEFER_HELD): State.HELD,
    (State.LEASED, Event.FAIL): State.FAILED,
    (State.LEASED, Event.EXPIRE): State.QUEUED,
    (State.LEASED, Event.UNDO): State.QUEUED,
    (State.LEASED, Event.ADMIN_FAIL): State.FAILED,  # requested before, granted when outbound aborted (ADM-02)
    (State.LEASED, Event.ADMIN_DROP): State.CANCELLED,
}
"""Who enters and leaves each state. None is "not stored yet"; no final state has a way out."""


def step(state: State | None, event: Event) -> State:
    """The next state. Raises IllegalStep for what the table does not know, and has no effect then."""
    try:
        return STEPS[state, event]
    except KeyError:
        raise IllegalStep(f"a recipient that is {state or 'not stored'} cannot {event}") from None
