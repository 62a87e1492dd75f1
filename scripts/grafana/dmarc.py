"""The dashboard `Mailrail / Dmarc service`."""

from grafana.panels import LESS_IS_BAD, Dashboard, Row, Unit, each, processes, split

DASHBOARD = Dashboard(
    "mailrail-dmarc",
    "Mailrail / Dmarc service",
    "The processes of the dmarc service: what is counted for reports, and what others report.",
    (
        Row(
            "Counted for reports",
            (
                split(
                    "Messages that ingress told of, by result",
                    "dropped: there is no room for further records; refused: not readable; off: nothing is kept.",
                    "mailrail_dmarc_evaluations_total",
                    "result",
                ),
                each(
                    "Dropped by ingress, by process",
                    "Messages that no report will tell of: dmarc was out of reach for long.",
                    "mailrail_ingress_dmarc_evaluations_dropped_total",
                ),
                each(
                    "Postgres",
                    "1 while Postgres answers. Without it ingress keeps what it has, and reports wait.",
                    "mailrail_dmarc_postgres_up",
                    Unit.BOOLEAN,
                    LESS_IS_BAD,
                ),
            ),
        ),
        Row(
            "Reports of ours",
            (
                split(
                    "Periods, by what became of them",
                    "optional: nothing makes a report necessary; nobody: no address is to get it; failed: it cannot be "
                    "sent; expired: what it lacked did not come in time.",
                    "mailrail_dmarc_reports_total",
                    "result",
                ),
                split(
                    "Addresses, by what became of them",
                    "queued, suppressed, too large, or refused by the queue.",
                    "mailrail_dmarc_report_mails_total",
                    "result",
                ),
                split(
                    "Put off, by reason",
                    "sender: From has no signing key and no SPF pass.",
                    "mailrail_dmarc_report_put_off_total",
                    "reason",
                ),
                each(
                    "Not done",
                    "Reports whose period is over and that are not done, as each process sees it.",
                    "mailrail_dmarc_reports_open",
                ),
                split(
                    "Look-ups, by result",
                    "Those of records and consents that were not answered from memory.",
                    "mailrail_dmarc_dns_lookups_total",
                    "result",
                ),
            ),
        ),
        Row(
            "Reports of others",
            (
                split(
                    "Mails at report addresses, by result",
                    "again: the report was counted before; refused: mailrail dmarc refused says why.",
                    "mailrail_dmarc_received_total",
                    "result",
                ),
                split(
                    "Mails at report addresses, by kind of report",
                    "unknown: it does not count, so nobody knows.",
                    "mailrail_dmarc_received_total",
                    "kind",
                ),
            ),
        ),
        processes("dmarc"),
    ),
)
