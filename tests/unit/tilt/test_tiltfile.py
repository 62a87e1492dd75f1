"""The Tiltfile, run against stand-ins for tilt's own functions.

Starlark is near enough to Python that Python runs both files; `for_development` is judged by what it makes of a chart.
"""

from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]

CHART = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: mailrail-queue}
spec:
  template:
    spec:
      containers:
        - name: queue
          image: mailrail-dev:latest
          securityContext: {readOnlyRootFilesystem: true, runAsNonRoot: true}
        - {name: other, image: "unbound:1", securityContext: {readOnlyRootFilesystem: true}}
---
apiVersion: v1
kind: Service
metadata: {name: mailrail-queue}
"""


class Tilt:
    """What the Tiltfile asked for."""

    def __init__(self) -> None:
        self.asked: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {}
        self.names: dict[str, Any] = {name: self._note(name) for name in _RECORDED}
        self.names |= {
            "load": self._load,
            "read_yaml": lambda path, default=None: default,
            "helm": self._helm,
            "decode_yaml_stream": lambda text: list(yaml.safe_load_all(text)),
            "encode_yaml_stream": yaml.safe_dump_all,
            "blob": str,
            "TRIGGER_MODE_MANUAL": "manual",
        }

    def _note(self, name: str) -> Any:
        def noted(*arguments: Any, **named: Any) -> tuple[Any, ...]:
            self.asked.setdefault(name, []).append((arguments, named))
            return (name, *arguments)

        return noted

    def _load(self, path: str, *wanted: str) -> None:
        found: dict[str, Any] = {}
        exec(compile((ROOT / path).read_text(encoding="utf-8"), path, "exec"), found)
        self.names |= {name: found[name] for name in wanted}

    def _helm(self, chart: str, **named: Any) -> str:
        self.asked.setdefault("helm", []).append(((chart,), named))
        return CHART

    def run(self) -> None:
        """Run the Tiltfile."""
        exec(compile((ROOT / "Tiltfile").read_text(encoding="utf-8"), "Tiltfile", "exec"), self.names)


_RECORDED = (
    "allow_k8s_contexts",
    "default_registry",
    "docker_build",
    "fall_back_on",
    "k8s_resource",
    "k8s_yaml",
    "local_resource",
    "port_forward",
    "run",
    "sync",
    "watch_file",
)


@pytest.fixture
def tilt() -> Tilt:
    made = Tilt()
    made.run()
    return made


def test_every_file_that_the_tiltfile_names_is_there(tilt: Tilt) -> None:
    ((arguments, build),) = tilt.asked["docker_build"]
    (((chart,), rendered),) = tilt.asked["helm"]
    named = [build["dockerfile"], *build["only"], chart, *rendered["values"]]
    named += [path for _, one in tilt.asked["local_resource"] for path in one.get("deps", [])]
    assert [path for path in named if not (ROOT / path).exists()] == []
    assert arguments == ("mailrail-dev", ".")


def test_what_is_synced_is_what_the_image_runs(tilt: Tilt) -> None:
    dockerfile = (ROOT / "tilt/Dockerfile").read_text(encoding="utf-8")
    for (source, target), _ in tilt.asked["sync"]:
        assert f"{source.removeprefix('./')} {target}" in dockerfile
        paths = dockerfile.partition("PYTHONPATH=")[2].partition("\n")[0].split(":")
        assert any(path == target or path.startswith(f"{target}/") for path in paths)


def test_development_makes_the_containers_of_our_code_writable_and_nothing_else(tilt: Tilt) -> None:
    deployment = next(
        one
        for arguments, _ in tilt.asked["k8s_yaml"]
        for one in yaml.safe_load_all(arguments[0])
        if one["kind"] == "Deployment"
    )
    ours, other = deployment["spec"]["template"]["spec"]["containers"]
    assert ours["securityContext"] == {"readOnlyRootFilesystem": False, "runAsNonRoot": True}
    assert other["securityContext"] == {"readOnlyRootFilesystem": True}


def test_the_contexts_that_tilt_may_touch_are_left_at_its_safe_default(tilt: Tilt) -> None:
    assert tilt.asked["allow_k8s_contexts"] == [(([],), {})]


def test_the_namespace_is_applied_with_what_lives_in_it(tilt: Tilt) -> None:
    """tilt orders kinds inside one group only; in a resource of its own the namespace came too late."""
    taken_out = [one for _, named in tilt.asked["k8s_resource"] for one in named.get("objects", [])]
    assert taken_out == []
    first = yaml.safe_load(tilt.asked["k8s_yaml"][0][0][0])
    assert first["kind"] == "Namespace"


def test_the_chart_is_rendered_for_the_oldest_kubernetes_that_it_allows(tilt: Tilt) -> None:
    (_, rendered) = tilt.asked["helm"][0]
    chart = yaml.safe_load((ROOT / "deploy/helm/mailrail/Chart.yaml").read_text(encoding="utf-8"))
    assert chart["kubeVersion"] == f">={rendered['kube_version']}-0"
