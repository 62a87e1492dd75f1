"""Who waits for company, and how long (design 6, rule 2)."""

from hypothesis import given
from hypothesis import strategies as st

from mailrail.kit.linger import MOST, linger


def test_one_alone_waits_for_nobody() -> None:
    assert linger(0) == linger(1) == 0.0


def test_a_crowd_waits_milliseconds_and_no_longer() -> None:
    assert 0.001 < linger(20) < 0.002
    assert linger(50) == linger(10_000) == MOST == 0.003


@given(st.integers(min_value=0, max_value=100_000))
def test_more_company_never_waits_less(under_way: int) -> None:
    assert linger(under_way) <= linger(under_way + 1)
