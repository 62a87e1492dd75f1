"""The dashboard `Mailrail / Operator`."""

from grafana.panels import (
    LESS_IS_BAD,
    Color,
    Dashboard,
    Panel,
    Query,
    Row,
    Steps,
    Unit,
    latency,
    processes,
    rate,
    split,
    stat,
)

DASHBOARD = Dashboard(
    "mailrail-operator",
    "Mailrail / Operator",
    "From custom resources to published revisions and back into status. Mail flows without it.",
    (
        Row(
            "Now",
            (
                stat(
                    "Leaders",
                    "One process leads; others stand by.",
                    "sum(mailrail_operator_leader)",
                    steps=Steps(Color.BAD, ((1, Color.GOOD), (2, Color.BAD))),
                ),
                stat(
                    "Synced",
                    "All objects were listed.",
                    "max(mailrail_operator_synced)",
                    Unit.BOOLEAN,
                    LESS_IS_BAD,
                ),
                stat(
                    "Last publish",
                    "Time since. Without changes nothing is published, so long is not bad by itself.",
                    "time() - max(mailrail_operator_last_publish_timestamp_seconds > 0)",
                    Unit.SECONDS,
                    Steps(Color.PLAIN, ()),
                ),
                stat(
                    "Last event of a watch",
                    "Time since. Objects are listed anew every five minutes at the latest.",
                    "time() - max(mailrail_operator_last_watch_timestamp_seconds > 0)",
                    Unit.SECONDS,
                    Steps(Color.GOOD, ((360, Color.WARN), (900, Color.BAD))),
                ),
                stat(
                    "Statuses that wait",
                    "To be written.",
                    "sum(mailrail_operator_status_pending)",
                    steps=Steps(Color.GOOD, ((100, Color.WARN),)),
                ),
                stat(
                    "Objects not Ready",
                    "`kubectl get mailrail -A` names them.",
                    'sum(max by (kind, ready) (mailrail_operator_objects{ready!="True"}))',
                    steps=Steps(Color.GOOD, ((1, Color.WARN),)),
                ),
            ),
        ),
        Row(
            "Publishing",
            (
                Panel(
                    "Revisions",
                    "Published by the operator, and what services should run; less if head is pinned.",
                    (
                        Query("max(mailrail_operator_revision)", "published"),
                        Query("max(mailrail_operator_head)", "head"),
                    ),
                ),
                split(
                    "Publishes, by result",
                    "failed: config was out of reach or refused; it is tried again.",
                    "mailrail_operator_publishes_total",
                    "result",
                ),
                latency(
                    "From change to stored revision",
                    "The first change noticed to the revision stored; a change should be live within 2 s.",
                    "mailrail_operator_cycle_seconds",
                ),
                Panel(
                    "Services, as the operator counts them",
                    "What MailGateway's status says.",
                    (Query("max by (state) (mailrail_operator_consumers)", "{{state}}"),),
                ),
            ),
        ),
        Row(
            "Kubernetes",
            (
                Panel(
                    "Objects, by kind and Ready",
                    "That are heeded.",
                    (Query("max by (kind, ready) (mailrail_operator_objects)", "{{kind}} {{ready}}"),),
                    stacked=True,
                ),
                split(
                    "Statuses written",
                    "gone: the object was deleted meanwhile.",
                    "mailrail_operator_status_writes_total",
                    "result",
                ),
                split(
                    "Authoritative lists, by cause",
                    "relist: a watch began anew; period: every five minutes; count: what is known and what there "
                    "is differ in number.",
                    "mailrail_operator_resyncs_total",
                    "cause",
                ),
                Panel(
                    "Watches started anew",
                    "Now and then is normal.",
                    (Query(f"sum({rate('mailrail_operator_watch_restarts_total')})", "restarts"),),
                    Unit.RATE,
                ),
                split(
                    "Secrets read",
                    "absent: named by an object, and not there.",
                    "mailrail_operator_secret_reads_total",
                    "result",
                ),
                split(
                    "Domains looked up in DNS",
                    "False: records are missing; the domain's condition DNSConfigured says which.",
                    "mailrail_operator_dns_checks_total",
                    "status",
                ),
            ),
        ),
        processes("operator"),
    ),
)
