"""The dashboard `Mailrail / Config service`."""

from grafana.panels import LESS_IS_BAD, MORE_IS_BAD, Dashboard, Panel, Query, Row, Unit, each, processes, split
from grafana.shared import CONSUMERS

DASHBOARD = Dashboard(
    "mailrail-config",
    "Mailrail / Config service",
    "The config service's processes: publishes, watchers, consumers, Postgres.",
    (
        Row(
            "Revisions",
            (
                each(
                    "Head, by process",
                    "The revision that each process serves as the newest. They differ for no more than a second.",
                    "mailrail_config_head_revision",
                ),
                split(
                    "Publishes, by result",
                    "refused: a stale epoch, another head, missing values, or a body that cannot be read.",
                    "mailrail_config_publishes_total",
                    "result",
                ),
                Panel(
                    "Database went back",
                    "How often, a process each: publishers of before are superseded.",
                    (Query("sum(mailrail_config_new_histories_total)", "histories"),),
                ),
            ),
        ),
        Row(
            "Readers",
            (
                Panel(
                    "Watch streams",
                    "Open ones, by role.",
                    (Query("sum by (role) (mailrail_config_watchers)", "{{role}}"),),
                    stacked=True,
                ),
                CONSUMERS,
                each(
                    "Postgres",
                    "1 while it answers. Without it the last head is served on.",
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
