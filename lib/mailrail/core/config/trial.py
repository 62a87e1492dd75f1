"""What the accepted configuration would become with other documents, without storing or publishing it (DIF-02).

The accepted sources stand for all that the documents do not name: they count as a file that cannot be read, so that
each object, and what it got from Secrets, stays as it was (CFG-01). No content of a Secret comes out of it: a revision
has references, made here with a key that is thrown away.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from mailrail.core.config.compiler import Compiled, compile
from mailrail.core.config.diagnostics import Finding, Reason, Severity, SourceLocation
from mailrail.core.config.loader import Document, Loaded, Unreadable, load
from mailrail.core.config.reading import Sources
from mailrail.core.config.state import CompilerState
from mailrail.core.resources import API_VERSION, KINDS
from mailrail.core.revision.revision import ObjectRef
from mailrail.core.revision.sealing import Keyring

OCTETS_LIMIT: Final = 1024 * 1024
"""Of all documents of a trial together."""
OBJECTS_LIMIT: Final = 5_000
"""Documents of a trial."""
_ACCEPTED: Final = "(accepted)"
"""The file that accepted sources count as being of; no file has this name."""


class TrialMode(StrEnum):
    """What the documents are to the accepted configuration."""

    MERGE = "merge"
    """They replace objects, or add some."""
    REPLACE = "replace"
    """They are all there is."""
    DELETE = "delete"
    """The objects that they name go."""


class TrialRefused(ValueError):
    """The documents are too large or too many. The message says what to do."""


@dataclass(frozen=True, slots=True)
class Trial:
    """The configuration as it would be, and as it is when it is compiled in the same way."""

    candidate: Compiled
    base: Compiled
    findings: tuple[Finding, ...]
    """What the compiler says of the candidate and does not say of the base."""

    @property
    def is_bad(self) -> bool:
        """A document cannot be used as it is written."""
        return any(found.severity is Severity.ERROR for found in self.findings)


def read(files: Iterable[tuple[str, bytes]]) -> list[Loaded]:
    """Documents of files, by name and content. Raises TrialRefused (DIF-07)."""
    named = list(files)
    if sum(len(content) for _, content in named) > OCTETS_LIMIT:
        raise TrialRefused(f"the documents have more than {OCTETS_LIMIT // 1024} KiB: try the change in parts")
    loaded = [load(content, name) for name, content in named]
    if sum(len(one.documents) for one in loaded) > OBJECTS_LIMIT:
        raise TrialRefused(f"these are more than {OBJECTS_LIMIT} documents: try the change in parts")
    return loaded


def try_out(files: Sequence[Loaded], mode: TrialMode, previous: CompilerState, keys: Keyring, now: int) -> Trial:
    """Compile these documents over `previous`, the accepted state. `now`: Unix seconds. Never raises for what documents
    say."""
    documents = [document for one in files for document in one.documents]
    state = _standing(previous)
    base = compile(_sources((), (), now), state, keys)
    unreadable = [found for one in files for found in one.unreadable]
    if mode is TrialMode.DELETE:
        gone, strange = _named(documents)
        state = replace(state, accepted=tuple(a for a in state.accepted if a.ref not in gone))
        there = {a.ref for a in previous.accepted}
        absent = [
            _finding(place, f"there is no {ref} to delete", ref) for ref, place in gone.items() if ref not in there
        ]
        candidate = compile(_sources((), (), now), state, keys)
        findings = (*strange, *absent, *(_finding(u.place, u.reason) for u in unreadable))
    else:
        if mode is TrialMode.REPLACE:
            named, _ = _named(documents)
            state = replace(state, accepted=tuple(a for a in state.accepted if a.ref in named))
        candidate = compile(_sources(documents, unreadable, now), state, keys)
        findings = ()
    return Trial(candidate, base, (*findings, *_new(candidate, base)))


def _standing(previous: CompilerState) -> CompilerState:
    """The accepted state, all of it from a file that cannot be read."""
    return replace(
        previous,
        accepted=tuple(replace(a, origin=_ACCEPTED) for a in previous.accepted),
        uses=tuple(replace(u, origin=_ACCEPTED) for u in previous.uses),
    )


def _sources(documents: Iterable[Document], unreadable: Iterable[Unreadable], now: int) -> Sources:
    standing = Unreadable(SourceLocation(_ACCEPTED), "it stands for what is not named")
    return Sources(tuple(documents), (*unreadable, standing), now=now)


def _named(documents: Iterable[Document]) -> tuple[dict[ObjectRef, SourceLocation], list[Finding]]:
    """The objects that documents name, and a finding for each that names none."""
    found: dict[ObjectRef, SourceLocation] = {}
    strange: list[Finding] = []
    for document in documents:
        content = document.content
        metadata = content.get("metadata")
        kind, version = content.get("kind"), content.get("apiVersion")
        name = metadata.get("name") if isinstance(metadata, dict) else None
        namespace = metadata.get("namespace", "default") if isinstance(metadata, dict) else None
        if kind in KINDS and version == API_VERSION and isinstance(name, str) and isinstance(namespace, str):
            found[ObjectRef(str(kind), namespace, name)] = document.place
        else:
            strange.append(
                _finding(document.place, f"it names no object: apiVersion {API_VERSION}, kind and metadata.name")
            )
    return found, strange


def _finding(place: SourceLocation, message: str, ref: ObjectRef | None = None) -> Finding:
    return Finding(place, Severity.ERROR, Reason.INVALID, message, ref)


def _new(candidate: Compiled, base: Compiled) -> list[Finding]:
    known = {(f.ref, f.reason, f.message) for f in base.diagnostics.findings}
    return [
        found
        if found.place.origin != _ACCEPTED
        else replace(found, place=SourceLocation())  # it is in no file of these
        for found in candidate.diagnostics.findings
        if (found.ref, found.reason, found.message) not in known
    ]
