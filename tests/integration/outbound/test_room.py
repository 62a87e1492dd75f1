"""Room in memory for large content: in turn, bounded, shared by standing, never lost."""

import asyncio

from mailrail.core.delivery.shares import QUICK, SLOW, UNPROVEN, SiteStanding
from mailrail_outbound.memory_budget import MemoryBudget, MemoryShare


class Server:
    """An address, and how it answers."""

    def __init__(self, standing: SiteStanding) -> None:
        self.standing = standing

    def __call__(self) -> SiteStanding:
        return self.standing


quick, slow, unproven = Server(QUICK), Server(SLOW), Server(UNPROVEN)


async def taken(room: MemoryBudget, octets: int, server: Server = quick) -> MemoryShare:
    share = await room.take(octets, 1, server)
    assert share is not None
    return share


async def test_room_is_handed_on_in_turn() -> None:
    room = MemoryBudget(10)
    first = await taken(room, 6)
    second = asyncio.create_task(room.take(6, 5, quick))
    await asyncio.sleep(0)
    third = asyncio.create_task(room.take(1, 5, slow))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not second.done()
    room.give(first)
    assert await second is not None
    assert await third is not None
    assert room.free == 3


async def test_more_than_there_is_takes_all_of_it_and_waits_for_no_more() -> None:
    room = MemoryBudget(10)
    share = await taken(room, 25)
    assert room.free == 0
    room.give(share)
    assert room.free == 10


async def test_who_waits_in_vain_or_is_cancelled_keeps_nothing() -> None:
    room = MemoryBudget(10)
    first = await taken(room, 8)
    assert await room.take(5, 0.01, quick) is None
    waiting = asyncio.create_task(room.take(5, 5, quick))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    second = await taken(room, 2)
    room.give(second)
    room.give(first)
    assert room.free == 10


async def test_servers_that_do_not_answer_leave_room_to_those_that_do_SHD_03() -> None:
    room = MemoryBudget(10)
    for server in (unproven, slow):
        for _ in range(4):
            await room.take(1, 0, server)
    assert room.free == 3  # seven tenths are held by both
    assert await room.take(1, 0, slow) is None
    for _ in range(3):
        await taken(room, 1)
    assert room.free == 0


async def test_who_stands_in_line_moves_with_the_standing_of_the_server() -> None:
    room = MemoryBudget(10)
    server = Server(UNPROVEN)
    held = [await taken(room, 1, unproven) for _ in range(5)]
    waiting = asyncio.create_task(room.take(1, 60, server))
    behind = asyncio.create_task(room.take(1, 60, unproven))
    await asyncio.sleep(0)
    server.standing = SLOW
    room.give(held[0])
    async with asyncio.timeout(60):
        assert await waiting is not None
        assert await behind is not None
    assert room.free == 4


async def test_a_share_counts_for_how_its_server_answers_now() -> None:
    room = MemoryBudget(10)
    server = Server(QUICK)
    for _ in range(7):
        await taken(room, 1, server)
    server.standing = SLOW
    assert await room.take(1, 0, unproven) is None
    await taken(room, 3)


async def test_who_waits_goes_on_when_those_that_hold_shares_answer_and_nobody_gives_any_back() -> None:
    room = MemoryBudget(10)
    server = Server(UNPROVEN)
    for _ in range(5):
        await taken(room, 1, server)
    waiting = asyncio.create_task(room.take(1, 30, unproven))
    await asyncio.sleep(0)
    assert not waiting.done()
    server.standing = SLOW  # they gave a session, and go on
    assert await waiting is not None


async def test_a_share_that_is_larger_than_its_part_goes_when_nobody_else_holds_that_part() -> None:
    room = MemoryBudget(10)
    await taken(room, 9, unproven)
    assert await room.take(1, 0, unproven) is None
    await taken(room, 1)
