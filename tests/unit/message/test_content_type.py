"""Content-Type as RFC 2045, RFC 2046 and RFC 2231 write it, and as software does."""

import email.message
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.message.content_type import parse_content_type, transfer_encoding


@pytest.mark.parametrize(
    ("value", "boundaries"),
    [
        ("multipart/mixed; boundary=bb", ("bb",)),
        ('Multipart/Mixed; charset=x; BOUNDARY="b b "', ("b b",)),
        ('multipart/mixed;boundary="b\\"b\\\\"', ('b"b\\',)),
        ("multipart/mixed", ()),
        ("multipart/mixed; boundary=", ()),
        ('multipart/mixed; boundary=""', ()),
        # RFC 2231 3 and 4
        ('multipart/mixed; boundary*0="b"; boundary*1="b"', ("bb",)),
        ('multipart/mixed; boundary*1="b"; boundary*0="a"; boundary*3=x', ("ab",)),
        ("multipart/mixed; boundary*=us-ascii'en'b%62", ("bb",)),
        ("multipart/mixed; boundary*0*=''b%2; boundary*1=b", ("b%2b",)),
        ("multipart/mixed; boundary*1=b", ()),
        ("multipart/mixed; boundary*0=b; boundary=a", ("a",)),
        # what only looks like one
        ('multipart/related; start="<x;boundary=zz>"; boundary=bb', ("bb",)),
        ("multipart/mixed (see; boundary=zz); boundary=bb", ("bb",)),
        ("multipart/mixed (a (nested \\) one; boundary=zz)); boundary=bb (this one)", ("bb (this one)", "bb")),
        ("multipart (x) / (y) mixed (z) ; (q) boundary (r) = (s) bb", ("(s) bb", "bb")),
        ("multipart/mixed; x-boundary=zz; boundary=bb", ("bb",)),
        ("multipart/mixed; boundary=bb; boundary=zz", ("bb",)),
        # without the quotes that they need
        ("multipart/mixed; boundary=bb cc; charset=x", ("bb cc", "bb")),
        ("multipart/mixed; boundary=----=_Part/1:2@x?", ("----=_Part/1:2@x?",)),
        ("multipart/mixed; boundary=(bb", ("(bb",)),
        ('multipart/mixed; boundary="bb', ("bb",)),
        ('multipart/mixed; name="a;b" junk; boundary=bb', ("bb",)),
        ("multipart/mixed junk; boundary=bb", ("bb",)),
        ("multipart/mixed;;; boundary=bb;", ("bb",)),
        ("multipart/mixed; boundary=" + "b" * 300, ()),
    ],
)
def test_a_boundary_is_found_where_the_rfcs_have_it_and_nowhere_else(value: str, boundaries: tuple[str, ...]) -> None:
    found = parse_content_type(value)
    assert found is not None
    assert found.kind.startswith("multipart/")
    assert found.boundaries == boundaries


@pytest.mark.parametrize("value", ["", "text", "text/", "/plain", "(text/plain", "text plain", "multipart/mixed/x"])
def test_what_is_no_type_is_none_RFC_2045_5_2(value: str) -> None:
    assert parse_content_type(value) is None


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("8bit", "8bit"),
        (" BASE64 ", "base64"),
        ("(a (b) c) quoted-printable (d)", "quoted-printable"),
        ("(" + "x" * 9000 + ") base64", "base64"),
        ("base64;", "base64"),
        ("7bit; charset=x", "7bit"),
        ("", ""),
        ("(", ""),
    ],
)
def test_the_name_of_an_encoding_is_what_is_no_comment_RFC_2045_6_1(value: str, name: str) -> None:
    assert transfer_encoding(value) == name


_crumbs = st.sampled_from(
    [
        "multipart/mixed",
        "text/plain",
        ";",
        " ",
        "=",
        '"',
        "\\",
        "(",
        ")",
        "boundary",
        "*0",
        "*",
        "bb",
        "'",
        "%62",
        "\u00e9",
    ]
)


@given(st.lists(_crumbs, max_size=20).map("".join) | st.text(max_size=60))
def test_no_value_breaks_the_reader(value: str) -> None:
    found = parse_content_type(value)
    if found is not None:
        assert all(0 < len(boundary) <= 250 for boundary in found.boundaries)
    transfer_encoding(value)


_words = st.text(st.sampled_from("abcXYZ019'()+_,-./:=? "), min_size=1, max_size=12).map(str.strip).filter(bool)


@given(_words, st.dictionaries(st.sampled_from(["charset", "name", "x-y"]), st.text(max_size=8)))
def test_what_the_standard_library_writes_is_read_back(boundary: str, others: dict[str, str]) -> None:
    message = email.message.Message()
    message.add_header("Content-Type", "multipart/mixed", **others)
    message.set_param("boundary", boundary)
    found = parse_content_type(str(message["Content-Type"]))
    assert found is not None
    assert found.boundaries[-1] == boundary


@pytest.mark.parametrize("crumb", ['"', "(", '"\\', "\\", ";", ";x=", '"\\"', "()", "(\\", 'a="', "x*0=;"])
def test_a_long_value_takes_steps_in_proportion_to_its_length(crumb: str) -> None:
    value = "multipart/mixed; " + crumb * (200_000 // len(crumb))
    begun = time.process_time()
    parse_content_type(value)
    transfer_encoding(value)
    assert time.process_time() - begun < 5  # squares of it would be minutes
