"""The dashboard `Mailrail / Overview`."""

from grafana.panels import (
    LESS_IS_BAD,
    MORE_IS_BAD,
    Color,
    Dashboard,
    Kind,
    Panel,
    Query,
    Row,
    Steps,
    Unit,
    rate,
    split,
    stat,
)
from grafana.shared import (
    ACCEPTED,
    ATTEMPTS,
    BACKLOG,
    COMMIT,
    DEFERRED_MESSAGES,
    DEFERRED_SENDERS,
    DELIVERY,
    DSNS,
    ENDED,
    NOT_CURRENT,
    OLDEST,
    READY,
)

DASHBOARD = Dashboard(
    "mailrail-overview",
    "Mailrail / Overview",
    "Does mail come in, does it go out, and is everybody there?",
    (
        Row(
            "Now",
            (
                stat(
                    "Messages taken",
                    "Committed by the queue, from anybody.",
                    f"sum({rate('mailrail_queue_messages_accepted_total')})",
                    Unit.RATE,
                    decimals=2,
                ),
                stat(
                    "Recipients done",
                    "Delivered, relayed, or captured by local mode.",
                    f"sum({rate(ENDED)})",
                    Unit.RATE,
                    decimals=2,
                ),
                stat(
                    "Due and ready",
                    "Recipients that nothing holds back but a lack of hands. Scale outbound, and the queue, by it.",
                    f"sum({READY})",
                    steps=Steps(Color.GOOD, ((1_000, Color.WARN), (10_000, Color.BAD))),
                ),
                stat(
                    "Longest ready wait",
                    "Of the recipients that are due and ready.",
                    'max(mailrail_queue_backlog_oldest_seconds{state="ready"})',
                    Unit.SECONDS,
                    Steps(Color.GOOD, ((60, Color.WARN), (600, Color.BAD))),
                ),
                stat(
                    "In the queue",
                    "Recipients that are not final, retries and held ones included, by Postgres's statistics.",
                    "sum(max by (namespace, job) (mailrail_queue_recipients_stored))",
                    steps=Steps(Color.PLAIN, ()),
                ),
                stat(
                    "Alerts",
                    "Alerts of these rules that fire.",
                    'count(ALERTS{alertname=~"Mailrail.*",alertstate="firing"}) or vector(0)',
                    steps=MORE_IS_BAD,
                ),
                stat(
                    "Deferred by us",
                    "Share of messages and senders that were told to come again (4yz).",
                    f"(sum({DEFERRED_MESSAGES})"
                    f" + sum({DEFERRED_SENDERS}))"
                    f" / clamp_min(sum({rate('mailrail_ingress_senders_total')}), 0.001)",
                    Unit.SHARE,
                    Steps(Color.GOOD, ((0.01, Color.WARN), (0.05, Color.BAD))),
                    decimals=1,
                ),
                stat(
                    "Next hops that rest",
                    "Sites in backoff: a domain, or a transport.",
                    'sum(mailrail_queue_sites{state="resting"})',
                    steps=Steps(Color.GOOD, ((20, Color.WARN), (500, Color.BAD))),
                ),
                stat(
                    "Transports that rest",
                    "Smarthosts, LMTP servers and proxies in backoff: usually ours to mend.",
                    "max(mailrail_queue_transports_resting)",
                    steps=MORE_IS_BAD,
                ),
                stat(
                    "Shards owned",
                    "Of 256. Mail of a shard without an owner waits.",
                    "sum(mailrail_queue_shards_owned)",
                    steps=Steps(Color.BAD, ((256, Color.GOOD),)),
                ),
                stat(
                    "Postgres",
                    "Whether every queue process can commit durably.",
                    "min(mailrail_queue_postgres_up)",
                    Unit.BOOLEAN,
                    LESS_IS_BAD,
                ),
                stat(
                    "Not on the newest configuration",
                    "Live services that are behind, or reject it.",
                    NOT_CURRENT,
                    steps=MORE_IS_BAD,
                ),
            ),
        ),
        Row("Flow", (ACCEPTED, ATTEMPTS, BACKLOG, OLDEST, COMMIT, DELIVERY)),
        Row(
            "At the door, and back to senders",
            (
                split(
                    "Messages sent to us, by result",
                    "Sent whole. deferred: our trouble or theirs for now (4yz); refused: for good (5yz).",
                    "mailrail_ingress_messages_total",
                    "origin",
                    "result",
                ),
                DSNS,
            ),
        ),
        Row(
            "Processes",
            (
                Panel(
                    "CPU, by service",
                    "Cores in use.",
                    (Query(f"sum by (service) ({rate('process_cpu_seconds_total')})", "{{service}}"),),
                    stacked=True,
                    width=8,
                ),
                Panel(
                    "Memory, by service",
                    "Resident memory of all processes.",
                    (Query("sum by (service) (process_resident_memory_bytes)", "{{service}}"),),
                    Unit.BYTES,
                    stacked=True,
                    width=8,
                ),
                Panel(
                    "Running software",
                    "Processes by service and version.",
                    (Query("count by (service, version) (mailrail_build_info)"),),
                    kind=Kind.TABLE,
                    width=8,
                ),
            ),
        ),
    ),
)
