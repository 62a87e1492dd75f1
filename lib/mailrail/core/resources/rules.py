"""Rules between the fields of one resource, said once: Python checks them here, and the CRDs carry them as CEL.

A rule that a single object breaks is refused before it is stored (design 5). The Kubernetes API server can only
do so in CEL, local mode only in Python; writing each rule twice would let the two drift apart. So a model lists its
rules, and each rule knows its check, its CEL expression and the sentence that people read.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic.alias_generators import to_camel


class FieldRule(Protocol):
    """A condition on one model that types and patterns cannot say."""

    @property
    def message(self) -> str:
        """What people read when it is broken, without the field's path."""
        ...

    @property
    def cel(self) -> str | None:
        """The same condition for `x-kubernetes-validations`; None where CEL cannot see the fields."""
        ...

    def holds(self, model: Any) -> bool:
        """Whether the model, already valid field by field, keeps the rule."""
        ...


def _listed(names: Sequence[str], word: str) -> str:
    camel = [to_camel(n) for n in names]
    return camel[0] if len(camel) == 1 else f"{', '.join(camel[:-1])} {word} {camel[-1]}"


@dataclass(frozen=True)
class ExactlyOneOf:
    """A union: one member is set, and no other."""

    fields: tuple[str, ...]

    @property
    def message(self) -> str:
        """The members, by name."""
        return f"set exactly one of {_listed(self.fields, 'or')}"

    @property
    def cel(self) -> str:
        """Counts the members that are there."""
        members = ", ".join(f"has(self.{to_camel(f)})" for f in self.fields)
        return f"[{members}].filter(x, x).size() == 1"

    def holds(self, model: Any) -> bool:
        """One member is not None."""
        return sum(getattr(model, f) is not None for f in self.fields) == 1


@dataclass(frozen=True)
class AtMostOneOf:
    """Fields that exclude each other."""

    fields: tuple[str, ...]

    @property
    def message(self) -> str:
        """The members, by name."""
        return f"set only one of {_listed(self.fields, 'or')}"

    @property
    def cel(self) -> str:
        """Counts the members that are there."""
        members = ", ".join(f"has(self.{to_camel(f)})" for f in self.fields)
        return f"[{members}].filter(x, x).size() <= 1"

    def holds(self, model: Any) -> bool:
        """At most one member is not None."""
        return sum(getattr(model, f) is not None for f in self.fields) <= 1


@dataclass(frozen=True)
class UniqueBy:
    """No two entries of a list share the value of one of their fields (or, without a field, are equal)."""

    field: str
    key: str | None = None
    alias: str | None = None  # as documents spell the field, where that is not its name in camel case

    @property
    def list_name(self) -> str:
        """The list, as documents spell it."""
        return self.alias or to_camel(self.field)

    @property
    def demand(self) -> str:
        """What is asked of its entries."""
        return f"each entry needs a different {to_camel(self.key)}" if self.key else "entries must be unique"

    @property
    def message(self) -> str:
        """Which list, and what is asked of it."""
        return f"{self.list_name}: {self.demand}"

    @property
    def cel(self) -> str:
        """Each entry exists once."""
        name = self.list_name
        if self.key is None:
            return f"!has(self.{name}) || self.{name}.all(a, self.{name}.exists_one(b, b == a))"
        key = to_camel(self.key)  # entries without it do not count
        same = f"self.{name}.exists_one(b, has(b.{key}) && b.{key} == a.{key})"
        return f"!has(self.{name}) || self.{name}.all(a, !has(a.{key}) || {same})"

    def holds(self, model: Any) -> bool:
        """The set of values is as long as the list."""
        entries = getattr(model, self.field)
        if not entries or len(entries) == 1:
            return True
        values = [getattr(e, self.key) if self.key else e for e in entries]
        values = [v for v in values if v is not None]
        return len(set(values)) == len(values)


@dataclass(frozen=True)
class Immutable:
    """A field keeps its value for the object's life. Only an API server knows the value before; here it is read."""

    field: str
    advice: str

    @property
    def message(self) -> str:
        """Which field, and what to do in place of changing it."""
        return f"{to_camel(self.field)} cannot be changed: {self.advice}"

    @property
    def cel(self) -> str:
        """A transition rule: it is asked when an object is updated."""
        name = to_camel(self.field)
        return f"self.{name} == oldSelf.{name}"

    def holds(self, model: Any) -> bool:
        """One document shows no change."""
        return True


@dataclass(frozen=True)
class CelCondition:
    """Any other condition: the Python test and its CEL stand side by side, so that a reader can compare them."""

    text: str
    expression: str | None
    test: Callable[[Any], bool]

    @property
    def message(self) -> str:
        """As written."""
        return self.text

    @property
    def cel(self) -> str | None:
        """As written."""
        return self.expression

    def holds(self, model: Any) -> bool:
        """The Python test."""
        return self.test(model)
