"""The life of a recipient as one table: its states, and what leads from each to the next (design 4; LSE, FIN, ADM).

The statements of the queue carry it out. `tests/integration/queue/test_life.py` drives each of them from each state and
compares what the database says with this table, and docs/reference/recipient-life.md is made from it. Where the table
lists no next state, the statement changes nothing.

A request that comes while an attempt runs is noted on the row and applies when the attempt ends (ADM-02): the recipient
stays leased until then.
"""

from enum import StrEnum


class State(StrEnum):
    """Where a recipient is. The last three are final."""

    QUEUED = "queued"
    HELD = "held"
    LEASED = "leased"
    DELIVERED = "delivered"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Event(StrEnum):
    """What happens to a recipient."""

    ACCEPT = "accept"
    ACCEPT_LEASED = "accept-leased"
    ACCEPT_HELD = "accept-held"
    LEASE = "lease"
    BACK_OFF = "back-off"
    DELIVER = "deliver"
    DELIVER_LATE = "deliver-late"
    FAIL = "fail"
    GIVE_UP = "give-up"
    DEFER = "defer"
    DEFER_HELD = "defer-held"
    NEXT_ROUTE = "next-route"
    UNDO = "undo"
    EXPIRE = "expire"
    EXPIRE_HELD = "expire-held"
    LOSE = "lose"
    HOLD = "hold"
    HOLD_CORRUPT = "hold-corrupt"
    UNHOLD = "unhold"
    ADMIN_FAIL = "admin-fail"
    ADMIN_DROP = "admin-drop"


MEANINGS: dict[State | Event, str] = {
    State.QUEUED: "waits for its next attempt, which may be due",
    State.HELD: "on hold: waits for an administrator, and this time counts for no lifetime",
    State.LEASED: "an attempt runs under a token",
    State.DELIVERED: "final: delivered, relayed or captured",
    State.FAILED: "final: bounced, expired or failed by an administrator",
    State.CANCELLED: "final: dropped by an administrator, and no DSN is sent",
    Event.ACCEPT: "the message is stored (SHD-02)",
    Event.ACCEPT_LEASED: "the message is stored with its first lease: the recipient is born leased (LSE-06)",
    Event.ACCEPT_HELD: "the message is stored, and a hold rule matches",
    Event.LEASE: "the owner of its shard commits an attempt (LSE-01)",
    Event.BACK_OFF: "its site is in backoff or its transport missing: a counted attempt without a dial (SHD-05)",
    Event.DELIVER: "outbound, or the built-in mailbox, delivered it (FIN-01)",
    Event.DELIVER_LATE: "a delivery under an old token: a newer lease is revoked (LSE-03)",
    Event.FAIL: "the attempt was the last, or the reply final (FIN-01)",
    Event.GIVE_UP: "its lifetime ended without a dial, or it was interrupted once too often (LSE-04)",
    Event.DEFER: "the attempt ended with a temporary failure",
    Event.DEFER_HELD: "the same, after a hold came during the attempt (ADM-02)",
    Event.NEXT_ROUTE: "no host of the transport takes the message: due at once by the next rule (SOUT-18c)",
    Event.UNDO: "outbound did not dial: the attempt is undone (LSE-04)",
    Event.EXPIRE: "the lease ran out: the attempt was interrupted (LSE-04)",
    Event.EXPIRE_HELD: "the same, after a hold came during the attempt (ADM-02)",
    Event.LOSE: "the outbound process came back and does not work on it (LSE-02)",
    Event.HOLD: "an administrator holds it; during an attempt that is noted (ADM-02)",
    Event.HOLD_CORRUPT: "it cannot be read or written: the queue holds it",
    Event.UNHOLD: "an administrator releases it",
    Event.ADMIN_FAIL: "an administrator fails it; during an attempt that is noted, and outbound aborts (ADM-02)",
    Event.ADMIN_DROP: "an administrator drops it; during an attempt that is noted, and outbound aborts (ADM-02)",
}

FINAL = frozenset({State.DELIVERED, State.FAILED, State.CANCELLED})
LIVE = frozenset(State) - FINAL

STEPS: dict[tuple[State | None, Event], State] = {
    (None, Event.ACCEPT): State.QUEUED,
    (None, Event.ACCEPT_LEASED): State.LEASED,
    (None, Event.ACCEPT_HELD): State.HELD,
    (State.QUEUED, Event.LEASE): State.LEASED,
    (State.QUEUED, Event.BACK_OFF): State.QUEUED,
    (State.QUEUED, Event.DELIVER_LATE): State.DELIVERED,
    (State.QUEUED, Event.GIVE_UP): State.FAILED,
    (State.QUEUED, Event.HOLD): State.HELD,
    (State.QUEUED, Event.HOLD_CORRUPT): State.HELD,
    (State.QUEUED, Event.ADMIN_FAIL): State.FAILED,
    (State.QUEUED, Event.ADMIN_DROP): State.CANCELLED,
    (State.HELD, Event.UNHOLD): State.QUEUED,
    (State.HELD, Event.DELIVER_LATE): State.DELIVERED,
    (State.HELD, Event.ADMIN_FAIL): State.FAILED,
    (State.HELD, Event.ADMIN_DROP): State.CANCELLED,
    (State.LEASED, Event.DELIVER): State.DELIVERED,
    (State.LEASED, Event.DELIVER_LATE): State.DELIVERED,
    (State.LEASED, Event.FAIL): State.FAILED,
    (State.LEASED, Event.DEFER): State.QUEUED,
    (State.LEASED, Event.DEFER_HELD): State.HELD,
    (State.LEASED, Event.NEXT_ROUTE): State.QUEUED,
    (State.LEASED, Event.UNDO): State.QUEUED,
    (State.LEASED, Event.EXPIRE): State.QUEUED,
    (State.LEASED, Event.EXPIRE_HELD): State.HELD,
    (State.LEASED, Event.LOSE): State.QUEUED,
    (State.LEASED, Event.HOLD): State.LEASED,
    (State.LEASED, Event.HOLD_CORRUPT): State.HELD,
    (State.LEASED, Event.ADMIN_FAIL): State.LEASED,
    (State.LEASED, Event.ADMIN_DROP): State.LEASED,
}
"""Who enters and leaves each state. None is "not stored yet"; no final state has a way out."""
