"""Mail that leaves is signed with DKIM, and the signature outlives what hosts on the way do to it.

The judges are OpenDKIM, dkimpy and our own verifier, on the octets that the next hop was given.
"""

import itertools
import smtplib
import threading
from collections.abc import Sequence
from typing import Any

import dkim
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from mailrail.core.dkim.key import write_key_record
from mailrail.core.dkim.sign import PrivateKey
from mailrail.core.dkim.verify import DkimOutcome
from mailrail.core.message.reencode import Target, reencode

from testkit.ca import trusting_anybody
from testkit.conditions import wait_until
from testkit.next_hop import NextHop
from testkit.peers import opendkim
from testkit.rail import LOGIN, PASSWORD, Document, Rail, basics, domain, everything_through, secret
from testkit.signed_mail import dkim_results, ed25519_key, from_table, rsa_key

pytestmark = pytest.mark.timeout(300)

TO = "friend@partner.test"
KEYS: dict[str, PrivateKey] = {"old-rsa": rsa_key(), "old-ed": ed25519_key(), "new-rsa": rsa_key(number=1)}
TABLE = {f"{name}._domainkey.example.org": write_key_record(key.public_key()) for name, key in KEYS.items()}
CONTENT = (
    (
        f"From: <{LOGIN}>\r\nTo: <{TO}>\r\nSubject: lunch\r\nMIME-Version: 1.0\r\n"
        "Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\nGrüße\r\n"
    ).encode()
    + b"x" * 3000
    + b"\r\n.\r\n"
)
TWO = [("pass", "rsa-sha256"), ("pass", "ed25519-sha256")]


def keys() -> Document:
    """The Secret with all of them, as `mailrail dkim generate --secret` makes it."""
    pems = {
        f"{name}.pem": key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        for name, key in KEYS.items()
    }
    return secret("dkim", **pems)


def documents(selectors: dict[str, str], hop: NextHop, *more: Document) -> list[Document]:
    """A domain with these selectors and their `sign`, whose mail all goes to the hop."""
    listed: list[dict[str, Any]] = [
        {"name": name, "sign": sign, "privateKeySecretRef": {"name": "dkim"}} for name, sign in selectors.items()
    ]
    return [
        *(one for one in basics() if one["kind"] != "MailDomain"),
        domain("example-org", "example.org", dkim={"selectors": listed}),
        *everything_through(hop.address, hop.port),
        *more,
    ]


def log_in(rail: Rail) -> smtplib.SMTP:
    client = smtplib.SMTP(*rail.submission, timeout=60)
    client.starttls(context=trusting_anybody())
    client.login(LOGIN, PASSWORD)
    return client


def outcomes(content: bytes) -> list[DkimOutcome]:
    return [each.outcome for each in dkim_results(content, from_table(TABLE), 1.9e9)]


def dkimpy_verifies(content: bytes) -> bool:
    records = {f"{name}.".encode(): record.encode() for name, record in TABLE.items()}
    return bool(dkim.verify(content, dnsfunc=lambda name, timeout=5: records.get(name)))


@pytest.mark.peer("opendkim")
def test_mail_of_one_mailrail_verifies_at_another_behind_a_smarthost_that_re_encodes_DKIM_08a_DKIM_09() -> None:
    with NextHop(eight_bit=False, smtputf8=False) as smarthost:
        both = {"old-rsa": "Auto", "old-ed": "Auto"}
        with Rail(documents(both, smarthost, keys())) as rail, Rail(basics()) as there, log_in(rail) as client:
            client.sendmail(LOGIN, [TO], CONTENT, mail_options=["BODY=8BITMIME"])
            relayed = smarthost.wait_for_recipient(TO).content
            with smtplib.SMTP(*there.mx, timeout=60) as onward:  # as a relay that knows no 8-bit and no long lines
                onward.sendmail(LOGIN, [LOGIN], reencode(relayed, Target.SEVEN_BIT, longest_line=998))
            arrived = there.read(there.wait_for_mail(LOGIN, lambda one: one["subject"] == "lunch"))
            for content in (relayed, arrived):
                assert opendkim.verify(content, TABLE) == TWO
                assert outcomes(content) == [DkimOutcome.PASS] * 2
                assert dkimpy_verifies(content)
            # What the queue says itself is signed by the domain above the host name of the gateway.
            smarthost.refuse("nobody@partner.test", "550 5.1.1 no such user")
            client.sendmail(LOGIN, ["nobody@partner.test"], CONTENT, mail_options=["BODY=8BITMIME"])
            notification = rail.read(rail.wait_for_mail(LOGIN, lambda one: "failed" in str(one["subject"])))
            assert opendkim.verify(notification, TABLE) == TWO


def test_keys_are_changed_under_load_and_no_message_goes_out_unsigned_or_fails_DKIM_08a() -> None:
    before = {"old-rsa": "Auto", "old-ed": "Auto"}
    after: dict[str, str] = {"old-rsa": "Never", "old-ed": "Never", "new-rsa": "Always"}
    with NextHop() as hop, Rail(documents(before, hop, keys())) as rail:
        enough = threading.Event()
        sent: list[int] = []

        def submit(first: int) -> None:
            with log_in(rail) as client:
                for number in itertools.count(first, 2):
                    if enough.is_set():
                        return
                    client.sendmail(LOGIN, [TO], CONTENT, mail_options=["BODY=8BITMIME"])
                    sent.append(number)

        def selectors() -> Sequence[bytes]:
            return [name.encode() for name in KEYS if any(b"s=%s;" % name.encode() in m.content for m in hop.messages)]

        threads = [threading.Thread(target=submit, args=(first,)) for first in (0, 1)]
        for thread in threads:
            thread.start()
        try:
            wait_until(lambda: len(sent) >= 20, 60, "mail flows with the old keys")
            rail.write("all.yaml", documents(after, hop, keys()))
            wait_until(lambda: b"new-rsa" in selectors(), 60, "the new key signs")
            some = len(sent)
            wait_until(lambda: len(sent) >= some + 20, 60, "mail flows with the new key")
        finally:
            enough.set()
            for thread in threads:
                thread.join()
        arrived = hop.wait_for(len(sent))
        judged = [outcomes(message.content) for message in arrived]
        assert all(each in ([DkimOutcome.PASS] * 2, [DkimOutcome.PASS]) for each in judged), judged
        assert selectors() == [b"old-rsa", b"old-ed", b"new-rsa"]


def test_without_its_secret_mail_goes_out_unsigned_and_the_configuration_says_so() -> None:
    with NextHop() as hop, Rail(documents({"old-rsa": "Auto"}, hop)) as rail, log_in(rail) as client:
        client.sendmail(LOGIN, [TO], CONTENT, mail_options=["BODY=8BITMIME"])
        assert b"DKIM-Signature" not in hop.wait_for_recipient(TO).content
        said = "Secret default/dkim does not exist; until that is mended, mail is not signed with it"
        assert said in " ".join(rail.program.lines)
        rail.write("keys.yaml", [keys()])

        def signed() -> bool:
            client.sendmail(LOGIN, [TO], CONTENT, mail_options=["BODY=8BITMIME"])
            return any(b"DKIM-Signature" in message.content for message in hop.messages)

        wait_until(signed, 60, "mail is signed once the key is there")
