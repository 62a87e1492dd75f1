"""A DKIM-Signature field, judged before its key is asked for (RFC 6376 3.5, 6.1.1)."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.dkim.canonical import BodyForm, Canonicalization
from mailrail.core.dkim.signature import (
    CLOCK_SLACK,
    Algorithm,
    ExpiredError,
    KeyName,
    SignatureError,
    read_dkim_signature,
    read_facts,
)
from mailrail.core.dkim.tags import read_tags

NOW = 1_767_225_600.0
HASH = base64.b64encode(bytes(32)).decode()
USUAL: dict[str, str | None] = {
    "v": "1", "a": "rsa-sha256", "d": "example.com", "s": "sel", "h": "From:To", "bh": HASH, "b": "AAAA"
}  # fmt: skip


def field(**changed: str | None) -> dict[bytes, bytes]:
    """The tags of a signature as they are read from its field."""
    values = {**USUAL, **changed}
    return read_tags("; ".join(f"{tag}={value}" for tag, value in values.items() if value is not None).encode())


def refused(**changed: str | None) -> str:
    with pytest.raises(SignatureError) as error:
        read_dkim_signature(field(**changed), NOW)
    return str(error.value)


def test_a_plain_signature_is_simple_and_for_its_whole_domain_DKIM_04() -> None:
    signature = read_dkim_signature(field(), NOW)
    message = signature.message
    assert message.base.algorithm is Algorithm.RSA_SHA256
    assert message.base.key == KeyName("example.com", "sel")
    assert str(message.base.key) == "sel._domainkey.example.com"
    assert (message.header, message.body) == (Canonicalization.SIMPLE, BodyForm(Canonicalization.SIMPLE))
    assert message.signed == (b"from", b"to")
    assert (signature.identity, signature.identity_domain) == ("@example.com", "example.com")


@pytest.mark.parametrize("tag", ["v", "a", "b", "bh", "d", "h", "s"])
def test_a_required_tag_must_be_there_DKIM_04(tag: str) -> None:
    assert refused(**{tag: None}) == f"the tag {tag}= is missing"


@pytest.mark.parametrize("version", ["2", "", "1.0", "01", "DKIM1"])
def test_the_version_is_1_DKIM_04(version: str) -> None:
    assert "only 1 is known" in refused(v=version)


def test_sha1_is_refused_whatever_the_key_says_DKIM_02() -> None:
    assert refused(a="rsa-sha1") == "it is made with SHA-1, which proves nothing any more (RFC 8301 3.1)"
    assert "neither rsa-sha256 nor ed25519-sha256" in refused(a="rsa-sha512")
    assert read_dkim_signature(field(a="ed25519-sha256"), NOW).message.base.algorithm is Algorithm.ED25519_SHA256


def test_from_must_be_signed_in_any_letter_case_DKIM_04() -> None:
    assert "does not cover From" in refused(h="to:subject")
    assert read_dkim_signature(field(h="To : FROM\r\n\t: subject"), NOW).message.signed == (b"to", b"from", b"subject")


@pytest.mark.parametrize(
    ("identity", "domain"),
    [
        ("@example.com", "example.com"),
        ("a=20b@News.Example.COM", "news.example.com"),
        ("x@a.b.example.com", "a.b.example.com"),
    ],
)
def test_the_identity_is_within_the_domain_DKIM_04(identity: str, domain: str) -> None:
    assert read_dkim_signature(field(i=identity), NOW).identity_domain == domain


@pytest.mark.parametrize(
    "identity",
    ["@other.example", "@notexample.com", "@com", "example.com", "@", "a@b@", "@example.com.", "@" + "a" * 400],
)
def test_an_identity_outside_the_domain_is_refused_DKIM_04(identity: str) -> None:
    assert "i=" in refused(i=identity)


def test_an_identity_is_decoded() -> None:
    assert read_dkim_signature(field(i="a=3Bb=40c@example.com"), NOW).identity == "a;b@c@example.com"


@pytest.mark.parametrize(("made", "until"), [("100", "100"), ("101", "100"), (str(int(NOW)), str(int(NOW)))])
def test_a_signature_that_expires_before_it_was_made_is_refused_DKIM_04(made: str, until: str) -> None:
    assert "before it was made" in refused(t=made, x=until)


def test_a_signature_expires_after_the_slack_of_clocks_DKIM_04() -> None:
    until = int(NOW) - CLOCK_SLACK
    read_dkim_signature(field(x=str(until)), NOW)
    with pytest.raises(ExpiredError):
        read_dkim_signature(field(x=str(until - 1)), NOW)


def test_a_time_of_signing_in_the_future_means_nothing_DKIM_04() -> None:
    read_dkim_signature(field(t=str(int(NOW) + 10_000_000)), NOW)


@pytest.mark.parametrize(
    ("changed", "wrong"),
    [
        ({"t": "now"}, "t= has 'now'"),
        ({"x": "-1"}, "x= has '-1'"),
        ({"x": "1" * 13}, "x= has"),
        ({"l": "-1"}, "l= has '-1'"),
        ({"l": "1" * 77}, "l= has"),
        ({"l": ""}, "l= has ''"),
        ({"c": "relaxed/strict"}, "no canonicalization"),
        ({"c": "nofws"}, "no canonicalization"),
        ({"c": "/"}, "no canonicalization"),
        ({"b": ""}, "b= is empty"),
        ({"b": "*"}, "b= is not base64"),
        ({"bh": "AAAA"}, "bh= has 3 octets where SHA-256 has 32"),
        ({"h": ""}, "no name of a field"),
        ({"h": "from::to"}, "no name of a field"),
        ({"h": "from:t o"}, "no name of a field"),
        ({"h": ":".join(["from"] * 1001)}, "more than 1000 names"),
        ({"q": "http"}, "not in TXT records"),
        ({"d": "example..com"}, "no domain"),
        ({"d": "example.com(.attacker.example"}, "no domain"),
        ({"d": "a" * 64 + ".example"}, "no domain"),
        ({"d": ""}, "no domain"),
        ({"s": ""}, "no selector"),
        ({"s": "-a"}, "no selector"),
        ({"s": "a..b"}, "no selector"),
        ({"s": "a" * 64}, "no selector"),
        ({"s": ".".join(["a" * 60] * 4)}, "longer than a name in the DNS"),
    ],
)
def test_a_value_that_is_not_valid_is_named_DKIM_04(changed: dict[str, str], wrong: str) -> None:
    assert wrong in refused(**changed)


def test_values_that_are_rare_and_valid_are_taken() -> None:
    read_dkim_signature(field(q="http:dns/txt", z="From:x", x_y="1", c="relaxed", l="0", s="a_b.C-d"), NOW)
    assert read_dkim_signature(field(c="relaxed"), NOW).message.body == BodyForm(Canonicalization.SIMPLE)


def test_domain_selector_and_identity_may_be_u_labels_DKIM_12() -> None:
    signature = read_dkim_signature(field(d="bücher.example", s="schlüssel", i="ä@post.BÜCHER.example"), NOW)
    assert str(signature.message.base.key) == "xn--schlssel-95a._domainkey.xn--bcher-kva.example"
    assert signature.identity == "ä@post.xn--bcher-kva.example"
    mixed = read_dkim_signature(field(d="xn--bcher-kva.example", i="@bücher.example"), NOW)
    assert mixed.identity_domain == "xn--bcher-kva.example"
    assert "no domain" in refused(d="\u0300b.example")
    with pytest.raises(SignatureError, match="no domain"):
        read_dkim_signature({**field(), b"d": b"b\xfccher.example"}, NOW)


def test_a_signature_that_is_not_valid_still_says_whose_it_is_DKIM_01() -> None:
    facts = read_facts(field(v="3", d="Example.COM", b="AA\r\n AA", i="x@sub.example.com"))
    assert (facts.domain, facts.selector, facts.identity) == ("example.com", "sel", "x@sub.example.com")
    assert (facts.algorithm, facts.octets) == ("rsa-sha256", "AAAA")
    assert read_facts({}).domain == ""
    assert read_facts(field(d="..", i="@", a="\xe9")).domain == ""


@given(st.binary(max_size=300), st.sampled_from([*USUAL, "i", "t", "x", "l", "c", "q"]))
def test_reading_any_octets_raises_nothing_but_its_error(value: bytes, tag: str) -> None:
    found = {**field(), tag.encode(): value}
    reason = ""
    try:
        read_dkim_signature(found, NOW)
    except SignatureError as error:
        reason = str(error)
    assert reason.isprintable()
    read_facts(found)
