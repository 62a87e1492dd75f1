"""The keys of one local installation: a CA, a certificate for each role, one for SMTP, and the key that seals secrets.

Below `STATE/pki` (design section 10), all of it for the owner alone, made once under a lock before children start:

    ca/tls.crt, ca/tls.key            the installation's own CA; its key never leaves this folder
    <role>/tls.crt, tls.key, ca.crt   one folder a role, as cert-manager lays it out, for gRPC with mutual TLS
    smtp/tls.crt, tls.key             the self-signed certificate of the SMTP listeners
    sealing/<key id>                  32 octets in base64 (CFG-02)

All keys are ECDSA P-256. `ensure` is repeatable: it makes what is missing and renews what comes near its expiry, the CA
included (then everything it signed). Services pick a renewed certificate up by themselves.
"""

import base64
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from mailrail.kit.certificates import (
    CA_LIFETIME,
    LIFETIME,
    ROLES,
    SEALING_KEY_SIZE,
    SMTP_LIFETIME,
    Clock,
    Pair,
    due,
    is_authority,
    issue,
    make_authority,
    names_of,
    pem,
    self_signed,
    signed_by,
    utc_now,
)
from mailrail.kit.rpc import ROLE_SUFFIX
from mailrail.local.files import write_private
from mailrail.local.lock import FileLock


@dataclass(frozen=True, slots=True)
class Pki:
    """Where everything is."""

    folder: Path

    def role(self, role: str) -> Path:
        """The folder with tls.crt, tls.key and ca.crt of a role (MAILRAIL_TLS_DIR)."""
        return self.folder / role

    @property
    def smtp_certificate(self) -> Path:
        """PEM certificate of the SMTP listeners."""
        return self.folder / "smtp" / "tls.crt"

    @property
    def smtp_key(self) -> Path:
        """PEM key of the SMTP listeners."""
        return self.folder / "smtp" / "tls.key"

    @property
    def sealing_keys(self) -> Path:
        """The folder of sealing keys (MAILRAIL_SEALING_KEYS_DIR)."""
        return self.folder / "sealing"


def ensure(
    folder: Path, *, smtp_names: Sequence[str] = ("localhost", "127.0.0.1", "::1"), clock: Clock = utc_now
) -> Pki:
    """Make or renew what is missing, damaged or near its expiry below `folder`. Safe from several processes at once.

    `smtp_names`: host names and addresses in the SMTP certificate. Another list makes another certificate.
    """
    _private_folder(folder)
    with FileLock(folder / "lock").acquire(timeout=60):
        now = clock()
        authority = _read(folder / "ca")
        if authority is None or due(authority, CA_LIFETIME, now) or not is_authority(authority.certificate):
            authority = make_authority("Mailrail local", now)
            _store(folder / "ca", authority, None)
        for role in ROLES:
            held = _read(folder / role)
            names = [role + ROLE_SUFFIX]
            if (
                held is None
                or due(held, LIFETIME, now)
                or names_of(held.certificate) != names
                or not signed_by(held.certificate, authority.certificate)
                or _ca_file(folder / role) != pem(authority.certificate)
            ):
                _store(folder / role, issue(authority, role, names, now), authority.certificate)
        smtp = _read(folder / "smtp")
        if smtp is None or due(smtp, SMTP_LIFETIME, now) or sorted(names_of(smtp.certificate)) != sorted(smtp_names):
            _store(folder / "smtp", self_signed(smtp_names, now), None)
        _ensure_sealing_key(folder / "sealing")
    return Pki(folder)


# --- files ----------------------------------------------------------------------------------------------------------


def _read(folder: Path) -> Pair | None:
    """What a folder holds; None when it is missing, damaged, or the key belongs to another certificate."""
    try:
        return Pair.read((folder / "tls.crt").read_bytes(), (folder / "tls.key").read_bytes())
    except OSError:
        return None


def _ca_file(folder: Path) -> bytes | None:
    try:
        return (folder / "ca.crt").read_bytes()
    except OSError:
        return None


def _store(folder: Path, pair: Pair, authority: x509.Certificate | None) -> None:
    _private_folder(folder)
    write_private(folder / "tls.key", pair.key_pem)
    if authority is not None:
        write_private(folder / "ca.crt", pem(authority))
    write_private(folder / "tls.crt", pair.certificate_pem)


def _ensure_sealing_key(folder: Path) -> None:
    """Make the first sealing key. A later one is never made here: values sealed under the first would stay behind."""
    _private_folder(folder)
    if not any(p.is_file() and not p.name.startswith(".") for p in folder.iterdir()):
        write_private(folder / "0001", base64.b64encode(secrets.token_bytes(SEALING_KEY_SIZE)) + b"\n")


def _private_folder(folder: Path) -> None:
    """Make a folder for its owner alone, and close one that is open to others."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if sys.platform != "win32" and folder.stat().st_mode & 0o077:
        folder.chmod(0o700)
