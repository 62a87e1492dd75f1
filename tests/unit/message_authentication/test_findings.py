"""What is kept with a message of the verdict about who sent it."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.message_authentication.scene import ELSEWHERE, MESSAGE, SEALERS, Scene, signed

from mailrail.core.dkim.verify import DkimOutcome, DkimResult
from mailrail.core.dmarc.disposition import DmarcAction
from mailrail.core.message_authentication.findings import (
    REASON_LIMIT,
    SIGNATURES_KEPT,
    AuthenticationFindings,
    findings_of,
)
from mailrail.core.message_authentication.verdict import AuthenticationRules
from mailrail_ingress.findings import findings_pb

from testkit.signed_mail import sealed


def results(found: AuthenticationFindings) -> list[tuple[str, ...]]:
    return [(each.method, each.identity, each.result, each.domain) for each in found.results]


def test_each_check_is_kept_in_its_order_with_its_result_and_its_reason() -> None:
    found = findings_of(Scene().judged())
    assert results(found) == [
        ("iprev", "", "pass", "mail.example.com"),
        ("spf", "helo", "pass", "mail.example.com"),
        ("spf", "mfrom", "pass", "example.com"),
        ("dkim", "", "pass", "example.com"),
        ("dmarc", "", "pass", "example.com"),
    ]
    assert all(each.reason for each in found.results)
    assert found.results[3].selector == "sel"
    assert found.author_domains == ("example.com",)
    assert (found.action, found.policy_domain, found.policy, found.applied) == (
        DmarcAction.ACCEPT,
        "example.com",
        "reject",
        "none",
    )
    assert (found.overrides, found.signatures_left_out) == ((), 0)


def test_a_policy_that_was_applied_is_kept_with_the_action() -> None:
    scene = Scene(message=MESSAGE, client=ELSEWHERE)
    scene.dns._records.pop("_dmarc.example.com", None)
    scene.dns.add("_dmarc.example.com", "TXT", "v=DMARC1; p=quarantine")
    found = findings_of(scene.judged())
    assert (found.action, found.policy, found.applied) == (DmarcAction.QUARANTINE, "quarantine", "quarantine")


def test_an_override_is_kept_with_its_reason() -> None:
    rules = AuthenticationRules("mx.here.example", trusted_forwarders=(f"{ELSEWHERE}/32",))
    found = findings_of(Scene(message=MESSAGE, client=ELSEWHERE, rules=rules).judged())
    assert (found.action, found.policy, found.applied) == (DmarcAction.ACCEPT, "reject", "none")
    (override,) = found.overrides
    assert override.type == "trusted_forwarder"
    assert ELSEWHERE in override.comment


def test_a_chain_is_kept_under_its_newest_sealer() -> None:
    message = sealed(MESSAGE, 1, domain="lists.example", results="dmarc=pass header.from=example.com")
    scene = Scene(message=message, client=ELSEWHERE, rules=AuthenticationRules("mx.here.example", SEALERS))
    assert [each.method for each in findings_of(scene.judged()).results].count("arc") == 1


def test_where_no_record_is_no_policy_is_named() -> None:
    scene = Scene()
    scene.dns._records.pop("_dmarc.example.com", None)
    found = findings_of(scene.judged())
    assert (found.policy_domain, found.policy, found.applied) == ("", "", "")
    assert ("dmarc", "", "none", "example.com") in results(found)


def test_a_signature_that_passes_is_kept_whatever_stands_above_it() -> None:
    verdict = Scene().judged()
    bad = DkimResult(DkimOutcome.FAIL, "the body was changed", "example.org", "s")
    found = findings_of(replace(verdict, dkim=(*[bad] * 15, *verdict.dkim)))
    kept = [each for each in found.results if each.method == "dkim"]
    assert [each.result for each in kept] == ["pass"] + ["fail"] * (SIGNATURES_KEPT - 1)
    assert found.signatures_left_out == 16 - SIGNATURES_KEPT


@given(st.text(max_size=2000), st.text(max_size=400), st.integers(0, 60))
@settings(deadline=None, max_examples=50)
def test_whatever_strangers_wrote_is_bounded_and_printable_and_can_be_stored(text: str, name: str, count: int) -> None:
    verdict = Scene().judged()
    bad = DkimResult(DkimOutcome.FAIL, text, name, name)
    found = findings_of(replace(verdict, dkim=(bad,) * count))
    for each in found.results:
        assert len(each.reason) <= REASON_LIMIT
        assert all(c not in each.reason + each.domain + each.selector for c in "\r\n\x00\x1b")
    stored = findings_pb(found)
    assert type(stored).FromString(stored.SerializeToString()) == stored


def test_the_most_that_is_kept_is_some_kilobytes() -> None:
    verdict = Scene().judged()
    bad = DkimResult(DkimOutcome.FAIL, "r" * 10_000, "d" * 1000, "s" * 1000)
    record = findings_pb(findings_of(replace(verdict, dkim=(bad,) * 500)))
    assert record.signatures_left_out == 500 - SIGNATURES_KEPT
    assert len(record.SerializeToString()) < 8192


@pytest.mark.parametrize("message", [b"Subject: x\r\n\r\nno author\r\n", signed() + b"changed\r\n", b""])
def test_a_message_without_an_author_or_with_a_broken_signature_has_findings_too(message: bytes) -> None:
    found = findings_pb(findings_of(Scene(message=message).judged()))
    assert found.action
    assert [each.method for each in found.results][:3] == ["iprev", "spf", "spf"]
