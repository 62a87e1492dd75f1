"""The fault proxy relays faithfully, and fails exactly as told."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from testkit.conditions import eventually
from testkit.faultproxy import Direction, FaultProxy
from testkit.servers import serve


@contextlib.asynccontextmanager
async def echo() -> AsyncIterator[tuple[str, int]]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()

    async with serve(answer) as where:
        yield where


@contextlib.asynccontextmanager
async def through(proxy: FaultProxy) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(proxy.address, proxy.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_a_stall_holds_bytes_back_and_a_resume_lets_them_go() -> None:
    async with echo() as target:
        with FaultProxy(target) as proxy:
            async with through(proxy) as (reader, writer):
                writer.write(b"one")
                assert await reader.readexactly(3) == b"one"
                proxy.stall()
                writer.write(b"two")
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(reader.readexactly(3), 0.1)
                proxy.resume()
                assert await asyncio.wait_for(reader.readexactly(3), 5) == b"two"


async def test_a_cut_resets_what_is_open_and_serves_what_comes() -> None:
    async with echo() as target:
        with FaultProxy(target) as proxy:
            async with through(proxy) as (reader, writer):
                writer.write(b"one")
                await reader.readexactly(3)
                proxy.cut()
                with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                    await reader.readexactly(1)
            async with through(proxy) as (reader, writer):
                writer.write(b"again")
                assert await reader.readexactly(5) == b"again"
            assert proxy.connections == 2
            await eventually(lambda: proxy.open_connections == 0)


async def test_a_refused_proxy_comes_back_at_the_same_port() -> None:
    async with echo() as target:
        with FaultProxy(target) as proxy:
            proxy.refuse()
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(proxy.address, proxy.port)
            proxy.resume()
            async with through(proxy) as (reader, writer):
                writer.write(b"back")
                assert await reader.readexactly(4) == b"back"


async def test_a_cut_in_the_middle_lets_exactly_so_many_bytes_through() -> None:
    async with echo() as target:
        with FaultProxy(target) as proxy:
            proxy.cut_after(1000, Direction.TO_SERVER)
            async with through(proxy) as (reader, writer):
                writer.write(b"x" * 5000)
                with contextlib.suppress(ConnectionResetError):
                    await reader.read()
            assert proxy.relayed[Direction.TO_SERVER] == 1000
