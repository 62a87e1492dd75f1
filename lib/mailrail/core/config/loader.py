"""YAML documents from files, with the line of every object and of every field that may turn out to be wrong.

Anybody may have written these files: text, depth, nodes and documents are bounded before anything is built from them,
a key that appears twice is refused (YAML would silently take one), and nothing in a file can construct anything but
plain values. A file that cannot be parsed counts as all its documents unchanged (CFG-01), so one typo takes nothing out
of service.

Lines are found again only when somebody must be told one: the common case parses once and keeps no positions.
"""

import math
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from mailrail.core.config.diagnostics import SourceLocation
from mailrail.core.resources import canonical

FILE_LIMIT: Final = 16 * 1024 * 1024
"""Octets of one file."""
DOCUMENTS_LIMIT: Final = 20_000
"""Documents of one file."""
DEPTH_LIMIT: Final = 32
NODES_LIMIT: Final = 100_000
"""Values of one document, counted where an anchor is used again: a bomb of aliases stops here."""

SHALLOW: Final = 16_000
"""Characters. The C composer recurses and crashes near 50,000 levels; a text this short cannot nest so deep."""

Path = tuple[str | int, ...]

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG: Final = "tag:yaml.org,2002:"
_TRUE: Final = frozenset(("true", "yes", "on"))


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A file, or a document of it, that says nothing we can use."""

    place: SourceLocation
    reason: str


@dataclass(frozen=True, slots=True)
class Document:
    """One object as written: plain JSON values, and where it was."""

    content: Mapping[str, Any]
    place: SourceLocation = field(default_factory=SourceLocation)
    text: str = field(default="", repr=False)
    """May be a Secret."""
    source: str = field(default="", repr=False, compare=False)
    """canonical(content), if it was made already."""

    def place_of(self, path: Path) -> SourceLocation:
        """The line of a field, or of the nearest one above that is there."""
        if not self.text or not path:
            return self.place
        try:
            node = yaml.compose(self.text, Loader=_Loader)
        except yaml.YAMLError:
            return self.place
        first = line = _first_line(node)
        for step in path:
            found = _step(node, step)
            if found is None:
                break
            line, node = found
        return SourceLocation(self.place.origin, self.place.line + line - first)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What one file holds. With an entry in `unreadable`, objects of the file that are not here count as unchanged."""

    origin: str
    documents: tuple[Document, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()


Cache = MutableMapping[str, "tuple[Any, int, str] | _Broken"]
"""Parsed chunks by their text; whoever loads a folder again and again keeps one, and drops it now and then."""


class _Broken(Exception):
    """A chunk that cannot be used; the line counts from 0 within the chunk."""

    def __init__(self, line: int, reason: str) -> None:
        self.line, self.reason = line, reason
        super().__init__(reason)


def _first_line(node: Any) -> int:
    return int(node.start_mark.line) if node is not None else 0


def _step(node: Any, step: str | int) -> tuple[int, Any] | None:
    """The line and node of a child."""
    if isinstance(step, int):
        if isinstance(node, yaml.SequenceNode) and 0 <= step < len(node.value):
            return _first_line(node.value[step]), node.value[step]
        return None
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == step:
                return _first_line(key), value
    return None


class _Builder:
    """Plain values from YAML nodes, within bounds."""

    def __init__(self) -> None:
        self.nodes = 0

    def build(self, node: Any, depth: int) -> Any:
        self.nodes += 1
        if self.nodes > NODES_LIMIT:
            raise _Broken(_first_line(node), f"the document has more than {NODES_LIMIT} values")
        if depth > DEPTH_LIMIT:
            raise _Broken(_first_line(node), f"nested deeper than {DEPTH_LIMIT} levels")
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node)
        if isinstance(node, yaml.SequenceNode):
            if node.tag != _TAG + "seq":
                raise _Broken(_first_line(node), f"the tag {node.tag} is not supported")
            return [self.build(item, depth + 1) for item in node.value]
        if node.tag != _TAG + "map":
            raise _Broken(_first_line(node), f"the tag {node.tag} is not supported")
        result: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _Broken(_first_line(key), "a key must be plain text")
            if key.tag == _TAG + "merge":
                raise _Broken(_first_line(key), "merge keys (<<) are not supported; repeat the fields")
            if key.value in result:
                raise _Broken(_first_line(key), f"the key {key.value[:60]!r} appears twice in the same mapping")
            result[key.value] = self.build(value, depth + 1)
        return result


def _scalar(node: Any) -> Any:
    text: str = node.value
    match node.tag.removeprefix(_TAG):
        case "null":
            return None
        case "bool":
            return text.lower() in _TRUE
        case "int":
            try:
                # Base 60 and a leading 0 for octal are relics of YAML 1.1 that nobody means: 0644 and 1:30 stay text.
                bare = text.replace("_", "")
                if ":" in text or (bare.lstrip("+-").startswith("0") and bare.lstrip("+-").isdigit() and len(bare) > 1):
                    return text
                if len(bare) > 32:
                    raise _Broken(_first_line(node), "the number is too long")
                return int(bare, 0)
            except ValueError:
                return text
        case "float":
            if text.lstrip("+-").lower() in (".inf", ".nan"):
                raise _Broken(_first_line(node), f"{text} is not a finite number")
            try:
                value = float(text.replace("_", ""))
            except ValueError:
                return text
            return value if math.isfinite(value) else text
        case "str" | "timestamp":
            return text
        case _:
            raise _Broken(_first_line(node), f"the tag {node.tag} is not supported; binary values go into `data`")


def _chunks(text: str) -> Iterator[tuple[int, str]]:
    """The documents of a stream as (first line from 0, text). `---` in column 0 is a boundary wherever it stands."""
    lines = text.splitlines(keepends=True)
    start = 0
    for number, line in enumerate(lines):
        if line.startswith("---") and (len(line) == 3 or line[3] in " \t\r\n"):
            if number > start:
                yield start, "".join(lines[start:number])
            start = number
    yield start, "".join(lines[start:])


def _refuse_depth(chunk: str) -> None:
    """Count levels on the stream of events, which needs no recursion, before anything recurses over the text."""
    depth = 0
    for event in yaml.parse(chunk, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEPTH_LIMIT + 1:
                line = event.start_mark.line if event.start_mark is not None else 0
                raise _Broken(line, f"nested deeper than {DEPTH_LIMIT} levels")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _tab_indents(chunk: str, line: int) -> bool:
    """Whether a tab stands among the blanks that a line begins with."""
    lines = chunk.splitlines()
    return line < len(lines) and "\t" in lines[line][: len(lines[line]) - len(lines[line].lstrip())]


def _context(error: yaml.MarkedYAMLError, line: int) -> str:
    """What the parser was at, and where that began: the mistake is more often there than where it was noticed."""
    above = line - error.context_mark.line if error.context_mark is not None else 0
    if not error.context or above <= 0:
        return error.context or ""
    return f"{error.context} that began {above} {'line' if above == 1 else 'lines'} above"


def _parse(chunk: str) -> tuple[Any, int, str] | _Broken:
    """The content of one chunk, its first line and its canonical form, or what is wrong with it."""
    if chunk.lstrip().startswith("%"):  # a directive before `---`; YAML has none that we need
        chunk = "".join("\n" if line.startswith("%") else line for line in chunk.splitlines(keepends=True))
    try:
        if len(chunk) > SHALLOW:
            _refuse_depth(chunk)
        node = yaml.compose(chunk, Loader=_Loader)
        if node is None:
            return None, 0, ""
        content = _Builder().build(node, 0)
        return content, _first_line(node), canonical(content) if isinstance(content, dict) else ""
    except _Broken as broken:
        return broken.with_traceback(None)
    except yaml.MarkedYAMLError as error:
        last = chunk.rstrip().count("\n")
        line = error.problem_mark.line if error.problem_mark is not None else 0
        if line > last and error.context_mark is not None:
            line = error.context_mark.line  # what was not closed before the end, and where it began
        words = ": ".join(part for part in (_context(error, min(line, last)), error.problem) if part)
        mark = error.problem_mark
        if mark is not None and _tab_indents(chunk, mark.line):
            words = "the line is indented with a tab; use spaces"
        return _Broken(min(line, last), f"this is not YAML: {words}" if words else "this is not YAML")
    except yaml.reader.ReaderError as error:
        line = chunk.count("\n", 0, error.position) if isinstance(error.position, int) else 0
        return _Broken(line, "the file has characters that YAML does not allow")
    except (yaml.YAMLError, ValueError):
        return _Broken(0, "this is not YAML")


def load(source: str | bytes, origin: str, cache: Cache | None = None) -> Loaded:
    """The documents of a file. Nothing is raised: what cannot be read is in `unreadable`, with file and line."""

    def unreadable(line: int, reason: str) -> Loaded:
        return Loaded(origin, (), (Unreadable(SourceLocation(origin, line), reason),))

    if len(source) > FILE_LIMIT:
        return unreadable(1, f"the file is larger than {FILE_LIMIT // 1024 // 1024} MiB; split it")
    if isinstance(source, bytes):
        try:
            text = source.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            return unreadable(source.count(b"\n", 0, error.start) + 1, "the file is not UTF-8")
    else:
        text = source
    documents: list[Document] = []
    for start, chunk in _chunks(text):
        parsed = cache.get(chunk) if cache is not None else None
        if parsed is None:
            parsed = _parse(chunk)
            if cache is not None:
                cache[chunk] = parsed
        if isinstance(parsed, _Broken):
            return unreadable(start + parsed.line + 1, parsed.reason)
        content, line, canonical_form = parsed
        if content is None:
            continue
        if not isinstance(content, dict):
            return unreadable(start + line + 1, "a document must be a mapping with apiVersion, kind, metadata and spec")
        if len(documents) == DOCUMENTS_LIMIT:
            return unreadable(start + line + 1, f"the file has more than {DOCUMENTS_LIMIT} documents; split it")
        documents.append(Document(content, SourceLocation(origin, start + line + 1), chunk, canonical_form))
    return Loaded(origin, tuple(documents))
