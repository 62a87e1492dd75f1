"""Which port a listener is opened on, and when the process counts as ready."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mailrail.kit.settings import BadSettings
from mailrail.kit.wheel import Wheel
from mailrail_ingress.active_config import ActiveConfig
from mailrail_ingress.listeners import Listeners
from mailrail_ingress.settings import IngressSettings
from mailrail_ingress.smtp import Sessions

from testkit.ingress import HeldQueue, setup


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
            await asyncio.wait_for(listeners.complete.wait(), 5)
        else:
            await asyncio.sleep(0)
            assert not listeners.complete.is_set()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_port_that_the_offset_moves_out_of_range_is_not_opened_elsewhere() -> None:
    settings = IngressSettings(port_offset=1000)
    made = setup(port=65_000)
    gateway = replace(made.revision.gateways[0], listeners=made.revision.gateways[0].listeners[:1])
    active_config = ActiveConfig(settings, HeldQueue(), fake_key=b"f" * 32)
    active_config.configure(replace(made.revision, gateways=(gateway,)), 1, made.secrets)
    listeners = Listeners(settings, active_config, Sessions(active_config, Wheel(asyncio.get_running_loop())))
    assert await listeners._apply() == 1
    assert listeners.ports() == {}
