"""Whether the store still holds what was published last (CFG-09): level, not edge.

A database goes back (a backup is put back, a standby is promoted that was behind), or an empty one takes its place.
Nothing changes then that a publisher would hear of, so it compares what it published with what is stored.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StoredRevision:
    """A stored revision. The same number may mean another revision in another history (HIS-01)."""

    revision: int
    """0: none."""
    checksum: str
    history: int
    """Of the store's data."""


def difference(published: StoredRevision, newest: StoredRevision) -> str:
    """Why the newest stored revision is not the one that was published last; empty when it is."""
    if newest.revision == 0:
        return f"the store is empty: revision {published.revision}, which was published last, is not in it"
    if newest.revision < published.revision:
        return (
            f"the store went back to revision {newest.revision}: "
            f"revision {published.revision}, which was published last, is not in it"
        )
    if (newest.revision, newest.checksum) != (published.revision, published.checksum):
        return f"the store has another revision {newest.revision}, not revision {published.revision} as published last"
    return ""


def reason_to_publish(published: StoredRevision, newest: StoredRevision) -> str:
    """Why what was published last is published again: `difference`, or the store has it in another history. Empty when
    the store has just that."""
    if newest == published:
        return ""
    return difference(published, newest) or "the database is another, or was set back"
