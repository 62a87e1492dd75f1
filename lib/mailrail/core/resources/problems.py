"""What is wrong with a document, in words that say where and what to write.

pydantic's errors speak of types and patterns; people who write YAML want the field's path as they wrote it and the
values that are allowed. Nothing here repeats a value that could be a secret: Secrets are judged elsewhere.
"""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from mailrail.core.resources.base import PATTERN_MEANINGS, Part
from mailrail.core.smtp.address import AddressError, domain_to_ascii

Path = tuple[str | int, ...]

SHOWN_LIMIT: Final = 60
"""Characters of a wrong value that a message repeats."""
PROBLEMS_LIMIT: Final = 20
"""Problems of one document that are reported; further ones are counted."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, at one place."""

    path: Path
    message: str

    def __str__(self) -> str:
        return f"{show_path(self.path)}: {self.message}" if self.path else self.message


class InvalidResource(ValueError):
    """The document is not a valid resource; `problems` says why, in document order."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(str(p) for p in self.problems))


def show_path(path: Path) -> str:
    """`spec.rules[0].transportRef`, as people write paths."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def shown(value: Any) -> str:
    """A wrong value for a message: one line, printable, not longer than a glance."""
    text = value if isinstance(value, str) else repr(value)
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= SHOWN_LIMIT else text[: SHOWN_LIMIT - 1] + "…"


_KINDS: Final = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping of fields",
    "model_attributes_type": "a mapping of fields",
}


_HOST_AND_PORT: Final = re.compile(r"(?:\[([^\]]{1,255})\]|([^:/\s]{1,255})):[0-9]{1,5}")


def _what_it_is(value: Any) -> str:
    match value:
        case None:
            return "empty"
        case bool():
            return f"{str(value).lower()} (a yes/no value; put it in quotes if text is meant)"
        case int() | float():
            return f"the number {value}"
        case str():
            return f"the text {shown(value)!r}"
        case list() | tuple():
            return "a list"
        case _:
            return "a mapping"


def _hint(pattern: str, value: Any) -> str:
    """Where a host or domain name only needs its other spelling, say which one."""
    meaning = PATTERN_MEANINGS.get(pattern, "")
    if isinstance(value, str) and "host name" in meaning and (both := _HOST_AND_PORT.fullmatch(value)):
        return f"; write {both[1] or both[2]}, and the port in its own field"
    if not isinstance(value, str) or not ("A-label" in meaning or "subdomain" in meaning):
        return ""
    dot = "." if value.startswith(".") and "subdomain" in meaning else ""
    try:
        better = dot + domain_to_ascii(value.strip().rstrip(".").removeprefix(dot))
    except AddressError:
        return ""
    return f"; write {better}"


def _inner_model(annotation: Any, step: str | int) -> type[Part] | None:
    """The model that a field's annotation leads to, if one does."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation  # type: ignore[return-value]
    for inner in getattr(annotation, "__args__", ()):
        found = _inner_model(inner, step)
        if found is not None:
            return found
    return None


def _model_at(root: type[BaseModel], path: Path) -> type[BaseModel] | None:
    model: type[BaseModel] | None = root
    for step in path:
        if isinstance(step, int) or model is None:
            continue
        found = next((f for n, f in model.model_fields.items() if step in (f.alias, n)), None)
        if found is None:
            return None
        model = _inner_model(found.annotation, step)
    return model


def _unknown(root: type[BaseModel], path: Path) -> str:
    model = _model_at(root, path[:-1])
    if model is None:
        return "there is no such field"
    known = [info.alias or name for name, info in model.model_fields.items()]
    near = difflib.get_close_matches(str(path[-1]), known, n=1, cutoff=0.6)
    if near:
        return f"there is no such field; did you mean {near[0]}?"
    return f"there is no such field; possible here: {', '.join(known)}"


def _message(root: type[BaseModel], path: Path, error: Any) -> str:
    context, value = error.get("ctx", {}), error.get("input")
    match error["type"]:
        case "missing":
            return "is required"
        case "extra_forbidden":
            return _unknown(root, path)
        case "string_pattern_mismatch":
            pattern = context["pattern"]
            meaning = PATTERN_MEANINGS.get(pattern, f"text that matches {pattern}")
            return f"{shown(value)!r} should be {meaning}{_hint(pattern, value)}"
        case "enum" | "literal_error":
            possible = context["expected"].replace(chr(39), "").replace(" or ", ", ")
            if isinstance(value, str):
                return f"{shown(value)!r} is not one of {possible}"
            return f"must be one of {possible}, not {_what_it_is(value)}"
        case "greater_than_equal":
            return f"{value} is too small; at least {context['ge']}"
        case "less_than_equal":
            return f"{value} is too large; at most {context['le']}"
        case "greater_than":
            return f"{value} is too small; more than {context['gt']}"
        case "string_too_short":
            return "must not be empty"
        case "string_too_long":
            return f"is too long; at most {context['max_length']} characters"
        case "too_short":
            return f"needs at least {context['min_length']} entr{'y' if context['min_length'] == 1 else 'ies'}"
        case "too_long":
            return f"has {context['actual_length']} entries; at most {context['max_length']}"
        case "finite_number":
            return "must be a finite number"
        case kind if kind in _KINDS:
            return f"must be {_KINDS[kind]}, not {_what_it_is(value)}"
        case _:
            return str(error["msg"])


def explain(root: type[BaseModel], error: ValidationError) -> InvalidResource:
    """pydantic's verdict as problems of the document."""
    problems: dict[Problem, None] = {}
    errors = error.errors(include_url=False)
    # An entry that failed is not counted as one, so pydantic also calls the list too short: once is enough.
    within = {tuple(e["loc"][:n]) for e in errors for n in range(len(e["loc"]))}
    errors = [e for e in errors if e["type"] != "too_short" or tuple(e["loc"]) not in within]
    for entry in errors[:PROBLEMS_LIMIT]:
        path = tuple(entry["loc"])
        problems[Problem(path, _message(root, path, entry))] = None
    if len(errors) > PROBLEMS_LIMIT:
        problems[Problem((), f"and {len(errors) - PROBLEMS_LIMIT} more problems")] = None
    return InvalidResource(problems)
