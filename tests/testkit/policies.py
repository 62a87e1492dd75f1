"""Policies of MTA-STS: what the DNS and the policy hosts say, and the cache of one process on a real Postgres."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from mailrail.core.mtasts.answer import FetchFailed, FetchTrouble
from mailrail.core.mtasts.policy import Policy
from mailrail.core.policy_record import NoRecord
from mailrail.kit.postgres import Login
from mailrail_outbound.store import mta_sts
from mailrail_outbound.store.connection import DomainDatabase
from mailrail_outbound.tls_policy.cache import PolicyCache, PolicyFetch, Record
from mailrail_outbound.tls_policy.fetch import FetchPutOff

REFUSED = FetchFailed(FetchTrouble.WEBPKI, "its certificate does not prove it")
NOTHING = NoRecord("there is no TXT record")


class PolicyWorld:
    """What the DNS says of records, and policy hosts of policies, and how often they were asked."""

    def __init__(self) -> None:
        self.policies: dict[str, Policy | FetchFailed | FetchPutOff] = {}
        self.records: dict[str, Record] = {}
        self.fetches: Counter[str] = Counter()
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def fetch(self, domain: str) -> Policy | FetchFailed:
        self.fetches[domain] += 1
        await self.go_on.wait()
        found = self.policies.get(domain, REFUSED)
        if isinstance(found, FetchPutOff):
            raise found
        return found

    async def record(self, domain: str) -> Record:
        return self.records.get(domain, NOTHING)


@contextlib.asynccontextmanager
async def policy_process(url: str, there: PolicyWorld | PolicyFetch, **bounds: Any) -> AsyncIterator[PolicyCache]:
    """The cache of one process, running; without a PolicyWorld no domain has a record.

    `bounds`: of the table (`most`, `most_of_zone`) and of memory.
    """
    database = DomainDatabase(Login.of(url), "test")
    room = mta_sts.Room(most=bounds.pop("most", 1000), most_of_zone=bounds.pop("most_of_zone", 1000))
    made = PolicyCache(database, there, room=room, **bounds)
    records = there if isinstance(there, PolicyWorld) else PolicyWorld()
    running = asyncio.create_task(made.run(records))
    try:
        yield made
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await database.close()
