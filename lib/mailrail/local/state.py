"""The state folder of a local installation: what lies where, and what the command line needs to reach it.

    format             which form of all this it is: a folder of another form is refused
    lock, lock.pid     held by the running supervisor
    client.json        how to reach the services; written at start, removed at a clean stop
    run/<name>.pid     process ids of the children and of Postgres
    pki/               keys and certificates (pki.py)
    postgres/          the embedded server (postgres.py)
    cache/             last good configuration of each service, secrets still sealed (CFG-07)

Everything is for its owner alone. Only as root others may pass through the top folder, because Postgres then runs as a
user of its own; what lies beside its data stays closed to that user too.
"""

import json
import os
import sys
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import platformdirs

from mailrail.kit.files import remove, replace
from mailrail.local.files import write_private

CLIENT_FORMAT = 1
STATE_FORMAT = 1
"""A folder without a number, with anything in it, was made before 0.1.0."""


class NoInstallation(RuntimeError):
    """There is no local installation at that place; the text says how to start one."""


class UnusableState(RuntimeError):
    """The state folder is of another version; the text says what to do."""


def default_state() -> Path:
    """The per-user data folder, unless MAILRAIL_STATE names another."""
    if named := os.environ.get("MAILRAIL_STATE"):
        return Path(named)
    return platformdirs.user_data_path("mailrail", appauthor=False)


@dataclass(frozen=True, slots=True)
class Client:
    """What STATE/client.json tells the command line."""

    targets: dict[str, str]
    """Role → HOST:PORT of its gRPC server."""
    tls_dir: str
    """Folder with tls.crt, tls.key and ca.crt to show them."""
    listeners: dict[str, str] = field(default_factory=dict)
    """Name → HOST:PORT that people connect to."""
    resources: str = ""
    """The folder with the resource documents."""
    pid: int = 0
    """Process id of the supervisor."""
    format: int = CLIENT_FORMAT


@dataclass(frozen=True, slots=True)
class StateFolder:
    """Paths below one state folder."""

    folder: Path

    @property
    def lock(self) -> Path:
        """Held while a supervisor runs on this folder."""
        return self.folder / "lock"

    @property
    def client_file(self) -> Path:
        """How to reach the services."""
        return self.folder / "client.json"

    @property
    def pki(self) -> Path:
        """Keys and certificates."""
        return self.folder / "pki"

    @property
    def postgres(self) -> Path:
        """The embedded server."""
        return self.folder / "postgres"

    @property
    def cache(self) -> Path:
        """Last good configurations."""
        return self.folder / "cache"

    @property
    def run(self) -> Path:
        """Process ids."""
        return self.folder / "run"

    def make(self) -> "StateFolder":
        """Make the folder and its parts. Raises OSError, UnusableState."""
        as_root = sys.platform != "win32" and os.geteuid() == 0
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._check_format()
        if as_root and self.folder.stat().st_mode & 0o777 == 0o700:
            self.folder.chmod(0o711)  # ours to open: the user of Postgres passes through, and sees nothing
        for part in (self.cache, self.run):
            part.mkdir(exist_ok=True, mode=0o700)
        return self

    def _check_format(self) -> None:
        file = self.folder / "format"
        try:
            found = file.read_text(encoding="utf-8", errors="replace").strip()
        except FileNotFoundError:
            if any(part.exists() for part in (self.postgres, self.pki, self.client_file, self.cache)):
                raise UnusableState(
                    f"the state folder {self.folder} was made by a version from before 0.1.0 and cannot be used any"
                    " more. Remove it with the mail that is in it, or name another one with --state"
                ) from None
            write_private(file, f"{STATE_FORMAT}\n".encode())
            return
        if found != str(STATE_FORMAT):
            raise UnusableState(
                f"the state folder {self.folder} has format {found}, and this version of Mailrail uses {STATE_FORMAT}:"
                " use the version that made it, or name another folder with --state"
            )

    def write_client(self, client: Client) -> None:
        """Say how to reach the services."""
        write_private(self.client_file, json.dumps(asdict(client), indent=1).encode() + b"\n")

    def read_client(self) -> Client:
        """How to reach the services. Raises NoInstallation."""
        try:
            found: dict[str, Any] = json.loads(self.client_file.read_bytes())
            known = {each.name for each in fields(Client)}  # a later release may say more
            client = Client(**{name: value for name, value in found.items() if name in known})
        except FileNotFoundError:
            raise NoInstallation(
                f"no running Mailrail was found in {self.folder}: start it with `mailrail local`, "
                "or name its state folder with --state, or a cluster's services with --server"
            ) from None
        except PermissionError:
            raise NoInstallation(
                f"this user cannot read {self.client_file}: run the command as the user who runs `mailrail local`"
            ) from None
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise NoInstallation(f"{self.client_file} is invalid ({error}); restart `mailrail local`") from error
        if client.format != CLIENT_FORMAT:
            raise NoInstallation(f"{self.client_file} was written by another version; restart `mailrail local`")
        return client

    def remove_client(self) -> None:
        """Say that nobody can be reached any more. Raises OSError."""
        remove(self.client_file)

    def write_pid(self, name: str, pid: int) -> None:
        """Note the process id of a child. Whoever reads meanwhile finds the one before or this one, never nothing."""
        unfinished = self.run / f".{name}.pid"
        unfinished.write_text(f"{pid}\n", encoding="ascii")
        replace(unfinished, self.run / f"{name}.pid")

    def remove_pid(self, name: str) -> None:
        """Forget a child that has ended."""
        remove(self.run / f"{name}.pid")
