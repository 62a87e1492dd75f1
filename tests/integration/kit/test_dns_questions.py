"""Decisions that ask the DNS, driven by the resolver against a name server that answers, fails, or is silent."""

import asyncio
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from mailrail.core.lookups import NO_DATA, NO_NAME, Asking, DnsOutcome, DnsQuestion, LookupAnswer
from mailrail.core.spf.evaluation import QUESTION_LIMIT, TIME_LIMIT, check_host
from mailrail.core.spf.result import SpfIdentity, SpfResult, SpfScope, SpfVerdict
from mailrail.kit.dns_questions import ask_dns
from mailrail.kit.resolver import DnsResolver

from testkit.conditions import eventually
from testkit.dns import DnsServer, Failure


def each(*questions: DnsQuestion) -> Asking[tuple[LookupAnswer, ...]]:
    return (yield questions)


async def asked(dns: DnsServer, name: str, kind: str) -> LookupAnswer:
    question = DnsQuestion(name, kind)  # type: ignore[arg-type]
    (answer,) = await ask_dns(each(question), DnsResolver(dns.endpoint), seconds=20, questions=1)
    return answer


async def spf(
    dns: DnsServer, client: str, *, seconds: float = TIME_LIMIT, resolver: DnsResolver | None = None
) -> SpfVerdict:
    identity = SpfIdentity(SpfScope.MAIL_FROM, 'a "b\\c', "example.org")
    asking = check_host(identity, ip_address(client), "mail.example.org")
    return await ask_dns(asking, resolver or DnsResolver(dns.endpoint), seconds=seconds, questions=QUESTION_LIMIT)


async def test_records_come_as_decisions_want_them() -> None:
    with DnsServer() as dns:
        dns.add("example.org", "A", "192.0.2.1", "192.0.2.2")
        dns.add("example.org", "AAAA", "2001:db8::1")
        dns.add("example.org", "MX", "10 MX.Example.org.")
        dns.add("null.example.org", "MX", "0 .")
        dns.add("example.org", "TXT", '"v=spf1 ip4:192.0." "2.1 -all"', '"caf\\195\\169"')
        dns.add("1.2.0.192.in-addr.arpa", "PTR", "Host.Example.org.")
        v4 = await asked(dns, "example.org", "A")
        assert set(v4.addresses) == {IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")}
        assert (await asked(dns, "example.org", "AAAA")).addresses == (IPv6Address("2001:db8::1"),)
        assert (await asked(dns, "example.org", "MX")).hosts == ((10, "mx.example.org"),)
        assert (await asked(dns, "null.example.org", "MX")).hosts == ((0, ""),)
        texts = await asked(dns, "example.org", "TXT")
        assert set(texts.texts) == {b"v=spf1 ip4:192.0.2.1 -all", b"caf\xc3\xa9"}
        assert (await asked(dns, "1.2.0.192.in-addr.arpa", "PTR")).names == ("host.example.org",)
        assert texts.outcome is DnsOutcome.FOUND


async def test_an_absence_is_told_from_trouble() -> None:
    with DnsServer() as dns:
        dns.add("example.org", "A", "192.0.2.1")
        dns.fail("broken.example.org", Failure.SERVFAIL)
        assert await asked(dns, "example.org", "MX") == NO_DATA
        assert await asked(dns, "none.example.org", "MX") == NO_NAME
        trouble = await asked(dns, "broken.example.org", "MX")
        assert (trouble.outcome, trouble.records, trouble.late) == (DnsOutcome.TROUBLE, (), False)
        assert "broken.example.org" in trouble.text


@pytest.mark.parametrize("name", ["a..example.org", f"{'a' * 64}.example.org", "", "é.example.org", "x." * 150])
async def test_nobody_is_asked_for_what_is_no_name(name: str) -> None:
    with DnsServer() as dns:
        assert await asked(dns, name, "A") == NO_NAME
        assert dns.queries == []


async def test_a_name_of_odd_octets_is_asked_for_as_it_is() -> None:
    with DnsServer() as dns:
        dns.add("example.org", "TXT", '"v=spf1 exists:%{l}.ok.example.org -all"')
        dns.add('a\\032\\"b\\\\c.ok.example.org', "A", "127.0.0.2")
        assert (await spf(dns, "192.0.2.1")).result is SpfResult.PASS


async def test_questions_of_one_step_are_asked_side_by_side() -> None:
    """Were they asked one after another, the second would wait for the first for ever."""
    with DnsServer() as dns:
        dns.fail("one.example.org", Failure.SILENT)
        dns.fail("two.example.org", Failure.SILENT)
        questions = DnsQuestion("one.example.org", "A"), DnsQuestion("two.example.org", "A")
        resolver = DnsResolver(dns.endpoint, timeout=600.0)
        asking = asyncio.ensure_future(ask_dns(each(*questions), resolver, seconds=600, questions=2))
        await eventually(lambda: dns.asked("one.example.org") and dns.asked("two.example.org"))
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking


async def test_an_evaluation_ends_when_its_time_is_up_SPF_05() -> None:
    """Trouble with the names of a client is passed over, and a fail would follow; the end of all time is not."""
    with DnsServer() as dns:
        dns.add("example.org", "TXT", '"v=spf1 ptr a:later.example.org -all"')
        dns.fail("1.2.0.192.in-addr.arpa", Failure.SILENT)
        resolver = DnsResolver(dns.endpoint)
        await resolver.answer("example.org", "TXT")  # so that the time is all for what is silent
        verdict = await spf(dns, "192.0.2.1", seconds=0.5, resolver=resolver)
        assert (verdict.result, verdict.mechanism) == (SpfResult.TEMPERROR, "ptr")
        assert "no answer within 0.5 s" in verdict.reason
        assert dns.asked("later.example.org") == 0


async def test_what_is_asked_after_the_time_is_late_at_once() -> None:
    def patient() -> Asking[list[LookupAnswer]]:
        answers: list[LookupAnswer] = []
        for name in ("silent.example.org", "there.example.org"):
            answers += yield (DnsQuestion(name, "A"),)
        return answers

    with DnsServer() as dns:
        dns.fail("silent.example.org", Failure.SILENT)
        dns.add("there.example.org", "A", "192.0.2.1")
        answers = await ask_dns(patient(), DnsResolver(dns.endpoint), seconds=0.2, questions=9)
        assert [answer.late for answer in answers] == [True, True]
        assert dns.asked("there.example.org") == 0


async def test_a_decision_asks_no_more_than_it_may() -> None:
    with DnsServer() as dns:
        for number in range(5):
            dns.add(f"h{number}.example.org", "A", "192.0.2.1")
        questions = [DnsQuestion(f"h{number}.example.org", "A") for number in range(5)]
        answers = await ask_dns(each(*questions), DnsResolver(dns.endpoint), seconds=20, questions=3)
        assert [answer.late for answer in answers] == [False] * 3 + [True] * 2
        assert "more than 3 questions" in answers[-1].text
        assert len({query.name for query in dns.queries}) == 3


async def test_a_decision_that_asks_nothing_needs_no_resolver() -> None:
    identity = SpfIdentity(SpfScope.MAIL_FROM, "a", "localhost")
    asking = check_host(identity, ip_address("192.0.2.1"), "localhost")
    with DnsServer() as dns:
        verdict = await ask_dns(asking, DnsResolver(dns.endpoint), seconds=20, questions=QUESTION_LIMIT)
        assert (verdict.result, dns.queries) == (SpfResult.NONE, [])


async def test_spf_is_evaluated_with_real_answers_SPF_06() -> None:
    with DnsServer() as dns:
        dns.add("example.org", "TXT", '"v=spf1 mx ptr:example.org include:broken.example.org -all"')
        dns.add("example.org", "MX", "10 mx1.example.org.", "20 mx2.example.org.")
        dns.add("mx1.example.org", "A", "192.0.2.1")
        dns.add("mx2.example.org", "AAAA", "2001:db8::2")
        dns.add("3.2.0.192.in-addr.arpa", "PTR", "host.example.org.")
        dns.add("host.example.org", "A", "192.0.2.3")
        dns.fail("broken.example.org", Failure.REFUSED)
        for client, result, mechanism in (
            ("192.0.2.1", SpfResult.PASS, "mx"),
            ("2001:db8::2", SpfResult.PASS, "mx"),
            ("192.0.2.3", SpfResult.PASS, "ptr:example.org"),
            ("192.0.2.4", SpfResult.TEMPERROR, ""),
        ):
            verdict = await spf(dns, client)
            assert (verdict.result, verdict.mechanism) == (result, mechanism), verdict
