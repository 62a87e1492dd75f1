"""The socket around a session, without a socket: which deadline a connection has, and that it is met (SIN-17)."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from mailrail.core.admission import AT_WORK_IDLE, LEAST_IDLE, STRESS_IDLE
from mailrail.core.revision.revision import GatewayLimits
from mailrail.kit.metrics import Count
from mailrail.kit.wheel import NEVER, Wheel
from mailrail_ingress.active_config import ActiveConfig, ListenerKey
from mailrail_ingress.held_octets import LEAST
from mailrail_ingress.metrics import ENDS, HANDSHAKES, STRESS
from mailrail_ingress.ports import ACCEPTED
from mailrail_ingress.settings import IngressSettings
from mailrail_ingress.smtp import LAST_WORD, READ_SIZE, REFUSED_RATE, ServerConnection, Sessions
from mailrail_ingress.turns import ROUND, TURN

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

    def __init__(self, limits: GatewayLimits | None = None, **settings: Any) -> None:
        self.queue = HeldQueue()
        active_config = ActiveConfig(
            IngressSettings(log_messages=False, **settings), self.queue, fake_key=b"f" * 32, probes=no_probes
        )
        made = setup(limits=limits)
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


def test_clients_that_say_much_at_once_share_each_round_of_the_loop() -> None:
    """With a part for each of them, the more they were the less often anybody else was heard."""

    async def main() -> None:
        caller = Caller()
        many = [Visit(caller, f"198.51.{n}.1") for n in range(50)]
        for visit in many:
            visit.say(b"EHLO c\r\nMAIL FROM:<>\r\n" + b"RCPT TO:<ada@home.example>\r\n" * 400)

        def answered() -> int:
            return sum(visit.line.written.count(b"recipient ok") for visit in many)

        before = answered()
        while before < 50 * 400:
            await asyncio.sleep(0)
            now = answered()
            assert 0 < now - before <= ROUND + TURN
            before = now
        assert all(visit.line.reading for visit in many)

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


class Forgetful:
    """A loop as uvloop's is where the connection is lost before the handshake begins."""

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio.get_running_loop(), name)

    async def start_tls(self, *_: Any, **__: Any) -> None:
        await asyncio.Event().wait()


def test_a_handshake_that_the_loop_forgets_does_not_keep_its_place_SIN_17() -> None:
    async def main() -> None:
        caller = Caller(tls_timeout=-0.9)  # the loop's own limit and a second on top of it are nearly over
        caller.connection._loop = Forgetful()  # type: ignore[assignment]
        caller.send(b"EHLO c\r\nSTARTTLS\r\n")
        await eventually(lambda: not caller.sessions.open)
        assert caller.line.aborted
        await eventually(lambda: not caller.sessions.tasks)

    asyncio.run(main())


@pytest.mark.parametrize("begun", [False, True])
def test_a_handshake_that_makes_room_for_another_leaves_nothing_of_it_SIN_17(begun: bool) -> None:
    async def main() -> None:
        caller = Caller(tls_timeout=3600.0)
        caller.connection._loop = Forgetful()  # type: ignore[assignment]
        caller.send(b"EHLO c\r\nSTARTTLS\r\n")
        if begun:
            await eventually(lambda: caller.connection._handshake_limit is not None)
        assert caller.sessions.handshakes.end_oldest(caller.sessions.loop.time() + 1)
        assert caller.line.aborted
        caller.line.closed = True
        await eventually(lambda: not caller.sessions.tasks and not caller.sessions.open)

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


# --- when there is no room for all ---


class Visit:
    """A client among others, and what it hears. It is gone at once where the other side closes."""

    def __init__(self, caller: Caller, peer: str, *, listener: str = "mx") -> None:
        self.line = Line(peer=peer)
        self.connection = ServerConnection(caller.sessions, ListenerKey(GATEWAY, listener))
        self.connection.connection_made(self.line)  # type: ignore[arg-type]

    def say(self, data: bytes) -> None:
        self.connection.get_buffer(-1)[: len(data)] = data
        self.connection.buffer_updated(len(data))

    def be_silent(self, seconds: float) -> None:
        """As if it had said nothing for so much longer."""
        self.connection.deadline -= seconds

    @property
    def last(self) -> bytes:
        return self.line.written.rpartition(b"\r\n")[0].rpartition(b"\r\n")[2]

    def leave(self) -> None:
        self.connection.connection_lost(None)


HELLO = b"EHLO c\r\n"
MAIL = b"MAIL FROM:<>\r\nRCPT TO:<ada@home.example>\r\n"
NO_PLACE = b"421 4.7.0 too many connections; try again later"
DISPLACED = b"421 4.3.2 too many connections, and this one is idle; try again later"


def full(places: int = 3, limit: int = 3) -> tuple[Caller, list[Visit]]:
    """A process whose places are all taken by strangers, each from a network of its own, who have said EHLO."""
    caller = Caller(GatewayLimits(connections=limit))
    caller.connection.connection_lost(None)
    visits = [Visit(caller, f"192.0.{n}.1") for n in range(places)]
    for visit in visits:
        visit.say(HELLO)
    return caller, visits


def test_when_it_is_full_the_longest_idle_stranger_makes_room_for_a_newcomer_SIN_17() -> None:
    async def main() -> None:
        caller, (first, second, third) = full()
        before = ENDS.of("displaced").number
        for visit, seconds in ((first, 6), (second, 8), (third, 3)):
            visit.be_silent(seconds)
        first.say(b"NOOP\r\n")
        new = Visit(caller, "198.51.100.1")
        assert (new.line.written[:4], second.last, second.line.closed) == (b"220 ", DISPLACED, True)
        assert (first.line.closed, third.line.closed) == (False, False)
        second.leave()
        assert ENDS.of("displaced").number == before + 1
        assert caller.sessions.places.total == 3

    asyncio.run(main())


def test_who_is_at_work_or_has_just_come_makes_room_for_nobody_SIN_17() -> None:
    async def main() -> None:
        caller, (in_mail, fresh, in_content) = full()
        in_mail.say(MAIL)
        in_content.say(MAIL + b"DATA\r\nSubject: x")
        in_mail.be_silent(AT_WORK_IDLE - 1)
        fresh.be_silent(LEAST_IDLE / 2)
        in_content.be_silent(AT_WORK_IDLE - 1)
        assert Visit(caller, "198.51.100.1").last == NO_PLACE
        assert not any(visit.line.closed for visit in (in_mail, fresh, in_content))

    asyncio.run(main())


def test_a_client_that_has_delivered_is_displaced_by_none_but_its_like_SIN_17() -> None:
    async def main() -> None:
        caller, visits = full(1, 1)
        (delivers,) = visits
        delivers.say(MAIL + b"BDAT 1 LAST\r\nx")
        caller.queue.commits[0][1](ACCEPTED)
        assert delivers.last.startswith(b"250 2.6.0 ")
        delivers.be_silent(STRESS_IDLE - 1)
        assert Visit(caller, "198.51.100.1").last == NO_PLACE
        caller.sessions.places.remember("198.51.100.1")
        assert Visit(caller, "198.51.100.1").line.written.startswith(b"220 ")
        assert delivers.last == DISPLACED

    asyncio.run(main())


def test_addresses_that_delivered_before_and_submitters_have_places_that_strangers_do_not_get_SIN_17() -> None:
    async def main() -> None:
        caller = Caller(GatewayLimits(connections=10))
        delivers = caller.connection
        caller.send(HELLO + MAIL + b"BDAT 1 LAST\r\nx")
        caller.queue.commits[0][1](ACCEPTED)
        delivers.connection_lost(None)
        strangers = [Visit(caller, f"198.51.{n}.1") for n in range(9)]
        assert [visit.line.written[:4] for visit in strangers] == [b"220 "] * 8 + [b"421 "]
        submitters = [Visit(caller, f"203.0.{n}.1", listener="submission") for n in range(2)]
        assert [visit.line.written[:4] for visit in submitters] == [b"220 ", b"421 "]
        assert Visit(caller, caller.line.peer).line.written.startswith(b"220 ")
        assert Visit(caller, caller.line.peer).last == NO_PLACE

    asyncio.run(main())


def test_under_stress_idle_strangers_end_after_ten_seconds_and_nobody_else_SIN_17() -> None:
    async def main() -> None:
        caller, visits = full(8, 10)
        places = caller.sessions.places
        assert (places.stress, STRESS.of().number) == (True, 1)
        idle, in_mail, short, in_content, delivered, *rest = visits
        in_mail.say(MAIL)
        in_content.say(MAIL + b"DATA\r\nSubject: x")
        delivered.say(MAIL + b"BDAT 1 LAST\r\nx")
        caller.queue.commits[0][1](ACCEPTED)
        for visit in (idle, in_mail, in_content, delivered):
            visit.be_silent(STRESS_IDLE)
        short.be_silent(STRESS_IDLE - 5)
        before = ENDS.of("stress").number
        places.expire(caller.sessions.loop.time())
        said = [visit.last for visit in (idle, in_mail, in_content)]
        assert said == [b"421 4.4.2 timeout, closing connection"] * 3
        assert not any(visit.line.closed for visit in (short, delivered, *rest))
        for visit in (idle, in_mail, in_content, *rest):
            visit.leave()
        assert (ENDS.of("stress").number, places.stress, STRESS.of().number) == (before + 3, False, 0)

    asyncio.run(main())


def test_under_stress_content_that_drips_ends_and_content_that_flows_does_not_SIN_17() -> None:
    async def main() -> None:
        caller, (drips, flows, in_chunk, waits, *_) = full(8, 10)
        places, now = caller.sessions.places, caller.sessions.loop.time()
        for visit in (drips, flows, waits):
            visit.say(MAIL + b"DATA\r\nSubject: x\r\n\r\n")
        waits.say(b"x\r\n.\r\n")
        in_chunk.say(b"BDAT 99999\r\n")  # refused, and read to its end
        for second in range(int(STRESS_IDLE) + 2):
            for visit, octets in ((drips, b"x"), (flows, b"y" * 998 + b"\r\n"), (in_chunk, b"z" * 1000)):
                visit.say(octets)
                visit.be_silent(-second)  # it has just spoken, also by the clock that is `second` ahead
            places.expire(now + second)
        assert drips.last == b"421 4.4.2 timeout, closing connection"
        assert not any(visit.line.closed for visit in (flows, in_chunk, waits))

    asyncio.run(main())


def test_under_stress_the_neighbours_of_a_stranger_count_with_it_SIN_17() -> None:
    async def main() -> None:
        caller = Caller(GatewayLimits(connections=10, connections_per_ip=4))
        caller.connection.connection_lost(None)
        neighbours = [Visit(caller, f"192.0.2.{n}") for n in range(6)]
        assert all(visit.line.written.startswith(b"220 ") for visit in neighbours), "there is room, so they are apart"
        Visit(caller, "198.51.100.1")
        assert Visit(caller, "192.0.2.77").last == NO_PLACE
        assert Visit(caller, "192.0.3.77").line.written.startswith(b"220 ")

    asyncio.run(main())


def test_a_client_that_had_to_go_and_does_not_is_cut_off_SIN_17() -> None:
    async def main() -> None:
        caller, (first, *_) = full()
        first.be_silent(5)
        Visit(caller, "198.51.100.1")
        assert first.line.closed
        assert first.connection.deadline <= caller.sessions.loop.time() + LAST_WORD
        first.connection.expire(first.connection.deadline)
        assert first.line.aborted

    asyncio.run(main())


def test_where_nobody_idle_is_left_the_oldest_handshake_makes_room_SIN_17() -> None:
    async def main() -> None:
        caller, _ = full()
        ended: list[str] = []
        caller.sessions.handshakes.begin("old", caller.sessions.loop.time() - 5, lambda: ended.append("old"), Count())
        assert Visit(caller, "198.51.100.1").line.written.startswith(b"220 ")
        assert ended == ["old"]

    asyncio.run(main())


async def test_what_comes_of_a_refused_message_is_read_no_faster_than_all_of_them_may_be() -> None:
    caller = Caller(GatewayLimits(message_size=100_000))
    caller.send(b"EHLO c\r\nMAIL FROM:<x@far.example>\r\n")
    caller.send(b"RCPT TO:<ada@home.example>\r\n")
    await eventually(lambda: b"250 2.1.5" in caller.line.written)
    caller.send(b"DATA\r\n")
    block = (b"y" * 998 + b"\r\n") * 60
    caller.send(b"Subject: x\r\n\r\n" + block)
    assert caller.line.reading, "it is not refused yet"
    caller.send(block)
    begun = asyncio.get_running_loop().time()
    assert not caller.line.reading
    await eventually(lambda: caller.line.reading)
    moments = [caller.sessions.next_refused() for _ in range(256)]
    assert moments[-1] - begun >= 255 * READ_SIZE / REFUSED_RATE, "whoever else is refused has the same rate"
    caller.send(b"\r\n.\r\n")
    await eventually(lambda: b"552 5.3.4" in caller.line.written)
    assert caller.line.reading
    caller.connection.connection_lost(None)
