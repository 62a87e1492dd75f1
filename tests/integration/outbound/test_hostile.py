"""Servers that hang, drip, flood, talk nonsense or close at any step: bounded in time and memory, no false result."""

import asyncio
import contextlib
from typing import Any

import pytest

from mailrail.core.revision.revision import TlsMode, TransportKind
from mailrail.sink import Sink
from mailrail_outbound.ports import Result

from testkit.ca import Authority
from testkit.outbound import OutboundBench, StreamedBody, submission, transport
from testkit.smtp_peer import Action, Close, Drip, Flood, Hang, Raw, Slow, SmtpPeer

STEPS = ["GREETING", "EHLO", "MAIL", "RCPT", "DATA", "END"]
FAST: dict[str, Any] = {
    "greeting_timeout": 0.4,
    "command_timeout": 0.4,
    "data_timeout": 0.4,
    "block_timeout": 0.4,
    "end_timeout": 0.4,
}


ACTIONS = {
    "close": Close(),
    "hang": Hang(),
    "drip": Drip(),
    "drip-lines": Drip(b"250-x\r\n", 0.05),
    "flood-lines": Flood(),
    "flood-replies": Flood(b"250 again\r\n"),
    "flood-zeros": Flood(b"\x00" * 1000),
    "http": Raw(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    "broken-lines": Raw(b"250-a\r\nb\r\n"),
    "tls": Raw(b"\x16\x03\x01\x00\xa5"),
}
_SAYS_250 = [ACTIONS[name] for name in ("drip", "drip-lines", "flood-lines", "flood-replies", "broken-lines")]
"""After the final dot that is a code which was read: the server has the message, and must not get it again."""
hostile = pytest.mark.parametrize("action", list(ACTIONS.values()), ids=list(ACTIONS))


@pytest.mark.parametrize("extensions", [["PIPELINING"], []], ids=["pipelined", "stepwise"])
@pytest.mark.parametrize("step", STEPS)
@hostile
async def test_a_hostile_step_defers_and_the_process_lives_on(step: str, action: Action, extensions: list[str]) -> None:
    async with SmtpPeer(extensions=extensions, replies={step: action}) as peer, Sink() as good:
        via = transport(TransportKind.SMTP, host=peer.host, port=peer.port, tls=TlsMode.NONE)
        other = transport(TransportKind.SMTP, "good", host=good.host, port=good.port, tls=TlsMode.NONE)
        async with OutboundBench.running(via, other, **FAST) as bench:
            (result,) = (await bench.deliver(bench.delivery(via), within=60)).recipients
            if step == "END" and action in _SAYS_250:
                assert result.result is Result.RELAYED
            else:
                assert result.result is Result.DEFERRED
                assert result.uncertain == (step == "END")
                assert not peer.messages
            for _ in range(10):  # under a load that eats these short timeouts, more than once
                (fine,) = (await bench.deliver(bench.delivery(other))).recipients
                if fine.result is Result.DELIVERED:
                    break
            assert fine.result is Result.DELIVERED


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.mark.parametrize("step", ["STARTTLS", "EHLO", "AUTH"])
@hostile
async def test_a_hostile_step_on_the_way_to_a_submission_server_defers_and_shows_it_no_message(
    authority: Authority, step: str, action: Action
) -> None:
    async with SmtpPeer(
        tls=authority.issue("localhost").server_context(),
        extensions_after_tls=["AUTH PLAIN"],
        replies={step: lambda session, line: action if session.tls or step == "STARTTLS" else None},
        accounts={"u": "p"},
    ) as peer:
        via = submission("localhost", peer.port)
        secrets = {"ca": authority.pem, "password": b"p"}
        async with OutboundBench.running(via, secrets=secrets, tls_timeout=0.4, auth_timeout=0.4, **FAST) as bench:
            (result,) = (await bench.deliver(bench.delivery(via), within=60)).recipients
        assert (result.result, result.uncertain) == (Result.DEFERRED, False)
        assert not any(line.startswith("MAIL") for line in peer.commands)


@pytest.mark.parametrize("extensions", [["PIPELINING", "CHUNKING"], ["CHUNKING"]], ids=["pipelined", "stepwise"])
@hostile
async def test_a_hostile_chunk_leaves_no_false_result(action: Action, extensions: list[str]) -> None:
    content = b"Subject: x\r\n\r\n" + b"x\r\n" * 300_000
    async with SmtpPeer(extensions=extensions, replies={"BDAT": action}) as peer:
        via = transport(TransportKind.SMTP, host=peer.host, port=peer.port, tls=TlsMode.NONE)
        async with OutboundBench.running(via, **FAST) as bench:
            body = StreamedBody(*(content[i : i + 100_000] for i in range(0, len(content), 100_000)))
            delivery = bench.delivery(via, content=body, size=len(content))
            (result,) = (await bench.deliver(delivery, within=60)).recipients
        assert result.result is Result.DEFERRED or action == ACTIONS["flood-replies"]
        assert not peer.messages


@pytest.mark.parametrize("step", ["GREETING", "EHLO", "RCPT", "END"])
@hostile
async def test_a_hostile_lmtp_server_delivers_to_nobody(step: str, action: Action) -> None:
    async with SmtpPeer(lmtp=True, replies={step: action}) as peer:
        via = transport(TransportKind.LMTP, host=peer.host, port=peer.port, tls=TlsMode.NONE)
        async with OutboundBench.running(via, **FAST) as bench:
            delivery = bench.delivery(via, "a@example.org", "b@example.org")
            reports = (await bench.deliver(delivery, within=60)).recipients
        if action == ACTIONS["flood-replies"] and step in ("RCPT", "END"):
            return  # it did say 250 to everything
        # The code of a reply without an end is one recipient's, and the other has none.
        first = Result.DELIVERED if step == "END" and action in _SAYS_250 else Result.DEFERRED
        assert [report.result for report in reports] == [first, Result.DEFERRED]
        assert not peer.messages


async def test_a_server_that_reads_nothing_is_given_up_SOUT_06() -> None:
    body = b"Subject: x\r\n\r\n" + b"x" * 8_000_000
    async with SmtpPeer(replies={"DATA": Hang("354 go")}) as peer:
        via = transport(TransportKind.SMTP, host=peer.host, port=peer.port, tls=TlsMode.NONE)
        async with OutboundBench.running(via, **FAST) as bench:
            (result,) = (await bench.deliver(bench.delivery(via, content=body), within=60)).recipients
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
            (result,) = (await bench.deliver(bench.delivery(via, content=content), within=60)).recipients
            assert (result.result, str(result.reply)) == (Result.DEFERRED, "421 4.3.2 not now")
            told.set()
            assert await asyncio.wait_for(read, 60) < len(content) - 1_000_000


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


@pytest.mark.parametrize("extensions", [["PIPELINING"], []])
async def test_a_server_that_is_slow_at_each_command_is_given_up_in_all_SOUT_06(extensions: list[str]) -> None:
    slow = [Slow("550 5.1.1 no", 0.15), Slow("250 ok", 0.15)]  # 6 s in all
    async with SmtpPeer(extensions=extensions, replies={"RCPT": slow}) as peer:
        via = transport(TransportKind.SMTP, host=peer.host, port=peer.port, tls=TlsMode.NONE)
        limits: dict[str, Any] = {"transaction_timeout": 3.0, "transaction_recipient_timeout": 0.01}
        async with OutboundBench.running(via, **limits) as bench:
            delivery = bench.delivery(via, "first@example.org", *(f"r{i}@example.org" for i in range(40)))
            report = await bench.deliver(delivery)
        first, *others = report.recipients
        assert first.result is Result.FAILED  # it was answered
        assert {each.result for each in others} == {Result.DEFERRED}
        assert str(others[-1].status) == "4.4.2"
        assert "too long in all" in others[-1].text
        assert peer.messages == []


LONG = {
    **{f"{n} octets": "250 2.0.0 " + "x" * (n - 10) for n in (600, 2000, 4000, 9000, 70_000)},
    "301 lines": "\n".join(["250 2.0.0 and another line"] * 301),
    "no end of lines": Flood(b"250-and another line\r\n"),
    "no end of a line": Raw(b"250 2.0.0 " + b"x" * 2_000_000),
    "closed in the middle": Close("250-2.0.0 taken"),
    "hangs in the middle": Hang("250-2.0.0 taken"),
    "another code in the last line": Raw(b"250-ok\r\n251 fine\r\n"),
}


@pytest.mark.parametrize("said", list(LONG.values()), ids=list(LONG))
async def test_a_250_after_the_final_dot_counts_once_however_much_follows_it_LSE_08(said: Action) -> None:
    async with SmtpPeer(replies={"END": said}) as peer:
        via = transport(TransportKind.SMTP, host=peer.host, port=peer.port, tls=TlsMode.NONE)
        async with OutboundBench.running(via, **{**FAST, "end_timeout": 1.0}) as bench:
            (result,) = (await bench.deliver(bench.delivery(via), within=60)).recipients
            assert (result.result, result.uncertain) == (Result.DELIVERED, False)
            assert result.reply is not None
            assert len(str(result.reply)) <= 65536 + 256
            assert sum(line == "DATA" for line in peer.commands) == 1


@pytest.mark.parametrize("step", ["MAIL", "RCPT", "DATA", "END"])
async def test_a_refusal_of_any_length_bounces_with_its_code_SOUT_13(step: str) -> None:
    async with SmtpPeer(replies={step: "550 5.1.1 " + "x" * 3000}) as peer:
        via = transport(TransportKind.SMTP, host=peer.host, port=peer.port, tls=TlsMode.NONE)
        async with OutboundBench.running(via) as bench:
            (result,) = (await bench.deliver(bench.delivery(via))).recipients
            assert (result.result, str(result.status)) == (Result.FAILED, "5.1.1")
            assert result.reply is not None
            assert result.reply.code == 550


async def test_the_last_line_decides_where_the_codes_of_a_reply_differ() -> None:
    async with SmtpPeer(replies={"RCPT": Raw(b"250-well\r\n550 5.1.1 no\r\n")}) as peer:
        via = transport(TransportKind.SMTP, host=peer.host, port=peer.port, tls=TlsMode.NONE)
        async with OutboundBench.running(via) as bench:
            (result,) = (await bench.deliver(bench.delivery(via))).recipients
            assert (result.result, str(result.status)) == (Result.FAILED, "5.1.1")
