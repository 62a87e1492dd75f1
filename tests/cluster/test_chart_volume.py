"""All mail is in Postgres, and nothing that an operator does every day may take it away: `helm upgrade`, `helm
rollback`, an uninstall, another `postgres.mode`, a deleted pod. The installations are default ones."""

import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster.conftest import Kubectl
from cluster.ledger import LEASE, Break, judge
from cluster.rail import Rail
from cluster.release import CHART, NAME, SERVICES, Release, image, is_ready, namespace, restarts

from testkit.conditions import wait_until

pytestmark = pytest.mark.timeout(1500)

DOMAIN, HELD = "upgrade.partner.test", "kills.partner.test"
WAITING = 20
VALUES: dict[str, Any] = {"toolbox": {"enabled": True}}
NOBODY: dict[str, Any] = {one: {"replicaCount": 0} for one in SERVICES}
"""For tests that look at Postgres alone."""
NO_VOLUME = {"persistence": {"enabled": False}}


@pytest.fixture(scope="module")
def installed(cluster: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rail]:
    """The chart with defaults (and the toolbox), configured and serving."""
    image()
    with namespace(cluster, f"mailrail-test-{uuid.uuid4().hex[:8]}") as kubectl:
        rail = Rail(kubectl, tmp_path_factory.mktemp("installed"), VALUES)
        rail.begin()
        yield rail


@pytest.fixture
def release(cluster: Kubectl, tmp_path: Path) -> Iterator[Release]:
    """A release that is not installed yet, in a namespace of its own without a volume."""
    image()
    with namespace(cluster, f"mailrail-test-{uuid.uuid4().hex[:8]}", volumes=False) as kubectl:
        yield Release(kubectl, tmp_path)


def postgres(release: Release) -> str:
    """Which pod and which container of it Postgres runs in. Raises LookupError while none is Ready."""
    for pod in release.pods("postgres"):
        if is_ready(pod):
            return f"{pod['metadata']['uid']}, restarted {restarts(pod)} times"
    raise LookupError("Postgres is not Ready")


def mailbox(rail: Rail, account: str = "alice") -> list[str]:
    """Subjects in a mailbox."""
    listed = rail.cli_json("mailbox", "list", "--account", f"{rail.kubectl.namespace}/{account}")
    return sorted(str(one["subject"]) for one in listed)


def test_upgrade_and_rollback_of_a_default_installation_leave_Postgres_and_all_mail_alone(
    installed: Rail, capsys: pytest.CaptureFixture[str]
) -> None:
    rail, breaks = installed, list[Break]()
    first, before = rail.revision(), postgres(rail)
    assert rail.first.talk(*rail.mx, ["alice@example.org"], subject="keep me").code == 250
    wait_until(lambda: mailbox(rail) == ["keep me"], 60, rail.tails)
    rail.first.refuse(f"@{HELD}", "451 4.3.0 not now")
    waiting = rail.first.send(*rail.mx, messages=WAITING, recipient=f"r{{n}}@{HELD}", sessions=2)
    waiting.finish(180)
    run = rail.first.send(
        *rail.mx, messages=100_000, recipient=f"r{{n}}@{DOMAIN}", sessions=2, per_connection=10, pace=0.2
    )
    try:
        run.wait_for(20, 180)

        began = time.time()
        rail.upgrade({**VALUES, "commonLabels": {"team": "mail"}})
        assert postgres(rail) == before, "other labels"
        # A tag that nobody pushed: old pods serve on, and whoever notices goes back.
        done = rail.helm("upgrade", NAME, str(CHART), *rail.values({**VALUES, "image": {"tag": "no-such-tag"}}))
        assert done.returncode == 0, done.stderr
        wait_until(lambda: waits_for_an_image(rail, "queue"), 120, rail.tails)
        assert postgres(rail) == before, "another image of the services"
        rail.rollback(first)
        rail.wait_until_ready()
        assert postgres(rail) == before, "a rollback"
        breaks.append(Break("upgrades", began, time.time()))
        assert rail.queued() >= WAITING

        began = time.time()
        rail.kubectl("delete", "pod", f"{NAME}-postgres-0", "--wait=false")
        wait_until(lambda: postgres(rail) != before and rail.all_ready(), 180, rail.tails)
        breaks.append(Break("postgres", began, time.time()))
        run.wait_for(run.accepted() + 20, 180)
    finally:
        run.enough()
        rail.first.accept(f"@{HELD}")
    run.finish(300)
    rail.wait_until_empty(LEASE + 90)
    judge(waiting.tries(), rail.first.seen(HELD), WAITING, breaks)
    verdict = judge(run.tries(), rail.first.seen(DOMAIN), run.messages, breaks)
    assert mailbox(rail) == ["keep me"]
    with capsys.disabled():
        print(f"\nupgrade, rollback, postgres replaced: {verdict}")


def waits_for_an_image(release: Release, component: str) -> bool:
    """Whether a pod of a component cannot get its image."""
    states = [
        status.get("state", {}).get("waiting", {}).get("reason", "")
        for pod in release.pods(component)
        for status in pod.get("status", {}).get("containerStatuses", ())
    ]
    return any(reason in ("ErrImagePull", "ImagePullBackOff") for reason in states)


def test_after_an_uninstall_and_a_new_installation_all_mail_is_there(installed: Rail) -> None:
    rail = installed
    subjects = mailbox(rail)
    assert rail.first.talk(*rail.mx, ["alice@example.org"], subject="and me").code == 250
    wait_until(lambda: len(mailbox(rail)) > len(subjects), 60, rail.tails)
    rail.first.refuse(f"@{HELD}", "451 4.3.0 not now")
    waiting = rail.first.send(*rail.mx, messages=WAITING, recipient=f"again{{n}}@{HELD}", sessions=2)
    waiting.finish(180)
    subjects = mailbox(rail)
    done = rail.helm("uninstall", NAME, "--wait", "--timeout=3m")
    assert done.returncode == 0, f"{done.stderr}\n{rail.tails()}"
    # As docs/how-to/kubernetes.md says it: keys, certificates and the password of Postgres go, too.
    labels = f"app.kubernetes.io/instance={NAME},app.kubernetes.io/managed-by=mailrail-keys"
    assert "secret" in rail.kubectl("delete", "secret", "-l", labels)
    rail.install(VALUES)
    rail.ready("mgw,mdom,macct,mtrans", "--all", within=120)
    assert mailbox(rail) == subjects
    assert rail.queued() >= WAITING
    rail.first.accept(f"@{HELD}")
    rail.wait_until_empty(LEASE + 90)
    its = [one for one in rail.first.seen(HELD) if one.recipients[0].startswith("again")]
    judge(waiting.tries(), its, WAITING, [])


def test_without_a_volume_nothing_that_helm_does_ends_the_pod_with_the_mail(release: Release) -> None:
    values = {**NOBODY, "postgres": {"bundled": NO_VOLUME}}

    def helm(command: str, more: dict[str, Any]) -> Any:
        return release.helm(command, NAME, str(CHART), "--take-ownership", *release.values({**values, **more}))

    done = helm("install", {})
    assert done.returncode == 0, done.stderr
    assert "WHEN ITS POD GOES, ALL MAIL GOES" in done.stdout
    assert "data-mailrail-postgres-0" not in done.stdout
    before = wait_until(lambda: postgres(release), 180, release.tails)

    done = helm("upgrade", {"postgres": {"bundled": {"persistence": {"enabled": True}}}})
    assert done.returncode != 0
    assert "forbidden" in done.stderr
    changes: list[dict[str, Any]] = [
        {"commonLabels": {"team": "mail"}},
        {"postgres": {"bundled": {**NO_VOLUME, "image": {"tag": "no-such-tag"}}}},
        {"postgres": {"mode": "external", "external": {"existingSecret": "pg-app"}}},
    ]
    for change in changes:
        done = helm("upgrade", change)
        assert done.returncode == 0, done.stderr
        settle(release)
        assert postgres(release) == before, change
    assert "the pod mailrail-postgres-0" in done.stdout, "it is told where the mail is that waits"
    assert helm("upgrade", {}).returncode == 0, "back to the bundled one"
    settle(release)
    assert postgres(release) == before
    done = release.helm("uninstall", NAME, "--wait", "--timeout=3m")
    assert done.returncode == 0, done.stderr
    assert postgres(release) == before


def settle(release: Release) -> None:
    """Wait until the controller has seen what Helm made of the StatefulSet of Postgres."""

    def seen() -> bool:
        body = json.loads(release.kubectl("get", "statefulset", f"{NAME}-postgres", "-o", "json"))
        return bool(body["status"]["observedGeneration"] == body["metadata"]["generation"])

    wait_until(seen, 60, release.tails)


def test_where_the_cluster_gives_no_volume_helm_test_and_the_notes_say_which_value_to_set(release: Release) -> None:
    values = {
        **NOBODY,
        "test": {"timeoutSeconds": 2},
        "postgres": {"bundled": {"persistence": {"storageClassName": "no-such-class"}}},
    }
    done = release.helm("install", NAME, str(CHART), "--take-ownership", *release.values(values))
    assert done.returncode == 0, done.stderr
    assert "StorageClass no-such-class is not there" in done.stdout
    release.kubectl("wait", "--for=create", f"secret/{NAME}-cli-tls", "--timeout=180s")
    done = release.helm("test", NAME, "--logs", "--timeout=3m")
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert "PersistentVolumeClaim data-mailrail-postgres-0 is Pending" in said, f"{said}\n{release.tails()}"
    assert "postgres.bundled.persistence.storageClassName" in said
