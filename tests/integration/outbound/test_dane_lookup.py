"""What is known of an MX host, by a real unbound that validates the signed world and logs what it is asked."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, combinations
from typing import NamedTuple

import pytest

from mailrail.core.dane.tlsa import TlsaRecord
from mailrail.core.revision.revision import Revision, Security, Unanswered
from mailrail.core.tlspolicy.decision import Cause, Hop, Requirement, decide
from mailrail.core.tlspolicy.demands import Demanded
from mailrail.core.tlspolicy.facts import DnsFacts, Tlsa
from mailrail.kit import clock
from mailrail.kit.resolver import DnsResolver
from mailrail_outbound.hops import Tables
from mailrail_outbound.hosts import Found, HostResolver, awaited
from mailrail_outbound.settings import OutboundSettings
from mailrail_outbound.tls_policy.dane import DaneLookup, HostDane

from testkit.dns import DnsServer, Failure
from testkit.peers.unbound import Question
from testkit.signed_world import SignedWorld, tlsa

PORT = 2525
FAMILIES = ("ipv6", "ipv4")
NOTHING = DnsFacts(trusted=True)
"""A trusted resolver proves nothing."""
PROVEN = DnsFacts(trusted=True, mx_secure=True, address_secure=True)
"""Host and addresses are proven, and there is no TLSA record that counts."""
RECORD = f"3 1 1 {'ab' * 32}"
FAILED = DnsFacts(trusted=True, mx_secure=True, address_secure=True, tlsa=Tlsa.FAILED)

pytestmark = [pytest.mark.peer("nsd"), pytest.mark.peer("unbound")]


@pytest.fixture(scope="module")
def world() -> Iterator[SignedWorld]:
    with SignedWorld(port=PORT) as made:
        yield made


class Asked(NamedTuple):
    """What came of a look-up, and the questions that it took."""

    known: HostDane
    questions: list[Question]

    @property
    def tlsa(self) -> list[str]:
        """The names that TLSA records were asked for at, in order."""
        return [one.name for one in self.questions if one.kind == "TLSA"]


async def look_up(world: SignedWorld, domain: str, host: str, timeout: float = 60.0) -> Asked:
    """With nothing in memory."""
    before = len(await asyncio.to_thread(world.resolver.questions))
    lookup = DaneLookup(DnsResolver(world.resolver.endpoint, trust_ad=True, timeout=timeout))
    known = await awaited(lookup.of_host(domain, host, FAMILIES, PORT))
    return Asked(known, (await asyncio.to_thread(world.resolver.questions))[before:])


def record(world: SignedWorld, host: str) -> TlsaRecord:
    return TlsaRecord.from_text(tlsa(world.certificates[host].chain_pem, 3, 1, 1))


async def test_a_proven_host_is_asked_for_in_the_order_mx_addresses_tlsa_DANE_04(world: SignedWorld) -> None:
    known, questions = await look_up(world, "secure.test", "mx.secure.test")
    assert known.demand is not None
    assert known.demand.records == (record(world, "mx.secure.test"),)
    assert known.facts == DnsFacts(True, True, True, Tlsa.USABLE, known.demand.matching)
    mx, *addresses, last = questions
    assert (mx, last) == (("secure.test", "MX"), ("_2525._tcp.mx.secure.test", "TLSA"))
    assert sorted(addresses) == [("mx.secure.test", "A"), ("mx.secure.test", "AAAA")]


async def test_the_base_domain_is_what_sni_says_and_the_first_name_of_a_certificate(world: SignedWorld) -> None:
    known, _ = await look_up(world, "ta.test", "mx.ta.test")
    assert known.demand is not None
    assert (known.base, known.demand.base) == ("mx.ta.test", "mx.ta.test")
    assert known.demand.names == ("mx.ta.test", "ta.test")


async def test_a_host_without_proven_addresses_is_not_asked_for_tlsa_DANE_04(world: SignedWorld) -> None:
    world_asked = await look_up(world, "unsigned-drops-tlsa.test", "mx.unsigned-drops-tlsa.test")
    assert (world_asked.known, world_asked.tlsa) == (HostDane(NOTHING), [])
    # The same where the MX record is proven and its host is in an unsigned zone.
    with DnsServer() as dns:
        dns.add("example.com", "MX", "10 mx.example.net.", secure=True)
        dns.add("mx.example.net", "A", "192.0.2.1")
        dns.fail("_25._tcp.mx.example.net", Failure.SILENT)
        lookup = DaneLookup(DnsResolver(dns.endpoint, trust_ad=True))
        known = await awaited(lookup.of_host("example.com", "mx.example.net", FAMILIES, 25))
        assert known == HostDane(DnsFacts(trusted=True, mx_secure=True))
        assert dns.asked("_25._tcp.mx.example.net") == 0


async def test_an_unproven_mx_record_leads_to_no_tlsa_however_secure_its_host_is(world: SignedWorld) -> None:
    known, questions = await look_up(world, "unsigned-mx.test", "mx.secure.test")
    assert known == HostDane(NOTHING)
    assert questions == [("unsigned-mx.test", "MX")]


@pytest.mark.parametrize(
    ("domain", "names"),
    [
        ("alias", ["mx.secure.test"]),
        ("alias-own", ["mx.none.test", "mx.alias-own.test"]),
        ("alias-unsigned", ["mx.alias-unsigned.test"]),
    ],
)
async def test_tlsa_is_asked_for_at_the_end_of_proven_aliases_and_then_at_the_name_itself_DANE_07(
    world: SignedWorld, domain: str, names: list[str]
) -> None:
    asked = await look_up(world, f"{domain}.test", f"mx.{domain}.test")
    assert asked.tlsa == [f"_2525._tcp.{name}" for name in names]
    assert asked.known.demand is not None
    assert (asked.known.base, asked.known.demand.base) == (names[-1], names[-1])
    alias = Question(f"mx.{domain}.test", "CNAME")
    assert asked.questions.count(alias) == (1 if domain == "alias-unsigned" else 0)


async def test_an_alias_of_the_tlsa_name_changes_nothing_but_where_the_record_is(world: SignedWorld) -> None:
    known, _ = await look_up(world, "tlsa-alias.test", "mx.tlsa-alias.test")
    assert known.demand is not None
    assert known.demand.records == (record(world, "mx.tlsa-alias.test"),)
    assert known.demand.base == "mx.tlsa-alias.test"


@pytest.mark.parametrize("domain", ["tlsa-alias-unsigned", "tlsa-alias-nowhere"])
async def test_an_alias_into_an_unsigned_zone_makes_the_answer_one_that_does_not_count(
    world: SignedWorld, domain: str
) -> None:
    known, _ = await look_up(world, f"{domain}.test", f"mx.{domain}.test")
    assert known == HostDane(PROVEN)


async def test_a_proven_denial_of_tlsa_records_is_no_failure(world: SignedWorld) -> None:
    asked = await look_up(world, "none.test", "mx.none.test")
    assert (asked.known, asked.tlsa) == (HostDane(PROVEN), ["_2525._tcp.mx.none.test"])


async def test_records_that_cannot_be_used_still_have_a_base_domain_and_a_reason(world: SignedWorld) -> None:
    known, _ = await look_up(world, "unusable.test", "mx.unusable.test")
    assert (known.facts.mx_proven, known.facts.dane) == (True, Tlsa.UNUSABLE)
    assert (known.demand, known.base) == (None, "mx.unusable.test")
    assert "certificate usage 1 is not used for SMTP" in known.facts.ignored[0]


@pytest.mark.parametrize(
    ("domain", "host", "what"),
    [
        ("bogus.test", "mx.bogus.test", "MX of bogus.test"),
        ("expired.test", "mx.expired.test", "MX of expired.test"),
        ("bogus-a.test", "mx.bogus-a.test", "A of mx.bogus-a.test"),
        ("bogus-tlsa.test", "mx.bogus-tlsa.test", "TLSA of _2525._tcp.mx.bogus-tlsa.test"),
        ("refuses-tlsa.test", "mx.refuses-tlsa.test", "TLSA of _2525._tcp.mx.refuses-tlsa.test"),
        ("notimp-tlsa.test", "mx.notimp-tlsa.test", "TLSA of _2525._tcp.mx.notimp-tlsa.test"),
        ("drops-tlsa.test", "mx.drops-tlsa.test", "TLSA of _2525._tcp.mx.drops-tlsa.test"),
    ],
)
async def test_what_cannot_be_looked_up_or_fails_validation_is_never_taken_for_none_DANE_02(
    world: SignedWorld, domain: str, host: str, what: str
) -> None:
    known, _ = await look_up(world, domain, host, timeout=4.0 if "drops" in domain else 60.0)
    assert known.facts == replace(FAILED, mx_secure=not what.startswith("MX"))
    assert known.facts.dane is Tlsa.FAILED
    assert known.failure.startswith(what)


async def test_a_bogus_address_of_one_family_leaves_dane_in_force_for_the_other(world: SignedWorld) -> None:
    known, _ = await look_up(world, "bogus-aaaa.test", "mx.bogus-aaaa.test")
    assert known.facts.dane is Tlsa.USABLE


async def test_each_host_of_a_domain_is_judged_by_itself_and_keeps_its_place_DANE_06(
    world: SignedWorld,
) -> None:
    resolver = DnsResolver(world.resolver.endpoint, trust_ad=True)
    tables = Tables.of(1, Revision(), lambda ref: b"")
    for domain, first in (("order.test", Tlsa.NONE), ("second.test", Tlsa.FAILED)):
        hosts = await awaited(HostResolver(OutboundSettings(), resolver).of_domain(tables, domain))
        assert hosts == Found((f"a.{domain}", f"b.{domain}"))
        for host, expected in zip(hosts.names, (first, Tlsa.USABLE), strict=True):
            assert (await look_up(world, domain, host)).known.facts.dane is expected


async def test_a_domain_that_proves_to_have_no_mx_is_its_own_host(world: SignedWorld) -> None:
    known, _ = await look_up(world, "no-mx.test", "no-mx.test")
    assert known.demand is not None
    assert known.demand.base == "no-mx.test"
    assert (await look_up(world, "no-mx-unsigned.test", "no-mx-unsigned.test")).known == HostDane(NOTHING)


@pytest.mark.parametrize(("domain", "host"), [("secure.test", "mx.none.test"), ("no-mx.test", "mx.secure.test")])
async def test_a_host_that_the_proven_answer_does_not_name_is_not_one_of_the_domains(
    world: SignedWorld, domain: str, host: str
) -> None:
    known, _ = await look_up(world, domain, host)
    assert known.facts.dane is Tlsa.FAILED
    assert not known.facts.mx_proven
    assert known.failure == f"{host} is no MX host of {domain} any more"


async def test_who_goes_on_without_answers_sends_required_mail_to_no_host_that_nothing_proves_RTLS_11a() -> None:
    security = Security(when_unanswered=Unanswered.PROCEED)
    hop = Hop("mx.example.com", None, requirement=Requirement.REQUIRED, demanded=Demanded(security))
    with DnsServer() as dns:
        dns.secure_zone("example.com")
        dns.add("example.com", "MX", "10 mx.example.com.")
        dns.add("mx.example.com", "A", "192.0.2.1")
        refused = {}
        for name, kind in (("example.com", "MX"), ("_25._tcp.mx.example.com", "TLSA")):
            dns.fail(name, Failure.SERVFAIL, kind)
            lookup = DaneLookup(DnsResolver(dns.endpoint, trust_ad=True))
            known = await awaited(lookup.of_host("example.com", "mx.example.com", FAMILIES, 25))
            refusal = decide(replace(hop, dns=known.facts)).refusal
            refused[kind] = (refusal.cause, str(refusal.status)) if refusal is not None else None
            dns.mend(name, kind)
    assert refused == {"MX": (Cause.TLSA_UNANSWERED, "4.7.5"), "TLSA": None}, "only in the second case a name is proven"


async def test_an_alias_of_the_domain_itself_gives_a_second_name_to_authenticate(world: SignedWorld) -> None:
    zone = world.zones["secure.test"]
    zone.set(world.tlsa_name("mx.secure.test"), "TLSA", tlsa(world.authority.pem, 2, 1, 1))
    await asyncio.to_thread(world.publish)
    try:
        known, _ = await look_up(world, "mx-alias.test", "mx.secure.test")
    finally:
        zone.set(
            world.tlsa_name("mx.secure.test"), "TLSA", tlsa(world.certificates["mx.secure.test"].chain_pem, 3, 1, 1)
        )
        await asyncio.to_thread(world.publish)
    assert known.demand is not None
    assert known.demand.names == ("mx.secure.test", "mx-alias.test", "secure.test")


@pytest.mark.parametrize(("domain", "host"), [("[192.0.2.25]", "192.0.2.25"), ("literal.test", "192.0.2.25")])
async def test_an_address_in_place_of_a_host_has_no_dane_DANE_21(world: SignedWorld, domain: str, host: str) -> None:
    asked = await look_up(world, domain, host)
    assert asked.known.facts.dane is Tlsa.NONE
    assert (asked.known.demand, asked.tlsa) == (None, [])


async def test_without_a_trusted_resolver_nothing_is_asked_and_nothing_is_proven_DANE_01(world: SignedWorld) -> None:
    before = len(await asyncio.to_thread(world.resolver.questions))
    lookup = DaneLookup(DnsResolver(world.resolver.endpoint))
    known = await awaited(lookup.of_host("secure.test", "mx.secure.test", FAMILIES, PORT))
    assert known == HostDane(DnsFacts())
    assert len(await asyncio.to_thread(world.resolver.questions)) == before


async def test_what_is_in_memory_is_known_without_a_question_or_a_wait(
    world: SignedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolver = DnsResolver(world.resolver.endpoint, trust_ad=True)
    lookup = DaneLookup(resolver)
    hosts = [
        ("secure.test", "mx.secure.test"),
        ("none.test", "mx.none.test"),
        ("alias-unsigned.test", "mx.alias-unsigned.test"),
        ("unsigned.test", "mx.unsigned.test"),
        ("tlsa-alias-nowhere.test", "mx.tlsa-alias-nowhere.test"),
    ]
    first = [await awaited(lookup.of_host(*each, FAMILIES, PORT)) for each in hosts]
    before = len(await asyncio.to_thread(world.resolver.questions))
    for each, known in zip(hosts, first, strict=True):
        with pytest.raises(StopIteration) as end:
            next(lookup.of_host(*each, FAMILIES, PORT))  # nothing to await
        assert end.value.value is known
    assert len(await asyncio.to_thread(world.resolver.questions)) == before
    # And when it is forgotten, it is found anew, and judged by what is found.
    now = clock.now
    monkeypatch.setattr(clock, "now", lambda: now() + 301)
    assert [await awaited(lookup.of_host(*each, FAMILIES, PORT)) for each in hosts] == first
    assert len(await asyncio.to_thread(world.resolver.questions)) > before


async def test_a_new_record_is_used_as_soon_as_the_old_one_is_no_longer_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = (f"3 1 1 {digit * 64}" for digit in "ab")
    with DnsServer() as dns:
        dns.secure_zone("example.com")
        dns.add("example.com", "MX", "10 mx.example.com.", ttl=3600)
        dns.add("mx.example.com", "A", "192.0.2.1", ttl=3600)
        dns.add("_25._tcp.mx.example.com", "TLSA", old, ttl=60)
        lookup = DaneLookup(DnsResolver(dns.endpoint, trust_ad=True))
        for each in (old, new):
            known = await awaited(lookup.of_host("example.com", "mx.example.com", FAMILIES, 25))
            assert known.demand is not None
            assert known.demand.records == (TlsaRecord.from_text(each),)
            dns.set("_25._tcp.mx.example.com", "TLSA", new, ttl=60)
            now = clock.now
            monkeypatch.setattr(clock, "now", lambda now=now: now() + 61)
        assert dns.asked("example.com") == 1


async def test_which_digest_counts_is_a_setting_DANE_18() -> None:
    sha256, sha512 = f"3 1 1 {'a' * 64}", f"3 1 2 {'b' * 128}"
    with DnsServer() as dns:
        dns.secure_zone("example.com")
        dns.add("example.com", "MX", "10 mx.example.com.")
        dns.add("mx.example.com", "A", "192.0.2.1")
        dns.add("_25._tcp.mx.example.com", "TLSA", sha256, sha512)
        other = OutboundSettings(tlsa_digests=("sha256", "sha512"))
        for settings, counts in (OutboundSettings(), sha512), (other, sha256):
            lookup = DaneLookup(DnsResolver(dns.endpoint, trust_ad=True), settings.digest_strength)
            known = await awaited(lookup.of_host("example.com", "mx.example.com", FAMILIES, 25))
            assert known.demand is not None
            assert known.demand.records == (TlsaRecord.from_text(counts),)


@pytest.mark.parametrize(
    ("malformed", "dane"),
    [
        (r"\# 5 030102abcd", Tlsa.USABLE),  # a digest of two octets is dropped
        (r"\# 3 030101", Tlsa.USABLE),
        (r"\# 2 0301", Tlsa.FAILED),  # what such a name server says is no record, and no reason to prove less
    ],
)
async def test_a_malformed_record_never_makes_its_host_one_without_any_DANE_18(malformed: str, dane: Tlsa) -> None:
    with DnsServer() as dns:
        dns.secure_zone("example.com")
        dns.add("example.com", "MX", "10 mx.example.com.")
        dns.add("mx.example.com", "A", "192.0.2.1")
        for records in ((malformed, RECORD), (malformed,)):
            dns.set("_25._tcp.mx.example.com", "TLSA", *records)
            lookup = DaneLookup(DnsResolver(dns.endpoint, trust_ad=True))
            known = await awaited(lookup.of_host("example.com", "mx.example.com", FAMILIES, 25))
            alone = Tlsa.UNUSABLE if dane is Tlsa.USABLE else dane
            assert known.facts.dane is (dane if RECORD in records else alone)
            assert bool(known.failure) == (dane is Tlsa.FAILED)


async def test_a_huge_set_of_records_is_used_and_not_kept() -> None:
    with DnsServer() as dns:
        dns.secure_zone("example.com")
        dns.add("example.com", "MX", "10 mx.example.com.")
        dns.add("mx.example.com", "A", "192.0.2.1")
        dns.add("_25._tcp.mx.example.com", "TLSA", *(f"3 1 1 {number:064x}" for number in range(300)))
        lookup = DaneLookup(DnsResolver(dns.endpoint, trust_ad=True))
        for times in (1, 2):
            known = await awaited(lookup.of_host("example.com", "mx.example.com", FAMILIES, 25))
            assert known.facts.dane is Tlsa.USABLE
            assert dns.asked("_25._tcp.mx.example.com") == 2 * times
        assert not lookup._kept


SHAPES = {
    "a host": {"mx.example.com": ("A", "192.0.2.1"), "_25._tcp.mx.example.com": ("TLSA", RECORD)},
    "an alias within signed zones": {
        "mx.example.com": ("CNAME", "mail.example.net."),
        "mail.example.net": ("A", "192.0.2.1"),
        "_25._tcp.mx.example.com": ("TLSA", RECORD),
    },
    "an alias into an unsigned zone": {
        "mx.example.com": ("CNAME", "mail.example.org."),
        "mail.example.org": ("A", "192.0.2.1"),
        "_25._tcp.mx.example.com": ("TLSA", RECORD),
    },
}
"""All below example.com and example.net is signed, all below example.org is not."""


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("how", [Failure.SERVFAIL, Failure.REFUSED])
async def test_whoever_can_break_look_ups_gains_nothing_by_it_DANE_02(shape: str, how: Failure) -> None:
    questions = [
        ("example.com", "MX"),
        ("mx.example.com", "A"),
        ("mx.example.com", "AAAA"),
        ("mx.example.com", "CNAME"),
    ]
    questions += [("_25._tcp.mx.example.com", "TLSA"), ("_25._tcp.mail.example.net", "TLSA")]
    with DnsServer() as dns:
        for zone in ("example.com", "example.net"):
            dns.secure_zone(zone)
        dns.add("example.com", "MX", "10 mx.example.com.")
        for name, (kind, value) in SHAPES[shape].items():
            dns.add(name, kind, value)
        outcomes = set()
        for broken in chain.from_iterable(combinations(questions, count) for count in range(len(questions) + 1)):
            for name, kind in broken:
                dns.fail(name, how, kind)
            lookup = DaneLookup(DnsResolver(dns.endpoint, trust_ad=True))
            known = await awaited(lookup.of_host("example.com", "mx.example.com", FAMILIES, 25))
            assert known.facts.dane in (Tlsa.USABLE, Tlsa.FAILED), broken
            assert broken or known.facts.dane is Tlsa.USABLE
            outcomes.add(known.facts.dane)
            for name, kind in broken:
                dns.mend(name, kind)
        assert outcomes == {Tlsa.USABLE, Tlsa.FAILED}
