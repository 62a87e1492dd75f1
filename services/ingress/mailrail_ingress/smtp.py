"""The socket around an SMTP session: octets in and out, TLS, PROXY headers, deadlines, backpressure; no decisions.

One `ServerConnection` is one asyncio protocol. It parses in the read callback and writes once for all that one read
brought; there is no task, future or timer a command or a connection (TLS handshakes excepted). All connections of a
process read into one buffer, since each is done with it before the next is called; a loop that lends buffers to the
kernel ahead of time (Proactor on Windows) would need one each, and is not used by services.
"""

import asyncio
import ssl
import sys
import time
from collections.abc import Callable, Mapping
from enum import Enum, auto
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final, cast

from mailrail.core.admission import Admission, Idle, Worth
from mailrail.core.revision.revision import ListenerProtocol
from mailrail.core.smtp.address import plain_ip
from mailrail.core.smtp.events import Closing, Event, TlsRequested
from mailrail.core.smtp.proxy import ProxyError, may_read, parse
from mailrail.core.smtp.reply import Reply
from mailrail.core.smtp.server import ServerSession
from mailrail.core.smtp.tls import TlsFacts
from mailrail.kit import log
from mailrail.kit.trim import Trimmer
from mailrail.kit.wheel import NEVER, Wheel
from mailrail_ingress import metrics
from mailrail_ingress.active_config import ActiveConfig, ListenerConfig, ListenerKey
from mailrail_ingress.handshakes import Handshakes
from mailrail_ingress.held_octets import LEAST
from mailrail_ingress.places import ClientGroup, Places, client_group
from mailrail_ingress.ports import Origin
from mailrail_ingress.session import HANDLERS, SmtpSession
from mailrail_ingress.throttle import Rate
from mailrail_ingress.turns import TURN, Turns

_NOBODY: Final = IPv4Address(0)
_NO_PEER: Final = client_group(_NOBODY)
READ_SIZE: Final = 64 * 1024
"""Octets of one read."""
_TOO_MANY: Final = Reply.of(421, "4.7.0", "too many connections; try again later").encode()
_TOO_OFTEN: Final = Reply.of(421, "4.7.0", "too many new connections; try again in a minute").encode()
_TOO_MANY_HANDSHAKES: Final = Reply.of(421, "4.7.0", "too many TLS handshakes now; try again later").encode()
_LISTENER_GONE: Final = Reply.of(421, "4.3.2", "this listener is being closed; try again later").encode()


class _Hold:
    """Reasons for not reading, as bits: reading goes on when none is left."""

    BACKLOG = 1  # the session has kept enough while it awaits an answer
    CREDIT = 2  # the queue takes no more of this message
    WRITING = 4  # the client does not read our replies
    TURN = 8  # other clients come first; what has come waits
    REFUSED = 16  # its message is refused already, and what still comes of it is dropped


class _State(Enum):
    PROXY = auto()  # a PROXY header is to come
    HANDSHAKE = auto()
    OPEN = auto()
    LINGERING = auto()  # our last reply is sent; what still comes is dropped
    GONE = auto()


# Every read asks for these two.
_PROXY: Final = _State.PROXY
_OPEN: Final = _State.OPEN

_ENDS: Final = {
    "QUIT": "quit",
    "timeout": "timeout",
    "shutdown": "shutdown",
    "too many errors": "errors",
    "displaced": "displaced",
    "stress": "stress",
}

REFUSED_RATE: Final = 16 * 1024 * 1024
"""Octets a second that are read of refused messages, from all clients together. They have to be read to their ends, and
to look for these costs as much as in messages that are taken: a few clients with 100 MB each would take all time."""
LINGER_OCTETS: Final = 16 * 1024 * 1024
"""Octets that are read and dropped after our last reply. A client that sends more does not listen."""
LAST_WORD: Final = 1.0
"""Seconds until a connection that had to go is cut. The loop waits for a client's goodbye in TLS for half a minute."""
LAST_LINGER: Final = 0.25
"""Seconds that a connection is read, at most, after our 421 once the process stops. Silent clients that keep their
connections open would delay every stop otherwise."""


class Sessions:
    """What the connections of a process share, and how many there are."""

    def __init__(self, active_config: ActiveConfig, wheel: Wheel, room: int = sys.maxsize) -> None:
        """`room`: see Places."""
        self.active_config = active_config
        self.budget = active_config.budget
        self.wheel = wheel
        self.loop = asyncio.get_running_loop()
        self.buffer = bytearray(READ_SIZE)
        self.view = memoryview(self.buffer)
        self.open: set[ServerConnection] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.turns = Turns(self.loop)
        self.handshakes = Handshakes(active_config.settings.handshakes)
        self._trimmer = Trimmer(wheel, self.loop.time)
        self.stopping = False
        self._refused_until = 0.0
        self.places = Places(self.open, self.handshakes, wheel, self.loop.time, room)
        often = active_config.settings.connections_per_minute
        self._rate = Rate(often, 60.0) if often else None

    def next_refused(self) -> float:
        """When (on the loop's clock) a client whose message is refused may be read from again, after a read now."""
        self._refused_until = max(self._refused_until, self.loop.time()) + READ_SIZE / REFUSED_RATE
        return self._refused_until

    def admit(self, connection: "ServerConnection", config: ListenerConfig, *, expected: bool = False) -> str:
        """Count a connection. Returns what keeps it out, as in the metric: too_many (of the process or of the client)
        or too_often (new ones of the client, unless `expected`); empty when it is admitted."""
        connection.peer = client_group(connection.client)
        connection.worth = self.places.worth(connection.peer, submission=config.origin is not Origin.MX)
        may_come_often = connection.client.is_loopback or expected
        obstacle = self._obstacle(connection.peer, connection.worth, config, may_come_often=may_come_often)
        if not obstacle:
            self.open.add(connection)
        return obstacle

    def reserve(self, address: IPv4Address | IPv6Address, config: ListenerConfig) -> str:
        """Count a client whose TLS handshake comes first. Returns as `admit` does."""
        client = client_group(address)
        worth = self.places.worth(client, submission=config.origin is not Origin.MX)
        return self._obstacle(client, worth, config, may_come_often=address.is_loopback)

    def release(self, client: ClientGroup) -> None:
        """Its handshake is over: the client is to be admitted now, or has failed."""
        self.places.leave(client)

    def count_failed_handshake(self) -> None:
        """A handshake was not finished. It leaves more memory behind than a session (kit.trim)."""
        metrics.TLS.inc("none")
        self._trimmer.count()

    def _obstacle(self, client: ClientGroup, worth: Worth, config: ListenerConfig, *, may_come_often: bool) -> str:
        limits = config.gateway.limits
        admission = self.places.judge(client, worth, limits)
        if admission is Admission.REFUSED:
            return "too_many"
        if self._rate is not None and not may_come_often:
            now = self.loop.time()
            if self._rate.reached(client.client, now):
                return "too_often"
            self._rate.add(client.client, now)
        if admission is not Admission.GRANTED and not self.places.make_room(worth):
            return "too_many"
        self.places.take(client, limits)
        return ""

    def forget(self, connection: "ServerConnection") -> None:
        """The connection is gone."""
        if connection in self.open:
            self.open.discard(connection)
            self.places.leave(connection.peer, connection)

    def rebase(self) -> None:
        """A new revision is in force: sessions that are open go on under it (CFG-06)."""
        for connection in self.open:
            config = self.active_config.listeners.get(connection.listener_key)
            if config is not None and connection.session is not None:
                connection.session.rebase(config)

    def shut_down(self, *, all_of_them: bool) -> None:
        """Say 421 to sessions: those that are in no message, or all (SIN-17)."""
        for connection in list(self.open):
            connection.shut_down(even_busy=all_of_them)


class ServerConnection(asyncio.BufferedProtocol):
    """One client."""

    __slots__ = (
        "_bindings",
        "_client_done",
        "_content_until",
        "_dropped",
        "_end",
        "_expected",
        "_handshake_limit",
        "_holds",
        "_idle",
        "_label",
        "_loop",
        "_next_turn",
        "_preface",
        "_pumping",
        "_sessions",
        "_stalled_until",
        "_state",
        "_tls",
        "_transport",
        "client",
        "deadline",
        "listener_key",
        "peer",
        "protocol",
        "session",
        "started",
        "worth",
    )

    def __init__(self, sessions: Sessions, listener_key: ListenerKey) -> None:
        self.listener_key = listener_key
        self.client: IPv4Address | IPv6Address = _NOBODY
        self.peer = _NO_PEER
        """With whom it is counted."""
        self.worth = Worth.STRANGER
        """What was known of its client when it came."""
        self.protocol: ServerSession | None = None
        self.session: SmtpSession | None = None
        self.deadline = NEVER
        self.started = time.time()
        self._sessions = sessions
        self._loop = sessions.loop
        self._transport: asyncio.Transport | None = None
        self._state: _State = _OPEN
        self._dropped = 0
        self._holds = 0
        self._pumping = False
        self._next_turn = False  # the next turn is scheduled
        self._client_done = False  # it has closed its sending side and may still read
        self._tls = False
        self._preface = b""  # PROXY header so far
        self._idle = 300.0
        self._content_until: float | None = None
        self._stalled_until: float | None = None
        self._end = "lost"
        self._expected: ClientGroup | None = None  # for whom its place is reserved during the handshake
        self._handshake_limit: asyncio.Timeout | None = None  # of the one under way
        self._label = ""
        self._bindings: Mapping[str, bytes] = {}  # of the certificate that its handshake began with

    def expect_handshake(self, peer: str, end: Callable[[], None]) -> bool:
        """Reserve a place for a client whose TLS handshake comes first. False: there is none for it. `end`: closes it
        at once."""
        config = self._sessions.active_config.listeners.get(self.listener_key)
        client = _address(peer)
        if config is None or self._sessions.stopping:
            return False
        obstacle = self._sessions.reserve(client, config)
        if obstacle:
            metrics.CONNECTIONS.inc(config.listener.protocol.value, obstacle)
            return False
        self._expected = client_group(client)
        self._bindings = config.bindings
        self._sessions.handshakes.begin(self, self._loop.time(), end, metrics.HANDSHAKES.of())
        return True

    def end_handshake(self) -> None:
        """The handshake is over, well or not."""
        if self._expected is not None:
            self._sessions.handshakes.done(self)
            self._sessions.release(self._expected)
            self._expected = None

    # --- asyncio's side ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        self.end_handshake()
        self._transport = cast("asyncio.Transport", transport)
        config = self._sessions.active_config.listeners.get(self.listener_key)
        peer = transport.get_extra_info("peername")
        if config is None or not peer:
            self._transport.write(_LISTENER_GONE)  # ACC-05
            self._transport.close()
            return
        self.client = _address(peer[0])
        self._idle = float(config.gateway.limits.idle_timeout)
        self._label = config.listener.protocol.value
        if config.listener.proxy_protocol:
            trusted = any(self.client in ip_network(cidr, strict=False) for cidr in config.listener.proxy_trusted_cidrs)
            if not trusted:
                self._refuse("proxy")
                return
            self._state = _PROXY
            self.deadline = self._loop.time() + self._sessions.active_config.settings.proxy_timeout
            self._sessions.wheel.add(self)
            return
        self._admit(config)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next octets go: the buffer that all share, no more of it than may be read now."""
        if self._state is _PROXY:
            return self._sessions.view[: may_read(self._preface)]
        if self._sessions.budget.tight:
            return self._sessions.view[:LEAST]
        return self._sessions.view

    def buffer_updated(self, nbytes: int) -> None:
        """Octets have come."""
        data = self._sessions.view[:nbytes].tobytes()
        state = self._state
        if state is _OPEN:
            protocol = self.protocol
            if protocol is not None:
                if not protocol.receive(data, time.time()):  # a line has one deadline, in however many pieces it comes
                    self.deadline = self._loop.time() + self._idle
                self.pump()
        elif state is _PROXY:
            self._proxy_octets(data)
        elif state is _State.LINGERING:
            self._dropped += nbytes
            if self._dropped > LINGER_OCTETS and self._transport is not None:
                self._transport.abort()

    def eof_received(self) -> bool:
        """The client sends nothing more. An answer that is due is still given, where TLS does not forbid it."""
        if self.protocol is not None and self.protocol.awaiting and not self._tls:
            self._client_done = True
            return True
        return False

    def pause_writing(self) -> None:
        """The client does not read: it gets no further replies to ignore."""
        self._hold(_Hold.WRITING)

    def resume_writing(self) -> None:
        """It reads again."""
        self._release(_Hold.WRITING)

    def connection_lost(self, exc: BaseException | None) -> None:
        """The connection is gone."""
        self._forget()

    # --- the start: PROXY header, limits, TLS, greeting ---

    def _proxy_octets(self, data: bytes) -> None:
        self._preface += data
        try:
            header = parse(self._preface)
        except ProxyError:
            self._refuse("proxy")
            return
        if header is None:
            return
        self._preface = b""
        if header.client is not None:
            self.client = plain_ip(header.client)  # for limits, logs and checks alike (PRX-04)
        self._sessions.wheel.remove(self)
        config = self._sessions.active_config.listeners.get(self.listener_key)
        if config is None:
            self._refuse("proxy")
            return
        self._state = _OPEN
        self._admit(config)

    def _refuse(self, result: str) -> None:
        """No session: close without a word (PRX-01)."""
        metrics.CONNECTIONS.inc(self._label, result)
        self._state = _State.GONE
        self._sessions.wheel.remove(self)
        self.deadline = NEVER
        if self._transport is not None:
            self._transport.abort()

    def _admit(self, config: ListenerConfig) -> None:
        assert self._transport is not None
        implicit = config.listener.protocol is ListenerProtocol.SUBMISSIONS
        secured = self._transport.get_extra_info("ssl_object") if implicit else None
        obstacle = "too_many"
        arrives = implicit and secured is None  # its handshake is still to come, after a PROXY header
        if not self._sessions.stopping and (not arrives or self._sessions.handshakes.make_room(self._loop.time())):
            obstacle = self._sessions.admit(self, config, expected=secured is not None)
        if obstacle:
            if secured is not None or not implicit:
                self._transport.write(_TOO_OFTEN if obstacle == "too_often" else _TOO_MANY)
            metrics.CONNECTIONS.inc(self._label, obstacle)
            self._state = _State.GONE
            self._transport.close()
            return
        config.connections.accepted.number += 1
        config.connections.open.number += 1
        self.deadline = self._loop.time() + self._idle
        self._sessions.wheel.add(self)
        if secured is not None:  # the loop has done the handshake
            self._tls = True
            self._greet(config, _facts(secured))
        elif implicit:
            self._handshake(config)
        else:
            self._greet(config, None)

    def _greet(self, config: ListenerConfig, tls: TlsFacts | None) -> None:
        self.protocol = ServerSession(config.options, tls=tls)
        self.session = SmtpSession(self._sessions.active_config, config, self.protocol, self, self.client)
        if tls is not None:
            self.session.bind(self._bindings)
        self.pump()

    def _handshake(self, config: ListenerConfig) -> None:
        assert self._transport is not None
        if config.identity is None:  # 465 without a usable certificate: nothing can be said there
            self._end = "tls"
            self._transport.close()
            return
        self._state = _State.HANDSHAKE
        self._bindings = config.bindings
        self._sessions.handshakes.begin(
            self, self._loop.time(), self._break_handshake_off, metrics.STARTTLS_HANDSHAKES.of()
        )
        # Nothing may be read between here and the switch: it would be the handshake's. (In `connection_made` that
        # cannot be had, since the loop starts to read after it; so where a connection begins with TLS and nothing
        # before it, listeners.py does the handshake before the connection is made.)
        self._transport.pause_reading()
        task = self._loop.create_task(self._do_handshake(config, config.identity.context))
        self._sessions.tasks.add(task)
        task.add_done_callback(self._sessions.tasks.discard)

    def _break_handshake_off(self) -> None:
        """End the connection, and the wait for its handshake: uvloop, which never hears of an end that comes before the
        handshake began, would keep all of it until the handshake's time is over."""
        if self._transport is not None:
            self._transport.abort()
        if self._handshake_limit is not None and not self._handshake_limit.expired():
            self._handshake_limit.reschedule(self._loop.time())

    async def _do_handshake(self, config: ListenerConfig, context: ssl.SSLContext) -> None:
        if self._transport is None:  # the client went before we came to it
            return
        if self._transport.is_closing():  # and this one had to make room for another
            self._forget()
            return
        timeout = self._sessions.active_config.settings.tls_timeout
        self.deadline = self._loop.time() + timeout + self._idle  # the handshake has its own limit
        try:
            async with asyncio.timeout(timeout + 1.0) as self._handshake_limit:
                transport = await self._loop.start_tls(
                    self._transport, self, context, server_side=True, ssl_handshake_timeout=timeout
                )
        except (OSError, TimeoutError, ssl.SSLError):  # a fault of this client's TLS ends this client alone
            transport = None
        self._sessions.handshakes.done(self)
        if transport is None or self._state is not _State.HANDSHAKE:
            self._sessions.count_failed_handshake()
            self._end = "tls"
            if self._transport is not None:
                self._transport.abort()
            self._forget()
            return
        self._transport = transport
        self._tls = True
        facts = _facts(transport.get_extra_info("ssl_object"))
        self._state = _OPEN
        self.deadline = self._loop.time() + self._idle
        self._sessions.wheel.hasten(self)
        if self.protocol is None:
            self._greet(config, facts)
            return
        self.protocol.complete_tls(facts)
        if self.session is not None:
            self.session.bind(self._bindings)
        self.pump()

    # --- the session ---

    def pump(self) -> None:
        """Let the session go on with what it has, and send what it says."""
        protocol, session, transport = self.protocol, self.session, self._transport
        if self._pumping or protocol is None or session is None or transport is None or self._state is not _OPEN:
            return
        self._pumping = True
        protocol.turn = TURN
        last: Event | None = None
        try:
            while (event := protocol.next_event()) is not None:
                act = HANDLERS.get(type(event))
                if act is None:
                    last = event  # Closing, which nothing follows, or TlsRequested
                    if type(event) is TlsRequested and not self._sessions.handshakes.make_room(self._loop.time()):
                        protocol.decline_tls(_TOO_MANY_HANDSHAKES)
                else:
                    act(session, event)
        except Exception:
            # A mistake of ours costs this client its connection, and no other.
            log.get_logger().exception("session failed", client=str(self.client), command=protocol.verb)
            protocol.shut_down()
            last = Closing("shutdown")
        finally:
            self._pumping = False
        out = protocol.data_to_send()
        if out:
            transport.write(out)
            self.deadline = self._loop.time() + self._idle  # it is the client's turn, from now on
        if last is None:
            if protocol.idle and not self._holds and not self._client_done:
                self._content_until = None
            else:
                self._look_after(protocol, session)
        elif isinstance(last, Closing):
            self._end = _ENDS.get(last.reason, "refused")
            self._close(linger=last.linger)
        else:
            self._handshake(session.config)

    def _let_others_go_first(self) -> None:
        """There is more to do than one turn allows: stop reading, and go on when the loop has served others."""
        if not self._holds & _Hold.TURN:
            self._hold(_Hold.TURN)
        if not self._next_turn:
            self._next_turn = True
            self._sessions.turns.ask(self)

    def take_turn(self) -> int:
        """See turns.Talkative."""
        self._next_turn = False
        protocol = self.protocol
        self.pump()
        return TURN - protocol.turn if protocol is not None else 0

    def _look_after(self, protocol: ServerSession, session: SmtpSession) -> None:
        """Reading, the end and deadlines, while a message is on its way, an answer is awaited or more is to be done."""
        if protocol.interrupted:
            self._let_others_go_first()
        elif self._holds & _Hold.TURN:
            self._release(_Hold.TURN)
        if protocol.awaiting:
            if not protocol.wants_data or self._sessions.budget.tight:
                self._hold(_Hold.BACKLOG)
        else:
            if self._holds & _Hold.BACKLOG:
                self._release(_Hold.BACKLOG)
            if self._client_done and not protocol.interrupted:
                self._close(linger=False)
                return
        if protocol.in_content:
            if self._content_until is None:
                self._content_until = self._loop.time() + session.config.gateway.limits.transaction_timeout
            if self._content_until < self.deadline:
                self.deadline = self._content_until
                self._sessions.wheel.hasten(self)
            if session.content_refused and not self._holds & _Hold.REFUSED:
                self._hold(_Hold.REFUSED)
                self._loop.call_at(self._sessions.next_refused(), self._release, _Hold.REFUSED)
        else:
            self._content_until = None

    def pause(self) -> None:
        """The queue takes no more of this message for now (ACC-07)."""
        self._stalled_until = self._loop.time() + self._sessions.active_config.settings.credit_timeout
        self._hold(_Hold.CREDIT)
        self.deadline = min(self.deadline, self._stalled_until)
        self._sessions.wheel.hasten(self)

    def resume(self) -> None:
        """There is credit again."""
        self._stalled_until = None
        self.deadline = self._loop.time() + self._idle
        self._release(_Hold.CREDIT)

    def _hold(self, reason: int) -> None:
        if not self._holds and self._state is _OPEN and self._transport is not None:
            self._transport.pause_reading()
        self._holds |= reason

    def _release(self, reason: int) -> None:
        if not self._holds & reason:
            return
        self._holds &= ~reason
        if not self._holds and self._state is _OPEN and self._transport is not None:
            self._transport.resume_reading()

    # --- the end ---

    def expire(self, now: float) -> None:
        """The deadline has passed (SIN-17)."""
        if self._state is _PROXY:
            self._refuse("proxy")
        elif self._state is _State.LINGERING or self._state is _State.GONE:
            # It lingers too long, or it never read our last reply, which would be kept for ever.
            self.deadline = NEVER
            if self._transport is not None:
                self._transport.abort()
        elif self._state is _OPEN and self.protocol is not None and self.session is not None:
            if self._stalled_until is not None and now >= self._stalled_until:
                self._stalled_until = None
                self.deadline = now + self._idle
                self.session.time_out_credit()
            elif self.protocol.awaiting:
                self.deadline = now + self._idle  # it waits for us, not we for it
            else:
                self.protocol.time_out()
                self.pump()
                if self._state is _OPEN:  # nothing left to say it to
                    self.deadline = NEVER
        else:
            self.deadline = now + self._idle

    def idleness(self) -> "Idle[ServerConnection] | None":
        """See places.Occupant."""
        protocol = self.protocol
        if protocol is None or not self._is_clients_turn(protocol) or self.deadline == self._content_until:
            return None
        worth = Worth.ACQUAINTANCE if protocol.messages else self.worth
        if protocol.login is not None:
            worth = Worth.ACCOUNT
        return Idle(worth, self.deadline - self._idle, protocol.in_transaction, self)

    def content_octets(self) -> int | None:
        """See places.Occupant."""
        protocol = self.protocol
        if protocol is None or not protocol.in_content or not self._is_clients_turn(protocol):
            return None
        return protocol.content_octets

    def _is_clients_turn(self, protocol: ServerSession) -> bool:
        return self._state is _OPEN and not protocol.awaiting and not self._holds & ~_Hold.WRITING

    def end_idle(self, *, displaced: bool) -> None:
        """See places.Occupant. Nothing of the client is on its way, so it needs no lingering to hear our last word."""
        if self.protocol is None:
            return
        if displaced:
            self.protocol.displace()
        else:
            self.protocol.time_out(stress=True)
        self.pump()
        if self._transport is not None:
            self.deadline = self._loop.time() + LAST_WORD
            self._sessions.wheel.hasten(self)

    def give_up(self) -> None:
        """A fault of ours kept `expire` from ending it (kit.wheel): close without a reply, else it would stay."""
        self.deadline = NEVER
        if self._transport is not None:
            self._transport.abort()

    def shut_down(self, *, even_busy: bool) -> None:
        """The process stops."""
        if self.protocol is None or self._state is not _OPEN:
            if even_busy and self._transport is not None:
                self._transport.abort()
            return
        if even_busy or not (self.protocol.awaiting or self.protocol.in_content):
            self.protocol.shut_down()
            self.pump()

    def _close(self, *, linger: bool) -> None:
        transport = self._transport
        assert transport is not None
        if linger and not self._tls and transport.can_write_eof() and not transport.is_closing():
            # The client may still be sending; closing now would answer that with a reset, and lose our reply.
            self._state = _State.LINGERING
            if self._holds:
                self._holds = 0
                transport.resume_reading()
            transport.write_eof()
            patience = self._sessions.active_config.settings.linger_close
            self.deadline = self._loop.time() + (min(patience, LAST_LINGER) if self._sessions.stopping else patience)
            self._sessions.wheel.hasten(self)
        else:
            self._state = _State.GONE
            transport.close()

    def _forget(self) -> None:
        if self.deadline != NEVER or self in self._sessions.open:
            self._sessions.wheel.remove(self)
            self.deadline = NEVER
        if self._state is _State.HANDSHAKE:
            self._sessions.handshakes.done(self)
        self._state = _State.GONE
        if self in self._sessions.open:
            self._sessions.forget(self)
            metrics.OPEN.inc(self._label, by=-1)
            metrics.ENDS.inc(self._end)
        self._transport = None
        protocol, session = self.protocol, self.session
        self.protocol = self.session = (
            None  # they refer to us and we to them: this spares the garbage collector the cycle
        )
        if protocol is not None:
            if protocol.messages or protocol.login is not None:
                self._sessions.places.remember(self.peer.client)
            protocol.hang_up()
        if session is not None:
            session.hang_up()


def _facts(secured: ssl.SSLObject) -> TlsFacts:
    cipher = secured.cipher()
    facts = TlsFacts(secured.version() or "", cipher[0] if cipher else "")
    metrics.TLS.inc(facts.version if facts.version in ("TLSv1.2", "TLSv1.3") else "none")
    return facts


@lru_cache(maxsize=4096)
def _address(text: str) -> IPv4Address | IPv6Address:
    return plain_ip(ip_address(text.partition("%")[0]))
