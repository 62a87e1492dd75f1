"""`mailrail sink` with options that make no sense."""

import pytest
from typer.testing import CliRunner

from mailrail.cli.app import app


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--answer", "RCPT a@b.test maybe"), "--answer or --delay: 'maybe' is no reply to RCPT; write a code"),
        (("--delay", "DATA soon"), "'soon' is no delay"),
        (("--listen", "localhost:25"), "write an address and a port, 127.0.0.1:2525"),
        (("--tls", "yes"), "write starttls or implicit"),
        (("--certificate", "x.pem"), "add --tls starttls"),
        (("--tls", "starttls", "--certificate", "/nowhere/x.pem"), "name a PEM file that can be read"),
        (("--tls", "starttls", "--certificate", __file__), "are no PEM"),
        (("--account", "u:p"), "nobody could log in; add --tls starttls, or --plaintext-auth"),
        (("--account", "u"), "write LOGIN:PASSWORD"),
        (("--without", "CHUNKING"), "write one of PIPELINING, 8BITMIME"),
        (("--hostname", "a b"), "write it as mx.example.org"),
        (("--maildir", __file__), "is no folder; name a Maildir"),
    ],
    ids=lambda value: value[-2] + " " + value[-1][:10] if isinstance(value, tuple) else "",
)
def test_options_that_make_no_sense_end_with_what_to_write(options: tuple[str, ...], words: str) -> None:
    done = CliRunner().invoke(app, ["sink", *options])
    assert words in done.stderr
    assert done.exit_code == 2
