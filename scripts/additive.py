"""What of a contract is not additive: pure comparisons of what was released (`old`) with what is there now (`new`).

Each answers sentences, and none where all is well. Additive is what leaves each user, each stored object and each
process of the release before as they are: fields, tables, series, commands and values may come, and limits may widen.
Each sentence says where, what, and from what to what.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

Json = Mapping[str, Any]

_ABSENT: Final = object()
_LOWER: Final = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_UPPER: Final = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
_FIXED: Final = (
    "$ref", "prefixItems", "pattern", "format", "const", "not", "oneOf", "if", "then", "else", "multipleOf",
    "propertyNames", "contains",
)  # fmt: skip
"""What cannot be compared, so that another one may refuse what the old one took. To take it away only widens."""
_MERGED: Final = ("x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-map-type")
"""How the API server merges what several managers apply; otherwise one removes what another applied."""
_ADDED: Final = ("allOf", "x-kubernetes-validations")
"""Lists of conditions that must all hold."""


# --- schemas of JSON: CRDs and the chart's values ---------------------------------------------------------------------


def schema(old: Json, new: Json, where: str) -> Iterator[str]:
    """A JSON Schema, or the structural schema of a CRD. `where` names the value that it is about."""
    yield from _kind(old, new, where)
    yield from _limits(old, new, where)
    for word in _ADDED:
        had = [_rule(one) for one in old.get(word, ())]
        for one in new.get(word, ()):
            if _rule(one) not in had:
                yield f"{where}: a new rule may refuse what was taken: {_rule(one)}"
    if old.get("default", _ABSENT) != new.get("default", _ABSENT):
        yield f"{where}: default {_words(old, 'default')}, now {_words(new, 'default')}"
    yield from _properties(old, new, where)
    for word, step in (("items", "[]"), ("additionalProperties", "{}")):
        before, after = old.get(word), new.get(word)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from schema(before, after, where + step)
        elif word == "additionalProperties" and before is not False and after is False:
            yield f"{where}: fields of any name were taken, now only those that are listed"
        elif isinstance(before, Mapping) != isinstance(after, Mapping) and before is not False:
            yield f"{where}{step}: {_words(old, word)}, now {_words(new, word)}"


def _kind(old: Json, new: Json, where: str) -> Iterator[str]:
    before, after = _types(old), _types(new)
    if after and (not before or not before <= after):
        yield f"{where}: type {_words(old, 'type')}, now {_words(new, 'type')}"
    if old.get("nullable") and not new.get("nullable"):
        yield f"{where}: null is no longer taken"
    for word in ("x-kubernetes-preserve-unknown-fields", "x-kubernetes-int-or-string"):
        if old.get(word) and not new.get(word):
            yield f"{where}: {word} is gone"
    if "enum" in new:
        gone = [value for value in old["enum"] if value not in new["enum"]] if "enum" in old else ["all other values"]
        if gone:
            yield f"{where}: no longer taken: {', '.join(map(str, gone))}"
    for one in old.get("anyOf", ()):
        if "anyOf" in new and one not in new["anyOf"]:
            yield f"{where}: one of the alternatives is gone or another: {one}"
    if "anyOf" in new and "anyOf" not in old:
        yield f"{where}: a new rule may refuse what was taken: anyOf {new['anyOf']}"


def _limits(old: Json, new: Json, where: str) -> Iterator[str]:
    for word in (*_LOWER, *_UPPER):
        if word not in new or old.get(word) == new[word]:
            continue
        if word not in old or (new[word] > old[word]) == (word in _LOWER):
            yield f"{where}: {word} {_words(old, word)}, now {new[word]}"
    for word in _FIXED:
        if word in new and old.get(word, _ABSENT) != new[word]:
            yield f"{where}: {word} {_words(old, word)}, now {new[word]}"
    for word in _MERGED:
        if old.get(word, _ABSENT) != new.get(word, _ABSENT):
            yield f"{where}: {word} {_words(old, word)}, now {_words(new, word)}"
    if new.get("uniqueItems") and not old.get("uniqueItems"):
        yield f"{where}: entries must now differ from each other"


def _properties(old: Json, new: Json, where: str) -> Iterator[str]:
    before: Json = old.get("properties", {})
    after: Json = new.get("properties", {})
    for name in before:
        if name not in after:
            yield f"{where}.{name}: the field is gone"
        else:
            yield from schema(before[name], after[name], f"{where}.{name}")
    for name in new.get("required", ()):
        if name not in old.get("required", ()) and "default" not in after.get(name, {}):
            yield f"{where}.{name}: the field is now required"


def _types(one: Json) -> set[str]:
    said = one.get("type", ())
    found = {said} if isinstance(said, str) else set(said)
    return found | {"integer"} if "number" in found else found


def _rule(one: Any) -> str:
    return str(one["rule"]) if isinstance(one, Mapping) and "rule" in one else str(one)


def _words(one: Json, word: str) -> str:
    value = one.get(word, _ABSENT)
    return "none" if value is _ABSENT else repr(value) if isinstance(value, str) else str(value)


def crd(old: Json, new: Json) -> Iterator[str]:
    """One CustomResourceDefinition."""
    name = old["metadata"]["name"]
    was, is_ = old["spec"], new["spec"]
    for field in ("group", "scope"):
        if was[field] != is_[field]:
            yield f"CRD {name}: {field} {was[field]}, now {is_[field]}"
    for field, value in was["names"].items():
        now = is_["names"].get(field)
        lost = [one for one in value if one not in (now or ())] if isinstance(value, list) else value != now
        if lost:
            yield f"CRD {name}: {field} {value}, now {now}"
    versions = {one["name"]: one for one in is_["versions"]}
    for version in was["versions"]:
        now = versions.get(version["name"])
        if now is None or (version["served"] and not now["served"]):
            yield f"CRD {name}: version {version['name']} is no longer served"
            continue
        at = f"CRD {name} {version['name']}: "
        for sub in version.get("subresources", {}):
            if sub not in now.get("subresources", {}):
                yield f"{at}subresource {sub} is gone"
        for one in version.get("selectableFields", ()):
            if one not in now.get("selectableFields", ()):
                yield f"{at}objects can no longer be selected by {one['jsonPath']}"
        for part, field in (("properties", "spec"), ("properties", "status")):
            before = version["schema"]["openAPIV3Schema"].get(part, {}).get(field)
            after = now["schema"]["openAPIV3Schema"].get(part, {}).get(field)
            if before is not None:
                yield from schema(before, after or {}, at + field)
                if after is None:
                    yield f"{at}{field}: the field is gone"


def defaults(old: Any, new: Any, where: str = "values") -> Iterator[str]:
    """Default values of the chart."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name, value in old.items():
            if name not in new:
                yield f"{where}.{name}: the value is gone"
            else:
                yield from defaults(value, new[name], f"{where}.{name}")
    elif old != new:
        yield f"{where}: default {old!r}, now {new!r}"


# --- the database -----------------------------------------------------------------------------------------------------


def database(old: Json, new: Json) -> Iterator[str]:
    """Schemas and migrations. Processes of the release before must run on what the migrations of this one make."""
    for label, checksum in old["migrations"].items():
        if label not in new["migrations"]:
            yield f"migration {label}: the file is gone, and databases have it"
        elif new["migrations"][label] != checksum:
            yield f"migration {label}: it was changed, and databases have it as it was; write a new file"
    for name, before in old["schemas"].items():
        after = new["schemas"].get(name)
        if after is None:
            yield f"schema {name} is gone"
            continue
        for table, parts in before["tables"].items():
            if table not in after["tables"]:
                yield f"table {name}.{table} is gone"
            else:
                yield from _table(parts, after["tables"][table], f"{name}.{table}")
        yield from _same(before["sequences"], after["sequences"], f"sequence {name}.")
        yield from _same(before["functions"], after["functions"], f"function {name}.")


def _table(old: Json, new: Json, name: str) -> Iterator[str]:
    before, after = old["columns"], new["columns"]
    for column, was in before.items():
        now = after.get(column)
        if now is None:
            yield f"column {name}.{column} is gone"
            continue
        if was["type"] != now["type"]:
            yield f"column {name}.{column}: type {was['type']}, now {now['type']}"
        if was["null"] and not now["null"]:
            yield f"column {name}.{column}: it must not be NULL any more, and older processes may write that"
        if now["null"] and not was["null"]:
            yield f"column {name}.{column}: it may be NULL now, and older processes cannot read that"
        if was["default"] != now["default"]:
            yield f"column {name}.{column}: default {was['default']}, now {now['default']}"
    for column, now in after.items():
        if column not in before and not now["null"] and now["default"] is None:
            yield f"column {name}.{column}: it is new and NOT NULL without a default, and older processes leave it out"
    for constraint, definition in new["constraints"].items():
        if constraint not in old["constraints"]:
            yield f"constraint {constraint} of {name} is new, and older rows and processes may break it: {definition}"
    yield from _same(old["constraints"], new["constraints"], f"constraint of {name}: ")
    for index, definition in new["indexes"].items():
        if index not in old["indexes"] and index not in new["constraints"] and "UNIQUE" in definition:
            yield f"index {index} of {name} is new and unique, and older rows and processes may break it"
    constrained = set(old["constraints"])
    kept = {index: definition for index, definition in old["indexes"].items() if index not in constrained}
    yield from _same(kept, new["indexes"], f"index of {name}: ")


def _same(old: Json, new: Json, what: str) -> Iterator[str]:
    for name, definition in old.items():
        if name not in new:
            yield f"{what}{name} is gone"
        elif new[name] != definition:
            yield f"{what}{name}: {definition}, now {new[name]}"


# --- metrics, commands, settings --------------------------------------------------------------------------------------


def metrics(old: Json, new: Json) -> Iterator[str]:
    """Series and alerts: what dashboards, rules and silences of users name."""
    for name, was in old["series"].items():
        now = new["series"].get(name)
        if now is None:
            yield f"series {name} is gone"
            continue
        if was["type"] != now["type"]:
            yield f"series {name}: type {was['type']}, now {now['type']}"
        if sorted(was["labels"]) != sorted(now["labels"]):
            before, after = (", ".join(one["labels"]) or "none" for one in (was, now))
            yield f"series {name}: labels {before}, now {after}"
    for name in old["alerts"]:
        if name not in new["alerts"]:
            yield f"alert {name} is gone"


def commands(old: Json, new: Json) -> Iterator[str]:
    """The command line, as scripts use it."""
    for name, was in old.items():
        now = new.get(name)
        if now is None:
            yield f"command `{name}` is gone"
            continue
        yield from _arguments(was["arguments"], now["arguments"], name)
        for option, before in was["options"].items():
            after = now["options"].get(option)
            if after is None:
                yield f"option `{name} {option}` is gone"
                continue
            for part in ("takes", "environment", "default"):
                if before[part] != after[part]:
                    yield f"option `{name} {option}`: {part} {before[part]!r}, now {after[part]!r}"
            for choice in before["choices"]:
                if choice not in after["choices"]:
                    yield f"option `{name} {option}`: {choice} is no longer taken"
        for option, after in now["options"].items():
            if after["required"] and not was["options"].get(option, {}).get("required"):
                yield f"option `{name} {option}` is now required"


def _arguments(old: Sequence[Json], new: Sequence[Json], name: str) -> Iterator[str]:
    for number, was in enumerate(old):
        if number >= len(new):
            yield f"argument {was['name']} of `{name}` is gone"
        elif was["many"] and not new[number]["many"]:
            yield f"argument {was['name']} of `{name}`: only one is taken now"
    for number, now in enumerate(new):
        if now["required"] and (number >= len(old) or not old[number]["required"]):
            yield f"argument {now['name']} of `{name}` is now required"


def settings(old: Json, new: Json) -> Iterator[str]:
    """Variables of the environment, of each service."""
    for service, before in old.items():
        if service not in new:
            yield f"service {service} is gone, with its settings"
            continue
        for name, was in before.items():
            now = new[service].get(name)
            if now is None:
                yield f"setting {name} is gone"
                continue
            for part in ("type", "default"):
                if was[part] != now[part]:
                    yield f"setting {name}: {part} {was[part]!r}, now {now[part]!r}"


def documents(old: Json, new: Json) -> Iterator[str]:
    """Schemas by class, of JSON that a process of another version reads. A reader passes over fields that it does not
    know; a new value of an enumeration is for decision 23."""
    for name, before in old.items():
        if name in new:
            yield from schema(before, new[name], name)
        else:
            yield f"{name}: it is gone"


COMPARED: Final[Mapping[str, Callable[[Json, Json], Iterator[str]]]] = {
    "documents": documents,
    "database": database,
    "metrics": metrics,
    "commands": commands,
    "settings": settings,
}
"""Name of a JSON file of a frozen contract → its comparison."""
