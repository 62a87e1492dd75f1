"""Which port a listener is opened on, and when the process counts as ready."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mailrail.core.revision.revision import ObjectRef
from mailrail.kit.settings import BadSettings
from mailrail.kit.wheel import Wheel
from mailrail_ingress.active_config import ActiveConfig, ListenerKey
from mailrail_ingress.listeners import PORT_UNAVAILABLE, Listeners, ListenerSocket, port_holders
from mailrail_ingress.settings import IngressSettings
from mailrail_ingress.smtp import Sessions

from testkit.ingress import HeldQueue, no_probes, setup


def test_a_listener_on_25_is_opened_where_the_process_may() -> None:
    settings = IngressSettings(port_map=("25=2525", "587=2587"))
    assert [settings.real_port(p) for p in (25, 587, 465, 2525, 0)] == [2525, 2587, 465, 2525, 0]
    assert IngressSettings(port_offset=1000).real_port(25) == 1025


@pytest.mark.parametrize("pair", ["25", "25=", "25=99999", "smtp=2525", "25=2525=1"])
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


async def test_a_port_that_the_offset_moves_out_of_range_is_not_opened_elsewhere() -> None:
    settings = IngressSettings(port_offset=1000)
    made = setup(port=65_000)
    gateway = replace(made.revision.gateways[0], listeners=made.revision.gateways[0].listeners[:1])
    active_config = ActiveConfig(settings, HeldQueue(), fake_key=b"f" * 32, probes=no_probes)
    active_config.configure(replace(made.revision, gateways=(gateway,)), 1, made.secrets)
    listeners = Listeners(settings, active_config, Sessions(active_config, Wheel(asyncio.get_running_loop())))
    await listeners._apply()
    assert listeners.ports() == {}
    (problem,) = listeners.problems()
    assert (problem.object, problem.part, problem.reason) == (gateway.ref, "listeners/mx", PORT_UNAVAILABLE)
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
