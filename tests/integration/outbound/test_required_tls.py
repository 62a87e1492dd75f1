"""Mail that requires TLS, or says that it does not, by MX (RFC 8689 4.2): which host gets it, and over what.

The DNS is a small server whose word on DNSSEC is believed; what MTA-STS says of the domain is put in (`StsFacts`).
"""

import contextlib
import datetime
import hashlib
import ssl
from collections.abc import AsyncIterator, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mailrail.core.outbound.envelope import Envelope
from mailrail.core.revision.revision import Security, TlsMinimum, TlsMode, TlsProof, Transport, TransportKind
from mailrail.core.tlspolicy.decision import Ignored, Requirement
from mailrail.core.tlspolicy.demands import Demand, add_up
from mailrail.core.tlspolicy.facts import NO_STS, StsFacts, StsPolicy
from mailrail_outbound import metrics
from mailrail_outbound.dialling import Dialler, Host
from mailrail_outbound.hops import DialPlan, NextHop
from mailrail_outbound.ports import Delivery, RecipientReport, Result
from mailrail_outbound.tls import client_context

from testkit.ca import Authority, speaking_only
from testkit.chains import Issued, issue
from testkit.dns import DnsServer, Failure
from testkit.outbound import OutboundBench, transport
from testkit.ports import free_port, loopback_address
from testkit.smtp_peer import SmtpPeer
from testkit.socks import SocksProxy

HOST, OTHER = "mx.example.org", "mx2.example.org"
ROOT = issue("Public", ca=True)
"""What the system trusts, here."""
GOOD = issue(HOST, HOST, by=ROOT)
OTHER_NAME = issue("x", "other.example", by=ROOT)
COMMON_NAME = issue(HOST, "other.example", by=ROOT)
STRANGER = issue("x", "other.example")
INSIDE = ("PIPELINING", "DSN", "REQUIRETLS")


def named(server: Issued, usage: int = 3) -> str:
    return f"{usage} 1 1 {hashlib.sha256(server.key_info).hexdigest()}"


@pytest.fixture(autouse=True)
def trusted_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The system trusts ROOT alone."""
    roots = tmp_path / "roots.pem"
    roots.write_bytes(ROOT.pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(roots))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))
    client_context.cache_clear()
    yield
    client_context.cache_clear()


@pytest.fixture
def dns() -> Iterator[DnsServer]:
    with DnsServer() as server:
        yield server


class Sts:
    """What MTA-STS says of the hosts."""

    policy = NO_STS
    unlisted: Collection[str] = ()
    """Hosts that the policy does not list."""


@pytest.fixture
def sts(monkeypatch: pytest.MonkeyPatch) -> Sts:
    said = Sts()
    plan_for = Dialler.plan_for

    def with_facts(dialler: Dialler, hop: NextHop, delivery: Delivery, host: Host) -> DialPlan:
        policy = replace(said.policy, listed=False) if host.name in said.unlisted else said.policy
        return plan_for(dialler, hop, delivery, host._replace(sts=policy))

    monkeypatch.setattr(Dialler, "plan_for", with_facts)
    return said


PORT = free_port(loopback_address())


@contextlib.asynccontextmanager
async def serving(
    dns: DnsServer,
    server: Issued | None,
    *,
    host: str = HOST,
    preference: int = 10,
    inside: tuple[str, ...] = INSIDE,
    context: ssl.SSLContext | None = None,
    **script: Any,
) -> AsyncIterator[SmtpPeer]:
    """An MX host of example.org with this certificate; None: without STARTTLS."""
    if context is None and server is not None:
        context = server.server_context()
    address = loopback_address()
    async with SmtpPeer(host=address, port=PORT, tls=context, extensions_after_tls=inside, **script) as peer:
        dns.add("example.org", "MX", f"{preference} {host}.")
        dns.add(host, "A", peer.host)
        yield peer


def running(
    dns: DnsServer, *transports: Transport, **settings: Any
) -> contextlib.AbstractAsyncContextManager[OutboundBench]:
    settings = {"resolver_trust_ad": True, "direct_port": PORT} | settings
    return OutboundBench.running(*transports, resolver=dns.endpoint, **settings)


async def send(dns: DnsServer, requirement: Requirement = Requirement.REQUIRED, **fields: Any) -> RecipientReport:
    async with running(dns) as bench:
        delivery = bench.delivery(None, requirement=requirement, envelope=Envelope("a@sender.example"), **fields)
        return (await bench.deliver(delivery)).recipients[0]


ENFORCE = StsFacts(StsPolicy.ENFORCE, True, "example.org")
TESTING = StsFacts(StsPolicy.TESTING, True, "example.org")


@pytest.mark.parametrize(
    ("secure", "tlsa", "policy", "server", "status"),
    [
        (True, "", NO_STS, GOOD, ""),
        (True, "", NO_STS, OTHER_NAME, "5.7.10"),
        (True, "", NO_STS, COMMON_NAME, "5.7.10"),
        (True, "", NO_STS, STRANGER, "5.7.10"),
        (True, "", NO_STS, None, "5.7.10"),
        (True, named(STRANGER), NO_STS, STRANGER, ""),
        (True, named(GOOD), NO_STS, STRANGER, "5.7.10"),
        (True, named(STRANGER), NO_STS, GOOD, "5.7.10"),
        (True, named(STRANGER), NO_STS, None, "5.7.10"),
        (True, named(STRANGER, 1), NO_STS, STRANGER, "5.7.10"),
        (True, named(STRANGER, 1), NO_STS, GOOD, ""),
        (False, "", ENFORCE, GOOD, ""),
        (False, "", ENFORCE, OTHER_NAME, "5.7.10"),
        (False, "", ENFORCE, COMMON_NAME, "5.7.10"),
        (False, "", ENFORCE, None, "5.7.10"),
        (True, named(STRANGER), ENFORCE, STRANGER, "5.7.10"),
        (True, named(GOOD), ENFORCE, GOOD, ""),
    ],
    ids=[
        "secure MX, PKIX",
        "secure MX, other name",
        "secure MX, common name",
        "secure MX, stranger",
        "secure MX, no TLS",
        "TLSA matches",
        "TLSA of another",
        "TLSA of another, PKIX",
        "TLSA, no TLS",
        "unusable TLSA, stranger",
        "unusable TLSA, PKIX",
        "policy, PKIX",
        "policy, other name",
        "policy, common name",
        "policy, no TLS",
        "TLSA matches, policy not met",
        "TLSA matches, policy met",
    ],
)
async def test_a_required_message_goes_by_pkix_or_dane_and_by_nothing_less_RTLS_13b(
    dns: DnsServer,
    sts: Sts,
    secure: bool,
    tlsa: str,
    policy: StsFacts,
    server: Issued | None,
    status: str,
) -> None:
    sts.policy = policy
    if secure:
        dns.secure_zone("example.org")
    if tlsa:
        dns.add(f"_{PORT}._tcp.{HOST}", "TLSA", tlsa)
    async with serving(dns, server) as peer:
        result = await send(dns)
        if status:
            assert (result.result, str(result.status)) == (Result.FAILED, status), result.text
            assert not any(line.startswith("MAIL") for line in peer.commands)
        else:
            assert result.result is Result.DELIVERED, result.text
            assert peer.messages[0].mail.endswith(" REQUIRETLS")
            assert result.tls is not None
            assert result.tls.verified


@pytest.mark.parametrize("policy", [NO_STS, TESTING], ids=["none", "testing"])
async def test_a_host_that_nothing_proves_to_be_the_domains_is_not_even_dialled_RTLS_11b_RTLS_12b(
    dns: DnsServer, sts: Sts, policy: StsFacts
) -> None:
    sts.policy = policy
    async with serving(dns, GOOD) as peer:
        result = await send(dns)
        assert (result.result, str(result.status)) == (Result.FAILED, "5.7.30")
        assert peer.sessions == []
        assert (await send(dns, Requirement.DEFAULT)).result is Result.DELIVERED


async def test_the_next_mx_host_that_conforms_gets_the_message_RTLS_15b(dns: DnsServer) -> None:
    dns.secure_zone("example.org")
    async with (
        serving(dns, STRANGER) as bad,
        serving(dns, issue(OTHER, OTHER, by=ROOT), host=OTHER, preference=20, inside=("DSN",)) as lacking,
        serving(dns, issue("mx3", "mx3.example.org", by=ROOT), host="mx3.example.org", preference=30) as good,
    ):
        result = await send(dns)
        assert result.result is Result.DELIVERED, result.text
        assert len(good.messages) == 1
        for peer in (bad, lacking):
            assert len(peer.sessions) == 1
            assert not any(line.startswith("MAIL") for line in peer.commands)


async def test_a_host_without_requiretls_hears_no_mail_and_then_quit_RTLS_15b(dns: DnsServer) -> None:
    """Case rtls-01."""
    dns.secure_zone("example.org")
    second = issue(OTHER, OTHER, by=ROOT)
    async with (
        serving(dns, GOOD, inside=("SIZE",)) as lacking,
        serving(dns, second, host=OTHER, preference=20, inside=("SIZE", "REQUIRETLS")) as good,
        running(dns, idle_seconds=0.1) as bench,
    ):
        delivery = bench.delivery(None, requirement=Requirement.REQUIRED, envelope=Envelope("a@ours.example"))
        await bench.deliver(delivery)
        (message,) = good.messages
        assert message.mail.startswith("MAIL FROM:<a@ours.example> SIZE=")
        assert message.mail.endswith(" REQUIRETLS")
        await lacking.until(lambda peer: peer.sessions[0].closed)
        assert [line.split()[0] for line in lacking.commands] == ["EHLO", "STARTTLS", "EHLO", "QUIT"]


async def test_hosts_outside_the_policy_and_with_bad_tls_are_passed_over_RTLS_15b(dns: DnsServer, sts: Sts) -> None:
    """Case rtls-06."""
    sts.policy = ENFORCE
    sts.unlisted = {HOST}
    expired = issue(OTHER, OTHER, by=ROOT, ends=datetime.datetime(2025, 6, 1, tzinfo=datetime.UTC))
    third = issue("mx3", "mx3.example.org", by=ROOT)
    async with (
        serving(dns, GOOD) as outside,
        serving(dns, expired, host=OTHER, preference=20) as bad,
        serving(dns, third, host="mx3.example.org", preference=30) as good,
    ):
        result = await send(dns)
        assert (result.result, result.host) == (Result.DELIVERED, "mx3.example.org")
        assert outside.sessions == []
        assert not any(line.startswith("MAIL") for line in bad.commands)
        assert len(good.messages) == 1


@pytest.mark.parametrize(
    ("server", "inside", "status"),
    [(None, INSIDE, "5.7.10"), (GOOD, ("DSN",), "5.7.30")],
    ids=["no STARTTLS", "no REQUIRETLS"],
)
async def test_where_no_host_will_do_nothing_is_sent_and_the_message_fails_at_once_RTLS_16b(
    dns: DnsServer, sts: Sts, server: Issued | None, inside: tuple[str, ...], status: str
) -> None:
    """Case rtls-03."""
    sts.policy = ENFORCE
    other = issue(OTHER, OTHER, by=ROOT) if server is not None else None
    async with (
        serving(dns, server, inside=inside) as one,
        serving(dns, other, host=OTHER, preference=20, inside=inside) as two,
    ):
        result = await send(dns)
        assert (result.result, str(result.status)) == (Result.FAILED, status), result.text
        for peer in (one, two):
            assert len(peer.sessions) == 1
            assert not any(line.startswith(("MAIL", "DATA", "BDAT")) for line in peer.commands)


@pytest.mark.parametrize("later", ["dead", "421 4.3.2 busy", "450 4.2.1 later"])
async def test_a_host_that_could_not_be_asked_may_be_the_one_that_will_do_RTLS_16b(
    dns: DnsServer, sts: Sts, later: str
) -> None:
    sts.policy = ENFORCE
    second = issue(OTHER, OTHER, by=ROOT)
    replies = {"GREETING" if later.startswith("421") else "MAIL": later}
    async with contextlib.AsyncExitStack() as stack:
        lacking = await stack.enter_async_context(serving(dns, GOOD, inside=("DSN",)))
        if later == "dead":
            dns.add("example.org", "MX", f"20 {OTHER}.")
            dns.add(OTHER, "A", loopback_address())
        else:
            await stack.enter_async_context(serving(dns, second, host=OTHER, preference=20, replies=replies))
        result = await send(dns)
        assert result.result is Result.DEFERRED, result.text
        assert not any(line.startswith("MAIL") for line in lacking.commands)


@pytest.mark.parametrize("proven", [True, False])
async def test_a_socks_proxy_changes_nothing_RTLS_25b(dns: DnsServer, sts: Sts, proven: bool) -> None:
    sts.policy = ENFORCE if proven else NO_STS
    with SocksProxy() as proxy:
        via = transport(TransportKind.SOCKS, proxy_host=proxy.address, proxy_port=proxy.port)
        async with serving(dns, GOOD) as peer, running(dns, via) as bench:
            (result,) = (await bench.deliver(bench.delivery(via, requirement=Requirement.REQUIRED))).recipients
            if proven:
                assert result.result is Result.DELIVERED, result.text
                assert peer.messages[0].mail.endswith(" REQUIRETLS")
            else:
                assert (result.result, str(result.status)) == (Result.FAILED, "5.7.30")
                assert peer.sessions == []


async def test_a_certificate_for_a_name_from_an_unproven_mx_record_is_never_told_as_verified_DANE_22(
    dns: DnsServer,
) -> None:
    """DANE-22: not even on the connection that mail to a domain with a proven MX record goes by."""
    dns.secure_zone("signed.example")
    pkix = add_up([Demand("the gateway", Security(TlsMinimum.AUTHENTICATED, (TlsProof.PKIX,)))])
    async with serving(dns, GOOD) as peer, running(dns) as bench:
        dns.add("signed.example", "MX", f"10 {HOST}.")
        for domain, verified in (("example.org", False), ("signed.example", True), ("example.org", False)):
            delivery = bench.delivery(None, f"b@{domain}", domain=domain, demanded=pkix)
            (result,) = (await bench.deliver(delivery)).recipients
            assert result.result is Result.DELIVERED, result.text
            assert result.host == HOST
            assert result.tls is not None
            assert (result.tls.proof, result.tls.verified) == (TlsProof.PKIX, verified)
        assert (len(peer.sessions), len(peer.messages)) == (1, 3)


@pytest.mark.parametrize("server", [STRANGER, GOOD], ids=["matches", "does not match"])
async def test_tlsa_records_are_ours_to_look_up_behind_a_proxy_and_count_as_without_SOCK_05b(
    dns: DnsServer, server: Issued
) -> None:
    """SOCK-05b: the proxy is told an address; SNI is the host's name."""
    dns.secure_zone("example.org")
    dns.add(f"_{PORT}._tcp.{HOST}", "TLSA", named(STRANGER))
    context, asked = server.server_context(), list[str | None]()
    context.sni_callback = lambda tls, name, made: asked.append(name)
    with SocksProxy() as proxy:
        via = transport(TransportKind.SOCKS, proxy_host=proxy.address, proxy_port=proxy.port)
        async with serving(dns, server, context=context) as peer, running(dns, via) as bench:
            (result,) = (await bench.deliver(bench.delivery(via))).recipients
            assert result.result is (Result.DELIVERED if server is STRANGER else Result.DEFERRED), result.text
            assert len(peer.messages) == (1 if server is STRANGER else 0)
            assert {(each.host, each.address_type) for each in proxy.requests} == {(peer.host, "ipv4")}
    assert set(asked) == {HOST}
    assert dns.asked(f"_{PORT}._tcp.{HOST}", "TLSA") == 1


def _passed_over() -> dict[str, float]:
    """What was counted, by demand."""
    return {what.replace("-", "_"): metrics.PASSED_OVER.of(what.replace("-", "_")).number for what in Ignored}


@pytest.mark.parametrize(
    ("tlsa", "mode", "status"),
    [
        (named(STRANGER), TlsMode.OPPORTUNISTIC, ""),
        (named(STRANGER), TlsMode.REQUIRED, ""),
        (named(STRANGER), TlsMode.NONE, "5.7.10"),
        (named(STRANGER), TlsMode.VERIFIED, "4.3.5"),  # both would have to be, and PKIX is what the transport says
        (named(GOOD), TlsMode.OPPORTUNISTIC, "4.3.5"),  # TLS of our own hop is our trouble
        ("", TlsMode.OPPORTUNISTIC, "5.7.10"),
        ("SERVFAIL", TlsMode.OPPORTUNISTIC, "4.7.5"),
    ],
    ids=["opportunistic", "required", "disabled", "verified", "of another", "none", "unanswered"],
)
async def test_tlsa_records_prove_a_smarthost_that_its_transport_does_not_verify_RTLS_25c(
    dns: DnsServer, tlsa: str, mode: TlsMode, status: str
) -> None:
    dns.secure_zone("example.org")
    if tlsa == "SERVFAIL":
        dns.fail(f"_{PORT}._tcp.{HOST}", Failure.SERVFAIL)
    elif tlsa:
        dns.add(f"_{PORT}._tcp.{HOST}", "TLSA", tlsa)
    async with serving(dns, STRANGER) as peer:
        via = transport(TransportKind.SMTP, host=HOST, port=PORT, tls=mode)
        async with running(dns, via) as bench:
            (other,) = (await bench.deliver(bench.delivery(via))).recipients
            assert (other.result is Result.DELIVERED) is (mode is not TlsMode.VERIFIED), other.text
            assert dns.asked(f"_{PORT}._tcp.{HOST}") == 0
            (result,) = (await bench.deliver(bench.delivery(via, requirement=Requirement.REQUIRED))).recipients
        if status:
            assert str(result.status) == status, result.text
            assert not any(line.endswith(" REQUIRETLS") for line in peer.commands)
        else:
            assert result.result is Result.DELIVERED, result.text
            assert peer.messages[-1].mail.endswith(" REQUIRETLS")


@pytest.mark.parametrize(
    ("tlsa", "delivered"),
    [(named(STRANGER), True), (named(GOOD), False), ("", False)],
    ids=["matches", "of another", "none"],
)
async def test_a_floor_that_allows_dane_alone_is_met_by_a_smarthost_with_tlsa_records_RTLS_25c(
    dns: DnsServer, tlsa: str, delivered: bool
) -> None:
    dns.secure_zone("example.org")
    if tlsa:
        dns.add(f"_{PORT}._tcp.{HOST}", "TLSA", tlsa)
    floor = add_up([Demand("MailGateway default/edge", Security(TlsMinimum.AUTHENTICATED, (TlsProof.DANE,)))])
    async with serving(dns, STRANGER) as peer:
        via = transport(TransportKind.SMTP, host=HOST, port=PORT)
        async with running(dns, via) as bench:
            (result,) = (await bench.deliver(bench.delivery(via, demanded=floor))).recipients
        assert result.result is (Result.DELIVERED if delivered else Result.DEFERRED), result.text
        assert len(peer.messages) == delivered


@pytest.mark.parametrize(
    ("tlsa", "asked"),
    [(named(STRANGER), True), (named(GOOD), False), ("", False)],
    ids=["matches", "of another", "none"],
)
async def test_a_recipient_is_verified_only_at_a_host_that_tlsa_records_prove_where_dane_alone_may_RTLS_25c(
    dns: DnsServer, tlsa: str, asked: bool
) -> None:
    """Else no mail for it would ever be accepted, though all of it could be delivered."""
    dns.secure_zone("example.org")
    if tlsa:
        dns.add(f"_{PORT}._tcp.{HOST}", "TLSA", tlsa)
    security = Security(TlsMinimum.AUTHENTICATED, (TlsProof.DANE,))
    async with serving(dns, STRANGER) as peer:
        via = transport(TransportKind.SMTP, host=HOST, port=PORT, security=security)
        async with running(dns, via) as bench:
            answer = await bench.app.verify("b@example.org", via.ref)
        assert answer.remote is asked, answer.detail
        assert any(session.rcpts for session in peer.sessions) is asked


def _broken() -> ssl.SSLContext:
    context = GOOD.server_context()
    context.set_ciphers("NULL:@SECLEVEL=0")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


@pytest.mark.parametrize(
    ("tlsa", "policy", "context", "tls", "passed_over"),
    [
        (named(GOOD), NO_STS, STRANGER.server_context(), True, "tlsa"),
        ("", ENFORCE, STRANGER.server_context(), True, "certificate"),
        ("", StsFacts(StsPolicy.ENFORCE, False, "example.org"), GOOD.server_context(), True, "sts_mx"),
        ("", StsFacts(StsPolicy.UNKNOWN, False, "example.org"), GOOD.server_context(), True, "sts_unanswered"),
        ("SERVFAIL", NO_STS, GOOD.server_context(), True, "tlsa_unanswered"),
        (named(GOOD), ENFORCE, None, False, "no_tls"),
        (named(GOOD), ENFORCE, _broken(), False, "no_tls"),
        (named(GOOD), ENFORCE, GOOD.server_context(), True, ""),
    ],
    ids=[
        "bad TLSA",
        "bad certificate",
        "not in the policy",
        "policy not known",
        "TLSA not known",
        "no STARTTLS",
        "broken TLS",
        "all well",
    ],
)
async def test_mail_that_says_no_goes_whatever_policies_say_and_over_tls_where_that_works_RTLS_22b(
    dns: DnsServer, sts: Sts, tlsa: str, policy: StsFacts, context: ssl.SSLContext | None, tls: bool, passed_over: str
) -> None:
    sts.policy = policy
    dns.secure_zone("example.org")
    if tlsa == "SERVFAIL":
        dns.fail(f"_{PORT}._tcp.{HOST}", Failure.SERVFAIL)
    elif tlsa:
        dns.add(f"_{PORT}._tcp.{HOST}", "TLSA", tlsa)
    async with serving(dns, None, context=context) as peer:
        well = context is not None and tlsa == named(GOOD) and tls and policy is ENFORCE
        before = _passed_over()
        assert ((await send(dns, Requirement.DEFAULT)).result is Result.DELIVERED) is well
        assert _passed_over() == before
        result = await send(dns, Requirement.NO)
        assert result.result is Result.DELIVERED, result.text
        assert bool(peer.messages[-1].session.tls) is tls
        assert "REQUIRETLS" not in peer.messages[-1].mail
        assert len(peer.messages) == 1 + well
        risen = {demand: count - before[demand] for demand, count in _passed_over().items() if count != before[demand]}
        assert risen == ({passed_over: 1} if passed_over else {})


@pytest.mark.parametrize(
    ("server", "inside", "delivered"),
    [(GOOD, INSIDE, True), (GOOD, ("DSN",), False), (OTHER_NAME, INSIDE, False), (COMMON_NAME, INSIDE, False)],
    ids=["well", "no keyword", "other name", "common name"],
)
async def test_a_smarthost_is_verified_by_its_configured_name_and_must_know_the_keyword_RTLS_25b(
    dns: DnsServer, server: Issued, inside: tuple[str, ...], delivered: bool
) -> None:
    async with serving(dns, server, inside=inside) as peer:
        via = transport(TransportKind.SMTP, host=HOST, port=PORT, tls=TlsMode.VERIFIED)
        async with running(dns, via) as bench:
            (result,) = (await bench.deliver(bench.delivery(via, requirement=Requirement.REQUIRED))).recipients
        assert (result.result is Result.DELIVERED) is delivered, result.text
        assert [line.endswith(" REQUIRETLS") for line in peer.commands if line.startswith("MAIL")] == [True] * delivered


async def test_an_mx_host_that_speaks_only_old_tls_gets_no_mail_under_a_policy_STS_22(dns: DnsServer, sts: Sts) -> None:
    sts.policy = ENFORCE
    authority = Authority()
    old = speaking_only(authority.issue(HOST).server_context(), ssl.TLSVersion.TLSv1_1)
    async with serving(dns, None, context=old) as peer:
        result = await send(dns, Requirement.DEFAULT)
        assert (result.result, str(result.status)) == (Result.DEFERRED, "4.7.5")
        assert peer.messages == []
        assert len(peer.sessions) == 1


DANE, MTA_STS, PKIX = TlsProof


@pytest.mark.parametrize(
    ("proofs", "secure", "tlsa", "policy", "server", "dialled", "well"),
    [
        ((DANE,), True, named(STRANGER), NO_STS, STRANGER, True, True),
        ((DANE,), True, named(GOOD), NO_STS, STRANGER, True, False),
        ((DANE,), False, named(STRANGER), NO_STS, STRANGER, False, False),
        ((DANE,), True, "", ENFORCE, GOOD, False, False),
        ((DANE,), True, named(STRANGER, 1), NO_STS, STRANGER, False, False),
        ((MTA_STS,), False, "", ENFORCE, GOOD, True, True),
        ((MTA_STS,), False, "", TESTING, GOOD, False, False),
        ((PKIX,), False, "", NO_STS, GOOD, True, True),
        ((PKIX,), False, "", NO_STS, STRANGER, True, False),
        ((PKIX,), True, named(STRANGER), NO_STS, STRANGER, True, False),
        ((DANE, PKIX), True, named(STRANGER), NO_STS, STRANGER, True, True),
        ((DANE, PKIX), False, "", NO_STS, GOOD, True, True),
    ],
    ids=[
        "DANE",
        "DANE, other certificate",
        "DANE, insecure MX",
        "DANE, no TLSA",
        "DANE, TLSA unusable",
        "MTA-STS",
        "MTA-STS, testing",
        "PKIX",
        "PKIX, stranger",
        "PKIX, and the domain demands DANE",
        "DANE or PKIX, by DANE",
        "DANE or PKIX, by PKIX",
    ],
)
async def test_one_of_the_proofs_that_a_floor_allows_is_enough_and_no_other_DANE_20b(
    dns: DnsServer,
    sts: Sts,
    proofs: tuple[TlsProof, ...],
    secure: bool,
    tlsa: str,
    policy: StsFacts,
    server: Issued,
    dialled: bool,
    well: bool,
) -> None:
    sts.policy = policy
    if secure:
        dns.secure_zone("example.org")
    if tlsa:
        dns.add(f"_{PORT}._tcp.{HOST}", "TLSA", tlsa)
    floor = add_up([Demand("the gateway", Security(TlsMinimum.AUTHENTICATED, proofs))])
    async with serving(dns, server) as peer:
        result = await send(dns, Requirement.DEFAULT, demanded=floor)
        assert (result.result, str(result.status)) == (
            (Result.DELIVERED, "2.0.0") if well else (Result.DEFERRED, "4.7.5")
        ), result.text
        assert bool(peer.sessions) is dialled
        assert bool(peer.messages) is well
