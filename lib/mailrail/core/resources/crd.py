"""CustomResourceDefinitions from the typed models: structural schemas, CEL from the models' own rules, columns.

What pydantic says in JSON Schema 2020 is put into the subset that Kubernetes accepts: no references, no `null` members,
no `additionalProperties: false` (unknown fields are refused by kubectl's strict validation and pruned otherwise).
Uniqueness by a required field, or of plain values, becomes a list type: the API server checks it without the quadratic
cost that CEL would be charged for.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import BaseModel
from pydantic.alias_generators import to_camel

from mailrail.core.resources import KINDS
from mailrail.core.resources.base import Cidr, HostPort, IpAddress, Part, Resource, parts_of
from mailrail.core.resources.rules import AtMostOneOf, ExactlyOneOf, FieldRule, UniqueBy
from mailrail.core.resources.status import FIRST_STATUS, KIND_INFO

GROUP: Final = "mailrail.dev"
VERSION: Final = "v1alpha1"
CATEGORY: Final = "mailrail"
CEL_UNIQUE_LIMIT: Final = 64
"""Entries of a list up to which uniqueness may be asked of CEL."""

INHERITING: Final = frozenset(("MailDomainSpec",))
"""Specs in which an absent value means the gateway's."""

Schema = dict[str, Any]

_KEPT: Final = (
    "description", "type", "format", "enum", "pattern", "minLength", "maxLength", "minimum", "maximum", "minItems",
    "maxItems", "minProperties", "maxProperties", "x-kubernetes-list-type", "x-kubernetes-list-map-keys",
)  # fmt: skip


def _pattern_of(annotated: Any) -> str:
    return str(annotated.__metadata__[0].pattern)


_FORMATS: Final[Mapping[str, tuple[str, str]]] = {
    _pattern_of(IpAddress): ("isIP(self)", "must be an IPv4 or IPv6 address, without brackets"),
    _pattern_of(Cidr): ("isCIDR(self)", "must be a network, like 10.0.0.0/8 or 2001:db8::/32"),
    _pattern_of(HostPort): (
        "[int(self.substring(self.lastIndexOf(':') + 1))].all(p, p >= 1 && p <= 65535)",
        "the port must be between 1 and 65535",
    ),
}
"""What a pattern cannot say, in CEL's own libraries (Kubernetes 1.31 and later)."""


class _Translator:
    """One model's JSON Schema to a structural one."""

    def __init__(self, root: type[BaseModel]) -> None:
        document = root.model_json_schema(by_alias=True)
        self._definitions: Mapping[str, Schema] = document.pop("$defs", {})
        self._document = document
        self._models: dict[str, type[Part]] = (
            {model.__name__: model for model in parts_of(root)} if issubclass(root, Part) else {}
        )
        self._root = root.__name__

    def translate(self) -> Schema:
        """The schema of the root model."""
        return self._schema(self._document, self._root)

    def _schema(self, source: Mapping[str, Any], name: str = "") -> Schema:
        merged = dict(source)
        if "$ref" in merged:
            name = merged.pop("$ref").rsplit("/", 1)[-1]
            merged = {**self._definitions[name], **merged}
        if "anyOf" in merged:
            members = [m for m in merged.pop("anyOf") if m.get("type") != "null"]
            if len(members) != 1:
                raise ValueError(f"{name or 'a field'}: a union of types has no structural schema")
            inner = self._schema(members[0])
            return _ordered({**inner, **({"description": self._described(merged)} if "description" in merged else {})})
        result: Schema = {k: merged[k] for k in _KEPT if k in merged}
        if "description" in merged:
            result["description"] = self._described(merged)
        if "const" in merged:
            result["enum"] = [merged["const"]]
        if "exclusiveMinimum" in merged:
            result["minimum"], result["exclusiveMinimum"] = merged["exclusiveMinimum"], True
        default = merged.get("default")
        if default not in (None, [], "") and not isinstance(default, dict):
            result["default"] = default
        if result.get("type") == "integer":
            result["format"] = "int64"
        if "items" in merged:
            result["items"] = self._schema(merged["items"])
        if isinstance(merged.get("additionalProperties"), Mapping):
            result["additionalProperties"] = self._schema(merged["additionalProperties"])
        if result.get("pattern") in _FORMATS:
            rule, message = _FORMATS[result["pattern"]]
            result["x-kubernetes-validations"] = [{"rule": rule, "message": message}]
        if result.get("type") == "object" and "properties" in merged:
            properties = {
                field: self._schema(inner)
                for field, inner in merged["properties"].items()
                if not inner.get("x-mailrail-local")
            }
            result["properties"] = properties
            required = [field for field in merged.get("required", ()) if field in properties]
            if required:
                result["required"] = required
            self._rules(result, self._models[name].RULES if name in self._models else ())
        return _ordered(result)

    def _described(self, field: Mapping[str, Any]) -> str:
        """A field's description with its default, which `kubectl explain` does not tell otherwise."""
        text = str(field["description"])
        compiled = field.get("x-mailrail-default")
        if compiled is not None and self._root in INHERITING:
            return f"{text} Default: the gateway's."
        default = field.get("default") if compiled is None else compiled
        if default in (None, [], "", {}):
            return text
        written = ", ".join(map(str, default)) if isinstance(default, list) else str(default)
        return f"{text} Default: {written}."

    @staticmethod
    def _rules(schema: Schema, rules: Sequence[FieldRule]) -> None:
        properties = schema["properties"]
        validations: list[dict[str, str]] = []
        for rule in rules:
            if isinstance(rule, ExactlyOneOf | AtMostOneOf) and any(to_camel(f) not in properties for f in rule.fields):
                continue  # about a field that only local mode has
            if isinstance(rule, UniqueBy) and _list_type(properties[_alias(properties, rule.field)], rule):
                continue
            if rule.cel is not None:
                validations.append({"rule": rule.cel, "message": rule.message})
        if validations:
            schema["x-kubernetes-validations"] = validations


def _alias(properties: Mapping[str, Any], field: str) -> str:
    """The name of a field as written: most are plain camelCase, a few spell an abbreviation."""
    return next(name for name in properties if name.casefold() == to_camel(field).casefold())


def _list_type(field: Schema, rule: UniqueBy) -> bool:
    """Let the API server see to uniqueness, if its list types can say it."""
    if "x-kubernetes-list-type" in field:
        return False
    if rule.key is None and field["items"].get("type") != "object":
        field["x-kubernetes-list-type"] = "set"
        return True
    key = to_camel(rule.key or "")
    if key not in field["items"].get("required", ()):
        if field["maxItems"] > CEL_UNIQUE_LIMIT:
            raise ValueError(f"{rule.message}: too many entries for CEL")
        return False
    field["x-kubernetes-list-type"] = "map"
    field["x-kubernetes-list-map-keys"] = [key]
    return True


_ORDER: Final = (*_KEPT[:1], "type", "format", "default", "enum", "pattern")


def _ordered(schema: Schema) -> Schema:
    """Description and type first: the order of a file that people read."""
    first = {k: schema[k] for k in _ORDER if k in schema}
    return first | {k: v for k, v in schema.items() if k not in first}


def spec_schema(model: type[Resource]) -> Schema:
    """The structural schema of `spec`."""
    return _Translator(model.model_fields["spec"].annotation).translate()  # type: ignore[arg-type]


def status_schema(kind: str) -> Schema:
    """The structural schema of `status`."""
    return _ordered(_Translator(KIND_INFO[kind].status).translate() | {"default": FIRST_STATUS})


def custom_resource_definition(kind: str) -> dict[str, Any]:
    """The CRD of a kind, ready to be written as YAML."""
    model, info = KINDS[kind], KIND_INFO[kind]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{model.PLURAL}.{GROUP}",
            "labels": {"app.kubernetes.io/name": "mailrail", "app.kubernetes.io/part-of": "mailrail"},
        },
        "spec": {
            "group": GROUP,
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": model.PLURAL,
                "singular": kind.lower(),
                "shortNames": [model.SHORT],
                "categories": [CATEGORY],
            },
            "scope": "Namespaced",
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [
                        {
                            "name": column.name,
                            "type": column.type,
                            "jsonPath": column.path,
                            **({"priority": 1} if column.wide else {}),
                        }
                        for column in info.columns
                    ],
                    **(
                        {"selectableFields": [{"jsonPath": path} for path in info.selectable]}
                        if info.selectable
                        else {}
                    ),
                    "schema": {
                        "openAPIV3Schema": {
                            "description": (model.__doc__ or kind).strip(),
                            "type": "object",
                            "required": ["spec"],
                            "properties": {
                                "apiVersion": {"type": "string"},
                                "kind": {"type": "string"},
                                "metadata": {"type": "object"},
                                "spec": spec_schema(model),
                                "status": status_schema(kind),
                            },
                        }
                    },
                }
            ],
        },
    }
