"""Whether a database is still the one that this process wrote to, or went back to what it was before (HIS-01).

A database goes back when a standby is promoted that was behind, when a data folder, a snapshot or a dump is put back,
or when a copy takes its place. What it gave since, ids above all, it gives again. Timeline and identity of the server
tell of some of these; what a process wrote itself and reads back tells of all.
"""

from dataclasses import dataclass
from enum import StrEnum


class HistoryVerdict(StrEnum):
    """What a look at the database means for a process."""

    SAME = "same"
    """The history that it is in goes on."""
    ADOPT = "adopt"
    """Another history, which somebody has begun; it takes part in it."""
    DRAW = "draw"
    """The data went back, and nobody has said so yet: a new history begins."""


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """Which server it is: of another cluster, or after a promotion, it is another. Also when the tables are others."""

    system: str
    """Of the cluster, and the number of a table that was made with all others, after a `/`."""
    timeline: int


NOBODY = ServerIdentity("", 0)
"""The history has not been used on any server yet."""


@dataclass(frozen=True, slots=True)
class DatabaseState:
    """What the database says."""

    number: int
    """Of the history that its data are of."""
    followed: int | None
    """The history that whoever drew that number was in; None: it is the first."""
    drawn_on: ServerIdentity
    server: ServerIdentity
    """The one that answers."""


def judge(own: int | None, seen: DatabaseState, *, word_known: bool, behind: bool) -> HistoryVerdict:
    """What to do.

    `own`: the history that this process is in; None: it begins. `word_known`: its row bears a word that it wrote last
    (or was writing). `behind`: counters are behind what was given from them.
    """
    moved = seen.drawn_on not in (NOBODY, seen.server)
    if own is None:
        return HistoryVerdict.DRAW if moved or behind else HistoryVerdict.ADOPT
    if word_known and not moved:
        if seen.number != own:
            return HistoryVerdict.ADOPT
        return HistoryVerdict.DRAW if behind else HistoryVerdict.SAME
    # The data went back. Another process that was in the same history may have noticed first: then this is its number,
    # and not one of long ago that came back with the data.
    if not moved and seen.number != own and seen.followed == own:
        return HistoryVerdict.ADOPT
    return HistoryVerdict.DRAW


def why(own: int | None, seen: DatabaseState, *, word_known: bool, behind: bool) -> str:
    """The reason of a DRAW in words, for people."""
    if seen.drawn_on not in (NOBODY, seen.server):
        before, now = seen.drawn_on.system.partition("/")[0], seen.server.system.partition("/")[0]
        if before != now:
            return "it is on another server than before"
        if seen.drawn_on.system != seen.server.system:
            return "its tables were made anew: a dump was put back"
        return "a standby was promoted, or the server was restored"
    if own is not None and not word_known:
        return "it does not have what was written last"
    return "its counters are behind what was given from them" if behind else ""


class Words:
    """The words that a process writes into its row, in their order: which of them may be found there."""

    def __init__(self) -> None:
        self._words: list[int] = []
        self._first = 0
        """The place of the first that is kept."""
        self._committed = 0
        """The place of the newest that is known to be committed."""

    @property
    def since(self) -> int:
        """The place of the oldest word that may be found from now on."""
        return self._committed

    def next(self, word: int) -> int:
        """The word to write next: `word`, or one whose writing is in doubt while there are many of those."""
        if self._first + len(self._words) - self._committed > _IN_DOUBT:
            return self._words[-1]
        self._words.append(word)
        return word

    def known(self, since: int) -> list[int]:
        """The words that a look that began at `since` may find."""
        return self._words[max(0, since - self._first) :]

    def commit(self, word: int) -> None:
        """The database has this word, and so none of those before it."""
        self._committed = max(self._committed, self._first + self._words.index(word))
        while self._committed - self._first > _PAST:
            del self._words[0]
            self._first += 1


_IN_DOUBT = 8
"""Words whose writing nobody knows the outcome of, beyond which no more are made."""
_PAST = 64
"""Committed words that are remembered: heartbeats may go on while a look is under way."""
