"""Settings of the ingress service: `MAILRAIL_INGRESS_*` in the environment."""

from dataclasses import dataclass

from mailrail.kit.settings import ServiceSettings, port_map


@dataclass(frozen=True, kw_only=True)
class IngressSettings(ServiceSettings):
    """What ingress needs besides what every service does. Every default starts a working service."""

    queue_target: str = "127.0.0.1:7002"
    """Target of the queue: HOST:PORT or any gRPC target. For several replicas give a name that has all their addresses
    (`dns:///queue:7002`), or `ipv4:ADDRESS:PORT,ADDRESS:PORT`."""
    outbound_target: str = ""
    """Target of outbound, asked where a domain says `recipients: Verify`; empty: such recipients get 451."""
    dmarc_target: str = ""
    """Target of dmarc, which is told of mail for reports; empty: nobody is."""
    dmarc_octets: int = 8 * 1024 * 1024
    """Octets of memory for what dmarc was not told yet; what comes beyond is dropped and counted."""
    dmarc_seconds: float = 2.0
    """Seconds between two batches for dmarc."""
    gateway: str = ""
    """NAMESPACE/NAME of the one gateway to serve; empty: the listeners of all gateways in the configuration."""
    smtp_listen: tuple[str, ...] = ("127.0.0.1",)
    """Addresses that the gateway's listeners are opened on, each with the listener's port."""
    port_offset: int = 0
    """Added to every listener's port, except 0 (which the system chooses)."""
    port_map: tuple[str, ...] = ()
    """LISTENER=REAL pairs: a listener on the first port is opened on the second, so that a gateway may say 25 where the
    process may not open it; other ports are what they are."""
    resolver: str = ""
    """HOST:PORT of the DNS server that sender domains are looked up at, or `system`; empty: they are not looked up. Who
    sent a message is asked there, too; where it is empty, of the system's name servers."""
    dns_timeout: float = 5.0
    """Seconds for all queries about one sender domain together; past them the sender is asked to come back (451). And
    for each question about who sent a message, of which an unanswered one refuses nothing by itself."""
    authentications: int = 1000
    """Messages at a time for which the DNS is asked who sent them, 40 s each at most; one client has a tenth of these.
    Further ones are answered 451 4.3.2. Their bodies count as `held_octets`."""
    lookups: int = 500
    """Questions to the DNS at a time about who sent messages; each takes a socket or two. Half of them are for names
    that have answered before."""
    answer_timeout: float = 240.0
    """Seconds that a message which is whole waits for the queue's answer; it is stored within them or not at all. Then
    451, or before, as soon as a queue says that it never will be (ACC-04). Postgres may take minutes to fail over; RFC
    5321 4.5.3.2.6 has clients wait for ten, and many give up after five."""
    credit_timeout: float = 60.0
    """Seconds that a message waits for the queue to take more of it, then 452 4.3.1 (ACC-07)."""
    held_octets: int = 64 * 1024 * 1024
    """Octets of mail that is kept for all connections together until the queue takes it: headers that are not whole,
    bodies up to 1 MiB, frames that wait for credit. While there is more, clients with more than their share are not
    read from, and hear 452 4.3.1 after `credit_timeout`. 64 MiB keep it below 150 MB with 1,000 connections."""
    upload_octets: int = 2 * 1024 * 1024 * 1024
    """Octets of large messages (bodies above 1 MiB; above 64 KiB while memory is short) of all clients that the
    queue was given and has not committed; those given up count for a minute more, until their room can be used again.
    New ones hear 452 4.3.1 from three quarters on, those under way from all of it on; small messages never. What
    those still lack by their SIZE is kept for them, as long as they come at a pace: where that leaves no room for all
    of a new one, its client hears 452 4.3.1 before it sends (decision 37). So many at once become whole in turn. They
    lie in Postgres: this is a quarter of the smallest volume that the chart makes. The queue has a bound of its own
    over all ingress processes."""
    client_upload_octets: int = 512 * 1024 * 1024
    """The same for one client: an account that is logged in, else an IPv4 address or an IPv6 /64. What MAIL declares
    with SIZE counts from then on, until the message is committed or given up: further ones hear 452 4.3.1 at MAIL. Room
    for five messages of the largest default size at a time, or fifty of 10 MB. It must exceed the largest message that
    is taken. Where a load balancer hides addresses, all strangers are one client, and a few that declare large messages
    keep those of the others out: let it tell addresses by the PROXY protocol."""
    connections_per_minute: int = 60_000
    """New connections of one client (an IPv4 address, an IPv6 /64) within a minute, then 421 4.7.0; 0: any number. Only
    a flood comes to so many, and behind a load balancer that hides addresses all clients are one. This machine's own
    programs are not counted."""
    proxy_timeout: float = 5.0
    """Seconds until a PROXY header must be there (PRX-01)."""
    tls_timeout: float = 15.0
    """Seconds for a TLS handshake. Clients need well under one."""
    handshakes: int = 1000
    """TLS handshakes under way at a time; each holds up to 50 KiB. Past them the one that is longest under way, and for
    half a second at least, ends for a new one. Is there none, new connections wait unread where TLS comes first, and
    STARTTLS is answered 421."""
    linger_close: float = 5.0
    """Seconds that a connection which we end is still read, so that the client sees our last reply and no reset."""
    bind_server_end_point: bool = False
    """Offer SCRAM-*-PLUS with the tls-server-end-point binding where a listener's mechanisms name it. Off, because a
    client that binds with tls-exporter, as most do over TLS 1.3, would then fail to log in
    (docs/decisions/0005-channel-binding-of-submission.md)."""
    repair_chunks: bool = False
    """BDAT text with a bare CR or LF: repair it to CRLF rather than refuse it (SIN-03)."""
    log_messages: bool = True
    """A log line for each message accepted or refused."""

    def real_port(self, port: int) -> int:
        """The port to open for a listener's. Raises BadSettings when `port_map` makes no sense."""
        real = port_map("MAILRAIL_INGRESS_PORT_MAP", self.port_map).get(port)
        return real if real is not None else port + self.port_offset if port else 0
