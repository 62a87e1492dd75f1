"""Lists of tags (RFC 6376 3.2)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.dkim.tags import TAGS_LIMIT, TAGS_SIZE, TagError, octets, read_tags, without_value


def test_blanks_and_folds_around_names_and_values_mean_nothing() -> None:
    assert read_tags(b" v = 1 ;\r\n\ta=rsa-sha256\t; h = from :\r\n to ;") == {
        b"v": b"1",
        b"a": b"rsa-sha256",
        b"h": b"from :\r\n to",
    }


def test_one_semicolon_may_end_the_list() -> None:
    assert read_tags(b"v=1") == read_tags(b"v=1;") == read_tags(b"v=1; \r\n ") == {b"v": b"1"}


def test_a_value_may_be_empty_and_names_keep_their_case() -> None:
    assert read_tags(b"p=; P=x; n=a=b") == {b"p": b"", b"P": b"x", b"n": b"a=b"}


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        (b"", "is no tag"),
        (b"v", "'v' is no tag"),
        (b"v=1;;a=2", "'' is no tag"),
        (b"v=1; ;", "'' is no tag"),
        (b";v=1", "is no tag"),
        (b"1v=1", "is no tag"),
        (b"=1", "is no tag"),
        (b"v v=1", "is no tag"),
        (b"v=1; v=1", "v= comes twice"),
        (b"v=1\x00; a=2", "control character"),
        (b"\xff=1", "is no tag"),
        (b"v=" + b"1" * TAGS_SIZE, "octets"),
        (b";".join(b"a%d=1" % each for each in range(TAGS_LIMIT + 1)), "more than 64 tags"),
    ],
)
def test_a_list_that_can_be_read_in_two_ways_is_refused(text: bytes, wrong: str) -> None:
    with pytest.raises(TagError, match=wrong):
        read_tags(text)


def test_base64_may_be_folded_and_must_be_nothing_else() -> None:
    assert octets(b" aGVs\r\n\tbG8= ", "b") == b"hello"
    for broken in (b"aGVsbG8", b"aGVs*G8=", b"=", b"\xff"):
        with pytest.raises(TagError, match="b= is not base64"):
            octets(broken, "b")


def test_the_value_of_one_tag_is_taken_out_with_the_blanks_around_it() -> None:
    field = b"DKIM-Signature: v=1;\r\n b = ab\r\n c= ;\r\n bh=x=; d=b;"
    assert without_value(field, b"b") == b"DKIM-Signature: v=1;\r\n b =;\r\n bh=x=; d=b;"
    assert without_value(b"A:b=xyz", b"b") == b"A:b="


@given(st.binary(max_size=300) | st.lists(st.sampled_from([b"v=1", b";", b" ", b"\r\n", b"b=", b"x"])).map(b"".join))
def test_reading_any_octets_raises_nothing_but_its_error(text: bytes) -> None:
    try:
        tags = read_tags(text)
    except TagError:
        return
    assert tags
    without_value(b"Name:" + text, b"b")
