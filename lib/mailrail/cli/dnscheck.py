"""`mailrail dnscheck`: which records of a domain are right, missing or wrong, and what its servers show beside them.

Of a domain of ours it is known what must be there: the revision in force says it. Of any other it tells what those who
send mail there, or get mail from it, meet.
"""

import asyncio
import datetime
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Annotated, Final

import typer

from mailrail.cli import arguments as a
from mailrail.cli import output
from mailrail.cli.connection import PLACE, ask
from mailrail.core.dnscheck.answers import Record, RecordState
from mailrail.core.dnscheck.needs import ADDRESSES_LIMIT, Egress, Needs, needs_of

_TO_COPY: Final = frozenset({"TXT", "MX", "PTR", "TLSA"})
"""Types of records that can be published as they are told."""
_ADDRESSES: Final = 2
"""Addresses of one MX host that are dialled."""


@dataclass(frozen=True, slots=True)
class CheckedServers:
    """Where servers are reached, and which may be."""

    smtp_port: int = 25
    https_port: int = 443
    networks: tuple[IPv4Network | IPv6Network, ...] = ()
    """Inside our own networks, which names of strangers may lead to; those of our own domains lead anywhere."""
    context: ssl.SSLContext | None = None
    """How policy hosts are verified, in place of the system's trust."""


WORLD = CheckedServers()
"""As the world is."""


def dnscheck(
    domain: Annotated[str, typer.Argument(metavar="DOMAIN", help="The domain.")],
    resolver: a.Resolver = "",
    trust_ad: Annotated[
        bool,
        typer.Option(
            "--trust-ad",
            help="That server validates DNSSEC, and nobody can write into the way to it: its word counts (DANE).",
        ),
    ] = False,
    egress: Annotated[
        list[str] | None,
        typer.Option("--egress", metavar="ADDRESS", help="Address that direct mail leaves from, for SPF and PTR."),
    ] = None,
    selector: Annotated[
        list[str] | None,
        typer.Option("--selector", metavar="NAME", help="Selector of a DKIM key; those of our domains are known."),
    ] = None,
    foreign: Annotated[
        bool, typer.Option("--foreign", help="Do not ask the installation whether the domain is ours.")
    ] = False,
    json: a.Json = False,
) -> None:
    """Check SPF, DKIM, DMARC, MX, MTA-STS, TLSRPT, DANE and PTR of a domain; what to publish is told ready to copy.

    Also fetches the MTA-STS policy, and looks at the certificates of the MX hosts (port 25). Of a domain that is not
    ours it says what a sender meets. Exit status 1 if something is missing or wrong, 3 if something could not be
    asked. Of a domain of ours the records of its DKIM keys are compared with the keys; of others it is known only
    whether there is one at a selector.
    """
    name = a.domain_name(domain)
    a.check_resolver(resolver, trust_ad=trust_ad)
    addresses = _addresses(egress or [])
    ours = None if foreign or not PLACE.is_known() else _ours(name, addresses)
    needs = ours if ours is not None else _foreign(name, addresses)
    needs = replace(needs, selectors=(*needs.selectors, *map(a.domain_name, selector or [])))
    try:
        records = asyncio.run(_look(needs, resolver, trust_ad, WORLD))
    except KeyboardInterrupt:
        output.stop("interrupted")
    _tell(name, needs, records, is_ours=ours is not None, json=json)
    if any(record.wanting for record in records):
        raise typer.Exit(output.REFUSED)
    if any(record.state is RecordState.UNKNOWN and not record.held_back for record in records):
        raise typer.Exit(output.UNREACHABLE)


def _addresses(texts: Sequence[str]) -> list[str]:
    if len(texts) > ADDRESSES_LIMIT:
        output.stop(f"--egress: {len(texts)} addresses are too many; check {ADDRESSES_LIMIT} at a time", output.USAGE)
    try:
        return [str(ip_address(text.strip())) for text in texts]
    except ValueError as error:
        output.stop(f"--egress: {error}; write an address such as 192.0.2.1", output.USAGE)


def _foreign(name: str, addresses: Sequence[str]) -> Needs:
    return Needs(name, receives=True, hostname="", egress=tuple(Egress(each, "") for each in addresses))


def _ours(name: str, addresses: Sequence[str]) -> Needs | None:
    """What a domain of ours needs, by the revision in force. None: it is not ours."""
    from mailrail.cli.in_force import in_force

    found = ask("config", in_force)
    domain = next((each for each in found.revision.domains if each.name == name), None)
    needs = needs_of(domain, found.revision, addresses) if domain is not None else None
    return replace(needs, policy_served=found.policy_served) if needs is not None else None


async def _look(needs: Needs, server: str, trust_ad: bool, world: CheckedServers) -> list[Record]:
    """Ask the DNS, the policy host and the MX hosts. Never raises."""
    # Imported here: every other command starts without dnspython and the parts of outbound.
    from mailrail.cli.mx_certificates import look_at_hosts
    from mailrail.core.dnscheck import served
    from mailrail.core.mtasts.answer import FetchFailed, FetchTrouble
    from mailrail.kit.dns_check import DnsCheckResolver, looked_up
    from mailrail_outbound.settings import OutboundSettings
    from mailrail_outbound.tls_policy.fetch import FetchPutOff, PolicyFetcher

    resolver = DnsCheckResolver(server, trust_ad=trust_ad)
    is_ours = bool(needs.hostname)
    verdict, hosts = await asyncio.gather(
        looked_up(needs, resolver),
        look_at_hosts(
            needs.domain,
            resolver.resolver,
            port=world.smtp_port,
            addresses=_ADDRESSES,
            networks=None if is_ours else world.networks,
        ),
    )
    records = list(verdict.records)
    if not records:  # SPF asked without end
        records.append(Record("DNS", "TXT", needs.domain, "", RecordState.UNKNOWN, verdict.message))
    published = any(r.purpose == "MTA-STS" and r.type == "TXT" and r.state is RecordState.MATCH for r in records)
    if published or (needs.policy is not None and needs.policy_served):
        settings = OutboundSettings(
            fetch_port=world.https_port, fetch_timeout=20.0, fetch_networks=tuple(map(str, world.networks))
        )
        fetcher = PolicyFetcher(settings, resolver.resolver, context=world.context)
        try:
            found = await fetcher.fetch(needs.domain)
        except FetchPutOff as error:
            found = FetchFailed(FetchTrouble.FETCH, str(error))
        await fetcher.close()
        ours = needs.policy if needs.policy_served else None
        records.append(served.policy(needs.domain, found, ours, [host.host for host in hosts]))
    now = datetime.datetime.now(datetime.UTC)
    for host in hosts:
        missing = served.address(host)
        records.append(missing if missing is not None else served.dane(host, world.smtp_port, now))
    return records


def _tell(name: str, needs: Needs, records: Sequence[Record], *, is_ours: bool, json: bool) -> None:
    if json:
        rows = [record.as_status() | {"optional": record.optional} for record in records]
        output.print_json({"domain": name, "ours": is_ours, "notes": list(needs.notes), "records": rows})
        return
    if not is_ours:
        output.note(f"{name} is not known as ours: this is what others meet")
    output.table(
        ("RECORD", "STATE", "TYPE", "NAME", "REASON"),
        ((r.purpose, r.state.value.lower(), r.type, r.name, r.message) for r in records),
        none="",
        prose=1,
    )
    for note in needs.notes:
        output.note(f"{note}; --egress ADDRESS names one" if "egress" in note else note)
    to_copy = [r for r in records if is_ours and r.wanting and r.type in _TO_COPY and _can_be_published(r, needs)]
    if to_copy:
        output.say("\nTo publish:")
        for record in to_copy:
            output.say(f"{record.name}. IN {record.type} {record.value}")


def _can_be_published(record: Record, needs: Needs) -> bool:
    """Whether the value is one to be copied, and not the description of one."""
    if record.purpose == "MTA-STS":
        return needs.policy is not None and record.type == "TXT"  # a record without a policy promises what is not there
    if record.purpose == "DKIM":
        return any(record.value == f'"{text}"' for _, text in needs.dkim)
    return "(" not in record.value
