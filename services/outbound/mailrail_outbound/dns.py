"""The resolver: dnspython behind a cache that keeps answers for as long as they may be kept (RFC 2181 8).

Positive and negative answers are cached by TTL within bounds, failures for a moment, so that a dead name server is not
asked once per message. Lookups of the same name at the same time share one query. Names of transports may come from the
system (hosts file, search domains of a pod) unless a resolver was given.
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
import dns.rdatatype
import dns.resolver

from mailrail.core.outbound.targets import Mx
from mailrail.kit import clock
from mailrail.kit.settings import host_port
from mailrail_outbound import metrics
from mailrail_outbound.ports import LookupFailed, NoSuchDomain

_LEAST, _MOST = 5.0, 86400.0  # seconds that an answer is kept, whatever its TTL says
_NEGATIVE = 60.0  # seconds for "there is none"; RFC 2308 5 allows up to hours, mail wants to see a repair soon
_FAILURE = 5.0
_ENTRIES = 20_000


class Cache:
    """Answers by key until they expire; the one used longest ago goes first when it is full."""

    def __init__(self, now: Callable[[], float], entries: int = _ENTRIES) -> None:
        self._now = now
        self._limit = entries
        self._answers: OrderedDict[Any, tuple[float, Any]] = OrderedDict()
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
        # Whoever stops waiting must not take the answer from the others.
        return _given(await asyncio.shield(asking))

    def kept(self, key: Any) -> Any:
        """The answer for `key` if it is at hand, else None. An exception kept as answer is raised."""
        found = self._answers.get(key)
        return _given(found[1]) if found is not None and found[0] > self._now() else None

    async def _ask(self, key: Any, ask: Callable[[], Awaitable[tuple[float, Any]]]) -> Any:
        try:
            ttl, answer = await ask()
            self._answers[key] = (self._now() + ttl, answer)
            self._answers.move_to_end(key)
            while len(self._answers) > self._limit:
                self._answers.popitem(last=False)
            return answer
        finally:
            del self._asking[key]

    def clear(self) -> None:
        """Forget everything."""
        self._answers.clear()


@lru_cache(maxsize=1024)
def _without_asking(host: str) -> tuple[str, ...]:
    try:
        return (str(ip_address(host.strip("[]"))),)
    except ValueError:
        # RFC 6761 6.3: localhost is never asked of any name server.
        return ("127.0.0.1", "::1") if host == "localhost" or host.endswith(".localhost") else ()


def _given(answer: Any) -> Any:
    if isinstance(answer, Exception):
        raise answer.with_traceback(None)
    return answer


def _bounded(ttl: float) -> float:
    return min(max(ttl, _LEAST), _MOST)


class DnsResolver:
    """MX and address lookups (ports.Resolver)."""

    def __init__(self, server: str = "", *, timeout: float = 15.0, system_names: bool = True) -> None:
        """`server`: HOST:PORT, empty = those of the system. `system_names`: `host_addresses` asks the system."""
        self._cache = Cache(lambda: clock.now())  # a TTL runs on while this machine is suspended
        self._timeout = timeout
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

    async def mx(self, domain: str) -> Sequence[Mx]:
        """See ports.Resolver."""
        answer: Sequence[Mx] = await self._cache.get(("mx", domain), lambda: self._mx(domain))
        return answer

    async def addresses(self, host: str, families: Sequence[str]) -> Sequence[str]:
        """See ports.Resolver."""
        key = ("address", host, tuple(families))
        answer: Sequence[str] = await self._cache.get(key, lambda: self._addresses(host, families))
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

    # What is at hand, for those who need not wait then: None where it must be asked. They raise as the others do.

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

    async def _system(self, host: str) -> tuple[float, Any]:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._timeout):
                found = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, TimeoutError) as error:
            metrics.DNS.inc("address", "failed")
            return _FAILURE, LookupFailed(f"{host}: {error or 'no answer in time'}")
        metrics.DNS.inc("address", "answer")
        return 30.0, tuple(dict.fromkeys(str(entry[4][0]) for entry in found))

    async def _mx(self, domain: str) -> tuple[float, Any]:
        try:
            answer = await self._query(domain, "MX")
        except NoSuchDomain as error:
            return self._counted("mx", "nxdomain", _NEGATIVE, error)
        except LookupFailed as error:
            return self._counted("mx", "failed", _FAILURE, error)
        if answer is None:
            return self._counted("mx", "none", _NEGATIVE, ())
        records = tuple(Mx(record.preference, _host(record.exchange)) for record in answer)
        return self._counted("mx", "answer", _bounded(answer.rrset.ttl if answer.rrset else 0), records)

    async def _addresses(self, host: str, families: Sequence[str]) -> tuple[float, Any]:
        types = [kind for family, kind in (("ipv6", "AAAA"), ("ipv4", "A")) if family in families]
        answers = await asyncio.gather(*(self._query(host, kind) for kind in types), return_exceptions=True)
        found: list[str] = []
        ttl = _MOST
        failed: LookupFailed | None = None
        for answer in answers:
            if isinstance(answer, LookupFailed):
                failed = answer
            elif isinstance(answer, BaseException):
                if not isinstance(answer, NoSuchDomain):
                    raise answer
            elif answer is not None:
                found += [record.address for record in answer]
                ttl = min(ttl, _bounded(answer.rrset.ttl if answer.rrset else 0))
        if found:
            return self._counted("address", "answer", _FAILURE if failed else ttl, tuple(found))
        if failed is not None:
            return self._counted("address", "failed", _FAILURE, failed)
        return self._counted("address", "none", _NEGATIVE, ())

    def _counted(self, kind: str, result: str, ttl: float, answer: Any) -> tuple[float, Any]:
        metrics.DNS.inc(kind, result)
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
        except dns.resolver.NoAnswer:
            return None
        except (dns.exception.DNSException, OSError, UnicodeError) as error:
            raise LookupFailed(f"{kind} of {name}: {_in_words(error)}") from error


def _host(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True).lower() if name != dns.name.root else ""


def _in_words(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return text[:300]
