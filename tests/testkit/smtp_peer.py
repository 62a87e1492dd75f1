"""A scripted SMTP or LMTP server: follows a script, and misbehaves on demand at any step.

    async with SmtpPeer(replies={"RCPT": "550 5.1.1 no", "END": Close()}) as peer:
        ... peer.host, peer.port, peer.messages, peer.sessions

Steps are GREETING, EHLO (also for LHLO), HELO, STARTTLS, AUTH, MAIL, RCPT, DATA, BDAT, END (after the final dot),
RSET, NOOP, QUIT. A step's value is a reply ("250 ok", lines separated by "\\n"), an action (`Close`, `Hang`, `Drip`,
`Flood`, `Raw`, `Held`, `Injected`), a list of those for successive occurrences (the last one repeats), or a function of
the session and the line that returns one of them, or None for the usual reply. Everything a client sends is recorded as
it came; a test that fails shows what was said (`transcripts`).
"""

import asyncio
import base64
import contextlib
import hmac
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from scramp import ScramException, ScramMechanism

from testkit.transcripts import Transcript, note_server


@dataclass(frozen=True)
class Close:
    """Close the connection, after saying `first` if it is given."""

    first: str = ""


@dataclass(frozen=True)
class Hang:
    """Say nothing any more and read nothing, after saying `first` if it is given."""

    first: str = ""


@dataclass(frozen=True)
class Drip:
    """Send these octets one at a time, `interval` seconds apart, over and over."""

    octets: bytes = b"250-x"
    interval: float = 0.02


@dataclass(frozen=True)
class Flood:
    """Send this for ever, as fast as the client takes it."""

    octets: bytes = b"250-and another line\r\n"


@dataclass(frozen=True)
class Raw:
    """Send exactly these octets."""

    octets: bytes


@dataclass(frozen=True)
class Slow:
    """Answer with `reply`, so many seconds late."""

    reply: str
    seconds: float


@dataclass(frozen=True)
class Held:
    """Answer with `reply` once the test sets `release`."""

    reply: str
    release: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True)
class Injected:
    """Answer STARTTLS as usual, with these octets in clear behind the reply, as somebody on the way could put them."""

    octets: bytes


Action = str | Close | Hang | Drip | Flood | Raw | Slow | Held | Injected
Step = Action | Sequence[Action] | Callable[["PeerSession", str], Action | None]


@dataclass
class PeerMessage:
    """A message that was taken whole."""

    mail: str
    rcpts: list[str]
    content: bytes
    session: "PeerSession"
    bdat: bool


@dataclass
class PeerSession:
    """One connection, as the server saw it."""

    address: str
    hello: str = ""
    lines: list[str] = field(default_factory=list)
    tls: str = ""
    resumed: bool = False
    """The TLS session of an earlier connection went on."""
    login: str = ""
    mechanism: str = ""
    mail: str = ""
    rcpts: list[str] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)
    closed: bool = False
    octets: int = 0
    """Octets of content received."""
    transcript: Transcript = field(default_factory=Transcript)

    def secured(self, tls: ssl.SSLObject) -> None:
        """The handshake is done."""
        self.tls, self.resumed = tls.version() or "", bool(tls.session_reused)
        self.transcript.note(f"{self.tls}{', resumed' if self.resumed else ''}")


class _Over(Exception):
    pass


class SmtpPeer:
    """The server. Use it as an asynchronous context manager."""

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        extensions: Sequence[str] = ("PIPELINING", "8BITMIME", "DSN", "SMTPUTF8"),
        replies: Mapping[str, Step] | None = None,
        tls: ssl.SSLContext | None = None,
        implicit_tls: bool = False,
        extensions_after_tls: Sequence[str] | None = None,
        accounts: Mapping[str, str] | None = None,
        binding: Callable[[], tuple[str, bytes]] | None = None,
        iterations: int = 4096,
        lmtp: bool = False,
        keep_content: bool = True,
    ) -> None:
        self.host = host
        self.port = port
        self.sessions: list[PeerSession] = []
        self.messages: list[PeerMessage] = []
        self.changed = asyncio.Event()
        self._extensions = list(extensions)
        self._after_tls = list(extensions_after_tls) if extensions_after_tls is not None else self._extensions
        self._replies = dict(replies or {})
        self._tls = tls
        self._implicit = implicit_tls
        self._accounts = dict(accounts or {})
        self._binding = binding
        self._iterations = iterations
        self._lmtp = lmtp
        self._keep = keep_content
        self._counts: dict[str, int] = {}
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._transcripts: dict[asyncio.StreamWriter, Transcript] = {}

    async def __aenter__(self) -> "SmtpPeer":
        self._server = await asyncio.start_server(
            self._connected, self.host, self.port, ssl=self._tls if self._implicit else None, limit=2**20
        )
        self.port = self._server.sockets[0].getsockname()[1]
        note_server(self)
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def secure_with(self, tls: ssl.SSLContext) -> None:
        """STARTTLS leads to this from now on."""
        self._tls = tls

    async def until(self, condition: Callable[["SmtpPeer"], bool], within: float = 60.0) -> None:
        """Wait until the condition holds of this peer."""
        async with asyncio.timeout(within):
            while not condition(self):
                self.changed.clear()
                await self.changed.wait()

    @property
    def served(self) -> bool:
        """It has not ended."""
        return self._server is not None and self._server.is_serving()

    @property
    def transcript(self) -> str:
        """What was said in all sessions, with who said it."""
        return "\n".join(f"{self.host}:{self.port}, from {s.address}\n{s.transcript}" for s in list(self.sessions))

    @property
    def commands(self) -> list[str]:
        """Every line of every session, in order of sessions."""
        return [line for session in self.sessions for line in session.lines]

    # --- a session ------------------------------------------------------------------------------------------------

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        session = PeerSession(writer.get_extra_info("peername")[0])
        self._transcripts[writer] = session.transcript
        if self._implicit:
            session.secured(writer.get_extra_info("ssl_object"))
        self.sessions.append(session)
        self.changed.set()
        try:
            await self._serve(session, reader, writer)
        except _Over:
            session.transcript.note("closed by the server")
        except (ConnectionError, ssl.SSLError, asyncio.IncompleteReadError, TimeoutError, BrokenPipeError) as error:
            session.transcript.note(f"ended: {error or type(error).__name__}")
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            session.closed = True
            self.changed.set()
            self._tasks.discard(task)
            del self._transcripts[writer]
            with contextlib.suppress(Exception):
                writer.close()

    async def _serve(self, session: PeerSession, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._do(writer, self._step("GREETING", session, "") or "220 peer.example ESMTP scripted")
        while True:
            raw = await reader.readuntil(b"\n")
            line = raw.rstrip(b"\r\n").decode("utf-8", "surrogateescape")
            session.lines.append(line)
            session.transcript.client(line)
            self.changed.set()
            verb = line.split(" ", 1)[0].upper()
            scripted = self._step("EHLO" if verb == "LHLO" else verb, session, line)
            if verb in ("EHLO", "LHLO"):
                session.hello = line.split(" ", 1)[-1]
                extensions = self._after_tls if session.tls else self._extensions
                if self._tls is not None and not session.tls:
                    extensions = [*extensions, "STARTTLS"]
                await self._do(writer, scripted or "\n".join(["250 peer.example", *("250 " + e for e in extensions)]))
            elif verb == "STARTTLS" and isinstance(scripted, Injected | None) and self._tls is not None:
                self._write(writer, b"220 go ahead\r\n" + (scripted.octets if scripted is not None else b""))
                await writer.drain()
                await writer.start_tls(self._tls)
                session.secured(writer.get_extra_info("ssl_object"))
            elif verb == "AUTH" and scripted is None:
                await self._auth(session, line, reader, writer)
            elif verb == "MAIL":
                session.mail, session.rcpts, session.accepted = line, [], []
                await self._do(writer, scripted or "250 2.1.0 ok")
            elif verb == "RCPT":
                session.rcpts.append(line)
                action = scripted or "250 2.1.5 ok"
                if isinstance(action, str) and action.startswith("25"):
                    session.accepted.append(line)
                await self._do(writer, action)
            elif verb == "DATA":
                action = scripted or ("354 go ahead" if session.accepted else "554 5.5.1 no valid recipients")
                await self._do(writer, action)
                if isinstance(action, str) and action.startswith("354"):
                    content = await self._data(session, reader)
                    session.transcript.client(f"({len(content)} octets of content and the final dot)")
                    await self._end(session, writer, content, bdat=False)
            elif verb == "BDAT":
                await self._bdat(session, line, scripted, reader, writer)
            elif verb == "RSET":
                session.mail, session.rcpts, session.accepted = "", [], []
                await self._do(writer, scripted or "250 2.0.0 ok")
            elif verb == "QUIT":
                await self._do(writer, scripted or Close("221 2.0.0 bye"))
            else:
                await self._do(writer, scripted or ("250 2.0.0 ok" if verb == "NOOP" else "502 5.5.1 what"))

    async def _data(self, session: PeerSession, reader: asyncio.StreamReader) -> bytes:
        parts: list[bytes] = []
        while True:
            line = await reader.readuntil(b"\r\n")
            session.octets += len(line)
            if line == b".\r\n" and (not parts or parts[-1].endswith(b"\r\n")):
                return b"".join(parts)
            if self._keep or len(parts) < 2:
                parts.append(line[1:] if line.startswith(b".") else line)

    async def _bdat(
        self,
        session: PeerSession,
        line: str,
        scripted: Action | None,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        words = line.split()
        chunk = await reader.readexactly(int(words[1]))
        session.octets += len(chunk)
        session.transcript.client(f"({len(chunk)} octets)")
        held = getattr(session, "chunks", b"")
        held = held + chunk if self._keep else b""
        session.chunks = held  # type: ignore[attr-defined]
        if len(words) > 2 and words[2].upper() == "LAST":
            session.chunks = b""  # type: ignore[attr-defined]
            await self._end(session, writer, held, bdat=True)
        else:
            await self._do(writer, scripted or "250 2.0.0 chunk")

    async def _end(self, session: PeerSession, writer: asyncio.StreamWriter, content: bytes, *, bdat: bool) -> None:
        accepted = list(session.accepted)
        message = PeerMessage(session.mail, accepted, content, session, bdat)
        session.mail, session.rcpts, session.accepted = "", [], []
        for i, rcpt in enumerate(accepted if self._lmtp else [""]):
            action = self._step("END", session, rcpt) or "250 2.0.0 taken"
            said = action.reply if isinstance(action, Held) else action
            if i == 0 and isinstance(said, str) and said.startswith("2"):
                self.messages.append(message)
                self.changed.set()
            await self._do(writer, action)

    def _step(self, name: str, session: PeerSession, line: str) -> Action | None:
        step = self._replies.get(name)
        if step is None or isinstance(step, Action):
            return step
        if callable(step):
            return step(session, line)
        count = self._counts.get(name, 0)
        self._counts[name] = count + 1
        return step[min(count, len(step) - 1)]

    def _write(self, writer: asyncio.StreamWriter, octets: bytes) -> None:
        if (transcript := self._transcripts.get(writer)) is not None:
            transcript.server(octets)
        writer.write(octets)

    async def _do(self, writer: asyncio.StreamWriter, action: Action) -> None:
        match action:
            case str():
                lines = action.split("\n")
                for i, line in enumerate(lines):
                    if i < len(lines) - 1 and line[3:4] == " ":
                        line = line[:3] + "-" + line[4:]
                    self._write(writer, line.encode("utf-8", "surrogateescape") + b"\r\n")
                await writer.drain()
            case Close(first):
                if first:
                    self._write(writer, first.encode() + b"\r\n")
                    await writer.drain()
                raise _Over
            case Hang(first):
                if first:
                    self._write(writer, first.encode() + b"\r\n")
                    await writer.drain()
                await asyncio.Event().wait()
            case Drip(octets, interval):
                while True:
                    for octet in octets:
                        self._write(writer, bytes([octet]))
                        await writer.drain()
                        await asyncio.sleep(interval)
            case Flood(octets):
                while True:
                    self._write(writer, octets * 100)
                    await writer.drain()
                    await asyncio.sleep(0)
            case Slow(reply, seconds):
                await asyncio.sleep(seconds)
                await self._do(writer, reply)
            case Held(reply, release):
                await release.wait()
                await self._do(writer, reply)
            case Raw(octets):
                self._write(writer, octets)
                await writer.drain()

    # --- AUTH -------------------------------------------------------------------------------------------------------

    async def _auth(
        self, session: PeerSession, line: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        words = line.split()
        mechanism = words[1].upper()
        session.mechanism = mechanism

        async def ask(challenge: bytes) -> bytes:
            await self._do(writer, "334 " + base64.b64encode(challenge).decode())
            answer = (await reader.readuntil(b"\n")).strip()
            session.lines.append(answer.decode())
            session.transcript.client(answer.decode())
            if answer == b"*":
                raise ScramException("cancelled")
            return base64.b64decode(answer)

        first = base64.b64decode(words[2]) if len(words) > 2 and words[2] != "=" else None
        try:
            ok = await self._exchange(session, mechanism, first, ask)
        except ScramException:
            await self._do(writer, "501 5.7.0 the exchange failed")
            return
        await self._do(writer, "235 2.7.0 welcome" if ok else "535 5.7.8 wrong credentials")

    async def _exchange(
        self, session: PeerSession, mechanism: str, first: bytes | None, ask: Callable[[bytes], Awaitable[bytes]]
    ) -> bool:
        if mechanism == "PLAIN":
            _, user, password = (first if first is not None else await ask(b"")).split(b"\0")
        elif mechanism == "LOGIN":
            user, password = await ask(b"Username:"), await ask(b"Password:")
        elif mechanism == "CRAM-MD5":
            challenge = b"<1234.5678@peer.example>"
            user, _, digest = (await ask(challenge)).partition(b" ")
            secret = self._accounts.get(user.decode(), "")
            session.login = user.decode()
            return hmac.new(secret.encode(), challenge, "md5").hexdigest().encode() == digest
        else:
            return await self._scram(session, mechanism, first, ask)
        session.login = user.decode()
        return self._accounts.get(user.decode()) == password.decode()

    async def _scram(
        self, session: PeerSession, mechanism: str, first: bytes | None, ask: Callable[[bytes], Awaitable[bytes]]
    ) -> bool:
        scheme = ScramMechanism(mechanism)

        def lookup(user: str) -> tuple[bytes, bytes, bytes, int]:
            session.login = user
            found: tuple[bytes, bytes, bytes, int] = scheme.make_auth_info(
                self._accounts.get(user, "?"), iteration_count=self._iterations
            )
            return found

        binding = self._binding() if self._binding is not None and scheme.use_binding else None
        server = scheme.make_server(lookup, channel_binding=binding)
        server.set_client_first((first if first is not None else await ask(b"")).decode())
        server.set_client_final((await ask(server.get_server_first().encode())).decode())
        await ask(server.get_server_final().encode())  # SCR-02: v= as a 334, an empty line back
        return True
