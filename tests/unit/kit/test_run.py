"""A process that is told to stop does not keep anybody waiting."""

import asyncio
import contextlib
import sys

import pytest

from mailrail.kit import run as kit_run

from testkit.processes import run

CYCLE = """
class Loud:
    def __del__(self):
        print("collected")

cycle = Loud()
cycle.itself = cycle
del cycle
"""


@pytest.mark.parametrize(
    ("before", "printed"), [("", "collected"), ("from mailrail.kit.run import leave_without_collecting as l; l()", "")]
)
def test_garbage_is_left_to_the_operating_system_at_the_end(before: str, printed: str) -> None:
    assert run([sys.executable, "-c", f"{before}\n{CYCLE}"]).strip() == printed


async def test_a_task_that_forgets_that_it_was_cancelled_is_ended_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kit_run, "_CANCEL_AGAIN", 0.01)
    cancelled = 0

    async def forgetful() -> None:
        nonlocal cancelled
        while cancelled < 2:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled += 1

    async def fails() -> None:
        raise ValueError("as a task may that ended before")

    tasks = asyncio.create_task(forgetful()), asyncio.create_task(fails())
    await asyncio.sleep(0)
    async with asyncio.timeout(60):
        await kit_run.end(*tasks)
    assert cancelled == 2
    assert all(task.done() for task in tasks)
    with contextlib.suppress(ValueError):
        tasks[1].result()
