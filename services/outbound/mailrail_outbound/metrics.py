"""Every series of outbound. Label values come from closed lists, each explained here."""

from prometheus_client import Counter, Gauge, Histogram

DELIVERIES = Counter(
    "mailrail_outbound_recipients",
    "Recipients by result: delivered, relayed, deferred, failed, captured, not_dialled, cancelled; and by kind of next "
    "hop: direct, smtp, submission, submissions, socks, lmtp, fail",
    ["kind", "result"],
)
ANSWERS = Counter(
    "mailrail_outbound_answers",
    "What decided about recipients: the stage of the session (dns, connect, proxy, greeting, hello, starttls, "
    "handshake, auth, plan, mail, rcpt, data, content, end), and what it was: 2yz, 4yz, 5yz, or the trouble (dns, "
    "no-address, unreachable, proxy, closed, timeout, protocol, tls, auth, too-large, needs-smtputf8, requiretls, "
    "tls-demand, unconvertible, lease, cancelled)",
    ["stage", "what"],
)
CONNECTIONS = Counter(
    "mailrail_outbound_connections",
    "Connections dialled, by result: ready (a transaction could begin), unreachable, proxy (it refused), refused "
    "(greeting or EHLO), tls (could not be made or proven), auth (login refused), broken (closed, garbage, too slow)",
    ["result"],
)
OPEN = Gauge("mailrail_outbound_connections_open", "Connections to next hops now")
REUSES = Counter("mailrail_outbound_connection_reuses", "Transactions that began on a connection that had had one")
TLS = Counter(
    "mailrail_outbound_tls",
    "Sessions that became ready, by TLS: none, TLSv1.2, TLSv1.3; and whether the certificate was verified: yes, no",
    ["version", "verified"],
)
RUNNING = Gauge("mailrail_outbound_deliveries_running", "Deliveries in progress")
WAITING = Gauge("mailrail_outbound_deliveries_waiting", "Deliveries that wait for a connection")
SECONDS = Histogram(
    "mailrail_outbound_delivery_seconds",
    "From taking a delivery to its last result",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1200),
)
OCTETS = Counter("mailrail_outbound_octets_sent", "Octets of content written to next hops, as sent")
REENCODED = Counter(
    "mailrail_outbound_reencoded", "Messages re-encoded for a hop, by the form it needed: 8bit, 7bit", ["form"]
)
DNS = Counter(
    "mailrail_outbound_dns_lookups",
    "DNS lookups by type (mx, address) and result: answer, none, nxdomain, failed; cached ones are not counted",
    ["type", "result"],
)
LEASES_LOW = Counter("mailrail_outbound_leases_low", "Transactions broken off before the dot: too little lease left")
QUEUES = Gauge("mailrail_outbound_queue_replicas", "Queue replicas that hand us work now")
