"""How a host is dialled: its TLS, its proxy and login, and the key that connections are reused under."""

import secrets
import socket
import ssl
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from mailrail.core.dane.demand import DaneDemand
from mailrail.core.outbound.captive import is_loopback
from mailrail.core.outbound.socks5 import ProxyLogin, Socks5
from mailrail.core.outbound.targets import ConnectionKey
from mailrail.core.revision.revision import ObjectRef, SecretRef, TlsMode, Transport, TransportKind
from mailrail.core.sasl.client import Credentials, SaltedPasswords
from mailrail.core.smtp.answer import Answer, Stage, Trouble
from mailrail.core.smtp.client import ClientProtocol as Speech
from mailrail.core.smtp.client import ClientSession, LoginPlan, StartTls
from mailrail.core.tlspolicy.decision import Hop as TlsHop
from mailrail.core.tlspolicy.decision import TlsDecision, decide, wants_tlsa
from mailrail.core.tlspolicy.demands import NOTHING
from mailrail.core.tlspolicy.facts import NO_DNSSEC, NO_STS, DnsFacts, StsFacts
from mailrail.kit.resolver import DnsResolver, LookupFailed
from mailrail_outbound.hops import DIRECT, DialPlan, NextHop, Tables, Way
from mailrail_outbound.ports import Delivery
from mailrail_outbound.settings import OutboundSettings
from mailrail_outbound.smtp import Dial, TlsPlan
from mailrail_outbound.tls import client_context
from mailrail_outbound.tls_policy.dane import HostDane

_MOST_PLANS = 10_000  # of one next hop


class Host(NamedTuple):
    """A host and those of its addresses that are to be dialled, best first."""

    name: str
    port: int
    addresses: tuple[str, ...]
    dns: DnsFacts = NO_DNSSEC
    dane: DaneDemand | None = None
    """What `dns.matching` stands for."""
    base: str = ""
    """The TLSA base domain (`HostDane.base`)."""
    sts: StsFacts = NO_STS
    dns_failure: str = ""
    """Why the DNS does not say which TLSA records there are, where it does not."""

    def proven(self, dane: HostDane) -> "Host":
        """The same host, with what the DNS says of its TLS."""
        return self._replace(dns=dane.facts, dane=dane.demand, base=dane.base, dns_failure=dane.failure)


class Dialler:
    """Makes what the pool needs to connect."""

    def __init__(self, settings: OutboundSettings, resolver: DnsResolver) -> None:
        self._settings = settings
        self._resolver = resolver
        self._salted = SaltedPasswords()

    def plan_for(self, hop: NextHop, delivery: Delivery, host: Host) -> DialPlan:
        """The TLS decision for a host, with room for how it is dialled; the same one again for the same question."""
        key: tuple[object, ...]
        key = (host.name, host.addresses, delivery.gateway, delivery.requirement, delivery.redacted, delivery.purpose)
        if delivery.demanded is not NOTHING or host.sts is not NO_STS or host.dns is not NO_DNSSEC or host.base:
            # Rare, and dear: what mail has of these that is plain need not be hashed for each message.
            key = (*key, host.sts, host.dns, host.base, delivery.demanded)
        plan = hop.dial_plans.get(key)
        if plan is None:
            plan = DialPlan(decide(_tls_hop(hop, delivery, host)), host.dane)
            if len(hop.dial_plans) >= _MOST_PLANS:
                hop.dial_plans.clear()
            # The addresses of a proxy may change while the configuration does not.
            if not hop.proxied:
                hop.dial_plans[key] = plan
        return plan

    def wants_tlsa(self, hop: NextHop, delivery: Delivery, host: Host) -> bool:
        """Whether the TLSA records of a host that the configuration names are to be asked for."""
        return wants_tlsa(_tls_hop(hop, delivery, host))

    def dial(
        self,
        tables: Tables,
        hop: NextHop,
        decision: TlsDecision,
        gateway: ObjectRef | None,
        host: Host,
        proxy_address: str,
        *,
        way: Way = Way.DECIDED,
        dane: DaneDemand | None = None,
    ) -> Dial:
        """How to connect to `host`; `dane`: see DialPlan. Raises CannotDial."""
        transport = hop.transport
        named = tables.gateways.get(gateway) if gateway is not None else None
        hello = (
            transport.remote_hostname
            or self._settings.hello_name
            or (named.hostname if named is not None else tables.hello_name)
            or _own_name()
        )
        mode = TlsMode.NONE if way is Way.PLAIN else decision.mode
        tls = None
        if mode is not TlsMode.NONE:
            tls = self._tls(tables, transport, decision, host, way, _demanded(decision, host.name, dane))
        compared = tls.dane.matching if tls is not None and tls.dane is not None else ""
        bound = decision.verify_matching is not None
        proxy: tuple[str, int] | None = None
        login: ProxyLogin | None = None
        if hop.proxied:
            proxy = (proxy_address, transport.proxy_port or 1080)
            if transport.username is not None:
                login = ProxyLogin(transport.username, self._secret(tables, transport.password, Stage.PROXY))
        speech = Speech.LMTP if transport.kind is TransportKind.LMTP else Speech.SMTP
        sasl: LoginPlan | None = None
        if transport.username is not None and not hop.proxied:
            password = self._secret(tables, transport.password, Stage.AUTH)
            sasl = LoginPlan(
                Credentials(transport.username, password),
                lambda: secrets.token_urlsafe(24),
                transport.mechanisms,
                self._salted,
            )
        key = ConnectionKey(
            transport=hop.digest,
            host=host.name,
            port=host.port,
            protocol=speech,
            hello_name=hello,
            source=f"{proxy[0]}:{proxy[1]}" if proxy else ",".join(transport.source_addresses),
            identity=transport.username if sasl is not None and transport.username else "",
            tls=mode,
            implicit_tls=decision.implicit,
            verified=(tls.verified_name if tls is not None else None) or "",
            # RTLS-28: what a connection must have proven is part of what it is used again by.
            matched=compared if bound else "",
            compared="" if bound else compared,
        )
        starttls = StartTls.NEVER
        if mode is not TlsMode.NONE and not decision.implicit:
            starttls = StartTls.IF_OFFERED if mode is TlsMode.OPPORTUNISTIC else StartTls.ALWAYS
        return Dial(
            key=key,
            transport_name="direct" if transport is DIRECT else f"{transport.ref.namespace}/{transport.ref.name}",
            host=host.name,
            port=host.port,
            addresses=host.addresses,
            new_session=lambda: ClientSession(hello, protocol=speech, starttls=starttls, login=sasl),
            tls=tls,
            sources=transport.source_addresses,
            proxy=proxy,
            # SOCK-05a, SOCK-05b: the proxy gets the addresses that our resolver found, and that TLSA records are for.
            socks=(lambda ip, port: Socks5(ip, port, login)) if proxy else None,
            limit=transport.limits.connections_per_destination or transport.limits.connections,
        )

    def _tls(
        self,
        tables: Tables,
        transport: Transport,
        decision: TlsDecision,
        host: Host,
        way: Way,
        dane: DaneDemand | None,
    ) -> TlsPlan:
        name = decision.verify_name or (decision.check_name if way is Way.DECIDED else None)
        # DANE-17; STS-11: a name that is verified without TLSA records is the one that is asked for. Where records only
        # ask for TLS, who answers at the end of the aliases knows its own name.
        server_name = dane.base if dane is not None else name or host.base or host.name
        try:
            # Only where it is used: a CA that is missing must not turn opportunistic TLS into plaintext (promise 2).
            ca = tables.secret(transport.ca) if name is not None and transport.ca is not None else b""
            context = client_context(verify=name is not None, ca=ca, by_name=name is None or name == server_name)
        except (KeyError, ValueError, ssl.SSLError) as error:
            if decision.verify_name is None and way is Way.DECIDED:  # it would only have been reported
                return self._tls(tables, transport, decision, host, Way.UNCHECKED, dane)
            detail = f"the CA certificates of transport {transport.ref.name} cannot be used: {error}"
            raise CannotDial(Answer(Stage.HANDSHAKE, None, Trouble.TLS, detail)) from error
        return TlsPlan(context, server_name, name, decision.implicit, dane, decision.verify_matching is not None)

    def _secret(self, tables: Tables, ref: SecretRef | None, stage: Stage) -> str:
        trouble = Trouble.PROXY if stage is Stage.PROXY else Trouble.AUTH
        if ref is None:
            raise CannotDial(Answer(stage, None, trouble, "the transport has a user name but no password"))
        try:
            return tables.secret(ref).decode()
        except (KeyError, UnicodeDecodeError) as error:
            detail = f"the password in {ref.namespace}/{ref.name} is missing"
            raise CannotDial(Answer(stage, None, trouble, detail)) from error

    async def proxy_is_here(self, transport: Transport) -> bool:
        """Whether the proxy of a transport is on this machine."""
        try:
            return is_loopback(await self.proxy_address(transport))
        except CannotDial:
            return False

    async def proxy_address(self, transport: Transport) -> str:
        """The IP of the proxy of a transport. Raises CannotDial."""
        try:
            found = await self._resolver.host_addresses(transport.proxy_host or "")
        except LookupFailed as error:
            raise CannotDial(Answer(Stage.PROXY, None, Trouble.PROXY, str(error))) from error
        if not found:
            detail = f"the proxy {transport.proxy_host} has no address"
            raise CannotDial(Answer(Stage.PROXY, None, Trouble.PROXY, detail))
        return found[0]


def _tls_hop(hop: NextHop, delivery: Delivery, host: Host) -> TlsHop:
    """Everything that bears on TLS with a host."""
    return replace(
        TlsHop.by(hop.transport, host.name, by_mx=hop.by_mx),
        requirement=delivery.requirement,
        redacted=delivery.redacted,
        sts=host.sts,
        dns=host.dns,
        purpose=delivery.purpose,
        demanded=delivery.demanded,
        loopback=all(map(is_loopback, host.addresses)),
    )


def _demanded(decision: TlsDecision, host: str, dane: DaneDemand | None) -> DaneDemand | None:
    """What the decision wants certificates compared with. Raises CannotDial."""
    wanted = decision.verify_matching or decision.check_matching
    if dane is not None and dane.matching == wanted:
        return dane
    if decision.verify_matching is not None:  # never less than was decided (promise 2)
        detail = f"the TLSA records of {host} that the certificate must match are not at hand"
        raise CannotDial(Answer(Stage.PLAN, None, Trouble.TLS, detail))
    return None


@lru_cache(maxsize=1)
def _own_name() -> str:
    # The name of EHLO where nothing says another (SOUT-11). It asks the DNS, and everything waits meanwhile: once.
    return socket.getfqdn()


class CannotDial(Exception):
    """Nothing can be dialled, for a reason of our own."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.detail)
        self.answer = answer
