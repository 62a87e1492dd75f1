"""From a commit to its rows and first deliveries, without a database (SHD-02, LSE-06; design 4, Deliver)."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from mailrail.core.delivery.hold import HoldRule
from mailrail.core.route.site import SHARDS
from mailrail.pb.queue.v1 import types_pb2
from mailrail_queue.accept.pending import CommitOutcome, PendingCommit, PreparedCommit
from mailrail_queue.accept.prepare import Conditions, expanded_notices, prepare, release_time, without
from mailrail_queue.delivery.sites import SiteState
from mailrail_queue.routing.router import RoutePlan, Router
from mailrail_queue.store.fencing import Ownership
from mailrail_queue.store.hold_rules import HoldRules

from testkit.queue import RELAY, a_revision, commit_of, relay, rule_to

ALL = dict.fromkeys(range(SHARDS), 1)


class Counted:
    """Ids from 1, tokens from 1001."""

    def __init__(self) -> None:
        self.recipients, self.tokens = 0, 1000

    def recipient(self) -> int:
        self.recipients += 1
        return self.recipients

    def token(self) -> int:
        self.tokens += 1
        return self.tokens


class Room:
    """Sites that take fresh mail, but those whose key contains a word of `full`."""

    def __init__(self, *full: str) -> None:
        self.full = full
        self.asked: list[int] = []

    def site(self, plan: RoutePlan) -> SiteState:
        return plan.key  # type: ignore[return-value]

    def accepts_fresh(self, site: SiteState, size: int, now: float) -> bool:
        self.asked.append(size)
        return not any(word in str(site) for word in self.full)


class Nobody:
    """A caller that is never answered here."""

    def answer(self, message_id: bytes, outcome: CommitOutcome) -> None:
        raise AssertionError

    def leave_unanswered(self, message_id: bytes) -> None:
        raise AssertionError


UNDER = Conditions(Router(1, a_revision()), Ownership("me", ALL), HoldRules(), 1000.0, 5.0)


def pending(*to: str | types_pb2.EnvelopeRecipient, chunks: int = 0, **how: object) -> PendingCommit:
    commit = commit_of(*to, **how)  # type: ignore[arg-type]
    return PendingCommit(b"m" * 16, commit, commit.prefix, commit.body, chunks, Nobody(), 0, 0.0, math.inf)


def prepared(
    *to: str | types_pb2.EnvelopeRecipient,
    under: Conditions = UNDER,
    room: Room | None = None,
    chunks: int = 0,
    **how: object,
) -> PreparedCommit:
    return prepare(pending(*to, chunks=chunks, **how), under, Counted(), room or Room())


def delivered(found: PreparedCommit) -> list[list[str]]:
    return [[recipient.address for recipient in delivery.recipients] for delivery in found.deliveries]


def test_a_recipient_whose_site_has_room_is_born_leased_SHD_02() -> None:
    found = prepared("bob@away.example")
    (row,) = found.recipients
    (delivery,) = found.deliveries
    assert row.token == delivery.token == 1001
    assert delivered(found) == [["bob@away.example"]]
    assert delivery.content is not None
    assert delivery.content.recipients == [{"id": row.id, "address": "bob@away.example"}]


@pytest.mark.parametrize(
    ("why", "under", "room", "chunks"),
    [
        ("its site has no room", UNDER, Room("away"), 0),
        ("its shard is another's", replace(UNDER, ownership=Ownership("me", {})), Room(), 0),
        ("its body is fetched", UNDER, Room(), 3),
        ("a rule holds it", replace(UNDER, holds=HoldRules(1, (HoldRule(7, comment="look"),))), Room(), 0),
    ],
)
def test_what_cannot_leave_soon_is_stored_without_a_lease_LSE_06(
    why: str, under: Conditions, room: Room, chunks: int
) -> None:
    found = prepared("bob@away.example", under=under, room=room, chunks=chunks)
    assert [row.token for row in found.recipients] == [0]
    assert found.deliveries == []


def test_mail_to_a_report_address_goes_into_its_mailbox_however_the_domain_delivers() -> None:
    reports = types_pb2.EnvelopeRecipient(address="tls@away.example", rcpt_to="tls@away.example", reports=True)
    found = prepared(reports, "bob@away.example")
    assert [row.site == "mailbox" for row in found.recipients] == [True, False]
    stored = types_pb2.EnvelopeRecipient.FromString(found.recipients[0].envelope_recipient)
    assert stored.reports  # it is asked again at each attempt


def test_a_hold_rule_gives_its_reason_to_those_that_it_matches_alone() -> None:
    rules = HoldRules(3, (HoldRule(7, recipient_domain="held.example", comment="look"),))
    found = prepared("a@held.example", "b@away.example", under=replace(UNDER, holds=rules))
    assert [row.hold_reason for row in found.recipients] == ["hold rule 7: look", None]
    assert delivered(found) == [["b@away.example"]]


def test_recipients_of_one_domain_share_a_transaction_and_those_of_two_do_not() -> None:
    found = prepared("a@one.example", "b@two.example", "c@one.example")
    assert delivered(found) == [["a@one.example", "c@one.example"], ["b@two.example"]]
    assert len({row.token for row in found.recipients}) == 2


def test_a_transaction_has_as_many_recipients_as_its_transport_takes() -> None:
    transport = relay(recipients_per_message=2)
    router = Router(1, a_revision(transports=(transport,), rules=(rule_to(RELAY),)))
    found = prepared(*(f"u{n}@away.example" for n in range(5)), under=replace(UNDER, router=router))
    assert [len(part) for part in delivered(found)] == [2, 2, 1]


def test_no_transaction_has_more_than_a_hundred_recipients() -> None:
    found = prepared(*(f"u{n}@away.example" for n in range(201)))
    assert [len(part) for part in delivered(found)] == [100, 100, 1]


def test_mail_for_later_waits_and_HOLDFOR_counts_from_when_ingress_took_it() -> None:
    envelope = types_pb2.Envelope(future_release_request="for;60")
    envelope.release.seconds = 560
    envelope.received.seconds = 500
    assert release_time(envelope, now=900.0) == 960.0
    envelope.future_release_request = "until;1970-01-01T00:09:20Z"
    assert release_time(envelope, now=900.0) == 560.0
    assert release_time(types_pb2.Envelope(), now=900.0) == 0.0


def test_a_list_that_was_expanded_is_reported_once_for_each_address_that_was_given_DSN_23() -> None:
    members: Sequence[types_pb2.EnvelopeRecipient] = [
        types_pb2.EnvelopeRecipient(address=address, rcpt_to=given, expanded=True)
        for address, given in (
            ("a@away.example", "team@home.example"),
            ("b@away.example", "team@home.example"),
            ("c@away.example", "all@home.example"),
        )
    ]
    found = prepared(*members, submitted=True, mail_from="alice@home.example")
    assert found.expanded
    notices = expanded_notices(found)
    assert [notice.recipient.address for notice in notices] == ["team@home.example", "all@home.example"]
    assert not prepared(*members, mail_from="").expanded  # a null sender is never told


def test_recipients_that_were_stored_without_their_lease_are_taken_out_of_the_delivery() -> None:
    found = prepared("a@one.example", "b@one.example")
    (delivery,) = found.deliveries
    without(delivery, {found.recipients[0].id})
    assert delivered(found) == [["b@one.example"]]
    assert delivery.content is not None
    assert [fields["address"] for fields in delivery.content.recipients] == ["b@one.example"]
