"""One event loop in a thread, for the fakes that serve sockets while a test (plain or async) does something else."""

import asyncio
import atexit
import contextlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from typing import Any, Self, TypeVar

T = TypeVar("T")


class Background:
    """An event loop that runs in its own thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="testkit", daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, T], within: float = 60.0) -> T:
        """Run a coroutine over there and wait for its result; not to be called from that loop itself."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(within)

    def close(self) -> None:
        """End what still runs there, then the loop."""
        if self.loop.is_closed():
            return
        self.call(self._end_tasks())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5)
        self.loop.close()

    async def _end_tasks(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


_shared: Background | None = None
_guard = threading.Lock()


def background() -> Background:
    """The loop that all fakes of this process share; made at first use, ended at exit."""
    global _shared
    with _guard:
        if _shared is None:
            _shared = Background()
            atexit.register(_shared.close)
        return _shared


class Served(ABC):
    """A fake that serves on the shared loop, from its construction on. Use as a context manager, or call `close()`."""

    address: str
    port: int

    @property
    def endpoint(self) -> str:
        """`HOST:PORT`, as settings name it."""
        return f"{self.address}:{self.port}"

    def close(self) -> None:
        """Stop serving and cut what is open."""
        background().call(self._close())

    @abstractmethod
    async def _close(self) -> None:
        """The same, in the shared loop."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ServedStreams(Served):
    """One whose connections are streams: counted, kept track of, and ended with it."""

    def __init__(self) -> None:
        self.connections = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """For asyncio.start_server."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, OSError):
                await self._converse(reader, writer)
        finally:
            self._tasks.discard(task)
            writer.close()

    @abstractmethod
    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from its start to its end."""

    async def _end_connections(self) -> None:
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
