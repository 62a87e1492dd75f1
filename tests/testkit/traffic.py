"""A client that sends many messages through failures, and knows for each what it was told.

Every try to hand over a message carries an id of its own (header `X-Try`), so that afterwards each copy that arrived
can be laid at the door of one try: accepted ones must arrive, refused ones must not, and uncertain ones (the final
dot was sent, no answer came: LSE-08 b) may.
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum

from testkit.background import background


class Fate(Enum):
    """What the client knows about one try."""

    ACCEPTED = "accepted"  # 250 was read
    REFUSED = "refused"  # a 4yz or 5yz was read, or the final dot was never sent
    UNCERTAIN = "uncertain"  # the final dot was sent, and no answer was read


@dataclass(frozen=True)
class Try:
    """One try to hand over one message."""

    id: str
    recipients: tuple[str, ...]
    fate: Fate
    reply: str  # the last one read, or what broke
    at: float  # time.monotonic() at its end
    began: float  # likewise, before MAIL


@dataclass
class Traffic:
    """What came of it all."""

    tries: list[Try] = field(default_factory=list)
    given_up: int = 0

    def ids(self, fate: Fate) -> set[str]:
        """The ids of all tries that ended so."""
        return {one.id for one in self.tries if one.fate is fate}


class Sender:
    """Sends `messages` messages in `sessions` parallel sessions, each until it is accepted. Runs beside the test."""

    def __init__(
        self,
        address: str,
        port: int,
        *,
        messages: int,
        recipient: str,
        recipients: int = 1,
        sender: str = "source@source.test",
        sessions: int = 20,
        per_connection: int = 5,
        size: int | Callable[[int], int] = 1024,
        patience: float = 180.0,
        pace: float = 0.0,
    ) -> None:
        """`recipient` and `sender` may hold `{n}`, the message's number; `recipient` also `{k}`, its own number among
        the `recipients` of the message. `size` is in octets, perhaps by the message's number.

        `patience` is how many seconds to go on trying one message, `pace` how many a session rests after each.
        """
        self._where = (address, port)
        self._envelope = (sender, recipient)
        self._per_connection = per_connection
        self._recipients = recipients
        self._size = size if callable(size) else lambda number: size
        self._patience = patience
        self._pace = pace
        self._enough, self._begun = False, 0
        self._serial = itertools.count()
        self.messages = messages
        self._numbers = self._count()
        self.traffic = Traffic()
        self._done = asyncio.run_coroutine_threadsafe(self._run(sessions), background().loop)

    @property
    def accepted(self) -> int:
        """How many tries were accepted so far."""
        return sum(one.fate is Fate.ACCEPTED for one in list(self.traffic.tries))

    def finish(self, within: float = 300.0) -> Traffic:
        """Wait until every message is accepted (or given up after `patience`)."""
        self._done.result(within)
        return self.traffic

    def enough(self) -> None:
        """Begin no further message; those that were begun are handed over, and `messages` says how many they are."""
        background().call(self._set_enough())

    async def _set_enough(self) -> None:
        self._enough, self.messages = True, self._begun

    def _count(self) -> Iterator[int]:
        for number in range(self.messages):
            if self._enough:
                return
            self._begun = number + 1
            yield number

    def stop(self) -> None:
        """End it now."""
        self._done.cancel()

    async def _run(self, sessions: int) -> None:
        await asyncio.gather(*(self._session() for _ in range(sessions)))

    async def _session(self) -> None:
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        sent = 0
        try:
            for number in self._numbers:
                deadline = time.monotonic() + self._patience
                while True:
                    if streams is None or sent >= self._per_connection:
                        streams, sent = await self._reconnect(streams), 0
                    fate, reply = Fate.REFUSED, "no connection"
                    id_ = f"{number}-{next(self._serial)}"
                    to = tuple(self._envelope[1].format(n=number, k=k) for k in range(self._recipients))
                    began = time.monotonic()
                    if streams is not None:
                        fate, reply = await self._hand_over(*streams, number, id_, to)
                        sent += 1
                    self.traffic.tries.append(Try(id_, to, fate, reply, time.monotonic(), began))
                    if fate is Fate.ACCEPTED:
                        break
                    if fate is Fate.UNCERTAIN or not reply[:1].isdigit():
                        await self._close(streams)
                        streams = None
                    if time.monotonic() > deadline:
                        self.traffic.given_up += 1
                        break
                    await asyncio.sleep(0.1)  # what a patient client does; nothing waits for it
                if self._pace:
                    await asyncio.sleep(self._pace)
        finally:
            await self._close(streams)

    async def _reconnect(
        self, streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        await self._close(streams)
        writer = None
        try:
            async with asyncio.timeout(30):
                reader, writer = await asyncio.open_connection(*self._where)
                if not (await _reply(reader)).startswith("220"):
                    raise ConnectionError("not greeted")
                writer.write(b"EHLO source.test\r\n")
                if not (await _reply(reader)).startswith("250"):
                    raise ConnectionError("EHLO refused")
                return reader, writer
        except (OSError, EOFError, TimeoutError):
            if writer is not None:
                writer.close()
            return None

    async def _close(self, streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None) -> None:
        if streams is not None:
            streams[1].close()

    async def _hand_over(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        number: int,
        id_: str,
        recipients: tuple[str, ...],
    ) -> tuple[Fate, str]:
        sender = self._envelope[0].format(n=number)
        dot_sent = False
        reply = "nothing yet"
        try:
            async with asyncio.timeout(120):
                for command in (f"MAIL FROM:<{sender}>", *(f"RCPT TO:<{to}>" for to in recipients), "DATA"):
                    writer.write(command.encode() + b"\r\n")
                    reply = await _reply(reader)
                    if reply[0] not in "23":
                        if not reply.startswith("421"):
                            writer.write(b"RSET\r\n")
                            await _reply(reader)
                        return Fate.REFUSED, reply
                filler = ("x" * 70 + "\r\n") * (self._size(number) // 72)
                text = (
                    f"From: <{sender}>\r\nTo: <{recipients[0]}>\r\nSubject: number {number}\r\n"
                    f"Message-ID: <{id_}@source.test>\r\nX-Try: {id_}\r\n\r\n{filler}.\r\n"
                )
                writer.write(text.encode())
                dot_sent = True
                reply = await _reply(reader)
                return (Fate.ACCEPTED if reply.startswith("250") else Fate.REFUSED), reply
        except (OSError, EOFError, TimeoutError) as error:
            return (Fate.UNCERTAIN if dot_sent else Fate.REFUSED), f"broken: {error!r} after {reply}"


async def _reply(reader: asyncio.StreamReader) -> str:
    """The last line of a reply. Raises EOFError when the connection ends."""
    while True:
        line = await reader.readline()
        if not line.endswith(b"\r\n"):
            raise EOFError("connection closed")
        if line[3:4] != b"-":
            return line.decode("utf-8", "replace").rstrip("\r\n")
