"""Batches of what ingress saw: read, checked, counted in one transaction each, acknowledged (DMRC-17)."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import psycopg

from mailrail.core.dmarc.report.facts import decode, decode_policy
from mailrail.core.dmarc.report.period import known_interval
from mailrail.kit import clock, log
from mailrail.pb.dmarc.v1 import record_pb2
from mailrail_dmarc import metrics
from mailrail_dmarc.settings import DmarcSettings
from mailrail_dmarc.store import evaluations as store
from mailrail_dmarc.store.connection import DmarcDatabase
from mailrail_dmarc.store.evaluations import Counted, Evaluation, MailContact, RecordRoom, ReportCause

ENTRIES_LIMIT: Final = 2000
"""Of a batch; what comes beyond is refused."""
FACTS_LIMIT: Final = 64 * 1024
"""Octets of facts, and of a policy."""
_NAME_LIMIT: Final = 255
_HELD_AGAIN: Final = 20.0
"""Seconds for which it is believed how much is kept."""
_CAUSES: Final = {
    record_pb2.CAUSE_UNSPECIFIED: ReportCause.REQUIRED,
    record_pb2.CAUSE_REPORT_ADDRESS: ReportCause.REPORT_ADDRESS,
    record_pb2.CAUSE_REFUSED: ReportCause.REFUSED,
}


class BatchUnreadable(ValueError):
    """A batch has no id that can be acknowledged."""


class Recorder:
    """Stores batches."""

    def __init__(self, settings: DmarcSettings, database: DmarcDatabase) -> None:
        self._settings = settings
        self._database = database
        self._room = RecordRoom(zone_records=settings.zone_records)
        self._room_until = -1.0  # by kit.clock
        self._log = log.get_logger()

    async def record(self, request: record_pb2.RecordRequest, now: datetime) -> bytes:
        """Store a batch; its id, once that is durable. Raises BatchUnreadable, and what DATABASE_ERRORS has."""
        if len(request.batch_id) != 16:
            raise BatchUnreadable("the id of a batch has 16 octets")
        if not self._settings.reports:
            metrics.EVALUATIONS.inc("off", by=_messages(request.evaluations))
            return request.batch_id
        taken = request.evaluations[:ENTRIES_LIMIT]
        evaluations = [each for told in taken if (each := read_evaluation(told, now)) is not None]
        others = request.contacts[:ENTRIES_LIMIT]
        contacts = [contact for told in others if (contact := read_contact(told, now)) is not None]
        try:
            counted = await self._store(UUID(bytes=request.batch_id), evaluations, contacts)
        except (psycopg.DataError, psycopg.IntegrityError) as error:
            # It would fail at each further try, and keep all that comes after it waiting.
            self._log.error("a batch of evaluations cannot be stored, and is left out", error=str(error)[:300])
            metrics.EVALUATIONS.inc("refused", by=_messages(request.evaluations))
            return request.batch_id
        if not counted.again:
            read = sum(each.messages for each in evaluations)
            metrics.EVALUATIONS.inc("stored", by=counted.stored)
            metrics.EVALUATIONS.inc("dropped", by=counted.dropped)
            metrics.EVALUATIONS.inc("refused", by=_messages(request.evaluations) - read)
        return request.batch_id

    async def _store(self, batch: UUID, evaluations: list[Evaluation], contacts: list[MailContact]) -> Counted:
        most = self._settings.records
        async with self._database.transaction() as connection:
            if clock.now() >= self._room_until:
                held = await store.held(connection, most)
                self._room = RecordRoom(held.records < most, held.contacts <= most, self._settings.zone_records)
                self._room_until = clock.now() + _HELD_AGAIN
            return await store.record(connection, batch, evaluations, contacts, self._room)


def _messages(evaluations: Iterable[record_pb2.Evaluation]) -> int:
    return sum(each.messages for each in evaluations)


def read_evaluation(told: record_pb2.Evaluation, now: datetime) -> Evaluation | None:
    """An evaluation as it is stored; None: it cannot be read, and is left out.

    A caller's clock may be ahead: what lies in the future would be in no report before it.
    """
    cause = _CAUSES.get(told.cause)
    domains = (told.policy_domain, told.our_domain, told.organization)
    if cause is None or not told.messages or not told.policy_domain or any(map(_unfit, domains)):
        return None
    if len(told.facts) > FACTS_LIMIT or len(told.policy) > FACTS_LIMIT:
        return None
    try:
        message = decode(told.source_ip, told.facts)
        decode_policy(told.policy_domain, told.policy)
    except (ValueError, RecursionError):
        return None
    return Evaluation(
        told.policy_domain,
        told.policy,
        message.source_ip,
        told.facts,
        _moment(told.seen.seconds, now),
        told.messages,
        cause,
        told.our_domain,
        told.organization,
        known_interval(told.interval_hours),
    )


def read_contact(told: record_pb2.Contact, now: datetime) -> MailContact | None:
    """The same for a contact."""
    if not told.our_domain or not told.domain or _unfit(told.our_domain) or _unfit(told.domain):
        return None
    return MailContact(told.our_domain, told.domain, _moment(told.seen.seconds, now).date())


def _unfit(domain: str) -> bool:
    """It is no domain as we write them."""
    return len(domain) > _NAME_LIMIT or not domain.isascii() or not domain.isprintable() or domain != domain.lower()


def _moment(seconds: int, now: datetime) -> datetime:
    return datetime.fromtimestamp(max(0, min(seconds, int(now.timestamp()))), UTC)
