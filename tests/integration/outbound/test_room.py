"""Room in memory for large content: in turn, bounded, never lost."""

import asyncio

from mailrail_outbound.memory_budget import MemoryBudget


async def test_room_is_handed_on_in_turn() -> None:
    room = MemoryBudget(10)
    assert await room.take(6, 1)
    second, third = asyncio.create_task(room.take(6, 5)), asyncio.create_task(room.take(1, 5))
    await asyncio.sleep(0)
    assert not third.done()  # there is room for it, and somebody before it
    room.give(6)
    assert await second
    assert await third
    assert room.free == 3


async def test_more_than_there_is_takes_all_of_it_and_waits_for_no_more() -> None:
    room = MemoryBudget(10)
    assert await room.take(25, 1)
    assert room.free == 0
    room.give(25)
    assert room.free == 10


async def test_who_waits_in_vain_or_is_cancelled_keeps_nothing() -> None:
    room = MemoryBudget(10)
    assert await room.take(8, 1)
    assert not await room.take(5, 0.01)
    waiting = asyncio.create_task(room.take(5, 5))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert await room.take(2, 1)
    room.give(2)
    room.give(8)
    assert room.free == 10
