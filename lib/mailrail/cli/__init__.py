"""The `mailrail` command: local mode, services, migrations, and administration by gRPC.

Exit status, the same everywhere:

    0   done
    1   the answer is no: refused, not found, nothing matched, a check found mistakes, local mode could not run
    2   the command itself is wrong: unknown option, bad address, bad settings of a service
    3   nobody answers: no local installation was found, its services or the DNS are out of reach

`mailrail sendmail` has those of sysexits.h instead, as its callers expect.
"""

import atexit
import gc
import os
import sys


def main() -> None:
    """Entry point of the `mailrail` command."""
    atexit.register(gc.freeze)  # no last look for garbage: whoever typed the command waits for it
    if sys.argv[1:2] == ["sendmail"]:
        # Its flags are those of sendmail, so nobody else reads them; and it starts without typer and rich (SML-11).
        from mailrail.sendmail import main as sendmail

        sys.exit(sendmail(sys.argv[2:], called="sendmail"))
    if sys.platform != "win32" and os.getegid() != os.getgid():
        # reference H16: rights that sendmail was given are for nothing else (SML-10).
        print("mailrail: only `sendmail` may be installed setgid: run this command without", file=sys.stderr)
        sys.exit(2)
    if len(sys.argv) == 3 and sys.argv[1] == "serve" and not sys.argv[2].startswith("-"):
        # A service process carries neither typer nor rich: they cost memory in every one of them.
        from mailrail.cli.serve import serve

        sys.exit(serve(sys.argv[2]))
    _speak_any_locale()
    if sys.argv[1:] in ([], ["-h"], ["--help"]):
        from mailrail.cli.overview import overview  # CMD-04: whoever looks for a command waits for none of them

        overview()(prog_name="mailrail")
    from mailrail.cli.app import app

    app(prog_name="mailrail")


def _speak_any_locale() -> None:
    """Let nothing fail for its characters.

    An arrow or a name in a table may go to a terminal, or on Windows a pipe, that takes ASCII or a code page; and an
    argument may be UTF-8 where the locale says that there is none.
    """
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
    try:
        # Octets that the locale did not know came as surrogates (PEP 383).
        sys.argv[1:] = [a.encode("utf-8", "surrogateescape").decode() for a in sys.argv[1:]]
    except UnicodeError:
        print("mailrail: an argument is not UTF-8: type it again, or set a UTF-8 locale", file=sys.stderr)
        sys.exit(2)
