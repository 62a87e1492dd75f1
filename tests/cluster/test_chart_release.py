"""The newest release is upgraded to this chart and image while mail comes in, and every message is counted.

MAILRAIL_TEST_BASE_IMAGE names the image of the release (`make image` on its commit); without it the image under test
stands in, and the way is walked from the released chart alone. Before the first release there is nothing to upgrade.
"""

import os
import time
import uuid
from pathlib import Path

import pytest
from cluster.conftest import Kubectl
from cluster.ledger import LEASE, Break, judge
from cluster.rail import VALUES, Rail
from cluster.release import SERVICES, image, image_values, merged, namespace
from contract import releases

from testkit.older import source_of_base

pytestmark = pytest.mark.timeout(1800)

DOMAIN = "release.partner.test"


def test_the_newest_release_is_upgraded_under_load_and_loses_nothing(
    cluster: Kubectl, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not releases():
        pytest.skip("nothing was released yet")
    image()  # skips at once where there is none
    version = source_of_base(tmp_path)
    base = image_values(os.environ.get("MAILRAIL_TEST_BASE_IMAGE") or image())
    with namespace(cluster, f"mailrail-release-{uuid.uuid4().hex[:8]}") as kubectl:
        rail = Rail(kubectl, tmp_path, merged(VALUES, base))
        newer, rail.chart = rail.chart, tmp_path / "deploy/helm/mailrail"
        rail.begin()
        assert versions_of(rail) == {version}
        run = rail.first.send(
            *rail.mx, messages=100_000, recipient=f"r{{n}}@{DOMAIN}", sessions=4, per_connection=10, pace=0.2
        )
        try:
            run.wait_for(20, 180)
            began = time.time()
            rail.chart = newer
            rail.upgrade(VALUES)
            rail.wait_until_ready()
            ended = time.time()
            assert version not in versions_of(rail)
        finally:
            run.enough()
        run.finish(300)
        rail.wait_until_empty(LEASE + 90)
        breaks = [Break("upgrade", began, ended)]
        verdict = judge(run.tries(), rail.first.seen(DOMAIN), run.messages, breaks)
        refused = [reply for _, fate, reply, _ in run.tries() if fate == "refused" and reply[:1].isdigit()]
    with capsys.disabled():
        print(f"\n{version} to this one in {ended - began:.0f} s: {verdict}; {len(refused)} tries were put off")
    assert not [reply for reply in refused if reply.startswith("5")]
    assert verdict.doubled == 0  # nothing was killed: what runs is finished before a pod ends


def versions_of(rail: Rail) -> set[str]:
    """The versions that the pods of our services are labelled with."""
    return {
        pod["metadata"]["labels"]["app.kubernetes.io/version"] for service in SERVICES for pod in rail.pods(service)
    }
