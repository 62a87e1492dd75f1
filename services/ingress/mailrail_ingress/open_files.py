"""Whether the process may have as many files open as its gateways allow connections."""

from collections.abc import Iterable

from mailrail.core.revision.revision import Gateway
from mailrail.kit import log
from mailrail.kit.open_files import WAY_OUT, connections_in


def check_limit(limit: int, gateways: Iterable[Gateway]) -> None:
    """Warn of a gateway that allows more connections than there can be: those above that are answered 421."""
    for gateway in gateways:
        connections = gateway.limits.connections
        if connections > connections_in(limit):
            log.get_logger().warning(
                f"the limit of open files is too low for the gateway's connections; {WAY_OUT} limits.connections",
                gateway=f"{gateway.ref.namespace}/{gateway.ref.name}",
                connections=connections,
                limit=limit,
            )
