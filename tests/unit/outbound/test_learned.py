"""What sessions show of recipient domains: when it is worth a write, and how much waits for one."""

from mailrail.core.outbound.learned import AGAIN, LearnedDomain, LearnedDomains, Offered

NONE, TLS, BOTH = Offered(False, False), Offered(True, False), Offered(True, True)


def write(domains: LearnedDomains) -> list[LearnedDomain]:
    """All that waits, written."""
    batch = domains.take(100)
    domains.wrote(batch)
    return batch


def test_what_has_not_changed_is_written_once_an_hour_RTLS_29() -> None:
    domains = LearnedDomains(10, 10)
    for now in range(100):
        domains.note("a.example", "", TLS, float(now))
    assert write(domains) == [LearnedDomain("a.example", "", TLS, 99.0)]
    domains.note("a.example", "", TLS, 99.0 + AGAIN - 1)
    assert write(domains) == []
    domains.note("a.example", "", TLS, 99.0 + AGAIN)
    assert write(domains) == [LearnedDomain("a.example", "", TLS, 99.0 + AGAIN)]


def test_a_change_is_written_at_once_for_its_domain_and_transport_alone() -> None:
    domains = LearnedDomains(10, 10)
    for transport in ("", "ns/relay"):
        domains.note("a.example", transport, TLS, 0.0)
    write(domains)
    domains.note("a.example", "", BOTH, 1.0)
    domains.note("a.example", "ns/relay", TLS, 1.0)
    assert write(domains) == [LearnedDomain("a.example", "", BOTH, 1.0)]
    domains.note("a.example", "", NONE, 2.0)
    domains.note("a.example", "", BOTH, 3.0)
    assert write(domains) == [], "it changed back before it was written"


def test_what_could_not_be_written_waits_within_its_bound_and_what_is_newer_wins() -> None:
    domains = LearnedDomains(10, 2)
    domains.note("a.example", "", TLS, 0.0)
    domains.note("b.example", "", TLS, 0.0)
    domains.note("c.example", "", TLS, 0.0)
    assert (len(domains), domains.dropped) == (2, 1)
    batch = domains.take(2)
    domains.note("a.example", "", NONE, 1.0)
    domains.note("d.example", "", TLS, 1.0)
    domains.put_back(batch)
    assert domains.dropped == 2, "b found no place"
    assert {one.domain: one.offered for one in domains.take(9)} == {"a.example": NONE, "d.example": TLS}


def test_what_is_known_is_bounded_by_the_number_of_domains() -> None:
    domains = LearnedDomains(2, 10)
    for name in ("a", "b", "c"):
        domains.note(name, "", TLS, 0.0)
        write(domains)
    for name in ("a", "b", "c"):
        domains.note(name, "", TLS, 1.0)
    assert [one.domain for one in domains.take(9)] == ["a"], "it was pushed out: one write more, and no memory"
