"""Certificates of servers by PKIX: which names count, what a failure is called, what is verified just for reports."""

import ssl
from collections.abc import Callable
from typing import Any

import pytest

from mailrail.core.revision.revision import TlsMode, Transport, TransportKind
from mailrail.core.sasl.end_point import end_point_binding
from mailrail.core.smtp.answer import Answer
from mailrail.core.tlspolicy.decision import Requirement
from mailrail.core.tlspolicy.facts import StsFacts, StsPolicy
from mailrail.core.tlsrpt.result_type import ResultType
from mailrail_outbound.dialling import Dialler, Host
from mailrail_outbound.hops import DialPlan, NextHop
from mailrail_outbound.ports import Delivery, RecipientReport, Result
from mailrail_outbound.smtp import ClientConnection
from mailrail_outbound.tls import TlsStream, client_context, fault_of

from testkit.ca import Authority, Certificate
from testkit.chains import issue
from testkit.outbound import OutboundBench, secret_ref, transport
from testkit.smtp_peer import Close, Hang, SmtpPeer

HOST = "localhost"
AUTHORITY = Authority()
SECRETS = {"ca": AUTHORITY.pem}


def via_peer(peer: SmtpPeer, **fields: Any) -> Transport:
    return transport(TransportKind.SMTP, host=HOST, port=peer.port, ca=secret_ref("ca"), **fields)


async def send(bench: OutboundBench, via: Transport, **fields: Any) -> RecipientReport:
    return (await bench.deliver(bench.delivery(via, **fields))).recipients[0]


@pytest.fixture
def failures(monkeypatch: pytest.MonkeyPatch) -> list[Answer]:
    """Why connections gave no session."""
    told: list[Answer] = []
    tell_failed = ClientConnection._tell_failed

    def noted(connection: ClientConnection, answer: Answer) -> None:
        told.append(answer)
        tell_failed(connection, answer)

    monkeypatch.setattr(ClientConnection, "_tell_failed", noted)
    return told


@pytest.fixture
def policy(monkeypatch: pytest.MonkeyPatch) -> Callable[[StsPolicy], None]:
    """Puts an MTA-STS policy that lists the host in force."""
    plan_for = Dialler.plan_for

    def put(policy: StsPolicy) -> None:
        def with_facts(dialler: Dialler, hop: NextHop, delivery: Delivery, host: Host) -> DialPlan:
            return plan_for(dialler, hop, delivery, host._replace(sts=StsFacts(policy, True, "example.org")))

        monkeypatch.setattr(Dialler, "plan_for", with_facts)

    return put


@pytest.mark.parametrize(
    ("certificate", "good"),
    [
        (AUTHORITY.issue(HOST), True),
        (AUTHORITY.issue("other.example", HOST), True),
        (AUTHORITY.issue("other.example", common_name=HOST), False),
        (AUTHORITY.issue("127.0.0.1", common_name=HOST), False),
    ],
    ids=["its name", "among others", "another", "an address"],
)
async def test_a_dns_id_names_the_host_and_a_common_name_never_does_STS_11(
    certificate: Certificate, good: bool, policy: Callable[[StsPolicy], None]
) -> None:
    asked: list[str | None] = []
    context = certificate.server_context()
    context.sni_callback = lambda connection, name, context: asked.append(name)
    policy(StsPolicy.ENFORCE)
    async with SmtpPeer(tls=context) as peer:
        via = via_peer(peer)
        async with OutboundBench.running(via, secrets=SECRETS) as bench:
            result = await send(bench, via)
        assert (result.result is Result.DELIVERED) is good, result.text
        assert bool(peer.messages) is good
    assert asked == [HOST]


def _closing() -> SmtpPeer:
    return SmtpPeer(extensions=["STARTTLS"], replies={"STARTTLS": Close("220 go")})


def _tls(certificate: Certificate) -> SmtpPeer:
    return SmtpPeer(tls=certificate.server_context())


@pytest.mark.parametrize(
    ("serve", "type", "reason"),
    [
        (SmtpPeer, ResultType.STARTTLS_NOT_SUPPORTED, "not-offered"),
        (
            lambda: SmtpPeer(extensions=["STARTTLS"], replies={"STARTTLS": "454 4.7.0 not now"}),
            ResultType.STARTTLS_NOT_SUPPORTED,
            "refused",
        ),
        (lambda: _tls(AUTHORITY.issue_expired(HOST)), ResultType.CERTIFICATE_EXPIRED, "certificate-expired"),
        (lambda: _tls(AUTHORITY.issue("other.example")), ResultType.CERTIFICATE_HOST_MISMATCH, "host-mismatch"),
        (
            lambda: _tls(Authority().issue(HOST)),
            ResultType.CERTIFICATE_NOT_TRUSTED,
            "unable-to-get-local-issuer-certificate",
        ),
        (
            lambda: SmtpPeer(tls=issue(HOST, HOST).server_context()),
            ResultType.CERTIFICATE_NOT_TRUSTED,
            "self-signed-certificate",
        ),
        (
            lambda: _tls(AUTHORITY.issue_premature(HOST)),
            ResultType.VALIDATION_FAILURE,
            "certificate-not-yet-valid",
        ),
        (_closing, ResultType.VALIDATION_FAILURE, "handshake-closed"),
        (
            lambda: SmtpPeer(extensions=["STARTTLS"], replies={"STARTTLS": Hang("220 go")}),
            ResultType.VALIDATION_FAILURE,
            "handshake-timeout",
        ),
    ],
    ids=["none", "refused", "expired", "other", "stranger", "self-signed", "premature", "closes", "hangs"],
)
async def test_each_failure_of_tls_has_its_type_in_a_report_and_says_why_TRPT_07a(
    serve: Callable[[], SmtpPeer], type: ResultType, reason: str, failures: list[Answer]
) -> None:
    async with serve() as peer:
        via = via_peer(peer, tls=TlsMode.VERIFIED)
        async with OutboundBench.running(via, secrets=SECRETS, tls_timeout=1.0) as bench:
            result = await send(bench, via)
        assert result.result is Result.DEFERRED
        assert peer.messages == []
    faults = [answer.fault for answer in failures]
    assert len(faults) == 1
    (fault,) = faults
    assert fault is not None
    assert (fault.type, fault.reason) == (type, reason)
    assert fault.detail
    assert fault.detail.isprintable()


def test_an_answer_that_is_no_tls_is_a_failure_with_openssls_reason_TRPT_07a() -> None:
    client = TlsStream(client_context(verify=False), HOST, verified_name=None)
    client.handshake()
    with pytest.raises(ssl.SSLError) as caught:
        client.handshake(b"502 5.5.1 what do you want\r\n")
    fault = fault_of(caught.value)
    assert (fault.type, fault.reason) == (ResultType.VALIDATION_FAILURE, "wrong-version-number")
    assert not fault.of_certificate


async def test_a_policy_in_mode_testing_verifies_and_delivers_all_the_same(
    policy: Callable[[StsPolicy], None], failures: list[Answer]
) -> None:
    policy(StsPolicy.TESTING)
    bad, good = AUTHORITY.issue_expired(HOST), AUTHORITY.issue(HOST)
    async with SmtpPeer(tls=bad.server_context()) as peer:
        via = via_peer(peer)
        async with OutboundBench.running(via, secrets=SECRETS, messages_per_connection=1) as bench:
            result = await send(bench, via)
            assert result.result is Result.DELIVERED
            assert result.tls is not None
            assert (result.tls.version, result.tls.verified) == ("TLSv1.3", False)
            assert [session.tls for session in peer.sessions] == ["", "TLSv1.3"]  # encrypted, if not authenticated
            peer.secure_with(good.server_context())
            result = await send(bench, via)
            assert result.tls is not None
            assert result.tls.verified
            assert len(peer.sessions) == 3
    (answer,) = failures
    assert answer.fault is not None
    assert answer.fault.type is ResultType.CERTIFICATE_EXPIRED


async def test_a_message_that_leaves_tls_aside_goes_where_the_policy_of_the_domain_is_not_met(
    policy: Callable[[StsPolicy], None],
) -> None:
    policy(StsPolicy.ENFORCE)
    async with SmtpPeer(tls=Authority().issue(HOST).server_context()) as peer:
        via = via_peer(peer)
        async with OutboundBench.running(via, secrets=SECRETS) as bench:
            assert (await send(bench, via)).result is Result.DEFERRED
            assert peer.messages == []
            result = await send(bench, via, requirement=Requirement.NO)
            assert result.result is Result.DELIVERED
            assert result.tls is not None
            assert result.tls.version == "TLSv1.3"
            # What it left open proves nothing to others.
            assert (await send(bench, via)).result is Result.DEFERRED
            assert len(peer.messages) == 1


async def test_what_a_report_alone_would_need_stops_no_mail_where_it_is_missing(
    policy: Callable[[StsPolicy], None],
) -> None:
    policy(StsPolicy.TESTING)
    async with SmtpPeer(tls=AUTHORITY.issue(HOST).server_context()) as peer:
        via = via_peer(peer)
        async with OutboundBench.running(via, secrets={"ca": b"no PEM"}) as bench:
            result = await send(bench, via)
        assert result.result is Result.DELIVERED
        assert result.tls is not None
        assert (result.tls.version, result.tls.verified) == ("TLSv1.3", False)


def test_a_certificate_of_a_version_that_nobody_knows_has_no_binding() -> None:
    der = issue(HOST, HOST).der
    version = bytes.fromhex("a003020102")
    assert end_point_binding(der) is not None
    assert end_point_binding(der.replace(version, bytes.fromhex("a003020105"), 1)) is None
