"""Liveness and readiness over HTTP: for the kubelet, which asks in plain text.

Live: the event loop answers. Ready: waiting for the lease, or leading with everything listed and the last publish done.
Neither depends on anything that a restart could not mend: while the config service is away the operator stays live.
"""

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from mailrail.kit.settings import BadSettings, host_port


@asynccontextmanager
async def serve(listen: str, ready: Callable[[], tuple[bool, str]]) -> AsyncIterator[int | None]:
    """Serve /livez and /readyz while the context lasts; yields the port, None when `listen` is empty."""
    if not listen:
        yield None
        return
    host, port = host_port(listen)

    async def livez(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        good, words = ready()
        return web.Response(text=f"{words}\n", status=200 if good else 503)

    app = web.Application()
    app.add_routes([web.get("/livez", livez), web.get("/readyz", readyz)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        try:
            await _site(runner, host, port).start()
        except OSError as error:
            raise BadSettings(f"cannot listen on {listen} for probes: {error}") from error
        addresses = runner.addresses
        yield addresses[0][1] if addresses else port
    finally:
        await runner.cleanup()


def _site(runner: web.AppRunner, host: str, port: int) -> web.BaseSite:
    # asyncio makes sockets of IPv6 that take IPv6 alone, and the kubelet asks at a pod's first address, often IPv4.
    if host == "::" and socket.has_dualstack_ipv6():
        listening = socket.create_server((host, port), family=socket.AF_INET6, dualstack_ipv6=True)
        return web.SockSite(runner, listening)
    return web.TCPSite(runner, host or None, port)
