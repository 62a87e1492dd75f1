"""The language in which recipients are searched: what is read, and what an error points at (QRY-01)."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core import moments, search
from mailrail.core.search import Operator, QuerySyntaxError, SearchField, SearchPart, Term, parse

NOW = datetime(2026, 11, 22, 18, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
MESSAGE = "0197b3f0-1c2d-7e3f-8a4b-5c6d7e8f9a0b"


def read(query: str) -> list[tuple[str, str, object]]:
    return [(one.field.value, one.operator.value, one.value) for one in parse(query, NOW)]


@pytest.mark.parametrize(
    ("query", "meant"),
    [
        ("", []),
        ("   ", []),
        ("id:7", [("id", "", 7)]),
        (f"msg:{MESSAGE}", [("msg", "", UUID(MESSAGE))]),
        ("msgid:<a.b@c.example>", [("msgid", "", "<a.b@c.example>")]),
        ("msgid:a.b@c.example", [("msgid", "", "<a.b@c.example>")]),
        ("to:Alice@Example.ORG", [("to", "", "Alice@example.org")]),
        ("to:alice@bücher.example", [("to", "", "alice@xn--bcher-kva.example")]),
        ("to:alice*", [("to", "like", "alice*")]),
        ('to:"\\"a b\\"@example.org"', [("to", "", '"a b"@example.org')]),
        ("from:<>", [("from", "", "")]),
        ("from:*lic*", [("from", "like", "*lic*")]),
        ("domain:Bücher.example.", [("domain", "", "xn--bcher-kva.example")]),
        ("domain:.x.example", [("domain", "under", "x.example")]),
        ("domain:[192.0.2.1]", [("domain", "", "[192.0.2.1]")]),
        ("from-domain:x.example", [("from-domain", "", "x.example")]),
        ("account:default/alice", [("account", "", "default/alice")]),
        ("account:default/*", [("account", "under", "default")]),
        ("site:domain:x.example", [("site", "", "domain:x.example")]),
        ("transport:default/relay", [("transport", "", "default/relay")]),
        ("STATE:Held", [("state", "", "held")]),
        ("queued:<-2h", [("queued", "<", NOW - 2 * HOUR)]),
        ("due:>1d", [("due", ">", NOW + 24 * HOUR)]),
        ("due:<=now", [("due", "<=", NOW)]),
        ("queued:>2026-11-22T12:00:00+02:00", [("queued", ">", NOW - 8 * HOUR)]),
        (
            "finished:2026-11-22",
            [("finished", ">=", NOW - 18 * HOUR), ("finished", "<", NOW + 6 * HOUR)],
        ),
        (
            "queued:2026-11-20..2026-11-22",
            [("queued", ">=", NOW - 66 * HOUR), ("queued", "<", NOW + 6 * HOUR)],
        ),
        ("queued:-2h..-1h", [("queued", ">=", NOW - 2 * HOUR), ("queued", "<=", NOW - HOUR)]),
        ("attempts:3", [("attempts", "", 3)]),
        ("attempts:>=3", [("attempts", ">=", 3)]),
        ("attempts:1..3", [("attempts", ">=", 1), ("attempts", "<=", 3)]),
        ("tls:required origin:mx", [("tls", "", "required"), ("origin", "", "mx")]),
    ],
)
def test_a_field_and_its_value_are_read_as_the_table_says_QRY_01(query: str, meant: object) -> None:
    assert read(query) == meant


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("1234", "id:1234"),
        (MESSAGE, f"msg:{MESSAGE}"),
        (MESSAGE.replace("-", ""), f"msg:{MESSAGE}"),
        ("<a@b.example>", "msgid:<a@b.example>"),
        ("bob@example.org", "to:bob@example.org"),
        ("example.org", "domain:example.org"),
        ("bob", "to:*bob*"),
        ("bob*", "to:bob*"),
        ("bob@", "to:*bob@*"),
        ('"12"', "to:*12*"),
        ('"two words"', 'to:"*two words*"'),
    ],
)
def test_a_bare_word_is_guessed_by_its_shape_and_the_guess_can_be_shown_QRY_01(word: str, meant: str) -> None:
    (found,) = parse(word, NOW)
    assert found.guessed
    assert str(found) == meant
    assert read(meant) == read(word)


@pytest.mark.parametrize(
    ("query", "at", "words"),
    [
        ("id:7 too:bob@example.org", 5, "did you mean to:?"),
        ("colour:red", 0, "the fields are id, msg,"),
        ("to:", 3, "a value is missing: write to:alice@example.org"),
        ("id:7 id:x", 8, "write id:1234"),
        ("id:99999999999999999999", 3, "write id:1234"),
        ("to:bob", 3, "write to:alice@example.org, to:alice* or to:*part*"),
        ("to:*", 3, "leave it out"),
        ("*", 0, "leave it out"),
        ("msg:12", 4, "250 accepted as"),
        ("msgid:<>", 6, "Message-ID"),
        ("domain:-x-", 7, "write domain:example.org"),
        ("account:alice@example.org", 8, "NAMESPACE/NAME"),
        ("account:*/x", 8, "NAMESPACE/NAME"),
        ("transport:default/*", 10, "NAMESPACE/NAME"),
        ("state:asleep", 6, "one of queued, sending,"),
        ("tls:yes", 4, "default, required, no"),
        ("queued:-2h", 7, "begin with < or >"),
        ("queued:<yesterday", 7, "write -2h (ago)"),
        ("queued:<999999d999999d", 7, "is not a time"),
        ("due:>-999999d", 4, "is not a time"),
        ("due:9999-12-31", 4, "write due:<1h"),
        ("attempts:some", 9, "attempts:>=3"),
        ('to:"bob', 3, "is not closed"),
        ('to:"bob"x', 8, "a blank is missing"),
        ('to:bo"b', 5, "stands around a whole value"),
        ("to:b\0b*", 4, "control characters"),
        ("to:" + "x" * 501, 3, "at most 500 characters"),
        ("x " * 1001, 2000, "at most 2000 characters"),
        ("id:1 " * 21, 100, "at most 20 conditions"),
    ],
)
def test_what_cannot_be_read_is_refused_at_its_place_with_the_right_form_QRY_01(
    query: str, at: int, words: str
) -> None:
    with pytest.raises(QuerySyntaxError) as refused:
        parse(query, NOW)
    assert refused.value.at == at
    assert words in refused.value.problem
    assert str(refused.value).startswith(f"character {at + 1}: ")


def test_an_error_is_shown_with_a_mark_below_its_place_QRY_01() -> None:
    query = "id:7 state:asleep"
    with pytest.raises(QuerySyntaxError) as refused:
        parse(query, NOW)
    _, shown, mark = refused.value.pointed(query).splitlines()
    assert shown[mark.index("^") :] == "asleep"


def test_of_a_long_query_only_what_is_around_the_error_is_shown() -> None:
    query = "id:1 " * 19 + "state:asleep\t" + "x" * 300
    with pytest.raises(QuerySyntaxError) as refused:
        parse(query, NOW)
    _, shown, mark = refused.value.pointed(query).splitlines()
    assert len(shown) <= 102
    assert shown[mark.index("^") :].startswith("asleep ")


@given(st.text(alphabet=st.sampled_from('abid:<>=.*"\\ @/-0129é\0\ntoqueudmsg'), max_size=60) | st.text(max_size=60))
def test_any_text_is_read_or_refused_and_what_was_read_reads_the_same_again_QRY_01(query: str) -> None:
    problem = None
    try:
        found = parse(query, NOW)
    except QuerySyntaxError as refused:
        problem = refused
    if problem is not None:
        assert 0 <= problem.at <= len(query)
        return
    again = parse(" ".join(map(str, found)), NOW)
    assert [(c.field, c.operator, c.value) for c in again] == [(c.field, c.operator, c.value) for c in found]


def test_a_query_knows_where_it_can_be_fulfilled() -> None:
    def where(query: str) -> set[SearchPart]:
        return set(search.parts(parse(query, NOW)))

    assert where("to:bob*") == {SearchPart.QUEUE, SearchPart.HISTORY}
    assert where("state:held") == where("due:<1h") == where("transport:a/b") == {SearchPart.QUEUE}
    assert where("state:failed") == where("finished:>-1h") == {SearchPart.HISTORY}
    assert where("state:failed due:<1h") == set()


@pytest.mark.parametrize(
    ("query", "part", "command"),
    [
        ("to:bob* state:failed", SearchPart.QUEUE, "mailrail queue history"),
        ("due:<1h", SearchPart.HISTORY, "mailrail queue list"),
    ],
)
def test_what_is_only_elsewhere_is_refused_with_the_command_that_looks_there(
    query: str, part: SearchPart, command: str
) -> None:
    with pytest.raises(QuerySyntaxError, match=command):
        search.check_part(parse(query, NOW), part)


def test_every_state_is_of_one_part() -> None:
    for state in search.SearchState:
        assert len(search.parts([Term(SearchField.STATE, Operator.IS, state.value)])) == 1


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("1h30m", 5400), ("-2d", -172800), ("+5m", 300)])
def test_a_span_is_read_as_people_write_it(text: str, seconds: int) -> None:
    assert moments.span(text).total_seconds() == seconds


@pytest.mark.parametrize("text", ["", "-", "--5m", "5", "5x", "m", "5m5m"])
def test_what_is_no_span_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(moments.UnreadableTime, match="90s, 5m, 1h30m or 2d"):
        moments.span(text)
