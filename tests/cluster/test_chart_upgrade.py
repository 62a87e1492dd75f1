"""An upgrade and a rollback, with mail coming in all the while: none is lost, and none is refused for good."""

import time
from typing import Any

import pytest
from cluster.ledger import Break, silence
from cluster.rail import VALUES, Rail
from cluster.release import SERVICES

pytestmark = pytest.mark.timeout(1500)

DOMAIN = "upgrade.partner.test"


def test_helm_upgrade_and_rollback_under_load_lose_nothing(rail: Rail, capsys: pytest.CaptureFixture[str]) -> None:
    revision = rail.revision()
    before = {one["metadata"]["name"] for one in rail.pods()}
    breaks = []
    with rail.traffic(f"r{{n}}@{DOMAIN}", per_connection=10) as run:
        run.wait_for(20, 180)
        for action in ("upgrade", "rollback"):
            began = time.time()
            if action == "upgrade":
                changed = {one: {**VALUES[one], "podAnnotations": {"test/turn": "two"}} for one in SERVICES}
                rail.upgrade({**VALUES, **changed})
            else:
                rail.rollback(revision)
            rail.wait_until_ready()  # helm counts those that are Ready and does not wait for older ones to go
            breaks.append(Break(action, began, time.time()))
            # Every pod was replaced: this was an upgrade and not a word about one.
            kept = before & {one["metadata"]["name"] for one in rail.pods() if is_service(one)}
            assert not kept, kept
            before = {one["metadata"]["name"] for one in rail.pods() if is_service(one)}
    verdict = rail.counted(run, DOMAIN, breaks, within=300)
    refused = [reply for _, fate, reply, _ in run.tries() if fate == "refused" and reply[:1].isdigit()]
    with capsys.disabled():
        took = ", ".join(f"{one.what} {one.back - one.at:.0f} s" for one in breaks)
        print(
            f"\n{took}: {verdict}; {len(refused)} tries were put off: {sorted(set(refused))[:5]}; "
            f"longest time without one accepted: {silence(run.tries()):.1f} s"
        )
    assert not [reply for reply in refused if reply.startswith("5")]
    assert verdict.doubled == 0  # nothing was killed: what runs is finished before a pod ends


def is_service(pod: dict[str, Any]) -> bool:
    """Whether a pod belongs to one of our services."""
    return pod["metadata"]["labels"].get("app.kubernetes.io/component") in SERVICES
