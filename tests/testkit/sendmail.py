"""`mailrail-sendmail` as its callers run it: a program of its own with a configuration, a home and a queue folder."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from mailrail.sendmail import main

from testkit.background import background
from testkit.smtp_peer import SmtpPeer

MESSAGE = b"From: ada@home.test\nTo: bob@away.test\nSubject: hello\n\nHello Bob\n"
_FAULT = """
import os, signal, sys
from mailrail.sendmail import folder, main
left = int(sys.argv[1])
def step(name):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
folder.step = step
sys.exit(main(sys.argv[2:], called="sendmail"))
"""
"""Kills itself at the n-th step of what it writes into the queue folder."""


@dataclass(frozen=True)
class Ended:
    """What a call said and returned."""

    status: int
    out: str
    err: str


@contextmanager
def scripted(**options: Any) -> Iterator[SmtpPeer]:
    """A scripted server beside a plain test."""
    peer = SmtpPeer(**options)
    background().call(peer.__aenter__())
    try:
        yield peer
    finally:
        background().call(peer.__aexit__())


class Sendmail:
    """One installation. Keys of the configuration are arguments; those of tables are dictionaries."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.folder = folder
        self.queue = folder / "queue"
        self.config = folder / "sendmail.toml"
        self.configure(**settings)

    def configure(self, **settings: object) -> None:
        """Write the configuration anew. `sender` is its `from`."""
        settings = {"queue": str(self.queue), **settings}
        if "sender" in settings:
            settings["from"] = settings.pop("sender")
        simple = [f"{key} = {json.dumps(value)}" for key, value in settings.items() if not isinstance(value, dict)]
        for key, table in settings.items():
            if isinstance(table, dict):
                simple += [f"[{key}]", *(f"{json.dumps(name)} = {json.dumps(value)}" for name, value in table.items())]
        self.config.write_text("\n".join(simple) + "\n")
        self.config.chmod(0o600)

    @property
    def environment(self) -> dict[str, str]:
        """Of a caller."""
        own = {
            "MAILRAIL_SENDMAIL_CONFIG": str(self.config),
            "HOME": str(self.folder),
            "XDG_CONFIG_HOME": str(self.folder / "no"),
        }
        return {**{key: value for key, value in os.environ.items() if key != "NAME"}, **own}

    def call(
        self,
        *words: str,
        message: bytes = MESSAGE,
        environ: Mapping[str, str] | None = None,
        command: Sequence[str] = (sys.executable, "-m", "mailrail.sendmail"),
        **how: Any,
    ) -> Ended:
        """Run it to its end. `command`: what is run; `how` goes to subprocess.run."""
        done = subprocess.run(
            [*command, *words],
            input=None if "stdin" in how else message,
            stdout=how.pop("stdout", subprocess.PIPE),
            stderr=subprocess.PIPE,
            env={**self.environment, **(environ or {})},
            timeout=120,
            check=False,
            **how,
        )
        return Ended(done.returncode, (done.stdout or b"").decode(), done.stderr.decode())

    def here(self, *words: str, message: bytes = MESSAGE) -> int:
        """Run it in this process, which is quicker; answers its status."""
        stdin = io.TextIOWrapper(io.BytesIO(message))
        with patch.dict(os.environ, self.environment), patch("sys.stdin", stdin):
            return main(words, called="sendmail")

    def killed_at(self, step: int, *words: str) -> Ended:
        """Run it, and kill it at this step of what it writes into the folder; a status below zero: it was."""
        return self.call(*words, command=(sys.executable, "-c", _FAULT, str(step)))

    def program(self, name: str = "sendmail") -> Path:
        """The command as one file, for callers that want a path."""
        path = self.folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        called = f"import sys; from mailrail.sendmail import main; sys.exit(main(called={name!r}))"
        path.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{called}" "$@"\n')
        path.chmod(0o755)
        return path

    def kept(self, where: str) -> list[dict[str, Any]]:
        """The envelopes in `queue` or `failed`."""
        return [json.loads(each.read_bytes()) for each in sorted((self.queue / where).glob("*.json"))]

    def text(self, envelope: Mapping[str, Any], where: str) -> bytes:
        """The octets of a kept message."""
        return (self.queue / where / f"{envelope['id']}.eml").read_bytes()

    def beat(self, seconds_ago: float = 0.0) -> None:
        """As if a process that sends what waits had been there."""
        self.queue.mkdir(mode=0o700, exist_ok=True)
        path = self.queue / "heartbeat"
        path.touch()
        then = path.stat().st_mtime - seconds_ago
        os.utime(path, (then, then))
