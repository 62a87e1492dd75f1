"""What may be handed on now, and to whom: windows, shared limits, credit, rates and turns (SHD-03, SHD-04)."""

from mailrail.core.delivery.mx_group import mx_group_of
from mailrail.core.delivery.shares import SiteStanding, StreamCredit
from mailrail.core.revision.revision import MessageRate
from mailrail_queue.delivery.sites import Bucket

from testkit.dispatching import Bench, Stream
from testkit.queue import RELAY, a_revision, relay, rule_to


def test_a_window_bounds_what_is_in_flight_and_memory_is_given_back_as_it_leaves() -> None:
    bench = Bench()
    stream = Stream("a")
    bench.dispatcher.connect(stream)
    deliveries = [bench.lease("x.example") for _ in range(8)]
    bench.dispatcher.pump()
    assert len(stream.sent) == 5
    assert (bench.dispatcher.pending_deliveries, bench.dispatcher.pending_bytes) == (3, 30)
    bench.release(deliveries[0])
    assert len(stream.sent) == 7  # one landed, and slow start opened the window by one
    assert stream.credit.deliveries == 1000 - 7


def test_one_slow_site_holds_up_no_other() -> None:
    bench = Bench()
    stream = Stream("a")
    bench.dispatcher.connect(stream)
    for _ in range(20):
        bench.lease("slow.example")
    bench.lease("quick.example")
    bench.dispatcher.pump()
    assert [f.plan.domain for f in stream.sent].count("quick.example") == 1


def test_without_credit_nothing_leaves_and_with_it_all_that_waits_does() -> None:
    bench = Bench()
    stream = Stream("a", StreamCredit(1))
    bench.dispatcher.connect(stream)
    for name in ("a.example", "b.example", "c.example"):
        bench.lease(name)
    bench.dispatcher.pump()
    assert len(stream.sent) == 1
    stream.credit.grant(5, None)
    bench.dispatcher.pump()
    assert len(stream.sent) == 3


def test_a_site_keeps_to_one_process_and_goes_elsewhere_only_when_that_takes_no_more() -> None:
    bench = Bench()
    streams = [Stream("a"), Stream("b"), Stream("c")]
    for stream in streams:
        bench.dispatcher.connect(stream)
    for _ in range(5):
        bench.lease("x.example")
    bench.dispatcher.pump()
    (home,) = [s for s in streams if s.sent]
    home.credit.deliveries = 0
    bench.lease("y.example")
    other = bench.lease("x.example")
    bench.dispatcher.sites["domain:x.example"].window.size = 10
    bench.dispatcher.pump()
    assert other.stream is not None
    assert other.stream is not home


def test_a_process_that_leaves_changes_the_home_of_its_own_sites_only() -> None:
    bench = Bench()
    streams = {n: Stream(n) for n in "abc"}
    for stream in streams.values():
        bench.dispatcher.connect(stream)
    names = [f"d{n}.example" for n in range(40)]
    homes: dict[str, str] = {}
    for name in names:
        delivery = bench.lease(name)
        bench.dispatcher.pump()
        homes[name] = delivery.node
        bench.release(delivery)
    bench.dispatcher.disconnect(streams["b"])
    for name in names:
        delivery = bench.lease(name)
        bench.dispatcher.pump()
        if homes[name] != "b":
            assert delivery.node == homes[name]
        else:
            assert delivery.node in "ac"
        bench.release(delivery)


def test_a_lease_too_short_to_be_handed_on_is_given_back_LSE_01() -> None:
    bench = Bench()
    stream = Stream("a")
    bench.dispatcher.connect(stream)
    short = bench.lease("x.example", seconds=59.0)
    long = bench.lease("x.example", seconds=61.0)
    bench.dispatcher.pump()
    assert bench.events.back == [short]
    assert [f.token for f in stream.sent] == [long.token]
    assert stream.remaining == [61.0]


def test_fresh_mail_is_born_leased_only_where_it_would_leave_soon_LSE_06() -> None:
    bench = Bench()
    site = bench.dispatcher.site(bench.router.plan(bench.facts("x.example"), 0))
    accepts = bench.dispatcher.accepts_fresh
    assert not accepts(site, 10, bench.clock.now)  # nobody delivers
    stream = Stream("a", StreamCredit(0))
    bench.dispatcher.connect(stream)
    assert not accepts(site, 10, bench.clock.now)  # nobody takes more
    stream.credit.grant(100, None)
    bench.dispatcher.pump()
    assert accepts(site, 10, bench.clock.now)
    assert not accepts(site, 1001, bench.clock.now)  # over the budget
    for _ in range(15):
        bench.lease("x.example")
    assert not accepts(site, 10, bench.clock.now)  # three windows full wait already
    other = bench.dispatcher.site(bench.router.plan(bench.facts("y.example"), 0))
    other.window.backoff_until = bench.clock.now + 60
    assert not accepts(other, 10, bench.clock.now)


def test_a_rate_lets_a_second_s_worth_go_and_then_one_at_a_time() -> None:
    revision = a_revision(transports=[relay(rate=MessageRate(4, 1), connections=100)], rules=[rule_to(RELAY)])
    bench = Bench(revision)
    stream = Stream("a")
    bench.dispatcher.connect(stream)
    for _ in range(10):
        bench.lease("x.example").site.window.size = 100
    bench.dispatcher.pump()
    assert len(stream.sent) == 4
    at = bench.dispatcher.next_timer()
    assert at is not None
    assert 0.2 < at - bench.clock.now <= 0.25
    bench.clock.now = at + 0.001
    bench.dispatcher.pump()
    assert len(stream.sent) == 5
    bench.clock.now += 10
    bench.dispatcher.pump()
    assert len(stream.sent) == 9


def test_a_bucket_of_less_than_one_a_second_still_gives_one_now_and_then() -> None:
    bucket = Bucket(0.1)
    assert bucket.wait(100.0) == 0.0
    bucket.take()
    assert abs(bucket.wait(101.0) - 9.0) < 1e-6
    assert bucket.wait(110.1) == 0.0


def test_a_limit_smaller_than_the_number_of_owners_goes_round() -> None:
    bench = Bench()
    bench.dispatcher.owners, bench.dispatcher.owner_index = 3, 1
    shares = set()
    for _ in range(3):
        shares.add(bench.dispatcher._share(1))
        bench.clock.now += 20.0
    assert shares == {0, 1}
    assert bench.dispatcher._share(None) is None
    parts = []
    for index in range(3):
        bench.dispatcher.owner_index = index
        parts.append(bench.dispatcher._share(7))
    assert sorted(p for p in parts if p is not None) == [2, 2, 3]


def test_sites_with_one_mx_set_share_what_is_in_flight() -> None:
    bench = Bench()
    stream = Stream("a")
    bench.dispatcher.connect(stream)
    for name in ("x.example", "y.example"):
        site = bench.dispatcher.site(bench.router.plan(bench.facts(name), 0))
        site.window.size = 20.0
        site.standing, site.mx_group = SiteStanding.QUICK, mx_group_of(["mx.big.example"])
    deliveries = [bench.lease(name) for _ in range(15) for name in ("x.example", "y.example")]
    bench.dispatcher.pump()
    assert len(stream.sent) == 20
    for delivery in deliveries:
        if delivery.stream is not None and not delivery.ended:
            bench.release(delivery)
    assert len(stream.sent) == 30


def test_what_was_dropped_counts_nowhere_any_more() -> None:
    bench = Bench()
    deliveries = [bench.lease("x.example") for _ in range(4)]
    assert bench.dispatcher.drop_pending() == deliveries
    assert (bench.dispatcher.pending_deliveries, bench.dispatcher.pending_bytes) == (0, 0)
    assert not bench.dispatcher.deliveries
    bench.dispatcher.forget_idle(bench.clock.now + 1)
    bench.dispatcher.pump()
    bench.dispatcher.forget_idle(bench.clock.now + 1)
    assert not bench.dispatcher.sites


def test_what_was_being_committed_when_a_backoff_began_goes_back_SHD_05() -> None:
    bench = Bench()
    stream = Stream("a")
    bench.dispatcher.connect(stream)
    first = bench.lease("dead.example")
    bench.dispatcher.pump()
    first.site.window.fail(bench.clock.now, "no connection", transport=True)
    bench.dispatcher.release(first)
    late = bench.lease("dead.example")
    bench.dispatcher.pump()
    assert bench.events.back == [late]
    assert len(stream.sent) == 1
    assert not first.site.pending


def test_a_site_with_room_and_due_mail_in_the_database_asks_for_more_SHD_03() -> None:
    bench = Bench()
    site = bench.dispatcher.site(bench.router.plan(bench.facts("x.example"), 0))
    site.due[3] = False
    bench.dispatcher.wake_all()
    bench.dispatcher.pump()
    assert bench.events.roomy == ["domain:x.example"]
    site.window.in_flight = int(site.window.size)
    bench.dispatcher.wake_all()
    bench.dispatcher.pump()
    assert bench.events.roomy == ["domain:x.example"]


def test_after_a_backoff_an_owner_of_a_shared_site_asks_for_the_right_to_probe() -> None:
    bench = Bench(a_revision(transports=[relay()], rules=[rule_to(RELAY)]))
    stream = Stream("a")
    bench.dispatcher.connect(stream)
    bench.dispatcher.owners = 2
    site = bench.lease("x.example").site
    site.window.backoff_until = bench.clock.now - 1.0
    bench.dispatcher.pump()
    assert bench.events.claimed == [site.key]
    assert not stream.sent
    site.claimed = True
    bench.dispatcher.wake_all()
    bench.dispatcher.pump()
    assert len(stream.sent) == 1


def test_a_delivery_of_another_history_is_given_back_and_takes_no_part_HIS_03() -> None:
    bench = Bench()
    bench.dispatcher.history = 7
    delivery = bench.lease("x.example")
    assert bench.events.back == [delivery]
    assert not bench.dispatcher.deliveries
