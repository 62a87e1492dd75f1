"""Every series of the operator. `kind` is a resource kind, `ready` True, False or Unknown; other values are listed."""

from prometheus_client import Counter, Gauge, Histogram

LEADER = Gauge("mailrail_operator_leader", "1 while this process is the leader, else 0")
SYNCED = Gauge("mailrail_operator_synced", "1 once all objects were listed, else 0")
OBJECTS = Gauge("mailrail_operator_objects", "Objects by kind and value of their Ready condition", ["kind", "ready"])
OBJECT_WARNINGS = Gauge(
    "mailrail_operator_object_warnings",
    "Objects that work and are probably not meant so, by kind and condition: Shadowed (part of it can never apply), "
    "Ambiguous (a mere name decides between two rules)",
    ["kind", "condition"],
)
UNREADABLE_OBJECTS = Gauge(
    "mailrail_operator_unreadable_objects",
    "Objects that run and of which this version can read neither the source nor what another version compiled of it: "
    "nothing is published while there is one",
)
OTHERS = Gauge(
    "mailrail_operator_objects_judged_by_others",
    "Objects by kind that this operator reads and another controller judges; not among mailrail_operator_objects",
    ["kind"],
)
REVISION = Gauge("mailrail_operator_published_revision", "Newest configuration revision that was published")
HEAD = Gauge(
    "mailrail_operator_head_revision",
    "Configuration revision that services should run; another than the newest only while head is pinned, or until what "
    "the store lost is published again",
)
PINNED = Gauge("mailrail_operator_head_pinned", "1 while head is pinned to an older revision, else 0")
CONSUMERS = Gauge(
    "mailrail_operator_consumers",
    "Live processes that read the configuration; state: current, behind, rejecting",
    ["state"],
)
LAST_PUBLISH = Gauge("mailrail_operator_last_publish_timestamp_seconds", "Time of the last successful publish")
LAST_WATCH = Gauge(
    "mailrail_operator_last_watch_timestamp_seconds",
    "Time of the last watch event or the last successful list",
)
CYCLE = Histogram(
    "mailrail_operator_cycle_seconds",
    "Seconds from the first change noticed to the revision stored",
    buckets=(0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30),
)
PUBLISHES = Counter(
    "mailrail_operator_publishes_total",
    "Publishes; result: stored, unchanged, pinned, held (an object cannot be read), failed",
    ["result"],
)
STATUS_WRITES = Counter(
    "mailrail_operator_status_writes_total",
    "Status writes; result: written, partial (without fields that the installed CRD, an older one, does not declare), "
    "gone (the object was deleted or changed meanwhile), failed",
    ["result"],
)
STATUS_PENDING = Gauge("mailrail_operator_status_pending", "Statuses that wait to be written or were refused")
RESYNCS = Counter(
    "mailrail_operator_resyncs_total",
    "Full lists of a kind; cause: start, relist, count, period",
    ["cause"],
)
WATCH_RESTARTS = Counter("mailrail_operator_watch_restarts_total", "Times that the watches ended and were restarted")
SECRET_READS = Counter("mailrail_operator_secret_reads_total", "Secrets read; result: read, absent, failed", ["result"])
DNS_CHECKS = Counter(
    "mailrail_operator_dns_checks_total", "Domains looked up; status: True, False, Unknown", ["status"]
)
MAIL_PROBES_EXPECTED = Gauge(
    "mailrail_operator_mail_probes_expected",
    "1 while this process leads and should send mail probes: they are switched on, and for all it knows there is an MX "
    "listener that they can come in by; else 0",
)
MAIL_PROBES = Counter(
    "mailrail_operator_mail_probes_total",
    "Mail probes, which the leader sends through ingress, queue and Postgres; result: arrived, unreachable (no "
    "connection to the listener), tls_failed, refused (4yz or 5yz), not_arrived (answered 250, and not there in time), "
    "queue_unreachable (answered 250, and the queue could not be asked)",
    ["result"],
)
MAIL_PROBE_SECONDS = Histogram(
    "mailrail_operator_mail_probe_seconds",
    "Seconds from the connection of a probe to its arrival",
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
LAST_MAIL_PROBE = Gauge(
    "mailrail_operator_last_mail_probe_timestamp_seconds", "Time at which a probe arrived last; 0 before the first"
)
for _counter, _values in (  # there from 0 on, so that the first one is a rise
    (PUBLISHES, ("stored", "unchanged", "pinned", "held", "failed")),
    (STATUS_WRITES, ("written", "partial", "gone", "failed")),
    (RESYNCS, ("start", "relist", "count", "period")),
    (SECRET_READS, ("read", "absent", "failed")),
    (DNS_CHECKS, ("True", "False", "Unknown")),
    (MAIL_PROBES, ("arrived", "unreachable", "tls_failed", "refused", "not_arrived", "queue_unreachable")),
):
    for _value in _values:
        _counter.labels(_value)
