"""Tests against a real Kubernetes API. They run under `make test-cluster` alone.

`KUBECONFIG` names the cluster. It is not enough: a developer's shell may name a cluster that mail needs, so nothing
here is even collected unless `MAILRAIL_TEST_CLUSTER` is set, which `make test-cluster` does. Each test has a namespace
of its own, except that the scenarios of the chart share one installation; the CRDs are applied once and stay.
"""

import contextlib
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from cluster.rail import Rail

collect_ignore_glob = [] if os.environ.get("MAILRAIL_TEST_CLUSTER") else ["test_*.py"]

_installed = contextlib.ExitStack()
"""What `rail` has to take away; the fixture itself would do so at the end of the session only."""

ROOT = Path(__file__).resolve().parents[2]
CRDS = ROOT / "deploy/helm/mailrail/files/crds"


class Kubectl:
    """kubectl in one namespace."""

    def __init__(self, namespace: str = "default") -> None:
        self.namespace = namespace

    def try_(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run it; the caller looks at the status."""
        return subprocess.run(
            ["kubectl", "--namespace", self.namespace, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=300,
        )

    def __call__(self, *arguments: str, stdin: str | None = None) -> str:
        """Run it; it must succeed. Returns its output."""
        done = self.try_(*arguments, stdin=stdin)
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def apply(self, manifest: str) -> None:
        """Apply YAML text."""
        self("apply", "--server-side", "--force-conflicts", "--validate=strict", "-f", "-", stdin=manifest)


@pytest.fixture(scope="session")
def cluster() -> Kubectl:
    """A cluster with our CRDs, established."""
    assert os.environ.get("KUBECONFIG"), "KUBECONFIG does not name a cluster"
    assert shutil.which("kubectl"), "kubectl is not on the PATH"
    kubectl = Kubectl()
    kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CRDS))
    kubectl("wait", "--for=condition=Established", "--timeout=60s", "-f", str(CRDS))
    return kubectl


@pytest.fixture
def kubectl(cluster: Kubectl) -> Iterator[Kubectl]:
    """kubectl in a fresh namespace, which is deleted afterwards."""
    name = f"test-{uuid.uuid4().hex[:10]}"
    cluster("create", "namespace", name)
    yield Kubectl(name)
    cluster("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="session")
def rail(cluster: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Rail]":
    """The chart, installed, configured and serving, for all scenarios of the session.

    MAILRAIL_TEST_NAMESPACE names a namespace that stays, with what is installed in it, for quick repetitions.
    """
    from cluster.rail import Rail
    from cluster.release import image, namespace

    image()  # skips at once where there is none to install
    kept = os.environ.get("MAILRAIL_TEST_NAMESPACE")
    name = kept or f"mailrail-test-{uuid.uuid4().hex[:8]}"
    with _installed:
        kubectl = _installed.enter_context(namespace(cluster, name, keep=bool(kept)))
        running = Rail(kubectl, tmp_path_factory.mktemp("rail"))
        running.begin()
        yield running


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Scenarios of the chart come first: their installation disturbs tests that measure or watch all namespaces."""
    items.sort(key=lambda item: "rail" not in getattr(item, "fixturenames", ()))


@pytest.hookimpl(trylast=True)  # after the fixtures of a module, which clean up in it
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """The installation goes as soon as nobody has use for it."""
    if nextitem is not None and "rail" not in getattr(nextitem, "fixturenames", ()):
        _installed.close()
