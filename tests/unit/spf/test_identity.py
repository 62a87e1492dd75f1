"""Which identities are checked, and as whom."""

from ipaddress import IPv4Address

import pytest

from mailrail.core.lookups import answered
from mailrail.core.smtp.address import Address
from mailrail.core.spf.evaluation import check_host
from mailrail.core.spf.identity import helo_identity, mail_from_identity
from mailrail.core.spf.result import SpfIdentity, SpfResult, SpfScope

from testkit.dns_table import DnsTable


def test_a_null_reverse_path_is_postmaster_at_the_helo_name_SPF_10() -> None:
    identity = mail_from_identity(None, "out.example.org")
    assert identity == SpfIdentity(SpfScope.MAIL_FROM, "postmaster", "out.example.org")
    zone = DnsTable()
    zone.add("out.example.org", "TXT", "v=spf1 ip4:192.0.2.1 -all")
    verdict = answered(check_host(identity, IPv4Address("192.0.2.1"), "out.example.org"), zone)
    assert (verdict.result, verdict.identity.scope) == (SpfResult.PASS, SpfScope.MAIL_FROM)


def test_a_sender_is_checked_at_its_own_domain_SPF_10() -> None:
    identity = mail_from_identity(Address("ann", "example.org"), "out.example.net")
    assert str(identity) == "ann@example.org"


def test_the_helo_name_is_an_identity_of_its_own_SPF_11a() -> None:
    assert helo_identity("Out.Example.org") == SpfIdentity(SpfScope.HELO, "postmaster", "Out.Example.org")


@pytest.mark.parametrize("helo", ["localhost", "[192.0.2.1]", "[IPv6:2001:db8::1]", "192.0.2.1", "", "a b.c"])
def test_what_is_no_domain_name_with_a_dot_is_no_identity_SPF_11a(helo: str) -> None:
    assert helo_identity(helo) is None
