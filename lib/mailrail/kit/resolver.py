"""The DNS resolver of every service: dnspython behind a cache with one policy (RFC 2181 8).

Answers are kept for their TTL within bounds, "there is none" for a minute, and failures for 5 seconds, so that a dead
name server is not asked once per message. However many names fail, they displace no answer. Lookups of the same name at
the same time share one query. Names of hosts in the configuration may come from the system (hosts file, search domains
of a pod) unless a name server was given.

`NoSuchDomain` and an empty answer are facts about a name. `LookupFailed` says nothing about it: ask again later.
"""

import asyncio
import socket
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from ipaddress import ip_address
from typing import Any

import dns.asyncresolver
import dns.exception
import dns.name
import dns.rdata
import dns.rdatatype
import dns.resolver

from mailrail.core.outbound.targets import Mx
from mailrail.kit import clock
from mailrail.kit.lookup_turns import GaveWay, LookupTurns, NameHistory, NoTurn
from mailrail.kit.settings import host_port

LONGEST = 86400.0
"""Seconds that an answer is kept at most."""
_SHORTEST = 5.0  # seconds that an answer is kept, whatever its TTL says
_NEGATIVE = 60.0  # seconds for "there is none"; RFC 2308 5 allows up to hours, mail wants to see a repair soon
_FAILURE = 5.0
_SYSTEM = 30.0  # the system does not tell the TTL
_ENTRIES = 20_000


class LookupFailed(Exception):
    """The DNS gave no answer that could be believed: SERVFAIL, timeout, broken packet. Temporary (SOUT-01)."""


class NoSuchDomain(Exception):
    """NXDOMAIN, or a name that the DNS has no room for."""


class Cache:
    """Answers by key until they expire; the oldest goes first when it is full."""

    def __init__(self, now: Callable[[], float], entries: int) -> None:
        self._now = now
        self._limit = entries
        self._answers: OrderedDict[Any, tuple[float, Any]] = OrderedDict()  # the one used last at the end
        self._failures: OrderedDict[Any, tuple[float, Any]] = OrderedDict()  # and what does not exist
        self._asking: dict[Any, asyncio.Future[Any]] = {}

    async def get(self, key: Any, ask: Callable[[], Awaitable[tuple[float, Any]]]) -> Any:
        """The answer for `key`: kept, or being asked for, or asked for now. An exception kept as answer is raised."""
        kept = self.kept(key)
        if kept is not None:
            return kept
        asking = self._asking.get(key)
        if asking is None:
            asking = asyncio.ensure_future(self._ask(key, ask))
            self._asking[key] = asking
        # A caller that stops waiting must not take the answer from the others.
        return _answer_or_raise(await asyncio.shield(asking))

    def kept(self, key: Any) -> Any:
        """The answer for `key` if it is at hand, else None. An exception kept as answer is raised."""
        found = self._answers.get(key)
        if found is not None and found[0] > self._now():
            self._answers.move_to_end(key)
            return found[1]
        found = self._failures.get(key)
        return _answer_or_raise(found[1]) if found is not None and found[0] > self._now() else None

    def history(self, key: Any) -> NameHistory:
        """What came of `key` when it was asked for last, however long ago, as far as it is still known."""
        if key in self._answers:
            return NameHistory.ANSWERED
        found = self._failures.get(key)
        if found is None:
            return NameHistory.NEW
        return NameHistory.FAILED if isinstance(found[1], LookupFailed) else NameHistory.ANSWERED

    async def _ask(self, key: Any, ask: Callable[[], Awaitable[tuple[float, Any]]]) -> Any:
        try:
            ttl, answer = await ask()
            kept, other = self._answers, self._failures
            if isinstance(answer, Exception) or not answer:
                kept, other = other, kept
            other.pop(key, None)  # or it would speak for what came of the key last
            kept[key] = (self._now() + ttl, answer)
            kept.move_to_end(key)
            while len(kept) > self._limit:
                kept.popitem(last=False)
            return answer
        finally:
            del self._asking[key]


@lru_cache(maxsize=1024)
def _without_asking(host: str) -> tuple[str, ...]:
    try:
        return (str(ip_address(host.strip("[]"))),)
    except ValueError:
        # RFC 6761 6.3: localhost is never asked of any name server.
        return ("127.0.0.1", "::1") if host == "localhost" or host.endswith(".localhost") else ()


def _answer_or_raise(answer: Any) -> Any:
    if isinstance(answer, Exception):
        raise answer.with_traceback(None)
    return answer


def _not_counted(kind: str, result: str) -> None:
    """For a process that has no series for its lookups."""


class DnsResolver:
    """Lookups, each kept and shared. The methods named `kept_...` answer from memory alone: None = it must be asked."""

    def __init__(
        self,
        server: str = "",
        *,
        timeout: float = 15.0,
        system_names: bool = True,
        longest: float = LONGEST,
        count: Callable[[str, str], None] = _not_counted,
        turns: LookupTurns | None = None,
    ) -> None:
        """`server`: HOST:PORT, empty = those of the system. `timeout`: seconds for all queries of one lookup.
        `system_names`: `host_addresses` asks the system. `longest`: seconds that an answer is kept at most.
        `count`: called for each lookup that was not answered from memory, with what was asked for (`address` or the
        record type in lower case) and the result (answer, none, nxdomain, failed). `turns` bound the look-ups in the
        DNS at a time."""
        self._cache = Cache(lambda: clock.now(), _ENTRIES)  # a TTL runs on while this machine is suspended
        self._timeout = timeout
        self._longest = longest
        self._count = count
        self._turns = turns
        self._system_names = system_names and not server
        self._resolver: dns.asyncresolver.Resolver | None
        if server:
            host, port = host_port(server)
            self._resolver = dns.asyncresolver.Resolver(configure=False)
            self._resolver.nameservers = [host]
            self._resolver.port = port
        else:
            try:
                self._resolver = dns.asyncresolver.Resolver()
            except dns.resolver.NoResolverConfiguration:
                self._resolver = None
        if self._resolver is not None:
            self._resolver.lifetime = timeout
            self._resolver.timeout = min(5.0, timeout)

    async def records(self, name: str, kind: str) -> Sequence[dns.rdata.Rdata]:
        """Records of one type, CNAME followed; empty when the name has none. Raises NoSuchDomain or LookupFailed."""
        answer: Sequence[dns.rdata.Rdata] = await self._found(
            (kind, name), lambda: self._look_up(name, kind, lambda record: record)
        )
        return answer

    async def mx(self, domain: str) -> Sequence[Mx]:
        """MX records, CNAME followed; empty when there are none. Raises NoSuchDomain or LookupFailed."""
        answer: Sequence[Mx] = await self._found(("mx", domain), lambda: self._look_up(domain, "MX", _mx))
        return answer

    async def addresses(self, host: str, families: Sequence[str]) -> Sequence[str]:
        """Addresses in resolver order, IPv6 and IPv4 as wanted; empty when there are none. Raises LookupFailed."""
        key = ("address", host, tuple(families))
        answer: Sequence[str] = await self._found(key, lambda: self._addresses(host, families))
        return answer

    async def host_addresses(self, host: str) -> Sequence[str]:
        """Addresses of a host that the configuration names: literal, localhost, then as the system or the DNS says."""
        known = _without_asking(host)
        if known:
            return known
        if not self._system_names:
            return await self.addresses(host, ("ipv4", "ipv6"))
        answer: Sequence[str] = await self._cache.get(("system", host), lambda: self._system(host))
        return answer

    def kept_mx(self, domain: str) -> Sequence[Mx] | None:
        """See `mx`."""
        answer: Sequence[Mx] | None = self._cache.kept(("mx", domain))
        return answer

    def kept_addresses(self, host: str, families: Sequence[str]) -> Sequence[str] | None:
        """See `addresses`."""
        answer: Sequence[str] | None = self._cache.kept(("address", host, tuple(families)))
        return answer

    def kept_host_addresses(self, host: str) -> Sequence[str] | None:
        """See `host_addresses`."""
        known = _without_asking(host)
        if known:
            return known
        if not self._system_names:
            return self.kept_addresses(host, ("ipv4", "ipv6"))
        answer: Sequence[str] | None = self._cache.kept(("system", host))
        return answer

    async def _found(self, key: Any, ask: Callable[[], Awaitable[tuple[float, Any]]]) -> Any:
        """What is kept for `key`, or comes of `ask` in its turn. Raises NoSuchDomain or LookupFailed."""
        return await self._cache.get(key, lambda: self._in_turn(key, ask))

    async def _in_turn(self, key: Any, ask: Callable[[], Awaitable[tuple[float, Any]]]) -> tuple[float, Any]:
        if self._turns is None:
            return await ask()
        try:
            async with self._turns.turn(self._cache.history(key)):
                return await ask()
        except GaveWay as error:
            kind, name = key[:2]
            return self._counted(kind.lower(), "failed", _FAILURE, LookupFailed(f"{name}: {error}"))
        except NoTurn as error:  # not kept: nothing was asked
            raise LookupFailed(f"{key[1]}: {error}") from error

    async def _system(self, host: str) -> tuple[float, Any]:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._timeout):
                found = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, TimeoutError) as error:
            return self._counted("address", "failed", _FAILURE, LookupFailed(f"{host}: {error or 'no answer in time'}"))
        return self._counted("address", "answer", _SYSTEM, tuple(dict.fromkeys(str(entry[4][0]) for entry in found)))

    async def _look_up(self, name: str, kind: str, convert: Callable[[Any], Any]) -> tuple[float, Any]:
        asked = kind.lower()
        try:
            answer = await self._query(name, kind)
        except NoSuchDomain as error:
            return self._counted(asked, "nxdomain", _NEGATIVE, error)
        except LookupFailed as error:
            return self._counted(asked, "failed", _FAILURE, error)
        if answer is None:
            return self._counted(asked, "none", _NEGATIVE, ())
        return self._counted(asked, "answer", self._ttl(answer), tuple(map(convert, answer)))

    async def _addresses(self, host: str, families: Sequence[str]) -> tuple[float, Any]:
        types = [kind for family, kind in (("ipv6", "AAAA"), ("ipv4", "A")) if family in families]
        answers = await asyncio.gather(*(self._query(host, kind) for kind in types), return_exceptions=True)
        found: list[str] = []
        ttl = self._longest
        failed: LookupFailed | None = None
        for answer in answers:
            if isinstance(answer, LookupFailed):
                failed = answer
            elif isinstance(answer, BaseException):
                if not isinstance(answer, NoSuchDomain):
                    raise answer
            elif answer is not None:
                found += [record.address for record in answer]
                ttl = min(ttl, self._ttl(answer))
        if found:
            return self._counted("address", "answer", _FAILURE if failed else ttl, tuple(found))
        if failed is not None:
            return self._counted("address", "failed", _FAILURE, failed)
        return self._counted("address", "none", _NEGATIVE, ())

    def _ttl(self, answer: dns.resolver.Answer) -> float:
        return min(max(float(answer.rrset.ttl) if answer.rrset is not None else 0.0, _SHORTEST), self._longest)

    def _counted(self, kind: str, result: str, ttl: float, answer: Any) -> tuple[float, Any]:
        self._count(kind, result)
        return ttl, answer

    async def _query(self, name: str, kind: str) -> Any:
        if self._resolver is None:
            raise LookupFailed("no name server is configured on this system")
        try:
            return await self._resolver.resolve(
                dns.name.from_text(name), dns.rdatatype.from_text(kind), search=False, lifetime=self._timeout
            )
        except dns.resolver.NXDOMAIN as error:
            raise NoSuchDomain(f"{name} does not exist (NXDOMAIN)") from error
        except (dns.name.LabelTooLong, dns.name.NameTooLong) as error:
            raise NoSuchDomain(f"{name} is longer than a name in the DNS can be") from error
        except dns.resolver.NoAnswer:
            return None
        except (dns.exception.DNSException, OSError, UnicodeError) as error:
            raise LookupFailed(f"{kind} of {name}: {_in_words(error)}") from error


def _mx(record: Any) -> Mx:
    name: dns.name.Name = record.exchange
    return Mx(record.preference, name.to_text(omit_final_dot=True).lower() if name != dns.name.root else "")


def _in_words(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return text[:300]
