"""Every series of outbound. Label values come from closed lists, each explained here."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import product

from prometheus_client import Gauge, Histogram
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import REGISTRY, Collector


class Counter(Collector):
    """A counter that costs a dictionary entry: one thread counts, scrapes read. The client library's own takes a lock
    and several calls each time, which at a handful of counts a message was a tenth of outbound's work."""

    def __init__(
        self, name: str, documentation: str, labels: Sequence[str] = (), known: Iterable[tuple[str, ...]] = ()
    ) -> None:
        """`known`: label values that are there from 0 on, since a counter that is first seen at 1 has not risen."""
        self._name = name
        self._documentation = documentation
        self._labels = tuple(labels)
        self._counts: dict[tuple[str, ...], float] = dict.fromkeys(known if labels else [()], 0.0)
        REGISTRY.register(self)

    def inc(self, *labels: str, by: float = 1.0) -> None:
        """Count `by` under these label values."""
        counts = self._counts
        counts[labels] = counts.get(labels, 0.0) + by

    def collect(self) -> Iterator[CounterMetricFamily]:
        """For the registry."""
        family = CounterMetricFamily(self._name, self._documentation, labels=self._labels)
        for labels, count in list(self._counts.items()):
            family.add_metric(labels, count)
        yield family


DELIVERIES = Counter(
    "mailrail_outbound_recipients",
    "Recipients by result: delivered, relayed, deferred, failed, captured, not_attempted, cancelled; and by kind of "
    "next hop: direct, smtp, submission, submissions, socks, lmtp, fail",
    ["kind", "result"],
)
ANSWERS = Counter(
    "mailrail_outbound_answers",
    "Answers that decided about recipients, by stage of the session (dns, connect, proxy, greeting, hello, starttls, "
    "handshake, auth, plan, mail, rcpt, data, content, end) and what was answered: 2yz, 4yz, 5yz, or the trouble (dns, "
    "no-address, unreachable, proxy, closed, timeout, protocol, tls, auth, too-large, needs-smtputf8, utf8-header, "
    "requiretls, tls-demand, unconvertible, lease, cancelled, fault)",
    ["stage", "what"],
)
CONNECTIONS = Counter(
    "mailrail_outbound_connections",
    "Connections dialled, by result: ready (for a transaction), unreachable, proxy (the proxy refused), refused "
    "(greeting or EHLO), tls (handshake or verification failed), auth (login refused), broken (closed, invalid reply, "
    "timeout)",
    ["result"],
    known=product(("ready", "unreachable", "proxy", "refused", "tls", "auth", "broken")),
)
OPEN = Gauge("mailrail_outbound_connections_open", "Open connections to next hops")
REUSES = Counter("mailrail_outbound_connection_reuses", "Transactions on a connection that was used before")
TLS = Counter(
    "mailrail_outbound_tls",
    "Sessions that became ready, by TLS version (none, TLSv1.2, TLSv1.3) and whether the certificate was verified "
    "(yes, no)",
    ["version", "verified"],
    known=product(("none",), ("no",)),
)
RUNNING = Gauge("mailrail_outbound_deliveries_running", "Deliveries in progress")
WAITING = Gauge("mailrail_outbound_deliveries_waiting", "Deliveries that wait for a connection")
SECONDS = Histogram(
    "mailrail_outbound_delivery_seconds",
    "Seconds from the start of a delivery to its last result",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1200),
)
OCTETS = Counter("mailrail_outbound_octets_sent", "Octets of content sent to next hops")
REENCODED = Counter(
    "mailrail_outbound_reencoded",
    "Messages re-encoded for a next hop, by the form that it needed (8bit, 7bit)",
    ["form"],
    known=product(("8bit", "7bit")),
)
DNS = Counter(
    "mailrail_outbound_dns_lookups",
    "DNS lookups by type (mx, address) and result: answer, none, nxdomain, failed; cached answers are not counted",
    ["type", "result"],
    known=product(("mx", "address"), ("answer", "none", "nxdomain", "failed")),
)
LEASES_LOW = Counter(
    "mailrail_outbound_leases_low", "Transactions stopped before the final dot because too little of the lease was left"
)
QUEUES = Gauge("mailrail_outbound_queue_replicas", "Queue replicas that this process has a Lease stream to")
