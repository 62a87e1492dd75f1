"""What the DNS says about the domain of a sender or a recipient: `ports.MailDomains` over the kit's resolver."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from mailrail.core.outbound.targets import Mx
from mailrail.kit import log
from mailrail.kit.resolver import DnsResolver, LookupFailed, NoSuchDomain
from mailrail_ingress.ports import DomainFacts
from mailrail_ingress.settings import IngressSettings

_FAMILIES: Final = ("ipv6", "ipv4")


class DomainDns:
    """`ports.MailDomains` over the kit's resolver."""

    def __init__(self, settings: IngressSettings) -> None:
        server = "" if settings.resolver == "system" else settings.resolver
        self._resolver = DnsResolver(server, timeout=settings.dns_timeout)
        self._timeout = settings.dns_timeout
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()

    def look_up(self, domain: str, done: Callable[[DomainFacts], None]) -> None:
        """See ports.MailDomains."""
        known = self._known(domain)
        if known is not None:
            done(known)
            return
        task = self._loop.create_task(self._find(domain, done))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _known(self, domain: str) -> DomainFacts | None:
        try:
            records = self._resolver.kept_mx(domain)
            addresses = None if records or records is None else self._resolver.kept_addresses(domain, _FAMILIES)
        except NoSuchDomain:
            return DomainFacts.DOES_NOT_EXIST
        except LookupFailed:
            return DomainFacts.UNKNOWN
        if records is None or (not records and addresses is None):
            return None
        return _facts(records, addresses or ())

    async def _find(self, domain: str, done: Callable[[DomainFacts], None]) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                records = await self._resolver.mx(domain)
                addresses = () if records else await self._resolver.addresses(domain, _FAMILIES)
        except NoSuchDomain:
            facts = DomainFacts.DOES_NOT_EXIST
        except (LookupFailed, TimeoutError):
            facts = DomainFacts.UNKNOWN
        else:
            facts = _facts(records, addresses)
        try:
            done(facts)
        except Exception:
            log.get_logger().exception("an answer of the DNS could not be passed on", domain=domain)


def _facts(records: Sequence[Mx], addresses: Sequence[str]) -> DomainFacts:
    if not records:  # the implicit MX of RFC 5321 5.1
        return DomainFacts.RESOLVES if addresses else DomainFacts.DOES_NOT_EXIST
    null = len(records) == 1 and not records[0].host  # RFC 7505 3
    return DomainFacts.NULL_MX if null else DomainFacts.RESOLVES
