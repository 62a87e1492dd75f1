"""The chart's unbound beside outbound: what it proves, and what it cannot, decides about the very next message.

An nsd in a pod serves the signed world. unbound asks it and trusts its root by values of the chart alone. One partner
is the MX host of all domains, with the certificate of mx.secure.test.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from cluster.conftest import Kubectl
from cluster.partner import Partner
from cluster.rail import VALUES, Rail
from cluster.release import image, image_values, merged

from testkit.conditions import wait_until
from testkit.peers.nsd import configuration, zone_file
from testkit.signed_world import SignedWorld

pytestmark = pytest.mark.timeout(600)

GOES = {
    "secure.test": ("dane", "proven by DANE"),
    "unusable.test": ("unspecified", "certificate usage 1 is not used for SMTP"),
    "unsigned.test": ("unspecified", "TLSv1.3"),
}
"""What proved the server, and words of the timeline."""
WAITS = {
    "mismatch.test": "no TLSA record of mx.mismatch.test names the server's certificate",
    "bogus-tlsa.test": "TLSA of _25._tcp.mx.bogus-tlsa.test",
    "bogus.test": "MX of bogus.test",
}
"""The reason. The last two are answers that fail validation."""
_CONFIG = """\
ede: yes
local-zone: "test." nodefault
domain-insecure: cluster.local
forward-zone:
  name: cluster.local
  forward-addr: {}
"""
"""As docs/how-to/trusted-resolver.md has it, and that the world is called `test`."""
_PORT = 5353
_NAME_SERVER = "name-server"


def resolver_image() -> str:
    """An image with unbound and nsd. Skips without one; fails in CI."""
    return image("MAILRAIL_TEST_RESOLVER_IMAGE", "unbound and nsd")


def serve(kubectl: Kubectl, zones: dict[str, str]) -> str:
    """A pod with an nsd that has these zones; answers its address."""
    files = {zone_file(name): text for name, text in zones.items()}
    files["nsd.conf"] = configuration(zones, "0.0.0.0", _PORT, folder="/zones", state="/tmp")
    container = {
        "name": "nsd",
        "image": resolver_image(),
        "imagePullPolicy": "IfNotPresent",
        "command": ["nsd", "-d", "-c", "/zones/nsd.conf"],
        "readinessProbe": {"tcpSocket": {"port": _PORT}, "periodSeconds": 1},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "zones", "mountPath": "/zones"}, {"name": "state", "mountPath": "/tmp"}],
    }
    spec = {
        "containers": [container],
        "volumes": [{"name": "zones", "configMap": {"name": _NAME_SERVER}}, {"name": "state", "emptyDir": {}}],
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 1,
    }
    kubectl("delete", f"pod/{_NAME_SERVER}", "--grace-period=0", "--force", "--ignore-not-found")
    for kind, body in (("ConfigMap", {"data": files}), ("Pod", {"spec": spec})):
        kubectl.apply(yaml.safe_dump({"apiVersion": "v1", "kind": kind, "metadata": {"name": _NAME_SERVER}} | body))
    kubectl("wait", "--for=condition=Ready", f"pod/{_NAME_SERVER}", "--timeout=60s")
    return address(kubectl, _NAME_SERVER)


def address(kubectl: Kubectl, pod: str) -> str:
    return kubectl("get", "pod", pod, "-o", "jsonpath={.status.podIP}")


def cluster_dns(rail: Rail) -> str:
    """The address of the name server that pods have."""
    lines = rail.kubectl("exec", "second", "--", "cat", "/etc/resolv.conf").splitlines()
    return next(line.split()[1] for line in lines if line.startswith("nameserver"))


def values(world: SignedWorld, name_server: str, mail_host: str, dns: str) -> dict[str, Any]:
    """Of a chart whose unbound lives in this world, and knows the cluster's names by `dns`."""
    unbound = {
        "enabled": True,
        "image": image_values(resolver_image())["image"],
        "trustAnchors": world.anchors,
        "forwardTo": [f"{name_server}@{_PORT}"],
        "extraConfig": _CONFIG.format(dns),
    }
    return merged(VALUES, {"unbound": unbound, "outbound": {"settings": {"private_networks": f"{mail_host}/32"}}})


@pytest.fixture(scope="module")
def hosts(rail: Rail) -> Iterator[Partner]:
    """The partner that is every MX host, once outbound finds it by the chart's unbound."""
    resolver_image()
    world = SignedWorld()
    partner = Partner(rail.kubectl, "hosts", image(), starttls=world.certificates["mx.secure.test"]).wait_until_open()
    mail_host = address(rail.kubectl, partner.name)
    for domain in (*GOES, *WAITS):
        if domain != "bogus.test":
            world.zones[domain].set(f"mx.{domain}", "A", mail_host)
    name_server = serve(rail.kubectl, world.master_files())
    before = rail.revision()
    try:
        rail.upgrade(values(world, name_server, mail_host, cluster_dns(rail)))
        yield partner
    finally:
        rail.rollback(before)
        rail.kubectl("delete", f"pod/{_NAME_SERVER}", f"configmap/{_NAME_SERVER}", "--wait=false")
        partner.close()


def test_mailrail_tls_tells_what_the_trusted_resolver_proves_BAR_02(rail: Rail, hosts: Partner) -> None:
    def lights(domain: str) -> list[str]:
        told = rail.cli_json("tls", domain)
        return [told[one]["light"] for one in ("dnssec", "dane")]

    assert lights("secure.test") == ["yes", "yes"]
    assert lights("unsigned.test") == ["no", "no"]
    assert lights("bogus.test") == ["error", "unknown"]
    assert "DNSSEC proves the MX records" in rail.cli("tls", "secure.test")


def test_mail_goes_by_what_is_proven_and_waits_where_an_answer_is_bogus_DANE_01(rail: Rail, hosts: Partner) -> None:
    for domain in (*GOES, *WAITS):
        assert rail.submit(f"friend@{domain}").accepted
    try:
        for domain, (proof, words) in GOES.items():
            assert hosts.wait_for(f"friend@{domain}", 60, rail.tails).tls == "TLSv1.3"
            ended = wait_until(lambda domain=domain: finished(rail, domain), 60, rail.tails)  # type: ignore[misc]
            assert ended["last"]["tls"]["proof"] == proof, ended
            shown = " ".join(rail.cli("queue", "show", ended["message_id"]).split())
            assert words in shown, shown
        for domain, reason in WAITS.items():
            last = wait_until(lambda domain=domain: tried(rail, domain), 60, rail.tails)  # type: ignore[misc]
            said = " ".join(last["reply"]["lines"])
            assert reason in said, last
            assert ("SERVFAIL" in said) == ("bogus" in domain), said
        assert {one.recipients for one in hosts.seen()} == {(f"friend@{domain}",) for domain in GOES}
    finally:
        rail.cli("queue", "drop", "--yes", "--to", "friend@")


def test_a_host_that_a_transport_names_is_found_by_the_cluster_s_name(rail: Rail, hosts: Partner) -> None:
    assert rail.submit("resolved@alone.partner.test").accepted
    rail.first.wait_for("resolved@alone.partner.test", 60, rail.tails)


def finished(rail: Rail, domain: str) -> dict[str, Any] | None:
    """The recipient at a domain, once its delivery is over."""
    return next(iter(rail.cli_json("queue", "history", "--to-domain", domain)), None)


def tried(rail: Rail, domain: str) -> dict[str, Any] | None:
    """The attempt that has left the recipient at a domain waiting."""
    return next((one["last"] for one in rail.cli_json("queue", "list", "--to-domain", domain)), None)
