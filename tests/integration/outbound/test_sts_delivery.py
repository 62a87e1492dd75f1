"""Deliveries under MTA-STS: record in a real DNS, cache in a real Postgres, hosts with real handshakes (RFC 8461 5)."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from integration.outbound.test_required_tls import GOOD, HOST, OTHER, PORT, ROOT, serving, trusted_roots

from mailrail.core.delivery.shares import QUICK
from mailrail.core.mtasts.answer import FetchFailed
from mailrail.core.mtasts.cache import PolicyStep
from mailrail.core.mtasts.policy import Mode, Policy
from mailrail.core.outbound.learned import Offered
from mailrail.core.revision.revision import Security, TlsMode, TransportKind, Unanswered
from mailrail.core.tlspolicy.decision import Cause
from mailrail.core.tlspolicy.demands import Demand, add_up
from mailrail.core.tlspolicy.facts import Purpose, Requirement
from mailrail.kit.postgres import Login
from mailrail.kit.resolver import DnsResolver
from mailrail.sink import Sink
from mailrail_outbound import metrics
from mailrail_outbound.domain_recorder import DomainRecorder
from mailrail_outbound.hosts import awaited
from mailrail_outbound.ports import RecipientReport, Result
from mailrail_outbound.store.connection import DomainDatabase
from mailrail_outbound.tls_policy import cache as cache_module
from mailrail_outbound.tls_policy.sts import StsLookup

from testkit.chains import issue
from testkit.conditions import eventually
from testkit.dns import DnsServer, Failure
from testkit.outbound import OutboundBench, transport
from testkit.policies import REFUSED, PolicyWorld, policy_process
from testkit.socks import SocksProxy

__all__ = ["trusted_roots"]  # a fixture is found by being here: the system trusts ROOT alone

RECORD = "_mta-sts.example.org"
NOWHERE = "postgresql://127.0.0.1:1/nowhere"
OTHER_GOOD = issue(OTHER, OTHER, by=ROOT)
STRANGER = issue(HOST, HOST)
WEEK = 7 * 86_400


def policy(*mx: str, mode: Mode = Mode.ENFORCE) -> Policy:
    return Policy(mode, WEEK, mx)


@pytest.fixture
def dns() -> Iterator[DnsServer]:
    with DnsServer() as server:
        server.add("_mta-sts.other.example", "TXT", '"v=STSv1; id=none;"')
        yield server


@pytest.fixture
def there() -> PolicyWorld:
    return PolicyWorld()


@dataclass
class Domain:
    """example.org, and outbound before it."""

    dns: DnsServer
    there: PolicyWorld
    bench: OutboundBench

    def publish(self, record_id: str, served: Policy | FetchFailed) -> None:
        """A policy as its host serves it, and a record that says so."""
        self.there.policies["example.org"] = served
        self.dns.set(RECORD, "TXT", f'"v=STSv1; id={record_id};"', ttl=3600)

    async def send(self, **fields: Any) -> RecipientReport:
        return (await self.bench.deliver(self.bench.delivery(None, **fields))).recipients[0]


@contextlib.asynccontextmanager
async def delivering(
    url: str, dns: DnsServer, there: PolicyWorld, *transports: Any, **more: Any
) -> AsyncIterator[Domain]:
    """An outbound process on that database."""
    async with (
        policy_process(url, there) as policies,
        OutboundBench.running(*transports, policies=policies, resolver=dns.endpoint, direct_port=PORT, **more) as bench,
    ):
        yield Domain(dns, there, bench)


def rows(url: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(query.encode()).fetchall()


async def test_a_host_that_the_policy_does_not_list_is_passed_over_and_the_next_gets_the_mail_STS_10b(
    database: str, dns: DnsServer, there: PolicyWorld
) -> None:
    async with (
        serving(dns, GOOD, preference=5) as first,
        serving(dns, OTHER_GOOD, host=OTHER, preference=10) as second,
        delivering(database, dns, there) as domain,
    ):
        domain.publish("1", policy(OTHER))
        report = await domain.send()
        assert (report.result, report.host) == (Result.DELIVERED, OTHER)
        assert report.tls is not None
        assert report.tls.verified
        assert "MTA-STS policy of example.org (enforce)" in report.tls.verdict
        assert not first.sessions, "it is not even dialled"
        assert len(second.messages) == 1


@pytest.mark.parametrize("broken", ["certificate", "STARTTLS"])
async def test_an_enforced_policy_keeps_mail_back_from_a_host_that_is_not_proven_STS_10b(
    database: str, dns: DnsServer, there: PolicyWorld, broken: str
) -> None:
    async with (
        serving(dns, STRANGER if broken == "certificate" else None) as peer,
        delivering(database, dns, there) as domain,
    ):
        domain.publish("1", policy(HOST))
        report = await domain.send()
        assert (report.result, str(report.status)) == (Result.DEFERRED, "4.7.5")
        assert not peer.messages


@pytest.mark.parametrize("broken", ["certificate", "STARTTLS"])
async def test_a_policy_that_a_shared_host_does_not_meet_takes_no_connections_from_other_domains_there(
    database: str, dns: DnsServer, there: PolicyWorld, broken: str
) -> None:
    """A stranger may name any host in the MX records and the policy of his domain."""
    async with (
        serving(dns, STRANGER if broken == "certificate" else None) as peer,
        delivering(database, dns, there) as domain,
    ):
        dns.add("other.example", "MX", f"10 {HOST}.")
        domain.publish("1", policy(HOST))
        pool = domain.bench.pool
        for bad in (False, True):
            report = await domain.send(domain="example.org" if bad else "other.example")
            assert (report.result is Result.DELIVERED) is not bad
            pool.close_idle()
            await eventually(lambda: pool._servers.open == 0)
            assert [each.standing for each in pool._servers._servers.values()] == [QUICK]
        assert len(peer.messages) == 1


async def test_behind_a_proxy_record_and_policy_are_asked_for_by_ourselves_and_hold_SOCK_05b(
    database: str, dns: DnsServer, there: PolicyWorld
) -> None:
    """SOCK-05b, SOCK-06: the proxy sees SMTP alone."""
    with SocksProxy() as proxy:
        via = transport(TransportKind.SOCKS, proxy_host=proxy.address, proxy_port=proxy.port)
        async with (
            serving(dns, GOOD, preference=5) as first,
            serving(dns, OTHER_GOOD, host=OTHER, preference=10) as second,
            delivering(database, dns, there, via) as domain,
        ):
            domain.publish("1", policy(OTHER))
            report = (await domain.bench.deliver(domain.bench.delivery(via))).recipients[0]
            assert (report.result, report.host) == (Result.DELIVERED, OTHER)
            assert report.tls is not None
            assert report.tls.verified
            assert (dns.asked(RECORD, "TXT"), there.fetches["example.org"]) == (1, 1)
            assert [(each.host, each.port) for each in proxy.requests] == [(second.host, PORT)]
            assert not first.sessions


@pytest.mark.parametrize("gone", ["record", "answers", "policy host"])
async def test_what_is_cached_still_holds_when_record_or_policy_host_are_gone_STS_16b(
    database: str, dns: DnsServer, there: PolicyWorld, gone: str
) -> None:
    async with serving(dns, STRANGER) as peer:
        async with delivering(database, dns, there) as domain:
            domain.publish("1", policy(HOST))
            assert (await domain.send()).result is Result.DEFERRED
            await eventually(lambda: bool(rows(database, "SELECT FROM outbound.mta_sts WHERE policy IS NOT NULL")))
        if gone == "record":
            dns.remove(RECORD)
        elif gone == "answers":
            dns.fail(RECORD, Failure.SERVFAIL)
        async with delivering(database, dns, there) as domain:
            if gone == "policy host":
                domain.publish("2", REFUSED)
            report = await domain.send()
            assert (report.result, str(report.status)) == (Result.DEFERRED, "4.7.5")
        assert not peer.messages


async def test_a_repaired_policy_is_found_by_the_attempt_that_the_old_one_would_have_ended_STS_13b(
    database: str, dns: DnsServer, there: PolicyWorld
) -> None:
    """STS-13a: the record is kept for an hour, and asked for anew before the policy makes mail fail."""
    async with serving(dns, GOOD) as peer, delivering(database, dns, there) as domain:
        domain.publish("1", policy("elsewhere.example.org"))
        report = await domain.send()
        assert (report.result, dns.asked(RECORD, "TXT")) == (Result.DEFERRED, 2)
        domain.publish("2", policy(HOST))
        report = await domain.send()
        assert (report.result, dns.asked(RECORD, "TXT")) == (Result.DELIVERED, 3)
        assert report.tls is not None
        assert report.tls.verified
        assert len(peer.messages) == 1
        assert (await domain.send()).result is Result.DELIVERED
        assert dns.asked(RECORD, "TXT") == 3, "nothing fails, nothing is asked"


async def test_required_mail_does_not_fail_by_a_policy_while_the_dns_cannot_be_asked_for_a_newer_one_STS_13b(
    database: str, dns: DnsServer, there: PolicyWorld
) -> None:
    async with serving(dns, GOOD) as peer, delivering(database, dns, there) as domain:
        domain.publish("1", policy("elsewhere.example.org"))
        report = await domain.send(requirement=Requirement.REQUIRED)
        assert (report.result, str(report.status)) == (Result.FAILED, "5.7.30")
        dns.fail(RECORD, Failure.SERVFAIL)
        report = await domain.send(requirement=Requirement.REQUIRED)
        assert (report.result, str(report.status)) == (Result.DEFERRED, "4.7.5")
        assert not peer.sessions


async def test_a_record_without_a_policy_that_can_be_fetched_holds_nothing_back_and_proves_nothing_STS_15a(
    database: str, dns: DnsServer, there: PolicyWorld
) -> None:
    async with serving(dns, STRANGER) as peer, delivering(database, dns, there) as domain:
        domain.publish("1", REFUSED)
        for _ in range(3):
            report = await domain.send()
            assert report.result is Result.DELIVERED
            assert report.tls is not None
            assert not report.tls.verified
        assert len(peer.messages) == 3
        assert there.fetches["example.org"] == 1, "and it is not asked again at once"


async def test_in_mode_testing_and_none_mail_goes_as_if_there_were_no_policy(
    database: str, dns: DnsServer, there: PolicyWorld
) -> None:
    async with serving(dns, STRANGER) as peer, delivering(database, dns, there) as domain:
        for number, mode in enumerate((Mode.TESTING, Mode.NONE), 1):
            domain.publish("1", policy("elsewhere.example.org", mode=mode))
            assert (await domain.send()).result is Result.DELIVERED
            assert len(peer.messages) == number


@pytest.mark.parametrize(
    ("mode", "certificate", "counted"),
    [
        (Mode.ENFORCE, GOOD, ("mta_sts", "nothing", "possible")),
        (Mode.TESTING, GOOD, ("pkix", "sts_testing", "no")),
        (Mode.TESTING, STRANGER, ("none", "sts_testing", "no")),
        (Mode.NONE, STRANGER, ("none", "nothing", "no")),
    ],
)
async def test_messages_are_counted_by_what_proved_the_host_and_what_could_have(
    database: str, dns: DnsServer, there: PolicyWorld, mode: Mode, certificate: Any, counted: tuple[str, str, str]
) -> None:
    async with serving(dns, certificate), delivering(database, dns, there) as domain:
        domain.publish("1", policy(HOST, mode=mode))
        before = metrics.TLS_MESSAGES.of(*counted).number
        assert (await domain.send()).result is Result.DELIVERED
        assert metrics.TLS_MESSAGES.of(*counted).number == before + 1


async def test_messages_that_share_a_connection_are_counted_each_by_what_it_demands(
    database: str, dns: DnsServer, there: PolicyWorld
) -> None:
    used, possible = (metrics.TLS_MESSAGES.of("mta_sts", "nothing", word) for word in ("used", "possible"))
    async with serving(dns, GOOD) as peer, delivering(database, dns, there, connections_per_destination=1) as domain:
        domain.publish("1", policy(HOST))
        before = used.number, possible.number
        demands = [Requirement.REQUIRED, Requirement.DEFAULT, Requirement.DEFAULT] * 4
        reports = await asyncio.gather(*(domain.send(requirement=each) for each in demands))
        assert {report.result for report in reports} == {Result.DELIVERED}
        assert len(peer.sessions) == 1
        assert (used.number - before[0], possible.number - before[1]) == (4, 8)


async def test_a_dns_that_does_not_say_whether_there_is_a_policy_holds_mail_back_for_a_while_STS_24a(
    database: str, dns: DnsServer, there: PolicyWorld
) -> None:
    async with serving(dns, GOOD) as peer, delivering(database, dns, there) as domain:
        dns.fail(RECORD, Failure.SERVFAIL)
        report = await domain.send()
        assert report.result is Result.DEFERRED
        assert "does not say whether example.org has an MTA-STS policy" in report.text
        assert not peer.sessions
        assert (await domain.send(requirement=Requirement.NO)).result is Result.DELIVERED


async def test_a_look_up_that_failed_days_ago_is_no_part_of_todays_outage_STS_24a(
    database: str, dns: DnsServer, there: PolicyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Meanwhile another process may have had all the answers."""
    dns.fail(RECORD, Failure.SERVFAIL)
    async with policy_process(database, there) as policies:
        lookup, began = StsLookup(DnsResolver(dns.endpoint), policies), policies.now()
        steps = {}
        for hours in (0.0, 3.9, 4.1, 16.2, 60.0, 63.9, 64.1):
            monkeypatch.setattr(policies, "now", lambda hours=hours: began + 3600 * hours)
            verdict = (await awaited(lookup.of_domain("example.org", anew=True))).verdict
            assert verdict is not None
            steps[hours] = verdict.step
    waits, goes = PolicyStep.DEFER, PolicyStep.WITHOUT
    assert steps == {0.0: waits, 3.9: waits, 4.1: goes, 16.2: goes, 60.0: waits, 63.9: waits, 64.1: goes}


async def test_a_floor_can_say_to_go_on_while_the_dns_does_not_answer_and_another_to_wait_STS_24b(
    database: str, dns: DnsServer, there: PolicyWorld
) -> None:
    """The cause is what explain tells of the attempt."""
    proceed = Demand("the rule", Security(when_unanswered=Unanswered.PROCEED))
    wait = Demand("the gateway", Security(when_unanswered=Unanswered.DEFER))
    async with serving(dns, GOOD), delivering(database, dns, there) as domain:
        dns.fail(RECORD, Failure.SERVFAIL)
        waits = await domain.send(demanded=add_up([proceed, wait]))
        assert (waits.result, waits.tls_cause) == (Result.DEFERRED, Cause.STS_UNANSWERED)
        goes = await domain.send(demanded=add_up([proceed]))
        assert goes.result is Result.DELIVERED
        assert goes.tls is not None
        assert "whenUnanswered Proceed" in goes.tls.verdict


@pytest.mark.parametrize("how", [Failure.REFUSED, Failure.NOTIMP])
async def test_a_zone_that_refuses_this_question_alone_holds_no_mail_back_STS_24a(
    database: str, dns: DnsServer, there: PolicyWorld, how: Failure
) -> None:
    """STS-24a, STS-24b: whatever the switch says, for its other answers are well."""
    wait = add_up([Demand("the gateway", Security(when_unanswered=Unanswered.DEFER))])
    async with serving(dns, GOOD), delivering(database, dns, there) as domain:
        dns.fail(RECORD, how, "TXT")
        for fields in ({}, {"demanded": wait}):
            assert (await domain.send(**fields)).result is Result.DELIVERED


@pytest.mark.parametrize("how", [Failure.REFUSED, Failure.NOTIMP])
async def test_a_name_server_of_ours_that_refuses_all_questions_says_nothing_of_a_zone_STS_24a(
    database: str, dns: DnsServer, there: PolicyWorld, how: Failure
) -> None:
    """It limits us, or we were left out of its list; what the MX records were is known from before."""
    async with serving(dns, GOOD) as peer, delivering(database, dns, there) as domain:
        dns.fail(RECORD, Failure.SERVFAIL)
        assert (await domain.send()).result is Result.DEFERRED
        for name, kind in ((RECORD, "TXT"), ("example.org", None)):
            dns.fail(name, how, kind)
        assert domain.bench.sts is not None
        domain.bench.sts._resolver.forget(RECORD, "TXT")
        report = await domain.send()
        assert (report.result, report.tls_cause) == (Result.DEFERRED, Cause.STS_UNANSWERED)
        assert not peer.sessions


async def test_nothing_is_asked_of_parents_aliases_or_smarthosts_STS_09b(
    database: str, dns: DnsServer, there: PolicyWorld
) -> None:
    async with serving(dns, GOOD) as peer, Sink() as relay:
        dns.add("a.b.example.org", "MX", f"10 {HOST}.")
        dns.add("alias.example", "CNAME", "example.org.")
        via = transport(TransportKind.SMTP, host=relay.host, port=relay.port, tls=TlsMode.NONE)
        async with delivering(database, dns, there, via) as domain:
            for name in ("a.b.example.org", "alias.example"):
                assert (await domain.send(domain=name)).result is Result.DELIVERED
            bench = domain.bench
            assert (await bench.deliver(bench.delivery(via))).recipients[0].result is Result.DELIVERED
            literal = bench.delivery(None, f"b@[{peer.host}]", domain=f"[{peer.host}]")
            assert (await bench.deliver(literal)).recipients[0].result is Result.DELIVERED
        asked = {query.name for query in dns.queries if query.type == "TXT"}
        assert asked == {"_mta-sts.a.b.example.org", "_mta-sts.alias.example"}
        assert not there.fetches


async def test_a_warm_domain_costs_no_dns_query_no_fetch_and_no_statement(
    database: str, dns: DnsServer, there: PolicyWorld
) -> None:
    async with serving(dns, GOOD) as peer, delivering(database, dns, there) as domain:
        domain.publish("1", policy(HOST))
        assert (await domain.send()).result is Result.DELIVERED
        before = len(dns.queries), metrics.POLICY_READS.of("postgres").number
        for _ in range(20):
            assert (await domain.send()).result is Result.DELIVERED
        assert (len(dns.queries), metrics.POLICY_READS.of("postgres").number) == before
        assert there.fetches == {"example.org": 1}
        assert len(peer.messages) == 21


async def test_without_postgres_a_domain_that_is_not_in_memory_goes_back_undialled_and_no_other(
    database: str, dns: DnsServer, there: PolicyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "_AGAIN", 0.05)
    async with serving(dns, GOOD) as peer, delivering(NOWHERE, dns, there) as domain:
        domain.publish("1", policy(HOST))
        report = await domain.send()
        assert (report.result, str(report.status)) == (Result.NOT_ATTEMPTED, "4.7.5"), "the queue lets it wait a little"
        assert "whether example.org has an MTA-STS policy is not known, as Postgres cannot be read" in report.text
        assert not peer.sessions
        required = await domain.send(requirement=Requirement.REQUIRED, purpose=Purpose.TLS_REPORT)
        assert required.result is Result.NOT_ATTEMPTED
        for fields in ({"requirement": Requirement.NO}, {"purpose": Purpose.TLS_REPORT}):
            assert (await domain.send(**fields)).result is Result.DELIVERED, fields
    async with serving(dns, GOOD) as peer, delivering(database, dns, there) as domain:
        assert (await domain.send()).result is Result.DELIVERED
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute("ALTER SCHEMA outbound RENAME TO aside")
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE pid <> pg_backend_pid() AND datname = current_database()"
            )
        assert (await domain.send()).result is Result.DELIVERED, "it is in memory"
        dns.add("never.example", "MX", f"10 {HOST}.")
        assert (await domain.send(domain="never.example")).result is Result.NOT_ATTEMPTED


async def test_what_sessions_show_is_learned_by_domain_and_transport_RTLS_29(
    database: str, dns: DnsServer, there: PolicyWorld
) -> None:
    store = DomainDatabase(Login.of(database), "learning")
    facts = DomainRecorder(store)
    learning = asyncio.create_task(facts.run())
    try:
        async with serving(dns, GOOD), Sink() as relay:
            via = transport(TransportKind.SMTP, "relay", host=relay.host, port=relay.port, tls=TlsMode.NONE)
            async with delivering(database, dns, there, via, recorder=facts) as domain:
                for _ in range(5):
                    assert (await domain.send()).result is Result.DELIVERED
                through = domain.bench.delivery(via, "a@one.example", "b@TWO.example", "c@two.example")
                await domain.bench.deliver(through)
        expected = [
            ("example.org", "", *Offered(starttls=True, requiretls=True)),
            ("one.example", "default/relay", *Offered(starttls=False, requiretls=False)),
            ("two.example", "default/relay", *Offered(starttls=False, requiretls=False)),
        ]
        query = "SELECT domain, transport, starttls, requiretls FROM outbound.learned ORDER BY 1"
        await eventually(lambda: rows(database, query) == expected)
    finally:
        learning.cancel()
        await asyncio.gather(learning, return_exceptions=True)
        await store.close()
