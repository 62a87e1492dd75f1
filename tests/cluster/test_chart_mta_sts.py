"""The MTA-STS policy of a domain in a cluster: from its object to whoever asks, and its record after it (STS-23b)."""

import json
from typing import Any

import pytest
from cluster.rail import Rail
from cluster.release import NAME, is_ready

from testkit.conditions import wait_until

pytestmark = pytest.mark.timeout(600)

_ASK = """
import sys, urllib.error, urllib.request
where, host = sys.argv[1:]
asked = urllib.request.Request(f"http://{where}/.well-known/mta-sts.txt", headers={"Host": host})
try:
    print(urllib.request.urlopen(asked, timeout=10).read().decode(), end="")
except urllib.error.HTTPError as error:
    print(error.code, end="")
"""


def served(rail: Rail, where: str) -> str:
    """What a stranger in the cluster is told there."""
    return rail.kubectl("exec", "second", "--", "python", "-c", _ASK, where, "mta-sts.example.org")


def wait_until_served(rail: Rail, where: str, text: str) -> None:
    """Until that is what is told there, whatever its line ends are on the way through kubectl."""
    wait_until(lambda: served(rail, where).replace("\r", "") == text, 60, rail.tails)


def say(rail: Rail, policy: dict[str, Any] | None) -> None:
    rail.kubectl("patch", "maildomain", "org", "--type=merge", "-p", json.dumps({"spec": {"mtaSts": policy}}))


def test_every_pod_serves_the_policy_of_a_domain_and_its_record_is_told_then_STS_23b(rail: Rail) -> None:
    pods = rail.pods("policy")
    assert len(pods) == 2
    assert all(is_ready(pod) for pod in pods)
    service = f"{NAME}-policy.{rail.kubectl.namespace}"
    assert served(rail, service) == "404"
    try:
        for mode in ("Testing", "Enforce"):
            say(rail, {"mode": mode, "mx": ["mx1.example.org"], "maxAgeSeconds": 86400})
            policy = f"version: STSv1\nmode: {mode.lower()}\nmx: mx1.example.org\nmax_age: 86400\n"
            for pod in pods:
                wait_until_served(rail, f"{pod['status']['podIP']}:8080", policy)
            wait_until_served(rail, service, policy)

            def told(mode: str = mode.lower()) -> str | None:
                (row,) = rail.cli_json("config", "mta-sts")
                return row["record"] if row["mode"] == mode else None

            assert "_mta-sts.example.org. IN TXT" in wait_until(told, 60, rail.tails)
    finally:
        say(rail, None)
        wait_until_served(rail, service, "404")
