"""Step 1 of a compilation: what the documents say, each read with its typed model and compiled by itself (`pieces`).

A broken document is refused, and the last accepted version of its object takes its place; objects of a file that cannot
be read count as unchanged. Of a version that another release accepted and this one cannot read, the piece that was
stored beside it goes on (CFG-01). What is to be said of an object is a `Remark` here and in the steps that follow.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mailrail.core.config.diagnostics import ConditionType, Finding, Reason, Severity, SourceLocation
from mailrail.core.config.loader import Document, Loaded, Unreadable
from mailrail.core.config.pieces import Piece, piece_of, stored_piece
from mailrail.core.config.secret_uses import SecretDocument, SecretProblem, Unread, read_secret
from mailrail.core.config.state import Accepted, CompilerState, StoredPiece
from mailrail.core.resources import API_VERSION, KINDS, InvalidResource, canonical
from mailrail.core.resources.problems import Path, Problem, show_path, shown
from mailrail.core.revision.revision import ObjectRef


@dataclass(frozen=True, slots=True)
class Sources:
    """All documents there are, in any order, with what could not be read."""

    documents: tuple[Document, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()
    namespaces: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Labels by name, for selectors."""
    files: Mapping[str, bytes] | None = None
    """Contents for caFile by path; None: not in local mode."""
    now: int = 0
    """Unix seconds: claims of what is gone are kept for a while."""
    keys_seen: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """DKIM records that stand in the DNS, by name and text: since when, in Unix seconds."""

    @classmethod
    def of(cls, *loaded: Loaded, files: Mapping[str, bytes] | None = None, now: int = 0) -> "Sources":
        """The documents of several files."""
        return cls(
            tuple(d for one in loaded for d in one.documents),
            tuple(u for one in loaded for u in one.unreadable),
            files=files,
            now=now,
        )


@dataclass(frozen=True, slots=True)
class Version:
    """One version of one object: as just written, or as accepted before."""

    ref: ObjectRef
    piece: Piece
    source: str
    origin: str
    new: bool
    """Differs from what was accepted before."""
    generation: int | None = None
    stored: StoredPiece | None = None
    """The piece as it is stored."""


@dataclass(slots=True)
class Candidate:
    """An object with its newest valid version and the one accepted before."""

    ref: ObjectRef
    document: Document | None
    place: SourceLocation
    newest: Version | None
    before: Version | None
    generation: int | None = None

    def version(self, refusals: int) -> Version | None:
        """The newest valid version; after one refusal the one before it; after that none."""
        versions = [v for v in (self.newest, self.before) if v is not None]
        return versions[refusals] if refusals < len(versions) else None


@dataclass(frozen=True, slots=True)
class Remark:
    """Something to say about an object."""

    ref: ObjectRef
    type: ConditionType
    reason: Reason
    message: str
    path: Path = ()
    parent: ObjectRef | None = None


class Input:
    """Step 1: what the documents say."""

    def __init__(self, sources: Sources, previous: CompilerState) -> None:
        self.findings: list[Finding] = []
        self.notes: list[Remark] = []
        self.candidates: dict[ObjectRef, Candidate] = {}
        self.secrets: dict[tuple[str, str], SecretDocument] = {}
        self.broken_secrets: dict[tuple[str, str], str] = {}
        self.namespaces: dict[str, Mapping[str, str]] = dict(sources.namespaces)
        self.now, self.in_cluster = sources.now, sources.files is None
        self._places: dict[ObjectRef, SourceLocation] = {}
        self.retained: set[ObjectRef] = set()
        self.carried: set[ObjectRef] = set()
        """Objects whose accepted source this version of the software cannot read, and whose stored piece it can."""
        self.lost: set[ObjectRef] = set()
        """Objects of which it can read neither; what runs has them all the same."""
        unreadable = {u.place.origin for u in sources.unreadable}
        for item in sorted(sources.unreadable, key=lambda u: (u.place, u.reason)):
            self.findings.append(
                Finding(
                    item.place, Severity.ERROR, Reason.UNREADABLE, f"{item.reason}; its documents stay as they were"
                )
            )
        self._accepted = {a.ref: a for a in previous.accepted}
        prepared = [(d, d.source or canonical(d.content) if is_resource(d.content) else "") for d in sources.documents]
        for document, source in sorted(prepared, key=lambda pair: (pair[0].place, pair[1])):
            if not self._read_document(document, source):
                unreadable.add(document.place.origin)
        if sources.files is not None:  # an API server would tell all there are, with this label
            for ref in self.candidates:
                self.namespaces.setdefault(ref.namespace, {"kubernetes.io/metadata.name": ref.namespace})
        self.unreadable = self._unread(unreadable, sources, previous)
        for accepted in previous.accepted:
            known = accepted.ref.kind in KINDS  # a later version has more kinds, and was here before
            if known and accepted.ref not in self.candidates and accepted.origin in self.unreadable:
                self._keep(accepted)

    def _unread(self, unreadable: set[str], sources: Sources, previous: CompilerState) -> Unread:
        """The files whose documents count as unchanged, and a finding for each that may be a renamed one.

        Only files have new names: what is gone from the API server was deleted, whatever could not be read of others.
        """
        if sources.files is None:
            return Unread(unreadable)
        missing = {a.origin for a in previous.accepted if a.ref not in self.candidates}
        for use in previous.uses:
            key = (use.owner.namespace, use.secret)
            if key not in self.secrets and key not in self.broken_secrets:
                missing.add(use.origin)
        gone = missing - {d.place.origin for d in sources.documents} - {""}
        unread = Unread(unreadable, missing, gone)
        if unread.successors:
            names = sorted(unread.renamed)
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            text = f"may be the new name of {', '.join(names[:3])}{more}, whose documents stay as they were until"
            for origin in unread.successors:
                what = "folder" if origin.endswith("/") else "file"
                message = f"{text} this {what} can be read"
                self.findings.append(Finding(SourceLocation(origin), Severity.WARNING, Reason.UNREADABLE, message))
        return unread

    def _finding(self, document: Document, path: Path, message: str, ref: ObjectRef | None = None) -> None:
        self.findings.append(Finding(document.place_of(path), Severity.ERROR, Reason.INVALID, message, ref))

    def _identity(self, document: Document) -> ObjectRef | None:
        """Kind, namespace and name; None after saying what is wrong with them."""
        content = document.content
        kind, version, metadata = content.get("kind"), content.get("apiVersion"), content.get("metadata")
        if not isinstance(kind, str) or (kind not in KINDS and kind not in ("Secret", "Namespace")):
            known = f"{', '.join(KINDS)} or Secret"
            given = "is missing" if kind is None else f"{shown(kind)} is not known here"
            self._finding(document, ("kind",), f"kind: {given}; one of {known}")
            return None
        wanted = API_VERSION if kind in KINDS else "v1"
        if version != wanted:
            given = "is missing;" if version is None else f"is {shown(version)};"
            self._finding(document, ("apiVersion",), f"apiVersion: {given} a {kind} has {wanted}")
            return None
        name = metadata.get("name") if isinstance(metadata, Mapping) else None
        namespace = metadata.get("namespace", "default") if isinstance(metadata, Mapping) else "default"
        if not isinstance(name, str) or not name or len(name) > 253:
            self._finding(document, ("metadata", "name"), f"metadata.name: a {kind} needs a name")
            return None
        if not isinstance(namespace, str) or not namespace or len(namespace) > 63:
            self._finding(document, ("metadata", "namespace"), "metadata.namespace: is not a valid name")
            return None
        return ObjectRef(kind, namespace, name)

    def _read_document(self, document: Document, source: str) -> bool:
        """Take a document in. False when it cannot be said which object it is."""
        ref = self._identity(document)
        if ref is None:
            return False
        if ref.kind == "Namespace":
            labels = document.content["metadata"].get("labels")
            if isinstance(labels, Mapping):
                self.namespaces[ref.name] = {k: v for k, v in labels.items() if isinstance(v, str)}
            return True
        key = (ref.namespace, ref.name)
        if ref in self._places:
            first = self._places[ref]
            which = (
                f"the one in {first} counts, the first by file name and line"
                if first.origin
                else "the one that Mailrail itself makes counts; give this one another name"
            )
            self.findings.append(
                Finding(document.place, Severity.ERROR, Reason.DUPLICATE, f"is defined twice; {which}", ref)
            )
            return True
        self._places[ref] = document.place
        if ref.kind == "Secret":
            try:
                self.secrets[key] = read_secret(document.content, ref.namespace, ref.name, document.place.origin)
            except SecretProblem as problem:
                self.broken_secrets[key] = str(problem)
                self._finding(document, (), f"{problem}; its last accepted content stays in use", ref)
            return True
        self._read_resource(document, ref, source)
        return True

    def _before(self, ref: ObjectRef) -> Version | None:
        """The version that was accepted last; None if there is none that can be used."""
        accepted = self._accepted.get(ref)
        if accepted is None:
            return None
        piece: Piece | None
        try:
            piece, stored = piece_of(ref, accepted.source)
        except InvalidResource:  # accepted by a version of the software that had other rules
            stored = accepted.piece
            piece = stored_piece(ref, stored) if stored is not None else None
            if piece is None:
                self.lost.add(ref)
                return None
            self.carried.add(ref)
        return Version(ref, piece, accepted.source, accepted.origin, False, accepted.generation, stored)

    def _read_resource(self, document: Document, ref: ObjectRef, source: str) -> None:
        metadata = document.content["metadata"]
        generation = metadata.get("generation")
        candidate = Candidate(
            ref, document, document.place, None, None, generation if isinstance(generation, int) else None
        )
        self.candidates[ref] = candidate
        accepted = self._accepted.get(ref)
        if accepted is not None and (lost := _lost(accepted, source, candidate.generation)):
            source = accepted.source
            self.notes.append(Remark(ref, ConditionType.ACCEPTED, Reason.NOT_SUPPORTED, _lost_message(lost)))
        new = accepted is None or accepted.source != source
        try:
            piece, stored = piece_of(ref, source)
        except InvalidResource as error:
            before = self._before(ref)
            if ref in self.carried:
                self._note_carried(ref)
            for problem in error.problems:
                self.notes.append(Remark(ref, ConditionType.ACCEPTED, Reason.INVALID, _sentence(problem), problem.path))
            if before is None or new:
                candidate.before = before
            else:
                candidate.newest = replace(before, origin=document.place.origin, generation=candidate.generation)
            return
        if new:
            candidate.before = self._before(ref)
        candidate.newest = Version(ref, piece, source, document.place.origin, new, candidate.generation, stored)

    def _note_carried(self, ref: ObjectRef) -> None:
        message = (
            "this version of Mailrail cannot read what another version accepted; it runs on as that version compiled "
            "it: mend it, or run a version that can read it"
        )
        self.notes.append(Remark(ref, ConditionType.ACCEPTED, Reason.NOT_SUPPORTED, message))

    def _keep(self, accepted: Accepted) -> None:
        ref = accepted.ref
        before = self._before(ref)
        if before is not None:
            self.candidates[ref] = Candidate(ref, None, SourceLocation(accepted.origin), before, None)
        if ref in self.carried:
            self._note_carried(ref)

    def retain(self, ref: ObjectRef) -> bool:
        """Keep an object that was deleted, because a gateway cannot do without it. Whether there was one."""
        accepted = self._accepted.get(ref)
        if ref in self.candidates or accepted is None:
            return ref in self.candidates
        self._keep(accepted)
        if ref in self.candidates:
            self.retained.add(ref)
        return ref in self.candidates


def _lost(accepted: Accepted, source: str, generation: int | None) -> list[Path]:
    """Fields that an object had when it was accepted and does not have any more, although nobody has written its spec
    since.

    The CRDs of an older version hide what they do not know, and the next write of a status drops it for good; neither
    makes a new generation. An object that demanded more must not run with less for that.
    """
    if generation is None or generation != accepted.generation or source == accepted.source:
        return []
    before, now = json.loads(accepted.source), json.loads(source)
    if before["metadata"].get("uid") != now["metadata"].get("uid"):
        return []
    return list(_missing(before.get("spec"), now.get("spec"), ("spec",)))


def _missing(before: Any, now: Any, path: Path) -> Iterator[Path]:
    """The outermost places of `before` that `now` does not have; a value that differs is there."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key, value in before.items():
            if key not in now:
                yield (*path, key)
            else:
                yield from _missing(value, now[key], (*path, key))
    elif isinstance(before, list) and isinstance(now, list):
        for position, value in enumerate(before):
            if position >= len(now):
                yield (*path, position)
            else:
                yield from _missing(value, now[position], (*path, position))


def _lost_message(lost: Sequence[Path]) -> str:
    more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
    fields = ", ".join(show_path(path) for path in lost[:3])
    return (
        f"{fields}{more}: the API server no longer shows it, because its CRDs are, or were, those of a version that"
        " does not have it. It stays in force. Install the CRDs of the version that has it, then apply the object again"
        " with any change of its spec"
    )


def _sentence(problem: Problem) -> str:
    return f"{show_path(problem.path)}: {problem.message}" if problem.path else problem.message


def is_resource(content: Mapping[str, Any]) -> bool:
    """Whether a document is one of our kinds."""
    kind = content.get("kind")
    return isinstance(kind, str) and kind in KINDS
