"""How much of what all sites share the sites of one standing may hold (SHD-03)."""

import pytest

from mailrail.core.delivery.mx_group import mx_group_of
from mailrail.core.delivery.shares import (
    OCTETS_A_DELIVERY,
    SiteStanding,
    StreamCredit,
    Throughput,
    may_add,
    standing_of,
)

QUICK, SLOW, UNPROVEN = SiteStanding.QUICK, SiteStanding.SLOW, SiteStanding.UNPROVEN


def fill(credit: StreamCredit, standing: SiteStanding, octets: int = 10) -> int:
    """Hand out all that may go to sites of a standing; how many that were."""
    count = 0
    while credit.free(standing) > 0:
        credit.take(standing, octets)
        count += 1
    return count


def test_a_site_that_answered_within_ten_seconds_is_quick() -> None:
    assert [standing_of(seconds) for seconds in (0.0, 9.9, 10.0, 600.0)] == [QUICK, QUICK, SLOW, SLOW]


def test_sites_that_never_answered_hold_at_most_half_and_quick_ones_the_whole() -> None:
    credit = StreamCredit(1000)
    assert fill(credit, UNPROVEN) == 500
    assert fill(credit, SLOW) == 200
    assert fill(credit, QUICK) == 300
    assert credit.deliveries == 0
    assert fill(StreamCredit(1000), QUICK) == 1000


def test_slow_sites_leave_a_part_to_those_that_never_answered() -> None:
    credit = StreamCredit(1000)
    assert fill(credit, SLOW) == 500
    assert fill(credit, UNPROVEN) == 200


def test_what_comes_back_is_free_for_its_own_standing_again() -> None:
    credit = StreamCredit(100)
    fill(credit, UNPROVEN)
    credit.let_go(UNPROVEN, 10)
    credit.grant(1, None)
    assert credit.free(UNPROVEN) == 1
    assert credit.whole == 100


@pytest.mark.parametrize("standing", SiteStanding)
def test_the_smallest_process_takes_one_delivery_of_any_site(standing: SiteStanding) -> None:
    assert fill(StreamCredit(1), standing) == 1
    assert fill(StreamCredit(1, octets=1), standing, octets=10**9) == 1


def test_octets_bound_what_is_handed_out_and_go_below_zero_by_the_last_delivery_only() -> None:
    credit = StreamCredit(1000, octets=1_000_000)
    assert fill(credit, QUICK, octets=300_000) == 4
    assert credit.octets == -200_000
    credit.let_go(QUICK, 300_000)
    credit.grant(1, 300_000)
    assert fill(credit, QUICK, octets=300_000) == 1


def test_sites_that_never_answered_hold_at_most_half_of_the_octets_too() -> None:
    credit = StreamCredit(1000, octets=10_000_000)
    assert fill(credit, UNPROVEN, octets=1_000_000) == 5
    assert credit.free(QUICK) > 0


def test_a_delivery_that_is_larger_than_all_octets_goes_when_nothing_else_is_out() -> None:
    credit = StreamCredit(10, octets=0)
    assert credit.free(UNPROVEN) == 1
    credit.take(UNPROVEN, 5_000_000)
    assert credit.free(QUICK) == 0


def test_a_process_that_speaks_of_no_octets_takes_64_KiB_a_delivery_however_long_it_runs() -> None:
    credit = StreamCredit(10)
    for _ in range(1000):
        credit.take(QUICK, 100)
        credit.let_go(QUICK, 100)
        credit.grant(1, None)
    assert credit.octets_left == 10 * OCTETS_A_DELIVERY
    for _ in range(1000):
        credit.take(QUICK, 1_000_000)
        credit.let_go(QUICK, 1_000_000)
        credit.grant(1, None)
    assert credit.octets_left == 10 * OCTETS_A_DELIVERY


def test_a_delivery_that_goes_on_for_long_counts_as_slow_from_then_on() -> None:
    credit = StreamCredit(100)
    fill(credit, QUICK)
    credit.move(10, QUICK, SLOW)
    assert credit.out == [0, 1, 99]
    assert credit.octets_out == [0, 10, 990]


def test_what_may_be_added_is_never_more_than_what_is_left() -> None:
    assert may_add(UNPROVEN, [0, 0, 990], 1000) == 10
    assert may_add(SLOW, [300, 399, 0], 1000) == 1
    assert may_add(QUICK, [500, 200, 300], 1000) == 0


def test_the_throughput_follows_what_ended_and_forgets_what_was() -> None:
    throughput = Throughput(since=100.0)
    for second in range(1, 8):
        throughput.ended[QUICK] = 50
        throughput.measure(100.0 + second)
    assert throughput.ahead(QUICK) == 99
    assert throughput.ahead(SLOW) == 0
    for second in range(8, 16):
        throughput.measure(100.0 + second)
    assert throughput.ahead(QUICK) == 0


def test_sets_of_hosts_are_alike_whatever_their_order_and_case_and_the_first_host_counts_apart() -> None:
    one, other = mx_group_of(["a.example", "B.example"]), mx_group_of(["b.example", "A.example"])
    assert one is not None
    assert other is not None
    assert one.counted_by(QUICK) == other.counted_by(QUICK) == ("a.example,b.example",)
    assert set(one.counted_by(UNPROVEN)) & set(other.counted_by(UNPROVEN)) == {"unproven a.example,b.example"}
    assert not set(one.counted_by(UNPROVEN)) & set(one.counted_by(QUICK))
    assert mx_group_of([]) is None


def test_names_that_a_stranger_made_take_little_memory() -> None:
    group = mx_group_of([f"{'x' * 300}{n}.example" for n in range(100)])
    assert group is not None
    assert all(len(name) < 300 for name in (group.name, *group.unproven))
