"""`mailrail dmarc`: what is counted for reports, reports by hand, and to whom none goes."""

import datetime
from typing import Annotated, Any

import typer

from mailrail.cli import arguments as a
from mailrail.cli import output
from mailrail.cli.connection import TIMEOUT, ask
from mailrail.pb.dmarc.v1 import admin_pb2, admin_pb2_grpc

app = typer.Typer()
"""Commands of `mailrail dmarc`, beside those of dmarc_received.py."""

_SENDING = 3600.0  # seconds; each report asks the DNS
_PAGE = 1000
Domain = Annotated[str, typer.Argument(metavar="DOMAIN", help="Where the DMARC record is.")]
Before = Annotated[
    str,
    typer.Option(
        "--before",
        metavar="TIME",
        help="What was seen before this time, cut to the hour (UTC). Default: all that was seen, in the hour that runs "
        "too.",
    ),
]


def _stub(channel: Any) -> "admin_pb2_grpc.DmarcAdminServiceAsyncStub":
    stub: admin_pb2_grpc.DmarcAdminServiceAsyncStub = admin_pb2_grpc.DmarcAdminServiceStub(channel)
    return stub


@app.command()
def domains(limit: a.Limit = 100, json: a.Json = False) -> None:
    """List the domains for which messages are counted that no report tells of yet."""

    most = limit or a.EVERYTHING

    async def question(channel: Any) -> list[admin_pb2.DomainStatistics]:
        found: list[admin_pb2.DomainStatistics] = []
        token = ""
        while len(found) < most:
            size = min(_PAGE, most - len(found))
            request = admin_pb2.ListDomainsRequest(page_size=size, page_token=token)
            page = await _stub(channel).ListDomains(request, timeout=TIMEOUT)
            found += page.domains
            if not (token := page.next_page_token):
                break
        return found

    found = ask("dmarc", question)
    if json:
        output.print_json(found)
        return
    now = datetime.datetime.now(datetime.UTC)
    output.table(
        ("DOMAIN", "MESSAGES", "DISPOSITIONS", "REPORT", "EVERY", "FIRST"),
        (
            (
                each.domain,
                str(each.messages),
                ", ".join(each.dispositions),
                "yes" if each.send_report else "no",
                f"{each.interval_hours} h",
                output.when(each, "first", now, brief=True),
            )
            for each in found
        ),
        none="nothing is counted",
    )


@app.command()
def send(
    domain: Annotated[str, typer.Argument(metavar="[DOMAIN]", help="Of this domain alone.")] = "",
    before: Before = "",
    json: a.Json = False,
) -> None:
    """Send reports now, of periods that are not over too; these end with it."""
    request = admin_pb2.SendReportsRequest(domain=domain)
    if before:
        request.before.CopyFrom(a.stamp(a.moment(before)))

    async def question(channel: Any) -> admin_pb2.SendReportsResponse:
        return await _stub(channel).SendReports(request, timeout=_SENDING)

    _print_reports(ask("dmarc", question, doing="sending reports").reports, json, none="nothing is to be reported")


@app.command()
def sent(limit: a.Limit = 100, json: a.Json = False) -> None:
    """List the reports of ours, newest first, and what keeps them from leaving."""

    most = limit or a.EVERYTHING

    async def question(channel: Any) -> tuple[list[admin_pb2.Report], str]:
        found: list[admin_pb2.Report] = []
        token = missing = ""
        while len(found) < most:
            size = min(_PAGE, most - len(found))
            request = admin_pb2.ListReportsRequest(page_size=size, page_token=token)
            page = await _stub(channel).ListReports(request, timeout=TIMEOUT)
            found += page.reports
            missing = page.missing
            if not (token := page.next_page_token):
                break
        return found, missing

    found, missing = ask("dmarc", question)
    _print_reports(found, json, none="no report was made")
    if missing:
        output.note(missing)


@app.command()
def preview(domain: Domain, before: Before = "") -> None:
    """Print the XML of the report that `send` would send; nothing changes."""
    request = admin_pb2.PreviewReportRequest(domain=domain)
    if before:
        request.before.CopyFrom(a.stamp(a.moment(before)))

    async def question(channel: Any) -> admin_pb2.PreviewReportResponse:
        return await _stub(channel).PreviewReport(request, timeout=_SENDING)

    output.say(ask("dmarc", question).xml.decode("utf-8", "replace").rstrip("\n"))


def _print_reports(found: Any, json: bool, *, none: str) -> None:
    if json:
        output.print_json(list(found))
        return
    output.table(
        ("DOMAIN", "END", "STATE", "MESSAGES", "DETAIL"),
        (
            (
                each.domain,
                output.instant(each.end),
                output.name_of(each, "state") or "open",
                str(each.messages),
                each.detail,
            )
            for each in found
        ),
        none=none,
        prose=1,
    )
