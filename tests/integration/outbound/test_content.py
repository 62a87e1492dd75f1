"""Content of every kind leaves outbound octet by octet as it came, whatever is known of its lines (SOUT-12a)."""

import asyncio
from collections.abc import Callable

import pytest

from mailrail.core.outbound.envelope import Envelope
from mailrail.core.revision.revision import TlsMode, TransportKind
from mailrail.core.smtp.answer import Stage
from mailrail.core.smtp.line_facts import PLAIN, UNKNOWN, WHOLE, LineFacts
from mailrail.core.smtp.parameters import BodyType
from mailrail_outbound.ports import Result

from testkit.ca import Authority
from testkit.conditions import eventually
from testkit.outbound import OutboundBench, StreamedBody, transport
from testkit.servers import serve
from testkit.smtp_peer import SmtpPeer

_PREFIX = b"Received: by test\r\n"
_LINES = b"Subject: x\r\n\r\n" + b"0123456789abcdef" * 4 + b"\r\n"
BODIES: dict[str, tuple[bytes, LineFacts]] = {
    "empty": (b"", PLAIN),
    "ten octets": (b"A: b\r\n\r\nx\r\n", PLAIN),
    "no line end at the end": (b"A: b\r\n\r\nx", PLAIN),
    "a dot alone": (b".", WHOLE),
    "lines that begin with dots": (b"A: b\r\n\r\n.\r\n..\r\n.x\r\n" * 3000, WHOLE),
    "many dots and no line of them": (b"A: b\r\n\r\n" + b"a.b. c. \r\n" * 20_000, PLAIN),
    "eight bit": (b"A: b\r\n\r\n" + b"caf\xe9\r\n" * 20_000, PLAIN),
    "exactly 64 KiB": ((_LINES * 1000)[: 65_536 - 2] + b"\r\n", PLAIN),
    "one more than 64 KiB": ((_LINES * 1000)[: 65_537 - 2] + b"\r\n", PLAIN),
    "exactly 1 MiB": ((_LINES * 20_000)[: 1_048_576 - 2] + b"\r\n", PLAIN),
    "3 MB": (_LINES * 40_000, PLAIN),
}
HOW: dict[str, Callable[[LineFacts], LineFacts]] = {
    "told": lambda lines: lines,
    "told half": lambda lines: LineFacts(whole=lines.whole),
    "not told": lambda lines: UNKNOWN,
}


@pytest.mark.parametrize("tls", [False, True], ids=["clear", "tls"])
@pytest.mark.parametrize(
    "extensions", [["PIPELINING", "8BITMIME"], ["8BITMIME"], ["PIPELINING", "8BITMIME", "CHUNKING"]]
)
async def test_content_arrives_as_it_is_whatever_was_said_of_its_lines_SOUT_12a(
    extensions: list[str], tls: bool
) -> None:
    context = Authority().issue("peer.example").server_context() if tls else None
    async with SmtpPeer(extensions=extensions, tls=context) as peer:
        via = transport(
            TransportKind.SMTP, host=peer.host, port=peer.port, tls=TlsMode.OPPORTUNISTIC if tls else TlsMode.NONE
        )
        async with OutboundBench.running(via) as bench:
            for name, (body, true) in BODIES.items():
                for told in HOW.values():
                    for streamed in (False, True):
                        content = StreamedBody(*_pieces(body)) if streamed else body
                        before = len(peer.messages)
                        report = await bench.deliver(
                            bench.delivery(
                                via,
                                content=content,
                                prefix=_PREFIX,
                                size=len(_PREFIX) + len(body),
                                eight_bit=not body.isascii(),
                                lines=told(true),
                            )
                        )
                        assert report.recipients[0].result is Result.RELAYED, report.recipients[0].reply
                        (message,) = peer.messages[before:]
                        sent = _PREFIX + body
                        if not message.bdat and not sent.endswith(b"\r\n"):
                            sent += b"\r\n"
                        assert message.content == sent, (name, streamed)
            assert {bool(session.tls) for session in peer.sessions} == {tls}


def _pieces(body: bytes) -> list[bytes]:
    """Cut where it hurts: after each CR at a piece's end too."""
    size = max(1, len(body) // 7)
    return [body[at : at + size] for at in range(0, len(body), size)]


@pytest.mark.parametrize(
    "body", [b"A: b\r\n\r\na\n.\nMAIL FROM:<x>\r\n", b"A: b\r\n\r\na\r.\r\n", b"A: b\r\n\r\nN\0L\r\n"]
)
async def test_content_of_which_nothing_is_said_is_looked_at_SOUT_12a(body: bytes) -> None:
    """An older row, or what another service made."""
    async with SmtpPeer(extensions=["PIPELINING", "8BITMIME"]) as peer:
        via = transport(TransportKind.SMTP, host=peer.host, port=peer.port, tls=TlsMode.NONE)
        async with OutboundBench.running(via) as bench:
            await bench.deliver(bench.delivery(via, content=body, prefix=_PREFIX, size=len(_PREFIX) + len(body)))
        (message,) = peer.messages
        assert b"\0" not in message.content
        assert b"\n.\n" not in message.content
        assert "MAIL FROM:<x>" not in peer.commands


async def test_the_reply_to_a_final_dot_has_its_time_from_when_the_dot_left_SOUT_06() -> None:
    """A slow server reads a large body for minutes after it was handed to the kernel."""
    reads, has_read, answers = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 slow\r\n")
        while line := await reader.readline():
            reply = b"250 ok\r\n"
            if line == b"DATA\r\n":
                writer.write(b"354 go\r\n")
                await reads.wait()
                end = b""
                while end != b"\r\n.\r\n":
                    end = (end + await reader.read(65_536))[-5:]
                has_read.set()
                await answers.wait()
            writer.write(reply)

    async with serve(slow) as (host, port):
        via = transport(TransportKind.SMTP, host=host, port=port, tls=TlsMode.NONE)
        async with OutboundBench.running(via) as bench:
            report = bench.begin(bench.delivery(via, content=b"A: b\r\n\r\n" + _LINES * 500_000, lines=PLAIN))
            connection = await eventually(
                lambda: next((one for one in bench.pool.connections if one.session.awaiting is Stage.END), None)
            )
            before = connection.deadline
            reads.set()
            await has_read.wait()
            await eventually(lambda: connection.deadline > before)
            answers.set()
            assert (await report).recipients[0].result is Result.RELAYED


async def test_binary_content_goes_in_parts_by_bdat_EXT_08() -> None:
    body = b"A: b\r\n\r\n" + bytes(range(256)) * 2000
    async with SmtpPeer(extensions=["PIPELINING", "8BITMIME", "CHUNKING", "BINARYMIME"]) as peer:
        via = transport(TransportKind.SMTP, host=peer.host, port=peer.port, tls=TlsMode.NONE)
        async with OutboundBench.running(via) as bench:
            for prefix in (_PREFIX, b""):
                await bench.deliver(
                    bench.delivery(
                        via,
                        content=body,
                        prefix=prefix,
                        size=len(prefix) + len(body),
                        envelope=Envelope("a@sender.example", body=BodyType.BINARY_MIME),
                    )
                )
        assert [message.content for message in peer.messages] == [_PREFIX + body, body]
        assert all(message.bdat for message in peer.messages)
