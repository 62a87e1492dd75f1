"""TLS sessions go on from one connection to the next, never for more than they were verified for (TLS-10)."""

import asyncio
import contextlib
import hashlib
import ssl
from collections.abc import AsyncIterator
from enum import Enum
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from mailrail.core.revision.revision import TlsMode, Transport, TransportKind
from mailrail.core.tlspolicy.resumption import LONGEST
from mailrail_outbound import metrics
from mailrail_outbound.ports import RecipientReport, Result, TlsReport
from mailrail_outbound.tls import TlsStream, _not_after, client_context

from testkit.background import ServedStreams, background
from testkit.ca import Authority, Certificate
from testkit.conditions import eventually
from testkit.outbound import OutboundBench, secret_ref, transport
from testkit.smtp_peer import SmtpPeer
from testkit.socks import SocksProxy

HOST = "localhost"
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def certificate(authority: Authority) -> Certificate:
    return authority.issue(HOST)


def serving(certificate: Certificate, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    context = certificate.server_context()
    context.maximum_version = version
    return context


def via_peer(port: int, kind: TransportKind = TransportKind.SMTP, **fields: Any) -> Transport:
    given: dict[str, Any] = {"host": HOST, "port": port, "ca": secret_ref("ca")}
    return transport(kind, **given | fields)


@contextlib.asynccontextmanager
async def bench(
    authority: Authority, *transports: Transport, messages: int = 1, **settings: Any
) -> AsyncIterator[OutboundBench]:
    """With `messages` a connection."""
    secrets = {"ca": authority.pem, "password": b"pencil"}
    async with OutboundBench.running(
        *transports, secrets=secrets, messages_per_connection=messages, **settings
    ) as running:
        yield running


async def send(running: OutboundBench, via: Transport) -> RecipientReport:
    return (await running.deliver(running.delivery(via))).recipients[0]


async def resumed(running: OutboundBench, via: Transport, times: int = 3) -> list[bool]:
    """Send so often, and say which connections were resumed."""
    found = []
    for _ in range(times):
        tls = (await send(running, via)).tls
        assert tls is not None
        assert tls.version
        found.append(tls.resumed)
    return found


def counts() -> dict[str, float]:
    return {kind: metrics.HANDSHAKES.of(kind).number for kind in ("full", "resumed", "refused", "broken")}


def more_than(before: dict[str, float]) -> dict[str, float]:
    return {kind: number - before[kind] for kind, number in counts().items() if number != before[kind]}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("mode", [TlsMode.OPPORTUNISTIC, TlsMode.REQUIRED, TlsMode.VERIFIED])
async def test_the_session_of_an_earlier_connection_is_resumed_and_said_to_be_TLS_10e(
    authority: Authority, certificate: Certificate, mode: TlsMode, version: ssl.TLSVersion
) -> None:
    before = counts()
    async with SmtpPeer(tls=serving(certificate, version)) as peer:
        via = via_peer(peer.port, tls=mode)
        async with bench(authority, via) as running:
            reports = [await send(running, via) for _ in range(5)]
        assert [session.resumed for session in peer.sessions] == [False, False, True, True, True]
        assert {each.result for each in reports} == {Result.DELIVERED}
    told = [each.tls for each in reports]
    assert told[0] is not None
    full = told[0]
    assert full.version == version.name.replace("_", ".")
    assert full.verified is (mode is TlsMode.VERIFIED)
    again = TlsReport(full.version, full.cipher, full.proof, full.verdict, offered=True, resumed=True)
    assert told == [full, full, again, again, again]
    assert more_than(before) == {"full": 2, "resumed": 3}


@pytest.mark.parametrize("version", VERSIONS)
async def test_sessions_are_resumed_where_tls_comes_first_and_with_a_login(
    authority: Authority, certificate: Certificate, version: ssl.TLSVersion
) -> None:
    async with SmtpPeer(
        tls=serving(certificate, version),
        implicit_tls=True,
        extensions=["PIPELINING", "DSN", "AUTH SCRAM-SHA-256"],
        accounts={"u": "pencil"},
    ) as peer:
        via = via_peer(
            peer.port,
            TransportKind.SUBMISSIONS,
            tls=TlsMode.VERIFIED,
            username="u",
            password=secret_ref("password"),
        )
        async with bench(authority, via) as running:
            assert await resumed(running, via) == [False, False, True]
        assert [(session.resumed, session.login) for session in peer.sessions] == [
            (False, "u"),
            (False, "u"),
            (True, "u"),
        ]


async def test_a_login_that_is_bound_to_the_certificate_has_a_full_handshake_TLS_10c(
    authority: Authority, certificate: Certificate
) -> None:
    der = x509.load_pem_x509_certificate(certificate.chain_pem).public_bytes(Encoding.DER)
    async with SmtpPeer(
        tls=serving(certificate),
        extensions_after_tls=["PIPELINING", "DSN", "AUTH SCRAM-SHA-256-PLUS SCRAM-SHA-256"],
        accounts={"u": "pencil"},
        binding=lambda: ("tls-server-end-point", hashlib.sha256(der).digest()),
    ) as peer:
        via = via_peer(
            peer.port, TransportKind.SUBMISSION, tls=TlsMode.VERIFIED, username="u", password=secret_ref("password")
        )
        async with bench(authority, via) as running:
            assert await resumed(running, via, 4) == [False] * 4
        assert {session.mechanism for session in peer.sessions} == {"SCRAM-SHA-256-PLUS"}


async def test_sessions_are_resumed_through_a_proxy(authority: Authority, certificate: Certificate) -> None:
    with SocksProxy() as proxy:
        via = transport(TransportKind.SOCKS, proxy_host=proxy.address, proxy_port=proxy.port)
        async with (
            SmtpPeer(tls=serving(certificate)) as peer,
            bench(authority, via, direct_port=peer.port) as running,
        ):
            for _ in range(3):
                report = await running.deliver(running.delivery(via, "b@[127.0.0.1]", domain="[127.0.0.1]"))
                assert report.recipients[0].result is Result.DELIVERED, report.recipients[0].text
            assert [session.resumed for session in peer.sessions] == [False, False, True]
            assert len(proxy.requests) == 3


async def test_an_unverified_session_never_serves_a_verified_demand_TLS_10a(
    authority: Authority, certificate: Certificate
) -> None:
    async with SmtpPeer(tls=serving(certificate)) as peer:
        loose = via_peer(peer.port, name="loose", tls=TlsMode.REQUIRED, ca=None)
        strict = via_peer(peer.port, name="strict", tls=TlsMode.VERIFIED, ca=None)  # by the system's roots
        async with bench(authority, loose, strict) as running:
            assert await resumed(running, loose) == [False, False, True]
            report = await send(running, strict)
    assert report.result is Result.DEFERRED
    assert "the certificate is not valid" in report.text
    assert len(peer.messages) == 3


async def test_a_session_serves_only_the_name_that_was_verified_TLS_10a(
    authority: Authority, certificate: Certificate
) -> None:
    async with SmtpPeer(tls=serving(certificate)) as peer:
        right = via_peer(peer.port, name="right", tls=TlsMode.VERIFIED)
        wrong = via_peer(peer.port, name="wrong", tls=TlsMode.VERIFIED, host="127.0.0.1")
        async with bench(authority, right, wrong) as running:
            assert await resumed(running, right) == [False, False, True]
            report = await send(running, wrong)
    assert report.result is Result.DEFERRED
    assert "the certificate is not valid" in report.text


async def test_other_trust_roots_make_other_sessions_TLS_10a(authority: Authority, certificate: Certificate) -> None:
    async with SmtpPeer(tls=serving(certificate)) as peer:
        via = via_peer(peer.port, tls=TlsMode.VERIFIED)
        secrets = {"ca": authority.pem}
        async with OutboundBench.running(via, secrets=secrets, messages_per_connection=1) as running:
            assert await resumed(running, via) == [False, False, True]
            secrets["ca"] = Authority().pem  # the same text of the transport: only what the Secret holds is another
            running.configure(2, [via])
            report = await send(running, via)
    assert report.result is Result.DEFERRED
    assert "the certificate is not valid" in report.text


@pytest.mark.parametrize("version", VERSIONS)
def test_a_session_is_not_resumed_after_the_certificate_has_expired_TLS_10b(
    authority: Authority, version: ssl.TLSVersion
) -> None:
    def seconds(certificate: Certificate, *, verify: bool = True) -> float:
        _, found = _after_a_handshake(
            client_context(verify=verify, ca=authority.pem if verify else b""), serving(certificate, version)
        )
        return found

    assert 500 < seconds(authority.issue_expiring(HOST, seconds=600)) <= 600
    assert seconds(authority.issue(HOST)) > LONGEST
    assert seconds(authority.issue_expiring(HOST, seconds=600), verify=False) > LONGEST  # nobody looked at it


def test_the_session_of_a_certificate_whose_end_cannot_be_read_has_no_time_TLS_10b(
    authority: Authority, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(der: bytes) -> x509.Certificate:
        raise ValueError(der)

    _not_after.cache_clear()
    monkeypatch.setattr(x509, "load_der_x509_certificate", refuse)
    _, seconds = _after_a_handshake(client_context(verify=True, ca=authority.pem), serving(certificate))
    assert seconds < 0
    _not_after.cache_clear()


def _after_a_handshake(ours: ssl.SSLContext, theirs: ssl.SSLContext) -> tuple[ssl.SSLSession | None, float]:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = theirs.wrap_bio(to_server, to_client, server_side=True)
    client = TlsStream(ours, HOST, verified_name=HOST if ours.verify_mode is ssl.CERT_REQUIRED else None)
    for _ in range(3):
        client.handshake(to_client.read())
        to_server.write(client.outgoing())
        with contextlib.suppress(ssl.SSLWantReadError):
            server.do_handshake()
    server.write(b"220 hello\r\n")
    assert client.decrypt(to_client.read()) == b"220 hello\r\n"
    return client.session()


def test_a_server_that_gives_no_ticket_gives_no_session(certificate: Certificate) -> None:
    context = serving(certificate)
    context.num_tickets = 0
    assert _after_a_handshake(client_context(verify=False), context) == (None, 0.0)


async def test_a_server_that_does_not_resume_makes_a_full_handshake_on_the_same_connection_TLS_10c(
    authority: Authority, certificate: Certificate
) -> None:
    before = counts()
    async with SmtpPeer(tls=serving(certificate)) as peer:
        via = via_peer(peer.port, tls=TlsMode.VERIFIED)
        async with bench(authority, via) as running:
            assert await resumed(running, via) == [False, False, True]
            peer.secure_with(serving(certificate))  # a restart: other ticket keys
            assert await resumed(running, via, 4) == [False] * 4
        assert len(peer.sessions) == 7
    assert more_than(before) == {"full": 6, "resumed": 1, "refused": 1}


async def test_a_certificate_that_became_bad_is_found_out_once_it_is_shown_TLS_10c(
    authority: Authority, certificate: Certificate
) -> None:
    async with SmtpPeer(tls=serving(certificate)) as peer:
        via = via_peer(peer.port, tls=TlsMode.VERIFIED)
        async with bench(authority, via) as running:
            assert await resumed(running, via) == [False, False, True]
            peer.secure_with(serving(authority.issue_expired(HOST)))
            failed = await send(running, via)
            assert "the certificate is not valid" in failed.text
            assert len(peer.sessions) == 4  # and not dialled a second time
            peer.secure_with(serving(certificate))
            assert await resumed(running, via, 1) == [False]


class Fault(Enum):
    CLOSES_AT_HELLO = "closes at the hello"
    ALERTS = "says handshake_failure"
    TALKS_NONSENSE = "talks nonsense"
    HANGS = "hangs"
    CLOSES_AFTER = "closes once the client is done"
    HANGS_AFTER = "hangs once the client is done"


class Breaker(ServedStreams):
    """Between a client and a server: breaks connections on which a TLS session is to be resumed."""

    def __init__(self, fault: Fault, port: int) -> None:
        super().__init__()
        self.address = "127.0.0.1"
        self.broken = 0
        self._fault = fault
        self._to = port
        self._server = background().call(asyncio.start_server(self._serve, self.address, 0))
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        self._server.close()
        await self._end_connections()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, upstream = await asyncio.open_connection(self.address, self._to)
        back = asyncio.ensure_future(_pass_on(there, writer))
        try:
            await self._forward(reader, writer, upstream)
        finally:
            back.cancel()
            for end in (writer, upstream):
                end.transport.abort()

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, upstream: asyncio.StreamWriter
    ) -> None:
        resuming = False
        while data := await reader.read(65536):
            if resuming:  # the client's Finished, or what is behind it
                if self._fault is Fault.HANGS_AFTER:
                    await reader.read()
                return
            if _resumes(data):
                resuming = True
                self.broken += 1
                if self._fault is Fault.ALERTS:
                    writer.write(b"\x15\x03\x03\x00\x02\x02\x28")
                elif self._fault is Fault.TALKS_NONSENSE:
                    writer.write(b"421 what is this?\r\n")
                elif self._fault is Fault.HANGS:
                    await reader.read()
                if self._fault not in (Fault.CLOSES_AFTER, Fault.HANGS_AFTER):
                    await writer.drain()
                    return
            upstream.write(data)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()


def _resumes(data: bytes) -> bool:
    """Whether this is a ClientHello that offers a session of TLS 1.3 (RFC 8446 4.2.11)."""
    if data[:1] != b"\x16" or data[5:6] != b"\x01":
        return False
    at = 5 + 4 + 2 + 32
    at += 1 + data[at]
    at += 2 + int.from_bytes(data[at : at + 2])
    at += 1 + data[at] + 2
    while at < len(data):
        kind, size = int.from_bytes(data[at : at + 2]), int.from_bytes(data[at + 2 : at + 4])
        if kind == 41:
            return True
        at += 4 + size
    return False


@pytest.mark.parametrize("implicit", [False, True], ids=["STARTTLS", "TLS first"])
@pytest.mark.parametrize("fault", Fault)
@pytest.mark.parametrize("mode", [TlsMode.OPPORTUNISTIC, TlsMode.VERIFIED])
async def test_a_server_that_breaks_on_a_resumed_session_gets_a_full_handshake_in_the_same_attempt_TLS_10c(
    authority: Authority, certificate: Certificate, mode: TlsMode, fault: Fault, implicit: bool
) -> None:
    before = counts()
    tls_failures = metrics.CONNECTIONS.of("tls").number
    async with SmtpPeer(tls=serving(certificate), implicit_tls=implicit) as peer:
        with Breaker(fault, peer.port) as breaker:
            kind = TransportKind.SUBMISSIONS if implicit else TransportKind.SMTP
            via = via_peer(breaker.port, kind, tls=mode)
            within = 2.0 if fault in (Fault.HANGS, Fault.HANGS_AFTER) else 10.0
            async with bench(
                authority, via, tls_timeout=within, command_timeout=within, greeting_timeout=within
            ) as running:
                for _ in range(4):
                    report = await send(running, via)
                    assert report.result is Result.DELIVERED, report.text
                    assert report.tls is not None
                    assert (report.tls.version, report.tls.resumed) == ("TLSv1.3", False)
                    assert "without" not in report.tls.verdict
            assert breaker.broken == 1
            assert [message.session.tls for message in peer.messages] == ["TLSv1.3"] * 4
    assert more_than(before) == {"full": 4, "broken": 1}
    assert metrics.CONNECTIONS.of("tls").number == tls_failures


async def test_many_at_once_that_break_on_a_session_are_all_delivered_TLS_10c(
    authority: Authority, certificate: Certificate
) -> None:
    async with SmtpPeer(tls=serving(certificate)) as peer:
        with Breaker(Fault.CLOSES_AFTER, peer.port) as breaker:
            via = via_peer(breaker.port, tls=TlsMode.OPPORTUNISTIC)
            async with bench(authority, via) as running:
                assert await resumed(running, via, 2) == [False, False]
                reports = await asyncio.gather(*(send(running, via) for _ in range(30)))
                assert {(each.result, each.tls and each.tls.version) for each in reports} == {
                    (Result.DELIVERED, "TLSv1.3")
                }
                await eventually(lambda: running.pool.connections == [], within=60)
            assert 1 <= breaker.broken <= 20  # the connections that were under way when the first one broke


async def test_no_session_is_resumed_where_none_is_to_be_kept_TLS_10d(
    authority: Authority, certificate: Certificate
) -> None:
    async with SmtpPeer(tls=serving(certificate)) as peer:
        via = via_peer(peer.port, tls=TlsMode.REQUIRED)
        async with bench(authority, via, tls_sessions=0) as running:
            assert await resumed(running, via, 4) == [False] * 4
