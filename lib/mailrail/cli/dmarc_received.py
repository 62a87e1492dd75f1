"""`mailrail dmarc`: what others report about our domains, as dmarc read it from mail to our report addresses."""

import datetime
import json as jsonlib
from enum import StrEnum
from typing import Annotated, Any

import typer

from mailrail.cli import arguments as a
from mailrail.cli import output
from mailrail.cli.connection import TIMEOUT, ask, pages
from mailrail.pb.dmarc.v1 import received_pb2, received_pb2_grpc

app = typer.Typer(no_args_is_help=True, help="Reports on DMARC and TLS.")


class KindChoice(StrEnum):
    """What a report is about."""

    DMARC = "dmarc"
    TLS = "tls"


_KINDS = {
    None: received_pb2.REPORT_KIND_UNSPECIFIED,
    KindChoice.DMARC: received_pb2.REPORT_KIND_DMARC,
    KindChoice.TLS: received_pb2.REPORT_KIND_TLS,
}


def _stub(channel: Any) -> "received_pb2_grpc.ReceivedServiceAsyncStub":
    stub: received_pb2_grpc.ReceivedServiceAsyncStub = received_pb2_grpc.ReceivedServiceStub(channel)
    return stub


@app.command()
def received(
    domain: Annotated[str, typer.Option("--domain", metavar="DOMAIN", help="Only on this policy domain.")] = "",
    kind: Annotated[
        KindChoice | None, typer.Option("--kind", metavar="dmarc|tls", help="Only reports on this.", show_default=False)
    ] = None,
    submitter: Annotated[str, typer.Option("--from", metavar="DOMAIN", help="Only of this sender.")] = "",
    source: Annotated[
        str, typer.Option("--source", metavar="ADDRESS", help="Only DMARC reports on mail from this IP address.")
    ] = "",
    limit: a.Limit = 50,
    json: a.Json = False,
) -> None:
    """List what others report about our domains, the newest first.

    GOOD are messages that passed DMARC, or sessions with TLS as the policy wants it; BAD are the others.
    """

    async def question(channel: Any) -> tuple[list[received_pb2.Received], bool]:
        async def fetch(size: int, token: str) -> tuple[list[received_pb2.Received], str]:
            request = received_pb2.ListReceivedRequest(
                domain=domain, kind=_KINDS[kind], submitter=submitter, source=source, page_size=size, page_token=token
            )
            answer = await _stub(channel).ListReceived(request, timeout=TIMEOUT)
            return list(answer.reports), answer.next_page_token

        return await pages(fetch, limit)

    found, more = ask("dmarc", question)
    if json:
        output.print_json(found)
        return
    output.table(
        ("ID", "KIND", "DOMAIN", "FROM", "DAY", "GOOD", "BAD"),
        (
            (
                str(one.id),
                output.name_of(one, "kind"),
                one.domain,
                one.organization,
                output.instant(one.begin)[:10],
                str(one.good),
                str(one.bad),
            )
            for one in found
        ),
        none="no reports",
    )
    if more:
        output.say(f"... more than {limit}; --limit 0 shows all")


@app.command()
def report(
    number: Annotated[int, typer.Argument(metavar="ID", min=1, help="Report, from `mailrail dmarc received`.")],
    json: a.Json = False,
) -> None:
    """Show one report of others with its rows."""

    async def question(channel: Any) -> received_pb2.GetReceivedResponse:
        return await _stub(channel).GetReceived(received_pb2.GetReceivedRequest(id=number), timeout=TIMEOUT)

    found = ask("dmarc", question)
    if json:
        output.print_json(found)
        return
    one = found.report
    output.facts(
        (
            ("report", one.report_id),
            ("from", f"{one.organization} ({one.submitter})"),
            ("domain", one.domain),
            ("period", f"{output.instant(one.begin)} to {output.instant(one.end)}"),
            ("good", str(one.good)),
            ("bad", str(one.bad)),
            *((("not read", f"{one.rejected} rows"),) if one.rejected else ()),
            *((("not shown", f"{found.more} rows"),) if found.more else ()),
        )
    )
    if found.records:
        output.table(
            ("SOURCE", "MESSAGES", "DISPOSITION", "DKIM", "SPF", "HEADER FROM"),
            ((r.source, str(r.messages), r.disposition, r.dkim, r.spf, r.header_from) for r in found.records),
            none="",
        )
    for policy in found.policies:
        output.say(f"{policy.type} {policy.domain}: {policy.successful} sessions well, {policy.failed} failed")
        for failure in jsonlib.loads(policy.details or "{}").get("failures", []):
            told = " ".join(f"{key}={value}" for key, value in failure.items() if key not in ("result", "sessions"))
            output.say(output.clean(f"  {failure.get('sessions', 0)} x {failure.get('result', '')} {told}".rstrip()))


@app.command()
def refused(limit: a.Limit = 50, json: a.Json = False) -> None:
    """List mail at report addresses that does not count, and why, the newest first. The mail itself stays."""

    async def question(channel: Any) -> tuple[list[received_pb2.Refused], bool]:
        async def fetch(size: int, token: str) -> tuple[list[received_pb2.Refused], str]:
            request = received_pb2.ListRefusedRequest(page_size=size, page_token=token)
            answer = await _stub(channel).ListRefused(request, timeout=TIMEOUT)
            return list(answer.mails), answer.next_page_token

        return await pages(fetch, limit)

    found, more = ask("dmarc", question)
    if json:
        output.print_json(found)
        return
    now = datetime.datetime.now(datetime.UTC)
    output.table(
        ("MAIL", "LOOKED AT", "FROM", "SUBJECT", "REASON"),
        (
            (str(one.id), output.when(one, "looked", now, brief=True), one.sender, one.subject, one.reason)
            for one in found
        ),
        none="no mail was refused",
        prose=2,
    )
    if more:
        output.say(f"... more than {limit}; --limit 0 shows all")
