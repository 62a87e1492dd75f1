"""Sites that do not answer, in all the ways in which they do not: mail to others is delivered all the while.

Outbound has few connections here and few look-ups, so that a small backlog takes all that such sites can take.
"""

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import psycopg
import pytest

from testkit.background import ServedStreams, background
from testkit.backlog import DEAD, Backlog, seed
from testkit.conditions import wait_until
from testkit.dns import DnsServer, Failure
from testkit.next_hop import NextHop
from testkit.ports import loopback_address
from testkit.rail import Rail, basics, gateway, route, rule
from testkit.traffic import Sender

HEALTHY, NEW = "healthy.test", "new.test"
FRESH = 40  # messages to HEALTHY while the others stand


@dataclass(frozen=True)
class Sites:
    """How many messages are due at how many sites, and what these do."""

    due: int
    sites: int
    behave: str


CASES = {
    "one dead site": Sites(3_000, 1, "dead"),
    "one tarpit": Sites(1_500, 1, "tarpit"),
    "200 sites at one tarpit": Sites(1_000, 200, "one tarpit"),
    "200 sites, each with a tarpit": Sites(1_000, 200, "tarpit"),
    "dead sites": Sites(2_000, 2_000, "dead"),
    "sites whose DNS is silent": Sites(1_000, 1_000, "silent"),
}


class Tarpit(ServedStreams):
    """Greets, and then says no more. It has many addresses on one port."""

    def __init__(self, addresses: list[str], port: int) -> None:
        super().__init__()
        self.address, self.port = addresses[0], port
        self._server = background().call(asyncio.start_server(self._serve, addresses, port))

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 tarpit.test\r\n")
        with contextlib.suppress(ConnectionError):
            while await reader.read(4096):
                pass

    async def _close(self) -> None:
        self._server.close()
        await self._end_connections()


def names(case: Sites) -> list[str]:
    return [DEAD] if case.sites == 1 else [f"d{number}.example" for number in range(case.sites)]


@contextlib.contextmanager
def world(case: Sites, hop: NextHop) -> Iterator[DnsServer]:
    """The DNS of all domains, and the tarpits of the case."""
    with contextlib.ExitStack() as stack:
        dns = stack.enter_context(DnsServer())
        for domain in (HEALTHY, NEW):
            dns.add(domain, "MX", f"10 mx.{domain}.")
            dns.add(f"mx.{domain}", "A", hop.address)
        domains = names(case)
        addresses = [loopback_address() for _ in domains] if case.behave == "tarpit" else [loopback_address()]
        if "tarpit" in case.behave:
            stack.enter_context(Tarpit(addresses, hop.port))
        for number, domain in enumerate(domains):
            if case.behave == "silent":
                dns.fail(domain, Failure.SILENT)
                continue
            dns.add(domain, "MX", f"10 mx.{domain}.")
            dns.add(f"mx.{domain}", "A", addresses[number % len(addresses)])
        yield dns


@pytest.mark.parametrize("case", list(CASES.values()), ids=list(CASES))
def test_mail_to_a_healthy_site_is_delivered_while_others_do_not_answer_SHD_03_SOUT_20(case: Sites) -> None:
    settings = {"MAILRAIL_OUTBOUND_CONNECTIONS": "40", "MAILRAIL_OUTBOUND_LOOKUPS": "100"}
    with NextHop() as hop, world(case, hop) as dns:
        settings["MAILRAIL_OUTBOUND_DIRECT_PORT"] = str(hop.port)
        # What is seeded is an hour old, and must not be too old.
        documents = [one for one in basics() if one["kind"] != "MailGateway"]
        documents += [gateway(retry={"delaysSeconds": [450, 900, 1800, 3600, 7200]})]
        documents += [route("all", ("MailGateway", "local"), rule("direct", None))]
        with Rail(documents, options=("--resolver", dns.endpoint), settings=settings) as rail:
            Sender(*rail.mx, messages=1, recipient=f"first@{HEALTHY}").finish()
            hop.wait_for(1)
            wanted = Backlog(case.due, case.sites, 1.0 if case.sites == 1 else 0.0, 1.0, held=0, bound=0, per_message=1)
            with psycopg.connect(rail.superuser_url(), autocommit=True) as connection:
                seed(connection, wanted)
            begun = "SELECT count(*) FROM queue.recipient WHERE attempts > 1 OR token IS NOT NULL"
            wait_until(lambda: rail.sql(begun)[0][0] >= min(case.sites, 100), 60, "the others are tried")
            Sender(*rail.mx, messages=FRESH, recipient=f"n{{n}}@{HEALTHY}").finish()
            hop.wait_for(1 + FRESH)
            Sender(*rail.mx, messages=1, recipient=f"first@{NEW}").finish()
            hop.wait_for(2 + FRESH)
