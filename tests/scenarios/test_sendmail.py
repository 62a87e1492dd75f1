"""What cron writes on this machine arrives in a mailbox of Mailrail, or waits until Mailrail is there."""

from pathlib import Path

from testkit.conditions import wait_until
from testkit.rail import LOGIN, PASSWORD, Rail, basics
from testkit.sendmail import Sendmail

CRON = b"From: root (Cron Daemon)\nTo: root\nSubject: Cron <root@box> backup\n\nall done\n"
FLAGS = ("-FCronDaemon", "-i", "-B8BITMIME", "-oem", "root")


def installed(folder: Path, rail: Rail, **more: object) -> Sendmail:
    """As docs/how-to/sendmail.md configures it for local mode."""
    return Sendmail(
        folder,
        server="localhost",
        ca_file=str(rail.state / "pki" / "smtp" / "tls.crt"),
        login=LOGIN,
        password=PASSWORD,
        aliases={"root": LOGIN},
        **more,
    )


def test_mail_of_cron_arrives_in_a_mailbox_SML_01_SML_04(tmp_path: Path) -> None:
    with Rail(basics()) as rail:
        ways: tuple[dict[str, object], ...] = (
            {"port": rail.submission[1], "tls": "starttls"},
            {"port": rail.submissions[1]},
            {"port": rail.submissions[1], "tls_requirement": "required"},
        )
        for way in ways:
            before = len(rail.mailbox(LOGIN))
            done = installed(tmp_path, rail, **way).call("-v", *FLAGS, message=CRON)
            assert done.status == 0, done.err
            assert "AUTH SCRAM-SHA-256" in done.err, done.err
            assert PASSWORD not in done.err
            assert ("REQUIRETLS" in done.err.partition("MAIL FROM")[2].partition("\n")[0]) is ("tls_requirement" in way)
            wait_until(lambda known=before: len(rail.mailbox(LOGIN)) == known + 1, 60, rail.program.tail)  # type: ignore[misc]
        message = rail.read(rail.mailbox(LOGIN)[0]).decode()
    assert f"Cron Daemon <{LOGIN}>" in message
    assert message.rstrip().endswith("all done")


def test_mail_waits_while_mailrail_is_down_and_arrives_once_SML_06(tmp_path: Path) -> None:
    with Rail(basics()) as rail:
        sendmail = installed(tmp_path, rail, port=rail.submissions[1])
        sendmail.beat()
        rail.program.stop()
        assert sendmail.call(*FLAGS, message=CRON).status == 0
        assert sendmail.call("-q").status == 75
        assert len(sendmail.kept("queue")) == 1
        rail.start_again()
        assert sendmail.call("-q").status == 0
        wait_until(lambda: len(rail.mailbox(LOGIN)) == 1, 60, rail.program.tail)
        assert sendmail.call("-q").status == 0
        assert len(rail.mailbox(LOGIN)) == 1
    assert sendmail.kept("queue") == sendmail.kept("failed") == []
