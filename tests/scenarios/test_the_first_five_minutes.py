"""A newcomer: `mailrail local` in an empty folder, its example, swaks, the queue, the mailbox, Ctrl-C (design 10)."""

import contextlib
import json
import re
import smtplib
import ssl
import urllib.request
from collections.abc import Iterator

import pytest

from testkit.conditions import wait_until
from testkit.peers.prometheus import Prometheus
from testkit.peers.swaks import swaks
from testkit.processes import alive
from testkit.rail import Rail

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def rail() -> Iterator[Rail]:
    with Rail() as running:
        yield running


@pytest.fixture(scope="module")
def login(rail: Rail) -> tuple[str, str]:
    """The example account's login and password, as printed before `ready`."""
    found = rail.program.wait_for_line(r"login of the example account: (\S+), password (\S+)")
    return found[1], found[2]


def test_the_first_start_makes_a_commented_example_of_each_transport(rail: Rail) -> None:
    text = "".join(path.read_text() for path in sorted(rail.resources.glob("**/*.y*ml")))
    for kind in ("MailGateway", "MailDomain", "MailAccount", "MailTransport", "MailRoute"):
        assert re.search(rf"^kind: {kind}$", text, re.M), kind
    for member in ("direct", "smtp", "submission", "submissions", "socks", "lmtp", "fail"):
        assert re.search(rf"^\s*(#\s*)?{member}:", text, re.M), member
    assert text.count("#") > 20
    assert rail.cli("config", "check", str(rail.resources))


@pytest.mark.peer("swaks")
def test_mail_to_anybody_on_1025_is_captured_and_shown(rail: Rail) -> None:
    said = swaks(*rail.mx, "--from", "me@here.test", "--to", "friend@far.away.test", "--header", "Subject: captured")
    assert said.accepted, said.text
    wait_until(
        lambda: any(one["subject"] == "captured" for one in json.loads(rail.cli("mailbox", "list", "--json"))),
        30,
        lambda: f"the captured message shows\n{rail.cli('mailbox', 'boxes', status=None)}\n{rail.program.tail()}",
    )
    shown = json.loads(rail.cli("mailbox", "list", "Captured", "--json"))
    assert next(one for one in shown if one["subject"] == "captured")["note"]


@pytest.mark.peer("swaks")
def test_the_printed_login_works_on_1587_with_tls(rail: Rail, login: tuple[str, str]) -> None:
    user, password = login
    auth = ("--tls", "--auth", "PLAIN", "--auth-user", user, "--auth-password", password)
    said = swaks(*rail.submission, *auth, "--from", user, "--to", user, "--header", "Subject: to myself")
    assert said.accepted, said.text
    rail.wait_for_mail(user, lambda one: one["subject"] == "to myself")


@pytest.mark.parametrize(("suffix", "code"), [("temperror", 451), ("permerror", 550), ("452", 452), ("554", 554)])
def test_a_suffix_of_the_local_part_shows_retries_and_failures(
    rail: Rail, login: tuple[str, str], suffix: str, code: int
) -> None:
    user, password = login
    recipient = f"somebody{suffix}@far.away.test"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with smtplib.SMTP(*rail.submission) as client:
        client.starttls(context=context)
        client.login(user, password)
        client.sendmail(user, [recipient], f"From: <{user}>\r\nSubject: {suffix}\r\n\r\nbody\r\n")
    if code < 500:
        waiting = rail.wait_for_recipient(recipient, lambda one: "last" in one)
        assert waiting["last"]["reply"]["code"] == code
        listed = json.loads(rail.cli("queue", "list", "--json"))
        assert any(one["address"] == recipient for one in listed)
        assert recipient in rail.cli("queue", "list")
        rail.cli("queue", "drop", "--id", str(waiting["id"]), status=None)
    else:
        rail.wait_for_mail(user, lambda one: one["dsn"] and recipient.encode() in rail.read(one))


def test_metrics_of_every_service_are_on_one_page(rail: Rail) -> None:
    with urllib.request.urlopen(f"http://{rail.metrics}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    for service in ("ingress", "queue", "outbound"):
        assert re.search(rf"^mailrail_{service}_\w+", text, re.M), f"no series of {service}"
    assert "mailrail_local_restarts_total" in text


@pytest.mark.peer("prometheus")
def test_a_real_prometheus_scrapes_it(rail: Rail) -> None:
    with Prometheus({"mailrail": rail.metrics}) as prometheus:
        prometheus.wait_until_scraped()
        wait_until(lambda: prometheus.query('count by (job) ({__name__=~"mailrail_.+"})'), 60)


def test_a_second_one_on_the_same_folder_or_ports_is_told_what_to_do(rail: Rail) -> None:
    said = rail.cli("local", "--state", str(rail.state), "--resources", str(rail.resources), status=1)
    assert "--state" in said
    assert "--port-offset" in said
    said = rail.cli("local", "--state", str(rail.folder / "other"), "--port-offset", str(rail.offset), status=1)
    assert "--port-offset" in said


def test_ctrl_c_ends_it_cleanly_with_everything_that_it_started() -> None:
    with Rail() as running, contextlib.closing(smtplib.SMTP(*running.mx)) as client:
        client.ehlo()  # and stays, silent: nobody has to wait for it
        family = running.program.descendants()
        assert len(family) > 5
        running.program.interrupt()
        assert running.program.wait(60) == 0
        wait_until(lambda: not any(map(alive, family)), 60, "no child is left")
        said = running.program.tail(2000)
        assert "Traceback" not in said
        assert "was killed" not in said
        stopped = re.findall(r"(\w+) +\| .* stopped\b", said)
        assert stopped == ["folder", "ingress", "dmarc", "outbound", "queue", "config"]


def test_a_second_ctrl_c_does_not_wait_for_a_message_under_way() -> None:
    with Rail() as running, contextlib.closing(smtplib.SMTP(*running.mx)) as client:
        client.ehlo()
        client.mail("a@b.example")
        client.rcpt("alice@example.org")
        assert client.docmd("DATA")[0] == 354
        running.program.interrupt()
        running.program.wait_for_line(r"folder .*stopped")
        running.program.interrupt()
        assert running.program.wait(60) == 0
        assert "message abandoned" not in running.program.tail(2000)  # as it is once ingress has waited
