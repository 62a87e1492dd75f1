"""What a host needs of TLS: what the transport says, and what was there before policies (design 5 and 7).

The whole table is in test_table.py, what holds for every input in test_properties.py.
"""

from dataclasses import replace

import pytest

from mailrail.core.revision.revision import TlsMode
from mailrail.core.smtp.reply import EnhancedCode
from mailrail.core.tlspolicy.decision import (
    Cause,
    Hop,
    Proven,
    Refusal,
    Requirement,
    TlsDecision,
    decide,
    lacks,
)
from mailrail.core.tlspolicy.facts import DnsFacts, StsFacts, StsPolicy, Tlsa

HOST = "mx.example.org"


@pytest.mark.parametrize(
    ("configured", "implicit", "credentials", "mode", "name", "plaintext"),
    [
        (None, False, False, TlsMode.OPPORTUNISTIC, None, True),
        (TlsMode.NONE, False, False, TlsMode.NONE, None, True),
        (TlsMode.OPPORTUNISTIC, False, False, TlsMode.OPPORTUNISTIC, None, True),
        (TlsMode.OPPORTUNISTIC, True, False, TlsMode.OPPORTUNISTIC, None, False),
        (TlsMode.REQUIRED, False, False, TlsMode.REQUIRED, None, False),
        (TlsMode.VERIFIED, False, False, TlsMode.VERIFIED, HOST, False),
        (TlsMode.VERIFIED, True, True, TlsMode.VERIFIED, HOST, False),
        (TlsMode.NONE, False, True, TlsMode.VERIFIED, HOST, False),
        (TlsMode.OPPORTUNISTIC, False, True, TlsMode.VERIFIED, HOST, False),
        (TlsMode.REQUIRED, True, True, TlsMode.VERIFIED, HOST, False),
    ],
)
def test_what_the_transport_says_decides_where_nothing_else_speaks_TLS_07_and_TLS_08(
    configured: TlsMode | None, implicit: bool, credentials: bool, mode: TlsMode, name: str | None, plaintext: bool
) -> None:
    """TLS-07, TLS-08."""
    decision = decide(Hop(HOST, configured, implicit, credentials))
    assert (decision.mode, decision.verify_name, decision.plaintext_may_follow) == (mode, name, plaintext)
    assert decision.refusal is None
    assert decision.reason


@pytest.mark.parametrize("configured", [None, *TlsMode])
def test_a_message_that_requires_tls_is_never_sent_over_less(configured: TlsMode | None) -> None:
    decision = decide(Hop(HOST, configured, requirement=Requirement.REQUIRED))
    assert (decision.refusal is None) == (configured is TlsMode.VERIFIED)
    assert not decision.plaintext_may_follow


@pytest.mark.parametrize("configured", list(TlsMode))
@pytest.mark.parametrize("credentials", [False, True])
def test_tls_required_no_weakens_nothing_that_the_transport_demands(configured: TlsMode, credentials: bool) -> None:
    default = decide(Hop(HOST, configured, carries_credentials=credentials))
    leave = decide(Hop(HOST, configured, carries_credentials=credentials, requirement=Requirement.NO))
    assert (leave.mode, leave.verify_name, leave.plaintext_may_follow, leave.refusal) == (
        default.mode,
        default.verify_name,
        default.plaintext_may_follow,
        None,
    )


def test_who_gets_required_mail_back_hears_what_is_wrong_with_the_policy_that_could_have_proven_the_host() -> None:
    sts = StsFacts(domain="a.test", trouble="its policy has no mx")
    refusal = decide(Hop(HOST, None, requirement=Requirement.REQUIRED, sts=sts)).refusal
    assert refusal is not None
    assert "to be the destination's MX (MTA-STS: its policy has no mx)" in refusal.words


_SECURE = DnsFacts(True, True, True)


@pytest.mark.parametrize(
    ("sts", "dns", "words"),
    [
        (
            StsFacts(domain="a.test", trouble="it has no id"),
            _SECURE,
            "a.test counts as one without MTA-STS policy: it has",
        ),
        (
            StsFacts(StsPolicy.ENFORCE, True, "a.test", "no answer"),
            _SECURE,
            "of a.test that is cached holds on: no answer",
        ),
        (StsFacts(StsPolicy.UNKNOWN, False, "a.test", "SERVFAIL"), _SECURE, "policy, and none is cached: SERVFAIL"),
        (
            StsFacts(),
            replace(_SECURE, tlsa=Tlsa.UNUSABLE, ignored=("1 1 1 ab: no",)),
            "not counted: 1 1 1 ab: no",
        ),
    ],
)
def test_what_is_wrong_with_what_a_domain_publishes_is_told(sts: StsFacts, dns: DnsFacts, words: str) -> None:
    decision = decide(Hop(HOST, None, sts=sts, dns=dns))
    assert words in (decision.refusal.words if decision.refusal is not None else decision.reason)


@pytest.mark.parametrize(
    ("mode", "proven", "accepted"),
    [
        (TlsMode.NONE, Proven(False, None), True),
        (TlsMode.OPPORTUNISTIC, Proven(False, None), True),
        (TlsMode.REQUIRED, Proven(False, None), False),
        (TlsMode.REQUIRED, Proven(True, None), True),
        (TlsMode.VERIFIED, Proven(True, None), False),
        (TlsMode.VERIFIED, Proven(True, "other.example"), False),
        (TlsMode.VERIFIED, Proven(False, HOST), False),
        (TlsMode.VERIFIED, Proven(True, HOST), True),
    ],
)
def test_a_connection_is_used_again_only_if_it_has_shown_enough(mode: TlsMode, proven: Proven, accepted: bool) -> None:
    name = HOST if mode is TlsMode.VERIFIED else None
    assert (lacks(TlsDecision(mode, False, name, False, "because"), proven) is None) is accepted
    refusal = Refusal(Cause.NO_PROOF, EnhancedCode(5, 7, 10), "no")
    assert lacks(TlsDecision(mode, False, name, False, "because", refusal), proven) is refusal


def test_a_decision_that_names_no_records_is_matched_by_no_connection() -> None:
    """An empty text on both sides must not count as a match."""
    decision = TlsDecision(TlsMode.VERIFIED, False, None, False, "because", verify_matching="")
    assert lacks(decision, Proven(True, HOST, matched=""))
    undecided = TlsDecision(TlsMode.VERIFIED, False, None, False, "because")
    assert lacks(undecided, Proven(True, HOST, matched="set"))
