"""gRPC of the config service: messages to calls, errors to statuses; no decisions.

Who may do what: only the operator (in local mode the folder watcher) publishes; only administrators (command line) and
the operator roll back; each service watches and reports for its own role alone, so that no service can ask for the
secrets of another.

    ABORTED              another publisher (metadata `mailrail-reason`: `stale-epoch`), another head (`other-head`), or
                         data that went back (`set-back`)
    FAILED_PRECONDITION  sealed values are missing
    INVALID_ARGUMENT     the revision or a field cannot be used
    UNAVAILABLE          Postgres is unreachable; try again
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from mailrail.core.revision.revision import Role
from mailrail.kit import rpc
from mailrail.kit.publish_refusals import OTHER_HEAD, REASON_KEY, SET_BACK, STALE_EPOCH
from mailrail.pb.config.v1 import config_pb2 as pb
from mailrail.pb.config.v1 import config_pb2_grpc
from mailrail_config import metrics
from mailrail_config.app import DATABASE_ERRORS, BadRevision, Head, HeadFollower, RoleRevision, Submission, publish
from mailrail_config.settings import ConfigSettings
from mailrail_config.store import (
    ConsumerRow,
    HeadRow,
    MissingValues,
    NoSuchRevision,
    OtherHead,
    Refused,
    RevisionRow,
    RevisionStore,
    SetBack,
    StaleEpoch,
)
from mailrail_config.trial import BadTrial, TrialFailed, Trials

SERVICE = "mailrail.config.v1.ConfigService"
ALLOWED = {SERVICE: frozenset((*(role.value for role in Role), "operator", "cli"))}
_PUBLISHERS = frozenset(("operator",))
_ADMINISTRATORS = frozenset(("operator", "cli"))
_TEXT_LIMIT = 2000
_MOST_PROBLEMS, _NAME_LIMIT, _GATEWAY_LIMIT, _MESSAGE_LIMIT = 64, 255, 320, 500
_HISTORY_LIMIT = 1000

Context = grpc.aio.ServicerContext[Any, Any]


def _stamp(row: RevisionRow) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(row.created)
    return stamp


def _info(row: RevisionRow | None, head: int, pinned: bool) -> pb.RevisionInfo:
    if row is None:
        return pb.RevisionInfo()
    return pb.RevisionInfo(
        revision=row.revision,
        checksum=row.checksum,
        created=_stamp(row),
        publisher=row.publisher,
        head=row.revision == head,
        pinned=pinned and row.revision == head,
        summary=row.summary,
        diagnostics=row.diagnostics,
    )


def _consumer(row: ConsumerRow) -> pb.Consumer:
    consumer = pb.Consumer(
        process=row.process,
        role=row.role,
        revision=row.revision,
        rejected=row.rejected,
        error=row.error,
        live=row.live,
        version=row.version,
    )
    consumer.seen.FromDatetime(row.seen)
    with contextlib.suppress(DecodeError):  # a hand that wrote in the database harms no other consumer
        stored = pb.Consumer.FromString(row.problems)
        consumer.problems.extend(stored.problems)
        consumer.gateway = stored.gateway
    return consumer


def _problems(request: pb.ReportRequest) -> bytes:
    """What is stored of the problems of a report, within the bounds of the agreement, and whose they can be."""
    kept = pb.Consumer(gateway=request.gateway[:_GATEWAY_LIMIT])
    for problem in request.problems[:_MOST_PROBLEMS]:
        kept.problems.add(
            kind=problem.kind[:_NAME_LIMIT],
            namespace=problem.namespace[:_NAME_LIMIT],
            name=problem.name[:_NAME_LIMIT],
            part=problem.part[:_NAME_LIMIT],
            reason=problem.reason[:_NAME_LIMIT],
            message=problem.message[:_MESSAGE_LIMIT],
        )
    return kept.SerializeToString()


def _response(delivery: RoleRevision) -> pb.WatchResponse:
    return pb.WatchResponse(
        revision=delivery.revision,
        checksum=delivery.checksum,
        body=delivery.body,
        sealed=[pb.SealedValue(path=s.path, role=s.role, sealed=s.sealed) for s in delivery.sealed],
    )


class ConfigServicer(config_pb2_grpc.ConfigServiceServicer):
    """See the proto for what each call promises."""

    def __init__(self, settings: ConfigSettings, store: RevisionStore, follower: HeadFollower) -> None:
        self._settings, self._store, self._follower = settings, store, follower
        self._stopping = asyncio.Event()
        self._trials = Trials()

    def stop(self) -> None:
        """End every Watch stream soon, so that the server can go."""
        self._stopping.set()

    # --- who is asking ---

    async def _require(self, context: Context, roles: frozenset[str]) -> None:
        if self._settings.tls_dir is None:
            return  # plaintext is for tests: there is no proof to look at
        proven = rpc.caller_roles(context)
        if not proven & roles:
            names = ", ".join(sorted(proven)) or "without a role"
            await context.abort(
                grpc.StatusCode.PERMISSION_DENIED,
                f"only {', '.join(sorted(roles))} may call this; this caller is {names}",
            )

    async def _role(self, context: Context, role: str, process: str) -> Role:
        if not process or len(process) > 255:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "process must have 1 to 255 characters")
        try:
            known = Role(role)
        except ValueError:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, f"{role[:60]!r} is not a role; the roles are {', '.join(Role)}"
            )
        await self._require(context, frozenset((known.value,)))
        return known

    async def _abort(self, context: Context, error: Exception) -> NoReturn:
        match error:
            case StaleEpoch():
                context.set_trailing_metadata(((REASON_KEY, STALE_EPOCH),))
                await context.abort(grpc.StatusCode.ABORTED, str(error))
            case SetBack():
                context.set_trailing_metadata(((REASON_KEY, SET_BACK),))
                await context.abort(grpc.StatusCode.ABORTED, str(error))
            case OtherHead():
                context.set_trailing_metadata(((REASON_KEY, OTHER_HEAD),))
                await context.abort(grpc.StatusCode.ABORTED, str(error))
            case MissingValues():
                await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
            case NoSuchRevision():
                await context.abort(grpc.StatusCode.NOT_FOUND, str(error))
            case BadRevision():
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error)[:_TEXT_LIMIT])
            case _:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the database is unreachable; try again")

    # --- publishing ---

    async def AcquirePublisher(
        self, request: pb.AcquirePublisherRequest, context: Context
    ) -> pb.AcquirePublisherResponse:
        await self._require(context, _PUBLISHERS)
        if not request.identity or len(request.identity) > 255:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "identity must have 1 to 255 characters")
        try:
            head, info, previous = await self._store.acquire(request.identity)
        except DATABASE_ERRORS as error:
            await self._abort(context, error)
        return pb.AcquirePublisherResponse(
            epoch=head.epoch,
            head=_info(info, head.revision or 0, head.pinned),
            previous=previous,
            history=self._store.data_history.number or 0,
        )

    async def Publish(self, request: pb.PublishRequest, context: Context) -> pb.PublishResponse:
        await self._require(context, _PUBLISHERS)
        submission = Submission(
            request.epoch,
            request.expected_head,
            request.body,
            request.previous,
            request.diagnostics,
            request.summary,
            [(s.path, s.role, s.sealed) for s in request.sealed],
        )
        try:
            published = await publish(self._store, submission)
        except (BadRevision, Refused, *DATABASE_ERRORS) as error:
            await self._abort(context, error)
        return pb.PublishResponse(
            info=_info(published.row, published.head, published.pinned),
            activated=published.activated,
            unchanged=published.unchanged,
            history=published.history,
        )

    # --- watching ---

    async def Watch(self, request: pb.WatchRequest, context: Context) -> AsyncIterator[pb.WatchResponse]:
        role = await self._role(context, request.role, request.process)
        have = (request.have_revision, request.have_checksum)
        loop = asyncio.get_running_loop()
        until = loop.time() + self._settings.stream_seconds * random.uniform(0.8, 1.2)
        with metrics.WATCHERS.labels(role.value).track_inprogress():
            head = self._follower.head
            while not self._stopping.is_set():
                delivery = head.deliveries.get(role)
                if delivery is not None and have != (delivery.revision, delivery.checksum):
                    have = (delivery.revision, delivery.checksum)
                    yield _response(delivery)
                else:
                    yield pb.WatchResponse(revision=head.revision)
                if loop.time() >= until:
                    return
                head = await self._next(head)

    async def _next(self, seen: Head) -> Head:
        """Head when it moved, when the heartbeat is due, or when the process stops."""
        moved = asyncio.ensure_future(self._follower.wait(seen, self._settings.heartbeat_seconds))
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait((moved, stopping), return_when=asyncio.FIRST_COMPLETED)
            return moved.result() if moved.done() else self._follower.head
        finally:
            for task in (moved, stopping):
                task.cancel()

    async def Report(self, request: pb.ReportRequest, context: Context) -> pb.ReportResponse:
        role = await self._role(context, request.role, request.process)
        try:
            if request.leaving:
                await self._store.leave(request.process, role.value)
            else:
                await self._store.report(
                    request.process,
                    role.value,
                    request.revision,
                    request.rejected,
                    request.error[:_TEXT_LIMIT],
                    request.version[:255],
                    _problems(request),
                )
        except DATABASE_ERRORS as error:
            await self._abort(context, error)
        return pb.ReportResponse(head=self._follower.head.revision)

    # --- looking and rolling back ---

    async def _head(self, context: Context) -> HeadRow:
        try:
            return await self._store.head()
        except DATABASE_ERRORS as error:
            await self._abort(context, error)

    async def ListConsumers(self, request: pb.ListConsumersRequest, context: Context) -> pb.ListConsumersResponse:
        try:
            standing, rows = await self._store.standing(), await self._store.consumers()
        except DATABASE_ERRORS as error:
            await self._abort(context, error)
        return pb.ListConsumersResponse(
            consumers=[_consumer(row) for row in rows],
            head=standing.head,
            pinned=standing.pinned,
            pin_reason=standing.pin_reason,
            newest=standing.newest,
            newest_checksum=standing.newest_checksum,
            history=standing.history,
        )

    async def ListRevisions(self, request: pb.ListRevisionsRequest, context: Context) -> pb.ListRevisionsResponse:
        head = await self._head(context)
        try:
            rows = await self._store.history(min(request.limit or 20, _HISTORY_LIMIT))
        except DATABASE_ERRORS as error:
            await self._abort(context, error)
        return pb.ListRevisionsResponse(revisions=[_info(row, head.revision or 0, head.pinned) for row in rows])

    async def GetRevision(self, request: pb.GetRevisionRequest, context: Context) -> pb.GetRevisionResponse:
        head = await self._head(context)
        number = request.revision or head.revision or 0
        if number == 0:
            return pb.GetRevisionResponse()  # nothing was published yet
        try:
            row, body = await self._store.info(number), await self._store.body(number)
        except DATABASE_ERRORS as error:
            await self._abort(context, error)
        if row is None or body is None:
            await self._abort(context, NoSuchRevision(f"there is no revision {number}"))
        return pb.GetRevisionResponse(info=_info(row, head.revision or 0, head.pinned), body=body)

    async def Rollback(self, request: pb.RollbackRequest, context: Context) -> pb.RollbackResponse:
        await self._require(context, _ADMINISTRATORS)
        try:
            row = await self._store.roll_back(request.revision, request.reason[:_TEXT_LIMIT])
        except (Refused, *DATABASE_ERRORS) as error:
            await self._abort(context, error)
        return pb.RollbackResponse(head=_info(row, row.revision, pinned=True))

    async def Unpin(self, request: pb.UnpinRequest, context: Context) -> pb.UnpinResponse:
        await self._require(context, _ADMINISTRATORS)
        try:
            row = await self._store.unpin()
        except DATABASE_ERRORS as error:
            await self._abort(context, error)
        return pb.UnpinResponse(head=_info(row, row.revision if row is not None else 0, pinned=False))

    async def Trial(self, request: pb.TrialRequest, context: Context) -> pb.TrialResponse:
        await self._require(context, _ADMINISTRATORS)
        try:
            answer = await self._trials.run(await self._store.previous(), request.SerializeToString())
        except BadTrial as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error)[:_TEXT_LIMIT])
        except TrialFailed as error:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        except DATABASE_ERRORS as error:
            await self._abort(context, error)
        return pb.TrialResponse.FromString(answer)

    async def ListSealingKeys(self, request: pb.ListSealingKeysRequest, context: Context) -> pb.ListSealingKeysResponse:
        await self._require(context, _ADMINISTRATORS)
        try:
            keys = await self._store.keys()
        except DATABASE_ERRORS as error:
            await self._abort(context, error)
        return pb.ListSealingKeysResponse(
            keys=[pb.SealingKey(key_id=k.key_id, values=k.values, head_values=k.head_values) for k in keys]
        )
