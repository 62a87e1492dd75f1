"""The scripted SOCKS5 proxy speaks RFC 1928 and 1929 with an independent client, and misbehaves as told."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from python_socks import ProxyConnectionError, ProxyError, ProxyTimeoutError, ProxyType
from python_socks.async_.asyncio import Proxy

from testkit.servers import serve
from testkit.socks import Moment, Refusal, SocksProxy, Trouble


@contextlib.asynccontextmanager
async def greeter() -> AsyncIterator[tuple[str, int]]:
    """A server that says who connects."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"220 hello {writer.get_extra_info('peername')[0]}\r\n".encode())
        await writer.drain()
        await reader.read()

    async with serve(greet) as where:
        yield where


async def greeting(proxy: SocksProxy, host: str, port: int, **credentials: str) -> str:
    """Connect through the proxy, resolving names there, and read one line."""
    client = Proxy.create(ProxyType.SOCKS5, proxy.address, proxy.port, rdns=True, **credentials)
    sock = await client.connect(host, port, timeout=3)
    reader, writer = await asyncio.open_connection(sock=sock)
    try:
        return (await reader.readline()).decode().strip()
    finally:
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("bound", ["0.0.0.0", "::1", "proxy.example.org"])
async def test_it_relays_to_where_the_script_says_and_shows_its_own_address(split: bool, bound: str) -> None:
    async with greeter() as target:
        with SocksProxy(split_writes=split, bound=bound) as proxy:
            proxy.send("mx.example.org", 25, to=target)
            assert await greeting(proxy, "mx.example.org", 25) == f"220 hello {proxy.address}"
            assert [(r.host, r.port, r.address_type) for r in proxy.requests] == [("mx.example.org", 25, "name")]


async def test_credentials_are_demanded_checked_and_logged() -> None:
    async with greeter() as target:
        with SocksProxy(username="rail", password="s3cret") as proxy:
            await greeting(proxy, *target, username="rail", password="s3cret")
            assert proxy.requests[0].username == "rail"
            with pytest.raises(ProxyError):
                await greeting(proxy, *target, username="rail", password="no")
            with pytest.raises(ProxyError):
                await greeting(proxy, *target)
            assert proxy.failed_logins == 1
            assert len(proxy.requests) == 1


async def test_refusals_carry_the_scripted_code() -> None:
    with SocksProxy() as proxy:
        proxy.refuse("blocked.example.org", code=Refusal.NOT_ALLOWED)
        with pytest.raises(ProxyError, match="not allowed by ruleset"):
            await greeting(proxy, "blocked.example.org", 25)


@pytest.mark.parametrize("moment", [Moment.CONNECT, Moment.METHOD, Moment.REQUEST])
@pytest.mark.parametrize("trouble", list(Trouble))
async def test_it_misbehaves_at_the_step_it_was_told(moment: Moment, trouble: Trouble) -> None:
    with SocksProxy() as proxy:
        proxy.misbehave(moment, trouble)
        client = Proxy.from_url(f"socks5://{proxy.endpoint}", rdns=True)
        with pytest.raises((ProxyError, ProxyConnectionError, ProxyTimeoutError, OSError)):
            await client.connect("mx.example.org", 25, timeout=0.3)
        assert len(proxy.requests) == (moment is Moment.REQUEST)
