"""Every series of the queue, with what its labels may say."""

from collections import Counter as Tally
from collections.abc import Iterable, Mapping, Sequence

from prometheus_client import Counter, Gauge, Histogram

from mailrail.core.delivery.shares import SiteStanding
from mailrail.kit.metrics import SnapshotGauge, Spread, bounded
from mailrail.pb.queue.v1 import types_pb2

ACCEPTED = Counter("mailrail_queue_messages_accepted_total", "Messages committed, by origin", ["origin"])
"""origin: mx, submission, system."""
REFUSED = Counter("mailrail_queue_messages_refused_total", "Commits answered with a refusal", ["reason"])
"""reason: barred, data, full (Postgres has no room left), late (ingress no longer waited), limit, room
(MAILRAIL_QUEUE_UPLOAD_OCTETS), upload, unavailable."""
RECIPIENTS = Counter(
    "mailrail_queue_recipients_total", "Recipients stored, by the state in which they were stored", ["state"]
)
"""state: born_leased, due, held, released_later."""
ATTEMPTS = Counter(
    "mailrail_queue_attempts_total", "Attempts that ended, one for each recipient, by outcome", ["outcome"]
)
"""outcome: delivered, relayed, deferred, failed, captured, not_attempted, interrupted, cancelled."""
FIRST_ATTEMPT_SECONDS = Spread(
    "mailrail_queue_first_attempt_seconds",
    "Seconds from the commit of a recipient to the start of its first attempt, without the time on hold or until a "
    "release that its sender asked for; an attempt that dialled nothing because of a backoff does not count",
    buckets=(1, 5, 15, 60, 300, 900, 3600, 14400),
)
BATCH = Histogram(
    "mailrail_queue_commit_messages", "Messages in one group commit", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256)
)
COMMIT_SECONDS = Histogram(
    "mailrail_queue_commit_seconds",
    "Duration of a group commit",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5),
)
UPLOADING = Gauge(
    "mailrail_queue_upload_bytes",
    "Octets of large messages uploaded and not committed; an upload that was given up counts for one more minute "
    "(ACC-07)",
)
PENDING = Gauge("mailrail_queue_pending_deliveries", "Deliveries leased and not handed to outbound yet")
PENDING_BYTES = Gauge(
    "mailrail_queue_pending_bytes",
    "Octets of content in memory for deliveries that are not handed to outbound yet (LSE-06)",
)
IN_FLIGHT = Gauge("mailrail_queue_deliveries_in_flight", "Deliveries in progress at outbound")
BY_STANDING = Gauge(
    "mailrail_queue_standing_deliveries",
    "Deliveries in memory by the standing of their site, which says what share of outbound they may use (SHD-03)",
    ["standing", "state"],
)
"""standing: quick (the last delivery was answered within 10 s), slow, unproven (none was answered yet, or the last one
failed for the site's trouble). state: in_flight, pending."""
STARVED = Gauge(
    "mailrail_queue_standing_sites_waiting",
    "Sites whose deliveries wait because outbound takes no more for sites of this standing",
    ["standing"],
)
"""standing: as above."""
SITES = Gauge("mailrail_queue_sites", "Sites held in memory", ["state"])
"""state: active, backoff (nothing is dialled)."""
SHARDS = Gauge("mailrail_queue_shards_owned", "Shards that this process owns, of 256 in all")
OUTBOUND = Gauge("mailrail_queue_outbound_streams", "Outbound processes connected")
POSTGRES_UP = Gauge("mailrail_queue_postgres_up", "1 while Postgres answers, has space and commits durably, else 0")
WAITING_FOR_STANDBY = Gauge(
    "mailrail_queue_commits_waiting_for_standby",
    "Transactions of this process that wait for a synchronous standby for longer than 3 s",
)
POSTGRES_CONNECTIONS = SnapshotGauge(
    "mailrail_queue_postgres_connections",
    "Sessions of all clients, not of Mailrail alone, that count against each limit of Postgres",
    ["limit"],
)
"""limit: server (max_connections without those kept for administrators), database, role (CONNECTION LIMIT of ours)."""
POSTGRES_CONNECTIONS_ALLOWED = SnapshotGauge(
    "mailrail_queue_postgres_connections_allowed", "How many sessions each limit of Postgres allows", ["limit"]
)
"""limit: as above; absent where there is none. What a pooler in between allows is not known."""
POSTGRES_DATABASE_BYTES = Gauge(
    "mailrail_queue_postgres_database_bytes",
    "Size of the database on the volume of Postgres, with indexes and without WAL",
)
BACKLOG = Gauge(
    "mailrail_queue_backlog_recipients",
    "Due recipients in the shards of this process, by what they wait for",
    ["state"],
)
"""state: ready (for an outbound process; scale by this state), limited (the window of the site or a limit has no room),
backoff (the site or its transport is in backoff, or the transport is missing)."""
BACKLOG_OLDEST = Gauge(
    "mailrail_queue_backlog_oldest_seconds",
    "Seconds since the oldest due recipient fell due, by what it waits for; 0 when there is none",
    ["state"],
)
"""state: as above."""
STORED = Gauge(
    "mailrail_queue_recipients_stored", "Recipients in the queue of all processes, estimated by Postgres's statistics"
)
TRANSPORTS_IN_BACKOFF = SnapshotGauge(
    "mailrail_queue_transports_in_backoff",
    "1 for each transport (smarthost, LMTP server, proxy) that is in backoff, or was within the last hour and has not "
    "worked since, as this process sees it",
    ["transport", "reason"],
)
"""transport: NAMESPACE/NAME of the first 100; those beyond are counted under `other`. reason: login_refused (a reply
530, 534, 535 or 538), refused (another reply), setup_failed (TLS, the proxy, or no login that both sides support),
no_answer (no connection, or it was lost)."""
NAMED_SITES = SnapshotGauge(
    "mailrail_queue_site_waiting_recipients",
    "Recipients, due or not, that wait for the ten sites in backoff where most wait",
    ["site"],
)
"""site: as `mailrail queue sites` prints it, such as domain:example.com. MAILRAIL_QUEUE_NAMED_SITES says how many."""
DATABASE_ERRORS = Counter("mailrail_queue_database_errors_total", "Postgres errors on the message path", ["kind"])
"""kind: connect (unreachable, or would not commit durably), statement."""
SWEPT = Counter("mailrail_queue_swept_total", "Rows removed by the sweepers", ["kind"])
"""kind: message, upload, chunk (without a message; should stay 0), attempt (of a recipient that is gone), bar, usage,
 dsn, event, site, operation (of an administrator), history_partition, probe (that the operator did not ask for),
 timeline (put into history behind its recipient)."""

CORRUPT = Counter(
    "mailrail_queue_corrupt_recipients_total",
    "Recipients put on hold because they are corrupt, or because their result cannot be stored",
)
FAILURES = Counter(
    "mailrail_queue_step_failures_total",
    "Steps that failed although Postgres was reachable; each step is tried again",
    ["step"],
)
"""step: due_work, due_mail, lease_sweep, leases, results, heartbeat, revisions, probes, timers, peer_hints, upkeep,
backlog, administration."""
CLOCK_JUMPS = Counter(
    "mailrail_queue_postgres_clock_jumps_total",
    "Times that Postgres's clock jumped by more than 5 s",
)
HISTORIES = Counter(
    "mailrail_queue_new_histories_total",
    "Times that this process found the database set back to an earlier state, by a failover or a restore (HIS-01)",
)
HISTORY = Counter(
    "mailrail_queue_history_closed_total",
    "What was closed or dropped after the database was set back to an earlier state",
    ["kind"],
)
"""kind: deliveries (closed), results_dropped, results_counted (delivered, for the same recipient), recipients_missing
(no longer in the database)."""
TLS_RECIPIENTS = Counter(
    "mailrail_queue_tls_recipients_total",
    "Recipients that a next hop took, by what their message demands of TLS and by what proved the server",
    ["requirement", "proof"],
)
"""requirement: default, required (REQUIRETLS), no (TLS-Required: No). proof: clear (without TLS), none (TLS, and
nothing proved the server), pkix (a certificate for its name, which an unproven MX record may have given: DANE-22),
mta_sts (and the domain's policy names it), dane."""
REQUIRETLS_ERRORS = Counter(
    "mailrail_queue_requiretls_errors_total",
    "Attempts for recipients of messages with REQUIRETLS that TLS kept from the next hop",
    ["reason", "outcome"],
)
"""reason: sts_unanswered, sts_mx, tlsa_unanswered, mx_unproven, no_proof, tls_disabled, no_tls, certificate, tlsa,
no_requiretls, as docs/reference/tls-decision.md explains them; other (an outbound of another release did not say).
outcome: deferred, failed."""
DSNS = Counter("mailrail_queue_dsns_total", "DSNs stored, and copies to the postmaster in place of a DSN", ["kind"])
"""kind: failed, delayed, relayed, delivered, expanded, postmaster."""
SIGNED = Counter(
    "mailrail_queue_dkim_signed_total",
    "Notifications and reports of ours, by purpose and whether they are signed with DKIM",
    ["purpose", "result"],
)
"""purpose: notification, dmarc_report, tls_report. result: signed, unsigned (no domain of ours at or above the host
name of the gateway has a key that signs)."""

# A counter that is first seen at 1 has risen by nothing: every one that alarms or figures ask for is there from 0 on.
for _reason in ("barred", "data", "full", "late", "limit", "room", "upload", "unavailable"):
    REFUSED.labels(reason=_reason)
for _kind in ("failed", "delayed", "relayed", "delivered", "expanded", "postmaster"):
    DSNS.labels(kind=_kind)
for _result in ("signed", "unsigned"):
    for _purpose in ("notification", "dmarc_report", "tls_report"):
        SIGNED.labels(purpose=_purpose, result=_result)
for _what in (
    *("message", "upload", "chunk", "attempt", "bar", "usage"),
    *("dsn", "event", "site", "operation", "history_partition", "probe", "timeline"),
):
    SWEPT.labels(kind=_what)
for _what in ("deliveries", "results_dropped", "results_counted", "recipients_missing"):
    HISTORY.labels(kind=_what)
for _what in ("connect", "statement"):
    DATABASE_ERRORS.labels(kind=_what)
for _what in (
    *("due_work", "due_mail", "lease_sweep", "leases", "results", "heartbeat", "revisions"),
    *("probes", "timers", "peer_hints", "upkeep", "backlog", "administration"),
):
    FAILURES.labels(step=_what)

_NAMED_TRANSPORTS = 100
"""Transports with a series of their own."""
OUTCOMES = {number: name.removeprefix("OUTCOME_").lower() for name, number in types_pb2.Outcome.items() if number != 0}
"""Outcome as a label, and as people are told."""
_ORIGINS = {types_pb2.ORIGIN_MX: "mx", types_pb2.ORIGIN_SUBMISSION: "submission", types_pb2.ORIGIN_SYSTEM: "system"}
CLEAR = -1
"""In place of a TlsProof: there was no TLS."""
_REQUIREMENTS: dict[int, str] = {
    types_pb2.TLS_REQUIREMENT_UNSPECIFIED: "default",
    types_pb2.TLS_REQUIREMENT_REQUIRED: "required",
    types_pb2.TLS_REQUIREMENT_NO: "no",
}
_PROOFS: dict[int, str] = {
    CLEAR: "clear",
    types_pb2.TLS_PROOF_UNSPECIFIED: "none",
    types_pb2.TLS_PROOF_PKIX: "pkix",
    types_pb2.TLS_PROOF_MTA_STS: "mta_sts",
    types_pb2.TLS_PROOF_DANE: "dane",
}
_CAUSES: dict[int, str] = {
    number: name.removeprefix("TLS_CAUSE_").lower() for name, number in types_pb2.TlsCause.items() if number
}
_FAILURES: dict[int, str] = {types_pb2.OUTCOME_DEFERRED: "deferred", types_pb2.OUTCOME_FAILED: "failed"}
for _reason in (*_CAUSES.values(), "other"):
    for _what in _FAILURES.values():
        REQUIRETLS_ERRORS.labels(reason=_reason, outcome=_what)
_by_way: dict[str, Counter] = {
    way: RECIPIENTS.labels(state=way) for way in ("born_leased", "due", "held", "released_later")
}
_by_outcome: dict[int, Counter] = {number: ATTEMPTS.labels(outcome=name) for number, name in OUTCOMES.items()}
_by_origin: dict[int, Counter] = {number: ACCEPTED.labels(origin=name) for number, name in _ORIGINS.items()}


def count_attempts(outcomes: Iterable[int]) -> None:
    """Attempts that ended so."""
    for outcome, count in Tally(outcomes).items():
        if outcome in _by_outcome:
            _by_outcome[outcome].inc(count)


def count_tls(taken: Iterable[tuple[int, int]], kept: Iterable[tuple[int, int]]) -> None:
    """Recipients that next hops took: (TlsRequirement, TlsProof, or CLEAR); and those with REQUIRETLS that TLS kept
    from them: (TlsCause, Outcome)."""
    for (requirement, proof), count in Tally(taken).items():
        labels = (_REQUIREMENTS.get(requirement, "required"), _PROOFS.get(proof, "none"))
        TLS_RECIPIENTS.labels(*labels).inc(count)
    for (cause, outcome), count in Tally(kept).items():
        REQUIRETLS_ERRORS.labels(_CAUSES.get(cause, "other"), _FAILURES[outcome]).inc(count)


def count_accepted(origins: Iterable[int]) -> None:
    """Messages that were committed."""
    for origin, count in Tally(origins).items():
        _by_origin.get(origin, _by_origin[types_pb2.ORIGIN_MX]).inc(count)


def count_stored(ways: Mapping[str, int]) -> None:
    """Recipients that were committed, by how."""
    for way, count in ways.items():
        if count:
            _by_way[way].inc(count)


def set_standings(pending: Sequence[int], in_flight: Sequence[int], starved: Sequence[int]) -> None:
    """Deliveries, and sites that wait for credit, by standing."""
    for standing in SiteStanding:
        name = standing.name.lower()
        BY_STANDING.labels(standing=name, state="pending").set(pending[standing])
        BY_STANDING.labels(standing=name, state="in_flight").set(in_flight[standing])
        STARVED.labels(standing=name).set(starved[standing])


def count_dsn(kind: str) -> None:
    """A notification was made."""
    DSNS.labels(kind=kind).inc()


def count_signature(purpose: str, result: str) -> None:
    """Mail of our own was stored, signed or not."""
    SIGNED.labels(purpose=purpose, result=result).inc()


def set_transports_in_backoff(failing: Mapping[str, str]) -> None:
    """Transports by name, with the reason of each."""
    rows: dict[tuple[str, ...], float] = {one: 1.0 for one in failing.items()}  # noqa: C420 -- its type is wider
    TRANSPORTS_IN_BACKOFF.set(bounded(rows, _NAMED_TRANSPORTS))
