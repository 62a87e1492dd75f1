"""`mailrail sink`: an SMTP or LMTP server to try things with; it takes mail, shows it, and gives none away.

The server is `mailrail.sink`, the tests' own next hop. Here are its options, its certificate and its end.
"""

import asyncio
import datetime
import logging
import signal
import ssl
import sys
import tempfile
from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from mailrail.cli import output
from mailrail.core.smtp.address import AddressError, domain_to_ascii

if TYPE_CHECKING:
    from mailrail.sink import Sink, SinkMessage
    from mailrail.sink.keeping import Maildir, WholeLines

_EXTENSIONS: Final = {
    "PIPELINING": "pipelining",
    "8BITMIME": "eight_bit",
    "SMTPUTF8": "smtputf8",
    "DSN": "dsn",
    "SIZE": "size",
}
"""What can be left out, and the option of the sink that does so."""
_TLS: Final = ("starttls", "implicit")
_RECIPIENTS: Final = 1000
_GRACE: Final = 1.0
"""Seconds that clients have to end by themselves once the sink ends."""


def sink(
    listen: Annotated[
        str, typer.Option("--listen", metavar="ADDRESS:PORT", help="Where to listen. Port 0: one that is free.")
    ] = "127.0.0.1:2525",
    lmtp: Annotated[bool, typer.Option("--lmtp", help="Speak LMTP instead of SMTP.")] = False,
    hostname: Annotated[str, typer.Option("--hostname", metavar="NAME", help="Its name.")] = "sink.test",
    tls: Annotated[
        str,
        typer.Option(
            "--tls",
            metavar="starttls|implicit",
            help="Offer STARTTLS, or speak TLS from the first octet.",
            show_default=False,
        ),
    ] = "",
    certificate: Annotated[
        Path | None,
        typer.Option(
            "--certificate",
            metavar="FILE",
            help="PEM certificate, with its chain. Default: one that is made on the spot.",
            show_default=False,
        ),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option("--key", metavar="FILE", help="Its PEM key, if it is not in the same file.", show_default=False),
    ] = None,
    save_certificate: Annotated[
        Path | None,
        typer.Option(
            "--save-certificate",
            metavar="FILE",
            help="Write the certificate that was made here, for clients that verify it.",
            show_default=False,
        ),
    ] = None,
    account: Annotated[
        list[str] | None,
        typer.Option("--account", metavar="LOGIN:PASSWORD", help="Demand a login (AUTH PLAIN, LOGIN); repeatable."),
    ] = None,
    plaintext_auth: Annotated[bool, typer.Option("--plaintext-auth", help="Offer AUTH without TLS, too.")] = False,
    answer: Annotated[
        list[str] | None,
        typer.Option(
            "--answer",
            metavar="RULE",
            help="Answer differently: 'RCPT *@busy.example 2x 451 4.7.1 later'. STEP [ADDRESS] [Nx] REPLY, or close "
            "in place of a reply; repeatable.",
        ),
    ] = None,
    delay: Annotated[
        list[str] | None,
        typer.Option(
            "--delay", metavar="'STEP SECONDS'", help="Answer a step late: 'END 2.5' (the message is taken first)."
        ),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option("--without", metavar="NAME", help=f"Do not offer this: {', '.join(_EXTENSIONS)}; repeatable."),
    ] = None,
    maildir: Annotated[
        Path | None,
        typer.Option(
            "--maildir",
            metavar="FOLDER",
            help="Write messages into this Maildir; the lines of JSON say where in place of the content.",
            show_default=False,
        ),
    ] = None,
    exit_after: Annotated[
        int, typer.Option("--exit-after", metavar="N", min=0, help="End after so many messages. 0: do not.")
    ] = 0,
    max_messages: Annotated[
        int, typer.Option("--max-messages", metavar="N", min=1, help="Take so many messages, refuse more with 452.")
    ] = 10_000,
    max_size: Annotated[
        int, typer.Option("--max-size", metavar="OCTETS", min=1, max=10**9, help="Octets of the largest message.")
    ] = 10_000_000,
    max_connections: Annotated[
        int, typer.Option("--max-connections", metavar="N", min=1, help="Connections at a time; more are sent away.")
    ] = 50,
) -> None:
    """Take mail by SMTP or LMTP and print it, one line of JSON a message, until Ctrl-C. To try things with.

    Where it listens is told on standard error. A step is GREETING, EHLO, STARTTLS, AUTH, MAIL, RCPT, DATA, or END, the
    reply to the final dot. ADDRESS is an address, *@DOMAIN, or <> for the null sender.
    """
    # Imported here: every other command starts without aiosmtpd.
    from mailrail.sink import Answers, Options, Sink
    from mailrail.sink.keeping import Maildir, NoMaildir, WholeLines
    from mailrail.sink.rules import BadRule, answers_of
    from mailrail.sink.rules import delay as delay_of
    from mailrail.sink.rules import rule as rule_of

    if sys.stdout is None:
        output.stop("standard output is closed, and messages go there; send it to a file or to /dev/null", output.USAGE)
    host, port = _address(listen)
    name = _name(hostname)
    context = _context(tls, certificate, key, save_certificate, [name, "localhost", host])
    accounts = _accounts(account or [])
    if accounts and context is None and not plaintext_auth:
        output.stop("--account: nobody could log in; add --tls starttls, or --plaintext-auth", output.USAGE)
    options = Options(
        hostname=name,
        lmtp=lmtp,
        size_limit=max_size,
        recipient_limit=_RECIPIENTS,
        connection_limit=max_connections,
        tls=context,
        implicit_tls=tls == "implicit",
        accounts=accounts,
        plaintext_auth=plaintext_auth,
        **_left_out(without or []),
    )
    answers = Answers(counting=False)
    try:
        answers_of(map(rule_of, answer or []), map(delay_of, delay or []), answers)
    except BadRule as error:
        output.stop(f"--answer or --delay: {error}", output.USAGE)
    try:
        folder = Maildir(maildir) if maildir is not None else None
    except NoMaildir as error:
        output.stop(f"--maildir: {error}", output.USAGE)
    running = _Running(WholeLines(sys.stdout.fileno()), folder, max_messages, exit_after)
    _hush()
    try:
        asyncio.run(running.serve(Sink(options, host=host, port=port, answers=answers, receive=running.receive)))
    except KeyboardInterrupt:
        output.stop("interrupted")


class _Running:
    """A sink from its start to its end."""

    def __init__(self, lines: "WholeLines", maildir: "Maildir | None", limit: int, exit_after: int) -> None:
        from mailrail.sink.keeping import Keeper

        def now() -> datetime.datetime:
            return datetime.datetime.now(datetime.UTC)

        self._lines = lines
        self._keeper = Keeper(self._write, now, output.note, maildir=maildir, limit=limit)
        self._exit_after = exit_after
        self._stop = asyncio.Event()

    def receive(self, message: "SinkMessage") -> None:
        """Keep a message. Raises CannotKeep."""
        from mailrail.sink import CannotKeep

        if self._stop.is_set():
            raise CannotKeep("421 4.3.2 the sink ends")
        self._keeper.receive(message)
        if self._keeper.taken == self._exit_after:
            self._stop.set()

    def _write(self, line: bytes) -> None:
        try:
            self._lines.write(line)
        except BrokenPipeError:
            self._stop.set()  # whoever read the lines has gone
            raise

    async def serve(self, server: "Sink") -> None:
        """Listen until a signal comes, or enough messages did. Ends the command if it cannot listen."""
        self._heed_signals()
        try:
            await server.start()
        except OSError as error:
            output.stop(
                f"cannot listen on {_shown(server.host, server.port)}: {error.strerror or error}; name another place "
                "with --listen ADDRESS:PORT"
            )
        options = server.options
        kind = "LMTP" if options.lmtp else "SMTP"
        secured = "" if options.tls is None else ", TLS from the first octet" if options.implicit_tls else ", STARTTLS"
        output.note(f"listening for {kind} at {_shown(server.host, server.port)}{secured}")
        await self._stop.wait()
        # The reply to the last message may still be under way, and late as was ordered.
        late = max(server.answers.delays.values(), default=0.0) if self._exit_after else 0.0
        await server.close(within=_GRACE + late)
        output.note(f"ended; messages taken: {self._keeper.taken}")

    def _heed_signals(self) -> None:
        """End on Ctrl-C, on SIGTERM, on Ctrl-Break; a second one ends at once."""
        loop = asyncio.get_running_loop()

        def on_signal(number: int, frame: Any) -> None:
            if self._stop.is_set():
                raise KeyboardInterrupt
            self._stop.set()
            loop.call_soon_threadsafe(lambda: None)  # so that the loop looks
            if self._lines.writing:  # to somebody who does not read
                raise InterruptedError

        # Not by the loop, which hears nothing during a write; and Windows knows no other way.
        for number in (getattr(signal, x) for x in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, x)):
            signal.signal(number, on_signal)


def _hush() -> None:
    """aiosmtpd logs what clients do wrong; whoever tries things sees the replies."""
    log = logging.getLogger("mail.log")
    log.addHandler(logging.NullHandler())
    log.propagate = False


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _address(listen: str) -> tuple[str, int]:
    from mailrail.kit.settings import BadSettings, host_port

    try:
        host, port = host_port(listen.strip())
        return str(ip_address(host)), port
    except (BadSettings, ValueError):
        output.stop(
            f"--listen {listen!r}: write an address and a port, 127.0.0.1:2525 or [::1]:2525; 0.0.0.0:2525 is all "
            "addresses of this machine",
            output.USAGE,
        )


def _name(hostname: str) -> str:
    try:
        return domain_to_ascii(hostname.strip(), in_address=True)
    except AddressError as error:
        output.stop(f"--hostname {hostname!r}: {error}; write it as mx.example.org", output.USAGE)


def _accounts(texts: Iterable[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        login, colon, password = text.partition(":")
        if not (login and colon and password):
            output.stop(f"--account for {login!r}: write LOGIN:PASSWORD", output.USAGE)
        found[login] = password
    return found


def _left_out(names: Iterable[str]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name in names:
        option = _EXTENSIONS.get(name.strip().upper())
        if option is None:
            output.stop(f"--without {name!r}: write one of {', '.join(_EXTENSIONS)}", output.USAGE)
        options[option] = False
    return options


def _context(
    tls: str, certificate: Path | None, key: Path | None, save: Path | None, names: Sequence[str]
) -> ssl.SSLContext | None:
    """The server's side of TLS. Ends the command where the options or the files make no sense."""
    if tls not in ("", *_TLS):
        output.stop(f"--tls {tls!r}: write starttls or implicit", output.USAGE)
    if not tls:
        if certificate or key or save:
            output.stop("a certificate is for TLS: add --tls starttls or --tls implicit", output.USAGE)
        return None
    if key and not certificate:
        output.stop("--key: name its certificate with --certificate FILE", output.USAGE)
    if certificate and save:
        output.stop("--save-certificate: none is made with --certificate; leave one of the two out", output.USAGE)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if certificate is not None:
        _load(context, certificate, key)
        return context
    from mailrail.kit.certificates import self_signed

    made = self_signed(list(dict.fromkeys(names)), datetime.datetime.now(datetime.UTC))
    with tempfile.TemporaryDirectory(prefix="mailrail-sink-") as folder:  # for its owner alone
        crt, own_key = Path(folder, "tls.crt"), Path(folder, "tls.key")
        crt.write_bytes(made.certificate_pem)
        own_key.write_bytes(made.key_pem)
        context.load_cert_chain(crt, own_key)
    if save is not None:
        try:
            save.write_bytes(made.certificate_pem)
        except OSError as error:
            output.stop(f"--save-certificate {save}: {error.strerror}; name another file", output.USAGE)
    return context


def _load(context: ssl.SSLContext, certificate: Path, key: Path | None) -> None:
    for file in (certificate, key or certificate):
        try:
            file.open("rb").close()
        except OSError as error:
            output.stop(f"{file}: {error.strerror}; name a PEM file that can be read", output.USAGE)
    try:
        context.load_cert_chain(certificate, key, password=lambda: "")
    except (ssl.SSLError, ValueError):
        output.stop(
            f"{certificate} and its key do not fit or are no PEM; name a certificate with --certificate and its key, "
            "without a passphrase, with --key",
            output.USAGE,
        )
