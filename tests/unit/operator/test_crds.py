"""The generated CRDs: bounded everywhere, and of one mind with the models that local mode uses."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mailrail.core.config.diagnostics import ConditionType
from mailrail.core.resources import KINDS, InvalidResource, canonical, read
from mailrail.core.resources.crd import custom_resource_definition, spec_schema
from mailrail.core.resources.status import KIND_INFO

ROOT = Path(__file__).resolve().parents[3]
MUST_FAIL = sorted((ROOT / "tests/cluster/manifests/must-fail").glob("*.yaml"))
EXAMPLES = sorted((ROOT / "docs/examples").rglob("*.yaml"))


def schemas(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema within one, with its path."""
    yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from schemas(inner, f"{path}.{name}")
    for step, key in (("[]", "items"), ("{}", "additionalProperties")):
        if key in schema:
            yield from schemas(schema[key], path + step)


def root_schema(kind: str) -> dict[str, Any]:
    crd = custom_resource_definition(kind)
    found: dict[str, Any] = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    return {"properties": {k: found[k] for k in ("spec", "status")}}


@pytest.mark.parametrize("kind", KINDS)
def test_every_string_and_every_list_has_a_bound_because_cel_is_charged_by_it(kind: str) -> None:
    for path, schema in schemas(root_schema(kind), ""):
        if schema.get("type") == "string" and "enum" not in schema:
            assert "maxLength" in schema, path
        if schema.get("type") == "array":
            assert "maxItems" in schema, path
        if "additionalProperties" in schema:
            assert "maxProperties" in schema, path


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_says_what_it_is_for(kind: str) -> None:
    for path, schema in schemas(spec_schema(KINDS[kind]), "spec"):
        if not path.endswith(("[]", "{}")):
            assert schema.get("description"), path


@pytest.mark.parametrize("kind", KINDS)
def test_a_crd_has_a_status_subresource_a_category_a_short_name_and_columns_from_ready_to_age(kind: str) -> None:
    crd = custom_resource_definition(kind)
    version = crd["spec"]["versions"][0]
    assert version["subresources"] == {"status": {}}
    assert crd["spec"]["names"]["categories"] == ["mailrail"]
    assert crd["spec"]["names"]["shortNames"] in (["mgw"], ["mdom"], ["macct"], ["mtrans"], ["mroute"])
    columns = version["additionalPrinterColumns"]
    assert columns[0]["jsonPath"] == '.status.conditions[?(@.type=="Ready")].status'
    assert columns[-1] == {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}


def test_what_is_no_part_of_ready_has_a_column_beside_it() -> None:
    for kind, name, condition in (("MailDomain", "DNS", "DNSConfigured"), ("MailTransport", "Healthy", "Healthy")):
        columns = custom_resource_definition(kind)["spec"]["versions"][0]["additionalPrinterColumns"]
        path = f'.status.conditions[?(@.type=="{condition}")].status'
        assert {"name": name, "type": "string", "jsonPath": path} in columns, kind


@pytest.mark.parametrize("kind", KINDS)
def test_conditions_are_a_map_by_type_so_that_server_side_apply_owns_single_ones(kind: str) -> None:
    conditions = root_schema(kind)["properties"]["status"]["properties"]["conditions"]
    assert (conditions["x-kubernetes-list-type"], conditions["x-kubernetes-list-map-keys"]) == ("map", ["type"])
    assert set(conditions["items"]["required"]) == {"type", "status", "lastTransitionTime", "reason", "message"}
    assert conditions["maxItems"] > len(ConditionType)


def test_a_list_unique_by_a_required_field_is_left_to_the_api_server_and_costs_no_cel() -> None:
    schema = spec_schema(KINDS["MailDomain"])
    aliases = schema["properties"]["aliases"]
    assert (aliases["x-kubernetes-list-type"], aliases["x-kubernetes-list-map-keys"]) == ("map", ["localPart"])
    assert not [rule for rule in schema["x-kubernetes-validations"] if "exists_one" in rule["rule"]]


@pytest.mark.parametrize("kind", KINDS)
def test_no_default_is_stored_inside_a_list_that_one_client_owns_whole(kind: str) -> None:
    """What a client applied would differ from what is stored, for ever: `kubectl diff` and GitOps compare the list."""
    atomic = [
        path
        for path, schema in schemas(spec_schema(KINDS[kind]), "spec")
        if schema.get("type") == "array" and schema.get("x-kubernetes-list-type", "atomic") == "atomic"
    ]
    inside = [
        path
        for path, schema in schemas(spec_schema(KINDS[kind]), "spec")
        if "default" in schema and any(path.startswith(f"{above}[") for above in atomic)
    ]
    assert inside == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_optional_field_says_what_holds_without_it(kind: str) -> None:
    """`kubectl explain` shows descriptions, and no default."""
    silent = [
        f"{path}.{name}"
        for path, schema in schemas(spec_schema(KINDS[kind]), "spec")
        for name, field in schema.get("properties", {}).items()
        if name not in schema.get("required", ()) and "Default:" not in field["description"]
        if not any("exactly one" in rule["message"] for rule in schema.get("x-kubernetes-validations", ()))
    ]
    assert silent == []


@pytest.mark.parametrize("kind", KINDS)
def test_no_rule_names_a_field_by_a_reserved_word_of_cel(kind: str) -> None:
    """Unescaped, an API server cannot bound what the rule costs and refuses the whole CRD."""
    reserved = (
        r"\.(as|break|const|continue|else|for|function|if|import|let|loop|package|namespace|return|var|void|while)\b"
    )
    rules = [
        rule["rule"]
        for _, schema in schemas(spec_schema(KINDS[kind]), "spec")
        for rule in schema.get("x-kubernetes-validations", ())
    ]
    assert [rule for rule in rules if re.search(reserved, rule)] == []


def test_a_field_that_must_not_change_is_guarded_by_a_transition_rule() -> None:
    [rule] = [r for r in spec_schema(KINDS["MailDomain"])["x-kubernetes-validations"] if "oldSelf" in r["rule"]]
    assert rule["rule"] == "self.domainName == oldSelf.domainName"
    assert rule["message"].startswith("domainName cannot be changed: make a MailDomain with the other name")


def test_fields_of_local_mode_alone_are_not_in_the_crds() -> None:
    paths = [path for path, _ in schemas(spec_schema(KINDS["MailTransport"]), "spec")]
    assert "spec.smtp.tls.caSecretRef" in paths
    assert not [path for path in paths if path.endswith("caFile")]


@pytest.mark.parametrize("kind", KINDS)
def test_columns_and_selectable_fields_name_fields_that_exist(kind: str) -> None:
    paths = {path for path, _ in schemas(root_schema(kind), "")}
    for path in (*(c.path for c in KIND_INFO[kind].columns), *KIND_INFO[kind].selectable):
        plain = path.split("[?")[0]
        assert plain in paths or plain == ".metadata.creationTimestamp", path


@pytest.mark.parametrize("path", MUST_FAIL, ids=lambda p: p.stem)
def test_local_mode_refuses_what_the_api_server_must_refuse(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# must fail with: ")
    document = yaml.safe_load(text)
    if path.stem == "transport-with-a-file":
        return  # caFile is the one field that only local mode has
    with pytest.raises(InvalidResource):
        read(canonical(document), document["kind"])


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_every_example_is_a_valid_resource(path: Path) -> None:
    documents = [d for d in yaml.safe_load_all(path.read_text(encoding="utf-8")) if d["kind"] in KINDS]
    assert documents
    for document in documents:
        assert read(canonical(document), document["kind"]).metadata.name == document["metadata"]["name"]


def test_there_are_enough_manifests_that_must_fail_for_every_kind() -> None:
    kinds = [yaml.safe_load(path.read_text(encoding="utf-8"))["kind"] for path in MUST_FAIL]
    assert {kind: kinds.count(kind) for kind in KINDS if kinds.count(kind) < 3} == {}
