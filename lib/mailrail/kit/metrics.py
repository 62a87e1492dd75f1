"""Prometheus metrics of a process. Each service declares its series in its own metrics.py, named `mailrail_*`.

Label values come from closed lists: never an address, a domain or a reply text.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from cryptography import x509
from prometheus_client import Gauge, Info, disable_created_metrics, start_http_server

from mailrail.kit import promptly
from mailrail.kit.settings import host_port

# When a series began is of no use to anybody here, and doubles the page.
disable_created_metrics()  # type: ignore[no-untyped-call]  # the library leaves it untyped

BUILD = Info("mailrail_build", "Version of the running software")
CONFIG_REVISION = Gauge("mailrail_config_revision", "Configuration revision that this process runs; 0 before the first")
CONFIG_AGE = Gauge("mailrail_config_stale_seconds", "Seconds since the config service last answered")
CERTIFICATE_EXPIRY = Gauge(
    "mailrail_certificate_expiry_timestamp_seconds",
    "Time at which the first certificate of this process expires; 0 when one of them cannot be used",
    ["use"],
)
"""use: services (gRPC between services), smtp (listeners)."""


def certificates(use: str, chains: Iterable[bytes | None]) -> None:
    """Say when the first of these certificates expires, each a PEM with its own certificate at its head.

    None among them: one cannot be used. None at all: the series goes.
    """
    expiries = [_expiry(chain) for chain in chains]
    if expiries:
        CERTIFICATE_EXPIRY.labels(use=use).set(min(expiries))
    else:
        with suppress(KeyError):
            CERTIFICATE_EXPIRY.remove(use)


def _expiry(chain: bytes | None) -> float:
    """Unix time, 0 for what is no certificate."""
    if chain is None:
        return 0.0
    try:
        return x509.load_pem_x509_certificate(chain).not_valid_after_utc.timestamp()
    except ValueError:
        return 0.0


@contextmanager
def serve(listen: str) -> Iterator[int | None]:
    """Serve /metrics on HOST:PORT while the context lasts; yields the port, None when `listen` is empty."""
    if not listen:
        yield None
        return
    host, port = host_port(listen)
    server, thread = start_http_server(port, addr=host or "127.0.0.1")
    try:
        yield server.server_address[1]
    finally:
        promptly.stop(server)
        thread.join(timeout=5)
