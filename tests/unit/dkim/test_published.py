"""Whether the record of a key of ours stands in the DNS."""

import pytest

from mailrail.core.dkim.key import write_key_record
from mailrail.core.dkim.published import Publication, find_published
from mailrail.core.dkim.signature import KeyName
from mailrail.core.lookups import NO_DATA, NO_NAME, LookupAnswer

from testkit.signed_mail import TROUBLE, ed25519_key, published, rsa_key, txt

NAME = KeyName("example.com", "r2026")
KEY = rsa_key().public_key()
TEXT = write_key_record(KEY)


@pytest.mark.parametrize("key", [rsa_key(), ed25519_key()], ids=["RSA", "Ed25519"])
def test_the_record_that_we_name_stands_however_it_is_spaced(key: object) -> None:
    public = key.public_key()  # type: ignore[attr-defined]
    for text in (write_key_record(public), write_key_record(public).replace("; ", " ;\t") + ";"):
        assert find_published(NAME, public, txt(text)).state is Publication.STANDS


@pytest.mark.parametrize("answer", [NO_NAME, NO_DATA, txt()])
def test_without_a_record_it_says_what_to_publish(answer: LookupAnswer) -> None:
    found = find_published(NAME, KEY, answer)
    assert found.state is Publication.ABSENT
    assert found.text == f"r2026._domainkey.example.com has no TXT record: publish {TEXT}"


def test_a_dns_that_does_not_answer_says_nothing() -> None:
    found = find_published(NAME, KEY, TROUBLE)
    assert (found.state, "SERVFAIL" in found.text) == (Publication.UNKNOWN, True)


@pytest.mark.parametrize(
    ("record", "wrong"),
    [
        (published(rsa_key(number=1)), "another key"),
        (published(ed25519_key()), "another key"),
        ("v=DKIM1; p=", "is revoked"),
        ("v=spf1 -all", "does not begin with v=DKIM1"),
        (published(rsa_key(), "t=y; "), "t=y"),
        (published(rsa_key(), "s=tlsrpt; "), "not for email"),
        (published(rsa_key(), "h=sha1; "), "SHA-256"),
        (TEXT[:300], "is not valid"),
    ],
    ids=["RSA", "Ed25519", "revoked", "SPF", "tested", "other service", "other hash", "cut off"],
)
def test_a_record_that_verifiers_will_not_use_is_wrong(record: str, wrong: str) -> None:
    found = find_published(NAME, KEY, txt(record))
    assert found.state is Publication.WRONG
    assert wrong in found.text
    assert found.text.endswith(f"publish {TEXT}")


def test_two_records_are_wrong_even_if_one_is_right() -> None:
    for records in ((TEXT, TEXT), ("junk", TEXT), (TEXT, published(rsa_key(number=1)))):
        found = find_published(NAME, KEY, txt(*records))
        assert (found.state, "leave only" in found.text) == (Publication.WRONG, True)


def test_a_key_that_is_not_known_here_is_judged_by_its_record_alone() -> None:
    for key, words in ((rsa_key(), "rsa, 2048 bits"), (ed25519_key(), "ed25519, 256 bits")):
        found = find_published(NAME, None, txt(published(key)))
        assert (found.state, words in found.text) == (Publication.STANDS, True)
    for bad in ("t=y; ", "s=tlsrpt; ", "h=sha1; "):
        found = find_published(NAME, None, txt(published(rsa_key(), bad)))
        assert found.state is Publication.WRONG
        assert found.text.endswith("publish the record of its key")
    assert find_published(NAME, None, NO_NAME).state is Publication.ABSENT
