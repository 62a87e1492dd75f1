"""The policy service on real sockets: over HTTP, over HTTPS, and beside clients who do not speak."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mailrail.core.mtasts.policy import Mode, Policy
from mailrail.core.revision.revision import Domain, DomainDelivery, MtaSts, ObjectRef, Revision
from mailrail.kit.resolver import DnsResolver
from mailrail.kit.settings import BadSettings
from mailrail_outbound.settings import OutboundSettings
from mailrail_outbound.tls_policy.fetch import PolicyFetcher
from mailrail_policy.server import PolicyServer
from mailrail_policy.settings import PolicySettings

from testkit.ca import Authority, Certificate
from testkit.conditions import eventually
from testkit.dns import DnsServer
from testkit.ports import loopback_address

POLICY = Policy(Mode.ENFORCE, 604_800, ("mx.example.org",))
REQUEST = b"GET /.well-known/mta-sts.txt HTTP/1.1\r\nHost: mta-sts.example.org\r\n\r\n"


def revision(policy: Policy | None = POLICY) -> Revision:
    said = MtaSts(policy.mode, policy.max_age, policy.mx) if policy is not None else None
    ref = ObjectRef("MailDomain", "mail", "example-org")
    return Revision(domains=(Domain(ref, "example.org", DomainDelivery.MAILBOX, mta_sts=said),))


@contextlib.asynccontextmanager
async def serving(made: Revision | None, **settings: Any) -> AsyncIterator[tuple[PolicyServer, str]]:
    """A server with this revision, and its address."""
    address = loopback_address()
    server = PolicyServer(PolicySettings(listen=f"{address}:0", **settings))
    if made is not None:
        server.take(made)
    async with server.running():
        yield server, address


async def say(address: str, port: int, request: bytes = REQUEST, **options: Any) -> bytes:
    """The whole answer to a request."""
    reader, writer = await asyncio.open_connection(address, port, **options)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    return answer


def store(folder: Path, certificate: Certificate) -> Path:
    (folder / "tls.crt").write_bytes(certificate.chain_pem)
    (folder / "tls.key").write_bytes(certificate.key_pem)
    return folder


async def test_the_policy_of_the_revision_in_force_is_served_and_no_older_one() -> None:
    async with serving(None) as (server, address):
        assert (await say(address, server.port)).startswith(b"HTTP/1.1 503 ")
        server.take(revision())
        assert (await say(address, server.port)).endswith(str(POLICY).encode())
        server.take(revision(Policy(Mode.TESTING, 3600, ("mx.example.org",))))
        assert b"mode: testing\r\n" in await say(address, server.port)
        server.take(revision(None))
        assert (await say(address, server.port)).startswith(b"HTTP/1.1 404 ")


async def test_our_own_fetcher_takes_what_is_served_by_https_STS_23a(tmp_path: Path) -> None:
    authority = Authority()
    folder = store(tmp_path, authority.issue("mta-sts.example.org"))
    async with serving(revision(), certificate_dir=folder) as (server, address):
        with DnsServer() as dns:
            dns.add("mta-sts.example.org", "A", address)
            settings = OutboundSettings(fetch_networks=("127.0.0.0/8",), fetch_port=server.port)
            fetcher = PolicyFetcher(settings, DnsResolver(dns.endpoint), context=authority.client_context())
            assert await fetcher.fetch("example.org") == POLICY


async def test_a_renewed_certificate_is_taken_up_and_half_of_one_is_not(tmp_path: Path) -> None:
    before, after = Authority(), Authority()
    folder = store(tmp_path, before.issue("mta-sts.example.org"))
    async with serving(revision(), certificate_dir=folder, look_seconds=0.02) as (server, address):

        async def trusts(authority: Authority) -> Any:
            options: dict[str, Any] = {"ssl": authority.client_context(), "server_hostname": "mta-sts.example.org"}
            try:
                return (await say(address, server.port, **options)).startswith(b"HTTP/1.1 200 ")
            except ssl.SSLError:
                return False

        assert await trusts(before)
        renewed = after.issue("mta-sts.example.org")
        (folder / "tls.crt").write_bytes(renewed.chain_pem)  # whose key is not there yet
        assert await trusts(before)
        store(folder, renewed)

        await eventually(lambda: trusts(after))


async def test_a_certificate_that_is_missing_stops_the_start_with_its_folder(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match=str(tmp_path)):
        async with serving(revision(), certificate_dir=tmp_path):
            pass


@pytest.mark.parametrize("https", [False, True])
async def test_who_says_nothing_keeps_nobody_out(tmp_path: Path, https: bool) -> None:
    authority = Authority()
    folder = store(tmp_path, authority.issue("mta-sts.example.org")) if https else None
    options: dict[str, Any] = (
        {"ssl": authority.client_context(), "server_hostname": "mta-sts.example.org"} if https else {}
    )
    async with serving(revision(), connections=4, request_timeout=60, certificate_dir=folder) as (server, address):
        silent = [await asyncio.open_connection(address, server.port) for _ in range(12)]
        assert (await say(address, server.port, **options)).startswith(b"HTTP/1.1 200 ")
        assert await silent[0][0].read() == b""  # the oldest were ended
        for _, writer in silent:
            writer.close()


async def test_a_request_that_takes_too_long_is_ended_and_one_that_is_too_long_refused() -> None:
    async with serving(revision(), request_timeout=0.2) as (server, address):
        reader, writer = await asyncio.open_connection(address, server.port)
        writer.write(REQUEST[:-2])
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        long = REQUEST[:-2] + b"X-Pad: " + b"y" * 20_000 + b"\r\n\r\n"
        with contextlib.suppress(ConnectionError):  # it may be cut off before it has read the answer
            assert (await say(address, server.port, long))[:13] in (b"", b"HTTP/1.1 400 ")
        assert (await say(address, server.port)).startswith(b"HTTP/1.1 200 ")


async def test_a_taken_port_stops_the_start_with_the_name_of_the_setting() -> None:
    async with serving(revision()) as (server, address):
        taken = PolicyServer(PolicySettings(listen=f"{address}:{server.port}"))
        with pytest.raises(BadSettings, match="MAILRAIL_POLICY_LISTEN"):
            async with taken.running():
                pass
