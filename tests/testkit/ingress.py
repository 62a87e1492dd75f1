"""A real ingress process between a fake config service and a fake queue, for tests of ingress alone.

The fakes speak the real protos over gRPC without TLS, on the loop that all fakes share. The queue keeps what it was
given and can be told to refuse, to stall, to lose its answers and to rotate its streams.
"""

import asyncio
import base64
import contextlib
import json
import socket
import ssl
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import grpc

from mailrail.core.revision.revision import (
    Account,
    Alias,
    AuthenticationMode,
    Domain,
    DomainDelivery,
    Gateway,
    GatewayLimits,
    Listener,
    ListenerProtocol,
    ObjectRef,
    Revision,
    SecretRef,
    SenderRules,
    checksum,
    encode,
)
from mailrail.core.revision.sealing import Keyring
from mailrail.core.sasl.verifiers import derive_verifier
from mailrail.pb.config.v1 import config_pb2, config_pb2_grpc
from mailrail.pb.queue.v1 import enqueue_pb2, enqueue_pb2_grpc, types_pb2
from mailrail_ingress.ports import CommitAnswer, ReceivedMessage, Upload

from testkit.background import background
from testkit.ca import Authority
from testkit.conditions import wait_until
from testkit.processes import Program

KEY = bytes(range(32))
NOT_CHECKED = SenderRules(AuthenticationMode.DISABLED)
PASSWORD = "correct horse"
ALL_MECHANISMS = (
    "SCRAM-SHA-256-PLUS",
    "SCRAM-SHA-256",
    "SCRAM-SHA-1-PLUS",
    "SCRAM-SHA-1",
    "CRAM-MD5",
    "PLAIN",
    "LOGIN",
)


def no_probes(_: object) -> bool:
    """What an ingress without keys says of every address: that it is not the address of a mail probe."""
    return False


@dataclass
class Stored:
    """A message as the queue committed it."""

    id: bytes
    envelope: types_pb2.Envelope
    recipients: list[types_pb2.EnvelopeRecipient]
    prefix: bytes
    body: bytes
    size: int
    chunks: list[int] = field(default_factory=list)

    @property
    def content(self) -> bytes:
        """Prefix and body, as a next hop would get it."""
        return self.prefix + self.body


class _Neighbour:
    """A fake service on a gRPC server of its own, on 127.0.0.1."""

    def __init__(self, add: Callable[[Any, grpc.aio.Server], None]) -> None:
        """`add`: the generated add_..._to_server."""
        self.port = 0
        self._add = add
        self._server: grpc.aio.Server | None = None

    async def serve(self) -> None:
        """Listen; a port of before is taken again, as a restarted service would."""
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        self._add(self, server)
        self.port = server.add_insecure_port(f"127.0.0.1:{self.port}")
        await server.start()
        self._server = server

    async def stop(self) -> None:
        """Break all streams and stop listening."""
        if self._server is not None:
            await self._server.stop(0)
            self._server = None


class FakeQueue(_Neighbour, enqueue_pb2_grpc.EnqueueServiceServicer):
    """Takes mail, keeps it in memory."""

    def __init__(self, *, keep: bool = True) -> None:
        super().__init__(enqueue_pb2_grpc.add_EnqueueServiceServicer_to_server)
        self.stored: list[Stored] = []
        self.count = 0
        self.keep = keep
        self.aborted: list[bytes] = []
        self.streams = 0
        self.requests = 0
        """gRPC messages: how well ingress gathers commits into them."""
        self.asked: list[bytes] = []
        self.octets = 0
        """Octets taken so far, for which credit was needed."""
        self.credit = 32 * 1024 * 1024
        self.return_credit = True
        self.refusal: types_pb2.Reply | None = None
        self.answers = asyncio.Event()
        """Cleared: commits are stored and not answered."""
        self.answers.set()
        self.lose_answer = False
        """The next commit is stored, and its stream broken in place of the answer."""
        self.forget_commit = False
        """The next commit is dropped, and its stream broken in place of the answer."""
        self.go_away = asyncio.Event()
        self.says: asyncio.Queue[enqueue_pb2.EnqueueResponse] = asyncio.Queue()
        """What is put here is said on a stream that is open."""
        self.opens = asyncio.Event()
        """Cleared: a new stream gets no credit yet."""
        self.opens.set()
        self.database_time = 0
        """What each stream is told at its start."""
        self.valid_until: list[int] = []
        """Of the commits that came."""
        self.sizes: list[int] = []
        """Of bodies whose parts said how large they will be."""
        self._chunks: dict[bytes, list[bytes]] = defaultdict(list)
        self._ids: set[bytes] = set()

    @property
    def held(self) -> int:
        """Messages of which there are chunks and no commit yet."""
        return len(self._chunks)

    async def Enqueue(
        self, requests: AsyncIterator[enqueue_pb2.EnqueueRequest], context: Any
    ) -> AsyncIterator[enqueue_pb2.EnqueueResponse]:
        """See the proto."""
        self.streams += 1
        await self.opens.wait()
        yield enqueue_pb2.EnqueueResponse(credit=self.credit, database_time=self.database_time)
        queue: asyncio.Queue[enqueue_pb2.EnqueueResponse | None] = asyncio.Queue()
        works = (self._take(requests, queue), self._rotate(queue), self._say(queue))
        tasks = [asyncio.create_task(work) for work in works]
        try:
            while (response := await queue.get()) is not None:
                yield response
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _rotate(self, queue: "asyncio.Queue[enqueue_pb2.EnqueueResponse | None]") -> None:
        await self.go_away.wait()
        self.go_away.clear()
        await queue.put(enqueue_pb2.EnqueueResponse(go_away=True))

    async def _say(self, queue: "asyncio.Queue[enqueue_pb2.EnqueueResponse | None]") -> None:
        while True:
            await queue.put(await self.says.get())

    async def _take(
        self,
        requests: AsyncIterator[enqueue_pb2.EnqueueRequest],
        queue: "asyncio.Queue[enqueue_pb2.EnqueueResponse | None]",
    ) -> None:
        async for request in requests:
            self.requests += 1
            results: list[enqueue_pb2.EnqueueResult] = []
            octets = 0
            for frame in request.frames:
                step = frame.WhichOneof("step")
                if step == "chunk":
                    octets += len(frame.chunk.data)
                    if frame.chunk.size:
                        self.sizes.append(frame.chunk.size)
                    self._chunks[frame.message_id].append(frame.chunk.data if self.keep else b"")
                elif step == "abort":
                    self.aborted.append(frame.message_id)
                    self._chunks.pop(frame.message_id, None)
                else:
                    octets += len(frame.commit.prefix) + len(frame.commit.body)
                    result = self._commit(frame.message_id, frame.commit)
                    if result is None:
                        await queue.put(None)
                        return
                    results.append(result)
            self.octets += octets
            await self.answers.wait()
            credit = octets if self.return_credit else 0
            if results or credit:
                await queue.put(enqueue_pb2.EnqueueResponse(results=results, credit=credit))
        await queue.put(None)

    def _commit(self, message_id: bytes, commit: enqueue_pb2.Commit) -> enqueue_pb2.EnqueueResult | None:
        chunks = self._chunks.pop(message_id, [])
        self.valid_until.append(commit.valid_until)
        if self.forget_commit:
            self.forget_commit = False
            return None
        if self.refusal is not None:
            return enqueue_pb2.EnqueueResult(message_id=message_id, accepted=False, refusal=self.refusal)
        self.count += 1
        self._ids.add(message_id)
        if self.keep:
            body = commit.body if commit.HasField("body") else b"".join(chunks)
            self.stored.append(
                Stored(
                    message_id,
                    commit.envelope,
                    list(commit.recipients),
                    commit.prefix,
                    body,
                    commit.size,
                    [len(chunk) for chunk in chunks],
                )
            )
        if self.lose_answer:
            self.lose_answer = False
            return None
        return enqueue_pb2.EnqueueResult(message_id=message_id, accepted=True)

    async def GetOutcome(self, request: enqueue_pb2.GetOutcomeRequest, context: Any) -> enqueue_pb2.GetOutcomeResponse:
        """See the proto."""
        self.asked.append(request.message_id)
        return enqueue_pb2.GetOutcomeResponse(accepted=request.message_id in self._ids)

    async def FindMessage(
        self, request: enqueue_pb2.FindMessageRequest, context: Any
    ) -> enqueue_pb2.FindMessageResponse:
        """See the proto."""
        return enqueue_pb2.FindMessageResponse(accepted=request.message_id in self._ids)


class FakeConfig(_Neighbour, config_pb2_grpc.ConfigServiceServicer):
    """Serves one revision to whoever watches; `publish` replaces it."""

    def __init__(self) -> None:
        super().__init__(config_pb2_grpc.add_ConfigServiceServicer_to_server)
        self.reports: list[config_pb2.ReportRequest] = []
        self._number = 0
        self._response = config_pb2.WatchResponse()
        self._changed = asyncio.Condition()

    async def publish(self, revision: Revision, secrets: Mapping[str, bytes]) -> int:
        """Make a revision the head; returns its number."""
        keys = Keyring({"k1": KEY})
        body = encode(revision)
        async with self._changed:
            self._number += 1
            self._response = config_pb2.WatchResponse(
                revision=self._number,
                checksum=checksum(body),
                body=body,
                sealed=[
                    config_pb2.SealedValue(path=path, role="ingress", sealed=keys.seal(value, path, "ingress"))
                    for path, value in secrets.items()
                ],
            )
            self._changed.notify_all()
        return self._number

    async def Watch(self, request: config_pb2.WatchRequest, context: Any) -> AsyncIterator[config_pb2.WatchResponse]:
        """See the proto."""
        told = 0
        while True:
            async with self._changed:
                if self._number == told:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(5):
                            await self._changed.wait()
            if self._number > told:
                told = self._number
                yield self._response
            else:
                yield config_pb2.WatchResponse(revision=self._number, checksum=self._response.checksum)

    async def Report(self, request: config_pb2.ReportRequest, context: Any) -> config_pb2.ReportResponse:
        """See the proto."""
        self.reports.append(request)
        return config_pb2.ReportResponse(head=self._number)


@dataclass
class HeldUpload:
    """An upload that takes what it is told to."""

    resume: Callable[[], None]
    lost: Callable[[], None]
    frames: list[bytes] = field(default_factory=list)
    more: bool = True
    aborted: bool = False
    size: int = 0

    def send(self, data: bytes) -> bool:
        """See ports.Upload."""
        self.frames.append(data)
        return self.more

    def abort(self) -> None:
        """See ports.Upload."""
        self.aborted = True


class HeldQueue:
    """A queue whose answers the test gives."""

    def __init__(self) -> None:
        self.available = True
        self.commits: list[tuple[ReceivedMessage, Callable[[CommitAnswer], None]]] = []
        self.uploads: list[HeldUpload] = []
        self.more = True

    def upload(self, message_id: bytes, resume: Callable[[], None], lost: Callable[[], None], size: int = 0) -> Upload:
        """See ports.Queue."""
        self.uploads.append(HeldUpload(resume, lost, more=self.more, size=size))
        return self.uploads[-1]

    def commit(self, message: ReceivedMessage, done: Callable[[CommitAnswer], None]) -> None:
        """See ports.Queue."""
        self.commits.append((message, done))


def ref(kind: str, name: str) -> ObjectRef:
    """A reference in namespace `mail`."""
    return ObjectRef(kind, "mail", name)


GATEWAY = ref("MailGateway", "main")
ADA = ref("MailAccount", "ada")
POSTMASTER = ref("MailAccount", "postmaster")
HOME = ref("MailDomain", "home")


@dataclass
class Setup:
    """A configuration to run ingress on: the revision and its secrets."""

    revision: Revision
    secrets: dict[str, bytes]


def secret(name: str, key: str, secrets: dict[str, bytes], value: bytes) -> SecretRef:
    """Put a value among the secrets and return the reference to it."""
    made = SecretRef("mail", name, key, f"{abs(hash(value)):x}"[:8], "k1")
    secrets[made.path] = value
    return made


def account(
    ref_: ObjectRef, addresses: tuple[str, ...], secrets: dict[str, bytes], *, clear: bool = True, **more: Any
) -> Account:
    """An account whose password is PASSWORD, its first address the login."""
    verifiers = tuple(
        (
            name,
            secret(
                ref_.name,
                name.lower(),
                secrets,
                str(derive_verifier(name, PASSWORD, ref_.name, Keyring({"k1": KEY}))).encode(),
            ),
        )
        for name in ("SCRAM-SHA-256", "SCRAM-SHA-1")
    )
    password = secret(ref_.name, "password", secrets, PASSWORD.encode()) if clear else None
    return Account(ref_, ref_.name, HOME, addresses[0], addresses, verifiers, password, **more)


def setup(
    *,
    captive: bool = False,
    certificate: bytes | None = None,
    limits: GatewayLimits | None = None,
    authentication: SenderRules = NOT_CHECKED,
    **listener: Any,
) -> Setup:
    """`home.example` with ada and postmaster, an alias of one and of two, a tag separator, and the three listeners.
    Nobody asks the DNS who sent a message, unless `authentication` says so."""
    secrets: dict[str, bytes] = {}
    pem = certificate
    if pem is None:
        made = Authority().issue("mx.home.example", "localhost", "127.0.0.1")
        pem = made.pem
    tls = secret("tls", "tls.pem", secrets, pem)
    domain = Domain(
        HOME,
        "home.example",
        DomainDelivery.MAILBOX,
        aliases=(
            Alias("info", ("ada@home.example",)),
            Alias("team", ("ada@home.example", "bob@far.example")),
            Alias("away", ("ada@far.example",)),
        ),
    )
    sending = Domain(ref("MailDomain", "sending"), "sending.example", DomainDelivery.NONE)
    gateway = Gateway(
        GATEWAY,
        "mx.home.example",
        (
            replace(Listener("mx", ListenerProtocol.MX, 0, tls, accept_any_recipient=captive), **listener),
            replace(Listener("submission", ListenerProtocol.SUBMISSION, 0, tls, mechanisms=ALL_MECHANISMS), **listener),
            replace(
                Listener("submissions", ListenerProtocol.SUBMISSIONS, 0, tls, mechanisms=ALL_MECHANISMS), **listener
            ),
        ),
        POSTMASTER,
        limits=limits or GatewayLimits(),
        authentication=authentication,
    )
    accounts = (
        account(ADA, ("ada@home.example", "ada@sending.example"), secrets),
        account(POSTMASTER, ("root@home.example",), secrets),
    )
    return Setup(Revision(gateways=(gateway,), domains=(domain, sending), accounts=accounts), secrets)


class Ingress:
    """The process, with its neighbours. Use as a context manager."""

    def __init__(
        self,
        folder: Path,
        made: Setup | None = None,
        *,
        keep: bool = True,
        patience: float = 60.0,
        opens: Collection[str] = (),
        **settings: str,
    ) -> None:
        """`opens`: listeners that it waits for at the start, where not all of the first gateway can be opened."""
        self.queue = FakeQueue(keep=keep)
        self.config = FakeConfig()  # type: ignore[abstract]  # the calls that ingress makes are all it answers
        self.setup = made or setup()
        self._folder = folder
        self._patience = patience
        self._opens = set(opens)
        self._settings = settings
        self.program: Program | None = None
        self.ports: dict[str, int] = {}

    def __enter__(self) -> Self:
        try:
            return self._start()
        except BaseException:
            self.__exit__()
            raise

    def _start(self) -> Self:
        loop = background()
        loop.call(self.queue.serve())
        loop.call(self.config.serve())
        loop.call(self.config.publish(self.setup.revision, self.setup.secrets))
        keys = self._folder / "keys"
        keys.mkdir(exist_ok=True)
        (keys / "k1").write_bytes(base64.b64encode(KEY))
        given = {
            "plaintext": "true",
            "queue_target": f"127.0.0.1:{self.queue.port}",
            "config_target": f"127.0.0.1:{self.config.port}",
            "sealing_keys_dir": str(keys),
            "stop_grace": "3",
        } | self._settings
        environment = {f"MAILRAIL_INGRESS_{name.upper()}": value for name, value in given.items()}
        self.program = Program(
            [sys.executable, "-m", "mailrail_ingress"], name="ingress", env={"PYTHONUNBUFFERED": "1", **environment}
        )
        listeners = self._opens or {listener.name for listener in self.setup.revision.gateways[0].listeners}
        self.wait_for(lambda: listeners <= self._read_ports().keys(), "every listener is open")
        self.ports = self._read_ports()
        self.wait_for(lambda: any('"queue stream open"' in line for line in self.program_lines()), "the queue is there")
        return self

    def program_lines(self) -> list[str]:
        """What it logged."""
        assert self.program is not None
        return list(self.program.lines)

    def events(self, name: str) -> list[dict[str, Any]]:
        """Log events of this name."""
        found = []
        for line in self.program_lines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and entry.get("event") == name:
                found.append(entry)
        return found

    def _read_ports(self) -> dict[str, int]:
        return {entry["listener"]: int(entry["port"]) for entry in self.events("listening")}

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        """Wait for something that the process brings about."""
        assert self.program is not None
        self.program.wait_until(condition, self._patience, what)

    def wait_stored(self, count: int, within: float = 60.0) -> list[Stored]:
        """Wait until the queue has so many messages."""
        wait_until(lambda: len(self.queue.stored) >= count, within, f"{count} messages are stored")
        return self.queue.stored

    def publish(self, made: Setup) -> None:
        """Replace the configuration and wait until it is in force."""
        number = background().call(self.config.publish(made.revision, made.secrets))
        self.setup = made
        self.wait_for(
            lambda: any(entry["revision"] == number for entry in self.events("configuration in force")),
            f"revision {number} is in force",
        )

    def __exit__(self, *_: object) -> None:
        if self.program is not None:
            self.program.stop()
        loop = background()
        loop.call(self.queue.stop())
        loop.call(self.config.stop())


class Talk:
    """A plain socket that speaks SMTP as it is told, right or wrong."""

    def __init__(
        self, address: tuple[str, int], *, greeting: bool = True, source: str = "", within: float = 60.0
    ) -> None:
        self.socket: socket.socket = socket.create_connection(
            address, timeout=within, source_address=(source, 0) if source else None
        )
        self._buffer = b""
        if greeting:
            assert self.reply().startswith("220 ")

    def send(self, data: bytes) -> None:
        """Send octets as they are."""
        self.socket.sendall(data)

    def reply(self) -> str:
        """The next whole reply, lines joined by newlines; what there was of one when the server closes."""
        lines: list[str] = []
        while True:
            while b"\r\n" not in self._buffer:
                data = self.socket.recv(65536)
                if not data:
                    return "\n".join([*lines, self._buffer.decode()])
                self._buffer += data
            line, _, self._buffer = self._buffer.partition(b"\r\n")
            lines.append(line.decode())
            if line[3:4] != b"-":
                return "\n".join(lines)

    def say(self, *lines: str) -> list[str]:
        """Send lines together; the reply to each."""
        self.send("".join(line + "\r\n" for line in lines).encode())
        return [self.reply() for _ in lines]

    def codes(self, *lines: str) -> list[str]:
        """Send lines together; code and enhanced code of each reply's last line."""
        return [code(reply) for reply in self.say(*lines)]

    def ended(self) -> bool:
        """Whether the server closes now, without a reset and without another word."""
        return not self._buffer and self.socket.recv(1) == b""

    def encrypt(self) -> None:
        """Do the TLS handshake, trusting anybody."""
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        self.socket = context.wrap_socket(self.socket)

    def start_tls(self) -> None:
        """STARTTLS, handshake and a new EHLO."""
        assert self.codes("EHLO client.example", "STARTTLS")[1] == "220 2.0.0"
        self.encrypt()
        assert self.codes("EHLO client.example") == ["250"]

    def log_in(self, login: str = "ada@home.example", password: str = PASSWORD) -> str:
        """AUTH PLAIN; code and enhanced code of the answer."""
        message = base64.b64encode(f"\0{login}\0{password}".encode()).decode()
        return self.codes(f"AUTH PLAIN {message}")[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def code(reply: str) -> str:
    """Code and enhanced code of a reply's last line: `250 2.1.0`, or `354` where there is none."""
    last = reply.split("\n")[-1]
    first, _, rest = last.partition(" ")
    word = rest.partition(" ")[0]
    return f"{first} {word}" if word.count(".") == 2 and word.replace(".", "").isdigit() else first[:3]
