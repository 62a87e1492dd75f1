"""Reading Authentication-Results (RFC 8601 2.2)."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.authres.foreign import authserv_ids, foreign_results
from mailrail.core.authres.read import (
    PROPERTIES_LIMIT,
    RESULTS_LIMIT,
    SIZE_LIMIT,
    read_arc_results,
    read_results,
)
from mailrail.core.authres.results import MethodResult, ResultProperty, ResultsError, ResultsField
from mailrail.core.authres.write import results_field, spf_result
from mailrail.core.message.header import Header

_HERE = Path(__file__).parent
MESSAGES = Path(__file__).parents[4] / "shared" / "data" / "authres" / "lieser"
CASES: Sequence[Mapping[str, Any]] = yaml.safe_load((_HERE / "cases.yml").read_text("utf-8"))
PUBLISHED: Sequence[Mapping[str, Any]] = yaml.safe_load((_HERE / "published.yml").read_text("utf-8"))


def of_kind(when: str) -> list[Any]:
    chosen = [pytest.param(case, id=case["id"]) for case in CASES if case["when"] == when]
    assert chosen
    return chosen


def test_each_case_is_of_a_kind_that_is_tested() -> None:
    assert {case["when"] for case in CASES} == {"read", "write", "receive from outside"}
    assert len(CASES) == 10


@pytest.mark.parametrize("case", of_kind("read"))
def test_a_field_is_read_as_the_grammar_says(case: Mapping[str, Any]) -> None:
    (field,) = Header(case["given"]["field"].encode("latin-1")).fields
    expect = case["expect"]
    if expect.get("valid") is False:
        with pytest.raises(ResultsError):
            read_results(field.value)
        return
    found = read_results(field.value)
    assert found.ignored is expect.get("ignored", False)
    if found.ignored:
        assert found.results == ()
        return
    assert found.authserv_id == expect["authserv_id"]
    assert found.version == expect.get("version", 1)
    assert [
        {"method": one.method, "result": one.result}
        | ({"props": {f"{p.ptype}.{p.name}": p.value for p in one.properties}} if one.properties else {})
        for one in found.results
    ] == expect["results"]


@pytest.mark.parametrize("case", of_kind("receive from outside"))
def test_forged_fields_go_and_others_stay_AR_01a(case: Mapping[str, Any]) -> None:
    header = Header("".join(case["given"]["fields"]).encode("latin-1"))
    gone = foreign_results(header.fields, authserv_ids([case["given"]["our_authserv_id"]]))
    assert [at for at, field in enumerate(header.fields) if field not in gone] == case["expect"]["kept"]


@pytest.mark.parametrize("case", of_kind("write"))
def test_what_is_written_is_as_expected_AR_03(case: Mapping[str, Any]) -> None:
    facts, expect = case["given"]["facts"], case["expect"]
    field = results_field("mx.example.org", [spf_result(facts["spf"], mail_from=facts["mail_from"])]).decode()
    assert expect["contains"] in field
    assert expect["must_not_contain"] not in field


@pytest.mark.parametrize("example", PUBLISHED, ids=range(len(PUBLISHED)))
def test_fields_as_they_are_published_are_read(example: Mapping[str, Any]) -> None:
    (field,) = Header(example["field"].encode()).fields
    if example.get("valid") is False:
        with pytest.raises(ResultsError):
            read_results(field.value)
        return
    if field.name == b"arc-authentication-results":
        instance, found = read_arc_results(field.value)
        assert instance == 1
        assert found.flawed  # `action=none` has no property type
    else:
        found = read_results(field.value)
        assert not found.flawed or example["field"].rstrip().endswith(";")
    assert found.authserv_id == example["authserv_id"]
    assert [f"{one.method}={one.result}" for one in found.results] == example["results"]


@pytest.mark.skipif(not MESSAGES.is_dir(), reason="the messages are not here")
def test_each_field_of_real_messages_is_read_unless_nobody_wrote_it() -> None:
    refused = set()
    for path in MESSAGES.glob("*.eml"):
        for field in Header(path.read_bytes()).named(b"authentication-results"):
            try:
                assert read_results(field.value).authserv_id.endswith(("example.net", "unrelated.com"))
            except ResultsError:
                refused.add(path.stem)
    assert refused == {
        "multiple_arh-newest_no_authserv",
        "multiple_arh-newest_parsing_error_02",  # `example/net`
        "multiple_arh-same_and_different_authserv",
    }


def test_a_comment_may_stand_wherever_the_grammar_has_one() -> None:
    field = b" (a) foo.example (b) 1 (c); (d) dkim (e) / (f) 1 (g) = (h) fail (i) policy (.) . (j) expired (k) = (l) 7"
    assert read_results(field) == ResultsField(
        "foo.example", (MethodResult("dkim", "fail", (ResultProperty("policy", "expired", "7"),)),)
    )


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("smtp.mailfrom=ann@example.org", "ann@example.org"),
        ("smtp.mailfrom=@example.org", "@example.org"),
        ('smtp.mailfrom="ann lee"@example.org', '"ann lee"@example.org'),
        ('smtp.mailfrom="a\\"b"', 'a"b'),
        ("smtp.mailfrom=\r\n  ann@example.org", "ann@example.org"),
        ("smtp.mailfrom=a=b/c?@example.org", "a=b/c?@example.org"),
        ("smtp.mailfrom=", ""),
    ],
)
def test_values_are_tokens_quoted_strings_or_addresses(written: str, value: str) -> None:
    (found,) = read_results(f"mx.example; spf=pass {written}".encode()).results
    assert found.value("smtp", "mailfrom") == value
    assert found.value("smtp", "helo") is None


@pytest.mark.parametrize(
    ("field", "results"),
    [
        ("mx.example; spf=pass action=none smtp.helo=x", ["spf=pass"]),
        ("mx.example; spf=pass word smtp.helo=x", ["spf=pass"]),
        ("mx.example; spf=pass =x smtp.helo=x", ["spf=pass"]),
        ("mx.example; spf; dkim=pass", ["dkim=pass"]),
        ("mx.example; spf=; dkim=pass", ["dkim=pass"]),
        ("mx.example;; dkim=pass", ["dkim=pass"]),
        ('mx.example; "; spf=pass"; dkim=pass', ["dkim=pass"]),
        ("mx.example; spf / x = pass; dkim=pass", ["dkim=pass"]),
        ("mx.example; none; dkim=pass", ["dkim=pass"]),
        ("mx.example; dkim=pass header.=x", ["dkim=pass"]),
    ],
)
def test_a_part_that_is_not_understood_is_passed_over(field: str, results: list[str]) -> None:
    found = read_results(field.encode())
    assert [f"{one.method}={one.result}" for one in found.results] == results
    assert found.flawed


@pytest.mark.parametrize(
    "field",
    [
        "",
        ";",
        "; spf=pass",
        "spf=pass smtp.mailfrom=example.org",
        "mx.example",
        "mx.example;",
        "mx.example; spf",
        "mx/example; spf=pass",
        "mx.example two; spf=pass",
        "mx.example (no end; spf=pass",
        'mx.example; spf=pass reason="no end',
        "mx.example" + "(" * 60 + ")" * 60 + "; none",
        "mx.example; " + ";".join(["spf=pass"] * (RESULTS_LIMIT + 1)),
        "mx.example; spf=pass" + " smtp.helo=x" * (PROPERTIES_LIMIT + 1),
        "mx.example; none" + " " * SIZE_LIMIT,
    ],
)
def test_what_cannot_be_read_is_an_error(field: str) -> None:
    with pytest.raises(ResultsError):
        read_results(field.encode())


@pytest.mark.parametrize("prefix", ["", "i=1", "x=1;", "i=0;", "i=51;", "i=;", "i=99999999999;", "1;"])
def test_an_arc_field_has_an_instance(prefix: str) -> None:
    with pytest.raises(ResultsError):
        read_arc_results(f"{prefix} mx.example; none".encode())


def test_an_instance_may_have_comments_and_blanks() -> None:
    assert read_arc_results(b" (a) I = (b) 50 (c) ;mx.example; none") == (50, ResultsField("mx.example", ()))


@given(st.one_of(st.binary(max_size=200), st.text('ab.=;()"\\/ 1\r\n', max_size=80).map(str.encode)))
def test_any_octets_are_read_or_are_an_error(value: bytes) -> None:
    for read in (read_results, read_arc_results):
        with suppress(ResultsError):
            read(value)


@pytest.mark.parametrize("piece", ["(", "()", '""', "\\", "a.", "a=", ";", "=", "-", "a-", ".", '"', "a b", "é"])
def test_a_full_field_of_anything_is_read_or_refused(piece: str) -> None:
    text = f"mx.example; spf=pass {piece * SIZE_LIMIT}"
    with suppress(ResultsError):
        read_results(text.encode()[:SIZE_LIMIT])
