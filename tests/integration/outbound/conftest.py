"""Outbound's tests run on the event loop that the service runs on."""

import asyncio
from collections.abc import Callable, Mapping

from mailrail.kit.run import new_event_loop


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """uvloop, or what takes its place on Windows."""
    return {"production": new_event_loop}
