"""Mail to sites that answer waits for no others, whatever these are (SHD-03): the dispatcher with a clock of its own.

Deliveries and their results are real; the next hops, the credit of outbound and what is due are played.
"""

import heapq
import itertools
from collections import Counter
from collections.abc import Iterable

import pytest

from mailrail.core.delivery.mx_group import mx_group_of
from mailrail.core.delivery.shares import SiteStanding, StreamCredit
from mailrail_queue.delivery.attempt import Delivery

from testkit.dispatching import Bench, Stream

NEVER = 1e9


class Rail:
    """A dispatcher, an outbound process of a `capacity`, and what is due in the database."""

    def __init__(self, capacity: int = 20_000) -> None:
        self.bench = Bench(content_budget=64 * 1024 * 1024, delivery_budget=20_000, rounds=30)
        self.stream = Stream("a", StreamCredit(capacity))
        self.bench.dispatcher.connect(self.stream)
        self.answers: dict[str, tuple[float, bool]] = {}
        """Domain → seconds until it answers, and whether well; others answer well at once."""
        self.due: dict[str, int] = {}
        self.delivered: Counter[str] = Counter()
        self._results: list[tuple[float, int, Delivery, bool]] = []

    @property
    def now(self) -> float:
        return self.bench.clock.now

    def owe(self, domains: Iterable[str], each: int, answer: tuple[float, bool]) -> None:
        """So many messages are due at each of these domains, which answer so."""
        for domain in domains:
            self.answers[domain] = answer
            self.due[domain] = each

    def prove(self, domain: str) -> None:
        """A delivery there is answered well."""
        self.fresh(domain)
        self.run(0.1)
        assert self.bench.dispatcher.sites[f"domain:{domain}"].standing is SiteStanding.QUICK

    def fresh(self, domain: str, size: int = 1000) -> Delivery | None:
        """Mail comes in; None: it is stored due."""
        dispatcher = self.bench.dispatcher
        site = dispatcher.site(self.bench.router.plan(self.bench.facts(domain), 0))
        if not dispatcher.accepts_fresh(site, size, self.now):
            self.due[domain] = self.due.get(domain, 0) + 1
            site.due[0] = False
            return None
        delivery = self.bench.lease(domain, size=size)
        dispatcher.pump()
        self._play()
        return delivery

    def run(self, seconds: float, step: float = 0.05) -> None:
        """Time goes by: next hops answer, and what is due is leased as far as it may be."""
        for _ in range(round(seconds / step)):
            self.bench.clock.now += step
            self._land()
            self._lease()
            self.bench.dispatcher.pump()
            self._play()

    def _play(self) -> None:
        for delivery in self.stream.sent:
            seconds, well = self.answers.get(delivery.plan.domain, (0.01, True))
            heapq.heappush(self._results, (self.now + seconds, delivery.token, delivery, well))
        self.stream.sent.clear()
        self.stream.remaining.clear()
        for back in self.bench.events.back:
            self.bench.dispatcher.release(back)
            domain = back.plan.domain
            self.due[domain] = self.due.get(domain, 0) + 1
        self.bench.events.back.clear()

    def _land(self) -> None:
        while self._results and self._results[0][0] <= self.now:
            _, _, delivery, well = heapq.heappop(self._results)
            self.delivered[delivery.plan.domain] += well
            self.stream.credit.grant(1, None)
            self.bench.release(delivery, well=well)

    def _lease(self) -> None:
        dispatcher = self.bench.dispatcher
        left = [dispatcher.may_lease(standing) for standing in SiteStanding]
        for domain in list(itertools.islice(self.due, 2000)):
            site = dispatcher.site(self.bench.router.plan(self.bench.facts(domain), 0))
            site.due[0] = False
            if site.in_backoff(self.now) or left[site.standing] <= 0:
                continue
            wanted = dispatcher.older_wanted(site, self.now) - len(site.older)
            for _ in range(min(wanted, self.due[domain], left[site.standing])):
                self.bench.lease(domain, size=1000, older=True)
                left[site.standing] -= 1
                self.due[domain] -= 1
            if not self.due[domain]:
                del self.due[domain]
                site.due.clear()


def domains(name: str, count: int) -> list[str]:
    return [f"{name}{n}.example" for n in range(count)]


def healthy_mail_leaves_at_once(rail: Rail, seconds: float) -> None:
    """For so long, each of 20 messages a second to a healthy site is handed on the moment it comes."""
    for _ in range(round(seconds * 20)):
        delivery = rail.fresh("well.example")
        assert delivery is not None, "it was stored due"
        assert delivery.handed_on == rail.now, "it waits"
        rail.run(0.05)


@pytest.mark.parametrize("capacity", [1000, 20_000])
def test_200_tarpits_hold_up_no_healthy_mail_SHD_03(capacity: int) -> None:
    rail = Rail(capacity)
    rail.prove("well.example")
    rail.owe(domains("tarpit", 200), 5, (NEVER, True))
    healthy_mail_leaves_at_once(rail, 20.0)
    assert sum(rail.stream.credit.out) >= min(1000, capacity // 2)


@pytest.mark.parametrize("capacity", [1000, 20_000])
def test_50_000_messages_to_5_000_tarpits_hold_up_no_healthy_mail_SHD_03(capacity: int) -> None:
    rail = Rail(capacity)
    rail.prove("well.example")
    rail.owe(domains("tarpit", 5000), 10, (NEVER, True))
    healthy_mail_leaves_at_once(rail, 10.0)
    assert rail.stream.credit.out[SiteStanding.UNPROVEN] == capacity // 2
    assert rail.bench.dispatcher.pending_deliveries < 50, "what cannot be sent is not leased"


def test_20_000_sites_that_refuse_hold_up_no_healthy_mail_SHD_03() -> None:
    rail = Rail()
    rail.prove("well.example")
    rail.owe(domains("refuses", 20_000), 1, (0.2, False))
    healthy_mail_leaves_at_once(rail, 5.0)
    assert not any(domain.startswith("refuses") for domain in rail.due)


def test_500_000_messages_to_one_dead_site_hold_up_no_healthy_mail_SHD_03() -> None:
    rail = Rail()
    rail.prove("well.example")
    rail.owe(["dead.example"], 500_000, (30.0, False))
    healthy_mail_leaves_at_once(rail, 60.0)
    assert rail.bench.dispatcher.pending_deliveries < 50


def test_tarpits_that_answered_quickly_before_count_as_slow_while_they_are_SHD_03() -> None:
    rail = Rail(1000)
    rail.prove("well.example")
    for domain in domains("turns", 100):
        rail.prove(domain)
    rail.owe(domains("turns", 100), 100, (NEVER, True))
    rail.run(12.0)
    assert rail.stream.credit.out[SiteStanding.QUICK] == 0
    healthy_mail_leaves_at_once(rail, 5.0)


def test_what_waits_for_credit_has_it_in_turn_one_each() -> None:
    rail = Rail(100)
    rail.answers = {f"new{n}.example": (1.0, True) for n in range(40)}
    for n in range(10):
        rail.answers[f"tarpit{n}.example"] = (NEVER, True)
        for _ in range(5):
            rail.fresh(f"tarpit{n}.example")
    assert rail.bench.dispatcher.free(SiteStanding.UNPROVEN) == 0
    waiting = [rail.bench.lease(f"new{n}.example") for n in range(40) for _ in range(3)]
    rail.bench.dispatcher.pump()
    assert not any(delivery.stream for delivery in waiting)
    rail.stream.credit.grant(40, None)  # the share of such sites grows by 20
    rail.bench.dispatcher.pump()
    went = Counter(delivery.plan.domain for delivery in waiting if delivery.stream)
    assert len(went) == 20
    assert set(went.values()) == {1}
    rail.stream.credit.grant(40, None)
    rail.bench.dispatcher.pump()
    assert Counter(delivery.plan.domain for delivery in waiting if delivery.stream) == {
        f"new{n}.example": 1 for n in range(40)
    }


def test_sites_with_large_mail_have_their_turns_where_each_result_brings_octets_for_one_delivery() -> None:
    bench = Bench(content_budget=1 << 20, delivery_budget=1000, rounds=30)
    stream = Stream("a", StreamCredit(1000, octets=1000))
    bench.dispatcher.connect(stream)
    names = domains("large", 4)
    for name in names:
        bench.dispatcher.site(bench.router.plan(bench.facts(name), 0)).standing = SiteStanding.QUICK
        for _ in range(3):
            bench.lease(name, size=1000)
    bench.dispatcher.pump()
    for number in range(4):
        assert len(stream.sent) == number + 1
        stream.credit.grant(1, 1000)
        bench.release(stream.sent[-1])
    assert Counter(delivery.plan.domain for delivery in stream.sent[1:]) == dict.fromkeys(names, 1)


def test_a_result_looks_at_as_many_waiting_sites_as_it_brings_credit_however_many_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rail = Rail(10)
    rail.bench = bench = Bench(content_budget=1 << 30, delivery_budget=1 << 20, rounds=30)
    bench.dispatcher.connect(rail.stream)
    deliveries = [bench.lease(f"d{n}.example") for n in range(50_000)]
    bench.dispatcher.pump()
    looked = 0
    room = bench.dispatcher.room

    def counting(*arguments: object) -> int:
        nonlocal looked
        looked += 1
        return room(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(bench.dispatcher, "room", counting)
    for delivery in deliveries[:5]:
        rail.stream.credit.grant(1, None)
        bench.release(delivery)
    assert sum(delivery.stream is not None for delivery in deliveries) == 10
    assert looked < 50


def test_new_sites_have_a_part_of_their_own_beside_a_flood_to_quick_ones() -> None:
    rail = Rail(100)
    for domain in domains("quick", 20):
        rail.prove(domain)
        rail.bench.dispatcher.sites[f"domain:{domain}"].window.size = 20.0
    rail.owe(domains("quick", 20), 10_000, (1.0, True))
    rail.run(2.0)
    for n in range(30):
        rail.bench.lease(f"new{n}.example", size=1000)
    rail.run(5.0)
    assert sum(rail.delivered[f"new{n}.example"] for n in range(30)) == 30


def test_a_site_that_answers_again_does_not_wait_in_the_line_of_those_that_do_not() -> None:
    rail = Rail(20)
    first = [rail.bench.lease("new.example") for _ in range(2)]
    for n in range(8):
        rail.bench.lease(f"tarpit{n}.example")
    rail.bench.dispatcher.pump()
    late = [rail.bench.lease("new.example"), rail.bench.lease("tarpit9.example")]
    rail.bench.dispatcher.pump()
    assert not any(delivery.stream for delivery in late)
    rail.bench.release(first[0])  # no credit comes with it, and the others' share is still used up
    assert late[0].stream is not None
    assert late[1].stream is None


def test_a_hundred_tarpit_domains_behind_one_host_hold_no_more_than_one_domain_SHD_03() -> None:
    rail = Rail()
    rail.prove("well.example")
    well = rail.bench.dispatcher.sites["domain:well.example"]
    well.mx_group = mx_group_of(["mx.big.example", "mx2.big.example"])
    handed: list[Delivery] = []
    for n in range(100):
        name = f"tarpit{n}.example"
        rail.answers[name] = (NEVER, True)
        for _ in range(5):
            delivery = rail.bench.lease(name, size=1000)
            rail.bench.dispatcher.pump()
            if delivery.stream is None:
                continue
            handed.append(delivery)
            group = mx_group_of(["mx.tarpit.example", f"other{n}.example"])
            assert group is not None
            rail.bench.dispatcher.resolve(delivery, group)
    # One of each domain is handed on before its hosts are known; of a domain that is known, none beside 20 of the host.
    assert len(handed) <= 20 + 100
    per_site = Counter(delivery.plan.domain for delivery in handed)
    assert all(count == 1 for count in list(per_site.values())[20:])
    healthy_mail_leaves_at_once(rail, 1.0)


def test_strangers_that_name_the_hosts_of_a_provider_throttle_nobody_whose_mail_arrives_there_SHD_03() -> None:
    rail = Rail()
    rail.prove("well.example")
    group = mx_group_of(["mx.big.example"])
    assert group is not None
    rail.bench.dispatcher.sites["domain:well.example"].mx_group = group
    for n in range(40):
        rail.answers[f"tarpit{n}.example"] = (NEVER, True)
        delivery = rail.bench.lease(f"tarpit{n}.example")
        rail.bench.dispatcher.pump()
        rail.bench.dispatcher.resolve(delivery, group)
    healthy_mail_leaves_at_once(rail, 1.0)


def test_a_site_that_waits_for_its_mx_group_goes_on_when_another_of_the_group_is_done() -> None:
    bench = Bench(content_budget=1 << 20, delivery_budget=1000, rounds=30)
    bench.dispatcher.connect(Stream("a"))
    group = mx_group_of(["mx.big.example"])
    for name in ("x.example", "y.example"):
        site = bench.dispatcher.site(bench.router.plan(bench.facts(name), 0))
        site.standing, site.mx_group, site.window.size = SiteStanding.QUICK, group, 20.0
    first = [bench.lease("x.example") for _ in range(20)]
    bench.dispatcher.pump()
    late = bench.lease("y.example")
    bench.dispatcher.pump()
    assert late.stream is None
    bench.release(first[0])
    assert late.stream is not None


def test_the_counts_of_mx_hosts_are_gone_with_their_deliveries() -> None:
    bench = Bench()
    bench.dispatcher.connect(Stream("a"))
    for n in range(20):
        delivery = bench.lease(f"d{n}.example")
        bench.dispatcher.pump()
        for host in (f"mx{n}.example", f"other{n}.example"):
            group = mx_group_of([host])
            assert group is not None
            bench.dispatcher.resolve(delivery, group)
        bench.release(delivery)
    assert not bench.dispatcher._mx._counts
    assert not bench.dispatcher._mx._waiting


def test_what_is_due_has_half_of_the_turns_beside_fresh_mail_SHD_04() -> None:
    rail = Rail()
    rail.prove("slow.example")
    site = rail.bench.dispatcher.sites["domain:slow.example"]
    site.window.size = 20.0
    rail.owe(["slow.example"], 48_000, (1.0, True))  # with a window of 20: 20 a second
    stored = 0
    handed: list[Delivery] = []
    rail.run(2.0)
    began = rail.delivered["slow.example"]
    old_before = rail.due["slow.example"]
    for _ in range(40 * 40):  # 40 a second for 40 s
        delivery = rail.fresh("slow.example")
        stored += delivery is None
        if delivery is not None:
            handed.append(delivery)
        rail.run(0.025, step=0.025)
    total = rail.delivered["slow.example"] - began
    old_moved = old_before + stored - rail.due["slow.example"]
    assert total >= 700
    assert 0.4 * total <= old_moved <= 0.6 * total
    fresh = [delivery for delivery in handed if delivery.ended]
    assert len(fresh) >= 0.35 * total


def test_what_was_deferred_at_a_busy_site_has_its_second_attempt_SHD_04() -> None:
    rail = Rail()
    rail.prove("busy.example")
    rail.answers["busy.example"] = (1.0, True)
    for _ in range(20 * 20):
        rail.fresh("busy.example")
        rail.run(0.05)
    rail.due["busy.example"] = rail.due.get("busy.example", 0) + 5  # greylisted before
    before = rail.due["busy.example"]
    stored = 0
    for _ in range(20 * 20):
        stored += rail.fresh("busy.example") is None
        rail.run(0.05)
    assert before + stored - rail.due.get("busy.example", 0) >= 5


def test_mail_to_a_site_that_takes_a_minute_is_not_leased_only_to_be_given_back_LSE_06() -> None:
    rail = Rail()
    rail.owe(["minute.example"], 1000, (60.0, True))
    back = 0
    taken = rail.bench.events.take_back

    def counting(deliveries: list[Delivery]) -> None:
        nonlocal back
        back += len(deliveries)
        taken(deliveries)

    rail.bench.events.take_back = counting  # type: ignore[method-assign,assignment]
    rail.run(600.0, step=1.0)
    assert rail.delivered["minute.example"] > 20
    assert back <= 0.1 * rail.delivered["minute.example"]


def test_what_waits_for_credit_until_its_lease_is_short_is_given_back_LSE_01() -> None:
    bench = Bench()
    bench.dispatcher.connect(Stream("a", StreamCredit(1)))
    bench.lease("first.example")
    late = [bench.lease(f"late{n}.example") for n in range(3)]
    bench.dispatcher.pump()
    bench.clock.now += 59.0
    bench.dispatcher.pump()
    assert not bench.events.back
    bench.clock.now += 2.0
    bench.dispatcher.pump()
    assert bench.events.back == late


def test_a_site_that_answered_is_known_for_that_after_it_was_idle_for_long() -> None:
    rail = Rail()
    rail.prove("well.example")
    rail.bench.clock.now += 1000.0
    rail.bench.dispatcher.pump()
    rail.bench.dispatcher.forget_idle(rail.now - 600.0)
    assert "domain:well.example" not in rail.bench.dispatcher.sites
    site = rail.bench.dispatcher.site(rail.bench.router.plan(rail.bench.facts("well.example"), 0))
    assert site.standing is SiteStanding.QUICK


def test_the_credit_of_a_process_that_connects_anew_is_what_its_hello_says() -> None:
    bench = Bench()
    before = Stream("a", StreamCredit(10))
    bench.dispatcher.connect(before)
    delivery = bench.lease("x.example", size=500)
    bench.dispatcher.pump()
    after = Stream("a", StreamCredit(9, octets=1000))
    bench.dispatcher.adopt_again(delivery, after)
    bench.dispatcher.connect(after)
    assert (after.credit.whole, after.credit.octets, sum(after.credit.octets_out)) == (10, 1000, 500)
    assert sum(before.credit.out) == 0
    bench.release(delivery)
    assert after.credit.whole == 9
