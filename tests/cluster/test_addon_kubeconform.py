"""All that the chart renders, and all examples, against the schemas of a real API server: no field that nobody knows.

The API server's own dry run (`make helm-lint`) judges values and rules as well, but drops a field that a CRD lacks.
"""

import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster.addons import needs
from cluster.conftest import ROOT, Kubectl

from testkit.chart import CHART, helm_template

pytestmark = [needs("kubeconform", "cert-manager", "prometheus-operator", "keda-crds"), pytest.mark.timeout(180)]

NOT_SERVED = "HTTPRoute"
"""The Gateway API is no part of this API server, so no schema of it is at hand."""

EXAMPLES = sorted((ROOT / "docs/examples").rglob("*.yaml"))


@pytest.fixture(scope="module")
def schemas(cluster: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a JSON schema of each kind that the API server has, ours included, as kubeconform names them."""
    folder = tmp_path_factory.mktemp("schemas")
    paths = json.loads(cluster("get", "--raw", "/openapi/v3"))["paths"]
    for path, where in paths.items():
        if path.startswith(("api/", "apis/")):
            document = json.loads(cluster("get", "--raw", where["serverRelativeURL"]))
            for name, schema in kinds(path, document.get("components", {}).get("schemas", {})):
                (folder / name).write_text(json.dumps(schema), encoding="utf-8")
    return folder


def kinds(path: str, definitions: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The kinds of one group and version (`apis/GROUP/VERSION` or `api/v1`): file name and schema of each."""
    known = {name: strict(definition) for name, definition in definitions.items()}
    for name, definition in definitions.items():
        for kind in definition.get("x-kubernetes-group-version-kind", ()):
            group, version = kind["group"], kind["version"]
            if path == (f"apis/{group}/{version}" if group else f"api/{version}"):
                schema = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": known}}
                yield f"{kind['kind'].lower()}-{group or version}-{version}.json", schema


def strict(node: Any) -> Any:
    """A schema of OpenAPI as a strict one of JSON Schema: a field that it does not name is a mistake."""
    if isinstance(node, list):
        return [strict(one) for one in node]
    if not isinstance(node, dict):
        return node
    made = {key: strict(value) for key, value in node.items()}
    if isinstance(made.get("properties"), dict) and not made.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    if made.get("nullable") and isinstance(made.get("type"), str):
        made["type"] = [made["type"], "null"]
    return made


def judged(text: str, schemas: Path) -> subprocess.CompletedProcess[str]:
    """What kubeconform says of YAML text."""
    where = f"{schemas}/{{{{.ResourceKind}}}}-{{{{.Group}}}}-{{{{.ResourceAPIVersion}}}}.json"
    command = ["kubeconform", "-strict", "-summary", "-skip", NOT_SERVED, "-schema-location", where, "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("values", sorted((CHART / "ci").glob("*-values.yaml")), ids=lambda path: path.stem)
def test_all_that_the_chart_renders_is_valid_by_the_schemas(values: Path, schemas: Path, tmp_path: Path) -> None:
    rendered = helm_template(yaml.safe_load(values.read_text(encoding="utf-8")), tmp_path)
    assert rendered.returncode == 0, rendered.stderr
    done = judged(rendered.stdout, schemas)
    assert done.returncode == 0, done.stdout
    assert f"Skipped: {rendered.stdout.count(f'kind: {NOT_SERVED}')}" in done.stdout


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: str(path.relative_to(ROOT / "docs/examples")))
def test_every_example_is_valid_by_our_own_schemas(example: Path, schemas: Path) -> None:
    done = judged(example.read_text(encoding="utf-8"), schemas)
    assert done.returncode == 0, done.stdout
    assert "Skipped: 0" in done.stdout


@pytest.mark.parametrize("where", [("spec",), ("spec", "listeners", 0), ("metadata",)], ids=lambda path: str(path[-1]))
def test_a_field_that_nobody_knows_is_a_mistake_at_any_depth(where: tuple[str | int, ...], schemas: Path) -> None:
    gateway = next(yaml.safe_load_all((ROOT / "docs/examples/gateway.yaml").read_text(encoding="utf-8")))
    assert gateway["kind"] == "MailGateway"
    place = gateway
    for name in where:
        place = place[name]
    place["hostnmae"] = "mx1.example.org"
    done = judged(yaml.safe_dump(gateway), schemas)
    assert done.returncode != 0
    assert "additional properties 'hostnmae' not allowed" in done.stdout
