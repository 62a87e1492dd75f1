"""What holds of the TLS decision for every input: nothing that fails, and nothing that is added, ever weakens it."""

from collections.abc import Iterable
from dataclasses import replace
from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.revision.revision import Otherwise, Security, TlsMinimum, TlsMode, TlsProof, Unanswered
from mailrail.core.tlspolicy.decision import (
    Cause,
    Hop,
    Proven,
    Purpose,
    Requirement,
    RequireTls,
    decide,
    ignored_by,
    lacks,
)
from mailrail.core.tlspolicy.demands import Demand, add_up
from mailrail.core.tlspolicy.facts import DnsFacts, StsFacts, StsPolicy, Tlsa

HOST = "mx.example.org"
SHOWN = frozenset(
    Proven(encrypted, name, matched)
    for encrypted, name, matched in product((False, True), (None, HOST, "other"), ("", "set"))
    if encrypted or (name is None and not matched)
)
"""All that a connection can show."""
PLAIN = Proven(False, None)

securities = st.builds(
    Security,
    st.sampled_from(TlsMinimum),
    st.sets(st.sampled_from(TlsProof)).map(lambda some: tuple(sorted(some, key=list(TlsProof).index))),
    st.sampled_from(Otherwise),
    st.sampled_from([None, *Unanswered]),
)
demands = st.lists(
    st.builds(Demand, st.sampled_from(["the gateway", "the domain", "the rule"]), securities), max_size=3
)
sts_facts = st.builds(StsFacts, st.sampled_from(StsPolicy), st.booleans(), st.just("example.org"))
dns_facts = st.builds(
    DnsFacts, st.booleans(), st.booleans(), st.booleans(), st.sampled_from(Tlsa), st.just("set")
)  # fmt: skip
hops = st.builds(
    Hop,
    host=st.sampled_from([HOST, HOST, HOST, "192.0.2.1", "[IPv6:2001:db8::1]"]),
    configured=st.sampled_from([None, None, *TlsMode]),
    implicit=st.booleans(),
    carries_credentials=st.booleans(),
    requirement=st.sampled_from(Requirement),
    redacted=st.booleans(),
    purpose=st.sampled_from(Purpose),
    sts=sts_facts,
    dns=dns_facts,
    demanded=demands.map(add_up),
    final=st.booleans(),
    loopback=st.booleans(),
)


def accepted(hop: Hop) -> frozenset[Proven]:
    """What a message may go over; what it may go over after TLS failed is in it."""
    decision = decide(hop)
    found = {shown for shown in SHOWN if lacks(decision, shown) is None}
    if decision.plaintext_may_follow:
        found.add(PLAIN)
    return frozenset(found)


def named(states: Iterable[Proven]) -> frozenset[Proven]:
    """Those with a certificate that is valid for the host."""
    return frozenset(shown for shown in states if shown.encrypted and shown.verified_name == HOST)


def matched(states: Iterable[Proven]) -> frozenset[Proven]:
    """Those with a certificate that matches the TLSA records."""
    return frozenset(shown for shown in states if shown.encrypted and shown.matched == "set")


def strict(hop: Hop) -> bool:
    """The message requires TLS."""
    return hop.requirement is Requirement.REQUIRED and not hop.redacted


def lenient(hop: Hop) -> bool:
    """What the destination demands is passed over."""
    return not strict(hop) and (hop.requirement is Requirement.NO or hop.purpose is Purpose.TLS_REPORT)


def proceeds(hop: Hop) -> bool:
    """The configuration says to pass over what the DNS does not answer."""
    return hop.demanded.security.when_unanswered is Unanswered.PROCEED


@given(hops)
def test_what_is_said_of_faults_is_words_alone(hop: Hop) -> None:
    told = decide(
        replace(hop, sts=replace(hop.sts, trouble="it is broken"), dns=replace(hop.dns, ignored=("3 1 9: no",)))
    )
    plain = decide(hop)
    assert replace(told, reason="", refusal=None) == replace(plain, reason="", refusal=None)
    assert (told.refusal is None) == (plain.refusal is None)
    if told.refusal is not None and plain.refusal is not None:
        assert replace(told.refusal, words="") == replace(plain.refusal, words="")
        assert "broken" not in plain.refusal.words


@given(hops)
def test_a_message_that_requires_tls_never_goes_in_clear_nor_to_an_unproven_server(hop: Hop) -> None:
    """RTLS-11a, RTLS-13a."""
    hop = replace(hop, requirement=Requirement.REQUIRED, redacted=False, loopback=False)
    states = accepted(hop)
    assert not decide(hop).plaintext_may_follow
    if hop.host == HOST:
        assert states <= named(SHOWN) | matched(SHOWN)
    assert all(shown.encrypted for shown in states)
    assert not states or decide(hop).require_tls is (RequireTls.NEVER if hop.final else RequireTls.MUST)
    if hop.configured is None and not hop.carries_credentials and not hop.final:
        proven = hop.dns.mx_proven or hop.sts.enforced
        assert proven or not states


def test_each_of_all_direct_hops_with_a_required_message_keeps_it_from_plaintext() -> None:
    """Not by chance but all of them: policy, DNS and floor in every combination."""
    asked = 0
    for policy, listed, trusted, mx, address, tlsa, minimum, purpose in product(
        StsPolicy, (False, True), (False, True), (False, True), (False, True), Tlsa, TlsMinimum, Purpose
    ):
        demanded = add_up([Demand("the gateway", Security(minimum))])
        hop = Hop(
            HOST,
            None,
            requirement=Requirement.REQUIRED,
            purpose=purpose,
            sts=StsFacts(policy, listed),
            dns=DnsFacts(trusted, mx, address, tlsa, "set"),
            demanded=demanded,
        )
        decision = decide(hop)
        assert not decision.plaintext_may_follow
        assert lacks(decision, PLAIN)
        assert decision.refusal is not None or decision.require_tls is RequireTls.MUST
        assert (decision.refusal is None) <= ((trusted and mx) or (policy is StsPolicy.ENFORCE and listed))
        asked += 1
    assert asked == 5 * 2 * 8 * 4 * 3 * 3


@given(hops)
def test_a_policy_that_cannot_be_read_never_weakens_what_it_said_STS_24c(hop: Hop) -> None:
    """not the DNS, not the cache, not a full table."""
    unknown = replace(hop, sts=StsFacts(StsPolicy.UNKNOWN))
    if not lenient(hop) and not proceeds(hop):
        assert accepted(unknown) <= accepted(hop)
        if hop.host == HOST:
            assert not accepted(unknown)


@given(hops)
def test_records_that_cannot_be_read_never_weaken_what_they_said(hop: Hop) -> None:
    """DANE-03a."""
    failed = replace(hop, dns=replace(hop.dns, tlsa=Tlsa.FAILED))
    if not lenient(hop) and not proceeds(hop):
        assert accepted(failed) <= accepted(hop)


@given(hops, st.sampled_from([StsPolicy.NONE, StsPolicy.TESTING, StsPolicy.ENFORCE]), st.booleans())
def test_a_policy_that_becomes_known_allows_no_more_than_it_proves(hop: Hop, policy: StsPolicy, listed: bool) -> None:
    before = accepted(replace(hop, sts=StsFacts(StsPolicy.ABSENT)))
    after = accepted(replace(hop, sts=StsFacts(policy, listed)))
    proven = named(SHOWN) if policy is StsPolicy.ENFORCE and listed else frozenset()
    assert after <= before | proven


@given(hops, st.sampled_from([Tlsa.UNUSABLE, Tlsa.USABLE]))
def test_records_that_become_known_allow_no_more_than_they_prove(hop: Hop, tlsa: Tlsa) -> None:
    before = accepted(replace(hop, dns=replace(hop.dns, tlsa=Tlsa.NONE)))
    after = accepted(replace(hop, dns=replace(hop.dns, tlsa=tlsa)))
    assert after <= before | (matched(SHOWN) if tlsa is Tlsa.USABLE else frozenset())


@given(hops)
def test_security_of_the_DNS_that_becomes_known_allows_no_more_than_it_proves(hop: Hop) -> None:
    insecure = accepted(replace(hop, dns=DnsFacts(trusted=True)))
    secure = accepted(replace(hop, dns=replace(hop.dns, trusted=True, mx_secure=True)))
    assert secure <= insecure | named(SHOWN) | matched(SHOWN)


@given(hops, sts_facts)
def test_a_passing_policy_never_overrides_failing_records(hop: Hop, sts: StsFacts) -> None:
    """STS-21a, DANE-14a."""
    dns = DnsFacts(True, True, True, Tlsa.USABLE, "set")
    hop = replace(hop, host=HOST, sts=sts, dns=dns)
    if not lenient(hop):
        assert accepted(hop) <= matched(SHOWN)


@given(hops, demands)
def test_each_floor_is_kept_whatever_else_is_demanded(hop: Hop, some: list[Demand]) -> None:
    hop = replace(hop, host=HOST, demanded=add_up(some), final=False)
    states = accepted(hop)
    for each in some:
        floor = each.security
        if floor.minimum is TlsMinimum.ENCRYPTED:
            assert all(shown.encrypted for shown in states)
        if floor.minimum is TlsMinimum.AUTHENTICATED:
            by_records = TlsProof.DANE in floor.proofs and hop.dns.dane is Tlsa.USABLE
            by_policy = TlsProof.MTA_STS in floor.proofs and hop.sts.enforced
            by_name = TlsProof.PKIX in floor.proofs or by_policy
            allowed = (matched(SHOWN) if by_records else frozenset()) | (named(SHOWN) if by_name else frozenset())
            assert states <= allowed


@given(hops, demands)
def test_what_demands_add_up_to_does_not_hang_on_their_order(hop: Hop, some: list[Demand]) -> None:
    one, other = add_up(some), add_up(some[::-1])
    assert one.security == other.security
    assert set(one.owners) == set(other.owners)


@given(demands, demands)
def test_a_further_demand_never_makes_the_sum_weaker(some: list[Demand], more: list[Demand]) -> None:
    before, after = add_up(some).security, add_up(some + more).security
    minima, words = list(TlsMinimum), list(Otherwise)
    assert minima.index(after.minimum) >= minima.index(before.minimum)
    assert set(after.proofs) <= set(before.proofs)
    assert words.index(after.otherwise) >= words.index(before.otherwise)
    if before.when_unanswered is Unanswered.DEFER:
        assert after.when_unanswered is Unanswered.DEFER


@given(hops)
def test_tls_required_no_is_never_refused_for_what_the_destination_demands(hop: Hop) -> None:
    """RTLS-22a, and as much for a report on TLS."""
    decision = decide(hop)
    if lenient(hop):
        if decision.refusal is not None:
            assert decision.refusal.cause in (Cause.NO_PROOF, Cause.TLS_DISABLED)
            assert hop.demanded.security.minimum is not TlsMinimum.OPPORTUNISTIC
        if hop.demanded.security.minimum is TlsMinimum.OPPORTUNISTIC and hop.configured is None:
            assert hop.carries_credentials or accepted(hop) == SHOWN
    else:
        assert not decision.ignored
        assert all(ignored_by(decision, shown) == () for shown in SHOWN)


@given(hops)
def test_a_dmarc_report_never_goes_in_clear_after_tls_failed(hop: Hop) -> None:
    decision = decide(replace(hop, purpose=Purpose.DMARC_REPORT))
    assert decision.mode is TlsMode.NONE or not decision.plaintext_may_follow


@given(hops)
def test_a_password_goes_to_a_verified_server_alone_TLS_08(hop: Hop) -> None:
    decision = decide(replace(hop, carries_credentials=True))
    assert decision.refusal is not None or decision.verify_name == hop.host
    assert not decision.plaintext_may_follow


@given(hops)
def test_every_decision_says_why(hop: Hop) -> None:
    decision = decide(hop)
    assert decision.reason
    for shown in SHOWN:
        refusal = lacks(decision, shown)
        if refusal is not None:
            assert refusal.words
            assert refusal.status.category in (4, 5)


@given(hops)
def test_records_and_policies_of_an_address_do_not_count_DANE_21(hop: Hop) -> None:
    known = decide(replace(hop, host="192.0.2.1"))
    nothing = decide(replace(hop, host="192.0.2.1", sts=StsFacts(), dns=DnsFacts(trusted=hop.dns.trusted)))
    assert (known.mode, known.verify_name, known.verify_matching, known.refusal) == (
        nothing.mode,
        nothing.verify_name,
        nothing.verify_matching,
        nothing.refusal,
    )
