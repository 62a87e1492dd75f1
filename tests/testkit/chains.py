"""Chains of certificates that `ca.Authority` does not make: any depth, any constraint, right or deliberately wrong."""

import datetime
import ssl
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

BEGINS = datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC)
ENDS = datetime.datetime(2034, 12, 31, tzinfo=datetime.UTC)


@dataclass(frozen=True)
class Issued:
    """A certificate with its key, which may issue others."""

    certificate: x509.Certificate
    key: Any

    @property
    def der(self) -> bytes:
        """The certificate in DER."""
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def key_info(self) -> bytes:
        """Its public key in DER."""
        return self.certificate.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    @property
    def pem(self) -> bytes:
        """The certificate in PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """Its private key in PEM."""
        written: bytes = self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return written

    def server_context(self, *sent_with: "Issued") -> ssl.SSLContext:
        """A server's context that presents this certificate, then the others in this order."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.TemporaryDirectory() as folder:  # ssl reads certificates from files only
            path = Path(folder) / "chain.pem"
            path.write_bytes(self.key_pem + self.pem + b"".join(each.pem for each in sent_with))
            context.load_cert_chain(path)
        return context


def issue(
    subject: str,
    *names: str,
    by: Issued | None = None,
    ca: bool = False,
    path_length: int | None = None,
    begins: datetime.datetime = BEGINS,
    ends: datetime.datetime = ENDS,
    extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
    key: Any = None,
) -> Issued:
    """A certificate with this common name and these DNS names, issued by itself unless `by` is given. `extensions`:
    further ones, each with whether it is critical; they take the place of those that are made."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    made: list[tuple[x509.ExtensionType, bool]] = [(x509.BasicConstraints(ca=ca, path_length=path_length), True)]
    if names:
        made.append((x509.SubjectAlternativeName([x509.DNSName(each) for each in names]), False))
    if not ca:
        made.append((x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False))
    given = {type(each) for each, _ in extensions}
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(by.certificate.subject if by is not None else name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
    )
    for extension, critical in [*(each for each in made if type(each[0]) not in given), *extensions]:
        builder = builder.add_extension(extension, critical)
    return Issued(builder.sign(by.key if by is not None else key, hashes.SHA256()), key)
