"""Looks up what `core/dnscheck` asks for, each domain every few minutes and at once when what it needs changed."""

import asyncio
import contextlib
import heapq
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Final

from mailrail.core.config.compiler import Compiled
from mailrail.core.config.diagnostics import ConsumerState
from mailrail.core.dkim.signature import KeyName
from mailrail.core.dnscheck.answers import DnsVerdict, RecordState
from mailrail.core.dnscheck.needs import Needs, needs_of
from mailrail.core.mtasts.policy import Policy
from mailrail.core.revision.revision import ObjectRef, Role
from mailrail.kit import log
from mailrail.kit.dns_check import DnsCheckResolver, looked_up
from mailrail_operator import metrics

_AT_A_TIME: Final = 16


class DnsChecks:
    """The verdicts by domain, and since when DKIM records stand. `changed` is called when a verdict differs,
    `on_seen` when a record of a key has come or gone."""

    def __init__(
        self,
        resolver: DnsCheckResolver,
        addresses: Sequence[str],
        every: float,
        changed: Callable[[], None],
        keys_seen: dict[tuple[str, str], float],
        on_seen: Callable[[], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`keys_seen`: records of DKIM keys that stand, as in Sources; it is kept up to date here."""
        self._resolver, self._addresses, self._every, self._changed = resolver, tuple(addresses), every, changed
        self._keys_seen, self._on_seen, self._clock = keys_seen, on_seen, clock
        self._needs: dict[ObjectRef, Needs] = {}
        self._due: dict[ObjectRef, float] = {}
        self._heap: list[tuple[float, ObjectRef]] = []  # of what is due when; what `_due` does not confirm is old
        self._wake = asyncio.Event()
        self._policies: dict[ObjectRef, tuple[Policy, int]] = {}  # with the first revision that is known to have it
        self._unserved: set[ObjectRef] = set()
        self._served = 0  # the oldest revision that a live policy process runs; 0: there is none
        self.verdicts: dict[ObjectRef, DnsVerdict] = {}
        self._log = log.get_logger()

    def take(self, compiled: Compiled, number: int) -> None:
        """What the domains need since the last compilation, which is revision `number`; those that need something else
        are looked up at once."""
        seen: set[ObjectRef] = set()
        for domain in compiled.revision.domains:
            seen.add(domain.ref)
            needs = needs_of(domain, compiled.revision, self._addresses)
            if needs is None:
                self._needs.pop(domain.ref, None)  # so that it is looked up at once when the gateway is back
                self._due.pop(domain.ref, None)
                self.verdicts[domain.ref] = DnsVerdict.not_checked("its gateway does not exist")
            elif self._needs.get(domain.ref) != (needs := self._with_policy(domain.ref, needs, number)):
                self._need(domain.ref, needs)
        for ref in self._needs.keys() - seen:
            del self._needs[ref], self._due[ref]
        for ref in self._policies.keys() - seen:
            del self._policies[ref]
        self._unserved &= self._policies.keys()
        for ref in self.verdicts.keys() - seen:
            del self.verdicts[ref]

    def heard(self, consumers: Iterable[ConsumerState]) -> None:
        """Which revision each process runs now: records are told once their policies are served (STS-23b)."""
        self._served = min((c.revision for c in consumers if c.live and c.role is Role.POLICY), default=0)
        for ref in [ref for ref in self._unserved if self._policies[ref][1] <= self._served]:
            self._unserved.discard(ref)
            if ref in self._needs:
                self._need(ref, replace(self._needs[ref], policy_served=True))

    def _with_policy(self, ref: ObjectRef, needs: Needs, number: int) -> Needs:
        """The same, with whether its policy is served. Once it is, a process that starts takes nothing back."""
        if needs.policy is None:
            self._policies.pop(ref, None)
            self._unserved.discard(ref)
            return needs
        known = self._policies.get(ref)
        if known is None or known[0] != needs.policy or number < known[1]:  # of another history
            self._policies[ref] = (needs.policy, number)
            if number > self._served:
                self._unserved.add(ref)
            else:
                self._unserved.discard(ref)
        return replace(needs, policy_served=ref not in self._unserved)

    def _need(self, ref: ObjectRef, needs: Needs) -> None:
        self._needs[ref] = needs
        self._schedule(ref, 0.0)
        self._wake.set()

    async def run(self) -> None:
        """Look up whatever is due, until cancelled."""
        await asyncio.gather(*(self._work() for _ in range(_AT_A_TIME)))

    async def _work(self) -> None:
        while True:
            ref = await self._next()
            await self._look(ref, self._needs[ref])

    def _schedule(self, ref: ObjectRef, at: float) -> None:
        self._due[ref] = at
        heapq.heappush(self._heap, (at, ref))

    async def _next(self) -> ObjectRef:
        """The domain that is due first. A changed one comes before all others, however slow the resolver is."""
        while True:
            while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
                heapq.heappop(self._heap)
            now = time.monotonic()
            if self._heap and self._heap[0][0] <= now:
                _, ref = heapq.heappop(self._heap)
                self._schedule(ref, now + self._every)
                return ref
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._heap[0][0] - now if self._heap else None):
                    await self._wake.wait()

    async def _look(self, ref: ObjectRef, needs: Needs) -> None:
        verdict = await looked_up(needs, self._resolver)
        if self._needs.get(ref) != needs:
            return  # it needs something else by now, and is due again
        metrics.DNS_CHECKS.labels(verdict.status).inc()
        self._see_keys(needs, verdict)
        if self.verdicts.get(ref) != verdict:
            self.verdicts[ref] = verdict
            self._log.info("dns checked", domain=needs.domain, status=verdict.status, reason=verdict.reason.value)
            self._changed()

    def _see_keys(self, needs: Needs, verdict: DnsVerdict) -> None:
        """What a look says of the records of keys. No answer changes nothing: what was known before still holds."""
        states = {record.name: record.state for record in verdict.records if record.purpose == "DKIM"}
        changed = False
        for selector, text in needs.dkim:
            key = (str(KeyName(needs.domain, selector)), text)
            state = states.get(key[0], RecordState.UNKNOWN)
            if state is RecordState.MATCH and key not in self._keys_seen:
                self._keys_seen[key] = int(self._clock())
                changed = True
            elif state in (RecordState.MISSING, RecordState.MISMATCH):
                changed = self._keys_seen.pop(key, None) is not None or changed
        if changed:
            self._log.info("records of DKIM keys came or went", domain=needs.domain)
            self._on_seen()
