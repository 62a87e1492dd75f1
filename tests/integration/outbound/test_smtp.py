"""Deliveries over real sockets to a scripted server: results, reuse, limits, hostile servers."""

from typing import Any

from mailrail.core.config.revision import TlsMode, Transport, TransportKind
from mailrail_outbound.ports import Result

from testkit.outbound import MESSAGE, OutboundBench, transport
from testkit.smtp_peer import SmtpPeer


def smarthost(peer: SmtpPeer, **fields: Any) -> Transport:
    return transport(TransportKind.SMTP, host=peer.host, port=peer.port, **fields)


async def test_a_message_is_delivered_whole() -> None:
    async with SmtpPeer() as peer:
        via = smarthost(peer, tls=TlsMode.NONE)
        async with OutboundBench.running(via) as bench:
            report = await bench.deliver(bench.delivery(via))
            (result,) = report.recipients
            assert result.result is Result.DELIVERED
            (message,) = peer.messages
            assert message.content == MESSAGE
            assert message.mail == "MAIL FROM:<a@sender.example>"
            assert message.session.hello == "mail.sender.example"
