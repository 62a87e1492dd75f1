"""Fetching MTA-STS policies from real HTTPS servers, right, broken and hostile (RFC 8461 3.3)."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import psycopg
import pytest

from mailrail.core.mtasts.answer import FetchFailed, FetchTrouble
from mailrail.core.mtasts.cache import PolicyStep
from mailrail.core.mtasts.policy import Mode, Policy
from mailrail.core.mtasts.record import StsRecord
from mailrail.kit.resolver import DnsResolver
from mailrail_outbound.settings import OutboundSettings
from mailrail_outbound.tls_policy import cache as cache_module
from mailrail_outbound.tls_policy.fetch import FetchPutOff, PolicyFetcher, policy_context

from testkit.ca import Authority, Certificate, speaking_only
from testkit.conditions import eventually
from testkit.dns import DnsServer, Failure
from testkit.policies import policy_process
from testkit.ports import loopback_address
from testkit.servers import serve

DOMAIN = "example.com"
HOST = f"mta-sts.{DOMAIN}"
BODY = b"version: STSv1\r\nmode: enforce\r\nmx: mx.example.com\r\nmax_age: 604800\r\n"
POLICY = Policy(Mode.ENFORCE, 604800, ("mx.example.com",))


def answer(body: bytes = BODY, status: str = "200 OK", *fields: str, media: str = "text/plain") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {media}", f"Content-Length: {len(body)}", *fields, "", ""]
    return "\r\n".join(lines).encode() + body


class PolicyHost:
    """An HTTPS server that says what a test wants it to say."""

    def __init__(self, says: bytes | Callable[[asyncio.StreamWriter], Awaitable[None]]) -> None:
        self.says = says
        self.requests: list[bytes] = []
        self.names: list[str | None] = []

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.requests.append(await reader.readuntil(b"\r\n\r\n"))
        if isinstance(self.says, bytes):
            writer.write(self.says)
            await writer.drain()
        else:
            await self.says(writer)

    def note_name(self, _: ssl.SSLObject, name: str | None, __: ssl.SSLContext) -> None:
        self.names.append(name)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


def trusting(authority: Authority) -> ssl.SSLContext:
    """The context of a fetcher, with the roots of the test in place of the system's."""
    context = authority.client_context()
    ours = policy_context()
    context.minimum_version = ours.minimum_version
    context.hostname_checks_common_name = ours.hostname_checks_common_name
    return context


@contextlib.asynccontextmanager
async def fetching(
    authority: Authority,
    host: PolicyHost,
    certificate: Certificate | None = None,
    *,
    tls: ssl.SSLContext | None = None,
    addresses: tuple[str, ...] = (),
    networks: tuple[str, ...] = ("127.0.0.0/8",),
    names: tuple[str, ...] = (HOST,),
    **settings: Any,
) -> AsyncIterator[PolicyFetcher]:
    """A fetcher whose DNS leads to `host`, after `addresses` at which nobody listens."""
    context = tls or (certificate or authority.issue(*names)).server_context()
    context.sni_callback = host.note_name
    async with serve(host.handle, tls=context) as (address, port):
        with DnsServer() as dns:
            for name in names:
                for each in (*addresses, address):
                    dns.add(name, "A", each)
            made = OutboundSettings(fetch_networks=networks, fetch_port=port, **settings)
            fetcher = PolicyFetcher(made, DnsResolver(dns.endpoint), context=trusting(authority))
            try:
                yield fetcher
            finally:
                await fetcher.close()


async def refused(
    authority: Authority, says: Any, certificate: Certificate | None = None, **options: Any
) -> FetchFailed:
    """How a fetch fails that must fail after one connection at most."""
    host = PolicyHost(says)
    async with fetching(authority, host, certificate, **options) as fetcher:
        found = await fetcher.fetch(DOMAIN)
    assert isinstance(found, FetchFailed)
    assert found.reason.isascii()
    assert len(host.requests) <= 1
    return found


async def test_a_policy_is_fetched_from_its_one_place_under_its_own_name_STS_03(authority: Authority) -> None:
    host = PolicyHost(answer())
    async with fetching(authority, host) as fetcher:
        assert await fetcher.fetch(DOMAIN) == POLICY
    request = host.requests[0].lower()
    assert request.startswith(b"get /.well-known/mta-sts.txt http/1.1\r\n")
    assert b"\r\nhost: mta-sts.example.com\r\n" in request
    assert b"cookie" not in request
    assert host.names == [HOST]


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (lambda ca: ca.issue_expired(HOST), "expired"),
        (lambda ca: ca.issue_premature(HOST), "not yet valid"),
        (lambda ca: ca.issue("mx.example.com"), "mismatch"),
        (lambda ca: ca.issue("*.com"), "mismatch"),
        (lambda ca: ca.issue("other.example", common_name=HOST), "mismatch"),
        (lambda ca: ca.issue("192.0.2.1", common_name=HOST), "mismatch"),
        (lambda ca: Authority().issue(HOST), "issuer"),
    ],
    ids=["expired", "premature", "another name", "wildcard two labels up", "name as CN", "CN alone", "another CA"],
)
async def test_a_certificate_that_does_not_prove_the_host_is_refused_STS_03(
    authority: Authority, made: Callable[[Authority], Certificate], why: str
) -> None:
    found = await refused(authority, answer(), made(authority))
    assert found.trouble is FetchTrouble.WEBPKI
    assert why in found.reason


async def test_a_certificate_for_the_whole_first_label_is_taken_STS_03(authority: Authority) -> None:
    async with fetching(authority, PolicyHost(answer()), authority.issue("*.example.com")) as fetcher:
        assert await fetcher.fetch(DOMAIN) == POLICY


async def test_tls_1_1_is_refused(authority: Authority) -> None:
    old = speaking_only(authority.issue(HOST).server_context(), ssl.TLSVersion.TLSv1_1)
    found = await refused(authority, answer(), tls=old)
    assert found.trouble is FetchTrouble.FETCH
    assert "no HTTPS connection" in found.reason or "TLS" in found.reason


@pytest.mark.parametrize("status", ["301 Moved Permanently", "302 Found", "308 Permanent Redirect"])
async def test_a_redirect_is_not_followed_STS_04(authority: Authority, status: str) -> None:
    says = answer(BODY, status, f"Location: https://{HOST}/.well-known/mta-sts.txt?again")
    assert "redirects are not followed" in (await refused(authority, says)).reason


async def test_another_media_type_is_refused_STS_05(authority: Authority) -> None:
    assert "text/html" in (await refused(authority, answer(media="text/html"))).reason


async def test_a_page_that_is_no_policy_is_told_from_a_host_that_gives_none(authority: Authority) -> None:
    assert (await refused(authority, answer(b"hello\n"))).trouble is FetchTrouble.INVALID
    assert (await refused(authority, answer(status="404 Not Found"))).trouble is FetchTrouble.FETCH


async def without_end(writer: asyncio.StreamWriter, start: bytes, part: bytes) -> None:
    writer.write(start)
    while True:
        writer.write(part)
        await writer.drain()


@pytest.mark.parametrize(
    ("start", "part"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 99999999999\r\n\r\n", b"x-pad: y\n" * 1000),
        (
            b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"2328\r\n" + b"x-pad: y\n" * 1000 + b"\r\n",
        ),
        (b"HTTP/1.1 200 OK\r\n", b"X-Header: y\r\n" * 1000),
        (b"HTTP/1.1 200 OK\r\nX-Long: ", b"y" * 10_000),
        (b"HTTP/1.1 200 ", b"OK" * 10_000),
        (b"", b"\0" * 10_000),
    ],
    ids=["body", "chunks", "headers", "header", "status line", "no HTTP"],
)
async def test_an_answer_without_end_is_cut_off_STS_05(authority: Authority, start: bytes, part: bytes) -> None:
    found = await refused(authority, lambda writer: without_end(writer, start, part))
    assert found.trouble is FetchTrouble.FETCH
    assert len(found.reason) < 500


@pytest.mark.parametrize(
    "says",
    [
        answer()[:-10],
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n"
        + BODY[:16]
        + b"\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n" + BODY,
    ],
    ids=["shorter than it said", "without its last chunk", "without a length"],
)
async def test_a_policy_that_may_have_been_cut_off_is_none(authority: Authority, says: bytes) -> None:
    assert (await refused(authority, says)).trouble is FetchTrouble.FETCH


async def test_a_host_that_is_silent_is_given_up_in_time_STS_05(authority: Authority) -> None:
    async def silent(writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    found = await refused(authority, silent, fetch_timeout=0.3)
    assert found.trouble is FetchTrouble.FETCH
    assert "no answer" in found.reason


async def test_the_next_address_is_dialled_where_nobody_listens_at_the_first(authority: Authority) -> None:
    host = PolicyHost(answer())
    async with fetching(authority, host, addresses=(loopback_address(), loopback_address())) as fetcher:
        assert await fetcher.fetch(DOMAIN) == POLICY


async def test_a_host_where_nobody_listens_is_a_failed_fetch_with_each_address(authority: Authority) -> None:
    nobody = loopback_address()
    with DnsServer() as dns:
        dns.add(HOST, "A", nobody)
        settings = OutboundSettings(fetch_networks=("127.0.0.0/8",))
        found = await PolicyFetcher(settings, DnsResolver(dns.endpoint), context=trusting(authority)).fetch(DOMAIN)
    assert isinstance(found, FetchFailed)
    assert found.trouble is FetchTrouble.FETCH
    assert nobody in found.reason


async def test_no_address_inside_our_own_networks_is_dialled_STS_26a(authority: Authority) -> None:
    host = PolicyHost(answer())
    async with fetching(authority, host, networks=()) as fetcher:
        found = await fetcher.fetch(DOMAIN)
    assert isinstance(found, FetchFailed)
    assert "no address of the Internet" in found.reason
    assert not host.names


async def test_of_several_addresses_those_that_are_named_are_dialled_alone_STS_26a(authority: Authority) -> None:
    inner, outer = PolicyHost(answer(b"secret of a service inside\n")), PolicyHost(answer())
    certificate = authority.issue(HOST)
    async with serve(outer.handle, tls=certificate.server_context()) as (address, port):
        context = certificate.server_context()
        context.sni_callback = inner.note_name
        hidden = loopback_address()
        server = await asyncio.start_server(inner.handle, hidden, port, ssl=context)
        with DnsServer() as dns:
            dns.add(HOST, "A", hidden)
            dns.add(HOST, "A", address)
            settings = OutboundSettings(fetch_networks=(f"{address}/32",), fetch_port=port)
            fetcher = PolicyFetcher(settings, DnsResolver(dns.endpoint), context=trusting(authority))
            assert await fetcher.fetch(DOMAIN) == POLICY
        server.close()
        await server.wait_closed()
    assert not inner.names


@pytest.mark.parametrize("failure", [None, Failure.SERVFAIL, Failure.REFUSED])
async def test_a_host_that_the_dns_does_not_find_is_a_failed_fetch(
    authority: Authority, failure: Failure | None
) -> None:
    with DnsServer() as dns:
        if failure is not None:
            dns.fail(HOST, failure)
        fetcher = PolicyFetcher(OutboundSettings(), DnsResolver(dns.endpoint, timeout=2), context=trusting(authority))
        found = await fetcher.fetch(DOMAIN)
    assert isinstance(found, FetchFailed)
    assert found.trouble is FetchTrouble.FETCH
    assert HOST in found.reason


async def test_who_wants_a_policy_that_is_being_fetched_waits_for_the_same_one(authority: Authority) -> None:
    host = PolicyHost(answer())
    async with fetching(authority, host) as fetcher:
        gone = asyncio.create_task(fetcher.fetch(DOMAIN))
        waiting = [asyncio.create_task(fetcher.fetch(DOMAIN)) for _ in range(5)]
        await asyncio.sleep(0)
        gone.cancel()
        assert await asyncio.gather(*waiting) == [POLICY] * 5
        assert len(host.requests) == 1
        assert await fetcher.fetch(DOMAIN) == POLICY
        assert len(host.requests) == 2  # nothing is kept here


async def test_a_silent_host_gives_way_to_others_and_that_is_no_fact_about_it(authority: Authority) -> None:
    asked = asyncio.Event()

    class Uneven(PolicyHost):
        async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            request = await reader.readuntil(b"\r\n\r\n")
            if b"silent" in request:
                asked.set()
                await asyncio.Event().wait()
            writer.write(answer())
            await writer.drain()

    names = (HOST, "mta-sts.silent.example")
    async with fetching(authority, Uneven(b""), names=names, fetches=2) as fetcher:
        silent = asyncio.create_task(fetcher.fetch("silent.example"))
        await asked.wait()
        assert await fetcher.fetch(DOMAIN) == POLICY
        with pytest.raises(FetchPutOff):
            await silent


# --- by the cache ---


async def test_a_policy_host_that_fails_is_asked_once_in_five_minutes_by_all_processes_STS_18b(
    authority: Authority, database: str
) -> None:
    host = PolicyHost(answer(status="503 Service Unavailable"))
    record = StsRecord("1")
    async with fetching(authority, host) as fetcher:
        async with policy_process(database, fetcher) as one, policy_process(database, fetcher) as other:
            for cache in (one, other, one):
                assert (await cache.verdict(DOMAIN, record)).step is PolicyStep.WITHOUT
                await eventually(lambda: not one._failures and not other._failures)
        async with policy_process(database, fetcher) as later:
            assert (await later.verdict(DOMAIN, record)).step is PolicyStep.WITHOUT
        assert len(host.requests) == 1


async def test_a_policy_is_fetched_again_before_its_end_without_mail_STS_19b(
    authority: Authority, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "_REFRESH_EVERY", 0.05)
    host = PolicyHost(answer())
    async with fetching(authority, host) as fetcher, policy_process(database, fetcher) as cache:
        assert (await cache.verdict(DOMAIN, StsRecord("1"))).policy == POLICY
        with psycopg.connect(database, autocommit=True) as connection:
            kept = "SELECT count(*) FROM outbound.mta_sts WHERE policy IS NOT NULL"
            await eventually(lambda: connection.execute(kept).fetchone() == (1,))
            assert len(host.requests) == 1
            connection.execute("UPDATE outbound.mta_sts SET fetched = fetched - interval '2 days', refresh = now()")
            await eventually(lambda: len(host.requests) == 2)
            fresh = "SELECT fetched > now() - interval '1 hour' FROM outbound.mta_sts"
            await eventually(lambda: connection.execute(fresh).fetchone() == (True,))
