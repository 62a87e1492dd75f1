"""`mailrail local` for tests: a whole installation of its own on free ports, started, asked, killed and stopped.

`installation` starts one and waits for its `ready` line; `Installation.cli` runs the command against it.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from typer.testing import CliRunner, Result

from mailrail.cli.app import app

from testkit.conditions import wait_until
from testkit.ports import free_offset, release_offset
from testkit.processes import Program

PLANNED = (1025, 1465, 1587, 1080, 1081, 1082, 1091, 1092, 1093, 1094, 1096, 1191, 1192, 1193, 1194, 1195, 1196)
"""Ports of local mode before `--port-offset`."""
CHILDREN = ("config", "queue", "outbound", "ingress", "folder", "dmarc")


def mailrail(*arguments: str, timeout: float = 60.0) -> "subprocess.CompletedProcess[str]":
    """Run the command and wait for it."""
    return subprocess.run(
        [sys.executable, "-m", "mailrail.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        stdin=subprocess.DEVNULL,
    )


@dataclass
class Installation:
    """A running `mailrail local`."""

    folder: Path  # holds state/ and mail.d/
    offset: int
    options: Sequence[str] = ()
    program: Program = field(init=False)

    @property
    def state(self) -> Path:
        """Its --state."""
        return self.folder / "state"

    @property
    def resources(self) -> Path:
        """Its --resources."""
        return self.folder / "mail.d"

    def port(self, planned: int) -> int:
        """A port with the offset."""
        return planned + self.offset

    def start(self) -> "Installation":
        """Start it without waiting; once more, when it was stopped or killed."""
        if hasattr(self, "program"):
            self.program.stop()
        self.program = Program(
            [
                sys.executable, "-m", "mailrail.cli", "local", "--state", self.state, "--resources", self.resources,
                "--port-offset", str(self.offset), *self.options,
            ],
            name="local",
        )  # fmt: skip
        return self

    def wait_ready(self, within: float = 90.0) -> "Installation":
        """Wait for the line that says so."""
        self.program.wait_for_line(r"^mailrail .* ready: ", within)
        return self

    def pid(self, name: str) -> int:
        """The process id of a child, or of `postgres`; waits until it is noted and alive."""

        def noted() -> int | None:
            pid = int((self.state / "run" / f"{name}.pid").read_text())
            return pid if _alive(pid) else None

        return wait_until(noted, 60, f"{name} runs", ignoring=(OSError, ValueError))

    def kill(self, name: str) -> int:
        """kill -9 a child or `postgres`; answers the process id that it had."""
        pid = self.pid(name)
        os.kill(pid, signal.SIGKILL if sys.platform != "win32" else signal.SIGTERM)
        wait_until(lambda: not _alive(pid), 60, f"{name} is dead")
        return pid

    def cli(self, *arguments: str, timeout: float = 60.0) -> "subprocess.CompletedProcess[str]":
        """Run a command against it."""
        return mailrail("--state", str(self.state), *arguments, timeout=timeout)

    def ask(self, *arguments: str) -> Any:
        """Run a reading command with --json, in this process; its answer. Raises AssertionError when it fails."""
        done = self.run(*arguments, "--json")
        assert done.exit_code == 0, f"mailrail {' '.join(arguments)}: {done.exit_code}\n{done.output}"
        return json.loads(done.stdout)

    def run(self, *arguments: str) -> Result:
        """Run a command against it in this process, which takes a tenth of the time of one of its own."""
        return CliRunner().invoke(app, ["--state", str(self.state), *arguments])

    def interrupt(self, within: float = 60.0) -> int:
        """Ctrl-C, and its exit status."""
        self.program.interrupt()
        return self.program.wait(within)


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextlib.contextmanager
def installation(*options: str, ready: bool = True, folder: Path | None = None) -> Iterator[Installation]:
    """A `mailrail local` with a state folder and free ports of its own; stopped, and its folder removed, at the end.

    `ready=False` only chooses them: the caller starts it. A given `folder` is left in place.
    """
    place = folder or Path(tempfile.mkdtemp(prefix="mailrail-local-"))
    if folder is None:
        place.chmod(0o711)  # as root Postgres runs as a user of its own, which must pass through
    made = Installation(place, free_offset(PLANNED), options)
    try:
        if ready:
            made.start().wait_ready()
        yield made
    finally:
        if hasattr(made, "program"):
            made.program.stop(30)
        release_offset(made.offset)
        with contextlib.suppress(OSError, ValueError):  # as root the data of a closed state folder lies elsewhere
            data = Path(json.loads((made.state / "postgres" / "postgres.json").read_text())["data"])
            if not data.is_relative_to(place):
                shutil.rmtree(data.parent, ignore_errors=True)
        if folder is None:
            shutil.rmtree(place, ignore_errors=True)
