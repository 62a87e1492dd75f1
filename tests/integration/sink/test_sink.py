"""The sink as a client of the standard library sees it, and what it remembers."""

import asyncio
import contextlib
import smtplib
import socket
import ssl
import time
from collections.abc import Iterator
from typing import Any, get_args

import pytest

from mailrail.sink import CLOSE, CannotKeep, Options, Sink, SinkMessage, Step

from testkit.ca import Authority
from testkit.conditions import wait_until
from testkit.next_hop import NextHop
from testkit.traffic import Fate, Sender

BODY = "Subject: dots\r\n\r\n.one\r\n..two\r\nend\r\n"
AUTHORITY = Authority()


def context() -> Any:
    return AUTHORITY.issue("sink.test").server_context()


@contextlib.contextmanager
def client(hop: NextHop) -> Iterator[smtplib.SMTP]:
    """A connection after EHLO or LHLO."""
    kind = smtplib.LMTP if hop.sink.options.lmtp else smtplib.SMTP
    with kind(hop.address, hop.port) as connection:
        connection.ehlo("client.test")
        yield connection


def only(hop: NextHop) -> SinkMessage:
    (message,) = hop.messages
    return message


# --- what it remembers -------------------------------------------------------------------------------------------


def test_a_message_is_kept_as_it_was_sent() -> None:
    with NextHop() as hop, client(hop) as smtp:
        smtp.sendmail("a@source.test", ["b@sink.test", "c@sink.test"], BODY, ["BODY=8BITMIME", "RET=HDRS", "ENVID=Qq1"])
        message = only(hop)
        assert (message.sender, message.recipients) == ("a@source.test", ("b@sink.test", "c@sink.test"))
        assert message.sender_parameters == (f"size={len(BODY)}", "BODY=8BITMIME", "RET=HDRS", "ENVID=Qq1")
        assert message.content.decode() == BODY
        assert (message.header("subject"), message.parsed["Subject"], message.header("X")) == ("dots", "dots", None)
        assert (message.hello, message.tls, message.login) == ("client.test", "", "")
        assert message.client.startswith("127.")
        assert 0 <= time.monotonic() - message.at < 60


def test_recipients_keep_their_parameters_and_addresses_their_spelling() -> None:
    with NextHop() as hop, client(hop) as smtp:
        assert smtp.docmd("MAIL", "FROM:<>")[0] == 250
        words = "NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;B+2Bx@Sink.Test"
        assert smtp.docmd("RCPT", f'TO:<"a  >b"@Sink.Test> {words}')[0] == 250
        assert smtp.docmd("RCPT", "TO:<postmaster>")[0] == 250
        assert smtp.data(BODY)[0] == 250
        message = only(hop)
        assert (message.sender, message.recipients) == ("", ('"a  >b"@Sink.Test', "postmaster"))
        assert message.recipient_parameters == (tuple(words.split()), ())


def test_utf8_addresses_and_octets_pass_unchanged() -> None:
    with NextHop() as hop, client(hop) as smtp:
        content = "Subject: Grüße\r\n\r\nGrüße\r\n".encode() + b"\xff\x00 and all\r\n"
        smtp.command_encoding = "utf-8"
        assert smtp.docmd("MAIL", "FROM:<jürgen@bücher.example> SMTPUTF8 BODY=8BITMIME")[0] == 250
        assert smtp.docmd("RCPT", "TO:<用户@例子.example>")[0] == 250
        assert smtp.data(content)[0] == 250
        message = only(hop)
        assert (message.sender, message.recipients) == ("jürgen@bücher.example", ("用户@例子.example",))
        assert message.content == content


def test_a_client_that_says_helo_is_heard_without_extensions() -> None:
    with NextHop() as hop, smtplib.SMTP(hop.address, hop.port) as smtp:
        smtp.helo("old.test")
        assert smtp.docmd("MAIL", "FROM:<a@source.test> SIZE=3")[0] == 501
        smtp.sendmail("a@source.test", ["b@sink.test"], BODY)
        assert (only(hop).hello, only(hop).sender) == ("old.test", "a@source.test")


def test_every_message_of_many_sessions_is_counted_once() -> None:
    with NextHop() as hop:
        traffic = Sender(hop.address, hop.port, messages=200, recipient="r{n}@sink.test").finish(60)
        hop.wait_for(200)
        assert {message.header("X-Try") for message in hop.messages} == traffic.ids(Fate.ACCEPTED)
        assert len({message.recipients for message in hop.messages}) == 200


# --- what it offers ----------------------------------------------------------------------------------------------


def test_it_offers_what_it_was_told_to_and_refuses_the_parameters_of_the_rest() -> None:
    with NextHop() as hop, client(hop) as smtp:
        assert set(smtp.esmtp_features) == {"pipelining", "8bitmime", "smtputf8", "dsn", "size", "help"}
    bare: dict[str, Any] = {"pipelining": False, "eight_bit": False, "smtputf8": False, "dsn": False, "size_limit": 0}
    with NextHop(**bare) as hop, client(hop) as smtp:
        assert set(smtp.esmtp_features) == {"help"}
        for parameter in ("BODY=8BITMIME", "SMTPUTF8", "RET=FULL", "ENVID=1", "AUTH=<>"):
            assert 500 <= smtp.docmd("MAIL", f"FROM:<a@source.test> {parameter}")[0] < 560
        assert smtp.docmd("MAIL", "FROM:<a@source.test>")[0] == 250
        assert smtp.docmd("RCPT", "TO:<b@sink.test> NOTIFY=NEVER")[0] == 555


@pytest.mark.parametrize("lmtp", [False, True])
def test_a_message_above_the_size_is_refused_declared_or_not(lmtp: bool) -> None:
    with NextHop(size_limit=1000, lmtp=lmtp) as hop, client(hop) as smtp:
        assert smtp.esmtp_features["size"] == "1000"
        assert smtp.docmd("MAIL", "FROM:<a@source.test> SIZE=1001")[0] == 552
        smtp.docmd("MAIL", "FROM:<a@source.test>")
        smtp.docmd("RCPT", "TO:<b@sink.test>")
        smtp.docmd("RCPT", "TO:<c@sink.test>")
        assert smtp.data("x" * 72 + "\r\n" + 20 * (48 * "x" + "\r\n"))[0] == 552
        if lmtp:
            assert smtp.getreply()[0] == 552  # the other recipient's
        assert smtp.noop()[0] == 250
        assert not hop.messages


def test_pipelined_transactions_are_answered_in_order() -> None:
    with NextHop() as hop, socket.create_connection((hop.address, hop.port)) as connection:
        each = b"MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\n%d\r\n.\r\n"
        connection.sendall(b"EHLO c\r\n" + each % 1 + each % 2 + b"QUIT\r\n")
        with connection.makefile("rb") as replies:
            codes = [line[:3] for line in replies if line[3:4] == b" "]
        assert codes == [b"220", b"250", *([b"250", b"250", b"354", b"250"] * 2), b"221"]
        assert [message.content for message in hop.messages] == [b"1\r\n", b"2\r\n"]


def test_starttls_hides_the_content_and_is_remembered() -> None:
    with NextHop(tls=context()) as hop, client(hop) as smtp:
        smtp.starttls(context=_trusting())
        smtp.sendmail("a@source.test", ["b@sink.test"], BODY)
        assert (only(hop).tls, hop.connections) == ("TLSv1.3", 1)
        assert not smtp.has_extn("starttls")


def test_implicit_tls_speaks_tls_from_the_first_octet() -> None:
    with (
        NextHop(tls=context(), implicit_tls=True, accounts={"u": "p"}) as hop,
        smtplib.SMTP_SSL(hop.address, hop.port, context=_trusting()) as smtp,
    ):
        smtp.login("u", "p")
        smtp.sendmail("a@source.test", ["b@sink.test"], BODY)
        assert (only(hop).tls, only(hop).login) == ("TLSv1.3", "u")


def _trusting() -> Any:
    trusting = AUTHORITY.client_context()
    trusting.check_hostname = False  # it is dialled by its address
    return trusting


def test_help_knows_the_commands() -> None:
    with NextHop() as hop, client(hop) as smtp:
        assert b"MAIL FROM: <address>" in smtp.docmd("HELP", "MAIL")[1]
        assert {b"MAIL", b"RCPT", b"DATA"} <= set(smtp.docmd("HELP")[1].split())


# --- authentication ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
def test_a_client_sends_after_it_has_logged_in_and_not_before(mechanism: Any) -> None:
    with NextHop(accounts={"u": "pass"}, mechanisms=(mechanism,), plaintext_auth=True) as hop, client(hop) as smtp:
        assert smtp.esmtp_features["auth"].split() == [mechanism]
        assert smtp.mail("a@source.test")[0] == 530
        with pytest.raises(smtplib.SMTPAuthenticationError):
            _login(smtp, mechanism, "wrong")
        _login(smtp, mechanism, "pass")
        assert smtp.docmd("MAIL", "FROM:<a@source.test> AUTH=<>")[0] == 250
        assert smtp.rcpt("b@sink.test")[0] == 250
        assert smtp.data(BODY)[0] == 250
        assert (only(hop).login, only(hop).sender_parameters) == ("u", ("AUTH=<>",))


def _login(smtp: smtplib.SMTP, mechanism: str, password: str) -> None:
    smtp.user, smtp.password = "u", password
    smtp.auth(mechanism, getattr(smtp, f"auth_{mechanism.lower()}"), initial_response_ok=mechanism == "PLAIN")


def test_auth_is_offered_inside_tls_alone() -> None:
    with NextHop(accounts={"u": "p"}, tls=context()) as hop, client(hop) as smtp:
        assert not smtp.has_extn("auth")
        assert smtp.docmd("AUTH", "PLAIN AHUAcA==")[0] == 538
        smtp.starttls(context=_trusting())
        smtp.login("u", "p")
        smtp.sendmail("a@source.test", ["b@sink.test"], BODY)
        assert only(hop).login == "u"


# --- LMTP --------------------------------------------------------------------------------------------------------


def test_lmtp_has_one_reply_for_each_recipient_and_keeps_those_that_it_took() -> None:
    with NextHop(lmtp=True) as hop, client(hop) as lmtp:
        hop.answers.give("END", "452 4.2.2 mailbox full", to="full@sink.test")
        hop.refuse("nobody@sink.test", "550 5.1.1 no such user")
        lmtp.mail("a@source.test")
        codes = [lmtp.rcpt(f"{name}@sink.test")[0] for name in ("one", "nobody", "full", "two")]
        codes.append(lmtp.data(BODY)[0])
        codes += [lmtp.getreply()[0] for _ in range(2)]
        assert codes == [250, 550, 250, 250, 250, 452, 250]
        assert only(hop).recipients == ("one@sink.test", "two@sink.test")
        assert lmtp.docmd("EHLO", "client.test")[0] == 500


# --- what it is told to answer -----------------------------------------------------------------------------------


def test_what_was_refused_arrives_with_a_later_try() -> None:
    with NextHop() as hop:
        hop.refuse("@sink.test", "451 4.3.0 later", times=3)
        traffic = Sender(hop.address, hop.port, messages=5, recipient="r{n}@sink.test", sessions=2).finish(60)
        assert (len(traffic.ids(Fate.ACCEPTED)), len(traffic.ids(Fate.REFUSED))) == (5, 3)
        assert sum(hop.attempts(f"r{number}@sink.test") for number in range(5)) == 8


def test_refused_recipients_are_left_out() -> None:
    with NextHop() as hop, client(hop) as smtp:
        hop.refuse("nobody@sink.test", "550 5.1.1 no such user")
        assert smtp.sendmail("a@source.test", ["nobody@sink.test", "b@sink.test"], BODY) == {
            "nobody@sink.test": (550, b"5.1.1 no such user")
        }
        hop.accept("nobody@sink.test")
        assert not smtp.sendmail("a@source.test", ["nobody@sink.test"], BODY)
        assert [message.recipients for message in hop.messages] == [("b@sink.test",), ("nobody@sink.test",)]


def test_an_answer_stands_in_at_each_step() -> None:
    with NextHop(tls=context(), accounts={"u": "p"}, plaintext_auth=True) as hop:
        give = hop.answers.give
        give("GREETING", "554 5.3.2 not today", times=1)
        give("EHLO", "450 4.3.0 not yet", times=1)
        give("STARTTLS", "454 4.7.0 no TLS", times=1)
        give("AUTH", "454 4.7.0 no accounts", times=1)
        give("MAIL", "451 4.1.8 who", times=1)
        give("DATA", "451 4.3.0 no room", times=1)
        give("END", "554 5.6.0 not that", to="b@sink.test", times=1)
        with pytest.raises(smtplib.SMTPConnectError):
            smtplib.SMTP(hop.address, hop.port)
        with smtplib.SMTP(hop.address, hop.port) as smtp:
            assert [smtp.ehlo()[0], smtp.ehlo()[0], smtp.docmd("STARTTLS")[0]] == [450, 250, 454]
            assert [smtp.docmd("AUTH", "PLAIN AHUAcA==")[0] for _ in range(2)] == [454, 235]
            assert [smtp.mail("a@source.test")[0] for _ in range(2)] == [451, 250]
            assert smtp.rcpt("b@sink.test")[0] == 250
            assert smtp.docmd("DATA")[0] == 451
            assert smtp.data(BODY)[0] == 554
            assert not hop.messages
            assert not smtp.sendmail("a@source.test", ["b@sink.test"], BODY)


def test_421_ends_the_connection() -> None:
    with NextHop() as hop, client(hop) as smtp:
        hop.answers.give("MAIL", "421 4.3.2 going down")
        assert smtp.docmd("MAIL", "FROM:<a@source.test>")[0] == 421
        with pytest.raises(smtplib.SMTPServerDisconnected):
            smtp.noop()


@pytest.mark.parametrize("step", get_args(Step))
def test_a_connection_closes_without_a_reply_at_the_step_that_was_named(step: Step) -> None:
    def deliver() -> None:
        with client(hop) as smtp:
            smtp.starttls(context=_trusting())
            smtp.login("u", "p")
            smtp.sendmail("a@source.test", ["b@sink.test"], BODY)

    with NextHop(tls=context(), accounts={"u": "p"}) as hop:
        hop.answers.give(step, CLOSE, times=1)
        with pytest.raises((smtplib.SMTPServerDisconnected, ConnectionError)):
            deliver()
        assert not hop.messages
        deliver()
        assert only(hop).recipients == ("b@sink.test",)


def test_a_delayed_final_reply_comes_after_the_message_was_taken() -> None:
    with NextHop() as hop, client(hop) as smtp:
        hop.answers.delays["END"] = 0.2
        smtp.mail("a@source.test")
        smtp.rcpt("b@sink.test")
        smtp.data(BODY)
        assert time.monotonic() - only(hop).at >= 0.2


# --- its end -----------------------------------------------------------------------------------------------------


def test_the_end_of_a_sink_cuts_the_connections_that_are_open() -> None:
    with NextHop(tls=context()) as hop:
        plain = smtplib.SMTP(hop.address, hop.port)
        secured = smtplib.SMTP(hop.address, hop.port)
        secured.starttls(context=_trusting())
        plain.docmd("MAIL", "FROM:<a@b.test>")
    for connection in (plain, secured):
        with pytest.raises((smtplib.SMTPServerDisconnected, OSError)):
            connection.noop()
        connection.close()


async def test_the_end_of_a_sink_does_not_wait_for_a_handshake_that_fails() -> None:
    async with Sink(Options(tls=context())) as sink:
        reader, writer = await asyncio.open_connection(sink.host, sink.port)
        writer.write(b"EHLO c\r\nSTARTTLS\r\n")
        await reader.readuntil(b"220 Ready to start TLS\r\n")
        with pytest.raises(ssl.SSLError):
            await writer.start_tls(Authority().client_context(), server_hostname="sink.test")
        writer.close()
        async with asyncio.timeout(30):
            await sink.close()


def test_a_client_that_leaves_in_the_middle_of_content_leaves_no_message() -> None:
    with NextHop() as hop:
        with socket.create_connection((hop.address, hop.port)) as connection:
            connection.sendall(b"EHLO c\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\nhalf a")
            wait_until(lambda: hop.attempts("c@d.test"), 10)
        wait_until(lambda: not hop.sink.open_connections, 10)
        assert not hop.messages


# --- its bounds --------------------------------------------------------------------------------------------------


def test_recipients_above_the_limit_are_for_another_message() -> None:
    with NextHop(recipient_limit=2) as hop, client(hop) as smtp:
        smtp.mail("a@source.test")
        assert [smtp.rcpt(f"{number}@sink.test")[0] for number in range(3)] == [250, 250, 452]
        assert smtp.data(BODY)[0] == 250
        smtp.mail("a@source.test")
        assert smtp.rcpt("2@sink.test")[0] == 250


def test_a_line_without_an_end_is_cut_off_before_it_fills_the_memory() -> None:
    with NextHop() as hop, client(hop) as smtp:
        smtp.mail("a@source.test")
        smtp.rcpt("b@sink.test")
        smtp.docmd("DATA")
        with pytest.raises((smtplib.SMTPServerDisconnected, OSError)):
            smtp.send(b"x" * 100 * 2**20)
        assert not hop.messages


async def test_a_message_that_cannot_be_kept_is_refused_for_those_who_were_to_get_it() -> None:
    def full(message: SinkMessage) -> None:
        raise CannotKeep("452 4.3.1 full")

    async with Sink(Options(lmtp=True), receive=full) as sink:
        sink.answers.give("END", "550 5.1.1 gone", to="gone@sink.test")
        reader, writer = await asyncio.open_connection(sink.host, sink.port)
        say = b"LHLO c\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<gone@sink.test>\r\nRCPT TO:<c@sink.test>\r\nDATA\r\n"
        writer.write(say + b"x\r\n.\r\nQUIT\r\n")
        replies = (await reader.read()).split(b"\r\n")
        assert replies[-4:] == [b"550 5.1.1 gone", b"452 4.3.1 full", b"221 Bye", b""]
        writer.close()
        assert not sink.messages
