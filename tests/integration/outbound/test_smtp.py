"""Deliveries over real sockets to the sink and to scripted servers: results, reuse, limits, extensions."""

import asyncio
import contextlib
import email
import email.message
import threading
import tracemalloc
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, cast

import pytest

from mailrail.core.message.reencode import Reencoder
from mailrail.core.outbound.envelope import Envelope, EnvelopeRecipient
from mailrail.core.revision.revision import TlsMode, Transport, TransportKind, TransportLimits
from mailrail.core.route import LackingTransport
from mailrail.core.smtp.parameters import BodyType
from mailrail.sink import Options, Sink
from mailrail_outbound.ports import RecipientReport, Result

from testkit.conditions import eventually
from testkit.outbound import MESSAGE, OutboundBench, StreamedBody, transport
from testkit.smtp_peer import Close, Hang, Held, PeerSession, Slow, SmtpPeer, Step


def smarthost(peer: SmtpPeer | Sink, kind: TransportKind = TransportKind.SMTP, **fields: Any) -> Transport:
    fields.setdefault("tls", TlsMode.NONE)
    return transport(kind, host=peer.host, port=peer.port, **fields)


async def deliver(peer: SmtpPeer | Sink, *recipients: EnvelopeRecipient | str, **fields: Any) -> list[RecipientReport]:
    """One delivery through the peer as smarthost."""
    via = smarthost(peer, **fields.pop("hop", {}))
    async with OutboundBench.running(via) as bench:
        return (await bench.deliver(bench.delivery(via, *recipients, **fields))).recipients


def results(reports: list[RecipientReport]) -> list[Result]:
    return [report.result for report in reports]


# --- results ---------------------------------------------------------------------------------------------------


async def test_a_message_is_delivered_whole_under_our_name() -> None:
    async with Sink() as peer:
        (result,) = await deliver(peer)
        assert result.result is Result.DELIVERED
        assert result.ip == peer.host
        (message,) = peer.messages
        assert message.content == MESSAGE
        assert message.hello == "mail.sender.example"


async def test_a_hop_without_dsn_relays_and_one_with_dsn_takes_our_parameters_DSN_04_DSN_05() -> None:
    recipient = EnvelopeRecipient("b@example.org", ("SUCCESS", "FAILURE"), "rfc822;B+2Bx@Example.ORG")
    envelope = Envelope("a@sender.example", ret="HDRS", envid="QQ+3D1")
    async with Sink(Options(dsn=False)) as peer:
        (result,) = await deliver(peer, recipient, envelope=envelope)
        assert (result.result, result.dsn_passed_on) == (Result.RELAYED, False)
        (message,) = peer.messages
        assert message.sender_parameters == (f"SIZE={len(MESSAGE)}",)
        assert message.recipient_parameters == ((),)
    async with Sink() as peer:
        (result,) = await deliver(peer, recipient, envelope=envelope)
        assert (result.result, result.dsn_passed_on) == (Result.DELIVERED, True)
        (message,) = peer.messages
        assert message.sender_parameters == (f"SIZE={len(MESSAGE)}", "RET=HDRS", "ENVID=QQ+3D1")
        assert message.recipient_parameters == (("NOTIFY=SUCCESS,FAILURE", "ORCPT=rfc822;B+2Bx@Example.ORG"),)


async def test_each_recipient_has_its_own_result_and_reply_SOUT_10() -> None:
    async with Sink() as peer:
        peer.answers.give("RCPT", "550 5.1.1 unknown", to="b@example.org")
        peer.answers.give("RCPT", "451 4.2.0 later", to="c@example.org")
        reports = await deliver(peer, "a@example.org", "b@example.org", "c@example.org")
        assert results(reports) == [Result.DELIVERED, Result.FAILED, Result.DEFERRED]
        assert str(reports[1].reply) == "550 5.1.1 unknown"
        assert str(reports[2].status) == "4.2.0"
        assert peer.messages[0].recipients == ("a@example.org",)


async def test_too_many_recipients_go_on_in_another_transaction_on_the_same_connection_F2() -> None:
    def rcpt(session: PeerSession, line: str) -> str | None:
        return "452 4.5.3 too many recipients" if len(session.accepted) >= 2 else None

    async with SmtpPeer(replies={"RCPT": rcpt}) as peer:
        reports = await deliver(peer, *(f"r{i}@example.org" for i in range(5)))
        assert set(results(reports)) == {Result.DELIVERED}
        assert [len(message.rcpts) for message in peer.messages] == [2, 2, 1]
        assert len(peer.sessions) == 1


async def test_rcptmax_splits_a_delivery_SOUT_09_OPT_07() -> None:
    async with SmtpPeer(extensions=["PIPELINING", "LIMITS RCPTMAX=3"]) as peer:
        await deliver(peer, *(f"r{i}@example.org" for i in range(7)))
        assert [len(message.rcpts) for message in peer.messages] == [3, 3, 1]
        assert len(peer.sessions) == 1


async def test_mailmax_ends_a_connection_and_the_rest_takes_another_OPT_07() -> None:
    async with SmtpPeer(extensions=["PIPELINING", "LIMITS RCPTMAX=1 MAILMAX=2"]) as peer:
        reports = await deliver(peer, *(f"r{i}@example.org" for i in range(5)))
        assert set(results(reports)) == {Result.RELAYED}
        assert len(peer.messages) == 5
        assert len(peer.sessions) == 3


@pytest.mark.parametrize(
    ("step", "reply", "expected"),
    [
        ("MAIL", "550 5.7.1 no", Result.FAILED),
        ("MAIL", "451 4.3.0 later", Result.DEFERRED),
        ("RCPT", "552 5.2.2 full", Result.DEFERRED),
        ("RCPT", "251 2.1.5 will forward", Result.DELIVERED),
        ("DATA", "554 5.7.1 no", Result.FAILED),
        ("DATA", "451 4.3.0 later", Result.DEFERRED),
        ("END", "554 5.6.0 spam", Result.FAILED),
        ("END", "452 4.3.1 disk", Result.DEFERRED),
        ("END", "499 4.9.9 unknown code", Result.DEFERRED),
        ("MAIL", "421 4.3.2 bye", Result.DEFERRED),
        ("RCPT", "421 4.3.2 bye", Result.DEFERRED),
        ("END", "421 4.3.2 bye", Result.DEFERRED),
        ("GREETING", "554 5.3.2 no mail here", Result.FAILED),
        ("GREETING", "421 4.3.2 busy", Result.DEFERRED),
    ],
)
@pytest.mark.parametrize("extensions", [["PIPELINING", "DSN"], ["DSN"]])
async def test_what_a_reply_means_SOUT_13(step: str, reply: str, expected: Result, extensions: list[str]) -> None:
    async with SmtpPeer(extensions=extensions, replies={step: reply}) as peer:
        (result,) = await deliver(peer)
        # Our own smarthost's greeting is never a bounce.
        assert result.result is (Result.DEFERRED if step == "GREETING" else expected)
        assert result.remote
        assert result.reply is not None
        assert result.reply.code == (250 if expected is Result.DELIVERED else int(reply[:3]))


async def test_lmtp_has_a_result_for_each_recipient_and_is_final_LMTP_02_LMTP_04() -> None:
    async with Sink(Options(lmtp=True)) as peer:
        peer.answers.give("END", "452 4.2.2 full", to="b@x.example")
        peer.answers.give("END", "550 5.2.1 off", to="c@x.example")
        via = smarthost(peer, TransportKind.LMTP)
        async with OutboundBench.running(via) as bench:
            report = await bench.deliver(bench.delivery(via, "a@x.example", "b@x.example", "c@x.example"))
        assert results(report.recipients) == [Result.DELIVERED, Result.DEFERRED, Result.FAILED]
        (message,) = peer.messages
        assert (message.hello, message.recipients) == ("mail.sender.example", ("a@x.example",))
        assert message.header("Return-Path") is None


async def test_lmtp_lost_midway_leaves_only_the_unanswered_to_retry_LMTP_03() -> None:
    async with SmtpPeer(lmtp=True, replies={"END": ["250 one", "250 two", Close()]}) as peer:
        via = smarthost(peer, TransportKind.LMTP)
        async with OutboundBench.running(via) as bench:
            report = await bench.deliver(bench.delivery(via, "a@x.example", "b@x.example", "c@x.example"))
        assert results(report.recipients) == [Result.DELIVERED, Result.DELIVERED, Result.DEFERRED]
        assert [r.uncertain for r in report.recipients] == [False, False, True]


# --- extensions ---------------------------------------------------------------------------------------------------

EIGHT_BIT = b"Subject: x\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=latin1\r\n\r\ncaf\xe9\r\n"


async def test_eight_bit_content_is_announced_where_the_hop_takes_it_EXT_09() -> None:
    async with Sink() as peer:
        await deliver(peer, content=EIGHT_BIT)
        assert peer.messages[0].content == EIGHT_BIT
        assert "BODY=8BITMIME" in peer.messages[0].sender_parameters


async def test_eight_bit_content_is_reencoded_where_it_does_not_SOUT_18a() -> None:
    async with Sink(SEVEN_BIT) as peer:
        (result,) = await deliver(peer, content=EIGHT_BIT)
        assert result.result is Result.RELAYED
        content = peer.messages[0].content
        assert b"caf=E9\r\n" in content
        assert b"Content-Transfer-Encoding: quoted-printable\r\n" in content
        assert peer.messages[0].sender_parameters == (f"SIZE={len(content)}",)


def signed(content: bytes) -> bytes:
    return b"dkim-signature : v=1; d=example.net; b=abc\r\n" + content


async def test_signed_mail_is_not_reencoded_SOUT_18b() -> None:
    async with Sink(SEVEN_BIT) as peer:
        (result,) = await deliver(peer, content=signed(EIGHT_BIT))
        assert (result.result, str(result.status)) == (Result.FAILED, "5.6.3")
        assert "DKIM-Signature" in result.text
        assert result.lacking is not None
        assert result.lacking.extension == "8BITMIME"
        assert not peer.messages
        quoted = EIGHT_BIT.replace(b"\r\n\r\n", b"\r\n\r\nDKIM-Signature: is only quoted\r\n", 1)
        (result,) = await deliver(peer, content=quoted)
        assert result.result is Result.RELAYED
    async with SmtpPeer(extensions=["8BITMIME"]) as peer:
        (result,) = await deliver(peer, content=signed(EIGHT_BIT))
        assert result.result is Result.RELAYED
        assert peer.messages[0].content == signed(EIGHT_BIT)


@pytest.mark.parametrize("streams", [False, True])
async def test_signed_mail_is_reencoded_where_the_transport_says_so_SOUT_18b(*, streams: bool) -> None:
    content = signed(EIGHT_BIT)
    given = {"content": StreamedBody(content) if streams else content, "size": len(content), "eight_bit": True}
    async with Sink(SEVEN_BIT) as peer:
        (result,) = await deliver(peer, hop={"reencode_signed": True}, **given)
        assert result.result is Result.RELAYED
        assert peer.messages[0].content.startswith(b"dkim-signature : v=1; d=example.net; b=abc\r\n")
        assert b"caf=E9\r\n" in peer.messages[0].content


@pytest.mark.parametrize("at_hand", [False, True])
async def test_large_signed_mail_is_not_reencoded_either_SOUT_18b(at_hand: bool) -> None:
    head = b"MIME-Version: 1.0\r\nContent-Transfer-Encoding: 8bit\r\nContent-Type: text/plain\r\n\r\n"
    content = signed(head + b"caf\xe9\r\n" * 50_000)
    async with Sink(SEVEN_BIT) as peer:
        given = content if at_hand else _pieces(content)
        (result,) = await deliver(peer, content=given, size=len(content), eight_bit=True)
        assert (result.result, str(result.status)) == (Result.FAILED, "5.6.3")
        assert result.lacking is not None
        assert result.lacking.extension == "8BITMIME"
        assert not peer.messages


async def test_the_queue_is_told_which_transport_lacks_what_the_content_needs_SOUT_18c() -> None:
    binary = signed(b"Subject: x\r\n\r\na\0b\r\n")
    async with Sink() as peer:
        via = smarthost(peer)
        async with OutboundBench.running(via) as bench:
            (result,) = (await bench.deliver(bench.delivery(via, content=binary))).recipients
            assert result.lacking == LackingTransport(via.ref, via.digest, "BINARYMIME")
            (taken,) = (await bench.deliver(bench.delivery(via, content=signed(EIGHT_BIT)))).recipients
            assert (taken.result, taken.lacking) == (Result.DELIVERED, None)


async def test_the_queue_is_told_of_whom_a_transport_without_smtputf8_cannot_take_SOUT_18c() -> None:
    envelope = Envelope("a@sender.example", smtputf8=True)
    header = "Subject: gr\u00fc\u00dfe\r\n\r\nx\r\n".encode()
    async with Sink(SEVEN_BIT) as peer:
        via = smarthost(peer)
        missing = LackingTransport(via.ref, via.digest, "SMTPUTF8")
        async with OutboundBench.running(via) as bench:
            delivery = bench.delivery(via, "b@example.org", "gr\u00fc\u00dfe@example.org", envelope=envelope)
            taken, refused = (await bench.deliver(delivery)).recipients
            assert (taken.lacking, refused.lacking) == (None, missing)
            (result,) = (await bench.deliver(bench.delivery(via, envelope=envelope, content=header))).recipients
            assert (str(result.status), result.lacking) == ("5.6.9", missing)


SEVEN_BIT = Options(eight_bit=False, smtputf8=False, dsn=False)
GREETING = "Grüße aus Köln".encode()


def parts(fields: bytes, *, boundary: bytes = b"bb", before: bytes = b"", part: bytes | None = None) -> bytes:
    if part is None:
        label = b"Content-Transfer-Encoding: 8bit\r\n"
        part = b"Content-Type: text/plain; charset=utf-8\r\n" + label + b"\r\n" + GREETING + b"\r\n"
    mark = b"--" + boundary
    return b"Subject: x\r\nMIME-Version: 1.0\r\n%s\r\n\r\n%s%s\r\n%s%s--\r\n" % (fields, before, mark, part, mark)


REPORT = (
    b"Content-Type: message/delivery-status\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
    b"Reporting-MTA: dns; a.example\r\n\r\nFinal-Recipient: rfc822; b@c.example\r\nDiagnostic-Code: x; K\xf6ln\r\n"
)


@pytest.mark.parametrize(
    ("content", "read"),
    [
        (
            parts(b"Content-Type: multipart/mixed; boundary=bb\r\nContent-Transfer-Encoding: base64"),
            [("text/plain", GREETING)],
        ),
        (parts(b'Content-Type: multipart/mixed; boundary*0="b"; boundary*1="b"'), [("text/plain", GREETING)]),
        (
            parts(b'Content-Type: multipart/related; start="<x;boundary=zz>"; boundary=bb'),
            [("text/plain", GREETING)],
        ),
        (parts(b"Content-Type: multipart/mixed; boundary=bb cc", boundary=b"bb cc"), [("text/plain", GREETING)]),
        (
            parts(b"Content-Type: multipart/report; boundary=bb", part=REPORT),
            [("text/plain", b""), ("text/plain", b"")],
        ),
        (
            parts(b"Content-Type: multipart/mixed; boundary=bb", before="Für Leser ohne MIME\r\n".encode()),
            [("text/plain", GREETING)],
        ),
    ],
    ids=["label", "continued", "quoted", "blank", "report", "preamble"],
)
async def test_parts_arrive_whole_readable_and_in_seven_bits_however_they_are_declared_EXT_08_SOUT_18a(
    content: bytes, read: list[tuple[str, bytes]]
) -> None:
    async with Sink(SEVEN_BIT) as peer:
        (result,) = await deliver(peer, content=content, envelope=Envelope("a@b", body=BodyType.EIGHT_BIT_MIME))
        assert result.result is Result.RELAYED
        (message,) = peer.messages
    assert message.content.isascii()
    arrived = email.message_from_bytes(message.content)
    leaves = [part for part in arrived.walk() if not part.is_multipart()]
    assert [(leaf.get_content_type(), leaf.get_payload(decode=True)) for leaf in leaves] == read
    assert arrived["Content-Transfer-Encoding"] in (None, "7bit")
    for report in (part for part in arrived.walk() if part.get_content_type() == "message/delivery-status"):
        assert report["Content-Transfer-Encoding"] == "7bit"
        whole, recipient = cast(list[email.message.Message], report.get_payload())
        assert (whole["Reporting-MTA"], recipient["Final-Recipient"]) == ("dns; a.example", "rfc822; b@c.example")


BINARY = (
    b"Subject: x\r\nMIME-Version: 1.0\r\nContent-Type: a/b\r\nContent-Transfer-Encoding: binary\r\n\r\n"
    b"\0\r\n.\r\n\n\xff"
)


async def test_binary_content_goes_by_bdat_as_it_is_EXT_08() -> None:
    async with SmtpPeer(extensions=["PIPELINING", "8BITMIME", "CHUNKING", "BINARYMIME"]) as peer:
        await deliver(peer, content=BINARY, envelope=Envelope("a@sender.example", body=BodyType.BINARY_MIME))
        (message,) = peer.messages
        assert message.content == BINARY
        assert message.bdat
        assert "BODY=BINARYMIME" in message.mail


async def test_binary_content_becomes_base64_without_binarymime_EXT_08() -> None:
    async with SmtpPeer(extensions=["PIPELINING", "8BITMIME", "CHUNKING"]) as peer:
        await deliver(peer, content=BINARY, envelope=Envelope("a@sender.example", body=BodyType.BINARY_MIME))
        (message,) = peer.messages
        assert message.content.endswith(b"base64\r\n\r\nAA0KLg0KCv8=\r\n")
        assert "BODY=" not in message.mail or "BODY=8BITMIME" in message.mail


async def test_smtputf8_is_asked_for_only_where_it_is_needed_EXT_11() -> None:
    async with Sink() as peer:
        envelope = Envelope("a@sender.example", smtputf8=True)
        via = smarthost(peer)
        async with OutboundBench.running(via) as bench:
            await bench.deliver(bench.delivery(via, envelope=envelope))
            await bench.deliver(bench.delivery(via, "gr\u00fc\u00dfe@example.org", envelope=envelope))
            header = "Subject: gr\u00fc\u00dfe\r\n\r\nx\r\n".encode()
            await bench.deliver(bench.delivery(via, envelope=envelope, content=header))
        assert ["SMTPUTF8" in message.sender_parameters for message in peer.messages] == [False, True, True]


async def test_a_hop_without_smtputf8_refuses_only_whom_it_must_EXT_11() -> None:
    async with Sink(SEVEN_BIT) as peer:
        envelope = Envelope("a@sender.example", smtputf8=True)
        reports = await deliver(peer, "b@example.org", "gr\u00fc\u00dfe@example.org", envelope=envelope)
        assert results(reports) == [Result.RELAYED, Result.FAILED]
        assert str(reports[1].status) == "5.6.7"


async def test_a_message_larger_than_size_is_not_sent_SOUT_18a() -> None:
    async with Sink(Options(size_limit=50)) as peer:
        (result,) = await deliver(peer)
        assert (result.result, str(result.status)) == (Result.FAILED, "5.3.4")
        assert not result.remote
        assert peer.answers.asked("MAIL", "a@sender.example") == 0


LARGE = b"Subject: large\r\n\r\n" + b"".join(b".%d dotted\r\n" % i for i in range(40_000))


def _pieces(content: bytes) -> StreamedBody:
    return StreamedBody(*(content[i : i + 100_001] for i in range(0, len(content), 100_001)))


@pytest.mark.parametrize("extensions", [["PIPELINING"], [], ["PIPELINING", "CHUNKING"], ["CHUNKING"]])
async def test_large_content_streams_by_data_and_by_bdat(extensions: list[str]) -> None:
    async with SmtpPeer(extensions=extensions) as peer:
        (result,) = await deliver(peer, content=_pieces(LARGE), size=len(LARGE))
        assert result.result is Result.RELAYED
        assert peer.messages[0].content == LARGE
        assert peer.messages[0].bdat == ("CHUNKING" in extensions)


@pytest.mark.parametrize("at_hand", [False, True])
async def test_large_eight_bit_content_is_reencoded_while_it_streams(at_hand: bool) -> None:
    body = b"".join(b"caf\xe9 %d\r\n" % i for i in range(300_000))
    content = b"MIME-Version: 1.0\r\nContent-Transfer-Encoding: 8bit\r\nContent-Type: text/plain\r\n\r\n" + body
    async with Sink(SEVEN_BIT) as peer:
        (result,) = await deliver(
            peer, content=content if at_hand else _pieces(content), size=len(content), eight_bit=True
        )
        assert result.result is Result.RELAYED
        received = peer.messages[0].content
        assert received.isascii()
        assert received.count(b"caf=E9 ") == 300_000


@pytest.mark.parametrize("at_hand", [False, True])
async def test_the_event_loop_goes_on_while_large_content_is_reencoded(
    at_hand: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: set[threading.Thread] = set()
    feed = Reencoder.feed

    def watched(encoder: Reencoder, data: bytes) -> bytes:
        threads.add(threading.current_thread())
        return feed(encoder, data)

    monkeypatch.setattr(Reencoder, "feed", watched)
    content = b"MIME-Version: 1.0\r\nContent-Type: text/plain\r\n\r\n" + b"\xe9\r\n" * 200_000
    async with Sink(SEVEN_BIT) as peer:
        await deliver(peer, content=content if at_hand else _pieces(content), size=len(content), eight_bit=True)
        assert peer.messages
    assert len(threads) == 1
    assert threading.current_thread() not in threads


async def test_content_that_may_fit_once_it_is_reencoded_is_not_bounced_on_a_guess_RFC1870_5() -> None:
    attachment = b"aaaa\r\n" * 100_000
    head = b"MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
    text = b"--b\r\nContent-Transfer-Encoding: 8bit\r\n\r\ncaf\xe9\r\n"
    content = head + text + b"--b\r\nContent-Transfer-Encoding: base64\r\n\r\n" + attachment + b"--b--\r\n"
    limit = len(content) + 1000
    async with Sink(replace(SEVEN_BIT, size_limit=limit)) as peer:
        (result,) = await deliver(peer, content=_pieces(content), size=len(content), eight_bit=True)
        assert result.result is Result.RELAYED, result.text
        assert peer.messages[0].content.isascii()
        assert f"SIZE={limit}" in peer.messages[0].sender_parameters
        (result,) = await deliver(peer, content=_pieces(content), size=limit + 1, eight_bit=True)
        assert (result.result, str(result.status)) == (Result.FAILED, "5.3.4")


@pytest.mark.parametrize(("subject", "result"), [("plain", Result.RELAYED), ("caf\u00e9", Result.FAILED)])
async def test_a_large_message_needs_smtputf8_for_its_header_and_not_for_its_body_EXT_11(
    subject: str, result: Result
) -> None:
    content = f"Subject: {subject}\r\n\r\n".encode() + "caf\u00e9\r\n".encode() * 50_000
    envelope = Envelope("a@sender.example", smtputf8=True)
    async with Sink(Options(smtputf8=False, dsn=False)) as peer:
        body = _pieces(content)
        (report,) = await deliver(peer, content=body, size=len(content), eight_bit=True, envelope=envelope)
        assert report.result is result
        assert [message.content for message in peer.messages] == [content] * (result is Result.RELAYED)


async def test_content_that_never_comes_is_given_up_with_its_connection() -> None:
    class Stuck(StreamedBody):
        ended = False

        async def chunks(self) -> AsyncIterator[bytes]:
            try:
                yield b"Subject: x\r\n\r\n"
                await asyncio.Event().wait()
            finally:
                self.ended = True

    async with Sink() as peer:
        via, body = smarthost(peer), Stuck()
        async with OutboundBench.running(via, block_timeout=0.3) as bench:
            (result,) = (await bench.deliver(bench.delivery(via, content=body, size=100_000))).recipients
            assert (result.result, result.uncertain) == (Result.DEFERRED, False)
            await eventually(lambda: body.ended)
        assert peer.messages == []


async def test_a_message_that_waits_for_its_reply_is_held_once() -> None:
    content = b"Subject: x\r\n\r\n" + b"x" * 60_000 + b"\r\n"
    many = 40
    async with SmtpPeer(extensions=[], replies={"END": Hang()}, keep_content=False) as peer:
        via = smarthost(peer)
        async with OutboundBench.running(via, connections_per_destination=many, connections=2 * many) as bench:
            tracemalloc.start()
            for _ in range(many):
                body = bytes(bytearray(content))  # each has its own, as from the queue
                bench.begin(bench.delivery(via, content=body, prefix=b"Received: x\r\n"))
            await eventually(lambda: sum(session.octets > len(content) for session in peer.sessions) == many)
            held, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
    assert held < many * len(content) * 2, held


async def test_a_refused_chunk_ends_the_transaction_and_the_connection_is_used_again() -> None:
    async with SmtpPeer(extensions=["PIPELINING", "CHUNKING"], replies={"BDAT": "552 5.3.4 too big"}) as peer:
        via = smarthost(peer)
        async with OutboundBench.running(via) as bench:
            report = await bench.deliver(bench.delivery(via, content=_pieces(LARGE), size=len(LARGE)))
            assert report.recipients[0].result is Result.FAILED
            report = await bench.deliver(bench.delivery(via))
            assert report.recipients[0].result is Result.RELAYED
        assert len(peer.sessions) == 1
        assert "RSET" in peer.commands


SMUGGLED = b"MAIL FROM:<evil@example.org>\r\nRCPT TO:<victim@example.org>\r\nDATA\r\nfalse\r\n.\r\n"


class ChunkingInNameOnly:
    """A server behind a proxy that hands EHLO on and knows no BDAT: what follows it are commands."""

    def __init__(self, *extensions: str) -> None:
        self.offers = extensions
        self.taken: list[bytes] = []
        self.unknown: list[bytes] = []
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        writer.write(b"220 hi\r\n")
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                line = await reader.readuntil(b"\n")
                verb = line[:4].upper()
                if verb == b"EHLO":
                    writer.write(
                        b"250-hi\r\n" + b"".join(b"250-%s\r\n" % e.encode() for e in self.offers) + b"250 HELP\r\n"
                    )
                elif verb == b"DATA":
                    writer.write(b"354 go\r\n")
                    self.taken.append(await reader.readuntil(b"\r\n.\r\n"))
                    writer.write(b"250 2.0.0 taken\r\n")
                elif verb in (b"MAIL", b"RCPT", b"RSET"):
                    writer.write(b"250 ok\r\n")
                elif verb == b"QUIT":
                    break
                else:
                    self.unknown.append(line)
                    writer.write(b"500 5.5.1 command not recognised\r\n")
        writer.close()


@pytest.mark.parametrize("pipelining", [True, False], ids=["pipelined", "stepwise"])
@pytest.mark.parametrize("streams", [True, False], ids=["streams", "at hand"])
async def test_a_server_that_offers_chunking_and_knows_no_bdat_gets_the_message_by_data(
    streams: bool, pipelining: bool
) -> None:
    server = ChunkingInNameOnly("CHUNKING", "BINARYMIME", *(["PIPELINING"] if pipelining else []))
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, limit=2**22)
    async with listening:
        port = listening.sockets[0].getsockname()[1]
        via = transport(TransportKind.SMTP, host="127.0.0.1", port=port, tls=TlsMode.NONE)
        received = b"Received: from a by b; today\r\n"
        async with OutboundBench.running(via) as bench:
            if streams:
                whole = received + b"Subject: x\r\n\r\n" + SMUGGLED + b"text\r\n" * 100_000
                delivery = bench.delivery(via, content=StreamedBody(whole), size=len(whole))
            else:
                whole = received + b"Subject: x\r\nContent-Transfer-Encoding: binary\r\n\r\n" + SMUGGLED + b"\0\r\n"
                delivery = bench.delivery(
                    via, content=whole, envelope=Envelope("a@sender.example", BodyType.BINARY_MIME)
                )
            (result,) = (await bench.deliver(delivery)).recipients
            assert result.result is Result.RELAYED, result.text
        assert len(server.taken) == 1  # and nothing that was smuggled in it
        assert server.taken[0].startswith(received)
        assert server.unknown[0].startswith(b"BDAT")
        assert server.unknown[1:] in ([], [received])
        assert server.connections == 2


async def test_the_first_chunk_of_a_connection_is_one_line_and_goes_alone() -> None:
    replies: dict[str, Step] = {"BDAT": [Slow("250 ok", 0.2), "250 ok"]}
    async with SmtpPeer(extensions=["PIPELINING", "CHUNKING"], replies=replies) as peer:
        via = smarthost(peer)
        content = b"Received: x\r\n" + b"y" * 998 + b"\r\n" + b"text\r\n" * 100_000
        async with OutboundBench.running(via) as bench:
            for _ in range(2):
                delivery = bench.delivery(via, content=StreamedBody(content), size=len(content))
                assert (await bench.deliver(delivery)).recipients[0].result is Result.RELAYED
        assert [message.content for message in peer.messages] == [content, content]
        chunks = [int(line.split()[1]) for line in peer.commands if line.startswith("BDAT")]
        assert chunks[0] == len(b"Received: x\r\n")
        assert chunks.count(chunks[0]) == 1  # the second message of the connection needs no trial


async def test_content_that_breaks_off_leaves_nothing_at_the_server() -> None:
    async with Sink() as peer:
        body = StreamedBody(b"Subject: x\r\n\r\n", b"half", fails_after=1)
        (result,) = await deliver(peer, content=body, size=100_000)
        assert result.result is Result.DEFERRED
        assert not result.uncertain
        await peer.until(lambda: not peer.open_connections)
        assert peer.messages == []


# --- connections ---------------------------------------------------------------------------------------------------


async def test_a_connection_is_used_again_under_an_equal_key() -> None:
    async with SmtpPeer() as peer:
        via, other = smarthost(peer), smarthost(peer, name="other")
        async with OutboundBench.running(via, other) as bench:
            for _ in range(3):
                await bench.deliver(bench.delivery(via))
            await bench.deliver(bench.delivery(other))
        assert [sum(m.session is s for m in peer.messages) for s in peer.sessions] == [3, 1]


async def test_a_connection_is_closed_politely_after_its_messages() -> None:
    async with SmtpPeer() as peer:
        via = smarthost(peer)
        async with OutboundBench.running(via, messages_per_connection=2) as bench:
            for _ in range(4):
                await bench.deliver(bench.delivery(via))
            await peer.until(lambda p: all(s.closed for s in p.sessions))
        assert len(peer.sessions) == 2
        assert all(s.lines[-1] == "QUIT" for s in peer.sessions)


async def test_an_idle_connection_says_goodbye_SOUT_17() -> None:
    async with SmtpPeer() as peer:
        via = smarthost(peer)
        async with OutboundBench.running(via, idle_seconds=0.1) as bench:
            await bench.deliver(bench.delivery(via))
            await peer.until(lambda p: p.sessions[0].closed)
            assert peer.commands[-1] == "QUIT"
            await eventually(lambda: bench.pool.connections == [])


async def test_a_connection_that_died_while_idle_costs_nothing_but_a_new_one() -> None:
    async with SmtpPeer(replies={"MAIL": ["250 ok", Close(), "250 ok"]}) as peer:
        via = smarthost(peer)
        async with OutboundBench.running(via) as bench:
            await bench.deliver(bench.delivery(via))
            report = await bench.deliver(bench.delivery(via))
            assert report.recipients[0].result is Result.DELIVERED
        assert len(peer.sessions) == 2


async def test_no_more_connections_than_the_transport_allows() -> None:
    async with Sink() as peer:
        via = smarthost(peer, limits=TransportLimits(connections_per_destination=3))
        async with OutboundBench.running(via) as bench:
            await asyncio.gather(*(bench.begin(bench.delivery(via)) for _ in range(60)))
        assert len(peer.messages) == 60
        assert peer.connections <= 3


async def test_a_connection_that_comes_as_its_time_is_over_is_counted_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()
    late: list[asyncio.BaseTransport] = []

    class TooLate:
        """The loop that is asked for a connection, cancelled as the first one is made; it closes that one, then."""

        def __getattr__(self, name: str) -> Any:
            return getattr(loop, name)

        async def create_connection(self, *args: Any, **named: Any) -> Any:
            made = await loop.create_connection(*args, **named)
            if not late:
                late.append(made[0])
                made[0].close()
                raise TimeoutError
            return made

    async with Sink() as peer:
        via = smarthost(peer)
        async with OutboundBench.running(via) as bench:
            monkeypatch.setattr(bench.pool, "_loop", TooLate())
            first = await bench.deliver(bench.delivery(via))
            assert results(first.recipients) == [Result.DEFERRED]
            second = await bench.deliver(bench.delivery(via))
            assert results(second.recipients) == [Result.DELIVERED]
            assert (bench.pool._servers.open, len(bench.pool.connections)) == (1, 1)


async def test_the_process_keeps_to_its_own_limit_over_all_hosts() -> None:
    async with Sink() as one, Sink() as two:
        first, second = smarthost(one), smarthost(two, name="second")
        async with OutboundBench.running(first, second, connections=1) as bench:
            reports = await asyncio.gather(
                *(bench.begin(bench.delivery(via)) for via in (first, second, first, second))
            )
        assert {r.recipients[0].result for r in reports} == {Result.DELIVERED}


async def test_a_server_that_allows_two_connections_gets_everything_over_two() -> None:
    here: list[PeerSession] = []

    def greeting(session: PeerSession, line: str) -> str | None:
        here[:] = [s for s in here if not s.closed]
        if len(here) >= 2:
            return "421 4.7.0 too many connections"
        here.append(session)
        return None

    async with SmtpPeer(replies={"GREETING": greeting}) as peer:
        via = smarthost(peer)
        async with OutboundBench.running(via) as bench:
            reports = await asyncio.gather(*(bench.begin(bench.delivery(via)) for _ in range(40)))
        assert {r.recipients[0].result for r in reports} == {Result.DELIVERED}


async def test_a_lease_that_ran_low_before_its_turn_begins_no_transaction_LSE_02() -> None:
    async with SmtpPeer() as peer:
        via = smarthost(peer)
        async with OutboundBench.running(via, lease_margin=30.0) as bench:
            delivery = bench.delivery(via, lease=31.0)
            future = bench.begin(delivery)
            delivery.lease.deadline -= 5  # as if it had waited for its turn
            report = await future
        assert report.recipients[0].result is Result.NOT_ATTEMPTED
        assert not any(command.startswith("MAIL") for command in peer.commands)


@pytest.mark.parametrize("renewed", [True, False])
async def test_only_a_renewed_lease_lets_a_slow_server_finish_LSE_01_LSE_02(renewed: bool) -> None:
    slow = Held("250 2.1.0 at last")
    async with SmtpPeer(replies={"MAIL": slow}) as peer:
        via = smarthost(peer)
        async with OutboundBench.running(via) as bench:
            delivery = bench.delivery(via, lease=60.0)
            future = bench.begin(delivery)
            await peer.until(lambda p: "MAIL FROM:<a@sender.example>" in p.commands)
            delivery.lease.deadline -= 40  # as if it had passed while the server thought
            if renewed:
                bench.app.renew(delivery.lease.token, 120.0)
            slow.release.set()
            (result,) = (await future).recipients
        assert (result.result is Result.DELIVERED) is renewed
        assert len(peer.messages) == renewed


async def test_a_cancelled_delivery_that_waits_for_a_connection_ends_at_once_ADM_02() -> None:
    async with SmtpPeer(replies={"MAIL": Hang()}) as peer:
        via = smarthost(peer, limits=TransportLimits(connections_per_destination=1))
        async with OutboundBench.running(via) as bench:
            bench.begin(bench.delivery(via))
            await peer.until(lambda p: "MAIL FROM:<a@sender.example>" in p.commands)
            waiting = bench.delivery(via)
            future = bench.begin(waiting)
            await eventually(lambda: bench.pool.waiting == 1)
            bench.app.cancel(waiting.lease.token)
            assert (await asyncio.wait_for(future, 8)).recipients[0].result is Result.CANCELLED


async def test_the_fail_transport_answers_itself_in_its_class_H42() -> None:
    hard = transport(TransportKind.FAIL, "hard", code=550, text="not from here")
    soft = transport(TransportKind.FAIL, "soft", code=450, text="later")
    async with OutboundBench.running(hard, soft) as bench:
        (failed,) = (await bench.deliver(bench.delivery(hard))).recipients
        (deferred,) = (await bench.deliver(bench.delivery(soft))).recipients
    assert (failed.result, str(failed.status), failed.remote) == (Result.FAILED, "5.7.0", False)
    assert (deferred.result, str(deferred.status)) == (Result.DEFERRED, "4.7.0")


async def test_a_body_that_ends_early_gets_no_final_dot() -> None:
    async with Sink() as peer:
        body = StreamedBody(b"Subject: x\r\n\r\n", b"half")
        (result,) = await deliver(peer, content=body, size=100_000)
        assert result.result is Result.DEFERRED
        await peer.until(lambda: not peer.open_connections)
        assert peer.messages == []


@pytest.mark.parametrize("streams", [False, True])
async def test_a_lone_line_end_in_a_header_becomes_no_field_at_a_hop_without_binarymime_SOUT_12a(streams: bool) -> None:
    content = b"Subject: x\nBcc: victim@example.org\r\n\r\nbody\r\n"
    envelope = Envelope("a@sender.example", body=BodyType.BINARY_MIME)
    body = StreamedBody(content) if streams else content
    async with Sink(Options(smtputf8=False, dsn=False)) as peer:
        (result,) = await deliver(peer, envelope=envelope, content=body, size=len(content))
        assert (result.result, str(result.status)) == (Result.FAILED, "5.6.3")
        assert "header" in result.text
        assert peer.messages == []
    extensions = ["PIPELINING", "8BITMIME", "CHUNKING", "BINARYMIME"]
    async with SmtpPeer(extensions=extensions) as peer:
        (result,) = await deliver(peer, envelope=envelope, content=body, size=len(content))
        assert result.result is Result.RELAYED
        assert peer.messages[0].content == content
