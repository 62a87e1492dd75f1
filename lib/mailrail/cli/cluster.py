"""`mailrail cluster`: what the chart runs beside the services. People hardly need it."""

import asyncio
import os
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from mailrail.cli import output
from mailrail.cli.arguments import DirectUrl, Json, check_url
from mailrail.cli.connection import PLACE
from mailrail.cluster import POSTGRES_PORT

app = typer.Typer(no_args_is_help=True, help="Commands that the Helm chart runs beside the services.")


@app.command()
def keys(
    prefix: Annotated[str, typer.Option("--prefix", metavar="NAME", help="Prefix of the names of the Secrets.")],
    part: Annotated[
        list[str],
        typer.Option("--part", metavar="PART", help="mtls, sealing, smtp or postgres; may be given several times."),
    ],
    namespace: Annotated[
        str, typer.Option("--namespace", metavar="NAME", help="Where they are.", show_default="that of the pod")
    ] = "",
    smtp_name: Annotated[
        list[str] | None,
        typer.Option(
            "--smtp-name", metavar="HOST", help="Host name of the SMTP certificate; may be given several times."
        ),
    ] = None,
    postgres_host: Annotated[
        str, typer.Option("--postgres-host", metavar="HOST", help="Address of the bundled Postgres.")
    ] = "localhost",
    label: Annotated[
        list[str] | None,
        typer.Option("--label", metavar="NAME=VALUE", help="Label of the Secrets; may be given several times."),
    ] = None,
) -> None:
    """Create missing Secrets of an installation, and renew those that are due. May be repeated."""
    import aiohttp

    from mailrail.cluster.keys import KeyPart, Wanted, ensure
    from mailrail.kit.certificates import utc_now
    from mailrail.kit.kubernetes import ApiError, connect, find_credentials
    from mailrail.kit.settings import BadSettings

    try:
        parts = frozenset(KeyPart(name) for name in part)
    except ValueError:
        output.stop(f"--part must be one of {', '.join(p.value for p in KeyPart)}", output.USAGE)
    labels = _labels(label)
    wanted = Wanted(
        prefix=prefix,
        parts=parts,
        smtp_names=tuple(dict.fromkeys(smtp_name or ("localhost",))),
        postgres_host=postgres_host,
    )

    async def run() -> list[str]:
        async with connect(find_credentials(None)) as api:
            return await ensure(api, namespace or api.credentials.namespace, wanted, labels, utc_now())

    try:
        written = asyncio.run(run())
    except BadSettings as error:
        output.stop(str(error), output.USAGE)
    except ApiError as error:
        output.stop(f"the API server refused: {error}")
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        output.stop(f"the API server is unreachable: {error}", output.UNREACHABLE)
    for name in written:
        output.say(f"wrote Secret {name}")
    if not written:
        output.say("every Secret is there, and none is due")


@app.command()
def postgres(
    folder: Annotated[Path, typer.Option("--folder", metavar="FOLDER", help="Data folder.")],
    password_file: Annotated[
        Path | None,
        typer.Option(
            "--password-file", metavar="FILE", help="File with the password of the login.", show_default=False
        ),
    ] = None,
    port: Annotated[int, typer.Option("--port", metavar="PORT", min=1, max=65535, help="TCP port.")] = POSTGRES_PORT,
    listen: Annotated[str, typer.Option("--listen", metavar="ADDRESS", help="Address to listen on; * for all.")] = "*",
    buffers: Annotated[
        str, typer.Option("--shared-buffers", metavar="SIZE", help="Memory for pages, as Postgres writes it.")
    ] = "128MB",
    metrics_listen: Annotated[
        str,
        typer.Option(
            "--metrics-listen",
            metavar="HOST:PORT",
            envvar="MAILRAIL_METRICS_LISTEN",
            show_default=False,
            help="Where to serve /metrics: the room on the volume. Default: nowhere.",
        ),
    ] = "",
) -> None:
    """Run the bundled Postgres, for trying Mailrail out: one server without a replica.

    The password of the services' login is in --password-file, else in the variable PGPASSWORD.
    """
    from mailrail.cluster import postgres as bundled
    from mailrail.kit.settings import BadSettings

    def read() -> str:
        """The password; nothing while it cannot be read."""
        if password_file is None:
            return os.environ.get("PGPASSWORD", "")
        try:
            return password_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return ""

    if password_file is not None:
        _password_in(password_file)  # says at the start what is wrong with it
    if not read():
        output.stop(
            "give --password-file, or set PGPASSWORD, with the password that services log in with", output.USAGE
        )
    try:
        raise typer.Exit(
            bundled.serve(folder, read, port=port, listen=listen, buffers=buffers, metrics_listen=metrics_listen)
        )
    except BadSettings as error:
        output.stop(f"--metrics-listen or MAILRAIL_METRICS_LISTEN: {error}", output.USAGE)
    except bundled.PostgresUnavailable as error:
        output.stop(str(error))


def _labels(given: list[str] | None) -> dict[str, str]:
    """NAME=VALUE, each. Ends the command on anything else."""
    for text in given or ():
        if text.find("=") < 1:
            output.stop(f"--label {text!r}: write NAME=VALUE", output.USAGE)
    return dict(text.split("=", 1) for text in given or ())


def _password_in(file: Path) -> str:
    """The text of a file, without the spaces around it. Ends the command where it cannot be read."""
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError as error:
        output.stop(f"--password-file {file}: it cannot be read: {error.strerror}", output.USAGE)
    except UnicodeDecodeError:
        output.stop(f"--password-file {file}: it is not UTF-8; store the password as UTF-8 text", output.USAGE)


@app.command("database")
def use_database(
    place: Annotated[
        str, typer.Option("--place", metavar="PLACE", help="What the values name: bundled.NAME or external.DIGEST.")
    ],
    record: Annotated[str, typer.Option("--record", metavar="NAME", help="ConfigMap that says which place is used.")],
    url: Annotated[
        str,
        typer.Option(
            "--database-url",
            envvar="MAILRAIL_DATABASE_URL",
            metavar="URL",
            help="The database at an external place.",
            show_default=False,
        ),
    ] = "",
    direct_url: DirectUrl = "",
    previous: Annotated[
        str,
        typer.Option(
            "--previous",
            metavar="WHAT",
            help="What to do with mail in the database used before: refuse, move or leave.",
        ),
    ] = "refuse",
    bundled: Annotated[
        str, typer.Option("--bundled", metavar="NAME", help="StatefulSet of the bundled Postgres.", show_default="none")
    ] = "",
    domain: Annotated[
        str,
        typer.Option("--domain", metavar="SUFFIX", help="Rest of the host name of a StatefulSet.", show_default="none"),
    ] = "",
    password_file: Annotated[
        Path | None,
        typer.Option(
            "--password-file", metavar="FILE", help="Password of the bundled Postgres, if any.", show_default=False
        ),
    ] = None,
    namespace: Annotated[
        str,
        typer.Option(
            "--namespace", metavar="NAME", help="Namespace of the installation.", show_default="that of the pod"
        ),
    ] = "",
    label: Annotated[
        list[str] | None,
        typer.Option("--label", metavar="NAME=VALUE", help="Label of the ConfigMap; may be given several times."),
    ] = None,
    wait: Annotated[
        float, typer.Option("--wait", metavar="SECONDS", min=0, help="Keep trying this long for the database.")
    ] = 0.0,
) -> None:
    """Let services use a database: refuse to leave mail behind, move it if told to, bring the schemas up to date."""
    import aiohttp
    import psycopg

    from mailrail.cluster import database, move
    from mailrail.kit.kubernetes import ApiError, connect, find_credentials
    from mailrail.kit.migrations import MigrationError
    from mailrail.kit.settings import BadSettings

    if not database.PLACE.fullmatch(place):
        output.stop(f"--place {place!r}: write bundled.NAME or external.DIGEST", output.USAGE)
    if previous not in tuple(database.Previous):
        output.stop(f"--previous must be one of {', '.join(database.Previous)}", output.USAGE)
    external = direct_url or url
    if not place.startswith(database.BUNDLED):
        if not external:
            output.stop("--database-url is missing", output.USAGE)
        check_url("--direct-url" if direct_url else "--database-url", external)
    labels = _labels(label)
    password = _password_in(password_file) if password_file and password_file.exists() else ""

    async def run() -> None:
        async with connect(find_credentials(None)) as api:
            job = database.Installation(
                namespace=namespace or api.credentials.namespace,
                record=record,
                place=place,
                external_url=external,
                previous=database.Previous(previous),
                bundled=bundled,
                domain=domain,
                password=password,
                labels=labels,
            )
            await database.settle(job, api, wait=wait, say=output.progress)

    try:
        asyncio.run(run())
    except BadSettings as error:
        output.stop(str(error), output.USAGE)
    except (database.DatabaseRefused, move.MoveRefused, MigrationError) as error:
        output.stop(str(error))
    except ApiError as error:
        output.stop(f"the API server refused: {error}")
    except psycopg.OperationalError as error:
        output.stop(f"the database is unreachable: {error}".strip(), output.UNREACHABLE)
    except psycopg.Error as error:
        output.stop(f"the database refused: {error}".strip())
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        output.stop(f"the API server is unreachable: {error}", output.UNREACHABLE)


@app.command("move-database")
def move_database(
    source: Annotated[
        str,
        typer.Option(
            "--from", envvar="MAILRAIL_SOURCE_DATABASE_URL", metavar="URL", help="The database with the mail."
        ),
    ],
    target: Annotated[
        str, typer.Option("--to", envvar="MAILRAIL_DATABASE_URL", metavar="URL", help="An empty database.")
    ],
    drain: Annotated[
        float,
        typer.Option("--drain", metavar="SECONDS", min=0, help="Seconds that deliveries under way may take to end."),
    ] = 60.0,
    give_up: Annotated[
        bool, typer.Option("--give-up", help="Do not move: let --from take writes again after an unfinished move.")
    ] = False,
    json: Json = False,
) -> None:
    """Copy a whole database into an empty one, compare both, and leave the first read-only. May be repeated.

    Nothing is accepted meanwhile: ingress answers 451, so mail waits at its senders. Give the URLs as variables, for a
    password in an argument can be seen by others. Both roles have to own their database.
    """
    import psycopg

    from mailrail.cluster import move
    from mailrail.kit.migrations import MigrationError

    check_url("--from", source)
    check_url("--to", target)
    progress = partial(output.progress, beside=json)
    try:
        if give_up:
            move.give_up(source, target)
            progress("the source takes writes again")
            return
        done = move.move(source, target, drain=drain, say=progress)
    except (move.MoveRefused, MigrationError) as error:
        output.stop(str(error))
    except psycopg.OperationalError as error:
        output.stop(f"a database is unreachable: {error}".strip(), output.UNREACHABLE)
    except psycopg.Error as error:
        output.stop(f"a database refused: {error}".strip())
    if json:
        output.print_json(
            {
                "copied": done.copied,
                "queued": done.holdings.queued,
                "mailbox_messages": done.holdings.mailbox_messages,
                "tables": [{"table": t.name, "rows": t.rows} for t in done.tables],
                "seconds": round(done.seconds, 3),
            }
        )


@app.command("test")
def try_out(
    domain: Annotated[str, typer.Option("--domain", metavar="NAME", help="An unused domain.")],
    mx: Annotated[str, typer.Option("--mx", metavar="HOST:PORT", help="Address of the MX.")],
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="Name of the objects to create.")] = "helm-test",
    namespace: Annotated[
        str,
        typer.Option("--namespace", metavar="NAME", help="Namespace for the objects.", show_default="that of the pod"),
    ] = "",
    within: Annotated[
        float, typer.Option("--within", metavar="SECONDS", min=1, help="Seconds that the test may take.")
    ] = 120.0,
    claim: Annotated[
        str,
        typer.Option(
            "--claim", metavar="NAME", help="PersistentVolumeClaim of the bundled Postgres.", show_default="none"
        ),
    ] = "",
) -> None:
    """Send a message through a whole installation: custom resources, MX, queue, mailbox."""
    import aiohttp

    from mailrail.cluster import helm_test
    from mailrail.kit.kubernetes import ApiError, connect, find_credentials
    from mailrail.kit.settings import BadSettings, host_port

    try:
        where = host_port(mx)
    except BadSettings as error:
        output.stop(f"--mx {error}", output.USAGE)

    async def run() -> float:
        async with connect(find_credentials(None)) as api:
            asked = helm_test.HelmTest(
                namespace=namespace or api.credentials.namespace,
                name=name,
                domain=domain,
                mx=where,
                queue=PLACE.target("queue"),
                within=within,
                claim=claim,
            )
            return await helm_test.run(asked, api, PLACE.identity(), output.say)

    try:
        seconds = asyncio.run(run())
    except BadSettings as error:
        output.stop(str(error), output.USAGE)
    except (helm_test.Failed, ApiError) as error:
        output.stop(str(error))
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        output.stop(f"the API server is unreachable: {error}", output.UNREACHABLE)
    output.say(f"the message arrived {seconds:.1f} s after it was accepted")
