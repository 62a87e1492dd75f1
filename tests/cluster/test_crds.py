"""The CRDs on a real API server: what must be refused is refused with its message, what is documented is accepted."""

import json
import re
from pathlib import Path

import pytest
import yaml
from cluster.conftest import CRDS, ROOT, Kubectl
from cluster.stage import manifest

from mailrail.core.resources import KINDS

MUST_FAIL = sorted((Path(__file__).parent / "manifests/must-fail").glob("*.yaml"))
EXAMPLES = sorted((ROOT / "docs/examples").rglob("*.yaml"))
RELEASED = sorted(p for p in (ROOT / "tests/contract").glob("*/examples/*/*.yaml") if p.parent.name != "local")
"""Objects that a release took on a cluster."""


@pytest.mark.parametrize("path", MUST_FAIL, ids=lambda p: p.stem)
def test_a_wrong_manifest_is_refused_at_apply_with_its_message(cluster: Kubectl, path: Path) -> None:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    message = first.removeprefix("# must fail with: ")
    assert message not in ("", first)
    done = cluster.try_("apply", "--validate=strict", "--dry-run=server", "-f", str(path))
    assert done.returncode != 0
    assert message in done.stderr


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_every_example_is_accepted(cluster: Kubectl, path: Path) -> None:
    out = cluster("apply", "--validate=strict", "--dry-run=server", "-f", str(path))
    assert out.count("(server dry run)") == len(list(yaml.safe_load_all(path.read_text(encoding="utf-8"))))


@pytest.mark.parametrize("path", RELEASED, ids=lambda p: "-".join((p.parts[-4], *p.parts[-2:])))
def test_every_example_of_a_release_is_still_accepted(cluster: Kubectl, path: Path) -> None:
    cluster("apply", "--validate=strict", "--dry-run=server", "-f", str(path))


@pytest.mark.parametrize("kind", KINDS)
def test_the_schema_is_structural_and_the_names_are_ours(cluster: Kubectl, kind: str) -> None:
    crd = json.loads(cluster("get", "crd", f"{KINDS[kind].PLURAL}.mailrail.dev", "-o", "json"))
    conditions = {c["type"]: c["status"] for c in crd["status"]["conditions"]}
    assert conditions["Established"] == conditions["NamesAccepted"] == "True"
    assert conditions.get("NonStructuralSchema", "False") == "False"
    assert crd["status"]["acceptedNames"]["shortNames"] == [KINDS[kind].SHORT]


def test_the_category_lists_every_kind_and_columns_show_what_matters(kubectl: Kubectl) -> None:
    for path in EXAMPLES:
        kubectl("apply", "-f", str(path))
    listed = kubectl("get", "mailrail")
    for model in KINDS.values():
        assert f"{model.PLURAL.removesuffix('s')}.mailrail.dev/" in listed
    assert re.match(r"NAME +READY +HOSTNAME +DOMAINS +REVISION +AGE", kubectl("get", "mgw"))
    assert re.match(r"NAME +READY +DOMAIN +ACCOUNTS +DNS +AGE", kubectl("get", "mdom"))
    assert re.match(r"NAME +READY +DOMAIN +ADDRESSES +AGE", kubectl("get", "macct"))
    assert re.match(r"NAME +READY +TYPE +ENDPOINT +REFS +HEALTHY +AGE", kubectl("get", "mtrans"))
    assert re.match(r"NAME +READY +LEVEL +PRIORITY +RULES +SHADOWED +AMBIGUOUS +AGE", kubectl("get", "mroute"))


def test_fields_that_people_join_by_can_be_selected(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", str(ROOT / "docs/examples/domains.yaml"))
    found = kubectl("get", "mdom", "--field-selector", "spec.domainName=stored.example", "-o", "name")
    assert found.split() == ["maildomain.mailrail.dev/stored"]


def test_a_write_to_the_spec_leaves_status_alone_and_the_other_way_round(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", str(ROOT / "docs/examples/domains.yaml"))
    kubectl("patch", "mdom", "stored", "--type=merge", "-p", '{"status": {"accounts": 3}}')
    assert kubectl("get", "mdom", "stored", "-o", "jsonpath={.status.accounts}") == ""
    patch = ("patch", "mdom", "stored", "--type=merge", "--subresource=status", "-p")
    kubectl(*patch, '{"status": {"accounts": 3}, "spec": {"domainName": "changed.example"}}')
    got = kubectl(
        "get", "mdom", "stored", "-o", "jsonpath={.status.accounts} {.spec.domainName} {.metadata.generation}"
    )
    assert got == "3 stored.example 1"


def test_the_name_of_a_domain_cannot_be_changed(kubectl: Kubectl) -> None:
    spec = {"domainName": "example.org", "gatewayRef": {"name": "mx1"}, "delivery": {"mailbox": {}}}
    kubectl.apply(manifest("MailDomain", "org", spec))
    kubectl.apply(manifest("MailDomain", "org", spec | {"catchAll": "alice"}))
    changed = kubectl.try_(
        "apply", "-f", "-", stdin=manifest("MailDomain", "org", spec | {"domainName": "example.net"})
    )
    assert "domainName cannot be changed: make a MailDomain with the other name, then delete this one" in changed.stderr


def test_an_object_may_have_any_name_that_kubernetes_allows(kubectl: Kubectl) -> None:
    long = "a-name-without-a-dot-" + "x" * 200
    transport = {"submission": {"host": "h.example", "auth": {"secretRef": {"name": long}}}}
    kubectl.apply(manifest("MailTransport", long, transport))
    assert kubectl("get", "mtrans", long, "-o", "jsonpath={.spec.submission.auth.secretRef.passwordKey}") == "password"


def test_every_file_of_crds_fits_the_annotation_of_a_client_side_apply(cluster: Kubectl) -> None:
    for path in CRDS.glob("*.yaml"):  # kubectl stores the object as JSON in an annotation of at most 256 KiB
        assert len(json.dumps(yaml.safe_load(path.read_text(encoding="utf-8")))) < 200_000, path.name
