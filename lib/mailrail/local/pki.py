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
import datetime
import ipaddress
import secrets
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mailrail.kit.rpc import ROLE_SUFFIX
from mailrail.local.files import write_private
from mailrail.local.lock import FileLock

ROLES = ("config", "queue", "ingress", "outbound", "dmarc", "console", "operator", "cli")
"""Everyone who calls or answers by gRPC. `operator` is whoever publishes configuration: here the folder watcher."""

CA_LIFETIME = datetime.timedelta(days=3650)
LIFETIME = datetime.timedelta(days=365)
SMTP_LIFETIME = datetime.timedelta(days=1460)
_BACKDATED = datetime.timedelta(hours=1)  # clocks of virtual machines jump
SEALING_KEY_SIZE = 32  # octets: AES-256 (CFG-02)

Clock = Callable[[], datetime.datetime]


def utc_now() -> datetime.datetime:
    """The wall clock."""
    return datetime.datetime.now(datetime.UTC)


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
        if authority is None or _due(authority, CA_LIFETIME, now) or not _is_authority(authority.certificate):
            authority = _make_authority(now)
            _store(folder / "ca", authority, None)
        for role in ROLES:
            held = _read(folder / role)
            names = [role + ROLE_SUFFIX]
            if (
                held is None
                or _due(held, LIFETIME, now)
                or _names(held.certificate) != names
                or held.certificate.issuer != authority.certificate.subject
                or not _signed_by(held.certificate, authority.certificate)
                or _ca_file(folder / role) != _pem(authority.certificate)
            ):
                _store(folder / role, _issue(authority, role, names, now), authority.certificate)
        smtp = _read(folder / "smtp")
        if smtp is None or _due(smtp, SMTP_LIFETIME, now) or sorted(_names(smtp.certificate)) != sorted(smtp_names):
            _store(folder / "smtp", _self_signed(smtp_names, now), None)
        _ensure_sealing_key(folder / "sealing")
    return Pki(folder)


@dataclass(frozen=True, slots=True)
class _Pair:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def _due(pair: _Pair, lifetime: datetime.timedelta, now: datetime.datetime) -> bool:
    """Whether to renew: a third of the life is left, or the clock stands before its beginning."""
    return now > pair.certificate.not_valid_after_utc - lifetime / 3 or now < pair.certificate.not_valid_before_utc


def _make_authority(now: datetime.datetime) -> _Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    # A number in the name: with a renewed CA of the same name, a verifier could pick the wrong one of the two.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Mailrail local {secrets.token_hex(4)}")])
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        _builder(name, name, key.public_key(), now, CA_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _Pair(certificate, key)


def _issue(authority: _Pair, role: str, names: Sequence[str], now: datetime.datetime) -> _Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, role)])
    certificate = (
        _builder(subject, authority.certificate.subject, key.public_key(), now, LIFETIME)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(_general_names(names)), critical=False)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    return _Pair(certificate, key)


def _self_signed(names: Sequence[str], now: datetime.datetime) -> _Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
    certificate = (
        _builder(subject, subject, key.public_key(), now, SMTP_LIFETIME)
        .add_extension(x509.SubjectAlternativeName(_general_names(names)), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _Pair(certificate, key)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: datetime.datetime,
    lifetime: datetime.timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + lifetime)
    )


def _general_names(names: Sequence[str]) -> list[x509.GeneralName]:
    found: list[x509.GeneralName] = []
    for name in names:
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            found.append(x509.DNSName(name))
    return found


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [*names.get_values_for_type(x509.DNSName), *(str(a) for a in names.get_values_for_type(x509.IPAddress))]


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _signed_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except Exception:  # whatever is wrong with it, it is made anew
        return False
    return True


# --- files ----------------------------------------------------------------------------------------------------------


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _read(folder: Path) -> _Pair | None:
    """What a folder holds; None when it is missing, damaged, or the key belongs to another certificate."""
    try:
        certificate = x509.load_pem_x509_certificate((folder / "tls.crt").read_bytes())
        key = serialization.load_pem_private_key((folder / "tls.key").read_bytes(), password=None)
    except (OSError, ValueError):
        return None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        return None
    return _Pair(certificate, key)


def _ca_file(folder: Path) -> bytes | None:
    try:
        return (folder / "ca.crt").read_bytes()
    except OSError:
        return None


def _store(folder: Path, pair: _Pair, authority: x509.Certificate | None) -> None:
    _private_folder(folder)
    key = pair.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_private(folder / "tls.key", key)
    if authority is not None:
        write_private(folder / "ca.crt", _pem(authority))
    write_private(folder / "tls.crt", _pem(pair.certificate))


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
