"""Addresses that take the reports of others, in domains that deliver in every way (design 8)."""

from collections.abc import Iterator

import pytest

from testkit.next_hop import NextHop
from testkit.peers.swaks import swaks
from testkit.rail import POSTMASTER, Rail, basics, by_transport, domain, transport

pytestmark = [pytest.mark.peer("swaks"), pytest.mark.timeout(300)]

DOMAINS = ("kept.example", "relayed.example", "sent.example")


@pytest.fixture(scope="module")
def hop() -> Iterator[NextHop]:
    with NextHop(hostname="hop.test") as found:
        yield found


@pytest.fixture(scope="module")
def rail(hop: NextHop) -> Iterator[Rail]:
    documents = [
        *basics(),
        transport("hop", smtp={"host": hop.address, "port": hop.port}),
        domain("kept", "kept.example", reports={}),
        domain("relayed", "relayed.example", by_transport("hop", "Any"), reports={}),
        domain("sent", "sent.example", {"none": {}}, reports={}),
    ]
    with Rail(documents=documents) as found:
        yield found


@pytest.mark.parametrize("name", DOMAINS)
def test_a_report_lands_in_the_mailbox_for_reports_whatever_its_domain_does(rail: Rail, name: str) -> None:
    for local in ("dmarc-reports", "TLS-Reports"):
        to = f"{local}@{name}"
        swaks(*rail.mx, "--from", "r@rep.example", "--to", to, "--header", f"Subject: to {to}")
        found = rail.wait_for_mail(POSTMASTER, lambda one, to=to: one["subject"] == f"to {to}")  # type: ignore[misc]
        assert (found["path"], found["recipient"]) == ("Postmaster/reports", to)


def test_other_mail_of_the_domains_goes_where_it_went(rail: Rail, hop: NextHop) -> None:
    swaks(*rail.mx, "--from", "r@rep.example", "--to", "dmarc-reports+x@relayed.example")
    (found,) = hop.wait_for(1)
    assert found.recipients == ("dmarc-reports+x@relayed.example",)


def test_explain_says_where_a_report_would_go(rail: Rail) -> None:
    assert "an address for reports" in rail.cli("explain", "--to", "tls-reports@relayed.example")
