"""Whether the process may have as many files open as its gateways allow connections."""

from collections.abc import Iterable

from mailrail.core.revision.revision import Gateway
from mailrail.kit import log
from mailrail.kit.open_files import OTHERS


def check_limit(limit: int, gateways: Iterable[Gateway]) -> None:
    """Warn of a gateway that allows more connections than there can be: the system then closes them without a word."""
    for gateway in gateways:
        connections = gateway.limits.connections
        if connections + OTHERS > limit:
            log.get_logger().warning(
                "the limit of open files is too low for the gateway's connections; raise nofile, or lower "
                "limits.connections",
                gateway=f"{gateway.ref.namespace}/{gateway.ref.name}",
                connections=connections,
                limit=limit,
            )
