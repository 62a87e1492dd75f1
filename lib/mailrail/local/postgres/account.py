"""The system account that Postgres runs as when we are root, and what such an account can reach."""

import contextlib
import os
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

DATA_ROOT = Path("/var/lib/mailrail")
SYSTEM_USER = "mailrail"
"""Owner of the processes and data of Postgres when we are root."""


class PostgresUnavailable(RuntimeError):
    """The embedded Postgres cannot be had or does not start; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class SystemAccount:
    """The system account that Postgres runs as when we are root."""

    uid: int
    gid: int


def system_account() -> SystemAccount | None:
    """The account to run Postgres as, made when it is missing; None when we are no superuser and need none.

    Raises PostgresUnavailable when it is missing and cannot be made.
    """
    if sys.platform == "win32" or os.geteuid() != 0:
        return None
    if (found := _lookup_account()) is not None:
        return found
    for command in (
        [
            "useradd",
            "--system",
            "--user-group",
            "--no-create-home",
            "--home-dir",
            str(DATA_ROOT),
            "--shell",
            "/usr/sbin/nologin",
            SYSTEM_USER,
        ],
        ["adduser", "-S", "-D", "-H", "-h", str(DATA_ROOT), "-s", "/sbin/nologin", SYSTEM_USER],  # busybox
    ):
        with contextlib.suppress(OSError):
            subprocess.run(command, check=False, stdin=subprocess.DEVNULL, capture_output=True)
        if (found := _lookup_account()) is not None:  # also when another process made it meanwhile
            return found
    raise PostgresUnavailable(
        f"Postgres does not run as root, and the system user {SYSTEM_USER!r} for it could not be made. "
        f"Run as an ordinary user, or make that user (useradd --system {SYSTEM_USER}), or give --database-url."
    )


def _lookup_account() -> SystemAccount | None:
    if sys.platform == "win32":
        return None
    import pwd

    try:
        entry = pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        return None
    return SystemAccount(entry.pw_uid, entry.pw_gid)


def reachable_by(path: Path, uid: int, gid: int) -> bool:
    """Whether the user may pass through `path` and all folders above it, by their mode bits alone."""
    for folder in (path, *path.parents):
        info = folder.stat()
        if info.st_uid == uid:
            bit = stat.S_IXUSR
        elif info.st_gid == gid:
            bit = stat.S_IXGRP
        else:
            bit = stat.S_IXOTH
        if not info.st_mode & bit:
            return False
    return True
