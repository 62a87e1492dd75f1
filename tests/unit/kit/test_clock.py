"""The clock of leases."""

import sys
import time

import pytest

from mailrail.kit import clock


def test_it_goes_as_fast_as_any_and_never_back() -> None:
    began, other = clock.now(), time.monotonic()
    time.sleep(0.02)
    assert abs((clock.now() - began) - (time.monotonic() - other)) < 0.02
    seen = [clock.now() for _ in range(1000)]
    assert seen == sorted(seen)


@pytest.mark.skipif(sys.platform != "linux", reason="the clock is Linux's")
def test_it_is_the_one_that_goes_on_while_the_machine_is_suspended() -> None:
    assert abs(clock.now() - time.clock_gettime(time.CLOCK_BOOTTIME)) < 0.5
