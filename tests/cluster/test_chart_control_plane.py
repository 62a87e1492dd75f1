"""CFG-07: with the operator and the API server down, mail flows on, and what runs out of the box may start again."""

import contextlib
import time
from pathlib import Path

import pytest
from cluster.ledger import LEASE, Break, judge
from cluster.rail import Rail
from cluster.release import api_server_away, kill_processes, node_processes, restarts
from cluster.stage import route

from testkit.conditions import wait_until

pytestmark = pytest.mark.timeout(900)

DOMAIN = "alone.partner.test"
AWAY = 15.0  # seconds
RESTART = 27.0  # seconds that a container may take; a node that is silent for 40 would be given up by the cluster
MESSAGES = 500


def test_mail_flows_while_the_operator_and_the_api_server_are_down_and_a_container_restarts_meanwhile_CFG_07(
    rail: Rail, capsys: pytest.CaptureFixture[str]
) -> None:
    victim = next((one for one in rail.pods("queue") if restarts(one) == 0), None)
    if victim is None:  # the kubelet lets a container wait that was started again before
        rail.kill("queue")
        victim = next(one for one in rail.pods("queue") if restarts(one) == 0)
    with rail.without_operator():
        run = rail.first.send(*rail.mx, messages=MESSAGES, recipient=f"r{{n}}@{DOMAIN}", sessions=5, pace=0.2)
        run.wait_for(20, 180)
        with api_server_away():
            began = time.time()
            killed = kill_processes(victim["metadata"]["uid"])
            if killed:  # the kubelet alone has to start it again, and it has no configuration but what config gives it
                wait_until(
                    lambda: any(pid not in killed and serves(pid) for pid in node_processes(victim["metadata"]["uid"])),
                    RESTART,
                    "the kubelet has started the container again",
                )
            wait_until(lambda: time.time() - began >= AWAY, AWAY + 5, "the API server has been away for long enough")
            ended = time.time()
        run.finish(300)
    rail.wait_until_empty(LEASE + 90)
    arrivals = rail.first.seen(DOMAIN)
    meanwhile = [one for one in arrivals if began <= one.at <= ended]
    taken = [at for _, fate, _, at in run.tries() if fate == "accepted" and began <= at <= ended]
    verdict = judge(run.tries(), arrivals, MESSAGES, [Break("queue", began, ended)])
    with capsys.disabled():
        print(
            f"\nAPI server away for {ended - began:.0f} s: {len(taken)} messages taken in, {len(meanwhile)} delivered; "
            f"{verdict}"
        )
    assert len(taken) > 50
    assert len(meanwhile) > 50


def serves(pid: int) -> bool:
    """Whether a process is one of our services."""
    with contextlib.suppress(OSError):
        return b"serve" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return False


def test_a_change_that_was_made_while_no_operator_ran_goes_live_when_one_is_back(rail: Rail) -> None:
    try:
        with rail.without_operator():
            rail.apply(rail.smtp("second"), route("late", "second", parent="MailGateway/mx1"))
            assert {c["reason"] for c in rail.get("mroute", "late")["status"]["conditions"]} == {"Pending"}
        rail.ready("mroute/late")
        assert rail.submit("late@elsewhere.test").accepted
        rail.partners["second"].wait_for("late@elsewhere.test", 60, rail.tails)
    finally:
        rail.kubectl("delete", "mroute/late")
