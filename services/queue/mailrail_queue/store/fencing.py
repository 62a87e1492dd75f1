"""Who may write: what every statement that leases or schedules compares, and what it notes for the owners (SHD-01, SHD-03).

Rules that hold for all statements of this package: one statement a batch (`unnest` of columns); every write that leases
or schedules compares owner and epoch of the shard in the same statement (`fencing.OWN`, SHD-01); every write to a leased
recipient names its token (LSE-03); rows are reached by index only, and named in the order of their ids (`by_id`); nothing reads content but what is in `content`.
What each statement is for is in the comment above it.
"""

# ruff: noqa: E501 -- statements keep their own lines, and are put together from constants of ours alone

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Final

from mailrail_queue.store import columns as c

by_id: Final = attrgetter("id")
"""The order of the rows of a batch. Postgres locks them in the order in which they are named, so two batches, or a batch
and an administrator's change, do not wait for each other in a ring."""


@dataclass(frozen=True, slots=True)
class Ownership:
    """This process as an owner: what fenced statements compare. `epochs`: shard → epoch under which it is held."""

    owner: str
    epochs: Mapping[int, int]

    def parameters(self, shards: Iterable[int]) -> dict[str, Any]:
        """The parameters `owner`, `own_shards`, `own_epochs` for those of `shards` that are held."""
        held = [s for s in set(shards) if s in self.epochs]
        return {
            "owner": self.owner,
            "own_shards": c.smallints(held),
            "own_epochs": c.bigints([self.epochs[s] for s in held]),
        }


OWN: Final = """own AS (
    SELECT s.number FROM unnest(%(own_shards)s, %(own_epochs)s) AS o (number, epoch)
    JOIN shard s ON s.number = o.number AND s.owner = %(owner)s AND s.epoch = o.epoch
)"""

# A batch is joined with what is ours before it meets the recipients, each of which is then found by its id. As a condition on the
# recipients (their shard is ours, they are due) the same would let the planner begin with all that is due in our shards.

# The sites that `stored` rows (shard, site, due, waits) made due earlier than their row says. Most often that is none, and then nothing
# is written or locked. In order, so that two batches never wait for each other in a ring.
NOTE: Final = """INSERT INTO site_due (shard, site, next_due)
    SELECT n.shard, n.site, min(n.due) AS due FROM stored n
    WHERE n.waits AND NOT EXISTS (SELECT FROM site_due d WHERE d.shard = n.shard AND d.site = n.site AND d.next_due <= n.due)
    GROUP BY n.shard, n.site ORDER BY n.shard, n.site
    ON CONFLICT (shard, site) DO UPDATE SET next_due = LEAST(site_due.next_due, excluded.next_due)"""
