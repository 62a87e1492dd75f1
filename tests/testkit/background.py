"""One event loop in a thread, for the fakes that serve sockets while a test (plain or async) does something else."""

import asyncio
import atexit
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Background:
    """An event loop that runs in its own thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="testkit", daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, T], within: float = 10.0) -> T:
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
