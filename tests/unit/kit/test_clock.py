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
def test_it_is_the_one_that_goes_on_while_the_machine_is_suspended(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def gettime(which: int) -> float:
        asked.append(which)
        return 7.0

    monkeypatch.setattr(time, "clock_gettime", gettime)
    assert (clock.now(), asked) == (7.0, [time.CLOCK_BOOTTIME])
