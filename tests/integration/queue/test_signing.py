"""Notifications and reports are signed when they are stored, so that they pass DMARC without a sender."""

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from ipaddress import ip_address

import dkim
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from mailrail.core.dkim.key import write_key_record
from mailrail.core.dkim.sign import PrivateKey
from mailrail.core.dmarc.evaluate import DmarcResult
from mailrail.core.lookups import answered
from mailrail.core.message_authentication.authenticate import authenticate
from mailrail.core.message_authentication.content import hash_content
from mailrail.core.message_authentication.verdict import AuthenticationRules, ClientIdentity
from mailrail.core.revision.revision import DkimKey, SecretRef
from mailrail.pb.queue.v1 import types_pb2
from mailrail_queue.metrics import SIGNED
from mailrail_queue.notify.signing import OwnMailSigner

from testkit.dns_table import DnsTable
from testkit.signed_mail import ed25519_key, rsa_key
from testkit.stored_mail import Rig, revision
from testkit.stored_mail import rig as make_rig

KEYS: dict[str, PrivateKey] = {"r": rsa_key(), "e": ed25519_key()}
REPORT = (
    b"From: reports@here.example\r\nTo: dmarc@far.example\r\nSubject: Report Domain: far.example\r\n"
    b"TLS-Report-Domain: far.example\r\nTLS-Report-Submitter: here.example\r\n\r\nx\r\n"
)


@pytest.fixture
async def rig(database_for: Callable[..., str]) -> AsyncIterator[Rig]:
    async with make_rig(database_for("queue")) as made:
        yield made


def sign_with_keys(signer: OwnMailSigner, domain: str = "here.example") -> None:
    secrets: dict[str, bytes] = {}
    keys = []
    for selector, key in KEYS.items():
        kind = "ed25519" if selector == "e" else "rsa"
        ref = SecretRef("mail", "dkim", selector, "d", "k")
        secrets[ref.path] = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        keys.append(DkimKey(selector, f"{kind}-sha256", ref))
    plain = revision()
    home = replace(plain.domains[0], name=domain, dkim=tuple(keys))
    signer.configure(replace(plain, domains=(home,)), secrets)


def counted(purpose: str, result: str) -> float:
    return float(SIGNED.labels(purpose=purpose, result=result)._value.get())


async def content_of_the_dsn(rig: Rig) -> tuple[bytes, int]:
    ((prefix, body, size),) = await rig.rows(
        "SELECT prefix, body, size FROM message WHERE account = 'mail/postmaster' ORDER BY accepted"
    )
    return bytes(prefix) + bytes(body), size


async def test_a_notification_passes_dmarc_by_its_signature_alone_DKIM_10a_DMRC_21(rig: Rig) -> None:
    sign_with_keys(rig.signer)
    before = counted("notification", "signed")
    (bob,) = await rig.accept("bob@there.example")
    await rig.fail(bob)
    content, size = await content_of_the_dsn(rig)
    assert size == len(content)
    assert counted("notification", "signed") == before + 1
    table = DnsTable()
    table.add("_dmarc.here.example", "TXT", "v=DMARC1; p=reject")
    names = {}
    for selector, key in KEYS.items():
        name, record = f"{selector}._domainkey.here.example", write_key_record(key.public_key())
        table.add(name, "TXT", record)
        names[f"{name}.".encode()] = record.encode()
    assert dkim.verify(content, dnsfunc=lambda name, timeout=5: names.get(name))
    client = ClientIdentity(ip_address("192.0.2.1"), "mx.here.example", None)
    rules = AuthenticationRules("mx.there.example")
    verdict = answered(authenticate(client, hash_content(content, 1.8e9), rules), table)
    assert [each.outcome.value for each in verdict.dkim] == ["pass", "pass"]
    assert [each.result for each in verdict.dmarc.verdicts] == [DmarcResult.PASS]


@pytest.mark.parametrize("domain", ["", "other.example"])
async def test_a_notification_goes_out_unsigned_where_no_domain_above_its_host_has_a_key(rig: Rig, domain: str) -> None:
    if domain:
        sign_with_keys(rig.signer, domain)
    before = counted("notification", "unsigned")
    (bob,) = await rig.accept("bob@there.example")
    await rig.fail(bob)
    content, _ = await content_of_the_dsn(rig)
    assert content.startswith(b"From: Mail Delivery System")
    assert counted("notification", "unsigned") == before + 1


def test_reports_are_signed_alike_with_their_own_fields_and_mail_of_others_never_TRPT_13b() -> None:
    signer = OwnMailSigner()
    assert signer.sign(types_pb2.PURPOSE_DMARC_REPORT, REPORT, 1.8e9) == b""
    sign_with_keys(signer)
    for purpose in (types_pb2.PURPOSE_DMARC_REPORT, types_pb2.PURPOSE_TLS_REPORT, types_pb2.PURPOSE_NOTIFICATION):
        fields = signer.sign(purpose, REPORT, 1.8e9)
        assert fields.count(b"d=here.example") == 2
        assert b"tls-report-submitter" in fields.replace(b"\r\n\t", b"")
    assert signer.sign(types_pb2.PURPOSE_UNSPECIFIED, REPORT, 1.8e9) == b""
    for author in (b"", b"From: a@b@c,\r\n", b"From: x@far.example\r\n"):
        made = author + REPORT.partition(b"\r\n")[2]
        assert signer.sign(types_pb2.PURPOSE_DMARC_REPORT, made, 1.8e9) == b""
