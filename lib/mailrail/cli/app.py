"""The commands of `mailrail`, put together; exit statuses are in mailrail/cli/__init__.py."""

import os
import sys
from functools import partial
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Annotated

import typer

from mailrail.cli import arguments as a
from mailrail.cli import (
    auth,
    cluster,
    configuration,
    dkim,
    dmarc_received,
    dmarc_reports,
    inspect,
    mailbox,
    output,
    queue,
    queue_changes,
    queue_holds,
    routes,
    tls,
)
from mailrail.cli.connection import PLACE
from mailrail.cli.dnscheck import dnscheck
from mailrail.cli.explain import explain
from mailrail.cli.root import new_root
from mailrail.cli.search import search
from mailrail.cli.serve import SERVICES
from mailrail.cli.serve import serve as run_service
from mailrail.cli.sink import sink
from mailrail.cli.top import top
from mailrail.local.state import default_state

app = new_root()
queue.app.add_typer(queue_changes.app)
queue.app.add_typer(queue_holds.app, name="holds")
app.add_typer(queue.app, name="queue")
app.add_typer(mailbox.app, name="mailbox")
app.add_typer(configuration.app, name="config")
app.add_typer(inspect.ingress, name="ingress")
app.add_typer(inspect.outbound, name="outbound")
app.add_typer(routes.app, name="routes")
app.add_typer(tls.app, name="tls")
app.add_typer(dkim.app, name="dkim")
app.add_typer(auth.app, name="auth")
dmarc_received.app.add_typer(dmarc_reports.app)
app.add_typer(dmarc_received.app, name="dmarc")
app.add_typer(cluster.app, name="cluster")


@app.command()
def local(
    state: Annotated[
        Path | None,
        typer.Option("--state", metavar="FOLDER", help="State folder.", show_default="the user's data folder"),
    ] = None,
    resources: Annotated[
        Path,
        typer.Option(
            "--resources",
            metavar="FOLDER",
            help="Resource documents. If it is missing, it is made with a working example.",
        ),
    ] = Path("mail.d"),
    listen: Annotated[str, typer.Option("--listen", metavar="ADDRESS", help="Address to listen on.")] = "127.0.0.1",
    port_offset: Annotated[
        int, typer.Option("--port-offset", metavar="N", min=0, max=60000, help="Number added to every port.")
    ] = 0,
    resolver: Annotated[
        str | None,
        typer.Option("--resolver", metavar="HOST:PORT", help="DNS server for direct delivery.", show_default=False),
    ] = None,
    trust_ad: Annotated[
        bool,
        typer.Option(
            "--trust-ad",
            help="That server validates DNSSEC, and nobody can write into the way to it: its word counts (DANE).",
        ),
    ] = False,
    database_url: Annotated[
        str | None,
        typer.Option(
            "--database-url",
            envvar="MAILRAIL_DATABASE_URL",
            metavar="URL",
            help="URL of a Postgres (15 or newer) to use instead of the embedded one.",
            show_default=False,
        ),
    ] = None,
    deliver: Annotated[
        bool, typer.Option("--deliver", help="Deliver to other machines; without it such mail is captured.")
    ] = False,
    history_days: Annotated[
        int,
        typer.Option("--history-days", metavar="N", min=1, max=3650, help="Days for which final recipients are kept."),
    ] = 14,
    log_format: Annotated[
        str, typer.Option("--log-format", metavar="console|json", help="Log format: console or json.")
    ] = "console",
    log_level: Annotated[
        str, typer.Option("--log-level", metavar="LEVEL", help="Log level: debug, info, warning or error.")
    ] = "info",
) -> None:
    """Run all of Mailrail here: every service, an embedded Postgres, resources from a folder. Ctrl-C stops it."""
    from mailrail.kit.settings import BadSettings, host_port
    from mailrail.local.options import LocalOptions
    from mailrail.local.supervisor import CannotRun, Supervisor

    if log_format not in ("console", "json"):
        output.stop(f"--log-format {log_format!r}: write console or json", output.USAGE)
    if log_level not in ("debug", "info", "warning", "error"):
        output.stop(f"--log-level {log_level!r}: write debug, info, warning or error", output.USAGE)
    listen = listen.strip().removeprefix("[").removesuffix("]")
    if not listen:  # asyncio would listen everywhere
        output.stop(
            "--listen needs an address: 127.0.0.1 for this machine only, 0.0.0.0 for all addresses of it", output.USAGE
        )
    if database_url is not None:
        a.check_url("--database-url", database_url)
    if resolver is not None:
        try:
            host_port(resolver)
        except BadSettings as error:
            output.stop(f"--resolver {error}", output.USAGE)
    elif trust_ad:
        output.stop("--trust-ad: name the validating DNS server with --resolver HOST:PORT", output.USAGE)
    options = LocalOptions(
        state=state or PLACE.state or default_state(),
        resources=resources,
        listen=listen,
        port_offset=port_offset,
        resolver=resolver,
        trust_ad=trust_ad,
        database_url=database_url,
        deliver=deliver,
        history_days=history_days,
        log_format=log_format,
        log_level=log_level,
    )
    try:
        Supervisor(options).run()
    except CannotRun as error:
        output.stop(str(error))


@app.command()
def migrate(
    url: Annotated[
        str | None,
        typer.Option("--database-url", envvar="MAILRAIL_DATABASE_URL", metavar="URL", help="The database."),
    ] = None,
    direct_url: a.DirectUrl = "",
    roles: Annotated[
        bool, typer.Option("--roles", help="Also create a role for each service, with rights in its own schema only.")
    ] = False,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=0, help="Seconds to wait for another migration to end.")
    ] = 600.0,
    wait: Annotated[
        float,
        typer.Option("--wait", metavar="SECONDS", min=0, help="Keep trying this long if the database is unreachable."),
    ] = 0.0,
    json: a.Json = False,
) -> None:
    """Bring the schemas of a database up to date. Safe from several processes at once; repeatable."""
    import psycopg

    from mailrail.kit import migrations
    from mailrail.kit.roles import grant_roles

    if not url:
        output.stop("give --database-url, or set MAILRAIL_DATABASE_URL", output.USAGE)
    a.check_url("--database-url", url)
    if direct_url:
        a.check_url("--direct-url", direct_url)
    progress = partial(output.progress, beside=json)
    try:
        if wait:
            migrations.wait_for_database(direct_url or url, wait, progress)
        done = migrations.migrate(url, direct_url=direct_url or None, timeout=timeout, say=progress)
        made = []
        if roles:
            schemas = list(dict.fromkeys(m.schema for m in migrations.load_all()))
            made = grant_roles(direct_url or url, schemas, say=progress)
    except migrations.MigrationError as error:
        output.stop(str(error))
    except psycopg.ProgrammingError as error:
        output.stop(f"the database refused: {error}".strip())
    except psycopg.OperationalError as error:
        output.stop(f"the database is unreachable: {error}".strip(), output.UNREACHABLE)
    if json:
        steps = [{"step": d.migration.label, "seconds": round(d.seconds, 3)} for d in done]
        output.print_json({"applied": steps, "roles": made})
    elif not done:
        output.say("the database is up to date")


@app.command()
def serve(
    service: Annotated[str, typer.Argument(metavar="SERVICE", help=f"One of {', '.join(SERVICES)}.")],
) -> None:
    """Run one service in this process, as a pod does. Its settings are MAILRAIL_* variables."""
    raise typer.Exit(run_service(service))


@app.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
    add_help_option=False,
)
def sendmail(context: typer.Context) -> None:
    """Send a message from standard input, as cron, PHP and git do; `mailrail sendmail --help` has its flags."""
    from mailrail.sendmail import main as run_sendmail

    raise typer.Exit(run_sendmail(context.args, called="sendmail"))


app.command()(explain)
app.command()(search)
app.command()(dnscheck)
app.command()(top)
app.command()(sink)


@app.command()
def version(json: a.Json = False) -> None:
    """The version of this software."""
    number = version_of("mailrail")
    if json:
        output.print_json(
            {"version": number, "python": sys.version.split()[0], "platform": sys.platform, "os": os.name}
        )
    else:
        print(f"mailrail {number}")
