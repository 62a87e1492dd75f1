"""Where the mail of a domain goes: its hosts, in their order, and the addresses of each (SOUT-01 to SOUT-05)."""

import errno
import secrets
import socket
from collections.abc import Awaitable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from mailrail.core.outbound.host_failover import HostFailover
from mailrail.core.outbound.targets import NoHosts, may_be_dialled, mx_hosts
from mailrail.core.revision.revision import Transport
from mailrail.core.smtp.address import AddressError, parse_address
from mailrail.core.smtp.answer import Answer, Stage, Trouble
from mailrail.kit.resolver import DnsResolver, LookupFailed, NoSuchDomain
from mailrail_outbound.hops import Tables
from mailrail_outbound.settings import OutboundSettings

_T = TypeVar("_T")
Steps = Generator[Awaitable[Any] | None, Any, _T]
"""A part of a delivery (app.py). Yields what must be awaited and gets its value; None: the delivery's job."""


async def awaited(steps: Steps[_T]) -> _T:
    """What comes of steps that are look-ups alone, for who is no delivery. Raises what they raise."""
    value: Any = None
    error: Exception | None = None
    try:
        while True:
            wanted = steps.send(value) if error is None else steps.throw(error)
            assert wanted is not None, "only a delivery has a job"
            value = error = None
            try:
                value = await wanted
            except Exception as raised:
                error = raised
    except StopIteration as end:
        result: _T = end.value
        return result


@dataclass(frozen=True, slots=True)
class Found:
    """The hosts of a domain, those to be tried first first."""

    names: tuple[str, ...]


class HostResolver:
    """Asks DNS, and knows which answers lead back to ourselves."""

    def __init__(self, settings: OutboundSettings, resolver: DnsResolver) -> None:
        self._settings, self._resolver = settings, resolver
        self._private_networks = settings.mail_networks
        self._own_addresses: dict[str, bool] = {}

    def of_domain(self, tables: Tables, domain: str) -> Steps[NoHosts | Found]:
        """The hosts of a domain by its MX records, or the address that stands in its place; else why there are none."""
        if domain.startswith("["):
            try:
                literal = parse_address(f"x@{domain}").ip
            except AddressError:
                literal = None
            if literal is None:
                return NoHosts(Trouble.NO_SUCH_DOMAIN, f"{domain} is not an address literal")
            return Found((str(literal),))
        try:
            records = self._resolver.kept_mx(domain)
            if records is None:
                records = yield self._resolver.mx(domain)
        except NoSuchDomain as error:
            return NoHosts(Trouble.NO_SUCH_DOMAIN, str(error))
        except LookupFailed as error:
            return NoHosts(Trouble.DNS, str(error))
        random = secrets.SystemRandom().random
        hosts = mx_hosts(domain, records, own_names=tables.names, random=random)
        if isinstance(hosts, NoHosts):
            return hosts
        if hosts.implicit:
            # SOUT-01: the domain itself must have an address, else there is nowhere to go (5.1.2, 5.4.4).
            try:
                if not (yield self._resolver.addresses(domain, ("ipv4", "ipv6"))):
                    return NoHosts(Trouble.NO_ADDRESS, f"{domain} has neither MX nor address records")
            except LookupFailed as error:
                return NoHosts(Trouble.DNS, str(error))
        return Found(hosts.names)

    def addresses(
        self, name: str, transport: Transport, failover: HostFailover, *, by_mx: bool
    ) -> Steps[tuple[str, ...]]:
        """The addresses of a host that may be dialled; when there are none, the reason is recorded in `failover`."""
        resolver = self._resolver
        found: Sequence[str] | None
        try:
            if by_mx and not _is_address(name):
                found = resolver.kept_addresses(name, transport.families)
                if found is None:
                    found = yield resolver.addresses(name, transport.families)
            else:
                found = resolver.kept_host_addresses(name)
                if found is None:
                    found = yield resolver.host_addresses(name)
            if by_mx:
                known, families = found, transport.families
                found = [a for a in known if ("ipv6" if ":" in a else "ipv4") in families]
                others = not found and len(families) < 2
                if others and (known or (yield resolver.addresses(name, ("ipv4", "ipv6")))):
                    detail = f"{name} has no {' or '.join(families)} address, and no other family is allowed"
                    failover.record_session_failure(Answer(Stage.DNS, None, Trouble.NO_FAMILY, detail))
                    return ()
        except LookupFailed as error:
            failover.record_session_failure(Answer(Stage.DNS, None, Trouble.DNS, str(error)))
            return ()
        if by_mx and found and not self._settings.captive:  # captive mode dials loopback alone
            known = found
            found = [a for a in known if may_be_dialled(a, self._private_networks)]
            if not found:
                failover.record_session_failure(
                    Answer(Stage.DNS, None, Trouble.PRIVATE_ADDRESS, f"{name} is at {', '.join(known[:3])}")
                )
                return ()
        if not found:
            # SOUT-05: an MX host without address is a fault of theirs, and other hosts may do.
            failover.record_session_failure(Answer(Stage.DNS, None, Trouble.NO_ADDRESS, f"{name} has no address"))
        return tuple(found)

    def is_own_mx(self, tables: Tables, address: str, port: int) -> bool:
        """Whether direct delivery would dial our own MX listener (SOUT-04)."""
        shown = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        if shown in self._settings.own_mx:
            return True
        return port in tables.mx_ports and self._is_own_address(address)

    def _is_own_address(self, address: str) -> bool:
        # Only an address of this machine can be bound; a pod's own address is the one that its mail could loop to.
        known = self._own_addresses.get(address)
        if known is None:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                try:
                    probe.bind((address, 0))
                    known = True
                except OSError as error:
                    known = error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, 10049)
            if len(self._own_addresses) > 10_000:
                self._own_addresses.clear()
            self._own_addresses[address] = known
        return known


def _is_address(name: str) -> bool:
    return ":" in name or name.replace(".", "").isdigit()
