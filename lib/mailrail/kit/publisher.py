"""Publishing configuration: documents in, a revision in the config service out. The operator and local mode's folder
watcher share it, so that both go through the same compiler and the same checks.

A publisher first acquires an epoch and, with it, the state of the last compilation (no compile before that, CFG-01).
From then on each `publish` compiles, seals the values that are not stored yet, and hands the revision in. Another
publisher that acquires later ends the epoch (CFG-04): `Superseded`. When head was moved by an administrator, the
publisher reads it anew and goes on. When the store went back (CFG-08), nobody has an epoch: `SetBack`; whoever's turn
it is publishes again. `newest` tells what the store holds, to be compared with `published` (CFG-09).
"""

import asyncio
import gc
from dataclasses import dataclass

import grpc

from mailrail.core.config.building import BuildOptions
from mailrail.core.config.compiler import Compiled, compile
from mailrail.core.config.reading import Sources
from mailrail.core.config.state import CompilerState, decode_state, encode_state
from mailrail.core.config.stored import StoredRevision
from mailrail.core.revision.revision import Role, secrets_for
from mailrail.core.revision.sealing import Keyring
from mailrail.kit import log, rpc
from mailrail.kit.publish_refusals import REASON_KEY, SET_BACK, STALE_EPOCH
from mailrail.kit.settings import ServiceSettings
from mailrail.pb.config.v1 import config_pb2 as pb
from mailrail.pb.config.v1 import config_pb2_grpc

FINDINGS_STORED = 2000
"""Findings that go along with a revision. A transport that ten thousand rules name and that is gone makes ten thousand
of them, and what is too large to store must not keep the revision from going live."""

_ATTEMPTS = 5


class Superseded(Exception):
    """Another publisher acquired the configuration; the text names it. Acquire again only if it is your turn."""


class SetBack(Exception):
    """The store went back, and with it the epoch; nobody else has acquired one. The next publish acquires it anew."""


@dataclass(frozen=True, slots=True)
class PublishOutcome:
    """What became of a publish."""

    compiled: Compiled
    revision: int
    activated: bool  # False: head is pinned to an older revision
    unchanged: bool  # the same as before: no new revision
    held: bool = False  # nothing was published, since the compilation lacks objects that run


class Publisher:
    """One publisher. Calls are made one after the other."""

    def __init__(self, settings: ServiceSettings, keys: Keyring, identity: str) -> None:
        self._settings, self._keys, self._identity = settings, keys, identity
        self._epoch = 0
        self._head = 0
        self._previous = CompilerState()
        self._stored: frozenset[str] = frozenset()
        self.published: StoredRevision | None = None
        """What was published last under this epoch; None: nothing yet, or another publisher took over."""
        self._log = log.get_logger()

    def use_keys(self, keys: Keyring) -> None:
        """Seal with another ring from now on; the next publish seals everything anew if its newest key is another."""
        self._keys = keys

    async def prepare(self) -> CompilerState:
        """Acquire an epoch if there is none yet. What the next compilation builds upon: it says which Secrets are used.

        Raises grpc.aio.AioRpcError when the config service is out of reach, or UnreadableState when it has the state
        of a newer version.
        """
        if not self._epoch:
            async with rpc.channel(self._settings, self._settings.config_target, "config") as channel:
                stub: config_pb2_grpc.ConfigServiceAsyncStub = config_pb2_grpc.ConfigServiceStub(channel)
                await self._acquire(stub)
        return self._previous

    async def publish(self, sources: Sources, options: BuildOptions | None = None) -> PublishOutcome:
        """Compile and publish. What lacks an object that runs, since this version cannot read it, is not published.

        Raises Superseded, SetBack, grpc.aio.AioRpcError when the config service is out of reach, or UnreadableState
        when it has the state of a newer version.
        """
        async with rpc.channel(self._settings, self._settings.config_target, "config") as channel:
            stub: config_pb2_grpc.ConfigServiceAsyncStub = config_pb2_grpc.ConfigServiceStub(channel)
            compiled: Compiled | None = None
            everything = False
            for _ in range(_ATTEMPTS):
                if not self._epoch:
                    await self._acquire(stub)
                    compiled = None
                if compiled is None:
                    compiled = await asyncio.to_thread(_compile, sources, self._previous, self._keys, options)
                if compiled.held:
                    self._log.error(
                        "nothing is published: mend or delete what cannot be read",
                        objects=", ".join(map(str, compiled.held[:10])),
                    )
                    return PublishOutcome(compiled, self._head, activated=True, unchanged=True, held=True)
                request = await asyncio.to_thread(self._request, compiled, everything)
                try:
                    response = await stub.Publish(request, timeout=30)
                except grpc.aio.AioRpcError as error:
                    if error.code() is grpc.StatusCode.FAILED_PRECONDITION and not everything:
                        everything = True  # the database lost values that it had
                    elif error.code() is grpc.StatusCode.ABORTED:
                        self._epoch = 0
                        if (REASON_KEY, STALE_EPOCH) in _metadata(error):
                            self.published = None
                            raise Superseded(error.details() or "another publisher took over") from error
                        if (REASON_KEY, SET_BACK) in _metadata(error):
                            raise SetBack(error.details() or "the database went back") from error
                    else:
                        raise
                    continue
                self._previous = compiled.state
                self._stored = frozenset(use.ref.path for use in compiled.state.uses)
                if response.activated:
                    self._head = response.info.revision
                self.published = StoredRevision(response.info.revision, compiled.checksum, response.history)
                return PublishOutcome(compiled, response.info.revision, response.activated, response.unchanged)
            raise Superseded("head keeps changing: another publisher is active")

    async def newest(self) -> StoredRevision:
        """What the store holds. Raises grpc.aio.AioRpcError when the config service is out of reach."""
        async with rpc.channel(self._settings, self._settings.config_target, "config") as channel:
            stub: config_pb2_grpc.ConfigServiceAsyncStub = config_pb2_grpc.ConfigServiceStub(channel)
            return newest_of(await stub.ListConsumers(pb.ListConsumersRequest(), timeout=5))

    async def _acquire(self, stub: "config_pb2_grpc.ConfigServiceAsyncStub") -> None:
        response = await stub.AcquirePublisher(pb.AcquirePublisherRequest(identity=self._identity), timeout=10)
        if self.published is None:
            self._previous = decode_state(response.previous)
        # Else nobody published since, and a store that went back knows less of what was accepted than this process.
        self._stored = frozenset(use.ref.path for use in self._previous.uses)
        self._epoch, self._head = response.epoch, response.head.revision
        self._log.info("publishing configuration", epoch=self._epoch, head=self._head)

    def _request(self, compiled: Compiled, everything: bool) -> pb.PublishRequest:
        """The request, with the sealed values that are not stored yet. Making a verifier costs a millisecond."""
        made: dict[str, bytes] = {}
        sealed: list[pb.SealedValue] = []
        for role in Role:
            for path in sorted(secrets_for(compiled.revision, role)):
                value = compiled.values.get(path)
                if value is None or (path in self._stored and not everything):
                    continue
                if path not in made:
                    made[path] = value()
                octets = self._keys.seal(made[path], path, role.value)
                sealed.append(pb.SealedValue(path=path, role=role.value, sealed=octets))
        return pb.PublishRequest(
            epoch=self._epoch,
            expected_head=self._head,
            body=compiled.encoded,
            sealed=sealed,
            previous=encode_state(compiled.state),
            diagnostics=compiled.diagnostics.encode(FINDINGS_STORED),
            summary=compiled.summary,
        )


def newest_of(response: pb.ListConsumersResponse) -> StoredRevision:
    """What the store holds, as config says it beside who runs what."""
    return StoredRevision(response.newest, response.newest_checksum, response.history)


def _metadata(error: grpc.aio.AioRpcError) -> list[tuple[str, str | bytes]]:
    return [(key, value) for key, value in error.trailing_metadata()]


def _compile(sources: Sources, previous: CompilerState, keys: Keyring, options: BuildOptions | None) -> Compiled:
    """Compile without the collector: a compilation makes a million objects and no cycles, and looking through them
    again and again more than doubled its time (CFG-06 allows 700 ms)."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return compile(sources, previous, keys, options)
    finally:
        if was_enabled:
            gc.enable()
