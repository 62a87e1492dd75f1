"""Panels and series that stand on more than one dashboard."""

from grafana.panels import Color, Panel, PanelKind, Query, Steps, Unit, latency, rate, split

READY = 'mailrail_queue_backlog_recipients{state="ready"}'
ENDED = 'mailrail_queue_attempts_total{outcome=~"delivered|relayed|captured"}'
DEFERRED_MESSAGES = rate('mailrail_ingress_messages_total{result="deferred"}')
DEFERRED_SENDERS = rate('mailrail_ingress_senders_total{result="deferred"}')
CONNECTIONS_READY = rate('mailrail_outbound_connections_total{result="ready"}')
SERVED = "ingress|queue|outbound|policy"  # the services that run a configuration

BACKLOG = Panel(
    "Due mail, by what it waits for",
    "Recipients that are due now. ready: more processes would help. limited: the window of the site or a limit has no "
    "room. backoff: the site is in backoff, or its transport is missing.",
    (Query("sum by (state) (mailrail_queue_backlog_recipients)", "{{state}}"),),
    stacked=True,
)
OLDEST = Panel(
    "Longest wait, by state",
    "Time since the oldest due recipient fell due. `ready` should stay within seconds.",
    (Query("max by (state) (mailrail_queue_backlog_oldest_seconds)", "{{state}}"),),
    Unit.SECONDS,
)
ATTEMPTS = split(
    "Attempts that ended, by outcome",
    "One for each recipient. interrupted: the lease ran out; not_attempted: outbound returned it without dialling.",
    "mailrail_queue_attempts_total",
    "outcome",
)
ACCEPTED = split(
    "Messages accepted, by origin",
    "Committed by the queue: from other servers (mx), from our users (submission), made by Mailrail (system).",
    "mailrail_queue_messages_accepted_total",
    "origin",
)
COMMIT = latency(
    "Commit, as clients see it",
    "From the end of a message to the queue's answer, which follows the commit in Postgres.",
    "mailrail_ingress_commit_seconds",
)
DELIVERY = latency(
    "Delivery",
    "From the start of a delivery to its last result: DNS, the wait for a connection, TLS and dialogue.",
    "mailrail_outbound_delivery_seconds",
)
DSNS = split(
    "DSNs, by kind",
    "failed: to a sender whose mail failed. postmaster: a copy to the postmaster, because the sender is null.",
    "mailrail_queue_dsns_total",
    "kind",
)
CONSUMERS = Panel(
    "Services, by what they run",
    "Live processes by role: current runs the newest configuration, behind not yet, rejecting could not use it.",
    (Query("max by (role, state) (mailrail_config_consumers) > 0", "{{role}} {{state}}"),),
)
CERTIFICATES = Panel(
    "Certificates",
    "Time left until the first certificate of a service expires. services: gRPC between services; smtp: listeners; "
    "policy: policy hosts of MTA-STS. Below zero: a certificate has expired or cannot be used.",
    (Query("min by (service, use) (mailrail_certificate_expiry_timestamp_seconds) - time()"),),
    Unit.SECONDS,
    PanelKind.TABLE,
    steps=Steps(Color.BAD, ((86_400, Color.WARN), (7 * 86_400, Color.GOOD))),
)
NOT_CURRENT = 'sum(max by (role, state) (mailrail_config_consumers{state!="current"}))'
