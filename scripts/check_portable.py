"""Say what would not work on Windows in everything that local mode imports; exit 1 and name each place.

Two readings of the same modules (those that local mode's processes and its command import, lazily or not):

- mypy for Windows: a name that only POSIX systems have is no name there. A branch by `sys.platform` counts.
- what types do not show: a file that is replaced or removed without waiting for whoever has it open (`kit/files.py`
  does), text whose encoding is left to the system, options of a new process that only POSIX has, a signal handler of
  the event loop without a way out, a folder that is opened like a file.

`# windows: REASON` at the end of a line says why the second reading is wrong about it.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
SOURCES: Final = (
    "lib",
    *(f"services/{name}" for name in ("ingress", "queue", "outbound", "config", "policy")),
    "operator",
)
ENTRANCES: Final = (
    "mailrail.cli.app",
    "mailrail.cli.__main__",
    "mailrail.local.folder",
    "mailrail.local.guard",
    "mailrail.local.supervisor",
    "mailrail_config.__main__",
    "mailrail_ingress.__main__",
    "mailrail_outbound.__main__",
    "mailrail_policy.app",
    "mailrail_queue.__main__",
)
"""What local mode runs."""
ELSEWHERE: Final = ("mailrail.sendmail", "mailrail.cluster", "mailrail_operator", "mailrail.pb")
"""What commands of the same program import, and local mode does not: for cron, for Kubernetes; and generated code."""
_WAITS: Final = "mailrail.kit.files"
"""The one module that replaces and removes files."""
_REMOVERS: Final = frozenset({"replace", "rename", "renames", "remove", "unlink"})
_POSIX_OPTIONS: Final = frozenset(
    {"start_new_session", "preexec_fn", "user", "group", "extra_groups", "umask", "pass_fds"}
)
_STARTERS: Final = frozenset({"Popen", "run", "call", "check_call", "check_output"})
_MARK: Final = "# windows: "


def module_file(module: str, root: Path = ROOT) -> Path | None:
    """Where a module of ours is; None for one of others."""
    for source in SOURCES:
        path = root / source / module.replace(".", "/")
        for found in (path.with_suffix(".py"), path / "__init__.py"):
            if found.is_file():
                return found
    return None


def imported(tree: ast.AST) -> Iterator[str]:
    """Every name that may be a module, of each import in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{each.name}" for each in node.names)


def reached(entrances: Sequence[str] = ENTRANCES, root: Path = ROOT) -> dict[str, Path]:
    """Module → its file, of all that the entrances import."""
    found: dict[str, Path] = {}
    waiting = list(entrances)
    while waiting:
        module = waiting.pop()
        if module in found or any(module == e or module.startswith(f"{e}.") for e in ELSEWHERE):
            continue
        path = module_file(module, root)
        if path is None:
            continue
        found[module] = path
        waiting += imported(ast.parse(path.read_bytes()))
        waiting.append(module.rpartition(".")[0])  # its package is imported first
    return found


def faults(text: str, *, waits: bool = False) -> list[tuple[int, str]]:
    """Line and reason of each fault of a module. `waits`: it is the one that may replace and remove files."""
    lines = text.split("\n")
    seen = _Reading(waits)
    seen.visit(ast.parse(text))
    return sorted((line, why) for line, why in seen.found if _MARK not in lines[line - 1])


class _Reading(ast.NodeVisitor):
    def __init__(self, waits: bool) -> None:
        self.found: list[tuple[int, str]] = []
        self._waits = waits
        self._caught: list[frozenset[str]] = []
        self._elsewhere = 0

    def visit_If(self, node: ast.If) -> None:
        test = ast.unparse(node.test)
        for part, not_there in ((node.body, _only_posix(test)), (node.orelse, _only_windows(test))):
            self._elsewhere += not_there
            for each in part:
                self.visit(each)
            self._elsewhere -= not_there

    def visit_Try(self, node: ast.Try) -> None:
        names = frozenset(ast.unparse(h.type) for h in node.handlers if h.type is not None)
        self._caught.append(names)
        for each in node.body:
            self.visit(each)
        self._caught.pop()
        for part in (*node.handlers, *node.orelse, *node.finalbody):
            self.visit(part)

    def visit_Call(self, node: ast.Call) -> None:
        if not self._elsewhere and (why := self._why(node)):
            self.found.append((node.end_lineno or node.lineno, why))
        self.generic_visit(node)

    def _why(self, node: ast.Call) -> str:
        options = {k.arg for k in node.keywords if k.arg is not None}
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        owner = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
        count = len(node.args)
        if not self._waits and owner and name in _REMOVERS and self._moves_a_file(node, name, owner, count):
            return (
                f"{owner}.{name}: a file that somebody has open stops it; use replace and remove of mailrail.kit.files"
            )
        if (
            name in ("read_text", "write_text")
            and owner
            and "encoding" not in options
            and count < 1 + (name == "write_text")
        ):
            return f"{name} without an encoding: on Windows that is a code page"
        if name in ("open", "fdopen") and "encoding" not in options and _opens_text(node, name, owner):
            return f"{name} without an encoding: on Windows that is a code page"
        if name in _STARTERS and (owner == "subprocess" or name == "Popen"):
            if alien := sorted(options & _POSIX_OPTIONS):
                return f"{name} with {', '.join(alien)}: Windows has no such thing"
            if options & {"text", "universal_newlines"} and "encoding" not in options:
                return f"{name} with text and without an encoding: on Windows that is a code page"
        if name == "add_signal_handler" and not any("NotImplementedError" in c for c in self._caught):
            return "add_signal_handler: loops of Windows have none; catch NotImplementedError"
        if name == "open" and owner == "os" and count > 1 and ast.unparse(node.args[1]) == "os.O_RDONLY":
            return "os.open to read: a folder cannot be opened on Windows; read a file with Path.open"
        if name == "NamedTemporaryFile" and "delete" not in options and "delete_on_close" not in options:
            return "NamedTemporaryFile: on Windows nobody can open it by its name; give delete_on_close or delete"
        return ""

    def _moves_a_file(self, node: ast.Call, name: str, owner: str, count: int) -> bool:
        if owner in ("os", "shutil"):
            return True
        if name == "replace":  # text.replace has two arguments, and replace(tzinfo=None) none without a name
            return count == 1 and not node.keywords
        if name == "remove":
            return False  # of lists
        return name != "rename" or count == 1


def _opens_text(node: ast.Call, name: str, owner: str) -> bool:
    if owner and name == "open" and owner not in ("io", "builtins"):
        # Path.open: its first argument is the mode. Other things with an `open` have no mode at all.
        mode = node.args[0] if node.args else next((k.value for k in node.keywords if k.arg == "mode"), None)
        return isinstance(mode, ast.Constant) and mode.value in ("r", "w", "a", "x", "r+", "w+", "a+")
    if owner not in ("", "io", "builtins", "os"):
        return False
    mode = node.args[1] if len(node.args) > 1 else next((k.value for k in node.keywords if k.arg == "mode"), None)
    return mode is None or (isinstance(mode, ast.Constant) and isinstance(mode.value, str) and "b" not in mode.value)


def _only_posix(test: str) -> bool:
    return (
        test.startswith(("sys.platform != 'win32'", "sys.platform == 'linux'")) or "sys.platform != 'win32' and" in test
    )


def _only_windows(test: str) -> bool:
    return test == "sys.platform == 'win32'"


def mypy_for_windows(files: Sequence[Path]) -> tuple[list[str], bool]:
    """What mypy says of them, and whether it could say anything."""
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--platform", "win32", "--cache-dir", ".mypy_cache/win32", *map(str, files)],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    ours = {file.relative_to(ROOT).as_posix() for file in files}
    said = [line for line in done.stdout.splitlines() if line.split(":", 1)[0] in ours and ": error:" in line]
    return said, done.returncode in (0, 1)


def main() -> int:
    """Check; the exit status."""
    modules = reached()
    said = []
    for module, path in sorted(modules.items()):
        place = path.relative_to(ROOT).as_posix()
        text = path.read_text(encoding="utf-8")
        said += [f"{place}:{line}: {why}" for line, why in faults(text, waits=module == _WAITS)]
    types, ran = mypy_for_windows(sorted(modules.values()))
    said += types
    for line in said:
        print(line, file=sys.stderr)
    if not ran:
        print("mypy --platform win32 did not run; try it by hand", file=sys.stderr)
    return 1 if said or not ran else 0


if __name__ == "__main__":
    sys.exit(main())
