"""What people write to order answers and delays of a sink."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mailrail.sink import CLOSE, Answers, Step
from mailrail.sink.rules import ADDRESSED, STEPS, BadRule, OrderedAnswer, answers_of, delay, rule

CODES = st.from_regex(r"[45][0-5][0-9]", fullmatch=True)
TEXTS = st.from_regex(r"[!-~]([ -~]{0,80}[!-~])?", fullmatch=True)
ADDRESSES = st.from_regex(r"[a-z.+0-9]{1,20}@[a-z0-9-]{1,20}\.(example|test)", fullmatch=True)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("RCPT *@busy.example 451 4.7.1 later", OrderedAnswer("RCPT", "@busy.example", "451 4.7.1 later")),
        ("RCPT @busy.example 451 later", OrderedAnswer("RCPT", "@busy.example", "451 later")),
        ("rcpt <Bob@b.test> 2x 550 5.1.1 no", OrderedAnswer("RCPT", "Bob@b.test", "550 5.1.1 no", 2)),
        ("RCPT postmaster 550 no", OrderedAnswer("RCPT", "postmaster", "550 no")),
        ("RCPT * 1X 450 no", OrderedAnswer("RCPT", "", "450 no", 1)),
        ("MAIL <> 550 5.7.1 no bounces", OrderedAnswer("MAIL", "@", "550 5.7.1 no bounces")),
        ("END 250 2.0.0 queued as 7", OrderedAnswer("END", "", "250 2.0.0 queued as 7")),
        ("  LHLO   502  5.5.1 no ", OrderedAnswer("EHLO", "", "502 5.5.1 no")),
        ("GREETING 554", OrderedAnswer("GREETING", "", "554 as the sink was told")),
        ("DATA 3x CLOSE", OrderedAnswer("DATA", "", CLOSE, 3)),
    ],
)
def test_a_rule_says_a_step_perhaps_an_address_and_a_count_and_a_reply(text: str, wanted: OrderedAnswer) -> None:
    assert rule(text) == wanted


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "'' is no step; begin with one of GREETING, EHLO"),
        ("VRFY 550 no", "'VRFY' is no step"),
        ("RCPT", "RCPT has no reply; write it as RCPT *@busy.example 451 4.7.1 later"),
        ("RCPT 2x", "'' is no reply to RCPT"),
        ("RCPT a@b.test", "'' is no reply to RCPT"),
        ("RCPT a@b.test 354 go on", "'354' is no reply to RCPT; write a code 2yz, 4yz, 5yz"),
        ("RCPT a@b.test 469 no", "'469' is no reply"),
        ("DATA 354 go on", "'354' is no reply to DATA; write a code 4yz, 5yz"),
        ("STARTTLS 220 as if", "'220' is no reply to STARTTLS"),
        ("DATA a@b.test 451 later", "DATA comes without an address"),
        ("DATA later", "DATA comes without an address, and 'later' is no reply; write DATA 451 4.3.0 later"),
        ("RCPT a*@b.test 451 later", "'a*@b.test' is no address; write an address, *@DOMAIN"),
        ("RCPT *@*.b.test 451 later", "is no address"),
        ("RCPT *@ 451 later", "is no address"),
        ("RCPT a@b.test 451 später", "must be one line of ASCII"),
        ("RCPT a@b.test 451 later\r\n250 ok", "must be one line of ASCII"),
        ("RCPT a\x1b@b.test 451 later", "characters that no address has"),
        ("RCPT 451 " + "x" * 510, "at most 510 characters"),
        ("RCPT " + "x" * 3000 + " 451 no", "more than 2000 characters"),
    ],
)
def test_what_is_no_rule_is_refused_with_what_to_write(text: str, words: str) -> None:
    with pytest.raises(BadRule) as refused:
        rule(text)
    assert words in str(refused.value)


@given(
    step=st.sampled_from(STEPS),
    to=st.one_of(st.none(), ADDRESSES, ADDRESSES.map(lambda one: "*" + one[one.index("@") :])),
    times=st.one_of(st.none(), st.integers(1, 10**9 - 1)),
    reply=st.one_of(st.just(CLOSE), st.tuples(CODES, TEXTS).map(" ".join)),
)
def test_what_is_written_by_the_grammar_is_what_the_rule_says(
    step: Step, to: str | None, times: int | None, reply: str
) -> None:
    if step not in ADDRESSED:
        to = None
    words = [step, *([to] if to else []), *([f"{times}x"] if times else []), reply]
    assert rule(" ".join(words)) == OrderedAnswer(step, (to or "").removeprefix("*"), reply, times)


@given(st.one_of(st.text(), st.tuples(st.sampled_from(STEPS), st.text()).map(" ".join)))
@example("RCPT <*> 451")
@example("RCPT \u00b2x 451")
def test_any_text_is_a_rule_of_one_line_or_is_refused(text: str) -> None:
    try:
        found = rule(text)
    except BadRule:
        return
    assert found.reply == CLOSE or (found.reply[:3].isdigit() and found.reply[3] == " ")
    assert found.reply.isascii()
    assert found.reply.isprintable()
    assert not {"*", "<", ">"} & set(found.to)


@given(st.one_of(st.text(), st.tuples(st.sampled_from(STEPS), st.text(alphabet="0123456789.-e ")).map(" ".join)))
@example("DATA nan")
@example("DATA 3601")
@example("DATA \u0663")
def test_any_text_is_a_delay_of_at_most_an_hour_or_is_refused(text: str) -> None:
    try:
        step, seconds = delay(text)
    except BadRule:
        return
    assert step in STEPS
    assert 0 <= seconds <= 3600


def test_a_delay_says_a_step_and_seconds() -> None:
    assert [delay("DATA 2.5"), delay(" end  0 ")] == [("DATA", 2.5), ("END", 0.0)]
    with pytest.raises(BadRule, match=r"'2m' is no delay from 0 to 3600 seconds; write a step and seconds: DATA 2\.5"):
        delay("DATA 2m")


def test_rules_are_ordered_with_their_delays() -> None:
    answers = Answers()
    answers_of([rule("RCPT *@b.test 451 later"), rule("RCPT a@b.test 1x 550 no")], [delay("END 1")], answers)
    assert [answers.take("RCPT", "a@b.test") for _ in range(2)] == ["550 no", "451 later"]
    assert answers.delays == {"END": 1.0}


@pytest.mark.parametrize(
    ("rules", "delays", "words"),
    [
        (["RCPT a@b.test 451", "rcpt <A@B.test> 550"], [], "RCPT has two answers for A@B.test; leave one out"),
        (["DATA 451", "DATA 2x 550"], [], "DATA has two answers for all"),
        ([], ["END 1", "END 2"], "END has two delays"),
        ([f"RCPT {number}@b.test 451" for number in range(1001)], [], "more than 1000 answers"),
    ],
    ids=["one address", "all", "delays", "too many"],
)
def test_two_orders_for_the_same_and_too_many_are_refused(rules: list[str], delays: list[str], words: str) -> None:
    with pytest.raises(BadRule) as refused:
        answers_of(map(rule, rules), map(delay, delays), Answers())
    assert words in str(refused.value)
