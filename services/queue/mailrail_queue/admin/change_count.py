"""What a change to many recipients did: counted always, named up to a bound, so that the answer fits a gRPC message."""

from collections.abc import Iterable
from typing import Final

from mailrail.pb.queue.v1 import admin_pb2

LISTED: Final = 10_000
"""Recipients that an answer names; those past it are counted only."""


class Changes:
    """Gathers the recipients that a call changed."""

    def __init__(self) -> None:
        self.listed: list[admin_pb2.Change] = []
        self.count = admin_pb2.ChangeCount()

    def add(self, changed: Iterable[tuple[int, bool]]) -> None:
        """Recipients' ids, each with whether the change waits for the end of an attempt."""
        for identity, pending in changed:
            self.count.recipients += 1
            self.count.pending += pending
            if len(self.listed) < LISTED:
                self.listed.append(admin_pb2.Change(recipient_id=identity, pending=pending))
            else:
                self.count.truncated = True
