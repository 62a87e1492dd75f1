"""Macros: the examples that RFC 7208 7.4 publishes, and names made of them."""

from ipaddress import ip_address

import pytest

from mailrail.core.lookups import answered
from mailrail.core.spf.evaluation import check_host
from mailrail.core.spf.macro import SpfSyntaxError, letters_of, name_of, parse_domain_spec, parse_macro_string
from mailrail.core.spf.result import SpfIdentity, SpfScope

from testkit.dns_table import DnsTable


def expanded(text: str, client: str = "192.0.2.3") -> str:
    """As the explanation of a fail for strong-bad@email.example.com."""
    zone = DnsTable()
    zone.add("email.example.com", "TXT", "v=spf1 -all exp=why.example.com")
    zone.add("why.example.com", "TXT", text)
    identity = SpfIdentity(SpfScope.MAIL_FROM, "strong-bad", "email.example.com")
    return answered(check_host(identity, ip_address(client), "helo.example.com"), zone).explanation


@pytest.mark.parametrize(
    ("macro", "value"),
    [
        ("%{s}", "strong-bad@email.example.com"),
        ("%{o}", "email.example.com"),
        ("%{d}", "email.example.com"),
        ("%{d4}", "email.example.com"),
        ("%{d3}", "email.example.com"),
        ("%{d2}", "example.com"),
        ("%{d1}", "com"),
        ("%{dr}", "com.example.email"),
        ("%{d2r}", "example.email"),
        ("%{l}", "strong-bad"),
        ("%{l-}", "strong.bad"),
        ("%{lr}", "strong-bad"),
        ("%{lr-}", "bad.strong"),
        ("%{l1r-}", "strong"),
        ("%{ir}.%{v}._spf.%{d2}", "3.2.0.192.in-addr._spf.example.com"),
        ("%{lr-}.lp._spf.%{d2}", "bad.strong.lp._spf.example.com"),
        ("%{lr-}.lp.%{ir}.%{v}._spf.%{d2}", "bad.strong.lp.3.2.0.192.in-addr._spf.example.com"),
        ("%{ir}.%{v}.%{l1r-}.lp._spf.%{d2}", "3.2.0.192.in-addr.strong.lp._spf.example.com"),
        ("%{d2}.trusted-domains.example.net", "example.com.trusted-domains.example.net"),
        ("%{D2R}%%%_%-%{h}", "example.email% %20helo.example.com"),
        ("%{p}", "unknown"),
    ],
)
def test_the_published_examples_hold_SPF_12(macro: str, value: str) -> None:
    assert expanded(macro) == value


def test_the_published_example_for_ipv6_holds_SPF_12() -> None:
    value = "1.0.B.C.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.B.D.0.1.0.0.2.ip6._spf.example.com"
    assert expanded("%{ir}.%{v}._spf.%{d2}", "2001:db8::cb01") == value
    assert expanded("%{c}", "2001:DB8::CB01") == "2001:db8::cb01"


def test_a_name_that_is_too_long_loses_labels_at_its_left_SPF_12() -> None:
    label = "a" * 50
    assert name_of(".".join([label] * 6)) == ".".join([label] * 4)
    assert name_of(f"{'b' * 53}." + ".".join([label] * 4)) == ".".join([label] * 4)
    exact = f"{'b' * 49}." + ".".join([label] * 4)
    assert (len(exact), name_of(exact)) == (253, exact)
    assert name_of("a" * 300) is None


@pytest.mark.parametrize(
    ("text", "name"),
    [("A.Example.", "a.example"), ("a..example", None), (".example", None), ("", None), (f"{'a' * 64}.x", None)],
)
def test_a_name_has_no_label_that_is_empty_or_too_long(text: str, name: str | None) -> None:
    assert name_of(text) == name


@pytest.mark.parametrize(
    "text",
    ["", "com", "com.", "%", "%{", "%{d", "%{a}.x", "%{d0}", "a.%{c}", "a.-com", "a.com-", "a.12", "a b.com", "%%com"],
)
def test_what_is_no_domain_spec_is_refused_SPF_09(text: str) -> None:
    with pytest.raises(SpfSyntaxError):
        parse_domain_spec(text)


@pytest.mark.parametrize(
    "text",
    ["a.com", "a.com.", "%{d}", "a%{d}", "%{d}.com", "a%%", "%{i/}", "a.xn--c-d", "a.1a", "a..b-c", "%{D999r.-+}"],
)
def test_what_is_a_domain_spec_is_read(text: str) -> None:
    assert parse_domain_spec(text)


def test_which_letters_a_text_uses() -> None:
    assert letters_of(parse_macro_string("%{D2}.%{l}.x")) == {"d", "l"}
