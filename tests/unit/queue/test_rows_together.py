"""Which rows of large bodies share a transaction (`mailrail_queue.accept.bodies`)."""

from collections import deque

from mailrail_queue.accept.bodies import RowsToStore, take_rows
from mailrail_queue.store.content import ChunkRows


def waiting(*uploads: tuple[str, int]) -> deque[RowsToStore]:
    return deque(RowsToStore(ChunkRows(name.encode(), 0, [b"x"] * count)) for name, count in uploads)


def taken(rows: deque[RowsToStore]) -> list[str]:
    return [one.rows.message_id.decode() for one in take_rows(rows)]


def test_eight_rows_go_together_in_the_order_in_which_they_came() -> None:
    rows = waiting(("a", 4), ("b", 1), ("c", 3), ("d", 1))
    assert taken(rows) == ["a", "b", "c"]
    assert taken(rows) == ["d"]
    assert taken(rows) == []


def test_what_does_not_fit_is_not_passed_by_what_would() -> None:
    rows = waiting(("a", 4), ("b", 2), ("c", 4), ("d", 1))
    assert taken(rows) == ["a", "b"]
    assert taken(rows) == ["c", "d"]


def test_more_rows_than_fit_go_alone() -> None:
    rows = waiting(("a", 40), ("b", 1))
    assert taken(rows) == ["a"]


def test_no_upload_is_twice_in_one_statement_which_could_not_change_its_row_twice() -> None:
    rows = waiting(("a", 1), ("b", 1), ("a", 1), ("c", 1))
    assert taken(rows) == ["a", "b"]
    assert taken(rows) == ["a", "c"]
