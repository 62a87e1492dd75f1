"""What all parts of one SMTP session know: the configuration in force, the client, and who logged in."""

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address

from mailrail.core.revision.revision import Account
from mailrail.core.smtp.server import ServerSession
from mailrail_ingress.active_config import ActiveConfig, ListenerConfig
from mailrail_ingress.throttle import neighbourhood


class SessionFacts:
    """One client's session."""

    __slots__ = ("account", "active_config", "bindings", "client", "client_text", "config", "protocol")

    def __init__(
        self,
        active_config: ActiveConfig,
        config: ListenerConfig,
        protocol: ServerSession,
        client: IPv4Address | IPv6Address,
    ) -> None:
        self.active_config = active_config
        self.config = config
        self.protocol = protocol
        self.client = client
        self.client_text = str(client)
        self.account: Account | None = None
        """Who logged in."""
        self.bindings: Mapping[str, bytes] = {}
        """Channel bindings of its TLS, by type: of the certificate that it was shown, which may be replaced by now."""

    @property
    def uploader(self) -> str:
        """Whose large bodies are counted together (ACC-07)."""
        if self.account is not None:
            return f"{self.account.ref.namespace}/{self.account.ref.name}"
        return neighbourhood(self.client)

    def log(self, event: str, **fields: object) -> None:
        """Log an event of this session."""
        self.active_config.log.info(
            event,
            listener=self.config.listener.name,
            client=self.client_text,
            hello=self.protocol.hello,
            login=self.account.login if self.account is not None else None,
            tls=self.protocol.tls.version if self.protocol.tls is not None else None,
            **fields,
        )
