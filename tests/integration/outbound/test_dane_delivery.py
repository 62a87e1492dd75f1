"""Mail to domains of the signed world: what a real validating resolver says decides about TLS, and about the mail."""

import asyncio
import contextlib
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from mailrail.core.tlspolicy.facts import Requirement
from mailrail_outbound import metrics
from mailrail_outbound.ports import RecipientReport, Result

from testkit.ca import Certificate
from testkit.outbound import OutboundBench
from testkit.ports import free_port, loopback_address
from testkit.signed_world import SignedWorld
from testkit.smtp_peer import SmtpPeer

pytestmark = [pytest.mark.peer("nsd"), pytest.mark.peer("unbound")]


@pytest.fixture(scope="module")
def world() -> Iterator[SignedWorld]:
    with SignedWorld(port=free_port(loopback_address())) as made:
        yield made


class Hosts:
    """Mail hosts of the world that a test has started."""

    def __init__(self, world: SignedWorld, stack: contextlib.AsyncExitStack) -> None:
        self._world = world
        self._stack = stack
        self.asked: list[str | None] = []
        """The names in SNI, in the order of the handshakes."""

    async def start(self, name: str, *, offering: bool = True, certificate: Certificate | None = None) -> SmtpPeer:
        """One with the certificate that the world has for it, or another; without STARTTLS unless `offering`."""
        context = (certificate or self._world.certificates[name]).server_context()
        context.sni_callback = self._seen
        peer = SmtpPeer(host=self._world.addresses[name], port=self._world.port, tls=context if offering else None)
        return await self._stack.enter_async_context(peer)

    def _seen(self, tls: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        self.asked.append(name)


@pytest.fixture
async def hosts(world: SignedWorld) -> AsyncIterator[Hosts]:
    async with contextlib.AsyncExitStack() as stack:
        yield Hosts(world, stack)


def bench(world: SignedWorld, **settings: Any) -> contextlib.AbstractAsyncContextManager[OutboundBench]:
    settings = {"resolver_trust_ad": True, "dns_timeout": 60.0} | settings
    return OutboundBench.running(resolver=world.resolver.endpoint, direct_port=world.port, **settings)


async def deliver(world: SignedWorld, domain: str, **settings: Any) -> RecipientReport:
    async with bench(world, **settings) as running:
        report = await running.deliver(running.delivery(None, f"b@{domain}", domain=domain))
    (result,) = report.recipients
    return result


async def test_a_matching_certificate_is_enough_although_no_public_authority_knows_it(
    world: SignedWorld, hosts: Hosts
) -> None:
    peer = await hosts.start("mx.secure.test")
    result = await deliver(world, "secure.test")
    assert result.result is Result.DELIVERED
    assert len(peer.messages) == 1
    assert peer.messages[0].session.tls


@pytest.mark.parametrize(
    ("domain", "host", "base"),
    [
        ("secure.test", "mx.secure.test", "mx.secure.test"),
        ("alias.test", "mx.secure.test", "mx.secure.test"),
        ("alias-unsigned.test", "mx.unsigned.test", "mx.alias-unsigned.test"),
        ("alias-unusable.test", "mx.unusable.test", "mx.unusable.test"),
        ("tlsa-alias.test", "mx.tlsa-alias.test", "mx.tlsa-alias.test"),
        ("no-mx.test", "no-mx.test", "no-mx.test"),
    ],
)
async def test_the_server_sees_the_base_domain_in_sni_whatever_aliases_there_are_DANE_17_DANE_08(
    world: SignedWorld, hosts: Hosts, domain: str, host: str, base: str
) -> None:
    peer = await hosts.start(host)
    assert (await deliver(world, domain)).result is Result.DELIVERED
    assert hosts.asked == [base]
    assert peer.messages[0].session.tls


async def test_an_issuer_that_a_record_names_may_be_nobody_elses(world: SignedWorld, hosts: Hosts) -> None:
    await hosts.start("mx.ta.test")
    assert (await deliver(world, "ta.test")).result is Result.DELIVERED


async def test_below_such_an_issuer_the_domains_own_name_is_as_good_as_the_hosts_DANE_12b(
    world: SignedWorld, hosts: Hosts
) -> None:
    for name, result in (("ta.test", Result.DELIVERED), ("other.test", Result.DEFERRED)):
        leaf = world.authority.issue(name)
        sent = Certificate(leaf.names, leaf.chain_pem + world.authority.pem, leaf.key_pem)
        async with contextlib.AsyncExitStack() as stack:
            await Hosts(world, stack).start("mx.ta.test", certificate=sent)
            assert (await deliver(world, "ta.test")).result is result


async def test_another_certificate_gets_no_mail_and_no_second_try_in_clear(world: SignedWorld, hosts: Hosts) -> None:
    peer = await hosts.start("mx.mismatch.test")
    result = await deliver(world, "mismatch.test")
    assert result.result is Result.DEFERRED
    assert "TLSA" in result.text
    assert peer.messages == []
    assert not any(line.startswith("MAIL") for session in peer.sessions for line in session.lines)


async def test_a_server_that_has_lost_starttls_gets_no_mail_where_records_can_be_used_DANE_14b(
    world: SignedWorld, hosts: Hosts
) -> None:
    peer = await hosts.start("mx.secure.test", offering=False)
    assert (await deliver(world, "secure.test")).result is Result.DEFERRED
    assert peer.messages == []


@pytest.mark.parametrize(("offering", "result"), [(True, Result.DELIVERED), (False, Result.DEFERRED)])
async def test_records_that_cannot_be_used_ask_for_tls_and_for_no_certificate_DANE_15b(
    world: SignedWorld, hosts: Hosts, offering: bool, result: Result
) -> None:
    peer = await hosts.start("mx.unusable.test", offering=offering)
    report = await deliver(world, "unusable.test")
    assert report.result is result
    assert len(peer.messages) == (1 if offering else 0)
    assert report.tls is not None
    assert "none of them usable" in report.tls.verdict
    assert "certificate usage 1 is not used for SMTP" in report.tls.verdict, "the history says why"


@pytest.mark.parametrize("domain", ["none", "unsigned", "tlsa-alias-unsigned", "tlsa-alias-nowhere"])
async def test_where_no_record_counts_mail_goes_in_clear_to_who_offers_no_tls_DANE_16b(
    world: SignedWorld, hosts: Hosts, domain: str
) -> None:
    peer = await hosts.start(f"mx.{domain}.test", offering=False)
    assert (await deliver(world, f"{domain}.test")).result is Result.DELIVERED
    assert len(peer.messages) == 1


async def test_an_insecure_mx_record_proves_nothing_although_its_host_has_records_DANE_05b(
    world: SignedWorld, hosts: Hosts
) -> None:
    peer = await hosts.start("mx.secure.test", offering=False)
    result = await deliver(world, "unsigned-mx.test")
    assert result.result is Result.DELIVERED
    assert len(peer.messages) == 1
    assert "DANE" not in str(result)


async def test_name_servers_that_drop_questions_for_tlsa_stop_no_mail_of_unsigned_domains_DANE_04(
    world: SignedWorld, hosts: Hosts
) -> None:
    peer = await hosts.start("mx.unsigned-drops-tlsa.test")
    assert (await deliver(world, "unsigned-drops-tlsa.test")).result is Result.DELIVERED
    assert len(peer.messages) == 1


@pytest.mark.parametrize("domain", ["bogus-tlsa", "refuses-tlsa", "notimp-tlsa", "drops-tlsa"])
async def test_a_host_whose_records_cannot_be_looked_up_is_not_dialled_DANE_03b(
    world: SignedWorld, hosts: Hosts, domain: str
) -> None:
    peer = await hosts.start(f"mx.{domain}.test")
    result = await deliver(world, f"{domain}.test", dns_timeout=4.0 if domain == "drops-tlsa" else 60.0)
    assert result.result is Result.DEFERRED
    assert f"TLSA of {world.tlsa_name(f'mx.{domain}.test')}" in result.text
    assert peer.sessions == []


@pytest.mark.parametrize("domain", ["bogus", "expired"])
async def test_mail_to_a_domain_whose_mx_records_fail_validation_waits_DANE_02(
    world: SignedWorld, hosts: Hosts, domain: str
) -> None:
    peer = await hosts.start(f"mx.{domain}.test")
    assert (await deliver(world, f"{domain}.test")).result is Result.DEFERRED
    assert peer.sessions == []


async def test_one_host_whose_look_ups_fail_is_passed_over_for_the_next_DANE_24(
    world: SignedWorld, hosts: Hosts
) -> None:
    first, second = await hosts.start("a.second.test"), await hosts.start("b.second.test")
    assert (await deliver(world, "second.test")).result is Result.DELIVERED
    assert (first.sessions, len(second.messages)) == ([], 1)


async def test_a_bogus_address_of_one_family_leaves_the_proven_one_to_be_dialled_DANE_24(
    world: SignedWorld, hosts: Hosts
) -> None:
    peer = await hosts.start("mx.bogus-aaaa.test")
    assert (await deliver(world, "bogus-aaaa.test")).result is Result.DELIVERED
    assert len(peer.messages) == 1


async def test_the_better_mx_host_gets_the_mail_although_only_the_other_has_records_DANE_06(
    world: SignedWorld, hosts: Hosts
) -> None:
    first, second = await hosts.start("a.order.test", offering=False), await hosts.start("b.order.test")
    assert (await deliver(world, "order.test")).result is Result.DELIVERED
    assert (len(first.messages), second.sessions) == (1, [])


@pytest.mark.parametrize(
    ("domain", "fields", "offering", "counted"),
    [
        ("secure", {}, True, ("dane", "nothing", "no")),
        ("unusable", {}, True, ("none", "tlsa_unusable", "no")),
        ("mismatch", {"requirement": Requirement.NO}, True, ("none", "dane", "no")),
        ("none", {}, False, ("clear", "nothing", "no")),
    ],
)
async def test_messages_are_counted_by_what_proved_the_host_and_what_could_have(
    world: SignedWorld, hosts: Hosts, domain: str, fields: dict[str, Any], offering: bool, counted: tuple[str, ...]
) -> None:
    await hosts.start(f"mx.{domain}.test", offering=offering)
    before = Counter({labels: count.number for labels, count in metrics.TLS_MESSAGES._counts.items()})
    async with bench(world) as running:
        for _ in range(3):
            made = running.delivery(None, f"b@{domain}.test", domain=f"{domain}.test", **fields)
            assert (await running.deliver(made)).recipients[0].result is Result.DELIVERED
    after = Counter({labels: count.number for labels, count in metrics.TLS_MESSAGES._counts.items()})
    assert after - before == Counter({counted: 3})


async def test_a_message_that_no_host_takes_is_not_counted(world: SignedWorld, hosts: Hosts) -> None:
    await hosts.start("mx.mismatch.test")
    before = {labels: count.number for labels, count in metrics.TLS_MESSAGES._counts.items()}
    assert (await deliver(world, "mismatch.test")).result is Result.DEFERRED
    assert {labels: count.number for labels, count in metrics.TLS_MESSAGES._counts.items()} == before


async def test_a_delivery_with_all_in_memory_asks_nothing_and_makes_no_task(world: SignedWorld, hosts: Hosts) -> None:
    peer = await hosts.start("mx.secure.test")
    async with bench(world) as running:
        for count in (1, 2):
            before = len(await asyncio.to_thread(world.resolver.questions))
            tasks = asyncio.all_tasks()
            made = running.begin(running.delivery(None, "b@secure.test", domain="secure.test"))
            new = asyncio.all_tasks() - tasks
            assert (await made).recipients[0].result is Result.DELIVERED
            if count == 2:
                assert new == set()
                assert len(await asyncio.to_thread(world.resolver.questions)) == before
    assert len(peer.messages) == 2


async def test_without_a_trusted_resolver_mail_leaves_as_before_DANE_01(world: SignedWorld, hosts: Hosts) -> None:
    peer = await hosts.start("mx.mismatch.test", offering=False)
    result = await deliver(world, "mismatch.test", resolver_trust_ad=False)
    assert result.result is Result.DELIVERED
    assert len(peer.messages) == 1
