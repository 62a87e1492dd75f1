"""The dashboard `Mailrail / Outbound`."""

from grafana.panels import LESS_IS_BAD, Dashboard, Panel, Query, Row, Unit, each, processes, rate, split
from grafana.shared import CONNECTIONS_READY, DELIVERY

DASHBOARD = Dashboard(
    "mailrail-outbound",
    "Mailrail / Outbound",
    "SMTP out: connections, TLS, DNS, what next hops answered, and how long it took.",
    (
        Row(
            "Results",
            (
                split(
                    "Recipients, by result",
                    "As outbound reports them to the queue.",
                    "mailrail_outbound_recipients_total",
                    "result",
                ),
                split(
                    "What decided",
                    "The stage of the session, and a reply's class or the trouble.",
                    "mailrail_outbound_answers_total",
                    "stage",
                    "what",
                ),
                DELIVERY,
                Panel(
                    "Octets sent",
                    "Content written to next hops.",
                    (Query(f"sum({rate('mailrail_outbound_octets_sent_total')})", "octets"),),
                    Unit.BYTE_RATE,
                ),
            ),
        ),
        Row(
            "Connections",
            (
                split(
                    "Connections dialled, by result",
                    "ready: a transaction could begin. auth: a login of ours was refused; tls: it could not be "
                    "made or proven.",
                    "mailrail_outbound_connections_total",
                    "result",
                ),
                Panel(
                    "Reuse",
                    "Share of transactions that began on a connection that had had one.",
                    (
                        Query(
                            f"sum({rate('mailrail_outbound_connection_reuses_total')}) / clamp_min("
                            f"sum({rate('mailrail_outbound_connection_reuses_total')})"
                            f" + sum({CONNECTIONS_READY}), 0.001)",
                            "reused",
                        ),
                    ),
                    Unit.SHARE,
                    top=1,
                ),
                split(
                    "Sessions, by TLS",
                    "Version, and whether the certificate was verified.",
                    "mailrail_outbound_tls_total",
                    "version",
                    "verified",
                ),
                each("Open connections", "To next hops.", "mailrail_outbound_connections_open"),
            ),
        ),
        Row(
            "Under way",
            (
                each("Deliveries in progress", "By process.", "mailrail_outbound_deliveries_running"),
                each(
                    "Deliveries that wait for a connection",
                    "A steady rise: connections to a next hop are limited, or slow to make.",
                    "mailrail_outbound_deliveries_waiting",
                ),
                each(
                    "Queue replicas",
                    "That hand work to each process. None: it is idle.",
                    "mailrail_outbound_queue_replicas",
                    steps=LESS_IS_BAD,
                ),
                Panel(
                    "Broken off for the lease",
                    "Transactions ended before the final dot, since too little lease was left. Next hops are slow, "
                    "or the queue does not renew.",
                    (Query(f"sum({rate('mailrail_outbound_leases_low_total')})", "transactions"),),
                    Unit.RATE,
                ),
                split(
                    "DNS lookups, by type and result",
                    "Cached answers are not counted.",
                    "mailrail_outbound_dns_lookups_total",
                    "type",
                    "result",
                ),
                split(
                    "Re-encoded",
                    "Messages that a next hop could not take as they were, by the form it needed.",
                    "mailrail_outbound_reencoded_total",
                    "form",
                ),
            ),
        ),
        processes("outbound"),
    ),
)
