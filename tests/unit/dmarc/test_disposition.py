"""What is done by a DMARC verdict, and what a report says of it (RFC 9989 5.4)."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.dmarc.zone import TROUBLE, Zone, at, judged

from mailrail.core.dmarc.disposition import (
    NOTHING,
    DmarcAction,
    DmarcDisposition,
    EnforcementRules,
    dispose,
    trusted_forwarder,
)
from mailrail.core.dmarc.evaluate import DmarcEvaluation, DmarcResult
from mailrail.core.dmarc.facts import ArcFact, DkimFact, SealFact, SpfFact
from mailrail.core.dmarc.record import DmarcPolicy
from mailrail.core.dmarc.report.facts import ReasonType, ReportedReason

ENFORCING = EnforcementRules(trusted_sealers=frozenset({"lists.example", "xn--bcher-kva.example"}))
LIST = ReportedReason(ReasonType.MAILING_LIST, "list users@lists.example")


def of(record: str, *, author: str = "example.com") -> DmarcEvaluation:
    """A message that nothing proves."""
    return judged(Zone(at(example_com=record)), author)


def arc(*sets: tuple[str, str], result: str = "pass") -> ArcFact:
    """A chain of sealers and of what they saw of DMARC, newest first."""
    numbered = zip(range(len(sets), 0, -1), sets, strict=True)
    return ArcFact(result, tuple(SealFact(number, sealer, f"s{number}", dmarc) for number, (sealer, dmarc) in numbered))


def test_a_policy_is_applied_as_it_asks() -> None:
    found = dispose(of("v=DMARC1; p=quarantine"), ENFORCING)
    assert found == DmarcDisposition(DmarcAction.QUARANTINE, DmarcPolicy.QUARANTINE)
    found = dispose(of("v=DMARC1; p=reject"), ENFORCING)
    assert (found.action, found.applied, found.reasons) == (DmarcAction.REJECT, DmarcPolicy.REJECT, ())


def test_a_refusal_says_that_it_is_dmarc_and_whose_policy_DMRC_15a() -> None:
    reply = dispose(of("v=DMARC1; p=reject", author="a.example.com"), ENFORCING).reply
    assert reply is not None
    assert (reply.code, reply.lines) == (
        550,
        (
            "5.7.1 rejected by the DMARC policy of example.com:",
            "5.7.1 neither SPF nor DKIM proves that it comes from a.example.com",
        ),
    )


def test_lines_of_a_refusal_have_room_for_any_name_DMRC_15a() -> None:
    author = ".".join(["a" * 60] * 3) + ".example.com"
    reply = dispose(of("v=DMARC1; p=reject", author=author), ENFORCING).reply
    assert reply is not None
    assert all(len(f"550-{line}\r\n") <= 512 for line in reply.lines)


def test_p_none_changes_nothing_in_handling_DMRC_14() -> None:
    """It is as if there were no record, whatever else is set."""
    for record in ("v=DMARC1; p=none", "v=DMARC1; p=none; t=y; rua=mailto:a@b.example", "v=spf1 -all"):
        for rules in (ENFORCING, EnforcementRules(enforce=False)):
            assert dispose(of(record), rules, arc=arc(("lists.example", "pass")), exceptions=[LIST]) is NOTHING
    assert dispose(judged(Zone({})), ENFORCING) is NOTHING
    assert DmarcDisposition(DmarcAction.ACCEPT, DmarcPolicy.NONE, (), None) == NOTHING


def test_what_passes_is_accepted() -> None:
    zone = Zone(at(example_com="v=DMARC1; p=reject"))
    assert dispose(judged(zone, "example.com", spf=SpfFact("pass", "example.com")), ENFORCING) is NOTHING


def test_a_test_is_reported_as_one_DMRC_10() -> None:
    found = dispose(of("v=DMARC1; p=reject; t=y"), ENFORCING)
    assert (found.action, found.applied) == (DmarcAction.QUARANTINE, DmarcPolicy.QUARANTINE)
    assert [reason.type for reason in found.reasons] == [ReasonType.POLICY_TEST_MODE]
    found = dispose(of("v=DMARC1; p=quarantine; t=y"), ENFORCING)
    assert (found.action, found.applied) == (DmarcAction.ACCEPT, DmarcPolicy.NONE)
    assert [reason.type for reason in found.reasons] == [ReasonType.POLICY_TEST_MODE]
    assert dispose(of("v=DMARC1; p=none; t=y"), ENFORCING).reasons == ()


def test_without_an_answer_of_the_dns_a_message_is_never_refused_for_good_DMRC_13a() -> None:
    evaluation = judged(Zone(at(example_com=TROUBLE)), "example.com")
    assert dispose(evaluation, ENFORCING) is NOTHING
    found = dispose(evaluation, EnforcementRules(defer_on_temperror=True))
    assert (found.action, found.applied) == (DmarcAction.DEFER, DmarcPolicy.NONE)
    assert found.reply is not None
    assert (found.reply.code, found.reply.lines[0][:5]) == (451, "4.7.1")
    assert dispose(evaluation, EnforcementRules(enforce=False, defer_on_temperror=True)) is NOTHING


@pytest.mark.parametrize(
    "type",
    [
        ReasonType.LOCAL_POLICY,
        ReasonType.MAILING_LIST,
        ReasonType.OTHER,
        ReasonType.TRUSTED_FORWARDER,
    ],
)
@pytest.mark.parametrize("policy", ["quarantine", "reject"])
def test_what_is_known_here_overrides_the_policy_and_is_reported_DMRC_16(type: ReasonType, policy: str) -> None:
    reason = ReportedReason(type, "why")
    found = dispose(of(f"v=DMARC1; p={policy}"), ENFORCING, exceptions=[reason, LIST])
    assert found == DmarcDisposition(DmarcAction.ACCEPT, DmarcPolicy.NONE, (reason,))


def test_an_override_stands_beside_a_test_DMRC_16() -> None:
    found = dispose(of("v=DMARC1; p=reject; t=y"), ENFORCING, exceptions=[LIST])
    assert [reason.type for reason in found.reasons] == [ReasonType.POLICY_TEST_MODE, ReasonType.MAILING_LIST]
    assert found.action is DmarcAction.ACCEPT


def test_where_policies_are_only_observed_that_is_the_reason_DMRC_16() -> None:
    found = dispose(of("v=DMARC1; p=reject"), EnforcementRules(enforce=False))
    assert (found.action, found.applied) == (DmarcAction.ACCEPT, DmarcPolicy.NONE)
    assert [reason.type for reason in found.reasons] == [ReasonType.LOCAL_POLICY]


@pytest.mark.parametrize(
    ("chain", "accepted"),
    [
        (arc(("lists.example", "pass")), True),
        (arc(("Lists.Example", "pass")), True),
        (arc(("bücher.example", "fail"), ("lists.example", "pass")), True),
        (arc(("lists.example", "pass"), ("evil.example", "fail")), True),
        (arc(("lists.example", "fail"), ("evil.example", "pass")), False),
        (arc(("evil.example", "pass"), ("lists.example", "pass")), False),
        (arc(("lists.example", "fail")), False),
        (arc(("lists.example", "")), False),
        (arc(("sub.lists.example", "pass")), False),
        (arc(("lists.example", "pass"), result="fail"), False),
        (arc(("lists.example", "pass"), result="none"), False),
        (arc(), False),
    ],
)
def test_a_trusted_sealer_who_saw_it_pass_is_believed_DMRC_16(chain: ArcFact, accepted: bool) -> None:
    """Whoever sealed later could have written what earlier sets say."""
    found = dispose(of("v=DMARC1; p=reject"), ENFORCING, arc=chain)
    assert (found.action is DmarcAction.ACCEPT) is accepted
    assert dispose(of("v=DMARC1; p=reject"), EnforcementRules(), arc=chain).action is DmarcAction.REJECT


def test_a_chain_is_reported_as_its_rfc_wants_DMRC_16() -> None:
    chain = arc(("lists.example", "fail"), ("lists.example", "pass"))
    (reason,) = dispose(of("v=DMARC1; p=reject"), ENFORCING, arc=chain).reasons
    assert reason == ReportedReason(
        ReasonType.LOCAL_POLICY, "arc=pass as[2].d=lists.example as[2].s=s2 as[1].d=lists.example as[1].s=s1"
    )


@pytest.mark.parametrize(
    ("entries", "client", "proven", "entry"),
    [
        (["192.0.2.0/24"], "192.0.2.7", [], "192.0.2.0/24"),
        (["192.0.2.7"], "::ffff:192.0.2.7", [], "192.0.2.7"),
        (["2001:db8::/32"], "2001:db8::1", [], "2001:db8::/32"),
        (["192.0.2.0/24", "2001:db8::/32"], "198.51.100.1", ["192.0.2.1"], None),
        (["forwarder.example"], "198.51.100.1", ["forwarder.example"], "forwarder.example"),
        (["Forwarder.Example"], "198.51.100.1", ["srs.forwarder.example"], "Forwarder.Example"),
        (["forwarder.example"], "198.51.100.1", ["notforwarder.example", "", "example"], None),
        (["", "-", "a b"], "198.51.100.1", ["", "-", "a b"], None),
        ([], "198.51.100.1", ["forwarder.example"], None),
    ],
)
def test_a_forwarder_is_known_by_its_network_or_by_what_it_proves_DMRC_16(
    entries: list[str], client: str, proven: list[str], entry: str | None
) -> None:
    found = trusted_forwarder(entries, ip_address(client), proven)
    assert (found.type if found else None) == (ReasonType.TRUSTED_FORWARDER if entry else None)
    if found is not None:
        assert str(entry) in found.comment
        assert dispose(of("v=DMARC1; p=reject"), ENFORCING, exceptions=[found]).action is DmarcAction.ACCEPT


_SETS = st.tuples(st.sampled_from(["lists.example", "evil.example", ""]), st.sampled_from(["pass", "fail", ""]))


@given(
    st.sampled_from(["v=DMARC1", "v=DMARC1; p=reject", "v=DMARC1; p=quarantine; t=y", "v=DMARC1; p=reject; t=y"]),
    st.booleans(),
    st.lists(_SETS, max_size=4).map(lambda sets: arc(*sets)),
    st.lists(st.builds(ReportedReason, st.sampled_from(ReasonType), st.text(max_size=5)), max_size=2),
    st.lists(st.builds(DkimFact, st.sampled_from(["pass", "temperror", "fail"]), st.just("example.com")), max_size=2),
)
def test_a_report_can_say_why_a_disposition_is_not_the_policy_DMRC_16(
    record: str, enforce: bool, chain: ArcFact, exceptions: list[ReportedReason], dkim: list[DkimFact]
) -> None:
    evaluation = judged(Zone(at(example_com=record)), "example.com", dkim=dkim)
    found = dispose(evaluation, EnforcementRules(enforce=enforce), arc=chain, exceptions=exceptions)
    assert evaluation.decisive is not None
    if evaluation.result is DmarcResult.FAIL:
        assert bool(found.reasons) is (found.applied is not evaluation.decisive.policy)
    else:
        assert found is NOTHING
    assert (found.reply is not None) is (found.action is DmarcAction.REJECT)
