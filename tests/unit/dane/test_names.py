"""Where TLSA records are asked for, which answer counts, and which names a certificate may have."""

import pytest

from mailrail.core.dane.names import (
    Expansion,
    NextHopDomain,
    TlsaAnswer,
    base_candidates,
    found,
    is_named,
    next_candidate,
    reference_names,
    tlsa_name,
)
from mailrail.core.dane.tlsa import TlsaRecord

RECORD = TlsaRecord(3, 1, 1, bytes(32))
HOST = Expansion("mx.example.com", "mx.example.com", secure=True)
ALIAS = Expansion("mx.example.com", "mail.provider.example", secure=True)


@pytest.mark.parametrize(
    ("host", "candidates"),
    [
        (HOST, ("mx.example.com",)),
        (ALIAS, ("mail.provider.example", "mx.example.com")),
        (Expansion("mx.example.com", "mx.example.com", secure=False), ()),
        (Expansion("mx.example.com", "mail.unsigned.example", secure=False), ()),
        (Expansion("mx.example.com", "mail.unsigned.example", secure=False, alias_secure=True), ("mx.example.com",)),
        (Expansion("192.0.2.1", "192.0.2.1", secure=True), ()),
        (Expansion("[ipv6:2001:db8::1]", "[ipv6:2001:db8::1]", secure=True), ()),
    ],
)
def test_the_end_of_all_secure_aliases_comes_first_and_then_the_name_itself(
    host: Expansion, candidates: tuple[str, ...]
) -> None:
    assert base_candidates(host) == candidates


def test_candidates_are_asked_until_one_has_secure_records() -> None:
    assert next_candidate(ALIAS, []) == "mail.provider.example"
    none = TlsaAnswer("mail.provider.example", secure=True, records=())
    assert next_candidate(ALIAS, [none]) == "mx.example.com"
    insecure = TlsaAnswer("mail.provider.example", secure=False, records=(RECORD,))
    assert next_candidate(ALIAS, [insecure]) == "mx.example.com"
    good = TlsaAnswer("mx.example.com", secure=True, records=(RECORD,))
    assert next_candidate(ALIAS, [none, good]) is None
    assert found([insecure, good]) == good
    assert next_candidate(ALIAS, [TlsaAnswer("mail.provider.example", True, (RECORD,))]) is None
    assert next_candidate(ALIAS, [none, TlsaAnswer("mx.example.com", True, ())]) is None
    assert found([none, insecure]) is None


def test_the_name_asked_for_has_the_port_that_is_dialled() -> None:
    assert tlsa_name("mx.example.com", 25) == "_25._tcp.mx.example.com"
    assert tlsa_name("smart.example", 465) == "_465._tcp.smart.example"


SIGNED = NextHopDomain(Expansion("example.com", "example.com", secure=True))


@pytest.mark.parametrize(
    ("base", "host", "domain", "names"),
    [
        ("mx.example.com", HOST, SIGNED, ("mx.example.com", "example.com")),
        ("mail.provider.example", ALIAS, SIGNED, ("mail.provider.example", "example.com")),
        (
            "mx.example.com",
            HOST,
            NextHopDomain(Expansion("old.example", "example.com", secure=True)),
            ("mx.example.com", "old.example", "example.com"),
        ),
        ("mx.example.com", HOST, NextHopDomain(Expansion("example.com", "example.com", False)), ("mx.example.com",)),
        (
            "mail.provider.example",
            Expansion("example.com", "mail.provider.example", True),
            NextHopDomain(Expansion("example.com", "example.com", True), implicit=True),
            ("mail.provider.example", "example.com"),
        ),
        ("smart.example", Expansion("smart.example", "smart.example", True), None, ("smart.example",)),
        (
            "host.provider.example",
            Expansion("smart.example", "host.provider.example", True),
            None,
            ("host.provider.example", "smart.example"),
        ),
    ],
)
def test_the_base_domain_is_the_first_name_and_the_recipients_domain_another_where_its_mx_is_secure_DANE_12a(
    base: str, host: Expansion, domain: NextHopDomain | None, names: tuple[str, ...]
) -> None:
    assert reference_names(base, host, domain) == names


@pytest.mark.parametrize(
    ("presented", "matches"),
    [
        ("mx.example.com", True),
        ("*.example.com", True),
        ("example.com", False),
        ("mx1.example.com", False),
        ("*.mx.example.com", False),
        ("*.com", False),
        ("*", False),
        ("*.*.com", False),
        ("m*.example.com", False),
        ("*x.example.com", False),
        ("mx.*.com", False),
        ("*.", False),
        ("", False),
        ("mx.example.com.", False),
        ("mx.example.com\0.evil.example", False),
    ],
)
def test_a_dns_id_is_the_whole_name_or_a_wildcard_for_its_first_label_DANE_13(presented: str, matches: bool) -> None:
    assert is_named(presented, "mx.example.com") is matches


def test_a_wildcard_needs_two_labels_and_stands_for_one_DANE_13() -> None:
    assert not is_named("*.com", "example.com")
    assert not is_named("*.example.com", "a.b.example.com")
    assert not is_named("*.example.com", "example.com")
    assert not is_named("*.example.com", ".com")
