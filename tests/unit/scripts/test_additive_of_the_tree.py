"""Whatever is taken from a field of the real schemas is refused: each field, each limit, each value, one at a time."""

import json
from collections.abc import Iterator
from typing import Any

import additive
import contract
import pytest
import yaml

SCHEMAS: dict[str, Any] = {
    path.stem: yaml.safe_load(path.read_text(encoding="utf-8"))["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for path in sorted((contract.CHART / "files/crds").glob("*.yaml"))
}
SCHEMAS["values"] = json.loads((contract.CHART / "values.schema.json").read_text(encoding="utf-8"))
COMPARED = {
    *additive._LOWER, *additive._UPPER, *additive._FIXED, *additive._MERGED, *additive._ADDED, "type", "nullable",
    "enum", "anyOf", "properties", "required", "items", "additionalProperties", "default", "uniqueItems",
    "x-kubernetes-preserve-unknown-fields", "x-kubernetes-int-or-string",
}  # fmt: skip
SAYS_NOTHING_OF_VALUES = {"description", "title", "$schema"}


def nodes(schema: Any) -> Iterator[Any]:
    """A schema and all below it that `additive.schema` steps into."""
    yield schema
    below = [*schema.get("properties", {}).values(), schema.get("items"), schema.get("additionalProperties")]
    for one in below:
        if isinstance(one, dict):
            yield from nodes(one)


def narrowed(node: Any) -> Iterator[str]:
    """Change a schema in one way after the other, saying which, and undo each."""

    def with_(word: str, value: Any) -> Iterator[str]:
        before = dict(node)
        node[word] = value
        yield f"{word}: {before.get(word)} -> {value}"
        node.clear()
        node.update(before)

    yield from with_("type", "null")
    yield from with_("default", {"another": "default"})
    yield from with_("pattern", "^another$")
    for word, step in ((word, step) for words, step in ((additive._LOWER, 1), (additive._UPPER, -1)) for word in words):
        if word in node:
            yield from with_(word, node[word] + step)
    if "enum" in node:
        yield from with_("enum", node["enum"][:-1])
    for name in list(node.get("properties", {})):
        yield from with_("properties", {key: one for key, one in node["properties"].items() if key != name})
        if name not in node.get("required", ()) and "default" not in node["properties"][name]:
            yield from with_("required", [*node.get("required", ()), name])
    for word in {*additive._FIXED, *additive._MERGED} & node.keys():
        yield from with_(word, {"const": "another"})
    if isinstance(node.get("additionalProperties"), dict):
        yield from with_("additionalProperties", False)


@pytest.mark.parametrize("name", SCHEMAS)
def test_no_field_limit_or_value_of_a_real_schema_can_be_taken_away_unnoticed(name: str) -> None:
    old, new = SCHEMAS[name], json.loads(json.dumps(SCHEMAS[name]))
    assert list(additive.schema(old, new, "")) == []
    tried = 0
    for was, node in zip(nodes(old), list(nodes(new)), strict=True):
        for change in narrowed(node):
            tried += 1
            assert list(additive.schema(was, node, "")), (was, change)
    assert tried > 100


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_word_of_a_real_schema_is_compared(name: str) -> None:
    words = {word for node in nodes(SCHEMAS[name]) for word in node}
    assert words - COMPARED - SAYS_NOTHING_OF_VALUES == set()
