"""The library authres reads what we write as we mean it, and we read what it writes."""

import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.authres.read import read_results
from mailrail.core.authres.results import MethodResult
from mailrail.core.authres.write import auth_result, dkim_result, dmarc_result, results_field, spf_result

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its source is older than some of what Python warns of
    import authres

_TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40)
_NAMES = st.sampled_from(["example.org", "a.b.example", "bücher.example", "_x.example"])
_RESULTS = st.lists(
    st.one_of(
        st.builds(spf_result, st.sampled_from(["pass", "fail", "none"]), helo=_NAMES, comment=_TEXT),
        st.builds(
            lambda local, domain: spf_result("softfail", mail_from=f"<{local}@{domain}>"),
            st.from_regex(r"[a-z+_-]{1,20}", fullmatch=True),
            _NAMES,
        ),
        st.builds(dkim_result, st.sampled_from(["pass", "permerror"]), domain=_NAMES, selector=_NAMES, comment=_TEXT),
        st.builds(dmarc_result, st.just("fail"), author=_NAMES, policy=st.sampled_from(["none", "reject"])),
        st.builds(auth_result, st.just("pass"), st.sampled_from(["ann", "ann@bücher.example", "ann lee@a.example"])),
    ),
    max_size=4,
)


@given(_RESULTS)
def test_what_we_write_is_read_alike_AR_03(results: list[MethodResult]) -> None:
    theirs = authres.AuthenticationResultsHeader.parse(results_field("mx.example.org", results).decode())
    assert theirs.authserv_id == "mx.example.org"
    assert [
        (one.method, one.result, [(p.type, p.name, p.value) for p in one.properties]) for one in theirs.results
    ] == [(one.method, one.result, [(p.ptype, p.name, p.value) for p in one.properties]) for one in results] or (
        not results and [one.method for one in theirs.results] in ([], ["none"])
    )


def test_what_it_writes_is_read_alike() -> None:
    header = authres.AuthenticationResultsHeader(
        authserv_id="mx.example.org",
        results=[
            authres.SPFAuthenticationResult(result="pass", smtp_mailfrom="ann@example.org"),
            authres.DKIMAuthenticationResult(result="fail", reason='a "bad"; one', header_d="example.org"),
        ],
    )
    found = read_results(str(header).partition(":")[2].encode())
    assert found.authserv_id == "mx.example.org"
    assert [(one.method, one.result, one.reason) for one in found.results] == [
        ("spf", "pass", ""),
        ("dkim", "fail", 'a "bad"; one'),
    ]
    assert found.results[1].value("header", "d") == "example.org"


@pytest.mark.parametrize("value", [" spf=pass smtp.mailfrom=example.org", " mx.example (never; none"])
def test_what_is_no_field_is_none_to_both(value: str) -> None:
    with pytest.raises(authres.core.SyntaxError):
        authres.AuthenticationResultsHeader.parse(f"Authentication-Results:{value}")
    with pytest.raises(ValueError):
        read_results(value.encode())
