"""The client's dialogue, command by command, without a socket (SOUT, EXT, LMTP, AUTH, TLS-02)."""

import base64
import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.delivery.outcome import HopKind, Outcome
from mailrail.core.outbound.course import verdict_on
from mailrail.core.sasl.client import ChannelBinding, Credentials, SaltedPasswords
from mailrail.core.smtp.capabilities import read_capabilities
from mailrail.core.smtp.client import (
    Answer,
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
    Stage,
    StartTls,
    Trouble,
)
from mailrail.core.smtp.reply import EnhancedCode, Reply
from mailrail.core.smtp.stuffing import Stuffer, has_bare_line_ends, stuff

PIPELINING = b"250-mx.example\r\n250 PIPELINING\r\n"
PLAIN_HELLO = b"250 mx.example\r\n"


def session(hello: bytes = PIPELINING, **settings: object) -> ClientSession:
    """A dialogue that is ready for its first transaction."""
    dialogue = ClientSession("client.example", **settings)  # type: ignore[arg-type]
    assert dialogue.receive(b"220 mx.example ESMTP\r\n") == []
    assert dialogue.take().split(b" ")[1] == b"client.example\r\n"
    (ready,) = dialogue.receive(hello)
    assert isinstance(ready, Ready)
    return dialogue


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
    dialogue = ClientSession("client.example")
    dialogue.receive(b"220 hi\r\n")
    assert dialogue.take() == b"EHLO client.example\r\n"
    assert dialogue.receive(b"502 what\r\n") == []
    assert dialogue.take() == b"HELO client.example\r\n"
    (ready,) = dialogue.receive(b"250-old.example\r\n250 PIPELINING\r\n")
    assert isinstance(ready, Ready)
    assert not ready.capabilities.extended
    assert not ready.capabilities.pipelining


def test_a_refused_helo_too_fails_the_session() -> None:
    dialogue = ClientSession("client.example")
    dialogue.receive(b"220 hi\r\n")
    dialogue.receive(b"502 what\r\n")
    dialogue.take()
    (failed,) = dialogue.receive(b"550 go away\r\n")
    assert failed == SessionFailed(Answer(Stage.HELLO, Reply(550, ("go away",))))
    assert dialogue.take() == b"QUIT\r\n"
    assert kinds(dialogue.receive(b"221 bye\r\n")) == [Gone]


@pytest.mark.parametrize("greeting", [b"554 no\r\n", b"450 later\r\n", b"250 hm\r\n"])
def test_a_greeting_other_than_220_fails_the_session(greeting: bytes) -> None:
    dialogue = ClientSession("client.example")
    (failed,) = dialogue.receive(greeting)
    assert isinstance(failed, SessionFailed)
    assert failed.answer.stage is Stage.GREETING
    assert dialogue.take() == b"QUIT\r\n"


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
    dialogue = ClientSession("client.example", starttls=StartTls.ALWAYS)
    for octets in said[:-1]:
        assert dialogue.receive(octets) == []
    (failed,) = dialogue.receive(said[-1])
    assert isinstance(failed, SessionFailed)
    assert (failed.answer.stage, failed.answer.trouble, failed.answer.reply) == (stage, trouble, None)
    assert verdict_on(failed.answer, hop=hop).outcome is Outcome.DEFERRED


def test_rset_answered_with_354_leaves_the_next_message_unsent() -> None:
    dialogue = session()
    refused, following = transaction(), transaction()
    dialogue.begin(refused)
    dialogue.receive(b"550 no\r\n503 no\r\n503 no\r\n")
    dialogue.begin(following)
    dialogue.receive(b"354 go on\r\n")
    (answer,) = answers(following)
    assert (answer.reply, answer.trouble) == (None, Trouble.PROTOCOL)
    assert not following.touched


@pytest.mark.parametrize("reply", [b"500 what\r\n", b"550 go away\r\n", b"451 later\r\n"])
def test_a_refused_rset_is_no_word_on_the_message_behind_it(reply: bytes) -> None:
    dialogue = session()
    refused, following = transaction(), transaction()
    dialogue.begin(refused)
    dialogue.receive(b"550 no\r\n503 no\r\n503 no\r\n")
    dialogue.begin(following)
    assert kinds(dialogue.receive(reply)) == [Finished, Gone]
    (answer,) = answers(following)
    assert (answer.stage, answer.reply, answer.trouble) == (Stage.MAIL, None, Trouble.CLOSED)


def test_421_at_the_greeting_ends_the_session_without_quit() -> None:
    dialogue = ClientSession("client.example")
    assert kinds(dialogue.receive(b"421 busy\r\n")) == [SessionFailed, Gone]
    assert dialogue.take() == b""


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
            ),
        )
    )
    assert capabilities.name == "mx.example"
    assert capabilities.size == 1000
    assert capabilities.eight_bit_mime
    assert capabilities.auth == ("PLAIN", "LOGIN", "CRAM-MD5")
    assert capabilities.max_recipients == 5
    assert capabilities.max_transactions is None
    assert capabilities.binary_mime


@pytest.mark.parametrize("size", ["SIZE", "SIZE 0", "SIZE -1", "SIZE 9999999999999999999", "SIZE ²"])
def test_size_without_a_positive_number_is_no_limit_H10(size: str) -> None:
    capabilities = read_capabilities(Reply(250, ("mx", size)))
    assert capabilities.size_offered
    assert capabilities.size is None


def test_binarymime_without_chunking_is_no_use_EXT_08() -> None:
    assert not read_capabilities(Reply(250, ("mx", "BINARYMIME"))).binary_mime


def test_lmtp_says_lhlo_and_never_falls_back_LMTP_01() -> None:
    dialogue = ClientSession("client.example", protocol=ClientProtocol.LMTP)
    dialogue.receive(b"220 hi\r\n")
    assert dialogue.take() == b"LHLO client.example\r\n"
    (failed,) = dialogue.receive(b"500 what\r\n")
    assert isinstance(failed, SessionFailed)


# --- STARTTLS ---------------------------------------------------------------------------------


def test_capabilities_from_before_tls_are_forgotten_TLS_02_H24() -> None:
    dialogue = ClientSession("client.example", starttls=StartTls.IF_OFFERED)
    dialogue.receive(b"220 hi\r\n")
    dialogue.take()
    assert dialogue.receive(b"250-mx\r\n250-STARTTLS\r\n250-REQUIRETLS\r\n250 AUTH PLAIN\r\n") == []
    assert dialogue.take() == b"STARTTLS\r\n"
    assert kinds(dialogue.receive(b"220 go\r\n")) == [NeedTls]
    dialogue.tls_started(verified=True)
    assert not dialogue.capabilities.require_tls
    assert dialogue.capabilities.auth == ()
    assert dialogue.take() == b"EHLO client.example\r\n"
    (ready,) = dialogue.receive(b"250 mx\r\n")
    assert ready == Ready(dialogue.capabilities)
    assert dialogue.starttls_offered
    assert dialogue.tls


def test_plaintext_injected_behind_the_starttls_reply_is_dropped_TLS_02() -> None:
    dialogue = ClientSession("client.example", starttls=StartTls.ALWAYS)
    dialogue.receive(b"220 hi\r\n")
    dialogue.receive(b"250-mx\r\n250 STARTTLS\r\n")
    assert kinds(dialogue.receive(b"220 go\r\n250-evil\r\n250 AUTH PLAIN\r\n250-more")) == [NeedTls]
    dialogue.tls_started(verified=True)
    dialogue.take()
    (ready,) = dialogue.receive(b"250 mx\r\n")
    assert isinstance(ready, Ready)
    assert ready.capabilities.name == "mx"


def test_a_stripped_starttls_fails_a_session_that_requires_tls_TLS_08() -> None:
    dialogue = ClientSession("client.example", starttls=StartTls.ALWAYS)
    dialogue.receive(b"220 hi\r\n")
    (failed,) = dialogue.receive(PIPELINING)
    assert isinstance(failed, SessionFailed)
    assert failed.answer.trouble is Trouble.TLS


def test_a_refused_starttls_is_a_tls_failure_with_its_reply() -> None:
    dialogue = ClientSession("client.example", starttls=StartTls.IF_OFFERED)
    dialogue.receive(b"220 hi\r\n")
    dialogue.receive(b"250-mx\r\n250 STARTTLS\r\n")
    (failed,) = dialogue.receive(b"454 not now\r\n")
    assert isinstance(failed, SessionFailed)
    assert failed.answer.trouble is Trouble.TLS
    assert failed.answer.reply == Reply(454, ("not now",))


# --- transactions, pipelined ---------------------------------------------------------------------------------------


def test_a_pipelined_group_is_one_write_and_ends_at_data_EXT_04() -> None:
    dialogue = session()
    tx = transaction(2)
    dialogue.begin(tx)
    assert dialogue.take() == (
        b"MAIL FROM:<s@example.com>\r\nRCPT TO:<r0@example.org>\r\nRCPT TO:<r1@example.org>\r\nDATA\r\n"
    )
    assert dialogue.receive(b"250 ok\r\n250 ok\r\n251 forwards\r\n354 go\r\n") == [ContentWanted(tx)]
    dialogue.content(stuff(b"A: b\r\n\r\nhi\r\n"), last=True)
    assert dialogue.take() == b"A: b\r\n\r\nhi\r\n.\r\n"
    assert dialogue.receive(b"250 2.0.0 queued\r\n") == [Finished(tx)]
    assert all(answer.accepted for answer in answers(tx))
    assert dialogue.idle


def test_each_recipient_keeps_its_own_result_SOUT_10() -> None:
    dialogue = session()
    tx = transaction(3)
    dialogue.begin(tx)
    dialogue.receive(b"250 ok\r\n250 ok\r\n550 5.1.1 no\r\n452 4.5.3 too many\r\n354 go\r\n")
    dialogue.content(b".\r\n", last=True)
    assert dialogue.receive(b"250 done\r\n") == [Finished(tx)]
    ok, refused, later = answers(tx)
    assert ok.accepted
    assert (refused.stage, refused.reply and refused.reply.code) == (Stage.RCPT, 550)
    assert (later.stage, later.reply and later.reply.code) == (Stage.RCPT, 452)


def test_a_refused_mail_decides_all_and_its_echoes_are_ignored() -> None:
    dialogue = session()
    tx = transaction(2)
    dialogue.begin(tx)
    assert dialogue.receive(b"550 5.7.1 not you\r\n") == []
    assert dialogue.receive(b"503 no mail\r\n503 no mail\r\n503 no rcpt\r\n") == [Finished(tx)]
    assert [(a.stage, a.reply and a.reply.code) for a in answers(tx)] == [(Stage.MAIL, 550)] * 2
    again = transaction()
    dialogue.take()
    dialogue.begin(again)
    assert dialogue.take().startswith(b"RSET\r\nMAIL FROM")


def test_354_of_an_lmtp_server_that_took_no_recipient_ends_the_session_without_content_RFC_2033_4_2() -> None:
    dialogue = session(protocol=ClientProtocol.LMTP)
    tx = transaction(2)
    dialogue.begin(tx)
    dialogue.take()
    events = dialogue.receive(b"250 ok\r\n550 no\r\n451 later\r\n354 go\r\n")
    assert [type(event) for event in events] == [Finished, Gone]
    assert [answer.reply and answer.reply.code for answer in answers(tx)] == [550, 451]
    assert dialogue.take() == b""


def test_354_without_a_recipient_is_answered_with_a_lone_dot_EXT_04() -> None:
    dialogue = session()
    tx = transaction()
    dialogue.begin(tx)
    dialogue.take()
    assert dialogue.receive(b"250 ok\r\n550 no\r\n354 go\r\n") == []
    assert dialogue.take() == b".\r\n"
    assert dialogue.receive(b"554 no valid recipients\r\n") == [Finished(tx)]
    assert answers(tx)[0].reply == Reply(550, ("no",))
    assert dialogue.idle


def test_a_server_that_accepts_the_lone_dot_has_still_refused_the_recipient() -> None:
    dialogue = session()
    tx = transaction()
    dialogue.begin(tx)
    dialogue.receive(b"250 ok\r\n550 no\r\n354 go\r\n250 thanks\r\n")
    assert not answers(tx)[0].accepted


def test_a_refused_data_decides_those_that_rcpt_took() -> None:
    dialogue = session()
    tx = transaction(2)
    dialogue.begin(tx)
    assert dialogue.receive(b"250 ok\r\n250 ok\r\n550 no\r\n451 disk\r\n") == [Finished(tx)]
    assert [(a.stage, a.reply and a.reply.code) for a in answers(tx)] == [(Stage.DATA, 451), (Stage.RCPT, 550)]


def test_the_next_transaction_follows_the_final_dot_in_the_same_write() -> None:
    dialogue = session()
    first, second = transaction(), transaction()
    dialogue.begin(first)
    assert not dialogue.accepts_transaction
    dialogue.receive(b"250 ok\r\n250 ok\r\n354 go\r\n")
    dialogue.take()
    dialogue.content(b"x\r\n.\r\n", last=True)
    assert dialogue.accepts_transaction
    dialogue.begin(second)
    assert dialogue.take() == b"x\r\n.\r\nMAIL FROM:<s@example.com>\r\nRCPT TO:<r0@example.org>\r\nDATA\r\n"
    events = dialogue.receive(b"250 first\r\n250 ok\r\n250 ok\r\n354 go\r\n")
    assert events == [Finished(first), ContentWanted(second)]


def test_quit_goes_with_the_final_dot_where_the_server_pipelines() -> None:
    dialogue = session()
    tx = transaction()
    dialogue.begin(tx)
    dialogue.receive(b"250 ok\r\n250 ok\r\n354 go\r\n")
    dialogue.take()
    dialogue.content(b"x\r\n.\r\n", last=True)
    dialogue.quit()
    assert dialogue.take() == b"x\r\n.\r\nQUIT\r\n"
    assert kinds(dialogue.receive(b"250 ok\r\n221 bye\r\n")) == [Finished, Gone]


# --- transactions, one command at a time -----------------------------------------------------------------------------


def test_without_pipelining_each_command_waits_for_its_reply_EXT_04() -> None:
    dialogue = session(PLAIN_HELLO)
    tx = transaction(2)
    dialogue.begin(tx)
    assert dialogue.take() == b"MAIL FROM:<s@example.com>\r\n"
    dialogue.receive(b"250 ok\r\n")
    assert dialogue.take() == b"RCPT TO:<r0@example.org>\r\n"
    dialogue.receive(b"250 ok\r\n")
    assert dialogue.take() == b"RCPT TO:<r1@example.org>\r\n"
    dialogue.receive(b"250 ok\r\n")
    assert dialogue.take() == b"DATA\r\n"
    assert dialogue.receive(b"354 go\r\n") == [ContentWanted(tx)]
    dialogue.content(b"x\r\n.\r\n", last=True)
    dialogue.quit()
    assert dialogue.take() == b"x\r\n.\r\n"
    assert dialogue.receive(b"250 ok\r\n") == [Finished(tx)]
    assert dialogue.take() == b"QUIT\r\n"


def test_without_pipelining_data_is_not_sent_when_every_rcpt_is_refused_SOUT_17() -> None:
    dialogue = session(PLAIN_HELLO)
    tx = transaction()
    dialogue.begin(tx)
    dialogue.receive(b"250 ok\r\n")
    dialogue.take()
    assert dialogue.receive(b"550 no\r\n") == [Finished(tx)]
    assert dialogue.take() == b""
    dialogue.begin(transaction())
    assert dialogue.take() == b"RSET\r\n"
    dialogue.receive(b"250 ok\r\n")
    assert dialogue.take() == b"MAIL FROM:<s@example.com>\r\n"


def test_mailmax_ends_the_use_of_a_connection() -> None:
    dialogue = session(b"250-mx\r\n250-PIPELINING\r\n250 LIMITS MAILMAX=1\r\n")
    tx = transaction()
    dialogue.begin(tx)
    dialogue.receive(b"250 ok\r\n250 ok\r\n354 go\r\n")
    dialogue.content(b".\r\n", last=True)
    dialogue.receive(b"250 ok\r\n")
    assert not dialogue.accepts_transaction


# --- BDAT ------------------------------------------------------------


def test_bdat_sends_chunks_and_waits_for_no_354() -> None:
    dialogue = session(b"250-mx\r\n250-PIPELINING\r\n250 CHUNKING\r\n")
    tx = transaction(bdat=True)
    dialogue.begin(tx)
    assert dialogue.take().endswith(b"RCPT TO:<r0@example.org>\r\n")
    assert dialogue.receive(b"250 ok\r\n250 ok\r\n") == [ContentWanted(tx)]
    dialogue.content(b".\n\0", last=False)
    assert dialogue.take() == b"BDAT 3\r\n.\n\0"
    assert not dialogue.wants_chunk()  # nothing shows yet that the server knows BDAT
    assert dialogue.receive(b"250 3 octets\r\n") == [ContentWanted(tx)]
    dialogue.content(b"more", last=False)
    assert dialogue.take() == b"BDAT 4\r\nmore"
    assert dialogue.wants_chunk()
    dialogue.content(b"", last=True)
    assert dialogue.take() == b"BDAT 0 LAST\r\n"
    assert dialogue.receive(b"250 4 octets\r\n") == []
    assert dialogue.receive(b"250 ok\r\n") == [Finished(tx)]
    assert answers(tx)[0].accepted


def test_a_failed_chunk_ends_the_transaction_and_nothing_more_is_sent() -> None:
    dialogue = session(b"250-mx\r\n250-PIPELINING\r\n250 CHUNKING\r\n")
    tx = transaction(bdat=True)
    dialogue.begin(tx)
    dialogue.receive(b"250 ok\r\n250 ok\r\n")
    dialogue.content(b"a", last=False)
    dialogue.content(b"b", last=False)
    assert dialogue.receive(b"552 too big\r\n") == []
    assert not dialogue.wants_chunk()
    assert dialogue.receive(b"503 failed before\r\n") == [Finished(tx)]
    assert answers(tx)[0] == Answer(Stage.CONTENT, Reply(552, ("too big",)))
    dialogue.take()
    dialogue.begin(transaction())
    assert dialogue.take().startswith(b"RSET\r\n")


def test_no_transaction_follows_while_the_reply_to_a_chunk_is_awaited() -> None:
    dialogue = session(b"250-mx\r\n250-PIPELINING\r\n250 CHUNKING\r\n")
    tx = transaction(bdat=True)
    dialogue.begin(tx)
    dialogue.receive(b"250 ok\r\n250 ok\r\n")
    dialogue.content(b"a", last=False)
    dialogue.content(b"b", last=True)
    assert not dialogue.accepts_transaction
    dialogue.receive(b"250 1 octet\r\n")
    assert dialogue.accepts_transaction


def test_after_a_failed_chunk_rset_comes_before_the_next_message_and_never_into_it() -> None:
    dialogue = session(b"250-mx\r\n250-PIPELINING\r\n250 CHUNKING\r\n")
    tx = transaction(bdat=True)
    dialogue.begin(tx)
    dialogue.receive(b"250 ok\r\n250 ok\r\n")
    dialogue.content(b"first", last=False)
    dialogue.content(b"second", last=True)
    dialogue.take()
    dialogue.receive(b"552 5.3.4 too big\r\n")
    assert not dialogue.accepts_transaction  # while the reply to BDAT LAST is awaited, RSET could not go first
    assert kinds(dialogue.receive(b"503 5.5.1 no\r\n")) == [Finished]
    dialogue.begin(transaction())
    assert dialogue.take().startswith(b"RSET\r\nMAIL FROM:")


@pytest.mark.parametrize(("code", "unknown"), [(b"500", True), (b"502", True), (b"503", False), (b"552", False)])
def test_bdat_that_a_server_does_not_have_is_told_from_one_that_it_refuses(code: bytes, unknown: bool) -> None:
    dialogue = session(b"250-mx\r\n250-PIPELINING\r\n250 CHUNKING\r\n")
    tx = transaction(bdat=True)
    dialogue.begin(tx)
    dialogue.receive(b"250 ok\r\n250 ok\r\n")
    dialogue.content(b"Received: x\r\n", last=False)
    events = dialogue.receive(code + b" no\r\n500 what\r\n" if unknown else code + b" no\r\n")
    assert kinds(events) == ([Finished, Gone] if unknown else [Finished])
    assert tx.bdat_unknown is unknown


def test_bdat_that_was_taken_before_is_known() -> None:
    dialogue = session(b"250-mx\r\n250-PIPELINING\r\n250 CHUNKING\r\n")
    tx = transaction(bdat=True)
    dialogue.begin(tx)
    dialogue.receive(b"250 ok\r\n250 ok\r\n")
    dialogue.content(b"Received: x\r\n", last=False)
    dialogue.receive(b"250 ok\r\n")
    dialogue.content(b"x", last=False)
    dialogue.receive(b"500 line too long\r\n")
    assert not tx.bdat_unknown


def test_without_pipelining_one_chunk_is_in_flight() -> None:
    dialogue = session(b"250-mx\r\n250 CHUNKING\r\n")
    tx = transaction(bdat=True)
    dialogue.begin(tx)
    dialogue.receive(b"250 ok\r\n")
    assert dialogue.receive(b"250 ok\r\n") == [ContentWanted(tx)]
    dialogue.content(b"a", last=False)
    assert not dialogue.wants_chunk()
    assert dialogue.receive(b"250 ok\r\n") == [ContentWanted(tx)]


# --- LMTP ------------------------------------------------------------


def test_lmtp_gives_one_reply_for_each_accepted_recipient_LMTP_02() -> None:
    dialogue = session(protocol=ClientProtocol.LMTP)
    tx = transaction(3)
    dialogue.begin(tx)
    dialogue.receive(b"250 ok\r\n250 ok\r\n550 no\r\n250 ok\r\n354 go\r\n")
    dialogue.content(b".\r\n", last=True)
    assert dialogue.receive(b"250 delivered\r\n") == []
    assert dialogue.receive(b"452 full\r\n") == [Finished(tx)]
    first, refused, full = answers(tx)
    assert first.accepted
    assert refused.stage is Stage.RCPT
    assert (full.stage, full.reply and full.reply.code) == (Stage.END, 452)


def test_a_connection_lost_midway_leaves_only_the_unanswered_in_doubt_LMTP_03() -> None:
    dialogue = session(protocol=ClientProtocol.LMTP)
    tx = transaction(3)
    dialogue.begin(tx)
    dialogue.receive(b"250 ok\r\n250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n")
    dialogue.content(b".\r\n", last=True)
    dialogue.receive(b"250 one\r\n250 two\r\n")
    assert kinds(dialogue.lost(Trouble.CLOSED, "closed")) == [Finished, Gone]
    assert [a.accepted for a in answers(tx)] == [True, True, False]
    assert [a.uncertain for a in answers(tx)] == [False, False, True]


# --- the connection breaks ---------------------------------------------------------------------------------

_STEPS = [b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n"]


@pytest.mark.parametrize("step", range(4))
def test_a_connection_lost_before_the_dot_is_certain_and_after_it_uncertain_SOUT_14(step: int) -> None:
    dialogue = session()
    tx = transaction()
    dialogue.begin(tx)
    for reply in _STEPS[:step]:
        dialogue.receive(reply)
    if step == 3:
        dialogue.content(b".\r\n", last=True)
    assert kinds(dialogue.lost(Trouble.CLOSED, "reset")) == [Finished, Gone]
    (answer,) = answers(tx)
    assert answer.trouble is Trouble.CLOSED
    assert answer.uncertain == (step == 3)
    assert tx.touched == (step > 0)


def test_a_server_that_closes_after_refusing_mail_is_answered_by_its_reply_H10() -> None:
    dialogue = session()
    tx = transaction()
    dialogue.begin(tx)
    dialogue.receive(b"550 5.7.1 spam\r\n")
    dialogue.lost(Trouble.CLOSED, "reset")
    assert answers(tx)[0].reply == Reply.of(550, "5.7.1", "spam")


@pytest.mark.parametrize("step", range(4))
def test_421_anywhere_is_the_answer_and_the_end_SOUT_13(step: int) -> None:
    dialogue = session()
    tx = transaction()
    dialogue.begin(tx)
    for reply in _STEPS[:step]:
        dialogue.receive(reply)
    if step == 3:
        dialogue.content(b".\r\n", last=True)
    assert kinds(dialogue.receive(b"421 4.3.2 bye\r\n")) == [Finished, Gone]
    (answer,) = answers(tx)
    assert answer.reply is not None
    assert answer.reply.code == 421
    assert not answer.uncertain


def test_421_for_one_message_leaves_the_pipelined_next_one_untouched() -> None:
    dialogue = session()
    first, second = transaction(), transaction()
    dialogue.begin(first)
    dialogue.receive(b"".join(_STEPS))
    dialogue.content(b".\r\n", last=True)
    dialogue.begin(second)
    dialogue.receive(b"421 bye\r\n")
    assert answers(first)[0].stage is Stage.END
    assert answers(second)[0].stage is Stage.MAIL
    assert not second.touched


def _second(replies: bytes) -> tuple[ClientSession, ClientTransaction]:
    """The second transaction of a session, after these replies to MAIL, RCPT and DATA."""
    dialogue, first = _dot_sent()
    dialogue.receive(b"250 taken\r\n")
    assert not first.wants_fresh(answers(first)[0])
    second = transaction()
    dialogue.begin(second)
    dialogue.receive(replies)
    return dialogue, second


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
    dialogue = session()  # the same on a fresh connection is the answer
    tx = transaction()
    dialogue.begin(tx)
    dialogue.receive(replies)
    assert not tx.wants_fresh(answers(tx)[0])


def test_a_connection_on_which_no_mail_was_taken_has_carried_nothing() -> None:
    dialogue = session()
    for _ in range(2):
        tx = transaction()
        dialogue.begin(tx)
        dialogue.receive(b"250 reset\r\n" * (dialogue.transactions - 1) + b"452 4.3.1 full\r\n503 no\r\n503 no\r\n")
        assert not tx.wants_fresh(answers(tx)[0])


def test_421_to_the_final_dot_wants_no_fresh_connection_and_what_stands_behind_it_does() -> None:
    dialogue, second = _second(b"250 ok\r\n250 ok\r\n354 go\r\n")
    dialogue.content(b".\r\n", last=True)
    third = transaction()
    dialogue.begin(third)
    dialogue.receive(b"421 4.3.2 shutting down\r\n")
    assert not second.wants_fresh(answers(second)[0])
    assert third.wants_fresh(answers(third)[0])


def test_garbage_ends_the_session_and_good_replies_before_it_count() -> None:
    dialogue = session()
    tx = transaction(2)
    dialogue.begin(tx)
    events = dialogue.receive(b"250 ok\r\n550 no\r\n\x00\x01\r\n")
    assert kinds(events) == [Finished, Gone]
    refused, broken = answers(tx)
    assert refused.reply is not None
    assert broken.trouble is Trouble.PROTOCOL


def _dot_sent(recipients: int = 1, **settings: object) -> tuple[ClientSession, ClientTransaction]:
    dialogue = session(**settings)  # type: ignore[arg-type]
    tx = transaction(recipients)
    dialogue.begin(tx)
    dialogue.receive(b"250 ok\r\n" * (1 + recipients) + b"354 go\r\n")
    dialogue.content(b".\r\n", last=True)
    return dialogue, tx


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
    dialogue, tx = _dot_sent()
    events: list[Event] = []
    for i in range(0, len(said), 65536):
        events += dialogue.receive(said[i : i + 65536])
    events += dialogue.lost(trouble, "that was all")
    assert kinds(events) == [Finished, Gone]
    (answer,) = answers(tx)
    assert answer.reply is not None
    assert (answer.stage, answer.reply.code, answer.trouble) == (Stage.END, code, None)
    assert answer.accepted is (code == 250)
    assert not answer.uncertain


def test_a_421_cut_off_after_the_final_dot_is_a_421() -> None:
    dialogue, tx = _dot_sent()
    dialogue.receive(b"421 4.3.2 shutting do")
    assert kinds(dialogue.lost(Trouble.CLOSED, "gone")) == [Finished, Gone]
    assert answers(tx)[0] == Answer(Stage.END, Reply(421, ("4.3.2 shutting do",), EnhancedCode(4, 3, 2), cut=True))


def test_half_a_code_after_the_final_dot_says_nothing() -> None:
    dialogue, tx = _dot_sent()
    dialogue.receive(b"25")
    dialogue.lost(Trouble.CLOSED, "gone")
    assert answers(tx)[0].uncertain


def test_a_code_cut_off_in_lmtp_speaks_for_one_recipient_LMTP_03() -> None:
    dialogue, tx = _dot_sent(2, protocol=ClientProtocol.LMTP)
    dialogue.receive(b"250 2.0.0 ta")
    dialogue.lost(Trouble.CLOSED, "gone")
    one, other = answers(tx)
    assert one.accepted
    assert (other.accepted, other.uncertain) == (False, True)


def test_before_the_final_dot_half_a_reply_decides_nothing() -> None:
    dialogue = session()
    tx = transaction()
    dialogue.begin(tx)
    dialogue.receive(b"550 5.7.1 no m")
    dialogue.lost(Trouble.CLOSED, "gone")
    assert answers(tx)[0].trouble is Trouble.CLOSED


def test_an_ehlo_answer_that_was_cut_off_is_no_offer_without_starttls_TLS_08() -> None:
    dialogue = ClientSession("client.example", starttls=StartTls.IF_OFFERED)
    dialogue.receive(b"220 mx.example ESMTP\r\n")
    (failed,) = dialogue.receive(b"250-mx.example\r\n" + b"250-XNOISE\r\n" * 300 + b"250 STARTTLS\r\n")
    assert isinstance(failed, SessionFailed)
    assert failed.answer.trouble is Trouble.PROTOCOL


def test_a_verdict_in_the_middle_of_the_content_is_the_answer() -> None:
    dialogue = session()
    tx = transaction()
    dialogue.begin(tx)
    dialogue.receive(b"".join(_STEPS))
    dialogue.content(b"half", last=False)
    assert kinds(dialogue.receive(b"552 5.3.4 too big\r\n")) == [Finished, Gone]
    assert answers(tx)[0] == Answer(Stage.CONTENT, Reply.of(552, "5.3.4", "too big"))


@pytest.mark.parametrize("reply", [b"354 what\r\n", b"399 hm\r\n"])
def test_a_3yz_where_none_belongs_is_no_acceptance(reply: bytes) -> None:
    dialogue = session()
    tx = transaction()
    dialogue.begin(tx)
    dialogue.receive(b"".join(_STEPS))
    dialogue.content(b".\r\n", last=True)
    dialogue.receive(reply)
    assert not answers(tx)[0].accepted


def test_a_lease_that_runs_low_before_the_dot_leaves_certainty_LSE_02() -> None:
    dialogue = session()
    tx = transaction()
    dialogue.begin(tx)
    dialogue.receive(b"".join(_STEPS))
    dialogue.lost(Trouble.LEASE, "12 s of lease left")
    assert answers(tx)[0] == Answer(Stage.CONTENT, None, Trouble.LEASE, "12 s of lease left")


def test_a_transaction_cannot_begin_inside_another() -> None:
    dialogue = session()
    dialogue.begin(transaction())
    with pytest.raises(RuntimeError):
        dialogue.begin(transaction())


def test_a_server_that_says_goodbye_while_idle_ends_the_session() -> None:
    assert kinds(session().receive(b"421 idle too long\r\n")) == [Gone]


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=12), st.integers(1, 3))
def test_no_bytes_of_a_server_break_the_dialogue_SOUT_15(chunks: list[bytes], recipients: int) -> None:
    dialogue = session()
    tx = transaction(recipients)
    dialogue.begin(tx)
    finished = 0
    for chunk in [*chunks, b"250 ok\r\n"]:
        for event in dialogue.receive(chunk):
            if isinstance(event, ContentWanted):
                dialogue.content(b".\r\n", last=True)
            finished += isinstance(event, Finished)
    finished += sum(isinstance(event, Finished) for event in dialogue.lost(Trouble.CLOSED, "end"))
    assert finished == 1
    assert all(answer is not None for answer in tx.answers)


# --- AUTH -------------------------------------------------------------------------------------------------------------


def _login(mechanisms: tuple[str, ...] = ()) -> LoginPlan:
    return LoginPlan(Credentials("user", "pencil"), lambda: "rOprNGfwEbeRWgbNEkqO", mechanisms)


def _authenticating(offer: bytes, login: LoginPlan | None = None, **settings: object) -> ClientSession:
    dialogue = ClientSession("c.example", login=login or _login(), tls=True, tls_verified=True, **settings)  # type: ignore[arg-type]
    dialogue.receive(b"220 hi\r\n")
    dialogue.take()
    dialogue.receive(b"250-mx\r\n250 AUTH " + offer + b"\r\n")
    return dialogue


def test_plain_goes_in_one_line_over_verified_tls() -> None:
    dialogue = _authenticating(b"PLAIN LOGIN")
    assert dialogue.take() == b"AUTH PLAIN " + base64.b64encode(b"\0user\0pencil") + b"\r\n"
    assert kinds(dialogue.receive(b"235 ok\r\n")) == [Ready]
    assert dialogue.authenticated == "PLAIN"


def test_the_offer_is_the_one_read_after_tls_AUTH_08() -> None:
    dialogue = ClientSession("c.example", login=_login(), starttls=StartTls.ALWAYS)
    dialogue.receive(b"220 hi\r\n")
    dialogue.receive(b"250-mx\r\n250-STARTTLS\r\n250 AUTH PLAIN\r\n")
    dialogue.receive(b"220 go\r\n")
    dialogue.tls_started(verified=True)
    dialogue.take()
    dialogue.receive(b"250-mx\r\n250 AUTH LOGIN\r\n")
    assert dialogue.take() == b"AUTH LOGIN\r\n"
    dialogue.receive(b"334 VXNlcm5hbWU6\r\n")
    assert dialogue.take() == base64.b64encode(b"user") + b"\r\n"
    dialogue.receive(b"334 UGFzc3dvcmQ6\r\n")
    assert dialogue.take() == base64.b64encode(b"pencil") + b"\r\n"
    assert kinds(dialogue.receive(b"235 ok\r\n")) == [Ready]


def test_scram_verifies_the_server_before_mail_SCR_01() -> None:
    dialogue = _authenticating(b"SCRAM-SHA-256 PLAIN")
    assert dialogue.take().startswith(b"AUTH SCRAM-SHA-256 ")
    first = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    dialogue.receive(b"334 " + base64.b64encode(first) + b"\r\n")
    dialogue.take()
    dialogue.receive(b"334 " + base64.b64encode(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=") + b"\r\n")
    assert dialogue.take() == b"\r\n"  # SCR-02: an empty line, then 235
    assert kinds(dialogue.receive(b"235 ok\r\n")) == [Ready]


def test_scram_with_many_iterations_is_worked_out_elsewhere_and_once_for_all_connections() -> None:
    login = LoginPlan(Credentials("user", "pencil"), lambda: "rOprNGfwEbeRWgbNEkqO", (), SaltedPasswords())
    challenge = b"334 " + base64.b64encode(b"r=rOprNGfwEbeRWgbNEkqOx,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=200000") + b"\r\n"
    dialogue = _authenticating(b"SCRAM-SHA-256", login)
    dialogue.take()
    (wanted,) = dialogue.receive(challenge)
    assert isinstance(wanted, NeedHash)
    assert wanted.work.iterations == 200_000
    assert dialogue.awaiting is Stage.AUTH  # it has its time
    assert dialogue.take() == b""
    dialogue.hashed(wanted.work.do())
    assert len(dialogue.take()) > 100
    again = _authenticating(b"SCRAM-SHA-256", login)
    assert again.receive(challenge) == []


def test_what_is_worked_out_for_a_session_that_ended_meanwhile_is_dropped() -> None:
    login = LoginPlan(Credentials("user", "pencil"), lambda: "rOprNGfwEbeRWgbNEkqO", (), SaltedPasswords())
    dialogue = _authenticating(b"SCRAM-SHA-256", login)
    dialogue.take()
    first = b"r=rOprNGfwEbeRWgbNEkqOx,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=200000"
    dialogue.receive(b"334 " + base64.b64encode(first) + b"\r\n")
    (failed, gone) = dialogue.lost(Trouble.CLOSED, "the server closed the connection")
    assert isinstance(failed, SessionFailed)
    assert isinstance(gone, Gone)
    assert failed.answer.stage is Stage.AUTH
    dialogue.hashed(b"x")
    assert dialogue.take() == b""


def test_an_early_235_is_not_believed_by_scram_SCR_01() -> None:
    dialogue = _authenticating(b"SCRAM-SHA-256")
    (failed,) = dialogue.receive(b"235 welcome\r\n")
    assert isinstance(failed, SessionFailed)
    assert failed.answer.trouble is Trouble.AUTH


def test_an_initial_response_that_does_not_fit_goes_after_a_334_AUTH_10() -> None:
    login = LoginPlan(Credentials("u" * 400, "p"), lambda: "nonce")
    dialogue = _authenticating(b"PLAIN", login)
    assert dialogue.take() == b"AUTH PLAIN\r\n"
    dialogue.receive(b"334 \r\n")
    assert dialogue.take() == base64.b64encode(b"\0" + b"u" * 400 + b"\0p") + b"\r\n"


def test_a_bad_challenge_is_cancelled_with_a_star() -> None:
    dialogue = _authenticating(b"CRAM-MD5")
    dialogue.take()
    assert dialogue.receive(b"334 ***\r\n") == []
    assert dialogue.take() == b"*\r\n"
    (failed,) = dialogue.receive(b"501 cancelled\r\n")
    assert isinstance(failed, SessionFailed)
    assert failed.answer.trouble is Trouble.AUTH
    assert dialogue.take() == b"QUIT\r\n"


@pytest.mark.parametrize("reply", [b"504 5.5.4 not here\r\n", b"501 5.5.4 no initial response\r\n"])
def test_a_mechanism_that_the_server_offered_and_does_not_do_leads_to_the_next_RFC_4954_4(reply: bytes) -> None:
    dialogue = _authenticating(b"SCRAM-SHA-256 CRAM-MD5 PLAIN LOGIN")
    assert dialogue.take().startswith(b"AUTH SCRAM-SHA-256 ")
    for mechanism in (b"CRAM-MD5", b"PLAIN", b"LOGIN"):
        assert dialogue.receive(reply) == []
        assert dialogue.take().startswith(b"AUTH " + mechanism)
    (failed,) = dialogue.receive(reply)  # none is left: the server's own word says why
    assert isinstance(failed, SessionFailed)
    assert failed.answer.remote
    assert failed.answer.reply is not None
    assert failed.answer.reply.code == int(reply[:3])


def test_501_to_an_answer_of_ours_is_no_word_on_the_mechanism() -> None:
    dialogue = _authenticating(b"CRAM-MD5 PLAIN")
    dialogue.take()
    dialogue.receive(b"334 PDEyMzQ+\r\n")
    dialogue.take()
    (failed,) = dialogue.receive(b"501 5.5.2 what\r\n")
    assert isinstance(failed, SessionFailed)


def test_the_prompts_of_login_need_not_be_base64() -> None:
    dialogue = _authenticating(b"LOGIN")
    assert dialogue.take() == b"AUTH LOGIN\r\n"
    dialogue.receive(b"334 Username:\r\n")
    assert dialogue.take() == base64.b64encode(b"user") + b"\r\n"
    dialogue.receive(b"334 Password:\r\n")
    assert dialogue.take() == base64.b64encode(b"pencil") + b"\r\n"
    assert kinds(dialogue.receive(b"235 ok\r\n")) == [Ready]


def test_535_is_the_answer_and_the_password_is_tried_once() -> None:
    dialogue = _authenticating(b"SCRAM-SHA-256 PLAIN", _login(("PLAIN", "SCRAM-SHA-256")))
    dialogue.take()
    (failed,) = dialogue.receive(b"535 5.7.8 wrong\r\n")
    assert failed == SessionFailed(Answer(Stage.AUTH, Reply.of(535, "5.7.8", "wrong")))
    assert dialogue.take() == b"QUIT\r\n"


def test_a_refused_channel_binding_falls_back_before_any_proof_was_sent() -> None:
    binding = ChannelBinding("tls-server-end-point", b"x" * 32)
    dialogue = _authenticating(b"SCRAM-SHA-256-PLUS SCRAM-SHA-256", binding=binding)
    assert dialogue.take().startswith(b"AUTH SCRAM-SHA-256-PLUS ")
    assert dialogue.receive(b"535 5.7.8 unsupported channel binding\r\n") == []
    line = dialogue.take()
    assert line.startswith(b"AUTH SCRAM-SHA-256 ")
    assert base64.b64decode(line.split()[2]).startswith(b"n,,")


def test_no_offer_fails_a_session_that_must_log_in() -> None:
    dialogue = ClientSession("c.example", login=_login(), tls=True, tls_verified=True)
    dialogue.receive(b"220 hi\r\n")
    (failed,) = dialogue.receive(b"250 mx\r\n")
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
