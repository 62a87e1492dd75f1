"""DNSConfigured on a real API server, with a DNS server that is told what to answer."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster.conftest import Kubectl
from cluster.stage import Stage, basics, manifest, staged

from testkit.conditions import wait_until
from testkit.dns import DnsServer


@pytest.fixture
def stage(kubectl: Kubectl, database: str, tmp_path: Path) -> Iterator[Stage]:
    with staged(kubectl, database, tmp_path) as made:
        yield made


def test_a_domain_says_which_records_are_missing_until_they_are_there_and_is_ready_meanwhile(stage: Stage) -> None:
    domain = {"domainName": "example.org", "gatewayRef": {"name": "mx1"}, "delivery": {"mailbox": {}}}
    proxy = {"address": "127.0.0.1:1080", "remoteIPs": ["198.51.100.7"], "remoteHostname": "out1.example.org"}
    match = [{"toDomains": ["example.net"]}]
    rules = [{"name": "proxied", "matches": match, "transportRef": {"name": "proxy"}}]
    route = {"parentRefs": [{"kind": "MailDomain", "name": "org"}], "rules": rules}
    with DnsServer() as dns:
        stage.start_consumers()
        stage.start_operator(
            dns_check="true", resolver=dns.endpoint, dns_seconds="0.5", egress_addresses="192.0.2.1", node_id="n"
        )
        stage.kubectl.apply(
            basics()
            + manifest("MailDomain", "org", domain)
            + manifest("MailTransport", "proxy", {"socks": proxy})
            + manifest("MailRoute", "proxied", route)
        )
        stage.wait_ready("mdom/org")
        stage.wait_condition("mdom", "org", "DNSConfigured", status="False", reason="RecordsMissing")
        wanted = (
            'SPF: publish TXT example.org "v=spf1 ip4:192.0.2.1 ip4:198.51.100.7 -all"',
            "DMARC: publish TXT _dmarc.example.org",
            "MX: publish MX example.org 10 mx1.example.org.",
            "MTA-STS: publish TXT _mta-sts.example.org",
            "TLSRPT: publish TXT _smtp._tls.example.org",
            "PTR: publish PTR 1.2.0.192.in-addr.arpa mx1.example.org.",
            "PTR: publish PTR 7.100.51.198.in-addr.arpa out1.example.org.",
        )

        def not_told() -> list[str]:
            message = stage.condition("mdom", "org", "DNSConfigured")["message"]
            return [words for words in wanted if words not in message]

        # The domain may have been looked up before the proxy's route was seen.
        wait_until(lambda: not not_told(), 60, lambda: f"it tells of everything, such as {not_told()}\n{stage.tails()}")
        listed = stage.kubectl("get", "mdom", "org", "-o", "jsonpath={.status.dnsRecords[*].state}").split()
        assert set(listed) == {"Missing"}
        assert len(listed) == 7

        dns.add("example.org", "TXT", '"v=spf1 ip4:192.0.2.0/24 -all"', ttl=1)  # the other answers are not asked again
        dns.add("example.org", "MX", "10 mx1.example.org.")
        dns.add("_dmarc.example.org", "TXT", '"v=DMARC1; p=none"')
        dns.add("_mta-sts.example.org", "TXT", '"v=STSv1; id=1"')
        dns.add("mta-sts.example.org", "A", "192.0.2.9")
        dns.add("_smtp._tls.example.org", "TXT", '"v=TLSRPTv1; rua=mailto:a@example.org"')
        for address, host in (("192.0.2.1", "mx1.example.org"), ("198.51.100.7", "out1.example.org")):
            dns.add(".".join(reversed(address.split("."))) + ".in-addr.arpa", "PTR", f"{host}.")
            dns.add(host, "A", address)

        def only_spf() -> bool:
            row = stage.condition("mdom", "org", "DNSConfigured")
            return bool(row["message"] == "SPF: it does not pass 198.51.100.7; add ip4:198.51.100.7")

        # That there is none is believed for a minute.
        stage.until(only_spf, "the address of the proxy alone is not covered", 120)
        dns.set("example.org", "TXT", '"v=spf1 ip4:192.0.2.0/24 ip4:198.51.100.7 -all"')
        stage.wait_condition("mdom", "org", "DNSConfigured", status="True", reason="Configured")
        shown = stage.kubectl("get", "mdom", "org").splitlines()
        assert shown[0].split() == ["NAME", "READY", "DOMAIN", "ACCOUNTS", "DNS", "AGE"]
        assert shown[1].split()[:5] == ["org", "True", "example.org", "1", "True"]
