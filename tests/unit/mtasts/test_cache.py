"""The life of a cached policy (RFC 8461 3.3, 5.1, 8.3, 10.2)."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.mtasts.answer import FetchFailed, FetchTrouble
from mailrail.core.mtasts.cache import (
    DEFER_LIMIT,
    FETCH_AGAIN,
    REFRESH,
    CachedPolicy,
    DnsTrouble,
    LastFailure,
    PolicyStep,
    after_fetch,
    is_reported,
    next_step,
    refresh_at,
)
from mailrail.core.mtasts.policy import Mode, Policy
from mailrail.core.mtasts.record import StsRecord
from mailrail.core.policy_record import NoRecord

DAY = 86_400.0
FETCHED = 1_767_225_600.0
ENFORCE = Policy(Mode.ENFORCE, 604_800, ("mx1.example.com",))
CACHED = CachedPolicy("1", ENFORCE, FETCHED)
GONE = NoRecord("there is no TXT record")
BROKEN = DnsTrouble("SERVFAIL", since=FETCHED)
TIMEOUT = FetchFailed(FetchTrouble.FETCH, "no answer in 60 s")


def failed(id_: str, at: float) -> LastFailure:
    return LastFailure(id_, at, TIMEOUT)


@pytest.mark.parametrize("record", [GONE, BROKEN, StsRecord("1")])
def test_a_cached_policy_rules_until_its_end_whatever_becomes_of_the_record_STS_16a(
    record: NoRecord | DnsTrouble | StsRecord,
) -> None:
    for age in (0.0, 4 * DAY, 7 * DAY - 1):
        verdict = next_step(CACHED, record, None, FETCHED + age)
        assert (verdict.step, verdict.policy) == (PolicyStep.USE, ENFORCE)


def test_life_counts_from_the_last_fetch_and_ends_at_max_age_STS_17a() -> None:
    assert CACHED.expires == FETCHED + 604_800
    assert next_step(CACHED, GONE, None, CACHED.expires).step is PolicyStep.WITHOUT
    assert next_step(CACHED, StsRecord("1"), None, CACHED.expires).step is PolicyStep.FETCH


def test_a_new_id_is_fetched_and_the_old_policy_holds_if_that_fails_STS_16a() -> None:
    assert next_step(CACHED, StsRecord("2"), None, FETCHED + DAY).step is PolicyStep.FETCH
    verdict, kept = after_fetch(CACHED, StsRecord("2"), TIMEOUT, FETCHED + DAY)
    assert (verdict.step, verdict.policy, verdict.failed) == (PolicyStep.USE, ENFORCE, TIMEOUT)
    assert TIMEOUT.reason in verdict.reason
    assert kept == CACHED


def test_after_a_failed_fetch_of_an_id_five_minutes_pass_before_the_next_STS_18a() -> None:
    record, now = StsRecord("2"), FETCHED + DAY
    waiting = next_step(CACHED, record, failed("2", now), now + FETCH_AGAIN - 1)
    assert (waiting.step, waiting.policy, waiting.failed) == (PolicyStep.USE, ENFORCE, TIMEOUT)
    assert next_step(None, record, failed("2", now), now + FETCH_AGAIN - 1).step is PolicyStep.WITHOUT
    assert next_step(CACHED, record, failed("2", now), now + FETCH_AGAIN).step is PolicyStep.FETCH
    # A new id may try at once.
    assert next_step(CACHED, StsRecord("3"), failed("2", now), now + 1).step is PolicyStep.FETCH


def test_without_a_cached_policy_a_failed_fetch_is_as_no_policy_and_is_told_STS_15a() -> None:
    record = StsRecord("1")
    assert next_step(None, record, None, FETCHED).step is PolicyStep.FETCH
    verdict, kept = after_fetch(None, record, TIMEOUT, FETCHED)
    assert (verdict.step, verdict.policy, kept) == (PolicyStep.WITHOUT, None, None)
    assert verdict.failed is not None
    assert verdict.failed.trouble == "sts-policy-fetch-error"
    # The next message within five minutes reports it as well.
    assert next_step(None, record, failed("1", FETCHED), FETCHED + 1).failed == TIMEOUT
    # And so does an expired policy: it is none.
    assert after_fetch(CACHED, record, TIMEOUT, CACHED.expires)[0].step is PolicyStep.WITHOUT


@pytest.mark.parametrize("mode", Mode)
def test_a_fetched_policy_replaces_the_cached_one_also_a_weaker_one_STS_25(mode: Mode) -> None:
    policy = Policy(mode, 0, ("other.example.com",))
    verdict, kept = after_fetch(CACHED, StsRecord("2"), policy, FETCHED + 5)
    assert kept == CachedPolicy("2", policy, FETCHED + 5)
    assert (verdict.step, verdict.policy) == (PolicyStep.USE, policy)


def test_a_domain_without_record_and_without_cache_has_no_policy() -> None:
    verdict = next_step(None, GONE, None, FETCHED)
    assert (verdict.step, verdict.failed) == (PolicyStep.WITHOUT, None)
    assert GONE.reason in verdict.reason


def test_a_dns_error_with_nothing_cached_holds_mail_back_for_some_hours_STS_24a() -> None:
    deferred = next_step(None, BROKEN, None, FETCHED + DEFER_LIMIT - 1)
    assert deferred.step is PolicyStep.DEFER
    assert "SERVFAIL" in deferred.reason
    over = next_step(None, BROKEN, None, FETCHED + DEFER_LIMIT)
    assert over.step is PolicyStep.WITHOUT
    assert "4 hours" in over.reason


def test_a_plain_refusal_of_the_question_holds_no_mail_back_STS_24a() -> None:
    assert next_step(None, replace(BROKEN, refused=True), None, FETCHED).step is PolicyStep.WITHOUT


@pytest.mark.parametrize(
    ("cached", "record", "failure", "trouble"),
    [
        (None, GONE, None, ""),
        (None, NoRecord("it has no id", faulty=True), None, "it has no id"),
        (None, BROKEN, None, "SERVFAIL"),
        (None, replace(BROKEN, refused=True), None, "SERVFAIL; its servers refuse this question alone"),
        (None, StsRecord("1"), failed("1", FETCHED), TIMEOUT.reason),
        (CACHED, StsRecord("1"), None, ""),
        (CACHED, GONE, None, GONE.reason),
        (CACHED, StsRecord("2"), failed("2", FETCHED), TIMEOUT.reason),
    ],
)
def test_what_is_wrong_is_told_beside_what_follows_from_it(
    cached: CachedPolicy | None, record: NoRecord | DnsTrouble | StsRecord, failure: LastFailure | None, trouble: str
) -> None:
    found = next_step(cached, record, failure, FETCHED + 1).trouble
    assert found.startswith(trouble)
    assert bool(found) == bool(trouble)


def test_a_policy_is_fetched_anew_about_daily_and_before_its_end_STS_19a() -> None:
    assert refresh_at(CACHED) == FETCHED + REFRESH
    assert refresh_at(CachedPolicy("1", replace(ENFORCE, max_age=7200), FETCHED)) == FETCHED + 3600
    assert refresh_at(CachedPolicy("1", replace(ENFORCE, max_age=600), FETCHED)) is None


def test_failures_are_not_told_while_the_cached_mode_is_none_STS_25() -> None:
    left = CachedPolicy("1", Policy(Mode.NONE, 604_800), FETCHED)
    assert not is_reported(left, FETCHED)
    assert is_reported(left, left.expires)
    assert is_reported(CACHED, FETCHED)
    assert is_reported(None, FETCHED)


TIMES = st.floats(0, 4e9, allow_nan=False)
IDS = st.sampled_from(["1", "2"])
CACHES = st.none() | st.builds(
    CachedPolicy,
    IDS,
    st.builds(Policy, st.sampled_from(Mode), st.integers(0, 31_557_600), st.just(("mx.example",))),
    TIMES,
)
RECORDS = st.builds(StsRecord, IDS) | st.just(GONE) | st.builds(DnsTrouble, st.just("SERVFAIL"), TIMES, st.booleans())
FAILURES = st.none() | st.builds(failed, IDS, TIMES)


@given(CACHES, RECORDS, FAILURES, TIMES)
def test_nothing_that_fails_ever_takes_a_live_policy_away(
    cached: CachedPolicy | None,
    record: StsRecord | NoRecord | DnsTrouble,
    failure: LastFailure | None,
    now: float,
) -> None:
    verdict = next_step(cached, record, failure, now)
    if verdict.step is PolicyStep.FETCH:
        assert isinstance(record, StsRecord)
        verdict, kept = after_fetch(cached, record, TIMEOUT, now)
        assert kept == cached
    live = cached is not None and now < cached.expires
    assert (verdict.step is PolicyStep.USE) is live
    assert verdict.policy == (cached.policy if cached is not None and live else None)
    assert verdict.reason


def test_a_host_outside_a_cached_policy_is_none_of_its_hosts_though_the_dns_names_it_STS_16a() -> None:
    verdict = next_step(CACHED, GONE, None, FETCHED + 4 * DAY)
    assert verdict.policy is not None
    assert [verdict.policy.matches(host) for host in ("evil.example", "mx1.example.com")] == [False, True]
