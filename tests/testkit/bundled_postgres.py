"""The bundled Postgres as a process, as the chart starts it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def started(folder: Path, password: str, port: int, *, metrics: str = "") -> subprocess.Popen[str]:
    """The server, whose words are to be read. `metrics`: HOST:PORT where it serves them; empty: nowhere."""
    file = folder.with_name("password")
    file.write_text(f"{password}\n")
    command = [sys.executable, "-m", "mailrail.cli", "cluster", "postgres", "--folder", str(folder)]
    command += ["--password-file", str(file), "--port", str(port), "--listen", "127.0.0.1"]
    environment = {**os.environ, "MAILRAIL_METRICS_LISTEN": metrics}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for(process: subprocess.Popen[str], words: str) -> None:
    """Read what it says until there are these words."""
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if words in line:
            return
    pytest.fail(f"it ended before it said {words!r}: {''.join(said)}")


@contextmanager
def running(folder: Path, password: str, port: int, *, metrics: str = "") -> Iterator[str]:
    """A server while the context lasts; yields its URL."""
    url = f"postgresql://mailrail:{password}@127.0.0.1:{port}/mailrail"
    process = started(folder, password, port, metrics=metrics)
    assert process.stderr is not None
    try:
        wait_for(process, "ready on port")
        yield url
    finally:
        process.terminate()
        with process.stderr:
            process.stderr.read()
        assert process.wait(60) == 0
