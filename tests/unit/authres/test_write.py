"""Writing Authentication-Results (RFC 8601 2.2): what others chose never breaks out of its place."""

import re
from email import message_from_bytes
from email.policy import SMTP

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.authres.read import read_results
from mailrail.core.authres.results import REGISTERED, MethodResult, ResultProperty
from mailrail.core.authres.write import auth_result, dkim_result, dmarc_result, results_field, spf_result

WHOLE = [
    spf_result("pass", mail_from="<ann@example.org>", comment="192.0.2.1 is permitted"),
    dkim_result("pass", domain="example.org", selector="s1", algorithm="rsa-sha256", signature="RNB1nVF/"),
    dkim_result("fail", domain="bücher.example", selector="s2", comment="body hash did not verify"),
    dmarc_result("pass", author="example.org", policy="reject"),
]


def value_of(field: bytes) -> bytes:
    name, colon, value = field.partition(b":")
    assert (name, colon) == (b"Authentication-Results", b":")
    return value


def test_the_whole_field_is_as_the_grammar_says_AR_03() -> None:
    assert results_field("mx.example.org", WHOLE).decode().splitlines() == [
        "Authentication-Results: mx.example.org;",
        "\tspf=pass (192.0.2.1 is permitted) smtp.mailfrom=ann@example.org;",
        "\tdkim=pass header.d=example.org header.s=s1 header.a=rsa-sha256",
        '\theader.b="RNB1nVF/";',
        "\tdkim=fail (body hash did not verify) header.d=xn--bcher-kva.example",
        "\theader.s=s2;",
        "\tdmarc=pass header.from=example.org policy.dmarc=reject",
    ]


def test_what_was_written_is_read_back_AR_03() -> None:
    found = read_results(value_of(results_field("mx.example.org", WHOLE)))
    assert found.authserv_id == "mx.example.org"
    assert not found.flawed
    assert [(one.method, one.result, one.properties) for one in found.results] == [
        (one.method, one.result, one.properties) for one in WHOLE
    ]


def test_the_standard_library_agrees_that_it_is_one_field_AR_03() -> None:
    message = message_from_bytes(results_field("mx.example.org", WHOLE) + b"\r\nbody\r\n", policy=SMTP)
    assert message.keys() == ["Authentication-Results"]


def test_where_nothing_was_checked_the_field_says_so_AR_04() -> None:
    assert results_field("mx.example.org", []) == b"Authentication-Results: mx.example.org; none\r\n"


def test_a_login_is_told_AR_03() -> None:
    field = results_field("mx.example.org", [auth_result("pass", "ann@example.org")])
    assert field == b"Authentication-Results: mx.example.org;\r\n\tauth=pass smtp.auth=ann@example.org\r\n"


@pytest.mark.parametrize(
    ("mail_from", "helo", "written"),
    [
        ("<ann@example.org>", "mx.far.example", "smtp.mailfrom=ann@example.org"),
        ("ann@Example.ORG", "", "smtp.mailfrom=ann@example.org"),
        ("example.org", "", "smtp.mailfrom=example.org"),
        ("ann@bücher.example", "", "smtp.mailfrom=ann@xn--bcher-kva.example"),
        ("änn@bücher.example", "", "smtp.mailfrom=xn--bcher-kva.example"),
        ('"a b"@example.org', "", 'smtp.mailfrom="\\"a b\\"@example.org"'),
        ("a=b@example.org", "", 'smtp.mailfrom="a=b@example.org"'),
        ("a@[192.0.2.1]", "", 'smtp.mailfrom="a@[192.0.2.1]"'),
        (f"{'a' * 400}@{'b' * 60}.{'b' * 60}.example", "", f"smtp.mailfrom={'b' * 60}.{'b' * 60}.example"),
        ("", "mx.far.example", "smtp.helo=mx.far.example"),
        ("", "[192.0.2.1]", 'smtp.helo="[192.0.2.1]"'),
        ("", "", ""),
    ],
)
def test_spf_names_the_identity_that_gave_the_result_AR_03(mail_from: str, helo: str, written: str) -> None:
    field = results_field("mx.example", [spf_result("pass", mail_from=mail_from, helo=helo)])
    assert (
        field.decode().replace("\r\n\t", " ").strip()
        == f"Authentication-Results: mx.example; spf=pass {written}".strip()
    )


@pytest.mark.parametrize(
    "result",
    [
        MethodResult("spf", "hardfail"),
        MethodResult("x-spam", "pass"),
        MethodResult("spf", "pass", (ResultProperty("smtp", "rcptto", "a@b.example"),)),
        MethodResult("dmarc", "pass", (ResultProperty("policy", "published-domain-policy", "none"),)),
    ],
)
def test_what_is_not_registered_is_not_written_AR_03(result: MethodResult) -> None:
    with pytest.raises(ValueError, match=r"not registered|no property"):
        results_field("mx.example", [result])


ANY = st.text(max_size=300)
"""What a sender may have chosen."""
HOSTILE = st.text('a.@;()\\"=\r\n\t /é\x00', max_size=120)


@given(
    st.lists(
        st.builds(
            lambda method, choice, values, reason, comment: MethodResult(
                method,
                sorted(REGISTERED[method].results)[choice % len(REGISTERED[method].results)],
                tuple(
                    ResultProperty(ptype, name, value)
                    for (ptype, name), value in zip(sorted(REGISTERED[method].properties), values, strict=False)
                ),
                reason,
                comment,
            ),
            st.sampled_from(sorted(REGISTERED)),
            st.integers(0, 20),
            st.lists(ANY | HOSTILE, max_size=5),
            ANY | HOSTILE,
            ANY | HOSTILE,
        ),
        min_size=1,
        max_size=5,
    )
)
def test_nothing_that_a_sender_chose_breaks_out_of_its_place_AR_03(results: list[MethodResult]) -> None:
    field = results_field("mx.example.org", results)
    assert field.endswith(b"\r\n")
    lines = field[:-2].split(b"\r\n")
    for line in lines:
        assert len(line) <= 998
        assert re.fullmatch(rb"[\t -~]+", line)
    assert all(line.startswith(b"\t") and line.strip() for line in lines[1:])
    found = read_results(value_of(field))
    assert not found.flawed
    assert [(one.method, one.result) for one in found.results] == [(one.method, one.result) for one in results]
    for read, meant in zip(found.results, results, strict=True):
        assert {(p.ptype, p.name) for p in read.properties} <= {(p.ptype, p.name) for p in meant.properties}
        for one in read.properties:
            assert one.value == re.sub(r"[^ -~]", "?", meant.value(one.ptype, one.name) or "")


@given(ANY | HOSTILE, ANY | HOSTILE)
def test_any_name_of_a_sender_makes_one_result_AR_03(mail_from: str, helo: str) -> None:
    field = results_field("mx.example.org", [spf_result("fail", mail_from=mail_from, helo=helo)])
    (found,) = read_results(value_of(field)).results
    assert found.result == "fail"
    assert len(found.properties) <= 1


@given(st.lists(st.sampled_from(WHOLE), min_size=1, max_size=8), st.from_regex(r"[a-z]{1,20}\.example", fullmatch=True))
def test_lines_have_78_characters_where_words_allow_it(results: list[MethodResult], name: str) -> None:
    assert max(map(len, results_field(name, results).split(b"\r\n"))) <= 78
