"""Which database services may use, and that mail is never left behind without a word."""

import pytest

from mailrail.cluster.database import Previous, Seen, Step, Used, decide, never_bound
from mailrail.cluster.move import Holdings

HERE, THERE = "bundled.mailrail-postgres", "external.0123456789ab"
USED = Used(HERE, "queue 2026-01-01")
NEW = Seen()
FULL = Seen("queue 2026-01-01", Holdings(queued=20, mailbox_messages=3))
EMPTY = Seen("queue 2026-01-01")


def step(used: Used | None, place: str, new: Seen, old: Seen | str, previous: Previous = Previous.REFUSE) -> Step:
    return decide(used, place, new, old, previous).step


def test_the_first_database_and_the_same_one_need_no_word() -> None:
    assert step(None, HERE, NEW, "") is Step.AGREE
    assert step(USED, HERE, NEW, "") is Step.AGREE, "also where its volume was lost: it comes back empty"


def test_another_database_is_refused_while_the_one_before_holds_mail_and_the_sentence_counts_it() -> None:
    verdict = decide(USED, THERE, NEW, FULL, Previous.REFUSE)
    assert verdict.step is Step.REFUSE
    for words in ("20 queued", "3 messages", "mailrail-postgres", "postgres.previous=move", "=leave"):
        assert words in verdict.why
    assert step(USED, THERE, NEW, FULL, Previous.MOVE) is Step.MOVE
    assert step(USED, THERE, NEW, FULL, Previous.LEAVE) is Step.AGREE


def test_another_database_is_agreed_to_where_no_mail_is_left_behind() -> None:
    assert step(USED, THERE, NEW, EMPTY) is Step.AGREE
    assert step(USED, THERE, NEW, "") is Step.AGREE, "nothing of it is left"
    assert step(USED, THERE, Seen("queue 2026-01-01"), FULL) is Step.AGREE, "a copy of it, by whatever hand"


def test_a_claim_that_never_had_a_volume_holds_nothing_so_that_another_class_may_be_named() -> None:
    assert never_bound({"status": {"phase": "Pending"}})
    assert not never_bound({"status": {"phase": "Bound"}})
    assert not never_bound({"status": {"phase": "Lost"}})
    assert not never_bound(None)


def test_what_moves_takes_along_more_than_mail() -> None:
    assert step(USED, THERE, NEW, EMPTY, Previous.MOVE) is Step.MOVE


def test_a_copy_that_nobody_finished_is_not_taken_for_one() -> None:
    unfinished = Seen("queue 2026-01-01", fenced=True)
    assert step(USED, THERE, unfinished, FULL) is Step.REFUSE
    assert step(USED, THERE, unfinished, FULL, Previous.MOVE) is Step.MOVE


@pytest.mark.parametrize("previous", [Previous.REFUSE, Previous.MOVE])
def test_a_database_that_nobody_can_look_into_is_not_left_behind_by_a_forgotten_value(previous: Previous) -> None:
    external = Used(THERE, "queue 2025-05-05")
    verdict = decide(external, HERE, NEW, "nothing can look into that one from here", previous)
    assert verdict.step is Step.REFUSE
    assert "--reset-then-reuse-values" in verdict.why
    assert step(external, HERE, NEW, "nothing can look into it", Previous.LEAVE) is Step.AGREE


def test_a_database_that_was_moved_away_is_not_used_again_by_a_rollback() -> None:
    moved = Seen("queue 2026-01-01", fenced=True, moved="moved by Mailrail to database mail on db")
    for used in (Used(THERE, "queue 2026-01-01"), USED, None):
        verdict = decide(used, HERE, moved, "", Previous.REFUSE)
        assert verdict.step is Step.REFUSE
        assert "database mail on db" in verdict.why
    assert step(Used(THERE), HERE, moved, "", Previous.LEAVE) is Step.AGREE
