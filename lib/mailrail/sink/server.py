"""A sink that listens."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Self

from mailrail.sink.answers import Answers
from mailrail.sink.message import Receive, SinkMessage
from mailrail.sink.options import Options
from mailrail.sink.session import LmtpSession, SinkSession


class Sink:
    """The server. Use it as an asynchronous context manager, or call `start` and `close`.

    `messages`, `connections` and `answers` may be looked at from other threads.
    """

    def __init__(
        self,
        options: Options | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        answers: Answers | None = None,
        receive: Receive | None = None,
    ) -> None:
        """Port 0 is one that the system gives; `port` tells it after `start`.

        `receive` gets each message before it is answered, in place of `messages`, and may raise CannotKeep.
        """
        self.options = options or Options()
        self.host = host
        self.port = port
        self.answers = answers or Answers()
        self.messages: list[SinkMessage] = []
        self._receive = receive or self.messages.append
        self.connections = 0
        """How many clients have connected so far."""
        self._open: set[SinkSession] = set()
        self._changed = asyncio.Event()
        self._server: asyncio.Server | None = None

    @property
    def open_connections(self) -> int:
        """How many clients are connected now."""
        return len(self._open)

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.get_running_loop().create_server(
            self.session,
            self.host,
            self.port,
            ssl=self.options.tls if self.options.implicit_tls else None,
            backlog=1024,
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self, within: float = 0.0) -> None:
        """Stop listening, and cut the connections that are still open `within` these seconds."""
        if self._server is not None:
            self._server.close()
        if within:
            with contextlib.suppress(TimeoutError):
                await self.until(lambda: not self._open, within)
        for session in list(self._open):
            session.cut()
        await self.until(lambda: not self._open)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def session(self) -> SinkSession:
        """A session on a transport that the caller has: an asyncio protocol."""
        return LmtpSession(self) if self.options.lmtp else SinkSession(self)

    async def until(self, condition: Callable[[], bool], within: float = 60.0) -> None:
        """Wait until the condition holds; it is looked at when a message or a connection comes, and when one ends."""
        async with asyncio.timeout(within):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    # --- what the sessions tell it ---

    def keep(self, message: SinkMessage) -> None:
        """Remember a message. Raises CannotKeep."""
        self._receive(message)
        self._changed.set()

    def add(self, session: SinkSession) -> None:
        """Count a connection. The same again after STARTTLS is no new one."""
        self.connections += session not in self._open
        self._open.add(session)
        self._changed.set()

    def remove(self, session: SinkSession) -> None:
        """Forget a connection that is gone."""
        self._open.discard(session)
        self._changed.set()
