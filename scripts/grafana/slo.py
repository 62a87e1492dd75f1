"""The dashboard `Mailrail / Objectives`."""

from grafana.panels import Color, Dashboard, Panel, Query, Row, Steps, Unit, latency, stat
from grafana.shared import DEFERRED_MESSAGES, DEFERRED_SENDERS, OLDEST

WINDOWS = ("5m", "30m", "1h", "6h")
_ACCEPTED = "Share of the mail that clients offered and ingress did not answer with 4yz."
_FIRST_ATTEMPT = "Share of recipients that were first tried within a minute after the 250."


def _errors(objective: str, window: str) -> str:
    return f'max(mailrail:slo_errors:ratio_rate{window}{{slo="{objective}"}})'


def _met(title: str, meaning: str, objective: str, window: str, steps: Steps) -> Panel:
    return stat(title, meaning, f"1 - {_errors(objective, window)}", Unit.SHARE, steps, decimals=3)


def _chosen(title: str, meaning: str, objective: str, steps: Steps) -> Panel:
    expr = f'1 - max(avg_over_time(mailrail:slo_errors:ratio_rate5m{{slo="{objective}"}}[$__range]))'
    return stat(title, f"{meaning} The mean over the time that is shown.", expr, Unit.SHARE, steps, decimals=3)


def _windows(title: str, meaning: str, objective: str) -> Panel:
    return Panel(title, meaning, tuple(Query(_errors(objective, w), w) for w in WINDOWS), Unit.SHARE)


_THREE_NINES = Steps(Color.BAD, ((0.99, Color.WARN), (0.999, Color.GOOD)))
_TWO_NINES = Steps(Color.BAD, ((0.95, Color.WARN), (0.99, Color.GOOD)))

DASHBOARD = Dashboard(
    "mailrail-slo",
    "Mailrail / Objectives",
    "How much mail is taken, and first tried within a minute; and how fast the error budgets burn. The objectives are "
    "values of the chart (`prometheusRule.slo`).",
    (
        Row(
            "Now",
            (
                _met("Mail accepted, 1 h", _ACCEPTED, "accepted", "1h", _THREE_NINES),
                _met("Mail accepted, 6 h", _ACCEPTED, "accepted", "6h", _THREE_NINES),
                _chosen("Mail accepted, time shown", _ACCEPTED, "accepted", _THREE_NINES),
                _met("First tried in time, 1 h", _FIRST_ATTEMPT, "first_attempt", "1h", _TWO_NINES),
                _met("First tried in time, 6 h", _FIRST_ATTEMPT, "first_attempt", "6h", _TWO_NINES),
                _chosen("First tried in time, time shown", _FIRST_ATTEMPT, "first_attempt", _TWO_NINES),
            ),
        ),
        Row(
            "Mail accepted",
            (
                _windows(
                    "Errors of accepting, by window",
                    "Share of offered mail that ingress answered 4yz. With an objective of 99.9 % the budget is 0.1 %; "
                    "an alert fires at 14.4 times that over 1 h and 5 min, or 6 times over 6 h and 30 min.",
                    "accepted",
                ),
                Panel(
                    "Deferred by us",
                    "Messages and senders that ingress answered 4yz.",
                    (Query(f"sum({DEFERRED_MESSAGES})", "messages"), Query(f"sum({DEFERRED_SENDERS})", "senders")),
                    Unit.RATE,
                    stacked=True,
                ),
            ),
        ),
        Row(
            "First attempts",
            (
                _windows(
                    "Errors of first attempts, by window",
                    "Share of recipients that were first tried later than a minute after the 250. Mail that is not "
                    "tried at all counts once it is tried: the panel beside it shows the longest wait until then.",
                    "first_attempt",
                ),
                OLDEST,
                latency(
                    "Wait for the first attempt",
                    "From the commit to the start of the first attempt, without time on hold.",
                    "mailrail_queue_first_attempt_seconds",
                ),
            ),
        ),
    ),
)
