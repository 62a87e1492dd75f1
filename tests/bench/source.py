"""`python -m bench.source`: the generator of what smtp-source cannot do: STARTTLS, mixed sizes, a steady rate, times.

Like smtp-source it waits for each reply before it goes on. So many sessions at a time send all messages; or, with
`--rate`, each message begins at its time on a connection of its own, however long earlier ones take. With `--retry` it
does what a client with a queue does: what is refused for now (4yz) is sent again, on the same connection while that is
open, after pauses that grow, until it is accepted or the time is over.

At its end it writes JSON: `started`, `ended` (seconds of CLOCK_MONOTONIC, which all processes share), `accepted`,
`refused`, `cpu_ms` (its own, from the first connection on), `replies` (what was said to those refused, each once),
`put_off` (how often each 4yz code came, or `lost` a connection, after which a message was tried again); with `--times`
also `times`: of each message [number, begun, seconds until its 250 or null].
"""

import argparse
import asyncio
import ipaddress
import json
import random
import resource
import ssl
import sys
import time
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from mailrail.kit.run import new_event_loop

_LINE = b"x" * 76 + b"\r\n"
_HEAD = b"From: <source@source.test>\r\nTo: <sink@sink.test>\r\nSubject: bench\r\n\r\n"
_DOT = b".\r\n"
_PIECE = 256 * 1024
"""Octets that are written at a time: a hundred large messages are not to lie in as many buffers."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds before a message that was refused for now is tried again. Senders of the world wait for minutes."""


def sizes_of(mix: Sequence[tuple[int, int]], count: int) -> list[int]:
    """A size in octets for each of so many messages, by weight: [(octets, weight)]. The same at each call."""
    dice = random.Random(20261130)
    return dice.choices([size for size, _ in mix], [weight for _, weight in mix], k=count)


def content(size: int) -> bytes:
    """Header, text and final dot: about so many octets."""
    return _HEAD + _LINE * max(1, (size - len(_HEAD)) // len(_LINE)) + _DOT


def body_size(size: int) -> int:
    """Octets of the text of such a message, without header and final dot."""
    return len(content(size)) - len(_HEAD) - len(_DOT)


def pause(tries: int, random_part: float) -> float:
    """Seconds until the next try after so many: twice as long each time, by half to one and a half as chance (0 to 1)
    says, so that those who were refused together do not come back together."""
    return min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(tries - 1, 10)) * (0.5 + random_part)


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
    """Where it is not 0: the recipients are users of so many domains d0.example, d1.example ... in turn; where they are
    `numbered`, they have the local part of `recipient`, in such domains below its own."""
    patience: float = 0.0
    """Seconds for which what is refused for now is tried again; 0: it is not."""
    clients: int = 1
    """Addresses that connections come from in turn: `local` and those that follow it."""
    accepted: int = 0
    times: list[tuple[int, float, float | None]] = field(default_factory=list)
    replies: list[str] = field(default_factory=list)
    refused: int = 0
    put_off: Counter[str] = field(default_factory=Counter)
    _next: int = 0
    _connections: int = 0
    _began: float = field(default_factory=time.monotonic)
    _dice: random.Random = field(default_factory=lambda: random.Random(20261130))
    _tries: Counter[int] = field(default_factory=Counter)
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
        if self.domains and self.numbered:
            local, _, domain = self.recipient.rpartition("@")
            return [f"{number}.{local}@d{number % self.domains}.{domain}"]
        if self.domains:
            return [f"user{number}@d{number % self.domains}.example"]
        if self.numbered:
            return [f"{number}.{self.recipient}"]
        if self.recipients == 1:
            return [self.recipient]
        return [f"{one}.{self.recipient}" for one in range(self.recipients)]

    def source_address(self) -> tuple[str, int] | None:
        """Where the next connection comes from; None: wherever the system says."""
        if self.local is None:
            return None
        host, port = self.local
        self._connections += 1
        return str(ipaddress.ip_address(host) + (self._connections - 1) % self.clients), port

    def try_again(self, number: int, why: str) -> float | None:
        """Seconds until a message that was refused for now is tried again; None: there is no time for that."""
        self._tries[number] += 1
        wait = pause(self._tries[number], self._dice.random())
        if time.monotonic() + wait > self._began + self.patience:
            return None
        self.put_off[why] += 1
        return wait

    def failed(self, number: int, begun: float, why: str) -> None:
        """A message was not taken."""
        self.refused += 1
        self.times.append((number, begun, None))
        if why not in self.replies and len(self.replies) < 10:
            self.replies.append(why)


_WAITED = 0
"""What a dialogue gets in place of a code when it has waited as long as it wanted to."""
_LOST = "lost"
"""How connections that ended without a reply are counted."""


class _Refused(Exception):
    """What the server said instead of what it should."""

    def __init__(self, code: int, said: str) -> None:
        super().__init__(said)
        self.code = code

    @property
    def for_now(self) -> bool:
        """Whether the same may be taken later."""
        return self.code // 100 == 4


_Dialogue = Generator[bytes | float | None, int, None]


class _Session(asyncio.Protocol):
    """One connection: a dialogue that is a generator.

    It gives what to write (None: the handshake of TLS is due; a number: seconds to wait) and gets the code of the
    reply.
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
        self._waiting: asyncio.TimerHandle | None = None
        self._to_write = memoryview(b"")
        self._paused = False
        self._knows_size = False
        self.again: tuple[int, float] | None = None
        """The message that is to be tried again on another connection, and after how many seconds."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        next(self._dialogue)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while b"\n" in self._buffer:
            line, _, self._buffer = self._buffer.partition(b"\n")
            self._knows_size |= line[4:8] == b"SIZE"
            if line[3:4] != b"-":
                self._said = line
                self._go_on(int(line[:3]))

    def _go_on(self, code: int) -> None:
        assert self._transport is not None
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        try:
            if self._to_write:  # a reply before the content has ended: what is to come belongs to nothing
                self._to_write = memoryview(b"")
                raise self._refused(code)
            what = self._dialogue.send(code)
        except StopIteration:
            self._transport.close()
            return
        except _Refused as refused:
            self._lost(str(refused), f"{refused.code}" if refused.for_now else None)
            self._transport.close()
            return
        if what is None:
            self._upgrade = asyncio.ensure_future(self._encrypt())
        elif isinstance(what, float):
            self._waiting = asyncio.get_running_loop().call_later(what, self._go_on, _WAITED)
        else:
            self._to_write = memoryview(what)
            self._write()

    def _write(self) -> None:
        assert self._transport is not None
        while self._to_write and not self._paused:
            piece, self._to_write = self._to_write[:_PIECE], self._to_write[_PIECE:]
            self._transport.write(piece)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._write()

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
        if self._waiting is not None:
            self._waiting.cancel()
        self._lost("the connection ended" if error is None else f"{type(error).__name__}: {error}", _LOST)
        if not self._done.done():
            self._done.set_result(None)

    def _lost(self, why: str, for_now: str | None = None) -> None:
        """The message under way was not taken; `for_now`: what is counted if it may be taken later."""
        if not self._under_way:
            return
        self._under_way = False
        wait = None if for_now is None else self._run.try_again(self._number, for_now)
        if wait is not None:
            self.again = (self._number, wait)
        else:
            self._run.failed(self._number, self._begun, why)

    def _expect(self, what: bytes, wanted: int) -> _Dialogue:
        code = yield what
        if code != wanted:
            raise self._refused(code)

    def _refused(self, code: int) -> _Refused:
        return _Refused(code, self._said.decode(errors="replace").strip())

    def _transaction(self) -> _Dialogue:
        run = self._run
        content = run.content(self._number)
        # A client that comes back says how large it is, so that it need not send everything to hear that there is no
        # room. The others say as little as smtp-source.
        size = b" SIZE=%d" % (len(content) - len(_DOT)) if run.patience and self._knows_size else b""
        yield from self._expect(b"MAIL FROM:<%b>%b\r\n" % (run.sender.encode(), size), 250)
        for path in run.paths(self._number):
            yield from self._expect(b"RCPT TO:<%b>\r\n" % path.encode(), 250)
        yield from self._expect(b"DATA\r\n", 354)
        yield from self._expect(content, 250)

    def _until_taken(self) -> _Dialogue:
        """Try the message under way until it is taken. Raises _Refused when it is not, or not on this connection."""
        while True:
            try:
                yield from self._transaction()
                return
            except _Refused as refused:
                wait = None
                if refused.for_now and refused.code != 421:  # which ends the connection
                    wait = self._run.try_again(self._number, f"{refused.code}")
                if wait is None:
                    raise
            yield from self._expect(b"RSET\r\n", 250)
            if (said := (yield wait)) != _WAITED:
                raise self._refused(said)

    def _talk(self) -> _Dialogue:
        run = self._run
        yield from self._expect(b"", 220)
        yield from self._expect(b"EHLO source.test\r\n", 250)
        if run.tls is not None:
            yield from self._expect(b"STARTTLS\r\n", 220)
            yield None
            yield from self._expect(b"EHLO source.test\r\n", 250)
        while True:
            yield from self._until_taken()
            now = time.monotonic()
            run.accepted += 1
            run.times.append((self._number, self._begun, now - self._begun))
            following = run.take() if run.reuse else None
            if following is None:
                self._under_way = False
                break
            self._number, self._begun = following, now
        yield b"QUIT\r\n"


async def _one(run: Run, number: int, within: float) -> tuple[int, float] | None:
    """Send a message, and where connections are reused others after it.

    Returns the number of one that is to be tried again on another connection, and after how many seconds.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    begun = time.monotonic()
    session: list[_Session] = []

    def made() -> _Session:
        session.append(_Session(run, number, done))
        return session[-1]

    try:
        async with asyncio.timeout(within):
            await loop.create_connection(made, *run.address, local_addr=run.source_address())
            await done
    except TimeoutError:
        session[-1]._lost("no reply in time") if session else run.failed(number, begun, "no connection in time")
    except OSError as error:
        if (wait := run.try_again(number, _LOST)) is not None:
            return number, wait
        run.failed(number, begun, f"{type(error).__name__}: {error}")
    return session[-1].again if session else None


async def all_at_once(run: Run, sessions: int, within: float) -> None:
    """So many sessions at a time until all messages were taken."""

    async def worker() -> None:
        while (number := run.take()) is not None:
            while (again := await _one(run, number, within)) is not None:
                number, wait = again
                await asyncio.sleep(wait)

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
    parser.add_argument("--clients", type=int, default=1, help="come from so many addresses from --from-address on")
    parser.add_argument(
        "--retry", type=float, default=0.0, help="try what is refused for now again, for so many seconds in all"
    )
    parser.add_argument("--domains", type=int, default=0, help="recipients at so many domains dN.example in turn")
    chosen = parser.parse_args()
    if chosen.retry and chosen.rate:
        parser.error("--retry goes with --sessions, not with --rate")
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
        chosen.retry,
        chosen.clients,
    )
    before, started = _cpu_ms(), time.monotonic()
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        if chosen.rate:
            runner.run(at_a_rate(run, chosen.rate, chosen.within))
        else:
            runner.run(all_at_once(run, chosen.sessions, chosen.retry or 24 * 3600.0))
    found: dict[str, object] = {
        "started": started,
        "ended": time.monotonic(),
        "accepted": run.accepted,
        "refused": run.refused,
        "replies": run.replies,
        "put_off": run.put_off,
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
