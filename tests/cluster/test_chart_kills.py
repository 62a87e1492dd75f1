"""Promise 1 in real pods: whatever is killed with mail in flight, every message that was answered 250 arrives.

Promise 4 besides: pods hold no mail, so a killed pod is replaced by another one, which starts with nothing.
"""

import os

import pytest
from cluster.ledger import LEASE, Break, judge
from cluster.rail import Rail
from cluster.release import SERVICES

from testkit.conditions import wait_until

MESSAGES = int(os.environ.get("MAILRAIL_KILL_MESSAGES", "300"))  # for each victim
DOMAIN = "kills.partner.test"

pytestmark = pytest.mark.timeout(1200 + MESSAGES)


def test_each_pod_and_postgres_killed_with_mail_in_flight_loses_nothing_LSE_08(
    rail: Rail, capsys: pytest.CaptureFixture[str]
) -> None:
    victims = (*SERVICES, "postgres", "volume")  # Postgres in its pod, and the pod, another of which takes its volume
    runs, breaks = {}, list[Break]()
    rail.first.slow(0.5)  # at any moment the final dots of some twenty messages are sent and not yet answered
    for victim in victims:
        run = rail.first.send(
            *rail.mx, messages=MESSAGES, recipient=f"{victim}-{{n}}@{DOMAIN}", sessions=10, per_connection=3, pace=0.2
        )
        run.wait_for(MESSAGES // 3, 240)
        if victim == "postgres":
            breaks.append(rail.kill_postgres())
        else:
            breaks.append(rail.kill("postgres" if victim == "volume" else victim))
        runs[victim] = run
    for run in runs.values():
        run.finish(300)
    rail.first.slow(0)
    rail.wait_until_empty(LEASE + 90)
    arrivals = rail.first.seen(DOMAIN)
    for victim, run in runs.items():
        its = [one for one in arrivals if one.recipients[0].startswith(f"{victim}-")]
        try:
            verdict = judge(run.tries(), its, MESSAGES, breaks)
        except AssertionError as error:
            raise AssertionError(f"{victim}: {error}\n{rail.tails()}") from None
        with capsys.disabled():
            print(f"\n{victim} killed: {verdict}", end="")


def test_mail_that_waits_in_the_queue_survives_the_end_of_every_pod_of_ours(rail: Rail) -> None:
    rail.first.refuse(f"@{DOMAIN}", "451 4.3.0 not now")
    run = rail.first.send(*rail.mx, messages=20, recipient=f"kept-{{n}}@{DOMAIN}", sessions=4)
    try:
        run.finish(180)
        wait_until(lambda: rail.queued() >= 20, 60, rail.tails)
        breaks = []
        for component in SERVICES:
            for pod in rail.pods(component):  # by name: the one that replaced the first may be first in order now
                breaks.append(rail.kill(component, pod["metadata"]["name"]))
        # The queue has been replaced, and who asks it may know addresses of before for a moment.
        wait_until(lambda: rail.queued() >= 20, 60, rail.tails)
    finally:
        rail.first.accept(f"@{DOMAIN}")
    rail.wait_until_empty(LEASE + 90)
    its = [one for one in rail.first.seen(DOMAIN) if one.recipients[0].startswith("kept-")]
    judge(run.tries(), its, 20, breaks)
