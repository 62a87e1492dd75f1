"""Servers that limit what one connection carries: a refusal there says nothing about the site (RFC 5321 3.8, 4.2.1)."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from mailrail.core.revision.revision import TlsMode, Transport, TransportKind, TransportLimits
from mailrail.core.smtp.answer import Stage
from mailrail_outbound.ports import DeliveryReport, Result

from testkit.ca import Authority
from testkit.conditions import eventually
from testkit.outbound import OutboundBench, transport
from testkit.smtp_peer import Action, Close, PeerSession, SmtpPeer, Step

TOO_MANY = "421 4.7.0 too many messages in this connection"


def begun(session: PeerSession) -> int:
    return sum(line.startswith("MAIL") for line in session.lines)


def after(messages: int, action: Action) -> Callable[[PeerSession, str], Action | None]:
    """A step that is refused once a connection has carried so many messages."""
    return lambda session, line: action if begun(session) > messages else None


def smarthost(
    peer: SmtpPeer, kind: TransportKind = TransportKind.SMTP, connections: int = 1, **fields: Any
) -> Transport:
    fields.setdefault("tls", TlsMode.NONE)
    return transport(kind, host=peer.host, port=peer.port, limits=TransportLimits(connections=connections), **fields)


async def send(bench: OutboundBench, via: Transport, messages: int) -> list[DeliveryReport]:
    """So many messages handed in at once."""
    return await asyncio.gather(*(bench.deliver(bench.delivery(via)) for _ in range(messages)))


def assert_all_arrived_without_a_refusal(reports: list[DeliveryReport]) -> None:
    for report in reports:
        (result,) = report.recipients
        assert result.result is Result.DELIVERED, result.text
        assert not result.site_failure
        assert result.dialled


ways = pytest.mark.parametrize("extensions", [["PIPELINING", "DSN"], ["DSN"]], ids=["pipelined", "stepwise"])


@ways
@pytest.mark.parametrize("limit", [1, 2, 10])
@pytest.mark.parametrize("step", ["MAIL", "RCPT", "DATA"])
@pytest.mark.parametrize("closes", [True, False], ids=["closes", "stays"])
async def test_421_before_the_content_on_a_used_connection_goes_to_a_fresh_one_in_the_same_attempt_SOUT_13(
    step: str, limit: int, closes: bool, extensions: list[str]
) -> None:
    refusal: Action = Close(TOO_MANY) if closes else TOO_MANY
    async with SmtpPeer(extensions=extensions, replies={step: after(limit, refusal)}) as peer:
        via = smarthost(peer)
        async with OutboundBench.running(via) as bench:
            assert_all_arrived_without_a_refusal(await send(bench, via, 30))
            assert len(peer.messages) == 30
            # Once the limit was met, connections end before it. A next message may be on its way by then.
            assert 30 // limit <= len(peer.sessions) <= 30 // limit + 2
            assert 1 <= sum(begun(session) > limit for session in peer.sessions) <= 2


@ways
@pytest.mark.parametrize("reply", ["450 4.7.0 too many", "452 4.5.3 enough for this connection"])
async def test_4yz_to_mail_on_a_used_connection_that_stays_open_does_not_spend_all_that_waits_SOUT_13(
    reply: str, extensions: list[str]
) -> None:
    async with SmtpPeer(extensions=extensions, replies={"MAIL": after(2, reply)}) as peer:
        via = smarthost(peer)
        async with OutboundBench.running(via) as bench:
            assert_all_arrived_without_a_refusal(await send(bench, via, 20))
            assert sum(begun(session) > 2 for session in peer.sessions) == 1
            refused = next(session for session in peer.sessions if begun(session) > 2)
            assert refused.lines[-1] == "QUIT"


async def test_60_messages_over_one_connection_at_a_time_that_carries_10_arrive_at_once() -> None:
    async with SmtpPeer(replies={"MAIL": after(10, Close(TOO_MANY))}) as peer:
        via = smarthost(peer)
        async with OutboundBench.running(via) as bench:
            began = asyncio.get_running_loop().time()
            assert_all_arrived_without_a_refusal(await send(bench, via, 60))
            assert asyncio.get_running_loop().time() - began < 10.0  # Postfix, on a quiet machine: 11 s
            assert len(peer.sessions) <= 7


async def test_a_refused_rset_on_a_used_connection_is_no_word_on_the_next_message_SOUT_13() -> None:
    replies: dict[str, Step] = {"RCPT": ["550 5.1.1 unknown", "250 ok"], "RSET": Close("421 4.7.0 too many errors")}
    async with SmtpPeer(replies=replies) as peer:
        via = smarthost(peer)
        async with OutboundBench.running(via) as bench:
            first, second = await send(bench, via, 2)
            assert first.recipients[0].result is Result.FAILED
            assert_all_arrived_without_a_refusal([second])
            assert len(peer.sessions) == 2


async def test_an_lmtp_server_may_limit_a_connection_too_LMTP_02() -> None:
    async with SmtpPeer(lmtp=True, replies={"MAIL": after(3, Close(TOO_MANY))}) as peer:
        via = smarthost(peer, TransportKind.LMTP)
        async with OutboundBench.running(via) as bench:
            assert_all_arrived_without_a_refusal(await send(bench, via, 12))


async def test_only_those_recipients_that_the_connection_left_open_go_to_the_fresh_one() -> None:
    def rcpt(session: PeerSession, line: str) -> Action | None:
        if "no@" in line:
            return "550 5.1.1 unknown"
        return Close(TOO_MANY) if begun(session) > 1 and "late@" in line else None

    async with SmtpPeer(replies={"RCPT": rcpt}) as peer:
        via = smarthost(peer)
        async with OutboundBench.running(via) as bench:
            await bench.deliver(bench.delivery(via))
            await eventually(lambda: not any(connection.busy for connection in bench.pool.connections))
            delivery = bench.delivery(via, "a@example.org", "no@example.org", "late@example.org")
            reports = (await bench.deliver(delivery)).recipients
            assert [each.result for each in reports] == [Result.DELIVERED, Result.FAILED, Result.DELIVERED]
            rcpts = ["RCPT TO:<a@example.org>", "RCPT TO:<late@example.org>"]
            assert peer.messages[-1].rcpts == rcpts
            assert [line for line in peer.sessions[-1].lines if line.startswith("RCPT")] == rcpts


async def test_several_that_want_a_fresh_connection_each_get_one_though_one_place_is_all_there_is() -> None:
    # A server that takes one message a connection, whatever we learn of it: half of what waits is refused once.
    async with SmtpPeer(replies={"MAIL": after(1, Close(TOO_MANY))}) as peer:
        via = smarthost(peer, connections=4)
        async with OutboundBench.running(via) as bench:
            began = asyncio.get_running_loop().time()
            assert_all_arrived_without_a_refusal(await send(bench, via, 40))
            assert asyncio.get_running_loop().time() - began < bench.settings.idle_seconds * 5


@pytest.mark.parametrize("reply", [TOO_MANY, "450 4.7.0 not you", "451 4.3.0 not now"])
async def test_a_refusal_on_a_fresh_connection_is_what_it_was_SOUT_13(reply: str) -> None:
    async with SmtpPeer(replies={"MAIL": reply}) as peer:
        via = smarthost(peer)
        async with OutboundBench.running(via) as bench:
            for _ in range(2):
                (result,) = (await bench.deliver(bench.delivery(via))).recipients
                assert (result.result, str(result.reply)) == (Result.DEFERRED, reply)
                assert result.site_failure is (reply == TOO_MANY)
            # No message went by the first connection, so what is refused on it needs no second one.
            assert sum(begun(session) for session in peer.sessions) == 2


async def test_what_the_fresh_connection_refuses_too_is_the_sites_word_and_is_said_once() -> None:
    def mail(session: PeerSession, line: str) -> Action | None:
        return Close("421 4.3.2 shutting down") if len(peer.messages) >= 1 else None

    async with SmtpPeer(replies={"MAIL": mail}) as peer:
        via = smarthost(peer)
        async with OutboundBench.running(via) as bench:
            await bench.deliver(bench.delivery(via))
            await eventually(lambda: not any(connection.busy for connection in bench.pool.connections))
            (result,) = (await bench.deliver(bench.delivery(via))).recipients
            assert (result.result, result.site_failure) == (Result.DEFERRED, True)
            assert len(peer.sessions) == 2


async def test_421_to_the_final_dot_on_a_used_connection_is_tried_nowhere_else_in_this_attempt_RFC_5321_4_2_1() -> None:
    async with SmtpPeer(replies={"END": ["250 2.0.0 taken", Close(TOO_MANY)]}) as peer:
        via = smarthost(peer)
        async with OutboundBench.running(via) as bench:
            await bench.deliver(bench.delivery(via))
            await eventually(lambda: not any(connection.busy for connection in bench.pool.connections))
            (result,) = (await bench.deliver(bench.delivery(via))).recipients
            assert (result.result, str(result.reply)) == (Result.DEFERRED, TOO_MANY)
            assert len(peer.sessions) == 1


async def test_a_probe_that_a_used_connection_refuses_is_asked_again_on_a_fresh_one() -> None:
    async with SmtpPeer(replies={"MAIL": after(2, Close(TOO_MANY))}) as peer:
        via = smarthost(peer)
        async with OutboundBench.running(via) as bench:
            for i in range(6):
                answer = await bench.app.verify(f"r{i}@example.org", via.ref)
                assert (answer.stage, answer.reply is not None and answer.reply.code) == (Stage.RCPT, 250)
            assert len(peer.sessions) == 3


@pytest.mark.parametrize("lost", ["offer", "handshake"])
async def test_a_retry_on_a_fresh_connection_never_goes_without_the_tls_that_the_last_one_had_TLS_07(lost: str) -> None:
    context = Authority().issue("localhost").server_context()

    def starttls(session: PeerSession, line: str) -> Action | None:
        return "454 4.7.0 TLS not available" if lost == "handshake" and len(peer.sessions) > 1 else None

    def ehlo(session: PeerSession, line: str) -> Action | None:
        return "250 peer.example" if lost == "offer" and len(peer.sessions) > 1 else None

    replies = {"MAIL": after(1, Close(TOO_MANY)), "EHLO": ehlo, "STARTTLS": starttls}
    async with SmtpPeer(tls=context, replies=replies) as peer:
        via = smarthost(peer, tls=TlsMode.OPPORTUNISTIC)
        async with OutboundBench.running(via) as bench:
            assert (await bench.deliver(bench.delivery(via))).recipients[0].tls is not None
            await eventually(lambda: not any(connection.busy for connection in bench.pool.connections))
            (result,) = (await bench.deliver(bench.delivery(via))).recipients
            assert (result.result, str(result.status)) == (Result.DEFERRED, "4.3.5")
            assert [session.tls != "" for session in peer.sessions if begun(session)] == [True]
