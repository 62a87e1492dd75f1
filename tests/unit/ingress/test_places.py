"""Places of a process: as many as its gateways allow, and no more than the system does."""

import asyncio
from ipaddress import ip_address

import pytest

from mailrail.core.admission import Admission, Worth
from mailrail.core.revision.revision import GatewayLimits
from mailrail.kit.wheel import Wheel
from mailrail_ingress.handshakes import Handshakes
from mailrail_ingress.places import Places, client_group


@pytest.mark.parametrize(("allowed", "room", "taken"), [(5, 1000, 5), (1000, 5, 5)])
async def test_nobody_is_granted_a_place_beyond_what_gateway_and_system_allow(
    allowed: int, room: int, taken: int
) -> None:
    loop = asyncio.get_running_loop()
    places = Places((), Handshakes(10), Wheel(loop), loop.time, room)
    limits = GatewayLimits(connections=allowed, connections_per_ip=1000)
    granted = 0
    for n in range(20):
        client = client_group(ip_address(f"192.0.{n}.1"))
        if places.judge(client, Worth.ACQUAINTANCE, limits) is Admission.GRANTED:
            places.take(client, limits)
            granted += 1
    assert granted == taken
