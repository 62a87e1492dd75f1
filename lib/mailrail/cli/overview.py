"""`mailrail --help`: the names of all commands, from a list that scripts/generate_cli.py writes (CMD-04)."""

import typer

from mailrail.cli.commands import COMMANDS
from mailrail.cli.root import new_root


def overview() -> typer.Typer:
    """The command, with subcommands that have a name and a sentence, and do nothing."""
    made = new_root()
    for name, sentence in COMMANDS.items():
        made.command(name, help=sentence)(_nothing)
    return made


def _nothing() -> None:
    """It is only named."""
