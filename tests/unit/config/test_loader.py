"""YAML from anybody: bounded, with lines, never half understood (CFG-01)."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.config.diagnostics import SourceLocation
from mailrail.core.config.loader import (
    DEPTH_LIMIT,
    DOCUMENTS_LIMIT,
    FILE_LIMIT,
    NODES_LIMIT,
    Cache,
    Document,
    load,
)

TWO = """# a comment
apiVersion: v1
kind: A
---

# another
kind: B
spec:
  rules:
    - name: x
      matches: [{toDomains: [a]},
                {toDomains: [b]}]
    - name: y
"""


def reason(source: str | bytes) -> str:
    loaded = load(source, "f.yaml")
    assert loaded.documents == ()
    [problem] = loaded.unreadable
    return f"{problem.place}: {problem.reason}"


def content(source: str) -> list[Any]:
    loaded = load(source, "f.yaml")
    assert loaded.unreadable == ()
    return [d.content for d in loaded.documents]


def test_each_document_knows_its_first_line_and_the_line_of_each_field() -> None:
    first, second = load(TWO, "mail.d/a.yaml").documents
    assert str(first.place) == "mail.d/a.yaml:2"
    assert str(second.place) == "mail.d/a.yaml:7"
    lines = {
        ("kind",): 7,
        ("spec", "rules", 0): 10,
        ("spec", "rules", 0, "matches", 1, "toDomains", 0): 12,
        ("spec", "rules", 1, "name"): 13,
        ("spec", "rules", 1, "nothing", "below"): 13,  # what is not there: the nearest thing above
        ("spec", "rules", 9): 9,
        ("status",): 7,
        (): 7,
    }
    assert {path: second.place_of(path).line for path in lines} == lines


def test_a_document_that_came_from_an_api_server_has_no_lines() -> None:
    assert Document({"kind": "A"}, SourceLocation("")).place_of(("kind",)) == SourceLocation("", 0)


def test_plain_values_are_what_people_mean() -> None:
    [found] = content(
        "a: yes\nb: 12\nc: 1.5\nd: 0644\ne: 1:30\nf: 2026-11-22\ng: null\nh: 'yes'\ni: 0x1F\nj: 1_000\nk: ~\nl:\n"
        "m: -5\nn: off\no: |\n  text\n  more\np: 1e3\nq: 00\n"
    )
    assert found == {
        "a": True,
        "b": 12,
        "c": 1.5,
        "d": "0644",
        "e": "1:30",
        "f": "2026-11-22",
        "g": None,
        "h": "yes",
        "i": 31,
        "j": 1000,
        "k": None,
        "l": None,
        "m": -5,
        "n": False,
        "o": "text\nmore\n",
        "p": "1e3",
        "q": "00",
    }


def test_empty_documents_comments_and_a_byte_order_mark_are_nothing() -> None:
    assert content("") == content("---\n---\n# only words\n---\n") == []
    loaded = load(b"\xef\xbb\xbfkind: A\n", "f.yaml")
    assert [d.content for d in loaded.documents] == [{"kind": "A"}]


def test_three_dashes_inside_a_value_do_not_end_a_document() -> None:
    assert content("a: |\n  ---\n  b\nc: --- d\n---\nkind: B\n") == [{"a": "---\nb\n", "c": "--- d"}, {"kind": "B"}]


def test_json_is_read_too() -> None:
    assert content('{"kind": "A", "spec": {"n": [1, true, null]}}') == [{"kind": "A", "spec": {"n": [1, True, None]}}]


def test_anchors_are_followed() -> None:
    assert content("a: &x [1, 2]\nb: *x\n") == [{"a": [1, 2], "b": [1, 2]}]


BAD: list[tuple[str | bytes, str]] = [
    ("a: 1\nb:\n  c: 1\n  c: 2\n", "f.yaml:4: the key 'c' appears twice in the same mapping"),
    (
        "kind: A\n---\nb: [1,\n",
        "f.yaml:3: this is not YAML: while parsing a flow node: did not find expected node content",
    ),
    ("kind: A\nb: 'x\n", "f.yaml:2: this is not YAML: while scanning a quoted scalar: found unexpected end of stream"),
    (
        "kind: A\n\tb: 1\n",
        "f.yaml:2: this is not YAML: the line is indented with a tab; use spaces",
    ),
    ("- a\n- b\n", "f.yaml:1: a document must be a mapping with apiVersion, kind, metadata and spec"),
    ("kind: A\n---\njust words\n", "f.yaml:3: a document must be a mapping with apiVersion, kind, metadata and spec"),
    (
        "a: !!python/object/apply:os.system [echo]\n",
        "f.yaml:1: the tag tag:yaml.org,2002:python/object/apply:os.system is not supported",
    ),
    ("a: !!binary aGk=\n", "f.yaml:1: the tag tag:yaml.org,2002:binary is not supported; binary values go into `data`"),
    ("a: {<<: {b: 1}}\n", "f.yaml:1: merge keys (<<) are not supported; repeat the fields"),
    ("? [a]\n: b\n", "f.yaml:1: a key must be plain text"),
    ("a: .inf\n", "f.yaml:1: .inf is not a finite number"),
    ("a: " + "9" * 5000 + "\n", "f.yaml:1: the number is too long"),
    ("a: 1\nb: \x01\n", "f.yaml:2: the file has characters that YAML does not allow"),
    (b"a: 1\nb: \xff\n", "f.yaml:2: the file is not UTF-8"),
    ("a: *nobody\n", "f.yaml:1: this is not YAML: found undefined alias"),
]


@pytest.mark.parametrize(("source", "message"), BAD)
def test_what_cannot_be_read_is_named_with_its_line(source: str | bytes, message: str) -> None:
    assert reason(source) == message


@pytest.mark.parametrize("opener", ["[", "{a: ", "- ", "? ", "a:\n "])
def test_deep_nesting_is_refused_and_crashes_nothing(opener: str) -> None:
    for depth in (DEPTH_LIMIT * 2, 300_000):
        assert load(opener * depth, "f.yaml").unreadable


def test_a_bomb_of_aliases_stops_at_the_bound() -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    assert f"the document has more than {NODES_LIMIT} values" in reason("\n".join(levels))


def test_too_large_a_file_and_too_many_documents_are_refused() -> None:
    assert "larger than 16 MiB; split it" in reason(b"#" * (FILE_LIMIT + 1))
    assert f"more than {DOCUMENTS_LIMIT} documents; split it" in reason("---\na: 1\n" * (DOCUMENTS_LIMIT + 1))


def test_a_cache_gives_the_same_answer_at_other_lines() -> None:
    cache: Cache = {}
    before = load(TWO, "f.yaml", cache)
    moved = load("---\nkind: C\n---\n" + TWO, "f.yaml", cache)
    assert load(TWO, "f.yaml", cache) == before
    assert [d.place.line for d in moved.documents] == [2, 5, 10]
    assert moved.documents[2].content is before.documents[1].content
    broken = load(TWO + "---\na: [", "f.yaml", cache)
    assert broken == load(TWO + "---\na: [", "f.yaml", cache)


@given(st.binary(max_size=300))
def test_no_octets_raise(source: bytes) -> None:
    loaded = load(source, "f.yaml")
    assert loaded.documents == () or not loaded.unreadable


@given(st.text(alphabet="ab:-[]{}#&*!|>'\"%@\n \t,?0~", max_size=200))
def test_no_text_raises_and_every_line_is_one_of_the_file(source: str) -> None:
    loaded = load(source, "f.yaml")
    for place in [u.place for u in loaded.unreadable] + [d.place for d in loaded.documents]:
        assert 1 <= place.line <= source.count("\n") + 1
    for document in loaded.documents:
        for key in document.content:
            assert document.place_of((key,)).line >= document.place.line


def test_what_was_never_closed_is_told_with_where_it_began() -> None:
    assert reason("kind: A\nmetadata: {name: x\n\nspec:\n  a: 1\n") == (
        "f.yaml:4: this is not YAML: while parsing a flow mapping that began 2 lines above: "
        "did not find expected ',' or '}'"
    )
