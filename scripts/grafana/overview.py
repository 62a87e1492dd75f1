"""The dashboard `Mailrail / Overview`."""

from grafana.panels import (
    LESS_IS_BAD,
    MORE_IS_BAD,
    Color,
    Dashboard,
    Panel,
    PanelKind,
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
from mailrail.core.route.site import SHARDS

DASHBOARD = Dashboard(
    "mailrail-overview",
    "Mailrail / Overview",
    "Does mail come in and go out? Are all components up?",
    (
        Row(
            "Now",
            (
                stat(
                    "Messages accepted",
                    "Messages committed by the queue, of all origins.",
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
                    "Recipients that wait only for capacity. Scale outbound and the queue by it.",
                    f"sum({READY})",
                    steps=Steps(Color.GOOD, ((1_000, Color.WARN), (10_000, Color.BAD))),
                ),
                stat(
                    "Longest ready wait",
                    "Time since the oldest recipient that is due and ready fell due.",
                    'max(mailrail_queue_backlog_oldest_seconds{state="ready"})',
                    Unit.SECONDS,
                    Steps(Color.GOOD, ((60, Color.WARN), (600, Color.BAD))),
                ),
                stat(
                    "In the queue",
                    "Recipients that are not final, including retries and recipients on hold; estimated by Postgres.",
                    "sum(max by (namespace, job) (mailrail_queue_recipients_stored))",
                    steps=Steps(Color.PLAIN, ()),
                ),
                stat(
                    "Alerts",
                    "Mailrail alerts that fire.",
                    'count(ALERTS{alertname=~"Mailrail.*",alertstate="firing"}) or vector(0)',
                    steps=MORE_IS_BAD,
                ),
                stat(
                    "Deferred by us",
                    "Share of messages and senders that ingress answered with 4yz.",
                    f"(sum({DEFERRED_MESSAGES})"
                    f" + sum({DEFERRED_SENDERS}))"
                    f" / clamp_min(sum({rate('mailrail_ingress_senders_total')}), 0.001)",
                    Unit.SHARE,
                    Steps(Color.GOOD, ((0.01, Color.WARN), (0.05, Color.BAD))),
                    decimals=1,
                ),
                stat(
                    "Sites in backoff",
                    "Next hops in backoff: recipient domains and transports.",
                    'sum(mailrail_queue_sites{state="backoff"})',
                    steps=Steps(Color.GOOD, ((20, Color.WARN), (500, Color.BAD))),
                ),
                stat(
                    "Transports in backoff",
                    "Smarthosts, LMTP servers and proxies in backoff: usually a fault on our side.",
                    "count(max by (transport) (mailrail_queue_transports_in_backoff)) or vector(0)",
                    steps=MORE_IS_BAD,
                ),
                stat(
                    "Shards owned",
                    f"Of {SHARDS}. Mail in a shard without an owner waits.",
                    "sum(mailrail_queue_shards_owned)",
                    steps=Steps(Color.BAD, ((SHARDS, Color.GOOD),)),
                ),
                stat(
                    "Postgres",
                    "1 while every queue process can commit durably.",
                    "min(mailrail_queue_postgres_up)",
                    Unit.BOOLEAN,
                    LESS_IS_BAD,
                ),
                stat(
                    "Not on the newest configuration",
                    "Live services that are behind or reject it.",
                    NOT_CURRENT,
                    steps=MORE_IS_BAD,
                ),
            ),
        ),
        Row("Flow", (ACCEPTED, ATTEMPTS, BACKLOG, OLDEST, COMMIT, DELIVERY)),
        Row(
            "Answers to clients, and DSNs",
            (
                split(
                    "Incoming messages, by result",
                    "deferred: refused for now (4yz); refused: for good (5yz).",
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
                    "Open files, by process",
                    "Sockets and files, as a share of the limit of the process.",
                    (
                        Query(
                            "max by (service, pod, instance) (process_open_fds / process_max_fds)",
                            "{{service}} {{pod}} {{instance}}",
                        ),
                    ),
                    Unit.SHARE,
                    steps=Steps(Color.GOOD, ((0.7, Color.WARN), (0.9, Color.BAD))),
                    width=8,
                ),
                Panel(
                    "Running software",
                    "Processes by service and version.",
                    (Query("count by (service, version) (mailrail_build_info)"),),
                    kind=PanelKind.TABLE,
                    width=8,
                ),
            ),
        ),
    ),
)
