"""The DNS resolver of every service: dnspython behind a cache with one policy (RFC 2181 8).

Answers are kept for their TTL within bounds, "there is none" for a minute, and failures for 5 seconds, so that a dead
name server is not asked once per message. However many names fail, they displace no answer. Lookups of the same name at
the same time share one query. Names of hosts in the configuration may come from the system (hosts file, search domains
of a pod) unless a name server was given.

`NoSuchDomain` and an empty answer are facts about a name. `LookupFailed` says nothing about it: ask again later.

DNSSEC is validated by the name server that we ask, never here. Its word that an answer is proven (the AD bit, RFC 4035
3.2.3) counts only where it was declared trusted: a validating resolver on this host, or at the end of a path that
nobody can write into (DANE-01). Each answer keeps whether it is `secure`; a bogus one is a failure (RFC 4035 5.5).
"""

import asyncio
import socket
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address
from typing import Any, Generic, TypeVar

import dns.asyncresolver
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.rdatatype
import dns.rdtypes.ANY.TLSA
import dns.resolver

from mailrail.core.outbound.lookup_order import NameHistory
from mailrail.core.outbound.targets import Mx
from mailrail.kit import clock
from mailrail.kit.lookup_turns import GaveWay, LookupTurns, NoTurn
from mailrail.kit.settings import host_port

LONGEST = 86400.0
"""Seconds that an answer is kept at most."""
_SHORTEST = 5.0  # seconds that an answer is kept, whatever its TTL says
_NEGATIVE = 60.0  # seconds for "there is none"; RFC 2308 5 allows up to hours, mail wants to see a repair soon
_FAILURE = 5.0
_SYSTEM = 30.0  # the system does not tell the TTL
_ENTRIES = 20_000
LARGEST = 8192
"""Octets of an answer that is kept at most; a larger one is asked for each time."""
_PAYLOAD = 1232  # octets of an answer over UDP that no path fragments (DNS flag day 2020)
_WORDS = 200  # characters of what a name server says about a failure

# RFC 7671 9 has a malformed TLSA record dropped, and others count beside it: core/dane/tlsa.py reads its octets and
# judges them. For dnspython an answer with one such record is unreadable as a whole, and it waits for another until its
# time is up. A type that it knows cannot be registered anew, so TLSA is read as types are that it does not know.
dns.rdtypes.ANY.TLSA.TLSA.from_wire_parser = dns.rdata.GenericRdata.from_wire_parser  # type: ignore[method-assign]


class LookupFailed(Exception):
    """The DNS gave no answer that could be believed: SERVFAIL, bogus, timeout, broken packet. Temporary (SOUT-01), and
    never a sign that there is nothing (DANE-02)."""

    def __init__(self, text: str, rcode: str = "") -> None:
        super().__init__(text)
        self.rcode = rcode
        """What the name server answered (`SERVFAIL`, `REFUSED`, `NOTIMP` ...), of several what each of them did; empty:
        they did not, or not legibly, or not the same. A resolver in between makes SERVFAIL of most of them."""


class NoSuchDomain(Exception):
    """NXDOMAIN, or a name that the DNS has no room for."""

    def __init__(self, text: str, *, secure: bool = False) -> None:
        super().__init__(text)
        self.secure = secure
        """See `DnsRecords.secure`."""


_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class DnsRecords(Generic[_T]):
    """What the DNS says of a name."""

    records: tuple[_T, ...]
    secure: bool
    """DNSSEC proves it, with every alias on the way and also where there is nothing, in the word of a name server that
    is declared trusted. Of addresses: those of one family at least are proven."""
    name: str
    """Where the aliases (CNAME) end: lower case, without the final dot."""
    octets: int = 0
    """Of the responses that it came in: what it may weigh in memory goes by this."""

    def __bool__(self) -> bool:
        return bool(self.records)


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

    def is_asking(self, key: Any) -> bool:
        """Whether `key` is being asked for, or is to be."""
        return key in self._asking

    def forget(self, key: Any) -> None:
        """Ask anew for `key` when it is wanted next."""
        self._answers.pop(key, None)
        self._failures.pop(key, None)

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
            if ttl <= 0:
                return answer
            kept, other = self._answers, self._failures
            if isinstance(answer, Exception) or not answer:
                kept, other = other, kept
            if isinstance(answer, Exception):  # what it came from holds whole responses
                answer.__cause__ = answer.__context__ = answer.__traceback__ = None
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
        trust_ad: bool = False,
    ) -> None:
        """`server`: HOST:PORT, empty = those of the system. `timeout`: seconds for all queries of one lookup.
        `system_names`: `host_addresses` asks the system. `longest`: seconds that an answer is kept at most.
        `count`: called for each lookup that was not answered from memory, with what was asked for (`address` or the
        record type in lower case) and the result (answer, none, nxdomain, failed). `turns` bound the look-ups in the
        DNS at a time. `trust_ad`: `server` validates, and nobody can write into the way to it."""
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
            except (dns.resolver.NoResolverConfiguration, OSError):  # OSError: a registry of Windows without its part
                self._resolver = None
        if self._resolver is not None:
            self._resolver.lifetime = timeout
            self._resolver.timeout = min(5.0, timeout)
        self.trusted = bool(server) and trust_ad
        """Whether an answer can be `secure`. Never by the system's name servers: who may set them is not who declares
        one trusted (DANE-25)."""
        if self.trusted and self._resolver is not None:
            # RFC 6840 5.7: AD in the question asks for AD in the answer; older servers want DO for it (RFC 3225 3).
            self._resolver.flags = dns.flags.RD | dns.flags.AD
            self._resolver.use_edns(0, dns.flags.DO, _PAYLOAD)

    async def records(self, name: str, kind: str) -> Sequence[dns.rdata.Rdata]:
        """Records of one type, CNAME followed; empty when the name has none. Raises NoSuchDomain or LookupFailed."""
        return (await self.answer(name, kind)).records

    async def answer(self, name: str, kind: str) -> DnsRecords[dns.rdata.Rdata]:
        """See `records`; with what DNSSEC says of it."""
        found: DnsRecords[dns.rdata.Rdata] = await self._found(
            (kind, name), lambda: self._look_up(name, kind, lambda record: record)
        )
        return found

    async def mx(self, domain: str) -> Sequence[Mx]:
        """MX records, CNAME followed; empty when there are none. Raises NoSuchDomain or LookupFailed."""
        return (await self.mx_answer(domain)).records

    async def mx_answer(self, domain: str) -> DnsRecords[Mx]:
        """See `mx`; with what DNSSEC says of it."""
        found: DnsRecords[Mx] = await self._found(("mx", domain), lambda: self._look_up(domain, "MX", _mx))
        return found

    async def addresses(self, host: str, families: Sequence[str]) -> Sequence[str]:
        """Addresses in resolver order, IPv6 and IPv4 as wanted; empty when there are none. Raises LookupFailed."""
        return (await self.address_answer(host, families)).records

    async def address_answer(self, host: str, families: Sequence[str]) -> DnsRecords[str]:
        """See `addresses`; with what DNSSEC says of them."""
        key = ("address", host, tuple(families))
        found: DnsRecords[str] = await self._found(key, lambda: self._addresses(host, families))
        return found

    async def host_addresses(self, host: str) -> Sequence[str]:
        """Addresses of a host that the configuration names: literal, localhost, then as the system or the DNS says."""
        known = _without_asking(host)
        if known:
            return known
        if not self._system_names:
            return await self.addresses(host, ("ipv4", "ipv6"))
        answer: Sequence[str] = await self._cache.get(("system", host), lambda: self._system(host))
        return answer

    def kept_answer(self, name: str, kind: str) -> DnsRecords[dns.rdata.Rdata] | None:
        """See `answer`."""
        found: DnsRecords[dns.rdata.Rdata] | None = self._cache.kept((kind, name))
        return found

    def forget(self, name: str, kind: str) -> None:
        """What `answer` gives next is asked for anew, past what is kept here."""
        self._cache.forget((kind, name))

    def kept_mx(self, domain: str) -> Sequence[Mx] | None:
        """See `mx`."""
        found = self.kept_mx_answer(domain)
        return found.records if found is not None else None

    def kept_mx_answer(self, domain: str) -> DnsRecords[Mx] | None:
        """See `mx_answer`."""
        found: DnsRecords[Mx] | None = self._cache.kept(("mx", domain))
        return found

    def kept_addresses(self, host: str, families: Sequence[str]) -> Sequence[str] | None:
        """See `addresses`."""
        found = self.kept_address_answer(host, families)
        return found.records if found is not None else None

    def kept_address_answer(self, host: str, families: Sequence[str]) -> DnsRecords[str] | None:
        """See `address_answer`."""
        found: DnsRecords[str] | None = self._cache.kept(("address", host, tuple(families)))
        return found

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
        if self._turns is not None and self._cache.is_asking(key):
            self._turns.renew(key)
        return await self._cache.get(key, lambda: self._in_turn(key, ask))

    async def _in_turn(self, key: Any, ask: Callable[[], Awaitable[tuple[float, Any]]]) -> tuple[float, Any]:
        if self._turns is None:
            return await ask()
        try:
            async with self._turns.turn(key, self._cache.history(key)):
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
        found = self._answer(answer, tuple(map(convert, answer)) if answer.rrset is not None else ())
        return self._counted(asked, "answer" if found else "none", self._ttl(answer), found)

    async def _addresses(self, host: str, families: Sequence[str]) -> tuple[float, Any]:
        types = [kind for family, kind in (("ipv6", "AAAA"), ("ipv4", "A")) if family in families]
        answers = await asyncio.gather(*(self._query(host, kind) for kind in types), return_exceptions=True)
        found: list[str] = []
        secure, name, octets = False, host, 0
        ttl = self._longest
        failed: LookupFailed | None = None
        for answer in answers:
            if isinstance(answer, LookupFailed):
                failed = answer  # DANE-24: beside an address of the other family it stops nothing
            elif isinstance(answer, BaseException):
                if not isinstance(answer, NoSuchDomain):
                    raise answer
            elif answer.rrset is not None:
                found += [record.address for record in answer]
                proven = self._answer(answer, ())
                if proven.secure or name == host:
                    name = proven.name
                secure = secure or proven.secure
                octets += proven.octets
                ttl = min(ttl, self._ttl(answer))
        if found:
            kept = _FAILURE if failed else ttl
            return self._counted("address", "answer", kept, DnsRecords(tuple(found), secure, name, octets))
        if failed is not None:
            return self._counted("address", "failed", _FAILURE, failed)
        return self._counted("address", "none", _NEGATIVE, DnsRecords((), False, host))

    def _answer(self, answer: dns.resolver.Answer, records: tuple[Any, ...]) -> DnsRecords[Any]:
        octets = len(answer.response.wire or b"")
        return DnsRecords(records, self._is_secure(answer.response), _in_text(answer.canonical_name), octets)

    def _is_secure(self, response: dns.message.Message) -> bool:
        # DANE-01: from anybody else the bit is a stranger's word.
        return self.trusted and bool(response.flags & dns.flags.AD)

    def _ttl(self, answer: dns.resolver.Answer) -> float:
        if answer.rrset is None:
            return _NEGATIVE
        if len(answer.response.wire or b"") > LARGEST:
            return 0.0
        return min(max(float(answer.rrset.ttl), _SHORTEST), self._longest)

    def _counted(self, kind: str, result: str, ttl: float, answer: Any) -> tuple[float, Any]:
        self._count(kind, result)
        return ttl, answer

    async def _query(self, name: str, kind: str) -> dns.resolver.Answer:
        """The answer, without `rrset` where the name has no such records. Raises NoSuchDomain or LookupFailed."""
        if self._resolver is None:
            raise LookupFailed("no name server is configured on this system")
        try:
            return await self._resolver.resolve(
                dns.name.from_text(name),
                dns.rdatatype.from_text(kind),
                raise_on_no_answer=False,
                search=False,
                lifetime=self._timeout,
            )
        except dns.resolver.NXDOMAIN as error:
            secure = any(map(self._is_secure, error.kwargs["responses"].values()))
            raise NoSuchDomain(f"{name} does not exist (NXDOMAIN)", secure=secure) from error
        except (dns.name.LabelTooLong, dns.name.NameTooLong) as error:
            raise NoSuchDomain(f"{name} is longer than a name in the DNS can be") from error
        except (dns.exception.DNSException, OSError, UnicodeError) as error:
            rcode, why = _last_said(error)
            raise LookupFailed(f"{kind} of {name}: {_in_words(error)}{why}", rcode) from error


def _mx(record: Any) -> Mx:
    return Mx(record.preference, _in_text(record.exchange))


def _in_text(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True).lower() if name != dns.name.root else ""


def _last_said(error: Exception) -> tuple[str, str]:
    """What the name servers answered before a look-up failed: the RCODE that all of them gave, and why in the words of
    the last one (RFC 8914)."""
    tries = (error.kwargs.get("errors") if isinstance(error, dns.exception.DNSException) else None) or []
    rcodes = {dns.rcode.to_text(each[4].rcode()) if each[4] is not None else "" for each in tries}
    rcode = rcodes.pop() if len(rcodes) == 1 else ""
    response = tries[-1][4] if tries else None
    if response is None:
        return rcode, ""
    said = "; ".join(option.to_text() for option in response.extended_errors())
    shown = "".join(letter if letter.isprintable() else "?" for letter in said[:_WORDS])
    return rcode, f" ({shown})" if shown else ""


def _in_words(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return text[:300]
