"""What accounts submit is signed, in a form that no hop has to change, and goes unsigned where it cannot be."""

import email
import email.policy
from dataclasses import replace

import dkim
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from unit.ingress.test_session import NOW, Client, active_config, bdat, logged_in

from mailrail.core.dkim.canonical import BodyHasher
from mailrail.core.dkim.key import write_key_record
from mailrail.core.dkim.rotation import KeyStage
from mailrail.core.dkim.sign import PrivateKey
from mailrail.core.dkim.verify import DkimOutcome
from mailrail.core.message.content_type import is_seven_bit
from mailrail.core.message.reencode import HOLD, Target, reencode
from mailrail.core.revision.revision import DkimKey, Domain, DomainDelivery
from mailrail.core.smtp.parameters import BodyType
from mailrail_ingress import metrics
from mailrail_ingress.active_config import ActiveConfig, ListenerKey
from mailrail_ingress.ports import ACCEPTED

from testkit.ingress import GATEWAY, HOME, HeldQueue, ref, secret, setup
from testkit.signed_mail import dkim_results, ed25519_key, from_table, rsa_key

BY = DomainDelivery.NONE
HEADER = (
    b"From: Ada <ada@home.example>\r\nTo: bob@far.example\r\nSubject: lunch\r\n"
    b"Date: Mon, 5 Jan 2026 10:00:00 +0000\r\nMessage-ID: <1@home.example>\r\nMIME-Version: 1.0\r\n"
)
TO_BOB = b"MAIL FROM:<ada@home.example>\r\nRCPT TO:<bob@smart.example>\r\n"
KEYS: dict[str, PrivateKey] = {"r": rsa_key(), "e": ed25519_key(), "p": rsa_key(number=1), "old": rsa_key(number=2)}
TABLE = {
    f"{selector}._domainkey.{'provider' if selector == 'p' else 'home'}.example": write_key_record(key.public_key())
    for selector, key in KEYS.items()
}


def pem(key: PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def signing(
    queue: HeldQueue,
    *,
    stage: KeyStage = KeyStage.SIGNING,
    bad: bytes | None = None,
    lost: bool = False,
    config: ActiveConfig | None = None,
) -> ActiveConfig:
    """home.example with two keys that sign, and provider.example that signs, too."""
    config = config or active_config(queue)
    made = setup()
    secrets = made.secrets

    def key(selector: str, stage: KeyStage = stage) -> DkimKey:
        private = KEYS[selector]
        kind = "ed25519" if selector == "e" else "rsa"
        path = secret("dkim", selector, secrets, pem(private) if bad is None else bad)
        return DkimKey(selector, f"{kind}-sha256", path, stage, write_key_record(private.public_key()))

    (home,) = (each for each in made.revision.domains if each.ref == HOME)
    home = replace(home, dkim=(key("old", KeyStage.RETIRED), key("r"), key("e")), also_sign_as=("provider.example",))
    provider = Domain(ref("MailDomain", "provider"), "provider.example", BY, dkim=(key("p"),))
    others = tuple(each for each in made.revision.domains if each.ref != HOME)
    if lost:
        secrets = {path: value for path, value in secrets.items() if "/dkim/" not in path}
    config.configure(replace(made.revision, domains=(home, provider, *others)), 8, secrets)
    return config


def stored(queue: HeldQueue, number: int = 0) -> bytes:
    message = queue.commits[number][0]
    return message.prefix + (message.body if message.body is not None else b"".join(queue.uploads[number].frames))


def outcomes(content: bytes) -> list[tuple[str, DkimOutcome]]:
    return [(each.domain, each.outcome) for each in dkim_results(content, from_table(TABLE), NOW)]


GOOD = [
    ("home.example", DkimOutcome.PASS),
    ("home.example", DkimOutcome.PASS),
    ("provider.example", DkimOutcome.PASS),
]


def submit(client: Client, content: bytes, step: int = 70_000) -> None:
    client.send(TO_BOB + b"DATA\r\n")
    for at in range(0, len(content), step):
        client.send(content[at : at + step])
    client.send(b"\r\n.\r\n")


@pytest.mark.parametrize("lines", [1, 3_000, 90_000])
def test_a_submission_of_any_size_is_signed_by_its_author_s_domain_and_one_that_signs_too_DKIM_08a(lines: int) -> None:
    queue = HeldQueue()
    client = logged_in(queue, config=signing(queue))
    submit(client, HEADER + b"\r\n" + b"At one?  \tOr  two\r\n..dots\r\n\r\n" * lines)
    content = stored(queue)
    assert outcomes(content) == GOOD
    assert b"..dots" not in content
    names = {b"%s." % name.encode(): record.encode() for name, record in TABLE.items()}
    assert dkim.verify(content, dnsfunc=lambda name, timeout=5: names.get(name))
    message = queue.commits[0][0]
    assert message.size == len(content)
    assert content.startswith(b"DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d=home.example; s=r;")
    assert bool(queue.uploads) == (lines == 90_000)
    for change in (b"lunch", b"At one"):
        assert {each[1] for each in outcomes(content.replace(change, b"x" + change, 1))} == {DkimOutcome.FAIL}


def test_the_fields_that_ingress_adds_and_takes_out_are_settled_before_it_signs_DKIM_08a() -> None:
    queue = HeldQueue()
    client = logged_in(queue, config=signing(queue))
    submit(client, b"To: bob@far.example\r\nBcc: eve@far.example\r\nSubject: lunch\r\n\r\nAt one?\r\n")
    content = stored(queue)
    assert b"From: ada@home.example" in content
    assert b"eve@" not in content
    assert outcomes(content) == GOOD


BODIES = {
    "8-bit text": (
        b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n",
        "é \r\n".encode(),
    ),
    "a long line": (b"Content-Type: text/plain\r\n", b"x" * 3000 + b"\r\n"),
    "a bare line end": (b"Content-Type: text/plain\r\n", b"a\nb\r\n"),
    "octets": (b"Content-Type: application/octet-stream\r\n", bytes(range(256)) * 4),
}


@pytest.mark.parametrize("more", [1, 500])
@pytest.mark.parametrize("kind", BODIES)
def test_what_is_signed_needs_no_encoding_at_any_hop_and_means_the_same_DKIM_09(kind: str, more: int) -> None:
    header, body = BODIES[kind]
    binary = kind in ("octets", "a bare line end")
    content = HEADER + header + b"\r\n" + body * more
    queue = HeldQueue()
    client = logged_in(queue, config=signing(queue))
    client.send(TO_BOB.replace(b">\r\n", b"> BODY=BINARYMIME\r\n", 1) if binary else TO_BOB)
    if binary:
        client.send(bdat(content))
    else:
        client.send(b"DATA\r\n" + content + b".\r\n")
    kept, message = stored(queue), queue.commits[0][0]
    assert is_seven_bit(kept)
    assert reencode(kept, Target.SEVEN_BIT, longest_line=998) == kept
    assert not message.eight_bit
    assert message.parameters.body is (BodyType.SEVEN_BIT if binary else None)
    assert outcomes(kept) == GOOD
    payload = email.message_from_bytes(kept).get_payload(decode=True)
    assert payload == body * more


SIGNED_PART = (
    b'Content-Type: multipart/signed; micalg=sha-256; protocol="application/pgp-signature"; boundary=s\r\n\r\n'
    b"--s\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
    + "é\r\n".encode()
    + b"--s\r\nContent-Type: application/pgp-signature\r\n\r\nx\r\n--s--\r\n"
)


def test_the_parts_of_a_multipart_signed_stay_and_the_message_is_signed_so_RFC_1847_2_1_DKIM_09() -> None:
    queue = HeldQueue()
    client = logged_in(queue, config=signing(queue))
    submit(client, HEADER + SIGNED_PART)
    content = stored(queue)
    assert content.endswith(SIGNED_PART.rpartition(b"protocol")[2] + b"\r\n")
    assert queue.commits[0][0].eight_bit
    assert outcomes(content) == GOOD


def test_what_its_author_signed_stays_as_it_is_and_is_signed_again_DKIM_09() -> None:
    queue = HeldQueue()
    client = logged_in(queue, config=signing(queue))
    own = b"DKIM-Signature: v=1; a=rsa-sha256; d=other.example; s=x; h=from; bh=eA==; b=eA==\r\n"
    submit(client, own + HEADER + b"\r\n" + "é\r\n".encode())
    content = stored(queue)
    assert content.endswith(own + HEADER + b"\r\n" + "é\r\n\r\n".encode())
    assert [each for each in outcomes(content) if each[0] != "other.example"] == GOOD


def test_only_accounts_are_signed_for_and_only_domains_that_have_keys_DKIM_08a() -> None:
    queue = HeldQueue()
    config = signing(queue)
    stranger = Client(config)
    stranger.send(b"EHLO c\r\nMAIL FROM:<ada@home.example>\r\nRCPT TO:<ada@home.example>\r\nDATA\r\n")
    stranger.send(HEADER + b"\r\nx\r\n.\r\n")
    plain = logged_in(queue)
    submit(plain, HEADER + b"\r\n" + "é\r\n".encode())
    assert all(b"DKIM-Signature" not in stored(queue, number) for number in (0, 1))
    assert stored(queue, 1).endswith("é\r\n\r\n".encode())  # nothing is encoded for a signature that is not made


@pytest.mark.parametrize("trouble", ["no value", "a value that is no key", "no key that signs"])
def test_mail_whose_keys_cannot_be_used_goes_unsigned_and_is_counted(trouble: str) -> None:
    queue = HeldQueue()
    before = metrics.SIGNATURES.of("failed").number
    if trouble == "no value":
        config = signing(queue, lost=True)
    elif trouble == "a value that is no key":
        config = signing(queue, bad=b"nonsense")
    else:
        config = signing(queue, stage=KeyStage.WAITING)
    submit(logged_in(queue, config=config), HEADER + b"\r\nx")
    assert stored(queue).endswith(HEADER + b"\r\nx\r\n")
    assert b"DKIM-Signature" not in stored(queue)
    assert metrics.SIGNATURES.of("failed").number - before == (0 if trouble == "no key that signs" else 1)


def test_a_header_with_more_fields_than_verifiers_read_goes_unsigned() -> None:
    queue = HeldQueue()
    submit(logged_in(queue, config=signing(queue)), HEADER + b"References: <a@b.example>\r\n" * 300 + b"\r\nx")
    assert len(queue.commits) == 1
    assert b"DKIM-Signature" not in stored(queue)


def test_a_part_whose_header_cannot_be_encoded_is_sent_as_it_is_while_small_and_refused_above() -> None:
    """Promise 1: such content once went through as it came, and it is not to end in an error of ours."""
    nested = b"Content-Type: message/rfc822\r\n\r\nSubject: a\rb\r\nContent-Type: text/plain\r\n\r\n" + b"\xe9\r\n"
    queue = HeldQueue()
    client = logged_in(queue, config=signing(queue))
    client.send(TO_BOB.replace(b">\r\n", b"> BODY=BINARYMIME\r\n", 1) + bdat(HEADER + nested))
    assert outcomes(stored(queue)) == GOOD
    assert stored(queue).endswith(nested)
    assert queue.commits[0][0].parameters.body is BodyType.BINARY_MIME
    queue = HeldQueue()
    client = logged_in(queue, config=signing(queue))
    client.send(TO_BOB.replace(b">\r\n", b"> BODY=BINARYMIME\r\n", 1))
    said = client.send(bdat(HEADER + nested + b"x\r\n" * HOLD))
    assert said[-1] == "550 5.6.0"
    assert not queue.commits


def test_the_body_of_a_message_that_is_not_signed_is_not_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fed(*_: object) -> None:
        raise AssertionError("hashed")

    monkeypatch.setattr(BodyHasher, "feed", fed)
    queue = HeldQueue()
    submit(logged_in(queue), HEADER + b"\r\nx")
    assert len(queue.commits) == 1


def test_a_new_revision_signs_with_its_keys_from_the_next_message_on() -> None:
    queue = HeldQueue()
    config = signing(queue, stage=KeyStage.WAITING)
    client = logged_in(queue, config=config)
    submit(client, HEADER + b"\r\nx")
    queue.commits[0][1](ACCEPTED)
    signing(queue, config=config)
    client.session.rebase(config.listeners[ListenerKey(GATEWAY, "submission")])
    submit(client, HEADER + b"\r\nx")
    assert b"DKIM-Signature" not in stored(queue, 0)
    assert outcomes(stored(queue, 1)) == GOOD
