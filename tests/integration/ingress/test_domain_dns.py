"""What ingress asks of the DNS about the domains of senders."""

import pytest

from mailrail_ingress.checks.domain_dns import DomainDns
from mailrail_ingress.ports import DomainFacts
from mailrail_ingress.settings import IngressSettings

from testkit.conditions import eventually
from testkit.dns import DnsServer, Failure


async def test_one_that_cannot_take_its_answer_keeps_it_from_nobody_else() -> None:
    with DnsServer() as dns:
        dns.add("sender.example", "MX", "10 mx.sender.example.")
        senders = DomainDns(IngressSettings(resolver=dns.endpoint))
        heard: list[DomainFacts] = []

        def crashing(facts: DomainFacts) -> None:
            raise RuntimeError("a mistake of ours")

        senders.look_up("sender.example", crashing)
        senders.look_up("sender.example", heard.append)
        await eventually(lambda: len(heard) == 1)
        assert dns.asked("sender.example") == 1


async def test_a_dead_name_server_is_not_asked_again_for_each_sender() -> None:
    with DnsServer() as dns:
        dns.fail("sender.example", Failure.SERVFAIL)
        senders = DomainDns(IngressSettings(resolver=dns.endpoint))
        heard: list[DomainFacts] = []
        senders.look_up("sender.example", heard.append)
        await eventually(lambda: len(heard) == 1)
        asked = dns.asked("sender.example")
        senders.look_up("sender.example", heard.append)
        assert heard == [DomainFacts.UNKNOWN] * 2
        assert dns.asked("sender.example") == asked


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ({"MX": "10 mx.sender.example."}, DomainFacts.RESOLVES),
        ({"MX": "0 ."}, DomainFacts.NULL_MX),
        ({"AAAA": "2001:db8::1"}, DomainFacts.RESOLVES),
        ({"TXT": '"v=spf1 -all"'}, DomainFacts.DOES_NOT_EXIST),
        ({}, DomainFacts.DOES_NOT_EXIST),
    ],
)
async def test_the_domain_of_a_sender_is_judged_by_its_records_SIN_23a(
    records: dict[str, str], expected: DomainFacts
) -> None:
    with DnsServer() as dns:
        for kind, value in records.items():
            dns.add("sender.example", kind, value)
        senders = DomainDns(IngressSettings(resolver=dns.endpoint))
        heard: list[DomainFacts] = []
        senders.look_up("sender.example", heard.append)
        await eventually(lambda: len(heard) == 1)
        senders.look_up("sender.example", heard.append)  # from memory
        assert heard == [expected] * 2
