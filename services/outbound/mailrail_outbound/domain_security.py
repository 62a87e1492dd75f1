"""Five indicators of how well mail to a domain is protected (BAR-01b): what was learned, and what the DNS says now.

The three look-ups run side by side, and none waits for or fails another. What they find is in memory for as long as the
DNS says, the whole for moments: a page asks for the same domain at each change of a draft.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable
from typing import Final, TypeVar

from mailrail.core.outbound.learned import LearnedDomain
from mailrail.core.outbound.targets import NoHosts, mx_hosts
from mailrail.core.tlspolicy.facts import DnsFacts
from mailrail.core.tlspolicy.indicators import DomainSecurity, KnownHosts, KnownPolicy, LookupFailure, domain_security
from mailrail.kit import clock
from mailrail.kit.resolver import DnsResolver
from mailrail_outbound.hosts import awaited
from mailrail_outbound.settings import OutboundSettings
from mailrail_outbound.store import learned
from mailrail_outbound.store.connection import DomainDatabase
from mailrail_outbound.tls_policy.dane import DaneLookup
from mailrail_outbound.tls_policy.sts import StsLookup
from mailrail_outbound.tls_reports import written

WITHIN: Final = 5.0
"""Seconds for all of it; what is not known by then is an error."""
_KEEP: Final = 10.0
_ENTRIES: Final = 5_000
_FAMILIES: Final = ("ipv4", "ipv6")
_T = TypeVar("_T")


class DomainSecurityReader:
    """Finds out the five of a domain."""

    def __init__(
        self,
        resolver: DnsResolver,
        sts: StsLookup,
        dane: DaneLookup,
        database: DomainDatabase,
        settings: OutboundSettings,
    ) -> None:
        self._resolver, self._sts, self._dane, self._database = resolver, sts, dane, database
        self._port = settings.direct_port
        self._known: OrderedDict[tuple[str, str], tuple[float, DomainSecurity]] = OrderedDict()
        self._asking: dict[tuple[str, str], asyncio.Task[DomainSecurity]] = {}

    async def of(self, domain: str, transport: str) -> DomainSecurity:
        """The five of a domain in A-labels, for mail by a transport (`namespace/name`; empty: direct). Never raises."""
        key = (domain, transport)
        known = self._known.get(key)
        if known is not None and known[0] > clock.now():
            return known[1]
        asking = self._asking.get(key)
        if asking is None:
            asking = self._asking[key] = asyncio.create_task(self._find(domain, transport))
            asking.add_done_callback(lambda _: self._asking.pop(key, None))
        found = await asyncio.shield(asking)
        self._known[key] = (clock.now() + _KEEP, found)
        self._known.move_to_end(key)
        while len(self._known) > _ENTRIES:
            self._known.popitem(last=False)
        return found

    async def _find(self, domain: str, transport: str) -> DomainSecurity:
        found, policy, hosts = await asyncio.gather(
            _or_failed(self._learned(domain, transport)),
            _or_failed(self._policy(domain)),
            _or_failed(self._hosts(domain)),
        )
        return domain_security(found, policy, hosts)

    async def _learned(self, domain: str, transport: str) -> LearnedDomain | None:
        async with self._database.reading.use() as connection:
            rows = await learned.read(connection, [domain])
        return next((row for row in rows if row.transport == transport), None)

    async def _policy(self, domain: str) -> KnownPolicy:
        sts = await awaited(self._sts.of_domain(domain))
        facts, verdict, now = sts.facts(""), sts.verdict, time.time()
        if verdict is None or verdict.policy is not None:
            lines = tuple(str(verdict.policy).splitlines()) if verdict is not None else ()
            return KnownPolicy(facts.policy, now, lines=lines)
        return KnownPolicy(facts.policy, now, facts.trouble)

    async def _hosts(self, domain: str) -> KnownHosts:
        if not self._resolver.trusted:
            return KnownHosts(time.time(), trusted=False)
        mx = await self._resolver.mx_answer(domain)
        hosts = mx_hosts(domain, mx.records, own_names=frozenset(), random=lambda: 0.0)
        now = time.time()
        if isinstance(hosts, NoHosts):
            return KnownHosts(now, trusted=True, secure=mx.secure)
        host = hosts.names[0]
        found: DnsFacts | LookupFailure | None = None
        records: tuple[str, ...] = ()
        if mx.secure:
            dane = await awaited(self._dane.of_host(domain, host, _FAMILIES, self._port))
            found = LookupFailure(dane.failure, now) if dane.failure else dane.facts
            records = written(dane.demand.records) if dane.demand is not None else ()
        return KnownHosts(now, trusted=True, secure=mx.secure, host=host, dns=found, records=records)


async def _or_failed(part: Awaitable[_T]) -> _T | LookupFailure:
    """What comes of one look-up, whatever it raises."""
    try:
        async with asyncio.timeout(WITHIN):
            return await part
    except TimeoutError:
        return LookupFailure(f"no answer within {WITHIN:.0f} s", time.time())
    except Exception as error:
        return LookupFailure(str(error) or type(error).__name__, time.time())
