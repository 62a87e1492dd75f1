"""Whether a database went back, and who begins another history of it (HIS-01)."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.history import NOBODY, DatabaseState, HistoryVerdict, ServerIdentity, Words, judge, why

HERE = ServerIdentity("7412/16409", 1)
SEEN = DatabaseState(5, 4, HERE, HERE)
OTHERS = {
    ServerIdentity("7412/16409", 2): "a standby was promoted, or the server was restored",
    ServerIdentity("9000/16409", 1): "it is on another server than before",
    ServerIdentity("7412/17001", 1): "its tables were made anew: a dump was put back",
}


def test_a_process_that_begins_takes_the_number_that_is_there_HIS_01() -> None:
    assert judge(None, SEEN, word_known=False, behind=False) is HistoryVerdict.ADOPT
    assert judge(None, replace(SEEN, drawn_on=NOBODY), word_known=False, behind=False) is HistoryVerdict.ADOPT


def test_what_was_written_is_there_so_the_history_goes_on_HIS_01() -> None:
    assert judge(5, SEEN, word_known=True, behind=False) is HistoryVerdict.SAME


@pytest.mark.parametrize("server", OTHERS)
@pytest.mark.parametrize("own", [None, 5])
def test_another_server_than_the_history_began_on_is_another_history_HIS_01(
    own: int | None, server: ServerIdentity
) -> None:
    seen = replace(SEEN, server=server)
    assert judge(own, seen, word_known=True, behind=False) is HistoryVerdict.DRAW
    assert why(own, seen, word_known=True, behind=False) == OTHERS[server]


@pytest.mark.parametrize("own", [None, 5])
def test_counters_that_are_behind_are_those_of_a_database_that_went_back_HIS_01(own: int | None) -> None:
    assert judge(own, SEEN, word_known=True, behind=True) is HistoryVerdict.DRAW


def test_a_word_that_was_never_written_or_no_row_at_all_is_another_history_HIS_01() -> None:
    assert judge(5, SEEN, word_known=False, behind=False) is HistoryVerdict.DRAW


def test_who_notices_second_takes_the_number_that_the_first_drew_HIS_01() -> None:
    assert judge(5, replace(SEEN, number=9, followed=5), word_known=True, behind=False) is HistoryVerdict.ADOPT
    assert judge(5, replace(SEEN, number=9, followed=5), word_known=False, behind=False) is HistoryVerdict.ADOPT


def test_a_number_of_long_ago_that_came_back_with_the_data_is_used_by_nobody_HIS_01() -> None:
    assert judge(5, replace(SEEN, number=3, followed=2), word_known=False, behind=False) is HistoryVerdict.DRAW


@given(
    st.lists(st.sampled_from(["write", "commit", "lose", "look", "end"]), max_size=60),
    st.randoms(use_true_random=False),
)
def test_a_look_at_data_that_did_not_go_back_always_finds_a_word_that_is_known_HIS_01(steps: list[str], dice) -> None:  # type: ignore[no-untyped-def]
    """Whatever is lost and however long a look takes, as long as it takes less than so many heartbeats."""
    words, stored, under_way, looks = Words(), 0, None, []
    words.commit(words.next(0))
    for step in steps:
        if step == "write" and under_way is None:
            known, word = words.known(words.since), words.next(dice.getrandbits(62))
            if stored in known:
                under_way = word
        elif step == "commit" and under_way is not None:
            stored = under_way
            words.commit(under_way)
            under_way = None
        elif step == "lose" and under_way is not None:  # the connection broke: it was committed, or not
            stored = dice.choice([stored, under_way])
            under_way = None
        elif step == "look":
            looks.append((words.since, stored))
        elif looks:
            since, found = looks.pop(0)
            assert found in words.known(since)
    assert stored in words.known(words.since)


def test_data_that_went_back_to_before_the_last_committed_word_are_found_out_HIS_01() -> None:
    words = Words()
    first, second = words.next(1), words.next(2)
    words.commit(first)
    words.commit(second)
    assert first not in words.known(words.since)
