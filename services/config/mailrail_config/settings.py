"""Settings of the config service: `MAILRAIL_CONFIG_*` in the environment."""

from dataclasses import dataclass

from mailrail.kit.settings import DatabaseSettings


@dataclass(frozen=True, kw_only=True)
class ConfigSettings(DatabaseSettings):
    """What the config service needs besides what every service does. Every default starts a working service."""

    grpc_listen: str = "127.0.0.1:7001"
    """HOST:PORT of the gRPC server; where other services look for it by default."""
    history: int = 100
    """Revisions that are kept to look at and to roll back to. Head is kept in any case."""
    poll_seconds: float = 1.0
    """How often head is read besides the database's notifications, which can get lost (CFG-06)."""
    heartbeat_seconds: float = 5.0
    """How often a watcher hears that there is nothing new."""
    stream_seconds: float = 300.0
    """Watch streams are ended after this, give or take a fifth: watchers come back and spread over new replicas."""
    migrate: bool = False
    """Bring the schemas of all services up to date where they are older: for a bundled Postgres, whose volume may be
    lost, and whose role owns everything."""
    upkeep_seconds: float = 600.0
    """How often values that no kept revision refers to are dropped."""
