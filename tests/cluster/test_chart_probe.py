"""The mail probe on the node: the operator of a plain installation sends it, and it arrives."""

import re

from cluster.rail import Rail

from testkit.conditions import wait_until

ARRIVED = re.compile(r'^mailrail_operator_mail_probes_total\{result="arrived"\} (\S+)$', re.MULTILINE)
READ = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9100/metrics').read().decode())"


def arrived(rail: Rail) -> float:
    """Probes that arrived, as the operators count them; only the leader sends any."""
    total = 0.0
    for pod in rail.pods("operator"):
        said = rail.kubectl("exec", pod["metadata"]["name"], "-c", "operator", "--", "python", "-c", READ)
        total += sum(map(float, ARRIVED.findall(said)))
    return total


def test_the_probe_of_a_plain_installation_arrives_and_leaves_no_trace_in_history(rail: Rail) -> None:
    wait_until(lambda: arrived(rail) >= 1, 150, lambda: f"a probe arrived\n{rail.tails()}")
    assert "probe.invalid" not in rail.cli("queue", "history", "--limit", "1000")
