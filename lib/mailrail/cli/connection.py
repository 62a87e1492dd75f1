"""Reaching the services: where they are, who we are, and what to say when nobody answers.

By default STATE/client.json, which `mailrail local` writes, says where each service is and which certificate to show.
`--server` (MAILRAIL_SERVER) names another place: HOST:PORT for the service that the command speaks to, or a list
`queue=HOST:PORT,config=HOST:PORT`; then `--tls-dir` (MAILRAIL_TLS_DIR) names a folder with tls.crt, tls.key and ca.crt.
"""

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import grpc

from mailrail.cli.output import REFUSED, UNREACHABLE, USAGE, stop
from mailrail.kit import rpc
from mailrail.kit.settings import BadSettings, host_port
from mailrail.local.state import Client, NoInstallation, StateFolder, default_state

T = TypeVar("T")

TIMEOUT = 30.0  # seconds for one call
CHANGE_TIMEOUT = 3600.0  # for a change, which may meet every recipient of a queue of millions; half of it helps nobody


@dataclass
class ServiceLocation:
    """Where the command line was told to look; filled by the options before the subcommand."""

    state: Path | None = None
    server: str | None = None
    tls_dir: Path | None = None

    def target(self, service: str) -> str:
        """HOST:PORT of a service. Ends the command when nobody said."""
        if self.server:
            parts = dict(p.split("=", 1) for p in self.server.split(",") if "=" in p)
            target = parts.get(service, "") if parts else self.server
            if not target:
                stop(f"--server lacks the address of {service}; add {service}=HOST:PORT", USAGE)
            try:
                host_port(target)
            except BadSettings as error:
                stop(f"--server {error}", USAGE)
            return target
        targets = self._state().targets
        if service not in targets:
            stop(f"the installation in {self.state or default_state()} does not run {service}", REFUSED)
        return targets[service]

    def is_known(self) -> bool:
        """Whether there is an installation that can be asked."""
        if self.server:
            return True
        try:
            StateFolder(self.state or default_state()).read_client()
        except NoInstallation:
            return False
        return True

    def knows(self, service: str) -> bool:
        """Whether something was said of this service; of one HOST:PORT alone it is not known which service it is."""
        if self.server:
            return any(part.startswith(f"{service}=") for part in self.server.split(","))
        return self.is_known() and service in self._state().targets

    def identity(self) -> rpc.Identity:
        """The certificate to show. Ends the command when there is none."""
        if self.tls_dir is not None:
            folder = self.tls_dir
        elif self.server:
            stop("--server needs --tls-dir, too: a folder with tls.crt, tls.key and ca.crt", USAGE)
        else:
            folder = Path(self._state().tls_dir)
        try:
            return rpc.Identity.read(folder)
        except BadSettings as error:
            stop(str(error), UNREACHABLE)

    def _state(self) -> Client:
        try:
            return StateFolder(self.state or default_state()).read_client()
        except NoInstallation as error:
            stop(str(error), UNREACHABLE)


PLACE = ServiceLocation()
"""What the options before the subcommand said."""


def ask(service: str, question: Callable[[Any], Coroutine[Any, Any, T]], *, doing: str = "") -> T:
    """Open a channel to a service, run `question` with it, and answer its result.

    `doing`: for calls that may take long, what is shown meanwhile on a terminal. Ends the command with a sentence and
    an exit status when the service is out of reach or says no.
    """
    target, identity = PLACE.target(service), PLACE.identity()

    async def run() -> T:
        async with rpc.identity_channel(identity, target, service) as channel:
            return await question(channel)

    try:
        with _shown(doing):
            return asyncio.run(run())
    except grpc.aio.AioRpcError as error:
        explain_failure(error, service, target)
    except KeyboardInterrupt:
        stop("interrupted", REFUSED)


def _shown(doing: str) -> contextlib.AbstractContextManager[object]:
    """A line on a terminal that tells what is done and for how long; it goes when it is done."""
    if not doing or not sys.stderr.isatty():
        return contextlib.nullcontext()
    # Imported here: most commands are done before it would be loaded.
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    shown = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    shown.add_task(doing, total=None)
    return shown


def explain_failure(error: grpc.aio.AioRpcError, service: str, target: str) -> NoReturn:
    """End the command with what a failed call means for who typed it."""
    stop(*failure_of(error, service, target))


def failure_of(error: grpc.aio.AioRpcError, service: str, target: str) -> tuple[str, int]:
    """What a failed call means for who typed the command, and the exit status."""
    details = error.details() or ""
    match error.code():
        case grpc.StatusCode.UNAVAILABLE if PLACE.server:
            return f"{service} at {target} does not answer: {_short(details)}", UNREACHABLE
        case grpc.StatusCode.UNAVAILABLE:
            # A service that is there says of what it waits; a channel that finds none, that it cannot connect.
            said = f" ({_short(details)})" if details else ""
            return f"{service} at {target} does not answer{said}: is `mailrail local` still running?", UNREACHABLE
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"{service} at {target} did not answer in time; try again, or look at its log", UNREACHABLE
        case grpc.StatusCode.INVALID_ARGUMENT:
            return details or "invalid request", USAGE
        case grpc.StatusCode.UNIMPLEMENTED:
            return f"{service} at {target} lacks this call: it runs another version than this command", REFUSED
        case code:
            return details or code.name.lower().replace("_", " "), REFUSED


def _short(details: str) -> str:
    return details.splitlines()[0][:200] if details else "no connection"


async def pages(
    fetch: Callable[[int, str], Awaitable[tuple[list[T], str]]], limit: int, *, page: int = 500
) -> tuple[list[T], bool]:
    """Up to `limit` items (0 = all) of a paged list, and whether there are more. `fetch(size, token)` gets one page."""
    found: list[T] = []
    token = ""
    while True:
        size = page if limit == 0 else min(page, limit - len(found))
        items, token = await fetch(size, token)
        found += items
        if not token or (limit and len(found) >= limit):
            return (found[:limit] if limit else found), bool(token)
