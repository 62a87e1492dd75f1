"""Certificates by cert-manager: a running release moves to them, uses renewed ones without a restart, moves back."""

import base64
import contextlib
import datetime
import json
import time
from collections.abc import Iterator

import pytest
import yaml
from cluster.addons import needs
from cluster.ledger import Break, silence
from cluster.rail import VALUES, Rail
from cluster.release import NAME, is_ready, merged, restarts
from cryptography import x509

from testkit.conditions import wait_until

pytestmark = [needs("cert-manager"), pytest.mark.timeout(900)]

DOMAIN = "certificates.partner.test"
SERVERS = {"config": 7001, "queue": 7002, "ingress": 7003, "outbound": 7004}
ROLES = (*SERVERS, "operator", "cli")
SMTP = f"{NAME}-smtp-tls"
HOUR = {"duration": "1h", "renewBefore": "20m"}
ISSUED = {
    "mtls": {"mode": "certManager", "certManager": HOUR},
    "smtpCertificate": {
        "mode": "certManager",
        "names": ["mx1.example.org"],
        "certManager": {**HOUR, "issuerRef": {"name": "by-itself"}},
    },
}
_PRESENTED = """
import json, socket, ssl, sys
context = ssl.create_default_context(cafile="/etc/mailrail/tls/ca.crt")
context.check_hostname = False
context.set_alpn_protocols(["h2"])
context.load_cert_chain("/etc/mailrail/tls/tls.crt", "/etc/mailrail/tls/tls.key")
shown = []
for one in sys.argv[1:]:
    address, _, port = one.rpartition(":")
    with socket.create_connection((address, int(port)), 5) as plain, context.wrap_socket(plain) as tls:
        shown.append(ssl.DER_cert_to_PEM_cert(tls.getpeercert(binary_form=True)))
print(json.dumps(shown))
"""


def certificate(rail: Rail, name: str) -> x509.Certificate:
    """What a Secret holds."""
    return x509.load_pem_x509_certificate(base64.b64decode(rail.get("secret", name)["data"]["tls.crt"]))


def secret_of(role: str) -> str:
    """The Secret of a role in this mode."""
    return f"{NAME}-cert-manager-{role}-tls"


def presented(rail: Rail, component: str) -> list[x509.Certificate]:
    """What the pods of a service show to others, as a verified one of the toolbox sees it."""
    addresses = [f"{one['status']['podIP']}:{SERVERS[component]}" for one in rail.pods(component) if is_ready(one)]
    told = rail.kubectl("exec", f"deployment/{NAME}-toolbox", "--", "python", "-c", _PRESENTED, *addresses)
    return [x509.load_pem_x509_certificate(one.encode()) for one in json.loads(told)]


def all_present(rail: Rail, wanted: dict[str, x509.Certificate]) -> bool:
    """Whether each pod of each service shows the certificate of its role."""
    return all(set(presented(rail, one)) == {wanted[one]} for one in SERVERS)


def renew(rail: Rail, *names: str) -> None:
    """Have cert-manager issue these certificates anew at once, as `cmctl renew` does, and wait for it."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    due = {"type": "Issuing", "status": "True", "reason": "ManuallyTriggered", "lastTransitionTime": now}

    def revisions() -> dict[str, int]:
        listed = json.loads(rail.kubectl("get", "certificates", "-o", "json"))["items"]
        return {one["metadata"]["name"]: one["status"]["revision"] for one in listed}

    before = revisions()
    for name in names:
        kept = [c for c in rail.get("certificate", name)["status"]["conditions"] if c["type"] != "Issuing"]
        patch = {"status": {"conditions": [*kept, due]}}
        rail.kubectl("patch", "certificate", name, "--subresource=status", "--type=merge", "-p", json.dumps(patch))
    wait_until(lambda: all(revisions()[one] > before[one] for one in names), 60, rail.tails)


@contextlib.contextmanager
def listeners_with(rail: Rail, secret: str) -> Iterator[None]:
    """The gateway's listeners name another Secret while the context lasts."""

    def name(secret: str) -> None:
        spec = rail.get("mailgateway", "mx1")["spec"]
        listeners = [merged(one, {"tls": {"certificateSecretRef": {"name": secret}}}) for one in spec["listeners"]]
        patch = json.dumps({"spec": {"listeners": listeners}})
        rail.kubectl("patch", "mailgateway", "mx1", "--type=merge", "-p", patch)
        rail.ready("mgw/mx1")

    name(secret)
    try:
        yield
    finally:
        name("mx-tls")


def shown_by_mx(rail: Rail) -> x509.Certificate:
    """The certificate that strangers see."""
    return x509.load_pem_x509_certificate(rail.first.talk(*rail.mx, tls="starttls").certificate.encode())


def moved(rail: Rail, what: str, values: dict[str, object]) -> Break:
    """An upgrade to another mode. Until the last pod is replaced, old and new ones do not trust each other."""
    began = time.time()
    rail.upgrade(values)
    rail.wait_until_ready()
    return Break(what, began, time.time())


def test_a_release_moves_to_cert_manager_renews_without_a_restart_and_moves_back_and_all_mail_is_counted(
    rail: Rail, capsys: pytest.CaptureFixture[str]
) -> None:
    issuer = {"apiVersion": "cert-manager.io/v1", "kind": "Issuer", "metadata": {"name": "by-itself"}}
    rail.apply(yaml.safe_dump(issuer | {"spec": {"selfSigned": {}}}))
    generated = {role: certificate(rail, f"{NAME}-{role}-tls") for role in ROLES}
    breaks: list[Break] = []
    with rail.traffic(f"r{{n}}@{DOMAIN}", per_connection=5) as run:
        run.wait_for(20, 120)
        try:
            breaks.append(moved(rail, "to cert-manager", merged(VALUES, ISSUED)))
            issued = {role: certificate(rail, secret_of(role)) for role in ROLES}
            for one in (*issued.values(), certificate(rail, SMTP)):
                assert one.not_valid_after_utc - one.not_valid_before_utc == datetime.timedelta(hours=1)
            authority = certificate(rail, f"{NAME}-cert-manager-ca")
            assert {one.issuer for one in issued.values()} == {authority.subject}
            # What is configured is in force, not what was there before.
            wait_until(lambda: all_present(rail, issued), 60, rail.tails)

            with listeners_with(rail, SMTP):
                smtp = certificate(rail, SMTP)
                wait_until(lambda: shown_by_mx(rail) == smtp, 60, rail.tails)
                before = {one["metadata"]["uid"]: restarts(one) for one in rail.pods()}
                renew(rail, *(f"{NAME}-{one}" for one in (*ROLES, "smtp", "ca")))
                renewed = {role: certificate(rail, secret_of(role)) for role in ROLES}
                assert not set(renewed.values()) & set(issued.values())
                assert certificate(rail, f"{NAME}-cert-manager-ca").public_key() == authority.public_key()
                rail.let_the_kubelet_look()
                wait_until(lambda: all_present(rail, renewed), 150, rail.tails)
                wait_until(lambda: shown_by_mx(rail) == certificate(rail, SMTP) != smtp, 60, rail.tails)
                assert {one["metadata"]["uid"]: restarts(one) for one in rail.pods()} == before
            # New channels, under the renewed certificates: a queue that was not there before.
            breaks.append(rail.kill("queue"))
            wait_until(lambda: all_present(rail, renewed), 60, rail.tails)
            labels = f"app.kubernetes.io/instance={NAME},app.kubernetes.io/part-of=mailrail"  # the how-to's uninstall
            named = rail.kubectl("get", "secrets", "-l", labels, "-o", "name").split()
            assert {f"secret/{one}" for one in (*map(secret_of, ROLES), SMTP, f"{NAME}-cert-manager-ca")} <= set(named)
        finally:
            breaks.append(moved(rail, "back", VALUES))
        wait_until(lambda: all_present(rail, generated), 60, rail.tails)
    verdict = rail.counted(run, DOMAIN, breaks)
    with capsys.disabled():
        print(f"\ncertificates: {verdict}; longest time without one accepted: {silence(run.tries()):.1f} s")
