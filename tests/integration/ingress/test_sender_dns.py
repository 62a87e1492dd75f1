"""What ingress asks of the DNS about the domains of senders: shared, kept, and each asker for himself."""

import pytest

from mailrail.kit import clock
from mailrail_ingress.ports import SenderDomain
from mailrail_ingress.queue_stream import SenderDns
from mailrail_ingress.settings import IngressSettings

from testkit.conditions import eventually
from testkit.dns import DnsServer


async def test_one_that_cannot_take_its_answer_keeps_it_from_nobody_else() -> None:
    with DnsServer() as dns:
        dns.add("sender.example", "MX", "10 mx.sender.example.")
        senders = SenderDns(IngressSettings(resolver=dns.endpoint))
        heard: list[SenderDomain] = []

        def crashing(facts: SenderDomain) -> None:
            raise RuntimeError("a mistake of ours")

        senders.look_up("sender.example", crashing)
        senders.look_up("sender.example", heard.append)
        await eventually(lambda: len(heard) == 1)
        assert dns.asked("sender.example") == 1


async def test_an_answer_is_kept_no_longer_for_the_machine_having_been_suspended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with DnsServer() as dns:
        dns.add("sender.example", "MX", "10 mx.sender.example.")
        senders = SenderDns(IngressSettings(resolver=dns.endpoint))
        heard: list[SenderDomain] = []
        senders.look_up("sender.example", heard.append)
        await eventually(lambda: len(heard) == 1)
        senders.look_up("sender.example", heard.append)
        assert len(heard) == 2
        assert dns.asked("sender.example") == 1
        now = clock.now
        monkeypatch.setattr(clock, "now", lambda: now() + 86400)
        senders.look_up("sender.example", heard.append)
        await eventually(lambda: len(heard) == 3)
        assert dns.asked("sender.example") == 2
