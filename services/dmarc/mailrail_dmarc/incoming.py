"""Reports of others, read from the mailboxes for reports: each mail once, one at a time, off the event loop.

A look asks the queue for mail without our flag, reads each within bounds, judges it (mailrail.core.reports.receive) and
keeps what it says in one transaction; then it sets the flag. Whoever is killed in between finds the mail again, and the
report in it is known already. Two replicas may read the same mail: it counts once as well. A report that counts is
marked read; what is refused stays unread, with its reason here. No mail is ever deleted.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC
from typing import Final

import grpc
import psycopg

from mailrail.core.message.header import HEADER_LIMIT
from mailrail.core.reports.clean import clean
from mailrail.core.reports.incoming import MAIL_LIMIT
from mailrail.core.reports.receive import ReportReader, report_header
from mailrail.core.reports.unpack import ReportError
from mailrail.core.revision.revision import Revision
from mailrail.kit import clock, log
from mailrail.pb.queue.v1 import mailbox_pb2, mailbox_pb2_grpc, types_pb2
from mailrail_dmarc import metrics
from mailrail_dmarc.settings import DmarcSettings
from mailrail_dmarc.store import received as store
from mailrail_dmarc.store.connection import DATABASE_ERRORS, DmarcDatabase
from mailrail_dmarc.store.received import LookedAt, ReadOutcome

TAKEN: Final = "$ReportTaken"
"""Flag of a mail that was looked at. Without it, it is looked at again."""
REFUSED: Final = "$ReportRefused"
"""Flag of one that does not count."""
_PAGE: Final = 100
_CALL_WITHIN: Final = 30.0  # seconds for an answer of the queue
_READ_WITHIN: Final = 120.0  # seconds for a mail
_HOUR: Final = 3600.0
_SWEEP: Final = 1000  # rows that a look deletes at most
_MOST: Final = MAIL_LIMIT + HEADER_LIMIT  # octets of a mail that is fetched
_REST: Final = 600.0  # seconds for which a mail waits that could not be read, or whose sender sends too much
_RESTING: Final = 10_000
_AWAY: Final = (psycopg.OperationalError, psycopg.InterfaceError, OSError)
_QUEUE_AWAY: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
_PURPOSES: Final = (types_pb2.PURPOSE_DMARC_REPORT, types_pb2.PURPOSE_TLS_REPORT)


@dataclass(slots=True)
class Looked:
    """What a look found."""

    counted: int = 0
    again: int = 0
    refused: int = 0
    waiting: int = 0
    """Of senders that sent too many lately."""


class IncomingReports:
    """The reader of a process."""

    def __init__(
        self,
        settings: DmarcSettings,
        database: DmarcDatabase,
        queue: Callable[[], grpc.aio.Channel],
        revision: Callable[[], Revision | None],
    ) -> None:
        """`queue`: opens a channel to it; `revision`: the one in force, None before the first has come."""
        self._settings, self._database, self._queue, self._revision = settings, database, queue, revision
        self._log = log.get_logger()
        self._trouble = ""
        self._resting: dict[int, float] = {}
        """Mail that waits, and until when."""

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            trouble = ""
            try:
                await self.look()
            except grpc.aio.AioRpcError as error:
                trouble = f"the queue: {error.code().name}: {error.details()}"
            except DATABASE_ERRORS as error:
                trouble = f"Postgres: {str(error).strip()[:300]}"
            except Exception as error:  # whatever it is: the next look may do better
                trouble = f"{type(error).__name__}: {str(error)[:300]}"
            if trouble != self._trouble:
                if trouble:
                    self._log.warning("reports of others wait", reason=trouble)
                self._trouble = trouble
            await asyncio.sleep(self._settings.read_every)

    async def look(self) -> Looked:
        """Read all that is there now. Raises AioRpcError, and what DATABASE_ERRORS has."""
        looked = Looked()
        revision = self._revision()
        if revision is None or not self._settings.read:
            return looked
        reader = ReportReader(
            hostnames=tuple(gateway.hostname for gateway in revision.gateways),
            domains=tuple(domain.name for domain in revision.domains),
            any_sender=self._settings.read_any_sender,
        )
        async with self._database.connection() as connection:
            await store.forget(connection, self._settings.received_days, _SWEEP)
            room = self._settings.received_rows - await store.held(connection)
        async with self._queue() as channel:  # a new one: certificates are rotated
            stub: mailbox_pb2_grpc.MailboxServiceAsyncStub = mailbox_pb2_grpc.MailboxServiceStub(channel)
            await self._read_all(revision, _Look(stub, reader, room, looked))
        return looked

    async def _read_all(self, revision: Revision, look: "_Look") -> None:
        places = {(g.postmaster.namespace, g.postmaster.name, g.reports_mailbox) for g in revision.gateways}
        for namespace, name, path in sorted(places):
            async for message in look.untaken(f"{namespace}/{name}", path):
                await self._take(message, look)

    async def _take(self, message: mailbox_pb2.MailboxMessage, look: "_Look") -> None:
        """Read one mail."""
        if self._resting.get(message.id, 0.0) > clock.now():
            look.found.waiting += 1
            return
        mail = LookedAt(message.id, message.received.ToDatetime(tzinfo=UTC), clean(message.subject, 200), "")
        try:
            await self._judge(message, mail, look)
        except ReportError as error:
            await self._refuse(mail, str(error), look)
        except Exception as error:
            if isinstance(error, _AWAY) or (isinstance(error, grpc.aio.AioRpcError) and error.code() in _QUEUE_AWAY):
                raise
            # Whatever it is, it must not keep other reports from being read.
            self._log.error("a mail at a report address cannot be read now", mail=mail.id, reason=str(error)[:300])
            self._rest(mail.id, look)

    async def _judge(self, message: mailbox_pb2.MailboxMessage, mail: LookedAt, look: "_Look") -> None:
        if message.size > _MOST:
            raise ReportError(f"the mail has {message.size} octets; reports in more than {MAIL_LIMIT} are not read")
        octets = await look.content(message.id)
        if octets is None:
            return
        header = report_header(octets)
        by_us = message.purpose in _PURPOSES
        sender = look.reader.sender(header, by_us=by_us)
        mail.sender = sender.name
        if not by_us and await self._too_many(mail.zone):
            self._rest(mail.id, look)
            return
        # Nobody knows how long a stranger's octets take: all else goes on meanwhile.
        found = await asyncio.to_thread(look.reader.read, octets, sender, header, mail.received.timestamp())
        async with self._database.transaction() as connection:
            outcome = await store.keep(connection, mail, found, look.room)
        await look.flag(mail.id, TAKEN, "\\Seen")
        counted = outcome is ReadOutcome.COUNTED
        look.found.counted += counted
        look.found.again += not counted
        look.room -= store.rows_in(found) if counted else 0
        metrics.RECEIVED.inc(found.kind.value, "counted" if counted else "again")

    async def _refuse(self, mail: LookedAt, reason: str, look: "_Look") -> None:
        async with self._database.transaction() as connection:
            await store.refuse(connection, mail, clean(reason, 1000))
        await look.flag(mail.id, TAKEN, REFUSED)
        look.found.refused += 1
        metrics.RECEIVED.inc("unknown", "refused")
        self._log.info("a mail at a report address does not count", mail=mail.id, sender=mail.sender, reason=reason)

    def _rest(self, number: int, look: "_Look") -> None:
        """It is looked at again later."""
        look.found.waiting += 1
        if len(self._resting) >= _RESTING:
            self._resting.clear()
        self._resting[number] = clock.now() + _REST

    async def _too_many(self, zone: str) -> bool:
        """Whether a zone has sent what it may send an hour; its further mail waits."""
        most = self._settings.received_per_hour
        async with self._database.connection() as connection:
            return await store.lately(connection, zone, _HOUR, most) >= most


@dataclass(slots=True)
class _Look:
    """One look: through which stub, by which rules, and what it found so far."""

    mailbox: "mailbox_pb2_grpc.MailboxServiceAsyncStub"
    reader: ReportReader
    room: int
    """Rows that there is room for."""
    found: Looked

    async def untaken(self, account: str, path: str) -> AsyncIterator[mailbox_pb2.MailboxMessage]:
        """The mail of a mailbox that nobody has looked at."""
        token = ""
        while True:
            request = mailbox_pb2.ListMessagesRequest(
                account=account, path=path, page_size=_PAGE, page_token=token, without_flag=TAKEN
            )
            page = await self.mailbox.ListMessages(request, timeout=_CALL_WITHIN)
            for message in page.messages:
                yield message
            token = page.next_page_token
            if not token:
                return

    async def content(self, number: int) -> bytes | None:
        """A mail; None: it is gone. Nothing beyond the limit is taken."""
        octets = bytearray()
        call = self.mailbox.ReadMessage(mailbox_pb2.ReadMessageRequest(id=number), timeout=_READ_WITHIN)
        try:
            async for part in call:
                octets += part.data
                if len(octets) > _MOST:
                    break
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return None
            raise
        finally:
            with contextlib.suppress(Exception):
                call.cancel()
        return bytes(octets)

    async def flag(self, number: int, *flags: str) -> None:
        """It was looked at."""
        await self.mailbox.SetFlags(mailbox_pb2.SetFlagsRequest(ids=[number], add=flags), timeout=_CALL_WITHIN)
