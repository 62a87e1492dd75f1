"""The list of public suffixes (RFC 7489 3.2)."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.dmarc.psl import LIST_LIMIT, SuffixListError, packaged_list, read_list


@pytest.mark.parametrize(
    ("domain", "organization"),
    [
        ("example.com", "example.com"),
        ("a.b.example.com", "example.com"),
        ("a.b.example.co.uk", "example.co.uk"),
        ("co.uk", "co.uk"),
        ("com", "com"),
        ("a.b.city.kawasaki.jp", "city.kawasaki.jp"),
        ("a.xn--55qx5d.cn", "a.xn--55qx5d.cn"),
        ("a.b.no-such-suffix", "b.no-such-suffix"),
        ("localhost", "localhost"),
    ],
)
def test_the_packaged_list_knows_where_an_organization_begins_DMRC_20a(domain: str, organization: str) -> None:
    assert packaged_list().organizational_domain(domain) == organization


def test_a_file_replaces_it_DMRC_20a() -> None:
    rules = read_list("// ours\nexample\n*.shop.example\n!own.shop.example\nbücher.example\n".encode())
    for domain, organization in {
        "a.b.example": "b.example",
        "x.a.b.shop.example": "a.b.shop.example",
        "x.a.b.c.shop.example": "b.c.shop.example",
        "a.own.shop.example": "own.shop.example",
        "b.a.xn--bcher-kva.example": "a.xn--bcher-kva.example",
    }.items():
        assert rules.organizational_domain(domain) == organization


@pytest.mark.parametrize(
    "octets", [b"", b"// nothing\n\n", b"\xff\xfe", b"a" * (LIST_LIMIT + 1), ("x" * 64 + "é.example").encode()]
)
def test_a_file_that_is_no_list_is_an_error_that_says_what_to_do(octets: bytes) -> None:
    with pytest.raises(SuffixListError, match=r"get it from publicsuffix\.org"):
        read_list(octets)


@given(st.binary(max_size=60) | st.text("ab.*!/ \né", max_size=40).map(str.encode))
def test_any_file_is_a_list_or_an_error(octets: bytes) -> None:
    try:
        rules = read_list(octets)
    except SuffixListError:
        return
    for domain in ("a.b.ab", "b", "a.a"):
        assert ("." + domain).endswith("." + rules.organizational_domain(domain))


def test_the_packaged_list_is_not_read_before_somebody_asks_DMRC_20a() -> None:
    code = (
        "from mailrail.core.dmarc import evaluate, psl\n"
        "assert psl.packaged_list.cache_info().currsize == 0\n"
        "assert psl.packaged_list() is psl.packaged_list()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
