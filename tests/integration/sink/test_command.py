"""`mailrail sink` as people run it: a process of its own, with swaks and the standard library as its clients."""

import contextlib
import json
import os
import re
import signal
import smtplib
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testkit.ca import Authority
from testkit.conditions import wait_until
from testkit.peers.swaks import ACCEPTED, AUTH_FAILED, swaks
from testkit.ports import loopback_address
from testkit.processes import Program, run

COMMAND = (sys.executable, "-m", "mailrail.cli", "sink")
BODY = "Subject: hello\r\n\r\n.dots\r\n"


class Running:
    """A sink that listens."""

    def __init__(self, program: Program) -> None:
        self.program = program
        said = program.wait_for_line(r"listening for (SMTP|LMTP) at ([0-9.]+):([0-9]+)")
        self.kind, self.address, self.port = said[1], said[2], int(said[3])

    @property
    def messages(self) -> list[dict[str, Any]]:
        """What it printed of messages."""
        return [json.loads(line) for line in self.program.lines if line.startswith("{")]

    def wait_for(self, count: int) -> list[dict[str, Any]]:
        """Wait for so many messages."""
        self.program.wait_until(lambda: len(self.messages) >= count, what=f"{count} messages")
        return self.messages

    def connect(self) -> smtplib.SMTP:
        """A connection after EHLO or LHLO."""
        made = (smtplib.LMTP if self.kind == "LMTP" else smtplib.SMTP)(self.address, self.port)
        made.ehlo("client.test")
        return made


@contextlib.contextmanager
def running(*options: object) -> Iterator[Running]:
    with Program([*COMMAND, "--listen", f"{loopback_address()}:0", *map(str, options)], name="sink") as program:
        yield Running(program)


def test_a_message_is_a_line_and_rules_decide_who_hears_what() -> None:
    rules = ("--answer", "RCPT *@busy.example 1x 451 4.7.1 later", "--answer", "END 250 2.0.0 queued as 7")
    with running(*rules, "--without", "DSN", "--without", "size") as sink, sink.connect() as smtp:
        assert not smtp.has_extn("dsn")
        assert not smtp.has_extn("size")
        refused = smtp.sendmail("a@b.test", ["c@d.test", "e@busy.example"], BODY)
        assert refused == {"e@busy.example": (451, b"4.7.1 later")}
        smtp.mail("a@b.test")
        assert smtp.rcpt("e@busy.example")[0] == 250
        assert smtp.data(BODY) == (250, b"2.0.0 queued as 7")
        first, second = sink.wait_for(2)
        assert (first["sender"], first["recipients"], first["content"]) == ("a@b.test", ["c@d.test"], BODY)
        assert (second["recipients"], second["hello"], second["tls"]) == (["e@busy.example"], "client.test", "")


@pytest.mark.peer("swaks")
def test_swaks_logs_in_over_tls_and_finds_its_message_in_the_maildir(tmp_path: Path) -> None:
    folder, saved = tmp_path / "mail", tmp_path / "sink.pem"
    options = ("--tls", "starttls", "--account", "u:p", "--maildir", folder, "--save-certificate", saved)
    with running(*options) as sink:
        where = (sink.address, sink.port, "--from", "a@b.test", "--to", "c@d.test", "--tls", "--auth-user", "u")
        assert swaks(*where, "--auth-password", "wrong").status == AUTH_FAILED
        assert swaks(*where, "--auth-password", "p").status == ACCEPTED
        (message,) = sink.wait_for(1)
        assert (message["login"], message["tls"]) == ("u", "TLSv1.3")
        (file,) = (folder / "new").iterdir()
        assert Path(message["file"]) == file
        assert "This is a test mailing" in file.read_text()
        # Who trusts the saved certificate reaches the sink by its address.
        with smtplib.SMTP(sink.address, sink.port) as smtp:
            assert smtp.starttls(context=ssl.create_default_context(cafile=saved))[0] == 220


def test_lmtp_with_given_files_speaks_tls_from_the_first_octet(tmp_path: Path) -> None:
    authority = Authority()
    issued = authority.issue("sink.test")
    (tmp_path / "sink.crt").write_bytes(issued.chain_pem)
    (tmp_path / "sink.key").write_bytes(issued.key_pem)
    files = ("--certificate", tmp_path / "sink.crt", "--key", tmp_path / "sink.key")
    full = ("--answer", "END full@d.test 452 4.2.2 mailbox full")
    with running("--lmtp", "--tls", "implicit", *files, *full) as sink:
        assert sink.kind == "LMTP"
        plain = socket.create_connection((sink.address, sink.port))
        with authority.client_context().wrap_socket(plain, server_hostname="sink.test") as secured:
            say = b"LHLO c\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<full@d.test>\r\nRCPT TO:<e@d.test>\r\nDATA\r\n"
            secured.sendall(say + b"x\r\n.\r\nQUIT\r\n")
            with secured.makefile("rb") as replies:
                codes = [line[:3].decode() for line in replies if line[3:4] == b" "]
        assert codes == ["220", "250", "250", "250", "250", "354", "452", "250", "221"]
        assert sink.wait_for(1)[0]["recipients"] == ["e@d.test"]


def test_it_ends_after_the_messages_that_were_asked_for_and_answers_the_last() -> None:
    with running("--exit-after", 2, "--delay", "END 0.2") as sink:
        with sink.connect() as smtp:
            for _ in range(2):
                assert smtp.sendmail("a@b.test", ["c@d.test"], BODY) == {}
        assert sink.program.wait() == 0
        assert len(sink.messages) == 2
        assert sink.program.lines[-1] == "mailrail: ended; messages taken: 2"


def test_what_exceeds_its_bounds_is_refused() -> None:
    with running("--max-messages", 1, "--max-size", 1000, "--max-connections", 1) as sink, sink.connect() as smtp:
        with pytest.raises(smtplib.SMTPConnectError) as busy:
            smtplib.SMTP(sink.address, sink.port)
        assert busy.value.smtp_code == 421
        with pytest.raises(smtplib.SMTPSenderRefused):
            smtp.sendmail("a@b.test", ["c@d.test"], "x" * 1001)
        smtp.sendmail("a@b.test", ["c@d.test"], BODY)
        with pytest.raises(smtplib.SMTPDataError) as full:
            smtp.sendmail("a@b.test", ["c@d.test"], BODY)
        assert full.value.smtp_code == 452
        assert len(sink.wait_for(1)) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="there a test sends no SIGINT to one process")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_status_0_also_beside_an_open_connection(number: signal.Signals) -> None:
    with running() as sink, sink.connect() as smtp:
        smtp.mail("a@b.test")
        os.kill(sink.program.pid, number)
        assert sink.program.wait() == 0
        assert sink.program.lines[-1] == "mailrail: ended; messages taken: 0"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells when a pipe is full")
def test_a_signal_ends_it_while_nobody_reads_what_it_prints() -> None:
    import fcntl
    import termios

    def is_full(pipe: Any) -> bool:
        waiting = int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)
        return waiting >= fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ)

    with piped() as (process, address, port), smtplib.SMTP(address, port) as smtp:
        smtp.ehlo("client.test")
        assert smtp.mail("a@b.test")[0] == 250
        assert smtp.rcpt("c@d.test")[0] == 250
        assert smtp.docmd("DATA")[0] == 354
        smtp.send((b"x" * 998 + b"\r\n") * 1100 + b".\r\n")  # more than any pipe holds by default
        wait_until(lambda: is_full(process.stdout), 60)
        process.terminate()
        assert process.wait(60) == 0
        assert smtp.getreply()[0] == 452
        smtp.close()


def test_it_ends_when_the_reader_of_its_lines_has_gone() -> None:
    with piped() as (process, address, port), smtplib.SMTP(address, port) as smtp:
        process.stdout.close()
        with pytest.raises(smtplib.SMTPDataError) as refused:
            smtp.sendmail("a@b.test", ["c@d.test"], BODY)
        assert refused.value.smtp_code == 452
        assert process.wait(60) == 0


@contextlib.contextmanager
def piped() -> Iterator[tuple[Any, str, int]]:
    """A sink whose lines nobody reads unless the test does, and where it listens."""
    command = [*COMMAND, "--listen", f"{loopback_address()}:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            said = re.search(r"at ([0-9.]+):([0-9]+)", process.stderr.readline())
            assert said is not None
            yield process, said[1], int(said[2])
        finally:
            process.kill()


def test_a_place_that_is_taken_is_told_with_what_to_do() -> None:
    with running() as sink:
        taken = f"{sink.address}:{sink.port}"
        said = run([*COMMAND, "--listen", taken], status=1)
    assert f"cannot listen on {taken}: " in said
    assert "name another place with --listen ADDRESS:PORT" in said
