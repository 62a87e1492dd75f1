"""The HTTP server: a bounded number of connections, each for one request and for a few seconds."""

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from mailrail.core.mtasts.own import own_policies
from mailrail.core.mtasts.policy import Policy
from mailrail.core.revision.revision import Revision
from mailrail.kit import log, metrics
from mailrail.kit.run import end
from mailrail.kit.settings import BadSettings, host_port
from mailrail_policy.answers import HEAD_LIMIT, answer
from mailrail_policy.metrics import REQUESTS
from mailrail_policy.settings import PolicySettings

_REST: Final = 0.1  # seconds after the system refused a connection
_FAREWELL: Final = 2.0  # seconds for the last octets, and for the other side to close its TLS


class PolicyServer:
    """Answers with the policies of the revision that it was given last."""

    def __init__(self, settings: PolicySettings) -> None:
        self._settings = settings
        self._policies: Mapping[str, Policy] | None = None
        self._open: dict[asyncio.Task[None], None] = {}  # in the order in which they came
        self._context: ssl.SSLContext | None = None
        self._seen: tuple[int, ...] = ()
        self.port = 0
        """The port that it listens on."""

    def take(self, revision: Revision) -> None:
        """Serve the policies of this revision from now on."""
        self._policies = own_policies(revision)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["PolicyServer"]:
        """Serve while the context lasts. Raises BadSettings."""
        folder = self._settings.certificate_dir
        if folder is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.minimum_version = ssl.TLSVersion.TLSv1_2
            self._load(self._context, folder)
        try:
            listening = _listening(*host_port(self._settings.listen))
        except OSError as error:
            raise BadSettings(f"MAILRAIL_POLICY_LISTEN={self._settings.listen}: {error.strerror or error}") from error
        self.port = listening.getsockname()[1]
        tasks = [asyncio.create_task(self._accept(listening))]
        if self._context is not None and folder is not None:
            tasks.append(asyncio.create_task(self._look(self._context, folder)))
        try:
            yield self
        finally:
            await end(*tasks)
            listening.close()
            if self._open:
                await asyncio.wait(list(self._open), timeout=self._settings.stop_grace)
            await end(*self._open)

    # --- connections --------------------------------------------------------------------------------------------

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = await loop.sock_accept(listening)
            except OSError:  # no files are left, or it is gone again
                await asyncio.sleep(_REST)
                continue
            if len(self._open) >= self._settings.connections:
                # Who came last may have a request; who has waited for longest has not sent one.
                oldest = next(iter(self._open))
                del self._open[oldest]
                oldest.cancel()
            task = asyncio.create_task(self._serve(accepted))
            self._open[task] = None
            task.add_done_callback(lambda done: self._open.pop(done, None))

    async def _serve(self, accepted: socket.socket) -> None:
        """One connection, from before its handshake on: that is in its time, too."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=HEAD_LIMIT)
        protocol = asyncio.StreamReaderProtocol(reader)
        writer: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(self._settings.request_timeout):
                transport, _ = await loop.connect_accepted_socket(lambda: protocol, accepted, ssl=self._context)
                writer = asyncio.StreamWriter(transport, protocol, reader, loop)
                await self._answer(reader, writer)
        except (TimeoutError, asyncio.CancelledError):
            REQUESTS.inc("ended")
        except (OSError, asyncio.IncompleteReadError):
            pass  # it went away, or speaks no TLS
        finally:
            if writer is not None:
                writer.transport.abort()
            else:
                accepted.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n"))[:-4]
        except asyncio.LimitOverrunError:
            head = b""  # longer than any request is: answered as none
        made = answer(head, self._policies, time.time())
        REQUESTS.inc(made.result)
        writer.write(made.octets)
        writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_FAREWELL):
                await writer.wait_closed()

    # --- certificate --------------------------------------------------------------------------------------------

    def _load(self, context: ssl.SSLContext, folder: Path) -> None:
        """Raises BadSettings."""
        self._seen = _stamp(folder)
        try:
            context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
            metrics.certificates("policy", [(folder / "tls.crt").read_bytes()])
        except OSError as error:  # ssl.SSLError is one
            raise BadSettings(f"cannot use the certificate of policy hosts in {folder}: {error}") from error

    async def _look(self, context: ssl.SSLContext, folder: Path) -> None:
        """Take a renewed certificate up, for connections from now on."""
        while True:
            await asyncio.sleep(self._settings.look_seconds)
            if _stamp(folder) == self._seen:
                continue
            try:
                # Into one of its own first: half of a renewal must not take the place of what works.
                self._load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), folder)
                self._load(context, folder)
            except BadSettings as error:
                log.get_logger().warning("the certificate stays as it was", reason=str(error))


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens there; at [::] for both families. Raises OSError."""
    both = host == "::" and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.create_server((host, port), family=family, backlog=128, dualstack_ipv6=both)
    made.setblocking(False)
    return made


def _stamp(folder: Path) -> tuple[int, ...]:
    try:
        return tuple((folder / name).stat().st_mtime_ns for name in ("tls.crt", "tls.key"))
    except OSError:
        return ()
