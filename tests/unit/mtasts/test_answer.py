"""What the answer of a policy host is worth (RFC 8461 3.3)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.mtasts.answer import FetchFailed, FetchTrouble, judge_answer
from mailrail.core.mtasts.policy import BODY_LIMIT, Mode, Policy

BODY = b"version: STSv1\nmode: enforce\nmx: mx.example.com\nmax_age: 604800\n"
POLICY = Policy(Mode.ENFORCE, 604800, ("mx.example.com",))


@pytest.mark.parametrize("status", [100, 199, 201, 204, 206, 301, 302, 304, 307, 308, 404, 429, 500, 503])
def test_status_200_alone_counts_STS_04(status: int) -> None:
    found = judge_answer(status, "text/plain", BODY)
    assert isinstance(found, FetchFailed)
    assert found.trouble is FetchTrouble.FETCH
    assert str(status) in found.reason
    assert ("redirects are not followed" in found.reason) is (300 <= status < 400)


@pytest.mark.parametrize(
    "said", ["text/plain", "TEXT/Plain", "text/plain; charset=utf-8", "text/plain ;format=flowed; x"]
)
def test_text_is_a_policy_whatever_its_parameters_STS_05(said: str) -> None:
    assert judge_answer(200, said, BODY) == POLICY


@pytest.mark.parametrize(
    "said", [None, "", "text/html", "text/plainer", "application/octet-stream", "te\nxt", "ä" * 9999]
)
def test_another_media_type_is_no_policy_STS_05(said: str | None) -> None:
    found = judge_answer(200, said, BODY)
    assert isinstance(found, FetchFailed)
    assert found.trouble is FetchTrouble.FETCH
    assert "media type" in found.reason


def test_a_body_beyond_the_limit_is_no_policy_STS_05() -> None:
    pad = BODY + b"x-pad: y\n" * BODY_LIMIT
    found = judge_answer(200, "text/plain", pad[: BODY_LIMIT + 1])
    assert isinstance(found, FetchFailed)
    assert found.trouble is FetchTrouble.FETCH


def test_a_body_that_is_no_policy_is_told_from_a_host_that_gave_none() -> None:
    found = judge_answer(200, "text/plain", BODY.replace(b"STSv1", b"STSv2"))
    assert isinstance(found, FetchFailed)
    assert found.trouble is FetchTrouble.INVALID


@given(st.integers(), st.none() | st.text(), st.binary())
def test_no_answer_raises_anything(status: int, said: str | None, body: bytes) -> None:
    found = judge_answer(status, said, body)
    assert isinstance(found, Policy) or (found.reason.isascii() and found.reason.isprintable())
