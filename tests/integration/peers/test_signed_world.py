"""The signed world is what its table says, in the eyes of a real validating resolver: tests of DANE rest on it."""

from collections.abc import Iterator

import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rdata
import dns.rdatatype
import pytest

from testkit.conditions import wait_until
from testkit.signed_world import SignedWorld, tlsa

pytestmark = [pytest.mark.peer("nsd"), pytest.mark.peer("unbound")]


@pytest.fixture(scope="module")
def world() -> Iterator[SignedWorld]:
    with SignedWorld(port=2525) as made:
        yield made


def asked(world: SignedWorld, name: str, kind: str) -> tuple[str, bool, list[str]]:
    """RCODE, AD, and the records without signatures."""
    question = dns.message.make_query(name, kind, want_dnssec=True)
    answer, _ = dns.query.udp_with_fallback(question, world.resolver.address, port=world.resolver.port, timeout=60)
    records = [one.to_text() for rrset in answer.answer if rrset.rdtype is not dns.rdatatype.RRSIG for one in rrset]
    return dns.rcode.to_text(answer.rcode()), bool(answer.flags & dns.flags.AD), records


@pytest.mark.parametrize(
    ("name", "kind", "rcode", "secure"),
    [
        ("secure.test", "MX", "NOERROR", True),
        ("_2525._tcp.mx.secure.test", "TLSA", "NOERROR", True),
        ("_mta-sts.secure.test", "TXT", "NOERROR", True),
        ("_smtp._tls.unsigned.test", "TXT", "NOERROR", False),
        ("mx.none.test", "AAAA", "NOERROR", True),
        ("_2525._tcp.mx.none.test", "TLSA", "NXDOMAIN", True),
        ("unsigned.test", "MX", "NOERROR", False),
        ("nowhere.unsigned.test", "A", "NXDOMAIN", False),
        ("nowhere.test", "A", "NXDOMAIN", True),
        ("bogus.test", "MX", "SERVFAIL", False),
        ("expired.test", "MX", "SERVFAIL", False),
        ("mx.bogus-aaaa.test", "A", "NOERROR", True),
        ("mx.bogus-aaaa.test", "AAAA", "SERVFAIL", False),
        ("_2525._tcp.mx.bogus-tlsa.test", "TLSA", "SERVFAIL", False),
        ("mx.alias.test", "A", "NOERROR", True),
        ("mx.alias-unsigned.test", "A", "NOERROR", False),
        ("mx.alias-unsigned.test", "CNAME", "NOERROR", True),
        ("_2525._tcp.mx.tlsa-alias-unsigned.test", "TLSA", "NOERROR", False),
        ("_2525._tcp.mx.tlsa-alias-nowhere.test", "TLSA", "NXDOMAIN", False),
        ("no-mx.test", "MX", "NOERROR", True),
        ("refuses-tlsa.test", "MX", "NOERROR", True),
        ("_2525._tcp.mx.refuses-tlsa.test", "TLSA", "SERVFAIL", False),
        ("_2525._tcp.mx.notimp-tlsa.test", "TLSA", "SERVFAIL", False),
    ],
)
def test_the_signed_world_is_what_its_table_says(
    world: SignedWorld, name: str, kind: str, rcode: str, secure: bool
) -> None:
    assert asked(world, name, kind)[:2] == (rcode, secure)
    assert world.resolver.asked(name, kind) >= 1


def test_the_resolver_tells_what_it_was_asked_and_what_not(world: SignedWorld) -> None:
    asked(world, "mx.order-of-questions.test", "A")
    assert world.resolver.asked("mx.order-of-questions.test", "A") == 1
    assert world.resolver.asked("mx.order-of-questions.test", "TLSA") == 0


def test_what_is_published_anew_is_found_at_once() -> None:
    with SignedWorld() as world:
        assert asked(world, "secure.test", "MX") == ("NOERROR", True, ["10 mx.secure.test."])
        world.zones["secure.test"].set("secure.test", "MX", "20 other.secure.test.")
        world.publish()
        assert asked(world, "secure.test", "MX") == ("NOERROR", True, ["20 other.secure.test."])


def octets(record: str) -> bytes:
    """RDATA of a TLSA record, written as such or as one of a type that is not known (RFC 3597 5)."""
    return dns.rdata.from_text("IN", "TLSA", record).to_generic().data


def test_a_certificate_of_the_world_is_what_its_tlsa_record_says(world: SignedWorld) -> None:
    for host in ("mx.secure.test", "mx.unsigned.test"):
        _, _, (record,) = asked(world, world.tlsa_name(host), "TLSA")
        assert octets(record) == octets(tlsa(world.certificates[host].chain_pem, 3, 1, 1))
    _, _, (anchor,) = asked(world, world.tlsa_name("mx.ta.test"), "TLSA")
    assert octets(anchor) == octets(tlsa(world.authority.pem, 2, 1, 1))
    assert world.authority.pem in world.certificates["mx.ta.test"].chain_pem


def test_nothing_of_the_world_is_left_behind() -> None:
    with SignedWorld() as world:
        programs = (world._nsd._program, world.resolver._program)
    wait_until(lambda: not any(one.running for one in programs), 30, "nsd and unbound have ended")
