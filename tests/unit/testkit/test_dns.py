"""The testkit's DNS server answers as a resolver would, and fails as scripted: other tests rest on it."""

from collections.abc import Iterator

import dns.exception
import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.resolver
import pytest

from testkit.dns import DnsServer, Failure


@pytest.fixture
def server() -> Iterator[DnsServer]:
    with DnsServer() as running:
        yield running


def resolver(server: DnsServer) -> dns.resolver.Resolver:
    plain = dns.resolver.Resolver(configure=False)
    plain.nameservers = [server.address]
    plain.port = server.port
    plain.lifetime = 1.0
    return plain


def ask(server: DnsServer, name: str, rdtype: str, flags: int = 0, *, want_dnssec: bool = False) -> dns.message.Message:
    question = dns.message.make_query(name, rdtype, want_dnssec=want_dnssec)
    question.flags |= flags
    return dns.query.udp(question, server.address, port=server.port, timeout=5)


def test_records_are_served_and_questions_logged(server: DnsServer) -> None:
    server.add("Example.org", "MX", "10 mx.example.org.", "20 mx2.example.org.")
    answer = resolver(server).resolve("example.org", "MX")
    assert sorted(record.to_text() for record in answer) == ["10 mx.example.org.", "20 mx2.example.org."]
    assert server.asked("example.org", "MX") == 1
    assert server.queries[0].over == "udp"


def test_an_unknown_name_does_not_exist_and_a_known_one_without_the_type_has_no_data(server: DnsServer) -> None:
    server.add("mx.example.org", "A", "127.1.2.3")
    with pytest.raises(dns.resolver.NXDOMAIN):
        resolver(server).resolve("nowhere.example.org", "A")
    with pytest.raises(dns.resolver.NoAnswer):
        resolver(server).resolve("mx.example.org", "AAAA")
    with pytest.raises(dns.resolver.NoAnswer):  # an empty non-terminal exists
        resolver(server).resolve("example.org", "A")


def test_aliases_are_followed_and_a_loop_of_them_ends(server: DnsServer) -> None:
    server.add("www.example.org", "CNAME", "mx.example.org.")
    server.add("mx.example.org", "A", "127.1.2.3")
    server.add("a.example.org", "CNAME", "b.example.org.")
    server.add("b.example.org", "CNAME", "a.example.org.")
    assert [record.to_text() for record in resolver(server).resolve("www.example.org", "A")] == ["127.1.2.3"]
    assert ask(server, "a.example.org", "A").rcode() == dns.rcode.NOERROR


def test_the_ad_bit_says_what_was_declared_and_only_to_who_asked_for_it(server: DnsServer) -> None:
    server.add("signed.test", "A", "127.1.2.3", secure=True)
    server.add("plain.test", "A", "127.1.2.3")
    server.secure_zone("zone.test")
    assert ask(server, "signed.test", "A", dns.flags.AD).flags & dns.flags.AD
    assert ask(server, "signed.test", "A", want_dnssec=True).flags & dns.flags.AD
    assert not ask(server, "signed.test", "A").flags & dns.flags.AD
    assert not ask(server, "plain.test", "A", dns.flags.AD).flags & dns.flags.AD
    assert ask(server, "nothing.zone.test", "TLSA", dns.flags.AD).flags & dns.flags.AD  # a proven denial


def test_an_alias_out_of_a_signed_zone_is_insecure(server: DnsServer) -> None:
    server.add("mx.signed.test", "CNAME", "mx.plain.test.", secure=True)
    server.add("mx.plain.test", "A", "127.1.2.3")
    assert not ask(server, "mx.signed.test", "A", dns.flags.AD).flags & dns.flags.AD


@pytest.mark.parametrize(
    ("how", "rcode"),
    [
        (Failure.SERVFAIL, dns.rcode.SERVFAIL),
        (Failure.REFUSED, dns.rcode.REFUSED),
        (Failure.NOTIMP, dns.rcode.NOTIMP),
        (Failure.BOGUS, dns.rcode.SERVFAIL),
    ],
)
def test_a_failing_name_fails_until_it_is_mended(server: DnsServer, how: Failure, rcode: int) -> None:
    server.add("sick.test", "A", "127.1.2.3")
    server.fail("sick.test", how)
    assert ask(server, "sick.test", "A").rcode() == rcode
    server.mend("sick.test")
    assert ask(server, "sick.test", "A").rcode() == dns.rcode.NOERROR


def test_a_failure_of_one_type_leaves_the_others_alone(server: DnsServer) -> None:
    server.add("half.test", "A", "127.1.2.3")
    server.fail("half.test", Failure.SERVFAIL, "TLSA")
    assert ask(server, "half.test", "TLSA").rcode() == dns.rcode.SERVFAIL
    assert ask(server, "half.test", "A").rcode() == dns.rcode.NOERROR


def test_a_silent_name_runs_into_the_clients_timeout(server: DnsServer) -> None:
    server.fail("silent.test", Failure.SILENT)
    with pytest.raises(dns.exception.Timeout):
        dns.query.udp(dns.message.make_query("silent.test", "A"), server.address, port=server.port, timeout=0.2)


def test_a_truncated_answer_is_whole_over_tcp(server: DnsServer) -> None:
    server.add("big.test", "A", "127.1.2.3")
    server.fail("big.test", Failure.EMPTY_OVER_UDP)
    assert [record.to_text() for record in resolver(server).resolve("big.test", "A")] == ["127.1.2.3"]
    assert [query.over for query in server.queries] == ["udp", "tcp"]


def test_an_answer_too_large_for_udp_is_truncated_by_itself(server: DnsServer) -> None:
    server.add("long.test", "TXT", *[f'"{"x" * 200}{number}"' for number in range(40)])
    assert ask(server, "long.test", "TXT").flags & dns.flags.TC
    assert len(resolver(server).resolve("long.test", "TXT")) == 40
