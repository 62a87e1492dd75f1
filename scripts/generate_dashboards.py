"""Write the chart's Grafana dashboards, deploy/helm/mailrail/files/dashboards, from the description below.

A panel is said in a few lines: title, what it means, queries, unit. The matchers of the variables `namespace` and `job`
are put into every selector of ours here, so no query can forget them. tests/integration/observability runs every query
against a real Prometheus that scraped a real run.

`job` is one installation (the chart's PodMonitor makes it the release's name), `service` the component; both stand on
the merged page of local mode in the same way.
"""

import json
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "deploy/helm/mailrail/files/dashboards"
TAG = "mailrail"

_SERIES = re.compile(r"\b((?:mailrail|process)_[a-z_]+)(?:\{([^}]*)\})?")
_MATCHERS = 'namespace=~"$namespace",job=~"$job"'
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


class Unit(StrEnum):
    """Grafana's names of units."""

    NUMBER = "short"
    RATE = "suffix:/s"
    SECONDS = "s"
    BYTES = "bytes"
    BYTE_RATE = "Bps"
    SHARE = "percentunit"
    BOOLEAN = "bool_yes_no"


class Kind(StrEnum):
    """Grafana's panel types, those that are used."""

    SERIES = "timeseries"
    STAT = "stat"
    TABLE = "table"


class Color(StrEnum):
    """What a threshold says."""

    GOOD = "green"
    WARN = "orange"
    BAD = "red"
    PLAIN = "blue"


@dataclass(frozen=True)
class Query:
    """PromQL with bare selectors of ours, and what its series are called (`{{label}}` as Grafana writes it)."""

    expr: str
    legend: str = ""

    def scoped(self) -> str:
        """The query with the variables' matchers in each selector."""

        def matched(found: re.Match[str]) -> str:
            return f"{found[1]}{{{_MATCHERS}{',' + found[2] if found[2] else ''}}}"

        return _SERIES.sub(matched, self.expr)


@dataclass(frozen=True)
class Steps:
    """Colours by value: `first` below every step."""

    first: Color
    steps: tuple[tuple[float, Color], ...]


MORE_IS_BAD = Steps(Color.GOOD, ((1, Color.BAD),))
LESS_IS_BAD = Steps(Color.BAD, ((1, Color.GOOD),))


@dataclass(frozen=True)
class Panel:
    """One panel; widths are of Grafana's 24 columns."""

    title: str
    meaning: str
    queries: tuple[Query, ...]
    unit: Unit = Unit.NUMBER
    kind: Kind = Kind.SERIES
    width: int = 12
    height: int = 8
    steps: Steps | None = None
    stacked: bool = False
    decimals: int | None = None
    top: float | None = None  # of the axis


@dataclass(frozen=True)
class Row:
    """Panels under a heading."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Dashboard:
    """One file. `uid` is stable, since people link to it."""

    uid: str
    title: str
    meaning: str
    rows: tuple[Row, ...] = field(default=())


def rate(series: str) -> str:
    """What a counter rises by in a second."""
    return f"rate({series}[$__rate_interval])"


def quantile(q: float, histogram: str) -> str:
    """A quantile of a histogram, of all processes."""
    return f"histogram_quantile({q}, sum by (le) ({rate(histogram + '_bucket')}))"


def latency(title: str, meaning: str, histogram: str) -> Panel:
    """Quantiles over time."""
    queries = tuple(Query(quantile(q, histogram), f"{q * 100:g} %") for q in (0.5, 0.9, 0.99))
    return Panel(title, meaning, queries, Unit.SECONDS)


def stat(
    title: str,
    meaning: str,
    expr: str,
    unit: Unit = Unit.NUMBER,
    steps: Steps | None = None,
    decimals: int | None = None,
) -> Panel:
    """One number."""
    return Panel(title, meaning, (Query(expr),), unit, Kind.STAT, width=4, height=4, steps=steps, decimals=decimals)


def each(title: str, meaning: str, gauge: str, unit: Unit = Unit.NUMBER, steps: Steps | None = None) -> Panel:
    """A gauge of each process."""
    query = Query(f"sum by (pod, instance) ({gauge})", "{{pod}} {{instance}}")
    return Panel(title, meaning, (query,), unit, steps=steps)


def split(title: str, meaning: str, counter: str, *labels: str, stacked: bool = True) -> Panel:
    """A counter's rate by labels."""
    legend = " ".join(f"{{{{{label}}}}}" for label in labels)
    query = Query(f"sum by ({', '.join(labels)}) ({rate(counter)})", legend)
    return Panel(title, meaning, (query,), Unit.RATE, stacked=stacked)


def processes(service: str) -> Row:
    """What the processes of a service use."""
    mine = f'service="{service}"'
    by = "sum by (pod, instance)"
    name = "{{pod}} {{instance}}"
    return Row(
        "Processes",
        (
            Panel(
                "CPU",
                "Cores in use. One process uses one core at most, so near 1 it is time for another one.",
                (Query(f"{by} ({rate(f'process_cpu_seconds_total{{{mine}}}')})", name),),
                steps=Steps(Color.GOOD, ((0.9, Color.WARN),)),
                width=8,
            ),
            Panel(
                "Memory",
                "Resident memory. It does not grow with the backlog: a steady rise is a leak.",
                (Query(f"{by} (process_resident_memory_bytes{{{mine}}})", name),),
                Unit.BYTES,
                width=8,
            ),
            Panel(
                "Open files",
                "Sockets and files, as a share of what the process may open.",
                (Query(f"{by} (process_open_fds{{{mine}}}) / {by} (process_max_fds{{{mine}}})", name),),
                Unit.SHARE,
                steps=Steps(Color.GOOD, ((0.7, Color.WARN), (0.9, Color.BAD))),
                width=8,
            ),
        ),
    )


# --- what several dashboards show ---

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
    "A recipient each. interrupted: outbound went away in the middle; not_dialled: handed back and done anew.",
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

DASHBOARDS = (
    Dashboard(
        "mailrail-overview",
        "Mailrail / Overview",
        "Does mail come in, does it go out, and is everybody there?",
        (
            Row(
                "Now",
                (
                    stat(
                        "Messages taken",
                        "Committed by the queue, from anybody.",
                        f"sum({rate('mailrail_queue_messages_accepted_total')})",
                        Unit.RATE,
                        decimals=2,
                    ),
                    stat(
                        "Recipients done",
                        "Delivered, relayed, or captured by local mode.",
                        f"sum({rate(ENDED)})",
                        Unit.RATE,
                        decimals=2,
                    ),
                    stat(
                        "Due and ready",
                        "Recipients that nothing holds back but a lack of hands. Scale outbound, and the queue, by it.",
                        f"sum({READY})",
                        steps=Steps(Color.GOOD, ((1_000, Color.WARN), (10_000, Color.BAD))),
                    ),
                    stat(
                        "Longest ready wait",
                        "Of the recipients that are due and ready.",
                        'max(mailrail_queue_backlog_oldest_seconds{state="ready"})',
                        Unit.SECONDS,
                        Steps(Color.GOOD, ((60, Color.WARN), (600, Color.BAD))),
                    ),
                    stat(
                        "In the queue",
                        "Recipients that are not final, retries and held ones included, by Postgres's statistics.",
                        "sum(max by (namespace, job) (mailrail_queue_recipients_stored))",
                        steps=Steps(Color.PLAIN, ()),
                    ),
                    stat(
                        "Alerts",
                        "Alerts of these rules that fire.",
                        'count(ALERTS{alertname=~"Mailrail.*",alertstate="firing"}) or vector(0)',
                        steps=MORE_IS_BAD,
                    ),
                    stat(
                        "Deferred by us",
                        "Share of messages and senders that were told to come again (4yz).",
                        f"(sum({DEFERRED_MESSAGES})"
                        f" + sum({DEFERRED_SENDERS}))"
                        f" / clamp_min(sum({rate('mailrail_ingress_senders_total')}), 0.001)",
                        Unit.SHARE,
                        Steps(Color.GOOD, ((0.01, Color.WARN), (0.05, Color.BAD))),
                        decimals=1,
                    ),
                    stat(
                        "Next hops that rest",
                        "Sites in backoff: a domain, or a transport.",
                        'sum(mailrail_queue_sites{state="resting"})',
                        steps=Steps(Color.GOOD, ((20, Color.WARN), (500, Color.BAD))),
                    ),
                    stat(
                        "Transports that rest",
                        "Smarthosts, LMTP servers and proxies in backoff: usually ours to mend.",
                        "max(mailrail_queue_transports_resting)",
                        steps=MORE_IS_BAD,
                    ),
                    stat(
                        "Shards owned",
                        "Of 256. Mail of a shard without an owner waits.",
                        "sum(mailrail_queue_shards_owned)",
                        steps=Steps(Color.BAD, ((256, Color.GOOD),)),
                    ),
                    stat(
                        "Postgres",
                        "Whether every queue process can commit durably.",
                        "min(mailrail_queue_postgres_up)",
                        Unit.BOOLEAN,
                        LESS_IS_BAD,
                    ),
                    stat(
                        "Not on the newest configuration",
                        "Live services that are behind, or reject it.",
                        NOT_CURRENT,
                        steps=MORE_IS_BAD,
                    ),
                ),
            ),
            Row("Flow", (ACCEPTED, ATTEMPTS, BACKLOG, OLDEST, COMMIT, DELIVERY)),
            Row(
                "At the door, and back to senders",
                (
                    split(
                        "Messages sent to us, by result",
                        "Sent whole. deferred: our trouble or theirs for now (4yz); refused: for good (5yz).",
                        "mailrail_ingress_messages_total",
                        "origin",
                        "result",
                    ),
                    DSNS,
                ),
            ),
            Row(
                "Processes",
                (
                    Panel(
                        "CPU, by service",
                        "Cores in use.",
                        (Query(f"sum by (service) ({rate('process_cpu_seconds_total')})", "{{service}}"),),
                        stacked=True,
                        width=8,
                    ),
                    Panel(
                        "Memory, by service",
                        "Resident memory of all processes.",
                        (Query("sum by (service) (process_resident_memory_bytes)", "{{service}}"),),
                        Unit.BYTES,
                        stacked=True,
                        width=8,
                    ),
                    Panel(
                        "Running software",
                        "Processes by service and version.",
                        (Query("count by (service, version) (mailrail_build_info)"),),
                        kind=Kind.TABLE,
                        width=8,
                    ),
                ),
            ),
        ),
    ),
    Dashboard(
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
    ),
    Dashboard(
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
                                "max by (service, pod, instance)"
                                f' (mailrail_config_stale_seconds{{service=~"{SERVED}"}})',
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
    ),
    Dashboard(
        "mailrail-ingress",
        "Mailrail / Ingress",
        "SMTP in: connections, logins, what was said to whom, and how long the queue takes to answer.",
        (
            Row(
                "Connections",
                (
                    split(
                        "Connections, by protocol and result",
                        "too-many: a limit of the process or of one address; proxy: no valid PROXY header.",
                        "mailrail_ingress_connections_total",
                        "protocol",
                        "result",
                    ),
                    Panel(
                        "Open connections",
                        "By protocol of the listener.",
                        (Query("sum by (protocol) (mailrail_ingress_connections_open)", "{{protocol}}"),),
                        stacked=True,
                    ),
                    split(
                        "Sessions, by end",
                        "lost: the client went away; errors: too many of them; refused: a bare line end or an endless "
                        "line; tls: the handshake failed.",
                        "mailrail_ingress_sessions_total",
                        "end",
                    ),
                    split(
                        "TLS handshakes, by version",
                        "none: it failed.",
                        "mailrail_ingress_tls_handshakes_total",
                        "version",
                    ),
                ),
            ),
            Row(
                "Mail",
                (
                    split(
                        "Messages, by origin and result",
                        "Sent whole; abandoned: begun, and not finished by the client.",
                        "mailrail_ingress_messages_total",
                        "origin",
                        "result",
                    ),
                    Panel(
                        "Octets of accepted messages",
                        "What we add included.",
                        (Query(f"sum by (origin) ({rate('mailrail_ingress_octets_total')})", "{{origin}}"),),
                        Unit.BYTE_RATE,
                        stacked=True,
                    ),
                    split(
                        "Recipients (RCPT), by result",
                        "refused: no such user, or no relaying.",
                        "mailrail_ingress_recipients_total",
                        "origin",
                        "result",
                    ),
                    split(
                        "Senders (MAIL), by result",
                        "refused: not allowed, too large, or not logged in; deferred: a limit, or our trouble.",
                        "mailrail_ingress_senders_total",
                        "origin",
                        "result",
                    ),
                    split(
                        "Logins, by mechanism and result",
                        "refused: wrong name or password; throttled: an address that guessed too often.",
                        "mailrail_ingress_logins_total",
                        "mechanism",
                        "result",
                    ),
                    COMMIT,
                ),
            ),
            Row(
                "To the queue",
                (
                    each(
                        "Stream to the queue",
                        "1 while a stream is open. Without one mail is answered 451.",
                        "mailrail_ingress_queue_stream_up",
                        Unit.BOOLEAN,
                        LESS_IS_BAD,
                    ),
                    each(
                        "Commits without an answer yet",
                        "A steady rise: the queue, or Postgres, does not keep up.",
                        "mailrail_ingress_queue_pending",
                    ),
                ),
            ),
            processes("ingress"),
        ),
    ),
    Dashboard(
        "mailrail-queue",
        "Mailrail / Queue",
        "The queue's processes: commits, memory, shards, neighbours, Postgres and upkeep.",
        (
            Row(
                "Accepting",
                (
                    ACCEPTED,
                    split(
                        "Commits refused, by reason",
                        "unavailable: Postgres was out of reach (ingress answers 451); limit: an account's; data: "
                        "Postgres refuses this message; upload: its body never came whole; barred: its outcome was "
                        "asked for before it came.",
                        "mailrail_queue_messages_refused_total",
                        "reason",
                    ),
                    latency(
                        "Group commit",
                        "Duration of a commit in Postgres, as the queue sees it.",
                        "mailrail_queue_commit_seconds",
                    ),
                    Panel(
                        "Messages that share a commit",
                        "On average. It rises with the load: that is what makes commits cheap.",
                        (
                            Query(
                                f"sum({rate('mailrail_queue_commit_messages_sum')})"
                                f" / clamp_min(sum({rate('mailrail_queue_commit_messages_count')}), 0.001)",
                                "messages",
                            ),
                        ),
                    ),
                    split(
                        "Recipients stored, by how",
                        "born_leased: handed on from memory at once. due: waits in the database, since memory, the "
                        "window or outbound had no room.",
                        "mailrail_queue_recipients_total",
                        "way",
                    ),
                    each(
                        "Content that waits in memory",
                        "Of 64 MiB a process; past it mail is stored due.",
                        "mailrail_queue_pending_bytes",
                        Unit.BYTES,
                    ),
                ),
            ),
            Row(
                "Owning",
                (
                    each("Shards owned", "Of 256, shared evenly among processes.", "mailrail_queue_shards_owned"),
                    each(
                        "Outbound processes connected",
                        "To each queue process; every outbound process should be connected to every one.",
                        "mailrail_queue_outbound_streams",
                        steps=LESS_IS_BAD,
                    ),
                    each(
                        "Deliveries in flight",
                        "That outbound works on, by owner.",
                        "mailrail_queue_deliveries_in_flight",
                    ),
                    each(
                        "Deliveries that wait in memory",
                        "Leased and not handed on yet.",
                        "mailrail_queue_pending_deliveries",
                    ),
                ),
            ),
            Row(
                "Postgres and upkeep",
                (
                    each(
                        "Postgres",
                        "1 while it answers and commits durably.",
                        "mailrail_queue_postgres_up",
                        Unit.BOOLEAN,
                        LESS_IS_BAD,
                    ),
                    split(
                        "Database errors",
                        "connect: out of reach, or it would not be durable; statement: one failed.",
                        "mailrail_queue_database_errors_total",
                        "what",
                    ),
                    split(
                        "Swept",
                        "Rows that nobody needs any more. Messages follow their last recipient by ten minutes.",
                        "mailrail_queue_swept_total",
                        "what",
                    ),
                    Panel(
                        "In the queue",
                        "Recipients that are not final, by Postgres's statistics.",
                        (Query("sum(max by (namespace, job) (mailrail_queue_recipients_stored))", "recipients"),),
                    ),
                ),
            ),
            processes("queue"),
        ),
    ),
    Dashboard(
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
    ),
    Dashboard(
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
    ),
    Dashboard(
        "mailrail-operator",
        "Mailrail / Operator",
        "From custom resources to published revisions and back into status. Mail flows without it.",
        (
            Row(
                "Now",
                (
                    stat(
                        "Leaders",
                        "One process leads; others stand by.",
                        "sum(mailrail_operator_leader)",
                        steps=Steps(Color.BAD, ((1, Color.GOOD), (2, Color.BAD))),
                    ),
                    stat(
                        "Synced",
                        "All objects were listed.",
                        "max(mailrail_operator_synced)",
                        Unit.BOOLEAN,
                        LESS_IS_BAD,
                    ),
                    stat(
                        "Last publish",
                        "Time since. Without changes nothing is published, so long is not bad by itself.",
                        "time() - max(mailrail_operator_last_publish_timestamp_seconds > 0)",
                        Unit.SECONDS,
                        Steps(Color.PLAIN, ()),
                    ),
                    stat(
                        "Last event of a watch",
                        "Time since. Objects are listed anew every five minutes at the latest.",
                        "time() - max(mailrail_operator_last_watch_timestamp_seconds > 0)",
                        Unit.SECONDS,
                        Steps(Color.GOOD, ((360, Color.WARN), (900, Color.BAD))),
                    ),
                    stat(
                        "Statuses that wait",
                        "To be written.",
                        "sum(mailrail_operator_status_pending)",
                        steps=Steps(Color.GOOD, ((100, Color.WARN),)),
                    ),
                    stat(
                        "Objects not Ready",
                        "`kubectl get mailrail -A` names them.",
                        'sum(max by (kind, ready) (mailrail_operator_objects{ready!="True"}))',
                        steps=Steps(Color.GOOD, ((1, Color.WARN),)),
                    ),
                ),
            ),
            Row(
                "Publishing",
                (
                    Panel(
                        "Revisions",
                        "Published by the operator, and what services should run; less if head is pinned.",
                        (
                            Query("max(mailrail_operator_revision)", "published"),
                            Query("max(mailrail_operator_head)", "head"),
                        ),
                    ),
                    split(
                        "Publishes, by result",
                        "failed: config was out of reach or refused; it is tried again.",
                        "mailrail_operator_publishes_total",
                        "result",
                    ),
                    latency(
                        "From change to stored revision",
                        "The first change noticed to the revision stored; a change should be live within 2 s.",
                        "mailrail_operator_cycle_seconds",
                    ),
                    Panel(
                        "Services, as the operator counts them",
                        "What MailGateway's status says.",
                        (Query("max by (state) (mailrail_operator_consumers)", "{{state}}"),),
                    ),
                ),
            ),
            Row(
                "Kubernetes",
                (
                    Panel(
                        "Objects, by kind and Ready",
                        "That are heeded.",
                        (Query("max by (kind, ready) (mailrail_operator_objects)", "{{kind}} {{ready}}"),),
                        stacked=True,
                    ),
                    split(
                        "Statuses written",
                        "gone: the object was deleted meanwhile.",
                        "mailrail_operator_status_writes_total",
                        "result",
                    ),
                    split(
                        "Authoritative lists, by cause",
                        "relist: a watch began anew; period: every five minutes; count: what is known and what there "
                        "is differ in number.",
                        "mailrail_operator_resyncs_total",
                        "cause",
                    ),
                    Panel(
                        "Watches started anew",
                        "Now and then is normal.",
                        (Query(f"sum({rate('mailrail_operator_watch_restarts_total')})", "restarts"),),
                        Unit.RATE,
                    ),
                    split(
                        "Secrets read",
                        "absent: named by an object, and not there.",
                        "mailrail_operator_secret_reads_total",
                        "result",
                    ),
                    split(
                        "Domains looked up in DNS",
                        "False: records are missing; the domain's condition DNSConfigured says which.",
                        "mailrail_operator_dns_checks_total",
                        "status",
                    ),
                ),
            ),
            processes("operator"),
        ),
    ),
)


# --- as Grafana reads it ---


def _variables() -> list[dict[str, Any]]:
    def query(name: str, label: str, text: str, **more: Any) -> dict[str, Any]:
        return {
            "name": name,
            "label": label,
            "type": "query",
            "datasource": _DATASOURCE,
            "definition": text,
            "query": {"query": text, "refId": name},
            "multi": True,
            "includeAll": True,
            "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
            "refresh": 2,
            "sort": 1,
            "hide": 0,
            **more,
        }

    return [
        {
            "name": "datasource",
            "label": "Data source",
            "type": "datasource",
            "query": "prometheus",
            "refresh": 1,
            "hide": 0,
            "current": {},
        },
        # Outside Kubernetes series have no such label: `.*` matches its absence too.
        query("namespace", "Namespace", "label_values(mailrail_build_info, namespace)", allValue=".*"),
        # No `.*` here: what all processes export (process_*) would come in from everywhere.
        query("job", "Installation", 'label_values(mailrail_build_info{namespace=~"$namespace"}, job)'),
    ]


def _annotations() -> list[dict[str, Any]]:
    expr = Query("max(mailrail_config_head_revision) != max(mailrail_config_head_revision offset 1m)").scoped()
    return [
        {
            "name": "Annotations & Alerts",
            "builtIn": 1,
            "datasource": {"type": "grafana", "uid": "-- Grafana --"},
            "enable": True,
            "hide": True,
            "iconColor": "rgba(0, 211, 255, 1)",
            "type": "dashboard",
        },
        {
            "name": "New configuration",
            "datasource": _DATASOURCE,
            "enable": False,
            "iconColor": "purple",
            "expr": expr,
            "step": "60s",
            "titleFormat": "revision",
            "textFormat": "{{value}}",
            "useValueForTime": False,
        },
    ]


def _thresholds(steps: Steps | None) -> dict[str, Any]:
    chosen = steps or Steps(Color.GOOD, ())
    listed: list[dict[str, Any]] = [{"color": chosen.first.value, "value": None}]
    listed += [{"color": color.value, "value": value} for value, color in chosen.steps]
    return {"mode": "absolute", "steps": listed}


def _target(number: int, query: Query, kind: Kind) -> dict[str, Any]:
    instant = kind is not Kind.SERIES
    return {
        "refId": chr(ord("A") + number),
        "datasource": _DATASOURCE,
        "editorMode": "code",
        "expr": query.scoped(),
        "legendFormat": query.legend or "__auto",
        "instant": instant,
        "range": not instant,
        "format": "table" if kind is Kind.TABLE else "time_series",
    }


def _panel(number: int, panel: Panel, x: int, y: int) -> dict[str, Any]:
    defaults: dict[str, Any] = {
        "unit": panel.unit.value,
        "thresholds": _thresholds(panel.steps),
        "color": {"mode": "palette-classic" if panel.kind is Kind.SERIES else "thresholds"},
        "noValue": "–",
    }
    if panel.decimals is not None:
        defaults["decimals"] = panel.decimals
    options: dict[str, Any] = {}
    overrides: list[dict[str, Any]] = []
    extra: dict[str, Any] = {}
    match panel.kind:
        case Kind.SERIES:
            defaults["min"] = 0
            if panel.top is not None:
                defaults["max"] = panel.top
            defaults["custom"] = {
                "drawStyle": "line",
                "lineInterpolation": "stepAfter" if panel.unit is Unit.BOOLEAN else "linear",
                "lineWidth": 1,
                "fillOpacity": 20 if panel.stacked else 5,
                "showPoints": "never",
                "spanNulls": False,
                "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
                "thresholdsStyle": {"mode": "off"},
            }
            options = {
                "legend": {
                    "displayMode": "table",
                    "placement": "bottom",
                    "showLegend": True,
                    "calcs": ["lastNotNull", "max"],
                },
                "tooltip": {"mode": "multi", "sort": "desc"},
            }
        case Kind.STAT:
            options = {
                "colorMode": "value",
                "graphMode": "none",
                "justifyMode": "auto",
                "orientation": "auto",
                "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
                "textMode": "value",
                "wideLayout": True,
            }
        case Kind.TABLE:
            defaults["custom"] = {"align": "auto", "cellOptions": {"type": "auto"}, "filterable": False}
            options = {"showHeader": True, "cellHeight": "sm", "footer": {"show": False}}
            extra["transformations"] = [
                {"id": "organize", "options": {"excludeByName": {"Time": True}, "renameByName": {"Value": panel.title}}}
            ]
            overrides = [
                {
                    "matcher": {"id": "byName", "options": panel.title},
                    "properties": [{"id": "custom.cellOptions", "value": {"type": "color-text"}}],
                }
            ]
    return {
        "id": number,
        "type": panel.kind.value,
        "title": panel.title,
        "description": panel.meaning,
        "datasource": _DATASOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": panel.height},
        "fieldConfig": {"defaults": defaults, "overrides": overrides},
        "options": options,
        "targets": [_target(n, query, panel.kind) for n, query in enumerate(panel.queries)],
        **extra,
    }


def _panels(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    number, y = 1, 0
    for row in rows:
        yield {
            "id": number,
            "type": "row",
            "title": row.title,
            "collapsed": False,
            "gridPos": {"x": 0, "y": y, "w": 24, "h": 1},
            "panels": [],
        }
        number, y = number + 1, y + 1
        x = tallest = 0
        for panel in row.panels:
            if x + panel.width > 24:
                x, y, tallest = 0, y + tallest, 0
            yield _panel(number, panel, x, y)
            number, x, tallest = number + 1, x + panel.width, max(tallest, panel.height)
        y += tallest


def document(dashboard: Dashboard) -> dict[str, Any]:
    """The dashboard as Grafana imports it (schema version 39: Grafana 10.4 and newer)."""
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.meaning,
        "tags": [TAG],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": _variables()},
        "annotations": {"list": _annotations()},
        "links": [
            {
                "type": "dashboards",
                "title": "Mailrail",
                "tags": [TAG],
                "asDropdown": False,
                "includeVars": True,
                "keepTime": True,
                "targetBlank": False,
                "icon": "external link",
            }
        ],
        "panels": list(_panels(dashboard.rows)),
    }


def generate(target: Path) -> None:
    """Write one file a dashboard into `target` (replaced whole)."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for dashboard in DASHBOARDS:
        text = json.dumps(document(dashboard), indent=2, ensure_ascii=False)
        (target / f"{dashboard.uid.removeprefix('mailrail-')}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
