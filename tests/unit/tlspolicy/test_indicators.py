"""The five indicators of a domain, and when REQUIRETLS is selected by itself (BAR-01a, BAR-02, BAR-08a)."""

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.outbound.learned import LearnedDomain, Offered
from mailrail.core.tlspolicy.facts import DnsFacts, StsPolicy, Tlsa
from mailrail.core.tlspolicy.indicators import (
    DomainSecurity,
    Indicator,
    KnownHosts,
    KnownPolicy,
    Light,
    LookupFailure,
    RecipientPath,
    RecipientWay,
    domain_security,
    obstacle,
    selection,
)

YES, NO, UNKNOWN, ERROR = Light
THEN, NOW = 1000.0, 2000.0
BROKEN = LookupFailure("SERVFAIL", NOW)
NO_POLICY = KnownPolicy(StsPolicy.ABSENT, NOW)
SECURE = DnsFacts(True, True, True)
HOSTS = KnownHosts(NOW, trusted=True, secure=True, host="mx.example.org", dns=SECURE)


def learned(starttls: bool, require_tls: bool) -> LearnedDomain:
    return LearnedDomain("example.org", "", Offered(starttls, require_tls), THEN)


@pytest.mark.parametrize(
    ("known", "starttls", "require_tls", "seen"),
    [
        (learned(True, True), YES, YES, THEN),
        (learned(True, False), YES, NO, THEN),
        (learned(False, False), NO, NO, THEN),
        (None, UNKNOWN, UNKNOWN, None),
        (BROKEN, ERROR, ERROR, NOW),
    ],
)
def test_starttls_and_requiretls_are_those_of_the_last_session(
    known: LearnedDomain | LookupFailure | None, starttls: Light, require_tls: Light, seen: float | None
) -> None:
    """BAR-01a."""
    found = domain_security(known, NO_POLICY, HOSTS)
    assert (found.starttls.light, found.require_tls.light) == (starttls, require_tls)
    assert found.starttls.seen == found.require_tls.seen == seen


@pytest.mark.parametrize(
    ("policy", "light"),
    [
        (KnownPolicy(StsPolicy.ENFORCE, THEN), YES),
        (KnownPolicy(StsPolicy.TESTING, THEN), NO),
        (KnownPolicy(StsPolicy.NONE, THEN), NO),
        (KnownPolicy(StsPolicy.ABSENT, THEN), NO),
        (KnownPolicy(StsPolicy.ABSENT, THEN, "it answered with status 404"), ERROR),
        (KnownPolicy(StsPolicy.UNKNOWN, THEN), ERROR),
        (LookupFailure("the database does not answer", THEN), ERROR),
    ],
)
def test_mta_sts_is_yes_for_mode_enforce_alone(policy: KnownPolicy | LookupFailure, light: Light) -> None:
    """BAR-01a."""
    found = domain_security(None, policy, HOSTS).mta_sts
    assert (found.light, found.seen) == (light, THEN)


@pytest.mark.parametrize(
    ("hosts", "dnssec", "dane"),
    [
        (BROKEN, ERROR, UNKNOWN),
        (replace(HOSTS, trusted=False), UNKNOWN, UNKNOWN),
        (replace(HOSTS, secure=False), NO, NO),
        (replace(HOSTS, host="", dns=None), YES, UNKNOWN),
        (replace(HOSTS, dns=None), YES, UNKNOWN),
        (replace(HOSTS, dns=BROKEN), YES, ERROR),
        (replace(HOSTS, dns=replace(SECURE, address_secure=False, tlsa=Tlsa.USABLE)), YES, NO),
        (replace(HOSTS, dns=replace(SECURE, tlsa=Tlsa.FAILED)), YES, ERROR),
        (HOSTS, YES, NO),
        (replace(HOSTS, dns=replace(SECURE, tlsa=Tlsa.USABLE)), YES, YES),
    ],
)
def test_dnssec_and_dane_are_what_a_trusted_resolver_says(
    hosts: KnownHosts | LookupFailure, dnssec: Light, dane: Light
) -> None:
    """BAR-01a."""
    found = domain_security(None, NO_POLICY, hosts)
    assert (found.dnssec.light, found.dane.light) == (dnssec, dane)


def test_records_that_cannot_be_used_are_no_dane() -> None:
    """BAR-02: they satisfy nothing."""
    why = ("1 1 1 ab: certificate usage 1 is not used for SMTP",)
    known = replace(HOSTS, dns=replace(SECURE, tlsa=Tlsa.UNUSABLE, ignored=why))
    found = domain_security(None, NO_POLICY, known).dane
    assert (found.light, "none of them usable" in found.sentence, found.details) == (NO, True, why)


def test_records_that_do_not_count_are_told_beside_those_that_do() -> None:
    dns = replace(SECURE, tlsa=Tlsa.USABLE, matching="set", ignored=("3 1 2 cd: too old",))
    found = domain_security(None, NO_POLICY, replace(HOSTS, dns=dns, records=("3 1 1 ab",))).dane
    assert (found.light, found.details) == (YES, ("3 1 1 ab", "not counted: 3 1 2 cd: too old"))


def test_what_cannot_be_found_out_of_one_leaves_the_others_as_they_are() -> None:
    """BAR-01a."""
    found = domain_security(BROKEN, KnownPolicy(StsPolicy.ENFORCE, NOW), BROKEN)
    assert [(name, each.light) for name, each in found.each()] == [
        ("starttls", ERROR),
        ("mta_sts", YES),
        ("dnssec", ERROR),
        ("dane", UNKNOWN),
        ("require_tls", ERROR),
    ]
    assert all(each.sentence for _, each in found.each())


def security(mta_sts: Light, dane: Light, require_tls: Light) -> DomainSecurity:
    of = {light: Indicator(light, f"it is {light}", NOW) for light in Light}
    return DomainSecurity(of[YES], of[mta_sts], of[YES], of[dane], of[require_tls])


ALL = [security(*lights) for lights in product(Light, repeat=3)]


@pytest.mark.parametrize("known", ALL)
def test_a_direct_recipient_is_able_with_requiretls_and_a_proof(known: DomainSecurity) -> None:
    """BAR-08a, each row of its truth table."""
    able = known.require_tls.light is YES and YES in (known.mta_sts.light, known.dane.light)
    way = RecipientWay("b@example.org", RecipientPath.DIRECT, known)
    assert (obstacle(way) is None) is able
    assert selection([way], answers_list=False).require_tls is able


@pytest.mark.parametrize("known", ALL)
@pytest.mark.parametrize("verified", [True, False])
def test_a_transport_needs_a_verified_host_that_offered_it(known: DomainSecurity, verified: bool) -> None:
    """BAR-08a: the MX of the domain is not where the mail goes."""
    way = RecipientWay("b@example.org", RecipientPath.TRANSPORT, known, verified)
    assert (obstacle(way) is None) is (verified and known.require_tls.light is YES)


@pytest.mark.parametrize(
    ("way", "able"),
    [
        (RecipientWay("b@here.example", RecipientPath.MAILBOX), True),
        (RecipientWay("b@here.example", RecipientPath.MAILBOX, valid=False), False),
        (RecipientWay("b@example.org", RecipientPath.DIRECT), False),
        (RecipientWay("b@example.org", RecipientPath.OTHER, security(YES, YES, YES), verified=True), False),
        (RecipientWay("b@example.org", RecipientPath.DIRECT, security(YES, YES, YES), valid=False), False),
    ],
)
def test_what_is_pending_or_refused_is_not_able(way: RecipientWay, able: bool) -> None:
    """BAR-08a."""
    assert (obstacle(way) is None) is able


def test_without_a_recipient_and_to_a_list_it_is_never_selected() -> None:
    """BAR-08a."""
    good = RecipientWay("b@example.org", RecipientPath.DIRECT, security(YES, NO, YES))
    assert selection([good], answers_list=False).require_tls
    assert not selection([], answers_list=False).require_tls
    assert not selection([good], answers_list=True).require_tls


ways = st.builds(
    RecipientWay,
    st.just("b@example.org"),
    st.sampled_from(RecipientPath),
    st.none() | st.sampled_from(ALL),
    *[st.booleans()] * 2,
)


@given(st.lists(ways, max_size=5), ways)
def test_a_further_recipient_never_makes_it_be_selected(some: list[RecipientWay], more: RecipientWay) -> None:
    """BAR-08a: one who is not able is enough, and each is named."""
    before, after = selection(some, answers_list=False), selection([*some, more], answers_list=False)
    if some:
        assert after.require_tls <= before.require_tls
    assert after.require_tls == (not after.reasons)
    assert len(after.reasons) == sum(obstacle(way) is not None for way in [*some, more])
