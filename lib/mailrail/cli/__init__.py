"""The `mailrail` command: local mode, services, migrations, and administration by gRPC.

Exit status, the same everywhere:

    0   done
    1   the answer is no: refused, not found, nothing matched, `config check` found errors, local mode could not run
    2   the command itself makes no sense: unknown option, bad address, bad settings of a service
    3   nobody answers: no local installation was found, or its services are out of reach
"""

import atexit
import gc
import sys


def main() -> None:
    """Entry point of the `mailrail` command."""
    atexit.register(gc.freeze)  # no last look for garbage: whoever typed the command waits for it
    if len(sys.argv) == 3 and sys.argv[1] == "serve" and not sys.argv[2].startswith("-"):
        # A service process carries neither typer nor rich: they cost memory in every one of them.
        from mailrail.cli.serve import serve

        sys.exit(serve(sys.argv[2]))
    from mailrail.cli.app import app

    app(prog_name="mailrail")
