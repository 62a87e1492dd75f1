"""Real programs as peers (Postfix, Dovecot, swaks, nsd, unbound, pyspf, OpenDKIM, ...), each an instance of its own.

A test that needs one asks for it: `@pytest.mark.peer("postfix")`, or `require_peer("postfix")` in a fixture. Where the
program is missing, the test skips and says what to install; with `CI=true` it fails, so that nothing is silently left
out there.
"""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass

import pytest

_SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")  # not on every user's PATH


@dataclass(frozen=True)
class Peer:
    """What a peer needs on this machine."""

    programs: tuple[str, ...]
    package: str  # of Debian and Ubuntu, as .ci/run installs it
    needs_root: bool = False
    version: tuple[str, str] | None = None  # argument that prints the version, pattern that it must match


PEERS = {
    "postfix": Peer(("postfix", "postconf"), "postfix", needs_root=True),
    "smtp-source": Peer(("smtp-source",), "postfix"),
    "smtp-sink": Peer(("smtp-sink",), "postfix"),
    "dovecot": Peer(
        ("dovecot",), "dovecot-core dovecot-submissiond", needs_root=True, version=("--version", r"^2\.3\.")
    ),
    "dante": Peer(("danted",), "dante-server"),
    "microsocks": Peer(("microsocks",), "microsocks"),
    "swaks": Peer(("swaks",), "swaks libnet-ssleay-perl"),
    "php": Peer(("php",), "php-cli"),
    "git-send-email": Peer(("git", "/usr/lib/git-core/git-send-email"), "git-email libmailtools-perl"),
    "mutt": Peer(("mutt",), "mutt"),
    "s-nail": Peer(("s-nail",), "s-nail"),
    "prometheus": Peer(("prometheus",), "prometheus"),
    "nsd": Peer(("nsd",), "nsd"),
    "unbound": Peer(("unbound",), "unbound"),
    "pyspf": Peer(("spfquery.pyspf",), "spf-tools-python"),
    "opendkim": Peer(("opendkim",), "opendkim"),
    "pgbouncer": Peer(("pgbouncer",), "pgbouncer"),
    "postgres": Peer(("/usr/lib/postgresql/15/bin/postgres",), "postgresql-15"),  # the oldest that we promise
}


def find_program(name: str) -> str | None:
    """The path of an executable, looked for where system programs live too."""
    return shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", ""), *_SYSTEM_FOLDERS)))


def missing(name: str) -> str | None:
    """Why the peer cannot be used here, in words that say what to do; None when it can."""
    peer = PEERS[name]
    for program in peer.programs:
        path = find_program(program)
        if path is None:
            return f"needs {program}: apt-get install {peer.package}"
        if peer.version is not None:
            argument, pattern = peer.version
            printed = subprocess.run([path, argument], capture_output=True, text=True, check=False, timeout=20).stdout
            if not re.search(pattern, printed):
                return f"needs {program} of a version like {pattern}, this is {printed.strip() or 'unknown'}"
    if peer.needs_root and (not hasattr(os, "geteuid") or os.geteuid() != 0):
        return f"needs root to start {name}"
    return None


def require_peer(name: str) -> None:
    """Skip the test unless the peer can be used; fail it instead where `CI=true`."""
    reason = missing(name)
    if reason is None:
        return
    if os.environ.get("CI", "").lower() in ("true", "1"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def program(name: str) -> str:
    """The path of an executable that `require_peer` has already found."""
    path = find_program(name)
    assert path is not None, f"{name} is not installed"
    return path
