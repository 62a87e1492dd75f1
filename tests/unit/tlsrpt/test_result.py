"""What a session tells in TLS reports: policies, successes, failures with their types, and what is not told."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.mtasts.answer import FetchFailed, FetchTrouble
from mailrail.core.mtasts.policy import Mode, Policy
from mailrail.core.tlspolicy.facts import Purpose, Tlsa
from mailrail.core.tlsrpt.facts import AppliedPolicy, FailedSession, PolicyType, ReportedSession
from mailrail.core.tlsrpt.result import MX_NOT_LISTED, HostPolicies, SeenSession, sessions_of
from mailrail.core.tlsrpt.result_type import ResultType, TlsFault

ENFORCE = Policy(Mode.ENFORCE, 604800, ("mx.example.com", "*.mx.example.net"))
LINES = (
    "version: STSv1",
    "mode: enforce",
    "mx: mx.example.com",
    "mx: *.mx.example.net",
    "max_age: 604800",
)
RECORDS = ("3 1 1 abab",)
STS = HostPolicies("example.com", "mx.example.com", sts=ENFORCE)
DANE = HostPolicies("example.com", "mx.provider.example", tlsa=Tlsa.USABLE, base="mx.provider.example", records=RECORDS)
PLAIN = SeenSession("198.51.100.2", "192.0.2.1", "mx.example.com")
GOOD = replace(PLAIN, encrypted=True, valid=True, matched=True)


def fault(type: ResultType, reason: str = "because") -> TlsFault:
    return TlsFault(type, reason, "in words")


def rows(found: tuple[ReportedSession, ...]) -> list[tuple[str, str, str, str]]:
    """(report of, policy type, policy domain, result type or success)."""
    return [
        (
            each.reported_to,
            each.policy.type.value,
            each.policy.domain,
            each.failure.result if each.failure else "success",
        )
        for each in found
    ]


def test_a_good_session_succeeds_under_each_policy_and_in_each_report_TRPT_02a() -> None:
    """TRPT-02a, TRPT-06a: the records belong to the host's domain, and its report; and to the recipient's as well."""
    assert rows(sessions_of(replace(DANE, sts=replace(ENFORCE, mx=("mx.provider.example",))), GOOD)) == [
        ("example.com", "sts", "example.com", "success"),
        ("example.com", "tlsa", "mx.provider.example", "success"),
        ("mx.provider.example", "tlsa", "mx.provider.example", "success"),
    ]


def test_a_policy_is_told_as_it_was_applied() -> None:
    (row,) = sessions_of(STS, GOOD)
    assert row.policy == AppliedPolicy(PolicyType.STS, "example.com", LINES, ENFORCE.mx)
    tlsa = sessions_of(DANE, GOOD)[1]
    assert tlsa.policy == AppliedPolicy(PolicyType.TLSA, "mx.provider.example", RECORDS)


def test_without_a_policy_its_domain_is_named_all_the_same() -> None:
    assert rows(sessions_of(HostPolicies("example.com", "mx"), GOOD)) == [
        ("example.com", "no-policy-found", "example.com", "success")
    ]


def test_records_of_the_domain_itself_are_told_once() -> None:
    own = replace(DANE, domain="example.com", base="example.com", host="example.com")
    assert rows(sessions_of(own, GOOD)) == [
        ("example.com", "no-policy-found", "example.com", "success"),
        ("example.com", "tlsa", "example.com", "success"),
    ]


@pytest.mark.parametrize(
    ("seen", "type"),
    [
        (PLAIN, ResultType.STARTTLS_NOT_SUPPORTED),
        (replace(PLAIN, fault=fault(ResultType.VALIDATION_FAILURE)), ResultType.VALIDATION_FAILURE),
        *(
            (replace(GOOD, valid=False, name_fault=fault(type)), type)
            for type in (
                ResultType.CERTIFICATE_EXPIRED,
                ResultType.CERTIFICATE_HOST_MISMATCH,
                ResultType.CERTIFICATE_NOT_TRUSTED,
            )
        ),
    ],
)
def test_each_fault_of_a_session_has_its_type_and_says_where_TRPT_08a(seen: SeenSession, type: ResultType) -> None:
    """TRPT-06a, TRPT-07b, TRPT-08a."""
    (row,) = sessions_of(STS, seen)
    assert row.failure is not None
    reason = "not-offered" if type is ResultType.STARTTLS_NOT_SUPPORTED else "because"
    assert row.failure == FailedSession(
        type, "192.0.2.1", "mx.example.com", "mx.example.com", "198.51.100.2", reason_code=reason
    )


def test_a_host_that_the_policy_does_not_list_is_told_though_it_was_not_dialled_TRPT_08a() -> None:
    """TRPT-08a: there is no type of its own for it."""
    (row,) = sessions_of(replace(STS, host="evil.example"), None)
    assert row.failure == FailedSession(
        ResultType.VALIDATION_FAILURE, receiving_host="evil.example", reason_code=MX_NOT_LISTED
    )


def test_a_policy_in_mode_testing_is_told_of_what_it_would_have_kept_back() -> None:
    testing = replace(STS, sts=replace(ENFORCE, mode=Mode.TESTING))
    assert rows(sessions_of(testing, PLAIN))[0][3] == ResultType.STARTTLS_NOT_SUPPORTED


@pytest.mark.parametrize(
    ("applied", "seen", "type"),
    [
        (replace(DANE, tlsa=Tlsa.FAILED, records=()), None, ResultType.DNSSEC_INVALID),
        (replace(DANE, tlsa=Tlsa.UNUSABLE), GOOD, ResultType.TLSA_INVALID),
        (replace(DANE, tlsa=Tlsa.NONE, dane_required=True), None, ResultType.DANE_REQUIRED),
        (DANE, PLAIN, ResultType.STARTTLS_NOT_SUPPORTED),
        (
            DANE,
            replace(GOOD, matched=False, records_fault=fault(ResultType.VALIDATION_FAILURE, "tlsa-mismatch")),
            ResultType.VALIDATION_FAILURE,
        ),
    ],
)
def test_each_fault_of_dane_has_its_type_TRPT_07b(
    applied: HostPolicies, seen: SeenSession | None, type: ResultType
) -> None:
    """TRPT-07b."""
    found = [each for each in sessions_of(applied, seen) if each.policy.type is PolicyType.TLSA]
    assert [each.failure.result for each in found if each.failure] == [type, type]
    assert all(each.failure.reason_code for each in found if each.failure)


@pytest.mark.parametrize("trouble", list(FetchTrouble))
def test_a_policy_that_cannot_be_had_is_told_beside_what_the_session_was_TRPT_07b(trouble: FetchTrouble) -> None:
    """TRPT-07b: nothing is cached, so the session itself is one without a policy."""
    applied = HostPolicies("example.com", "mx", fetch_failed=FetchFailed(trouble, "it answered with status 404"))
    assert rows(sessions_of(applied, GOOD)) == [
        ("example.com", "sts", "example.com", trouble.value),
        ("example.com", "no-policy-found", "example.com", "success"),
    ]
    cached = replace(STS, fetch_failed=applied.fetch_failed)
    assert [row[3] for row in rows(sessions_of(cached, GOOD))] == [trouble.value, "success"]


def test_what_fails_under_a_policy_in_mode_none_is_told_of_no_policy() -> None:
    none = replace(STS, sts=replace(ENFORCE, mode=Mode.NONE), fetch_failed=FetchFailed(FetchTrouble.FETCH, "gone"))
    assert rows(sessions_of(none, GOOD)) == [("example.com", "no-policy-found", "example.com", "success")]


def test_what_was_not_looked_at_is_not_told() -> None:
    """A handshake that ended with the certificate says nothing of the records, and the reverse."""
    both = replace(STS, tlsa=Tlsa.USABLE, records=RECORDS)
    ended = replace(GOOD, valid=False, matched=None, name_fault=fault(ResultType.CERTIFICATE_EXPIRED))
    assert [row[1] for row in rows(sessions_of(both, ended))] == ["sts"]
    unknown = replace(GOOD, valid=None)
    assert [row[1] for row in rows(sessions_of(both, unknown))] == ["tlsa", "tlsa"]


def test_a_host_that_tls_had_no_part_in_losing_is_not_told_TRPT_09a() -> None:
    """TRPT-09a: neither a policy nor a connection; the caller has none to give."""
    assert sessions_of(HostPolicies("example.com", "mx"), None) == ()
    assert sessions_of(STS, None) == ()


applied = st.builds(
    HostPolicies,
    st.sampled_from(["example.com", "mx"]),
    st.sampled_from(["mx", "mx.example.com", "evil.example"]),
    st.none() | st.sampled_from(Mode).map(lambda mode: replace(ENFORCE, mode=mode)),
    st.none() | st.sampled_from(FetchTrouble).map(lambda trouble: FetchFailed(trouble, "because")),
    st.sampled_from(Tlsa),
    st.sampled_from(["", "base.example"]),
    st.just(RECORDS),
    st.booleans(),
)
seens = st.none() | st.builds(
    SeenSession,
    *[st.just("x")] * 3,
    st.booleans(),
    st.none() | st.sampled_from(ResultType).map(fault),
    st.none() | st.booleans(),
    st.none() | st.sampled_from(ResultType).map(fault),
    st.none() | st.booleans(),
    st.none() | st.sampled_from(ResultType).map(fault),
)


@given(applied, seens)
def test_no_policy_is_counted_as_kept_without_tls_and_none_twice_in_a_report(
    applied: HostPolicies, seen: SeenSession | None
) -> None:
    """TRPT-06a; TRPT-15a: a report on TLS is told of in none."""
    found = sessions_of(applied, seen)
    assert sessions_of(applied, seen, purpose=Purpose.TLS_REPORT) == ()
    for each in found:
        assert each.failure is not None or (seen is not None and seen.encrypted)
        if each.failure is not None and each.failure.result in (
            ResultType.VALIDATION_FAILURE,
            ResultType.CERTIFICATE_NOT_TRUSTED,
        ):
            assert each.failure.reason_code
    told = [(each.reported_to, each.policy.type) for each in found if each.failure is None]
    assert len(told) == len(set(told))
    assert all(each.policy.domain for each in found)
