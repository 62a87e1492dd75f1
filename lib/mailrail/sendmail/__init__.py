"""`mailrail sendmail`: what cron, PHP, git and mail programs call `sendmail`, on top of any submission server.

It reads a message, logs in at the configured server and hands the message over; what cannot be handed over now is kept
in a folder. It is a command that lives for a second, so it loads neither the services' libraries nor those of the
command line (SML-11a); an import contract in pyproject.toml keeps it so. docs/spec/sendmail.md has its rules.
"""

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None, *, called: str | None = None) -> int:
    """Run the command. `arguments`: default, those of the process; `called`: the name that it goes by (`mailq` ...).
    Returns the exit status, one of `status.ExitStatus`."""
    from mailrail.sendmail.command import run

    return run(list(sys.argv[1:] if arguments is None else arguments), called=sys.argv[0] if called is None else called)
