"""`python -m mailrail.cli` is the `mailrail` command."""

from mailrail.cli import main

main()
