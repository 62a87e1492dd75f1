"""The client's session, command by command, without a socket (SOUT, EXT, LMTP, AUTH, TLS-02)."""

import base64
import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.delivery.outcome import HopKind, Outcome
from mailrail.core.outbound.host_failover import verdict_on
from mailrail.core.sasl.client import ChannelBinding, Credentials, SaltedPasswords
from mailrail.core.smtp.answer import Answer, Stage, Trouble
from mailrail.core.smtp.capabilities import read_capabilities
from mailrail.core.smtp.client import (
    ClientProtocol,
    ClientSession,
    ClientTransaction,
    ContentWanted,
    Event,
    Finished,
    Gone,
    LoginPlan,
    NeedHash,
    NeedTls,
    Ready,
    SessionFailed,
    StartTls,
)
from mailrail.core.smtp.reply import EnhancedCode, Reply
from mailrail.core.smtp.stuffing import Stuffer, find_dot_line, has_bare_line_ends, stuff

PIPELINING = b"250-mx.example\r\n250 PIPELINING\r\n"
PLAIN_HELLO = b"250 mx.example\r\n"


def open_session(hello: bytes = PIPELINING, **settings: object) -> ClientSession:
    """A session that is ready for its first transaction."""
    session = ClientSession("client.example", **settings)  # type: ignore[arg-type]
    assert session.receive(b"220 mx.example ESMTP\r\n") == []
    assert session.take().split(b" ")[1] == b"client.example\r\n"
    (ready,) = session.receive(hello)
    assert isinstance(ready, Ready)
    return session


def transaction(recipients: int = 1, *, bdat: bool = False) -> ClientTransaction:
    lines = [b"RCPT TO:<r%d@example.org>\r\n" % i for i in range(recipients)]
    return ClientTransaction(b"MAIL FROM:<s@example.com>\r\n", lines, bdat=bdat)


def answers(tx: ClientTransaction) -> list[Answer]:
    assert all(answer is not None for answer in tx.answers)
    return [answer for answer in tx.answers if answer is not None]


def kinds(events: Sequence[Event]) -> list[type]:
    return [type(event) for event in events]


# --- set-up of the session -----------------------------------------------------------------------------------------


def test_ehlo_comes_first_and_helo_only_when_it_is_refused_SOUT_11() -> None:
    session = ClientSession("client.example")
    session.receive(b"220 hi\r\n")
    assert session.take() == b"EHLO client.example\r\n"
    assert session.receive(b"502 what\r\n") == []
    assert session.take() == b"HELO client.example\r\n"
    (ready,) = session.receive(b"250-old.example\r\n250 PIPELINING\r\n")
    assert isinstance(ready, Ready)
    assert not ready.capabilities.extended
    assert not ready.capabilities.pipelining


def test_a_refused_helo_too_fails_the_session() -> None:
    session = ClientSession("client.example")
    session.receive(b"220 hi\r\n")
    session.receive(b"502 what\r\n")
    session.take()
    (failed,) = session.receive(b"550 go away\r\n")
    assert failed == SessionFailed(Answer(Stage.HELLO, Reply(550, ("go away",))))
    assert session.take() == b"QUIT\r\n"
    assert kinds(session.receive(b"221 bye\r\n")) == [Gone]


@pytest.mark.parametrize("greeting", [b"554 no\r\n", b"450 later\r\n", b"250 hm\r\n"])
def test_a_greeting_other_than_220_fails_the_session(greeting: bytes) -> None:
    session = ClientSession("client.example")
    (failed,) = session.receive(greeting)
    assert isinstance(failed, SessionFailed)
    assert failed.answer.stage is Stage.GREETING
    assert session.take() == b"QUIT\r\n"


@pytest.mark.parametrize(
    ("said", "stage", "trouble"),
    [
        ([b"250 hm\r\n"], Stage.GREETING, Trouble.PROTOCOL),
        ([b"354 hm\r\n"], Stage.GREETING, Trouble.PROTOCOL),
        ([b"220 hi\r\n", b"354 go on\r\n"], Stage.HELLO, Trouble.PROTOCOL),
        ([b"220 hi\r\n", b"250-mx\r\n250 STARTTLS\r\n", b"250 ok\r\n"], Stage.STARTTLS, Trouble.TLS),
    ],
)
@pytest.mark.parametrize("hop", list(HopKind))
def test_a_positive_reply_that_sets_up_no_session_never_reads_as_delivery_RFC5321_4_2_5(
    said: list[bytes], stage: Stage, trouble: Trouble, hop: HopKind
) -> None:
    session = ClientSession("client.example", starttls=StartTls.ALWAYS)
    for octets in said[:-1]:
        assert session.receive(octets) == []
    (failed,) = session.receive(said[-1])
    assert isinstance(failed, SessionFailed)
    assert (failed.answer.stage, failed.answer.trouble, failed.answer.reply) == (stage, trouble, None)
    assert verdict_on(failed.answer, hop=hop).outcome is Outcome.DEFERRED


def test_rset_answered_with_354_leaves_the_next_message_unsent() -> None:
    session = open_session()
    refused, following = transaction(), transaction()
    session.begin(refused)
    session.receive(b"550 no\r\n503 no\r\n503 no\r\n")
    session.begin(following)
    session.receive(b"354 go on\r\n")
    (answer,) = answers(following)
    assert (answer.reply, answer.trouble) == (None, Trouble.PROTOCOL)
    assert not following.touched


@pytest.mark.parametrize("reply", [b"500 what\r\n", b"550 go away\r\n", b"451 later\r\n"])
def test_a_refused_rset_is_no_word_on_the_message_behind_it(reply: bytes) -> None:
    session = open_session()
    refused, following = transaction(), transaction()
    session.begin(refused)
    session.receive(b"550 no\r\n503 no\r\n503 no\r\n")
    session.begin(following)
    assert kinds(session.receive(reply)) == [Finished, Gone]
    (answer,) = answers(following)
    assert (answer.stage, answer.reply, answer.trouble) == (Stage.MAIL, None, Trouble.CLOSED)


def test_421_at_the_greeting_ends_the_session_without_quit() -> None:
    session = ClientSession("client.example")
    assert kinds(session.receive(b"421 busy\r\n")) == [SessionFailed, Gone]
    assert session.take() == b""


def test_capabilities_are_read_in_any_case_and_nonsense_is_ignored() -> None:
    capabilities = read_capabilities(
        Reply(
            250,
            (
                "mx.example at your service",
                "size 1000",
                "8bitMIME",
                "AUTH PLAIN login",
                "AUTH=CRAM-MD5",
                "LIMITS RCPTMAX=5 MAILMAX=x FOO",
                "",
                "CHUNKING",
                "BINARYMIME",
                "XWHATEVER ***",
                "RequireTLS",
            ),
        ),
        tls=True,
    )
    assert capabilities.require_tls
    assert capabilities.name == "mx.example"
    assert capabilities.size == 1000
    assert capabilities.eight_bit_mime
    assert capabilities.auth == ("PLAIN", "LOGIN", "CRAM-MD5")
    assert capabilities.max_recipients == 5
    assert capabilities.max_transactions is None
    assert capabilities.binary_mime


@pytest.mark.parametrize("size", ["SIZE", "SIZE 0", "SIZE -1", "SIZE 9999999999999999999", "SIZE ²"])
def test_size_without_a_positive_number_is_no_limit_H10(size: str) -> None:
    capabilities = read_capabilities(Reply(250, ("mx", size)), tls=False)
    assert capabilities.size_offered
    assert capabilities.size is None


def test_binarymime_without_chunking_is_no_use_EXT_08() -> None:
    assert not read_capabilities(Reply(250, ("mx", "BINARYMIME")), tls=True).binary_mime


def test_lmtp_says_lhlo_and_never_falls_back_LMTP_01() -> None:
    session = ClientSession("client.example", protocol=ClientProtocol.LMTP)
    session.receive(b"220 hi\r\n")
    assert session.take() == b"LHLO client.example\r\n"
    (failed,) = session.receive(b"500 what\r\n")
    assert isinstance(failed, SessionFailed)


# --- STARTTLS ---------------------------------------------------------------------------------


def test_capabilities_from_before_tls_are_forgotten_TLS_02_H24() -> None:
    session = ClientSession("client.example", starttls=StartTls.IF_OFFERED)
    session.receive(b"220 hi\r\n")
    session.take()
    assert session.receive(b"250-mx\r\n250-STARTTLS\r\n250-REQUIRETLS\r\n250 AUTH PLAIN\r\n") == []
    assert session.take() == b"STARTTLS\r\n"
    assert kinds(session.receive(b"220 go\r\n")) == [NeedTls]
    session.on_tls(verified=True)
    assert not session.capabilities.require_tls
    assert session.capabilities.auth == ()
    assert session.take() == b"EHLO client.example\r\n"
    (ready,) = session.receive(b"250 mx\r\n")
    assert ready == Ready(session.capabilities)
    assert session.starttls_offered
    assert session.tls


@pytest.mark.parametrize("protocol", ClientProtocol)
def test_requiretls_counts_inside_tls_alone_RTLS_14(protocol: ClientProtocol) -> None:
    hello = b"250-mx.example\r\n250-PIPELINING\r\n250 REQUIRETLS\r\n"
    assert not open_session(hello, protocol=protocol).capabilities.require_tls
    assert open_session(hello, protocol=protocol, tls=True).capabilities.require_tls  # from the first octet


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("clear", [False, True])
def test_the_offer_of_requiretls_is_that_of_the_second_ehlo_RTLS_14(clear: bool, inside: bool) -> None:
    offered = {False: b"", True: b"250-REQUIRETLS\r\n"}
    session = ClientSession("client.example", starttls=StartTls.ALWAYS)
    session.receive(b"220 hi\r\n")
    session.receive(b"250-mx\r\n" + offered[clear] + b"250 STARTTLS\r\n")
    # Whoever is on the way may put the offer behind the 220, in the same segment.
    assert kinds(session.receive(b"220 go\r\n250-mx\r\n250 REQUIRETLS\r\n")) == [NeedTls]
    session.on_tls(verified=True)
    (ready,) = session.receive(b"250-mx\r\n" + offered[inside] + b"250 SIZE\r\n")
    assert isinstance(ready, Ready)
    assert ready.capabilities.require_tls is inside


def test_plaintext_injected_behind_the_starttls_reply_is_dropped_TLS_02() -> None:
    session = ClientSession("client.example", starttls=StartTls.ALWAYS)
    session.receive(b"220 hi\r\n")
    session.receive(b"250-mx\r\n250 STARTTLS\r\n")
    assert kinds(session.receive(b"220 go\r\n250-evil\r\n250 AUTH PLAIN\r\n250-more")) == [NeedTls]
    session.on_tls(verified=True)
    session.take()
    (ready,) = session.receive(b"250 mx\r\n")
    assert isinstance(ready, Ready)
    assert ready.capabilities.name == "mx"


def test_a_stripped_starttls_fails_a_session_that_requires_tls_TLS_08() -> None:
    session = ClientSession("client.example", starttls=StartTls.ALWAYS)
    session.receive(b"220 hi\r\n")
    (failed,) = session.receive(PIPELINING)
    assert isinstance(failed, SessionFailed)
    assert failed.answer.trouble is Trouble.TLS


def test_a_refused_starttls_is_a_tls_failure_with_its_reply() -> None:
    session = ClientSession("client.example", starttls=StartTls.IF_OFFERED)
    session.receive(b"220 hi\r\n")
    session.receive(b"250-mx\r\n250 STARTTLS\r\n")
    (failed,) = session.receive(b"454 not now\r\n")
    assert isinstance(failed, SessionFailed)
    assert failed.answer.trouble is Trouble.TLS
    assert failed.answer.reply == Reply(454, ("not now",))


# --- transactions, pipelined ---------------------------------------------------------------------------------------


def test_a_pipelined_group_is_one_write_and_ends_at_data_EXT_04() -> None:
    session = open_session()
    tx = transaction(2)
    session.begin(tx)
    assert session.take() == (
        b"MAIL FROM:<s@example.com>\r\nRCPT TO:<r0@example.org>\r\nRCPT TO:<r1@example.org>\r\nDATA\r\n"
    )
    assert session.receive(b"250 ok\r\n250 ok\r\n251 forwards\r\n354 go\r\n") == [ContentWanted(tx)]
    session.content(stuff(b"A: b\r\n\r\nhi\r\n"), last=True)
    assert session.take() == b"A: b\r\n\r\nhi\r\n.\r\n"
    assert session.receive(b"250 2.0.0 queued\r\n") == [Finished(tx)]
    assert all(answer.accepted for answer in answers(tx))
    assert session.idle


def test_each_recipient_keeps_its_own_result_SOUT_10() -> None:
    session = open_session()
    tx = transaction(3)
    session.begin(tx)
    session.receive(b"250 ok\r\n250 ok\r\n550 5.1.1 no\r\n452 4.5.3 too many\r\n354 go\r\n")
    session.content(b".\r\n", last=True)
    assert session.receive(b"250 done\r\n") == [Finished(tx)]
    ok, refused, later = answers(tx)
    assert ok.accepted
    assert (refused.stage, refused.reply and refused.reply.code) == (Stage.RCPT, 550)
    assert (later.stage, later.reply and later.reply.code) == (Stage.RCPT, 452)


def test_a_refused_mail_decides_all_and_its_echoes_are_ignored() -> None:
    session = open_session()
    tx = transaction(2)
    session.begin(tx)
    assert session.receive(b"550 5.7.1 not you\r\n") == []
    assert session.receive(b"503 no mail\r\n503 no mail\r\n503 no rcpt\r\n") == [Finished(tx)]
    assert [(a.stage, a.reply and a.reply.code) for a in answers(tx)] == [(Stage.MAIL, 550)] * 2
    again = transaction()
    session.take()
    session.begin(again)
    assert session.take().startswith(b"RSET\r\nMAIL FROM")


def test_354_of_an_lmtp_server_that_took_no_recipient_ends_the_session_without_content_RFC_2033_4_2() -> None:
    session = open_session(protocol=ClientProtocol.LMTP)
    tx = transaction(2)
    session.begin(tx)
    session.take()
    events = session.receive(b"250 ok\r\n550 no\r\n451 later\r\n354 go\r\n")
    assert [type(event) for event in events] == [Finished, Gone]
    assert [answer.reply and answer.reply.code for answer in answers(tx)] == [550, 451]
    assert session.take() == b""


def test_354_without_a_recipient_is_answered_with_a_lone_dot_EXT_04() -> None:
    session = open_session()
    tx = transaction()
    session.begin(tx)
    session.take()
    assert session.receive(b"250 ok\r\n550 no\r\n354 go\r\n") == []
    assert session.take() == b".\r\n"
    assert session.receive(b"554 no valid recipients\r\n") == [Finished(tx)]
    assert answers(tx)[0].reply == Reply(550, ("no",))
    assert session.idle


def test_a_server_that_accepts_the_lone_dot_has_still_refused_the_recipient() -> None:
    session = open_session()
    tx = transaction()
    session.begin(tx)
    session.receive(b"250 ok\r\n550 no\r\n354 go\r\n250 thanks\r\n")
    assert not answers(tx)[0].accepted


def test_a_refused_data_decides_those_that_rcpt_took() -> None:
    session = open_session()
    tx = transaction(2)
    session.begin(tx)
    assert session.receive(b"250 ok\r\n250 ok\r\n550 no\r\n451 disk\r\n") == [Finished(tx)]
    assert [(a.stage, a.reply and a.reply.code) for a in answers(tx)] == [(Stage.DATA, 451), (Stage.RCPT, 550)]


def test_the_next_transaction_follows_the_final_dot_in_the_same_write() -> None:
    session = open_session()
    first, second = transaction(), transaction()
    session.begin(first)
    assert not session.accepts_transaction
    session.receive(b"250 ok\r\n250 ok\r\n354 go\r\n")
    session.take()
    session.content(b"x\r\n.\r\n", last=True)
    assert session.accepts_transaction
    session.begin(second)
    assert session.take() == b"x\r\n.\r\nMAIL FROM:<s@example.com>\r\nRCPT TO:<r0@example.org>\r\nDATA\r\n"
    events = session.receive(b"250 first\r\n250 ok\r\n250 ok\r\n354 go\r\n")
    assert events == [Finished(first), ContentWanted(second)]


def test_quit_goes_with_the_final_dot_where_the_server_pipelines() -> None:
    session = open_session()
    tx = transaction()
    session.begin(tx)
    session.receive(b"250 ok\r\n250 ok\r\n354 go\r\n")
    session.take()
    session.content(b"x\r\n.\r\n", last=True)
    session.quit()
    assert session.take() == b"x\r\n.\r\nQUIT\r\n"
    assert kinds(session.receive(b"250 ok\r\n221 bye\r\n")) == [Finished, Gone]


# --- transactions, one command at a time -----------------------------------------------------------------------------


def test_without_pipelining_each_command_waits_for_its_reply_EXT_04() -> None:
    session = open_session(PLAIN_HELLO)
    tx = transaction(2)
    session.begin(tx)
    assert session.take() == b"MAIL FROM:<s@example.com>\r\n"
    session.receive(b"250 ok\r\n")
    assert session.take() == b"RCPT TO:<r0@example.org>\r\n"
    session.receive(b"250 ok\r\n")
    assert session.take() == b"RCPT TO:<r1@example.org>\r\n"
    session.receive(b"250 ok\r\n")
    assert session.take() == b"DATA\r\n"
    assert session.receive(b"354 go\r\n") == [ContentWanted(tx)]
    session.content(b"x\r\n.\r\n", last=True)
    session.quit()
    assert session.take() == b"x\r\n.\r\n"
    assert session.receive(b"250 ok\r\n") == [Finished(tx)]
    assert session.take() == b"QUIT\r\n"


def test_without_pipelining_data_is_not_sent_when_every_rcpt_is_refused_SOUT_17() -> None:
    session = open_session(PLAIN_HELLO)
    tx = transaction()
    session.begin(tx)
    session.receive(b"250 ok\r\n")
    session.take()
    assert session.receive(b"550 no\r\n") == [Finished(tx)]
    assert session.take() == b""
    session.begin(transaction())
    assert session.take() == b"RSET\r\n"
    session.receive(b"250 ok\r\n")
    assert session.take() == b"MAIL FROM:<s@example.com>\r\n"


def test_mailmax_ends_the_use_of_a_connection() -> None:
    session = open_session(b"250-mx\r\n250-PIPELINING\r\n250 LIMITS MAILMAX=1\r\n")
    tx = transaction()
    session.begin(tx)
    session.receive(b"250 ok\r\n250 ok\r\n354 go\r\n")
    session.content(b".\r\n", last=True)
    session.receive(b"250 ok\r\n")
    assert not session.accepts_transaction


# --- BDAT ------------------------------------------------------------


def test_bdat_sends_chunks_and_waits_for_no_354() -> None:
    session = open_session(b"250-mx\r\n250-PIPELINING\r\n250 CHUNKING\r\n")
    tx = transaction(bdat=True)
    session.begin(tx)
    assert session.take().endswith(b"RCPT TO:<r0@example.org>\r\n")
    assert session.receive(b"250 ok\r\n250 ok\r\n") == [ContentWanted(tx)]
    session.content(b".\n\0", last=False)
    assert session.take() == b"BDAT 3\r\n.\n\0"
    assert not session.wants_chunk()  # nothing shows yet that the server knows BDAT
    assert session.receive(b"250 3 octets\r\n") == [ContentWanted(tx)]
    session.content(b"more", last=False)
    assert session.take() == b"BDAT 4\r\nmore"
    assert session.wants_chunk()
    session.content(b"", last=True)
    assert session.take() == b"BDAT 0 LAST\r\n"
    assert session.receive(b"250 4 octets\r\n") == []
    assert session.receive(b"250 ok\r\n") == [Finished(tx)]
    assert answers(tx)[0].accepted


def test_a_failed_chunk_ends_the_transaction_and_nothing_more_is_sent() -> None:
    session = open_session(b"250-mx\r\n250-PIPELINING\r\n250 CHUNKING\r\n")
    tx = transaction(bdat=True)
    session.begin(tx)
    session.receive(b"250 ok\r\n250 ok\r\n")
    session.content(b"a", last=False)
    session.content(b"b", last=False)
    assert session.receive(b"552 too big\r\n") == []
    assert not session.wants_chunk()
    assert session.receive(b"503 failed before\r\n") == [Finished(tx)]
    assert answers(tx)[0] == Answer(Stage.CONTENT, Reply(552, ("too big",)))
    session.take()
    session.begin(transaction())
    assert session.take().startswith(b"RSET\r\n")


def test_no_transaction_follows_while_the_reply_to_a_chunk_is_awaited() -> None:
    session = open_session(b"250-mx\r\n250-PIPELINING\r\n250 CHUNKING\r\n")
    tx = transaction(bdat=True)
    session.begin(tx)
    session.receive(b"250 ok\r\n250 ok\r\n")
    session.content(b"a", last=False)
    session.content(b"b", last=True)
    assert not session.accepts_transaction
    session.receive(b"250 1 octet\r\n")
    assert session.accepts_transaction


def test_after_a_failed_chunk_rset_comes_before_the_next_message_and_never_into_it() -> None:
    session = open_session(b"250-mx\r\n250-PIPELINING\r\n250 CHUNKING\r\n")
    tx = transaction(bdat=True)
    session.begin(tx)
    session.receive(b"250 ok\r\n250 ok\r\n")
    session.content(b"first", last=False)
    session.content(b"second", last=True)
    session.take()
    session.receive(b"552 5.3.4 too big\r\n")
    assert not session.accepts_transaction  # while the reply to BDAT LAST is awaited, RSET could not go first
    assert kinds(session.receive(b"503 5.5.1 no\r\n")) == [Finished]
    session.begin(transaction())
    assert session.take().startswith(b"RSET\r\nMAIL FROM:")


@pytest.mark.parametrize(("code", "unknown"), [(b"500", True), (b"502", True), (b"503", False), (b"552", False)])
def test_bdat_that_a_server_does_not_have_is_told_from_one_that_it_refuses(code: bytes, unknown: bool) -> None:
    session = open_session(b"250-mx\r\n250-PIPELINING\r\n250 CHUNKING\r\n")
    tx = transaction(bdat=True)
    session.begin(tx)
    session.receive(b"250 ok\r\n250 ok\r\n")
    session.content(b"Received: x\r\n", last=False)
    events = session.receive(code + b" no\r\n500 what\r\n" if unknown else code + b" no\r\n")
    assert kinds(events) == ([Finished, Gone] if unknown else [Finished])
    assert tx.bdat_unknown is unknown


def test_bdat_that_was_taken_before_is_known() -> None:
    session = open_session(b"250-mx\r\n250-PIPELINING\r\n250 CHUNKING\r\n")
    tx = transaction(bdat=True)
    session.begin(tx)
    session.receive(b"250 ok\r\n250 ok\r\n")
    session.content(b"Received: x\r\n", last=False)
    session.receive(b"250 ok\r\n")
    session.content(b"x", last=False)
    session.receive(b"500 line too long\r\n")
    assert not tx.bdat_unknown


def test_without_pipelining_one_chunk_is_in_flight() -> None:
    session = open_session(b"250-mx\r\n250 CHUNKING\r\n")
    tx = transaction(bdat=True)
    session.begin(tx)
    session.receive(b"250 ok\r\n")
    assert session.receive(b"250 ok\r\n") == [ContentWanted(tx)]
    session.content(b"a", last=False)
    assert not session.wants_chunk()
    assert session.receive(b"250 ok\r\n") == [ContentWanted(tx)]


# --- LMTP ------------------------------------------------------------


def test_lmtp_gives_one_reply_for_each_accepted_recipient_LMTP_02() -> None:
    session = open_session(protocol=ClientProtocol.LMTP)
    tx = transaction(3)
    session.begin(tx)
    session.receive(b"250 ok\r\n250 ok\r\n550 no\r\n250 ok\r\n354 go\r\n")
    session.content(b".\r\n", last=True)
    assert session.receive(b"250 delivered\r\n") == []
    assert session.receive(b"452 full\r\n") == [Finished(tx)]
    first, refused, full = answers(tx)
    assert first.accepted
    assert refused.stage is Stage.RCPT
    assert (full.stage, full.reply and full.reply.code) == (Stage.END, 452)


def test_a_connection_lost_midway_leaves_only_the_unanswered_in_doubt_LMTP_03() -> None:
    session = open_session(protocol=ClientProtocol.LMTP)
    tx = transaction(3)
    session.begin(tx)
    session.receive(b"250 ok\r\n250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n")
    session.content(b".\r\n", last=True)
    session.receive(b"250 one\r\n250 two\r\n")
    assert kinds(session.on_lost(Trouble.CLOSED, "closed")) == [Finished, Gone]
    assert [a.accepted for a in answers(tx)] == [True, True, False]
    assert [a.uncertain for a in answers(tx)] == [False, False, True]


# --- the connection breaks ---------------------------------------------------------------------------------

_STEPS = [b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n"]


@pytest.mark.parametrize("step", range(4))
def test_a_connection_lost_before_the_dot_is_certain_and_after_it_uncertain_SOUT_14(step: int) -> None:
    session = open_session()
    tx = transaction()
    session.begin(tx)
    for reply in _STEPS[:step]:
        session.receive(reply)
    if step == 3:
        session.content(b".\r\n", last=True)
    assert kinds(session.on_lost(Trouble.CLOSED, "reset")) == [Finished, Gone]
    (answer,) = answers(tx)
    assert answer.trouble is Trouble.CLOSED
    assert answer.uncertain == (step == 3)
    assert tx.touched == (step > 0)


def test_a_server_that_closes_after_refusing_mail_is_answered_by_its_reply_H10() -> None:
    session = open_session()
    tx = transaction()
    session.begin(tx)
    session.receive(b"550 5.7.1 spam\r\n")
    session.on_lost(Trouble.CLOSED, "reset")
    assert answers(tx)[0].reply == Reply.of(550, "5.7.1", "spam")


@pytest.mark.parametrize("step", range(4))
def test_421_anywhere_is_the_answer_and_the_end_SOUT_13(step: int) -> None:
    session = open_session()
    tx = transaction()
    session.begin(tx)
    for reply in _STEPS[:step]:
        session.receive(reply)
    if step == 3:
        session.content(b".\r\n", last=True)
    assert kinds(session.receive(b"421 4.3.2 bye\r\n")) == [Finished, Gone]
    (answer,) = answers(tx)
    assert answer.reply is not None
    assert answer.reply.code == 421
    assert not answer.uncertain


def test_421_for_one_message_leaves_the_pipelined_next_one_untouched() -> None:
    session = open_session()
    first, second = transaction(), transaction()
    session.begin(first)
    session.receive(b"".join(_STEPS))
    session.content(b".\r\n", last=True)
    session.begin(second)
    session.receive(b"421 bye\r\n")
    assert answers(first)[0].stage is Stage.END
    assert answers(second)[0].stage is Stage.MAIL
    assert not second.touched


def _second(replies: bytes) -> tuple[ClientSession, ClientTransaction]:
    """The second transaction of a session, after these replies to MAIL, RCPT and DATA."""
    session, first = _dot_sent()
    session.receive(b"250 taken\r\n")
    assert not first.wants_fresh(answers(first)[0])
    second = transaction()
    session.begin(second)
    session.receive(replies)
    return session, second


@pytest.mark.parametrize(
    ("replies", "wanted"),
    [
        (b"421 4.7.0 too many\r\n", True),
        (b"250 ok\r\n421 4.7.0 too many\r\n", True),
        (b"250 ok\r\n250 ok\r\n421 4.7.0 too many\r\n", True),
        (b"450 4.7.0 too many\r\n503 no\r\n503 no\r\n", True),
        (b"250 ok\r\n450 4.2.0 greylisted\r\n503 no\r\n", False),
        (b"250 ok\r\n250 ok\r\n451 4.3.0 not now\r\n", False),
        (b"550 5.7.1 no\r\n503 no\r\n503 no\r\n", False),
    ],
)
def test_a_refusal_before_the_content_of_a_used_connection_wants_a_fresh_one_RFC_5321_4_2_1(
    replies: bytes, wanted: bool
) -> None:
    _, second = _second(replies)
    assert second.wants_fresh(answers(second)[0]) is wanted
    session = open_session()  # the same on a fresh connection is the answer
    tx = transaction()
    session.begin(tx)
    session.receive(replies)
    assert not tx.wants_fresh(answers(tx)[0])


def test_a_connection_on_which_no_mail_was_taken_has_carried_nothing() -> None:
    session = open_session()
    for _ in range(2):
        tx = transaction()
        session.begin(tx)
        session.receive(b"250 reset\r\n" * (session.transactions - 1) + b"452 4.3.1 full\r\n503 no\r\n503 no\r\n")
        assert not tx.wants_fresh(answers(tx)[0])


def test_421_to_the_final_dot_wants_no_fresh_connection_and_what_stands_behind_it_does() -> None:
    session, second = _second(b"250 ok\r\n250 ok\r\n354 go\r\n")
    session.content(b".\r\n", last=True)
    third = transaction()
    session.begin(third)
    session.receive(b"421 4.3.2 shutting down\r\n")
    assert not second.wants_fresh(answers(second)[0])
    assert third.wants_fresh(answers(third)[0])


def test_garbage_ends_the_session_and_good_replies_before_it_count() -> None:
    session = open_session()
    tx = transaction(2)
    session.begin(tx)
    events = session.receive(b"250 ok\r\n550 no\r\n\x00\x01\r\n")
    assert kinds(events) == [Finished, Gone]
    refused, broken = answers(tx)
    assert refused.reply is not None
    assert broken.trouble is Trouble.PROTOCOL


def _dot_sent(recipients: int = 1, **settings: object) -> tuple[ClientSession, ClientTransaction]:
    session = open_session(**settings)  # type: ignore[arg-type]
    tx = transaction(recipients)
    session.begin(tx)
    session.receive(b"250 ok\r\n" * (1 + recipients) + b"354 go\r\n")
    session.content(b".\r\n", last=True)
    return session, tx


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (b"250 2.0.0 tak", 250),
        (b"250-2.0.0 taken\r\n", 250),
        (b"250-taken\r\n\x00 rubbish\r\n", 250),
        (b"250 " + b"x" * 2_000_000, 250),
        (b"250-x\r\n" * 300_000, 250),
        (b"550 5.7.1 spa", 550),
        (b"451 4.3.", 451),
    ],
)
@pytest.mark.parametrize("trouble", [Trouble.CLOSED, Trouble.TIMEOUT])
def test_the_code_after_the_final_dot_decides_though_the_reply_has_no_end_LSE_08(
    said: bytes, code: int, trouble: Trouble
) -> None:
    session, tx = _dot_sent()
    events: list[Event] = []
    for i in range(0, len(said), 65536):
        events += session.receive(said[i : i + 65536])
    events += session.on_lost(trouble, "that was all")
    assert kinds(events) == [Finished, Gone]
    (answer,) = answers(tx)
    assert answer.reply is not None
    assert (answer.stage, answer.reply.code, answer.trouble) == (Stage.END, code, None)
    assert answer.accepted is (code == 250)
    assert not answer.uncertain


def test_a_421_cut_off_after_the_final_dot_is_a_421() -> None:
    session, tx = _dot_sent()
    session.receive(b"421 4.3.2 shutting do")
    assert kinds(session.on_lost(Trouble.CLOSED, "gone")) == [Finished, Gone]
    assert answers(tx)[0] == Answer(Stage.END, Reply(421, ("4.3.2 shutting do",), EnhancedCode(4, 3, 2), cut=True))


def test_half_a_code_after_the_final_dot_says_nothing() -> None:
    session, tx = _dot_sent()
    session.receive(b"25")
    session.on_lost(Trouble.CLOSED, "gone")
    assert answers(tx)[0].uncertain


def test_a_code_cut_off_in_lmtp_speaks_for_one_recipient_LMTP_03() -> None:
    session, tx = _dot_sent(2, protocol=ClientProtocol.LMTP)
    session.receive(b"250 2.0.0 ta")
    session.on_lost(Trouble.CLOSED, "gone")
    one, other = answers(tx)
    assert one.accepted
    assert (other.accepted, other.uncertain) == (False, True)


def test_before_the_final_dot_half_a_reply_decides_nothing() -> None:
    session = open_session()
    tx = transaction()
    session.begin(tx)
    session.receive(b"550 5.7.1 no m")
    session.on_lost(Trouble.CLOSED, "gone")
    assert answers(tx)[0].trouble is Trouble.CLOSED


def test_an_ehlo_answer_that_was_cut_off_is_no_offer_without_starttls_TLS_08() -> None:
    session = ClientSession("client.example", starttls=StartTls.IF_OFFERED)
    session.receive(b"220 mx.example ESMTP\r\n")
    (failed,) = session.receive(b"250-mx.example\r\n" + b"250-XNOISE\r\n" * 300 + b"250 STARTTLS\r\n")
    assert isinstance(failed, SessionFailed)
    assert failed.answer.trouble is Trouble.PROTOCOL


def test_a_verdict_in_the_middle_of_the_content_is_the_answer() -> None:
    session = open_session()
    tx = transaction()
    session.begin(tx)
    session.receive(b"".join(_STEPS))
    session.content(b"half", last=False)
    assert kinds(session.receive(b"552 5.3.4 too big\r\n")) == [Finished, Gone]
    assert answers(tx)[0] == Answer(Stage.CONTENT, Reply.of(552, "5.3.4", "too big"))


@pytest.mark.parametrize("reply", [b"354 what\r\n", b"399 hm\r\n"])
def test_a_3yz_where_none_belongs_is_no_acceptance(reply: bytes) -> None:
    session = open_session()
    tx = transaction()
    session.begin(tx)
    session.receive(b"".join(_STEPS))
    session.content(b".\r\n", last=True)
    session.receive(reply)
    assert not answers(tx)[0].accepted


def test_a_lease_that_runs_low_before_the_dot_leaves_certainty_LSE_02() -> None:
    session = open_session()
    tx = transaction()
    session.begin(tx)
    session.receive(b"".join(_STEPS))
    session.on_lost(Trouble.LEASE, "12 s of lease left")
    assert answers(tx)[0] == Answer(Stage.CONTENT, None, Trouble.LEASE, "12 s of lease left")


def test_a_transaction_cannot_begin_inside_another() -> None:
    session = open_session()
    session.begin(transaction())
    with pytest.raises(RuntimeError):
        session.begin(transaction())


def test_a_server_that_says_goodbye_while_idle_ends_the_session() -> None:
    assert kinds(open_session().receive(b"421 idle too long\r\n")) == [Gone]


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=12), st.integers(1, 3))
def test_no_bytes_of_a_server_break_the_dialogue_SOUT_15(chunks: list[bytes], recipients: int) -> None:
    session = open_session()
    tx = transaction(recipients)
    session.begin(tx)
    finished = 0
    for chunk in [*chunks, b"250 ok\r\n"]:
        for event in session.receive(chunk):
            if isinstance(event, ContentWanted):
                session.content(b".\r\n", last=True)
            finished += isinstance(event, Finished)
    finished += sum(isinstance(event, Finished) for event in session.on_lost(Trouble.CLOSED, "end"))
    assert finished == 1
    assert all(answer is not None for answer in tx.answers)


# --- AUTH -------------------------------------------------------------------------------------------------------------


def _login(mechanisms: tuple[str, ...] = ()) -> LoginPlan:
    return LoginPlan(Credentials("user", "pencil"), lambda: "rOprNGfwEbeRWgbNEkqO", mechanisms)


def _authenticating(offer: bytes, login: LoginPlan | None = None, **settings: object) -> ClientSession:
    session = ClientSession("c.example", login=login or _login(), tls=True, tls_verified=True, **settings)  # type: ignore[arg-type]
    session.receive(b"220 hi\r\n")
    session.take()
    session.receive(b"250-mx\r\n250 AUTH " + offer + b"\r\n")
    return session


def test_plain_goes_in_one_line_over_verified_tls() -> None:
    session = _authenticating(b"PLAIN LOGIN")
    assert session.take() == b"AUTH PLAIN " + base64.b64encode(b"\0user\0pencil") + b"\r\n"
    assert kinds(session.receive(b"235 ok\r\n")) == [Ready]
    assert session.authenticated == "PLAIN"


def test_the_offer_is_the_one_read_after_tls_AUTH_08() -> None:
    session = ClientSession("c.example", login=_login(), starttls=StartTls.ALWAYS)
    session.receive(b"220 hi\r\n")
    session.receive(b"250-mx\r\n250-STARTTLS\r\n250 AUTH PLAIN\r\n")
    session.receive(b"220 go\r\n")
    session.on_tls(verified=True)
    session.take()
    session.receive(b"250-mx\r\n250 AUTH LOGIN\r\n")
    assert session.take() == b"AUTH LOGIN\r\n"
    session.receive(b"334 VXNlcm5hbWU6\r\n")
    assert session.take() == base64.b64encode(b"user") + b"\r\n"
    session.receive(b"334 UGFzc3dvcmQ6\r\n")
    assert session.take() == base64.b64encode(b"pencil") + b"\r\n"
    assert kinds(session.receive(b"235 ok\r\n")) == [Ready]


def test_scram_verifies_the_server_before_mail_SCR_01() -> None:
    session = _authenticating(b"SCRAM-SHA-256 PLAIN")
    assert session.take().startswith(b"AUTH SCRAM-SHA-256 ")
    first = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    session.receive(b"334 " + base64.b64encode(first) + b"\r\n")
    session.take()
    session.receive(b"334 " + base64.b64encode(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=") + b"\r\n")
    assert session.take() == b"\r\n"  # SCR-02: an empty line, then 235
    assert kinds(session.receive(b"235 ok\r\n")) == [Ready]


def test_scram_with_many_iterations_is_worked_out_elsewhere_and_once_for_all_connections() -> None:
    login = LoginPlan(Credentials("user", "pencil"), lambda: "rOprNGfwEbeRWgbNEkqO", (), SaltedPasswords())
    challenge = b"334 " + base64.b64encode(b"r=rOprNGfwEbeRWgbNEkqOx,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=200000") + b"\r\n"
    session = _authenticating(b"SCRAM-SHA-256", login)
    session.take()
    (wanted,) = session.receive(challenge)
    assert isinstance(wanted, NeedHash)
    assert wanted.work.iterations == 200_000
    assert session.awaiting is Stage.AUTH  # it has its time
    assert session.take() == b""
    session.on_hashed(wanted.work.do())
    assert len(session.take()) > 100
    again = _authenticating(b"SCRAM-SHA-256", login)
    assert again.receive(challenge) == []


def test_what_is_worked_out_for_a_session_that_ended_meanwhile_is_dropped() -> None:
    login = LoginPlan(Credentials("user", "pencil"), lambda: "rOprNGfwEbeRWgbNEkqO", (), SaltedPasswords())
    session = _authenticating(b"SCRAM-SHA-256", login)
    session.take()
    first = b"r=rOprNGfwEbeRWgbNEkqOx,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=200000"
    session.receive(b"334 " + base64.b64encode(first) + b"\r\n")
    (failed, gone) = session.on_lost(Trouble.CLOSED, "the server closed the connection")
    assert isinstance(failed, SessionFailed)
    assert isinstance(gone, Gone)
    assert failed.answer.stage is Stage.AUTH
    session.on_hashed(b"x")
    assert session.take() == b""


def test_an_early_235_is_not_believed_by_scram_SCR_01() -> None:
    session = _authenticating(b"SCRAM-SHA-256")
    (failed,) = session.receive(b"235 welcome\r\n")
    assert isinstance(failed, SessionFailed)
    assert failed.answer.trouble is Trouble.AUTH


def test_an_initial_response_that_does_not_fit_goes_after_a_334_AUTH_10() -> None:
    login = LoginPlan(Credentials("u" * 400, "p"), lambda: "nonce")
    session = _authenticating(b"PLAIN", login)
    assert session.take() == b"AUTH PLAIN\r\n"
    session.receive(b"334 \r\n")
    assert session.take() == base64.b64encode(b"\0" + b"u" * 400 + b"\0p") + b"\r\n"


def test_a_bad_challenge_is_cancelled_with_a_star() -> None:
    session = _authenticating(b"CRAM-MD5")
    session.take()
    assert session.receive(b"334 ***\r\n") == []
    assert session.take() == b"*\r\n"
    (failed,) = session.receive(b"501 cancelled\r\n")
    assert isinstance(failed, SessionFailed)
    assert failed.answer.trouble is Trouble.AUTH
    assert session.take() == b"QUIT\r\n"


@pytest.mark.parametrize("reply", [b"504 5.5.4 not here\r\n", b"501 5.5.4 no initial response\r\n"])
def test_a_mechanism_that_the_server_offered_and_does_not_do_leads_to_the_next_RFC_4954_4(reply: bytes) -> None:
    session = _authenticating(b"SCRAM-SHA-256 CRAM-MD5 PLAIN LOGIN")
    assert session.take().startswith(b"AUTH SCRAM-SHA-256 ")
    for mechanism in (b"CRAM-MD5", b"PLAIN", b"LOGIN"):
        assert session.receive(reply) == []
        assert session.take().startswith(b"AUTH " + mechanism)
    (failed,) = session.receive(reply)  # none is left: the server's own word says why
    assert isinstance(failed, SessionFailed)
    assert failed.answer.remote
    assert failed.answer.reply is not None
    assert failed.answer.reply.code == int(reply[:3])


def test_501_to_an_answer_of_ours_is_no_word_on_the_mechanism() -> None:
    session = _authenticating(b"CRAM-MD5 PLAIN")
    session.take()
    session.receive(b"334 PDEyMzQ+\r\n")
    session.take()
    (failed,) = session.receive(b"501 5.5.2 what\r\n")
    assert isinstance(failed, SessionFailed)


def test_the_prompts_of_login_need_not_be_base64() -> None:
    session = _authenticating(b"LOGIN")
    assert session.take() == b"AUTH LOGIN\r\n"
    session.receive(b"334 Username:\r\n")
    assert session.take() == base64.b64encode(b"user") + b"\r\n"
    session.receive(b"334 Password:\r\n")
    assert session.take() == base64.b64encode(b"pencil") + b"\r\n"
    assert kinds(session.receive(b"235 ok\r\n")) == [Ready]


def test_535_is_the_answer_and_the_password_is_tried_once() -> None:
    session = _authenticating(b"SCRAM-SHA-256 PLAIN", _login(("PLAIN", "SCRAM-SHA-256")))
    session.take()
    (failed,) = session.receive(b"535 5.7.8 wrong\r\n")
    assert failed == SessionFailed(Answer(Stage.AUTH, Reply.of(535, "5.7.8", "wrong")))
    assert session.take() == b"QUIT\r\n"


def test_a_refused_channel_binding_falls_back_before_any_proof_was_sent() -> None:
    binding = ChannelBinding("tls-server-end-point", b"x" * 32)
    session = _authenticating(b"SCRAM-SHA-256-PLUS SCRAM-SHA-256", binding=binding)
    assert session.take().startswith(b"AUTH SCRAM-SHA-256-PLUS ")
    assert session.receive(b"535 5.7.8 unsupported channel binding\r\n") == []
    line = session.take()
    assert line.startswith(b"AUTH SCRAM-SHA-256 ")
    assert base64.b64decode(line.split()[2]).startswith(b"n,,")


def test_no_offer_fails_a_session_that_must_log_in() -> None:
    session = ClientSession("c.example", login=_login(), tls=True, tls_verified=True)
    session.receive(b"220 hi\r\n")
    (failed,) = session.receive(b"250 mx\r\n")
    assert isinstance(failed, SessionFailed)
    assert failed.answer.stage is Stage.AUTH
    assert "offers nothing" in failed.answer.detail


# --- content ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "wire"),
    [
        (b"", b".\r\n"),
        (b"a\r\n", b"a\r\n.\r\n"),
        (b"a", b"a\r\n.\r\n"),
        (b".\r\n", b"..\r\n.\r\n"),
        (b"a\r\n.\r\nMAIL\r\n", b"a\r\n..\r\nMAIL\r\n.\r\n"),
        (b"a\n.\nb\r\n", b"a\r\n..\r\nb\r\n.\r\n"),
        (b"a\r.\rb\r\n", b"a\r\n..\r\nb\r\n.\r\n"),
        (b"a\r\n.\nb", b"a\r\n..\r\nb\r\n.\r\n"),
        (b"a\r\r\n.\r\r\n", b"a\r\n\r\n..\r\n\r\n.\r\n"),
    ],
)
def test_stored_bytes_can_neither_end_the_data_nor_smuggle_SOUT_12a(content: bytes, wire: bytes) -> None:
    assert stuff(content) == wire


@given(st.lists(st.text(alphabet="a.\r\n", max_size=6), max_size=8))
def test_pieces_are_stuffed_as_the_whole_is(pieces: list[str]) -> None:
    parts = [piece.encode() for piece in pieces]
    stuffer = Stuffer()
    assert b"".join(map(stuffer.feed, parts)) + stuffer.finish() == stuff(b"".join(parts))


@given(st.text(alphabet="a.\r\n", max_size=40))
def test_the_final_dot_is_the_only_one(text: str) -> None:
    wire = b"\r\n" + stuff(text.encode())
    assert wire.count(b"\r\n.\r\n") == 1
    assert wire.count(b"\r") == wire.count(b"\n") == wire.count(b"\r\n")


@given(st.text(alphabet="a.\r\n", max_size=40))
def test_a_bare_line_end_is_a_cr_or_lf_outside_of_their_pair_SOUT_12a(text: str) -> None:
    content = text.encode()
    assert has_bare_line_ends(content) == (re.search(rb"\r(?!\n)|(?<!\r)\n", content) is not None)


_PARTS = st.sampled_from([b"\r\n.", b".", b"..", b"\r\n", b"\r", b"\n", b"\r.", b"\n.", b"a", b"." * 70, b"a" * 1024])


@given(st.lists(_PARTS, max_size=80))
def test_a_line_that_begins_with_a_dot_is_found_however_many_dots_come_before_SOUT_12a(parts: list[bytes]) -> None:
    content = b"".join(parts)
    assert find_dot_line(content) == content.find(b"\r\n.")


@given(st.lists(_PARTS, max_size=80))
def test_stuffing_is_that_of_a_plain_loop_over_lines_SOUT_12a(parts: list[bytes]) -> None:
    lines = re.split(rb"\r\n|\r|\n", b"".join(parts))
    plain = b"\r\n".join(b"." + line if line.startswith(b".") else line for line in lines)
    plain += b".\r\n" if not lines[-1] else b"\r\n.\r\n"
    assert stuff(b"".join(parts)) == plain
