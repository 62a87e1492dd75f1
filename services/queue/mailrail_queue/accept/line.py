"""The line of commits that wait for a lane of the group commit."""

from collections import deque
from collections.abc import Iterator

from mailrail.core.limits import SMALL_LIMIT
from mailrail_queue.accept.pending import PendingCommit


class CommitLine:
    """Commits that wait. Small ones go ahead of large ones, of which each batch has one all the same (ACC-07)."""

    def __init__(self) -> None:
        self._small: deque[PendingCommit] = deque()
        self._large: deque[PendingCommit] = deque()

    def __len__(self) -> int:
        return len(self._small) + len(self._large)

    def add(self, pending: PendingCommit) -> None:
        """To the end of the line."""
        (self._large if len(pending.prefix) + len(pending.body) > SMALL_LIMIT else self._small).append(pending)

    def take(self, messages: int, octets: int) -> list[PendingCommit]:
        """A batch of at most so many messages, and of so many octets unless one message alone has more.

        Where an id is there twice, the later one gets the answer of the first.
        """
        batch: dict[bytes, PendingCommit] = {}
        kept = self._large[0].size if self._large and messages > 1 else 0  # for a large one
        octets = self._fill(batch, self._small, messages - bool(kept), octets - kept)
        self._fill(batch, self._large, messages, octets + kept)
        return list(batch.values())

    def _fill(self, batch: dict[bytes, PendingCommit], line: deque[PendingCommit], messages: int, octets: int) -> int:
        """Returns the octets that are left."""
        while line and len(batch) < messages and (not batch or line[0].size <= octets):
            pending = line.popleft()
            octets -= pending.size
            first = batch.setdefault(pending.id, pending)
            if first is not pending:
                first.duplicates += (pending.caller,)
        return octets

    def take_older(self, moment: float) -> Iterator[PendingCommit]:
        """Those that came before then."""
        for line in (self._small, self._large):
            while line and line[0].since < moment:
                yield line.popleft()
