"""What attempts tell in TLS reports, from real handshakes: policies, successes, and each fault with its type."""

import datetime
import ssl
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from integration.outbound.test_required_tls import (
    ENFORCE,
    GOOD,
    HOST,
    INSIDE,
    PORT,
    ROOT,
    STRANGER,
    named,
    running,
    serving,
    trusted_roots,
)

from mailrail.core.mtasts.answer import FetchFailed, FetchTrouble
from mailrail.core.mtasts.cache import PolicyStep, PolicyVerdict
from mailrail.core.mtasts.policy import Mode, Policy
from mailrail.core.outbound.learned import Offered
from mailrail.core.revision.revision import Security, TlsMinimum, TlsProof, TransportKind
from mailrail.core.tlspolicy.demands import Demand, add_up
from mailrail.core.tlspolicy.facts import Purpose, Requirement
from mailrail.core.tlsrpt.facts import PolicyType, ReportedSession
from mailrail.core.tlsrpt.result import MX_NOT_LISTED
from mailrail_outbound.app import Outbound
from mailrail_outbound.hosts import Steps
from mailrail_outbound.ports import Delivery, RecipientReport, Result
from mailrail_outbound.tls_policy.sts import NO_POLICY, DomainSts

from testkit.chains import issue
from testkit.dns import DnsServer, Failure
from testkit.outbound import transport
from testkit.socks import SocksProxy

__all__ = ["ENFORCE", "trusted_roots"]  # a fixture is found by being here: the system trusts ROOT alone

POLICY = Policy(Mode.ENFORCE, 604_800, (HOST,))


@dataclass
class Recorder:
    """In place of the outbox."""

    told: list[ReportedSession] = field(default_factory=list)
    lately: dict[tuple[str, str], Offered] = field(default_factory=dict)

    def report(self, sessions: Iterable[ReportedSession]) -> None:
        self.told += sessions

    def learn(self, domain: str, transport: str, offered: Offered) -> None:
        pass

    @property
    def rows(self) -> list[tuple[str, str, str]]:
        """(report of, policy, result)."""
        return [
            (each.reported_to, each.policy.type.value, each.failure.result.value if each.failure else "success")
            for each in self.told
        ]


@pytest.fixture
def dns() -> Iterator[DnsServer]:
    with DnsServer() as server:
        yield server


@pytest.fixture
def sts(monkeypatch: pytest.MonkeyPatch) -> list[PolicyVerdict]:
    """Put a verdict in, and it is what MTA-STS says of example.org."""
    verdicts: list[PolicyVerdict] = []

    def policy_of(self: Outbound, delivery: Delivery) -> Steps[DomainSts]:
        return DomainSts("example.org", verdicts[0]) if verdicts else NO_POLICY
        yield

    def changed(self: Outbound, delivery: Delivery, before: DomainSts) -> Steps[bool]:
        return False
        yield

    monkeypatch.setattr(Outbound, "_policy_of", policy_of)
    monkeypatch.setattr(Outbound, "_policy_changed", changed)
    return verdicts


def use(policy: Policy) -> PolicyVerdict:
    return PolicyVerdict(PolicyStep.USE, "", policy)


async def send(dns: DnsServer, **fields: Any) -> tuple[RecipientReport, Recorder]:
    recorder = Recorder()
    async with running(dns, recorder=recorder) as bench:
        (result,) = (await bench.deliver(bench.delivery(None, **fields))).recipients
    return result, recorder


async def test_a_session_with_tls_succeeds_without_a_policy_and_one_without_fails_TRPT_06b(dns: DnsServer) -> None:
    async with serving(dns, STRANGER):
        assert (await send(dns))[1].rows == [("example.org", "no-policy-found", "success")]
    async with serving(dns, None):
        assert (await send(dns))[1].rows == [("example.org", "no-policy-found", "starttls-not-supported")]


async def test_a_policy_and_records_are_two_entries_and_two_reports_TRPT_02b(
    dns: DnsServer, sts: list[PolicyVerdict]
) -> None:
    sts.append(use(POLICY))
    dns.secure_zone("example.org")
    dns.add(f"_{PORT}._tcp.{HOST}", "TLSA", named(GOOD))
    async with serving(dns, GOOD):
        result, recorder = await send(dns)
    assert result.result is Result.DELIVERED
    assert recorder.rows == [
        ("example.org", "sts", "success"),
        ("example.org", "tlsa", "success"),
        (HOST, "tlsa", "success"),
    ]
    assert [each.policy.strings for each in recorder.told[1:]] == [(named(GOOD),)] * 2
    assert {each.policy.domain for each in recorder.told[1:]} == {HOST}


EXPIRED = issue(HOST, HOST, by=ROOT, ends=datetime.datetime(2025, 6, 1, tzinfo=datetime.UTC))
OTHER_NAME = issue("x", "other.example", by=ROOT)


def _broken() -> ssl.SSLContext:
    context = GOOD.server_context()
    context.set_ciphers("NULL:@SECLEVEL=0")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


@pytest.mark.parametrize(
    ("server", "type"),
    [
        (GOOD, "success"),
        (None, "starttls-not-supported"),
        (EXPIRED, "certificate-expired"),
        (OTHER_NAME, "certificate-host-mismatch"),
        (STRANGER, "certificate-not-trusted"),
        ("broken", "validation-failure"),
    ],
)
@pytest.mark.parametrize("mode", [Mode.ENFORCE, Mode.TESTING])
async def test_a_policy_is_told_of_each_fault_though_testing_delivers_TRPT_06b_TRPT_08b(
    dns: DnsServer, sts: list[PolicyVerdict], mode: Mode, server: Any, type: str
) -> None:
    """STS-12b, TRPT-06b, TRPT-08b: once for each attempt, whatever connections follow."""
    sts.append(use(Policy(mode, 604_800, (HOST,))))
    context = _broken() if server == "broken" else None
    async with serving(dns, None if server == "broken" else server, context=context) as peer:
        result, recorder = await send(dns)
        assert (result.result is Result.DELIVERED) is (type == "success" or mode is Mode.TESTING), result.text
        assert recorder.rows == [("example.org", "sts", type)]
        failure = recorder.told[0].failure
        if failure is not None:
            assert failure.reason_code
            assert (failure.receiving_host, failure.receiving_ip) == (HOST, peer.host)
            assert failure.receiving_helo == "peer.example"
            assert failure.sending_ip == "", "an address of ours that is not public is nobody's business"


async def test_what_keeps_a_host_from_being_dialled_is_told_TRPT_07c(dns: DnsServer, sts: list[PolicyVerdict]) -> None:
    """TRPT-07c, TRPT-08b."""
    sts.append(use(Policy(Mode.ENFORCE, 604_800, ("other.example.org",))))
    async with serving(dns, GOOD) as peer:
        _, recorder = await send(dns)
        assert recorder.rows == [("example.org", "sts", "validation-failure")]
        assert recorder.told[0].failure is not None
        assert recorder.told[0].failure.reason_code == MX_NOT_LISTED
        assert peer.sessions == []


@pytest.mark.parametrize(
    ("records", "floor", "type"),
    [
        (named(STRANGER), False, "validation-failure"),
        (named(GOOD, 1), False, "tlsa-invalid"),
        ("SERVFAIL", False, "dnssec-invalid"),
        ("", True, "dane-required"),
    ],
    ids=["mismatch", "unusable", "unanswered", "none"],
)
async def test_records_are_told_of_each_fault_TRPT_07c(dns: DnsServer, records: str, floor: bool, type: str) -> None:
    """TRPT-07c."""
    dns.secure_zone("example.org")
    if records == "SERVFAIL":
        dns.fail(f"_{PORT}._tcp.{HOST}", Failure.SERVFAIL)
    elif records:
        dns.add(f"_{PORT}._tcp.{HOST}", "TLSA", records)
    dane = add_up([Demand("the gateway", Security(TlsMinimum.AUTHENTICATED, (TlsProof.DANE,)))])
    async with serving(dns, GOOD):
        _, recorder = await send(dns, **({"demanded": dane} if floor else {}))
    tlsa = [each for each in recorder.told if each.policy.type is PolicyType.TLSA]
    assert [(each.reported_to, each.failure.result.value) for each in tlsa if each.failure] == [
        ("example.org", type),
        (HOST, type),
    ]


@pytest.mark.parametrize("trouble", list(FetchTrouble))
async def test_a_policy_that_cannot_be_had_is_told_TRPT_07c(
    dns: DnsServer, sts: list[PolicyVerdict], trouble: FetchTrouble
) -> None:
    """TRPT-07c, STS-15b: and the mail goes as without it."""
    sts.append(PolicyVerdict(PolicyStep.WITHOUT, "", failed=FetchFailed(trouble, "because")))
    async with serving(dns, STRANGER):
        result, recorder = await send(dns)
    assert result.result is Result.DELIVERED
    assert result.tls is not None
    assert not result.tls.verified
    assert recorder.rows == [
        ("example.org", "sts", trouble.value),
        ("example.org", "no-policy-found", "success"),
    ]


@pytest.mark.parametrize(
    ("name", "told"),
    [("[192.0.2.25]", "[192.0.2.25]"), ("x" * 300, ""), ('"quoted', ""), ("mx_1.Example.ORG", "mx_1.Example.ORG")],
)
async def test_what_a_server_calls_itself_is_told_if_it_can_be_a_name_TRPT_06b(
    dns: DnsServer, name: str, told: str
) -> None:
    async with serving(dns, None, replies={"EHLO": f"250 {name} at your service"}):
        _, recorder = await send(dns)
    (session,) = recorder.told
    assert session.failure is not None
    assert session.failure.receiving_helo == told


@pytest.mark.parametrize(
    ("exits", "told"),
    [
        (("198.51.100.25",), "198.51.100.25"),
        (("198.51.100.25", "2001:db8::25"), "198.51.100.25"),
        (("198.51.100.25", "198.51.100.26"), ""),
        (("2001:db8::25",), ""),
    ],
)
async def test_behind_a_proxy_the_sending_address_is_the_configured_exit_or_left_out_SOCK_06(
    dns: DnsServer, exits: tuple[str, ...], told: str
) -> None:
    recorder = Recorder()
    with SocksProxy() as proxy:
        via = transport(TransportKind.SOCKS, proxy_host=proxy.address, proxy_port=proxy.port, remote_ips=exits)
        async with serving(dns, None) as peer, running(dns, via, recorder=recorder) as bench:
            await bench.deliver(bench.delivery(via))
            assert len(peer.messages) == 1
    (session,) = recorder.told
    assert session.failure is not None
    assert session.failure.sending_ip == told


async def test_a_host_that_is_down_or_busy_is_no_matter_of_tls_TRPT_09b(
    dns: DnsServer, sts: list[PolicyVerdict]
) -> None:
    sts.append(use(POLICY))
    async with serving(dns, GOOD, replies={"GREETING": "421 busy"}) as peer:
        assert (await send(dns))[1].told == []
        assert peer.sessions
    assert (await send(dns))[1].told == []  # nobody is there any more


async def test_a_report_on_tls_goes_in_spite_of_it_and_is_told_of_in_none_TRPT_15b(
    dns: DnsServer, sts: list[PolicyVerdict]
) -> None:
    sts.append(use(POLICY))
    async with serving(dns, STRANGER) as peer:
        result, recorder = await send(dns, purpose=Purpose.TLS_REPORT)
        assert (result.result, len(peer.messages)) == (Result.DELIVERED, 1)
        assert recorder.told == []


async def test_mail_with_tls_required_no_is_told_as_what_the_policy_saw(
    dns: DnsServer, sts: list[PolicyVerdict]
) -> None:
    sts.append(use(POLICY))
    async with serving(dns, STRANGER, inside=INSIDE):
        result, recorder = await send(dns, requirement=Requirement.NO)
    assert result.result is Result.DELIVERED
    assert recorder.rows == [("example.org", "sts", "certificate-not-trusted")]


async def test_a_certificate_that_the_policy_likes_does_not_make_up_for_records_that_fail_STS_21b(
    dns: DnsServer, sts: list[PolicyVerdict]
) -> None:
    sts.append(use(POLICY))
    dns.secure_zone("example.org")
    dns.add(f"_{PORT}._tcp.{HOST}", "TLSA", named(STRANGER))
    async with serving(dns, GOOD) as peer:
        result, recorder = await send(dns)
        assert (result.result, str(result.status)) == (Result.DEFERRED, "4.7.5")
        assert peer.messages == []
    assert recorder.rows == [
        ("example.org", "sts", "success"),
        ("example.org", "tlsa", "validation-failure"),
        (HOST, "tlsa", "validation-failure"),
    ]
