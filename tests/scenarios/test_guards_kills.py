"""Connections to Postgres ended over and over, and Postgres crashed, under load: nothing lost, doubled or bounced.

A queue whose connection ends in the middle of a transaction does not know whether it was committed; it has to find out
before it answers (ACC-04), and what an outbound has delivered must be written all the same (LSE-02). Large bodies are
among the mail, because they are stored in several transactions (ACC-05).
"""

import os
import random
import signal
import time
from collections import Counter

import psycopg

from testkit.conditions import wait_until
from testkit.guards import books, short_and_long
from testkit.next_hop import NextHop
from testkit.rail import Rail
from testkit.traffic import Sender

LARGE = 1100 * 1024  # octets; bodies above 1 MiB are sent in chunks, of which these have several
PAUSE = 0.4  # seconds between two ended connections


def end_one_connection(rail: Rail, ended: Counter[str]) -> None:
    """End the connection of the lane that was ended least often so far."""
    try:
        there = {
            application: pid
            for pid, application in rail.sql(
                "SELECT pid, application_name FROM pg_stat_activity"
                " WHERE backend_type = 'client backend' AND application_name LIKE 'mailrail%'"
            )
        }
        if there:
            rarest = min(there, key=lambda application: (ended[application], random.random()))
            rail.sql("SELECT pg_terminate_backend(%s)", there[rarest])
            ended[rarest] += 1
    except psycopg.OperationalError:
        pass  # Postgres recovers


def crash_postgres(rail: Rail, hop: NextHop) -> None:
    """SIGQUIT to the postmaster: it ends all backends at once, writes no checkpoint, and the next start recovers."""
    pid, already = rail.pid("postgres"), len(hop)
    os.kill(pid, signal.SIGQUIT)
    rail.wait_until_back("postgres", pid, within=120)
    wait_until(lambda: len(hop) > already + 20, 60, "mail flows again")


@short_and_long("seconds", 8, 60, short_minutes=6)
def test_connections_ended_on_every_lane_and_a_crashed_postgres_lose_and_double_nothing(
    rail: Rail, hop: NextHop, seconds: float
) -> None:
    sender = Sender(
        *rail.mx,
        messages=1_000_000,
        recipient="r{n}-{k}@partner.test",
        recipients=2,
        sessions=8,
        size=lambda number: LARGE if number % 10 == 0 else 1024,
        pace=0.05,
    )
    ended: Counter[str] = Counter()
    try:
        wait_until(lambda: len(hop) >= 20, 60, "mail flows")
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            end_one_connection(rail, ended)
            time.sleep(PAUSE)
        for _ in range(2):
            crash_postgres(rail, hop)
        sender.enough()
        traffic = sender.finish(180)
        rail.wait_until_empty(180)
    finally:
        sender.stop()
    found = books(traffic, hop.messages)
    print(f"{found}; connections ended: {dict(ended)}")
    found.check()
    assert traffic.given_up == 0
    assert len(found.accepted) == 2 * sender.messages
    lanes = [name for name in ended if name.startswith("mailrail queue")]
    assert len(lanes) > 5, f"of the queue's lanes only {lanes} were met"
    (orphans,) = rail.sql(
        "SELECT count(*) FROM queue.chunk AS c"
        " WHERE NOT EXISTS (SELECT FROM queue.message AS m WHERE m.id = c.message_id)"
        " AND NOT EXISTS (SELECT FROM queue.upload AS u WHERE u.message_id = c.message_id)"
    )
    assert orphans == (0,), "chunks of large bodies that belong to nothing"
