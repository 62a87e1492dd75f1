"""The lease, with an API server of a dictionary and a clock that stands still."""

import asyncio
import copy
from collections.abc import Mapping
from typing import Any, cast

import pytest

from mailrail.kit.kubernetes import Api, ApiError
from mailrail_operator.lease import LeaderLease, Lost, Terms

TERMS = Terms(lease=15, renew=10, retry=0.001)


class Server:
    """One lease, with optimistic locking."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.broken = False
        self.version = 0

    async def get(self, path: str) -> dict[str, Any] | None:
        if self.broken:
            raise ApiError(500, "broken")
        return copy.deepcopy(self.lease)

    async def call(self, method: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        if self.broken:
            raise ApiError(500, "broken")
        given = body["metadata"].get("resourceVersion")
        if (method == "POST") != (self.lease is None) or (self.lease is not None and given != str(self.version)):
            raise ApiError(409, "conflict")
        self.version += 1
        self.lease = copy.deepcopy(dict(body))
        self.lease["metadata"]["resourceVersion"] = str(self.version)
        return self.lease


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def candidate(server: Server, clock: Clock, name: str) -> LeaderLease:
    return LeaderLease(cast(Api, server), "mail", "operator", name, TERMS, clock)


async def never(lease: LeaderLease) -> bool:
    """Whether it keeps standing by."""
    try:
        async with asyncio.timeout(0.05):
            await lease.acquire()
    except TimeoutError:
        return True
    return False


async def test_the_first_leads_and_the_second_stands_by(server: Server, clock: Clock) -> None:
    first, second = candidate(server, clock, "first"), candidate(server, clock, "second")
    await first.acquire()
    assert first.held
    assert await never(second)
    assert not second.held


async def test_a_lease_that_was_seen_unchanged_for_its_time_is_taken_over(server: Server, clock: Clock) -> None:
    first, second = candidate(server, clock, "first"), candidate(server, clock, "second")
    await first.acquire()
    assert await never(second)
    clock.now += 14
    assert await never(second)
    clock.now += 2
    await second.acquire()
    assert server.lease is not None
    assert (server.lease["spec"]["holderIdentity"], server.lease["spec"]["leaseTransitions"]) == ("second", 1)


async def test_a_clock_that_is_wrong_elsewhere_takes_over_nothing(server: Server, clock: Clock) -> None:
    first, second = candidate(server, clock, "first"), candidate(server, clock, "second")
    await first.acquire()
    assert server.lease is not None
    server.lease["spec"]["renewTime"] = "2001-01-01T00:00:00.000000Z"
    assert await never(second)


async def test_a_leader_whose_clock_went_on_without_a_renewal_does_not_lead(server: Server, clock: Clock) -> None:
    first = candidate(server, clock, "first")
    await first.acquire()
    clock.now += 9.9
    assert first.held
    clock.now += 0.2  # stopped and resumed, or the API server away: shorter than what others wait
    assert not first.held


async def test_a_leader_that_cannot_renew_in_time_stops(server: Server, clock: Clock) -> None:
    first = candidate(server, clock, "first")
    await first.acquire()
    server.broken = True
    keeping = asyncio.create_task(first.keep())
    await asyncio.sleep(0.02)
    assert not keeping.done()
    clock.now += 11
    with pytest.raises(Lost, match="not renewed for 10 s"):
        await asyncio.wait_for(keeping, 5)


async def test_a_leader_that_finds_another_holder_stops(server: Server, clock: Clock) -> None:
    first = candidate(server, clock, "first")
    await first.acquire()
    assert server.lease is not None
    server.lease["spec"]["holderIdentity"] = "second"
    with pytest.raises(Lost):
        await asyncio.wait_for(first.keep(), 5)


async def test_a_released_lease_is_free_at_once(server: Server, clock: Clock) -> None:
    first, second = candidate(server, clock, "first"), candidate(server, clock, "second")
    await first.acquire()
    await first.release()
    assert not first.held
    await second.acquire()
    assert second.held


async def test_of_two_that_are_equally_fast_one_leads(server: Server, clock: Clock) -> None:
    leases = [candidate(server, clock, f"c{n}") for n in range(4)]
    await asyncio.gather(*(never(lease) for lease in leases))
    assert sum(lease.held for lease in leases) == 1
