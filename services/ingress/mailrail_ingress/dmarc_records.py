"""What ingress saw under DMARC, on its way to the dmarc service (DMRC-17).

No client waits for it: a message is counted in memory, equal ones together, and a task of its own brings batches there.
What does not fit while that service is away is dropped and counted.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import grpc

from mailrail.core.dmarc.disposition import DmarcAction
from mailrail.core.dmarc.report.facts import encode, encode_policy
from mailrail.core.dmarc.report.period import interval_hours
from mailrail.core.dmarc.reporting import reportable
from mailrail.core.message_authentication.verdict import MessageVerdict
from mailrail.kit import log, rpc
from mailrail.kit.settings import BadSettings
from mailrail.pb.dmarc.v1 import record_pb2, record_pb2_grpc
from mailrail_ingress import metrics
from mailrail_ingress.ports import RecordedRecipients
from mailrail_ingress.settings import IngressSettings

BATCH_ENTRIES: Final = 1000
"""Evaluations, and contacts, of one batch."""
_WEIGHT: Final = 400  # octets of an entry, besides its texts
_RECONNECT: Final = 1.0
_ANSWERS_WITHIN: Final = 30.0
_HOUR: Final = 3600
_DAY: Final = 24 * _HOUR


@dataclass(frozen=True, slots=True)
class _Entry:
    """What equal messages have in common."""

    policy_domain: str
    policy: bytes
    source: str
    facts: bytes
    cause: "record_pb2.Cause.ValueType"
    our_domain: str
    organization: str
    interval: int
    hour: int

    @property
    def weight(self) -> int:
        return _WEIGHT + len(self.policy) + len(self.facts) + len(self.policy_domain) + len(self.organization)


class EvaluationCounts:
    """Equal messages counted together, within a bound of memory."""

    def __init__(self, octets: int) -> None:
        """`octets`: of memory, about; 0: nothing is kept."""
        self._most = octets
        self._held = 0
        self._entries: dict[_Entry, list[float]] = {}  # → messages, when the last was seen
        self._contacts: dict[tuple[str, str, int], float] = {}  # with the day

    def __len__(self) -> int:
        return len(self._entries) + len(self._contacts)

    @property
    def octets(self) -> int:
        """Of memory, about."""
        return self._held

    def add(
        self, verdict: MessageVerdict, recipients: Iterable[RecordedRecipients], *, refused: bool, now: float
    ) -> int:
        """Count a message; how many evaluations of it found no room. `refused`: by whatever rule it was. `now`: Unix
        seconds.

        DMRC-17a: it counts whoever refused it. Without an address for reports in the record nobody would get to know.
        """
        dropped = 0
        sender = verdict.client.sender
        for to in recipients:
            told = reportable(
                verdict.dmarc,
                verdict.disposition,
                source=verdict.client.address,
                envelope_from=sender.domain if sender is not None else "",
                envelope_to=to.domain,
            )
            for one in told:
                record = one.verdict.record
                if record is None or not record.rua:
                    continue
                organization = one.verdict.organizational_domain or one.policy.domain
                entry = _Entry(
                    one.policy.domain,
                    encode_policy(one.policy),
                    one.message.source_ip,
                    encode(one.message),
                    _cause(to, refused),
                    to.domain,
                    organization,
                    interval_hours(record.ri),
                    int(now) // _HOUR,
                )
                dropped += not self._count(entry, now)
                if not refused:
                    self._contact(to.domain, organization, now)
        return dropped

    def _count(self, entry: _Entry, now: float) -> bool:
        known = self._entries.get(entry)
        if known is None:
            if self._held + entry.weight > self._most:
                return False
            self._held += entry.weight
            self._entries[entry] = [1, now]
        else:
            known[0] += 1
            known[1] = now
        return True

    def _contact(self, ours: str, other: str, now: float) -> None:
        key = (ours, other, int(now) // _DAY)
        if key in self._contacts or self._held + _WEIGHT <= self._most:
            self._held += _WEIGHT if key not in self._contacts else 0
            self._contacts[key] = now

    def take(self) -> record_pb2.RecordRequest | None:
        """A batch of the oldest, without its id; None: there is nothing."""
        if not len(self):
            return None
        batch = record_pb2.RecordRequest()
        for entry in list(self._entries)[:BATCH_ENTRIES]:
            messages, seen = self._entries.pop(entry)
            self._held -= entry.weight
            told = batch.evaluations.add(
                policy_domain=entry.policy_domain,
                policy=entry.policy,
                source_ip=entry.source,
                facts=entry.facts,
                messages=int(messages),
                cause=entry.cause,
                our_domain=entry.our_domain,
                organization=entry.organization,
                interval_hours=entry.interval,
            )
            told.seen.FromSeconds(int(seen))
        for key in list(self._contacts)[:BATCH_ENTRIES]:
            seen = self._contacts.pop(key)
            self._held -= _WEIGHT
            batch.contacts.add(our_domain=key[0], domain=key[1]).seen.FromSeconds(int(seen))
        return batch


def _cause(to: RecordedRecipients, refused: bool) -> "record_pb2.Cause.ValueType":
    if to.report_address:
        return record_pb2.CAUSE_REPORT_ADDRESS
    return record_pb2.CAUSE_REFUSED if refused else record_pb2.CAUSE_UNSPECIFIED


class DmarcRecorder:
    """Takes verdicts and brings them to the dmarc service."""

    def __init__(self, settings: IngressSettings) -> None:
        self._settings = settings
        self._counts = EvaluationCounts(settings.dmarc_octets if settings.dmarc_target else 0)
        self._batch: record_pb2.RecordRequest | None = None  # that is not acknowledged
        self._full = asyncio.Event()
        self._log = log.get_logger()

    def __len__(self) -> int:
        """Entries that dmarc has not acknowledged."""
        waiting = self._batch
        return len(self._counts) + (len(waiting.evaluations) + len(waiting.contacts) if waiting is not None else 0)

    def record(self, verdict: MessageVerdict, recipients: Iterable[RecordedRecipients], *, refused: bool) -> None:
        """Count a message that reached the end of its content and was not deferred. Never waits, never raises."""
        if not self._settings.dmarc_target or verdict.action is DmarcAction.DEFER:
            return
        try:
            dropped = self._counts.add(verdict, recipients, refused=refused, now=time.time())
        except Exception:  # a mistake of ours about one message must not cost its client the answer
            self._log.exception("unexpected error while counting a message for DMARC reports")
            dropped = 1
        metrics.EVALUATIONS_DROPPED.inc(by=dropped)
        if len(self._counts) >= BATCH_ENTRIES:
            self._full.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["DmarcRecorder"]:
        """Bring batches there while the context lasts; what is left at its end is brought within two seconds, or
        dropped."""
        if not self._settings.dmarc_target:
            yield self
            return
        task = asyncio.create_task(self._run())
        try:
            yield self
        finally:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2.0):
                    while len(self) and not task.done():
                        self._full.set()
                        await asyncio.sleep(0.05)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        said = False
        while True:
            try:
                async with rpc.channel(self._settings, self._settings.dmarc_target, "dmarc") as channel:
                    await self._stream(channel)
                said = False
            except (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError, TimeoutError) as error:
                if not said:
                    detail = error.details() if isinstance(error, grpc.aio.AioRpcError) else type(error).__name__
                    self._log.warning(
                        "the dmarc service does not answer; what is seen of mail for reports is kept in memory",
                        target=self._settings.dmarc_target,
                        error=(detail or "")[:300],
                    )
                    said = True
            except (BadSettings, OSError) as error:
                self._log.warning("cannot speak to the dmarc service", error=str(error))
            except Exception:  # whatever it is: mail goes on, and so does this
                self._log.exception("unexpected error on the way to the dmarc service")
            await asyncio.sleep(_RECONNECT)

    async def _stream(self, channel: grpc.aio.Channel) -> None:
        """One stream: a batch, its acknowledgement, the next one."""
        stub: record_pb2_grpc.RecordServiceAsyncStub = record_pb2_grpc.RecordServiceStub(channel)
        call = stub.Record()
        try:
            while True:
                if self._batch is None:
                    await self._pause()
                    self._batch = self._counts.take()
                if self._batch is None:
                    continue
                # Of its own: one that was stored before its answer was lost is counted once (record.proto).
                self._batch.batch_id = self._batch.batch_id or secrets.token_bytes(16)
                async with asyncio.timeout(_ANSWERS_WITHIN):
                    await call.write(self._batch)
                    answer = await call.read()
                if not isinstance(answer, record_pb2.RecordResponse) or answer.go_away:
                    return
                if self._batch.batch_id in answer.batch_ids:
                    self._batch = None
        finally:
            call.cancel()

    async def _pause(self) -> None:
        """Until there is enough for a batch, or some seconds have passed."""
        self._full.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.dmarc_seconds):
                await self._full.wait()
