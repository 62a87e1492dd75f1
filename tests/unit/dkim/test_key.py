"""The record of a key (RFC 6376 3.6.1, RFC 8301 3.2, RFC 8463 4)."""

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as generate_ec_key
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.dkim.key import RECORD_SIZE, KeyRecordError, read_key_record
from mailrail.core.dkim.signature import Algorithm

from testkit.signed_mail import ed25519_key, published, rsa_key

SHORT = (  # 512 bits
    "v=DKIM1; k=rsa; p=MFwwDQYJKoZIhvcNAQEBBQADSwAwSAJBAP4V5X7wd+hgr4iv71S7KNMu4RDQTuXwp3NmykVIwkDgzP2DgICUETur8KIoN"
    "+Muv4+BgmVmai1W4JvX8KqwGzcCAwEAAQ=="
)


def rsa_of(bits: int, exponent: int = 65537) -> str:
    """A record with a number of this length in place of a modulus."""
    key = RSAPublicNumbers(exponent, (1 << (bits - 1)) + 1).public_key()
    octets = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return f"v=DKIM1; p={base64.b64encode(octets).decode()}"


def refused(record: str) -> str:
    with pytest.raises(KeyRecordError) as error:
        read_key_record(record.encode("latin-1"))
    return str(error.value)


def test_a_plain_record_is_an_rsa_key_for_everything() -> None:
    record = read_key_record(published(rsa_key()).encode())
    assert (record.key_type, record.bits, record.testing, record.strict) == (b"rsa", 2048, False, False)
    assert (record.hashes, record.services) == (None, (b"*",))
    assert record.refusal(Algorithm.RSA_SHA256, [b"email"]) == ""


def test_the_version_may_be_left_out_and_blanks_stand_anywhere_DKIM_05() -> None:
    text = published(rsa_key()).replace("v=DKIM1; p=", " p = \r\n ") + " ;"
    assert read_key_record(text.encode()).bits == 2048


def test_a_bare_rsa_public_key_is_read_too() -> None:
    octets = rsa_key().public_key().public_bytes(Encoding.DER, PublicFormat.PKCS1)
    assert read_key_record(b"p=" + base64.b64encode(octets)).bits == 2048


@pytest.mark.parametrize("bits", [1024, 4096])
def test_rsa_keys_from_1024_to_4096_bits_are_believed_DKIM_03(bits: int) -> None:
    assert read_key_record(rsa_of(bits).encode()).bits == bits


def test_a_shorter_rsa_key_proves_nothing_and_a_longer_one_is_not_tried_DKIM_03() -> None:
    assert refused(SHORT) == "its RSA key has 512 bits, and fewer than 1024 prove nothing"
    assert "1016 bits" in refused(rsa_of(1016))
    assert refused(rsa_of(4104)) == "its RSA key has 4104 bits, and more than 4096 are not tried"


def test_an_exponent_that_makes_checking_slow_is_refused() -> None:
    assert "exponent" in refused(rsa_of(2048, (1 << 80) + 1))


def test_an_ed25519_key_is_32_octets() -> None:
    record = read_key_record(published(ed25519_key()).encode())
    assert (record.key_type, record.bits) == (b"ed25519", 256)
    assert "has 31 octets, and Ed25519 has 32" in refused(
        f"v=DKIM1; k=ed25519; p={base64.b64encode(bytes(31)).decode()}"
    )


def test_an_empty_key_is_revoked_DKIM_05() -> None:
    assert refused("v=DKIM1; p=") == "its key is revoked (p= is empty)"


@pytest.mark.parametrize(
    "record", ["v=DMARC1; p=reject", "v=DKIM2; p=abcd", "k=rsa; v=DKIM1; p=abcd", "v=dkim1; p=abcd", "v=; p=abcd"]
)
def test_a_record_of_another_version_is_no_key_DKIM_11(record: str) -> None:
    assert "does not begin with v=DKIM1" in refused(record)


@pytest.mark.parametrize(
    ("record", "wrong"),
    [
        ("", "is not valid"),
        ("some text", "is not valid"),
        ("v=DKIM1; k=rsa", "has no p="),
        ("v=DKIM1; p=a*b", "p= is not base64"),
        ("v=DKIM1; p=abcd", "no RSA key"),
        ("v=DKIM1; k=dsa; p=abcd", "neither rsa nor ed25519"),
        ("v=DKIM1; p=" + "a" * RECORD_SIZE, "are read"),
    ],
)
def test_a_broken_record_says_what_is_wrong(record: str, wrong: str) -> None:
    assert wrong in refused(record)


def test_a_key_of_another_kind_in_an_rsa_record_is_refused() -> None:
    octets = generate_ec_key(SECP256R1()).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert "no RSA key" in refused(f"v=DKIM1; p={base64.b64encode(octets).decode()}")


def test_what_a_key_is_for_is_honoured_DKIM_05() -> None:
    def refusal(
        tags: str, algorithm: Algorithm = Algorithm.RSA_SHA256, services: tuple[bytes, ...] = (b"email",)
    ) -> str:
        return read_key_record(published(rsa_key(), tags).encode()).refusal(algorithm, services)

    assert refusal("s=email; ") == refusal("s=*; ") == refusal("s=other : email; ") == ""
    assert refusal("s=tlsrpt; ") == "its key is not for email (s=)"
    assert refusal("s=tlsrpt; ", services=(b"email", b"tlsrpt")) == ""
    assert refusal("", Algorithm.ED25519_SHA256) == "its key is for rsa, and the signature is ed25519-sha256"
    assert refusal("k=rsa; ") == ""


def test_a_key_whose_hashes_lack_sha256_allows_nothing_DKIM_11() -> None:
    def refusal(tags: str) -> str:
        return read_key_record(published(rsa_key(), tags).encode()).refusal(Algorithm.RSA_SHA256, [b"email"])

    assert refusal("h=sha1; ") == refusal("h=; ") == "its key does not allow SHA-256 (h=)"
    assert refusal("h=sha1 : sha256; ") == refusal("h=sha256; ") == ""


def test_flags_are_read_and_unknown_ones_passed_over_DKIM_05() -> None:
    record = read_key_record(published(rsa_key(), "t=s : y : q; n=a note; g=*; ").encode())
    assert (record.testing, record.strict) == (True, True)


@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda octets: b"v=DKIM1; p=" + base64.b64encode(octets)))
def test_reading_any_octets_raises_nothing_but_its_error(record: bytes) -> None:
    try:
        read_key_record(record)
    except KeyRecordError:
        pass


@given(st.binary(max_size=600))
def test_any_octets_are_a_signature_that_does_not_verify(signature: bytes) -> None:
    for key in (rsa_key(), ed25519_key()):
        assert not read_key_record(published(key).encode()).verifies(signature, bytes(32))
