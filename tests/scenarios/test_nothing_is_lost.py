"""kill -9 of each service and of Postgres in the middle of the traffic: every accepted message is delivered.

Promise 1 (design 1) and LSE-08. Each try to hand over a message carries an id of its own, so that afterwards
- every try that was answered 250 has arrived,
- none that was refused has arrived,
- one whose answer was lost has arrived or not (LSE-08 b: the client tries again, and that is its duplicate),
- and a second copy of one try is only there where its first delivery ran into a kill (LSE-08 a).

The number of messages comes from MAILRAIL_KILL_MESSAGES: 1,500 by default, 10,000 and more for a full run
(`MAILRAIL_KILL_MESSAGES=10000 make test ARGS=tests/scenarios/test_nothing_is_lost.py`).
"""

import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from testkit.collector import Collector
from testkit.conditions import wait_until
from testkit.processes import alive
from testkit.rail import Rail, basics, route, rule, transport
from testkit.traffic import Fate, Sender

MESSAGES = int(os.environ.get("MAILRAIL_KILL_MESSAGES", "1500"))
LEASE = 120 + 30  # seconds until a message whose lease was lost is due again (LSE-01, LSE-04)
BACK = 30  # seconds for what was killed to be back

pytestmark = pytest.mark.timeout(900 + MESSAGES // 10)


@dataclass(frozen=True)
class Kill:
    """When what was killed was gone."""

    victim: str
    at: float
    back: float


@pytest.fixture
def hop() -> Iterator[Collector]:
    with Collector() as sink:
        yield sink


@pytest.fixture
def rail(hop: Collector) -> Iterator[Rail]:
    documents = [
        *basics(),
        transport("hop", smtp={"host": hop.address, "port": hop.port}),
        route("all", ("MailGateway", "local"), rule("everything", "hop")),
    ]
    with Rail(documents) as running:
        yield running


def kill_and_wait(rail: Rail, victim: str) -> Kill:
    at = time.monotonic()
    pid = rail.kill(victim)
    rail.wait_until_back(victim, pid, within=BACK * 4)
    return Kill(victim, at, time.monotonic())


def judge(hop: Collector, sender: Sender, kills: list[Kill]) -> None:
    """Compare what was promised with what arrived."""
    traffic = sender.finish(180)
    assert traffic.given_up == 0, [one for one in traffic.tries if one.fate is not Fate.ACCEPTED][-5:]
    accepted, refused = traffic.ids(Fate.ACCEPTED), traffic.ids(Fate.REFUSED)
    receipts = hop.receipts
    copies = Counter(receipt.header("X-Try") for receipt in receipts)
    arrived = set(copies)
    lost = accepted - arrived
    assert not lost, f"{len(lost)} accepted messages did not arrive, such as {sorted(lost)[:5]}"
    assert not refused & arrived, f"refused and yet delivered: {sorted(refused & arrived)[:5]}"
    assert arrived <= accepted | traffic.ids(Fate.UNCERTAIN)
    assert len(accepted) == sender.messages
    for id_, count in copies.items():
        if count > 1:
            first = min(receipt.at for receipt in receipts if receipt.header("X-Try") == id_)
            # 3 s before: a result may wait for its batch and its commit, not longer.
            assert any(kill.at - 3 <= first <= kill.back + LEASE for kill in kills), (
                f"{id_} arrived {count} times, and nothing was killed about its first delivery"
            )
    doubled = sum(count - 1 for count in copies.values())
    uncertain = len(arrived & traffic.ids(Fate.UNCERTAIN))
    print(
        f"{sender.messages} messages, {len(traffic.tries)} tries; duplicates: "
        f"{doubled} by LSE-08 (a), {uncertain} by LSE-08 (b); killed: {', '.join(kill.victim for kill in kills)}"
    )


def after(hop: Collector, sender: Sender, count: int) -> None:
    """Wait until so many messages have come out at the other end (or all went in, where less is on the way)."""
    wait_until(
        lambda: len(hop) >= count or sender.accepted >= sender.messages,
        120 + sender.messages / 20,
        lambda: f"{count} messages came through; {len(hop)} did, {sender.accepted} were accepted",
    )


def test_every_service_and_postgres_killed_in_turn_loses_nothing_LSE_08(rail: Rail, hop: Collector) -> None:
    victims = ["ingress", "queue", "outbound", "config", "postgres"]
    sender = Sender(*rail.mx, messages=MESSAGES, recipient="r{n}x@partner.test", sessions=10)
    kills = []
    try:
        for number, victim in enumerate(victims, 1):
            after(hop, sender, MESSAGES * number // (len(victims) + 2))
            kills.append(kill_and_wait(rail, victim))
        sender.finish(300 + MESSAGES / 5)
        rail.wait_until_empty(LEASE + 60 + MESSAGES / 20)
        judge(hop, sender, kills)
    finally:
        sender.stop()


@pytest.mark.skipif(
    MESSAGES < 10_000, reason="MAILRAIL_KILL_MESSAGES is under 10000: the victims were killed in turn above"
)
@pytest.mark.parametrize("victim", ["ingress", "queue", "outbound", "config", "postgres"])
def test_one_victim_killed_three_times_loses_nothing_LSE_08(rail: Rail, hop: Collector, victim: str) -> None:
    sender = Sender(*rail.mx, messages=MESSAGES, recipient="r{n}x@partner.test", sessions=20)
    kills = []
    try:
        for number in (1, 2, 3):
            after(hop, sender, MESSAGES * number // 5)
            kills.append(kill_and_wait(rail, victim))
        sender.finish(300 + MESSAGES / 5)
        rail.wait_until_empty(LEASE + 60 + MESSAGES / 20)
        judge(hop, sender, kills)
    finally:
        sender.stop()


def test_a_clean_stop_and_start_keeps_what_is_queued(rail: Rail, hop: Collector) -> None:
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


def test_a_killed_supervisor_leaves_no_process_and_the_next_start_delivers(rail: Rail, hop: Collector) -> None:
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
