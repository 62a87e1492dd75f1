"""All mail is in Postgres, and nothing that an operator does every day may take it away: `helm upgrade`, `helm
rollback`, an uninstall, another `postgres.mode`, a deleted pod. The installations are default ones."""

import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster.conftest import Kubectl
from cluster.ledger import LEASE, Break, judge
from cluster.rail import Rail
from cluster.release import CHART, NAME, SERVICES, Release, image, is_ready, namespace, restarts

from testkit.conditions import wait_until

pytestmark = pytest.mark.timeout(1500)

DOMAIN, HELD = "upgrade.partner.test", "kills.partner.test"
WAITING = 20
VALUES: dict[str, Any] = {"toolbox": {"enabled": True}}
NOBODY: dict[str, Any] = {one: {"replicaCount": 0} for one in (*SERVICES, "policy")}
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


def postgres(release: Release, component: str = "postgres") -> str:
    """Which pod and which container of it Postgres runs in. Raises LookupError while none is Ready."""
    for pod in release.pods(component):
        if is_ready(pod):
            return f"{pod['metadata']['uid']}, restarted {restarts(pod)} times"
    raise LookupError("Postgres is not Ready")


def test_upgrade_and_rollback_of_a_default_installation_leave_Postgres_and_all_mail_alone(
    installed: Rail, capsys: pytest.CaptureFixture[str]
) -> None:
    rail, breaks = installed, list[Break]()
    first, before = rail.revision(), postgres(rail)
    assert rail.first.talk(*rail.mx, ["alice@example.org"], subject="keep me").code == 250
    wait_until(lambda: rail.mailbox() == ["keep me"], 60, rail.tails)
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
    assert rail.mailbox() == ["keep me"]
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
    subjects = rail.mailbox()
    assert rail.first.talk(*rail.mx, ["alice@example.org"], subject="and me").code == 250
    wait_until(lambda: len(rail.mailbox()) > len(subjects), 60, rail.tails)
    rail.first.refuse(f"@{HELD}", "451 4.3.0 not now")
    waiting = rail.first.send(*rail.mx, messages=WAITING, recipient=f"again{{n}}@{HELD}", sessions=2)
    waiting.finish(180)
    subjects = rail.mailbox()
    done = rail.helm("uninstall", NAME, "--wait", "--timeout=3m")
    assert done.returncode == 0, f"{done.stderr}\n{rail.tails()}"
    # As docs/how-to/kubernetes.md says it: keys, certificates and the password of Postgres go, too.
    labels = f"app.kubernetes.io/instance={NAME},app.kubernetes.io/part-of=mailrail"
    assert "secret" in rail.kubectl("delete", "secret", "-l", labels)
    rail.install(VALUES)
    rail.ready("mgw,mdom,macct,mtrans", "--all", within=120)
    assert rail.mailbox() == subjects
    assert rail.queued() >= WAITING
    rail.first.accept(f"@{HELD}")
    rail.wait_until_empty(LEASE + 90)
    its = [one for one in rail.first.seen(HELD) if one.recipients[0].startswith("again")]
    judge(waiting.tries(), its, WAITING, [])


def test_a_switch_to_another_database_is_refused_moved_and_not_undone_while_mail_waits_in_the_queue(
    installed: Rail, capsys: pytest.CaptureFixture[str]
) -> None:
    rail, here = installed, postgres(installed)
    external = {"mode": "external", "external": {"existingSecret": "pg-app"}}
    start_external(rail)
    rail.first.refuse(f"@{HELD}", "451 4.3.0 not now")
    waiting = rail.first.send(*rail.mx, messages=WAITING, recipient=f"switch{{n}}@{HELD}", sessions=2)
    waiting.finish(180)
    subjects, before, bundled = rail.mailbox(), rail.queued(), rail.revision()
    assert before >= WAITING

    def upgrade(previous: str) -> None:
        done = rail.helm(
            "upgrade", NAME, str(CHART), *rail.values({**VALUES, "postgres": {**external, "previous": previous}})
        )
        assert done.returncode == 0, done.stderr

    upgrade("refuse")
    wait_until(lambda: f"holds {before} queued recipients" in words_of_the_job(rail), 180, rail.tails)
    assert postgres(rail) == here
    assert rail.first.talk(*rail.mx, ["alice@example.org"], subject="the old pods serve").code == 250
    wait_until(lambda: len(rail.mailbox()) > len(subjects), 60, rail.tails)
    subjects = rail.mailbox()

    seen, began = len(rail.first.seen(DOMAIN)), time.time()
    run = rail.first.send(
        *rail.mx, messages=100_000, recipient=f"r{{n}}@{DOMAIN}", sessions=2, per_connection=10, pace=0.2
    )
    try:
        run.wait_for(20, 180)
        upgrade("move")
        wait_until(lambda: place(rail).startswith("external."), 300, rail.tails)
        rail.wait_until_ready(300)
        run.wait_for(run.accepted() + 20, 180)
    finally:
        run.enough()
    run.finish(300)
    moved = Break("the move", began, time.time())
    assert postgres(rail) == here, "it is kept"
    assert rail.mailbox() == subjects

    # The bundled one was moved away: whoever goes back to it would leave all mail since then behind.
    done = rail.helm("rollback", NAME, str(bundled))
    assert done.returncode == 0, done.stderr
    wait_until(lambda: "mail goes on there" in words_of_the_job(rail), 180, rail.tails)
    assert rail.first.talk(*rail.mx, ["alice@example.org"], subject="after the rollback").code == 250
    upgrade("refuse")
    rail.wait_until_ready(300)
    rail.first.accept(f"@{HELD}")
    rail.wait_until_empty(LEASE + 90)
    assert rail.mailbox() == sorted([*subjects, "after the rollback"])
    its = [one for one in rail.first.seen(HELD) if one.recipients[0].startswith("switch")]
    judge(waiting.tries(), its, WAITING, [moved])
    verdict = judge(run.tries(), rail.first.seen(DOMAIN)[seen:], run.messages, [moved])
    with capsys.disabled():
        print(f"\nmoved to another Postgres: {verdict}")


def start_external(rail: Rail) -> None:
    """A Postgres that is none of the release's, with the Secret that names it."""
    labels = {"app": "pg"}
    restricted = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    container = {
        "name": "postgres",
        "image": image(),
        "args": ["cluster", "postgres", "--folder", "/tmp/postgres"],
        "env": [{"name": "PGPASSWORD", "value": "secret"}],
        "ports": [{"containerPort": 5432}],
        "readinessProbe": {"tcpSocket": {"port": 5432}, "periodSeconds": 1},
        "securityContext": restricted,
    }
    security = {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}}
    objects: list[dict[str, Any]] = [
        {"kind": "Pod", "spec": {"containers": [container], "securityContext": security}},
        {"kind": "Service", "spec": {"selector": labels, "ports": [{"port": 5432}]}},
    ]
    for one in objects:
        one |= {"apiVersion": "v1", "metadata": {"name": "pg", "labels": labels}}
    rail.kubectl.apply(yaml.safe_dump_all(objects))
    host = f"pg.{rail.kubectl.namespace}.svc.cluster.local"
    rail.set_secret("pg-app", uri=f"postgresql://mailrail:secret@{host}/mailrail")
    rail.kubectl("wait", "--for=condition=Ready", "pod/pg", "--timeout=120s")


def place(release: Release) -> str:
    """Which database services use, as the Job of migrations recorded it."""
    (one,) = json.loads(release.kubectl("get", "configmap", f"{NAME}-database", "-o", "json"))["data"]
    return str(one)


def words_of_the_job(release: Release) -> str:
    """What the newest try of the migrations Job said."""
    pods = sorted(release.pods("migrations"), key=lambda pod: str(pod["metadata"]["creationTimestamp"]))
    name = pods[-1]["metadata"]["name"]
    return release.kubectl.try_("logs", name).stdout + release.kubectl.try_("logs", name, "--previous").stdout


def test_without_a_volume_nothing_that_helm_does_ends_the_pod_with_the_mail(release: Release) -> None:
    values = {**NOBODY, "postgres": {"bundled": NO_VOLUME}}

    def helm(command: str, more: dict[str, Any]) -> Any:
        done = release.helm(command, NAME, str(CHART), "--take-ownership", *release.values({**values, **more}))
        assert done.returncode == 0, done.stderr
        return done

    done = helm("install", {})
    assert "WHEN ITS POD GOES, ALL MAIL GOES" in done.stdout
    assert "data-mailrail" not in done.stdout
    before = wait_until(lambda: postgres(release, "pg-novolume"), 180, release.tails)
    changes: list[dict[str, Any]] = [
        {"commonLabels": {"team": "mail"}},
        {"postgres": {"bundled": {**NO_VOLUME, "image": {"tag": "no-such-tag"}}}},
        {"postgres": {"mode": "external", "external": {"existingSecret": "pg-app"}}},
    ]
    for change in changes:
        done = helm("upgrade", change)
        settle(release)
        assert postgres(release, "pg-novolume") == before, change
    assert "refuses to begin while" in done.stdout, "it is told what happens to the mail"
    helm("upgrade", {})  # back to the bundled one
    settle(release)
    assert postgres(release, "pg-novolume") == before
    done = release.helm("uninstall", NAME, "--wait", "--timeout=3m")
    assert done.returncode == 0, done.stderr
    assert postgres(release, "pg-novolume") == before


def test_a_volume_beside_the_pod_that_has_the_mail_is_another_Postgres_and_the_first_one_is_kept(
    release: Release,
) -> None:
    values = {**NOBODY, "config": {"replicaCount": 1}, "postgres": {"bundled": NO_VOLUME}}

    def helm(command: str, more: dict[str, Any]) -> None:
        done = release.helm(command, NAME, str(CHART), "--take-ownership", *release.values({**values, **more}))
        assert done.returncode == 0, done.stderr

    helm("install", {})
    before = wait_until(lambda: postgres(release, "pg-novolume"), 180, release.tails)
    wait_until(lambda: place(release) == f"bundled.{NAME}-pg-novolume", 60, release.tails)
    release.wait_until_ready()
    volume = {"postgres": {"previous": "move", "bundled": {"persistence": {"enabled": True}}}}
    helm("upgrade", volume)
    wait_until(lambda: place(release) == f"bundled.{NAME}-postgres", 300, release.tails)
    release.wait_until_ready()
    kept = [pod for pod in release.pods() if pod["metadata"]["name"] == f"{NAME}-pg-novolume-0"]
    assert kept
    assert before.startswith(kept[0]["metadata"]["uid"])

    # Now pod and volume are lost: both come back, and so does the schema, with nobody's help.
    claim = json.loads(release.kubectl("get", "pvc", f"data-{NAME}-postgres-0", "-o", "json"))["metadata"]["uid"]
    release.kubectl("delete", "pvc", f"data-{NAME}-postgres-0", "--wait=false")
    release.kubectl("delete", "pod", f"{NAME}-postgres-0", "--wait=false")

    def anew() -> bool:
        found = json.loads(release.kubectl("get", "pvc", f"data-{NAME}-postgres-0", "-o", "json"))
        return bool(found["metadata"]["uid"] != claim and found["status"]["phase"] == "Bound")

    wait_until(anew, 180, release.tails)
    wait_until(lambda: "are up to date now" in logs(release, "config"), 180, release.tails)
    release.wait_until_ready()


def logs(release: Release, component: str) -> str:
    """What all pods of a component said."""
    labels = f"app.kubernetes.io/component={component}"
    return release.kubectl.try_("logs", "-l", labels, "--tail=-1", "--prefix").stdout


def settle(release: Release) -> None:
    """Wait until the controller has seen what Helm made of the StatefulSet of Postgres."""

    def seen() -> bool:
        body = json.loads(release.kubectl("get", "statefulset", f"{NAME}-pg-novolume", "-o", "json"))
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
    assert "PersistentVolumeClaim data-mailrail-pg-" in said, f"{said}\n{release.tails()}"
    assert "is Pending" in said
    assert "postgres.bundled.persistence.storageClassName" in said
