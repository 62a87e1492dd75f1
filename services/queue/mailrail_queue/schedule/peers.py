"""Queue replicas wake each other when there is new work in a shard of another. These are hints only (SHD-02)."""

import asyncio
from collections.abc import Mapping

import grpc

from mailrail.kit import log, rpc
from mailrail.kit.settings import BadSettings
from mailrail.pb.queue.v1 import peer_pb2, peer_pb2_grpc
from mailrail_queue.settings import QueueSettings
from mailrail_queue.store import faults


class Peers:
    """The other replicas, by the addresses in their heartbeats."""

    def __init__(self, settings: QueueSettings) -> None:
        self._settings = settings
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._owners: dict[int, str] = {}
        self._shards: set[int] = set()
        self._everybody = False
        self._addresses: frozenset[str] = frozenset()
        self._wake = asyncio.Event()
        self._log = log.get_logger()

    def learn(self, owners: Mapping[int, str], addresses: frozenset[str]) -> None:
        """Shard → address of its owner, for shards of others; and the addresses of all others."""
        self._owners = dict(owners)
        self._addresses = addresses
        if not self._channels.keys() <= addresses:
            self._wake.set()

    def wake(self, shards: set[int]) -> None:
        """There is work in these shards: wake their owners, in batches."""
        self._shards |= shards
        self._wake.set()

    def wake_everybody(self, shards: set[int]) -> None:
        """The same, to all: one that no longer owns a shard may still have a delivery of it in flight (ADM-02)."""
        self._shards |= shards
        self._everybody = True
        self._wake.set()

    async def run(self) -> None:
        """Send hints until cancelled."""
        try:
            while True:
                await self._wake.wait()
                await asyncio.sleep(0.005)
                self._wake.clear()
                for gone in [self._channels.pop(one) for one in self._channels.keys() - self._addresses]:
                    await gone.close()
                shards, self._shards = self._shards, set()
                everybody, self._everybody = self._everybody, False
                targets: dict[str, set[int]] = {a: set(shards) for a in self._addresses} if everybody else {}
                for number in shards:
                    address = self._owners.get(number)
                    if address:
                        targets.setdefault(address, set()).add(number)
                await asyncio.gather(*(self._tell(address, found) for address, found in targets.items()))
        finally:
            for channel in self._channels.values():
                await channel.close()

    async def _tell(self, address: str, shards: set[int]) -> None:
        try:
            channel = self._channels.get(address)
            if channel is None:
                channel = self._channels[address] = rpc.channel(self._settings, address, "queue")
            stub: peer_pb2_grpc.PeerServiceAsyncStub = peer_pb2_grpc.PeerServiceStub(channel)
            await stub.Wake(peer_pb2.WakeRequest(shards=sorted(shards)), timeout=2)
        except Exception as error:
            if not isinstance(error, grpc.aio.AioRpcError | BadSettings):
                faults.failed(self._log, "peer_hints", error, peer=address)
            self._log.debug("cannot wake peer", peer=address, error=str(error)[:200])
            gone = self._channels.pop(address, None)
            if gone is not None:
                await gone.close()
