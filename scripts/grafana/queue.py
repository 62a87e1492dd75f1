"""The dashboard `Mailrail / Queue`."""

from grafana.panels import LESS_IS_BAD, Dashboard, Panel, Query, Row, Unit, each, latency, processes, rate, split
from grafana.shared import ACCEPTED

DASHBOARD = Dashboard(
    "mailrail-queue",
    "Mailrail / Queue",
    "The queue's processes: commits, memory, shards, neighbours, Postgres and upkeep.",
    (
        Row(
            "Accepting",
            (
                ACCEPTED,
                split(
                    "Commits refused, by reason",
                    "unavailable: Postgres was out of reach (ingress answers 451); limit: an account's; data: "
                    "Postgres refuses this message; upload: its body never came whole; barred: its outcome was "
                    "asked for before it came.",
                    "mailrail_queue_messages_refused_total",
                    "reason",
                ),
                latency(
                    "Group commit",
                    "Duration of a commit in Postgres, as the queue sees it.",
                    "mailrail_queue_commit_seconds",
                ),
                Panel(
                    "Messages that share a commit",
                    "On average. It rises with the load: that is what makes commits cheap.",
                    (
                        Query(
                            f"sum({rate('mailrail_queue_commit_messages_sum')})"
                            f" / clamp_min(sum({rate('mailrail_queue_commit_messages_count')}), 0.001)",
                            "messages",
                        ),
                    ),
                ),
                split(
                    "Recipients stored, by how",
                    "born_leased: handed on from memory at once. due: waits in the database, since memory, the "
                    "window or outbound had no room.",
                    "mailrail_queue_recipients_total",
                    "way",
                ),
                each(
                    "Content that waits in memory",
                    "Of 64 MiB a process; past it mail is stored due.",
                    "mailrail_queue_pending_bytes",
                    Unit.BYTES,
                ),
                each(
                    "Large messages on their way",
                    "Stored and not committed, of MAILRAIL_QUEUE_UPLOAD_OCTETS (4 GiB) over all processes.",
                    "mailrail_queue_upload_octets",
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
                    "To each queue process; every outbound process should be connected to every one.",
                    "mailrail_queue_outbound_streams",
                    steps=LESS_IS_BAD,
                ),
                each(
                    "Deliveries in flight",
                    "That outbound works on, by owner.",
                    "mailrail_queue_deliveries_in_flight",
                ),
                each(
                    "Deliveries that wait in memory",
                    "Leased and not handed on yet.",
                    "mailrail_queue_pending_deliveries",
                ),
            ),
        ),
        Row(
            "Postgres and upkeep",
            (
                each(
                    "Postgres",
                    "1 while it answers and commits durably.",
                    "mailrail_queue_postgres_up",
                    Unit.BOOLEAN,
                    LESS_IS_BAD,
                ),
                split(
                    "Database errors",
                    "connect: out of reach, or it would not be durable; statement: one failed.",
                    "mailrail_queue_database_errors_total",
                    "what",
                ),
                Panel(
                    "Clock of Postgres set",
                    "By more than 5 s: by hand, by NTP, or because another server took its place.",
                    (Query("sum(mailrail_queue_postgres_clock_jumps_total)", "times"),),
                ),
                split(
                    "Failed steps",
                    "For another reason than Postgres being out of reach; they are tried again, and the log says why.",
                    "mailrail_queue_failures_total",
                    "step",
                ),
                split(
                    "Swept",
                    "Rows that nobody needs any more. Messages follow their last recipient by ten minutes.",
                    "mailrail_queue_swept_total",
                    "what",
                ),
                Panel(
                    "In the queue",
                    "Recipients that are not final, by Postgres's statistics.",
                    (Query("sum(max by (namespace, job) (mailrail_queue_recipients_stored))", "recipients"),),
                ),
                Panel(
                    "Set aside",
                    "Recipients that cannot be read or written; they are on hold with the reason.",
                    (Query("sum(mailrail_queue_set_aside_total)", "recipients"),),
                ),
                Panel(
                    "Database went back",
                    "How often, a process each: a failover to a standby that was behind, a restore or a copy.",
                    (Query("sum(mailrail_queue_new_histories_total)", "histories"),),
                ),
                split(
                    "Left over of before",
                    "When the database went back: deliveries closed, results of before, recipients that are gone.",
                    "mailrail_queue_history_closed_total",
                    "what",
                ),
            ),
        ),
        processes("queue"),
    ),
)
