"""The collector and the traffic that goes to it agree on what was sent, refused and received."""

import smtplib

import pytest

from testkit.collector import Collector
from testkit.traffic import Fate, Sender


def test_every_message_of_many_sessions_is_counted_once() -> None:
    with Collector() as sink:
        traffic = Sender(sink.address, sink.port, messages=200, recipient="r{n}@sink.test").finish(60)
        sink.wait_for(200)
        assert len(traffic.ids(Fate.ACCEPTED)) == 200
        assert {receipt.header("X-Try") for receipt in sink.receipts} == traffic.ids(Fate.ACCEPTED)
        assert len({receipt.recipients for receipt in sink.receipts}) == 200


def test_what_was_refused_once_arrives_with_the_next_try() -> None:
    with Collector() as sink:
        sink.refuse("@sink.test", "451 4.3.0 later", times=3)
        traffic = Sender(sink.address, sink.port, messages=5, recipient="r{n}@sink.test", sessions=2).finish(60)
        assert len(traffic.ids(Fate.ACCEPTED)) == 5
        assert len(traffic.ids(Fate.REFUSED)) == 3
        assert sum(sink.attempts(f"r{number}@sink.test") for number in range(5)) == 8


def test_content_arrives_as_it_was_and_refused_recipients_are_left_out() -> None:
    with Collector() as sink:
        sink.refuse("nobody@sink.test", "550 5.1.1 no such user")
        body = "Subject: dots\r\n\r\n.one\r\n..two\r\nend\r\n"
        with smtplib.SMTP(sink.address, sink.port) as client:
            refused = client.sendmail("a@source.test", ["nobody@sink.test", "b@sink.test"], body, ["BODY=8BITMIME"])
            with pytest.raises(smtplib.SMTPRecipientsRefused):
                client.sendmail("a@source.test", ["nobody@sink.test"], body)
        assert refused == {"nobody@sink.test": (550, b"5.1.1 no such user")}
        receipt = sink.wait_for_recipient("b@sink.test")
        assert receipt.recipients == ("b@sink.test",)
        assert receipt.parameters == f"size={len(body)} BODY=8BITMIME"
        assert receipt.content.decode() == body
        assert receipt.message["Subject"] == "dots"
