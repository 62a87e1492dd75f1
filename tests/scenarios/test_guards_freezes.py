"""Queue, outbound and Postgres stop for longer than a lease and go on: nothing lost, doubled or bounced.

A machine that swaps, a virtual machine that is moved, a debugger: a process that stands still does not know how long it
did. Whoever held a lease has lost it meanwhile, and acts on what he believed (LSE-02): no final dot may be sent under a
lease that is lost. What had its final dot before the freeze, and no answer read, may come twice (LSE-08 a).
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from testkit.conditions import wait_until
from testkit.guards import Books, books, short_and_long
from testkit.next_hop import NextHop
from testkit.rail import Rail, basics, everything_through
from testkit.traffic import Fate, Sender, Traffic

BEYOND = 1.25  # times a lease


@dataclass(frozen=True)
class Freeze:
    """When a process stood still."""

    victim: str
    at: float
    """When it was told to stop; until `stopped` some of it went on."""
    stopped: float
    thawed: float


@contextmanager
def running_rail(hop: NextHop, lease: float) -> Iterator[Rail]:
    """A Rail whose leases last so many seconds, and what depends on them in the same proportion as shipped."""
    documents = [
        *basics(),
        *everything_through(hop.address, hop.port),
    ]
    settings = {
        "MAILRAIL_QUEUE_LEASE_SECONDS": lease,
        "MAILRAIL_QUEUE_HANDOUT_SECONDS": lease / 2,
        "MAILRAIL_QUEUE_SWEEP_SECONDS": lease / 12,
        # Far shorter than shipped: ingress gives up, and what it answered 451 must not come when the queue goes on.
        "MAILRAIL_INGRESS_ANSWER_TIMEOUT": lease / 6,
        "MAILRAIL_OUTBOUND_LEASE_MARGIN": lease / 4,
        "MAILRAIL_OUTBOUND_ALIVE_SECONDS": lease / 6,
    }
    with Rail(documents, settings={name: str(value) for name, value in settings.items()}) as rail:
        yield rail


def freeze(rail: Rail, victim: str, seconds: float) -> Freeze:
    """Let a process stand still for so long."""
    at = time.monotonic()
    with rail.frozen(victim):
        stopped = time.monotonic()
        time.sleep(seconds)  # the freeze itself: there is nothing to wait for
    return Freeze(victim, at, stopped, time.monotonic())


def settle(rail: Rail, hop: NextHop, sender: Sender, lease: float) -> Books:
    """Wait until all is delivered; what became of it."""
    traffic = sender.finish(180)
    rail.wait_until_empty(60 + 3 * lease)
    assert traffic.given_up == 0
    assert len(traffic.ids(Fate.ACCEPTED)) == sender.messages
    return books(traffic, hop.messages)


@short_and_long("lease", 6, 120)
def test_each_frozen_beyond_a_lease_in_the_middle_of_the_traffic_loses_nothing(hop: NextHop, lease: float) -> None:
    freezes = []
    with running_rail(hop, lease) as rail:
        sender = Sender(*rail.mx, messages=1_000_000, recipient="r{n}x@partner.test", sessions=8, pace=0.02)
        try:
            for victim in ("queue", "outbound", "postgres"):
                wait_for_more(hop, 100, 60 + 2 * lease)
                freezes.append(freeze(rail, victim, BEYOND * lease))
            wait_for_more(hop, 100, 60 + 2 * lease)
            sender.enough()
            found = settle(rail, hop, sender, lease)
        finally:
            sender.stop()
    print(f"{found}; {len(found.refused)} put off")
    storing = [f for f in freezes if f.victim != "outbound"]
    late = [c for c in found.refused if any(f.stopped < found.began[c] < f.thawed for f in storing)]
    assert late, (
        "nobody who began during a freeze was answered 451: nothing shows that such mail does not come all the same"
    )
    found.check(
        # Outbound alone can have sent a final dot of which nobody knows how it ended.
        may_double=lambda first: any(f.victim == "outbound" and f.at - 3 <= first <= f.thawed for f in freezes),
        # Postgres had begun to store it, and nobody could be asked what came of that.
        may_come=lambda began: any(f.at - 3 <= began <= f.stopped for f in storing),
    )


@short_and_long("lease", 6, 120)
def test_a_thawed_outbound_sends_no_final_dot_under_a_lease_that_it_lost_LSE_02(hop: NextHop, lease: float) -> None:
    hop.answers.delays["RCPT"] = lease / 2
    with running_rail(hop, lease) as rail:
        begun = Sender(*rail.mx, messages=40, recipient="begun{n}x@partner.test", sessions=8)
        unread = None
        try:
            begun.finish(60)
            wait_until(lambda: tried(hop, begun) >= 3, 60, "outbound waits for replies to RCPT")
            with rail.frozen("outbound"):
                frozen = time.monotonic()
                caught = {to for to in recipients(begun) if hop.attempts(to)}
                unread = Sender(*rail.mx, messages=40, recipient="unread{n}x@partner.test", sessions=8)
                unread.finish(60)
                time.sleep(max(0.0, BEYOND * lease - (time.monotonic() - frozen)))
                assert not hop.messages, "a message went through while outbound stood still"
            hop.answers.delays["RCPT"] = 0.0
            for sender in (begun, unread):
                settle(rail, hop, sender, lease)
        finally:
            begun.stop()
            if unread is not None:
                unread.stop()
        found = books(Traffic(begun.traffic.tries + unread.traffic.tries), hop.messages)
    print(f"{found}; {len(caught)} under way when outbound stood still")
    found.check()
    again = [to for to in caught if hop.attempts(to) > 1]
    assert again, f"none of {sorted(caught)} was tried again: their final dots were sent under leases that were lost"


def recipients(sender: Sender) -> list[str]:
    """Whom it has sent to so far."""
    return [to for one in list(sender.traffic.tries) for to in one.recipients]


def tried(hop: NextHop, sender: Sender) -> int:
    """For how many of its recipients RCPT was said."""
    return sum(hop.attempts(to) > 0 for to in recipients(sender))


def wait_for_more(hop: NextHop, count: int, within: float) -> None:
    """Wait until so many messages more came."""
    already = len(hop)
    wait_until(lambda: len(hop) >= already + count, within, lambda: f"{count} more came; {len(hop) - already} did")
