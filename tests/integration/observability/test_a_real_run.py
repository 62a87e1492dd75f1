"""Every query of every panel and alert, asked of a real Prometheus that scraped a real run (design 12).

The run is all of local mode with mail of strangers that is checked, mail that is delivered, retried, refused and
bounced, logins that fail, a smarthost that is away and a service that rejects its configuration. The operator needs a
Kubernetes API: its queries are asked in tests/cluster/test_dashboards.py, and here it is asserted that no others are
left out.
"""

import asyncio
import contextlib
import json
import smtplib
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest

from mailrail.core.revision.revision import Role
from mailrail.kit.config_client import ConfigClient, Configuration
from mailrail.kit.settings import ServiceSettings

from testkit.background import background
from testkit.bundled_postgres import running
from testkit.conditions import wait_until
from testkit.dns import DnsServer
from testkit.next_hop import NextHop
from testkit.observability import OPERATOR, RULES, alerts, has_data, panel_queries, records
from testkit.peers.prometheus import Prometheus
from testkit.ports import free_port, loopback_address
from testkit.rail import LOGIN, PASSWORD, Rail, basics, gateway, route, rule, transport

pytestmark = [pytest.mark.peer("prometheus"), pytest.mark.timeout(300)]

STRANGER = "someone@elsewhere.example"


@dataclass
class Run:
    """A run, and the Prometheus that watched it."""

    rail: Rail
    prometheus: Prometheus
    began: float
    ended: float = 0.0

    def has_data(self, expr: str) -> bool:
        return has_data(self.prometheus, expr, self.began, self.ended)


def mail(number: int, to: str, text: str = "hello") -> str:
    return f"From: <{LOGIN}>\r\nTo: <{to}>\r\nMessage-ID: <{number}@example.org>\r\nSubject: {number}\r\n\r\n{text}\r\n"


def unproven() -> ssl.SSLContext:
    """The rail's certificate is its own."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def strangers(rail: Rail, numbers: range) -> None:
    """Mail for a user, for nobody, and for somebody elsewhere whose next hop takes, defers or refuses it."""
    with smtplib.SMTP(*rail.mx, timeout=60) as client:
        for number in numbers:
            client.sendmail(STRANGER, ["alice@example.org"], mail(number, "alice@example.org"))
            with contextlib.suppress(smtplib.SMTPRecipientsRefused):
                client.sendmail(STRANGER, ["nobody@example.org"], mail(number, "nobody@example.org"))
    with smtplib.SMTP(*rail.mx, timeout=60) as client:
        client.starttls(context=unproven())
        client.ehlo()
    for number in numbers:  # a proxy tells from where they come; who comes from the loopback is not asked about
        with socket.create_connection(rail.proxied, timeout=60) as stream:
            replies = stream.makefile("rb")
            stream.sendall(b"PROXY TCP4 192.0.2.1 203.0.113.1 5000 25\r\n")
            content = mail(number, "alice@example.org").encode() + b".\r\n"
            said = (b"EHLO proxied.example\r\n", f"MAIL FROM:<{STRANGER}>\r\n".encode())
            for octets in (b"", *said, b"RCPT TO:<alice@example.org>\r\n", b"DATA\r\n", content):
                stream.sendall(octets)
                while (line := replies.readline())[3:4] == b"-":
                    pass
                assert line[:1] in b"23", line


def users(rail: Rail, numbers: range) -> None:
    """A user's mail: taken by the next hop, refused there, refused by a route, and for a smarthost that is away."""
    with smtplib.SMTP(*rail.submission, timeout=60) as client:
        client.starttls(context=unproven())
        client.login(LOGIN, PASSWORD)
        for number in numbers:
            for to in ("fine@taken.example", "bad@taken.example", "any@forbidden.example", "any@away.example"):
                client.sendmail(LOGIN, [to], mail(number, to))
    with smtplib.SMTP(*rail.submission, timeout=60) as client:
        client.starttls(context=unproven())
        with contextlib.suppress(smtplib.SMTPAuthenticationError):
            client.login(LOGIN, "wrong")


@contextlib.contextmanager
def a_service_that_rejects(rail: Rail) -> Iterator[None]:
    """One more ingress, as far as configuration goes, that cannot use what it is given."""
    settings = ServiceSettings(
        node_id="rejecting",
        tls_dir=rail.state / "pki" / "ingress",
        sealing_keys_dir=rail.state / "pki" / "sealing",
        config_target=json.loads((rail.state / "client.json").read_text())["targets"]["config"],
    )

    def reject(_: Configuration) -> None:
        raise ValueError("this one cannot be used")

    @contextlib.asynccontextmanager
    async def running() -> AsyncIterator[None]:
        async with ConfigClient(settings, Role.INGRESS, reject).running():
            yield

    stop = asyncio.Event()

    async def whole() -> None:
        async with running():
            await stop.wait()

    done = asyncio.run_coroutine_threadsafe(whole(), background().loop)
    try:
        yield
    finally:
        background().loop.call_soon_threadsafe(stop.set)
        done.result(60)


def wait_for(run: Run, what: str) -> None:
    """Wait until Prometheus has seen that something happened."""
    wait_until(lambda: run.prometheus.query(what), 60, lambda: f"{what}\n{run.rail.program.tail()}")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with NextHop() as hop, DnsServer() as dns:
        for name in (STRANGER.partition("@")[2], LOGIN.partition("@")[2]):  # senders' domains exist
            dns.add(name, "MX", "10 mx.example.")
        hop.refuse("bad@taken.example", "550 5.1.1 nobody of that name")
        mx = gateway(retry={"delaysSeconds": [1, 1, 2], "lifetimeSeconds": 600}, authentication={"mode": "Monitor"})
        mx["spec"]["listeners"].append(
            {"name": "proxied", "protocol": "MX", "port": 1026, "proxyProtocol": {"trustedCIDRs": ["127.0.0.0/8"]}}
        )
        documents = [
            *(one for one in basics() if one["kind"] != "MailGateway"),
            mx,
            transport("hop", smtp={"host": hop.address, "port": hop.port}),
            transport("away", smtp={"host": loopback_address(), "port": free_port()}),
            transport("forbidden", fail={"code": 550, "text": "5.7.1 not from here"}),
            route(
                "all",
                ("MailGateway", "local"),
                rule("forbidden", "forbidden", to=["forbidden.example"]),
                rule("away", "away", to=["away.example"]),
                rule("rest", "hop"),
            ),
        ]
        rules = "\n".join(path.read_text("utf-8") for path in sorted(RULES.glob("*.yaml")))
        bundled, folder = f"127.0.0.1:{free_port()}", tmp_path_factory.mktemp("bundled") / "data"
        labels = {"bundled": {"job": "mailrail", "service": "postgres"}}
        with (
            Rail(documents, options=("--deliver", "--resolver", dns.endpoint)) as rail,
            running(folder, "secret", free_port(), metrics=bundled),
            Prometheus({"mailrail": rail.metrics, "bundled": bundled}, rules=rules, labels=labels) as prometheus,
        ):
            prometheus.wait_until_scraped()
            made = Run(rail, prometheus, time.time())
            for number in range(0, 20, 5):
                strangers(rail, range(number, number + 5))
                users(rail, range(number, number + 5))
                prometheus.wait_until_scraped_again()  # of what comes between two scrapes alone there is no rate
            rail.wait_for_mail(LOGIN, lambda one: one["in_reply_to"])  # a notification came back
            with a_service_that_rejects(rail):
                for what in (
                    'mailrail_config_consumers{role="ingress",state="rejecting"} > 0',
                    'mailrail_queue_transports_in_backoff{transport="default/away",reason="no_answer"} == 1',
                    'mailrail_queue_site_waiting_recipients{site="transport:default/away"} > 0',
                    'mailrail:slo_errors:ratio_rate6h{slo="first_attempt"}',
                    'mailrail_queue_dsns_total{kind="failed"} >= 40',
                    'mailrail_queue_attempts_total{outcome="delivered"} >= 40',
                    "mailrail_queue_recipients_stored > 0",
                    'mailrail_ingress_logins_total{result="refused"} > 0',
                ):
                    wait_for(made, what)
                for _ in range(2):  # what the last scrape was the first to see has a rate with the next
                    prometheus.wait_until_scraped_again()
            made.ended = time.time()
            yield made


def test_every_query_of_every_panel_returns_data(run: Run) -> None:
    asked = [query for query in panel_queries() if not OPERATOR.search(query.expr)]
    empty = [str(query) for query in asked if not run.has_data(query.expr)]
    assert not empty, "\n".join(["no data came of:", *empty])


def test_only_what_the_operator_exports_is_left_to_the_tests_on_a_cluster() -> None:
    left = {query.dashboard for query in panel_queries() if OPERATOR.search(query.expr)}
    assert left == {"Mailrail / Operator", "Mailrail / Configuration"}
    assert sum(1 for query in panel_queries() if not OPERATOR.search(query.expr)) > 100


def test_every_selector_of_every_alert_names_series_that_are_there(run: Run) -> None:
    absent = [
        f"{alert.name}: {selector}"
        for alert in alerts()
        for selector in alert.selectors
        if not OPERATOR.search(selector) and not run.has_data(selector)
    ]
    assert not absent


def test_every_alert_evaluates(run: Run) -> None:
    wait_until(
        lambda: all(one["health"] == "ok" for one in run.prometheus.rules()),
        60,
        lambda: str([(one["name"], one["lastError"]) for one in run.prometheus.rules() if one["health"] != "ok"]),
    )
    assert {one["name"] for one in run.prometheus.rules()} == {alert.name for alert in alerts()} | set(records())


def test_alerts_see_what_went_wrong_and_no_critical_one_was_near(run: Run) -> None:
    by_name = {alert.name: alert for alert in alerts()}
    for name in ("MailrailConfigRejected", "MailrailTransportInBackoff", "MailrailOperatorNoLeader"):
        assert run.has_data(by_name[name].expr), name
    for alert in alerts():
        if alert.labels["severity"] == "critical":
            ten = run.prometheus.query(f"count_over_time(ALERTS{{alertname={alert.name!r},alertstate='firing'}}[10m])")
            assert not ten, alert.name
