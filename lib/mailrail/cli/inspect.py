"""`mailrail ingress` and `mailrail outbound`: what the two processes that face the world are doing."""

import datetime
from typing import Annotated, Any

import typer

from mailrail.cli import arguments as a
from mailrail.cli import output
from mailrail.cli.connection import TIMEOUT, ask
from mailrail.pb.ingress.v1 import ingress_pb2, ingress_pb2_grpc
from mailrail.pb.outbound.v1 import outbound_pb2, outbound_pb2_grpc

ingress = typer.Typer(no_args_is_help=True, help="See the SMTP sessions, and how recipients are answered.")
outbound = typer.Typer(no_args_is_help=True, help="Show connections to next hops.")


@ingress.command()
def sessions(
    limit: a.Limit = 100,
    json: a.Json = False,
) -> None:
    """List the open SMTP sessions."""

    async def question(channel: Any) -> ingress_pb2.ListSessionsResponse:
        stub: ingress_pb2_grpc.IngressServiceAsyncStub = ingress_pb2_grpc.IngressServiceStub(channel)
        return await stub.ListSessions(ingress_pb2.ListSessionsRequest(limit=limit or a.EVERYTHING), timeout=TIMEOUT)

    found = ask("ingress", question)
    if json:
        output.print_json(found)
        return
    now = datetime.datetime.now(datetime.UTC)
    output.table(
        ("ID", "LISTENER", "CLIENT", "LOGIN", "TLS", "STATE", "MESSAGES", "SINCE"),
        (
            (
                s.id,
                s.listener,
                " ".join(p for p in (s.client_name, s.client_ip) if p),
                s.login,
                s.tls,
                s.state,
                str(s.messages),
                output.when(s, "started", now, brief=True),
            )
            for s in found.sessions
        ),
        none="no client is connected",
    )
    if found.total > len(found.sessions):
        output.say(f"... {found.total} in all")


@ingress.command()
def resolve(
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="A recipient.")],
    login: Annotated[str, typer.Option("--login", metavar="LOGIN", help="As this login. Default: none.")] = "",
    json: a.Json = False,
) -> None:
    """Show the reply to a recipient at RCPT, and the addresses it expands to. Exit status 1 if it is refused."""

    async def question(channel: Any) -> ingress_pb2.ResolveRecipientResponse:
        stub: ingress_pb2_grpc.IngressServiceAsyncStub = ingress_pb2_grpc.IngressServiceStub(channel)
        request = ingress_pb2.ResolveRecipientRequest(address=address, login=login)
        return await stub.ResolveRecipient(request, timeout=TIMEOUT)

    found = ask("ingress", question)
    if json:
        output.print_json(found)
    else:
        output.say(" ".join(p for p in (str(found.code), found.enhanced, found.text) if p))
        for recipient in found.recipients:
            account = f", account {recipient.account}" if recipient.account else ""
            output.say(f"  {recipient.address} ({recipient.how}{account})")
    if found.code >= 400:
        raise typer.Exit(output.REFUSED)


@outbound.command()
def connections(json: a.Json = False) -> None:
    """List the open connections to next hops."""

    async def question(channel: Any) -> outbound_pb2.ListConnectionsResponse:
        stub: outbound_pb2_grpc.OutboundServiceAsyncStub = outbound_pb2_grpc.OutboundServiceStub(channel)
        return await stub.ListConnections(outbound_pb2.ListConnectionsRequest(), timeout=TIMEOUT)

    found = list(ask("outbound", question).connections)
    if json:
        output.print_json(found)
        return
    now = datetime.datetime.now(datetime.UTC)
    output.table(
        ("HOST", "ADDRESS", "TRANSPORT", "TLS", "LOGIN", "STATE", "MESSAGES", "SINCE"),
        (
            (
                c.host,
                f"{c.ip}:{c.port}",
                c.transport or "direct",
                c.tls,
                c.identity,
                "busy" if c.busy else "idle",
                str(c.messages),
                output.when(c, "opened", now, brief=True),
            )
            for c in found
        ),
        none="no connection is open",
    )
