"""`helm test`: what it makes is accepted, and what it waits for is Ready of the newest generation."""

import json
from typing import Any

import pytest

from mailrail.cluster.helm_test import HelmTest, bound, ready
from mailrail.core.resources import KINDS

TEST = HelmTest(namespace="mail", name="t", domain="t.invalid", mx=("mx", 25), queue="queue:7002", within=1)


@pytest.mark.parametrize("gateway", [None, "mx1"])
def test_what_it_makes_is_valid(gateway: str | None) -> None:
    documents = TEST.documents(gateway)
    assert ("MailGateway" in dict(documents)) == (gateway is None)
    for kind, body in documents:
        KINDS[kind].model_validate_json(json.dumps(body))


def test_a_domain_of_an_existing_gateway_names_it() -> None:
    assert dict(TEST.documents("mx1"))["MailDomain"]["spec"]["gatewayRef"] == {"name": "mx1"}


def _object(status: str, generation: int) -> dict[str, Any]:
    condition = {"type": "Ready", "status": status, "reason": "R", "message": "M", "observedGeneration": generation}
    return {"metadata": {"generation": 2}, "status": {"conditions": [condition]}}


def test_ready_counts_only_of_the_present_generation() -> None:
    assert ready(_object("True", 2))[0]
    assert not ready(_object("True", 1))[0]
    assert ready(_object("False", 2)) == (False, "False, R: M")
    assert "operator" in ready({"metadata": {"generation": 1}})[1]


def _claim(phase: str, **spec: str) -> dict[str, Any]:
    return {"spec": spec, "status": {"phase": phase}}


def test_a_volume_that_is_there_says_nothing() -> None:
    assert bound(_claim("Bound", storageClassName="fast"), "data-mailrail-postgres-0") == ""


@pytest.mark.parametrize(
    ("claim", "words"),
    [
        (_claim("Pending"), ["no default StorageClass", "postgres.bundled.persistence.storageClassName"]),
        (_claim("Pending", storageClassName="fast"), ["StorageClass fast", "postgres.bundled.persistence"]),
        (_claim("Lost", storageClassName="fast"), ["lost its volume"]),
        (None, ["does not exist"]),
    ],
)
def test_a_claim_without_a_volume_says_what_to_do(claim: dict[str, Any] | None, words: list[str]) -> None:
    said = bound(claim, "data-mailrail-postgres-0")
    assert [word for word in ("data-mailrail-postgres-0", *words) if word not in said] == [], said
