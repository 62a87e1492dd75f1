"""Which port a listener is opened on, and when the process counts as ready."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mailrail.core.revision.problem import PORT_UNAVAILABLE
from mailrail.core.revision.revision import ObjectRef
from mailrail.kit.settings import BadSettings
from mailrail.kit.wheel import Wheel
from mailrail_ingress.active_config import ActiveConfig, ListenerKey
from mailrail_ingress.listeners import Listeners, ListenerSocket, port_holders
from mailrail_ingress.settings import IngressSettings
from mailrail_ingress.smtp import Sessions

from testkit.conditions import eventually
from testkit.ingress import GATEWAY, HeldQueue, no_probes, setup


def test_a_listener_on_25_is_opened_where_the_process_may() -> None:
    settings = IngressSettings(port_map=("25=2525", "587=2587"))
    assert [settings.real_port(p) for p in (25, 587, 465, 2525, 0)] == [2525, 2587, 465, 2525, 0]
    assert IngressSettings(port_offset=1000).real_port(25) == 1025


@pytest.mark.parametrize("pair", ["25", "25=", "25=99999", "smtp=2525", "25=2525=1", "²=2525", "25=²"])
def test_a_port_map_that_makes_no_sense_is_refused(pair: str) -> None:
    with pytest.raises(BadSettings, match="MAILRAIL_INGRESS_PORT_MAP"):
        IngressSettings(port_map=(pair,)).real_port(25)


@pytest.mark.parametrize("configured", [False, True])
async def test_without_any_gateway_it_is_ready_once_there_is_a_configuration(configured: bool) -> None:
    active_config = cast(Any, SimpleNamespace(listeners={}, configured=configured))
    listeners = Listeners(IngressSettings(), active_config, cast(Any, None))
    running = asyncio.create_task(listeners.run())
    try:
        if configured:
            await asyncio.wait_for(listeners.ready.wait(), 5)
        else:
            await asyncio.sleep(0)
            assert not listeners.ready.is_set()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def without_a_port() -> Listeners:
    """One listener, whose port is out of range: it can never be opened."""
    settings = IngressSettings(port_offset=1000)
    made = setup(port=65_000)
    gateway = replace(made.revision.gateways[0], listeners=made.revision.gateways[0].listeners[:1])
    active_config = ActiveConfig(settings, HeldQueue(), fake_key=b"f" * 32, probes=no_probes)
    active_config.configure(replace(made.revision, gateways=(gateway,)), 1, made.secrets)
    return Listeners(settings, active_config, Sessions(active_config, Wheel(asyncio.get_running_loop())))


async def test_a_port_is_tried_again_ever_more_seldom_and_from_the_start_after_each_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float | None] = []

    def timeout(seconds: float | None) -> asyncio.Timeout:
        waits.append(seconds)
        return asyncio.timeout_at(None if seconds is None else asyncio.get_running_loop().time() + seconds)

    monkeypatch.setattr("mailrail_ingress.listeners.asyncio", SimpleNamespace(**vars(asyncio) | {"timeout": timeout}))
    monkeypatch.setattr("mailrail_ingress.listeners.FIRST_RETRY", 0.01)
    monkeypatch.setattr("mailrail_ingress.listeners.LAST_RETRY", 0.04)
    listeners = without_a_port()
    running = asyncio.create_task(listeners.run())
    try:
        await eventually(lambda: len(waits) > 4)
        assert waits[:5] == [0.01, 0.02, 0.04, 0.04, 0.04]
        listeners.update()
        await eventually(lambda: 0.01 in waits[5:])
        again = waits.index(0.01, 5)
        await eventually(lambda: len(waits) > again + 2)
        assert waits[again : again + 3] == [0.01, 0.02, 0.04]
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_port_that_the_offset_moves_out_of_range_is_not_opened_elsewhere() -> None:
    listeners = without_a_port()
    (untried,) = listeners.problems()
    assert (untried.part, untried.reason) == ("listeners/mx", "Pending"), "nobody shall call open what was not tried"
    await listeners._apply()
    assert listeners.ports() == {}
    (problem,) = listeners.problems()
    assert (problem.object, problem.part, problem.reason) == (GATEWAY, "listeners/mx", PORT_UNAVAILABLE)
    assert "there is no such port; 1000 was added" in problem.message


def place(gateway: str, listener: str, port: int, *, tls: bool = False) -> ListenerSocket:
    return ListenerSocket(ListenerKey(ObjectRef("MailGateway", "mail", gateway), listener), "127.0.0.1", port, tls)


def test_of_two_listeners_that_want_one_port_the_first_in_the_revision_has_it() -> None:
    first, second, other = place("b", "mx", 25), place("a", "mx", 25), place("a", "submission", 587)
    assert port_holders([first, second, other], []) == {second.listener_key: first.listener_key}
    chosen = [place("a", "mx", 0), place("b", "mx", 0)]
    assert port_holders(chosen, []) == {}, "0: the system chooses"


def test_a_listener_keeps_its_port_against_one_that_came_later() -> None:
    older, newer = place("b", "mx", 25), place("a", "mx", 25)
    assert port_holders([newer, older], [older]) == {newer.listener_key: older.listener_key}
    changed = place("b", "mx", 25, tls=True)
    assert port_holders([newer, changed], [older]) == {newer.listener_key: changed.listener_key}
    assert port_holders([newer, place("b", "mx", 2525)], [older]) == {}, "it gives up the port itself"
