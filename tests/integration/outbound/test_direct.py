"""Direct delivery with a DNS server and MX hosts on addresses of their own: order, failover, what is never dialled."""

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any, TypeVar

import pytest

from mailrail.core.revision.revision import TransportKind
from mailrail.core.tlspolicy.decision import Cause
from mailrail.core.tlspolicy.facts import Requirement
from mailrail.sink import Options, Sink
from mailrail_outbound.ports import RecipientReport, Result

from testkit.ca import Authority
from testkit.dns import DnsServer, Failure
from testkit.outbound import OutboundBench, secret_ref, transport
from testkit.ports import loopback_address
from testkit.smtp_peer import Close, Raw, SmtpPeer
from testkit.socks import Moment, Refusal, SocksProxy, Trouble


@pytest.fixture
def dns() -> Iterator[DnsServer]:
    with DnsServer() as server:
        yield server


Server = TypeVar("Server", Sink, SmtpPeer)


class Mx:
    """MX hosts on one port, each on an address of its own."""

    def __init__(self, dns: DnsServer, stack: contextlib.AsyncExitStack) -> None:
        self.dns = dns
        self.port = 0
        self._stack = stack

    async def host(self, name: str, **options: Any) -> Sink:
        """A host that takes mail, with its A record; `options` are those of the sink."""
        return await self._serve(name, Sink(Options(**options), host=loopback_address(), port=self.port))

    async def scripted(self, name: str, **script: Any) -> SmtpPeer:
        """A host that follows a script, with its A record."""
        return await self._serve(name, SmtpPeer(host=loopback_address(), port=self.port, **script))

    async def _serve(self, name: str, server: Server) -> Server:
        await self._stack.enter_async_context(server)
        self.port = server.port
        self.dns.add(name, "A", server.host)
        return server

    def dead(self, name: str) -> str:
        """A host whose address nobody serves."""
        address = loopback_address()
        self.dns.add(name, "A", address)
        return address

    @contextlib.asynccontextmanager
    async def bench(self, **settings: Any) -> AsyncIterator[OutboundBench]:
        transports = settings.pop("transports", ())
        async with OutboundBench.running(
            *transports, resolver=self.dns.endpoint, direct_port=self.port or 25, **settings
        ) as bench:
            yield bench

    async def deliver(self, *recipients: str, **fields: Any) -> list[RecipientReport]:
        async with self.bench() as bench:
            return (await bench.deliver(bench.delivery(None, *recipients, **fields))).recipients


@pytest.fixture
async def mx(dns: DnsServer) -> AsyncIterator[Mx]:
    async with contextlib.AsyncExitStack() as stack:
        yield Mx(dns, stack)


async def test_the_best_mx_gets_the_message_SOUT_03(mx: Mx) -> None:
    mx.dns.add("example.org", "MX", "20 two.example.org.", "10 one.example.org.")
    one, two = await mx.host("one.example.org"), await mx.host("two.example.org")
    (result,) = await mx.deliver()
    assert (result.result, result.host, result.ip) == (Result.DELIVERED, "one.example.org", one.host)
    assert two.connections == 0


async def test_hosts_of_equal_preference_share_the_mail_SOUT_03(mx: Mx) -> None:
    mx.dns.add("example.org", "MX", "10 one.example.org.", "10 two.example.org.")
    one, two = await mx.host("one.example.org"), await mx.host("two.example.org")
    async with mx.bench() as bench:
        for _ in range(40):
            await bench.deliver(bench.delivery(None))
    assert len(one.messages) + len(two.messages) == 40
    assert len(one.messages) > 4
    assert len(two.messages) > 4


@pytest.mark.parametrize(
    "replies",
    [
        {"GREETING": "554 no"},
        {"GREETING": "421 busy"},
        {"EHLO": "451 later", "HELO": "451 later"},
        {"MAIL": "451 greylisted"},
        {"RCPT": "451 greylisted"},
        {"DATA": "451 later"},
        {"END": "451 later"},
        {"MAIL": "421 bye"},
        {"MAIL": Close()},
        {"DATA": Close()},
        {"GREETING": Close()},
    ],
)
async def test_the_next_host_is_tried_in_the_same_attempt_SOUT_13(mx: Mx, replies: dict[str, Any]) -> None:
    mx.dns.add("example.org", "MX", "10 one.example.org.", "20 two.example.org.")
    await mx.scripted("one.example.org", replies=replies)
    two = await mx.host("two.example.org")
    (result,) = await mx.deliver()
    assert (result.result, result.host) == (Result.DELIVERED, "two.example.org")
    assert len(two.messages) == 1


@pytest.mark.parametrize(
    "replies",
    [{"MAIL": "550 no"}, {"RCPT": "550 no"}, {"DATA": "554 no"}, {"END": "554 no"}],
)
async def test_a_final_answer_asks_no_other_host_SOUT_13(mx: Mx, replies: dict[str, Any]) -> None:
    mx.dns.add("example.org", "MX", "10 one.example.org.", "20 two.example.org.")
    await mx.scripted("one.example.org", replies=replies)
    two = await mx.host("two.example.org")
    (result,) = await mx.deliver()
    assert result.result is Result.FAILED
    assert two.connections == 0


async def test_mail_that_requires_tls_goes_to_no_mx_whose_name_nothing_proves(mx: Mx) -> None:
    """Case rtls-04: a certificate for a name that the DNS gave without proof proves nothing (RFC 8689 4.2.1)."""
    mx.dns.add("example.org", "MX", "10 one.example.org.")
    certificate = Authority().issue("one.example.org")
    one = await mx.scripted("one.example.org", tls=certificate.server_context(), extensions_after_tls=["REQUIRETLS"])
    (result,) = await mx.deliver(requirement=Requirement.REQUIRED)
    assert (result.result, str(result.status)) == (Result.FAILED, "5.7.30")
    assert result.tls_cause is Cause.MX_UNPROVEN
    assert one.sessions == []


async def test_mail_that_waives_tls_fails_where_a_host_insists_on_tls_that_it_cannot_make(mx: Mx) -> None:
    """Case rtls-12 (RFC 8689 4.2.2)."""
    mx.dns.add("example.org", "MX", "10 one.example.org.")
    insists = {"STARTTLS": "220 go", "MAIL": "530 5.7.0 must issue STARTTLS"}  # and closes instead of a handshake
    one = await mx.scripted("one.example.org", extensions=["STARTTLS"], replies=insists)
    (result,) = await mx.deliver(requirement=Requirement.NO)
    assert result.result is Result.FAILED
    assert str(result.reply) == "530 5.7.0 must issue STARTTLS"
    assert len(one.sessions) == 2
    assert one.messages == []


async def test_no_reply_to_the_final_dot_asks_no_other_host_LSE_08(mx: Mx) -> None:
    mx.dns.add("example.org", "MX", "10 one.example.org.", "20 two.example.org.")
    await mx.scripted("one.example.org", replies={"END": Close()})
    two = await mx.host("two.example.org")
    (result,) = await mx.deliver()
    assert (result.result, result.uncertain) == (Result.DEFERRED, True)
    assert two.connections == 0


async def test_4yz_to_rcpt_tries_one_further_host_and_no_third_SOUT_13(mx: Mx) -> None:
    mx.dns.add("example.org", "MX", "10 a.example.org.", "20 b.example.org.", "30 c.example.org.")
    later = {"RCPT": lambda session, line: "450 4.2.1 later" if "slow" in line else None}
    hosts = [await mx.scripted(f"{name}.example.org", replies=later) for name in "abc"]
    slow, fine = await mx.deliver("slow@example.org", "fine@example.org")
    assert (slow.result, fine.result) == (Result.DEFERRED, Result.DELIVERED)
    assert [len(host.sessions) for host in hosts] == [1, 1, 0]


async def test_all_hosts_refusing_with_521_or_554_is_final_and_one_other_word_is_not_SOUT_13(mx: Mx) -> None:
    mx.dns.add("example.org", "MX", "10 a.example.org.", "20 b.example.org.")
    await mx.scripted("a.example.org", replies={"GREETING": "554 no"})
    b = await mx.scripted("b.example.org", replies={"GREETING": ["521 no mail", "550 no"]})
    (final,) = await mx.deliver()
    (hopeful,) = await mx.deliver()
    assert (final.result, hopeful.result) == (Result.FAILED, Result.DEFERRED)
    assert len(b.sessions) == 2


async def test_our_own_limits_try_the_other_hosts_first_H43(mx: Mx) -> None:
    mx.dns.add("example.org", "MX", "10 small.example.org.", "20 large.example.org.")
    await mx.host("small.example.org", size_limit=10)
    large = await mx.host("large.example.org", size_limit=100_000, dsn=False)
    (result,) = await mx.deliver()
    assert result.result is Result.RELAYED
    assert len(large.messages) == 1
    mx.dns.remove("large.example.org")
    mx.dead("large.example.org")
    (later,) = await mx.deliver()
    assert later.result is Result.DEFERRED  # the host that might have taken it was only out of reach


async def test_a_dead_address_is_followed_by_the_next_of_the_same_host_SOUT_03(mx: Mx) -> None:
    mx.dns.add("example.org", "MX", "10 one.example.org.")
    one = await mx.host("one.example.org")
    mx.dns.remove("one.example.org", "A")
    dead = [loopback_address() for _ in range(4)]
    mx.dns.add("one.example.org", "A", *dead, one.host)  # the server shuffles them, as servers do
    async with mx.bench() as bench:
        report = await bench.deliver(bench.delivery(None))
    assert report.recipients[0].result is Result.DELIVERED
    (*before, last) = report.dialled["one.example.org"]
    assert last == one.host
    assert set(before) <= set(dead)
    assert report.mx_hosts == ("one.example.org",)


@pytest.mark.parametrize("greeting", ["421 busy", "554 no", Close(), Raw(b"250 what\r\n")], ids=str)
async def test_an_address_that_gives_no_session_is_followed_by_the_next_of_the_same_host_SOUT_03(
    mx: Mx, greeting: Any
) -> None:
    mx.dns.add("example.org", "MX", "10 one.example.org.", "20 other.example.org.")
    sick = await mx.scripted("one.example.org", replies={"GREETING": greeting})
    well = await mx.host("one.example.org")
    other = await mx.host("other.example.org")
    async with mx.bench() as bench:
        report = await bench.deliver(bench.delivery(None, dialled={"one.example.org": (sick.host,)}))
    assert report.recipients[0].result is Result.DELIVERED
    assert report.dialled["one.example.org"] == [sick.host, well.host]
    assert (len(sick.sessions), len(well.messages), other.connections) == (1, 1, 0)


async def test_no_more_than_two_addresses_of_a_host_may_refuse_a_session_SOUT_03(mx: Mx) -> None:
    mx.dns.add("example.org", "MX", "10 one.example.org.", "20 other.example.org.")
    sick = [await mx.scripted("one.example.org", replies={"GREETING": "421 busy"}) for _ in range(4)]
    other = await mx.host("other.example.org")
    (result,) = await mx.deliver()
    assert result.result is Result.DELIVERED
    assert (sum(len(host.sessions) for host in sick), len(other.messages)) == (2, 1)


async def test_a_retry_goes_to_the_address_that_greylisted_us_F2(mx: Mx) -> None:
    mx.dns.add("example.org", "MX", "10 one.example.org.")
    first = await mx.host("one.example.org")
    second = await mx.host("one.example.org")
    async with mx.bench() as bench:
        await bench.deliver(bench.delivery(None, dialled={"one.example.org": (second.host,)}))
    assert (len(first.messages), len(second.messages)) == (0, 1)


async def test_no_mx_means_the_domain_itself_SOUT_01(mx: Mx) -> None:
    host = await mx.host("example.org")
    (result,) = await mx.deliver()
    assert (result.result, result.host) == (Result.DELIVERED, "example.org")
    assert len(host.messages) == 1


async def test_an_address_literal_needs_no_dns(mx: Mx) -> None:
    host = await mx.host("unused.example.org")
    (result,) = await mx.deliver(f"b@[{host.host}]", domain=f"[{host.host}]")
    assert result.result is Result.DELIVERED
    assert mx.dns.asked(host.host) == 0


@pytest.mark.parametrize(
    ("prepare", "expected", "status"),
    [
        (lambda dns: None, Result.FAILED, "5.1.2"),
        (lambda dns: dns.add("example.org", "MX", "0 ."), Result.FAILED, "5.1.10"),
        (lambda dns: dns.fail("example.org", Failure.SERVFAIL), Result.DEFERRED, "4.4.3"),
        (lambda dns: dns.add("example.org", "TXT", "x"), Result.FAILED, "5.4.4"),
        (lambda dns: dns.add("example.org", "MX", "10 nowhere.example.org."), Result.FAILED, "5.4.4"),
        (lambda dns: dns.add("example.org", "MX", "10 127.0.0.1."), Result.FAILED, "5.4.4"),
        (lambda dns: dns.add("example.org", "MX", "10 mail.sender.example."), Result.FAILED, "5.4.6"),
        (
            lambda dns: dns.add("example.org", "MX", "10 x.example.org.", "5 mail.sender.example."),
            Result.FAILED,
            "5.4.6",
        ),
    ],
    ids=["nxdomain", "null-mx", "servfail", "no-address", "mx-without-address", "mx-is-address", "self", "behind-self"],
)
async def test_what_cannot_be_dialled_is_told_exactly_SOUT_01_SOUT_02_SOUT_04_SOUT_05(
    mx: Mx, prepare: Any, expected: Result, status: str
) -> None:
    prepare(mx.dns)
    (result,) = await mx.deliver()
    assert (result.result, str(result.status)) == (expected, status)
    assert not result.dialled


async def test_a_better_mx_than_ourselves_is_used_SOUT_04(mx: Mx) -> None:
    mx.dns.add("example.org", "MX", "10 better.example.org.", "20 mail.sender.example.", "30 worse.example.org.")
    better = await mx.scripted("better.example.org", replies={"MAIL": "451 later"})
    worse = await mx.host("worse.example.org")
    (result,) = await mx.deliver()
    assert result.result is Result.DEFERRED
    assert (len(better.sessions), worse.connections) == (1, 0)


async def test_our_own_listener_is_never_dialled_directly_and_a_smarthost_there_is_SOUT_04(mx: Mx) -> None:
    mx.dns.add("example.org", "MX", "10 us.example.org.")
    us = await mx.host("us.example.org")
    smarthost = transport(TransportKind.SMTP, host=us.host, port=us.port)
    async with mx.bench(transports=[smarthost], own_mx=(f"{us.host}:{us.port}",)) as bench:
        (refused,) = (await bench.deliver(bench.delivery(None))).recipients
        (taken,) = (await bench.deliver(bench.delivery(smarthost))).recipients
    assert (refused.result, str(refused.status)) == (Result.FAILED, "5.4.6")
    assert taken.result is Result.DELIVERED


async def test_an_address_of_this_machine_is_not_dialled_at_the_port_of_our_mx_listener_SOUT_04(mx: Mx) -> None:
    mx.dns.add("example.org", "MX", "10 us.example.org.", "20 backup.example.org.")
    us, backup = await mx.host("us.example.org"), await mx.host("backup.example.org")
    async with mx.bench() as bench:  # and no `own_mx` tells it
        bench.configure(2, [], mx_port=us.port)
        (result,) = (await bench.deliver(bench.delivery(None))).recipients
        assert (result.result, str(result.status)) == (Result.FAILED, "5.4.6")
        assert (us.connections, backup.connections) == (0, 0)
        bench.configure(3, [], mx_port=us.port + 1)
        (result,) = (await bench.deliver(bench.delivery(None))).recipients
        assert (result.result, us.connections) == (Result.DELIVERED, 1)


async def test_hosts_worse_than_ourselves_under_another_name_are_dropped_too_SOUT_04(mx: Mx) -> None:
    mx.dns.add("example.org", "MX", "10 alias-of-us.example.org.", "20 backup.example.org.")
    us = await mx.host("alias-of-us.example.org")
    backup = await mx.host("backup.example.org")
    async with mx.bench(own_mx=(f"{us.host}:{us.port}",)) as bench:
        (result,) = (await bench.deliver(bench.delivery(None))).recipients
    assert (result.result, str(result.status)) == (Result.FAILED, "5.4.6")
    assert (us.connections, backup.connections) == (0, 0)


async def test_domains_that_share_an_mx_host_share_its_connection(mx: Mx) -> None:
    for domain in ("example.org", "example.net"):
        mx.dns.add(domain, "MX", "10 shared.example.com.")
    shared = await mx.host("shared.example.com")
    async with mx.bench() as bench:
        await bench.deliver(bench.delivery(None))
        await bench.deliver(bench.delivery(None, "b@example.net", domain="example.net"))
    assert (len(shared.messages), shared.connections) == (2, 1)


async def test_answers_of_the_dns_are_kept_for_their_time(mx: Mx) -> None:
    mx.dns.add("example.org", "MX", "10 one.example.org.")
    await mx.host("one.example.org")
    async with mx.bench() as bench:
        for _ in range(5):
            await bench.deliver(bench.delivery(None))
    assert mx.dns.asked("example.org", "MX") == 1
    assert mx.dns.asked("one.example.org", "A") == 1


@pytest.mark.parametrize("failure", [f for f in Failure if f is not Failure.EMPTY_OVER_UDP])
@pytest.mark.parametrize("name", ["example.org", "one.example.org"])
async def test_no_failure_of_the_dns_is_ever_a_bounce_SOUT_01_SOUT_05(mx: Mx, name: str, failure: Failure) -> None:
    mx.dns.add("example.org", "MX", "10 one.example.org.")
    one = await mx.host("one.example.org")
    mx.dns.fail(name, failure)
    async with mx.bench(dns_timeout=0.5) as bench:
        (result,) = (await bench.deliver(bench.delivery(None))).recipients
    assert (result.result, str(result.status), result.site_failure) == (Result.DEFERRED, "4.4.3", True)
    assert one.connections == 0


async def test_answers_too_large_for_udp_are_asked_for_by_tcp(mx: Mx) -> None:
    mx.dns.add("example.org", "MX", "10 one.example.org.")
    await mx.host("one.example.org")
    mx.dns.fail("example.org", Failure.EMPTY_OVER_UDP)
    (result,) = await mx.deliver()
    assert result.result is Result.DELIVERED


async def test_aliases_are_followed_for_the_domain_and_for_the_mx_host_SOUT_01_STS_08a(mx: Mx) -> None:
    mx.dns.add("example.org", "CNAME", "mail.example.net.")
    mx.dns.add("mail.example.net", "MX", "10 alias.example.net.")
    mx.dns.add("alias.example.net", "CNAME", "one.example.net.")
    one = await mx.host("one.example.net")
    async with mx.bench() as bench:
        report = await bench.deliver(bench.delivery(None))
    assert report.recipients[0].result is Result.DELIVERED, report.recipients[0].text
    assert report.mx_hosts == ("alias.example.net",)  # the name by which certificates and policies go
    assert len(one.messages) == 1


async def test_a_silent_dns_server_defers() -> None:
    with DnsServer() as dns:
        dns.fail("example.org", Failure.SILENT)
        async with OutboundBench.running(resolver=dns.endpoint, dns_timeout=0.5) as bench:
            (result,) = (await bench.deliver(bench.delivery(None))).recipients
    assert (result.result, str(result.status)) == (Result.DEFERRED, "4.4.3")


async def test_a_direct_transport_dials_from_its_source_address_and_its_families(mx: Mx) -> None:
    mx.dns.add("example.org", "MX", "10 one.example.org.")
    one = await mx.host("one.example.org")
    mx.dns.add("one.example.org", "AAAA", "2001:db8::1")
    source = loopback_address()
    via = transport(TransportKind.DIRECT, source_addresses=(source,), families=("ipv4",))
    only6 = transport(TransportKind.DIRECT, "six", families=("ipv6",))
    async with mx.bench(transports=[via, only6], connect_timeout=5.0) as bench:
        (result,) = (await bench.deliver(bench.delivery(via))).recipients
        (other,) = (await bench.deliver(bench.delivery(only6))).recipients
    assert result.result is Result.DELIVERED
    assert result.local_ip == source
    assert one.messages[0].client == source
    assert other.result is Result.DEFERRED


@pytest.mark.parametrize("domain", ["example.org", "[127.0.0.7]"])
async def test_addresses_of_a_family_that_our_transport_may_not_use_are_no_bounce_SOUT_05(mx: Mx, domain: str) -> None:
    mx.dns.add("example.org", "MX", "10 one.example.org.")
    await mx.host("one.example.org")
    only6 = transport(TransportKind.DIRECT, families=("ipv6",))
    async with mx.bench(transports=[only6]) as bench:
        (result,) = (await bench.deliver(bench.delivery(only6, domain=domain))).recipients
    assert (result.result, str(result.status)) == (Result.DEFERRED, "4.3.5")
    assert "no ipv6 address" in result.text


# --- SOCKS ---------------------------------------------------------------------------------------------------------


def socks(proxy: SocksProxy, **fields: Any) -> Any:
    return transport(TransportKind.SOCKS, proxy_host=proxy.address, proxy_port=proxy.port, **fields)


@pytest.mark.parametrize("login", [False, True])
@pytest.mark.parametrize("bound", ["0.0.0.0", "::1", "exit.example.net"])
async def test_mail_goes_through_the_proxy_under_its_name_SOCK_03_SOCK_05a(mx: Mx, login: bool, bound: str) -> None:
    mx.dns.add("example.org", "MX", "10 one.example.org.")
    one = await mx.host("one.example.org")
    names = {"username": "u", "password": "p"} if login else {}
    with SocksProxy(split_writes=True, bound=bound, **names) as proxy:
        fields = {"username": "u", "password": secret_ref("proxy")} if login else {}
        via = socks(proxy, remote_hostname="exit.example.net", **fields)
        async with mx.bench(transports=[via], secrets={"proxy": b"p"}) as bench:
            (result,) = (await bench.deliver(bench.delivery(via))).recipients
        assert result.result is Result.DELIVERED, result.text
        assert one.messages[0].hello == "exit.example.net"
        assert [(r.host, r.port) for r in proxy.requests] == [(one.host, one.port)]  # the address, not the name


@pytest.mark.parametrize("code", list(Refusal))
async def test_every_refusal_of_a_proxy_is_temporary_SOCK_04(mx: Mx, code: Refusal) -> None:
    mx.dns.add("example.org", "MX", "10 one.example.org.")
    one = await mx.host("one.example.org")
    with SocksProxy() as proxy:
        proxy.refuse(one.host, code=code)
        via = socks(proxy)
        async with mx.bench(transports=[via]) as bench:
            (result,) = (await bench.deliver(bench.delivery(via))).recipients
    assert result.result is Result.DEFERRED
    assert one.connections == 0


@pytest.mark.parametrize(
    "code", [Refusal.HOST_UNREACHABLE, Refusal.GENERAL_FAILURE, Refusal.ADDRESS_TYPE_NOT_SUPPORTED]
)
async def test_what_a_proxy_cannot_reach_is_followed_by_the_hosts_next_address_SOUT_03(mx: Mx, code: Refusal) -> None:
    mx.dns.add("example.org", "MX", "10 one.example.org.")
    one = await mx.host("one.example.org")
    dead = [mx.dead("one.example.org") for _ in range(3)]
    with SocksProxy() as proxy:
        for address in dead:
            proxy.refuse(address, code=code)
        via = socks(proxy)
        async with mx.bench(transports=[via]) as bench:
            delivery = bench.delivery(via, dialled={"one.example.org": (dead[0],)})
            (result,) = (await bench.deliver(delivery)).recipients
    assert result.result is Result.DELIVERED, result.text
    assert proxy.requests[0].host == dead[0]
    assert len(one.messages) == 1


async def test_one_destination_behind_a_proxy_does_not_stop_its_transport_SOCK_04(mx: Mx) -> None:
    mx.dns.add("example.org", "MX", "10 one.example.org.")
    one = await mx.host("one.example.org")
    with SocksProxy() as proxy:
        proxy.refuse(one.host, code=Refusal.GENERAL_FAILURE)
        via = socks(proxy)
        async with mx.bench(transports=[via]) as bench:
            (result,) = (await bench.deliver(bench.delivery(via))).recipients
    assert (result.result, result.transport_failure) == (Result.DEFERRED, False)


async def test_wrong_proxy_credentials_and_a_dead_proxy_never_fall_back_to_direct_SOCK_02_SOCK_04(mx: Mx) -> None:
    mx.dns.add("example.org", "MX", "10 one.example.org.")
    one = await mx.host("one.example.org")
    with SocksProxy(username="u", password="right") as proxy:
        wrong = socks(proxy, name="wrong", username="u", password=secret_ref("proxy"))
        none = socks(proxy, name="none")
        async with mx.bench(transports=[wrong, none], secrets={"proxy": b"wrong-one"}) as bench:
            (refused,) = (await bench.deliver(bench.delivery(wrong))).recipients
            (unoffered,) = (await bench.deliver(bench.delivery(none))).recipients
            proxy.close()
            (dead,) = (await bench.deliver(bench.delivery(none))).recipients
    for result in (refused, unoffered, dead):
        assert result.result is Result.DEFERRED
        assert result.transport_failure
        assert "wrong-one" not in result.text
    assert one.connections == 0


@pytest.mark.parametrize("moment", list(Moment))
@pytest.mark.parametrize("trouble", list(Trouble))
async def test_a_misbehaving_proxy_defers_and_nothing_goes_past_it_SOCK_04(
    mx: Mx, moment: Moment, trouble: Trouble
) -> None:
    mx.dns.add("example.org", "MX", "10 one.example.org.")
    one = await mx.scripted("one.example.org")
    with SocksProxy(username="u", password="p") as proxy:
        proxy.misbehave(moment, trouble)
        via = socks(proxy, username="u", password=secret_ref("proxy"))
        async with mx.bench(
            transports=[via], secrets={"proxy": b"p"}, connect_timeout=0.5, greeting_timeout=0.5
        ) as bench:
            (result,) = (await bench.deliver(bench.delivery(via))).recipients
        assert result.result is Result.DEFERRED, result.text
        assert one.messages == []
        assert {session.address for session in one.sessions} <= {proxy.source}


# --- addresses inside our own networks --------------------------------------------------------------------------------


async def test_direct_delivery_dials_no_address_of_our_own_networks_unless_a_setting_names_it_SOUT_19(mx: Mx) -> None:
    host = await mx.host("mx.example.org")
    mx.dns.add("example.org", "MX", "10 mx.example.org.")
    for network, result in (("10.0.0.0/8", Result.DEFERRED), ("127.0.0.0/8", Result.DELIVERED)):
        async with mx.bench(private_networks=(network,)) as bench:
            for domain in ("example.org", f"[{host.host}]"):
                (found,) = (await bench.deliver(bench.delivery(None, f"a@{domain}", domain=domain))).recipients
                assert found.result is result, found.text
                if result is Result.DEFERRED:
                    assert (str(found.status), found.dialled) == ("4.3.5", False)


# --- captive mode ---------------------------------------------------------------------------------------------------


async def test_captive_mode_dials_loopback_and_captures_the_rest() -> None:
    async with Sink() as peer:
        here = transport(TransportKind.SMTP, "here", host="localhost", port=peer.port)
        away = transport(TransportKind.SMTP, "away", host="192.0.2.7", port=25)
        proxied = transport(TransportKind.SOCKS, "proxied", proxy_host="127.0.0.1", proxy_port=1)
        failing = transport(TransportKind.FAIL, "failing", code=550, text="no")
        async with OutboundBench.running(here, away, proxied, failing, captive=True) as bench:
            got = {
                via.ref.name if via else "direct": (await bench.deliver(bench.delivery(via))).recipients[0]
                for via in (here, away, proxied, failing, None)
            }
    assert {name: result.result for name, result in got.items()} == {
        "here": Result.DELIVERED,
        "away": Result.CAPTURED,
        "proxied": Result.CAPTURED,
        "failing": Result.FAILED,
        "direct": Result.CAPTURED,
    }
    assert "192.0.2.7" in got["away"].text
    assert not got["away"].dialled


async def test_captive_direct_delivery_asks_a_given_resolver_and_dials_loopback_only(mx: Mx) -> None:
    mx.dns.add("example.org", "MX", "10 one.example.org.")
    mx.dns.add("example.net", "MX", "10 far.example.net.")
    mx.dns.add("far.example.net", "A", "192.0.2.8")
    await mx.host("one.example.org")
    async with mx.bench(captive=True) as bench:
        (here,) = (await bench.deliver(bench.delivery(None))).recipients
        (far,) = (await bench.deliver(bench.delivery(None, "b@example.net", domain="example.net"))).recipients
    assert (here.result, far.result) == (Result.DELIVERED, Result.CAPTURED)


async def test_recipients_behave_as_their_names_ask_for_in_captive_mode_only_H41() -> None:
    async with Sink() as peer:
        via = transport(TransportKind.SMTP, host="127.0.0.1", port=peer.port)
        names = ["x-temperror", "x-permerror", "x452", "x554", "x600", "x1452", "ordinary"]
        addresses = [f"{name}@example.org" for name in names]
        async with OutboundBench.running(via, captive=True) as bench:
            reports = (await bench.deliver(bench.delivery(via, *addresses))).recipients
        assert [(r.result, r.reply.code if r.reply else 0) for r in reports[:4]] == [
            (Result.DEFERRED, 451),
            (Result.FAILED, 550),
            (Result.DEFERRED, 452),
            (Result.FAILED, 554),
        ]
        assert [r.result for r in reports[4:]] == [Result.DELIVERED] * 3
        async with OutboundBench.running(via) as bench:
            (result,) = (await bench.deliver(bench.delivery(via, "x-permerror@example.org"))).recipients
        assert result.result is Result.DELIVERED
