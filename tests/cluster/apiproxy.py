"""A proxy before the API server that can be away, and that can lose a watch's place (410 Gone), as a real one does.

Between `away()` and `back()` every connection is refused or cut. A watch that comes back afterwards from before the gap
is told 410, so its client has to list anew, and nobody tells it what was deleted meanwhile.
"""

import asyncio
import json
import ssl

import aiohttp
from aiohttp import web

from testkit.background import background

_HOP_BY_HOP = {"host", "connection", "transfer-encoding", "content-length", "content-encoding"}


class ApiProxy:
    """Plain HTTP on a loopback port, TLS to the API server; credentials pass through."""

    def __init__(self, server: str, ca: str) -> None:
        self._server, self._context = server, ssl.create_default_context(cadata=ca)
        self._present = True
        self._gone_before = 0  # watches from older resource versions are told 410
        self._streams: set[asyncio.Task[object]] = set()
        self.expired = 0
        """Watches that were told 410."""
        self.url = background().call(self._start())

    async def _start(self) -> str:
        connector = aiohttp.TCPConnector(ssl=self._context)
        self._session = aiohttp.ClientSession(connector=connector, auto_decompress=False)
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    def away(self) -> None:
        """Be out of reach from now on; streams are cut."""
        background().call(self._away())

    async def _away(self) -> None:
        self._present = False
        for stream in list(self._streams):
            stream.cancel()

    def back(self, version: int) -> None:
        """Be there again; watches from before `version` have lost their place."""
        self._gone_before, self._present = version, True

    def close(self) -> None:
        """End."""
        background().call(self._close())

    async def _close(self) -> None:
        await self._away()
        await self._runner.cleanup()
        await self._session.close()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if not self._present:
            assert request.transport is not None
            request.transport.abort()
            raise web.HTTPServiceUnavailable
        watching = request.query.get("watch") in ("1", "true")
        version = request.query.get("resourceVersion", "")
        if watching and version.isdigit() and int(version) < self._gone_before:
            self.expired += 1
            gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
            return web.Response(text=json.dumps({"type": "ERROR", "object": gone}) + "\n")
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _HOP_BY_HOP}
        task = asyncio.current_task()
        assert task is not None
        self._streams.add(task)
        try:
            async with self._session.request(
                request.method,
                self._server + request.path_qs,
                data=await request.read() or None,
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=None),
            ) as answer:
                passed = {
                    k: v for k, v in answer.headers.items() if k.lower() not in _HOP_BY_HOP - {"content-encoding"}
                }
                response = web.StreamResponse(status=answer.status, headers=passed)
                await response.prepare(request)
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
                return response
        except asyncio.CancelledError:
            if request.transport is not None:
                request.transport.abort()
            raise
        finally:
            self._streams.discard(task)
