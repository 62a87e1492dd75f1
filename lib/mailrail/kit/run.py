"""Start and stop of a service process: event loop, signals, settings, logs, metrics; one way for all.

A service's `__main__.main()` calls `run("queue", QueueSettings, start)`; `start(settings, stop)` runs the service until
`stop` is set and then winds down. Exit status: 0 after a clean stop, 2 for bad settings, 1 for anything else.
"""

import asyncio
import atexit
import gc
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from importlib.metadata import version
from typing import Any

from mailrail.kit import log, malloc, metrics
from mailrail.kit.settings import BadSettings, S, load

if sys.platform != "win32":  # it is not made for Windows
    import uvloop


def new_event_loop() -> asyncio.AbstractEventLoop:
    """uvloop where it exists; on Windows the selector loop, since async psycopg refuses Proactor."""
    if sys.platform != "win32":
        return uvloop.new_event_loop()
    return asyncio.SelectorEventLoop()


_CANCEL_AGAIN = 5.0  # seconds; what winds down takes less


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks until each of them has ended, however it ended.

    Once is not enough: asyncio.wait_for of Python 3.11, by which psycopg's pool waits for a connection, forgets a
    cancellation that comes together with what it waited for, and its task goes on for ever.
    """
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_CANCEL_AGAIN)
    await asyncio.gather(*tasks, return_exceptions=True)  # nobody is told that their errors were never looked at


def run(service: str, kind: type[S], start: Callable[[S, asyncio.Event], Awaitable[None]]) -> int:
    """Run a service to its end; returns the exit status."""
    leave_without_collecting()
    malloc.tune()
    try:
        settings = load(kind, service)
        if not settings.node_id:
            settings = replace(settings, node_id=f"{socket.gethostname()}-{os.getpid()}")
        log.setup(service, settings.node_id, settings.log_format, settings.log_level)
    except BadSettings as error:
        print(f"mailrail {service}: {error}", file=sys.stderr)
        return 2
    logger = log.get_logger()
    metrics.BUILD.info({"version": version("mailrail"), "service": service})

    async def whole() -> None:
        stop = asyncio.Event()
        _stop_on_signals(stop)
        _trim_regularly(asyncio.get_running_loop())
        if settings.stop_with_parent:
            _stop_on_closed_stdin(stop)
        with metrics.serve(settings.metrics_listen):
            logger.info("starting", version=version("mailrail"), pid=os.getpid())
            await start(settings, stop)
            logger.info("stopped")

    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(whole())
    except BadSettings as error:
        logger.error("cannot start", error=str(error))
        return 2
    except KeyboardInterrupt:
        return 0
    except Exception:
        logger.exception("crashed")
        return 1
    return 0


def leave_without_collecting() -> None:
    """Let the process end without a last look for garbage, which takes as long as half a second.

    The operating system takes it all back anyway, and who stops a process waits for its end.
    """
    atexit.register(gc.freeze)


def rest_collector() -> None:
    """Let the garbage collector rest; a service on the message path calls it once it is up.

    What exists by then stays, and messages are handled without reference cycles, so the collector rarely finds
    anything, and looking costs a tenth of a process's CPU (docs/benchmarks.md). Cycles that do arise go all the same,
    only later.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)


_TRIM_EVERY = 30.0
"""Seconds between two times that free memory is given back. After 2,000 bodies of 100 KiB that is 32 MiB of three
services, which would stay for as long as they run; it costs 0.1 ms when there is none, and 25 ms for 200 MiB."""


def _trim_regularly(loop: asyncio.AbstractEventLoop) -> None:
    def trim() -> None:
        malloc.trim()
        loop.call_later(_TRIM_EVERY, trim)

    loop.call_later(_TRIM_EVERY, trim)


def _stop_on_signals(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    names = ["SIGINT", "SIGTERM", "SIGBREAK"]  # SIGBREAK: Ctrl-Break on Windows, what a supervisor can send there
    for number in (getattr(signal, n) for n in names if hasattr(signal, n)):
        try:
            loop.add_signal_handler(number, stop.set)
        except NotImplementedError:
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop.set))


def _stop_on_closed_stdin(stop: asyncio.Event) -> None:
    """The parent holds our standard input open; when it dies, however it dies, the pipe closes. Portable, no pid."""
    loop = asyncio.get_running_loop()

    def wait() -> None:
        try:
            while os.read(0, 4096):
                pass
        except OSError:
            pass
        try:
            loop.call_soon_threadsafe(stop.set)
        except RuntimeError:  # the loop is closed already
            return

    threading.Thread(target=wait, name="parent", daemon=True).start()
