"""Streams live long and carry batches (ACC-07, design 6).

Each stream is read by a task of its own and written by the handler, an async generator that yields what has gathered
since it last looked. A handler that missed its own end (`kit.rpc` says how) would leave a process that is gone in the
list of those that are handed mail.
"""

import asyncio


async def pulse(ready: asyncio.Event) -> None:
    """Let a stream look around twice a second; one timer a stream costs less than one each time that it waits."""
    while True:
        await asyncio.sleep(0.5)
        ready.set()
