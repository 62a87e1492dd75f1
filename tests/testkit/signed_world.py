"""The small signed world: every zone and certificate that tests of DANE, MTA-STS and TLS reports need, made by script.

The root and `test.` are ours and signed; a real nsd serves all zones, and a real unbound that trusts our root validates
them. Each mail host has an address 127.x.y.z of its own, and a certificate of one authority unless the table says
otherwise. TLSA records are at the port that the world is made for. A test that needs more adds it to `world.zones`, or
makes a `Zone`, before it enters the world; `publish` shows later changes.

    with SignedWorld(port=2525) as world:
        resolver = DnsResolver(world.resolver.endpoint, trust_ad=True)
        server = world.certificates["mx.secure.test"].server_context()
        ...
        assert world.resolver.asked("_2525._tcp.mx.secure.test", "TLSA") == 1

| domain (all below `test.`) | what a validating resolver finds |
|---|---|
| `secure` | MX, A and TLSA (DANE-EE) of `mx.secure.test`; `_mta-sts` and `_smtp._tls` TXT; the policy host |
| `ta` | TLSA of usage 2 (DANE-TA): the authority, which the server sends along |
| `mismatch` | a secure TLSA of another key than the server has |
| `unusable` | a secure TLSA of usage 1 alone, which SMTP cannot use |
| `none` | signed, without TLSA: a secure "there is none" |
| `unsigned` | MX, A, TLSA, TXT, all insecure |
| `unsigned-mx` | insecure MX that names the secure host `mx.secure.test` |
| `bogus` | every answer fails validation: the parent names another key |
| `expired` | every answer fails validation: the signatures ran out |
| `bogus-aaaa` | a secure A, a broken signature of AAAA, a secure TLSA |
| `bogus-a` | a broken signature of A, and no AAAA |
| `bogus-tlsa` | a secure A, a broken signature of TLSA |
| `drops-tlsa`, `unsigned-drops-tlsa` | the name server never answers a question for TLSA |
| `refuses-tlsa`, `notimp-tlsa` | it answers REFUSED, or NOTIMP |
| `alias` | the host is a secure CNAME to `mx.secure.test`, with TLSA there |
| `alias-unusable` | the host is a secure CNAME to `mx.unusable.test` |
| `alias-own` | the host is a secure CNAME to `mx.none.test`, with TLSA at the original name alone |
| `alias-unsigned` | the host is a secure CNAME to `mx.unsigned.test`, with TLSA at the original name |
| `tlsa-alias` | TLSA is a secure CNAME into `secure.test` |
| `tlsa-alias-unsigned` | TLSA is a CNAME into the unsigned zone |
| `tlsa-alias-nowhere` | TLSA is a CNAME to a name that the unsigned zone does not have: an insecure NXDOMAIN |
| `mx-alias` | the domain itself is a secure CNAME to `secure.test`; it has no DS and no zone |
| `no-mx` | no MX, secure; A and TLSA at the domain itself |
| `no-mx-unsigned` | likewise, insecure |
| `order` | MX 10 without TLSA, MX 20 with |
| `second` | MX 10 with a bogus TLSA, MX 20 a good one |
| `literal` | an MX record that names an IP address |
| `null` | a null MX (RFC 7505) |
"""

import asyncio
import hashlib
import struct
from contextlib import ExitStack
from enum import Enum
from typing import Self, cast

import dns.asyncquery
import dns.message
import dns.rcode
import dns.rdatatype
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from testkit.background import ServedStreams, background
from testkit.ca import Authority, Certificate
from testkit.peers.nsd import Nsd
from testkit.peers.unbound import Unbound
from testkit.ports import free_port, loopback_address
from testkit.signed_zones import Signed, Zone

NAME_SERVER = "ns.test."


def tlsa(certificate: bytes, usage: int, selector: int, matching: int) -> str:
    """The TLSA record (RFC 6698 2.1) of the first certificate of a PEM text, in presentation form."""
    found = x509.load_pem_x509_certificate(certificate)
    data = found.public_bytes(Encoding.DER)
    if selector == 1:
        data = found.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    shown = {0: data.hex, 1: hashlib.sha256(data).hexdigest, 2: hashlib.sha512(data).hexdigest}[matching]()
    return f"{usage} {selector} {matching} {shown}"


class TlsaAnswer(Enum):
    """What a name server does that knows nothing of TLSA."""

    DROPPED = None
    REFUSED = dns.rcode.REFUSED
    NOTIMP = dns.rcode.NOTIMP


class SignedWorld:
    """See the module. Use as a context manager."""

    def __init__(self, port: int = 25, *, resolver_port: int | None = None) -> None:
        """`port`: where its mail hosts listen, for the names of TLSA records. `resolver_port`: of the resolver, for
        programs that know no other than 53, which takes root; default: a free one."""
        self.port = port
        self._resolver_port = resolver_port
        self.authority = Authority()
        self.addresses: dict[str, str] = {}
        """Of each host that has one."""
        self.certificates: dict[str, Certificate] = {}
        """Of each mail host."""
        self.zones: dict[str, Zone] = {"": Zone(""), "test": Zone("test")}
        """By name, without the final dot."""
        self.resolver: Unbound
        """The unbound that validates, once the world is entered."""
        self._contrary: dict[str, TlsaAnswer] = {}
        self._nsd: Nsd
        self._open = ExitStack()
        self._script()

    # --- what there is ---

    def zone(self, name: str, signed: Signed = Signed.SECURE, *, contrary: TlsaAnswer | None = None) -> Zone:
        """A new zone below `test.`; `contrary`: its name server does this to each question for TLSA."""
        zone = self.zones[name] = Zone(name, signed)
        if contrary is not None:
            self._contrary[name] = contrary
        return zone

    def host(self, zone: Zone, name: str) -> Certificate:
        """Give a new mail host in `zone` an A record and a certificate."""
        self._address(zone, name)
        certificate = self.certificates[name] = self.authority.issue(name)
        return certificate

    def tlsa_name(self, base: str) -> str:
        """Where TLSA records of a base domain are (RFC 7672 2.1)."""
        return f"_{self.port}._tcp.{base}"

    def _address(self, zone: Zone, name: str) -> None:
        self.addresses[name] = loopback_address()
        zone.add(name, "A", self.addresses[name])

    def _domain(self, name: str, signed: Signed = Signed.SECURE, *, contrary: TlsaAnswer | None = None) -> Zone:
        """A zone with one mail host, `mx` in it."""
        zone = self.zone(name, signed, contrary=contrary)
        zone.add(name, "MX", f"10 mx.{name}.")
        self.host(zone, f"mx.{name}")
        return zone

    def _with_tlsa(
        self,
        name: str,
        signed: Signed = Signed.SECURE,
        *,
        broken: bool = False,
        contrary: TlsaAnswer | None = None,
    ) -> Zone:
        """The same, with a TLSA record of its key."""
        zone = self._domain(name, signed, contrary=contrary)
        self._add_tlsa(zone, f"mx.{name}", broken=broken)
        return zone

    def _add_tlsa(self, zone: Zone, host: str, *, base: str = "", broken: bool = False) -> None:
        record = tlsa(self.certificates[host].chain_pem, 3, 1, 1)
        zone.add(self.tlsa_name(base or host), "TLSA", record, broken=broken)

    def _script(self) -> None:
        for name, signed in (("secure.test", Signed.SECURE), ("unsigned.test", Signed.INSECURE)):
            zone = self._with_tlsa(name, signed)
            zone.add(f"_mta-sts.{name}", "TXT", '"v=STSv1; id=20260101T000000;"')
            zone.add(f"_smtp._tls.{name}", "TXT", f'"v=TLSRPTv1; rua=mailto:tls@{name}"')
            self._address(zone, f"mta-sts.{name}")
            self.certificates[f"mta-sts.{name}"] = self.authority.issue(f"mta-sts.{name}")
        secure, unsigned = self.zones["secure.test"], self.zones["unsigned.test"]

        self._trust_anchor_zone()
        self._domain("mismatch.test").add(
            self.tlsa_name("mx.mismatch.test"), "TLSA", tlsa(Authority().issue("other.test").chain_pem, 3, 1, 1)
        )
        zone = self._domain("unusable.test")
        zone.add(self.tlsa_name("mx.unusable.test"), "TLSA", tlsa(self.authority.pem, 1, 1, 1))
        self._domain("none.test")
        self.zone("unsigned-mx.test", Signed.INSECURE).add("unsigned-mx.test", "MX", "10 mx.secure.test.")
        self._with_tlsa("bogus.test", Signed.BOGUS)
        self._with_tlsa("expired.test", Signed.EXPIRED)
        self._with_tlsa("bogus-aaaa.test").add("mx.bogus-aaaa.test", "AAAA", "2001:db8::25", broken=True)
        zone = self.zone("bogus-a.test")
        zone.add("bogus-a.test", "MX", "10 mx.bogus-a.test.")
        zone.add("mx.bogus-a.test", "A", "192.0.2.25", broken=True)
        self._with_tlsa("bogus-tlsa.test", broken=True)
        self._with_tlsa("drops-tlsa.test", contrary=TlsaAnswer.DROPPED)
        self._domain("unsigned-drops-tlsa.test", Signed.INSECURE, contrary=TlsaAnswer.DROPPED)
        self._with_tlsa("refuses-tlsa.test", contrary=TlsaAnswer.REFUSED)
        self._with_tlsa("notimp-tlsa.test", contrary=TlsaAnswer.NOTIMP)

        aliases = (
            ("alias", "secure"),
            ("alias-own", "none"),
            ("alias-unsigned", "unsigned"),
            ("alias-unusable", "unusable"),
        )
        for name, target in aliases:
            zone = self.zone(f"{name}.test")
            zone.add(f"{name}.test", "MX", f"10 mx.{name}.test.")
            zone.add(f"mx.{name}.test", "CNAME", f"mx.{target}.test.")
            if target in ("none", "unsigned"):
                self._add_tlsa(zone, f"mx.{target}.test", base=f"mx.{name}.test")
        for name, target_zone in (("tlsa-alias", secure), ("tlsa-alias-unsigned", unsigned)):
            alias = self.tlsa_name(f"mx.{name}.test")
            self._domain(f"{name}.test").add(alias, "CNAME", f"{name}.{target_zone.name}.")
            self._add_tlsa_at(target_zone, f"{name}.{target_zone.name}", f"mx.{name}.test")
        self._domain("tlsa-alias-nowhere.test").add(
            self.tlsa_name("mx.tlsa-alias-nowhere.test"), "CNAME", "nowhere.unsigned.test."
        )
        self.zones["test"].add("mx-alias.test", "CNAME", "secure.test.")

        for name, signed in (("no-mx.test", Signed.SECURE), ("no-mx-unsigned.test", Signed.INSECURE)):
            zone = self.zone(name, signed)
            self.host(zone, name)
            self._add_tlsa(zone, name)
        for name, broken in (("order.test", False), ("second.test", True)):
            zone = self.zone(name)
            zone.add(name, "MX", f"10 a.{name}.", f"20 b.{name}.")
            self.host(zone, f"a.{name}")
            self.host(zone, f"b.{name}")
            if broken:
                self._add_tlsa(zone, f"a.{name}", broken=True)
            self._add_tlsa(zone, f"b.{name}")
        self.zone("literal.test").add("literal.test", "MX", "10 192.0.2.25.")
        self.zone("null.test").add("null.test", "MX", "0 .")

    def _add_tlsa_at(self, zone: Zone, name: str, host: str) -> None:
        zone.add(name, "TLSA", tlsa(self.certificates[host].chain_pem, 3, 1, 1))

    def _trust_anchor_zone(self) -> None:
        zone = self._domain("ta.test")
        leaf = self.certificates["mx.ta.test"]
        sent = leaf.chain_pem + self.authority.pem
        self.certificates["mx.ta.test"] = Certificate(leaf.names, sent, leaf.key_pem)
        zone.add(self.tlsa_name("mx.ta.test"), "TLSA", tlsa(self.authority.pem, 2, 1, 1))

    # --- serving it ---

    def master_files(self) -> dict[str, str]:
        """The text of each zone by its name, for a name server elsewhere; each is delegated. To be called once."""
        for name, zone in self.zones.items():
            if name:
                self.zones["" if name == "test" else "test"].delegate(zone, NAME_SERVER)
        return self._written()

    @property
    def anchors(self) -> list[str]:
        """The root's keys, as unbound takes them."""
        return [f". IN DS {record}" for record in self.zones[""].ds]

    def __enter__(self) -> Self:
        try:
            self._nsd = self._open.enter_context(Nsd(self.master_files()))
            at = (self._nsd.address, self._nsd.port)
            servers = dict.fromkeys(self.zones, at)
            for name, answer in self._contrary.items():
                front = self._open.enter_context(ContraryServer(at, answer))
                servers[name] = (front.address, front.port)
            self.resolver = self._open.enter_context(Unbound(self.anchors, servers, self._resolver_port))
        except BaseException:
            self._open.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def publish(self) -> None:
        """Serve the zones as they are now; the resolver forgets what it knew."""
        self._nsd.load(self._written())
        self.resolver.forget()

    def _written(self) -> dict[str, str]:
        return {name: zone.written(NAME_SERVER) for name, zone in self.zones.items()}


class ContraryServer(ServedStreams):
    """A name server before another one, that treats questions for TLSA in its own way, by UDP and TCP."""

    def __init__(self, behind: tuple[str, int], answer: TlsaAnswer) -> None:
        """Serve at once. `behind`: the server that answers everything else."""
        super().__init__()
        self.address = loopback_address()
        self.port = free_port(self.address, udp=True)
        self._behind = behind
        self._way = answer
        self._waiting: set[asyncio.Task[None]] = set()
        background().call(self._start())

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._serve, self.address, self.port)
        self._transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: _Datagrams(self), local_addr=(self.address, self.port)
        )

    def datagram(self, data: bytes, sender: tuple[str, int]) -> None:
        """A question came by UDP."""

        async def answer() -> None:
            found = await self._answer(data)
            if found is not None:
                self._transport.sendto(found, sender)

        task = asyncio.get_running_loop().create_task(answer())
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            (length,) = struct.unpack("!H", await reader.readexactly(2))
            found = await self._answer(await reader.readexactly(length))
            if found is not None:
                writer.write(struct.pack("!H", len(found)) + found)
                await writer.drain()

    async def _answer(self, wire: bytes) -> bytes | None:
        question = dns.message.from_wire(wire)
        if question.question[0].rdtype is dns.rdatatype.TLSA:
            if self._way is TlsaAnswer.DROPPED:
                return None
            response = dns.message.make_response(question)
            response.set_rcode(cast(dns.rcode.Rcode, self._way.value))
            return response.to_wire()
        host, port = self._behind
        answer, _ = await dns.asyncquery.udp_with_fallback(question, host, port=port, timeout=30)
        return answer.to_wire()

    async def _close(self) -> None:
        self._transport.close()
        self._server.close()
        for task in self._waiting:
            task.cancel()
        await asyncio.gather(*self._waiting, return_exceptions=True)
        await self._end_connections()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: ContraryServer) -> None:
        self._server = server

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._server.datagram(data, addr)
