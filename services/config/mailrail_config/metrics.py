"""Series of the config service. Labels: `role` is one of revision.Role; the others list their values here."""

from prometheus_client import Counter, Gauge

HEAD = Gauge("mailrail_config_head_revision", "Revision that services should run; 0 before the first")
PINNED = Gauge("mailrail_config_head_pinned", "1 while head is pinned to an older revision, else 0")
WATCHERS = Gauge("mailrail_config_watchers", "Open Watch streams of this process", ["role"])
CONSUMERS = Gauge(
    "mailrail_config_consumers",
    "Live consumers; state is `current` (runs head), `behind`, or `rejecting` (could not use head)",
    ["role", "state"],
)
PUBLISHES = Counter(
    "mailrail_config_publishes_total",
    "Publish calls; result is `activated`, `stored` (head is pinned), `unchanged` or `refused`",
    ["result"],
)
"""`refused`: stale epoch, another head, missing values, or an unreadable body."""
POSTGRES_UP = Gauge("mailrail_config_postgres_up", "1 while Postgres answers, else 0: then the last head is served on")
for _result in ("activated", "stored", "unchanged", "refused"):  # there from 0 on, so that the first one is a rise
    PUBLISHES.labels(_result)
NEW_HISTORIES = Counter(
    "mailrail_config_new_histories_total",
    "Times that this process found the database gone back, to a standby that was behind or to a copy (HIS-01)",
)
