"""The TXT record of MTA-STS (RFC 8461 3.1)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.mtasts.record import StsRecord, policy_domain, policy_host, read_records, record_name
from mailrail.core.policy_record import NoRecord


def test_two_records_count_as_none_STS_01() -> None:
    found = read_records([[b"v=STSv1; id=1;"], [b"v=STSv1; id=2;"]])
    assert isinstance(found, NoRecord)
    assert "2 TXT records" in found.reason


def test_the_strings_of_a_record_are_joined_without_a_blank_STS_01() -> None:
    assert read_records([[b"v=STSv1; id=2026", b"0101T000000Z;"]]) == StsRecord("20260101T000000Z")


def test_records_of_others_are_passed_over_STS_01() -> None:
    others = [[b"v=spf1 -all"], [b"v=STSv10; id=2"], [b"v=stsv1; id=3"], [b" v=STSv1; id=4"], []]
    assert read_records([*others, [b"v=STSv1; id=1"]]) == StsRecord("1")
    assert isinstance(read_records(others), NoRecord)
    assert read_records([]) == NoRecord("there is no TXT record")


def test_without_a_semicolon_after_the_version_it_is_no_record_of_ours_STS_01() -> None:
    assert isinstance(read_records([[b"v=STSv1 id=1"]]), NoRecord)


@pytest.mark.parametrize(
    ("texts", "meant"),
    [
        ([], False),
        ([b"v=spf1 -all"], False),
        ([b"v=spf1 -all", b"v=STSv1 id=1"], True),
        ([b"v=stsv1; id=1;"], True),
        ([b"v=STSv1;"], True),
        ([b"v=STSv1; id=1;", b"v=STSv1; id=2;"], True),
    ],
)
def test_a_record_that_is_wrong_is_told_from_none_that_was_meant_STS_01(texts: list[bytes], meant: bool) -> None:
    found = read_records([[text] for text in texts])
    assert isinstance(found, NoRecord)
    assert found.faulty is meant


@pytest.mark.parametrize(
    ("text", "id_"),
    [
        (b"v=STSv1; a.b-c=hello; id=A1; id=B2", "A1"),
        (b"v=STSv1;id=1", "1"),
        (b"v=STSv1 ; id=1", None),
        (b"v=STSv1;\tid=1 \t; x=y ;", "1"),
        (b"v=STSv1; id=" + b"a" * 32, "a" * 32),
        (b"v=STSv1; id=" + b"a" * 33, None),
        (b"v=STSv1; id=", None),
        (b"v=STSv1; id=2026-01-01", None),
        (b"v=STSv1; ID=1", None),
        (b"v=STSv1; id =1", None),
        (b"v=STSv1; id=1; bad", None),
        (b"v=STSv1; id=1;;", None),
        (b"v=STSv1; id=1; x=a b", None),
        (b"v=STSv1; id=1; x=a=b", None),
        (b"v=STSv1; id=1; x=\xc3\xa4", None),
        (b"v=STSv1; id=1; " + b"n" * 33 + b"=v", None),
        (b"v=STSv1;", None),
        (b"v=STSv1; id=1; x=" + b"y" * 5000, None),
    ],
)
def test_the_fields_of_a_record_STS_02(text: bytes, id_: str | None) -> None:
    found = read_records([[text]])
    assert (found.id if isinstance(found, StsRecord) else None) == id_


@given(st.lists(st.lists(st.binary(max_size=300), max_size=3), max_size=3), st.binary(max_size=100))
def test_whatever_the_dns_says_is_a_record_or_a_short_reason(answer: list[list[bytes]], rest: bytes) -> None:
    for each in (answer, [[b"v=STSv1;", rest]], [[b"v=STSv1; id=", rest]]):
        found = read_records(each)
        if isinstance(found, NoRecord):
            assert found.reason.isascii()
            assert found.reason.isprintable()
            assert len(found.reason) < 500
        else:
            assert read_records([[str(found).encode()]]) == found


@given(st.text(st.sampled_from("abcXYZ0189"), min_size=1, max_size=32))
def test_a_record_that_we_print_is_read_as_it_was(id_: str) -> None:
    assert read_records([[str(StsRecord(id_)).encode()]]) == StsRecord(id_)


def test_the_policy_is_that_of_the_domain_itself_and_never_of_a_parent_STS_09a() -> None:
    assert policy_domain("Sub.Example.ORG.") == "sub.example.org"
    assert record_name("sub.example.org") == "_mta-sts.sub.example.org"
    assert policy_host("sub.example.org") == "mta-sts.sub.example.org"


@pytest.mark.parametrize("hop", ["[192.0.2.1]", "[IPv6:2001:db8::1]", "", ".", "a." * 124 + "example"])
def test_an_address_literal_and_a_name_without_room_have_no_policy_STS_09a(hop: str) -> None:
    assert policy_domain(hop) is None
