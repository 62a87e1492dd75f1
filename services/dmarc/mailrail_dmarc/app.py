"""The dmarc process: its parts, in the order in which they need each other."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mailrail.core.revision.revision import Revision, Role
from mailrail.kit import rpc
from mailrail.kit.config_client import ConfigClient, Configuration
from mailrail.kit.resolver import DnsResolver
from mailrail.kit.run import end
from mailrail_dmarc import metrics
from mailrail_dmarc.aggregate import PeriodFixer, ReportMaker
from mailrail_dmarc.incoming import IncomingReports
from mailrail_dmarc.queue_client import QueueClient
from mailrail_dmarc.record import Recorder
from mailrail_dmarc.reporting_gateway import reporting_gateway
from mailrail_dmarc.schedule import ReportScheduler
from mailrail_dmarc.send import ReportSender, Step, no_step
from mailrail_dmarc.settings import DmarcSettings
from mailrail_dmarc.store.connection import DmarcDatabase, database


class DmarcProcess:
    """One dmarc process."""

    def __init__(self, settings: DmarcSettings, database: DmarcDatabase, *, step: Step = no_step) -> None:
        """`step`: told of each step of sending before it is taken."""
        self.settings = settings
        self.database = database
        self.recorder = Recorder(settings, database)
        resolver = DnsResolver(
            "" if settings.resolver == "system" else settings.resolver,
            timeout=settings.dns_timeout,
            count=metrics.DNS.inc,
            system_names=False,
        )
        self.maker = ReportMaker(settings, database)
        self.sender = ReportSender(
            settings,
            database,
            QueueClient(settings),
            resolver,
            self.maker,
            holder=f"{settings.node_id}/{uuid.uuid4().hex[:12]}",
            step=step,
        )
        self.scheduler = ReportScheduler(settings, database, PeriodFixer(settings, database), self.sender)
        self.incoming = IncomingReports(
            settings, database, lambda: rpc.channel(settings, settings.queue_target, "queue"), lambda: self.revision
        )
        self.configuration: Configuration | None = None
        """In force; None: none has come yet."""
        self.stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def revision(self) -> Revision | None:
        """In force; None: none has come yet."""
        return self.configuration.revision if self.configuration is not None else None

    @property
    def ready(self) -> bool:
        """It takes what ingress brings."""
        return self.database.ready and not self.stopping.is_set()

    def configure(self, configuration: Configuration) -> None:
        """Take a revision."""
        self.configuration = configuration
        self.scheduler.configure(reporting_gateway(configuration.revision, configuration.number))

    def check(self) -> None:
        """Raises what ended a part that is not to end."""
        for task in self._tasks:
            if task.done():
                task.result()

    def stop(self) -> None:
        """Streams end; what runs is finished."""
        self.stopping.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """All that goes on by itself, while the context lasts."""
        self._tasks = [
            asyncio.create_task(self.database.run(), name="database"),
            asyncio.create_task(self.incoming.run(), name="reports of others"),
        ]
        if self.settings.schedule:
            self._tasks.append(asyncio.create_task(self.scheduler.run(), name="scheduler"))
        try:
            yield
        finally:
            self.stop()
            await end(*self._tasks)


@asynccontextmanager
async def serving(settings: DmarcSettings) -> AsyncIterator[DmarcProcess]:
    """A process while the context lasts. Raises BadSettings."""
    async with database(settings) as found:
        process = DmarcProcess(settings, found)
        config = ConfigClient(settings, Role.DMARC, process.configure)
        async with config.running(), process.running():
            yield process
