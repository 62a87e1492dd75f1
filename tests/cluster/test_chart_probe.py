"""The mail probe on the node: the operator of a plain installation sends it, and it arrives."""

import re
from datetime import UTC, datetime, timedelta

from cluster.rail import Rail

from mailrail_queue.settings import QueueSettings

from testkit.conditions import wait_until

ARRIVED = re.compile(r'^mailrail_operator_mail_probes_total\{result="arrived"\} (\S+)$', re.MULTILINE)
READ = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9100/metrics').read().decode())"
KEPT = timedelta(seconds=QueueSettings.keep_content_seconds)
"""For so long the operator may ask for a probe that arrived; then it is swept."""


def arrived(rail: Rail) -> float:
    """Probes that arrived, as the operators count them; only the leader sends any."""
    total = 0.0
    for pod in rail.pods("operator"):
        said = rail.kubectl("exec", pod["metadata"]["name"], "-c", "operator", "--", "python", "-c", READ)
        total += sum(map(float, ARRIVED.findall(said)))
    return total


def in_history(rail: Rail) -> dict[str, datetime]:
    """The probes in history, with the time at which each arrived."""
    found = rail.cli_json("queue", "history", "--to", ".probe.invalid", "--limit", "1000")
    return {one["id"]: datetime.fromisoformat(one["finished"]) for one in found}


def test_the_probe_of_a_plain_installation_arrives_and_leaves_no_trace_in_history(rail: Rail) -> None:
    others, count = set(in_history(rail)), arrived(rail)
    wait_until(lambda: arrived(rail) > count, 150, lambda: f"a probe arrived\n{rail.tails()}")
    wait_until(lambda: in_history(rail).keys() <= others, 60, lambda: f"it was taken; left: {in_history(rail)}")


def test_a_probe_that_nobody_took_is_not_kept_in_history(rail: Rail) -> None:
    # Whatever was restarted before: the operator, between the 250 and its question, or the queue.
    wait_until(
        lambda: all(datetime.now(UTC) - at < KEPT for at in in_history(rail).values()),
        120,
        lambda: f"no probe is older than {KEPT}; there are {in_history(rail)}",
    )
