"""Certificates and keys of local mode."""

import datetime
import os
import ssl
import stat
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography import x509

from mailrail.kit.certificates import ROLES
from mailrail.local import pki

NOW = datetime.datetime(2026, 11, 22, 12, 0, tzinfo=datetime.UTC)


def _certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def _everything(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.suffix not in (".pid", "")
    }


def test_every_role_gets_a_certificate_of_the_one_ca_under_its_own_name(tmp_path: Path) -> None:
    made = pki.ensure(tmp_path / "pki", clock=lambda: NOW)
    authority = _certificate(tmp_path / "pki" / "ca" / "tls.crt")
    for role in ROLES:
        certificate = _certificate(made.role(role) / "tls.crt")
        certificate.verify_directly_issued_by(authority)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == [f"{role}.mailrail.internal"]
        assert (made.role(role) / "ca.crt").read_bytes() == (tmp_path / "pki" / "ca" / "tls.crt").read_bytes()


def test_a_client_and_a_server_of_the_installation_trust_each_other(tmp_path: Path) -> None:
    made = pki.ensure(tmp_path / "pki")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(made.role("queue") / "tls.crt", made.role("queue") / "tls.key")
    server.load_verify_locations(made.role("queue") / "ca.crt")
    server.verify_mode = ssl.CERT_REQUIRED
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_cert_chain(made.role("ingress") / "tls.crt", made.role("ingress") / "tls.key")
    client.load_verify_locations(made.role("ingress") / "ca.crt")
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname="queue.mailrail.internal"),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    done: set[int] = set()
    for _ in range(10):
        for number, end in enumerate(ends):
            try:
                end.do_handshake()
                done.add(number)
            except ssl.SSLWantReadError:
                continue
    assert done == {0, 1}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps rights in access lists, not in modes")
def test_everything_is_for_its_owner_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        pki.ensure(tmp_path / "pki")
    finally:
        os.umask(before)
    for path in [tmp_path / "pki", *(tmp_path / "pki").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_a_second_call_changes_nothing(tmp_path: Path) -> None:
    pki.ensure(tmp_path / "pki", clock=lambda: NOW)
    before = _everything(tmp_path / "pki")
    pki.ensure(tmp_path / "pki", clock=lambda: NOW + datetime.timedelta(days=200))
    assert _everything(tmp_path / "pki") == before


def test_certificates_renew_when_a_third_of_their_life_is_left_and_the_ca_stays(tmp_path: Path) -> None:
    made = pki.ensure(tmp_path / "pki", clock=lambda: NOW)
    before = _everything(tmp_path / "pki")
    pki.ensure(tmp_path / "pki", clock=lambda: NOW + datetime.timedelta(days=250))
    after = _everything(tmp_path / "pki")
    assert after["ca/tls.crt"] == before["ca/tls.crt"]
    assert after["queue/tls.crt"] != before["queue/tls.crt"]
    assert after["smtp/tls.crt"] == before["smtp/tls.crt"]
    _certificate(made.role("queue") / "tls.crt").verify_directly_issued_by(_certificate(tmp_path / "pki/ca/tls.crt"))


def test_a_renewed_ca_signs_every_role_anew(tmp_path: Path) -> None:
    made = pki.ensure(tmp_path / "pki", clock=lambda: NOW)
    before = _everything(tmp_path / "pki")
    pki.ensure(tmp_path / "pki", clock=lambda: NOW + datetime.timedelta(days=7 * 365))
    authority = _certificate(tmp_path / "pki" / "ca" / "tls.crt")
    assert _everything(tmp_path / "pki")["ca/tls.crt"] != before["ca/tls.crt"]
    for role in ROLES:
        _certificate(made.role(role) / "tls.crt").verify_directly_issued_by(authority)
        assert _certificate(made.role(role) / "ca.crt") == authority


def test_damaged_or_half_written_files_are_made_anew(tmp_path: Path) -> None:
    made = pki.ensure(tmp_path / "pki")
    (made.role("queue") / "tls.crt").write_bytes(b"-----BEGIN CERTIFICATE-----\ngarbage")
    (made.role("ingress") / "tls.key").unlink()
    (made.role("outbound") / "tls.key").write_bytes((made.role("config") / "tls.key").read_bytes())
    pki.ensure(tmp_path / "pki")
    for role in ("queue", "ingress", "outbound"):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(made.role(role) / "tls.crt", made.role(role) / "tls.key")


def test_the_sealing_key_is_made_once_and_never_replaced_CFG_02(tmp_path: Path) -> None:
    made = pki.ensure(tmp_path / "pki", clock=lambda: NOW)
    key = (made.sealing_keys / "0001").read_bytes()
    pki.ensure(tmp_path / "pki", clock=lambda: NOW + datetime.timedelta(days=9000))
    assert [p.name for p in made.sealing_keys.iterdir()] == ["0001"]
    assert (made.sealing_keys / "0001").read_bytes() == key


def test_several_at_once_agree_on_one_set(tmp_path: Path) -> None:
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda _: pki.ensure(tmp_path / "pki"), range(6)))
    authority = _certificate(tmp_path / "pki" / "ca" / "tls.crt")
    for role in ROLES:
        _certificate(tmp_path / "pki" / role / "tls.crt").verify_directly_issued_by(authority)


def test_the_smtp_certificate_names_where_we_listen_and_follows_a_change(tmp_path: Path) -> None:
    made = pki.ensure(tmp_path / "pki")
    first = _certificate(made.smtp_certificate)
    assert first.issuer == first.subject
    pki.ensure(tmp_path / "pki", smtp_names=("mail.example", "192.0.2.1"))
    names = _certificate(made.smtp_certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["mail.example"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["192.0.2.1"]
