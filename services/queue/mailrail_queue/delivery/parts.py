"""What every part of a queue process works with: five objects that always travel together."""

from collections.abc import Callable
from dataclasses import dataclass

from mailrail_queue.delivery.dispatcher import Dispatcher
from mailrail_queue.routing.router import Router
from mailrail_queue.settings import QueueSettings
from mailrail_queue.store.connection import Database
from mailrail_queue.store.data_history import QueueHistory


@dataclass(frozen=True, slots=True)
class Parts:
    """Made once by the app, and passed on whole."""

    settings: QueueSettings
    database: Database
    history: QueueHistory
    dispatcher: Dispatcher
    router: Callable[[], Router]
    """The revision in force."""
