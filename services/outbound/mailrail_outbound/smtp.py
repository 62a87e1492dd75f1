"""The socket around core.smtp.client: octets, TLS, the proxy's handshake, time, and backpressure. It decides nothing.

One `ClientConnection` runs the jobs that the pool hands it, one after the other; where the server pipelines, the next
job's commands leave with the final dot of the one before. All work happens in `data_received`, one write per read: no
task, no future, no stream reader. Only content that is not at hand, or is re-encoded in pieces, has a task: it
must wait for the peer and for the queue.

One wheel (kit.wheel) meets the deadlines of all connections. A deadline moves when a whole reply came, never because
octets dripped in.
"""

import asyncio
import datetime
import math
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, cast
from typing import Protocol as Interface

from mailrail.core.dane.demand import DaneDemand
from mailrail.core.dane.match import fault_of_name, verify
from mailrail.core.delivery.shares import QUICK
from mailrail.core.message.reencode import Unconvertible
from mailrail.core.outbound.envelope import Form
from mailrail.core.outbound.learned import Offered
from mailrail.core.outbound.socks5 import Socks5, SocksError
from mailrail.core.outbound.targets import ConnectionKey
from mailrail.core.sasl.client import Hashing
from mailrail.core.smtp.answer import Answer, Stage, Trouble
from mailrail.core.smtp.client import (
    ClientSession,
    ClientTransaction,
    ContentWanted,
    Event,
    Finished,
    NeedHash,
    NeedTls,
    Ready,
    SessionFailed,
)
from mailrail.core.smtp.stuffing import Stuffer
from mailrail.core.smtp.tls import TlsFacts
from mailrail.core.tlspolicy.decision import TlsDecision
from mailrail.core.tlspolicy.resumption import SessionCache, SessionKey
from mailrail.core.tlsrpt.result_type import ResultType, TlsFault
from mailrail.kit import clock, log
from mailrail.kit.metrics import Count
from mailrail.kit.wheel import Wheel
from mailrail_outbound import metrics
from mailrail_outbound.ports import ContentGone
from mailrail_outbound.settings import Timeouts
from mailrail_outbound.tls import TlsStream, fault_of, in_words

INTERNAL_ERROR = "an internal error of outbound; it is in its log"
_CHUNK = 262144  # octets of one BDAT chunk at most
_JOINED = 16384
"""Octets of a part from which on the kernel is handed the parts as they are, which is cheaper than to join them."""
NOT_COUNTED = Count()
"""For messages before a decision is known that they go by."""
_LINE = 1000  # octets of a line of text with its end (RFC 5321 4.5.3.1.6)


class Job(Interface):
    """What a connection needs of a piece of work (app.Job)."""

    def transaction(self, connection: "ClientConnection") -> ClientTransaction | None:
        """The next transaction on this connection; None: nothing can be sent here, and the job knows why."""

    def may_finish(self) -> Trouble | None:
        """None if the final dot may be sent, else what forbids it (LSE-02, ADM-02)."""

    @property
    def needs(self) -> Trouble:
        """What a server lacks for which the content proves to be Unconvertible."""

    def content_at_hand(self, form: Form) -> tuple[bytes, ...] | None:
        """All content in this form, dot-stuffed and with its final dot, in parts; None: it must be streamed."""

    def content(self, form: Form) -> AsyncIterator[bytes]:
        """The content in this form, in pieces, neither stuffed nor chunked. Raises ContentGone or Unconvertible."""

    def content_in_chunks(self, form: Form) -> tuple[bytes, ...] | None:
        """All content in this form for one BDAT LAST, in parts; None: it must be streamed."""

    def stuffer(self, form: Form) -> Stuffer:
        """What makes content that streams in this form ready for DATA."""

    def end_transaction(self, transaction: ClientTransaction, connection: "ClientConnection") -> bool:
        """A transaction of this job ended. True: another one follows, on this connection if it can take it and the job
        does not want a fresh one."""

    def end_after_crash(self, transaction: ClientTransaction | None) -> None:
        """A mistake of our own broke off what was done for this job (its log has it), at the end of `transaction` or
        before one began. The job is over."""

    fresh_only: bool
    """Wants a connection that has carried nothing yet: the last one took nothing more."""

    form: Form
    """The form that was chosen for the current transaction."""


class ConnectionOwner(Interface):
    """Gives a connection its jobs and learns what becomes of it (pool.Pool)."""

    def next_job(self, connection: "ClientConnection") -> Job | None:
        """Work for a connection that can begin a transaction; None: nothing waits."""

    def on_ready(self, connection: "ClientConnection") -> None:
        """The session is set up."""

    def on_answered(self, connection: "ClientConnection", seconds: float) -> None:
        """The server has answered for a transaction, so many seconds after it began. Not told of an address that is
        known to be quick."""

    def on_idle(self, connection: "ClientConnection") -> None:
        """Nothing to do."""

    def on_failed(self, connection: "ClientConnection", answer: Answer) -> None:
        """No session came about."""

    def requeue(self, job: Job, connection: "ClientConnection") -> None:
        """This job has more to do, and not on this connection."""

    def limit_messages(self, connection: "ClientConnection", messages: int) -> None:
        """The server accepts `messages` transactions a connection: this one carried what another had refused."""

    def forget(self, connection: "ClientConnection") -> None:
        """It is closed."""


@dataclass(frozen=True, slots=True)
class TlsPlan:
    """How to make TLS on a connection, when it is to be made."""

    context: ssl.SSLContext
    server_name: str
    """What SNI says: the TLSA base domain where TLSA records count (DANE-17), else the host."""
    verified_name: str | None
    """The name that the certificate must be valid for, by PKIX; None: it is not verified so."""
    implicit: bool
    dane: DaneDemand | None = None
    """What the certificates are compared with once the handshake is done (DANE-10, DANE-11)."""
    dane_binds: bool = True
    """They must match before anything of ours is sent; else it is reported alone (RTLS-22)."""

    @property
    def authenticates(self) -> bool:
        """Who the server is will be proven."""
        return self.verified_name is not None or (self.dane is not None and self.dane_binds)


@dataclass(frozen=True, slots=True)
class Dial:
    """How to make a connection of one key."""

    key: ConnectionKey
    transport_name: str
    """`namespace/name`, or `direct`: for people."""
    host: str
    port: int
    addresses: tuple[str, ...]
    """IP addresses in order; all are tried until one connects. For a proxy: what it is asked to connect to."""
    new_session: Callable[[], ClientSession]
    tls: TlsPlan | None
    sources: tuple[str, ...] = ()
    """Local addresses to bind, at most one a family."""
    proxy: tuple[str, int] | None = None
    """IP and port of a SOCKS5 proxy."""
    socks: Callable[[str, int], Socks5] | None = None
    limit: int | None = None
    """Connections to this destination; None = the process's default."""


class ClientConnection(asyncio.Protocol):
    """One connection to a next hop, from the TCP handshake to its end."""

    def __init__(
        self,
        owner: ConnectionOwner,
        dial: Dial,
        ip: str,
        *,
        timeouts: Timeouts,
        wheel: Wheel,
        message_limit: int,
        tls_sessions: "SessionCache[ssl.SSLSession]",
    ) -> None:
        """`ip`: the one of the addresses of `dial` that this connection goes to. `message_limit`: transactions at most,
        then QUIT. `tls_sessions`: those that may be resumed."""
        self.owner = owner
        self.key = dial.key
        self.session = dial.new_session()
        self.host = dial.host
        self.ip = ip
        self.transport_name = dial.transport_name
        self.message_limit = message_limit
        self.local_ip = ""
        self.deadline = 0.0
        self.opened = 0.0
        self.destination: Any = None
        """The owner's own."""
        self.server: Any = None
        """The owner's own, with the `standing` of the address."""
        self.gave_session = False
        """The owner's mark."""
        self.asked = 0.0
        """The loop's time since which what is awaited is awaited."""
        self.began = math.inf
        """The loop's time at which the newest transaction began."""
        self.connect_limit: asyncio.Timeout | None = None
        """Of the dial that makes this connection."""
        self.gives_way = ""
        """Why it is broken off for others, if it is."""
        self.reported_facts: Any = None
        """What jobs report of it, kept with it once the session stands."""
        self.satisfies: TlsDecision | None = None
        """The decision on TLS that it was last found to satisfy."""
        self.offered: Offered | None = None
        """What the server offered, as of that decision; None before the first."""
        self.taken = NOT_COUNTED
        """Where messages under this decision are counted that the server takes."""
        self.setting_up = True
        """The owner's mark: no session has come about yet."""
        self.failure_reported = False
        """The owner's mark: it knows that no session comes about."""
        self.resumption_failed = False
        """No session came about because a TLS session was to be resumed: a full handshake may do."""
        self.tls_facts: TlsFacts | None = None
        self.tls_fault: TlsFault | None = None
        """What is wrong with TLS here, also where nothing depends on it: for reports (RFC 8460)."""
        self.answer: Answer | None = None
        """Why no session came about, or how it ended."""
        self._loop = asyncio.get_running_loop()
        self._tls_plan = dial.tls
        self._tls: TlsStream | None = None
        self._handshaking = False
        self._tls_sessions = tls_sessions
        self._session_key: SessionKey | None = None
        self._resumption_unproven = False  # a session was offered, and nothing came through it yet
        self._proxy = dial.socks(ip, dial.port) if dial.socks is not None else None
        self._timeouts = timeouts
        self._times = _times(timeouts)
        self._wheel = wheel
        self._transport: asyncio.Transport | None = None
        self._over = math.inf  # when the transaction that was begun last has had its time
        self._newest: ClientTransaction | None = None
        self._replies = 0
        self._may_write: asyncio.Event | None = None  # made by the first large content
        self._wake: asyncio.Event | None = None  # a chunk's reply came
        self._streaming: asyncio.Task[None] | None = None
        self._streamed: ClientTransaction | None = None
        self._hashing: asyncio.Task[None] | None = None
        self._owned = True  # the owner still counts on us

    # --- the owner's side ------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether transactions can run on it."""
        return self.session.ready and not self.session.quitting

    @property
    def busy(self) -> bool:
        """Whether something is under way."""
        return not self.session.idle

    @property
    def waits(self) -> bool:
        """Whether the server has to say something: a reply, or its part of a handshake."""
        return self._handshaking or self.session.awaiting is not None

    def work(self) -> None:
        """Begin waiting jobs, as far as the session allows now."""
        if self._begin_next():
            self._wait_for_reply()
            self._flush()

    def quit(self) -> None:
        """Send QUIT and close."""
        if self.session.ready and self.session.idle:
            self.session.quit()
            self._flush()
        elif not self.session.gone:
            self.abort(Trouble.CLOSED, "closed by us")

    def abort(self, trouble: Trouble, detail: str) -> None:
        """Close at once. Open transactions end with this trouble."""
        self._act(self.session.on_lost(trouble, detail))
        self._close()

    @property
    def unanswered(self) -> bool:
        """Whether nobody loses anything if it is broken off: no session has come, or no reply to the only transaction
        under way. Not while a proxy is awaited: the fault would be taken for the proxy's."""
        if self._proxy is not None:
            return False
        transaction = self._newest
        if transaction is None:
            return not self.session.ready
        return not transaction.touched and self.session.alone(transaction)

    def give_way(self, seconds: float) -> None:
        """Break off, for others that wait: nothing has been answered for so many seconds. This is never TLS's trouble,
        after which a host may be tried without TLS."""
        self.gives_way = f"{self.host} did not answer in {seconds:.0f} s while others waited"
        if self._transport is None:
            if self.connect_limit is not None:
                self.connect_limit.reschedule(self._loop.time())
        elif self._handshaking or self.session.awaiting is Stage.STARTTLS:
            stage = self.session.awaiting or Stage.HANDSHAKE
            self._fail(Answer(stage, None, Trouble.TIMEOUT, self.gives_way))
        else:
            self.abort(Trouble.TIMEOUT, self.gives_way)

    def disown(self) -> None:
        """The owner gave up waiting for it and no longer counts it."""
        self._owned = False

    def expire(self, now: float) -> None:
        """The deadline has passed (kit.wheel)."""
        stage = Stage.HANDSHAKE if self._handshaking else Stage.PROXY if self._proxy else self.session.awaiting
        if stage is None:  # idle: not wanted any longer
            self.quit()
            self.deadline = now + self._timeouts.quit
        elif stage is Stage.PROXY:
            self._fail(Answer(Stage.PROXY, None, Trouble.PROXY, "the proxy did not answer in time"))
        elif stage is Stage.HANDSHAKE:
            self._fail(_broken_off("the TLS handshake took too long", "handshake-timeout"))
        elif self._unproven:
            self.abort(Trouble.TLS, "no reply right after the TLS handshake")
        elif self._over <= now:
            self.abort(Trouble.TIMEOUT, f"the transaction took too long in all; it waited for {stage.upper()}")
        else:
            self.abort(Trouble.TIMEOUT, f"no reply to {stage.upper()} in time")

    def give_up(self) -> None:
        """Its deadline could not be met for a fault of ours (kit.wheel): `connection_lost` tells the rest."""
        if self._transport is not None:
            self._transport.abort()

    # --- asyncio's side ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is connected."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by class
        transport = self._transport
        self.opened = self.asked = self._loop.time()
        local = transport.get_extra_info("sockname")
        if local:
            self.local_ip = str(local[0])
        self._wheel.add(self)
        if self._proxy is not None:
            self._wait_for(self._timeouts.connect)
            transport.write(self._proxy.start())
        else:
            self._connected()

    def data_received(self, data: bytes) -> None:
        """Octets came."""
        if self._proxy is not None:
            data = self._from_proxy(self._proxy, data)
            if not data:
                return
        if self._tls is None:
            self._from_server(data)
        elif self._handshaking:
            self._shake_hands(data)
        else:
            self._encrypted(data)

    def eof_received(self) -> bool:
        """The peer sends no more: neither do we."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is closed."""
        self._wheel.remove(self)
        detail = f"the connection was lost: {exc}" if exc is not None else "the server closed the connection"
        try:
            if self._handshaking:
                self._fail(_broken_off(f"{detail} during the TLS handshake", "handshake-closed"))
            elif self._proxy is not None:
                self._fail(Answer(Stage.PROXY, None, Trouble.PROXY, "the proxy closed the connection"))
            elif self._unproven:
                self._act(self.session.on_lost(Trouble.TLS, f"{detail} right after the TLS handshake"))
            else:
                self._act(self.session.on_lost(Trouble.CLOSED, detail))
        finally:  # whatever fails here, its place among the connections is free again
            self._ended()

    def pause_writing(self) -> None:
        """The socket's buffer is full."""
        if self._may_write is not None:
            self._may_write.clear()

    def resume_writing(self) -> None:
        """There is room again: the peer reads on."""
        if self._may_write is not None:
            self._may_write.set()
        if self.session.awaiting is Stage.END:  # of a large body the final dot leaves only now
            self._dot_sent()
            self._wait_for_reply()

    # --- layers under SMTP -----------------------------------------------------------------------------------------

    def _connected(self) -> None:
        if self._tls_plan is not None and self._tls_plan.implicit:
            self._start_tls()
        else:
            self._wait_for(self._timeouts.greeting)

    def _from_proxy(self, proxy: Socks5, data: bytes) -> bytes:
        assert self._transport is not None
        try:
            answer = proxy.feed(data)
        except SocksError as error:
            stage = Stage.CONNECT if error.this_address else Stage.PROXY
            trouble = Trouble.UNREACHABLE if error.destination else Trouble.PROXY
            self._fail(Answer(stage, None, trouble, f"{self.ip} port {self.key.port}: {error}"))
            return b""
        if answer:
            self._transport.write(answer)
        if not proxy.done:
            return b""
        self._proxy = None
        self._connected()
        return proxy.rest

    def _start_tls(self) -> None:
        plan = self._tls_plan
        assert plan is not None
        self._wait_for(self._timeouts.handshake)
        self._handshaking = True
        key = self._session_key = SessionKey(self.key, self.ip, plan.server_name, plan.context)
        offered = self._tls_sessions.find(key, clock.now()) if self._resumes else None
        self._resumption_unproven = offered is not None
        self._tls = TlsStream(plan.context, plan.server_name, verified_name=plan.verified_name, session=offered)
        self._shake_hands(b"")

    def _shake_hands(self, data: bytes) -> None:
        tls, plan = self._tls, self._tls_plan
        assert tls is not None
        assert plan is not None
        try:
            done = tls.handshake(data)
        except ssl.SSLError as error:
            self._write_raw(tls.outgoing())  # the alert, so that the peer's log has the reason too
            if isinstance(error, ssl.SSLCertVerificationError):  # of a full handshake, for a reason that stays
                self._full_after_all()
            self._fail(_handshake_failed(f"TLS handshake: {in_words(error)}", fault_of(error)))
            return
        if not done:
            self._write_raw(tls.outgoing())
            return
        facts = tls.facts()
        if not facts.resumed:
            self._full_after_all()
            fault = _fault_of_name(tls, plan)
            if fault is not None:
                self._fail(_handshake_failed(fault.detail, fault))
                return
        if plan.dane is not None:
            facts, fault = self._compare(tls, plan, plan.dane, facts)
            if fault is not None and plan.dane_binds:
                # DANE-14: nothing of ours goes to it, under TLS 1.3 not even the end of the handshake.
                self._fail(_handshake_failed(f"DANE: {fault.detail}", fault))
                return
        self._handshaking = False
        self.tls_facts = facts
        self._write_raw(tls.outgoing())
        binding = tls.binding() if self.key.identity else None
        session = self.session
        if plan.implicit:
            session.tls, session.tls_verified, session.binding = True, plan.authenticates, binding
            self._wait_for(self._timeouts.greeting)
        else:
            session.on_tls(verified=plan.authenticates, binding=binding)
            self._wait_for(self._timeouts.hello)
            self._flush()
        self._encrypted(b"")

    def _compare(
        self, tls: TlsStream, plan: TlsPlan, demand: DaneDemand, facts: TlsFacts
    ) -> tuple[TlsFacts, TlsFault | None]:
        """Compare what the server presented with its TLSA records."""
        if facts.resumed:
            # It presents nothing. Its full handshake met the same demand, which is part of the key of sessions
            # (TLS-10a); where none had to be met, none is resumed.
            return replace(facts, matched=demand.matching), None
        verdict = verify(tls.chain(), demand, datetime.datetime.now(datetime.UTC))
        metrics.DANE.inc(verdict.fault.reason.replace("-", "_") if verdict.fault is not None else "matched")
        if verdict.fault is not None:
            self.tls_fault = verdict.fault
            return facts, verdict.fault
        tls.until = verdict.until.timestamp() if verdict.until is not None else None
        return replace(facts, matched=demand.matching), None

    @property
    def _resumes(self) -> bool:
        plan = self._tls_plan
        return plan is not None and (plan.dane is None or plan.dane_binds)

    def _encrypted(self, data: bytes) -> None:
        tls = self._tls
        assert tls is not None
        try:
            plain = tls.decrypt(data)
        except ssl.SSLError as error:
            self._tls_broke(f"TLS: {in_words(error)}")
            return
        if plain:
            self._resumption_unproven = False
            self._from_server(plain)
        else:
            self._write_raw(tls.outgoing())
        if tls.fault is not None and not self.session.gone:
            self._tls_broke(f"TLS: {in_words(tls.fault)}")
        elif tls.closed and not self.session.gone:
            self._tls_broke("the server closed the TLS session")

    def _full_after_all(self) -> None:
        """The server made a full handshake; where a session was offered, it would not resume it."""
        if self._resumption_unproven and self._session_key is not None:
            self._resumption_unproven = False
            self._tls_sessions.rest(self._session_key, clock.now())
            metrics.HANDSHAKES.inc("refused")

    def _keep_session(self, facts: TlsFacts) -> None:
        key, tls, login = self._session_key, self._tls, self.session.authenticated
        if facts.resumed or key is None or tls is None or not self._resumes:
            return
        # A login that is bound to the certificate needs the one that the server has now.
        if (login is None or not login.binds_channel) and self._tls_sessions.wanted(key, clock.now()):
            self._tls_sessions.keep(key, *tls.session(), clock.now())

    def _tls_broke(self, detail: str) -> None:
        self.abort(Trouble.TLS if self._unproven else Trouble.CLOSED, detail)

    @property
    def _unproven(self) -> bool:
        """STARTTLS led to no reply yet. The client is done with TLS 1.3 before the server has judged the client's half
        (RFC 8446 2), so what ends the session here is the late end of a failed handshake."""
        tls, session = self.session.tls, self.session
        implicit = self._tls_plan is not None and self._tls_plan.implicit
        return tls and not implicit and session.awaiting is Stage.HELLO

    def _write_raw(self, data: bytes) -> None:
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    # --- SMTP ------------------------------------------------------------------------------------------------------

    def _from_server(self, data: bytes) -> None:
        session = self.session
        events = session.receive(data)
        if events:
            self._act(events)
        if session.replies != self._replies:
            self._replies = session.replies
            self._wait_for_reply()
        self._flush()
        if session.gone:
            self._close()

    def _act(self, events: list[Event]) -> None:
        for event in events:
            try:
                # The two that each message brings come first.
                if isinstance(event, Finished):
                    self._transaction_ended(event.transaction)
                elif isinstance(event, ContentWanted):
                    self._send_content(event.transaction)
                elif isinstance(event, Ready):
                    self._became_ready()
                elif isinstance(event, NeedTls):
                    self._flush()
                    self._start_tls()
                elif isinstance(event, NeedHash):
                    self._hashing = self._loop.create_task(self._hash(event.work))
                    self._hashing.add_done_callback(self._task_ended)
                elif isinstance(event, SessionFailed):
                    self.answer = event.answer
                    self._tell_failed(event.answer)
                else:
                    self.answer = self.answer or event.answer
            except Exception:
                self._crashed(event)

    def _crashed(self, event: Event) -> None:
        """What one piece of work raises takes neither the answers of others with it nor leaves its own without an end:
        a job without an end would keep its lease for ever."""
        log.get_logger().exception("a connection's work crashed", host=self.host, ip=self.ip)
        if isinstance(event, Finished):
            job: Job = event.transaction.tag  # type: ignore[assignment]
            job.end_after_crash(event.transaction)
            if self.session.idle:  # nothing follows that would hand it the next job
                self.session.quit()
        elif not self.session.gone:
            self.abort(Trouble.FAULT, INTERNAL_ERROR)

    async def _hash(self, work: Hashing) -> None:
        # Half a second in which no other connection would be served.
        self.session.on_hashed(await asyncio.to_thread(work.do))
        self._wait_for_reply()
        self._flush()

    def _became_ready(self) -> None:
        facts = self.tls_facts
        version = facts.version if facts is not None else "none"
        metrics.TLS.inc(version, facts.proof if facts is not None else "none")
        metrics.CONNECTIONS.inc("ready")
        if facts is not None:
            metrics.HANDSHAKES.inc("resumed" if facts.resumed else "full")
            self._keep_session(facts)
        self.owner.on_ready(self)
        self._begin_next()

    def _transaction_ended(self, transaction: ClientTransaction) -> None:
        job: Job = transaction.tag  # type: ignore[assignment]
        if self.server.standing is not QUICK and transaction.touched:
            self.owner.on_answered(self, self._loop.time() - self.began)
        if self._newest is transaction:
            self._newest, self._over = None, math.inf
            self.began = math.inf
        if self._streamed is transaction:
            self._streamed = None
            self._wake_up()
            task = self._streaming
            if task is not None and task is not asyncio.current_task():
                task.cancel()  # it may wait for content that does not come
        more = job.end_transaction(transaction, self)
        if more:
            if job.fresh_only and not self.session.gone:
                self.session.quit()  # else every message that waits would be refused here in turn
            if self.session.gone or not self.session.accepts_transaction:
                self.owner.requeue(job, self)
            elif self._begin(job):
                return
        if not self.session.gone:
            self._begin_next()

    def _begin_next(self) -> bool:
        """Begin the next waiting job if the session can take one. Says whether there is anything to write."""
        session = self.session
        if session.transactions >= self.message_limit:
            if session.idle:
                session.quit()
                return True
            return False
        while session.accepts_transaction:
            job = self.owner.next_job(self)
            if job is None:
                if session.idle:
                    self.owner.on_idle(self)
                return False
            if self._begin(job):
                return True
        if session.idle:  # LIMITS MAILMAX is reached
            session.quit()
            return True
        return False

    def _begin(self, job: Job) -> bool:
        try:
            transaction = job.transaction(self)
        except Exception:
            log.get_logger().exception("a transaction could not be made", host=self.host, ip=self.ip)
            job.end_after_crash(None)
            return False
        if transaction is None:
            return False
        transaction.tag = job
        session = self.session
        if session.transactions:
            metrics.REUSES.inc()
        session.begin(transaction)
        self.began = self._loop.time()
        allowed = self.began + self._timeouts.transaction.seconds(len(transaction.rcpt_lines), transaction.octets)
        # One whose final dot is not answered yet keeps its time.
        self._over = allowed if self._newest is None else max(self._over, allowed)
        self._newest = transaction
        return True

    def _send_content(self, transaction: ClientTransaction) -> None:
        job: Job = transaction.tag  # type: ignore[assignment]
        if self._streamed is transaction:
            self._wake_up()
            return
        forbidden = job.may_finish()
        if forbidden is not None:
            self._break_off(forbidden)
            return
        form = job.form
        data = job.content_in_chunks(form) if transaction.bdat else job.content_at_hand(form)
        if data is None:
            self._streamed = transaction
            self._streaming = self._loop.create_task(self._stream(job, transaction, form))
            self._streaming.add_done_callback(self._task_ended)
            return
        session = self.session
        if transaction.bdat:
            first = 0 if session.chunks_taken or not data else _first_line(data[0])
            if first and not transaction.chunked:
                self._write_content(data[0][:first], last=False)
                return
            if transaction.chunked:  # the first line went ahead
                data = (data[0][transaction.chunked :], *data[1:])
        metrics.OCTETS.inc(by=sum(map(len, data)))
        session.content(*data, last=True)
        self._dot_sent()
        if session.transactions >= self.message_limit:
            session.quit()  # leaves with the final dot where the server pipelines
        else:
            self._begin_next()

    def _break_off(self, trouble: Trouble) -> None:
        if trouble is Trouble.LEASE:
            metrics.LEASES_LOW.inc()
            detail = "too little of the lease was left to send the final dot; it is tried again"
        else:
            detail = "cancelled by an administrator before the final dot"
        self.abort(trouble, detail)

    async def _stream(self, job: Job, transaction: ClientTransaction, form: Form) -> None:
        session = self.session
        self._may_write = self._may_write or asyncio.Event()
        self._may_write.set()
        stuffer = job.stuffer(form)
        over = self._loop.time() + self._timeouts.content
        held: bytes | None = None  # BDAT: the piece that is LAST if no other comes
        try:
            async for piece in job.content(form):
                first = 0
                if transaction.bdat and held is None and not session.chunks_taken:
                    first = _first_line(piece)
                for part in _parts(piece, first):
                    if transaction.bdat:
                        part, held = held or b"", part
                        if not part:
                            continue
                    if not await self._room(transaction, over):
                        return
                    cancelled = job.may_finish()
                    if cancelled is Trouble.CANCELLED:
                        self._break_off(cancelled)
                        return
                    self._write_content(part if transaction.bdat else stuffer.feed(part), last=False)
            if not await self._room(transaction, over):
                return
        except ContentGone as error:
            self.abort(Trouble.LEASE, f"the content could not be read to its end: {error}")
            return
        except Unconvertible as error:
            self.abort(job.needs, str(error))
            return
        forbidden = job.may_finish()
        if forbidden is not None:
            self._break_off(forbidden)
            return
        self._write_content((held or b"") if transaction.bdat else stuffer.finish(), last=True)
        self._dot_sent()
        self._wait_for(self._timeouts.end)
        if session.transactions >= self.message_limit:
            session.quit()
        self._flush()

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            log.get_logger().error("a connection's work crashed", host=self.host, exc_info=task.exception())
            self.abort(Trouble.FAULT, INTERNAL_ERROR)

    async def _room(self, transaction: ClientTransaction, over: float) -> bool:
        """Wait until more content of the transaction may be written; False when it is over."""
        assert self._may_write is not None
        self._wait_for(min(self._timeouts.block, max(min(over, self._over) - self._loop.time(), 0.0)))
        while self.session.sending is transaction:
            if not self._may_write.is_set():
                await self._may_write.wait()
            elif not transaction.bdat or self.session.wants_chunk():
                return True
            else:
                self._wake = self._wake or asyncio.Event()
                self._wake.clear()
                await self._wake.wait()
        return False

    def _wake_up(self) -> None:
        for event in (self._may_write, self._wake):
            if event is not None:
                event.set()

    def _write_content(self, data: bytes, *, last: bool) -> None:
        if not data and not last:
            return
        metrics.OCTETS.inc(by=len(data))
        self.session.content(data, last=last)
        self._flush()

    # --- ends ------------------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        parts = self.session.take_parts()
        if self._tls is not None:
            if self._handshaking:
                return
            if parts:
                try:
                    self._tls.encrypt(b"".join(parts))
                except ssl.SSLError as error:
                    self.abort(Trouble.CLOSED, f"TLS: {in_words(error)}")
                    return
            data = self._tls.outgoing()
            parts = [data] if data else []
        if parts and self._transport is not None and not self._transport.is_closing():
            if max(map(len, parts)) > _JOINED:
                self._transport.writelines(parts)
            else:
                self._transport.write(b"".join(parts))

    def _wait_for(self, seconds: float) -> None:
        self._wheel.move(self, self._loop.time() + seconds)

    def _wait_for_reply(self) -> None:
        awaiting = self.session.awaiting
        if awaiting is not None:
            self.asked = self._loop.time()
            self._wheel.move(self, min(self.asked + self._times[awaiting], self._over))

    def _dot_sent(self) -> None:
        # The first reply to it has all the time that RFC 5321 4.5.3.2.6 asks for, however long the rest took.
        self._over = max(self._over, self._loop.time() + self._timeouts.end)

    def keep_idle(self, seconds: float) -> None:
        """Stay open for so long without work."""
        self._wait_for(seconds)

    def _fail(self, answer: Answer) -> None:
        """A layer below SMTP failed."""
        handshaking, self._handshaking, self._proxy = self._handshaking, False, None
        if handshaking and self._tls_plan is not None and not self._tls_plan.implicit:
            # The session awaits no reply, so it would add nothing: it ends here.
            self.session.gone = True
        else:
            self.session.on_lost(answer.trouble or Trouble.CLOSED, answer.detail)
        if self.answer is None:
            self.answer = answer
            self._tell_failed(answer)
        self._close()

    def _tell_failed(self, answer: Answer) -> None:
        self.tls_fault = self.tls_fault or answer.fault
        if not self._owned:
            return
        self.resumption_failed = self._resumption_unproven
        facts = self.tls_facts
        refused = answer.stage is Stage.AUTH and facts is not None and facts.resumed  # it may bind to the certificate
        if self._session_key is not None and (self.resumption_failed or refused):
            self._tls_sessions.rest(self._session_key, clock.now())
        if self.resumption_failed:
            metrics.HANDSHAKES.inc("broken")
            log.get_logger().info(
                "a resumed TLS session failed; shaking hands in full",
                host=self.host,
                ip=self.ip,
                reason=answer.detail,
            )
        metrics.CONNECTIONS.inc("resumption" if self.resumption_failed else _result(answer))
        self.owner.on_failed(self, answer)

    def _close(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            polite = self.session.gone and self.answer is not None and self.answer.trouble is None
            # What is not sent by now never counts; waiting until a peer that has stopped reading takes it would keep
            # the socket and the content for as long as the peer likes.
            if polite and not self._transport.get_write_buffer_size():
                self._transport.close()
            else:
                self._transport.abort()
        self._ended()

    def _ended(self) -> None:
        if not self._owned:
            return
        self._owned = False
        self._wheel.remove(self)
        self._wake_up()
        self.owner.forget(self)


def _first_line(content: bytes) -> int:
    """Octets of the first chunk to a server that has taken none yet. It may not know BDAT and read content as commands;
    the first line is our own trace field, which is not a command; what strangers wrote comes after it."""
    return content.find(b"\n", 0, _LINE) + 1 or min(len(content), _LINE)


def _parts(content: bytes, first: int) -> Iterator[bytes]:
    """Content in pieces of one chunk at most, the first of them of `first` octets unless that is 0."""
    if first:
        yield content[:first]
    for start in range(first, len(content), _CHUNK):
        yield content[start : start + _CHUNK]


@lru_cache(maxsize=8)
def _times(timeouts: Timeouts) -> dict[Stage, float]:
    """Seconds until the reply to a command, by what is awaited."""
    return {
        Stage.GREETING: timeouts.greeting,
        Stage.HELLO: timeouts.hello,
        Stage.STARTTLS: timeouts.starttls,
        Stage.AUTH: timeouts.auth,
        Stage.MAIL: timeouts.mail,
        Stage.RSET: timeouts.mail,
        Stage.RCPT: timeouts.rcpt,
        Stage.DATA: timeouts.data,
        Stage.CONTENT: timeouts.block,
        Stage.END: timeouts.end,
        Stage.QUIT: timeouts.quit,
    }


def _result(answer: Answer) -> str:
    match answer.stage:
        case Stage.CONNECT:
            return "unreachable"
        case Stage.PROXY:
            return "proxy"
        case Stage.STARTTLS | Stage.HANDSHAKE:
            return "tls"
        case Stage.AUTH:
            return "auth"
        case _:
            return "refused" if answer.remote else "broken"


def _fault_of_name(tls: TlsStream, plan: TlsPlan) -> TlsFault | None:
    """What is wrong with the name of a certificate that OpenSSL verified without looking at it: where SNI must say the
    base domain (DANE-17), `ssl` cannot compare another name."""
    if plan.verified_name is None or plan.verified_name == plan.server_name:
        return None
    chain = tls.chain()
    return fault_of_name(chain[0] if chain else b"", plan.verified_name)


def _handshake_failed(detail: str, fault: TlsFault) -> Answer:
    return Answer(Stage.HANDSHAKE, None, Trouble.TLS, detail, fault=fault)


def _broken_off(detail: str, reason: str) -> Answer:
    return _handshake_failed(detail, TlsFault(ResultType.VALIDATION_FAILURE, reason, detail))
