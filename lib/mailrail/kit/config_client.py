"""A service's side of the config service: watch, swap, acknowledge, and keep the last good revision (CFG-05, CFG-07).

`ConfigClient.current` is the revision in force, None before the first. A service registers `on_change` to build its own
tables from a new revision; when that raises, the revision is reported as rejected and the one before stays in force.
The sealed revision is kept in `cache_dir`, so that a restarted container serves while config is wholly down.
"""

import asyncio
import base64
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import grpc

from mailrail.core.revision.problem import RevisionProblem
from mailrail.core.revision.revision import (
    ROLES_WITHOUT_SECRETS,
    Revision,
    Role,
    SecretRef,
    UnreadableRevision,
    checksum,
    decode,
)
from mailrail.core.revision.sealing import CannotOpen, Keyring
from mailrail.kit import log, metrics, rpc
from mailrail.kit.files import replace
from mailrail.kit.settings import BadSettings, ServiceSettings
from mailrail.pb.config.v1 import config_pb2, config_pb2_grpc

_REPORT_EVERY = 2.0  # seconds (CFG-05)
_LOOK_EVERY = 0.25  # seconds between looks for problems that are new or gone
_MOST_PROBLEMS, _MOST_CHARACTERS = 64, 500  # of a report, and of the message of each
_SILENCE = 15.0  # seconds without a word on the stream (heartbeats come every 5) before it is opened anew


@dataclass(frozen=True)
class Configuration:
    """A revision in force, with the opened secrets of this role."""

    number: int
    checksum: str
    revision: Revision
    secrets: Mapping[str, bytes] = field(repr=False)

    def secret(self, ref: SecretRef) -> bytes:
        """The opened value behind a reference. Raises KeyError when it was not delivered to this role."""
        return self.secrets[ref.path]


OnChange = Callable[[Configuration], None]


def keyring(settings: ServiceSettings) -> Keyring:
    """The sealing keys in `sealing_keys_dir`. Raises BadSettings."""
    folder = settings.sealing_keys_dir
    if folder is None:
        raise BadSettings("MAILRAIL_SEALING_KEYS_DIR is not set; it names the folder with the sealing keys")
    try:
        files = [p for p in sorted(folder.iterdir()) if p.is_file() and not p.name.startswith(".")]
        return Keyring({p.name: base64.b64decode(p.read_bytes().strip(), validate=True) for p in files})
    except (OSError, ValueError) as error:
        raise BadSettings(f"sealing keys in {folder}: {error}") from error


class ConfigClient:
    """Keeps one service on the newest configuration."""

    def __init__(
        self,
        settings: ServiceSettings,
        role: Role,
        on_change: OnChange,
        problems: Callable[[], Iterable[RevisionProblem]] = tuple,
        gateway: str = "",
    ) -> None:
        """`problems`: what is wrong now with the revision in force; it is asked for each report. `gateway`:
        NAMESPACE/NAME of the one that the process serves; empty: all."""
        self.current: Configuration | None = None
        self._settings = settings
        self._role = role
        self._on_change = on_change
        self._problems, self._gateway = problems, gateway
        self._keys = None if role in ROLES_WITHOUT_SECRETS else keyring(settings)
        self._arrived = asyncio.Event()
        self._changed = asyncio.Condition()
        self._storing: asyncio.Task[None] | None = None
        self._rejected = 0
        self._error = ""
        self._version = version("mailrail")  # reading it takes a millisecond, and each report has it
        self._heard = time.monotonic()
        self._log = log.get_logger()

    async def wait_first(self) -> Configuration:
        """The first revision, as soon as there is one."""
        await self._arrived.wait()
        assert self.current is not None
        return self.current

    async def wait_for(self, number: int, within: float) -> bool:
        """Whether at least revision `number` is in force within so many seconds (LSE-07)."""
        try:
            async with asyncio.timeout(within), self._changed:
                await self._changed.wait_for(lambda: self.current is not None and self.current.number >= number)
        except TimeoutError:
            return False
        return True

    @asynccontextmanager
    async def running(self) -> AsyncIterator["ConfigClient"]:
        """Watch and report while the context lasts; says goodbye on the way out."""
        await self._load_cached()
        tasks = [asyncio.create_task(self._watch()), asyncio.create_task(self._report())]
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._storing is not None:  # what was in force is there at the next start (CFG-07)
                await self._storing
            await self._leave()

    async def _watch(self) -> None:
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError, TimeoutError, BadSettings):
                async with rpc.channel(self._settings, self._settings.config_target, "config") as channel:
                    await self._watch_once(config_pb2_grpc.ConfigServiceStub(channel))
            metrics.CONFIG_AGE.set(time.monotonic() - self._heard)
            await asyncio.sleep(0.5)

    async def _watch_once(self, stub: "config_pb2_grpc.ConfigServiceAsyncStub") -> None:
        call = stub.Watch(
            config_pb2.WatchRequest(
                process=self._settings.node_id,
                role=self._role.value,
                have_revision=self.current.number if self.current is not None else 0,
                have_checksum=self.current.checksum if self.current is not None else "",
            )
        )
        stream = aiter(call)
        while True:
            async with asyncio.timeout(_SILENCE):
                try:
                    message = await anext(stream)
                except StopAsyncIteration:
                    return
            self._heard = time.monotonic()
            metrics.CONFIG_AGE.set(0)
            if message.HasField("body"):
                sealed = {value.path: value.sealed for value in message.sealed}
                await self._take(message.revision, message.checksum, message.body, sealed)
                if self.current is not None and self.current.number == message.revision:
                    # In a thread, because it may have to wait for a reader; to its end, although this watch may end.
                    self._storing = asyncio.create_task(asyncio.to_thread(self._store, message))
                    await asyncio.shield(self._storing)

    async def _take(self, number: int, digest: str, body: bytes, sealed: Mapping[str, bytes]) -> None:
        try:
            if checksum(body) != digest:
                raise UnreadableRevision("the checksum does not match the body")
            revision = decode(body)
            secrets = self._opened(sealed)
            configuration = Configuration(number, digest, revision, secrets)
            self._on_change(configuration)
        except Exception as error:  # whatever a service finds wrong: the one before stays in force
            self._rejected, self._error = number, f"{type(error).__name__}: {error}"
            known = isinstance(error, UnreadableRevision | CannotOpen)
            self._log.error("configuration rejected", revision=number, error=str(error), exc_info=not known)
            return
        self.current = configuration
        self._rejected, self._error = 0, ""
        metrics.CONFIG_REVISION.set(number)
        self._log.info("configuration in force", revision=number, checksum=digest[:12])
        self._arrived.set()
        async with self._changed:
            self._changed.notify_all()

    def _opened(self, sealed: Mapping[str, bytes]) -> dict[str, bytes]:
        """With the ring as it is mounted now: a key that was added since the start may have sealed this (CFG-02)."""
        if self._keys is None:
            return {}
        try:
            keys = self._keys = keyring(self._settings)
        except BadSettings as error:
            self._log.warning("cannot read sealing keys; the last ones stay in use", reason=str(error))
            keys = self._keys
        return {path: keys.open(value, path, self._role.value) for path, value in sealed.items()}

    async def _report(self) -> None:
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError, BadSettings):
                async with rpc.channel(self._settings, self._settings.config_target, "config") as channel:
                    stub: config_pb2_grpc.ConfigServiceAsyncStub = config_pb2_grpc.ConfigServiceStub(channel)
                    while True:
                        said = self._state()
                        await stub.Report(said, timeout=5)
                        await self._news(said)
            await asyncio.sleep(0.5)

    async def _news(self, said: config_pb2.ReportRequest) -> None:
        """A swap is reported at once, even one that came while the last report was on its way; a problem soon; else by
        the clock."""
        until = time.monotonic() + _REPORT_EVERY
        while self._state() == said and time.monotonic() < until:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_EVERY), self._changed:
                    await self._changed.wait_for(lambda: self._state() != said)

    def _state(self, leaving: bool = False) -> config_pb2.ReportRequest:
        return config_pb2.ReportRequest(
            process=self._settings.node_id,
            role=self._role.value,
            revision=self.current.number if self.current is not None else 0,
            rejected=self._rejected,
            error=self._error[:2000],
            leaving=leaving,
            version=self._version,
            problems=(
                config_pb2.Problem(
                    kind=one.object.kind,
                    namespace=one.object.namespace,
                    name=one.object.name,
                    part=one.part,
                    reason=one.reason,
                    message=one.message[:_MOST_CHARACTERS],
                )
                for one in islice(self._problems(), _MOST_PROBLEMS)
            ),
            gateway=self._gateway,
        )

    async def _leave(self) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError, BadSettings):
            async with rpc.channel(self._settings, self._settings.config_target, "config") as channel:
                stub: config_pb2_grpc.ConfigServiceAsyncStub = config_pb2_grpc.ConfigServiceStub(channel)
                await stub.Report(self._state(leaving=True), timeout=1)

    # --- the last good revision on disk: as it came, secrets still sealed ---

    def _cache_file(self) -> Path | None:
        folder = self._settings.cache_dir
        return None if folder is None else folder / f"revision-{self._role.value}.pb"

    def _store(self, message: config_pb2.WatchResponse) -> None:
        file = self._cache_file()
        if file is None:
            return
        data = message.SerializeToString(deterministic=True)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            fresh = file.with_suffix(f".{hashlib.sha256(self._settings.node_id.encode()).hexdigest()[:8]}")
            fresh.write_bytes(data)
            replace(fresh, file)  # closed before it is renamed
        except OSError as error:
            self._log.warning("cannot store the last good configuration", file=str(file), error=str(error))

    async def _load_cached(self) -> None:
        file = self._cache_file()
        if file is None or not file.exists():
            return
        try:
            message = config_pb2.WatchResponse.FromString(file.read_bytes())
        except Exception as error:  # a damaged cache is no cache
            self._log.warning("the stored configuration is unreadable", file=str(file), error=str(error))
            return
        await self._take(message.revision, message.checksum, message.body, {v.path: v.sealed for v in message.sealed})
