"""Outbound against programs that others wrote: Postfix, Dovecot, Dante, microsocks, smtp-sink."""

import asyncio
import functools
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from mailrail.core.revision.revision import TlsMode, TransportKind
from mailrail.sink import Sink
from mailrail_outbound.ports import Result

from testkit.ca import Authority
from testkit.conditions import eventually
from testkit.dns import DnsServer
from testkit.outbound import MESSAGE, OutboundBench, StreamedBody, secret_ref, transport
from testkit.peers.dovecot import Dovecot
from testkit.peers.load import smtp_sink
from testkit.peers.postfix import Postfix
from testkit.peers.socks_servers import SocksServer, dante, microsocks


@pytest.mark.peer("postfix")
async def test_postfix_as_smarthost_takes_mail_over_verified_tls_and_refuses_one_recipient() -> None:
    authority = Authority()
    refuse = {"nobody@example.org": "550 5.1.1 no such user here"}
    with Postfix(certificate=authority.issue("localhost", "postfix.test"), refuse=refuse) as postfix:
        with DnsServer() as dns:
            dns.add("postfix.test", "A", postfix.address)
            via = transport(
                TransportKind.SMTP, host="postfix.test", port=postfix.port, tls=TlsMode.VERIFIED, ca=secret_ref("ca")
            )
            async with OutboundBench.running(via, secrets={"ca": authority.pem}, resolver=dns.endpoint) as bench:
                report = await bench.deliver(bench.delivery(via, "b@example.org", "nobody@example.org"))
                taken, refused = report.recipients
                assert taken.result is Result.DELIVERED, taken.text
                assert taken.tls is not None
                assert taken.tls.verified
                assert refused.result is Result.FAILED
                assert str(refused.status) == "5.1.1"
                for _ in range(5):
                    assert (await bench.deliver(bench.delivery(via))).recipients[0].result is Result.DELIVERED
        await eventually(lambda: postfix.count() == 6, within=60)
        (first, *_) = postfix.messages()
        assert first["Subject"] == "test"
        assert first.get_content().strip() == "Hello."
        assert "TLSv1.3" in str(first["Received"])


@pytest.mark.peer("postfix")
@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
async def test_a_tls_session_with_postfix_is_resumed_TLS_10e(version: str) -> None:
    authority = Authority()
    only = {"smtpd_tls_protocols": f">={version}, <={version}"}
    with Postfix(certificate=authority.issue("localhost"), address="127.0.0.1", settings=only) as postfix:
        via = transport(
            TransportKind.SMTP, host="localhost", port=postfix.port, tls=TlsMode.VERIFIED, ca=secret_ref("ca")
        )
        secrets = {"ca": authority.pem}
        async with OutboundBench.running(via, secrets=secrets, messages_per_connection=1) as bench:
            told = [(await bench.deliver(bench.delivery(via))).recipients[0].tls for _ in range(5)]
    assert [(tls.version, tls.verified, tls.resumed) for tls in told if tls is not None] == [
        (version, True, number > 1) for number in range(5)
    ]


@pytest.mark.peer("postfix")
@pytest.mark.peer("dovecot")
@pytest.mark.parametrize("kind", [TransportKind.SUBMISSION, TransportKind.SUBMISSIONS])
async def test_postfix_with_dovecot_sasl_lets_us_log_in(kind: TransportKind) -> None:
    authority = Authority()
    certificate = authority.issue("localhost")
    implicit = kind is TransportKind.SUBMISSIONS
    with (
        Dovecot({"user": "pencil"}) as dovecot,
        Postfix(certificate=certificate, sasl=dovecot.auth, implicit_tls=implicit, address="127.0.0.1") as postfix,
    ):
        secrets = {"ca": authority.pem, "right": b"pencil", "wrong": b"crayon"}
        common = {"host": "localhost", "port": postfix.port, "tls": TlsMode.VERIFIED, "ca": secret_ref("ca")}
        ways = {
            mechanism: transport(
                kind,
                f"with-{mechanism.lower()}",
                username="user",
                password=secret_ref("right"),
                mechanisms=(mechanism,),
                **common,
            )
            for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-1", "CRAM-MD5", "PLAIN", "LOGIN")
        }
        strongest = transport(kind, "strongest", username="user", password=secret_ref("right"), **common)
        wrong = transport(kind, "wrong", username="user", password=secret_ref("wrong"), **common)
        async with OutboundBench.running(*ways.values(), strongest, wrong, secrets=secrets) as bench:
            for name, via in [*ways.items(), ("strongest", strongest)]:
                (result,) = (await bench.deliver(bench.delivery(via))).recipients
                assert result.result is Result.DELIVERED, f"{name}: {result.text}"
            (refused,) = (await bench.deliver(bench.delivery(wrong))).recipients
        assert refused.result is Result.DEFERRED
        assert refused.transport_failure
        assert str(refused.status) == "4.3.5"


@pytest.mark.peer("dovecot")
async def test_dovecot_submission_gets_our_password_only_under_its_name() -> None:
    authority = Authority()
    certificate = authority.issue("submission.test")
    secrets = {"ca": authority.pem, "right": b"pencil"}
    async with Sink() as behind:
        start = functools.partial(
            Dovecot, {"user": "pencil"}, certificate=certificate, relay_to=(behind.host, behind.port)
        )
        dovecot = await asyncio.to_thread(start)
        try:
            address, port = dovecot.submission
            by_address, by_name = (
                transport(
                    TransportKind.SUBMISSION,
                    name,
                    host=host,
                    port=port,
                    tls=TlsMode.VERIFIED,
                    ca=secret_ref("ca"),
                    username="user",
                    password=secret_ref("right"),
                )
                for name, host in (("by-address", address), ("by-name", "submission.test"))
            )
            with DnsServer() as dns:
                dns.add("submission.test", "A", address)
                settings: dict[str, Any] = {"secrets": secrets, "resolver": dns.endpoint}
                async with OutboundBench.running(by_address, by_name, **settings) as bench:
                    (unproven,) = (await bench.deliver(bench.delivery(by_address))).recipients
                    (proven,) = (await bench.deliver(bench.delivery(by_name))).recipients
            assert (unproven.result, unproven.transport_failure) == (Result.DEFERRED, True)
            assert proven.result in (Result.DELIVERED, Result.RELAYED), proven.text
            await behind.until(lambda: len(behind.messages) == 1)
        finally:
            dovecot.stop()


@pytest.fixture(params=["dante", "microsocks"])
def proxy(request: pytest.FixtureRequest) -> Iterator[SocksServer]:
    running = dante() if request.param == "dante" else microsocks(username="u", password="p")
    with running as server:
        yield server


async def test_mail_goes_through_a_real_socks_proxy(proxy: SocksServer) -> None:
    login: dict[str, Any] = {"username": proxy.username, "password": secret_ref("proxy")} if proxy.username else {}
    via = transport(TransportKind.SOCKS, proxy_host=proxy.address, proxy_port=proxy.port, **login)
    async with Sink() as peer:
        with DnsServer() as dns:
            dns.add("example.org", "MX", "10 mx.example.org.")
            dns.add("mx.example.org", "A", peer.host)
            settings: dict[str, Any] = {"resolver": dns.endpoint, "direct_port": peer.port}
            async with OutboundBench.running(via, secrets={"proxy": b"p"}, **settings) as bench:
                (result,) = (await bench.deliver(bench.delivery(via))).recipients
        assert result.result is Result.DELIVERED, result.text
        assert peer.messages[0].content == MESSAGE


@pytest.mark.peer("postfix")
async def test_smtp_sink_takes_a_thousand_messages_over_twenty_connections() -> None:
    with smtp_sink() as sink:
        via = transport(TransportKind.SMTP, host=sink.address, port=sink.port, tls=TlsMode.NONE)
        async with OutboundBench.running(via) as bench:
            reports = await asyncio.gather(*(bench.begin(bench.delivery(via)) for _ in range(1000)))
            assert len(bench.pool.connections) <= 20
        assert {report.recipients[0].result for report in reports} <= {Result.DELIVERED, Result.RELAYED}


@pytest.mark.peer("postfix")
@pytest.mark.parametrize("eight_bit", [False, True])
async def test_a_hundred_megabytes_pass_without_being_held(eight_bit: bool) -> None:
    piece = (b"caf\xe9 " if eight_bit else b"cafe ") * 15 + b"\r\n"
    piece *= 262144 // len(piece)
    head = b"MIME-Version: 1.0\r\nContent-Type: text/plain\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
    count = (100 if not eight_bit else 20) * 4
    body = StreamedBody(head, *[piece] * count)
    process = psutil.Process()
    with smtp_sink("-8") as sink:  # -8: no 8BITMIME
        via = transport(TransportKind.SMTP, host=sink.address, port=sink.port, tls=TlsMode.NONE)
        async with OutboundBench.running(via) as bench:
            await bench.deliver(bench.delivery(via))
            before = process.memory_info().rss
            most = 0

            async def watch() -> None:
                nonlocal most
                while True:
                    most = max(most, process.memory_info().rss - before)
                    await asyncio.sleep(0.02)

            watching = asyncio.create_task(watch())
            size = len(head) + len(piece) * count
            delivery = bench.delivery(via, content=body, size=size, eight_bit=eight_bit)
            (result,) = (await bench.deliver(delivery, within=120)).recipients
            watching.cancel()
    assert result.result is Result.DELIVERED, result.text
    assert most < 30 * 1024 * 1024
