"""The dashboard `Mailrail / Config service`."""

from grafana.panels import LESS_IS_BAD, MORE_IS_BAD, Dashboard, Panel, Query, Row, Unit, each, processes, split
from grafana.shared import CONSUMERS

DASHBOARD = Dashboard(
    "mailrail-config",
    "Mailrail / Config service",
    "The processes of the config service: publishes, watchers, consumers, Postgres.",
    (
        Row(
            "Revisions",
            (
                each(
                    "Head, by process",
                    "The revision that each process serves. Processes differ for one second at most.",
                    "mailrail_config_head_revision",
                ),
                split(
                    "Publishes, by result",
                    "refused: a stale epoch, another head, missing values, or an unreadable body.",
                    "mailrail_config_publishes_total",
                    "result",
                ),
                Panel(
                    "Database went back",
                    "Times that the database was set back to an earlier state, counted by each process. Publishers "
                    "must then acquire "
                    "a new epoch.",
                    (Query("sum(mailrail_config_new_histories_total)", "histories"),),
                ),
            ),
        ),
        Row(
            "Readers",
            (
                Panel(
                    "Watch streams",
                    "Open Watch streams, by role.",
                    (Query("sum by (role) (mailrail_config_watchers)", "{{role}}"),),
                    stacked=True,
                ),
                CONSUMERS,
                each(
                    "Postgres",
                    "1 while Postgres answers. Without it services still get the last head.",
                    "mailrail_config_postgres_up",
                    Unit.BOOLEAN,
                    LESS_IS_BAD,
                ),
                each(
                    "Pinned",
                    "1 while head is pinned to an older revision.",
                    "mailrail_config_head_pinned",
                    Unit.BOOLEAN,
                    MORE_IS_BAD,
                ),
            ),
        ),
        processes("config"),
    ),
)
