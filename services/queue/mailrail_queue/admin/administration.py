"""What administrators see of the queue and do to it, put together (ADM-01, ADM-02; reference F3)."""

from mailrail_queue.admin.explain import Explaining
from mailrail_queue.admin.hold_rules import HoldRules
from mailrail_queue.admin.listing import Listing


class Administration(Listing, HoldRules, Explaining):
    """The queue as administrators use it. One instance a process; `use` gives connections with `queue` as schema."""
