"""Hostile clients and hostile content against all of Mailrail: other people's mail goes on, and nothing is smuggled.

What these clients do is told apart in the tests of single services; here many do it at once, and what counts is what
everybody else has of it, what memory it costs, and what arrives at the other end.
"""

import re
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Self

import psutil
import pytest

from testkit.conditions import wait_until
from testkit.guards import books, short_and_long
from testkit.next_hop import NextHop
from testkit.rail import Rail, basics, route, rule, transport
from testkit.smuggling import ENDS
from testkit.traffic import Sender

PER_ADDRESS = 90  # connections; a gateway takes 100 from one address by default
GROWTH = 30 * 1024 * 1024  # octets of memory that ingress may take for all of them; 10,000 idle ones took 11 MiB
NAMES = b"MAIL FROM:<a@far.example>\r\nRCPT TO:<slow@partner.test>\r\n"


@pytest.fixture(scope="module")
def hop() -> Iterator[NextHop]:
    with NextHop() as sink:
        yield sink


@pytest.fixture(scope="module")
def plain_hop() -> Iterator[NextHop]:
    """A next hop that knows nothing but pipelining: what is not 7-bit text has to be encoded for it."""
    with NextHop(eight_bit=False, smtputf8=False, dsn=False, size_limit=0) as sink:
        yield sink


@pytest.fixture(scope="module")
def rail(hop: NextHop, plain_hop: NextHop) -> Iterator[Rail]:
    documents = [
        *basics(),
        transport("hop", smtp={"host": hop.address, "port": hop.port}),
        transport("plain", smtp={"host": plain_hop.address, "port": plain_hop.port}),
        route(
            "all",
            ("MailGateway", "local"),
            rule("plain", "plain", to=["plain.test"]),
            rule("everything", "hop"),
        ),
    ]
    with Rail(documents) as running:
        yield running


# --- many at once -----------------------------------------------------------------------------------------------------


@contextmanager
def clients(rail: Rail, count: int) -> Iterator[list[socket.socket]]:
    """So many connections from as many addresses as they need, greeted."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, count + 500), hard), hard))
    with ExitStack() as stack:
        opened = []
        for number in range(count):
            address = f"127.0.7.{1 + number // PER_ADDRESS}"
            client = socket.create_connection(rail.mx, timeout=60, source_address=(address, 0))
            opened.append(stack.enter_context(client))
        for client in opened:
            assert client.recv(1000).startswith(b"220"), "a connection was not greeted"
        yield opened


class Dripping:
    """Sends one octet on each of them, over and over, for the time of the context."""

    def __init__(self, opened: list[socket.socket]) -> None:
        self.rounds = 0
        self._opened = opened
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._drip)

    def _drip(self) -> None:
        while not self._end.wait(0.1):
            for client in self._opened:
                with suppress(OSError):
                    client.send(b"x")
            self.rounds += 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


def resident(rail: Rail) -> int:
    """Octets of memory of ingress."""
    return int(psutil.Process(rail.pid("ingress")).memory_info().rss)


def others_mail_goes_on(rail: Rail, hop: NextHop, name: str) -> None:
    """Forty messages of somebody else are taken and arrive, each once, within a minute."""
    sender = Sender(*rail.mx, messages=40, recipient=name + "{n}x@partner.test", sessions=4)
    try:
        traffic = sender.finish(60)
        wait_until(lambda: sum(to.startswith(name) for one in hop.messages for to in one.recipients) >= 40, 60)
    finally:
        sender.stop()
    mine = [one for one in hop.messages if one.recipients[0].startswith(name)]
    books(traffic, mine).check()


@short_and_long("connections", 400, 5000)
def test_idle_connections_keep_nobody_out_and_cost_little(rail: Rail, hop: NextHop, connections: int) -> None:
    before = resident(rail)
    with clients(rail, connections) as opened:
        for client in opened[::2]:
            client.sendall(b"EHLO idle.test\r\n")
        others_mail_goes_on(rail, hop, "idle")
        assert resident(rail) - before < GROWTH
        opened[-1].sendall(b"NOOP\r\n")
        assert re.match(rb"250|503", opened[-1].recv(1000)), "an idle connection is served no more"


@short_and_long("connections", 200, 1000)
def test_clients_that_send_an_octet_now_and_then_slow_nobody_down(rail: Rail, hop: NextHop, connections: int) -> None:
    stops = (b"", NAMES + b"DATA\r\nSubject: ", NAMES + b"DATA\r\nSubject: x\r\n\r\nbody ", NAMES + b"BDAT 100000\r\n")
    before = resident(rail)
    with clients(rail, connections) as opened:
        for number, client in enumerate(opened):
            client.sendall(b"EHLO slow.test\r\n" + stops[number % len(stops)])
        with Dripping(opened) as drops:
            wait_until(lambda: drops.rounds >= 5, 60)
            others_mail_goes_on(rail, hop, "slowsender")
            wait_until(lambda: drops.rounds >= 20, 60)
        assert resident(rail) - before < GROWTH
    assert not any("slow@partner.test" in one.recipients for one in hop.messages), "half a message was sent"


@short_and_long("connections", 40, 200)
def test_clients_that_never_read_slow_nobody_down_and_are_not_answered_without_bound(
    rail: Rail, hop: NextHop, connections: int
) -> None:
    floods = [
        command * (1_000_000 // len(command))
        for command in (b"NOOP\r\n", b"VRFY a\r\n", b"EHLO a\r\n", b"RCPT TO:<nobody@nowhere.test>\r\n")
    ]
    before = resident(rail)
    with clients(rail, connections) as opened:
        for number, client in enumerate(opened):
            client.setblocking(False)
            with suppress(OSError):  # as much as goes: the rest is not read either
                client.send(b"EHLO a\r\n" + floods[number % len(floods)])
        others_mail_goes_on(rail, hop, "slowreader")
        assert resident(rail) - before < GROWTH


# --- smuggling --------------------------------------------------------------------------------------------------------

SMUGGLED = b"MAIL FROM:<evil@far.example>\r\nRCPT TO:<evil@partner.test>\r\nDATA\r\nSubject: evil\r\n\r\nsmuggled"


class Session:
    """A client that says any octets and counts the messages that are taken."""

    def __init__(self, rail: Rail) -> None:
        self._socket = socket.create_connection(rail.mx, timeout=60)
        self._file = self._socket.makefile("rb")
        self.reply()
        self.say(b"EHLO client.test\r\n")

    def reply(self) -> bytes:
        """The last line of the next reply; nothing when the connection has ended."""
        with suppress(ConnectionError):
            while line := self._file.readline():
                if line[3:4] != b"-":
                    return line
        return b""

    def say(self, octets: bytes) -> bytes:
        """Send octets and read one reply."""
        with suppress(ConnectionError):
            self._socket.sendall(octets)
        return self.reply()

    def close(self) -> list[bytes]:
        """Say QUIT; every reply that still came."""
        with suppress(OSError):
            self._socket.sendall(b"QUIT\r\n")
        replies = []
        while reply := self.reply():
            replies.append(reply)
        self._file.close()
        self._socket.close()
        return replies


def by_data(content: bytes) -> bytes:
    return b"DATA\r\n" + content + b"\r\n.\r\n"


def by_chunk(content: bytes) -> bytes:
    return b"BDAT %d LAST\r\n" % (len(content) + 2) + content + b"\r\n"


@pytest.mark.parametrize(
    ("parameters", "form"),
    [(b"", by_data), (b"", by_chunk), (b" BODY=BINARYMIME", by_chunk)],
    ids=["DATA", "BDAT", "BINARYMIME"],
)
def test_nothing_that_looks_like_an_end_lets_a_second_message_in_SIN_02(
    rail: Rail, hop: NextHop, parameters: bytes, form: Callable[[bytes], bytes]
) -> None:
    name = f"in{form.__name__}{len(parameters)}n"
    taken = []
    for number, ending in enumerate(ENDS):
        to = f"{name}{number}x@partner.test"
        session = Session(rail)
        assert session.say(b"MAIL FROM:<a@far.example>" + parameters + b"\r\n").startswith(b"250")
        assert session.say(b"RCPT TO:<" + to.encode() + b">\r\n").startswith(b"250")
        content = b"Subject: hello\r\n\r\nhello" + ending + SMUGGLED
        first = session.say(form(content))
        if first.startswith(b"354"):
            first = session.reply()
        rest = session.close()
        assert len(rest) <= 1, f"{ending!r}: {first!r}, and then {rest}"
        if first.startswith(b"250"):
            taken.append(to)
        else:
            assert first.startswith(b"550 5.6.0"), f"{ending!r}: {first!r}"
            assert b"\r" in ending or b"\n" in ending
    rail.wait_until_empty(60)
    arrived = [to for one in hop.messages for to in one.recipients]
    assert sorted(to for to in arrived if to.startswith(name)) == sorted(taken)
    assert "evil@partner.test" not in arrived
    assert taken, "not even content without any bare line end was taken"


@pytest.mark.parametrize("content_type", ["text/plain", "application/octet-stream", "message/rfc822"])
def test_nothing_that_looks_like_an_end_goes_out_to_a_hop_without_binarymime_SOUT_12a(
    rail: Rail, plain_hop: NextHop, content_type: str
) -> None:
    name = f"out{content_type.replace('/', '')}"
    head = f"From: a@far.example\r\nMIME-Version: 1.0\r\nContent-Type: {content_type}\r\n\r\n".encode()
    inner = b"Subject: inner\r\n\r\n" if content_type == "message/rfc822" else b""
    for number, ending in enumerate(ENDS):
        session = Session(rail)
        session.say(b"MAIL FROM:<a@far.example> BODY=BINARYMIME\r\n")
        session.say(b"RCPT TO:<" + f"{name}{number}x@plain.test".encode() + b">\r\n")
        said = session.say(by_chunk(head + inner + b"hello" + ending + SMUGGLED))
        session.close()
        assert said.startswith(b"250"), f"{ending!r}: {said!r}"
    rail.wait_until_empty(60)
    mine = [one for one in plain_hop.messages if one.recipients[0].startswith(name)]
    assert sorted(one.recipients for one in mine) == sorted((f"{name}{n}x@plain.test",) for n in range(len(ENDS)))
    assert all(one.sender == "a@far.example" for one in plain_hop.messages)
    for one in mine:
        assert b"\n" not in one.content.replace(b"\r\n", b"")
        assert b"\r" not in one.content.replace(b"\r\n", b"")


# --- what is repeated, and what is shown ------------------------------------------------------------------------------


@short_and_long("times", 1000, 10_000)
def test_a_recipient_that_is_named_over_and_over_gets_one_copy(rail: Rail, hop: NextHop, times: int) -> None:
    name = f"storm{times}x@partner.test"
    session = Session(rail)
    session.say(b"MAIL FROM:<a@far.example>\r\n")
    taken = [session.say(b"RCPT TO:<" + name.encode() + b">\r\n")[:3] for _ in range(times)]
    assert taken[0] == b"250"
    assert set(taken) <= {b"250", b"452"}
    assert session.say(b"DATA\r\n").startswith(b"354")
    assert session.say(b"Subject: storm\r\n\r\n.\r\n").startswith(b"250")
    session.close()
    rail.wait_until_empty(60)
    assert [one.recipients for one in hop.received(name)] == [(name,)]


EVIL = "\x1b[2J\x9b31m\u202e\u2066\u200b\u2028\ufeff\x07\x00"
"""It clears a terminal, colours it, turns the text round, hides in it, ends lines, and rings."""


def test_no_text_of_a_stranger_or_a_remote_reaches_the_terminal_raw(rail: Rail, hop: NextHop) -> None:
    hop.refuse("@refuses.test", f"450 4.2.0 not now {EVIL}")
    hop.refuse("@never.test", f"550 5.7.1 never {EVIL}")
    for to in ("waits@refuses.test", "fails@never.test", "alice@example.org"):
        session = Session(rail)
        assert session.say(b'MAIL FROM:<"a b"@far.example>\r\n').startswith(b"250")
        assert session.say(f"RCPT TO:<{to}>\r\n".encode()).startswith(b"250")
        assert session.say(b"DATA\r\n").startswith(b"354")
        text = f"From: evil {EVIL} <a@far.example>\r\nSubject: {EVIL}\r\nMessage-ID: <{EVIL}@x>\r\n\r\n{EVIL}\r\n.\r\n"
        assert session.say(text.encode()).startswith(b"250")
        session.close()
    waiting = rail.wait_for_recipient("waits@refuses.test", lambda one: one["last"])
    mail = rail.wait_for_mail("alice@example.org", lambda one: "evil" in one["from"])
    wait_until(lambda: "fails@never.test" in rail.cli("queue", "history"), 60, ignoring=())
    shown = [
        rail.cli("queue", "list"),
        rail.cli("queue", "history"),
        rail.cli("queue", "show", str(waiting["id"])),
        rail.cli("mailbox", "list", "--account", "alice@example.org"),
        rail.cli("mailbox", "read", str(mail["id"])),
    ]
    hop.accept("@refuses.test")
    assert any("not now" in text for text in shown)
    assert any("\\x1b[2J" in text for text in shown), "nothing of it was shown by its escape"
    for text in shown:
        raw = sorted({c for c in text if not c.isprintable() and c not in "\n\t"})
        assert not raw, f"{raw} in\n{text!r}"
