"""Deliveries that end in the queue itself: the built-in mailbox, and what a `fail` transport refuses (design 4)."""

from collections.abc import Sequence

import pytest

from mailrail.core.revision import revision as rev
from mailrail.pb.queue.v1 import types_pb2
from mailrail_queue.delivery.local import local_result
from mailrail_queue.delivery.ports import Arrival, AttemptRecipient
from mailrail_queue.store.connection import Connection

from testkit.dispatching import Bench
from testkit.queue import RELAY, a_revision, rule_to


class Mailboxes:
    """Takes mail, or says why not."""

    def __init__(self, refusal: types_pb2.Reply | None = None) -> None:
        self._refusal = refusal
        self.heads: list[bytes] = []

    def refusal(self, recipient: AttemptRecipient, head: bytes = b"") -> types_pb2.Reply | None:
        self.heads.append(head)
        return self._refusal

    async def deliver(self, connection: Connection, arrivals: Sequence[Arrival]) -> None:
        """Nothing is written here."""


@pytest.mark.parametrize(
    ("code", "text", "outcome", "reply"),
    [
        (None, None, types_pb2.OUTCOME_FAILED, (554, "5.7.0", "delivery is refused by a route")),
        (550, "5.1.1 no such user", types_pb2.OUTCOME_FAILED, (550, "5.1.1", "no such user")),
        (450, "not today", types_pb2.OUTCOME_DEFERRED, (450, "4.7.0", "not today")),
        (550, "5.1.1", types_pb2.OUTCOME_FAILED, (550, "5.1.1", "5.1.1")),
        (550, "version 5.1.1 is refused", types_pb2.OUTCOME_FAILED, (550, "5.7.0", "version 5.1.1 is refused")),
    ],
)
def test_a_fail_transport_answers_with_its_code_and_text(
    code: int | None, text: str | None, outcome: int, reply: tuple[int, str, str]
) -> None:
    transport = rev.Transport(RELAY, rev.TransportKind.FAIL, code=code, text=text)
    delivery = Bench(a_revision(transports=[transport], rules=[rule_to(RELAY)])).lease("x.example")
    (found,) = local_result(delivery, Mailboxes()).recipients
    said = found.attempt.reply
    assert (found.id, found.attempt.outcome, found.attempt.dialled) == (delivery.recipients[0].id, outcome, False)
    assert (said.code, said.enhanced, *said.lines) == reply


@pytest.mark.parametrize(
    ("refusal", "outcome"),
    [
        (None, types_pb2.OUTCOME_DELIVERED),
        (types_pb2.Reply(code=451, enhanced="4.2.1", lines=["later"]), types_pb2.OUTCOME_DEFERRED),
    ],
)
def test_mail_for_a_mailbox_is_delivered_or_waits_until_one_takes_it(
    refusal: types_pb2.Reply | None, outcome: int
) -> None:
    delivery = Bench().lease("home.example")
    assert delivery.content is not None
    delivery.content = delivery.content._replace(prefix=b"Received: x\r\n", body=b"Subject: y\r\n")
    mailboxes = Mailboxes(refusal)
    (found,) = local_result(delivery, mailboxes).recipients
    assert mailboxes.heads == [b"Received: x\r\nSubject: y\r\n"]
    assert found.attempt.outcome == outcome
    assert found.attempt.reply.code == (250 if refusal is None else 451)
