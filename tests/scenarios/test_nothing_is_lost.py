"""kill -9 of each service and of Postgres in the middle of the traffic: every accepted message is delivered.

Promise 1 (design 1) and LSE-08. Each try to hand over a message carries an id of its own, so that afterwards
- every try that was answered 250 has arrived,
- none that was refused has arrived,
- one whose answer was lost has arrived or not (LSE-08 b: the client tries again, and that is its duplicate),
- and a second copy of one try is only there where its first delivery ran into a kill (LSE-08 a).

`make test` kills all in turn; `make test-long` does it with more messages, and kills each victim three times.
"""

import time
from dataclasses import dataclass

import pytest

from testkit.conditions import wait_until
from testkit.guards import books, short_and_long
from testkit.next_hop import NextHop
from testkit.processes import alive
from testkit.rail import Rail
from testkit.traffic import Fate, Sender

MESSAGES, MANY = 1500, 10_000
LEASE = 120 + 30  # seconds until a message whose lease was lost is due again (LSE-01, LSE-04)
BACK = 30  # seconds for what was killed to be back


@dataclass(frozen=True)
class Kill:
    """When what was killed was gone."""

    victim: str
    at: float
    back: float


def kill_and_wait(rail: Rail, victim: str) -> Kill:
    at = time.monotonic()
    pid = rail.kill(victim)
    rail.wait_until_back(victim, pid, within=BACK * 4)
    return Kill(victim, at, time.monotonic())


def judge(hop: NextHop, sender: Sender, kills: list[Kill]) -> None:
    """Compare what was promised with what arrived."""
    traffic = sender.finish(180)
    assert traffic.given_up == 0, [one for one in traffic.tries if one.fate is not Fate.ACCEPTED][-5:]
    found = books(traffic, hop.messages)
    # 3 s before: a result may wait for its batch and its commit, not longer.
    found.check(may_double=lambda first: any(kill.at - 3 <= first <= kill.back + LEASE for kill in kills))
    assert len(found.accepted) == sender.messages
    print(f"{sender.messages} messages, {len(traffic.tries)} tries: {found}")


def after(hop: NextHop, sender: Sender, count: int) -> None:
    """Wait until so many messages have come out at the other end (or all went in, where less is on the way)."""
    wait_until(
        lambda: len(hop) >= count or sender.accepted >= sender.messages,
        120 + sender.messages / 20,
        lambda: f"{count} messages came through; {len(hop)} did, {sender.accepted} were accepted",
    )


@short_and_long("messages", MESSAGES, MANY, short_minutes=17, long_minutes=35)
def test_every_service_and_postgres_killed_in_turn_loses_nothing_LSE_08_SOUT_16(
    rail: Rail, hop: NextHop, messages: int
) -> None:
    victims = ["ingress", "queue", "outbound", "config", "postgres"]
    sender = Sender(*rail.mx, messages=messages, recipient="r{n}x@partner.test", sessions=10)
    kills = []
    try:
        for number, victim in enumerate(victims, 1):
            after(hop, sender, messages * number // (len(victims) + 2))
            kills.append(kill_and_wait(rail, victim))
        sender.finish(300 + messages / 5)
        rail.wait_until_empty(LEASE + 60 + messages / 20)
        judge(hop, sender, kills)
    finally:
        sender.stop()


@pytest.mark.long
@pytest.mark.timeout(35 * 60)
@pytest.mark.parametrize("victim", ["ingress", "queue", "outbound", "config", "postgres"])
def test_one_victim_killed_three_times_loses_nothing_LSE_08(rail: Rail, hop: NextHop, victim: str) -> None:
    sender = Sender(*rail.mx, messages=MANY, recipient="r{n}x@partner.test", sessions=20)
    kills = []
    try:
        for number in (1, 2, 3):
            after(hop, sender, MANY * number // 5)
            kills.append(kill_and_wait(rail, victim))
        sender.finish(300 + MANY / 5)
        rail.wait_until_empty(LEASE + 60 + MANY / 20)
        judge(hop, sender, kills)
    finally:
        sender.stop()


@pytest.mark.timeout(900)
def test_a_clean_stop_and_start_keeps_what_is_queued(rail: Rail, hop: NextHop) -> None:
    hop.refuse("@later.test", "451 4.3.0 not now")
    sender = Sender(*rail.mx, messages=50, recipient="r{n}-x@later.test", sessions=5)
    try:
        sender.finish(180)
        wait_until(lambda: rail.queued() == 50, 60, "all wait in the queue")
        rail.restart()
        assert rail.queued() == 50
        hop.accept("@later.test")
        rail.wait_until_empty(120)
        judge(hop, sender, [])
    finally:
        sender.stop()


@pytest.mark.timeout(900)
def test_a_killed_supervisor_leaves_no_process_and_the_next_start_delivers(rail: Rail, hop: NextHop) -> None:
    hop.refuse("@later.test", "451 4.3.0 not now")
    sender = Sender(*rail.mx, messages=20, recipient="r{n}-x@later.test", sessions=5)
    try:
        sender.finish(180)
        family = rail.program.descendants()
        rail.program.kill()
        wait_until(lambda: not any(map(alive, family)), 60, "no child is left")
        hop.accept("@later.test")
        rail.start_again()
        rail.wait_until_empty(LEASE + 60)
        judge(hop, sender, [])
    finally:
        sender.stop()
