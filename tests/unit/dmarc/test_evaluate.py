"""DMARC verdicts (RFC 9989 5.3): which policy, which alignment, and what the DNS is asked for them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.dmarc.zone import TROUBLE, Zone, at, judged, verdict

from mailrail.core.dmarc.align import WALKS_LIMIT
from mailrail.core.dmarc.authors import AUTHORS_LIMIT, AuthorDomains, AuthorFault, author_domains
from mailrail.core.dmarc.discovery import Discovery
from mailrail.core.dmarc.evaluate import DmarcResult, PolicyTag, evaluate
from mailrail.core.dmarc.facts import DkimFact, SpfFact
from mailrail.core.dmarc.psl import read_list
from mailrail.core.dmarc.record import DmarcPolicy
from mailrail.core.lookups import NO_NAME, DnsOutcome, LookupAnswer, answered
from mailrail.core.message.header import Header
from mailrail.core.smtp.address import AddressError, domain_to_ascii

REJECT = "v=DMARC1; p=reject"


def authors_of(*values: str) -> AuthorDomains:
    block = "".join(f"From: {value}\r\n" for value in values).encode()
    return author_domains(Header(block).named(b"from"))


# --- author domains ---


@pytest.mark.parametrize(
    ("value", "domains"),
    [
        ("ann@example.com", ("example.com",)),
        ("Ann <ann@EXAMPLE.com>", ("example.com",)),
        ("Ann <ann@bücher.example>", ("xn--bcher-kva.example",)),
        ("ann@example.com, bob@Example.COM, eve@evil.example", ("example.com", "evil.example")),
        ("team: ann@a.example, bob@b.example;", ("a.example", "b.example")),
        ("ann@a.example, bob@[192.0.2.1]", ("a.example",)),
        ("ceo@bank.example <x@evil.example>", ("bank.example", "evil.example")),
    ],
)
def test_domains_count_and_not_mailboxes_DMRC_01(value: str, domains: tuple[str, ...]) -> None:
    assert authors_of(value) == AuthorDomains(domains)


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ((), AuthorFault.NO_FIELD),
        (("ann@example.com", "ann@example.com"), AuthorFault.SEVERAL_FIELDS),
        (("",), AuthorFault.NO_DOMAIN),
        (("undisclosed:;",), AuthorFault.NO_DOMAIN),
        (("ann@[192.0.2.1]",), AuthorFault.NO_DOMAIN),
        (("ann",), AuthorFault.UNREADABLE),
        (("ann@example.com, bob@-x-",), AuthorFault.UNREADABLE),
        (("ann@example.com (never ends",), AuthorFault.UNREADABLE),
    ],
)
def test_without_one_field_of_domains_nothing_is_evaluated_DMRC_01(values: tuple[str, ...], fault: AuthorFault) -> None:
    authors = authors_of(*values)
    assert authors == AuthorDomains((), fault)
    assert (str(authors.refusal.lines[0][:5]) if authors.refusal else None) == (
        "5.6.0" if fault is AuthorFault.SEVERAL_FIELDS else None
    )
    evaluation = answered(evaluate(authors), lambda _: pytest.fail("nothing is asked"))
    assert (evaluation.result, evaluation.decisive, evaluation.asked) == (None, None, DmarcPolicy.NONE)


def test_of_many_author_domains_ten_are_evaluated_and_the_message_never_passes_DMRC_01() -> None:
    authors = authors_of(", ".join(f"a@d{number}.example" for number in range(AUTHORS_LIMIT + 1)))
    assert (len(authors.domains), authors.more) == (AUTHORS_LIMIT, True)
    records = at(**{f"d{number}_example": REJECT for number in range(AUTHORS_LIMIT)})
    signatures = [DkimFact("pass", domain) for domain in authors.domains]
    evaluation = answered(evaluate(authors, dkim=signatures), Zone(records).answer)
    assert {found.result for found in evaluation.verdicts} == {DmarcResult.PASS}
    assert evaluation.result is DmarcResult.PERMERROR
    assert answered(evaluate(authors), Zone(records).answer).result is DmarcResult.FAIL


@pytest.mark.parametrize(
    ("records", "signed", "result", "decisive"),
    [
        (at(a_example=REJECT, b_example="v=DMARC1; p=none"), ("b.example",), "fail", "a.example"),
        (at(a_example="v=DMARC1; p=none", b_example=REJECT), (), "fail", "b.example"),
        (at(a_example="v=DMARC1; p=quarantine", b_example=REJECT), ("b.example",), "fail", "a.example"),
        (at(a_example=REJECT, b_example=REJECT), ("a.example", "b.example"), "pass", "a.example"),
        (at(a_example=REJECT), ("a.example",), "none", "b.example"),
        (at(a_example=REJECT, b_example=TROUBLE), ("a.example",), "temperror", "b.example"),
        (at(a_example=REJECT, b_example=TROUBLE), (), "fail", "a.example"),
    ],
)
def test_of_several_domains_the_strictest_that_fails_decides_DMRC_01(
    records: dict[str, Any], signed: tuple[str, ...], result: str, decisive: str
) -> None:
    evaluation = judged(Zone(records), "a.example", "b.example", dkim=[DkimFact("pass", one) for one in signed])
    assert evaluation.result == result
    assert evaluation.decisive is not None
    assert evaluation.decisive.author == decisive


def test_the_questions_of_several_authors_are_asked_side_by_side() -> None:
    zone = Zone(at(a_example=REJECT, b_example=REJECT))
    asking = evaluate(AuthorDomains(("a.example", "b.example", "a.b.example")))
    first = next(asking)
    assert [question.name for question in first] == ["_dmarc.a.example", "_dmarc.b.example", "_dmarc.a.b.example"]
    asking.close()
    judged(zone, "a.example", "b.example", "a.b.example")
    assert len(zone.asked) == len(set(zone.asked))


# --- which policy ---

POLICIES = "v=DMARC1; p=none; sp=quarantine; np=reject"


@pytest.mark.parametrize(
    ("record", "author", "exists", "tag", "policy"),
    [
        (POLICIES, "example.com", True, "p", "none"),
        (POLICIES, "a.example.com", True, "sp", "quarantine"),
        (POLICIES, "a.example.com", False, "np", "reject"),
        ("v=DMARC1; p=reject; sp=none", "a.example.com", False, "sp", "none"),
        ("v=DMARC1; p=reject", "a.example.com", False, "p", "reject"),
        ("v=DMARC1; p=none; np=reject", "a.example.com", True, "p", "none"),
        ("v=DMARC1; p=none; np=reject", "a.example.com", False, "np", "reject"),
        ("v=DMARC1; sp=reject", "a.example.com", True, "sp", "reject"),
    ],
)
def test_the_policy_is_p_or_for_names_below_np_sp_p_DMRC_09(
    record: str, author: str, exists: bool, tag: str, policy: str
) -> None:
    found = verdict(Zone(at(example_com=record), frozenset({author} if exists else ())), author)
    assert (found.tag, found.policy, found.asked) == (PolicyTag(tag), DmarcPolicy(policy), DmarcPolicy(policy))
    assert found.policy_domain == "example.com"


@pytest.mark.parametrize("below", ["b.a.example.com", "_dmarc.a.example.com"])
def test_a_name_with_names_below_it_exists_DMRC_09(below: str) -> None:
    zone = Zone(at(example_com=POLICIES), frozenset({below}))
    assert verdict(zone, "a.example.com").tag is PolicyTag.SP
    assert (below.startswith("_dmarc")) is ("A" not in {question.kind for question in zone.asked})


def test_existence_is_asked_only_where_it_matters_DMRC_09() -> None:
    for record in (REJECT, "v=DMARC1; p=none; sp=reject"):
        zone = Zone(at(example_com=record))
        verdict(zone, "a.example.com")
        assert {question.kind for question in zone.asked} == {"TXT"}


@pytest.mark.parametrize(
    ("record", "result", "policy"),
    [
        (POLICIES, "temperror", "quarantine"),
        ("v=DMARC1; p=reject; np=reject", "fail", "reject"),
    ],
)
def test_without_an_answer_about_existence_only_what_is_certain_is_said_DMRC_13a(
    record: str, result: str, policy: str
) -> None:
    zone = Zone(at(example_com=record) | {"a.example.com": TROUBLE, "_dmarc.a.example.com": NO_NAME})
    found = verdict(zone, "a.example.com")
    assert (found.result, found.policy) == (result, policy)
    passed = verdict(zone, "a.example.com", dkim=[DkimFact("pass", "a.example.com")])
    assert passed.result is DmarcResult.PASS


def test_a_test_lowers_the_policy_by_one_step_DMRC_10() -> None:
    for policy, asked in (("reject", "quarantine"), ("quarantine", "none"), ("none", "none")):
        found = verdict(Zone(at(example_com=f"v=DMARC1; p={policy}; t=y")), "example.com")
        assert (found.policy, found.asked, found.tested) == (policy, asked, policy != "none")
    assert not verdict(Zone(at(example_com="v=DMARC1; p=reject; t=n")), "example.com").tested


def test_a_record_that_asks_for_nothing_valid_makes_no_verdict_DMRC_04() -> None:
    found = verdict(Zone(at(example_com="v=DMARC1; p=rejct")), "example.com")
    assert (found.result, found.record, found.policy_domain) == (DmarcResult.NONE, None, None)
    assert "p is not valid" in found.reason
    assert "_dmarc.example.com" in found.steps


def test_such_a_record_still_counts_in_a_walk_DMRC_04() -> None:
    zone = Zone(at(a_example_com=REJECT, example_com="v=DMARC1; p=rejct"))
    found = verdict(zone, "a.example.com", dkim=[DkimFact("pass", "b.example.com")])
    assert (found.result, found.organizational_domain) == (DmarcResult.PASS, "example.com")


# --- alignment ---


@pytest.mark.parametrize(
    ("record", "author", "spf", "dkim", "aligned"),
    [
        # RFC 9989 B.1.1: SPF in strict alignment, in relaxed alignment, in none.
        (REJECT, "example.com", "example.com", None, (True, False)),
        (REJECT, "example.com", "child.example.com", None, (True, False)),
        (REJECT, "child.example.com", "example.net", None, (False, False)),
        # B.1.2: the same with DKIM.
        (REJECT, "example.com", None, "example.com", (False, True)),
        (REJECT, "child.example.com", None, "example.com", (False, True)),
        (REJECT, "child.example.com", None, "example.net", (False, False)),
        # Modes are separate, and strict means equal.
        (f"{REJECT}; aspf=s", "example.com", "a.example.com", "a.example.com", (False, True)),
        (f"{REJECT}; adkim=s", "example.com", "a.example.com", "a.example.com", (True, False)),
        (f"{REJECT}; adkim=s; aspf=s", "example.com", "EXAMPLE.com.", "Example.COM", (True, True)),
        (REJECT, "a.example.com", "b.c.example.com", "A.B.EXAMPLE.COM", (True, True)),
        (REJECT, "example.com", "notexample.com", "example.com.evil.example", (False, False)),
        (REJECT, "example.com", "", "not a name", (False, False)),
        ("v=DMARC1; p=reject; adkim=s", "bücher.example", None, "BÜCHER.example", (False, True)),
        ("v=DMARC1; p=reject; adkim=s", "bücher.example", None, "xn--bcher-kva.example", (False, True)),
    ],
)
def test_identifiers_are_aligned_each_by_its_mode_DMRC_11(
    record: str, author: str, spf: str | None, dkim: str | None, aligned: tuple[bool, bool]
) -> None:
    author = domain_to_ascii(author)
    organization = author if author.endswith(".example") else "example.com"
    found = verdict(
        Zone({f"_dmarc.{organization}": record}),
        author,
        spf=SpfFact("pass", spf) if spf is not None else SpfFact("none", ""),
        dkim=[DkimFact("pass", dkim)] if dkim is not None else [],
    )
    assert (found.spf_aligned, found.dkim_aligned) == aligned
    assert (found.result is DmarcResult.PASS) is any(aligned)


@pytest.mark.parametrize(
    ("spf", "dkim", "aligned"),
    [("mail.giant.bank.example", "mail.mega.bank.example", (True, False)), ("bank.example", "example", (False, False))],
)
def test_below_a_public_suffix_each_name_is_an_organization_DMRC_11(
    spf: str, dkim: str, aligned: tuple[bool, bool]
) -> None:
    """RFC 9989 B.4.3."""
    zone = Zone(at(bank_example="v=DMARC1; p=reject; psd=y", giant_bank_example=REJECT))
    found = verdict(zone, "giant.bank.example", spf=SpfFact("pass", spf), dkim=[DkimFact("pass", dkim)])
    assert (found.spf_aligned, found.dkim_aligned) == aligned
    assert "_dmarc.example" not in zone.names


def test_a_division_with_psd_n_is_not_aligned_with_its_parent_DMRC_11() -> None:
    zone = Zone(at(example_com=REJECT, dept_example_com="v=DMARC1; p=reject; psd=n"))
    assert not verdict(zone, "example.com", dkim=[DkimFact("pass", "a.dept.example.com")]).dkim_aligned
    assert not verdict(zone, "a.dept.example.com", dkim=[DkimFact("pass", "example.com")]).dkim_aligned
    assert verdict(zone, "a.dept.example.com", dkim=[DkimFact("pass", "b.dept.example.com")]).dkim_aligned


@pytest.mark.parametrize("result", ["none", "neutral", "fail", "softfail", "permerror", "policy"])
def test_only_a_pass_of_the_mail_from_identity_or_of_a_signature_counts_DMRC_12(result: str) -> None:
    zone = Zone(at(example_com=REJECT))
    found = verdict(
        zone, "example.com", spf=SpfFact(result, "example.com"), dkim=[DkimFact(result, "example.com", "s1")]
    )
    assert found.result is DmarcResult.FAIL
    assert [(one.method, one.selector, one.aligned) for one in found.identifiers] == [
        ("spf", "", True),
        ("dkim", "s1", True),
    ]


def test_one_aligned_signature_of_several_suffices_DMRC_12() -> None:
    signatures = [DkimFact("pass", "far.example"), DkimFact("fail", "example.com"), DkimFact("pass", "a.example.com")]
    found = verdict(Zone(at(example_com=REJECT)), "example.com", dkim=signatures)
    assert found.result is DmarcResult.PASS
    assert [one.passes for one in found.identifiers] == [False, False, False, True]


def test_what_others_prove_costs_no_question() -> None:
    """Whoever sends with a hundred signatures of domains elsewhere makes us ask nothing about them."""
    zone = Zone(at(example_com=REJECT))
    signatures = [DkimFact("pass", f"a{number}.evil.com") for number in range(100)]
    assert verdict(zone, "example.com", spf=SpfFact("pass", "evil.com"), dkim=signatures).result is DmarcResult.FAIL
    assert zone.names == ["_dmarc.example.com", "_dmarc.com"]


def test_no_more_domains_of_one_organization_are_looked_up_than_anybody_needs() -> None:
    zone = Zone(at(example_com=REJECT))
    signatures = [DkimFact("pass", f"a{number}.example.com") for number in range(100)]
    found = verdict(zone, "example.com", dkim=signatures)
    assert found.dkim_aligned
    assert len(zone.asked) == 2 + WALKS_LIMIT


def test_an_own_record_and_equal_names_need_no_walk() -> None:
    zone = Zone(at(a_example_com=REJECT, example_com=TROUBLE))
    found = verdict(zone, "a.example.com", spf=SpfFact("pass", "a.example.com"))
    assert found.result is DmarcResult.PASS
    assert zone.names == ["_dmarc.a.example.com"]


def test_an_own_record_and_strict_modes_need_no_walk() -> None:
    zone = Zone(at(a_example_com=f"{REJECT}; adkim=s; aspf=s"))
    signed = [DkimFact("pass", "example.com")]
    assert verdict(zone, "a.example.com", spf=SpfFact("pass", "example.com"), dkim=signed).result is DmarcResult.FAIL
    assert zone.names == ["_dmarc.a.example.com"]


# --- when the DNS does not answer ---


@pytest.mark.parametrize("where", ["a_example_com", "example_com", "com"])
def test_without_the_record_it_neither_passes_nor_fails_DMRC_13a(where: str) -> None:
    zone = Zone(at(example_com=REJECT) | at(**{where: TROUBLE}))
    found = verdict(zone, "a.example.com", dkim=[DkimFact("pass", "a.example.com")])
    assert found.result is DmarcResult.TEMPERROR
    assert f"_dmarc.{where.replace('_', '.')}" in found.reason
    assert "SERVFAIL" in found.reason
    assert found.steps


@pytest.mark.parametrize(
    ("records", "spf", "dkim", "result"),
    [
        # The author's organization is not known.
        (at(a_example_com=REJECT, example_com=TROUBLE), ("pass", "example.com"), (), "temperror"),
        (at(a_example_com=REJECT, example_com=TROUBLE), ("pass", "evil.example"), (), "fail"),
        (at(a_example_com=REJECT, example_com=TROUBLE), ("fail", "example.com"), (), "fail"),
        (at(a_example_com=REJECT, example_com=TROUBLE), ("pass", "example.com"), ("pass", "a.example.com"), "pass"),
        # The identifier's organization is not known.
        (at(example_com=REJECT, b_example_com=TROUBLE), ("pass", "b.example.com"), (), "temperror"),
        (at(example_com=REJECT, b_example_com=TROUBLE), ("pass", "b.example.com"), ("pass", "example.com"), "pass"),
        # SPF or DKIM had trouble themselves.
        (at(example_com=REJECT), ("temperror", "example.com"), (), "temperror"),
        (at(example_com=REJECT), ("temperror", "bounce.example.com"), (), "temperror"),
        (at(example_com=REJECT), ("temperror", "evil.com"), (), "fail"),
        (at(example_com=f"{REJECT}; aspf=s"), ("temperror", "bounce.example.com"), (), "fail"),
        (at(example_com=REJECT), ("none", ""), ("temperror", "example.com"), "temperror"),
        (at(example_com=REJECT), ("none", ""), ("temperror", "evil.example"), "fail"),
        (at(example_com=REJECT), ("temperror", "example.com"), ("pass", "example.com"), "pass"),
    ],
)
def test_an_answer_that_lacks_matters_only_if_it_could_make_the_message_pass_DMRC_13a(
    records: dict[str, Any], spf: tuple[str, str], dkim: tuple[str, str] | tuple[()], result: str
) -> None:
    author = "a.example.com" if "_dmarc.a.example.com" in records else "example.com"
    signatures = [DkimFact(*dkim)] if dkim else []
    assert verdict(Zone(records), author, spf=SpfFact(*spf), dkim=signatures).result == result


# --- the older mode ---

LIST = read_list(b"// a list\ncom\nexample\nco.example\n")


@pytest.mark.parametrize(
    ("author", "dkim", "result", "where", "asked"),
    [
        ("a.b.shop.co.example", "c.shop.co.example", "pass", "shop.co.example", 2),
        ("a.shop.co.example", "other.co.example", "fail", "shop.co.example", 2),
        ("shop.co.example", "shop.co.example", "pass", "shop.co.example", 1),
        ("a.none.co.example", "a.none.co.example", "none", None, 2),
        ("co.example", "shop.co.example", "none", None, 1),
    ],
)
def test_a_list_of_public_suffixes_may_take_the_place_of_the_walk_DMRC_20a(
    author: str, dkim: str, result: str, where: str | None, asked: int
) -> None:
    # psd means nothing there, and records between the two names are not asked for.
    zone = Zone(at(shop_co_example=f"{REJECT}; psd=y", b_shop_co_example="v=DMARC1; p=none; psd=n"))
    found = verdict(zone, author, dkim=[DkimFact("pass", dkim)], suffixes=LIST)
    assert (found.result, found.policy_domain, len(zone.asked)) == (result, where, asked)
    assert found.discovery == Discovery("psl")


def test_the_walk_is_how_it_is_found_else_DMRC_20a() -> None:
    assert verdict(Zone({}), "example.com").discovery == "treewalk"


@pytest.mark.parametrize("where", ["a_shop_co_example", "shop_co_example"])
def test_without_an_answer_there_is_no_verdict_in_the_older_mode_either_DMRC_13a(where: str) -> None:
    zone = Zone(at(**{where: TROUBLE}))
    assert verdict(zone, "a.shop.co.example", suffixes=LIST).result is DmarcResult.TEMPERROR


# --- words ---


def test_each_verdict_says_why_and_who_can_do_what() -> None:
    zone = Zone(at(example_com=REJECT))
    signatures = [DkimFact("fail", "example.com"), DkimFact("pass", "far.example"), DkimFact("none", "?")]
    found = verdict(zone, "example.com", spf=SpfFact("softfail", "example.com"), dkim=[*signatures, *signatures])
    assert found.reason == (
        "nothing proves example.com: SPF for example.com has the result softfail; "
        "a DKIM signature for example.com has the result fail; "
        "a DKIM signature passes for far.example, which is not aligned; "
        "a DKIM signature has the result none; and 3 more signatures do not, either"
    )
    assert "sign with DKIM as example.com" in found.steps
    assert "there is no DKIM signature" in verdict(zone, "example.com").reason
    passed = verdict(zone, "example.com", dkim=[DkimFact("pass", "a.example.com")])
    assert passed.reason == "a DKIM signature passes for a.example.com, which is aligned with example.com"
    assert passed.steps == ""


_NAMES = st.sampled_from(
    ["com", "example.com", "a.example.com", "b.a.example.com", "evil.com", "x.example", "", "é.com", "a b", "-", "[1]"]
)
_RESULTS = st.sampled_from(["pass", "fail", "none", "temperror", "permerror", "odd"])
_ANSWERS = st.sampled_from(
    [REJECT, POLICIES, "v=DMARC1; psd=y", "v=DMARC1; psd=n; t=y", "v=DMARC1; p=x", [REJECT, REJECT], TROUBLE, "\xff"]
)


@given(
    st.dictionaries(_NAMES.map("_dmarc.{}".format), _ANSWERS),
    st.lists(st.sampled_from(["example.com", "a.example.com", "b.a.example.com", "com"]), unique=True),
    st.builds(SpfFact, _RESULTS, _NAMES),
    st.lists(st.builds(DkimFact, _RESULTS, _NAMES), max_size=6),
    st.booleans(),
)
def test_any_facts_make_verdicts_and_no_name_is_asked_twice(
    records: dict[str, Any], authors: list[str], spf: SpfFact, dkim: list[DkimFact], listed: bool
) -> None:
    zone = Zone(records)
    found = judged(zone, *authors, spf=spf, dkim=dkim, suffixes=LIST if listed else None)
    assert len(zone.asked) == len(set(zone.asked))
    assert len(found.verdicts) == len(authors)
    for one in found.verdicts:
        assert (one.reason + one.steps).isascii()
        assert (one.reason + one.steps).isprintable()
        assert (one.result is DmarcResult.PASS) is (one.spf_aligned or one.dkim_aligned)
        assert len(one.identifiers) == (1 + len(dkim) if one.record else 0)


@given(st.lists(st.text(max_size=60) | st.binary(max_size=40).map(lambda octets: octets.decode("latin-1")), max_size=2))
def test_any_from_fields_name_domains_or_a_fault_DMRC_01(values: list[str]) -> None:
    found = authors_of(*values)
    assert bool(found.domains) is (found.fault is None)
    for domain in found.domains:
        try:
            assert domain_to_ascii(domain, in_address=True) == domain
        except AddressError:
            pytest.fail("it is no domain")


def test_a_resolvers_words_are_made_fit_for_people() -> None:
    zone = Zone(at(example_com=LookupAnswer(DnsOutcome.TROUBLE, text="bad\r\nthing" + "x" * 1000)))
    found = verdict(zone, "example.com")
    assert found.reason.isprintable()
    assert len(found.reason) < 400
