"""What the API server says of fields that its schema lacks, and a status without them."""

from typing import Any

import pytest

from mailrail_operator.declared import undeclared, without

STATUS: dict[str, Any] = {
    "observedGeneration": 2,
    "listeners": [{"name": "mx", "programmed": True}],
    "conditions": [{"type": "Ready", "status": "True"}, {"type": "Accepted", "status": "True", "seen": 1}],
}
PREFIX = "failed to create typed patch object (mail/a.status.b; mailrail.dev/v1alpha1, Kind=MailGateway): "


@pytest.mark.parametrize(
    ("refusal", "paths"),
    [
        (".status.listeners: field not declared in schema", {("listeners",)}),
        (
            "errors:\n  .status.listeners: field not declared in schema\n"
            '  .status.conditions[type="a]. \\"b"].seen: field not declared in schema\n'
            "  .status.parents[0].conditions[1].seen: field not declared in schema",
            {("listeners",), ("conditions", "seen"), ("parents", "conditions", "seen")},
        ),
        (".spec.listeners: field not declared in schema", set()),
        (".status.listeners: expected list, got &{map[]}", set()),
        ("mailgateways/status is forbidden", set()),
    ],
)
def test_fields_are_named_from_the_status_on_whatever_the_entry_and_the_object(
    refusal: str, paths: set[tuple[str, ...]]
) -> None:
    assert undeclared(PREFIX + refusal) == paths


def test_what_is_left_out_is_left_out_of_each_entry_and_nothing_else_goes() -> None:
    assert without(STATUS, frozenset()) is STATUS
    assert without(STATUS, frozenset({("other",), ("observedGeneration", "deeper")})) == STATUS
    assert without(STATUS, frozenset({("listeners",), ("conditions", "seen")})) == {
        "observedGeneration": 2,
        "conditions": [{"type": "Ready", "status": "True"}, {"type": "Accepted", "status": "True"}],
    }
