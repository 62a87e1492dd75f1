"""Settings of a policy process. Every field has a default that works; units are in the texts."""

from dataclasses import dataclass
from pathlib import Path

from mailrail.kit.settings import ServiceSettings


@dataclass(frozen=True, kw_only=True)
class PolicySettings(ServiceSettings):
    """What a policy process needs to know."""

    listen: str = "127.0.0.1:8080"
    """HOST:PORT of the HTTP server; port 0 = one that is free."""
    certificate_dir: Path | None = None
    """Folder with tls.crt and tls.key, whose names are the policy hosts: it speaks HTTPS. None = HTTP, for a proxy
    before it that speaks HTTPS. Read again when it changes."""
    connections: int = 500
    """Open connections; where there are more, the one that has waited for longest is ended."""
    request_timeout: float = 10.0
    """Seconds for a connection from its start to its end; each is for one request."""
    look_seconds: float = 5.0
    """Between looks whether the certificate was renewed."""
