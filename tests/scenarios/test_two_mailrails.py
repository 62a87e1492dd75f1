"""Two Mailrails hand each other mail with REQUIRETLS, as each is installed, without a word about TLS but its policy.

Nothing is signed, no resolver is trusted, no transport and no route is there: each has one domain with `mtaSts`, the
certificate of its MX, and its policy behind something that speaks HTTPS. Its record is what the command prints.
"""

import contextlib
import email
import smtplib
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from testkit.ca import Authority, trusting_anybody
from testkit.conditions import wait_until
from testkit.dns import DnsServer
from testkit.faultproxy import FaultProxy
from testkit.policy_hosts import PolicyHosts
from testkit.rail import PASSWORD, Document, Rail, basics, domain, gateway, secret
from testkit.tls_world import trusting

pytestmark = pytest.mark.timeout(300)


@dataclass
class Site:
    """An installation with one domain."""

    domain: str
    way: FaultProxy
    """Port 25 of its MX host, as the others know it."""
    rail: Rail

    @property
    def alice(self) -> str:
        return f"alice@{self.domain}"


def documents(name: str, authority: Authority) -> list[Document]:
    host = f"mx.{name}"
    certificate = authority.issue(host)
    receiving = gateway(hostname=host)
    for listener in receiving["spec"]["listeners"]:
        listener["tls"]["certificateSecretRef"]["name"] = "mx-tls"
    return [
        *(one for one in basics() if one["kind"] not in ("MailGateway", "MailDomain")),
        receiving,
        domain("example-org", name, mtaSts={"mode": "Enforce"}),
        secret("mx-tls", tls_crt=certificate.chain_pem.decode(), tls_key=certificate.key_pem.decode()),
    ]


def record_of(rail: Rail) -> tuple[str, str]:
    """Name and text of the record, as the command prints it to be copied."""

    def told() -> str | None:
        (row,) = rail.cli_json("config", "mta-sts")
        return str(row["record"]) if row["record"] is not None else None

    owner, _, text = wait_until(told, 60, "the record of the policy").partition(" IN TXT ")
    return owner, text


@pytest.fixture
def sites() -> Iterator[tuple[Site, Site]]:
    authority, names = Authority(), ("one.test", "two.test")
    with contextlib.ExitStack() as stack:
        dns = stack.enter_context(DnsServer())
        hosts = stack.enter_context(PolicyHosts(authority))
        trust = stack.enter_context(trusting(authority))
        ways = [stack.enter_context(FaultProxy(("127.0.0.1", 1))) for _ in names]
        made = []
        for name, own, other in zip(names, ways, reversed(ways), strict=True):
            settings = {
                "MAILRAIL_OUTBOUND_DIRECT_PORT": str(other.port),
                "MAILRAIL_OUTBOUND_PRIVATE_NETWORKS": "127.0.0.0/8",
                "MAILRAIL_OUTBOUND_FETCH_NETWORKS": "127.0.0.0/8",
                "MAILRAIL_OUTBOUND_FETCH_PORT": str(hosts.port),
            }
            options = ("--deliver", "--resolver", dns.endpoint)
            rail = stack.enter_context(Rail(documents(name, authority), options=options, settings=settings, env=trust))
            own.target = rail.mx
            dns.add(name, "MX", f"10 mx.{name}.")
            dns.add(f"mx.{name}", "A", own.address)
            dns.add(f"mta-sts.{name}", "A", hosts.address)
            hosts.pass_on(name, *rail.policies)
            owner, text = record_of(rail)
            assert owner == f"_mta-sts.{name}."
            dns.add(owner, "TXT", text)
            made.append(Site(name, own, rail))
        yield made[0], made[1]
        assert hosts.requests == dict.fromkeys(names, 1), "each policy was fetched once"


def test_each_proves_the_other_and_required_mail_goes_both_ways_STS_23a_RTLS_18(sites: tuple[Site, Site]) -> None:
    for here, there in (sites, sites[::-1]):
        text = f"From: <{here.alice}>\r\nMessage-ID: <1@{here.domain}>\r\nSubject: secret\r\n\r\nfor you alone\r\n"
        with smtplib.SMTP(*here.rail.submission) as client:
            client.starttls(context=trusting_anybody())
            client.login(here.alice, PASSWORD)
            assert not client.sendmail(here.alice, [there.alice], text, mail_options=["REQUIRETLS"])
    for here, there in (sites, sites[::-1]):
        mail = there.rail.wait_for_mail(there.alice, lambda one: one["subject"] == "secret")
        assert mail["tls_requirement"] == "TLS_REQUIREMENT_REQUIRED"
        received = email.message_from_bytes(there.rail.read(mail)).get_all("Received", [])
        assert [" (requiretls)" in field for field in received] == [True, True]
        (ended,) = here.rail.history(there.alice)
        assert ended["last"]["tls"]["proof"] == "TLS_PROOF_MTA_STS"
        proven = here.rail.counted("mailrail_queue_tls_recipients_total", "requirement", "proof")
        assert proven == {("required", "mta_sts"): 1}
        assert "mode: enforce" in here.rail.cli("tls", there.domain)
