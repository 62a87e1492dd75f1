"""The embedded Postgres of an installation, started again whenever it ends before we stop it."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

from mailrail.local.children import RestartBackoff
from mailrail.local.output import Output
from mailrail.local.postgres.account import PostgresUnavailable
from mailrail.local.postgres.server import EmbeddedPostgres

_SEVERITIES = (
    (" PANIC: ", "error"),
    (" FATAL: ", "error"),
    (" ERROR: ", "error"),
    (" WARNING: ", "warning"),
)
"""Postgres's words for how bad it is, and ours."""


class SupervisedPostgres:
    """Runs until `stop`, on one port. Nobody restarts it once `stopping` is set."""

    def __init__(
        self,
        folder: Path,
        output: Output,
        stopping: threading.Event,
        *,
        verbose: bool,
        started: Callable[[int], None],
    ) -> None:
        """`started` gets the process id at each start."""
        self._folder, self._output, self._stopping = folder, output, stopping
        self._verbose, self._started = verbose, started
        self._postgres = EmbeddedPostgres(folder, log=self.log)
        self._keeper = threading.Thread(target=self._keep, name="postgres", daemon=True)
        self.restarts = 0

    def start(self) -> str:
        """Make the database if there is none, start it, and return its URL. Raises PostgresUnavailable, OSError."""
        self._output.say("starting Postgres" if self._folder.exists() else "making the database, once")
        self._postgres.start()
        self._note_pid()
        self._keeper.start()
        return self._postgres.url()

    def stop(self) -> None:
        """Stop it; `stopping` is set already."""
        self._postgres.stop()
        if self._keeper.ident is not None:
            self._keeper.join(10)

    def log(self, line: str) -> None:
        """Write a line of Postgres with the level that Postgres gave it; what it says in passing only when verbose."""
        if self._verbose or not any(
            noise in line
            for noise in (" LOG: ", "the database system is ", "terminating connection due to administrator")
        ):
            severity = next((level for word, level in _SEVERITIES if word in line), "info")
            self._output.lines("postgres", [line.encode()], severity)

    def _note_pid(self) -> None:
        if (pid := self._postgres.pid) is not None:
            self._started(pid)

    def _keep(self) -> None:
        """Start Postgres again, on the same port, whenever it ends before we stop it."""
        backoff = RestartBackoff()
        what = "Postgres ended"  # before this thread looked
        while not self._stopping.is_set():
            began = time.monotonic()
            if self._postgres.running:
                status = self._postgres.wait()
                if self._stopping.is_set():
                    return
                what = f"Postgres ended (exit status {status})"
            pause = backoff.after(time.monotonic() - began)
            self._output.warn(f"{what}; restarting it in {pause:g} s")
            if self._stopping.wait(pause):
                return
            try:
                self._postgres.restart()
                self.restarts += 1
                self._note_pid()
                self._output.say("Postgres is back")
            except (PostgresUnavailable, OSError) as error:  # even a full disk may have room again
                what = str(error)
