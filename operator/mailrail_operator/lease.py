"""Who leads: a Lease of coordination.k8s.io, renewed while the process leads.

The lease only elects. What a leader that was stopped and resumed could still do is prevented where it would do harm:
the config service refuses its epoch (CFG-04), and it writes no status once its own clock says that the lease ran out.
Whether somebody else's lease ran out is judged by how long we saw it unchanged, never by comparing clocks.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import aiohttp

from mailrail.kit import log
from mailrail.kit.kubernetes import Api, ApiError

_BROKEN = (ApiError, aiohttp.ClientError, TimeoutError, OSError)


@dataclass(frozen=True, slots=True)
class Terms:
    """Durations, in seconds."""

    lease: float = 15.0
    renew: float = 10.0
    retry: float = 2.0


class Lost(Exception):
    """The lease was not renewed in time, or somebody else has it: this process must not lead any more."""


class LeaderLease:
    """One candidate. `clock` is monotonic seconds; it goes on while the process is stopped."""

    def __init__(
        self, api: Api, namespace: str, name: str, identity: str, terms: Terms, clock: Callable[[], float]
    ) -> None:
        self._api, self._namespace, self._name, self._identity = api, namespace, name, identity
        self._terms, self._clock = terms, clock
        self._seen: tuple[str, str] = ("", "")
        self._seen_at = clock()
        self._renewed = float("-inf")
        self._log = log.get_logger()

    @property
    def held(self) -> bool:
        """Whether we lead, by our own clock."""
        return self._clock() - self._renewed < self._terms.renew

    @property
    def _collection(self) -> str:
        return f"/apis/coordination.k8s.io/v1/namespaces/{self._namespace}/leases"

    async def acquire(self) -> None:
        """Wait until we lead."""
        while True:
            try:
                if await self._try():
                    return
            except _BROKEN as error:
                self._log.warning("cannot acquire the lease", error=str(error))
            await asyncio.sleep(self._terms.retry)

    async def keep(self) -> None:
        """Renew until it cannot be done in time. Raises Lost."""
        while True:
            await asyncio.sleep(self._terms.retry)
            try:
                if not await self._try():
                    raise Lost(f"{self._seen[0] or 'another process'} holds the lease now")
            except _BROKEN as error:
                self._log.warning("cannot renew the lease", error=str(error))
            if not self.held:
                raise Lost(f"the lease was not renewed for {self._terms.renew:g} s")

    async def release(self) -> None:
        """Let another lead at once, after a clean stop."""
        try:
            lease = await self._api.get(f"{self._collection}/{self._name}")
            if lease is not None and lease["spec"].get("holderIdentity") == self._identity:
                lease["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
                await self._api.call("PUT", f"{self._collection}/{self._name}", lease)
        except _BROKEN as error:
            self._log.warning("cannot release the lease", error=str(error))
        self._renewed = float("-inf")

    async def _try(self) -> bool:
        began = self._clock()
        async with asyncio.timeout(max(self._terms.renew / 2, 1)):
            lease = await self._api.get(f"{self._collection}/{self._name}")
            if lease is None:
                await self._api.call("POST", self._collection, self._fresh())
            else:
                spec = lease["spec"]
                holder = spec.get("holderIdentity") or ""
                if holder not in ("", self._identity) and not self._expired(holder, spec):
                    return False
                if holder != self._identity:
                    spec["leaseTransitions"] = int(spec.get("leaseTransitions") or 0) + 1
                    spec["acquireTime"] = _now()
                spec |= self._ours()
                try:
                    await self._api.call("PUT", f"{self._collection}/{self._name}", lease)
                except ApiError as error:
                    if error.code == 409:  # somebody was faster
                        return False
                    raise
        self._renewed = began  # from before the call: that is when the others start to count
        return True

    def _expired(self, holder: str, spec: dict[str, Any]) -> bool:
        seen = (holder, str(spec.get("renewTime")))
        if seen != self._seen:
            self._seen, self._seen_at = seen, self._clock()
        return self._clock() - self._seen_at > float(spec.get("leaseDurationSeconds") or self._terms.lease)

    def _ours(self) -> dict[str, Any]:
        # The API holds whole seconds, at least one.
        seconds = max(1, round(self._terms.lease))
        return {"holderIdentity": self._identity, "leaseDurationSeconds": seconds, "renewTime": _now()}

    def _fresh(self) -> dict[str, Any]:
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._name, "namespace": self._namespace},
            "spec": self._ours() | {"acquireTime": _now(), "leaseTransitions": 0},
        }


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
