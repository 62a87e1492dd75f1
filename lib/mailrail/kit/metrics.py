"""Prometheus metrics of a process. Each service declares its series in its own metrics.py, named `mailrail_*`.

Label values come from closed lists: never an address or a reply text. Names of transports and of sites are bounded in
number (`SnapshotGauge`, `bounded`).
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import accumulate
from types import ModuleType

from cryptography import x509
from prometheus_client import Gauge, Info, disable_created_metrics, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import REGISTRY, Collector, CollectorRegistry
from prometheus_client.utils import floatToGoString

from mailrail.kit import promptly
from mailrail.kit.settings import host_port

# When a series began is of no use to anybody here, and doubles the page.
disable_created_metrics()  # type: ignore[no-untyped-call]  # the library leaves it untyped


class Count:
    """One number. Code that counts often holds it and adds to `number`."""

    __slots__ = ("number",)

    def __init__(self) -> None:
        self.number: float = 0


class Tally(Collector):
    """A counter that one thread counts, so without a lock, while scrapes read. The client library's own takes a lock
    and several calls each time, which at ten counts a message was a tenth of the work."""

    kind: type[CounterMetricFamily] | type[GaugeMetricFamily] = CounterMetricFamily

    def __init__(
        self, name: str, documentation: str, labels: Sequence[str] = (), known: Iterable[tuple[str, ...]] = ()
    ) -> None:
        """`known`: label values that are there from 0 on, since a counter that is first seen at 1 has not risen."""
        self._counts: defaultdict[tuple[str, ...], Count] = defaultdict(Count)
        for values in known if labels else [()]:
            self.of(*values)
        self._name = name
        self._documentation = documentation
        self._labels = tuple(labels)
        REGISTRY.register(self)

    def of(self, *labels: str) -> Count:
        """The number behind these label values."""
        return self._counts[labels]

    def inc(self, *labels: str, by: float = 1) -> None:
        """Count `by` under these label values."""
        self._counts[labels].number += by

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """For the registry; called by the thread that answers scrapes."""
        family = self.kind(self._name, self._documentation, labels=self._labels)
        for labels, count in list(self._counts.items()):  # a copy, since the other thread may add meanwhile
            family.add_metric(labels, count.number)
        yield family


class Level(Tally):
    """A tally that also goes down."""

    kind = GaugeMetricFamily


class Spread(Collector):
    """A histogram that one thread fills, so without a lock."""

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
        """For the registry; called by the thread that answers scrapes."""
        bounds = [*map(floatToGoString, self._bounds), "+Inf"]
        buckets = list(zip(bounds, accumulate(self._counts), strict=True))
        yield HistogramMetricFamily(self._name, self._documentation, buckets=buckets, sum_value=self._sum)


Rows = Mapping[tuple[str, ...], float]
"""Label values → a number."""


class SnapshotGauge(Collector):
    """A gauge whose label values come and go: each `set` replaces all of them at once, as a scrape sees it."""

    def __init__(self, name: str, documentation: str, labels: Sequence[str]) -> None:
        self._name, self._documentation, self._labels = name, documentation, tuple(labels)
        self._rows: Rows = {}
        REGISTRY.register(self)

    def set(self, rows: Rows) -> None:
        """Export these label values, and no others."""
        self._rows = dict(rows)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """For the registry; called by the thread that answers scrapes."""
        family = GaugeMetricFamily(self._name, self._documentation, labels=self._labels)
        for labels, value in self._rows.items():
            family.add_metric(labels, value)
        yield family


OTHER = "other"
"""The label value of everything beyond a bound."""


def bounded(rows: Rows, most: int) -> dict[tuple[str, ...], float]:
    """The first `most` rows in the order of their labels; what the others add up to has `OTHER` as each label."""
    ordered = sorted(rows.items())
    kept = dict(ordered[:most])
    if ordered[most:]:
        kept[(OTHER,) * len(ordered[0][0])] = sum(value for _, value in ordered[most:])
    return kept


BUILD = Info("mailrail_build", "Version of the running software")
CONFIG_REVISION = Gauge("mailrail_config_revision", "Configuration revision that this process runs; 0 before the first")
CONFIG_AGE = Gauge("mailrail_config_stale_seconds", "Seconds since the config service last answered")
CERTIFICATE_EXPIRY = Gauge(
    "mailrail_certificate_expiry_timestamp_seconds",
    "Time at which the first certificate of this process expires; 0 when one of them cannot be used",
    ["use"],
)
"""use: services (gRPC between services), smtp (listeners), policy (policy hosts of MTA-STS)."""
CERTIFICATE_LIFETIME = Gauge(
    "mailrail_certificate_lifetime_seconds",
    "Seconds from start to end of that certificate; 0 when one of them cannot be used",
    ["use"],
)


def forget(declared: ModuleType) -> None:
    """Export none of the series that a module declares: it was imported for another process than this one."""
    for series in vars(declared).values():
        if isinstance(series, Tally | Spread | SnapshotGauge | MetricWrapperBase):
            with suppress(KeyError):  # it is exported by nobody, or by two names
                REGISTRY.unregister(series)


def certificates(use: str, chains: Iterable[bytes | None]) -> None:
    """Say when the first of these certificates expires, each a PEM with its own certificate at its head.

    None among them: one cannot be used. None at all: the series go.
    """
    first = min((_validity(chain) for chain in chains), default=None)
    if first is not None:
        expiry, lifetime = first
        CERTIFICATE_EXPIRY.labels(use=use).set(expiry)
        CERTIFICATE_LIFETIME.labels(use=use).set(lifetime)
    else:
        for series in (CERTIFICATE_EXPIRY, CERTIFICATE_LIFETIME):
            with suppress(KeyError):
                series.remove(use)


def _validity(chain: bytes | None) -> tuple[float, float]:
    """Unix time at which a certificate ends, and its length in seconds; 0 and 0 for what is not a certificate."""
    if chain is None:
        return 0.0, 0.0
    try:
        certificate = x509.load_pem_x509_certificate(chain)
    except ValueError:
        return 0.0, 0.0
    end = certificate.not_valid_after_utc
    return end.timestamp(), (end - certificate.not_valid_before_utc).total_seconds()


@contextmanager
def serve(listen: str, registry: CollectorRegistry = REGISTRY) -> Iterator[int | None]:
    """Serve /metrics on HOST:PORT while the context lasts; yields the port, None when `listen` is empty. Raises
    BadSettings, OSError."""
    if not listen:
        yield None
        return
    host, port = host_port(listen)
    server, thread = start_http_server(port, addr=host or "127.0.0.1", registry=registry)
    try:
        yield server.server_address[1]
    finally:
        promptly.stop(server)
        thread.join(timeout=5)
