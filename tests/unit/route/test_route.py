"""Where a recipient goes: the levels, the patterns and the compiled maps (design 4 and 5, reference E2)."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailrail.core.revision.revision import (
    Domain,
    DomainDelivery,
    Gateway,
    Match,
    ObjectRef,
    Revision,
    RouteLevel,
    Rule,
    Transport,
    TransportKind,
)
from mailrail.core.route import DIRECT, DecisionLevel, RouteTable, RoutingFacts, Via, explain
from mailrail.core.route import table as table_module
from mailrail.core.route.explain import covers
from mailrail.core.route.table import patterns_of

GATEWAY = ObjectRef("MailGateway", "mail", "main")
ALICE = ObjectRef("MailAccount", "mail", "alice")
POSTMASTER = ObjectRef("MailAccount", "mail", "postmaster")
ROUTE = ObjectRef("MailRoute", "mail", "r")
RELAY = ObjectRef("MailTransport", "mail", "relay")
SOCKS = ObjectRef("MailTransport", "mail", "socks")
GONE = ObjectRef("MailTransport", "mail", "gone")
EXAMPLE = ObjectRef("MailDomain", "mail", "example")

TRANSPORTS = (
    Transport(RELAY, TransportKind.SMTP, host="relay.example.net", port=25),
    Transport(SOCKS, TransportKind.SOCKS, proxy_host="127.0.0.1", proxy_port=1080),
)


def rule(index: int, transport: ObjectRef | None = RELAY, *matches: Match) -> Rule:
    return Rule(ROUTE, index, str(index), matches, transport, missing=transport == GONE)


def revision(
    *rules: Rule,
    account: tuple[Rule, ...] = (),
    domain: tuple[Rule, ...] = (),
    domains: tuple[Domain, ...] = (),
    gateways: tuple[ObjectRef, ...] = (GATEWAY,),
) -> Revision:
    return Revision(
        gateways=tuple(Gateway(ref, "mx.example.org", (), POSTMASTER) for ref in gateways),
        domains=(Domain(EXAMPLE, "example.org", DomainDelivery.NONE), *domains),
        transports=TRANSPORTS,
        account_routes=(RouteLevel(ALICE, account),),
        domain_routes=(RouteLevel(EXAMPLE, domain),),
        global_routes=(RouteLevel(GATEWAY, rules),),
    )


def to(domain: str, **facts: object) -> RoutingFacts:
    return RoutingFacts(domain, **facts)  # type: ignore[arg-type]


def test_no_rule_means_direct_delivery() -> None:
    assert RouteTable(revision()).evaluate(to("example.com"), 0) is DIRECT


@pytest.mark.parametrize(
    ("pattern", "domain", "expected"),
    [
        ("x.org", "x.org", True),
        ("x.org", "a.x.org", False),
        (".x.org", "x.org", True),
        (".x.org", "b.a.x.org", True),
        (".x.org", "ax.org", False),
        (".org", "x.org", True),
        (".", "", True),
        (".", "[192.0.2.1]", True),
        (".", "x.org", False),
        ("x.org", "", False),
        (".org", "[192.0.2.1]", False),
    ],
)
def test_a_pattern_covers_a_name_a_tree_or_the_empty_domain(pattern: str, domain: str, expected: bool) -> None:
    assert covers(pattern, domain) is expected
    assert (pattern in patterns_of(domain)) is expected
    found = RouteTable(revision(rule(0, RELAY, Match(to_domains=(pattern,))))).evaluate(to(domain), 0)
    assert (found.transport is not None) is expected


def test_account_comes_before_domain_before_global() -> None:
    everything = revision(rule(0, None), account=(rule(0, RELAY),), domain=(rule(0, SOCKS),))
    table = RouteTable(everything)
    mine = {"sender_domain": "example.org", "ours": True}
    assert table.evaluate(to("x.com", account=ALICE, **mine), 0).level is DecisionLevel.ACCOUNT
    assert table.evaluate(to("x.com", account=POSTMASTER, **mine), 0).level is DecisionLevel.DOMAIN
    assert table.evaluate(to("x.com"), 0).level is DecisionLevel.GLOBAL


def test_domain_routes_apply_only_to_mail_that_was_authenticated_or_made_by_us() -> None:
    table = RouteTable(revision(domain=(rule(0, SOCKS),)))
    assert table.evaluate(to("x.com", sender_domain="example.org", ours=False), 0) is DIRECT
    assert table.evaluate(to("x.com", sender_domain="example.org", ours=True), 0).level is DecisionLevel.DOMAIN
    assert table.evaluate(to("x.com", sender_domain="", ours=True), 0) is DIRECT
    assert table.evaluate(to("x.com", sender_domain="sub.example.org", ours=True), 0) is DIRECT


def test_minimum_attempts_three_matches_from_the_fourth_attempt_LSE_05() -> None:
    table = RouteTable(revision(rule(0, SOCKS, Match(minimum_attempts=3)), rule(1, RELAY)))
    transports = [table.evaluate(to("x.com"), before).transport for before in range(5)]
    assert [t.ref if t else None for t in transports] == [RELAY, RELAY, RELAY, SOCKS, SOCKS]


def test_a_missing_transport_defers_and_is_never_handed_to_the_next_rule() -> None:
    table = RouteTable(revision(rule(0, GONE, Match(to_domains=("x.com",))), rule(1, RELAY)))
    decision = table.evaluate(to("x.com"), 0)
    assert (decision.via, decision.missing) == (Via.MISSING, GONE)
    assert decision.site("x.com").key == "missing:mail/gone"
    assert "is missing or cannot be used: deferred" in decision.reason


def test_a_transport_set_by_an_administrator_overrides_everything() -> None:
    mailbox = Domain(ObjectRef("MailDomain", "mail", "m"), "here.example", DomainDelivery.MAILBOX)
    table = RouteTable(revision(rule(0, None), domains=(mailbox,)))
    decision = table.evaluate(to("here.example", transport=SOCKS), 0)
    assert (decision.via, decision.level) == (Via.TRANSPORT, DecisionLevel.MESSAGE)
    assert table.evaluate(to("here.example", transport=GONE), 0).via is Via.MISSING
    assert table.evaluate(to("here.example", direct=True), 0).via is Via.DIRECT


def test_own_domains_say_where_their_mail_goes_and_routes_are_not_asked() -> None:
    def own(name: str, delivery: DomainDelivery, transport: ObjectRef | None = None) -> Domain:
        return Domain(ObjectRef("MailDomain", "mail", name), name, delivery, transport)

    table = RouteTable(
        revision(
            rule(0, SOCKS),
            domains=(
                own("box.example", DomainDelivery.MAILBOX),
                own("lmtp.example", DomainDelivery.TRANSPORT, RELAY),
                own("lost.example", DomainDelivery.TRANSPORT, GONE),
            ),
        )
    )
    assert table.evaluate(to("box.example"), 0).via is Via.MAILBOX
    by_transport = table.evaluate(to("lmtp.example"), 0)
    assert by_transport.transport is not None
    assert by_transport.transport.ref == RELAY
    assert table.evaluate(to("lost.example"), 0).via is Via.MISSING
    assert (
        table.evaluate(to("example.org"), 0).level is DecisionLevel.GLOBAL
    )  # delivery: none is routed like a foreign domain


def test_mail_accepted_for_a_domain_of_ours_that_is_gone_waits_FIN_04() -> None:
    table = RouteTable(revision(rule(0, RELAY)))
    decision = table.evaluate(to("deleted.example", local=True), 0)
    assert decision.via is Via.MISSING
    assert decision.site("deleted.example").key == "missing:deleted.example"
    assert table.evaluate(to("deleted.example", local=False), 0).via is Via.TRANSPORT


def test_a_deleted_account_takes_its_routes_with_it_and_nothing_fails_FIN_04() -> None:
    table = RouteTable(revision(rule(0, RELAY)))
    assert (
        table.evaluate(to("x.com", account=ObjectRef("MailAccount", "mail", "gone")), 0).level is DecisionLevel.GLOBAL
    )


def test_mail_of_a_gateway_that_is_gone_waits_while_several_remain() -> None:
    other = ObjectRef("MailGateway", "mail", "other")
    third = ObjectRef("MailGateway", "mail", "third")
    table = RouteTable(revision(rule(0, RELAY), gateways=(GATEWAY, other)))
    assert table.evaluate(to("x.com", gateway=third), 0).via is Via.MISSING
    assert table.evaluate(to("x.com", gateway=GATEWAY), 0).via is Via.TRANSPORT
    assert table.evaluate(to("x.com", gateway=other), 0) is DIRECT
    assert RouteTable(revision(rule(0, RELAY))).evaluate(to("x.com", gateway=third), 0).via is Via.TRANSPORT


NAMES = ["a.org", "b.org", "x.a.org", "y.x.a.org", "org", "com", "b.com"]
domains = st.sampled_from([*NAMES, "", "[192.0.2.1]", "[IPv6:2001:db8::1]", "deep.y.x.a.org"])
patterns = st.lists(st.sampled_from([*NAMES, *("." + n for n in NAMES), "."]), max_size=4, unique=True).map(tuple)
matches = st.builds(Match, patterns, patterns, st.integers(0, 5))
rules = st.lists(
    st.tuples(st.lists(matches, max_size=3).map(tuple), st.sampled_from([RELAY, SOCKS, GONE, None])), max_size=12
).map(lambda found: tuple(rule(i, transport, *m) for i, (m, transport) in enumerate(found)))


@given(
    rules,
    rules,
    rules,
    st.builds(
        RoutingFacts,
        recipient_domain=domains,
        sender_domain=domains | st.just("example.org"),
        account=st.sampled_from([None, ALICE, POSTMASTER]),
        ours=st.booleans(),
    ),
    st.integers(0, 6),
    st.sampled_from([0, 2, 4096]),
)
@settings(max_examples=400)
def test_the_maps_answer_as_a_scan_of_the_rules_does(
    account: tuple[Rule, ...],
    domain: tuple[Rule, ...],
    everyone: tuple[Rule, ...],
    envelope: RoutingFacts,
    attempts: int,
    wide: int,
) -> None:
    before = table_module.WIDE
    table_module.WIDE = wide  # small, so that matches kept aside are exercised too
    try:
        table = RouteTable(revision(*everyone, account=account, domain=domain))
    finally:
        table_module.WIDE = before
    assert table.evaluate(envelope, attempts) == explain(table, envelope, attempts).decision


def test_explain_names_every_rule_tried_and_those_that_the_winner_hides() -> None:
    table = RouteTable(
        revision(
            rule(0, SOCKS, Match(to_domains=("a.org",), minimum_attempts=3)),
            rule(1, RELAY, Match(to_domains=(".org",))),
            rule(2, None),
        )
    )
    told = explain(table, to("a.org"), 0)
    assert told.decision == table.evaluate(to("a.org"), 0)
    by_rule = [(t.rule.index, t.matched, t.hidden) for t in told.tried if t.rule]
    assert by_rule == [(0, False, False), (1, True, False), (2, False, True)]
    assert any("from attempt 4 on, and this is attempt 1" in t.reason for t in told.tried)
    assert any("without authentication" in t.reason for t in told.tried)


def test_explain_is_bounded() -> None:
    table = RouteTable(revision(*(rule(i, RELAY, Match(to_domains=(f"d{i}.org",))) for i in range(50))))
    told = explain(table, to("none.example"), 0, limit=10)
    assert told.unlisted + sum(1 for t in told.tried if t.rule) == 50
    assert told.decision is DIRECT


def test_ten_thousand_routes_look_up_as_many_keys_as_ten() -> None:
    """Counts dictionary look-ups, not time: the maps are asked once per pair of patterns, however many rules exist."""

    class Counting(dict[tuple[str, str], tuple[tuple[int, ...], tuple[int, ...]]]):
        asked = 0

        def get(self, *args: object) -> object:  # type: ignore[override]
            self.asked += 1
            return super().get(*args)  # type: ignore[call-overload]

    def asked(count: int) -> int:
        found = RouteTable(
            revision(*(rule(i, RELAY, Match((f"d{i}.example",), (f"s{i}.example",), i % 7)) for i in range(count)))
        )
        level = found.globals[GATEWAY]
        level._pairs = counting = Counting(level._pairs)
        decision = found.evaluate(to(f"d{count - 1}.example", sender_domain=f"s{count - 1}.example"), 9)
        assert decision.rule is not None
        assert decision.rule.index == count - 1
        return counting.asked

    assert asked(10_000) == asked(10) == 16


def test_ten_thousand_routes_compile_and_the_last_is_found() -> None:
    table = RouteTable(revision(*(rule(i, RELAY, Match((f"d{i}.example", f".e{i}.org"))) for i in range(10_000))))
    assert table.evaluate(to("a.e9999.org"), 0).level is DecisionLevel.GLOBAL
