"""One release of the chart in a namespace of its own, as a test installs, breaks, upgrades and asks it.

The namespace enforces the restricted Pod Security Standard: a pod that asks for more than it allows is not even made.
"""

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster.conftest import ROOT, Kubectl
from cluster.ledger import Break

from testkit.conditions import wait_until

CHART = Path(os.environ.get("MAILRAIL_TEST_CHART") or ROOT / "deploy/helm/mailrail")
NAME = "mailrail"
SERVICES = ("config", "queue", "ingress", "outbound", "operator")


def image(variable: str = "MAILRAIL_TEST_IMAGE", of: str = "the tree") -> str:
    """The image to test, or another one, which every node has or can pull. Skips without one; fails in CI."""
    named = os.environ.get(variable, "")
    if not named:
        reason = f"{variable} names no image of {of}; build one and load it (docs/contributing/testing.md)"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    return named


def image_values(reference: str) -> dict[str, Any]:
    """`REGISTRY/REPOSITORY:TAG` as values of the chart."""
    path, _, tag = reference.rpartition(":")
    registry, _, repository = path.partition("/")
    return {
        "image": {"registry": registry, "repository": repository, "tag": tag, "pullPolicy": "IfNotPresent"},
        "postgres": {"bundled": {"image": {"tag": tag}}},
    }


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Values over others, as Helm lays them: maps into each other, everything else in its place."""
    out = dict(first)
    for name, value in second.items():
        both = isinstance(value, Mapping) and isinstance(out.get(name), Mapping)
        out[name] = merged(out[name], value) if both else value
    return out


class Release:
    """`helm` and `kubectl` on one release, which may not be installed yet."""

    def __init__(self, kubectl: Kubectl, folder: Path) -> None:
        self.kubectl, self._folder = kubectl, folder
        self.chart = CHART
        """What is installed, and upgraded to."""
        self.notes = ""
        """What the installation said."""
        self.took = 0.0
        """Seconds that the installation took until everything was Ready."""

    # --- helm ---

    def helm(self, *arguments: str, within: float = 420.0) -> subprocess.CompletedProcess[str]:
        """Run helm in the release's namespace; the caller looks at the status."""
        command = ["helm", "--namespace", self.kubectl.namespace, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=within)

    def values(self, more: Mapping[str, Any]) -> list[str]:
        """Options of helm for the image under test and these values."""
        path = self._folder / f"values-{time.monotonic_ns()}.yaml"
        path.write_text(yaml.safe_dump(merged(image_values(image()), more)), encoding="utf-8")
        return ["--values", str(path)]

    def install(self, values: Mapping[str, Any] | None = None, *options: str) -> None:
        """Install with defaults and these values, and wait until everything is Ready."""
        # The CRDs may be there already, from another test or an older release that kept them.
        arguments = [NAME, str(self.chart), "--take-ownership", "--wait", "--timeout=4m", *self.values(values or {})]
        began = time.monotonic()
        self.notes = self._must("install", *arguments, *options)
        self.took = time.monotonic() - began

    def upgrade(self, values: Mapping[str, Any] | None = None, *options: str) -> None:
        """Upgrade to these values, and wait until everything is Ready."""
        arguments = [NAME, str(self.chart), "--take-ownership", "--wait", "--timeout=4m", *self.values(values or {})]
        self._must("upgrade", *arguments, *options)

    def rollback(self, revision: int) -> None:
        """Go back to an older revision of the release, and wait until everything is Ready."""
        self._must("rollback", NAME, str(revision), "--wait", "--timeout=4m")

    def revision(self) -> int:
        """The release's own number of its newest revision."""
        listed = json.loads(self._must("history", NAME, "--output=json"))
        return max(int(one["revision"]) for one in listed)

    def _must(self, *arguments: str) -> str:
        done = self.helm(*arguments)
        assert done.returncode == 0, f"helm {' '.join(arguments)}: {done.stderr}\n{self.tails()}"
        return done.stdout

    # --- pods ---

    def pods(self, component: str = "", *, all_of_them: bool = False) -> list[dict[str, Any]]:
        """Pods of a component (of all without one) that are not on their way out, unless all are wanted."""
        labels = f"app.kubernetes.io/instance={NAME}"
        labels += f",app.kubernetes.io/component={component}" if component else ""
        listed = json.loads(self.kubectl("get", "pods", "-l", labels, "-o", "json"))["items"]
        return [one for one in listed if all_of_them or "deletionTimestamp" not in one["metadata"]]

    def pod(self, component: str) -> str:
        """The name of a Ready pod of a component. Raises LookupError when there is none."""
        for one in self.pods(component):
            if is_ready(one):
                return str(one["metadata"]["name"])
        raise LookupError(f"no pod of {component} is Ready")

    def all_ready(self) -> bool:
        """Whether every deployment and stateful set has all its replicas, Ready and up to date."""
        listed = json.loads(
            self.kubectl("get", "deployments,statefulsets", "-l", f"app.kubernetes.io/instance={NAME}", "-o", "json")
        )
        for one in listed["items"]:
            wanted, status = one["spec"].get("replicas", 1), one.get("status", {})
            if status.get("observedGeneration", 0) < one["metadata"]["generation"]:
                return False
            if not wanted == status.get("replicas", 0) == status.get("updatedReplicas", wanted):
                return False
            if status.get("readyReplicas", 0) < wanted:
                return False
        return bool(listed["items"])

    def wait_until_ready(self, within: float = 180.0) -> None:
        """Wait for `all_ready`."""
        wait_until(self.all_ready, within, lambda: f"every pod is Ready\n{self.tails()}")

    def let_the_kubelet_look(self) -> None:
        """It brings changed Secrets into a pod within two minutes, or when something about the pod changes."""
        label = f"app.kubernetes.io/instance={NAME}"
        self.kubectl("annotate", "pods", "-l", label, "--overwrite", f"test/at={time.time()}")

    def kill(self, component: str, name: str = "") -> Break:
        """End a pod of a component, one that is Ready or a named one, and wait until another one is Ready in its place.

        It gets no warning: where the node is this machine, its processes are killed by SIGKILL before the pod is
        deleted; elsewhere the pod is deleted by force, which is nearly as rude.
        """

        def victim() -> dict[str, Any] | None:
            found = (one for one in self.pods(component) if is_ready(one))
            return next((one for one in found if name in ("", one["metadata"]["name"])), None)

        pod = wait_until(victim, 60, lambda: f"a pod of {component} is Ready\n{self.tails()}")
        uid, name = pod["metadata"]["uid"], pod["metadata"]["name"]
        at = time.time()
        kill_processes(uid)
        self.kubectl("delete", "pod", name, "--force", "--grace-period=0", "--wait=false")
        wait_until(
            lambda: all(one["metadata"]["uid"] != uid for one in self.pods(component)) and self.all_ready(),
            180,
            lambda: f"another {component} stands in for {name}\n{self.tails()}",
        )
        return Break(f"{component} ({name})", at, time.time())

    def kill_postgres(self) -> Break:
        """SIGKILL to every process of the bundled Postgres, and wait until it serves again on what it had stored.

        The pod stays, and its container starts anew; `kill("postgres")` ends the pod. Where the node is another machine
        its first process survives the others, and ends by itself.
        """
        pod = self.pods("postgres")[0]
        name, at = pod["metadata"]["name"], time.time()
        if not kill_processes(pod["metadata"]["uid"]):
            self.kubectl.try_("exec", name, "--", "python", "-c", _KILL_OTHERS)
        before = restarts(pod)
        wait_until(
            lambda: restarts(self.pods("postgres")[0]) > before and self.all_ready(),
            180,
            lambda: f"Postgres is back\n{self.tails()}",
        )
        return Break("postgres", at, time.time())

    def tails(self) -> str:
        """What the pods and their last words are, for the text of a failure."""
        k = self.kubectl
        words = [k.try_("get", "pods", "-o", "wide").stdout, k.try_("get", "mailrail").stdout]
        words += [k.try_("get", "events", "--sort-by=.lastTimestamp").stdout[-2500:]]
        for one in json.loads(k.try_("get", "pods", "-o", "json").stdout or '{"items": []}')["items"]:
            name = one["metadata"]["name"]
            lines = k.try_("logs", name, "--tail=12", "--all-containers").stdout
            words.append(f"--- {name}\n{lines}")
        return "\n".join(words)

    # --- what it says of itself ---

    def cli(self, *arguments: str) -> str:
        """`mailrail ARGUMENTS` in the toolbox, which the values must have. Raises AssertionError when it says no."""
        return self.kubectl("exec", f"deployment/{NAME}-toolbox", "--", "mailrail", *arguments)

    def cli_json(self, *arguments: str) -> Any:
        """The same with `--json`, parsed."""
        return json.loads(self.cli(*arguments, "--json"))

    def queued(self) -> int:
        """Recipients in the queue that are not final."""
        return int(self.cli_json("queue", "stats")["queued"])

    def wait_until_empty(self, within: float = 60.0) -> None:
        """Wait until no recipient is left in the queue."""
        wait_until(
            lambda: self.queued() == 0,
            within,
            lambda: f"the queue is empty; it holds\n{self.cli('queue', 'list')}\n{self.tails()}",
        )

    # --- resources ---

    def ready(self, *targets: str, within: int = 60) -> None:
        """`kubectl wait --for=condition=Ready`, as people use it."""
        done = self.kubectl.try_("wait", "--for=condition=Ready", f"--timeout={within}s", *targets)
        assert done.returncode == 0, f"{done.stderr}\n{self.tails()}"


def is_ready(pod: Mapping[str, Any]) -> bool:
    """Whether a pod has the condition Ready."""
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod.get("status", {}).get("conditions", ()))


def node_processes(pod_uid: str) -> list[int]:
    """The processes of a pod, where this machine is the node that it runs on; else none."""
    marks = (f"pod{pod_uid}", f"pod{pod_uid.replace('-', '_')}")  # as cgroupfs and systemd write it
    found = []
    for path in Path("/proc").glob("[0-9]*/cgroup"):
        with contextlib.suppress(OSError):
            if any(mark in path.read_text() for mark in marks):
                found.append(int(path.parent.name))
    return found


def kill_processes(pod_uid: str) -> list[int]:
    """SIGKILL to every process of a pod but the one that holds its network, where they are in sight; answers which."""
    killed = []
    for pid in node_processes(pod_uid):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text(encoding="ascii").strip() != "pause":
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
    return killed


def restarts(pod: Mapping[str, Any]) -> int:
    """How often the containers of a pod were started again."""
    return sum(one["restartCount"] for one in pod.get("status", {}).get("containerStatuses", ()))


_DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"
_KILL_OTHERS = """
import os, pathlib, signal
for path in pathlib.Path("/proc").glob("[0-9]*"):
    if int(path.name) not in (1, os.getpid()):
        os.kill(int(path.name), signal.SIGKILL)
"""


@contextlib.contextmanager
def namespace(cluster: Kubectl, name: str, *, keep: bool = False, volumes: bool = True) -> Iterator[Kubectl]:
    """A namespace that enforces the restricted Pod Security Standard, while the context lasts or for good."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    cluster.apply(
        yaml.safe_dump({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    )
    with volume(cluster, name, keep=keep) if volumes else contextlib.nullcontext():
        try:
            yield Kubectl(name)
        finally:
            if not keep:
                cluster("delete", "namespace", name, "--wait=false", "--ignore-not-found")
                # What ends there takes its share of the machine, and others measure; one that lingers is no fault here.
                cluster.try_("wait", "--for=delete", f"namespace/{name}", "--timeout=90s")


@contextlib.contextmanager
def volume(cluster: Kubectl, name: str, *, keep: bool = False) -> Iterator[None]:
    """A volume for the bundled Postgres of a namespace, where the default StorageClass makes none by itself.

    Such a cluster (../shared/cluster/cluster) has some volumes that are used once. Where the node is this machine a new
    one is made beside them, of type `local`: unlike theirs it is given to fsGroup by the kubelet, as those of real
    clusters are. Elsewhere nothing is done: the class has to have volumes.
    """
    classes = json.loads(cluster("get", "storageclasses", "-o", "json"))["items"]
    default = next((c for c in classes if c["metadata"].get("annotations", {}).get(_DEFAULT_CLASS) == "true"), None)
    there = json.loads(cluster("get", "persistentvolumes", "-o", "json"))["items"]
    folders = [Path(one["spec"].get("hostPath", {}).get("path", "/nowhere")).parent for one in there]
    folder = next((one / name for one in folders if one.is_dir() and os.access(one, os.W_OK)), None)
    if default is None or default["provisioner"] != "kubernetes.io/no-provisioner" or folder is None:
        yield
        return
    folder.mkdir(mode=0o755, exist_ok=keep)
    node = json.loads(cluster("get", "nodes", "-o", "json"))["items"][0]["metadata"]["labels"]["kubernetes.io/hostname"]
    here = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}
    spec = {
        "capacity": {"storage": "20Gi"},
        "accessModes": ["ReadWriteOnce"],
        "persistentVolumeReclaimPolicy": "Retain",
        "storageClassName": default["metadata"]["name"],
        "claimRef": {"namespace": name, "name": f"data-{NAME}-postgres-0"},
        "local": {"path": str(folder)},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [here]}},
    }
    if cluster.try_("get", "persistentvolume", name).returncode != 0:
        body = {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec}
        cluster.apply(yaml.safe_dump(body))
    try:
        yield
    finally:
        if not keep:
            cluster("delete", "persistentvolume", name, "--wait=false", "--ignore-not-found")
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def api_server_away() -> Iterator[None]:
    """The API server answers nobody while the context lasts; skips where nobody said how that is done.

    MAILRAIL_TEST_APISERVER_PAUSE and _RESUME are commands, such as `kill -STOP 123` and `kill -CONT 123`.
    """
    pause, resume = (os.environ.get(f"MAILRAIL_TEST_APISERVER_{word}", "") for word in ("PAUSE", "RESUME"))
    if not (pause and resume):
        pytest.skip("MAILRAIL_TEST_APISERVER_PAUSE and _RESUME do not say how the API server is stopped and resumed")
    subprocess.run(shlex.split(pause), check=True, timeout=20)
    try:
        yield
    finally:
        subprocess.run(shlex.split(resume), check=True, timeout=20)


def seconds_until(condition: Callable[[], object], within: float, what: str | Callable[[], str]) -> float:
    """How long it takes from now until a condition holds."""
    began = time.monotonic()
    wait_until(condition, within, what)
    return time.monotonic() - began
