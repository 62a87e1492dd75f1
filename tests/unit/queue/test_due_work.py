"""What is done with due recipients that were fetched: no database takes part (SHD-03, SHD-04; design 4)."""

from mailrail.core.revision import revision as rev
from mailrail.pb.queue.v1 import types_pb2
from mailrail_queue.delivery.attempt import PER_DELIVERY
from mailrail_queue.delivery.verdicts import facts_of
from mailrail_queue.routing.router import RoutePlan
from mailrail_queue.schedule.due_work import choose, leased_delivery, sort_due
from mailrail_queue.store.content import StoredMessage

from testkit.dispatching import Bench, waiting
from testkit.queue import RELAY, a_revision, relay, rule_to

ONE, TWO = b"1" * 16, b"2" * 16


def test_recipients_of_a_message_at_one_destination_share_a_delivery() -> None:
    b = Bench()
    work = sort_due([waiting(b, 1, "x.example"), waiting(b, 2, "x.example"), waiting(b, 3, "y.example")])
    assert [[row.id for row in rows] for _, rows in work.groups] == [[1, 2], [3]]


def test_what_differs_in_message_attempts_or_tls_shares_no_delivery() -> None:
    b = Bench()
    rows = [
        waiting(b, 1, "x.example"),
        waiting(b, 2, "x.example", message_id=TWO),
        waiting(b, 3, "x.example", attempts=1),
        waiting(b, 4, "x.example", tls_requirement=int(types_pb2.TLS_REQUIREMENT_REQUIRED)),
    ]
    assert [[row.id for row in rows] for _, rows in sort_due(rows).groups] == [[1], [2], [3], [4]]


def test_what_routing_sends_elsewhere_moves_and_what_has_no_transport_is_counted_SHD_04() -> None:
    missing = rev.ObjectRef("MailTransport", "default", "gone")
    b, elsewhere = Bench(), Bench(a_revision(rules=[rule_to(missing)]))
    work = sort_due([waiting(b, 1, "x.example", site="domain:old.example"), waiting(elsewhere, 2, "x.example")])
    assert [(row.id, key) for row, key in work.moved] == [(1, "domain:x.example")]
    assert [(row.id, plan.missing) for row, plan in work.missing] == [(2, True)]
    assert work.groups == []


def test_a_site_gets_as_many_deliveries_as_it_has_room_for_and_the_rest_is_left_SHD_03() -> None:
    b = Bench()
    rows = [waiting(b, n, "x.example", message_id=bytes([n]) * 16, shard=n) for n in range(1, 6)]
    asked: list[str] = []

    def room_of(plan: RoutePlan) -> int:
        asked.append(plan.key)
        return 3

    chosen, left = choose(sort_due([*rows, waiting(b, 9, "y.example")]).groups, room_of)
    assert [[row.id for row in part] for _, part in chosen] == [[1], [2], [3], [9]]
    assert left == {(4, "domain:x.example"), (5, "domain:x.example")}
    assert asked == ["domain:x.example", "domain:y.example"]


def test_a_group_is_split_by_the_transport_s_recipients_a_message() -> None:
    b = Bench(a_revision(transports=[relay(recipients_per_message=2)], rules=[rule_to(RELAY)]))
    chosen, left = choose(sort_due([waiting(b, n, "x.example") for n in range(5)]).groups, lambda plan: 2)
    assert [[row.id for row in part] for _, part in chosen] == [[0, 1], [2, 3]]
    assert left == {(3, f"transport:{RELAY.namespace}/{RELAY.name}")}


def test_no_delivery_has_more_recipients_than_100() -> None:
    b = Bench()
    chosen, _ = choose(sort_due([waiting(b, n, "x.example") for n in range(250)]).groups, lambda plan: 99)
    assert [len(part) for _, part in chosen] == [PER_DELIVERY, PER_DELIVERY, 50]


def test_a_leased_delivery_carries_its_content_its_attempt_and_what_was_dialled_before() -> None:
    b = Bench()
    dialled = b"\x22\x00"
    (first, plan), (second, _) = waiting(b, 1, "x.example", attempts=2), waiting(b, 2, "x.example", attempts=2)
    first.dialled_hosts = dialled  # cannot be read: as if nothing was dialled
    stored = StoredMessage(ONE, types_pb2.Envelope(mail_from="a@away.example").SerializeToString(), b"P", b"body", 5, 0)
    schedule = b.router.schedule(facts_of(first))
    delivery = leased_delivery(
        plan, b.dispatcher.site(plan), 7, [first, second], stored, schedule, started=2000.0, deadline=50.0
    )
    assert (delivery.token, delivery.attempt, delivery.size) == (7, 3, 5)
    assert (delivery.started, delivery.deadline) == (2000.0, 50.0)
    assert [(r.id, r.attempts) for r in delivery.recipients] == [(1, 3), (2, 3)]
    assert delivery.content is not None
    assert not delivery.content.last_attempt
    assert [fields["address"] for fields in delivery.content.recipients] == ["u1@x.example", "u2@x.example"]
    late = leased_delivery(plan, b.dispatcher.site(plan), 8, [first], stored, schedule, started=1e9, deadline=50.0)
    assert late.content is not None
    assert late.content.last_attempt
