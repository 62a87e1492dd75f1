"""The dashboard `Mailrail / Queue and sites`."""

from grafana.panels import MORE_IS_BAD, Dashboard, Panel, Query, Row, Unit, each, rate, split
from grafana.shared import ATTEMPTS, BACKLOG, DELIVERY, DSNS, OLDEST

DASHBOARD = Dashboard(
    "mailrail-sites",
    "Mailrail / Queue and sites",
    "What waits, for what, and what next hops say. A site is a next hop: a recipient domain, or a transport. Which "
    "ones they are, `mailrail queue sites` tells.",
    (
        Row("What waits", (BACKLOG, OLDEST)),
        Row(
            "Next hops",
            (
                Panel(
                    "Sites",
                    "Next hops that the queue keeps in mind; resting: in backoff, so that nobody is dialled.",
                    (Query("sum by (state) (mailrail_queue_sites)", "{{state}}"),),
                    stacked=True,
                ),
                each(
                    "Transports that rest",
                    "Smarthosts, LMTP servers and proxies in backoff, as each queue process sees it.",
                    "mailrail_queue_transports_resting",
                    steps=MORE_IS_BAD,
                ),
                ATTEMPTS,
                Panel(
                    "Share of attempts that end so",
                    "Of the attempts that came to an end.",
                    (
                        Query(
                            f"sum by (outcome) ({rate('mailrail_queue_attempts_total')})"
                            f" / ignoring (outcome) group_left () clamp_min("
                            f"sum({rate('mailrail_queue_attempts_total')}), 0.001)",
                            "{{outcome}}",
                        ),
                    ),
                    Unit.SHARE,
                    top=1,
                ),
                split(
                    "What decided",
                    "What decided about recipients: the stage of the session, and a reply's class or the trouble.",
                    "mailrail_outbound_answers_total",
                    "stage",
                    "what",
                ),
                split(
                    "Recipients, by kind of next hop",
                    "Results as outbound saw them.",
                    "mailrail_outbound_recipients_total",
                    "kind",
                    "result",
                ),
            ),
        ),
        Row(
            "Under way",
            (
                Panel(
                    "Deliveries",
                    "in flight: outbound works on them. pending: leased, and waiting in memory for a window or for "
                    "outbound's credit.",
                    (
                        Query("sum(mailrail_queue_deliveries_in_flight)", "in flight"),
                        Query("sum(mailrail_queue_pending_deliveries)", "pending"),
                    ),
                ),
                DELIVERY,
                DSNS,
                Panel(
                    "In the queue",
                    "Recipients that are not final, by Postgres's statistics.",
                    (Query("sum(max by (namespace, job) (mailrail_queue_recipients_stored))", "recipients"),),
                ),
            ),
        ),
    ),
)
