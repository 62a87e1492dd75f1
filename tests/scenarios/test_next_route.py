"""Mail that a next hop cannot take goes by the next rule of its routes, in the same attempt's time (SOUT-18c).

Content of 8 bits with a DKIM-Signature of somebody else is never re-encoded (SOUT-18b), so a hop without 8BITMIME
cannot take it; nor can a hop without SMTPUTF8 take what has UTF-8 in an address or the header. Each rule leads
to a hop of its own; what a hop saw says which rule was taken.
"""

import contextlib
import smtplib
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from mailrail.sink import SinkMessage

from testkit.conditions import wait_until
from testkit.next_hop import NextHop
from testkit.rail import POSTMASTER, Document, Rail, basics, route, rule, transport

pytestmark = pytest.mark.timeout(300)

TO = "friend@partner.test"
SENDER = "bob@elsewhere.test"
SIGNED = (
    "DKIM-Signature: v=1; d=elsewhere.test; s=x; b=abc\r\nFrom: bob@elsewhere.test\r\nSubject: signed\r\n"
    "MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\nGrüße\r\n"
).encode()
LACKING = "whose next hop lacks 8BITMIME, which this message needs"


def seven_bit(name: str) -> NextHop:
    """A hop without 8BITMIME."""
    return NextHop(hostname=f"{name}.test", eight_bit=False, smtputf8=False)


@contextlib.contextmanager
def running(hops: dict[str, NextHop], *rules: Document) -> Iterator[Rail]:
    """A rail with a transport for each hop, and these rules for all mail (default: one a hop, in order)."""
    with contextlib.ExitStack() as stack:
        for hop in hops.values():
            stack.enter_context(hop)
        transports = [transport(name, smtp={"host": hop.address, "port": hop.port}) for name, hop in hops.items()]
        everything = rules or tuple(rule(name, name) for name in hops)
        documents = [*basics(), *transports, route("all", ("MailGateway", "local"), *everything)]
        yield stack.enter_context(Rail(documents))


def send(rail: Rail, content: bytes = SIGNED) -> None:
    with smtplib.SMTP(*rail.mx, timeout=30) as client:
        client.sendmail(SENDER, [TO], content, mail_options=["BODY=8BITMIME"])


def timeline(rail: Rail, to: str = TO) -> list[dict[str, Any]]:
    """The attempts of the only message, oldest first."""
    (recipient,) = wait_until(lambda: rail.cli_json("queue", "history", "--to", to), 60, "the recipient is final")
    return list(rail.cli_json("queue", "show", str(recipient["id"]))["recipients"][0]["attempts"])


def test_signed_mail_goes_by_the_next_rule_and_the_timeline_says_why_SOUT_18c() -> None:
    hops = {"first": seven_bit("first"), "second": NextHop(hostname="second.test")}
    with running(hops) as rail:
        send(rail)
        arrived: SinkMessage = hops["second"].wait_for_recipient(TO)
        assert arrived.content.endswith(SIGNED), "octet for octet, below our Received"
        attempts = timeline(rail)
        assert [(a["number"], a["outcome"], a["transport"]["name"], a["rule"]) for a in attempts] == [
            (1, "deferred", "first", "first"),
            (2, "delivered", "second", "second"),
        ]
        assert attempts[0]["status"] == "4.6.3"
        (said,) = attempts[0]["reply"]["lines"]
        assert "does not offer 8BITMIME" in said
        assert said.endswith(", so the next rule is tried: MailRoute default/all rule second")
        assert attempts[1]["reason"].endswith(f"tried before: MailTransport default/first, {LACKING}")
        assert not rail.mailbox(POSTMASTER)
        assert not hops["first"].messages


@pytest.mark.parametrize(
    ("to", "subject", "status"), [("jürgen@partner.test", "plain", "4.6.7"), (TO, "Grüße", "4.6.9")]
)
def test_mail_that_needs_SMTPUTF8_goes_by_the_next_rule_that_has_it_SOUT_18c(
    to: str, subject: str, status: str
) -> None:
    content = f"From: bob@elsewhere.test\r\nSubject: {subject}\r\n\r\nHello\r\n".encode()
    hops = {"first": seven_bit("first"), "second": seven_bit("second"), "third": NextHop(hostname="third.test")}
    with running(hops) as rail:
        with smtplib.SMTP(*rail.mx, timeout=30) as client:
            client.sendmail(SENDER, [to], content, mail_options=["SMTPUTF8", "BODY=8BITMIME"])
        arrived: SinkMessage = hops["third"].wait_for_recipient(to)
        assert "SMTPUTF8" in arrived.sender_parameters
        assert arrived.content.endswith(content), "octet for octet, below our Received"
        attempts = timeline(rail, to)
        assert [(a["outcome"], a["transport"]["name"]) for a in attempts] == [
            ("deferred", "first"),
            ("deferred", "second"),
            ("delivered", "third"),
        ]
        assert [a["status"] for a in attempts[:2]] == [status, status]
        assert "MailTransport default/first, whose next hop lacks SMTPUTF8" in attempts[2]["reason"]
        assert not rail.mailbox(POSTMASTER)


def test_with_one_route_signed_mail_fails_as_before_SOUT_18c() -> None:
    hops = {"only": seven_bit("only")}
    with running(hops) as rail:
        send(rail)
        (attempt,) = timeline(rail)
        assert (attempt["outcome"], attempt["status"]) == ("failed", "5.6.3")
        assert hops["only"].connections == 1


def test_when_no_rule_takes_it_each_hop_was_asked_once_and_then_it_is_final_SOUT_18c() -> None:
    hops = {name: seven_bit(name) for name in ("first", "second", "third")}
    rules = (rule("a", "first"), rule("b", "second"), rule("again", "first"), rule("c", "third"))
    with running(hops, *rules) as rail:
        send(rail)
        attempts = timeline(rail)
        assert [(a["rule"], a["outcome"], a["status"]) for a in attempts] == [
            ("a", "deferred", "4.6.3"),
            ("b", "deferred", "4.6.3"),
            ("c", "failed", "5.6.3"),
        ]
        assert [hop.connections for hop in hops.values()] == [1, 1, 1]


def test_later_attempts_pass_over_what_cannot_take_it_also_after_a_restart_SOUT_18c() -> None:
    hops = {"first": seven_bit("first"), "second": NextHop(hostname="second.test")}
    hops["second"].refuse(TO, "451 4.3.0 not today")
    with running(hops) as rail:
        send(rail)
        waiting = rail.wait_for_recipient(TO, lambda one: one["attempts"] >= 3 and one["site"].endswith("second"))
        explained = rail.cli("explain", waiting["id"])
        assert f"was tried before: MailTransport default/first, {LACKING}" in " ".join(explained.split())
        for service in ("queue", "outbound"):
            before = rail.kill(service)
            rail.wait_until_back(service, before)
        hops["second"].accept(TO)
        hops["second"].wait_for_recipient(TO)
        assert [a["transport"]["name"] for a in timeline(rail)].count("first") == 1
        assert hops["first"].connections == 1


def test_a_queue_killed_between_the_answer_and_the_next_try_loses_and_doubles_nothing_SOUT_18c() -> None:
    hops = {"first": seven_bit("first"), "second": NextHop(hostname="second.test")}
    with running(hops) as rail, psycopg.connect(rail.superuser_url()) as lock:
        # The result cannot be written while this is held: the queue knows the answer, and the database does not.
        lock.execute("LOCK TABLE queue.attempt IN EXCLUSIVE MODE")
        send(rail)
        wait_until(
            lambda: rail.sql("SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 'queue.attempt'::regclass"),
            60,
            "the queue writes the result",
        )
        before = rail.kill("queue")
        rail.wait_until_back("queue", before)
        lock.rollback()
        hops["second"].wait_for_recipient(TO)
        rail.wait_until_empty()
        attempts = timeline(rail)
        assert [a["transport"]["name"] for a in attempts if "transport" in a][-1] == "second"
        assert [a["outcome"] for a in attempts][-1] == "delivered"
        assert len(hops["second"]) == 1
        assert not hops["first"].messages
