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
    "From custom resources to published revisions, and back into status. Mail flows without the operator.",
    (
        Row(
            "Now",
            (
                stat(
                    "Leaders",
                    "One process is the leader; others stand by.",
                    "sum(mailrail_operator_leader)",
                    steps=Steps(Color.BAD, ((1, Color.GOOD), (2, Color.BAD))),
                ),
                stat(
                    "Synced",
                    "1 once all objects were listed.",
                    "max(mailrail_operator_synced)",
                    Unit.BOOLEAN,
                    LESS_IS_BAD,
                ),
                stat(
                    "Last publish",
                    "Time since the last publish. Without changes nothing is published, so a long time is no fault.",
                    "time() - max(mailrail_operator_last_publish_timestamp_seconds > 0)",
                    Unit.SECONDS,
                    Steps(Color.PLAIN, ()),
                ),
                stat(
                    "Last watch event",
                    "Time since the last watch event. Objects are listed again every five minutes at the latest.",
                    "time() - max(mailrail_operator_last_watch_timestamp_seconds > 0)",
                    Unit.SECONDS,
                    Steps(Color.GOOD, ((360, Color.WARN), (900, Color.BAD))),
                ),
                stat(
                    "Statuses to write",
                    "Statuses that wait to be written or were refused.",
                    "sum(mailrail_operator_status_pending)",
                    steps=Steps(Color.GOOD, ((100, Color.WARN),)),
                ),
                stat(
                    "Objects not Ready",
                    "`kubectl get mailrail -A` lists them.",
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
                    "The newest published revision, and head. They differ while head is pinned, or the store lost it.",
                    (
                        Query("max(mailrail_operator_published_revision)", "published"),
                        Query("max(mailrail_operator_head_revision)", "head"),
                    ),
                ),
                split(
                    "Publishes, by result",
                    "failed: config was unreachable or refused; the operator tries again.",
                    "mailrail_operator_publishes_total",
                    "result",
                ),
                latency(
                    "From change to stored revision",
                    "From the first change noticed to the revision stored. A change should be live within 2 s.",
                    "mailrail_operator_cycle_seconds",
                ),
                Panel(
                    "Services, as the operator counts them",
                    "As shown in the status of MailGateways.",
                    (Query("max by (state) (mailrail_operator_consumers)", "{{state}}"),),
                ),
            ),
        ),
        Row(
            "Mail probe",
            (
                split(
                    "Probes, by result",
                    "A message of the leader each minute, through listener, TLS, queue and Postgres. arrived: it got "
                    "through. refused: ingress answered 4yz or 5yz. not_arrived: it was accepted and not delivered.",
                    "mailrail_operator_mail_probes_total",
                    "result",
                ),
                latency(
                    "From connection to arrival",
                    "Of the probes that arrived.",
                    "mailrail_operator_mail_probe_seconds",
                ),
                stat(
                    "Last arrival",
                    "Time since a probe arrived.",
                    "time() - max(mailrail_operator_last_mail_probe_timestamp_seconds > 0)",
                    Unit.SECONDS,
                    Steps(Color.GOOD, ((120, Color.WARN), (300, Color.BAD))),
                ),
            ),
        ),
        Row(
            "Kubernetes",
            (
                Panel(
                    "Objects, by kind and Ready",
                    "Custom resources that the operator watches.",
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
                    "Full lists, by cause",
                    "relist: a watch was restarted; period: every five minutes; count: the number of objects differs "
                    "from the number that the operator knows.",
                    "mailrail_operator_resyncs_total",
                    "cause",
                ),
                Panel(
                    "Watches restarted",
                    "A few are normal.",
                    (Query(f"sum({rate('mailrail_operator_watch_restarts_total')})", "restarts"),),
                    Unit.RATE,
                ),
                split(
                    "Secrets read",
                    "absent: an object refers to a Secret that does not exist.",
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
