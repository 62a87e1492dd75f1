"""The server and the configuration that it serves from."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mailrail.core.revision.revision import Role
from mailrail.kit.config_client import ConfigClient, Configuration
from mailrail_policy.server import PolicyServer
from mailrail_policy.settings import PolicySettings


@asynccontextmanager
async def serving(settings: PolicySettings) -> AsyncIterator[tuple[PolicyServer, ConfigClient]]:
    """Serve what is in force while the context lasts. Raises BadSettings."""
    policies = PolicyServer(settings)

    def configured(configuration: Configuration) -> None:
        policies.take(configuration.revision)

    config = ConfigClient(settings, Role.POLICY, configured)
    async with policies.running(), config.running():
        yield policies, config
