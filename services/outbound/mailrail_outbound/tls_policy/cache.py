"""MTA-STS policies in memory, before the cache in Postgres that all share (STS-16b, STS-17b, STS-18b, STS-19b).

What is known of a domain ("there is no policy" too) is in memory once Postgres was read for it; deliveries to it then
cost no statement. Reads of many domains share one. While Postgres is away what is in memory counts on, however old, and
of any other domain nothing is known: `PolicyUnread`, and no delivery may take that for "no policy" (STS-15 holds only
where the cache was read).

    fetched            in memory at once, in Postgres as soon as it takes it; until then it is not pushed out
    read again         after a minute, beside the delivery; after five, before it
    Postgres set back  what is in memory and was fetched later is written again

Only one process fetches for a domain at a time, by a claim in Postgres; without Postgres each does.
"""

import asyncio
import contextlib
import math
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, Protocol

from mailrail.core.mtasts.answer import FetchFailed
from mailrail.core.mtasts.cache import (
    CachedPolicy,
    DnsTrouble,
    LastFailure,
    PolicyStep,
    PolicyVerdict,
    after_fetch,
    is_reported,
    next_step,
)
from mailrail.core.mtasts.policy import Policy
from mailrail.core.mtasts.record import StsRecord
from mailrail.core.policy_record import NoRecord
from mailrail.kit import clock, log
from mailrail.kit.run import end
from mailrail_outbound import metrics
from mailrail_outbound.store import mta_sts
from mailrail_outbound.store.connection import DomainDatabase, Unavailable
from mailrail_outbound.tls_policy.fetch import FetchPutOff

Record = StsRecord | NoRecord | DnsTrouble
"""What the DNS says of a domain's record."""

_FRESH: Final = 60.0
"""Seconds for which nobody looks whether Postgres has something newer."""
_USABLE: Final = 300.0
"""Seconds after which a delivery waits for that look, while Postgres answers."""
_AGAIN: Final = 1.0
"""Seconds until Postgres is asked again after it did not answer."""
_BATCH: Final = 500
"""Domains of a statement."""
_LOOK: Final = 0.25
"""Seconds between two looks whether another process has fetched."""
_NO_ROOM: Final = 600.0
"""Seconds until Postgres is asked again to take a policy for which it had no room."""
_MAILED: Final = 6 * 3600.0
"""Seconds until it is noted again that mail went to a domain."""
_WRITE_EVERY: Final = 10.0
"""Seconds until it is written which domains were mailed."""
_REFRESH_EVERY: Final = 60.0
_REFRESH_AT_ONCE: Final = 10
_WEIGHT: Final = 512  # octets of an entry
_POLICY_WEIGHT: Final = 1024  # octets of its policy, besides its mx
_MX_WEIGHT: Final = 60  # octets of an mx, besides its letters


class PolicyUnread(Exception):
    """Nothing is known of a domain, because Postgres could not be read. A delivery goes back undialled."""


class RecordLookup(Protocol):
    """Asks the DNS for the record of a domain."""

    async def record(self, domain: str) -> Record:
        """What it says, kept or asked for."""


class PolicyFetch(Protocol):
    """Fetches policies."""

    async def fetch(self, domain: str) -> Policy | FetchFailed:
        """The policy of a domain, or why there is none. Raises FetchPutOff."""


@dataclass(slots=True)
class _Entry:
    cached: CachedPolicy | None
    failure: LastFailure | None
    read: float
    """When Postgres was read for it, by kit.clock; or when it was fetched without it."""
    unsaved: bool = False
    """Postgres has it not: it must not be pushed out while it holds."""
    not_before: float = 0.0
    """By kit.clock: no attempt to save it before."""
    mailed: float = -math.inf
    """When it was noted that mail went there, by kit.clock."""
    weight: int = 0
    """Octets of memory, about."""


class PolicyCache:
    """What is known of the policies of domains."""

    def __init__(
        self,
        database: DomainDatabase,
        fetcher: PolicyFetch,
        *,
        room: mta_sts.Room,
        fetch_seconds: float = 60.0,
        octets: int = 64 * 1024 * 1024,
        most_unsaved: int = 1000,
    ) -> None:
        """`fetch_seconds`: what a fetch may take, and as much again until its turn comes. `octets`: about so many of
        memory. `most_unsaved`: policies that are kept although Postgres has no room, or is away."""
        self._database, self._fetcher, self._room = database, fetcher, room
        self._octets, self._most_unsaved = octets, most_unsaved
        self._fetch_seconds = fetch_seconds
        self._claim_seconds = 2 * fetch_seconds + 10.0
        """Who died fetching holds others up for as long."""
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._weight = 0
        self._unsaved: dict[str, None] = {}
        self._unsaved_weight = 0
        self._failures: dict[str, LastFailure] = {}
        """To be written."""
        self._mailed: dict[str, None] = {}
        """To be written."""
        self._wanted: dict[str, asyncio.Future[_Entry | None] | None] = {}
        """To be read, and who waits for it."""
        self._asked, self._to_write = asyncio.Event(), asyncio.Event()
        self._fetching: dict[tuple[str, str], asyncio.Task[PolicyVerdict]] = {}
        self._away = ""
        """Why the last read failed; empty: it did not."""
        self._ahead = time.time() - clock.now()
        """Seconds by which Postgres's clock is ahead of kit.clock; this machine's own until Postgres told."""
        self._log = log.get_logger()

    def now(self) -> float:
        """Seconds since the epoch by Postgres's clock, as far as it is known."""
        return clock.now() + self._ahead

    # --- for deliveries -----------------------------------------------------------------------------------------------

    def kept_verdict(self, domain: str, record: Record) -> PolicyVerdict | None:
        """See `verdict`; None where something must be waited for."""
        entry = self._usable(domain)
        if entry is None:
            return None
        verdict = next_step(entry.cached, record, entry.failure, self.now())
        if verdict.step is PolicyStep.FETCH:
            return None
        metrics.POLICY_READS.inc("memory")
        self._note_mailed(domain, entry)
        return verdict

    async def verdict(self, domain: str, record: Record) -> PolicyVerdict:
        """What a delivery goes by, after what had to be read and fetched; never FETCH. Raises PolicyUnread."""
        kept = self.kept_verdict(domain, record)
        if kept is not None:
            return kept
        entry = await self._read(domain)
        verdict = next_step(entry.cached, record, entry.failure, self.now())
        if verdict.step is PolicyStep.FETCH:
            assert isinstance(record, StsRecord)
            verdict = await self._fetched(domain, record)
        self._note_mailed(domain, self._entries.get(domain))
        return verdict

    # --- as a process -------------------------------------------------------------------------------------------------

    async def run(self, records: RecordLookup) -> None:
        """Read, write and refresh until cancelled. `records`: asked for a refresh, which no delivery brings one to."""
        parts = (self._keep_reading(), self._keep_writing(), self._keep_fresh(records))
        tasks = [asyncio.create_task(part) for part in parts]
        try:
            await asyncio.gather(*tasks)
        finally:
            await end(*tasks, *self._fetching.values())

    # --- reading ------------------------------------------------------------------------------------------------------

    def _usable(self, domain: str) -> _Entry | None:
        entry = self._entries.get(domain)
        if entry is None:
            return None
        self._entries.move_to_end(domain)
        age = clock.now() - entry.read
        if age < _FRESH:
            return entry
        if age >= _USABLE and not self._away:
            return None
        if domain not in self._wanted and len(self._wanted) < 10 * _BATCH:
            self._wanted[domain] = None
            self._asked.set()
        return entry

    async def _read(self, domain: str) -> _Entry:
        """What Postgres has of it now, or memory while Postgres is away. Raises PolicyUnread."""
        waiting = self._wanted.get(domain)
        if waiting is None:
            waiting = self._wanted[domain] = asyncio.get_running_loop().create_future()
            self._asked.set()
        entry = await asyncio.shield(waiting)
        if entry is None:
            metrics.POLICY_READS.inc("unread")
            raise PolicyUnread(
                f"whether {domain} has an MTA-STS policy is not known, as Postgres cannot be read: {self._away}"
            )
        return entry

    async def _keep_reading(self) -> None:
        while True:
            await self._asked.wait()
            self._asked.clear()
            while self._wanted:
                await self._read_batch()
            if self._away:
                await asyncio.sleep(_AGAIN)

    async def _read_batch(self) -> None:
        # Those of deliveries that wait come first.
        domains = sorted(self._wanted, key=lambda domain: self._wanted[domain] is None)[:_BATCH]
        asked = clock.now()
        merged: dict[str, _Entry] = {}
        try:
            async with self._database.reading.use() as connection:
                now, found = await mta_sts.read(connection, domains)
            self._set_time(now, asked)
            merged = {domain: self._merge(found[domain], asked) for domain in domains}
            self._away = ""
            metrics.POLICY_READS.inc("postgres", by=len(domains))
        except Unavailable as error:
            self._away = str(error)
        except Exception as error:  # whatever it is: who waits must hear of it
            self._log.exception("cannot read policies")
            self._away = f"a mistake of ours: {error!r}"[:300]
        for domain in domains:
            waiting = self._wanted.pop(domain)
            if waiting is not None and not waiting.done():  # what came of it may be pushed out already
                waiting.set_result(merged.get(domain) or self._entries.get(domain))

    def _set_time(self, moment: float, asked: float) -> None:
        self._ahead = min(max(self._ahead, moment - clock.now()), moment - asked)

    def _merge(self, stored: mta_sts.StoredPolicy, read: float) -> _Entry:
        entry = self._entries.get(stored.domain)
        cached, failure = stored.cached, stored.failure
        unsaved = False
        if entry is not None:
            mine = entry.cached
            if (
                mine is not None
                and self.now() < mine.expires
                and (cached is None or cached.fetched < mine.fetched - 0.001)
            ):
                # Postgres was away when it was fetched, had no room for it, or was set back since (STS-16): what was
                # promised holds, and whoever takes a table away takes no policy.
                cached, unsaved = mine, True
            if entry.failure is not None and (failure is None or failure.at < entry.failure.at):
                failure = entry.failure if cached is None or entry.failure.at > cached.fetched else failure
        return self._put(stored.domain, cached, failure, read, unsaved=unsaved)

    def _put(
        self, domain: str, cached: CachedPolicy | None, failure: LastFailure | None, read: float, *, unsaved: bool
    ) -> _Entry:
        before = self._entries.pop(domain, None)
        if before is not None:
            self._weight -= before.weight
            self._unsaved_weight -= before.weight if before.unsaved else 0
        entry = _Entry(cached, failure, read, unsaved, weight=_weight_of(cached))
        if before is not None:
            entry.mailed = before.mailed
            entry.not_before = before.not_before if before.unsaved else 0.0
        self._entries[domain] = entry
        self._weight += entry.weight
        if unsaved:
            self._unsaved[domain] = None
            self._unsaved_weight += entry.weight
            self._to_write.set()
        else:
            self._unsaved.pop(domain, None)
        self._make_room()
        return entry

    def _make_room(self) -> None:
        """Push out what was not used for long, but nothing that only this process knows, as far as its bound goes."""
        while len(self._unsaved) > self._most_unsaved or self._unsaved_weight > self._octets // 2:
            domain = next(iter(self._unsaved))
            del self._unsaved[domain]
            self._entries[domain].unsaved = False
            self._unsaved_weight -= self._entries[domain].weight
            metrics.POLICIES_NOT_KEPT.inc("memory")
        metrics.POLICIES_UNSAVED.set(len(self._unsaved))
        kept = 0
        while self._weight > self._octets and kept < len(self._entries):
            domain, entry = next(iter(self._entries.items()))
            if entry.unsaved:
                self._entries.move_to_end(domain)
                kept += 1
                continue
            del self._entries[domain]
            self._weight -= entry.weight

    # --- fetching -----------------------------------------------------------------------------------------------------

    async def _fetched(self, domain: str, record: StsRecord) -> PolicyVerdict:
        key = (domain, record.id)
        task = self._fetching.get(key)
        if task is None:
            task = self._fetching[key] = asyncio.create_task(self._fetch(domain, record))
            task.add_done_callback(lambda _: self._fetching.pop(key, None))
        # Who stops waiting must not take it from the others.
        return await asyncio.shield(task)

    async def _fetch(self, domain: str, record: StsRecord) -> PolicyVerdict:
        until = clock.now() + self._fetch_seconds
        while True:
            claim = await self._claimed(domain)
            entry = await self._read(domain)  # another process may have fetched since
            verdict = next_step(entry.cached, record, entry.failure, self.now())
            if verdict.step is not PolicyStep.FETCH:
                if claim is mta_sts.Claim.OURS:
                    await self._release(domain)
                return verdict
            if claim is not mta_sts.Claim.ANOTHERS:
                break
            if (live := self._live(domain, entry)) is not None:
                return _use(live, "still the cached one, while another process fetches the new one")
            if clock.now() >= until:
                return _put_off("another process fetches the MTA-STS policy, and has not ended yet")
            await asyncio.sleep(_LOOK)
        try:
            fetched = await self._fetcher.fetch(domain)
        except FetchPutOff as put_off:
            await self._release(domain)
            live = self._live(domain, entry)
            return _use(live, str(put_off)) if live is not None else _put_off(str(put_off))
        return self._keep(domain, record, fetched, entry)

    async def _claimed(self, domain: str) -> mta_sts.Claim:
        try:
            async with self._database.writing.use() as connection:
                return await mta_sts.claim(connection, domain, self._claim_seconds, self._room)
        except Unavailable:  # nobody can claim, so each fetches
            return mta_sts.Claim.NO_ROOM

    async def _release(self, domain: str) -> None:
        with contextlib.suppress(Unavailable):  # it runs out
            async with self._database.writing.use() as connection:
                await mta_sts.release(connection, domain)

    def _keep(self, domain: str, record: StsRecord, fetched: Policy | FetchFailed, known: _Entry) -> PolicyVerdict:
        """What came of a fetch, for all that wait and for later. `known`: what was known before it."""
        entry = self._newest(domain, known)
        before, now = entry.cached, self.now()
        verdict, cached = after_fetch(before, record, fetched, now)
        result = _result(before, fetched, now)
        metrics.POLICY_FETCHES.inc(result)
        if result == "not_refreshed" and isinstance(fetched, FetchFailed):
            self._log.warning("cannot refresh an MTA-STS policy", domain=domain, reason=fetched.reason)
        if isinstance(fetched, FetchFailed):
            failure = self._failures[domain] = LastFailure(record.id, now, fetched)
            while len(self._failures) > 10 * _BATCH:
                self._failures.pop(next(iter(self._failures)))
            self._put(domain, cached, failure, entry.read, unsaved=entry.unsaved)
        else:
            self._failures.pop(domain, None)
            self._put(domain, cached, None, clock.now(), unsaved=True).not_before = 0.0
        self._to_write.set()
        return verdict

    def _newest(self, domain: str, known: _Entry) -> _Entry:
        """What is known of a domain after something else was waited for: it may have changed, or be pushed out, and
        what was `known` before holds (STS-16b)."""
        return self._entries.get(domain, known)

    def _live(self, domain: str, known: _Entry) -> CachedPolicy | None:
        cached = self._newest(domain, known).cached
        return cached if cached is not None and self.now() < cached.expires else None

    # --- writing ------------------------------------------------------------------------------------------------------

    def _note_mailed(self, domain: str, entry: _Entry | None) -> None:
        if entry is None or entry.cached is None or entry.mailed > clock.now() - _MAILED or entry.unsaved:
            return
        if len(self._mailed) < 10 * _BATCH:
            entry.mailed = clock.now()
            self._mailed[domain] = None

    async def _keep_writing(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_WRITE_EVERY):
                    await self._to_write.wait()
            self._to_write.clear()
            try:
                await self._write()
                continue
            except Unavailable:
                pass
            except Exception:  # a mistake of ours, and what is in memory holds
                self._log.exception("cannot write policies")
            await asyncio.sleep(_AGAIN)
            self._to_write.set()

    async def _write(self) -> None:
        """All that waits. Raises Unavailable; what was not written waits on."""
        lane = self._database.writing
        for domain in list(self._unsaved):
            entry = self._entries.get(domain)
            if entry is None:  # it changed while another one was written
                continue
            cached = entry.cached
            if cached is None or self.now() >= cached.expires:
                self._put(domain, cached, entry.failure, entry.read, unsaved=False)
                continue
            if clock.now() < entry.not_before:
                continue
            async with lane.use() as connection:
                stored = await mta_sts.store(connection, domain, cached, self._room)
            if (now := self._entries.get(domain)) is None or now.cached != cached:
                continue
            if stored:
                self._put(domain, cached, now.failure, now.read, unsaved=False)
            else:
                metrics.POLICIES_NOT_KEPT.inc("postgres")
                now.not_before = clock.now() + _NO_ROOM
                self._wanted.setdefault(domain, None)  # or another process has fetched a later one
                self._asked.set()
        for domain, failure in list(self._failures.items()):
            async with lane.use() as connection:
                await mta_sts.store_failure(connection, domain, failure.id, failure.failed, self._room)
            if self._failures.get(domain) is failure:
                del self._failures[domain]
        while self._mailed:
            batch = list(self._mailed)[:_BATCH]
            async with lane.use() as connection:
                await mta_sts.note_mailed(connection, batch)
            for domain in batch:
                self._mailed.pop(domain, None)

    # --- refreshing ---------------------------------------------------------------------------------------------------

    async def _keep_fresh(self, records: RecordLookup) -> None:
        while True:
            try:
                async with self._database.writing.use() as connection:
                    due = await mta_sts.claim_due(connection, _REFRESH_AT_ONCE, self._claim_seconds)
            except Unavailable:
                due = []
            except Exception:  # a mistake of ours, and what is in memory holds
                self._log.exception("cannot refresh policies")
                due = []
            for result in await asyncio.gather(*(self._refresh(each, records) for each in due), return_exceptions=True):
                if isinstance(result, Exception):
                    self._log.error("cannot refresh an MTA-STS policy", reason=repr(result)[:300])
            if len(due) < _REFRESH_AT_ONCE:
                await asyncio.sleep(_REFRESH_EVERY)

    async def _refresh(self, stored: mta_sts.StoredPolicy, records: RecordLookup) -> None:
        """Fetch a policy before it ends, without mail (STS-19). Whatever the record says: it is a hint alone."""
        known = self._merge(stored, clock.now())
        record = await records.record(stored.domain)
        if not isinstance(record, StsRecord):
            if known.cached is None:
                return
            record = StsRecord(known.cached.id)
        try:
            fetched = await self._fetcher.fetch(stored.domain)
        except FetchPutOff:
            return
        self._keep(stored.domain, record, fetched, known)


def _weight_of(cached: CachedPolicy | None) -> int:
    if cached is None:
        return _WEIGHT
    return _WEIGHT + _POLICY_WEIGHT + sum(_MX_WEIGHT + len(name) for name in cached.policy.mx)


def _result(cached: CachedPolicy | None, fetched: Policy | FetchFailed, now: float) -> str:
    """For the metric, which the operator is alerted by (STS-20)."""
    if isinstance(fetched, Policy):
        return "fetched"
    if cached is None or now >= cached.expires:
        return "failed"
    return "not_refreshed" if is_reported(cached, now) else "left"


def _use(cached: CachedPolicy, why: str) -> PolicyVerdict:
    return PolicyVerdict(PolicyStep.USE, f"MTA-STS policy {cached.id}, mode {cached.policy.mode}: {why}", cached.policy)


def _put_off(why: str) -> PolicyVerdict:
    return PolicyVerdict(PolicyStep.DEFER, why, trouble=why)
