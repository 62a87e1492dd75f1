"""What the policy service answers, to senders and to strangers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.mtasts.answer import judge_answer
from mailrail.core.mtasts.policy import Mode, Policy
from mailrail_policy.answers import PolicyAnswer, answer

PATH = "/.well-known/mta-sts.txt"
NOW = 1_767_225_600.0
POLICY = Policy(Mode.ENFORCE, 604_800, ("mx.example.org",))
POLICIES = {"example.org": POLICY, "other.example": Policy(Mode.TESTING, 86_400, ("*.other.example",))}


def ask(
    target: str = PATH, host: str | None = "mta-sts.example.org", method: str = "GET", *fields: str
) -> PolicyAnswer:
    lines = [f"{method} {target} HTTP/1.1", *([] if host is None else [f"Host: {host}"]), *fields]
    return answer("\r\n".join(lines).encode("latin-1"), POLICIES, NOW)


def parts(made: PolicyAnswer) -> tuple[int, dict[str, str], bytes]:
    head, _, body = made.octets.partition(b"\r\n\r\n")
    status, *fields = head.decode("ascii").split("\r\n")
    return int(status.split()[1]), dict(field.split(": ", 1) for field in fields), body


@pytest.mark.parametrize("host", ["mta-sts.example.org", "MTA-STS.Example.ORG", "mta-sts.example.org.:443"])
def test_a_policy_is_text_with_crlf_at_the_name_of_its_domain_STS_23a(host: str) -> None:
    made = ask(host=host)
    status, fields, body = parts(made)
    assert made.result == "served"
    assert body == str(POLICY).encode()
    assert body.count(b"\r\n") == body.count(b"\n") == 4
    assert fields["Content-Length"] == str(len(body))
    assert fields["Cache-Control"] == "no-store"
    assert fields["Date"] == "Thu, 01 Jan 2026 00:00:00 GMT"
    # Our own fetcher takes what we serve.
    assert judge_answer(status, fields["Content-Type"], body) == POLICY


def test_the_host_alone_says_whose_policy_it_is() -> None:
    assert parts(ask(host="mta-sts.other.example"))[2] == str(POLICIES["other.example"]).encode()
    whole = f"https://mta-sts.other.example{PATH}"
    assert ask(whole, "mta-sts.example.org").octets == ask(host="mta-sts.other.example").octets
    assert ask(whole, None).result == ask(f"http://a b{PATH}").result == "bad_request"


def test_a_head_is_answered_without_the_text() -> None:
    made = ask(method="HEAD")
    assert made.octets == ask().octets.removesuffix(str(POLICY).encode())


@pytest.mark.parametrize(
    ("target", "host", "method", "status", "result"),
    [
        (PATH, "mta-sts.unknown.example", "GET", 404, "unknown_host"),
        (PATH, "example.org", "GET", 404, "unknown_host"),
        (PATH, "mta-sts.sub.example.org", "GET", 404, "unknown_host"),
        (PATH, "mta-sts", "GET", 404, "unknown_host"),
        (PATH, "192.0.2.1", "GET", 404, "unknown_host"),
        ("/", "mta-sts.example.org", "GET", 404, "unknown_path"),
        ("/.well-known/../.well-known/mta-sts.txt", "mta-sts.example.org", "GET", 404, "unknown_path"),
        ("*", "mta-sts.example.org", "OPTIONS", 404, "unknown_path"),
        (PATH, "mta-sts.example.org", "POST", 405, "bad_method"),
        (PATH, None, "GET", 400, "bad_request"),
        (PATH, "mta-sts.example.org\r\nHost: mta-sts.other.example", "GET", 400, "bad_request"),
        (PATH, "mta-sts.example.org evil", "GET", 400, "bad_request"),
        (PATH, "mta-sts.b\xfccher.example", "GET", 400, "bad_request"),
        (PATH, "[::1]", "GET", 400, "bad_request"),
        ("/a b", "mta-sts.example.org", "GET", 400, "bad_request"),
    ],
)
def test_everything_else_is_refused(target: str, host: str | None, method: str, status: int, result: str) -> None:
    made = ask(target, host, method)
    assert (parts(made)[0], made.result) == (status, result)


def test_a_query_changes_nothing() -> None:
    assert ask(f"{PATH}?now=1").octets == ask().octets


def test_before_the_first_configuration_nobody_is_told_that_there_is_no_policy() -> None:
    made = answer(f"GET {PATH} HTTP/1.1\r\nHost: mta-sts.example.org".encode(), None, NOW)
    assert (parts(made)[0], made.result) == (503, "not_ready")


@given(st.binary(max_size=300), st.binary(max_size=60))
def test_no_request_raises_anything_and_none_says_what_it_was_not_told(octets: bytes, value: bytes) -> None:
    for head in (
        octets,
        f"GET {PATH} HTTP/1.1\r\n".encode() + octets,
        f"GET {PATH} HTTP/1.1\r\nHost: ".encode() + value,
    ):
        made = answer(head, POLICIES, NOW)
        status, fields, body = parts(made)
        assert (status == 200) is (made.result == "served")
        assert fields["Connection"] == "close"
        assert body in (b"", *(str(policy).encode() for policy in POLICIES.values())) or status != 200
