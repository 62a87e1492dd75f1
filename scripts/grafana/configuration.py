"""The dashboard `Mailrail / Configuration`."""

from grafana.panels import (
    LESS_IS_BAD,
    MORE_IS_BAD,
    Color,
    Dashboard,
    Panel,
    PanelKind,
    Query,
    Row,
    Steps,
    Unit,
    split,
    stat,
)
from grafana.shared import CERTIFICATES, CONSUMERS, NOT_CURRENT, SERVED

DASHBOARD = Dashboard(
    "mailrail-configuration",
    "Mailrail / Configuration",
    "From kubectl apply to every service: what was published, which processes run it, and which objects are wrong.",
    (
        Row(
            "Now",
            (
                stat(
                    "Newest revision",
                    "The revision that services should run.",
                    "max(mailrail_config_head_revision)",
                    steps=Steps(Color.PLAIN, ()),
                ),
                stat(
                    "Pinned",
                    "1 while head is pinned to an older revision: new revisions are stored but not live.",
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
                    "Config last answered",
                    "Seconds since config last answered the process that waits longest; heartbeats come every second "
                    "or two.",
                    f'max(mailrail_config_stale_seconds{{service=~"{SERVED}"}})',
                    Unit.SECONDS,
                    Steps(Color.GOOD, ((15, Color.WARN), (60, Color.BAD))),
                ),
                stat(
                    "Config's Postgres",
                    "1 while every config process can read its Postgres.",
                    "min(mailrail_config_postgres_up)",
                    Unit.BOOLEAN,
                    LESS_IS_BAD,
                ),
                stat(
                    "First certificate expires in",
                    "The first certificate of any service or listener to expire.",
                    "min(mailrail_certificate_expiry_timestamp_seconds) - time()",
                    Unit.SECONDS,
                    Steps(Color.BAD, ((86_400, Color.WARN), (7 * 86_400, Color.GOOD))),
                ),
            ),
        ),
        Row(
            "Which process runs which revision",
            (
                Panel(
                    "Revision, by process",
                    "Every line should reach the line of head within two seconds of a change.",
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
                    "Config last answered, by process",
                    "Seconds since config last answered the process. The process goes on with the revision that it "
                    "has.",
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
                    "activated: live. stored: not live, because head is pinned. unchanged: the same content. "
                    "refused: a stale publisher, or a revision that config could not store.",
                    "mailrail_config_publishes_total",
                    "result",
                ),
                CERTIFICATES,
                split(
                    "Requests for our MTA-STS policies, by result",
                    "What the policy service answered. unknown_host: the domain has no policy. ended: too slow, or too "
                    "many others.",
                    "mailrail_policy_requests_total",
                    "result",
                ),
            ),
        ),
        Row(
            "Objects (with the operator)",
            (
                Panel(
                    "Objects, by kind and Ready",
                    "Custom resources that the operator watches. `kubectl get mailrail -A` lists those that are not "
                    "Ready.",
                    (Query("max by (kind, ready) (mailrail_operator_objects)"),),
                    kind=PanelKind.TABLE,
                ),
                Panel(
                    "Objects that are not Ready",
                    "By kind. A short rise after a change is normal.",
                    (Query('max by (kind) (mailrail_operator_objects{ready!="True"})', "{{kind}}"),),
                    stacked=True,
                ),
                Panel(
                    "Objects that others decide for",
                    "Shadowed: part of the object can never apply. Ambiguous: a mere name decides between two rules. "
                    "The objects are Ready all the same; their conditions name the other object.",
                    (Query("max by (kind, condition) (mailrail_operator_object_warnings)", "{{kind}} {{condition}}"),),
                    stacked=True,
                ),
                Panel(
                    "Objects that another operator judges",
                    "By kind. This operator reads them, too; their status.controllerName says whose words they have. "
                    "Normal only where two installations read one namespace.",
                    (Query("max by (kind) (mailrail_operator_objects_judged_by_others)", "{{kind}}"),),
                    stacked=True,
                ),
                Panel(
                    "Objects that hold up every publish",
                    "They run, and this version of Mailrail can read neither them nor what another version compiled of "
                    "them. While there is one, no change of any object goes live.",
                    (Query("max(mailrail_operator_unreadable_objects)", "objects"),),
                ),
            ),
        ),
    ),
)
