"""Policy hosts of MTA-STS: one HTTPS server that answers for many names, each with a certificate and text of its own.

    with PolicyHosts(authority) as hosts:
        hosts.publish("example.test", "version: STSv1\\nmode: enforce\\nmx: mx.example.test\\nmax_age: 86400\\n")
        ... hosts.address, hosts.port, hosts.requests["example.test"]

Or it stands before a service that speaks HTTP, as an Ingress does: `hosts.pass_on("example.test", address, port)`.
"""

import asyncio
import contextlib
import ssl
from collections import Counter
from dataclasses import dataclass

from testkit.background import ServedStreams, background
from testkit.ca import Authority, Certificate
from testkit.ports import loopback_address


@dataclass(frozen=True)
class _Site:
    context: ssl.SSLContext
    answer: bytes = b""
    behind: tuple[str, int] | None = None


class PolicyHosts(ServedStreams):
    """See the module. Use as a context manager, or call `close()`."""

    def __init__(self, authority: Authority) -> None:
        """Serve at once; `authority` issues the certificates."""
        super().__init__()
        self.address = loopback_address()
        self.requests: Counter[str] = Counter()
        """How often the policy of each domain was asked for, over TLS that the client took."""
        self._authority = authority
        self._sites: dict[str, _Site] = {}
        context = authority.issue("nobody.test").server_context()
        context.sni_callback = self._choose
        background().call(self._start(context))

    async def _start(self, context: ssl.SSLContext) -> None:
        self._server = await asyncio.start_server(self._serve, self.address, 0, ssl=context)
        self.port = self._server.sockets[0].getsockname()[1]

    def publish(
        self,
        domain: str,
        body: str | bytes,
        *,
        status: str = "200 OK",
        media: str = "text/plain",
        certificate: Certificate | None = None,
    ) -> None:
        """Answer for the policy host of a domain."""
        octets = body.encode() if isinstance(body, str) else body
        head = f"HTTP/1.1 {status}\r\nContent-Type: {media}\r\nContent-Length: {len(octets)}\r\n\r\n"
        self._sites[f"mta-sts.{domain}"] = _Site(self._context(domain, certificate), head.encode() + octets)

    def pass_on(self, domain: str, address: str, port: int) -> None:
        """Let an HTTP server answer for it."""
        self._sites[f"mta-sts.{domain}"] = _Site(self._context(domain, None), behind=(address, port))

    def _context(self, domain: str, certificate: Certificate | None) -> ssl.SSLContext:
        return (certificate or self._authority.issue(f"mta-sts.{domain}")).server_context()

    def _choose(self, connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        if (site := self._sites.get(name or "")) is not None:
            connection.context = site.context

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        fields = [line.partition(b":") for line in head.split(b"\r\n")]
        host = next(value.strip().decode() for name, _, value in fields if name.lower() == b"host")
        self.requests[host.removeprefix("mta-sts.")] += 1
        site = self._sites[host]
        answer = site.answer if site.behind is None else await _answer_of(site.behind, head)
        with contextlib.suppress(ssl.SSLError):
            writer.write(answer)
            await writer.drain()

    async def _close(self) -> None:
        self._server.close()
        await self._end_connections()


async def _answer_of(behind: tuple[str, int], head: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(*behind)
    try:
        writer.write(head[:-2] + b"Connection: close\r\n\r\n")
        return await reader.read()
    finally:
        writer.close()
