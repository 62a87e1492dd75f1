"""The programs that call sendmail deliver through ours (SML-01): their own binaries where Debian has them as tools."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from testkit.next_hop import NextHop
from testkit.peers import program
from testkit.sendmail import Sendmail


@pytest.fixture
def hop() -> Iterator[NextHop]:
    with NextHop(address="127.0.0.1") as hop:
        yield hop


@pytest.fixture
def sendmail(tmp_path: Path, hop: NextHop) -> Sendmail:
    return Sendmail(
        tmp_path,
        server="127.0.0.1",
        port=hop.port,
        tls="none",
        sender="ada@home.test",
        aliases={"root": "ops@home.test"},
    )


def run(sendmail: Sendmail, *command: str, text: bytes = b"") -> None:
    own = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull, "MAILRC": os.devnull, "TERM": "dumb"}
    own |= {f"GIT_{who}_{what}": "ada@home.test" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    done = subprocess.run(
        command,
        input=text,
        capture_output=True,
        env={**sendmail.environment, **own},
        cwd=sendmail.folder,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr).decode("utf-8", "replace")


CRON = (
    b"From: root (Cron Daemon)\nTo: root\nSubject: Cron <root@box> backup\nMIME-Version: 1.0\n"
    b"Content-Type: text/plain; charset=UTF-8\nContent-Transfer-Encoding: 8bit\nX-Cron-Env: <SHELL=/bin/sh>\n\n"
    b"done \xc3\xa4\n.\nreally\n"
)


def test_cron_writes_to_root_SML_01(sendmail: Sendmail, hop: NextHop) -> None:
    command = f"{sendmail.program()} -FCronDaemon -i -B8BITMIME -oem root"
    run(sendmail, "/bin/sh", "-c", command, text=CRON)
    (message,) = hop.messages
    assert message.recipients == ("ops@home.test",)
    assert message.header("From") == "Cron Daemon <ada@home.test>"
    assert message.content.endswith("done ä\r\n.\r\nreally\r\n".encode())
    assert "BODY=8BITMIME" in message.sender_parameters


@pytest.mark.parametrize(
    ("words", "header"),
    [("-t", b"To: root\n"), ("-oi -t", b"To: root\n"), ("ops@home.test", b""), ("-t -i", b"Cc: root\n")],
)
def test_logwatch_mdadm_smartd_and_upgrades_call_it_so_SML_01(
    sendmail: Sendmail, hop: NextHop, words: str, header: bytes
) -> None:
    run(sendmail, "/bin/sh", "-c", f"{sendmail.program()} {words}", text=header + b"Subject: report\n\nall is well\n")
    assert [message.recipients for message in hop.messages] == [("ops@home.test",)]


@pytest.mark.peer("php")
def test_php_mail_sends_SML_01(sendmail: Sendmail, hop: NextHop) -> None:
    code = (
        "exit(mail('Bob <bob@away.test>', 'Grüße', \"line one\\n.\\nline three\","
        " ['From' => 'web@home.test', 'Bcc' => 'eve@away.test'], '-fbounce@home.test') ? 0 : 1);"
    )
    run(sendmail, program("php"), "-n", "-d", f"sendmail_path={sendmail.program()} -t -i", "-r", code)
    (message,) = hop.messages
    assert message.sender == "bounce@home.test"
    assert set(message.recipients) == {"bob@away.test", "eve@away.test"}
    assert b"eve@away.test" not in message.content
    assert message.content.replace(b"\r\n", b"\n").rstrip().endswith(b"\n\nline one\n.\nline three")


@pytest.mark.peer("git-send-email")
def test_git_sends_a_patch_SML_01(sendmail: Sendmail, hop: NextHop) -> None:
    patch = sendmail.folder / "0001-change.patch"
    patch.write_text(
        "From 0123456789012345678901234567890123456789 Mon Sep 17 00:00:00 2001\nFrom: Ada <ada@home.test>\n"
        "Date: Tue, 14 Nov 2023 22:13:20 +0000\nSubject: [PATCH] change\n\nWhy.\n---\n a | 1 +\n\n"
        "diff --git a/a b/a\n--- a/a\n+++ b/a\n@@ -0,0 +1 @@\n+.\n-- \n2.39\n"
    )
    sent = ("--confirm=never", "--to=bob@away.test", "--cc=eve@away.test", "--envelope-sender=ada@home.test")
    run(
        sendmail,
        "git",
        "send-email",
        f"--smtp-server={sendmail.program()}",
        "--from=Ada <ada@home.test>",
        *sent,
        str(patch),
    )
    (message,) = hop.messages
    assert message.sender == "ada@home.test"
    assert set(message.recipients) >= {"bob@away.test", "eve@away.test"}
    assert message.header("Subject") == "[PATCH] change"
    assert b"\r\n+.\r\n-- \r\n" in message.content


@pytest.mark.peer("mutt")
def test_mutt_sends_SML_01(sendmail: Sendmail, hop: NextHop) -> None:
    settings = (
        f'set sendmail="{sendmail.program()} -oem -oi"',
        "set copy=no",
        'set from="ada@home.test"',
        "set use_envelope_from=yes",
        "set dsn_notify=failure",
        "set use_8bitmime=yes",
        "set sendmail_wait=0",
    )
    words = [word for each in settings for word in ("-e", each)]
    run(
        sendmail,
        program("mutt"),
        "-n",
        "-F",
        os.devnull,
        *words,
        "-s",
        "hello",
        "-b",
        "eve@away.test",
        "bob@away.test",
        text=b"Hi\n.\nBob\n",
    )
    (message,) = hop.messages
    assert message.sender == "ada@home.test"
    assert set(message.recipients) == {"bob@away.test", "eve@away.test"}
    assert ("NOTIFY=FAILURE",) in message.recipient_parameters
    assert b"eve@away.test" not in message.content
    assert message.content.endswith(b"Hi\r\n.\r\nBob\r\n")


@pytest.mark.peer("s-nail")
def test_s_nail_sends_SML_01(sendmail: Sendmail, hop: NextHop) -> None:
    run(
        sendmail,
        program("s-nail"),
        "-n",
        "-S",
        f"mta={sendmail.program()}",
        "-S",
        "sendwait",
        "-r",
        "ada@home.test",
        "-s",
        "hello",
        "bob@away.test",
        text=b"Hi Bob\n",
    )
    (message,) = hop.messages
    assert (message.sender, message.recipients) == ("ada@home.test", ("bob@away.test",))
    assert message.content.rstrip().endswith(b"Hi Bob")
