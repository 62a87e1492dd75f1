"""Prometheus metrics of a process. Each service declares its series in its own metrics.py, named `mailrail_*`.

Label values come from closed lists: never an address, a domain or a reply text.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import Gauge, Info, disable_created_metrics, start_http_server

from mailrail.kit.settings import host_port

# When a series began is of no use to anybody here, and doubles the page.
disable_created_metrics()  # type: ignore[no-untyped-call]  # the library leaves it untyped

BUILD = Info("mailrail_build", "Version of the software that runs")
CONFIG_REVISION = Gauge("mailrail_config_revision", "Configuration revision that this process runs; 0 before the first")
CONFIG_AGE = Gauge("mailrail_config_stale_seconds", "Seconds since the config service was last heard of")


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
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)
