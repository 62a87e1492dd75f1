"""Which Authentication-Results fields go (RFC 8601 5)."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.authres import foreign
from mailrail.core.authres.foreign import authserv_ids, foreign_results
from mailrail.core.message.header import Field, Header, tokens

OURS = authserv_ids(["mx.example.org", "MX2.example.org", "mx.bücher.example"])


def fields(*values: str) -> list[Field]:
    block = "".join(f"Authentication-Results: {value}\r\n" for value in values)
    return Header(block.encode()).named(b"authentication-results")


@pytest.mark.parametrize(
    ("value", "goes"),
    [
        ("mx.example.org; dkim=pass", True),
        ("MX.Example.ORG 1; none", True),
        ("(comment) mx.example.org;", True),
        ("mx.example.org", True),
        ('"mx.example.org"; spf=pass', True),
        ("mx\r\n .example.org; none", True),
        ("mx.example.org.; none", True),
        ("mx2.example.org; none", True),
        ("other.example.org; dkim=pass", False),
        ("mx.example.org.evil.example; none", False),
        ("notmx.example.org; none", False),
        ("mx.example.org1; none", False),
        ("", True),
        ("(never ends mx.example.org", True),
        ("other.example.org; (never ends", False),
        ("mx.example.org; (never ends", True),
        ("a." * 10_000, True),
        ('""' * 1000 + '"mx.example.org', True),
        ("(" + "x" * 20_000 + ") mx.example.org", True),
    ],
)
def test_results_that_pretend_to_be_ours_go_AR_01a(value: str, goes: bool) -> None:
    assert bool(foreign_results(fields(value), OURS)) is goes


@pytest.mark.parametrize(
    ("value", "goes"),
    [
        ("other.example 1; none", False),
        ("other.example (2) 1; none", False),
        ("other.example (a comment) 2; spf=pass", True),
        ("other.example\r\n 2\r\n ; spf=pass", True),
        ("other.example 0; none", True),
        ("other.example 12345678901234567890; none", True),
        ("mx.xn--bcher-kva.example; none", True),
        ("mx.bücher.example; none", True),
        ("MX.BÜCHER.example 1; none", True),
        ("mx.büchner.example; none", False),
    ],
)
def test_unknown_versions_go_and_ids_are_compared_in_A_labels_AR_01b(value: str, goes: bool) -> None:
    assert bool(foreign_results(fields(value), OURS)) is goes


def test_no_more_of_all_results_is_read_than_names_need_AR_01a(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred fields of six hundred words took a tenth of a second of any stranger's message."""
    read: list[str] = []

    def counted(text: str) -> Iterator[tuple[str, str, int]]:
        for token in tokens(text):
            read.append(token[1])
            yield token

    monkeypatch.setattr(foreign, "tokens", counted)
    found = foreign_results(fields(*["a." * 1250] * 100), OURS)
    assert len(found) == 100, "what is not read could be ours to a lenient reader"
    assert len(read) < 10_000
    assert foreign_results(fields(*["other.example.org; dkim=pass header.d=far.example"] * 100), OURS) == []


@pytest.mark.parametrize("left", range(1, 17))
def test_an_id_of_ours_that_is_cut_off_where_reading_ends_goes_AR_01a(left: int) -> None:
    """A stranger who filled what is read left `mx.exam` of our name, which looked like somebody else's."""
    first = fields(f"({'x' * (foreign._IDS_WITHIN - left - 4)}")  # its value begins with a blank
    both = first + fields("mx.example.org 1; spf=pass")
    assert foreign_results(both, OURS) == both


@given(st.lists(st.text(max_size=60), max_size=5))
def test_any_fields_are_kept_or_removed(values: list[str]) -> None:
    found = foreign_results(fields(*values), OURS)
    assert len(found) <= len(values) * 61  # a text may hold lines that are fields of their own


@given(
    st.text('mx.eaplorgMX (),;="\\\r\n\t12', max_size=30), st.sampled_from(["", " ", "\r\n ", "(x)", "(a(b)\r\n c) "])
)
def test_nothing_before_our_name_hides_it(after: str, before: str) -> None:
    ends = ";" + after.replace("\r", "").replace("\n", "")
    assert len(foreign_results(fields(before + "mx.example.org" + before + ends), OURS)) == 1
