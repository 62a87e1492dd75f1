"""The dashboard `Mailrail / Queue and sites`."""

from grafana.panels import MORE_IS_BAD, Dashboard, Panel, PanelKind, Query, Row, Unit, rate, split
from grafana.shared import ATTEMPTS, BACKLOG, DELIVERY, DSNS, OLDEST

DASHBOARD = Dashboard(
    "mailrail-sites",
    "Mailrail / Queue and sites",
    "How much mail waits, and why, and what next hops answer. A site is a recipient domain, or a transport with a "
    "fixed "
    "host; `mailrail queue sites` lists them.",
    (
        Row("What waits", (BACKLOG, OLDEST)),
        Row(
            "Next hops",
            (
                Panel(
                    "Sites",
                    "Sites held in memory. backoff: nothing is dialled.",
                    (Query("sum by (state) (mailrail_queue_sites)", "{{state}}"),),
                    stacked=True,
                ),
                Panel(
                    "Transports in backoff",
                    "Smarthosts, LMTP servers and proxies that do not work, with the reason. login_refused: the next "
                    "hop refuses our login.",
                    (
                        Query(
                            "max by (transport, reason) (mailrail_queue_transports_in_backoff)",
                            "{{transport}} {{reason}}",
                        ),
                    ),
                    steps=MORE_IS_BAD,
                    stacked=True,
                ),
                Panel(
                    "Worst sites",
                    "The sites in backoff where most recipients wait. `mailrail queue sites` has their last errors.",
                    (Query("topk(10, sum by (site) (mailrail_queue_site_waiting_recipients))", "{{site}}"),),
                    kind=PanelKind.TABLE,
                ),
                ATTEMPTS,
                Panel(
                    "Attempts, share of each outcome",
                    "Of the attempts that ended.",
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
                    "Answers that decided about recipients: by stage of the session, and by class of the reply or "
                    "kind of trouble.",
                    "mailrail_outbound_answers_total",
                    "stage",
                    "answer",
                ),
                split(
                    "Recipients, by kind of next hop",
                    "Results as outbound reports them.",
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
                    "in flight: in progress at outbound. pending: leased, and waiting in memory for room in a window "
                    "or "
                    "for credit of outbound.",
                    (
                        Query("sum(mailrail_queue_deliveries_in_flight)", "in flight"),
                        Query("sum(mailrail_queue_pending_deliveries)", "pending"),
                    ),
                ),
                Panel(
                    "Under way, by how sites answer",
                    "quick: the last delivery was answered within 10 s. slow: later. unproven: none was answered yet, "
                    "or the last one failed for the trouble of the site. slow and unproven hold at most half of "
                    "outbound each, and seven tenths together, so that mail to the others goes on.",
                    (
                        Query(
                            'sum by (standing) (mailrail_queue_standing_deliveries{state="in_flight"})', "{{standing}}"
                        ),
                        Query(
                            "sum by (standing) (mailrail_queue_standing_sites_waiting)",
                            "sites that wait: {{standing}}",
                        ),
                    ),
                ),
                DELIVERY,
                DSNS,
                Panel(
                    "In the queue",
                    "Recipients that are not final; estimated by Postgres.",
                    (Query("sum(max by (namespace, job) (mailrail_queue_recipients_stored))", "recipients"),),
                ),
            ),
        ),
    ),
)
