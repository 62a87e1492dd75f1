"""What administrators see of the queue and do to it (ADM-01, ADM-02; reference F3)."""

from mailrail_queue.admin.base import AdminContext
from mailrail_queue.admin.changes import RecipientChanges
from mailrail_queue.admin.difference import Differences
from mailrail_queue.admin.explain import Explainer
from mailrail_queue.admin.hold_rules import HoldRuleChanges
from mailrail_queue.admin.listing import Listing


class Administration:
    """The queue as administrators use it: one instance a process, on connections whose schema is `queue`."""

    def __init__(self, context: AdminContext) -> None:
        self.listing = Listing(context)
        self.changes = RecipientChanges(context)
        self.hold_rules = HoldRuleChanges(self.changes)
        self.explainer = Explainer(context)
        self.differences = Differences(context)
