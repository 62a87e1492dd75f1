"""One report from its fixed period to the queue, so that a kill at any step makes neither none nor two of it.

    record and destinations asked anew (DAGG-19) ─► report made ─► a row for each address, with the id of its mail
    ─► for each: `tried` is stored ─► the queue has it ─► `queued` is stored ─► all done: rows deleted

What is `tried` and not `queued` when somebody takes the report up is asked after under its id, in the queue and in its
history; the same question bars the id. So only what the queue never had is sent again, under a new id.
"""

import asyncio
import contextlib
import os
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final

from mailrail.core.dmarc.discovery import Discoverer
from mailrail.core.dmarc.report.build import AggregateForm
from mailrail.core.dmarc.report.recipients import ReportRecipients, report_recipients
from mailrail.core.dmarc.walk import RecordAt, record_at
from mailrail.core.ids import message_id
from mailrail.core.reports.addresses import MailDestination
from mailrail.core.reports.mail import ReportMail, report_mail, too_large_mail
from mailrail.core.smtp.address import parse_address
from mailrail.kit import log
from mailrail.kit.dns_questions import ask_dns
from mailrail.kit.resolver import DnsResolver
from mailrail_dmarc import metrics
from mailrail_dmarc.aggregate import ReportMaker, ReportSubmitter, TooLarge, name_of
from mailrail_dmarc.queue_client import OutgoingMail, QueueClient, QueueUnavailable, SubmitAnswer
from mailrail_dmarc.reporting_gateway import NoSuchRecipient
from mailrail_dmarc.settings import DmarcSettings
from mailrail_dmarc.store import reports as store
from mailrail_dmarc.store.connection import DmarcDatabase
from mailrail_dmarc.store.reports import MailState, ReportState, StoredMail, StoredReport

HELD_FOR: Final = 300.0
"""Seconds after which another process takes up a report whose process is gone."""
_QUESTIONS: Final = 200
"""Of the DNS, for one report."""
_AGAIN_DNS: Final = 3600.0
"""Seconds until what the DNS did not answer is asked again."""
_AGAIN_QUEUE: Final = 300.0

Envelope = Callable[[ReportMail, str, str], OutgoingMail]
"""Puts a report into its envelope, with its Message-ID and subject. Raises NoSuchRecipient."""
Step = Callable[[str], Awaitable[None]]
"""Told of each step before it is taken; tests end the process there."""


async def no_step(_step: str) -> None:
    """Nothing happens."""


def _new_id() -> uuid.UUID:
    return uuid.UUID(bytes=message_id(time.time(), os.urandom(10)))


class Stopped(Exception):
    """Another process has the report."""


@dataclass(frozen=True, slots=True)
class _Later:
    """It is tried again."""

    reason: str
    """A label of mailrail_dmarc_report_put_off."""
    text: str
    seconds: float


@dataclass(frozen=True, slots=True)
class _Done:
    """It is done."""

    state: ReportState
    detail: str


_RESULTS: Final = {
    ReportState.SENT: "sent",
    ReportState.NOBODY: "nobody",
    ReportState.FAILED: "failed",
    ReportState.EXPIRED: "expired",
}
_MAIL_RESULTS: Final = {
    MailState.QUEUED: "queued",
    MailState.SUPPRESSED: "suppressed",
    MailState.TOO_LARGE: "too_large",
    MailState.REFUSED: "refused",
}


class ReportSender:
    """Sends reports whose periods are fixed."""

    def __init__(
        self,
        settings: DmarcSettings,
        database: DmarcDatabase,
        queue: QueueClient,
        resolver: DnsResolver,
        maker: ReportMaker,
        *,
        holder: str,
        held_for: float = HELD_FOR,
        step: Step = no_step,
    ) -> None:
        """`holder`: a name for this run of the process."""
        self._settings = settings
        self._database = database
        self._queue = queue
        self._resolver = resolver
        self._maker = maker
        self._holder = holder
        self._held_for = held_for
        self._step = step
        self._log = log.get_logger()

    async def send_next(
        self, submitter: ReportSubmitter | None, envelope: Envelope, domain: str = ""
    ) -> StoredReport | None:
        """Work on the report that is due for longest; None: none is due. `submitter` None: who sends it has neither a
        signing key nor an SPF pass. Raises what DATABASE_ERRORS has."""
        async with self._database.transaction() as connection:
            report = await store.take(connection, self._holder, self._held_for, domain)
        if report is None:
            return None
        with contextlib.suppress(Stopped):
            async with self._holding(report):
                try:
                    result = await self._sent(report, submitter, envelope)
                except QueueUnavailable as error:
                    result = _Later("queue", f"the queue does not take it: {error}", _AGAIN_QUEUE)
                await self._end(report, result)
        return report

    @asynccontextmanager
    async def _holding(self, report: StoredReport) -> AsyncIterator[None]:
        """Nobody else takes it up meanwhile, however long it takes."""

        async def hold() -> None:
            while True:
                await asyncio.sleep(self._held_for / 5)
                with contextlib.suppress(Exception):  # Postgres may be away for a while
                    async with self._database.connection() as connection:
                        await store.hold(connection, report, self._holder, self._held_for)

        task = asyncio.create_task(hold())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _end(self, report: StoredReport, result: _Later | _Done) -> None:
        if isinstance(result, _Later):
            old = time.time() - report.period.seconds[1] > self._settings.keep_days * 86400
            if not old:
                metrics.REPORT_TROUBLE.inc(result.reason)
                self._log.info("report put off", domain=report.domain, reason=result.text)
                async with self._database.connection() as connection:
                    await store.put_off(connection, report, self._holder, result.seconds, result.text)
                return
            result = _Done(ReportState.EXPIRED, result.text)
        await self._step("finish")
        async with self._database.transaction() as connection:
            done = await store.finish(connection, report, self._holder, result.state, result.detail)
        if done:
            metrics.REPORTS.inc(_RESULTS[result.state])
            self._log.info(
                "report done", domain=report.domain, state=_RESULTS[result.state], detail=result.detail[:300]
            )

    async def _sent(
        self, report: StoredReport, submitter: ReportSubmitter | None, envelope: Envelope
    ) -> _Later | _Done:
        if submitter is None:
            # DAGG-10: the receiver would take it for forged, and with reason.
            text = "the From of reports has neither a signing key nor an SPF pass; see `mailrail dmarc sent`"
            return _Later("sender", text, _AGAIN_DNS)
        # Once an address has it, the report keeps its name, and so its id.
        report = replace(report, submitter=report.submitter or submitter.domain)
        if submitter.domain != report.submitter:
            contact = parse_address(f"postmaster@{report.submitter}")
            submitter = replace(submitter, domain=report.submitter, contact=contact)
        found = await self._destinations(report.domain)
        if not isinstance(found, ReportRecipients):
            return found
        async with self._database.connection() as connection:
            known = {mail.address: mail for mail in await store.mails(connection, report)}
        ready = await self._prepared(report, submitter, found, known)
        if isinstance(ready, _Done):
            return ready
        later: _Later | None = None
        for mail in ready.mails:
            later = await self._mailed(report, mail, ready, submitter, envelope) or later
        if later is not None:
            return later
        if found.trouble:
            return _Later("dns", "the DNS did not answer whether all of its addresses want reports", _AGAIN_DNS)
        async with self._database.connection() as connection:
            states = [mail.state for mail in await store.mails(connection, report)]
        queued = states.count(MailState.QUEUED)
        told = [f"{each.uri}: {each.reason}" for each in found.left_out]
        if queued:
            return _Done(ReportState.SENT, "; ".join((f"{queued} of {len(states)} addresses", *told))[:2000])
        refused = MailState.REFUSED in states
        text = "; ".join(("no address is to get it", *told))[:2000]
        return _Done(ReportState.FAILED if refused else ReportState.NOBODY, text)

    async def _destinations(self, domain: str) -> ReportRecipients | _Later | _Done:
        """DAGG-19: the record and who gets the report are asked for when it is sent."""
        seconds = self._settings.dns_timeout
        at: RecordAt = await ask_dns(record_at(domain), self._resolver, seconds=seconds, questions=_QUESTIONS)
        if at.trouble is not None:
            return _Later("dns", f"the DNS did not answer for the record of {domain}: {at.trouble}"[:500], _AGAIN_DNS)
        if at.record is None:
            # A day of data goes with it, so somebody has to be able to see that (reference H40).
            return _Done(ReportState.NOBODY, f"{domain} has no DMARC record any more, or several")
        asking = report_recipients(domain, at.record, Discoverer())
        return await ask_dns(asking, self._resolver, seconds=seconds, questions=_QUESTIONS)

    async def _prepared(
        self,
        report: StoredReport,
        submitter: ReportSubmitter,
        found: ReportRecipients,
        known: dict[str, StoredMail],
    ) -> "_Ready | _Done":
        """The report in each form that somebody wants, and a stored row for each address."""
        forms = {str(each.address): self._form(each) for each in found.addresses}
        for address in known:
            forms.setdefault(address, self._form(MailDestination(parse_address(address))))
        errors = tuple(f"{each.uri}: {each.reason}" for each in found.left_out)
        packed: dict[AggregateForm, bytes] = {}
        for form in sorted(set(forms.values())):
            try:
                octets = await self._maker.packed(report, submitter, errors, form)
            except TooLarge as error:
                return _Done(ReportState.FAILED, str(error))
            if octets is None:
                return _Done(ReportState.NOBODY, "nothing was counted")  # DAGG-03
            packed[form] = octets
        if not forms:
            return _Ready((), forms, packed)
        await self._step("store addresses")
        async with self._database.transaction() as connection:
            silent = await store.suppressed(connection, [str(each.address) for each in found.addresses])
            new: list[StoredMail] = []
            for each in found.addresses:
                address = str(each.address)
                mail = StoredMail(address, _new_id())
                if address in silent:
                    mail = replace(mail, state=MailState.SUPPRESSED, detail="it is on the list of suppressed addresses")
                elif self._too_large(each, packed[forms[address]], submitter, report):
                    mail = replace(mail, state=MailState.TOO_LARGE, detail=f"it takes {each.limit} octets")
                new.append(mail)
            # Only where sizes alone are why nobody gets it (reference H36).
            wanted = [mail for mail in new if mail.state is not MailState.SUPPRESSED]
            if wanted and not known and all(mail.state is MailState.TOO_LARGE for mail in wanted):
                small = {mail.address for mail in wanted}
                new = [
                    replace(mail, state=MailState.OPEN, notice=True) if mail.address in small else mail for mail in new
                ]
            await store.set_submitter(connection, report)
            await store.add_mails(connection, report, new)
            stored = await store.mails(connection, report)
        for mail in stored:
            if mail.address not in known and mail.state is not MailState.OPEN:
                metrics.REPORT_MAILS.inc(_MAIL_RESULTS[mail.state])
        return _Ready(tuple(mail for mail in stored if mail.state is MailState.OPEN), forms, packed)

    def _form(self, destination: MailDestination) -> AggregateForm:
        if destination.address.domain in self._settings.form_7489:
            return AggregateForm.RFC7489
        return AggregateForm(self._settings.form)

    def _too_large(self, to: MailDestination, packed: bytes, submitter: ReportSubmitter, report: StoredReport) -> bool:
        """DAGG-12: RFC 9989 ignores the limit; where it is kept, the whole mail counts."""
        if to.limit is None or not self._settings.honour_sizes:
            return False
        made = report_mail(
            name_of(report), packed, submitter.contact, to.address, message_id=f"<x@{submitter.domain}>", now=0
        )
        return len(made.content) > to.limit

    async def _mailed(
        self, report: StoredReport, mail: StoredMail, ready: "_Ready", submitter: ReportSubmitter, envelope: Envelope
    ) -> _Later | None:
        """DAGG-11b: each address in turn; what goes wrong with one keeps none from the others (reference H37)."""
        if mail.tried:
            await self._step("ask")
            if await self._queue.find(mail.message_id.bytes):
                await self._end_mail(report, mail, MailState.QUEUED, "the queue had it")
                return None
        try:
            made = self._mail(report, mail, ready, submitter, envelope)
        except NoSuchRecipient as error:
            await self._end_mail(report, mail, MailState.REFUSED, str(error))
            return None
        # An id that was asked after is barred, and one that was never tried is as good as new.
        new_id = _new_id() if mail.tried else mail.message_id
        await self._step("try")
        async with self._database.connection() as connection:
            if not await store.try_mail(connection, report, self._holder, mail, new_id):
                raise Stopped
        await self._step("submit")
        if new_id != mail.message_id:
            made = self._mail(report, replace(mail, message_id=new_id), ready, submitter, envelope)
        answer: SubmitAnswer = await self._queue.submit(new_id.bytes, made)
        await self._step("submitted")
        if answer.accepted:
            await self._end_mail(report, mail, MailState.QUEUED, "")
            return None
        if answer.permanent:
            await self._end_mail(report, mail, MailState.REFUSED, answer.text)
            return None
        return _Later("queue", f"the queue does not take it: {answer.text}", _AGAIN_QUEUE)

    def _mail(
        self, report: StoredReport, mail: StoredMail, ready: "_Ready", submitter: ReportSubmitter, envelope: Envelope
    ) -> OutgoingMail:
        """Raises NoSuchRecipient."""
        name, to = name_of(report), parse_address(mail.address)
        header_id = f"<{mail.message_id}@{submitter.domain}>"
        packed = ready.packed[ready.forms[mail.address]]
        make = too_large_mail if mail.notice else report_mail
        made = make(name, packed, submitter.contact, to, message_id=header_id, now=time.time())
        return envelope(made, header_id, name.subject)

    async def _end_mail(self, report: StoredReport, mail: StoredMail, state: MailState, detail: str) -> None:
        await self._step("store outcome")
        async with self._database.connection() as connection:
            await store.end_mail(connection, report, mail.address, state, detail)
        metrics.REPORT_MAILS.inc(_MAIL_RESULTS[state])


@dataclass(frozen=True, slots=True)
class _Ready:
    """What is left to do for a report."""

    mails: Sequence[StoredMail]
    forms: dict[str, AggregateForm]
    packed: dict[AggregateForm, bytes]
