"""Servers that hang, drip, flood, talk nonsense or close at any step: bounded in time and memory, no false result."""

import asyncio
import contextlib
from typing import Any

import pytest

from mailrail.core.config.revision import TlsMode, TransportKind
from mailrail_outbound.ports import Result

from testkit.outbound import OutboundBench, transport
from testkit.smtp_peer import Action, Close, Drip, Flood, Hang, Raw, SmtpPeer

STEPS = ["GREETING", "EHLO", "MAIL", "RCPT", "DATA", "END"]
FAST: dict[str, Any] = {
    "greeting_timeout": 0.4,
    "command_timeout": 0.4,
    "data_timeout": 0.4,
    "block_timeout": 0.4,
    "end_timeout": 0.4,
}


@pytest.mark.parametrize("extensions", [["PIPELINING"], []], ids=["pipelined", "stepwise"])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    "action",
    [
        Close(),
        Hang(),
        Drip(),
        Drip(b"250-x\r\n", 0.05),
        Flood(),
        Flood(b"250 again\r\n"),
        Flood(b"\x00" * 1000),
        Raw(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        Raw(b"250-a\r\n251 b\r\n"),
        Raw(b"\x16\x03\x01\x00\xa5"),
    ],
    ids=["close", "hang", "drip", "drip-lines", "flood-lines", "flood-replies", "flood-zeros", "http", "mixed", "tls"],
)
async def test_a_hostile_step_defers_and_the_process_lives_on(step: str, action: Action, extensions: list[str]) -> None:
    async with SmtpPeer(extensions=extensions, replies={step: action}) as peer, SmtpPeer() as good:
        via = transport(TransportKind.SMTP, host=peer.host, port=peer.port, tls=TlsMode.NONE)
        other = transport(TransportKind.SMTP, "good", host=good.host, port=good.port, tls=TlsMode.NONE)
        async with OutboundBench.running(via, other, **FAST) as bench:
            (result,) = (await bench.deliver(bench.delivery(via), within=10)).recipients
            if result.result is Result.RELAYED:
                # A flood of 250s does say 250 to everything; then the message was really taken.
                assert action == Flood(b"250 again\r\n")
                assert step == "END"
            else:
                assert result.result is Result.DEFERRED
                assert result.uncertain == (step == "END")
                assert not peer.messages
            for _ in range(10):  # under a load that eats these short timeouts, more than once
                (fine,) = (await bench.deliver(bench.delivery(other))).recipients
                if fine.result is Result.DELIVERED:
                    break
            assert fine.result is Result.DELIVERED


async def test_a_server_that_reads_nothing_is_given_up_SOUT_06() -> None:
    body = b"Subject: x\r\n\r\n" + b"x" * 8_000_000
    async with SmtpPeer(replies={"DATA": Hang("354 go")}) as peer:
        via = transport(TransportKind.SMTP, host=peer.host, port=peer.port, tls=TlsMode.NONE)
        async with OutboundBench.running(via, **FAST) as bench:
            (result,) = (await bench.deliver(bench.delivery(via, content=body), within=10)).recipients
            assert result.result is Result.DEFERRED


async def test_a_server_that_says_421_and_reads_no_more_keeps_neither_socket_nor_content_of_ours() -> None:
    content = b"Subject: x\r\n\r\n" + b"x" * 16_000_000
    told, read = asyncio.Event(), asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        octets = 0
        writer.write(b"220 hi\r\n")
        for reply in (b"250 hi\r\n", b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n"):
            await reader.readline()
            writer.write(reply)
        await reader.readline()
        writer.write(b"421 4.3.2 not now\r\n")
        await told.wait()
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                octets += len(data)
        writer.close()
        read.set_result(octets)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1024)
    async with server:
        via = transport(TransportKind.SMTP, host="127.0.0.1", port=server.sockets[0].getsockname()[1], tls=TlsMode.NONE)
        async with OutboundBench.running(via) as bench:
            (result,) = (await bench.deliver(bench.delivery(via, content=content), within=10)).recipients
            assert (result.result, str(result.reply)) == (Result.DEFERRED, "421 4.3.2 not now")
            told.set()
            assert await asyncio.wait_for(read, 10) < len(content) - 1_000_000


async def test_a_dead_port_is_a_site_failure_and_names_the_address() -> None:
    via = transport(TransportKind.SMTP, host="127.83.1.1", port=1, tls=TlsMode.NONE)
    async with OutboundBench.running(via) as bench:
        (result,) = (await bench.deliver(bench.delivery(via))).recipients
        assert result.result is Result.DEFERRED
        assert result.site_failure
        assert str(result.status) == "4.4.1"
        assert "127.83.1.1 port 1" in result.text
        assert result.dialled


async def test_a_reply_lost_after_the_final_dot_is_uncertain_and_tried_nowhere_else_SOUT_14() -> None:
    async with SmtpPeer(replies={"END": Close()}) as peer:
        via = transport(TransportKind.SMTP, host=peer.host, port=peer.port, tls=TlsMode.NONE)
        async with OutboundBench.running(via) as bench:
            (result,) = (await bench.deliver(bench.delivery(via))).recipients
            assert result.uncertain
            assert result.result is Result.DEFERRED
            assert len(peer.sessions) == 1


async def test_a_refusal_just_before_the_server_closes_is_kept_H10() -> None:
    async with SmtpPeer(replies={"MAIL": Close("550 5.7.1 we do not like you")}) as peer:
        via = transport(TransportKind.SMTP, host=peer.host, port=peer.port, tls=TlsMode.NONE)
        async with OutboundBench.running(via) as bench:
            (result,) = (await bench.deliver(bench.delivery(via))).recipients
            assert result.result is Result.FAILED
            assert str(result.reply) == "550 5.7.1 we do not like you"
