"""`mailrail top`: a live view of the queue; the picture is made in `top_view`."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated, Any, Final

import grpc
import typer

from mailrail.cli import arguments as a
from mailrail.cli import output
from mailrail.cli.connection import PLACE, ask, failure_of
from mailrail.cli.queue import SERVICE, admin_service, utc_now
from mailrail.cli.top_view import FINISHED_PAGE, SITES_PAGE, QueueLook, TopView, can_show_bars
from mailrail.kit import rpc
from mailrail.pb.queue.v1 import admin_pb2, admin_pb2_grpc

_WITHIN: Final = 10.0
"""Seconds for one call."""
_SITE_PAGES: Final = 20
"""Pages of sites that are looked at for one picture alone."""
_KEY_PAUSE: Final = 0.1  # seconds between two looks for a key, where the system does not tell of one


def top(
    once: Annotated[
        bool, typer.Option("--once", help="Print one picture and end, as it is without a terminal.")
    ] = False,
    every: Annotated[
        float, typer.Option("--every", metavar="SECONDS", min=0.1, max=3600, help="Time between two looks.")
    ] = 2.0,
    json: a.Json = False,
) -> None:
    """Watch the queue: what waits, how much is delivered and fails, the busiest sites, and what failed last.

    Rates are of the last minute, or of the last 200 recipients where they were more. Key q, or Ctrl-C, ends it. While
    the queue does not answer, the last figures stay, with the reason above them.
    """
    target = PLACE.target(SERVICE)
    view = TopView(f"queue at {target}")
    if json or once or not _has_screen():
        _once(view)
        if json:
            output.print_json(view.as_json())
        else:
            for line, _ in view.lines(utc_now()):
                output.say(line)
        return
    view.title += ", q ends it"
    with contextlib.suppress(KeyboardInterrupt):  # where signals cannot be waited for
        asyncio.run(_watch(view, target, every))


def _has_screen() -> bool:
    return sys.stdout.isatty() and not output.console().is_dumb_terminal


def _once(view: TopView) -> None:
    async def question(channel: Any) -> None:
        queue, token = admin_service(channel), ""
        for _ in range(_SITE_PAGES):
            look, token = await _look(queue, token)
            view.take(look, utc_now())
            if not token:
                return

    ask(SERVICE, question)


async def _look(queue: "admin_pb2_grpc.QueueAdminServiceAsyncStub", sites_after: str) -> tuple[QueueLook, str]:
    """What the queue says now, and where the sites go on. Raises AioRpcError."""
    stats, sites, finished = await asyncio.gather(
        queue.GetStats(admin_pb2.GetStatsRequest(), timeout=_WITHIN),
        queue.ListSites(admin_pb2.ListSitesRequest(page_size=SITES_PAGE, page_token=sites_after), timeout=_WITHIN),
        queue.ListHistory(admin_pb2.ListHistoryRequest(page_size=FINISHED_PAGE), timeout=_WITHIN),
    )
    after = sites.next_page_token
    look = QueueLook(stats, sites.sites, not after, finished.recipients, not finished.next_page_token)
    return look, after


async def _watch(view: TopView, target: str, every: float) -> None:
    """Show the queue until somebody ends it."""
    # Imported here: no other command shows a screen.
    from rich.live import Live
    from rich.text import Text

    console = output.console()
    bars = can_show_bars(sys.stdout.encoding or "ascii")

    def picture() -> Text:
        lines = view.lines(utc_now(), console.size.height, bars=bars)
        # A line that is too long ends in an ellipsis: a second one would push the last off the screen.
        return Text("\n", no_wrap=True, overflow="ellipsis", end="").join(
            Text(line, style.value) for line, style in lines
        )

    token = ""
    async with rpc.identity_channel(PLACE.identity(), target, SERVICE) as channel, _ending() as end:
        queue = admin_service(channel)
        # The other screen is drawn over from its top, without being cleared: nothing flickers.
        with Live(picture(), console=console, screen=True, auto_refresh=False) as live:
            while not end.done():
                looking = asyncio.ensure_future(_look(queue, token))
                awaited: set[asyncio.Future[Any]] = {end, looking}
                await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
                if not looking.done():
                    looking.cancel()
                    await asyncio.wait({looking})
                    return
                try:
                    look, token = looking.result()
                    view.take(look, utc_now())
                except grpc.aio.AioRpcError as error:
                    token = ""  # another process may answer next, which knows nothing of it
                    view.fail(failure_of(error, SERVICE, target)[0], utc_now())
                live.update(picture(), refresh=True)
                await asyncio.wait({end}, timeout=every)


@contextlib.asynccontextmanager
async def _ending() -> AsyncIterator["asyncio.Future[None]"]:
    """Done once somebody presses q, or ends the command by a signal. The terminal is left as it was."""
    loop = asyncio.get_running_loop()
    end: asyncio.Future[None] = loop.create_future()

    def finish() -> None:
        if not end.done():
            end.set_result(None)

    def typed(keys: bytes) -> None:
        if b"q" in keys.lower():
            finish()

    if sys.platform == "win32":  # Ctrl-C raises KeyboardInterrupt there
        watching = asyncio.ensure_future(_poll_keys(typed))
        try:
            yield end
        finally:
            watching.cancel()
    else:
        signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        for number in signals:
            loop.add_signal_handler(number, finish)
        try:
            with _keys(loop, typed):
                yield end
        finally:
            for number in signals:
                loop.remove_signal_handler(number)


@contextlib.contextmanager
def _keys(loop: asyncio.AbstractEventLoop, typed: Callable[[bytes], None]) -> Iterator[None]:
    """Tell each key as it is pressed, and do not show it."""
    if sys.platform == "win32" or not sys.stdin.isatty():  # there _poll_keys
        yield
        return
    import termios
    import tty

    terminal = sys.stdin.fileno()

    def read() -> None:
        keys = os.read(terminal, 1024)
        if not keys:  # the terminal has gone
            loop.remove_reader(terminal)
        typed(keys)

    before = termios.tcgetattr(terminal)
    tty.setcbreak(terminal)
    loop.add_reader(terminal, read)
    try:
        yield
    finally:
        loop.remove_reader(terminal)
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


async def _poll_keys(typed: Callable[[bytes], None]) -> None:
    if sys.platform == "win32":
        import msvcrt

        while True:
            while msvcrt.kbhit():
                typed(msvcrt.getch())
            await asyncio.sleep(_KEY_PAUSE)
