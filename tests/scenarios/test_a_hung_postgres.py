"""Postgres hangs under load for longer than it takes to notice: new mail hears 451, what is under way waits, and each
message that was accepted arrives once."""

import smtplib

from testkit.conditions import wait_until
from testkit.guards import books
from testkit.next_hop import NextHop
from testkit.rail import Rail, basics, everything_through
from testkit.traffic import Fate, Sender

QUEUE = "mailrail.queue.v1.EnqueueService"
CONFIG = "mailrail.config.v1.ConfigService"
NOTICED = 15.0
"""Seconds within which a hang is noticed (ACC-09)."""


def reply_to_mail(rail: Rail) -> str:
    """What somebody new hears at MAIL."""
    with smtplib.SMTP(*rail.mx, timeout=30) as client:
        client.ehlo("new.example")
        code, text = client.mail("new@new.example")
    return f"{code} {text.decode()}"


def test_mail_survives_a_postgres_that_hangs_and_goes_on_ACC_09_LSE_08(hop: NextHop) -> None:
    with Rail([*basics(), *everything_through(hop.address, hop.port)]) as rail:
        sender = Sender(*rail.mx, messages=1_000_000, recipient="r{n}x@partner.test", sessions=8, pace=0.02)
        try:
            wait_until(lambda: len(hop.messages) > 100, 120, "mail flows")
            with rail.frozen("postgres"):
                wait_until(lambda: reply_to_mail(rail).startswith("451 4.3.0"), NOTICED, "new mail is put off")
                wait_until(lambda: not rail.serving("queue", QUEUE), NOTICED, "the queue says so")
                wait_until(lambda: not rail.serving("config", CONFIG), NOTICED, "config says so")
                before = sender.accepted
            wait_until(lambda: reply_to_mail(rail).startswith("250"), 60, "new mail is taken again")
            wait_until(lambda: sender.accepted > before + 100, 120, "mail flows again")
            sender.enough()
            traffic = sender.finish(180)
            rail.wait_until_empty(300)
        finally:
            sender.stop()
        found = books(traffic, hop.messages)
    print(found)
    assert traffic.given_up == 0
    assert len(traffic.ids(Fate.ACCEPTED)) == sender.messages
    found.check()
