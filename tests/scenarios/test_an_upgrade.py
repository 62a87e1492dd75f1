"""The newest release is replaced by this Mailrail, on the same state and under load: nothing is lost or doubled.

And the way back: what this one stored, the release delivers.
"""

import smtplib

import pytest

from mailrail.kit.postgres import CONNECTIONS

from testkit.conditions import wait_until
from testkit.guards import books, short_and_long
from testkit.next_hop import NextHop
from testkit.older import Older
from testkit.rail import POSTMASTER, Rail, basics, everything_through
from testkit.traffic import Sender, Traffic

OUTBOUND_IS_IN = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'mailrail outbound %'"


@short_and_long("messages", 400, 4000, short_minutes=10)
def test_local_mode_is_upgraded_under_load_and_every_message_is_counted(
    release: Older, hop: NextHop, messages: int
) -> None:
    hop.refuse("@later.test", "451 4.3.0 not now")
    with Rail([*basics(), *everything_through(hop.address, hop.port)], python=release.python) as rail:
        assert rail.versions() == {release.version}
        waiting = Sender(*rail.mx, messages=20, recipient="w{n}x@later.test", sessions=4)
        local = Sender(*rail.mx, messages=3, recipient=POSTMASTER, sessions=1)
        run = Sender(*rail.mx, messages=messages, recipient="r{n}x@partner.test", sessions=4, pace=0.02)
        try:
            waiting.finish(60)
            local.finish(60)
            wait_until(lambda: run.accepted > messages // 4, 120, "mail comes in")
            before = {one["message_id"] for one in rail.mailbox(POSTMASTER)}
            rail.upgrade()
            wait_until(lambda: release.version not in rail.versions(), 60, "every process is the newer one's")
            wait_until(lambda: rail.sql(OUTBOUND_IS_IN) == [(CONNECTIONS["outbound"],)], 60, "outbound has its schema")
            kept = {one["message_id"] for one in rail.mailbox(POSTMASTER)}
            assert run.accepted < messages, "the load ended before the upgrade"
            hop.accept("@later.test")
            run.finish(120 + messages / 20)
            rail.wait_until_empty(120)
        finally:
            for sender in (waiting, local, run):
                sender.stop()
        assert len(before) == 3
        assert kept == before
        found = books(Traffic([*waiting.traffic.tries, *run.traffic.tries]), hop.messages)
        print(f"{release.version} to this one: {found}")
        found.check()
        assert len(found.accepted) == waiting.messages + run.messages


@pytest.mark.timeout(300)
def test_what_is_queued_is_delivered_after_the_way_back_to_the_newest_release(release: Older, hop: NextHop) -> None:
    hop.refuse("@later.test", "451 4.3.0 not now")
    line = b".123456789abcdef" * 4 + b"\r\n"
    bodies = {
        f"r{size}@later.test": b"Subject: x\r\n\r\n" + line * (size // len(line))
        for size in (1_000, 60_000, 100_000, 700_000, 1_500_000)
    }
    with Rail([*basics(), *everything_through(hop.address, hop.port)]) as rail:
        with smtplib.SMTP(*rail.mx, timeout=60) as client:
            for recipient, body in bodies.items():
                client.sendmail("bob@elsewhere.test", [recipient], body)
        wait_until(lambda: rail.sql(OUTBOUND_IS_IN) == [(CONNECTIONS["outbound"],)], 60, "outbound has its schema")
        rail.upgrade(release.python)
        assert rail.versions() == {release.version}
        hop.accept("@later.test")  # each is tried again every second
        rail.wait_until_empty(120)
        for recipient, body in bodies.items():
            (message,) = hop.received(recipient)
            assert message.content.endswith(body), recipient
