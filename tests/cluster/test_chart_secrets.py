"""A Secret that is written anew is used within seconds and without a restart: logins, a relay's login, certificates."""

import base64
import json
import time

import pytest
from cluster.partner import tls_secret
from cluster.rail import LOGIN, PASSWORD, Rail
from cluster.release import seconds_until
from cluster.stage import manifest, route
from cryptography import x509

from testkit.conditions import keeps_to, wait_until

pytestmark = pytest.mark.timeout(300)

SECONDS = 5.0  # "within seconds"; a change of configuration has 2 (CFG-06), and the Secret has to be noticed first


def test_a_new_password_of_an_account_logs_in_within_seconds_and_the_old_one_no_more(
    rail: Rail, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rail.submit(password=PASSWORD).accepted
    restarts = pods_and_restarts(rail)

    def changed(number: int) -> float:
        before, after = f"password {number}" if number else PASSWORD, f"password {number + 1}"
        partner = list(rail.partners)[number]
        rail.set_secret("alice-login", password=after)
        took = seconds_until(lambda: logs_in(rail, after, partner), 60, rail.tails)
        rail.wait_until_live_everywhere()  # one ingress knows it
        assert rail.submit(password=before).code == 535
        return took

    try:
        took = keeps_to(SECONDS, changed, "to log in with a new password")
    finally:
        rail.set_secret("alice-login", password=PASSWORD)
    wait_until(lambda: logs_in(rail, PASSWORD, "first"), 60, rail.tails)
    rail.wait_until_live_everywhere()
    with capsys.disabled():
        print(f"\na new password logs in after {', '.join(f'{one:.1f} s' for one in took)}")
    assert pods_and_restarts(rail) == restarts


def test_a_new_password_for_a_relay_is_used_within_seconds(rail: Rail, capsys: pytest.CaptureFixture[str]) -> None:
    rail.first.logins(rail="one password")
    rail.set_secret("relay-login", username="rail", password="one password")
    rail.set_secret("relay-ca", **{"ca.crt": rail.authority.pem.decode()})
    relay = {
        "host": rail.first.host,
        "auth": {"secretRef": {"name": "relay-login"}},
        "tls": {"caSecretRef": {"name": "relay-ca"}},
    }
    rail.apply(manifest("MailTransport", "relay", {"submissions": relay}))
    rail.apply(route("relay", "relay", parent="MailGateway/mx1"))
    try:
        rail.ready("mtrans/relay", "mroute/relay")
        assert rail.submit("before@elsewhere.test").accepted
        wait_until(lambda: submitted(rail, "before@elsewhere.test"), 60, rail.tails)
        # The relay has a new password, and nobody has told us: mail is deferred, never bounced (design 4).
        rail.first.logins(rail="another password")
        assert rail.submit("refused-login@elsewhere.test").accepted
        wait_until(lambda: rail.recipient("refused-login@elsewhere.test")["attempts"] >= 1, 60, rail.tails)
        rail.set_secret("relay-login", username="rail", password="another password")
        took = seconds_until(lambda: submitted(rail, "refused-login@elsewhere.test"), 60, rail.tails)
        with capsys.disabled():
            print(f"\nmail that a relay had refused to log in goes {took:.1f} s after its Secret is right again")
        assert "one password" not in told(rail)
        assert "another password" not in told(rail)
    finally:
        rail.kubectl("delete", "mroute/relay", "mtrans/relay")


def test_a_new_certificate_is_presented_within_seconds_and_no_connection_is_dropped(
    rail: Rail, capsys: pytest.CaptureFixture[str]
) -> None:
    def changed(_: int) -> float:
        fresh = rail.authority.issue(*rail.smtp_hosts)
        tls_secret(rail.kubectl, "mx-tls", fresh)
        serial = x509.load_pem_x509_certificate(fresh.chain_pem).serial_number
        return seconds_until(lambda: presented(rail) == serial, 60, rail.tails)

    took = keeps_to(SECONDS, changed, "to present a new certificate")
    rail.wait_until_live_everywhere()
    with capsys.disabled():
        print(f"\na new certificate is presented after {', '.join(f'{one:.1f} s' for one in took)}")


def logs_in(rail: Rail, password: str, partner: str) -> bool:
    """Whether alice can log in so from a partner. If not it takes its time: 30 failures of a client are too many."""
    said = rail.partners[partner].talk(*rail.submission, sender=LOGIN, login=LOGIN, password=password, tls="starttls")
    if not said.accepted:
        time.sleep(0.4)
    return said.accepted


def presented(rail: Rail) -> int:
    """The serial number of the certificate that submission presents, verified."""
    said = rail.first.talk(*rail.submission, tls="starttls", ca=rail.authority.pem.decode())
    assert said.accepted, said
    return x509.load_pem_x509_certificate(said.certificate.encode()).serial_number


def submitted(rail: Rail, recipient: str) -> bool:
    """Whether a message for a recipient came to the relay, with a login."""
    return any(recipient in " ".join(one["recipients"]) and one["login"] == "rail" for one in rail.first.submitted())


def pods_and_restarts(rail: Rail) -> dict[str, int]:
    """Each pod with how often its containers were started again."""
    return {
        one["metadata"]["name"]: sum(c["restartCount"] for c in one["status"].get("containerStatuses", ()))
        for one in rail.pods()
    }


def told(rail: Rail) -> str:
    """Everything that could repeat a secret by mistake: objects, events, logs; base64 is undone."""
    listed = rail.kubectl("get", "mailrail,events,configmaps", "-o", "json")
    logs = "".join(rail.kubectl("logs", one["metadata"]["name"], "--all-containers") for one in rail.pods())
    words = [value for one in json.loads(listed)["items"] for value in (one.get("binaryData") or {}).values()]
    return listed + logs + "".join(base64.b64decode(word).decode("utf-8", "replace") for word in words)
