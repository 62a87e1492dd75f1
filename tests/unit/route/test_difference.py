"""Decisions side by side: what counts as another way, and in which order it is told (DIF-05)."""

from dataclasses import replace

from mailrail.core.revision.revision import ObjectRef, SecretRef, Transport, TransportKind
from mailrail.core.route import difference
from mailrail.core.route.decision import DecisionLevel, RouteDecision, RuleRef, Via
from mailrail.core.route.difference import Difference

RELAY = Transport(ObjectRef("MailTransport", "default", "relay"), TransportKind.SMTP, host="relay.example", port=25)
REFUSE = Transport(ObjectRef("MailTransport", "default", "refuse"), TransportKind.FAIL, code=550)
DIRECT = RouteDecision(Via.DIRECT, DecisionLevel.DEFAULT, "no route")
BY_RELAY = RouteDecision(Via.TRANSPORT, DecisionLevel.GLOBAL, "a rule", RELAY)
REFUSED = RouteDecision(Via.TRANSPORT, DecisionLevel.GLOBAL, "a rule", REFUSE)
WAITS = RouteDecision(Via.MISSING, DecisionLevel.GLOBAL, "a rule", missing=RELAY.ref)


def test_another_rule_or_password_is_no_other_way_and_another_host_is() -> None:
    rule = RuleRef(ObjectRef("MailRoute", "default", "r"), 1, "second")
    found = Difference()
    found.add(BY_RELAY, replace(BY_RELAY, rule=rule, reason="another"), "a.example", 3, [1])
    password = SecretRef("default", "login", "password", "digest", "k1")
    found.add(BY_RELAY, replace(BY_RELAY, transport=replace(RELAY, password=password)), "a.example", 2, [2])
    assert (found.looked_at, found.unchanged, found.groups) == (5, 5, [])
    found.add(BY_RELAY, replace(BY_RELAY, transport=replace(RELAY, host="other.example")), "a.example", 1, [3])
    assert (found.looked_at, found.unchanged, len(found.groups)) == (6, 5, 1)


def test_what_would_wait_stands_first_then_what_would_fail_then_the_largest_DIF_05() -> None:
    found = Difference()
    found.add(DIRECT, BY_RELAY, "a.example", 5, [1, 2, 3])
    found.add(BY_RELAY, DIRECT, "a.example", 9, [4, 5, 6])
    found.add(DIRECT, REFUSED, "b.example", 2, [7])
    found.add(DIRECT, WAITS, "c.example", 1, [8])
    assert [group.after for group in found.groups] == [WAITS, REFUSED, DIRECT, BY_RELAY]
    assert (found.deferred_new, found.undeliverable_new) == (1, 2)
    found.add(WAITS, WAITS, "c.example", 4, [9])
    assert found.deferred_new == 1, "it waits already"


def test_a_group_names_few_recipients_and_counts_all() -> None:
    found = Difference()
    for number in range(20):
        found.add(DIRECT, BY_RELAY, f"d{number % 7}.example", number, [number])
    (group,) = found.groups
    assert (group.recipients, len(group.domains), group.samples) == (190, 7, [0, 1, 2])


def test_groups_without_end_are_counted_together() -> None:
    found = Difference()
    for number in range(difference.MOST_GROUPS + 10):
        after = replace(BY_RELAY, transport=replace(RELAY, port=number + 1))
        found.add(DIRECT, after, "a.example", 1, [number])
    assert (len(found.groups), found.ungrouped) == (difference.MOST_GROUPS, 10)
