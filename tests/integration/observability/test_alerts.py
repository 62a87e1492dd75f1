"""Each alert fires when it should and is silent when it should be, by promtool; and each has a runbook."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from generate_dashboards import rules

from testkit.observability import RULES, SELECTOR, alerts, dashboards, records
from testkit.peers import program, require_peer

RUNBOOKS = Path(__file__).resolve().parents[3] / "docs/runbooks"
HEADINGS = ("## How bad it is", "## What to look at", "## What to do")

pytestmark = pytest.mark.peer("prometheus")

Series = dict[str, str]
"""Name, with labels if any, → values as promtool writes them, one a minute (`0+6x120`: 0, 6, 12, ...)."""


@dataclass(frozen=True)
class Case:
    """What was scraped for an hour and a half, once so that the alert fires and once so that it does not."""

    alert: str
    fires: tuple[Series, ...]
    silent: tuple[Series, ...]


def of(name: str, **labels: str) -> str:
    """A series of one installation; `le` and `pod` are labels like any other."""
    listed = ",".join(
        f'{label}="{value}"' for label, value in {"job": "mailrail", "namespace": "mail", **labels}.items()
    )
    return f"{name}{{{listed}}}"


def still(value: float) -> str:
    """The same value all the time."""
    return f"{value}x120"


def rising(by: float) -> str:
    """A counter that rises by so much a minute."""
    return f"0+{by}x120"


def gauge(name: str, fires: float, silent: float, **labels: str) -> tuple[tuple[Series, ...], tuple[Series, ...]]:
    """An alert on the value of one gauge."""
    return ({of(name, **labels): still(fires)},), ({of(name, **labels): still(silent)},)


DAY = 86_400


def certificate(*, expires_in: float, lives: float) -> Series:
    """A certificate of the listeners, as it stands after an hour and a half."""
    labels = {"service": "ingress", "use": "smtp"}
    return {
        of("mailrail_certificate_expiry_timestamp_seconds", **labels): still(expires_in + 5400),
        of("mailrail_certificate_lifetime_seconds", **labels): still(lives),
    }


READY = of("mailrail_queue_backlog_recipients", state="ready")
DONE = of("mailrail_queue_attempts_total", outcome="delivered")
WENT_BACK, CONFIG_WENT_BACK = of("mailrail_queue_new_histories_total"), of("mailrail_config_new_histories_total")
CORRUPT = of("mailrail_queue_corrupt_recipients_total")
STALE = of("mailrail_outbound_policy_fetches_total", result="not_refreshed")
FETCHED = of("mailrail_outbound_policy_fetches_total", result="fetched")
TRUSTED, VALIDATES = of("mailrail_outbound_resolver_trusted"), of("mailrail_outbound_resolver_validates")
MATCHED = of("mailrail_outbound_dane_comparisons_total", result="matched")
MISMATCHED = of("mailrail_outbound_dane_comparisons_total", result="tlsa_mismatch")
EXPIRED = of("mailrail_outbound_dane_comparisons_total", result="certificate_expired")
UNOFFERED = of("mailrail_queue_requiretls_errors_total", reason="no_requiretls", outcome="failed")
STEP = of("mailrail_queue_step_failures_total", step="due_work")
INTERRUPTED = of("mailrail_queue_attempts_total", outcome="interrupted")
MESSAGES = of("mailrail_ingress_messages_total", origin="mx", result="deferred")
SENDERS = of("mailrail_ingress_senders_total", origin="mx", result="accepted")
NO_SENDERS = of("mailrail_ingress_senders_total", origin="mx", result="deferred")
REFUSED = of("mailrail_ingress_logins_total", mechanism="PLAIN", result="refused")
LOGGED_IN = of("mailrail_ingress_logins_total", mechanism="PLAIN", result="accepted")
TOO_MANY = of("mailrail_ingress_connections_total", protocol="mx", result="too_many")
BACKOFF = of("mailrail_queue_sites", state="backoff")
ACTIVE = of("mailrail_queue_sites", state="active")
BOUNCES = of("mailrail_queue_dsns_total", kind="failed")
STORED = of("mailrail_queue_recipients_total", state="born_leased")
FAILED = of("mailrail_operator_publishes_total", result="failed")
PUBLISHED = of("mailrail_operator_publishes_total", result="stored")
HEARD = of("mailrail_operator_last_watch_timestamp_seconds")
LEADS, SYNCED = of("mailrail_operator_leader"), of("mailrail_operator_synced")
REFUSALS = of("mailrail_config_publishes_total", result="refused")
PROBE_FAILED = of("mailrail_operator_mail_probes_total", result="refused")
PROBE_EXPECTED = of("mailrail_operator_mail_probes_expected")
PROBE_ARRIVED = of("mailrail_operator_mail_probes_total", result="arrived")
TRIED = of("mailrail_queue_first_attempt_seconds_count")
ERRORS = of("mailrail_queue_database_errors_total", kind="connect")
OPEN, MAY_OPEN = of("process_open_fds", service="queue"), of("process_max_fds", service="queue")


def bucket(le: str) -> str:
    return of("mailrail_ingress_commit_seconds_bucket", le=le)


def waited(le: str) -> str:
    return of("mailrail_queue_first_attempt_seconds_bucket", le=le)


def pods(name: str, *values: float) -> Series:
    return {of(name, pod=f"pod-{n}"): still(value) for n, value in enumerate(values)}


def sessions(**found: tuple[int, int]) -> Series:
    """Connections in use and allowed, by limit, as two queue processes see them."""
    return {
        of(f"mailrail_queue_postgres_connections{name}", limit=limit, pod=pod): still(value)
        for limit, values in found.items()
        for name, value in zip(("", "_allowed"), values, strict=True)
        for pod in ("pod-0", "pod-1")
    }


def volume(*, left: float, of_all: float) -> Series:
    """Of the bundled Postgres, in GiB."""
    found = {"available_bytes": left, "bytes": of_all}
    return {
        of(f"mailrail_postgres_volume_{name}", service="postgres"): still(value * 2**30)
        for name, value in found.items()
    }


def standing(*, published: int, head: int, pinned: int) -> Series:
    """What the operator published, and what the config service has in force."""
    values = {"published_revision": published, "head_revision": head, "head_pinned": pinned}
    return {of(f"mailrail_operator_{name}", pod="operator-0"): still(value) for name, value in values.items()}


CASES = (
    Case(
        "MailrailNoMailMoving",
        ({READY: still(50), DONE: still(100)},),
        (
            {READY: still(50), DONE: rising(60)},
            {READY: still(0), DONE: still(100)},
            {of("mailrail_queue_backlog_recipients", state="backoff"): still(50), DONE: still(100)},
        ),
    ),
    Case(
        "MailrailBacklogOld",
        ({of("mailrail_queue_backlog_oldest_seconds", state="ready"): still(1000)},),
        (
            {of("mailrail_queue_backlog_oldest_seconds", state="ready"): still(300)},
            {of("mailrail_queue_backlog_oldest_seconds", state="limited"): still(5000)},
        ),
    ),
    Case(
        "MailrailIngressDefersMail",
        (
            {MESSAGES: rising(10), NO_SENDERS: still(0), SENDERS: rising(50)},
            {MESSAGES: still(0), NO_SENDERS: rising(50), SENDERS: rising(50)},
        ),
        (
            {MESSAGES: rising(1), NO_SENDERS: still(0), SENDERS: rising(50)},
            {MESSAGES: rising(1), NO_SENDERS: still(0), SENDERS: rising(1)},  # too few to say anything
        ),
    ),
    Case(
        "MailrailIngressWithoutQueue",
        (
            pods("mailrail_ingress_queue_stream_up", 0, 0),
            pods("mailrail_queue_shards_owned", 128, 128),  # no ingress at all
        ),
        (pods("mailrail_ingress_queue_stream_up", 0, 1),),
    ),
    Case(
        "MailrailProbeFailing",
        ({PROBE_FAILED: rising(1), PROBE_ARRIVED: still(7)}, {PROBE_FAILED: rising(1)}),
        (
            {PROBE_FAILED: still(0), PROBE_ARRIVED: rising(1)},
            {PROBE_FAILED: rising(0.5), PROBE_ARRIVED: rising(0.5)},  # some get through
            {PROBE_FAILED: still(0), PROBE_ARRIVED: still(0)},  # there is no listener yet, or no probe is wanted
        ),
    ),
    Case(
        "MailrailProbeNotSent",
        (
            {PROBE_EXPECTED: still(1), PROBE_FAILED: still(3), PROBE_ARRIVED: still(7)},
            {PROBE_EXPECTED: still(1)},
            {
                PROBE_EXPECTED: "0 0 0 1 0" + " 0 0 0 1 0" * 23,
                PROBE_ARRIVED: still(0),
            },  # it leads for moments, and ends
        ),
        (
            {PROBE_EXPECTED: still(1), PROBE_FAILED: still(0), PROBE_ARRIVED: rising(1)},
            {
                PROBE_EXPECTED: still(1),
                PROBE_FAILED: rising(1),
                PROBE_ARRIVED: still(0),
            },  # MailrailProbeFailing says it
            {PROBE_EXPECTED: still(0), PROBE_FAILED: still(0), PROBE_ARRIVED: still(0)},  # no listener takes one
            {PROBE_EXPECTED: "0x82 1x40", PROBE_FAILED: still(0), PROBE_ARRIVED: still(0)},  # it has just begun
        ),
    ),
    Case(
        "MailrailCommitSlow",
        ({bucket("1"): rising(0), bucket("5"): rising(10), bucket("+Inf"): rising(10)},),
        ({bucket("0.05"): rising(10), bucket("5"): rising(10), bucket("+Inf"): rising(10)},),
    ),
    Case(
        "MailrailCommitsUnanswered",
        ({of("mailrail_ingress_queue_pending"): still(3), of("mailrail_ingress_commit_seconds_count"): still(500)},),
        (
            {of("mailrail_ingress_queue_pending"): still(3), of("mailrail_ingress_commit_seconds_count"): rising(60)},
            {of("mailrail_ingress_queue_pending"): still(0), of("mailrail_ingress_commit_seconds_count"): still(500)},
        ),
    ),
    Case("MailrailConnectionsTurnedAway", ({TOO_MANY: rising(120)},), ({TOO_MANY: rising(6)},)),
    Case(
        "MailrailIngressListenerDown",
        *gauge("mailrail_ingress_listeners", 1, 0, gateway="mail/main", listener="mx", state="failed"),
    ),
    Case(
        "MailrailLoginFailures",
        ({REFUSED: rising(60), LOGGED_IN: rising(6)},),
        ({REFUSED: rising(60), LOGGED_IN: rising(600)}, {REFUSED: rising(6), LOGGED_IN: rising(0)}),
    ),
    Case(
        "MailrailAcceptBudgetBurns",
        (
            {MESSAGES: rising(3), NO_SENDERS: still(0), SENDERS: rising(97)},
            # Ten times the budget: too slow for the windows of 1 h and 5 min, and enough for those of 6 h and 30 min.
            {MESSAGES: rising(1), NO_SENDERS: still(0), SENDERS: rising(99)},
        ),
        (
            {MESSAGES: rising(0.5), NO_SENDERS: still(0), SENDERS: rising(999)},
            {
                MESSAGES: "0+50x60 3000x60",
                NO_SENDERS: still(0),
                SENDERS: rising(97),
            },  # it is over
            {MESSAGES: "0x80 1x40", NO_SENDERS: still(0), SENDERS: rising(0.05)},  # one message of a few
        ),
    ),
    Case(
        "MailrailFirstAttemptBudgetBurns",
        ({waited("60.0"): rising(80), TRIED: rising(100)}, {waited("60.0"): rising(93), TRIED: rising(100)}),
        (
            {waited("60.0"): rising(99), TRIED: rising(100)},
            {waited("60.0"): "0x80 1x40", TRIED: "0x80 3x40"},  # two of three, but of three only
        ),
    ),
    Case(
        "MailrailShardsWithoutOwner",
        (pods("mailrail_queue_shards_owned", 128, 72), {}),
        (pods("mailrail_queue_shards_owned", 128, 128), pods("mailrail_queue_shards_owned", 256)),
    ),
    Case(
        "MailrailQueuePostgresDown",
        (pods("mailrail_queue_postgres_up", 0, 0),),
        (pods("mailrail_queue_postgres_up", 1, 0),),
    ),
    Case("MailrailCommitsWaitForStandby", *gauge("mailrail_queue_commits_waiting_for_standby", 2, 0)),
    Case(
        "MailrailPostgresConnectionsNearLimit",
        (
            sessions(server=(91, 97)),
            sessions(server=(50, 97), role=(68, 70)),
        ),
        (
            sessions(server=(80, 97), role=(40, 70)),
            {of("mailrail_queue_postgres_connections", limit="role"): still(500)},  # the role has no limit
        ),
    ),
    Case(
        "MailrailPostgresVolumeFills",
        (volume(left=1.0, of_all=8.0),),
        (volume(left=2.0, of_all=8.0),),
    ),
    Case("MailrailDatabaseErrors", ({ERRORS: rising(6)},), ({ERRORS: rising(1)},)),
    Case(
        "MailrailQueueStepFails",
        ({STEP: rising(6)}, {of("mailrail_queue_step_failures_total", step="upkeep"): rising(2)}),
        ({STEP: still(40)}, {STEP: rising(0.5)}),
    ),
    Case(
        "MailrailNoOutbound",
        (pods("mailrail_queue_outbound_streams", 0, 0),),
        (pods("mailrail_queue_outbound_streams", 0, 2),),
    ),
    Case(
        "MailrailOutboundWithoutQueue",
        (pods("mailrail_outbound_queue_replicas", 2, 0),),
        (pods("mailrail_outbound_queue_replicas", 2, 1),),
    ),
    Case("MailrailOutboundPostgresDown", *gauge("mailrail_outbound_postgres_up", 0, 1)),
    Case("MailrailPolicyNotRefreshed", ({STALE: rising(1)},), ({STALE: still(3)}, {FETCHED: rising(1)})),
    Case(
        "MailrailResolverNotValidating",
        (
            {TRUSTED: still(1), VALIDATES: "1x40 0x80"},
            # A process that was started since, beside one that still validates.
            {
                of("mailrail_outbound_resolver_trusted", pod="new"): still(1),
                of("mailrail_outbound_resolver_validates", pod="new"): still(0),
                of("mailrail_outbound_resolver_trusted", pod="old"): still(1),
                of("mailrail_outbound_resolver_validates", pod="old"): still(1),
            },
        ),
        (
            {TRUSTED: still(1), VALIDATES: still(1)},
            {TRUSTED: still(1), VALIDATES: "0x3 1x120"},
            {TRUSTED: still(1), VALIDATES: still(0)},  # it never did: a closed world whose root is not signed
            {TRUSTED: "1x40 0x80", VALIDATES: "1x40 0x80"},  # it is no longer declared trusted
        ),
    ),
    Case(
        "MailrailDANEFails",
        ({MISMATCHED: rising(1), MATCHED: rising(50)}, {EXPIRED: "0x60 9x60"}),
        ({MISMATCHED: "0x60 3x60", MATCHED: rising(50)}, {MATCHED: rising(50)}),
    ),
    Case(
        "MailrailRequireTLSFails",
        ({UNOFFERED: rising(1)},),
        (
            {UNOFFERED: "0x60 5x60"},
            {of("mailrail_queue_requiretls_errors_total", reason="tlsa", outcome="deferred"): rising(9)},
        ),
    ),
    Case(
        "MailrailLeasesInterrupted",
        ({INTERRUPTED: rising(5), DONE: rising(50)},),
        ({INTERRUPTED: rising(5), DONE: rising(5000)}, {INTERRUPTED: rising(1), DONE: rising(1)}),
    ),
    Case("MailrailMailCorrupt", ({CORRUPT: rising(1)},), ({CORRUPT: still(1)},)),
    Case(
        "MailrailDatabaseWentBack",
        (
            {WENT_BACK: "0x60 1x60", CONFIG_WENT_BACK: still(0)},
            {WENT_BACK: still(0), CONFIG_WENT_BACK: "0x60 1x60"},
            {WENT_BACK: "0x60 1x60"},
        ),
        ({WENT_BACK: still(1), CONFIG_WENT_BACK: still(1)}, {WENT_BACK: still(0)}),
    ),
    Case(
        "MailrailTransportInBackoff",
        *gauge("mailrail_queue_transports_in_backoff", 1, 0, transport="mail/relay", reason="login_refused"),
    ),
    Case(
        "MailrailManySitesInBackoff",
        ({BACKOFF: still(60), ACTIVE: still(40)},),
        ({BACKOFF: still(60), ACTIVE: still(400)}, {BACKOFF: still(10), ACTIVE: still(2)}),
    ),
    Case(
        "MailrailManyFailures",
        ({BOUNCES: rising(20), STORED: rising(100)},),
        ({BOUNCES: rising(5), STORED: rising(100)}, {BOUNCES: rising(0.5), STORED: rising(1)}),
    ),
    Case("MailrailConfigRejected", *gauge("mailrail_config_consumers", 1, 0, role="ingress", state="rejecting")),
    Case("MailrailConfigNotApplied", *gauge("mailrail_config_consumers", 1, 0, role="queue", state="behind")),
    Case("MailrailConfigStale", *gauge("mailrail_config_stale_seconds", 120, 2, service="queue")),
    Case("MailrailConfigPostgresDown", *gauge("mailrail_config_postgres_up", 0, 1)),
    Case("MailrailConfigPinned", *gauge("mailrail_config_head_pinned", 1, 0)),
    Case(
        "MailrailConfigNotStored",
        (
            standing(published=7, head=4, pinned=0),
            standing(published=7, head=0, pinned=0),
            standing(published=7, head=1007, pinned=0),
        ),
        (standing(published=7, head=7, pinned=0), standing(published=7, head=4, pinned=1)),
    ),
    Case("MailrailPublishRefused", ({REFUSALS: rising(1)},), ({REFUSALS: rising(0.1)},)),
    Case(
        "MailrailOperatorNoLeader",
        (pods("mailrail_operator_leader", 0, 0), {}),
        (pods("mailrail_operator_leader", 0, 1),),
    ),
    Case(
        "MailrailOperatorStale",
        (
            {HEARD: still(60)},
            {HEARD: still(0), LEADS: still(1), SYNCED: still(0)},
            {HEARD: "1+60x120", LEADS: still(1), SYNCED: still(0)},  # it hears of Secrets, and lists none of our kinds
            {HEARD: still(0), LEADS: "0 1 0" + " 0 1 0" * 39, SYNCED: still(0)},  # it ends, again and again
        ),
        (
            {HEARD: "1+60x120"},
            {HEARD: still(0), LEADS: still(0), SYNCED: still(0)},  # MailrailOperatorNoLeader says it
            {HEARD: "0x86 5200x40", LEADS: "0x85 1x40", SYNCED: "0x88 1x40"},  # it has just begun
            {HEARD: still(0), LEADS: "0x86 1x40", SYNCED: still(0)},
            pods("mailrail_operator_leader", 0, 1) | pods("mailrail_operator_synced", 0, 1),  # the other stands by
        ),
    ),
    Case(
        "MailrailOperatorPublishFails",
        ({FAILED: rising(1), PUBLISHED: still(5)},),
        ({FAILED: rising(1), PUBLISHED: rising(1)}, {FAILED: still(3), PUBLISHED: still(5)}),
    ),
    Case(
        "MailrailNothingPublished",
        (pods("mailrail_operator_unreadable_objects", 0, 1),),
        (
            pods("mailrail_operator_unreadable_objects", 0, 0),
            {of("mailrail_operator_unreadable_objects"): "0 1 0 0x120"},
        ),
    ),
    Case(
        "MailrailStatusNotWritten",
        (
            {of("mailrail_operator_status_pending"): still(3)},
            pods("mailrail_operator_status_pending", 3, 0),  # the other stands by
        ),
        ({of("mailrail_operator_status_pending"): "3 0" + " 3 0" * 60},),
    ),
    Case(
        "MailrailObjectsShadowed",
        *gauge("mailrail_operator_object_warnings", 2, 0, kind="MailRoute", condition="Shadowed"),
    ),
    Case("MailrailObjectsNotReady", *gauge("mailrail_operator_objects", 2, 0, kind="MailRoute", ready="False")),
    Case(
        "MailrailCertificateExpiresSoon",
        (certificate(expires_in=400_000, lives=90 * DAY), certificate(expires_in=600, lives=7200)),
        # Short-lived certificates are renewed at two thirds of their life.
        (certificate(expires_in=9_000_000, lives=365 * DAY), certificate(expires_in=40_000, lives=DAY)),
    ),
    Case(
        "MailrailCertificateUnusable",
        (certificate(expires_in=-5400, lives=0), certificate(expires_in=7_200, lives=90 * DAY)),
        (certificate(expires_in=400_000, lives=90 * DAY), certificate(expires_in=1800, lives=7200)),
    ),
    Case(
        "MailrailFilesRunOut", ({OPEN: still(900), MAY_OPEN: still(1000)},), ({OPEN: still(90), MAY_OPEN: still(1000)},)
    ),
)


def promtool(*arguments: str | Path) -> str:
    """Run promtool, which comes with Prometheus; it must succeed."""
    require_peer("prometheus")
    done = subprocess.run(
        [program("promtool"), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_finds_nothing_wrong_with_the_rules() -> None:
    for path in sorted(RULES.glob("*.yaml")):
        assert "SUCCESS" in promtool("check", "rules", "--lint=all", "--lint-fatal", path)


def test_every_alert_fires_and_is_silent_when_it_should(tmp_path: Path) -> None:
    assert [case.alert for case in CASES] == [alert.name for alert in alerts()], "each alert has its cases, in order"
    by_name = {rule["alert"]: rule for rule in rules() if "alert" in rule}
    recording = [rule for rule in rules() if "record" in rule]
    files = []
    for case in CASES:
        tests = []
        for fires, runs in ((True, case.fires), (False, case.silent)):
            for number, series in enumerate(runs):
                asked = f'count(ALERTS{{alertname="{case.alert}",alertstate="firing"}})'
                samples = [{"labels": "{}", "value": 1}] if fires else []
                tests.append(
                    {
                        "name": f"{case.alert} {'fires' if fires else 'is silent'} {number}",
                        "interval": "1m",
                        "input_series": [{"series": name, "values": values} for name, values in series.items()],
                        "promql_expr_test": [{"expr": asked, "eval_time": "90m", "exp_samples": samples}],
                    }
                )
        # The rules of this alert alone: promtool evaluates all that it is given, for each of some hundred cases.
        needed = [*(recording if "mailrail:" in by_name[case.alert]["expr"] else ()), by_name[case.alert]]
        given, file = tmp_path / f"{case.alert}-rules.yaml", tmp_path / f"{case.alert}.yaml"
        given.write_text(yaml.safe_dump({"groups": [{"name": "one", "rules": needed}]}))
        file.write_text(yaml.safe_dump({"rule_files": [str(given)], "evaluation_interval": "1m", "tests": tests}))
        files.append(file)
    assert "SUCCESS" in promtool("test", "rules", *files)


def test_an_alert_waits_before_it_fires(tmp_path: Path) -> None:
    series = of("mailrail_config_consumers", role="queue", state="behind")
    asked = 'count(ALERTS{alertname="MailrailConfigNotApplied",alertstate="firing"})'
    test = {
        "interval": "30s",
        "input_series": [{"series": series, "values": "0 1 1 0 1 1 1 1 1 1 1 1"}],
        "promql_expr_test": [
            {"expr": asked, "eval_time": "1m", "exp_samples": []},  # a change takes a moment
            {"expr": asked, "eval_time": "3m", "exp_samples": []},
            {"expr": asked, "eval_time": "5m", "exp_samples": [{"labels": "{}", "value": 1}]},
        ],
    }
    file = tmp_path / "alerts.yaml"
    files = [str(path) for path in sorted(RULES.glob("*.yaml"))]
    file.write_text(yaml.safe_dump({"rule_files": files, "evaluation_interval": "30s", "tests": [test]}))
    promtool("test", "rules", file)


def test_texts_name_only_labels_that_the_alert_has() -> None:
    for alert in alerts():
        kept = set(re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", alert.expr))))
        if not kept:
            kept = {"namespace", "job", "service", "pod", "instance"}  # of a process as it is scraped
        for text in alert.annotations.values():
            assert set(re.findall(r"\$labels\.(\w+)", text)) <= kept, alert.name


def test_every_alert_says_how_bad_it_is_and_has_a_runbook_and_every_runbook_an_alert() -> None:
    for alert in alerts():
        assert alert.labels["severity"] in ("critical", "warning", "info"), alert.name
        texts = {"summary", "description", "runbook_url", "dashboard", "panel"}
        assert set(alert.annotations) == texts, alert.name
        page = alert.annotations["runbook_url"].rpartition("/")[2]
        assert page == f"{alert.name}.md"
        text = (RUNBOOKS / page).read_text("utf-8")
        assert text.startswith(f"# {alert.name}\n"), page
        assert [line for line in text.splitlines() if line.startswith("## ")] == list(HEADINGS), page
        assert f"Severity: {alert.labels['severity']}." in text, page
    pages = {path.stem for path in RUNBOOKS.glob("Mailrail*.md")}
    assert pages == {alert.name for alert in alerts()}


def test_every_alert_names_a_panel_that_shows_it_and_the_panel_and_the_runbook_lead_to_each_other() -> None:
    known = dashboards()
    for alert in alerts():
        name, title = alert.annotations["dashboard"], alert.annotations["panel"]
        (panel,) = [panel for panel in known[name]["panels"] if panel["title"] == title]
        shown = {found.partition("{")[0] for target in panel["targets"] for found in SELECTOR.findall(target["expr"])}
        asked = {selector.partition("{")[0] for selector in alert.selectors}
        assert shown & asked, f"{alert.name}: {title} does not show {asked}"
        assert alert.annotations["runbook_url"] in [link["url"] for link in panel["links"]], alert.name
        text = (RUNBOOKS / f"{alert.name}.md").read_text("utf-8")
        assert f"Dashboard: {known[name]['title']}, panel *{title}*." in text, alert.name


def test_every_alert_can_be_told_apart_by_installation_and_put_on_a_release() -> None:
    """The chart puts namespace and release in place of job="mailrail" (templates/prometheusrule.yaml)."""
    for alert in alerts():
        for selector in alert.selectors:
            assert '{job="mailrail"' in selector, f"{alert.name}: {selector}"
        for by in re.findall(r"(?:by|on) \(([^)]*)\)", alert.expr):
            assert by.startswith("namespace, job"), alert.name
    for name, expr in records().items():
        assert all('{job="mailrail"' in found for found in SELECTOR.findall(expr)), name
        assert set(re.findall(r"by \(([^)]*)\)", expr)) == {"namespace, job"}, name


def test_commands_of_the_runbooks_are_those_of_the_reference() -> None:
    reference = (RUNBOOKS.parent / "reference/cli.md").read_text("utf-8")
    sections = dict(re.findall(r"^### `(mailrail [a-z -]+)`\n(.*?)(?=^##|\Z)", reference, re.M | re.S))
    unknown = []
    for path in sorted(RUNBOOKS.glob("*.md")):
        for said in re.findall(r"(?:^|`)(mailrail [a-z][^`\n]*)", path.read_text("utf-8"), re.M):
            command = max((name for name in sections if f"{said} ".startswith(f"{name} ")), key=len, default="")
            options = set(re.findall(r"--[a-z-]+", said))
            if not command or not all(f"`{option}`" in sections[command] for option in options):
                unknown.append(f"{path.name}: {said}")
    assert not unknown
