"""The newest release is upgraded to this chart and image while mail comes in, and rolled back: every message counted.

MAILRAIL_TEST_BASE_IMAGE names the image of the release, made of its commit. Before the first release there is nothing
to upgrade.
"""

import json
import time
import uuid
from pathlib import Path

import pytest
from cluster.conftest import Kubectl
from cluster.ledger import Break
from cluster.rail import UNCHECKED, VALUES, Rail
from cluster.release import SERVICES, image, image_values, merged, namespace
from contract import releases

from testkit.older import source_of_base

pytestmark = pytest.mark.timeout(1800)

DOMAIN = "release.partner.test"


def test_the_newest_release_is_upgraded_and_rolled_back_under_load_and_loses_nothing(
    cluster: Kubectl, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not releases():
        pytest.skip("nothing was released yet")
    version, newer = source_of_base(tmp_path), image()
    base = image("MAILRAIL_TEST_BASE_IMAGE", "the newest release")
    assert base != newer, "the image of the release and the one under test have one name; give them two"
    released = merged(VALUES, image_values(base))
    with namespace(cluster, f"mailrail-release-{uuid.uuid4().hex[:8]}") as kubectl:
        rail = Rail(kubectl, tmp_path, released, gateway={})
        chart, rail.chart = rail.chart, tmp_path / "deploy/helm/mailrail"
        rail.begin()
        assert images_of(rail) == {base}
        revision = rail.revision()
        breaks = []
        with rail.traffic(f"r{{n}}@{DOMAIN}", per_connection=10) as run:
            run.wait_for(20, 60)
            for action, expected in (("upgrade", newer), ("rollback", base)):
                began = time.time()
                if action == "upgrade":
                    rail.chart = chart
                    # A field that the release does not know yet: it keeps the gateway as it was.
                    kubectl("patch", "mgw", "mx1", "--type=merge", "-p", json.dumps({"spec": UNCHECKED}))
                    # Postgres keeps its image: a release changes it only when Postgres itself changes.
                    rail.upgrade({**VALUES, "postgres": released["postgres"]})
                else:
                    rail.rollback(revision)
                rail.wait_until_ready()
                breaks.append(Break(action, began, time.time()))
                assert images_of(rail) == {expected}
                run.wait_for(run.accepted() + 20, 60)
        verdict = rail.counted(run, DOMAIN, breaks, within=300)
        refused = [reply for _, fate, reply, _ in run.tries() if fate == "refused" and reply[:1].isdigit()]
    with capsys.disabled():
        took = ", ".join(f"{one.what} {one.back - one.at:.0f} s" for one in breaks)
        print(f"\n{version} to this one and back, {took}: {verdict}; {len(refused)} tries were put off")
    assert not [reply for reply in refused if reply.startswith("5")]
    assert verdict.doubled == 0  # nothing was killed: what runs is finished before a pod ends


def images_of(rail: Rail) -> set[str]:
    """The images that the pods of our services run."""
    return {
        container["image"]
        for service in SERVICES
        for pod in rail.pods(service)
        for container in pod["spec"]["containers"]
    }
