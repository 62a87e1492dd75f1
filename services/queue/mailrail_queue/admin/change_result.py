"""What a change to many recipients did: counted always, named up to a bound, so that the answer fits a gRPC message."""

from collections.abc import Iterable
from typing import Final

from mailrail.pb.queue.v1 import admin_pb2

LISTED: Final = 10_000
"""Recipients that an answer names; those past it are counted only."""

_STATES: Final = {False: admin_pb2.CHANGE_STATE_APPLIED, True: admin_pb2.CHANGE_STATE_PENDING}


class ChangeResult:
    """The recipients that a call changed."""

    def __init__(self) -> None:
        self.listed: list[admin_pb2.Change] = []
        self.count = admin_pb2.ChangeCount()

    def add(self, changed: Iterable[tuple[int, bool]]) -> None:
        """Recipients' ids, each with whether the change waits for the end of an attempt."""
        for identity, pending in changed:
            self.count.recipients += 1
            self.count.pending += pending
            if len(self.listed) < LISTED:
                self.listed.append(admin_pb2.Change(recipient_id=identity, state=_STATES[pending]))
            else:
                self.count.truncated = True

    def count_all(self, recipients: int, pending: int) -> None:
        """Count those, too, that an earlier call of the same operation changed."""
        self.count.recipients, self.count.pending = recipients, pending
        self.count.truncated = len(self.listed) < recipients


class PartlyDone(Exception):
    """A call ended in the middle: `result` is committed, and the rest is not done for the reason in `__cause__`."""

    def __init__(self, result: ChangeResult) -> None:
        super().__init__(f"{result.count.recipients} recipients were changed before")
        self.result = result
