"""The root of the `mailrail` command: its name, its own options and its help, without any subcommand.

`app` hangs the commands below it. `overview` hangs only their names there, for `mailrail --help`: that starts without
grpc, the compiler and all else that commands need (CMD-04).
"""

from importlib.metadata import version as version_of
from pathlib import Path
from typing import Annotated

import typer


def new_root() -> typer.Typer:
    """The command without subcommands."""
    made = typer.Typer(
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        help="Mail transport for Kubernetes and for your desk.",
        epilog="Exit status: 0 done; 1 refused, not found or nothing matched; 2 wrong command; 3 a service does not "
        "answer.",
    )
    made.callback()(place)
    return made


def _tell_version(wanted: bool) -> None:
    if wanted:
        print(f"mailrail {version_of('mailrail')}")
        raise typer.Exit


def place(
    state: Annotated[
        Path | None,
        typer.Option(
            "--state",
            metavar="FOLDER",
            envvar="MAILRAIL_STATE",
            help="State folder of local mode.",
            show_default="the user's data folder",
        ),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            "--server",
            envvar="MAILRAIL_SERVER",
            metavar="HOST:PORT",
            help="HOST:PORT of a service, or one for each: queue=HOST:PORT,... Default: the local installation.",
            show_default=False,
        ),
    ] = None,
    tls_dir: Annotated[
        Path | None,
        typer.Option(
            "--tls-dir",
            metavar="FOLDER",
            envvar="MAILRAIL_TLS_DIR",
            help="Folder with tls.crt, tls.key and ca.crt, for --server.",
            show_default=False,
        ),
    ] = None,
    version: Annotated[
        bool,
        typer.Option("--version", "-V", is_eager=True, callback=_tell_version, help="Show the version."),
    ] = False,
) -> None:
    """Which installation to use; holds for every subcommand."""
    # Imported here, for it needs grpc: help has no use for it.
    from mailrail.cli.connection import PLACE

    PLACE.state, PLACE.server, PLACE.tls_dir = state, server, tls_dir
