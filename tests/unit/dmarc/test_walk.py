"""The DNS tree walk (RFC 9989 4.10)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.dmarc.zone import TROUBLE, Zone, at

from mailrail.core.dmarc.walk import (
    QUERIES_LIMIT,
    TreeWalk,
    below,
    is_at_or_below,
    names,
    walk,
)
from mailrail.core.lookups import answered, remembering, together

ONE = "v=DMARC1; p=none"


def walked(zone: Zone, domain: str) -> TreeWalk:
    return answered(walk(domain), zone.answer)


def test_a_name_of_thirteen_labels_costs_eight_questions_DMRC_05() -> None:
    zone = Zone(at(example_com=ONE))
    found = walked(zone, "a.b.c.d.e.f.g.h.i.j.mail.example.com")
    assert zone.names == [
        "_dmarc.a.b.c.d.e.f.g.h.i.j.mail.example.com",
        "_dmarc.g.h.i.j.mail.example.com",
        "_dmarc.h.i.j.mail.example.com",
        "_dmarc.i.j.mail.example.com",
        "_dmarc.j.mail.example.com",
        "_dmarc.mail.example.com",
        "_dmarc.example.com",
        "_dmarc.com",
    ]
    assert len(zone.asked) == QUERIES_LIMIT
    assert found.organizational_domain == "example.com"


@pytest.mark.parametrize(
    ("labels", "second"),
    [(1, None), (2, 1), (7, 6), (8, 7), (9, 7), (10, 7), (127, 7)],
)
def test_from_eight_labels_on_the_second_name_has_seven_DMRC_05(labels: int, second: int | None) -> None:
    domain = ".".join(f"l{at}" for at in range(labels))
    found = names(domain)
    assert found[0] == domain
    assert [len(name.split(".")) for name in found[1:]] == list(range(second or 0, 0, -1))
    assert all(is_at_or_below(domain, name) for name in found)


@pytest.mark.parametrize("psd", ["n", "y"])
def test_a_record_with_psd_ends_the_walk_DMRC_06(psd: str) -> None:
    zone = Zone(at(a_b_example_com=ONE, b_example_com=f"v=DMARC1; psd={psd}", example_com=ONE))
    found = walked(zone, "a.b.example.com")
    assert zone.names == ["_dmarc.a.b.example.com", "_dmarc.b.example.com"]
    assert [one.domain for one in found.found] == ["a.b.example.com", "b.example.com"]


def test_psd_u_and_two_records_do_not_end_it_DMRC_06() -> None:
    zone = Zone(at(a_example_com="v=DMARC1; psd=u", example_com=["v=DMARC1; psd=n", "v=DMARC1; psd=n"], com=ONE))
    found = walked(zone, "a.example.com")
    assert len(zone.names) == 3
    assert [one.domain for one in found.found] == ["a.example.com", "com"]


@pytest.mark.parametrize(
    ("records", "domain", "organization"),
    [
        # The three examples of RFC 9989 4.10.2.
        (at(mail_example_com=ONE, example_com=ONE), "a.mail.example.com", "example.com"),
        (at(mail_example_com="v=DMARC1; psd=n", example_com=ONE), "a.mail.example.com", "mail.example.com"),
        (at(com="v=DMARC1; psd=y"), "a.mail.example.com", "example.com"),
        # Those of its appendix B.4.
        (at(example_com=ONE, signing_example_com=ONE), "example.com", "example.com"),
        (at(example_com=ONE, signing_example_com=ONE), "signing.example.com", "example.com"),
        (at(example_com=ONE), "a.b.c.d.e.f.g.h.i.j.k.example.com", "example.com"),
        (at(bank_example="v=DMARC1; psd=y", giant_bank_example=ONE), "giant.bank.example", "giant.bank.example"),
        (at(bank_example="v=DMARC1; psd=y", giant_bank_example=ONE), "mail.giant.bank.example", "giant.bank.example"),
        (at(bank_example="v=DMARC1; psd=y"), "mail.mega.bank.example", "mega.bank.example"),
        # The rest of the rules.
        (at(bank_example="v=DMARC1; psd=y"), "bank.example", "bank.example"),
        (at(bank_example="v=DMARC1; psd=n"), "bank.example", "bank.example"),
        (at(), "a.example.com", "a.example.com"),
        (at(com=ONE), "a.example.com", "com"),
        (at(i_j_mail_example_com="v=DMARC1; psd=y"), "a.b.c.d.e.f.g.h.i.j.mail.example.com", "h.i.j.mail.example.com"),
        (
            at(g_h_i_j_mail_example_com="v=DMARC1; psd=y"),
            "a.b.c.d.e.f.g.h.i.j.mail.example.com",
            "f.g.h.i.j.mail.example.com",  # from the name itself: it was never asked
        ),
    ],
)
def test_the_organizational_domain_is_chosen_by_the_rules_DMRC_07(
    records: dict[str, str], domain: str, organization: str
) -> None:
    assert walked(Zone(records), domain).organizational_domain == organization


@pytest.mark.parametrize(
    ("records", "domain", "where"),
    [
        (at(a_b_example_com=ONE, example_com=ONE), "a.b.example.com", "a.b.example.com"),
        (at(b_example_com=ONE, example_com=ONE), "a.b.example.com", "example.com"),
        (at(b_example_com="v=DMARC1; psd=n", example_com=ONE), "a.b.example.com", "b.example.com"),
        (at(agency_gov_example=ONE, gov_example="v=DMARC1; psd=y"), "a.agency.gov.example", "agency.gov.example"),
        (at(gov_example="v=DMARC1; psd=y"), "a.agency.gov.example", "gov.example"),
        (at(a_agency_gov_example=ONE, gov_example="v=DMARC1; psd=y"), "b.a.agency.gov.example", "gov.example"),
        (at(), "a.example.com", None),
    ],
)
def test_the_policy_is_of_the_author_its_organization_or_the_suffix_DMRC_08(
    records: dict[str, str], domain: str, where: str | None
) -> None:
    policy = walked(Zone(records), domain).policy
    assert (policy and policy.domain) == where


def test_walks_that_meet_ask_no_name_twice_DMRC_05() -> None:
    zone = Zone(at(example_com=ONE))
    walks = [walk(f"{name}example.com") for name in ("a.", "b.", "", "c.", "d.c.")]
    found = answered(remembering(together(walks)), zone.answer)
    assert {one.organizational_domain for one in found} == {"example.com"}
    assert len(zone.asked) == len(set(zone.asked)) == 6


def test_a_walk_ends_where_the_dns_does_not_answer() -> None:
    zone = Zone(at(a_example_com=ONE, example_com=TROUBLE, com=ONE))
    found = walked(zone, "a.example.com")
    assert found.trouble is not None
    assert (found.trouble.domain, found.trouble.trouble) == ("example.com", "SERVFAIL")
    assert zone.names == ["_dmarc.a.example.com", "_dmarc.example.com"]


def test_a_name_that_is_too_long_for_the_dns_is_not_asked() -> None:
    zone = Zone(at(example_com=ONE))
    domain = ".".join(["a" * 60] * 4) + ".example.com"
    assert walked(zone, domain).organizational_domain == "example.com"
    assert all(len(question.name) <= 253 for question in zone.asked)


@pytest.mark.parametrize(
    ("parent", "domain", "name"),
    [("com", "a.b.com", "b.com"), ("b.com", "a.b.com", "a.b.com"), ("c.d", "e.a.b.c.d", "b.c.d")],
)
def test_the_name_below_another_is_found(parent: str, domain: str, name: str) -> None:
    assert below(parent, domain) == name


_LABELS = st.lists(st.sampled_from("abc"), min_size=1, max_size=12)
_RECORDS = ["v=DMARC1", "v=DMARC1; psd=y", "v=DMARC1; psd=n", "v=spf1 -all"]
_ZONES = st.dictionaries(_LABELS.map(lambda labels: "_dmarc." + ".".join(labels)), st.sampled_from(_RECORDS))


@given(_ZONES, _LABELS)
def test_any_walk_is_short_and_stays_above_its_start_DMRC_05(zone: dict[str, str], labels: list[str]) -> None:
    domain = ".".join(labels)
    dns = Zone(zone)
    found = walked(dns, domain)
    assert len(dns.asked) <= QUERIES_LIMIT
    assert is_at_or_below(domain, found.organizational_domain)
    assert found.policy is None or is_at_or_below(domain, found.policy.domain)
