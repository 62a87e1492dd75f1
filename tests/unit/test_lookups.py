"""A decision that asks the DNS is driven by whoever has the answers."""

from ipaddress import IPv4Address

from mailrail.core.lookups import NO_NAME, Asking, DnsOutcome, DnsQuestion, LookupAnswer, answered


def _hosts_of(domain: str) -> Asking[tuple[IPv4Address, ...]]:
    (hosts,) = yield (DnsQuestion(domain, "MX"),)
    answers = yield tuple(DnsQuestion(host, "A") for _, host in hosts.hosts)
    return tuple(address for answer in answers for address in answer.records)


def test_each_question_gets_its_answer_in_the_order_of_asking() -> None:
    zone = {
        DnsQuestion("a.example", "MX"): LookupAnswer(DnsOutcome.FOUND, ((10, "one.a.example"), (20, "two.a.example"))),
        DnsQuestion("one.a.example", "A"): LookupAnswer(DnsOutcome.FOUND, (IPv4Address("127.0.0.1"),)),
        DnsQuestion("two.a.example", "A"): LookupAnswer(DnsOutcome.FOUND, (IPv4Address("127.0.0.2"),)),
    }
    found = answered(_hosts_of("a.example"), lambda question: zone.get(question, NO_NAME))
    assert found == (IPv4Address("127.0.0.1"), IPv4Address("127.0.0.2"))


def test_a_decision_that_asks_nothing_more_returns_at_once() -> None:
    asked = []

    def answer(question: DnsQuestion) -> LookupAnswer:
        asked.append(question)
        return NO_NAME

    assert answered(_hosts_of("none.example"), answer) == ()
    assert asked == [DnsQuestion("none.example", "MX")]
