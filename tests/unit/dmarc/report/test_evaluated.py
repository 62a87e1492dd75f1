"""From an evaluation to the row of a report."""

from ipaddress import ip_address

import pytest
from unit.dmarc.zone import TROUBLE, Zone, at, judged

from mailrail.core.dmarc.disposition import EnforcementRules, dispose
from mailrail.core.dmarc.facts import NO_SPF, DkimFact, SpfFact
from mailrail.core.dmarc.report.evaluated import ReportedEvaluation, reported_evaluations
from mailrail.core.dmarc.report.facts import ReasonType, ReportedDisposition, ReportedPolicy, ReportedReason
from mailrail.core.lookups import LookupAnswer

RUA = "; rua=mailto:r@example.com"


def rows(
    record: str,
    *authors: str,
    spf: SpfFact = NO_SPF,
    dkim: tuple[DkimFact, ...] = (),
    mail_from: str = "bounce.example.com",
    exceptions: tuple[ReportedReason, ...] = (),
    **others: str | list[str] | LookupAnswer,
) -> tuple[ReportedEvaluation, ...]:
    zone = Zone(at(example_com=record, **others))
    evaluation = judged(zone, *(authors or ("example.com",)), spf=spf, dkim=dkim)
    done = dispose(evaluation, EnforcementRules(), exceptions=exceptions)
    return reported_evaluations(
        evaluation, done, client=ip_address("192.0.2.1"), mail_from=mail_from, recipient="mx.test"
    )


def test_a_message_of_a_subdomain_is_a_row_for_the_domain_of_the_record_DAGG_01a() -> None:
    (row,) = rows("v=DMARC1; p=reject; sp=none; np=quarantine; adkim=s; t=y; fo=1" + RUA, "news.example.com")
    assert row.policy == ReportedPolicy(
        "example.com",
        ReportedDisposition.REJECT,
        ReportedDisposition.NONE,
        ReportedDisposition.QUARANTINE,
        strict_dkim=True,
        fo="1",
        testing=True,
    )
    assert (row.message.header_from, row.message.envelope_from, row.message.envelope_to) == (
        "news.example.com",
        "bounce.example.com",
        "mx.test",
    )


def test_a_record_without_rua_has_no_row_DMRC_18a() -> None:
    assert rows("v=DMARC1; p=reject") == ()


@pytest.mark.parametrize(
    ("record", "disposition"),
    [
        ("v=DMARC1; p=reject", ReportedDisposition.PASS),
        ("v=DMARC1; p=reject; t=y", ReportedDisposition.PASS),
        ("v=DMARC1; p=quarantine; t=y", ReportedDisposition.NONE),
        ("v=DMARC1; p=none", ReportedDisposition.NONE),
    ],
)
def test_what_passes_under_a_policy_that_enforces_has_a_word_of_its_own(
    record: str, disposition: ReportedDisposition
) -> None:
    (row,) = rows(record + RUA, spf=SpfFact("pass", "example.com"))
    assert (row.message.disposition, row.message.spf_aligned, row.message.dkim_aligned) == (disposition, True, False)
    assert row.message.reasons == ()


def test_what_fails_is_told_with_what_was_done_DAGG_04() -> None:
    (row,) = rows("v=DMARC1; p=reject" + RUA)
    assert (row.message.disposition, row.message.reasons) == (ReportedDisposition.REJECT, ())


def test_a_forwarder_that_is_trusted_is_the_reason_DAGG_04() -> None:
    reason = ReportedReason(ReasonType.TRUSTED_FORWARDER, "lists.example")
    (row,) = rows("v=DMARC1; p=reject" + RUA, exceptions=(reason,))
    assert (row.message.disposition, row.message.reasons) == (ReportedDisposition.NONE, (reason,))


def test_a_policy_that_is_tested_is_the_reason_DAGG_04() -> None:
    (row,) = rows("v=DMARC1; p=quarantine; t=y" + RUA)
    assert [each.type for each in row.message.reasons] == [ReasonType.POLICY_TEST_MODE]


def test_signatures_are_told_in_the_order_of_their_worth_DAGG_05() -> None:
    signatures = (
        DkimFact("fail", "example.com", "a"),
        DkimFact("pass", "esp.example", "b"),
        DkimFact("pass", "mail.example.com", "c"),
        DkimFact("pass", "example.com", "d"),
        DkimFact("none", "example.com", "e"),
    )
    (row,) = rows("v=DMARC1; p=reject" + RUA, dkim=signatures)
    assert [each.selector for each in row.message.signatures] == ["d", "c", "b", "a"]
    assert row.message.dkim_aligned


def test_the_spf_identity_of_a_null_path_is_that_of_HELO() -> None:
    (row,) = rows("v=DMARC1; p=none" + RUA, spf=SpfFact("pass", "mx.example.com"), mail_from="")
    assert row.message.spf is not None
    assert (row.message.spf.domain, row.message.spf.null_path, row.message.envelope_from) == (
        "mx.example.com",
        True,
        "",
    )
    assert rows("v=DMARC1; p=none" + RUA)[0].message.spf is None


def test_a_message_that_the_dns_was_silent_about_is_told_as_let_through() -> None:
    spf = SpfFact("temperror", "example.com")
    (row,) = rows("v=DMARC1; p=reject" + RUA, spf=spf)
    assert row.message.disposition is ReportedDisposition.NONE
    assert [each.type for each in row.message.reasons] == [ReasonType.OTHER]
    assert rows("v=DMARC1; p=reject" + RUA, "other.example", other_example=TROUBLE) == ()


def test_each_author_domain_has_its_row_and_the_one_that_did_not_decide_says_so() -> None:
    found = rows(
        "v=DMARC1; p=reject" + RUA,
        "example.com",
        "example.net",
        spf=SpfFact("pass", "example.net"),
        example_net="v=DMARC1; p=none; rua=mailto:r@example.net",
    )
    assert [(row.policy.domain, row.message.disposition) for row in found] == [
        ("example.com", ReportedDisposition.REJECT),
        ("example.net", ReportedDisposition.REJECT),
    ]
    assert [[each.type for each in row.message.reasons] for row in found] == [[], [ReasonType.LOCAL_POLICY]]
