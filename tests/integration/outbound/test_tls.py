"""TLS and SASL over real handshakes: opportunistic, required, verified, injected plaintext, every mechanism."""

import asyncio
import contextlib
import hashlib
import ssl
import threading
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from mailrail.core.outbound.envelope import Envelope
from mailrail.core.revision.revision import TlsMode, TlsProof, Transport, TransportKind
from mailrail.core.sasl.client import Hashing
from mailrail.core.smtp.answer import Stage, Trouble
from mailrail.core.tlspolicy.decision import Cause, Requirement
from mailrail.sink import Options, Sink
from mailrail.sink.options import Mechanism
from mailrail_outbound.ports import RecipientReport, Result
from mailrail_outbound.tls import TlsStream, client_context

from testkit.ca import (
    Authority,
    Certificate,
    handshake,
    issue_oversized,
    speaking_only,
    trusting_anybody,
    with_any_suite,
)
from testkit.outbound import OutboundBench, StreamedBody, secret_ref, transport
from testkit.servers import serve
from testkit.smtp_peer import Action, Close, Hang, Injected, Raw, SmtpPeer

HOST = "localhost"


def via_peer(peer: SmtpPeer | Sink, kind: TransportKind = TransportKind.SMTP, **fields: Any) -> Transport:
    return transport(kind, host=HOST, port=peer.port, **fields)


async def send(via: Transport, secrets: dict[str, bytes] | None = None, **settings: Any) -> RecipientReport:
    async with OutboundBench.running(via, secrets=secrets, **settings) as bench:
        return (await bench.deliver(bench.delivery(via))).recipients[0]


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def certificate(authority: Authority) -> Certificate:
    return authority.issue(HOST)


async def test_opportunistic_tls_is_used_and_its_certificate_ignored_TLS_07() -> None:
    async with Sink(Options(tls=Authority().issue_expired("other.example").server_context())) as peer:
        result = await send(via_peer(peer))
        assert result.result is Result.DELIVERED
        assert result.tls is not None
        assert (result.tls.version, result.tls.verified, result.tls.offered) == ("TLSv1.3", False, True)
        assert peer.messages[0].tls == "TLSv1.3"


async def test_without_an_offer_opportunistic_goes_in_the_clear() -> None:
    async with Sink() as peer:
        result = await send(via_peer(peer))
        assert result.result is Result.DELIVERED
        assert result.tls is not None
        assert (result.tls.version, result.tls.offered) == ("", False)


def _tls_1_0_only(certificate: Certificate) -> ssl.SSLContext:
    context = certificate.server_context()
    context.set_ciphers("NULL:@SECLEVEL=0")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


async def test_a_failed_handshake_is_followed_by_a_new_connection_in_the_clear_TLS_07(certificate: Certificate) -> None:
    async with SmtpPeer(tls=_tls_1_0_only(certificate)) as peer:
        result = await send(via_peer(peer))
        assert result.result is Result.DELIVERED
        assert len(peer.sessions) == 2
        assert result.tls is not None
        assert "it failed, so without" in result.tls.verdict


async def test_a_refused_starttls_is_followed_by_a_new_connection_in_the_clear() -> None:
    async with SmtpPeer(extensions=["STARTTLS"], replies={"STARTTLS": "454 4.7.0 not now"}) as peer:
        sent = await send(via_peer(peer))
        assert sent.result is Result.RELAYED
        assert sent.tls is not None
        assert "454 4.7.0 not now" in sent.tls.verdict
        assert len(peer.sessions) == 2


@pytest.mark.parametrize("action", [Close(), Hang(), Raw(b"what\r\n")], ids=["closes", "hangs", "talks nonsense"])
async def test_a_starttls_that_is_not_answered_is_followed_by_a_new_connection_in_the_clear_TLS_07(
    certificate: Certificate, action: Action
) -> None:
    replies = {"STARTTLS": action}
    async with SmtpPeer(tls=certificate.server_context(), replies=replies) as peer:
        via = via_peer(peer)
        async with OutboundBench.running(via, tls_timeout=0.3) as bench:
            (result,) = (await bench.deliver(bench.delivery(via))).recipients
        assert result.result is Result.DELIVERED
        assert len(peer.sessions) == 2
        assert result.tls is not None
        assert "it failed, so without" in result.tls.verdict
    async with SmtpPeer(tls=certificate.server_context(), replies=replies) as peer:
        via = via_peer(peer, tls=TlsMode.REQUIRED)
        async with OutboundBench.running(via, tls_timeout=0.3) as bench:
            (result,) = (await bench.deliver(bench.delivery(via))).recipients
        assert result.result is Result.DEFERRED
        assert peer.messages == []


@pytest.mark.parametrize("action", ["503 5.5.1 you have said that", "502 what", Hang()], ids=["503", "502", "hangs"])
async def test_a_server_that_knows_no_second_ehlo_gets_the_message_in_the_clear_TLS_07(
    certificate: Certificate, action: Action
) -> None:
    replies = {"EHLO": lambda session, line: action if session.tls else None}
    async with SmtpPeer(tls=certificate.server_context(), replies=replies) as peer:
        via, strict = via_peer(peer), via_peer(peer, name="strict", tls=TlsMode.REQUIRED)
        async with OutboundBench.running(via, strict, command_timeout=0.5) as bench:
            (result,) = (await bench.deliver(bench.delivery(via))).recipients
            assert result.result is Result.DELIVERED
            assert [session.tls for session in peer.sessions] == ["TLSv1.3", ""]
            (result,) = (await bench.deliver(bench.delivery(strict))).recipients
            assert result.result is Result.DEFERRED
            assert len(peer.messages) == 1


@pytest.mark.parametrize("reply", ["421 4.3.2 shutting down", "554 5.7.1 not from you"])
async def test_a_refusal_of_us_after_starttls_is_no_failure_of_tls(certificate: Certificate, reply: str) -> None:
    replies = {"EHLO": lambda session, line: reply if session.tls else None}
    async with SmtpPeer(tls=certificate.server_context(), replies=replies) as peer:
        result = await send(via_peer(peer))
        assert (result.result, str(result.reply)) == (Result.DEFERRED, reply)
        # By what was said: a client of another test may look here for a server that is gone.
        assert sum("STARTTLS" in session.lines for session in peer.sessions) == 1


async def test_recipients_are_verified_in_the_clear_where_mail_goes_so_TLS_07(certificate: Certificate) -> None:
    async with SmtpPeer(tls=_tls_1_0_only(certificate)) as peer:
        via, strict = via_peer(peer), via_peer(peer, name="strict", tls=TlsMode.REQUIRED)
        async with OutboundBench.running(via, strict) as bench:
            answer = await bench.app.verify("b@example.org", via.ref)
            assert (answer.stage, answer.remote) == (Stage.RCPT, True)
            assert (await bench.app.verify("b@example.org", strict.ref)).trouble is Trouble.TLS


@pytest.mark.parametrize("mode", [TlsMode.REQUIRED, TlsMode.VERIFIED])
async def test_required_tls_never_goes_in_the_clear_TLS_08(mode: TlsMode, certificate: Certificate) -> None:
    async with SmtpPeer() as stripped, SmtpPeer(tls=_tls_1_0_only(certificate)) as broken:
        for peer in (stripped, broken):
            result = await send(via_peer(peer, tls=mode))
            assert result.result is Result.DEFERRED
            assert result.transport_failure
            assert str(result.status) == "4.3.5"
            assert not any(line.startswith("MAIL") for line in peer.commands)


async def test_required_tls_asks_no_certificate(certificate: Certificate) -> None:
    async with Sink(Options(tls=certificate.server_context())) as peer:
        assert (await send(via_peer(peer, tls=TlsMode.REQUIRED))).result is Result.DELIVERED


async def test_verified_tls_trusts_the_configured_ca(authority: Authority, certificate: Certificate) -> None:
    async with Sink(Options(tls=certificate.server_context())) as peer:
        via = via_peer(peer, tls=TlsMode.VERIFIED, ca=secret_ref("ca"))
        result = await send(via, {"ca": authority.pem})
        assert result.result is Result.DELIVERED
        assert result.tls is not None
        assert result.tls.verified
        assert (await send(via_peer(peer, tls=TlsMode.VERIFIED))).result is Result.DEFERRED  # not the system's CA


async def test_a_wrong_name_or_an_expired_certificate_is_not_verified(authority: Authority) -> None:
    for certificate in (authority.issue("other.example"), authority.issue_expired(HOST)):
        async with Sink(Options(tls=certificate.server_context())) as peer:
            via = via_peer(peer, tls=TlsMode.VERIFIED, ca=secret_ref("ca"))
            result = await send(via, {"ca": authority.pem})
            assert result.result is Result.DEFERRED
            assert "the certificate is not valid" in result.text
            assert peer.messages == []


async def test_a_broken_ca_is_told_as_such() -> None:
    async with Sink() as peer:
        result = await send(via_peer(peer, tls=TlsMode.VERIFIED, ca=secret_ref("ca")), {"ca": b"no PEM"})
        assert result.result is Result.DEFERRED
        assert result.transport_failure
        assert "CA certificates of transport" in result.text
        assert peer.connections == 0


@pytest.mark.parametrize("secrets", [{}, {"ca": b"no PEM"}])
async def test_a_ca_that_is_not_needed_never_turns_opportunistic_tls_into_plaintext(
    certificate: Certificate, secrets: dict[str, bytes]
) -> None:
    async with Sink(Options(tls=certificate.server_context())) as peer:
        result = await send(via_peer(peer, ca=secret_ref("ca")), secrets)
        assert result.result is Result.DELIVERED
        assert peer.messages[0].tls == "TLSv1.3"
        assert peer.connections == 1


async def test_a_server_that_hangs_up_right_after_the_handshake_gets_the_message_in_the_clear_TLS_07(
    certificate: Certificate,
) -> None:
    closes = {"EHLO": lambda session, line: Close() if session.tls else None}
    async with SmtpPeer(tls=certificate.server_context(), replies=closes) as peer:
        result = await send(via_peer(peer))
        assert result.result is Result.DELIVERED
        assert [session.tls for session in peer.sessions] == ["TLSv1.3", ""]
    async with SmtpPeer(tls=certificate.server_context(), replies=closes) as peer:
        result = await send(via_peer(peer, tls=TlsMode.REQUIRED))
        assert result.result is Result.DEFERRED
        assert peer.messages == []


def test_a_reply_counts_though_the_tls_session_breaks_right_behind_it_LSE_08(certificate: Certificate) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = certificate.server_context().wrap_bio(incoming, outgoing, server_side=True)
    client = TlsStream(client_context(verify=False), HOST, verified_name=None)
    done = False
    while not done:
        done = client.handshake(outgoing.read())
        incoming.write(client.outgoing())
        with contextlib.suppress(ssl.SSLWantReadError):
            server.do_handshake()
    server.write(b"250 2.0.0 taken\r\n")
    record = outgoing.read()
    assert client.decrypt(record + b"\x17\x03\x03\x00\x20" + bytes(32)) == b"250 2.0.0 taken\r\n"
    assert client.fault is not None


async def test_replies_injected_before_tls_do_not_count_TLS_02(authority: Authority, certificate: Certificate) -> None:
    injected = Raw(b"220 go\r\n250-evil.example\r\n250 AUTH PLAIN\r\n")
    async with SmtpPeer(tls=certificate.server_context(), replies={"STARTTLS": injected}) as peer:
        # The peer does not go on with TLS after Raw: what matters is that the client begins a handshake, not AUTH.
        result = await send(via_peer(peer, tls=TlsMode.REQUIRED), tls_timeout=0.3)
        assert result.result is Result.DEFERRED
        assert not any(line.startswith("AUTH") for line in peer.commands)


@pytest.mark.parametrize(
    "injected",
    [
        b"250-mx\r\n250-PIPELINING\r\n250 REQUIRETLS\r\n",
        b"250-mx\r\n250-REQUIRETLS\r\n",
        b"250-mx\r\n250 REQUIRETLS\r\n250 2.1.0 ok\r\n250 2.1.5 ok\r\n354 go\r\n250 2.0.0 taken\r\n",
    ],
    ids=["an EHLO reply", "half of one", "a whole dialogue"],
)
async def test_what_is_injected_behind_the_reply_to_starttls_says_nothing_TLS_02_RTLS_14(
    authority: Authority, certificate: Certificate, injected: bytes
) -> None:
    replies = {"STARTTLS": Injected(injected)}
    inside = ["SIZE"]
    async with SmtpPeer(tls=certificate.server_context(), extensions_after_tls=inside, replies=replies) as peer:
        result = await send_required(peer, authority, "a@ours.example")
        # OpenSSL may meet the octets as a broken record: then there is no session at all.
        assert result.result in (Result.FAILED, Result.DEFERRED)
        assert str(result.status) in ("5.7.30", "4.3.5")
        assert not any(line.startswith("MAIL") for line in peer.commands)
        assert peer.messages == []


async def test_old_tls_is_never_negotiated_TLS_05(certificate: Certificate) -> None:
    context = certificate.server_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with Sink(Options(tls=context)) as peer:
        result = await send(via_peer(peer, tls=TlsMode.REQUIRED))
        assert result.tls is not None
        assert result.tls.version == "TLSv1.2"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
async def test_a_server_that_speaks_old_tls_alone_gets_no_mail_where_tls_is_required_TLS_05(
    authority: Authority, certificate: Certificate, version: ssl.TLSVersion
) -> None:
    old = speaking_only(certificate.server_context(), version)
    assert handshake(speaking_only(trusting_anybody(), version), old) in ("TLSv1", "TLSv1.1")  # it does speak it
    for ours in (client_context(verify=False), client_context(verify=True, ca=authority.pem)):
        assert handshake(ours, certificate.server_context(), HOST) == "TLSv1.3"
        with pytest.raises(ssl.SSLError):
            handshake(with_any_suite(ours), old, HOST)
    async with SmtpPeer(tls=old) as peer:
        result = await send(via_peer(peer, tls=TlsMode.REQUIRED))
        assert result.result is Result.DEFERRED
        assert peer.messages == []


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
async def test_a_server_that_speaks_old_tls_alone_gets_the_message_in_the_clear_TLS_07(
    certificate: Certificate, version: ssl.TLSVersion
) -> None:
    async with SmtpPeer(tls=speaking_only(certificate.server_context(), version)) as peer:
        result = await send(via_peer(peer))
        assert result.result is Result.DELIVERED
        assert [session.tls for session in peer.sessions] == ["", ""]
        assert result.tls is not None
        assert "it failed, so without" in result.tls.verdict


async def test_a_certificate_of_a_megabyte_is_a_failure_of_tls_TLS_07(authority: Authority) -> None:
    certificate = issue_oversized(HOST, 2**20)
    assert handshake(trusting_anybody(), issue_oversized(HOST, 10_000).server_context()) == "TLSv1.3"
    async with SmtpPeer(tls=certificate.server_context()) as peer:
        result = await send(via_peer(peer))
        assert result.result is Result.DELIVERED
        assert result.tls is not None
        assert "it failed, so without" in result.tls.verdict
        verified = via_peer(peer, tls=TlsMode.VERIFIED, ca=secret_ref("ca"))
        result = await send(verified, {"ca": authority.pem})
        assert result.result is Result.DEFERRED
        assert "TLS handshake" in result.text
        assert len(peer.messages) == 1


_SERVER_HELLO = b"\x16\x03\x03\x00\x04\x02\x00\x4e\x20"  # of 20,000 octets, which are yet to come
_ONE_OCTET = b"\x16\x03\x03\x00\x01\x00"  # a record with one of them


@pytest.mark.parametrize(
    ("begins", "goes_on", "interval"),
    [
        (b"", b"", 0.0),
        (_SERVER_HELLO, _ONE_OCTET, 0.01),
        (_SERVER_HELLO, _ONE_OCTET * 100, 0.0),
        (b"\x16\x03\x03\x40\x00", b"\x00", 0.01),
        (b"", b"\x16\x03\x03\x00\x00" * 10, 0.01),
        (b"", b"\x15\x03\x03\x00\x02\x01\x00", 0.01),
        (b"", b"\x14\x03\x03\x00\x01\x01", 0.01),
        (b"", bytes(1000), 0.0),
    ],
    ids=[
        "silence",
        "an octet a record, slowly",
        "an octet a record, fast",
        "a record octet by octet",
        "empty records",
        "warnings",
        "changes of cipher",
        "zeros",
    ],
)
async def test_a_handshake_that_does_not_end_is_ended_in_time_whatever_comes_TLS_07(
    begins: bytes, goes_on: bytes, interval: float
) -> None:
    hellos: list[bytes] = []

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 peer.example\r\n")
        hellos.append(await reader.readline())
        if len(hellos) % 2 == 0:  # the connection that goes without TLS
            writer.write(b"421 4.3.2 not here either\r\n")
            return
        writer.write(b"250-peer.example\r\n250 STARTTLS\r\n")
        await reader.readline()
        writer.write(b"220 go\r\n" + begins)
        with contextlib.suppress(ConnectionError):
            while goes_on:
                writer.write(goes_on)
                await writer.drain()
                await asyncio.sleep(interval)
            await reader.read()

    async with serve(endless) as (host, port):
        via = transport(TransportKind.SMTP, host=host, port=port)
        strict = transport(TransportKind.SMTP, "strict", host=host, port=port, tls=TlsMode.REQUIRED)
        async with OutboundBench.running(via, strict, tls_timeout=0.5) as bench:
            (result,) = (await bench.deliver(bench.delivery(via))).recipients
            assert str(result.reply) == "421 4.3.2 not here either"
            (result,) = (await bench.deliver(bench.delivery(strict))).recipients
            assert (result.result, str(result.status)) == (Result.DEFERRED, "4.3.5")
            assert "TLS handshake" in result.text
    assert len(hellos) == 3


async def test_a_server_that_closes_during_the_handshake_is_a_tls_failure() -> None:
    async with SmtpPeer(extensions=["STARTTLS"], replies={"STARTTLS": Close("220 go")}) as peer:
        result = await send(via_peer(peer, tls=TlsMode.REQUIRED))
        assert result.result is Result.DEFERRED
        assert result.transport_failure


@pytest.mark.parametrize("mode", [TlsMode.NONE, TlsMode.OPPORTUNISTIC, TlsMode.REQUIRED])
async def test_a_message_that_requires_tls_is_refused_before_anything_is_dialled(mode: TlsMode) -> None:
    async with Sink() as peer:
        via = via_peer(peer, tls=mode)
        async with OutboundBench.running(via) as bench:
            report = await bench.deliver(bench.delivery(via, requirement=Requirement.REQUIRED))
        (result,) = report.recipients
        assert (result.result, str(result.status)) == (Result.FAILED, "5.7.10")
        assert not result.transport_failure
        assert peer.connections == 0


@pytest.mark.parametrize("sender", ["a@sender.example", ""], ids=["mail", "notification"])
async def test_a_smarthost_that_offers_requiretls_inside_tls_gets_the_message_with_it_RTLS_18_RTLS_19b(
    authority: Authority, certificate: Certificate, sender: str
) -> None:
    after = ["PIPELINING", "REQUIRETLS"]
    async with SmtpPeer(tls=certificate.server_context(), extensions=[], extensions_after_tls=after) as peer:
        result = await send_required(peer, authority, sender)
        assert result.result is Result.RELAYED
        assert peer.messages[0].mail == f"MAIL FROM:<{sender}> REQUIRETLS"
        assert peer.messages[0].session.tls == "TLSv1.3"
        assert result.tls is not None
        assert (result.tls.proof, result.tls.requiretls, result.tls_cause) == (TlsProof.PKIX, True, None)


@pytest.mark.parametrize("clear", [[], ["REQUIRETLS"]], ids=["nowhere", "in clear"])
async def test_a_smarthost_that_offers_no_requiretls_inside_tls_does_not_get_the_message_RTLS_14(
    authority: Authority, certificate: Certificate, clear: list[str]
) -> None:
    """Case rtls-14: the configured name is verified, and the keyword is required of it."""
    async with SmtpPeer(
        tls=certificate.server_context(), extensions=clear, extensions_after_tls=["AUTH PLAIN"]
    ) as peer:
        result = await send_required(peer, authority, "a@ours.example")
        assert (result.result, str(result.status)) == (Result.FAILED, "5.7.30")
        assert result.tls_cause is Cause.NO_REQUIRETLS
        assert peer.messages == []
        assert [line.split()[0] for line in peer.commands[:3]] == ["EHLO", "STARTTLS", "EHLO"]
        assert not any(line.startswith("MAIL") for line in peer.commands)


@pytest.mark.parametrize("mode", [TlsMode.OPPORTUNISTIC, TlsMode.REQUIRED, TlsMode.VERIFIED])
async def test_a_notification_goes_redacted_over_the_best_tls_where_nobody_offers_requiretls_RTLS_21b(
    authority: Authority, certificate: Certificate, mode: TlsMode
) -> None:
    """Case rtls-07."""
    async with SmtpPeer(tls=certificate.server_context(), extensions_after_tls=["SIZE"]) as peer:
        result = await send_required(peer, authority, "", mode=mode)
        assert result.result is Result.RELAYED
        (message,) = peer.messages
        assert message.mail == f"MAIL FROM:<> SIZE={len(REDACTED)}"
        assert message.content == REDACTED
        assert message.session.tls == "TLSv1.3"
        assert result.tls is not None
        assert result.tls.verified is (mode is TlsMode.VERIFIED)
        assert "redacted" in result.tls.verdict


@pytest.mark.parametrize("fails", [False, True], ids=["whole", "broken off"])
async def test_a_notification_that_streams_is_redacted_like_any_other_or_waits_RTLS_21b(
    authority: Authority, certificate: Certificate, fails: bool
) -> None:
    pieces = NOTIFICATION[:100], NOTIFICATION[100:]
    body = StreamedBody(*pieces, fails_after=1 if fails else None)
    async with SmtpPeer(tls=certificate.server_context(), extensions_after_tls=["SIZE"]) as peer:
        result = await send_required(peer, authority, "", content=body)
        assert result.result is (Result.DEFERRED if fails else Result.RELAYED), result.text
        assert [message.content for message in peer.messages] == ([] if fails else [REDACTED])


async def test_a_notification_goes_redacted_in_the_clear_where_there_is_nothing_else_RTLS_21b(
    authority: Authority, certificate: Certificate
) -> None:
    broken = SmtpPeer(tls=_tls_1_0_only(certificate), extensions=[])
    async with broken, SmtpPeer(extensions=["REQUIRETLS"]) as clear:
        for peer in (broken, clear):
            result = await send_required(peer, authority, "", mode=TlsMode.OPPORTUNISTIC)
            assert result.result is Result.RELAYED
            assert peer.messages[0].content == REDACTED
            assert peer.messages[0].mail == "MAIL FROM:<>"
            assert result.tls is not None
            assert result.tls.verdict.startswith("redacted")


async def test_a_notification_that_a_host_refuses_for_other_reasons_is_not_redacted(
    authority: Authority, certificate: Certificate
) -> None:
    replies = {"RCPT": "450 4.2.1 later"}
    after = ["REQUIRETLS"]
    async with SmtpPeer(tls=certificate.server_context(), extensions_after_tls=after, replies=replies) as peer:
        result = await send_required(peer, authority, "")
        assert (result.result, str(result.status)) == (Result.DEFERRED, "4.2.1")
        assert sum(line.startswith("MAIL") for line in peer.commands) == 1
    async with SmtpPeer(tls=Authority().issue(HOST).server_context(), extensions_after_tls=["SIZE"]) as peer:
        result = await send_required(peer, authority, "")  # bad TLS of our own smarthost is mended, not gone around
        assert (result.result, str(result.status)) == (Result.DEFERRED, "4.3.5")
        assert peer.messages == []


@pytest.mark.parametrize(
    ("sender", "content"),
    [("a@ours.example", None), ("", b"Subject: no report\r\n\r\nsecret\r\n")],
    ids=["a report with a sender", "a null path without a report"],
)
async def test_what_is_no_notification_is_never_sent_without_what_it_requires_RTLS_21b(
    authority: Authority, certificate: Certificate, sender: str, content: bytes | None
) -> None:
    async with SmtpPeer(tls=certificate.server_context(), extensions_after_tls=["SIZE"]) as peer:
        result = await send_required(peer, authority, sender, content=content or NOTIFICATION)
        assert (result.result, str(result.status)) == (Result.FAILED, "5.7.30")
        assert not any(line.startswith("MAIL") for line in peer.commands)


NOTIFICATION = (
    b"Subject: Mail delivery failed\r\nContent-Type: multipart/report; boundary=b\r\n\r\n"
    b"--b\r\n\r\nsorry\r\n--b\r\nContent-Type: message/delivery-status\r\n\r\nfields\r\n"
    b"--b\r\nContent-Type: text/rfc822-headers\r\n\r\nSubject: secret\r\n--b--\r\n"
)
REDACTED = NOTIFICATION[: NOTIFICATION.index(b"--b\r\nContent-Type: text/rfc822-headers")] + b"--b--\r\n"


async def send_required(
    peer: SmtpPeer,
    authority: Authority,
    sender: str,
    *,
    mode: TlsMode = TlsMode.VERIFIED,
    content: bytes | StreamedBody = NOTIFICATION,
) -> RecipientReport:
    """Send a message with REQUIRETLS through a smarthost."""
    via = via_peer(peer, tls=mode, ca=secret_ref("ca"))
    required: dict[str, Any] = {
        "envelope": Envelope(sender),
        "requirement": Requirement.REQUIRED,
        "content": content,
        "size": sum(map(len, content.pieces)) if isinstance(content, StreamedBody) else len(content),
    }
    async with OutboundBench.running(via, secrets={"ca": authority.pem}) as bench:
        return (await bench.deliver(bench.delivery(via, **required))).recipients[0]


# --- SASL ---------------------------------------------------------------------------------------------------------

ALL = "AUTH SCRAM-SHA-256-PLUS SCRAM-SHA-256 SCRAM-SHA-1-PLUS SCRAM-SHA-1 CRAM-MD5 PLAIN LOGIN"
SECRETS = {"password": b"pencil, sharp"}


def submission(peer: SmtpPeer | Sink, kind: TransportKind = TransportKind.SUBMISSION, **fields: Any) -> Transport:
    fields.setdefault("tls", TlsMode.VERIFIED)
    fields.setdefault("username", "us=er,1")
    return via_peer(peer, kind, password=secret_ref("password"), ca=secret_ref("ca"), **fields)


@pytest.mark.parametrize(
    ("offer", "configured", "used"),
    [
        (ALL, (), "SCRAM-SHA-256-PLUS"),
        (ALL.replace("SCRAM-SHA-256-PLUS ", ""), (), "SCRAM-SHA-256"),
        ("AUTH SCRAM-SHA-1-PLUS PLAIN", (), "SCRAM-SHA-1-PLUS"),
        ("AUTH PLAIN SCRAM-SHA-1 CRAM-MD5", (), "SCRAM-SHA-1"),
        ("AUTH LOGIN PLAIN CRAM-MD5", (), "CRAM-MD5"),
        ("AUTH LOGIN PLAIN", (), "PLAIN"),
        ("AUTH LOGIN", (), "LOGIN"),
        (ALL, ("CRAM-MD5", "SCRAM-SHA-256"), "CRAM-MD5"),
    ],
)
@pytest.mark.parametrize("kind", [TransportKind.SUBMISSION, TransportKind.SUBMISSIONS])
async def test_we_log_in_with_the_strongest_mechanism_or_the_configured_one_AUTH_08(
    authority: Authority,
    certificate: Certificate,
    kind: TransportKind,
    offer: str,
    configured: tuple[str, ...],
    used: str,
) -> None:
    der = x509.load_pem_x509_certificate(certificate.chain_pem).public_bytes(Encoding.DER)
    async with SmtpPeer(
        tls=certificate.server_context(),
        implicit_tls=kind is TransportKind.SUBMISSIONS,
        extensions=[],
        extensions_after_tls=["PIPELINING", "DSN", offer],
        accounts={"us=er,1": "pencil, sharp"},
        binding=lambda: ("tls-server-end-point", hashlib.sha256(der).digest()),
    ) as peer:
        result = await send(submission(peer, kind, mechanisms=configured), SECRETS | {"ca": authority.pem})
        assert result.result is Result.DELIVERED, result.text
        assert peer.sessions[0].mechanism == used
        assert peer.sessions[0].login == "us=er,1"


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
@pytest.mark.parametrize("kind", [TransportKind.SUBMISSION, TransportKind.SUBMISSIONS])
async def test_we_log_in_to_a_server_that_is_not_ours_AUTH_08(
    authority: Authority, certificate: Certificate, kind: TransportKind, mechanism: Mechanism
) -> None:
    options = Options(
        tls=certificate.server_context(),
        implicit_tls=kind is TransportKind.SUBMISSIONS,
        accounts={"us=er,1": "pencil, sharp"},
        mechanisms=(mechanism,),
    )
    async with Sink(options) as peer:
        result = await send(submission(peer, kind), SECRETS | {"ca": authority.pem})
        assert result.result is Result.DELIVERED, result.text
        assert (peer.messages[0].login, peer.messages[0].tls) == ("us=er,1", "TLSv1.3")


async def test_a_server_with_many_scram_iterations_stops_no_other_connection(
    authority: Authority, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers: list[threading.Thread] = []
    do = Hashing.do

    def noted(work: Hashing) -> bytes:
        workers.append(threading.current_thread())
        return do(work)

    monkeypatch.setattr(Hashing, "do", noted)
    async with SmtpPeer(
        tls=certificate.server_context(),
        extensions_after_tls=["PIPELINING", "DSN", "AUTH SCRAM-SHA-256"],
        accounts={"us=er,1": "pencil, sharp"},
        iterations=100_000,
    ) as peer:
        result = await send(submission(peer), SECRETS | {"ca": authority.pem})
        assert result.result is Result.DELIVERED, result.text
    assert len(workers) == 1
    assert workers[0] is not threading.main_thread()


async def test_wrong_credentials_are_our_fault_and_never_a_bounce_AUTH_09_H29(
    authority: Authority, certificate: Certificate
) -> None:
    async with Sink(Options(tls=certificate.server_context(), accounts={"us=er,1": "another"})) as peer:
        result = await send(submission(peer), SECRETS | {"ca": authority.pem})
        assert result.result is Result.DEFERRED
        assert result.transport_failure
        assert str(result.status) == "4.3.5"
        assert "535" in result.text
        assert "pencil" not in result.text


async def test_a_server_without_auth_gets_no_mail_from_a_submission_transport(
    authority: Authority, certificate: Certificate
) -> None:
    async with Sink(Options(tls=certificate.server_context())) as peer:
        result = await send(submission(peer), SECRETS | {"ca": authority.pem})
        assert result.result is Result.DEFERRED
        assert result.transport_failure
        assert peer.answers.asked("MAIL", "a@sender.example") == 0


async def test_credentials_go_to_a_proven_server_only_whatever_was_configured_TLS_08(certificate: Certificate) -> None:
    async with SmtpPeer(
        tls=certificate.server_context(), extensions_after_tls=["AUTH PLAIN"], accounts={"us=er,1": "pencil, sharp"}
    ) as peer:
        via = via_peer(peer, username="us=er,1", password=secret_ref("password"), tls=TlsMode.OPPORTUNISTIC)
        result = await send(via, SECRETS)
        assert result.result is Result.DEFERRED
        assert not any(line.startswith("AUTH") for line in peer.commands)


async def test_a_missing_secret_is_told_and_nothing_is_dialled(authority: Authority) -> None:
    async with Sink() as peer:
        result = await send(submission(peer), {"ca": authority.pem})
        assert result.transport_failure
        assert "default/password" in result.text
        assert peer.connections == 0
