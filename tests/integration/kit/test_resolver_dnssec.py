"""What the resolver says of DNSSEC: a real unbound validates the signed world, and a fake claims what it likes."""

from collections.abc import Iterator

import pytest

from mailrail.core.outbound.targets import Mx
from mailrail.kit import clock
from mailrail.kit.resolver import DnsResolver, LookupFailed, NoSuchDomain

from testkit.dns import DnsServer, Failure
from testkit.signed_world import SignedWorld

FAMILIES = ("ipv6", "ipv4")


@pytest.fixture(scope="module")
def world() -> Iterator[SignedWorld]:
    with SignedWorld(port=2525) as made:
        yield made


@pytest.fixture
def resolver(world: SignedWorld) -> DnsResolver:
    return DnsResolver(world.resolver.endpoint, trust_ad=True)


async def test_each_answer_of_a_trusted_resolver_tells_whether_it_is_proven_DANE_01(
    world: SignedWorld, resolver: DnsResolver
) -> None:
    mx = await resolver.mx_answer("secure.test")
    assert (mx.records, mx.secure) == ((Mx(10, "mx.secure.test"),), True)
    addresses = await resolver.address_answer("mx.secure.test", FAMILIES)
    assert (addresses.records, addresses.secure) == ((world.addresses["mx.secure.test"],), True)
    for name, kind in ((world.tlsa_name("mx.secure.test"), "TLSA"), ("_mta-sts.secure.test", "TXT")):
        answer = await resolver.answer(name, kind)
        assert (len(answer.records), answer.secure, answer.name) == (1, True, name)

    assert not (await resolver.mx_answer("unsigned.test")).secure
    assert not (await resolver.address_answer("mx.unsigned.test", FAMILIES)).secure
    assert not (await resolver.answer(world.tlsa_name("mx.unsigned.test"), "TLSA")).secure


async def test_that_there_is_nothing_is_proven_or_not_and_in_both_cases_an_answer(
    world: SignedWorld, resolver: DnsResolver
) -> None:
    no_mx = await resolver.mx_answer("no-mx.test")
    assert (no_mx.records, no_mx.secure) == ((), True)
    assert not (await resolver.mx_answer("no-mx-unsigned.test")).secure
    for name, secure in ((world.tlsa_name("mx.none.test"), True), ("nowhere.unsigned.test", False)):
        with pytest.raises(NoSuchDomain) as found:
            await resolver.answer(name, "TLSA")
        assert found.value.secure is secure
    # A secure alias that leads to nothing in an unsigned zone.
    with pytest.raises(NoSuchDomain) as found:
        await resolver.answer(world.tlsa_name("mx.tlsa-alias-nowhere.test"), "TLSA")
    assert not found.value.secure


@pytest.mark.parametrize(
    ("domain", "why"), [("bogus.test", "no keys have a DS"), ("expired.test", "signature expired")]
)
async def test_what_fails_validation_is_a_failure_with_the_validators_reason_DANE_02(
    resolver: DnsResolver, domain: str, why: str
) -> None:
    with pytest.raises(LookupFailed, match=why) as failed:
        await resolver.mx_answer(domain)
    assert failed.value.rcode == "SERVFAIL"
    with pytest.raises(LookupFailed):
        await resolver.address_answer(f"mx.{domain}", FAMILIES)
    with pytest.raises(LookupFailed):
        await resolver.answer(f"_2525._tcp.mx.{domain}", "TLSA")


async def test_a_bogus_address_of_one_family_does_not_hide_a_proven_one_of_the_other(
    world: SignedWorld, resolver: DnsResolver
) -> None:
    found = await resolver.address_answer("mx.bogus-aaaa.test", FAMILIES)
    assert (found.records, found.secure) == ((world.addresses["mx.bogus-aaaa.test"],), True)
    with pytest.raises(LookupFailed):
        await resolver.address_answer("mx.bogus-aaaa.test", ("ipv6",))
    with pytest.raises(LookupFailed):
        await resolver.address_answer("mx.bogus-a.test", FAMILIES)


@pytest.mark.parametrize(
    ("host", "end", "secure"),
    [
        ("mx.alias.test", "mx.secure.test", True),
        ("mx.alias-unsigned.test", "mx.unsigned.test", False),
        ("mx.secure.test", "mx.secure.test", True),
    ],
)
async def test_an_alias_is_followed_to_its_end_and_proven_only_as_a_whole(
    resolver: DnsResolver, host: str, end: str, secure: bool
) -> None:
    found = await resolver.address_answer(host, FAMILIES)
    assert (found.name, found.secure) == (end, secure)


async def test_the_ad_bit_of_a_resolver_that_nobody_declared_trusted_is_not_believed_DANE_01(
    world: SignedWorld,
) -> None:
    resolver = DnsResolver(world.resolver.endpoint)
    assert not resolver.trusted
    mx = await resolver.mx_answer("secure.test")
    assert (mx.records, mx.secure) == ((Mx(10, "mx.secure.test"),), False)
    assert not (await resolver.address_answer("mx.secure.test", FAMILIES)).secure
    with pytest.raises(NoSuchDomain) as found:
        await resolver.answer("nowhere.test", "TLSA")
    assert not found.value.secure


def test_the_name_servers_of_the_system_are_never_trusted_DANE_25() -> None:
    assert not DnsResolver(trust_ad=True).trusted
    assert DnsResolver("127.0.0.1:53", trust_ad=True).trusted


async def test_only_a_trusted_resolver_is_asked_about_dnssec() -> None:
    with DnsServer() as dns:
        dns.add("example.org", "MX", "10 mx.example.org.", secure=True)
        assert not (await DnsResolver(dns.endpoint).mx_answer("example.org")).secure
        assert (await DnsResolver(dns.endpoint, trust_ad=True).mx_answer("example.org")).secure
        assert [(query.dnssec_ok, query.authentic_data) for query in dns.queries] == [(False, False), (True, True)]


@pytest.mark.parametrize(
    ("how", "rcode"),
    [
        (Failure.SERVFAIL, "SERVFAIL"),
        (Failure.REFUSED, "REFUSED"),
        (Failure.NOTIMP, "NOTIMP"),
        (Failure.SILENT, ""),
        (Failure.TRUNCATED, ""),
    ],
)
async def test_a_failed_look_up_tells_what_the_name_server_answered_DANE_02(how: Failure, rcode: str) -> None:
    with DnsServer() as dns:
        dns.add("_mta-sts.example.org", "TXT", '"v=STSv1; id=1;"')
        dns.fail("_mta-sts.example.org", how)
        silent = 0.5 if how is Failure.SILENT else 15.0
        with pytest.raises(LookupFailed) as failed:
            await DnsResolver(dns.endpoint, timeout=silent).answer("_mta-sts.example.org", "TXT")
        assert failed.value.rcode == rcode
        assert failed.value.__cause__ is None  # it is kept, and would keep whole responses with it


@pytest.mark.parametrize(
    ("first", "rcode"),
    [(Failure.REFUSED, "REFUSED"), (Failure.SERVFAIL, "")],
    ids=["both refuse", "one fails and one refuses"],
)
async def test_what_one_of_several_name_servers_answers_is_no_word_of_all_STS_24a(first: Failure, rcode: str) -> None:
    """One that refuses whatever it is asked would make each failure of the others a refusal."""
    with DnsServer() as dns, DnsServer(port=dns.port) as other:
        dns.fail("_mta-sts.example.org", first)
        other.fail("_mta-sts.example.org", Failure.REFUSED)
        resolver = DnsResolver(dns.endpoint)
        assert resolver._resolver is not None
        resolver._resolver.nameservers = [dns.address, other.address]
        with pytest.raises(LookupFailed) as failed:
            await resolver.answer("_mta-sts.example.org", "TXT")
        assert failed.value.rcode == rcode


async def test_an_answer_that_does_not_fit_into_a_datagram_comes_over_tcp() -> None:
    records = [f"3 1 1 {number:064x}" for number in range(100)]
    with DnsServer() as dns:
        dns.add("_25._tcp.mx.example.org", "TLSA", *records, secure=True)
        dns.add("mx.example.org", "A", "127.0.0.1", secure=True)
        dns.fail("mx.example.org", Failure.EMPTY_OVER_UDP)
        resolver = DnsResolver(dns.endpoint, trust_ad=True)
        found = await resolver.answer("_25._tcp.mx.example.org", "TLSA")
        assert (len(found.records), found.secure) == (100, True)
        assert (await resolver.address_answer("mx.example.org", ("ipv4",))).secure
        assert [query.over for query in dns.queries] == ["udp", "tcp"] * 2


async def test_what_is_known_of_dnssec_is_kept_as_long_as_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with DnsServer() as dns:
        dns.add("example.org", "MX", "10 mx.example.org.", secure=True)
        resolver = DnsResolver(dns.endpoint, trust_ad=True)
        assert resolver.kept_mx_answer("example.org") is None
        assert await resolver.mx("example.org") == (Mx(10, "mx.example.org"),)
        kept = resolver.kept_mx_answer("example.org")
        assert kept is not None
        assert kept.secure
        assert resolver.kept_mx("example.org") is kept.records
        assert dns.asked("example.org") == 1
        now = clock.now
        monkeypatch.setattr(clock, "now", lambda: now() + 301)
        dns.set("example.org", "MX", "10 mx.example.org.", secure=False)
        assert not (await resolver.mx_answer("example.org")).secure


async def test_a_huge_answer_is_used_and_not_kept() -> None:
    with DnsServer() as dns:
        dns.add("example.org", "TXT", *(f'"{number} {"x" * 200}"' for number in range(100)))
        resolver = DnsResolver(dns.endpoint)
        for _ in range(2):
            assert len(await resolver.records("example.org", "TXT")) == 100
        assert dns.asked("example.org") == 4  # each time over UDP, and then over TCP
        assert resolver.kept_answer("example.org", "TXT") is None
