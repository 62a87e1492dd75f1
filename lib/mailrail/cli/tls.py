"""`mailrail tls`: how well mail to a domain is protected, and who could receive mail with REQUIRETLS."""

import datetime
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from mailrail.cli import arguments as a
from mailrail.cli import output
from mailrail.cli.connection import PLACE, TIMEOUT, ask
from mailrail.core.tlspolicy.indicators import DomainSecurity, Indicator, Light, RecipientPath, RecipientWay, obstacle
from mailrail.pb.outbound.v1 import outbound_pb2, outbound_pb2_grpc
from mailrail.pb.queue.v1 import admin_pb2, admin_pb2_grpc

MOST: Final = 100
"""Recipients of one check."""
_NAMES: Final = {
    "starttls": "STARTTLS",
    "mta_sts": "MTA-STS",
    "dnssec": "DNSSEC",
    "dane": "DANE",
    "require_tls": "REQUIRETLS",
}
_LIGHTS: Final = {
    outbound_pb2.SecurityIndicator.LIGHT_YES: Light.YES,
    outbound_pb2.SecurityIndicator.LIGHT_NO: Light.NO,
    outbound_pb2.SecurityIndicator.LIGHT_UNKNOWN: Light.UNKNOWN,
}


class _DomainFirst(TyperGroup):
    """`mailrail tls example.org` is `mailrail tls show example.org`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """See click."""
        if args and "." in args[0]:
            args = ["show", *args]
        return super().resolve_command(ctx, args)


app = typer.Typer(no_args_is_help=True, cls=_DomainFirst, help="Show how well mail to a domain is protected by TLS.")


@app.command()
def show(
    domain: Annotated[str, typer.Argument(metavar="DOMAIN", help="Domain of a recipient.")],
    transport: Annotated[
        str,
        typer.Option("--transport", metavar="NS/NAME", help="The transport that the mail goes by. Default: direct."),
    ] = "",
    json: a.Json = False,
) -> None:
    """Show five indicators of a domain: what its last session showed, and what the DNS says now.

    `mailrail tls DOMAIN` is the same. Below stands what they rest on: the MTA-STS policy and the TLSA records. Of a
    domain of yours it also tells what others see: its policy as it is served, and the record to publish. Whether the
    DNS has that record, `mailrail dnscheck DOMAIN` tells.
    """
    name = a.domain_name(domain)

    async def question(channel: Any) -> outbound_pb2.GetDomainSecurityResponse:
        return await _security(channel, name, a.qualified(transport))

    found = ask("outbound", question)
    own = _own(name) if PLACE.knows("config") else None
    if json:
        output.print_json(output.plain(found) | {"own": own})
        return
    now = datetime.datetime.now(datetime.UTC)
    output.table(
        ("", "STATE", "SEEN", "REASON"),
        (
            (
                title,
                output.name_of(getattr(found, name), "light"),
                output.when(getattr(found, name), "seen", now, brief=True),
                getattr(found, name).sentence,
            )
            for name, title in _NAMES.items()
        ),
        none="",
        prose=1,
    )
    for name, title in _NAMES.items():
        if getattr(found, name).details:
            output.say(f"\n{title}:")
            for line in getattr(found, name).details:
                output.say(f"    {line}")
    if own is not None:
        output.say("\nWhat others see of this domain of yours:")
        for line in _as_others_see_it(own):
            output.say(f"    {line}")


def _own(domain: str) -> dict[str, Any] | None:
    """A domain of ours as others see it. None: it is not ours."""
    # Imported here: `check` needs no revision.
    from mailrail.cli.in_force import in_force

    found = ask("config", in_force)
    if all(each.name != domain for each in found.revision.domains):
        return None
    policy = next((each for each in found.mta_sts() if each["domain"] == domain), None)
    return {"mta_sts": policy}


def _as_others_see_it(own: dict[str, Any]) -> list[str]:
    policy = own["mta_sts"]
    if policy is None:
        return ["no MTA-STS policy: spec.mtaSts of its MailDomain says one"]
    return [
        *policy["policy"].splitlines(),
        policy["record"] or "no record yet: not every policy process serves the policy",
    ]


@app.command()
def check(
    sender: Annotated[str, typer.Argument(metavar="FROM", help="The sender.")],
    recipients: Annotated[list[str], typer.Argument(metavar="TO...", help="The recipients.")],
    required: Annotated[bool, typer.Option("--required", help="Check for mail with REQUIRETLS (the default).")] = True,
    account: Annotated[
        str, typer.Option("--account", metavar="NS/NAME", help="The submitting account. Default: none.")
    ] = "",
    json: a.Json = False,
) -> None:
    """Say who could receive mail with REQUIRETLS, and what is in the way for the others. Nothing is sent.

    Exit status 1 if somebody could not. Who could is known to: the last session offered it, and MTA-STS or DANE proves
    the server.
    """
    if len(recipients) > MOST:
        output.stop(f"{len(recipients)} recipients are too many; check {MOST} at a time", output.USAGE)

    async def routes(channel: Any) -> list[admin_pb2.ExplainResponse]:
        stub: admin_pb2_grpc.QueueAdminServiceAsyncStub = admin_pb2_grpc.QueueAdminServiceStub(channel)
        found = []
        for to in recipients:
            request = admin_pb2.ExplainRequest(to=to, account=a.qualified(account))
            setattr(request, "from", sender)
            found.append(await stub.Explain(request, timeout=TIMEOUT))
        return found

    ways = list(zip(recipients, ask("queue", routes), strict=True))
    asked = {
        (_domain(to), _transport(way)): None
        for to, way in ways
        if _path(way) in (RecipientPath.DIRECT, RecipientPath.TRANSPORT)
    }

    async def securities(channel: Any) -> list[DomainSecurity]:
        return [_known(await _security(channel, domain, transport)) for domain, transport in asked]

    known = dict(zip(asked, ask("outbound", securities), strict=True)) if asked else {}
    rows = [(to, _path(way), _obstacle(to, way, known.get((_domain(to), _transport(way))))) for to, way in ways]
    if json:
        output.print_json([{"address": to, "path": path.value, "obstacle": why} for to, path, why in rows])
    else:
        output.table(
            ("ADDRESS", "PATH", "REQUIRETLS", "REASON"),
            ((to, path, "no" if why else "yes", why) for to, path, why in rows),
            none="",
            prose=1,
        )
    if any(why for _, _, why in rows):
        raise typer.Exit(output.REFUSED)


def _path(way: admin_pb2.ExplainResponse) -> RecipientPath:
    kind = way.decision.kind
    if kind == admin_pb2.RouteDecision.KIND_MAILBOX or (way.final and not way.requiretls_obstacle):
        return RecipientPath.MAILBOX
    if way.by_mx:
        return RecipientPath.DIRECT
    return RecipientPath.TRANSPORT if kind == admin_pb2.RouteDecision.KIND_TRANSPORT else RecipientPath.OTHER


def _obstacle(to: str, way: admin_pb2.ExplainResponse, known: DomainSecurity | None) -> str:
    """Why a recipient could not get it; empty: he could."""
    if way.requiretls_obstacle:
        return way.requiretls_obstacle
    valid = way.decision.kind != admin_pb2.RouteDecision.KIND_UNKNOWN_RECIPIENT
    return obstacle(RecipientWay(to, _path(way), known, verified=True, valid=valid)) or ""


def _domain(address: str) -> str:
    return address.rpartition("@")[2]


def _transport(way: admin_pb2.ExplainResponse) -> str:
    return output.ref(way.decision, "transport")


async def _security(channel: Any, domain: str, transport: str) -> outbound_pb2.GetDomainSecurityResponse:
    stub: outbound_pb2_grpc.OutboundServiceAsyncStub = outbound_pb2_grpc.OutboundServiceStub(channel)
    request = outbound_pb2.GetDomainSecurityRequest(domain=domain, transport=transport)
    return await stub.GetDomainSecurity(request, timeout=TIMEOUT)


def _known(found: outbound_pb2.GetDomainSecurityResponse) -> DomainSecurity:
    return DomainSecurity(
        **{
            name: Indicator(_LIGHTS.get(getattr(found, name).light, Light.ERROR), getattr(found, name).sentence)
            for name in _NAMES
        }
    )
