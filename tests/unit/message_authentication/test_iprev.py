"""Names of the client's address that lead back to it (RFC 8601 3)."""

from ipaddress import ip_address

import pytest

from mailrail.core.lookups import answered
from mailrail.core.message_authentication.iprev import NAMES_LIMIT, QUESTION_LIMIT, IprevVerdict, check_names

from testkit.dns_table import DnsTable

CLIENT = ip_address("192.0.2.1")
POINTER = CLIENT.reverse_pointer


def judged(*records: tuple[str, str, str], failing: tuple[str, ...] = (), client: str = "192.0.2.1") -> IprevVerdict:
    dns = DnsTable()
    for record in records:
        dns.add(*record)
    for name in failing:
        dns.fail(name)
    return answered(check_names(ip_address(client)), dns)


NAMED = (POINTER, "PTR", "a.example")


@pytest.mark.parametrize(
    ("records", "failing", "result", "name"),
    [
        ((NAMED, ("a.example", "A", "192.0.2.1")), (), "pass", "a.example"),
        ((NAMED, ("a.example", "A", "192.0.2.2")), (), "fail", ""),
        ((NAMED,), (), "fail", ""),
        ((), (), "permerror", ""),
        (((POINTER, "TXT", "x"),), (), "permerror", ""),
        ((), (POINTER,), "temperror", ""),
        ((NAMED,), ("a.example",), "temperror", ""),
        # A name that leads back outweighs another without an answer, and one that leads elsewhere.
        ((NAMED, (POINTER, "PTR", "b.example"), ("b.example", "A", "192.0.2.1")), ("a.example",), "pass", "b.example"),
    ],
)
def test_a_client_has_a_name_or_not(
    records: tuple[tuple[str, str, str], ...], failing: tuple[str, ...], result: str, name: str
) -> None:
    verdict = judged(*records, failing=failing)
    assert (verdict.result, verdict.name) == (result, name), verdict.reason


def test_a_client_with_ipv6_is_asked_for_by_nibbles_and_aaaa() -> None:
    client = ip_address("2001:db8::1")
    verdict = judged(
        (client.reverse_pointer, "PTR", "a.example"), ("a.example", "AAAA", "2001:db8::1"), client="2001:db8::1"
    )
    assert verdict.result == "pass"


def test_of_many_names_no_more_than_ten_are_looked_up() -> None:
    dns = DnsTable()
    for number in range(50):
        dns.add(POINTER, "PTR", f"n{number}.example")
    dns.add("n49.example", "A", str(CLIENT))
    assert answered(check_names(CLIENT), dns).result == "fail"
    assert len(dns.asked) == 1 + NAMES_LIMIT == QUESTION_LIMIT
