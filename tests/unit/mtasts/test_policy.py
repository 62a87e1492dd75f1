"""Policies: as they are published, as we print them, and held against MX hosts (RFC 8461 3.2, 4.1)."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.mtasts.policy import BODY_LIMIT, MAX_AGE_LIMIT, MAX_MX, Mode, Policy, PolicyError, parse_policy

GOOD = "version: STSv1\nmode: enforce\nmx: mx.example.com\nmax_age: 604800\n"
ENFORCE = Policy(Mode.ENFORCE, 604800, ("mx.example.com",))
PUBLISHED: list[dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("published.yml").read_text())


def reason_of(text: str | bytes) -> str:
    with pytest.raises(PolicyError) as caught:
        parse_policy(text.encode("latin-1") if isinstance(text, str) else text)
    return str(caught.value)


@pytest.mark.parametrize("case", PUBLISHED, ids=[case["kind"] for case in PUBLISHED])
def test_policies_as_they_are_published_STS_06(case: dict[str, Any]) -> None:
    expect, body = case["expect"], case["body"].encode("latin-1")
    # Empty lines are not in the grammar; a policy that has them at its end may be refused, and is.
    if not expect["valid"] or case["kind"].startswith("empty lines"):
        assert "line" in reason_of(body)
        return
    policy = parse_policy(body)
    assert policy.mode == expect["mode"]
    assert policy.max_age == expect["max_age"]
    assert list(policy.mx) == [mx.lower() for mx in expect.get("mx", expect.get("mx_usable"))]


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        GOOD.removesuffix("\n"),
        GOOD.replace("\n", "\r\n"),
        "max_age: 604800 \r\nmx:\tmx.example.com\t\nmode:enforce\r\nversion: STSv1\n",
        GOOD + "a.b-c_d: what ever\xc3\xa4 it says\nx: y:z\n",
        GOOD + "mode: none\nmax_age: 1\nversion: STSv2\nmx: MX.example.com.\n",
        GOOD + "mx: 192.0.2.56\nmx: m*.example.com\nmx: m\xc3\xbcx.example.com\n",
    ],
)
def test_what_a_policy_may_look_like_STS_06(text: str) -> None:
    assert parse_policy(text.encode("latin-1")) == ENFORCE


def test_the_first_of_two_modes_counts_and_every_mx_STS_06() -> None:
    text = "version: STSv1\nmode: testing\nmode: enforce\nmx: a.example.com\nmx: *.b.example.com\n"
    text += "max_age: 100\nmax_age: 999\n"
    assert parse_policy(text.encode()) == Policy(Mode.TESTING, 100, ("a.example.com", "*.b.example.com"))


def test_an_address_among_the_mx_is_kept_from_being_a_name_STS_06() -> None:
    policy = parse_policy((GOOD + "mx: 192.0.2.56\n").encode())
    assert policy.ignored == ("'192.0.2.56'",)
    assert not policy.matches("192.0.2.56")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (GOOD.replace("mx:", "nmx:"), "no mx"),
        (GOOD.replace("604800", "60480000000"), "max_age"),
        (GOOD.replace("604800", "+604800"), "max_age"),
        (GOOD.replace("604800", "7d"), "max_age"),
        (GOOD.replace("max_age", "maxage"), "no max_age"),
        (GOOD.replace("enforce", "Enforce"), "small letters"),
        (GOOD.replace("enforce", "report"), "mode"),
        (GOOD.replace("STSv1", "STSv2"), "version"),
        (GOOD.replace("version", "Version"), "no version"),
        (GOOD.replace("mode:", "mode :"), "line 2"),
        (GOOD.replace("mode:", " mode:"), "line 2"),
        (GOOD.replace("enforce", ""), "line 2"),
        (GOOD.replace("enforce", "enforce\0"), "control character"),
        (GOOD.replace("\n", "\r"), "control character"),
        (GOOD + "\xff: x\n", "line 5"),
        (GOOD + "x: \xff\n", "UTF-8"),
        ("---\nlayout: none\n---\n" + GOOD, "line 1"),
        ("\xef\xbb\xbf" + GOOD, "byte order mark"),
        (GOOD + "\n", "line 5 is empty"),
        ("\n" + GOOD, "line 1 is empty"),
        ("<html>" + GOOD, "line 1"),
        ("", "no version"),
        (
            GOOD.replace("mx: mx.example.com", "mx: mx.*.example.com\nmx: m*.example.com\nmx: *"),
            "host name or a pattern",
        ),
        (GOOD.replace("mx.example.com", "192.0.2.1"), "host name or a pattern"),
    ],
)
def test_what_is_no_policy_is_refused_with_the_reason_STS_06(text: str, reason: str) -> None:
    assert reason in reason_of(text)


def test_a_policy_that_is_too_large_is_refused() -> None:
    assert str(BODY_LIMIT) in reason_of(GOOD + "x-pad: y\n" * BODY_LIMIT)
    assert str(MAX_MX) in reason_of(GOOD + "".join(f"mx: {i}.example.com\n" for i in range(MAX_MX)))
    assert parse_policy((GOOD + "mx: mx.example.com\n" * MAX_MX).encode()) == ENFORCE


@pytest.mark.parametrize("age", ["31557601", "9999999999"])
def test_a_policy_that_would_live_too_long_lives_as_long_as_it_may_STS_25(age: str) -> None:
    assert parse_policy(GOOD.replace("604800", age).encode()).max_age == MAX_AGE_LIMIT


@pytest.mark.parametrize(
    ("pattern", "host", "match"),
    [
        ("*.example.com", "a.example.com", True),
        ("*.example.com", "example.com", False),
        ("*.example.com", "a.b.example.com", False),
        ("*.example.com", "aexample.com", False),
        ("*.example.com", ".example.com", False),
        ("mx.example.com", "mx.example.com", True),
        ("mx.example.com", "a.mx.example.com", False),
        ("ALT1.ASPMX.L.Example.COM", "alt1.aspmx.l.example.com.", True),
        ("alt1.aspmx.l.example.com", "ALT1.aspmx.l.example.com", True),
        ("*.xn--bcher-kva.example", "mx.xn--bcher-kva.example", True),
        ("xn--bcher-kva.example", "XN--BCHER-KVA.example", True),
        ("mx.provider.example", "mx.example.com", False),
        ("*.com", "com", False),
    ],
)
def test_which_hosts_a_policy_matches_STS_07(pattern: str, host: str, match: bool) -> None:
    assert parse_policy(GOOD.replace("mx.example.com", pattern).encode()).matches(host) is match


def test_the_name_of_the_mx_record_counts_and_not_what_it_is_an_alias_of_STS_08b() -> None:
    policy = parse_policy(GOOD.replace("mx.example.com", "mx.provider.example").encode())
    assert not policy.matches("mx.example.com")  # an alias of mx.provider.example in the DNS


LABEL = st.text(st.sampled_from("abz09"), min_size=1, max_size=5)
HOST = st.lists(LABEL, min_size=2, max_size=4).map(".".join).filter(lambda name: not name[-1].isdigit())
MX = st.one_of(HOST, HOST.map(lambda name: f"*.{name}"))


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    mode = draw(st.sampled_from(Mode))
    mx = draw(st.lists(MX, min_size=mode is not Mode.NONE, max_size=6, unique=True))
    return Policy(mode, draw(st.integers(0, MAX_AGE_LIMIT)), tuple(mx))


@given(policies())
def test_a_policy_that_we_print_is_read_as_it_was(policy: Policy) -> None:
    text = str(policy)
    assert text.count("\n") == text.count("\r\n")
    assert text.endswith("\r\n")
    assert parse_policy(text.encode()) == policy


@given(policies(), HOST)
def test_a_host_matches_exactly_where_a_whole_first_label_may_differ(policy: Policy, host: str) -> None:
    expected = any(
        mx == host or (mx.startswith("*.") and len(mx.split(".")) == len(host.split(".")) and host.endswith(mx[1:]))
        for mx in policy.mx
    )
    assert policy.matches(host) is expected


@given(st.binary(max_size=200), st.integers(0, len(GOOD)))
def test_no_octets_raise_anything_but_a_short_reason(octets: bytes, at: int) -> None:
    for body in (octets, GOOD[:at].encode() + octets + GOOD[at:].encode(), GOOD.encode() + octets):
        policy: Policy | None = None
        reason = ""
        try:
            policy = parse_policy(body)
        except PolicyError as error:
            reason = str(error)
        if policy is None:
            assert reason.isascii()
            assert reason.isprintable()
            assert 0 < len(reason) < 1000
        else:
            assert policy.max_age <= MAX_AGE_LIMIT
            assert policy.mode is Mode.NONE or policy.mx
            assert parse_policy(str(policy).encode()) == policy
