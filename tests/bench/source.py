"""`python -m bench.source`: the generator of what smtp-source cannot do: STARTTLS, mixed sizes, a steady rate, times.

Like smtp-source it waits for each reply before it goes on. So many sessions at a time send all messages; or, with
`--rate`, each message begins at its time on a connection of its own, however long earlier ones take.

At its end it writes JSON: `started`, `ended` (seconds of CLOCK_MONOTONIC, which all processes share), `accepted`,
`refused`, `cpu_ms` (its own, from the first connection on), `replies` (what was said to those refused, each once); with
`--times` also `times`: of each message [number, begun, seconds until its 250 or null].
"""

import argparse
import asyncio
import json
import random
import resource
import ssl
import sys
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from mailrail.kit.run import new_event_loop

_LINE = b"x" * 76 + b"\r\n"


def sizes_of(mix: Sequence[tuple[int, int]], count: int) -> list[int]:
    """A size in octets for each of so many messages, by weight: [(octets, weight)]. The same at each call."""
    dice = random.Random(20261130)
    return dice.choices([size for size, _ in mix], [weight for _, weight in mix], k=count)


def content(size: int) -> bytes:
    """Header, text and final dot: about so many octets."""
    head = b"From: <source@source.test>\r\nTo: <sink@sink.test>\r\nSubject: bench\r\n\r\n"
    return head + _LINE * max(1, (size - len(head)) // len(_LINE)) + b".\r\n"


@dataclass
class Run:
    """What is sent and what came of it."""

    address: tuple[str, int]
    sizes: list[int]
    recipients: int = 1
    reuse: bool = False
    tls: ssl.SSLContext | None = None
    sender: str = "source@source.test"
    recipient: str = "sink@sink.test"
    numbered: bool = False
    local: tuple[str, int] | None = None
    domains: int = 0
    """Where it is not 0: the recipients are users of so many domains d0.example, d1.example ... in turn."""
    accepted: int = 0
    times: list[tuple[int, float, float | None]] = field(default_factory=list)
    replies: list[str] = field(default_factory=list)
    refused: int = 0
    _next: int = 0
    _contents: dict[int, bytes] = field(default_factory=dict)

    def take(self) -> int | None:
        """The number of the next message; None when all were taken."""
        if self._next >= len(self.sizes):
            return None
        self._next += 1
        return self._next - 1

    def content(self, number: int) -> bytes:
        """What a message holds."""
        size = self.sizes[number]
        if size not in self._contents:
            self._contents[size] = content(size)
        return self._contents[size]

    def paths(self, number: int) -> list[str]:
        """The recipients of a message."""
        if self.domains:
            return [f"user{number}@d{number % self.domains}.example"]
        if self.numbered:
            return [f"{number}.{self.recipient}"]
        if self.recipients == 1:
            return [self.recipient]
        return [f"{one}.{self.recipient}" for one in range(self.recipients)]

    def failed(self, number: int, begun: float, why: str) -> None:
        """A message was not taken."""
        self.refused += 1
        self.times.append((number, begun, None))
        if why not in self.replies and len(self.replies) < 10:
            self.replies.append(why)


class _Refused(Exception):
    """What the server said instead of what it should."""


class _Session(asyncio.Protocol):
    """One connection: a dialogue that is a generator.

    It gives what to write (None: the handshake of TLS is due) and gets the code of the reply.
    """

    def __init__(self, run: Run, number: int, done: "asyncio.Future[None]") -> None:
        self._run = run
        self._number = number
        self._begun = time.monotonic()
        self._done = done
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._said = b""
        self._under_way = True
        self._dialogue = self._talk()
        self._upgrade: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        next(self._dialogue)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while b"\n" in self._buffer:
            line, _, self._buffer = self._buffer.partition(b"\n")
            if line[3:4] != b"-":
                self._said = line
                self._go_on(int(line[:3]))

    def _go_on(self, code: int) -> None:
        assert self._transport is not None
        try:
            what = self._dialogue.send(code)
        except StopIteration:
            self._transport.close()
            return
        except _Refused as refused:
            self._lost(str(refused))
            self._transport.close()
            return
        if what is None:
            self._upgrade = asyncio.ensure_future(self._encrypt())
        else:
            self._transport.write(what)

    async def _encrypt(self) -> None:
        assert self._transport is not None
        assert self._run.tls is not None
        loop = asyncio.get_running_loop()
        try:
            self._transport = await loop.start_tls(self._transport, self, self._run.tls, server_hostname="bench.test")
        except OSError as error:
            self._lost(f"TLS: {error}")
            return
        self._go_on(220)

    def connection_lost(self, error: Exception | None) -> None:
        self._lost("the connection ended" if error is None else f"{type(error).__name__}: {error}")
        if not self._done.done():
            self._done.set_result(None)

    def _lost(self, why: str) -> None:
        if self._under_way:
            self._under_way = False
            self._run.failed(self._number, self._begun, why)

    def _expect(self, what: bytes, wanted: int) -> Generator[bytes | None, int, None]:
        code = yield what
        if code != wanted:
            raise _Refused(self._said.decode(errors="replace").strip())

    def _talk(self) -> Generator[bytes | None, int, None]:
        run = self._run
        yield from self._expect(b"", 220)
        yield from self._expect(b"EHLO source.test\r\n", 250)
        if run.tls is not None:
            yield from self._expect(b"STARTTLS\r\n", 220)
            yield None
            yield from self._expect(b"EHLO source.test\r\n", 250)
        while True:
            yield from self._expect(b"MAIL FROM:<%b>\r\n" % run.sender.encode(), 250)
            for path in run.paths(self._number):
                yield from self._expect(b"RCPT TO:<%b>\r\n" % path.encode(), 250)
            yield from self._expect(b"DATA\r\n", 354)
            yield from self._expect(run.content(self._number), 250)
            now = time.monotonic()
            run.accepted += 1
            run.times.append((self._number, self._begun, now - self._begun))
            following = run.take() if run.reuse else None
            if following is None:
                self._under_way = False
                break
            self._number, self._begun = following, now
        yield b"QUIT\r\n"


async def _one(run: Run, number: int, within: float) -> None:
    """Send a message, and where connections are reused others after it."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    begun = time.monotonic()
    session: list[_Session] = []

    def made() -> _Session:
        session.append(_Session(run, number, done))
        return session[-1]

    try:
        async with asyncio.timeout(within):
            await loop.create_connection(made, *run.address, local_addr=run.local)
            await done
    except TimeoutError:
        session[-1]._lost("no reply in time") if session else run.failed(number, begun, "no connection in time")
    except OSError as error:
        run.failed(number, begun, f"{type(error).__name__}: {error}")


async def all_at_once(run: Run, sessions: int, within: float) -> None:
    """So many sessions at a time until all messages were taken."""

    async def worker() -> None:
        while (number := run.take()) is not None:
            await _one(run, number, within)

    await asyncio.gather(*(worker() for _ in range(min(sessions, len(run.sizes)))))


async def at_a_rate(run: Run, rate: float, within: float) -> None:
    """Begin so many messages a second, whatever became of earlier ones."""
    start = time.monotonic()
    under_way = []
    while (number := run.take()) is not None:
        await asyncio.sleep(max(0.0, start + number / rate - time.monotonic()))
        under_way.append(asyncio.create_task(_one(run, number, within)))
    await asyncio.gather(*under_way)


def main() -> int:
    """The command line. Exit status 1 when a message was refused and `--rate` is not given."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--to", required=True)
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--messages", type=int, required=True)
    parser.add_argument("--sessions", type=int, default=20)
    parser.add_argument("--sizes", default="2048", help="OCTETS[:WEIGHT],...")
    parser.add_argument("--recipients", type=int, default=1)
    parser.add_argument("--reuse", action="store_true")
    parser.add_argument("--starttls", action="store_true")
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--times", action="store_true")
    parser.add_argument("--numbered", action="store_true")
    parser.add_argument("--within", type=float, default=120.0, help="seconds that a connection may take")
    parser.add_argument("--sender", default="source@source.test")
    parser.add_argument("--recipient", default="sink@sink.test")
    parser.add_argument("--from-address", default="")
    parser.add_argument("--domains", type=int, default=0, help="recipients at so many domains dN.example in turn")
    chosen = parser.parse_args()
    host, _, port = chosen.to.rpartition(":")
    parts = [one.partition(":") for one in chosen.sizes.split(",")]
    mix = [(int(size), int(weight or 1)) for size, _, weight in parts]
    tls = None
    if chosen.starttls:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        tls.check_hostname = False
        tls.verify_mode = ssl.CERT_NONE
    run = Run(
        (host, int(port)),
        sizes_of(mix, chosen.messages),
        chosen.recipients,
        chosen.reuse,
        tls,
        chosen.sender,
        chosen.recipient,
        chosen.numbered,
        (chosen.from_address, 0) if chosen.from_address else None,
        chosen.domains,
    )
    before, started = _cpu_ms(), time.monotonic()
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        if chosen.rate:
            runner.run(at_a_rate(run, chosen.rate, chosen.within))
        else:
            runner.run(all_at_once(run, chosen.sessions, 24 * 3600.0))
    found: dict[str, object] = {
        "started": started,
        "ended": time.monotonic(),
        "accepted": run.accepted,
        "refused": run.refused,
        "replies": run.replies,
        "cpu_ms": _cpu_ms() - before,
    }
    if chosen.times:
        found["times"] = run.times
    chosen.report.write_text(json.dumps(found))
    return 1 if run.refused and not chosen.rate else 0


def _cpu_ms() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return (used.ru_utime + used.ru_stime) * 1000


if __name__ == "__main__":
    sys.exit(main())
