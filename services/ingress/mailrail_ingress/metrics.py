"""Every series of ingress. Label values come from closed lists, each explained here."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, product

from prometheus_client import Gauge
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import REGISTRY, Collector
from prometheus_client.utils import floatToGoString


class Count:
    """One number; whoever counts often holds it, and adds to `number`."""

    __slots__ = ("number",)

    def __init__(self) -> None:
        self.number = 0


class Tally(Collector):
    """A series that is counted on the event loop's thread alone, so without a lock: ten are counted a message."""

    kind: type[CounterMetricFamily] | type[GaugeMetricFamily] = CounterMetricFamily

    def __init__(
        self, name: str, documentation: str, labels: Sequence[str], known: Iterable[tuple[str, ...]] = ()
    ) -> None:
        """`known`: label values that are there from 0 on, since a counter that is first seen at 1 has not risen."""
        self._counts: defaultdict[tuple[str, ...], Count] = defaultdict(Count)
        for values in known:
            self.of(*values)
        self._name = name
        self._documentation = documentation
        self._labels = labels
        REGISTRY.register(self)

    def of(self, *labels: str) -> Count:
        """The number behind these label values."""
        return self._counts[labels]

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """What is counted by now; called by the thread that answers scrapes."""
        family = self.kind(self._name, self._documentation, labels=self._labels)
        for labels, count in list(self._counts.items()):  # a copy, since the loop may add meanwhile
            family.add_metric(labels, count.number)
        yield family


class Level(Tally):
    """A tally that also goes down."""

    kind = GaugeMetricFamily


class Spread(Collector):
    """A histogram that is filled on the event loop's thread alone, so without a lock."""

    def __init__(self, name: str, documentation: str, buckets: Sequence[float]) -> None:
        """`buckets`: upper bounds, rising; one without a bound comes after them."""
        self._name = name
        self._documentation = documentation
        self._bounds = tuple(buckets)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0
        REGISTRY.register(self)

    def observe(self, value: float) -> None:
        """Count a value; a bound belongs to the bucket below it."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """What is counted by now; called by the thread that answers scrapes."""
        bounds = [*map(floatToGoString, self._bounds), "+Inf"]
        buckets = list(zip(bounds, accumulate(self._counts), strict=True))
        yield HistogramMetricFamily(self._name, self._documentation, buckets=buckets, sum_value=self._sum)


def count(tally: Tally, *labels: str, by: int = 1) -> None:
    """Add to a series."""
    tally.of(*labels).number += by


_PROTOCOLS = ("mx", "submission", "submissions")
_ORIGINS = ("mx", "submission")
_VERDICTS = ("accepted", "refused", "deferred")

CONNECTIONS = Tally(
    "mailrail_ingress_connections",
    "Connections by protocol of the listener (mx, submission, submissions) and result: accepted, too-many (open to "
    "the process or from one address), too-often (new ones from one address within a minute), proxy (the PROXY header "
    "is missing or invalid)",
    ["protocol", "result"],
    known=product(_PROTOCOLS, ("accepted", "too-many", "too-often", "proxy")),
)
OPEN = Level(
    "mailrail_ingress_connections_open",
    "Open SMTP connections, by protocol of the listener",
    ["protocol"],
    known=product(_PROTOCOLS),
)
ENDS = Tally(
    "mailrail_ingress_sessions",
    "Sessions that ended, by reason: quit, lost (the client disconnected), timeout, errors (too many bad commands), "
    "shutdown, refused (a bare line end, an endless line, too many failed logins), tls (the handshake failed)",
    ["end"],
    known=product(("quit", "lost", "timeout", "errors", "shutdown", "refused", "tls")),
)
MESSAGES = Tally(
    "mailrail_ingress_messages",
    "Messages by origin (mx, submission) and result: accepted, refused (5yz), deferred (4yz), abandoned (the client "
    "did not finish it)",
    ["origin", "result"],
    known=product(_ORIGINS, (*_VERDICTS, "abandoned")),
)
OCTETS = Tally(
    "mailrail_ingress_octets",
    "Octets of accepted messages, including the fields that we add",
    ["origin"],
    known=product(_ORIGINS),
)
RECIPIENTS = Tally(
    "mailrail_ingress_recipients",
    "RCPT commands by origin (mx, submission) and result: accepted, refused (5yz), deferred (4yz)",
    ["origin", "result"],
    known=product(_ORIGINS, _VERDICTS),
)
SENDERS = Tally(
    "mailrail_ingress_senders",
    "MAIL commands by origin (mx, submission) and result: accepted, refused (5yz), deferred (4yz)",
    ["origin", "result"],
    known=product(_ORIGINS, _VERDICTS),
)
LOGINS = Tally(
    "mailrail_ingress_logins",
    "Authentications by mechanism and result: accepted, refused, malformed, throttled (too many failed from the "
    "address, or with the login), unavailable (ingress has no secret for it)",
    ["mechanism", "result"],
    known=product(("PLAIN", "LOGIN"), ("accepted", "refused", "malformed", "throttled", "unavailable")),
)

TLS = Tally(
    "mailrail_ingress_tls_handshakes",
    "TLS handshakes by version (TLSv1.2, TLSv1.3, none for a failed handshake)",
    ["version"],
    known=product(("TLSv1.2", "TLSv1.3", "none")),
)
COMMIT_SECONDS = Spread(
    "mailrail_ingress_commit_seconds",
    "Seconds from the end of a message to the queue's answer",
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30),
)
PAUSES = Tally(
    "mailrail_ingress_pauses",
    "Times reading from a client was paused, by reason: credit (the queue grants none), memory (ingress holds more "
    "mail than MAILRAIL_INGRESS_HELD_OCTETS)",
    ["reason"],
    known=product(("credit", "memory")),
)
UPLOADS_REFUSED = Tally(
    "mailrail_ingress_uploads_refused",
    "Large messages refused with 452 because too many octets are uploaded and not committed, by the limit: client "
    "(MAILRAIL_INGRESS_CLIENT_UPLOAD_OCTETS), all (MAILRAIL_INGRESS_UPLOAD_OCTETS)",
    ["bound"],
    known=product(("client", "all")),
)
UPLOADING = Gauge(
    "mailrail_ingress_upload_octets",
    "Octets of large messages uploaded to the queue and not committed; an upload that was given up counts for one "
    "more minute",
)
HELD = Gauge("mailrail_ingress_held_octets", "Octets of mail held for the queue, over all connections")
QUEUE_STREAM = Gauge("mailrail_ingress_queue_stream_up", "1 while a stream to the queue is open, else 0")
QUEUE_PENDING = Gauge("mailrail_ingress_queue_pending", "Commits sent to the queue and not answered yet")


class Mail:
    """The numbers that each message of an origin adds to, looked up once."""

    __slots__ = ("messages", "octets", "recipients", "senders")

    def __init__(self, origin: str) -> None:
        self.senders = SENDERS.of(origin, "accepted")
        self.recipients = RECIPIENTS.of(origin, "accepted")
        self.messages = MESSAGES.of(origin, "accepted")
        self.octets = OCTETS.of(origin)


class Connections:
    """The numbers that each connection of a listener adds to."""

    __slots__ = ("accepted", "open")

    def __init__(self, protocol: str) -> None:
        self.accepted = CONNECTIONS.of(protocol, "accepted")
        self.open = OPEN.of(protocol)
