"""Certificates for tests: an own CA (ECDSA), and what it issues, right or deliberately wrong."""

import contextlib
import datetime
import ssl
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Certificate:
    """A certificate with its chain and private key."""

    names: tuple[str, ...]
    chain_pem: bytes
    key_pem: bytes

    @property
    def pem(self) -> bytes:
        """Key, certificate and chain in one text, as a Secret or a Postfix `chain_files` wants it."""
        return self.key_pem + self.chain_pem

    def write(self, folder: Path, stem: str = "server") -> Path:
        """Write `STEM.pem` (key and chain, mode 600) into `folder` and answer its path."""
        path = folder / f"{stem}.pem"
        path.write_bytes(self.pem)
        path.chmod(0o600)
        return path

    def server_context(self) -> ssl.SSLContext:
        """A server's context that presents this certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._load_into(context)
        return context

    def client_context(self, trusting: "Authority | None" = None) -> ssl.SSLContext:
        """A client's context that presents this certificate, trusting `trusting` alone (or the system's)."""
        context = trusting.client_context() if trusting is not None else ssl.create_default_context()
        self._load_into(context)
        return context

    def _load_into(self, context: ssl.SSLContext) -> None:
        # ssl reads certificates from files only
        with tempfile.TemporaryDirectory() as folder:
            context.load_cert_chain(self.write(Path(folder)))


def speaking_only(context: ssl.SSLContext, version: ssl.TLSVersion) -> ssl.SSLContext:
    """The same context, which now speaks this version alone, however old, with whatever suites OpenSSL has."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = version
    return with_any_suite(context)


def with_any_suite(context: ssl.SSLContext) -> ssl.SSLContext:
    """The same context without OpenSSL's security level, so that its own versions are all that bind it."""
    context.set_ciphers("ALL:@SECLEVEL=0")
    return context


def trusting_anybody() -> ssl.SSLContext:
    """A client's context that looks at no certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def handshake(client: ssl.SSLContext, server: ssl.SSLContext, name: str | None = None) -> str | None:
    """The version that the two agree on, without a socket. Raises ssl.SSLError where they do not."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    from_client, from_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        (client.wrap_bio(to_client, from_client, server_hostname=name), from_client, to_server),
        (server.wrap_bio(to_server, from_server, server_side=True), from_server, to_client),
    )
    for _ in range(4):
        for end, outgoing, peer in ends:
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
            peer.write(outgoing.read())
    return ends[0][0].version()


def issue_oversized(name: str, octets: int) -> Certificate:
    """A certificate by nobody, valid for a DNS name, with so many octets in an extension that nobody knows."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), bytes(octets)), False)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Certificate((name,), made.public_bytes(Encoding.PEM), secret)


class Authority:
    """A CA. Each instance is a different one: a test of distrust makes a second."""

    def __init__(self) -> None:
        self._ca = trustme.CA(key_type=trustme.KeyType.ECDSA)

    @property
    def pem(self) -> bytes:
        """The CA's own certificate, to trust."""
        return self._ca.cert_pem.bytes()

    def write(self, folder: Path, stem: str = "ca") -> Path:
        """Write `STEM.pem` (the CA's certificate) into `folder` and answer its path."""
        path = folder / f"{stem}.pem"
        path.write_bytes(self.pem)
        return path

    def issue(self, *names: str, common_name: str | None = None, rsa: bool = False) -> Certificate:
        """A valid certificate for DNS names (`*.example.org` too) and IP addresses; ECDSA unless `rsa`."""
        return self._issue(names, common_name=common_name, rsa=rsa)

    def issue_expired(self, *names: str) -> Certificate:
        """A certificate that was valid until yesterday."""
        now = datetime.datetime.now(datetime.UTC)
        return self._issue(
            names, not_before=now - datetime.timedelta(days=30), not_after=now - datetime.timedelta(days=1)
        )

    def issue_expiring(self, *names: str, seconds: float) -> Certificate:
        """A certificate that is valid for so much longer."""
        now = datetime.datetime.now(datetime.UTC)
        return self._issue(
            names, not_before=now - datetime.timedelta(days=1), not_after=now + datetime.timedelta(seconds=seconds)
        )

    def issue_premature(self, *names: str) -> Certificate:
        """A certificate that becomes valid tomorrow."""
        now = datetime.datetime.now(datetime.UTC)
        return self._issue(
            names, not_before=now + datetime.timedelta(days=1), not_after=now + datetime.timedelta(days=30)
        )

    def client_context(self) -> ssl.SSLContext:
        """A client's context that trusts this CA and nobody else, and checks names."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=self.pem.decode("ascii"))
        return context

    def _issue(
        self,
        names: tuple[str, ...],
        *,
        common_name: str | None = None,
        rsa: bool = False,
        not_before: datetime.datetime | None = None,
        not_after: datetime.datetime | None = None,
    ) -> Certificate:
        leaf = self._ca.issue_cert(
            *names,
            common_name=common_name,
            not_before=not_before,
            not_after=not_after,
            key_type=trustme.KeyType.RSA if rsa else trustme.KeyType.ECDSA,
        )
        return Certificate(names, b"".join(blob.bytes() for blob in leaf.cert_chain_pems), leaf.private_key_pem.bytes())
