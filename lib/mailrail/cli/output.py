"""What commands print: tables and sentences for people, JSON for programs.

Texts of strangers (subjects, replies of servers) reach a terminal only without control characters: an escape sequence
in a subject must not repaint an administrator's screen.
"""

import datetime
import json
import re
import shutil
import sys
import textwrap
import uuid
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import typer
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

REFUSED, USAGE, UNREACHABLE = 1, 2, 3
"""Exit statuses; mailrail/cli/__init__.py says what they mean."""

_BELOW = "    "
"""Before a sentence that stands below its row."""


def stop(text: str, status: int = REFUSED) -> NoReturn:
    """End the command with a sentence on standard error."""
    print(f"mailrail: {clean(text)}", file=sys.stderr)
    raise typer.Exit(status)


def say(text: str) -> None:
    """One sentence on standard output."""
    print(clean(text))


def note(text: str) -> None:
    """One sentence beside the answer, on standard error."""
    print(f"mailrail: {clean(text)}", file=sys.stderr)


def progress(text: str, *, beside: bool = False) -> None:
    """A step of something that takes long, shown at once; `beside` an answer that programs read."""
    print(clean(text), file=sys.stderr if beside else sys.stdout, flush=True)


def clean(text: str, *, keep: str = "\n\t") -> str:
    """`text` without control characters, which are shown as `\\xNN`; those in `keep` stay."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else _escape(c) for c in text)


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, none: str, prose: int = 0) -> None:
    """A table for people; the sentence `none` when it would be empty.

    The last `prose` columns hold sentences. Where a table is wider than the terminal, they stand below their row, so
    that numbers and addresses keep their line and can be copied. When nobody looks, a row is always one line.
    """
    found = [[clean(cell, keep="") for cell in row] for row in rows]
    if not found:
        print(none)
        return
    cells = [list(columns), *found]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    room = terminal_width()
    if room is not None and sum(widths) + 2 * (len(widths) - 1) > room:
        if prose:
            _print_with_prose_below(cells, widths, prose, room)
        else:
            _print_folded(columns, found)
        return
    for number, row in enumerate(cells):
        _print_row(_aligned(row, widths), heading=number == 0 and room is not None)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Each row as one line, its cells below those of the others."""
    cells = [[clean(cell, keep="") for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    return [_aligned(row, widths) for row in cells]


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)).rstrip()


def _print_row(line: str, *, heading: bool) -> None:
    if heading:
        console().print(Text(line, style="bold"), soft_wrap=True)
    else:
        print(line)


def _print_with_prose_below(cells: Sequence[Sequence[str]], widths: Sequence[int], prose: int, room: int) -> None:
    for number, row in enumerate(cells):
        _print_row(_aligned(row[:-prose], widths[:-prose]), heading=number == 0)
        for sentence in row[-prose:] if number else ():
            for line in textwrap.wrap(sentence, max(room - len(_BELOW), 20)):
                print(_BELOW + line)


def _print_folded(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    shown = Table(box=None, pad_edge=False, show_edge=False, header_style="bold")
    for number, name in enumerate(columns):
        shown.add_column(name, overflow="fold", no_wrap=number == 0)
    for row in rows:
        shown.add_row(*map(Text, row))
    console().print(shown)


def facts(pairs: Iterable[tuple[str, str]]) -> None:
    """Names and values, one pair a line; pairs without a value are left out."""
    given = [(name, value) for name, value in pairs if value]
    width = max((len(name) for name, _ in given), default=0)
    for name, value in given:
        lines = clean(value).split("\n")
        print(f"{name:<{width}}  {lines[0]}")
        for line in lines[1:]:
            print(f"{'':<{width}}  {line}")


def console() -> Console:
    """Standard output for rich, on a terminal."""
    return Console(highlight=False)


def terminal_width() -> int | None:
    """How many columns whoever looks has; None when the answer goes to a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def arrow() -> str:
    """What points at a row: one column wide, also where the encoding of the output has no arrow."""
    try:
        "→".encode(sys.stdout.encoding or "ascii")
    except (UnicodeError, LookupError):
        return ">"
    return "→"


def print_json(value: Any) -> None:
    """JSON for programs: messages of the API as objects, names in snake_case, times in ISO 8601, ids as text."""
    # Where the encoding may lack a character, JSON's own escapes stand for all of them.
    ascii_only = (sys.stdout.encoding or "ascii").lower().replace("-", "") != "utf8"
    text = json.dumps(plain(value), indent=2, ensure_ascii=ascii_only)
    # A stranger's address may hold characters that a terminal hides or turns around; JSON can write them as escapes.
    print(text if text.isascii() else "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text))


def plain(value: Any) -> Any:
    """A protobuf message, or a structure of them, as JSON takes it. Absent optional fields are null.

    protobuf's own `MessageToDict` writes 64-bit numbers as strings and octets as base64: a script could not compare the
    sizes, and would not find a message by its id.
    """
    if isinstance(value, Timestamp):
        return instant(value)
    if isinstance(value, Duration):
        return value.seconds + value.nanos / 1e9
    if isinstance(value, Message):
        return {field.name: _field(value, field) for field in value.DESCRIPTOR.fields if _shown(value, field)}
    if isinstance(value, bytes):
        return str(uuid.UUID(bytes=value)) if len(value) == 16 else value.decode("utf-8", "backslashreplace")
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


def _shown(message: Message, field: Any) -> bool:
    # Of a oneof only what is set; a plain `optional` is a oneof of its own and stays, as null.
    union = field.containing_oneof
    return union is None or len(union.fields) == 1 or message.HasField(field.name)


def _field(message: Message, field: Any) -> Any:
    if not field.is_repeated and field.has_presence and not message.HasField(field.name):
        return None
    value = getattr(message, field.name)
    if field.enum_type is not None:
        names = field.enum_type.values_by_number
        if field.is_repeated:
            return [_enum_name(field, names[v].name) if v in names else v for v in value]
        return _enum_name(field, names[value].name) if value in names else value
    if field.is_repeated:
        return [_number(field, v) for v in value]
    return _number(field, value)


def _number(field: Any, value: Any) -> Any:
    """An id of 64 bits as text, for many readers of JSON keep 53; every other value as it is."""
    if field.type == field.TYPE_UINT64 and re.search(r"(^|_)ids?$", field.name):
        return str(value)
    return plain(value)


def _enum_name(field: Any, name: str) -> str:
    prefix = "".join(f"_{c}" if c.isupper() and i else c for i, c in enumerate(field.enum_type.name)).upper() + "_"
    return name.removeprefix(prefix).lower()


def name_of(message: Message, field: str) -> str:
    """The value of an enum field in words; empty when it is unspecified."""
    value = _field(message, message.DESCRIPTOR.fields_by_name[field])
    return "" if value in (None, "unspecified") else str(value)


def instant(stamp: Timestamp) -> str:
    """A time in ISO 8601, UTC, to the millisecond."""
    moment = stamp.ToDatetime(tzinfo=datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def when(message: Message, field: str, now: datetime.datetime, *, brief: bool = False) -> str:
    """A time for people: `2026-11-22 12:04:05 (in 5m)`; empty when the field is absent. `brief`: today has no date."""
    if not message.HasField(field):
        return ""
    moment: datetime.datetime = getattr(message, field).ToDatetime(tzinfo=datetime.UTC)
    local = moment.astimezone()
    form = "%H:%M:%S" if brief and local.date() == now.astimezone().date() else "%Y-%m-%d %H:%M:%S"
    return f"{local:{form}} ({distance((moment - now).total_seconds())})"


def distance(seconds: float) -> str:
    """How far a moment lies from now: `in 7m`, `3h ago`, `now`."""
    span = abs(seconds)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m"), (1, "s")):
        if span >= size:
            whole = f"{int(span // size)}{unit}"
            return f"in {whole}" if seconds > 0 else f"{whole} ago"
    return "now"


def size_of(octets: int) -> str:
    """A size for people: `532 B`, `1.4 MiB`."""
    if octets < 1024:
        return f"{octets} B"
    value = float(octets)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        value /= 1024
        if value < 1024 or unit == "TiB":
            break
    return f"{value:.1f} {unit}"


def ref(message: Message, field: str) -> str:
    """`namespace/name` of an object; empty when it is absent."""
    if not message.HasField(field):
        return ""
    found = getattr(message, field)
    return f"{found.namespace}/{found.name}"
