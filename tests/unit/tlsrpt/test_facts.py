"""Facts for TLS reports: written and read, bounded, and counted together where they are equal."""

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.outbound.zone import zone_of
from mailrail.core.tlsrpt.counts import CountedSessions, SessionCounts
from mailrail.core.tlsrpt.facts import (
    FACTS_LIMIT,
    AppliedPolicy,
    FailedSession,
    PolicyType,
    ReportedSession,
    decode,
    encode,
    fingerprint,
)
from mailrail.core.tlsrpt.result_type import ResultType

DAY = date(2031, 1, 2)

policies = st.builds(
    AppliedPolicy,
    st.sampled_from(PolicyType),
    st.text(max_size=60),
    *[st.lists(st.text(max_size=90), max_size=4).map(tuple)] * 2,
)
failures = st.none() | st.builds(FailedSession, st.sampled_from(ResultType), *[st.text(max_size=60)] * 6)
sessions = st.builds(ReportedSession, policies, failures, st.text(max_size=60))


def of(domain: str) -> ReportedSession:
    """A session as the policy wants it."""
    return ReportedSession(AppliedPolicy(PolicyType.NONE, domain))


@given(sessions, sessions)
def test_facts_are_read_as_they_were_and_equal_ones_alone_have_equal_octets(
    one: ReportedSession, other: ReportedSession
) -> None:
    assert decode(encode(one)) == one
    assert (one == other) == (encode(one) == encode(other)) == (fingerprint(encode(one)) == fingerprint(encode(other)))


@pytest.mark.parametrize("text", ["x" * 100_000, "\N{PILE OF POO}" * 100_000, "\ud800" * 70_000, '"\\\0' * 50_000])
def test_whatever_a_stranger_wrote_the_facts_have_at_most_16_KiB(text: str) -> None:
    policy = AppliedPolicy(PolicyType.STS, text, (text,) * 500, tuple(text[i:] for i in range(500)))
    octets = encode(ReportedSession(policy, FailedSession(ResultType.VALIDATION_FAILURE, *[text] * 6)))
    assert len(octets) <= FACTS_LIMIT
    assert decode(octets).policy.type is PolicyType.STS


@pytest.mark.parametrize(
    "octets",
    [b"", b"[]", b"{}", b"null", b'{"type":"sts"}', b'{"type":"x","domain":"d","strings":[],"mx":[]}', b"\xff"],
)
def test_what_is_no_fact_of_a_session_is_refused_with_a_ValueError(octets: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        decode(octets)


def test_sessions_of_a_day_with_equal_facts_are_counted_together() -> None:
    counts = SessionCounts(10, 10)
    for _ in range(1000):
        counts.add(DAY, of("a.example"))
    counts.add(DAY, of("b.example"), 3)
    counts.add(date(2031, 1, 3), of("a.example"))
    assert [(one.day.day, one.facts.policy.domain, one.sessions) for one in counts.take(10)] == [
        (2, "a.example", 1000),
        (2, "b.example", 3),
        (3, "a.example", 1),
    ]
    assert len(counts) == counts.dropped == 0


def test_what_strangers_name_takes_its_share_of_the_counts_and_the_rest_is_dropped_and_told() -> None:
    counts = SessionCounts(6, 2)
    for i in range(5):
        counts.add(DAY, of(f"a{i}.evil.example"), 2)
    assert (len(counts), counts.dropped) == (2, 6)
    for i in range(9):
        counts.add(DAY, of(f"good{i}.test"))
    assert (len(counts), counts.dropped) == (6, 11)
    counts.add(DAY, of("a0.evil.example"))
    assert counts.dropped == 11, "what is counted counts on"
    counts.take(6)
    counts.add(DAY, of("a7.evil.example"))
    assert counts.dropped == 11, "what was stored leaves its place"


def test_long_policies_take_their_share_of_memory_and_no_more() -> None:
    counts = SessionCounts(1000, 1000, octets=160_000)
    long = tuple(f"mx{i:04}.example.org" for i in range(100))
    for i in range(100):
        counts.add(DAY, ReportedSession(AppliedPolicy(PolicyType.STS, f"a{i}.evil.example", (), long)))
    assert len(counts) == 2
    for i in range(100):
        counts.add(DAY, ReportedSession(AppliedPolicy(PolicyType.STS, f"a.zone{i}.example", (), long)))
    assert len(counts) + counts.dropped == 200
    assert 15 < len(counts) < 20
    counts.take(100)
    counts.add(DAY, of("a.evil.example"))
    assert (len(counts), counts._weight, len(counts._zones)) == (1, 1024, 1)


def test_what_could_not_be_stored_is_added_to_what_came_meanwhile() -> None:
    counts = SessionCounts(2, 2)
    counts.add(DAY, of("a.example"), 5)
    batch = counts.take(1)
    counts.add(DAY, of("a.example"), 2)
    counts.put_back(batch)
    assert counts.take(1) == [CountedSessions(DAY, of("a.example"), 7)]


@pytest.mark.parametrize(
    ("domain", "zone"), [("a.b.example.org", "example.org"), ("example.org.", "example.org"), ("org", "org"), ("", "")]
)
def test_a_zone_is_the_last_two_labels(domain: str, zone: str) -> None:
    assert zone_of(domain) == zone
