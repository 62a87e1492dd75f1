"""The dashboard `Mailrail / Queue`."""

from grafana.panels import (
    LESS_IS_BAD,
    Color,
    Dashboard,
    Panel,
    Query,
    Row,
    Steps,
    Unit,
    each,
    latency,
    processes,
    rate,
    split,
)
from grafana.shared import ACCEPTED

DASHBOARD = Dashboard(
    "mailrail-queue",
    "Mailrail / Queue",
    "The processes of the queue: commits, memory, shards, neighbours, Postgres and upkeep.",
    (
        Row(
            "Accepting",
            (
                ACCEPTED,
                split(
                    "Commits refused, by reason",
                    "unavailable: Postgres was unreachable (ingress answers 451); limit: a limit of the account; data: "
                    "Postgres refuses this message; upload: the body is not complete; barred: ingress had asked for "
                    "the "
                    "outcome before the commit came.",
                    "mailrail_queue_messages_refused_total",
                    "reason",
                ),
                latency(
                    "Group commit",
                    "Duration of a commit in Postgres, as the queue sees it.",
                    "mailrail_queue_commit_seconds",
                ),
                Panel(
                    "Messages in one commit",
                    "Average. It rises with the load, which makes commits cheap.",
                    (
                        Query(
                            f"sum({rate('mailrail_queue_commit_messages_sum')})"
                            f" / clamp_min(sum({rate('mailrail_queue_commit_messages_count')}), 0.001)",
                            "messages",
                        ),
                    ),
                ),
                split(
                    "Recipients stored, by state",
                    "born_leased: delivered from memory at once. due: waits in the database, because memory, the "
                    "window or "
                    "outbound had no room.",
                    "mailrail_queue_recipients_total",
                    "state",
                ),
                split(
                    "Our own mail signed with DKIM, by result",
                    "DSNs and reports. unsigned: no domain of ours at or above the host name of the gateway has a "
                    "key that signs.",
                    "mailrail_queue_dkim_signed_total",
                    "result",
                ),
                each(
                    "Content waiting in memory",
                    "At most 64 MiB in each process; above that, mail is stored due.",
                    "mailrail_queue_pending_bytes",
                    Unit.BYTES,
                ),
                each(
                    "Large messages being uploaded",
                    "Uploaded and not committed. The limit over all processes is MAILRAIL_QUEUE_UPLOAD_OCTETS (4 GiB).",
                    "mailrail_queue_upload_bytes",
                    Unit.BYTES,
                ),
            ),
        ),
        Row(
            "Owning",
            (
                each("Shards owned", "Of 256, shared evenly among processes.", "mailrail_queue_shards_owned"),
                each(
                    "Outbound processes connected",
                    "Outbound processes with a stream to each queue process. Every outbound process should have one "
                    "to each.",
                    "mailrail_queue_outbound_streams",
                    steps=LESS_IS_BAD,
                ),
                each(
                    "Deliveries in flight",
                    "Deliveries in progress at outbound, by owner.",
                    "mailrail_queue_deliveries_in_flight",
                ),
                each(
                    "Deliveries waiting in memory",
                    "Leased and not handed to outbound yet.",
                    "mailrail_queue_pending_deliveries",
                ),
            ),
        ),
        Row(
            "TLS of what left",
            (
                split(
                    "Recipients taken, by proof",
                    "What proved the next hop. clear: it went without TLS; none: over TLS, and nothing proved the "
                    "server; pkix: a certificate for its name; mta_sts: so, and the domain's policy names the host; "
                    "dane: its TLSA records.",
                    "mailrail_queue_tls_recipients_total",
                    "proof",
                ),
                split(
                    "Recipients taken, by what was demanded",
                    "required: the message came with REQUIRETLS, or an administrator said so; no: TLS-Required: No.",
                    "mailrail_queue_tls_recipients_total",
                    "requirement",
                ),
                split(
                    "REQUIRETLS errors, by reason",
                    "Attempts that TLS kept from the next hop. `mailrail queue show` tells each in words.",
                    "mailrail_queue_requiretls_errors_total",
                    "reason",
                ),
            ),
        ),
        Row(
            "Postgres and upkeep",
            (
                each(
                    "Postgres",
                    "1 while Postgres answers and commits durably.",
                    "mailrail_queue_postgres_up",
                    Unit.BOOLEAN,
                    LESS_IS_BAD,
                ),
                each(
                    "Commits waiting for a standby",
                    "Normally 0. Those that wait for longer than 3 s, while Postgres itself is well.",
                    "mailrail_queue_commits_waiting_for_standby",
                ),
                Panel(
                    "Connections of Postgres, in use",
                    "Share of each limit: the server's, and those of the database and the role where they have one. "
                    "All clients count. A roll-out needs room for one process more of queue, config and outbound.",
                    (
                        Query(
                            "max by (namespace, job, limit) (mailrail_queue_postgres_connections)"
                            " / max by (namespace, job, limit) (mailrail_queue_postgres_connections_allowed)",
                            "{{limit}}",
                        ),
                    ),
                    Unit.SHARE,
                    steps=Steps(Color.GOOD, ((0.75, Color.WARN), (0.9, Color.BAD))),
                ),
                Panel(
                    "Room on the volume of the bundled Postgres",
                    "Share that is left. Of a Postgres of your own its provider says it, or the metrics of its volume.",
                    (
                        Query(
                            "max by (namespace, job, service) (mailrail_postgres_volume_available_bytes)"
                            " / max by (namespace, job, service) (mailrail_postgres_volume_bytes)",
                            "{{service}}",
                        ),
                    ),
                    Unit.SHARE,
                    steps=Steps(Color.BAD, ((0.15, Color.WARN), (0.25, Color.GOOD))),
                ),
                Panel(
                    "Size of the database",
                    "Its tables and indexes on the volume of Postgres, without WAL.",
                    (Query("max by (namespace, job) (mailrail_queue_postgres_database_bytes)", "{{job}}"),),
                    Unit.BYTES,
                ),
                split(
                    "Database errors",
                    "connect: unreachable, or would not commit durably; statement: a statement failed.",
                    "mailrail_queue_database_errors_total",
                    "kind",
                ),
                Panel(
                    "Postgres clock jumps",
                    "Jumps of more than 5 s: the clock was set, or another server took over.",
                    (Query("sum(mailrail_queue_postgres_clock_jumps_total)", "times"),),
                ),
                split(
                    "Failed steps",
                    "Steps that failed although Postgres was reachable. They are tried again; the log has the reason.",
                    "mailrail_queue_step_failures_total",
                    "step",
                ),
                split(
                    "Swept",
                    "Rows that are no longer needed. A message is deleted ten minutes after its last recipient is "
                    "final.",
                    "mailrail_queue_swept_total",
                    "kind",
                ),
                Panel(
                    "In the queue",
                    "Recipients that are not final; estimated by Postgres.",
                    (Query("sum(max by (namespace, job) (mailrail_queue_recipients_stored))", "recipients"),),
                ),
                Panel(
                    "Corrupt",
                    "Recipients that cannot be read, or whose result cannot be stored; they are on hold with the "
                    "reason.",
                    (Query("sum(mailrail_queue_corrupt_recipients_total)", "recipients"),),
                ),
                Panel(
                    "Database went back",
                    "Times that the database was set back to an earlier state, by a failover to a standby that was "
                    "behind, a restore "
                    "or a copy; counted by each process.",
                    (Query("sum(mailrail_queue_new_histories_total)", "histories"),),
                ),
                split(
                    "Closed after the database went back",
                    "Deliveries closed, results of the earlier database, and recipients that are gone.",
                    "mailrail_queue_history_closed_total",
                    "kind",
                ),
            ),
        ),
        processes("queue"),
    ),
)
