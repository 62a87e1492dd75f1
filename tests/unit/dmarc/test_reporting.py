"""What a report tells of a message that was evaluated (RFC 9990 3.1)."""

from collections.abc import Sequence
from ipaddress import ip_address

import pytest
from unit.dmarc.zone import TROUBLE, Zone, at, judged

from mailrail.core.dkim.verify import DkimOutcome
from mailrail.core.dmarc.disposition import EnforcementRules, dispose
from mailrail.core.dmarc.evaluate import DmarcEvaluation
from mailrail.core.dmarc.facts import DkimFact, SpfFact
from mailrail.core.dmarc.psl import read_list
from mailrail.core.dmarc.report.facts import (
    ReasonType,
    ReportedDisposition,
    ReportedPolicy,
    ReportedReason,
    ReportedSignature,
    ReportedSpf,
    SignatureAlignment,
)
from mailrail.core.dmarc.reporting import ReportableVerdict, reportable
from mailrail.core.spf.result import SpfResult

SOURCE = ip_address("192.0.2.1")
NONE, PASS = ReportedDisposition.NONE, ReportedDisposition.PASS
QUARANTINE, REJECT = ReportedDisposition.QUARANTINE, ReportedDisposition.REJECT


def told(
    evaluation: DmarcEvaluation,
    rules: EnforcementRules = EnforcementRules(),  # noqa: B008 - it is frozen
    exceptions: Sequence[ReportedReason] = (),
    envelope_from: str = "bounce.example.com",
) -> list[ReportableVerdict]:
    disposition = dispose(evaluation, rules, exceptions=exceptions)
    found = reportable(evaluation, disposition, source=SOURCE, envelope_from=envelope_from, envelope_to="home.example")
    return list(found)


def test_a_message_is_told_with_all_its_identifiers() -> None:
    record = "v=DMARC1; p=none; sp=quarantine; np=reject; adkim=s; fo=1:d; t=y; rua=mailto:a@b.example"
    dkim = [
        DkimFact("pass", "a.example.com", "s1"),
        DkimFact("pass", "example.com", "s2"),
        DkimFact("fail", "far.example", "s3", "the body was changed"),
    ]
    spf = SpfFact("pass", "bounce.example.com", "192.0.2.1 is permitted")
    zone = Zone(at(example_com=record), frozenset({"a.example.com"}))
    (found,) = told(judged(zone, "a.example.com", spf=spf, dkim=dkim))
    assert found.policy == ReportedPolicy(
        "example.com", NONE, QUARANTINE, REJECT, strict_dkim=True, fo="1:d", testing=True
    )
    assert found.verdict.record is not None
    assert found.verdict.record.rua == ("mailto:a@b.example",)
    message = found.message
    assert (message.source_ip, message.header_from) == ("192.0.2.1", "a.example.com")
    assert (message.envelope_from, message.envelope_to) == ("bounce.example.com", "home.example")
    assert (message.disposition, message.reasons) == (PASS, ())
    assert (message.dkim_aligned, message.spf_aligned) == (True, True)
    assert message.spf == ReportedSpf("bounce.example.com", SpfResult.PASS, "192.0.2.1 is permitted")
    assert message.signatures == (
        ReportedSignature("a.example.com", "s1", DkimOutcome.PASS, SignatureAlignment.STRICT),
        ReportedSignature("example.com", "s2", DkimOutcome.PASS, SignatureAlignment.NONE),
        ReportedSignature("far.example", "s3", DkimOutcome.FAIL, SignatureAlignment.NONE, "the body was changed"),
    )


def test_relaxed_alignment_is_told_apart_from_equal_names() -> None:
    zone = Zone(at(example_com="v=DMARC1; p=none"))
    (found,) = told(judged(zone, "example.com", dkim=[DkimFact("pass", "a.example.com")]), envelope_from="")
    assert [one.alignment for one in found.message.signatures] == [SignatureAlignment.RELAXED]
    assert found.message.disposition is NONE  # the policy asks for nothing
    assert found.message.spf is None


def test_the_identity_of_a_null_path_is_said_to_be_one() -> None:
    zone = Zone(at(example_com="v=DMARC1; p=none"))
    (found,) = told(judged(zone, "example.com", spf=SpfFact("pass", "mx.example.com")), envelope_from="")
    assert found.message.spf == ReportedSpf("mx.example.com", SpfResult.PASS, null_path=True)
    assert found.message.spf_aligned


@pytest.mark.parametrize(
    ("record", "rules", "exceptions", "disposition", "reasons"),
    [
        ("p=reject", EnforcementRules(), (), REJECT, []),
        ("p=quarantine", EnforcementRules(), (), QUARANTINE, []),
        ("p=none", EnforcementRules(), (), NONE, []),
        ("p=reject; t=y", EnforcementRules(), (), QUARANTINE, ["policy_test_mode"]),
        ("p=reject", EnforcementRules(enforce=False), (), NONE, ["local_policy"]),
        ("p=reject", EnforcementRules(), (ReportedReason(ReasonType.MAILING_LIST),), NONE, ["mailing_list"]),
    ],
)
def test_what_was_done_is_told_with_its_reason_DMRC_10(
    record: str,
    rules: EnforcementRules,
    exceptions: Sequence[ReportedReason],
    disposition: ReportedDisposition,
    reasons: list[str],
) -> None:
    (found,) = told(judged(Zone(at(example_com=f"v=DMARC1; {record}")), "example.com"), rules, exceptions)
    assert found.message.disposition is disposition
    assert [reason.type for reason in found.message.reasons] == reasons


def test_each_author_has_a_report_of_its_own_DMRC_01() -> None:
    zone = Zone(at(a_example="v=DMARC1; p=reject", b_example="v=DMARC1; p=quarantine; t=y", c_example="v=DMARC1"))
    evaluation = judged(zone, "a.example", "b.example", "c.example", "d.example", dkim=[DkimFact("pass", "c.example")])
    a, b, c = told(evaluation)
    assert [one.message.disposition for one in (a, b, c)] == [REJECT, REJECT, REJECT]
    assert [[reason.type for reason in one.message.reasons] for one in (a, b, c)] == [
        [],
        [ReasonType.POLICY_TEST_MODE],
        [ReasonType.LOCAL_POLICY],
    ]
    assert [one.policy.domain for one in (a, b, c)] == ["a.example", "b.example", "c.example"]


def test_what_neither_passed_nor_failed_is_not_told_DMRC_13a() -> None:
    zone = Zone(at(example_com=TROUBLE, other_example="v=DMARC1; p=reject"))
    assert told(judged(zone, "example.com")) == []
    assert told(judged(zone, "other.example", spf=SpfFact("temperror", "other.example"))) == []
    assert told(judged(zone, "none.example")) == []
    deferring = EnforcementRules(defer_on_temperror=True)
    passed = DkimFact("pass", "other.example")
    assert told(judged(zone, "example.com", "other.example", dkim=[passed]), deferring) == [], "it comes again"


def test_the_older_mode_is_told_DMRC_20a() -> None:
    zone = Zone(at(example_com="v=DMARC1; p=none"))
    (found,) = told(judged(zone, "a.example.com", suffixes=read_list(b"com\n")))
    assert found.policy.public_suffix_list
