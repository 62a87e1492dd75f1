"""The dashboard `Mailrail / Configuration`."""

from grafana.panels import LESS_IS_BAD, MORE_IS_BAD, Color, Dashboard, Kind, Panel, Query, Row, Steps, Unit, split, stat
from grafana.shared import CERTIFICATES, CONSUMERS, NOT_CURRENT, SERVED

DASHBOARD = Dashboard(
    "mailrail-configuration",
    "Mailrail / Configuration",
    "From kubectl apply to live in every service: what was published, who runs it, and what is wrong with objects.",
    (
        Row(
            "Now",
            (
                stat(
                    "Newest revision",
                    "That services should run.",
                    "max(mailrail_config_head_revision)",
                    steps=Steps(Color.PLAIN, ()),
                ),
                stat(
                    "Pinned",
                    "Head is pinned to an older revision: what is applied is stored and not live.",
                    "max(mailrail_config_head_pinned)",
                    Unit.BOOLEAN,
                    MORE_IS_BAD,
                ),
                stat(
                    "Behind or rejecting",
                    "Live services that do not run the newest revision.",
                    NOT_CURRENT,
                    steps=MORE_IS_BAD,
                ),
                stat(
                    "Config last heard of",
                    "By the service that has not heard of it for longest; heartbeats come each second or two.",
                    f'max(mailrail_config_stale_seconds{{service=~"{SERVED}"}})',
                    Unit.SECONDS,
                    Steps(Color.GOOD, ((15, Color.WARN), (60, Color.BAD))),
                ),
                stat(
                    "Config's Postgres",
                    "Whether every config process reads it.",
                    "min(mailrail_config_postgres_up)",
                    Unit.BOOLEAN,
                    LESS_IS_BAD,
                ),
                stat(
                    "First certificate expires in",
                    "Of all services and listeners.",
                    "min(mailrail_certificate_expiry_timestamp_seconds) - time()",
                    Unit.SECONDS,
                    Steps(Color.BAD, ((86_400, Color.WARN), (7 * 86_400, Color.GOOD))),
                ),
            ),
        ),
        Row(
            "Who runs what",
            (
                Panel(
                    "Revision, by process",
                    "Every line should meet the line of head within two seconds of a change.",
                    (
                        Query(
                            f'max by (service, pod, instance) (mailrail_config_revision{{service=~"{SERVED}"}})',
                            "{{service}} {{pod}} {{instance}}",
                        ),
                        Query("max(mailrail_config_head_revision)", "head"),
                    ),
                ),
                CONSUMERS,
                Panel(
                    "Config last heard of, by process",
                    "Seconds since a process last heard of the config service. It runs on with what it has.",
                    (
                        Query(
                            f'max by (service, pod, instance) (mailrail_config_stale_seconds{{service=~"{SERVED}"}})',
                            "{{service}} {{pod}} {{instance}}",
                        ),
                    ),
                    Unit.SECONDS,
                ),
                split(
                    "Publishes, by result",
                    "activated: live. stored: kept and not live, since head is pinned. unchanged: same content. "
                    "refused: a stale publisher, or a revision that config could not take.",
                    "mailrail_config_publishes_total",
                    "result",
                ),
                CERTIFICATES,
            ),
        ),
        Row(
            "Objects (with the operator)",
            (
                Panel(
                    "Objects, by kind and Ready",
                    "Custom resources that are heeded. `kubectl get mailrail -A` names those that are not Ready.",
                    (Query("max by (kind, ready) (mailrail_operator_objects)"),),
                    kind=Kind.TABLE,
                ),
                Panel(
                    "Objects that are not Ready",
                    "By kind. A short rise after a change is normal.",
                    (Query('max by (kind) (mailrail_operator_objects{ready!="True"})', "{{kind}}"),),
                    stacked=True,
                ),
            ),
        ),
    ),
)
