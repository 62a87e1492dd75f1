"""Where a recipient goes: the levels, the patterns and the compiled maps (design 4 and 5, reference E2)."""

from dataclasses import replace

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
from mailrail.core.route import DIRECT, DecisionLevel, LackingTransport, RouteTable, RoutingFacts, Via, explain
from mailrail.core.route import table as table_module
from mailrail.core.route.decision import lacking_of
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


def lacks(transport: ObjectRef | None, *, digest: str | None = None) -> LackingTransport:
    """Known to lack 8BITMIME, as it is now or as it was with another digest."""
    now = next((t.digest for t in TRANSPORTS if t.ref == transport), "")
    return LackingTransport(transport, now if digest is None else digest, "8BITMIME")


def ways(table: RouteTable, envelope: RoutingFacts, attempts: int = 1) -> list[str]:
    """Where a message goes whose content nothing can take, try by try, until that is final."""
    decision = table.evaluate(envelope, attempts - 1)
    found: list[str] = []
    while True:
        found.append(str(decision.transport.ref) if decision.transport is not None else decision.via)
        tried = (*envelope.lacking, lacks(decision.transport.ref if decision.transport is not None else None))
        envelope = replace(envelope, lacking=tried)
        following = table.next(envelope, attempts)
        if following is None:
            return found
        attempts, decision = attempts + 1, following


def test_content_that_a_transport_cannot_take_goes_by_the_next_rule_in_the_order_of_the_levels_SOUT_18c() -> None:
    table = RouteTable(
        revision(
            rule(0, RELAY),
            rule(1, None),
            account=(rule(0, RELAY, Match(to_domains=("x.com",))), rule(1, SOCKS, Match(to_domains=("y.com",)))),
            domain=(rule(0, RELAY), rule(1, SOCKS)),
        )
    )
    mine = to("x.com", account=ALICE, sender_domain="example.org", ours=True)
    assert ways(table, mine) == [str(RELAY), str(SOCKS), "direct"]
    assert ways(table, to("x.com")) == [str(RELAY), "direct"]
    following = table.next(replace(mine, lacking=(lacks(RELAY),)), 1)
    assert following is not None
    assert (following.level, following.rule and following.rule.index) == (DecisionLevel.DOMAIN, 1)
    assert following.reason == (
        f"{ROUTE} rule 1 at domain level: {SOCKS}; "
        f"tried before: {RELAY}, whose next hop lacks 8BITMIME, which this message needs"
    )


def test_with_one_route_or_none_nothing_follows_and_direct_delivery_is_not_taken_for_a_rule_SOUT_18c() -> None:
    assert ways(RouteTable(revision(rule(0, RELAY))), to("x.com")) == [str(RELAY)]
    assert ways(RouteTable(revision(rule(0, None))), to("x.com")) == ["direct"]
    assert ways(RouteTable(revision()), to("x.com")) == ["direct"]
    assert ways(RouteTable(revision(rule(0, SOCKS, Match(to_domains=("y.com",))))), to("x.com")) == ["direct"]


def test_what_no_rule_decided_has_no_next_rule_SOUT_18c() -> None:
    own = Domain(ObjectRef("MailDomain", "mail", "o"), "own.example", DomainDelivery.TRANSPORT, RELAY)
    table = RouteTable(revision(rule(0, SOCKS), domains=(own,)))
    assert ways(table, to("own.example")) == [str(RELAY)]
    assert ways(table, to("x.com", transport=RELAY)) == [str(RELAY)]


def test_a_rule_that_matches_from_a_later_attempt_is_next_once_that_attempt_is_due_SOUT_18c_LSE_05() -> None:
    table = RouteTable(revision(rule(0, RELAY), rule(1, SOCKS, Match(minimum_attempts=2))))
    assert ways(table, to("x.com"), attempts=1) == [str(RELAY)]
    assert ways(table, to("x.com"), attempts=2) == [str(RELAY), str(SOCKS)]


def test_a_missing_transport_is_waited_for_when_its_rule_is_next_SOUT_18c() -> None:
    table = RouteTable(revision(rule(0, RELAY), rule(1, GONE), rule(2, SOCKS)))
    following = table.next(to("x.com", lacking=(lacks(RELAY),)), 1)
    assert following is not None
    assert (following.via, following.missing) == (Via.MISSING, GONE)


def test_a_transport_that_changed_may_be_tried_again_and_later_attempts_pass_over_the_others_SOUT_18c() -> None:
    table = RouteTable(revision(rule(0, RELAY), rule(1, SOCKS)))

    def later(*lacking: LackingTransport) -> ObjectRef | None:
        transport = table.evaluate(to("x.com", lacking=lacking), 7).transport
        return transport.ref if transport is not None else None

    assert later(lacks(RELAY)) == SOCKS
    assert later(lacks(RELAY, digest="before")) == RELAY
    assert later(lacks(RELAY), lacks(SOCKS)) == RELAY, "all were tried: the first decides, and its result is final"
    assert table.next(to("x.com", lacking=(lacks(RELAY), lacks(SOCKS))), 8) is None


def test_explain_says_which_rules_were_passed_over_and_why_SOUT_18c() -> None:
    table = RouteTable(revision(rule(0, RELAY), rule(1, SOCKS), rule(2, None)))
    told = explain(table, to("x.com", lacking=(lacks(RELAY),)), 1)
    assert [(t.rule.index, t.matched, t.hidden) for t in told.tried if t.rule] == [
        (0, False, False),
        (1, True, False),
        (2, False, True),
    ]
    passed_over = next(t for t in told.tried if t.rule is not None)
    assert passed_over.reason == (
        f"matches anything, but was tried before: {RELAY}, whose next hop lacks 8BITMIME, which this message needs"
    )
    everything = explain(table, to("x.com", lacking=(lacks(RELAY), lacks(SOCKS), lacks(None))), 3)
    assert [t.rule.index for t in everything.tried if t.rule and t.matched] == [0]
    assert everything.tried[-1].reason == "no other rule matches, so the first decides again"


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
        lacking=st.lists(st.sampled_from([lacks(RELAY), lacks(SOCKS), lacks(None), lacks(RELAY, digest="x")])).map(
            tuple
        ),
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
    decision = explain(table, envelope, attempts).decision
    assert table.evaluate(envelope, attempts) == decision
    assert table.next(envelope, attempts) in (decision, None)
    if (following := table.next(envelope, attempts)) is not None:
        assert lacking_of(following, envelope) is None


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


def test_explain_counts_beyond_its_limit_what_it_would_have_told() -> None:
    misses = [rule(i, RELAY, Match(to_domains=(f"d{i}.org",))) for i in range(20)]
    decides, miss, hidden = rule(20, RELAY), rule(21, RELAY, Match(to_domains=("x.org",))), rule(22, None)
    table = RouteTable(revision(*misses, decides, miss, hidden))
    for limit in (5, 1000):
        told = explain(table, to("none.example"), 0, limit=limit)
        listed = [(t.rule.index, t.matched) for t in told.tried if t.rule]
        assert (20, True) in listed
        assert told.unlisted + len(listed) == 22  # a rule behind the decision that does not match is no news
        assert told.decision == table.evaluate(to("none.example"), 0)


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


def test_reports_go_into_the_mailbox_however_their_domain_delivers_and_a_set_transport_comes_first() -> None:
    relayed = Domain(ObjectRef("MailDomain", "mail", "r"), "relayed.example", DomainDelivery.TRANSPORT, RELAY)
    table = RouteTable(revision(rule(0), domains=(relayed,)))
    for name in ("relayed.example", "example.org"):
        report = RoutingFacts(name, local=True, reports=True)
        assert table.evaluate(report, 0).via is Via.MAILBOX
        assert explain(table, report, 0).decision == table.evaluate(report, 0)
        assert table.evaluate(replace(report, reports=False), 0).via is Via.TRANSPORT
        assert table.evaluate(replace(report, transport=SOCKS), 0).transport == TRANSPORTS[1]
