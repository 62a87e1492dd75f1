"""The queue, seen from outbound: one Lease stream to each replica, deliveries in, results out (LSE-01..08).

Everything is batched by what is waiting: one gRPC message carries all results that are ready, the credit that they gave
back, and every 20 s the tokens that still run; it waits a moment for more (core/linger.py). A stream that breaks is
opened again, and its Hello lists what is in progress. Results that were not acknowledged are sent again, to another
replica if theirs does not come back.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Container
from functools import lru_cache

import grpc

from mailrail.core.delivery.outcome import Outcome, Scope, Verdict
from mailrail.core.delivery.shares import SiteStanding
from mailrail.core.ids import history_of
from mailrail.core.outbound.envelope import Envelope, EnvelopeRecipient
from mailrail.core.revision.revision import ObjectRef, Otherwise, Security, TlsMinimum, TlsProof, Unanswered
from mailrail.core.route import LackingTransport
from mailrail.core.smtp.line_facts import PLAIN, UNKNOWN, WHOLE
from mailrail.core.smtp.parameters import BodyType
from mailrail.core.smtp.reply import EnhancedCode
from mailrail.core.tlspolicy.decision import Cause
from mailrail.core.tlspolicy.demands import NOTHING, Demanded
from mailrail.core.tlspolicy.facts import Purpose, Requirement
from mailrail.kit import clock, log, rpc
from mailrail.kit.linger import linger
from mailrail.kit.settings import BadSettings
from mailrail.pb.queue.v1 import lease_pb2, lease_pb2_grpc, types_pb2
from mailrail_outbound import metrics
from mailrail_outbound.ports import (
    ConnectionFacts,
    ContentGone,
    Delivery,
    DeliveryReport,
    Lease,
    OutOfReach,
    RecipientReport,
    Result,
    Worker,
)
from mailrail_outbound.settings import OutboundSettings
from mailrail_outbound.smtp import INTERNAL_ERROR

_LOOK_AGAIN = 2.0  # seconds between looks for replicas
_PAUSE = 0.1  # seconds before a broken stream is opened again
_GONE_AFTER = 10.0  # seconds without its replica until a result goes to another
_FETCH_WITHIN = 10.0  # seconds in which some replica must go on with content that is being fetched
_PIECE_WITHIN = 30.0  # seconds until the next piece of content that is being fetched
_BATCH = 500  # results in one gRPC message
_INLINE_OF_OLD = 65536  # octets of a body that a replica sends at most which does not count octets
_TOLD_AFTER = 0.05  # seconds until MX hosts are told without a result: most results come sooner, and bring them
_CLOCK_TOLD = 5.0  # seconds between requests at most: so much too old a lease may seem at most, while all is well

_BODIES = {
    types_pb2.BODY_TYPE_SEVEN_BIT: BodyType.SEVEN_BIT,
    types_pb2.BODY_TYPE_EIGHT_BIT_MIME: BodyType.EIGHT_BIT_MIME,
    types_pb2.BODY_TYPE_BINARY_MIME: BodyType.BINARY_MIME,
}
_LINES = ((UNKNOWN, UNKNOWN), (WHOLE, PLAIN))
_RETURNS = {types_pb2.DSN_RETURN_FULL: "FULL", types_pb2.DSN_RETURN_HEADERS: "HDRS"}
_REQUIREMENTS = {
    types_pb2.TLS_REQUIREMENT_UNSPECIFIED: Requirement.DEFAULT,
    types_pb2.TLS_REQUIREMENT_REQUIRED: Requirement.REQUIRED,
    types_pb2.TLS_REQUIREMENT_NO: Requirement.NO,
}
_PURPOSES = {
    types_pb2.PURPOSE_DMARC_REPORT: Purpose.DMARC_REPORT,
    types_pb2.PURPOSE_TLS_REPORT: Purpose.TLS_REPORT,
}
_MAIL = Purpose.MAIL
_MINIMA = {
    lease_pb2.Security.MINIMUM_UNSPECIFIED: TlsMinimum.OPPORTUNISTIC,
    lease_pb2.Security.MINIMUM_ENCRYPTED: TlsMinimum.ENCRYPTED,
    lease_pb2.Security.MINIMUM_AUTHENTICATED: TlsMinimum.AUTHENTICATED,
}
_PROOFS = {
    TlsProof.DANE: lease_pb2.Security.PROOF_DANE,
    TlsProof.MTA_STS: lease_pb2.Security.PROOF_MTASTS,
    TlsProof.PKIX: lease_pb2.Security.PROOF_PKIX,
}
_STANDINGS = {
    lease_pb2.SITE_STANDING_UNPROVEN: SiteStanding.UNPROVEN,
    lease_pb2.SITE_STANDING_SLOW: SiteStanding.SLOW,
    lease_pb2.SITE_STANDING_QUICK: SiteStanding.QUICK,
}
_OUTCOMES = {
    Result.DELIVERED: types_pb2.OUTCOME_DELIVERED,
    Result.RELAYED: types_pb2.OUTCOME_RELAYED,
    Result.DEFERRED: types_pb2.OUTCOME_DEFERRED,
    Result.FAILED: types_pb2.OUTCOME_FAILED,
    Result.CAPTURED: types_pb2.OUTCOME_CAPTURED,
    Result.NOT_ATTEMPTED: types_pb2.OUTCOME_NOT_ATTEMPTED,
    Result.CANCELLED: types_pb2.OUTCOME_CANCELLED,
}
_PROVEN_BY = {proof: types_pb2.TlsProof.Value(f"TLS_PROOF_{proof.name}") for proof in TlsProof}
_CAUSES = {cause: types_pb2.TlsCause.Value(f"TLS_CAUSE_{cause.name}") for cause in Cause}
_GONE = (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.DATA_LOSS)
"""What a replica says of content that no other replica will have either."""
_RECIPIENT = Scope.RECIPIENT
_MAX_LINES, _MAX_LINE = 32, 512  # of a reply that is handed on (types.proto, Reply)
_MAX_VERDICT = 1024  # characters of why TLS was as it was; a stranger's DNS, policy host and server have a say in it


class LeaseClient:
    """The streams to all queue replicas."""

    def __init__(self, settings: OutboundSettings, revision: Callable[[], int]) -> None:
        self._settings = settings
        self._revision = revision
        self._links: dict[str, _Link] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._origins: dict[int, tuple[_Link, int]] = {}  # token → the link that it came by, and its octets
        self._worker: Worker | None = None
        self._draining = False
        self._acknowledged = asyncio.Event()
        self._broken = asyncio.Event()
        metrics.QUEUES.set_function(lambda: sum(link.connected for link in self._links.values()))

    async def run(self, worker: Worker) -> None:
        """Keep a stream to each replica, until cancelled."""
        self._worker = worker
        try:
            while True:
                try:
                    await self._look_for_replicas(worker)
                    self._move_results()
                except Exception:  # the streams that stand go on, and the next look may do better
                    log.get_logger().exception("cannot look up replicas of the queue")
                # A stream that broke is opened again soon, but not in a loop that does nothing else.
                await asyncio.sleep(_PAUSE)
                self._broken.clear()
                if all(not task.done() for task in self._tasks.values()):
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_LOOK_AGAIN):
                            await self._broken.wait()
        finally:
            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _look_for_replicas(self, worker: Worker) -> None:
        found = await rpc.endpoints(self._settings.queue_target)
        for endpoint in found:
            task = self._tasks.get(endpoint)
            if task is None or task.done():
                link = self._links.get(endpoint)
                if link is None:
                    link = self._links[endpoint] = _Link(self, self._settings, endpoint, worker)
                task = self._tasks[endpoint] = asyncio.create_task(link.run(max(1, len(found))))
                task.add_done_callback(lambda _: self._broken.set())
        for endpoint in [e for e in self._tasks if e not in found]:
            if not self._links[endpoint].connected:
                self._tasks.pop(endpoint).cancel()
        for endpoint in [e for e in self._links if e not in found and e not in self._tasks]:
            link = self._links[endpoint]  # a pod that went has given its address back
            if not link.unacknowledged and all(link is not origin for origin, _ in self._origins.values()):
                del self._links[endpoint]

    @property
    def connected(self) -> bool:
        """Whether any replica can hand us work."""
        return any(link.connected for link in self._links.values())

    def report(self, report: DeliveryReport) -> None:
        """Hand a result to the replica that the delivery came from."""
        link, octets = self._origins.pop(report.token, (None, 0))
        if link is not None:
            link.give_back(octets)
        if link is None or (not link.connected and self._settled(link)):
            link = next((each for each in self._links.values() if each.connected), link)
        if link is None:
            return
        link.add_result(report)

    def resolved(self, token: int, mx_hosts: tuple[str, ...]) -> None:
        """Tell the replica that a delivery came from which MX hosts its domain has, the best first (SHD-03)."""
        link = self.link_of(token)
        if link is not None:
            link.add_resolved(token, mx_hosts)

    async def content(self, token: int, message_id: bytes) -> AsyncIterator[bytes]:
        """The body of a message. Every replica has it from Postgres: where the one that leased it goes away, another
        goes on at the same octet. Raises ContentGone."""
        offset = 0
        tried: set[_Link] = set()
        over = time.monotonic() + _FETCH_WITHIN
        why = OutOfReach("the queue is unreachable")
        while True:
            link = self._who_has_content(token, tried)
            if link is None:
                if time.monotonic() > over:
                    raise why
                tried.clear()
                await asyncio.sleep(_PAUSE)
                continue
            tried.add(link)
            try:
                async with contextlib.aclosing(link.fetch(token, message_id, offset)) as pieces:
                    async for piece in pieces:
                        offset += len(piece)
                        yield piece
                        tried = {link}
                        over = time.monotonic() + _FETCH_WITHIN
                return
            except OutOfReach as error:
                why = error

    def _who_has_content(self, token: int, tried: Container["_Link"]) -> "_Link | None":
        link = self.link_of(token)
        links = [link, *self._links.values()] if link is not None else list(self._links.values())
        return next((link for link in links if link.connected and link not in tried), None)

    def drain(self) -> None:
        """Take no more work."""
        self._draining = True
        for link in self._links.values():
            link.wake()

    async def flushed(self, within: float) -> bool:
        """Wait until every result is acknowledged, `within` seconds at most. Says whether that came."""
        try:
            async with asyncio.timeout(within):
                while any(link.unacknowledged for link in self._links.values()):
                    self._acknowledged.clear()
                    await self._acknowledged.wait()
        except TimeoutError:
            return False
        return True

    @property
    def draining(self) -> bool:
        """Whether new work is refused."""
        return self._draining

    def record_origin(self, token: int, link: "_Link", octets: int) -> None:
        """A delivery came by this link, with so many octets of content."""
        self._origins[token] = link, octets

    def on_acknowledged(self) -> None:
        """The queue wrote results down."""
        self._acknowledged.set()

    def link_of(self, token: int) -> "_Link | None":
        """The link that a running delivery came by."""
        origin = self._origins.get(token)
        return origin[0] if origin is not None else None

    def origin(self, token: int) -> "tuple[_Link, int] | None":
        """The link that a running delivery came by, and its octets."""
        return self._origins.get(token)

    def octets_held(self, link: "_Link") -> int:
        """Octets of content that came by a link with deliveries that are in progress."""
        return sum(octets for origin, octets in self._origins.values() if origin is link)

    @property
    def revision(self) -> int:
        """The configuration revision in force here."""
        return self._revision()

    def _settled(self, link: "_Link") -> bool:
        return time.monotonic() - link.lost_at > _GONE_AFTER

    def _move_results(self) -> None:
        """Results whose replica stays away go to another: any can write them down (LSE-03)."""
        alive = [link for link in self._links.values() if link.connected]
        if not alive:
            return
        for link in self._links.values():
            if not link.connected and link.unacknowledged and self._settled(link):
                for report in link.give_up():
                    alive[0].add_result(report)


class _Link:
    """One Lease stream."""

    def __init__(self, client: LeaseClient, settings: OutboundSettings, endpoint: str, worker: Worker) -> None:
        self.connected = False
        self.lost_at = time.monotonic()
        self._client = client
        self._settings = settings
        self._endpoint = endpoint
        self._worker = worker
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._ready: list[DeliveryReport] = []  # not sent on the present stream
        self._sent: dict[int, DeliveryReport] = {}  # sent, not acknowledged
        self._history: int | None = None  # of the replica's database
        self._credit = 0  # deliveries to give back
        self._credit_octets = 0
        self._resolved: dict[int, tuple[str, ...]] = {}  # token → MX hosts that the queue does not know of yet
        self._tells: asyncio.TimerHandle | None = None
        self._tell = False  # they are to be told with the next request
        self._held_back = 0  # deliveries of credit for a replica that counts octets
        self._streams = 0  # opened so far
        self._stub: lease_pb2_grpc.LeaseServiceAsyncStub | None = None
        self._log = log.get_logger(queue=endpoint)

    # --- results --------------------------------------------------------------------------------------------------

    @property
    def unacknowledged(self) -> int:
        """Results that the queue has not said it wrote down."""
        return len(self._ready) + len(self._sent)

    def add_result(self, report: DeliveryReport) -> None:
        """To be sent with the next batch."""
        self._ready.append(report)
        self._resolved.pop(report.token, None)
        self._wake.set()

    def add_resolved(self, token: int, mx_hosts: tuple[str, ...]) -> None:
        """To be told soon, unless the result is there before."""
        self._resolved[token] = mx_hosts
        if self._tells is None:
            self._tells = self._loop.call_later(_TOLD_AFTER, self._tell_resolved)

    def _tell_resolved(self) -> None:
        self._tells = None
        if self._resolved:
            self._tell = True
            self._wake.set()

    def give_back(self, octets: int) -> None:
        """A delivery that came by this link is over, and what it held is free."""
        self._credit += 1
        self._credit_octets += octets

    def give_up(self) -> list[DeliveryReport]:
        """Everything unacknowledged, for another link."""
        reports = [*self._sent.values(), *self._ready]
        self._sent.clear()
        self._ready.clear()
        return reports

    def wake(self) -> None:
        """Something is to be said."""
        self._wake.set()

    # --- the stream ---------------------------------------------------------------------------------------------------

    async def run(self, replicas: int) -> None:
        """Open the stream, once; ends when it breaks."""
        try:
            async with rpc.channel(self._settings, self._endpoint, "queue") as channel:
                self._stub = lease_pb2_grpc.LeaseServiceStub(channel)
                await self._stream(self._stub, replicas)
        except grpc.aio.AioRpcError as error:
            if self.connected or error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                self._log.warning("queue stream ended", code=error.code().name, detail=error.details())
        except BadSettings as error:
            self._log.error("cannot connect to the queue", error=str(error))
        except Exception:
            self._log.exception("queue stream crashed; reopening it")
        finally:
            if self.connected:
                self.lost_at = time.monotonic()
            self.connected = False
            self._stub = None

    async def _stream(self, stub: "lease_pb2_grpc.LeaseServiceAsyncStub", replicas: int) -> None:
        # What was sent on the stream before may or may not have been written down: say it again (idempotent by token).
        self._ready = [*self._sent.values(), *self._ready]
        self._sent = {}
        leaving = asyncio.Event()
        self._streams += 1
        call = stub.Lease(self._requests(replicas, leaving, self._streams), wait_for_ready=True)
        async for response in call:
            if not self.connected:
                self.connected = True
                self._log.info("queue stream open")
            self._handle(response)
            if response.go_away:
                leaving.set()
                self._wake.set()

    def _handle(self, response: lease_pb2.LeaseResponse) -> None:
        # Read late, by a process that was frozen or behind a network that stood still, it is as old as its clock says.
        now = response.clock or clock.now()
        age = max(0.0, clock.now() - now)
        committed = response.committed
        if committed:
            for token in committed:
                self._sent.pop(token, None)
            self._client.on_acknowledged()
        for renewal in response.renewals:
            self._worker.renew(renewal.token, renewal.remaining_seconds - age)
        for token in response.cancel:
            self._worker.cancel(token)
        if response.counts_octets and self._held_back:
            self._credit += self._held_back
            self._held_back = 0
            self._wake.set()
        if response.HasField("history") and response.history != self._history:
            self._history = response.history
            self._close_other_histories()
        for wire in response.deliveries:
            known = self._client.origin(wire.token)
            try:
                delivery = self.delivery_from_wire(wire, now)
                self._client.record_origin(delivery.lease.token, self, delivery.held)
                self._worker.take(delivery)
            except Exception:  # it would break this stream and, leased again, each that follows
                self._log.exception("cannot read a delivery", token=wire.token)
                self._defer(wire)
            if known is not None:  # its token runs already: what runs goes on where it came from
                other = self._client.origin(wire.token)
                if other is not None:  # it is not reported
                    self.give_back(other[1])
                self._client.record_origin(wire.token, *known)

    def _defer(self, wire: lease_pb2.Delivery) -> None:
        verdict = Verdict(Outcome.DEFERRED, EnhancedCode(4, 3, 0), INTERNAL_ERROR)
        reports = [RecipientReport(recipient.id, Result.DEFERRED, verdict) for recipient in wire.recipients]
        now = time.time_ns()
        self._client.record_origin(wire.token, self, len(wire.prefix) + len(wire.body))
        self._client.report(DeliveryReport(wire.token, wire.message_id, now, now, reports, {}, ()))

    def _close_other_histories(self) -> None:
        """The database went back: break off what came from here before, if the final dot is not sent (HIS-03)."""
        others = [
            token
            for token in self._worker.running
            if self._client.link_of(token) is self and history_of(token) != self._history
        ]
        for token in others:
            self._worker.cancel(token)
        if others:
            self._log.warning(
                "the queue's database was set back: earlier deliveries are stopped",
                deliveries=len(others),
            )

    async def _requests(
        self, replicas: int, leaving: asyncio.Event, mine: int
    ) -> AsyncIterator[lease_pb2.LeaseRequest]:
        settings, client = self._settings, self._client
        hello = lease_pb2.Hello(process=settings.node_id, config_revision=client.revision)
        running = self._worker.running
        for token, recipient_ids in running.items():
            if client.link_of(token) is self:
                hello.in_progress.add(token=token, recipient_ids=recipient_ids)
                mx_hosts = self._worker.mx_hosts(token)
                if mx_hosts:  # the queue may have begun anew
                    self.add_resolved(token, mx_hosts)
        share = max(1, settings.capacity // replicas)
        free = max(0, share - len(hello.in_progress))
        octets = max(0, settings.held_octets // replicas - client.octets_held(self))
        credit = min(free, octets // _INLINE_OF_OLD)
        self._held_back = free - credit
        self._credit = self._credit_octets = 0
        # A result that was not acknowledged comes next on this stream: the queue must not take its work for lost.
        for report in self._ready:
            ids = [recipient.recipient_id for recipient in report.recipients]
            hello.in_progress.add(token=report.token, recipient_ids=ids)
        if client.draining:
            yield lease_pb2.LeaseRequest(hello=hello, go_away=True, clock=clock.now())
        else:
            yield lease_pb2.LeaseRequest(hello=hello, credit=credit, credit_octets=octets, clock=clock.now())
        said_goodbye = client.draining
        alive_at = self._loop.time() + settings.alive_seconds
        while True:
            if not self._ready and not (client.draining and not said_goodbye):
                self._wake.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(0.0, min(_CLOCK_TOLD, alive_at - self._loop.time()))):
                        await self._wake.wait()
                wait = linger(len(self._ready) + self._worker.under_way)
                if wait > 0:
                    await asyncio.sleep(wait)
            if self._streams != mine:  # gRPC leaves the requests of a broken stream waiting; they must take nothing
                self._wake.set()
                return
            request = lease_pb2.LeaseRequest(clock=clock.now())
            batch, self._ready = self._ready[:_BATCH], self._ready[_BATCH:]
            for report in batch:
                result = request.results.add(token=report.token, message_id=report.message_id, done=True)
                try:
                    fill_result(report, result, settings.node_id)
                except Exception:  # it would break this stream and each that follows
                    self._log.exception("cannot encode a report; sent without texts", token=report.token)
                    result.Clear()
                    fill_outcomes(report, result, settings.node_id)
                self._sent[report.token] = report
            if self._tell:
                self._tell = False
                for token, mx_hosts in self._resolved.items():
                    request.resolved.add(token=token, mx_hosts=mx_hosts)
                self._resolved = {}
            if client.draining:
                said_goodbye = True
                request.go_away = True
            elif not leaving.is_set():
                request.credit, self._credit = self._credit, 0
                request.credit_octets, self._credit_octets = self._credit_octets, 0
            if self._loop.time() >= alive_at:
                alive_at = self._loop.time() + settings.alive_seconds
                request.alive.extend(token for token in self._worker.running if client.link_of(token) is self)
            yield request

    # --- messages ---------------------------------------------------------------------------------------------------

    def delivery_from_wire(self, wire: lease_pb2.Delivery, now: float) -> Delivery:
        """A delivery as the application knows it. `now`: the time by kit.clock that its lease is counted from."""
        # One look at each field, all by position: this is a tenth of what a message costs here.
        token, message_id, envelope = wire.token, wire.message_id, wire.envelope
        transport = gateway = None
        if wire.HasField("transport"):
            ref = wire.transport
            transport = _ref(ref.kind, ref.namespace, ref.name)
        if envelope.HasField("gateway"):
            ref = envelope.gateway
            gateway = _ref(ref.kind, ref.namespace, ref.name)
        requirement = _REQUIREMENTS[envelope.tls_requirement]  # one of a later release is deferred, and never weakened
        recipients: list[EnvelopeRecipient] = []
        ids: list[int] = []
        simulate: list[str] = []
        for each in wire.recipients:
            orcpt = each.original_recipient if each.HasField("original_recipient") else None
            recipients.append(EnvelopeRecipient(each.address, tuple(each.notify), orcpt))
            ids.append(each.id)
            simulate.append(each.simulate)
        return Delivery(
            Lease(token, now + wire.remaining_seconds),
            message_id,
            wire.config_revision,
            transport,
            wire.transport_digest,
            wire.domain,
            Envelope(
                envelope.mail_from,
                _BODIES.get(envelope.body_type),
                envelope.smtputf8,
                _RETURNS.get(envelope.dsn_return),
                envelope.envelope_id if envelope.HasField("envelope_id") else None,
                envelope.auth if envelope.HasField("auth") else None,
            ),
            requirement,
            tuple(recipients),
            tuple(ids),
            tuple(simulate),
            wire.prefix,
            wire.body if wire.HasField("body") else _RemoteBody(self._client, token, message_id),
            wire.size,
            envelope.eight_bit,
            wire.attempt,
            gateway,
            {host.host: tuple(host.ips) for host in wire.dialled_hosts} if wire.dialled_hosts else {},
            _LINES[envelope.whole_lines][envelope.undotted],
            purpose=_PURPOSES.get(envelope.purpose, _MAIL),
            demanded=demanded_of(wire.security) if wire.HasField("security") else NOTHING,
            standing=_STANDINGS.get(wire.standing),  # one of a later release is as none
        )

    async def fetch(self, token: int, message_id: bytes, offset: int) -> AsyncGenerator[bytes]:
        """The body from an offset. Raises OutOfReach where this replica does not answer, ContentGone where it says that
        there is no such content for us."""
        stub = self._stub
        if stub is None:
            raise OutOfReach("the queue is unreachable")
        call = stub.FetchContent(lease_pb2.FetchContentRequest(token=token, message_id=message_id, offset=offset))
        try:
            pieces = aiter(call)
            while True:
                async with asyncio.timeout(_PIECE_WITHIN):
                    response = await anext(pieces, None)
                if response is None:
                    return
                yield response.data
        except TimeoutError as error:
            raise OutOfReach(f"the queue sent nothing for {_PIECE_WITHIN:.0f} s") from error
        except grpc.aio.AioRpcError as error:
            reason = f"{error.code().name}: {error.details()}"
            if error.code() in _GONE:
                raise ContentGone(reason) from error
            raise OutOfReach(reason) from error
        finally:
            call.cancel()  # a reader that stops early would leave the call waiting for ever


def demanded_of(wire: lease_pb2.Security) -> Demanded:
    """What is demanded. A word of a later release is never read as something weaker: of a minimum that is not known
    nothing is good enough, and a proof that is not known is none of ours (decision 23)."""
    minimum, proofs = _MINIMA.get(wire.minimum), tuple(proof for proof in TlsProof if _PROOFS[proof] in wire.proofs)
    if minimum is None:
        minimum, proofs = TlsMinimum.AUTHENTICATED, ()
    security = Security(
        minimum,
        proofs,
        Otherwise.FAIL if wire.fail else Otherwise.DEFER,
        Unanswered.PROCEED if wire.proceed else None,
    )
    return Demanded(security, tuple(wire.owners))


class _RemoteBody:
    """A body that stays with the queue until it is sent (ports.Body)."""

    __slots__ = ("_client", "_message_id", "_token")

    def __init__(self, client: LeaseClient, token: int, message_id: bytes) -> None:
        self._client = client
        self._token = token
        self._message_id = message_id

    @property
    def within_reach(self) -> bool:
        """See ports.Body."""
        return self._client.connected

    async def chunks(self) -> AsyncIterator[bytes]:
        """See ports.Body."""
        async for chunk in self._client.content(self._token, self._message_id):
            yield chunk


@lru_cache(maxsize=1024)
def _ref(kind: str, namespace: str, name: str) -> ObjectRef:
    return ObjectRef(kind, namespace, name)


def fill_result(report: DeliveryReport, result: lease_pb2.DeliveryResult, node: str) -> None:
    """A report as the queue gets it. Filled in place: a message that is given to another is copied."""
    result.mx_hosts.extend(report.mx_hosts)
    for host, ips in report.dialled.items():
        result.dialled_hosts.add(host=host, ips=ips)
    for recipient in report.recipients:
        entry = result.recipients.add(id=recipient.recipient_id)
        verdict = recipient.verdict
        if verdict.dsn_passed_on:
            entry.dsn_passed_on = True
        if verdict.scope is not _RECIPIENT:
            entry.site_failure = recipient.site_failure
            entry.transport_failure = recipient.transport_failure
        if recipient.uncertain:
            entry.uncertain = True
        if recipient.lacking is not None:
            _fill_lacking(recipient.lacking, entry.lacking)
        attempt = entry.attempt
        attempt.outbound = node
        attempt.outcome = _OUTCOMES[recipient.result]
        stamp = attempt.started
        stamp.seconds, stamp.nanos = divmod(report.started, 1_000_000_000)
        stamp = attempt.ended
        stamp.seconds, stamp.nanos = divmod(report.ended, 1_000_000_000)
        status = verdict.status
        attempt.status = _shown(status.category, status.subject, status.detail)
        if recipient.tls_cause is not None:
            attempt.tls_cause = _CAUSES[recipient.tls_cause]
        if recipient.seen is not None:
            _fill_connection(recipient.seen, attempt)
        _fill_reply(recipient, attempt.reply)


def fill_outcomes(report: DeliveryReport, result: lease_pb2.DeliveryResult, node: str) -> None:
    """The outcomes of a report alone, where its texts cannot be encoded. Without a report the lease would run out, and
    delivered mail would be delivered again."""
    result.token, result.message_id, result.done = report.token, report.message_id, True
    for recipient in report.recipients:
        entry = result.recipients.add(id=recipient.recipient_id, uncertain=recipient.uncertain)
        if recipient.lacking is not None:
            _fill_lacking(recipient.lacking, entry.lacking)
        attempt = entry.attempt
        attempt.outbound, attempt.outcome, attempt.dialled = node, _OUTCOMES[recipient.result], recipient.dialled
        for stamp, moment in ((attempt.started, report.started), (attempt.ended, report.ended)):
            stamp.seconds, stamp.nanos = divmod(moment, 1_000_000_000)
        status = recipient.status
        attempt.status = _shown(status.category, status.subject, status.detail)
        attempt.reply.lines.append("the text cannot be shown; see outbound's log")


def _fill_connection(seen: ConnectionFacts, attempt: types_pb2.Attempt) -> None:
    attempt.dialled = True
    attempt.mx_host = seen.host
    attempt.remote_ip = seen.ip
    attempt.local_ip = seen.local_ip
    facts = seen.tls
    if facts is not None:
        tls = attempt.tls
        tls.verdict = facts.verdict[:_MAX_VERDICT]
        if facts.version:
            tls.version = facts.version
            tls.cipher = facts.cipher
            if facts.proof is not None:
                tls.proof = _PROVEN_BY[facts.proof]
            if not facts.mx_proven:
                tls.mx_unproven = True
            if facts.requiretls:
                tls.requiretls = True
        if facts.offered:
            tls.offered = True
        if facts.resumed:
            tls.resumed = True


def _fill_lacking(lacking: LackingTransport, found: types_pb2.LackingTransport) -> None:
    found.extension, found.transport_digest = lacking.extension, lacking.digest
    if lacking.transport is not None:
        ref = lacking.transport
        found.transport.kind, found.transport.namespace, found.transport.name = ref.kind, ref.namespace, ref.name


def _fill_reply(recipient: RecipientReport, reply: types_pb2.Reply) -> None:
    """What the server said as it said it (reference H42 concerns our own judgement, which is in Attempt.status)."""
    verdict = recipient.verdict
    said, enhanced = verdict.reply, None
    if recipient.remote:
        reply.remote = True
    if said is not None:
        reply.code = said.code
        enhanced, lines = said.parts
        if len(lines) == 1:
            reply.lines.append(lines[0][:_MAX_LINE])
        else:
            reply.lines.extend([line[:_MAX_LINE] for line in lines[:_MAX_LINES]])
    else:
        reply.lines.append(verdict.text[:_MAX_LINE])
    if enhanced is None and not recipient.remote:
        enhanced = verdict.status
    if enhanced is not None:
        reply.enhanced = _shown(enhanced.category, enhanced.subject, enhanced.detail)


@lru_cache(maxsize=512)
def _shown(category: int, subject: int, detail: int) -> str:
    return str(EnhancedCode(category, subject, detail))
