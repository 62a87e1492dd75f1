"""The bundled Postgres as a process, as the chart starts it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from testkit.processes import Program


def started(folder: Path, password: str, port: int, *, metrics: str = "") -> Program:
    """The server, which may not be ready yet. `metrics`: HOST:PORT where it serves them; empty: nowhere."""
    file = folder.with_name("password")
    file.write_text(f"{password}\n")
    command = [sys.executable, "-m", "mailrail.cli", "cluster", "postgres", "--folder", str(folder)]
    command += ["--password-file", str(file), "--port", str(port), "--listen", "127.0.0.1"]
    return Program(command, name="postgres", env={"MAILRAIL_METRICS_LISTEN": metrics})


@contextmanager
def running(folder: Path, password: str, port: int, *, metrics: str = "") -> Iterator[str]:
    """A server while the context lasts; yields its URL."""
    with started(folder, password, port, metrics=metrics) as server:
        server.wait_for_line("ready on port", 120)
        yield f"postgresql://mailrail:{password}@127.0.0.1:{port}/mailrail"
        assert server.stop(60) == 0
