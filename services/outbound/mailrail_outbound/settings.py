"""Settings of an outbound process. Every field has a default that works; units are in the texts."""

from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network

from mailrail.core.dane.tlsa import Matching
from mailrail.core.outbound.allowance import Allowance
from mailrail.kit.settings import BadSettings, DatabaseSettings

Networks = tuple[IPv4Network | IPv6Network, ...]

_DIGESTS = {"sha512": Matching.SHA512, "sha256": Matching.SHA256}


@dataclass(frozen=True)
class Timeouts:
    """Seconds until a server has answered, by what is awaited (RFC 5321 4.5.3.2, SOUT-06)."""

    connect: float = 30.0
    """One TCP connection, or one through a proxy. The kernel alone would take two minutes a dead address."""
    greeting: float = 300.0
    hello: float = 300.0
    starttls: float = 120.0
    handshake: float = 60.0
    auth: float = 120.0
    mail: float = 300.0
    rcpt: float = 300.0
    data: float = 120.0
    block: float = 180.0
    """Until the server reads on while content is sent."""
    end: float = 600.0
    """After the final dot. RFC 5321 4.5.3.2.6: 10 minutes, so that no server takes a message twice."""
    quit: float = 5.0
    """QUIT awaits 221 briefly (SOUT-17): nothing depends on it."""
    content: float = 3600.0
    """All content of one message, for servers that open their TCP window octet by octet."""
    transaction: Allowance = field(default_factory=Allowance)
    """All of one transaction up to the final dot, for servers that take minutes for each command."""


@dataclass(frozen=True, kw_only=True)
class OutboundSettings(DatabaseSettings):
    """What an outbound process needs to know."""

    queue_target: str = "127.0.0.1:7002"
    """Target of the queue's replicas: HOST:PORT, several separated by commas, each name with all its addresses."""
    database_wait: float = 20.0
    """Seconds for which a process that starts waits for Postgres and its schema before it takes deliveries and is
    ready, with or without. So a roll-out that also migrates replaces no process that can read policies by one that
    cannot yet."""
    capacity: int = 20_000
    """Deliveries worked on at once. Most of a large number wait: for DNS, for a connection, for a slow server. What
    they hold in memory is bounded by `held_octets`, sockets by `connections`."""
    held_octets: int = 64 * 1024 * 1024
    """Octets of content that came with deliveries and wait with them. What streams counts by `streamed_content`."""
    streamed_content: int = 64 * 1024 * 1024
    """Octets of memory for content that streams (above 1 MiB): half a MiB a delivery and one more where it may be
    re-encoded. Past it the next one waits before it dials; `capacity` alone would let it grow to gigabytes."""
    streamed_content_wait: float = 600.0
    """Seconds that a delivery waits for such room, its lease renewed, before it goes back not attempted (LSE-04)."""
    connection_wait: float = 600.0
    """Seconds that a delivery waits for a connection to its host, its lease renewed, before it goes back not attempted
    (LSE-04): as many as its transport allows may be busy with a slow server."""
    connections: int = 1000
    """Open connections to next hops. Addresses that do not answer, and those that answer slowly, may hold half of them
    each, and seven tenths together."""
    connections_first: int = 2
    """To one address that gave no session, or none since it failed last, by whatever names it is reached: a stranger
    can name one that never will for any number of domains."""
    slow_seconds: float = 30.0
    """Seconds without any answer after which a connection counts by `slow_connections`."""
    slow_connections: int = 250
    """Connections that have not been answered for `slow_seconds`, while others wait for one. The oldest beyond it are
    broken off, never one whose final dot was sent; while nobody waits, servers have the time of RFC 5321 4.5.3.2."""
    first_seconds: float = 1.0
    """Seconds without any answer after which a connection to an address that gave no session, or none since it failed
    last, counts by `slow_connections` while others wait to try theirs. Of those the youngest are broken off first."""
    connections_per_destination: int = 20
    """To one next hop, where its transport does not say; the queue's windows are usually smaller."""
    messages_per_connection: int = 100
    """Transactions on one connection, then QUIT: servers dislike endless sessions."""
    idle_seconds: float = 5.0
    """An unused connection is kept so long for the next message."""
    tls_sessions: int = 512
    """TLS sessions kept to be resumed, up to 20 KiB each; 0 = every handshake is a full one (TLS-10)."""
    captive: bool = False
    """Dial loopback addresses only and report everything else as captured (design 10)."""
    resolver: str = ""
    """HOST:PORT of the DNS server to ask; empty = those of the system. Captive mode asks only one given here."""
    resolver_trust_ad: bool = False
    """The DNS server of `resolver` validates DNSSEC, and it is on this host or nobody can write into the way to it: its
    AD bit is believed, and there is DANE (DANE-01). The cluster's DNS is no such server; nor are those of the system,
    which whoever configures the network may change: `resolver` must name one (DANE-25)."""
    resolver_probe: str = "."
    """A name whose SOA record is signed, asked for every five minutes to see that a trusted resolver validates. The
    root is signed; a closed world with a root of its own names one of its zones."""
    direct_port: int = 25
    """Port of MX hosts. For tests and local mode; the Internet has 25."""
    private_networks: tuple[str, ...] = ()
    """Networks (CIDR) of loopback, link-local and private addresses that mail may go to by MX or address literal.
    Strangers and accounts choose domains, so without this they could have outbound dial inside the cluster. Hosts that
    transports name are dialled wherever they are; captive mode dials loopback."""
    own_mx: tuple[str, ...] = ()
    """IP:PORT of our own MX listeners as seen from here: direct delivery refuses to dial them (SOUT-04)."""
    hello_name: str = ""
    """EHLO name where the transport gives none; empty = the gateway's host name."""
    lease_margin: float = 30.0
    """Seconds of lease that must be left when the final dot is sent (LSE-02)."""
    revision_wait: float = 5.0
    """How long a delivery waits for its configuration revision (LSE-07)."""
    alive_seconds: float = 20.0
    """Seconds between reports to the queue of what is in progress (LSE-01)."""
    tick: float = 0.25
    """Seconds between looks at the deadlines of connections."""
    connect_timeout: float = 30.0
    greeting_timeout: float = 300.0
    command_timeout: float = 300.0
    """EHLO, MAIL and RCPT."""
    data_timeout: float = 120.0
    block_timeout: float = 180.0
    end_timeout: float = 600.0
    transaction_timeout: float = 1320.0
    """All of one transaction up to the final dot, whatever its single commands may take; more by
    `transaction_recipient_timeout` for each recipient, and by its octets at 16 KiB a second. The 22 minutes are what
    RFC 5321 4.5.3.2 gives one command each: without a sum, 100 slow replies would hold a slot for 8 hours."""
    transaction_recipient_timeout: float = 30.0
    tls_timeout: float = 60.0
    """STARTTLS and the handshake, each."""
    auth_timeout: float = 120.0
    dns_timeout: float = 15.0
    """All queries for one name together."""
    lookups: int = 500
    """Look-ups in the DNS at a time; names that never answered may have half of them."""
    tlsa_digests: tuple[str, ...] = ("sha512", "sha256")
    """Digests of TLSA records, the strongest first (RFC 7671 9): of those that a host has for one usage and selector,
    only the strongest counts."""
    fetch_networks: tuple[str, ...] = ()
    """Networks (CIDR) of loopback, link-local and private addresses that MTA-STS policies may be fetched from, for
    closed worlds. Strangers name the hosts; the Internet is always allowed."""
    fetch_port: int = 443
    """Port of policy hosts. For tests; RFC 8461 has 443 alone."""
    fetch_timeout: float = 60.0
    """All of the fetch of one policy (RFC 8461 3.3 suggests a minute)."""
    fetches: int = 50
    """Policies fetched at a time; hosts that never answered may have half of them."""

    def __post_init__(self) -> None:
        if self.resolver_trust_ad and not self.resolver:
            raise BadSettings(
                "MAILRAIL_OUTBOUND_RESOLVER_TRUST_AD: the system's name servers cannot be trusted; name a validating "
                "one on this host, or at the end of a secured path: MAILRAIL_OUTBOUND_RESOLVER=HOST:PORT"
            )
        _ = (
            self.mail_networks,
            self.policy_networks,
        )  # read now, so that what is wrong stops the process before it works
        if sorted(self.tlsa_digests) != sorted(_DIGESTS):
            raise BadSettings(
                f"MAILRAIL_OUTBOUND_TLSA_DIGESTS: {','.join(self.tlsa_digests)!r} is no order of digests; name each of "
                f"{', '.join(_DIGESTS)} once, the strongest first"
            )

    @property
    def mail_networks(self) -> Networks:
        """Those of `private_networks`. Raises BadSettings."""
        return _networks("PRIVATE_NETWORKS", self.private_networks)

    @property
    def policy_networks(self) -> Networks:
        """Those of `fetch_networks`. Raises BadSettings."""
        return _networks("FETCH_NETWORKS", self.fetch_networks)

    @property
    def digest_strength(self) -> tuple[Matching, ...]:
        """The same as matching types of TLSA records (DANE-18)."""
        return tuple(_DIGESTS[name] for name in self.tlsa_digests)

    @property
    def timeouts(self) -> Timeouts:
        """The table that connections go by."""
        return Timeouts(
            connect=self.connect_timeout,
            greeting=self.greeting_timeout,
            hello=self.command_timeout,
            starttls=self.tls_timeout,
            handshake=self.tls_timeout,
            auth=self.auth_timeout,
            mail=self.command_timeout,
            rcpt=self.command_timeout,
            data=self.data_timeout,
            block=self.block_timeout,
            end=self.end_timeout,
            transaction=Allowance(self.transaction_timeout, self.transaction_recipient_timeout),
        )


def _networks(name: str, values: tuple[str, ...]) -> Networks:
    # Host bits are refused: who wrote 10.1.2.3/8 may have meant one address, and mail could be made to dial the others.
    found = []
    for value in values:
        try:
            found.append(ip_network(value))
        except ValueError as error:
            raise BadSettings(f"MAILRAIL_OUTBOUND_{name}: {value!r}: {_what_is_meant(value, error)}") from None
    return tuple(found)


def _what_is_meant(value: str, error: ValueError) -> str:
    try:
        whole = ip_network(value, strict=False)
    except ValueError:
        return f"{error}; write networks as 10.1.0.0/16, fd00:1::/32 or one address, separated by commas"
    return f"its address has bits beyond the prefix; write {whole}, or {value.partition('/')[0]} for the address alone"
