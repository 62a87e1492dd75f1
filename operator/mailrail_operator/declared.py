"""What of a status the installed CRDs declare, by the API server's own account.

An operator may be newer than the CRDs, where those are managed apart (`crds.enabled=false`). The API server refuses the
whole of a server-side apply for one field that its schema lacks, and names each such field. Without them the rest can
be written, so that conditions stay true.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

Paths = frozenset[tuple[str, ...]]
"""Fields below `status` by their names from there on, the same for each entry of a list."""

_UNDECLARED: Final = re.compile(r"(?:^|\s)\.status\.(.+?): field not declared in schema$", re.MULTILINE)
"""A line of structured-merge-diff's ValidationErrors. They come as a bare 500, as an API server's own errors do, so the
text tells them apart."""
_ENTRY: Final = re.compile(r'\[(?:"(?:\\.|[^"\\])*"|[^\]"])*\]')
"""Which entry of a list: `[3]`, `[type="Ready"]`."""


def undeclared(refusal: str) -> Paths:
    """The fields of the status that the API server refuses, since its schema has none of that name."""
    return frozenset(tuple(_ENTRY.sub("", path).split(".")) for path in _UNDECLARED.findall(refusal))


def is_refused_by_schema(refusal: str) -> bool:
    """Whether the installed schema does not take what was applied: it is no error that passes, whatever its code."""
    return "failed to create typed patch object" in refusal


def without(value: Any, paths: Paths) -> Any:
    """A status, or a part of one, without some of its fields."""
    if not paths:
        return value
    if isinstance(value, Mapping):
        return {
            name: without(inner, frozenset(path[1:] for path in paths if path[0] == name and len(path) > 1))
            for name, inner in value.items()
            if (name,) not in paths
        }
    return [without(entry, paths) for entry in value] if isinstance(value, list | tuple) else value
