"""Why the config service does not take a revision, as the status ABORTED says it in its trailing metadata."""

from typing import Final

REASON_KEY: Final = "mailrail-reason"
"""The key; its value is one of those below."""
STALE_EPOCH: Final = "stale-epoch"
"""Another publisher acquired the configuration later (CFG-04)."""
OTHER_HEAD: Final = "other-head"
"""An administrator moved head since the publisher read it."""
SET_BACK: Final = "set-back"
"""The store went back: it gave nobody this epoch (CFG-08)."""
