"""The dmarc process: its parts, in the order in which they need each other."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mailrail.core.revision.revision import Role
from mailrail.kit.config_client import ConfigClient, Configuration
from mailrail.kit.run import end
from mailrail_dmarc.record import Recorder
from mailrail_dmarc.settings import DmarcSettings
from mailrail_dmarc.store.connection import DmarcDatabase, database


class DmarcProcess:
    """One dmarc process."""

    def __init__(self, settings: DmarcSettings, database: DmarcDatabase) -> None:
        self.settings = settings
        self.database = database
        self.recorder = Recorder(settings, database)
        self.configuration: Configuration | None = None
        """In force; None: none has come yet."""
        self.stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def ready(self) -> bool:
        """It takes what ingress brings."""
        return self.database.ready and not self.stopping.is_set()

    def configure(self, configuration: Configuration) -> None:
        """Take a revision."""
        self.configuration = configuration

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
        self._tasks = [asyncio.create_task(self.database.run(), name="database")]
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
