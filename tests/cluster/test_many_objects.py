"""CFG-06 on a real API server: five thousand routes at once, then one change among them."""

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from cluster.conftest import Kubectl
from cluster.stage import Stage, basics, relay, staged

from mailrail.core.revision.revision import Role
from mailrail.kit.kubernetes import Api, ApiError, connect, find_credentials, resource_path

from testkit.conditions import NeverTrue, keeps_to, wait_until

ROUTES = 5_000
AT_ONCE = 32


@pytest.fixture
def stage(kubectl: Kubectl, database: str, tmp_path: Path) -> Iterator[Stage]:
    with staged(kubectl, database, tmp_path) as made:
        yield made


def route_name(number: int) -> str:
    """The name of the route of customer-NUMBER.example."""
    return f"route-{number:05}"


async def create_routes(namespace: str, numbers: range, transport: str = "relay") -> None:
    """Apply a route of its own for each customer-N.example, many at a time."""

    async def one(api: Api, number: int) -> None:
        match = {"toDomains": [f"customer-{number}.example"]}
        body = {
            "apiVersion": "mailrail.dev/v1alpha1",
            "kind": "MailRoute",
            "metadata": {"name": route_name(number), "namespace": namespace},
            "spec": {
                "parentRefs": [{"kind": "MailGateway", "name": "mx1"}],
                "rules": [{"name": "all", "matches": [match], "transportRef": {"name": transport}}],
            },
        }
        await api.call("POST", resource_path("MailRoute", namespace), body)

    await _many_at_a_time(one, numbers)


async def delete_routes(namespace: str, numbers: range) -> None:
    """Undo `create_routes`. One by one: the API server ends a deletion of a whole collection after a minute."""

    async def one(api: Api, number: int) -> None:
        try:
            await api.call("DELETE", resource_path("MailRoute", namespace, route_name(number)))
        except ApiError as error:
            if error.code != 404:
                raise

    await _many_at_a_time(one, numbers)


async def _many_at_a_time(action: Callable[[Api, int], Awaitable[None]], numbers: range) -> None:
    limit = asyncio.Semaphore(AT_ONCE)

    async def one(api: Api, number: int) -> None:
        async with limit:
            await action(api, number)

    async with connect(find_credentials(None)) as api:
        await asyncio.gather(*(one(api, number) for number in numbers))


def ready_routes(stage: Stage) -> int:
    path = "jsonpath={range .items[*]}{.status.conditions[?(@.type=='Ready')].status}{end}"
    return stage.kubectl("get", "mroute", "-o", path).count("True")


@pytest.mark.timeout(1200)
def test_five_thousand_routes_at_once_are_live_in_30_s_and_one_change_among_them_in_2_s_CFG_06(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    # The rule speaks of a machine that does nothing else; what ran before gets time to end. On one that stays busy the
    # figures are shown and only order is asked.
    with contextlib.suppress(NeverTrue):
        wait_until(lambda: os.getloadavg()[0] <= (os.cpu_count() or 1), 120)
    busy = os.getloadavg()[0] > (os.cpu_count() or 1)
    stage.start_consumers(Role.QUEUE)  # each more one costs this process time that services would have of their own
    operator = stage.start_operator()
    stage.kubectl.apply(basics() + relay("relay", "relay.example.org"))
    stage.wait_ready("mtrans/relay")

    def at_once(number: int) -> float:
        if number:
            asyncio.run(delete_routes(stage.kubectl.namespace, range(ROUTES)))
            stage.until_queue(lambda r: not r.global_routes, 180, "the routes are gone")
        began = time.monotonic()
        asyncio.run(create_routes(stage.kubectl.namespace, range(ROUTES)))
        created = time.monotonic()
        stage.until_queue(lambda r: len(r.global_routes[0].rules) == ROUTES, 180)
        live = time.monotonic()
        wait_until(lambda: ready_routes(stage) == ROUTES, 300, stage.tails)
        told = time.monotonic()
        with capsys.disabled():
            print(
                f"\n{ROUTES} routes: created in {created - began:.1f} s, live {live - created:.1f} s after the last, "
                f"all Ready after {told - created:.1f} s{' (busy machine)' * busy}",
                end="",
            )
        return live - created

    def one_change(number: int) -> float:
        took: list[float] = []
        for n in range(10):
            host = f"host-{number}-{n}.example.org"
            stage.kubectl.apply(relay("relay", host))
            start = time.monotonic()
            stage.until_queue(lambda r, host=host: r.transports[0].host == host)  # type: ignore[misc]
            took.append(time.monotonic() - start)
        with capsys.disabled():
            print(f"; one change among them: median {sorted(took)[5]:.2f} s, worst {max(took):.2f} s", end="")
        return sorted(took)[-2]  # of ten all but one: p95 would take a hundred

    keeps_to(120 if busy else 30, at_once, f"to bring {ROUTES} routes to life")
    keeps_to(30 if busy else 2, one_change, f"one change among {ROUTES} routes")
    assert operator.running
    # With the namespace they would go in the background, and disturb whatever is measured next.
    asyncio.run(delete_routes(stage.kubectl.namespace, range(ROUTES)))
