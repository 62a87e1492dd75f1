"""What the command line decides about local mode, and the ports and names of the processes that it runs."""

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from mailrail.local.ports import host_port

SMTP, SUBMISSION, SUBMISSIONS, CONSOLE, METRICS, POLICIES = 1025, 1587, 1465, 1080, 1081, 1082
"""Ports that people use, before `--port-offset` (design section 10)."""

SERVICES = ("config", "queue", "outbound", "ingress")
"""What mail needs, in the order in which they are worth starting; stopped the other way round."""

LATER = ("dmarc",)
"""Started once all is ready, which so is no later: no mail waits for them."""

WATCHER = "folder"
"""The child that publishes the resources of the folder, in the operator's place."""

INTERNAL = {"config": 1091, "queue": 1092, "outbound": 1093, "ingress": 1094, "dmarc": 1096}
"""gRPC ports on 127.0.0.1, before the offset; another one is used when this one is taken. Below 32,768, where Linux
begins to hand ports to outgoing connections: a restarted child must find its port free."""

INTERNAL_METRICS = {"config": 1191, "queue": 1192, "outbound": 1193, "ingress": 1194, WATCHER: 1195, "dmarc": 1196}
"""Metrics ports of the children, likewise."""


@dataclass(frozen=True, slots=True)
class LocalOptions:
    """What the command line decides."""

    state: Path
    resources: Path = Path("mail.d")
    listen: str = "127.0.0.1"
    port_offset: int = 0
    resolver: str | None = None
    """HOST:PORT of a DNS server for `direct`."""
    trust_ad: bool = False
    """`resolver` validates DNSSEC, and nobody can write into the way to it."""
    database_url: str | None = None
    """Used instead of the embedded Postgres."""
    deliver: bool = False
    """Send for real; else captive."""
    history_days: int = 14
    """Days for which the history keeps a recipient that is final."""
    log_format: str = "console"
    log_level: str = "info"

    @property
    def loopback_only(self) -> bool:
        """Whether only this machine can connect: a condition for taking any recipient (design section 10)."""
        if self.listen == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.listen).is_loopback
        except ValueError:  # a name; `127.example.org` may be anywhere
            return False

    def port(self, planned: int) -> int:
        """A planned port with the offset."""
        return planned + self.port_offset

    def address(self, planned: int) -> str:
        """HOST:PORT that people connect to."""
        return host_port(self.listen, self.port(planned))
