"""The socket around a session, without a socket: which deadline a connection has, and that it is met (SIN-17)."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from mailrail.kit.metrics import Count
from mailrail.kit.wheel import NEVER, Wheel
from mailrail_ingress.active_config import ActiveConfig, ListenerKey
from mailrail_ingress.held_octets import LEAST
from mailrail_ingress.metrics import HANDSHAKES
from mailrail_ingress.settings import IngressSettings
from mailrail_ingress.smtp import TURN, ServerConnection, Sessions

from testkit.conditions import eventually
from testkit.ingress import GATEWAY, HeldQueue, no_probes, setup


@dataclass
class Line:
    """A transport whose peer reads nothing: what is written stays, and closing waits for that."""

    written: bytes = b""
    closed: bool = False
    aborted: bool = False
    reading: bool = True
    peer: str = "192.0.2.1"

    def get_extra_info(self, name: str) -> Any:
        return (self.peer, 4025) if name == "peername" else None

    def write(self, data: bytes) -> None:
        self.written += data

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        pass

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class Caller:
    """A connection that was made to the listener `mx`, and what its client does."""

    def __init__(self, **settings: Any) -> None:
        self.queue = HeldQueue()
        active_config = ActiveConfig(
            IngressSettings(log_messages=False, **settings), self.queue, fake_key=b"f" * 32, probes=no_probes
        )
        made = setup()
        active_config.configure(made.revision, 7, made.secrets)
        self.sessions = Sessions(active_config, Wheel(asyncio.get_running_loop()))
        self.line = Line()
        self.connection = ServerConnection(self.sessions, ListenerKey(GATEWAY, "mx"))
        self.connection.connection_made(self.line)  # type: ignore[arg-type]

    def send(self, data: bytes) -> None:
        self.connection.get_buffer(-1)[: len(data)] = data
        self.connection.buffer_updated(len(data))


@pytest.fixture
def run() -> Callable[[Callable[[Caller], None]], None]:
    def in_a_loop(test: Callable[[Caller], None]) -> None:
        async def main() -> None:
            caller = Caller()
            test(caller)
            caller.connection.connection_lost(None)

        asyncio.run(main())

    return in_a_loop


Run = Callable[[Callable[[Caller], None]], None]


def test_a_line_that_drips_has_one_deadline_SIN_17(run: Run) -> None:
    def test(caller: Caller) -> None:
        caller.send(b"E")
        first = caller.connection.deadline
        for octet in b"HLO client":
            caller.send(bytes([octet]))
            assert caller.connection.deadline == first
        caller.send(b"\r\n")
        assert caller.connection.deadline > first
        caller.send(b"NO")
        second = caller.connection.deadline
        caller.send(b"OP\r\nNO")  # an answer was given: the client's turn begins anew
        assert caller.connection.deadline > second

    run(test)


def test_content_may_take_its_time_in_any_pieces_until_its_own_deadline_SIN_17(run: Run) -> None:
    def test(caller: Caller) -> None:
        caller.send(b"EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<ada@home.example>\r\nDATA\r\n")
        for _ in range(3):
            before = caller.connection.deadline
            caller.send(b"x")
            assert caller.connection.deadline > before

    run(test)


@pytest.mark.parametrize(
    "start", [b"BDAT 99999999999\r\n", b"MAIL FROM:<>\r\nRCPT TO:<ada@home.example>\r\nBDAT 99999999999\r\n"]
)
def test_a_chunk_that_is_refused_is_not_read_for_ever_SIN_17_EXT_05(run: Run, start: bytes) -> None:
    def test(caller: Caller) -> None:
        caller.send(b"EHLO c\r\n" + start)
        caller.connection._idle = 1e9  # then whatever is nearer is the end of the content as a whole
        caller.send(b"x" * 1000)
        until = caller.connection.deadline
        assert until < 1e9
        caller.send(b"x" * 1000)
        assert caller.connection.deadline == until
        caller.connection.expire(until)
        assert caller.line.written.endswith(b"421 4.4.2 timeout, closing connection\r\n")

    run(test)


@pytest.mark.parametrize("end", [b"QUIT\r\n", b"NOOP\n"])
def test_a_client_that_does_not_read_our_last_words_does_not_keep_its_place_SIN_17(run: Run, end: bytes) -> None:
    def test(caller: Caller) -> None:
        caller.send(b"EHLO c\r\n" + end)
        assert caller.connection.deadline < NEVER
        caller.connection.expire(caller.connection.deadline)
        assert caller.line.aborted

    run(test)


def test_a_client_that_says_much_at_once_lets_others_go_first() -> None:
    """A read of 64 KiB was worked through in one go: thousands of commands, while nobody else was heard."""

    async def main() -> None:
        caller, other = Caller(), Caller()
        recipient = b"RCPT TO:<ada@home.example>\r\n"
        caller.send(b"EHLO c\r\nMAIL FROM:<>\r\n" + recipient * 1000)
        assert not caller.line.reading
        answered = caller.line.written.count(b"recipient ok")
        assert 0 < answered <= TURN
        turns = 1
        while caller.line.written.count(b"recipient ok") < 1000:
            heard = other.line.written.count(b"2.0.0 ok")
            other.send(b"NOOP\r\n")
            assert other.line.written.count(b"2.0.0 ok") == heard + 1
            await asyncio.sleep(0)
            before, answered = answered, caller.line.written.count(b"recipient ok")
            assert answered - before <= TURN
            turns += 1
            assert turns < 50
        assert turns >= 1000 // TURN
        assert caller.line.reading
        for one in (caller, other):
            one.connection.connection_lost(None)

    asyncio.run(main())


def test_a_client_that_leaves_before_its_next_turn_is_gone() -> None:
    async def main() -> None:
        caller = Caller()
        caller.send(b"EHLO c\r\nMAIL FROM:<>\r\n" + b"RCPT TO:<ada@home.example>\r\n" * 1000)
        caller.connection.connection_lost(None)
        said = caller.line.written
        await asyncio.sleep(0.01)
        assert caller.line.written == said

    asyncio.run(main())


def test_a_handshake_that_the_loop_forgets_does_not_keep_its_place_SIN_17() -> None:
    class Forgetful:
        """As uvloop is where the connection is lost already."""

        def __getattr__(self, name: str) -> Any:
            return getattr(asyncio.get_running_loop(), name)

        async def start_tls(self, *_: Any, **__: Any) -> None:
            await asyncio.Event().wait()

    async def main() -> None:
        caller = Caller(tls_timeout=-0.9)  # the loop's own limit and a second on top of it are nearly over
        caller.connection._loop = Forgetful()  # type: ignore[assignment]
        caller.send(b"EHLO c\r\nSTARTTLS\r\n")
        await eventually(lambda: not caller.sessions.open)
        assert caller.line.aborted
        await eventually(lambda: not caller.sessions.tasks)

    asyncio.run(main())


def test_starttls_past_the_limit_of_handshakes_is_421_and_never_plaintext_SIN_17() -> None:
    """With 454 an opportunistic client would go on without TLS, because a stranger wanted it to."""

    async def main() -> None:
        caller = Caller(handshakes=1)
        caller.sessions.handshakes.begin("another", caller.sessions.loop.time(), lambda: None, Count())
        before = caller.sessions.handshakes
        caller.send(b"EHLO c\r\nSTARTTLS\r\n")
        assert caller.line.written.endswith(b"421 4.7.0 too many TLS handshakes now; try again later\r\n")
        assert b"ready" not in caller.line.written.lower()
        assert len(before) == 1
        caller.connection.connection_lost(None)

    asyncio.run(main())


@pytest.mark.parametrize(("address", "most"), [("192.0.2.3", 3), ("2001:db8::1", 3), ("127.0.0.1", 9)])
def test_a_client_that_connects_too_often_is_told_to_come_later_SIN_17(address: str, most: int) -> None:
    async def main() -> None:
        caller = Caller(connections_per_minute=3)
        said: list[bytes] = []
        for _ in range(9):
            line = Line(peer=address)
            connection = ServerConnection(caller.sessions, ListenerKey(GATEWAY, "mx"))
            connection.connection_made(line)  # type: ignore[arg-type]
            connection.connection_lost(None)
            said.append(line.written[:10])
        assert said == [b"220 mx.hom"] * most + [b"421 4.7.0 "] * (9 - most)
        other = Line(peer="192.0.2.2")
        ServerConnection(caller.sessions, ListenerKey(GATEWAY, "mx")).connection_made(other)  # type: ignore[arg-type]
        assert other.written.startswith(b"220 ")

    asyncio.run(main())


def test_a_client_is_counted_once_where_its_handshake_comes_first_SIN_17() -> None:
    async def main() -> None:
        caller = Caller(connections_per_minute=2)
        listener_key = ListenerKey(GATEWAY, "submissions")
        before = HANDSHAKES.of().number
        coming = [ServerConnection(caller.sessions, listener_key) for _ in range(3)]
        assert [connection.expect_handshake("192.0.2.9", lambda: None) for connection in coming] == [True, True, False]
        assert HANDSHAKES.of().number == before + 2
        for connection in coming:
            connection.end_handshake()
        assert HANDSHAKES.of().number == before

    asyncio.run(main())


def test_a_client_that_has_to_wait_for_room_is_not_read_from_and_hears_452_after_a_minute_ACC_07(run: Run) -> None:
    def test(caller: Caller) -> None:
        connection, budget = caller.connection, caller.sessions.budget
        caller.send(b"EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<ada@home.example>\r\nDATA\r\n")
        budget.change(0, budget.limit)
        for _ in range(1000):
            budget.change(0, 1)  # a thousand others keep a little: the share is 67 KB
        sent = 0
        while caller.line.reading:
            assert len(connection.get_buffer(-1)) == LEAST
            caller.send(b"X: " + b"y" * 995 + b"\r\n")
            sent += 1000
        assert budget.share < sent <= budget.share + 1000
        kept = budget.held
        connection.expire(connection.deadline)
        assert caller.line.reading
        assert budget.held < kept - 60_000
        caller.send(b"\r\n.\r\n")
        assert caller.line.written.endswith(b"452 4.3.1 the mail system is busy; try again later\r\n")

    run(test)
