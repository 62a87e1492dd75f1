"""Fetches the MTA-STS policy of a domain by HTTPS (RFC 8461 3.3; standards STS-03, STS-04, STS-05, STS-26a).

A stranger names the host, and serves what he likes for as long as he likes: time, octets and fetches at a time are
bounded, and an address is judged when it is dialled, so that nobody has us ask a service inside our own networks.
"""

import asyncio
import contextlib
import socket
import ssl
from collections import OrderedDict
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

from mailrail.core.mtasts.answer import FetchFailed, FetchTrouble, judge_answer
from mailrail.core.mtasts.policy import BODY_LIMIT, Policy
from mailrail.core.mtasts.record import POLICY_PATH, policy_host
from mailrail.core.outbound.lookup_order import NameHistory
from mailrail.core.outbound.targets import may_be_dialled
from mailrail.kit.lookup_turns import GaveWay, LookupTurns, NoTurn
from mailrail.kit.resolver import DnsResolver, LookupFailed
from mailrail_outbound.settings import OutboundSettings

if TYPE_CHECKING:
    import aiohttp

_MOST_ADDRESSES: Final = 4  # of a host, dialled in one fetch
_CONNECT_SECONDS: Final = 15.0  # TCP and the handshake, at one address
_CLOSE_SECONDS: Final = 1.0  # until connections are left to themselves
_MOST_HEADERS: Final = 64  # of 8 KiB each, as aiohttp reads them
_MOST_KNOWN: Final = 10_000  # domains of which is known what came of their last fetch
_REASON: Final = 300  # characters


class FetchPutOff(Exception):
    """Too many other fetches were under way: the host was not asked, or not for long enough, and nothing is known.

    This is our lack and not the domain's, so it must not count as "no policy". The text says so.
    """


class _NoConnection(Exception):
    """Nobody speaks TLS at an address."""


@lru_cache(maxsize=1)
def policy_context() -> ssl.SSLContext:
    """How a policy host is verified: PKIX by the system's trust, by DNS-ID alone, from TLS 1.2 on (STS-03)."""
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.hostname_checks_common_name = False
    return context


class PolicyFetcher:
    """Fetches policies, a bounded number at a time, those of one domain once."""

    def __init__(
        self, settings: OutboundSettings, resolver: DnsResolver, *, context: ssl.SSLContext | None = None
    ) -> None:
        """`context`: in place of `policy_context`."""
        self._resolver = resolver
        self._networks = settings.policy_networks
        self._port = settings.fetch_port
        self._seconds = settings.fetch_timeout
        self._context = context
        # Hosts that never answered have half of the turns, so a domain that is well does not wait for silent ones.
        self._turns = LookupTurns(settings.fetches, settings.fetch_timeout)
        self._known: OrderedDict[str, NameHistory] = OrderedDict()
        self._sockets: WeakSet[socket.socket] = WeakSet()
        self._under_way: dict[str, asyncio.Task[Policy | FetchFailed]] = {}

    async def fetch(self, domain: str) -> Policy | FetchFailed:
        """The policy of a policy domain, or why there is none. Raises FetchPutOff."""
        task = self._under_way.get(domain)
        if task is None:
            task = asyncio.create_task(self._in_turn(domain))
            self._under_way[domain] = task
            task.add_done_callback(lambda done: self._ended(domain, done))
        # Who stops waiting must not take it from the others.
        return await asyncio.shield(task)

    def _ended(self, domain: str, done: "asyncio.Task[Policy | FetchFailed]") -> None:
        del self._under_way[domain]
        if not done.cancelled():
            done.exception()  # or asyncio complains where nobody waits any more

    async def close(self) -> None:
        """End what is under way, and wait a moment for its connections: a TLS session ends with a last word."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                while any(each.fileno() != -1 for each in self._sockets):  # noqa: ASYNC110 - no event tells of it
                    await asyncio.sleep(0.005)

    def _socket(self, info: tuple[Any, ...]) -> socket.socket:
        """For aiohttp, which does not say when a connection is closed."""
        made = socket.socket(*info[:3])
        self._sockets.add(made)
        return made

    async def _in_turn(self, domain: str) -> Policy | FetchFailed:
        history = self._known.get(domain, NameHistory.NEW)
        try:
            async with self._turns.turn(domain, history):
                found = await self._within_limit(domain)
        except NoTurn as error:
            raise FetchPutOff(
                f"the MTA-STS policy of {domain} could not be fetched yet: too many others are"
            ) from error
        except GaveWay as error:
            self._note(domain, NameHistory.FAILED)
            if history is NameHistory.NEW:
                raise FetchPutOff(f"the MTA-STS policy of {domain} could not be fetched yet: {error}") from error
            return FetchFailed(FetchTrouble.FETCH, f"{policy_host(domain)}: {error}")
        answered = isinstance(found, Policy) or found.trouble is not FetchTrouble.FETCH
        self._note(domain, NameHistory.ANSWERED if answered else NameHistory.FAILED)
        return found

    def _note(self, domain: str, history: NameHistory) -> None:
        self._known[domain] = history
        self._known.move_to_end(domain)
        while len(self._known) > _MOST_KNOWN:
            self._known.popitem(last=False)

    async def _within_limit(self, domain: str) -> Policy | FetchFailed:
        host = policy_host(domain)
        limit = asyncio.timeout(self._seconds)
        try:
            async with limit:
                return await self._ask(host)
        except TimeoutError:
            if not limit.expired():
                raise
            return FetchFailed(FetchTrouble.FETCH, f"{host} gave no answer in {self._seconds:.0f} s")

    async def _ask(self, host: str) -> Policy | FetchFailed:
        try:
            addresses = await self._resolver.addresses(host, ("ipv4", "ipv6"))
        except LookupFailed as error:
            return FetchFailed(FetchTrouble.FETCH, _ascii(str(error)))
        if not addresses:
            return FetchFailed(FetchTrouble.FETCH, f"{host} has no address")
        dialled = [address for address in addresses if may_be_dialled(address, self._networks)]
        if not dialled:
            # STS-26a
            reason = f"{host} is at {addresses[0]}, which is no address of the Internet"
            reason = f"{reason}; MAILRAIL_OUTBOUND_FETCH_NETWORKS may name its network"
            return FetchFailed(FetchTrouble.FETCH, reason)
        failures = []
        for address in dialled[:_MOST_ADDRESSES]:
            try:
                return await self._get(host, address)
            except _NoConnection as error:
                failures.append(f"{address}: {error}")
        return FetchFailed(FetchTrouble.FETCH, _ascii(f"no HTTPS connection to {host}: {'; '.join(failures)}"))

    async def _get(self, host: str, address: str) -> Policy | FetchFailed:
        """What the host answers at an address. Raises _NoConnection: another address may answer."""
        import aiohttp  # 9 MiB, which a process that fetches nothing need not hold

        url = f"https://[{address}]:{self._port}" if ":" in address else f"https://{address}:{self._port}"
        connector = aiohttp.TCPConnector(
            ssl=self._context or policy_context(), force_close=True, socket_factory=self._socket
        )
        timeout = aiohttp.ClientTimeout(total=self._seconds, sock_connect=_CONNECT_SECONDS)
        # The address is in the URL and the name in SNI, Host and certificate: no other look-up decides who is dialled.
        headers = {"Host": host, "Accept": "text/plain", "Accept-Encoding": "identity", "User-Agent": "mailrail"}
        try:
            async with (
                aiohttp.ClientSession(
                    connector=connector,
                    cookie_jar=aiohttp.DummyCookieJar(),
                    timeout=timeout,
                    auto_decompress=False,
                    trust_env=False,
                    max_headers=_MOST_HEADERS,
                ) as session,
                session.get(
                    url + POLICY_PATH, headers=headers, server_hostname=host, allow_redirects=False
                ) as response,
            ):
                if "Content-Length" not in response.headers and "Transfer-Encoding" not in response.headers:
                    # Whoever cuts the TCP connection would shorten it unseen (RFC 9112 8).
                    return FetchFailed(FetchTrouble.FETCH, f"{host}: its answer does not say where it ends")
                body = await _read(response)
                found = judge_answer(response.status, response.headers.get("Content-Type"), body)
                if isinstance(found, FetchFailed):
                    return FetchFailed(found.trouble, f"{host}: {found.reason}")
                return found
        except aiohttp.ClientConnectorCertificateError as error:
            said = error.certificate_error
            why = said.verify_message if isinstance(said, ssl.SSLCertVerificationError) else str(said)
            return FetchFailed(FetchTrouble.WEBPKI, _ascii(f"the certificate of {host} does not prove it: {why}"))
        except aiohttp.ClientConnectorSSLError as error:
            return FetchFailed(FetchTrouble.FETCH, _ascii(f"TLS with {host} failed: {error.os_error}"))
        except aiohttp.ClientConnectorError as error:
            raise _NoConnection(error.os_error.strerror or str(error.os_error)) from error
        except aiohttp.ConnectionTimeoutError as error:
            raise _NoConnection(f"no answer in {_CONNECT_SECONDS:.0f} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return FetchFailed(
                FetchTrouble.FETCH, _ascii(f"{host} gave no answer that can be read: {_in_words(error)}")
            )


async def _read(response: "aiohttp.ClientResponse") -> bytes:
    """The body, or as much of it as shows that it is too large."""
    body = bytearray()
    async for part in response.content.iter_any():
        body += part
        if len(body) > BODY_LIMIT:
            response.close()
            break
    return bytes(body)


def _in_words(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _ascii(text: str) -> str:
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in text[:_REASON])
