"""Panels and series that stand on more than one dashboard."""

from grafana.panels import Color, Kind, Panel, Query, Steps, Unit, latency, rate, split

READY = 'mailrail_queue_backlog_recipients{state="ready"}'
ENDED = 'mailrail_queue_attempts_total{outcome=~"delivered|relayed|captured"}'
DEFERRED_MESSAGES = rate('mailrail_ingress_messages_total{result="deferred"}')
DEFERRED_SENDERS = rate('mailrail_ingress_senders_total{result="deferred"}')
CONNECTIONS_READY = rate('mailrail_outbound_connections_total{result="ready"}')
SERVED = "ingress|queue|outbound"  # the services that run a configuration

BACKLOG = Panel(
    "Due mail, by what it waits for",
    "Recipients that are due now. ready: more processes would help. limited: the next hop's window or a limit has no "
    "room. resting: the next hop is in backoff, or its transport is missing. Counted up to 50,000 a process.",
    (Query("sum by (state) (mailrail_queue_backlog_recipients)", "{{state}}"),),
    stacked=True,
)
OLDEST = Panel(
    "Longest wait, by what for",
    "For how long the longest-waiting recipient has been due. `ready` should stay within seconds.",
    (Query("max by (state) (mailrail_queue_backlog_oldest_seconds)", "{{state}}"),),
    Unit.SECONDS,
)
ATTEMPTS = split(
    "Attempts that ended, by outcome",
    "A recipient each. interrupted: outbound went away in the middle; not_attempted: handed back and done anew.",
    "mailrail_queue_attempts_total",
    "outcome",
)
ACCEPTED = split(
    "Messages taken, by origin",
    "Committed by the queue: from strangers (mx), from our users (submission), of our own making (system).",
    "mailrail_queue_messages_accepted_total",
    "origin",
)
COMMIT = latency(
    "Commit, as clients feel it",
    "From the end of a message to the queue's answer, which comes after Postgres's commit.",
    "mailrail_ingress_commit_seconds",
)
DELIVERY = latency(
    "Delivery",
    "From taking a delivery to its last result: DNS, connection, TLS and dialogue, waiting for a connection included.",
    "mailrail_outbound_delivery_seconds",
)
DSNS = split(
    "Notifications (DSNs), by kind",
    "failed: a sender was told that mail did not arrive. postmaster: a copy in place of a notification that nobody "
    "could get.",
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
    "Time left until the first certificate of a service expires. services: gRPC among services; smtp: listeners. Far "
    "below zero: one cannot be used, or has expired.",
    (Query("min by (service, use) (mailrail_certificate_expiry_timestamp_seconds) - time()"),),
    Unit.SECONDS,
    Kind.TABLE,
    steps=Steps(Color.BAD, ((86_400, Color.WARN), (7 * 86_400, Color.GOOD))),
)
NOT_CURRENT = 'sum(max by (role, state) (mailrail_config_consumers{state!="current"}))'
