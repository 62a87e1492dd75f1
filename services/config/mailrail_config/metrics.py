"""Series of the config service. Labels: `role` is one of revision.Role; the others list their values here."""

from prometheus_client import Counter, Gauge

HEAD = Gauge("mailrail_config_head_revision", "Revision that services should run; 0 before the first")
PINNED = Gauge("mailrail_config_head_pinned", "1 while head is pinned to an older revision, else 0")
WATCHERS = Gauge("mailrail_config_watchers", "Open Watch streams of this process", ["role"])
CONSUMERS = Gauge(
    "mailrail_config_consumers",
    "Live processes that read the configuration; state is `current` (runs head), `behind` or `rejecting` (could not "
    "use head)",
    ["role", "state"],
)
PUBLISHES = Counter(
    "mailrail_config_publishes_total",
    "Publish calls; result is `activated`, `stored` (head is pinned), `unchanged` or `refused`",
    ["result"],
)
"""`refused`: stale epoch, another head, missing values, or an unreadable body."""
POSTGRES_UP = Gauge(
    "mailrail_config_postgres_up", "1 while Postgres answers, else 0; services then still get the last head"
)
for _result in ("activated", "stored", "unchanged", "refused"):  # there from 0 on, so that the first one is a rise
    PUBLISHES.labels(_result)
NEW_HISTORIES = Counter(
    "mailrail_config_new_histories_total",
    "Times that this process found the database set back to an earlier state, by a failover or a restore (HIS-01)",
)
