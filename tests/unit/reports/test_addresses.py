"""Where reports go: the URIs of strangers, and ours."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.reports.addresses import (
    DESTINATIONS_LIMIT,
    URIS_LIMIT,
    MailDestination,
    PostDestination,
    destinations,
    mailto,
)
from mailrail.core.smtp.address import Address, parse_address


def only(uri: str, *, post: bool = False) -> MailDestination | PostDestination | str:
    """The destination, or why it is none."""
    said = destinations([uri], post=post)
    return said.found[0] if said.found else said.skipped[0].reason


@pytest.mark.parametrize(
    ("uri", "address", "limit"),
    [
        ("mailto:d@example.com", "d@example.com", None),
        (" MailTo:d@EXAMPLE.com ", "d@example.com", None),
        ("mailto:d@example.com!10m", "d@example.com", 10 * 1024 * 1024),
        ("mailto:d@example.com!512", "d@example.com", 512),
        ("mailto:d@example.com!1K", "d@example.com", 1024),
        ("mailto:d@example.com!" + "9" * 40 + "t", "d@example.com", 2**63 - 1),
        ("mailto:d@example.com?subject=x!y", "", None),
        ("mailto:d@example.com?subject=x", "d@example.com", None),
    ],
)
def test_the_size_that_follows_an_address_is_no_part_of_it_DAGG_12(uri: str, address: str, limit: int | None) -> None:
    found = only(uri)
    if not address:
        assert found == "what follows the exclamation mark is no size"
        return
    assert isinstance(found, MailDestination)
    assert (str(found.address), found.limit) == (address, limit)


@pytest.mark.parametrize(
    ("uri", "local"),
    [
        ("mailto:a%21b@example.com", "a!b"),
        ("mailto:a%2Cb%2cc@example.com!1m", "a,b,c"),
        ("mailto:%22a%3Bb%22@example.com", "a;b"),
        ("mailto:%22a%2Cb%22@example.com", "a,b"),
        ("mailto:a%3Bb@example.com", "a;b"),
        ("mailto:%C3%A4@example.com", "ä"),
    ],
)
def test_escaped_characters_are_those_of_the_address_DAGG_13(uri: str, local: str) -> None:
    found = only(uri)
    assert isinstance(found, MailDestination)
    assert found.address.local == local


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("", "it is no URI"),
        ("d@example.com", "it is no URI"),
        ("ftp://x.example", "by mail alone"),
        ("https://r.example.com/x", "by mail alone"),
        ("mailto:", "address has no domain|local part is not valid"),
        ("mailto:no-at-sign", "address has no domain"),
        ("mailto://d@example.com", "no slashes"),
        ("mailto:a%zz@example.com", "percent sign"),
        ("mailto:%FF@example.com", "no valid address"),
        ("mailto:d@example.com!10x", "no size"),
        ("mailto:d@localhost", "no full domain name"),
        ("mailto:d@[192.0.2.1]", "no full domain name"),
        ("mailto:a@example.com%0D%0ABcc:b@example.com", "not valid"),
    ],
)
def test_what_is_no_address_is_skipped_with_the_reason_DAGG_13(uri: str, reason: str) -> None:
    said = destinations([uri, "mailto:ok@example.com"], post=False)
    assert [str(one.address) for one in said.found if isinstance(one, MailDestination)] == ["ok@example.com"]
    assert any(each in said.skipped[0].reason for each in reason.split("|")), said.skipped[0].reason


@pytest.mark.parametrize(
    ("uri", "host"),
    [
        ("https://r.example.com/v1", "r.example.com"),
        ("HTTPS://R.EXAMPLE.com:443/?a=b%20c", "r.example.com"),
        ("https://r.example.com", "r.example.com"),
    ],
)
def test_TLS_reports_go_by_HTTPS_too(uri: str, host: str) -> None:
    assert only(uri, post=True) == PostDestination(uri, host)


@pytest.mark.parametrize(
    "uri",
    [
        "http://r.example.com/",
        "https://127.0.0.1/",
        "https://[::1]/",
        "https://localhost/",
        "https://r.example.com:8443/",
        "https://r.example.com:x/",
        "https://user@r.example.com/",
        "https://r.example.com/#x",
        "https://r.example.com/ x",
        "https://r.example.com/%",
        "https:///x",
        "https://[/x",
        "https://r.example.com/" + "x" * 1000,
    ],
)
def test_no_other_URL_is_posted_to(uri: str) -> None:
    assert isinstance(only(uri, post=True), str)


def test_order_is_kept_each_counts_once_and_the_rest_is_told_DAGG_11a() -> None:
    uris = [f"mailto:{n}@example.com" for n in range(DESTINATIONS_LIMIT + 5)]
    said = destinations([uris[0], *uris, "broken"], post=False)
    assert [one.address.local for one in said.found if isinstance(one, MailDestination)] == [
        str(n) for n in range(DESTINATIONS_LIMIT)
    ]
    assert [one.reason for one in said.skipped] == ["no more than 10 addresses get a report"] * 5 + ["it is no URI"]


def test_no_more_uris_are_looked_at_than_a_record_can_mean() -> None:
    assert len(destinations(["x"] * 5000, post=False).skipped) == URIS_LIMIT


@pytest.mark.parametrize(
    ("local", "uri"),
    [
        ("d", "mailto:d@example.com"),
        ("a,b!c;d", "mailto:%22a%2Cb%21c%3Bd%22@example.com"),
        ("a!b", "mailto:a%21b@example.com"),
        ("50%", "mailto:50%25@example.com"),
        ("a?b", "mailto:a%3Fb@example.com"),
        ("ä", "mailto:%C3%A4@example.com"),
    ],
)
def test_commas_marks_and_semicolons_are_escaped_in_ours_TRPT_21(local: str, uri: str) -> None:
    """TRPT-21, DAGG-13."""
    assert mailto(Address(local, "example.com")) == uri


@given(st.from_regex(r"[a-z!#$%&'*+/=?^_`{|}~,;@\" -]{1,20}", fullmatch=True).filter(lambda local: local.strip()))
def test_what_we_write_is_read_as_it_was_meant_DAGG_13(local: str) -> None:
    """DAGG-13, TRPT-21."""
    address = Address(local, "example.com")
    uri = mailto(address)
    assert not set(uri) & set(",!; ")
    assert only(uri) == MailDestination(parse_address(str(address)))


@given(st.lists(st.text(max_size=30).map(lambda text: "mailto:" + text), max_size=5), st.booleans())
def test_nothing_is_raised_whatever_strangers_write(uris: list[str], post: bool) -> None:
    for skipped in destinations(uris + [uri.replace("mailto:", "https://") for uri in uris], post=post).skipped:
        assert skipped.uri.isascii()
        assert skipped.uri.isprintable()


@pytest.mark.parametrize("part", [";", "a;", "a;b@", ","])
def test_many_commas_cost_no_more_than_their_number(part: str) -> None:
    """Quadratic time would be minutes: the test would not end."""
    found = destinations(["mailto:" + part * 150_000], post=False)
    assert (found.found, len(found.skipped)) == ((), 1)
