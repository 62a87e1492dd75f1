"""A DNS server for tests: scripted names, DNSSEC facts, failures, and a log of what was asked.

It plays the resolver that a service is pointed at (`HOST:PORT`), over UDP and TCP on one port. What it has not been
told does not exist (NXDOMAIN; NODATA where the name has other types). It follows its own CNAMEs, as a resolver does.
The AD bit says what a validating resolver would: set for a name declared `secure`, if the question carried AD or DO
(RFC 6840 5.7, 5.8). It validates nothing itself; a `bogus` name answers SERVFAIL, as validation would.

    with DnsServer() as dns:
        dns.add("example.org", "MX", "10 mx.example.org.")
        dns.add("mx.example.org", "A", "127.44.5.6")
        dns.fail("slow.example.org", Failure.SILENT)
        ...
        assert dns.asked("example.org", "MX") == 1
"""

import asyncio
import contextlib
import struct
import threading
from dataclasses import dataclass, field
from enum import Enum
from typing import cast

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from testkit.background import Served, background
from testkit.ports import free_port, loopback_address


class Failure(Enum):
    """How a name can misbehave."""

    SERVFAIL = "servfail"
    REFUSED = "refused"
    NOTIMP = "notimp"
    SILENT = "silent"  # no answer at all: the client's timeout
    GARBAGE = "garbage"  # bytes that are no DNS message
    WRONG_ID = "wrong-id"  # an answer to some other question
    EMPTY_OVER_UDP = "empty-over-udp"  # TC over UDP, the truth over TCP
    TRUNCATED = "truncated"  # TC over UDP, and TCP is cut off
    BOGUS = "bogus"  # fails validation: SERVFAIL, unless the question sets CD


_RCODES = {
    Failure.SERVFAIL: dns.rcode.SERVFAIL,
    Failure.BOGUS: dns.rcode.SERVFAIL,
    Failure.REFUSED: dns.rcode.REFUSED,
    Failure.NOTIMP: dns.rcode.NOTIMP,
}


@dataclass(frozen=True)
class Query:
    """One question as it came in."""

    name: str  # lower case, without the final dot
    type: str
    over: str  # "udp" or "tcp"
    dnssec_ok: bool
    authentic_data: bool


@dataclass
class _Name:
    records: dict[dns.rdatatype.RdataType, dns.rrset.RRset] = field(default_factory=dict)
    secure: bool = False


class DnsServer(Served):
    """See the module. Safe to change while it serves; use as a context manager, or call `close()`."""

    def __init__(self, address: str | None = None, port: int | None = None) -> None:
        """Serve at once, by default on a fresh 127.x.y.z and a free port."""
        self.address = address or loopback_address()
        self.port = port or free_port(self.address, udp=True)
        self.queries: list[Query] = []
        self._names: dict[dns.name.Name, _Name] = {}
        self._failures: dict[tuple[dns.name.Name, dns.rdatatype.RdataType | None], Failure] = {}
        self._secure_zones: set[dns.name.Name] = set()
        self._guard = threading.Lock()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._transport: asyncio.DatagramTransport | None = None
        background().call(self._open())

    # --- the script ---

    def add(self, name: str, rdtype: str, *values: str, ttl: int = 300, secure: bool | None = None) -> None:
        """Add records in presentation form (`dns.add("a.test", "MX", "10 mx.a.test.")`) to what the name has.

        `secure` True or False declares the name's DNSSEC state; None leaves it as it is
        (at first: insecure, unless its zone is secure).
        """
        owner, kind = _absolute(name), dns.rdatatype.from_text(rdtype)
        fresh = dns.rrset.from_text(owner, ttl, "IN", rdtype, *values)
        with self._guard:
            entry = self._names.setdefault(owner, _Name())
            if kind in entry.records:
                for record in fresh:
                    entry.records[kind].add(record)
            else:
                entry.records[kind] = fresh
            if secure is not None:
                entry.secure = secure

    def set(self, name: str, rdtype: str, *values: str, ttl: int = 300, secure: bool | None = None) -> None:
        """`add`, replacing what the name had of that type."""
        self.remove(name, rdtype)
        self.add(name, rdtype, *values, ttl=ttl, secure=secure)

    def remove(self, name: str, rdtype: str | None = None) -> None:
        """Forget a name's records of one type, or the whole name with its failures."""
        owner = _absolute(name)
        with self._guard:
            if rdtype is None:
                self._names.pop(owner, None)
                for key in [key for key in self._failures if key[0] == owner]:
                    del self._failures[key]
            elif owner in self._names:
                self._names[owner].records.pop(dns.rdatatype.from_text(rdtype), None)
                if not self._names[owner].records:
                    del self._names[owner]

    def secure_zone(self, name: str) -> None:
        """Declare this name and all below it signed: positive and negative answers get the AD bit."""
        with self._guard:
            self._secure_zones.add(_absolute(name))

    def fail(self, name: str, how: Failure, rdtype: str | None = None) -> None:
        """Make questions for the name (of one type, or of any) misbehave until `mend`."""
        with self._guard:
            self._failures[_absolute(name), dns.rdatatype.from_text(rdtype) if rdtype else None] = how

    def mend(self, name: str, rdtype: str | None = None) -> None:
        """Undo `fail` with the same arguments."""
        with self._guard:
            self._failures.pop((_absolute(name), dns.rdatatype.from_text(rdtype) if rdtype else None), None)

    def asked(self, name: str, rdtype: str | None = None) -> int:
        """How often the name was asked for (with that type, or with any)."""
        wanted = name.rstrip(".").lower()
        return sum(query.name == wanted and rdtype in (None, query.type) for query in list(self.queries))

    # --- answering ---

    def _answer(self, wire: bytes, over: str) -> bytes | None:
        """The bytes to send back; None = silence."""
        try:
            question = dns.message.from_wire(wire)
        except dns.exception.DNSException:
            return None
        if len(question.question) != 1 or question.flags & dns.flags.QR:
            return None
        asked = question.question[0]
        owner = asked.name.canonicalize()
        kind = asked.rdtype
        with self._guard:
            self.queries.append(
                Query(
                    owner.to_text(omit_final_dot=True),
                    dns.rdatatype.to_text(kind),
                    over,
                    bool(question.ednsflags & dns.flags.DO),
                    bool(question.flags & dns.flags.AD),
                )
            )
            failure = self._failures.get((owner, kind)) or self._failures.get((owner, None))
            return self._respond(question, owner, kind, over, failure)

    def _respond(
        self,
        question: dns.message.Message,
        owner: dns.name.Name,
        kind: dns.rdatatype.RdataType,
        over: str,
        failure: Failure | None,
    ) -> bytes | None:
        response = dns.message.make_response(question, recursion_available=True)
        if failure in (Failure.SILENT, Failure.GARBAGE):
            return None if failure is Failure.SILENT else b"\x00garbage, as some middleboxes send it"
        if failure is Failure.WRONG_ID:
            response.id = (question.id + 1) % 65536
        rcode = _RCODES.get(failure) if failure is not None else None
        if rcode is not None and not (failure is Failure.BOGUS and question.flags & dns.flags.CD):
            response.set_rcode(rcode)
            return response.to_wire()
        if failure in (Failure.EMPTY_OVER_UDP, Failure.TRUNCATED):
            if over == "udp":
                response.flags |= dns.flags.TC
                return response.to_wire()
            if failure is Failure.TRUNCATED:
                return None
        self._fill(response, owner, kind)
        if not question.flags & dns.flags.AD and not question.ednsflags & dns.flags.DO:
            response.flags &= ~dns.flags.AD
        if over == "tcp":
            return response.to_wire(max_size=65535)
        room = question.payload if question.edns >= 0 else 512
        try:
            return response.to_wire(max_size=max(512, room))
        except dns.exception.TooBig:
            small = dns.message.make_response(question, recursion_available=True)
            small.flags |= dns.flags.TC
            return small.to_wire()

    def _fill(self, response: dns.message.Message, owner: dns.name.Name, kind: dns.rdatatype.RdataType) -> None:
        secure = True
        for _ in range(16):  # a loop of CNAMEs ends here, with what was found so far
            secure = secure and self._is_secure(owner)
            entry = self._names.get(owner)
            if entry is not None and kind in entry.records:
                response.answer.append(entry.records[kind])
                break
            if entry is not None and dns.rdatatype.CNAME in entry.records:
                alias = entry.records[dns.rdatatype.CNAME]
                response.answer.append(alias)
                owner = alias[0].target.canonicalize()
                continue
            if entry is None and not any(name.is_subdomain(owner) for name in self._names):
                response.set_rcode(dns.rcode.NXDOMAIN)
            zone = owner.parent() if len(owner) > 1 else owner
            response.authority.append(
                dns.rrset.from_text(
                    zone, 60, "IN", "SOA", f"ns.{zone} hostmaster.{zone} 1 3600 600 86400 60".replace(". .", ". ")
                )
            )
            break
        if secure:
            response.flags |= dns.flags.AD

    def _is_secure(self, owner: dns.name.Name) -> bool:
        entry = self._names.get(owner)
        return (entry is not None and entry.secure) or any(owner.is_subdomain(zone) for zone in self._secure_zones)

    # --- sockets ---

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await asyncio.start_server(self._serve_tcp, self.address, self.port)
        self._transport, _ = await loop.create_datagram_endpoint(
            lambda: _Datagrams(self), local_addr=(self.address, self.port)
        )

    async def _serve_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                (length,) = struct.unpack("!H", await reader.readexactly(2))
                answer = self._answer(await reader.readexactly(length), "tcp")
                if answer is None:
                    break
                writer.write(struct.pack("!H", len(answer)) + answer)
                await writer.drain()
        self._writers.discard(writer)
        writer.close()

    async def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()
        if self._server is not None:
            self._server.close()
        for writer in list(self._writers):
            writer.close()
        await asyncio.sleep(0)


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: DnsServer) -> None:
        self._server = server
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        answer = self._server._answer(data, "udp")
        if answer is not None and self._transport is not None:
            self._transport.sendto(answer, addr)


def _absolute(name: str) -> dns.name.Name:
    return dns.name.from_text(name).canonicalize()
