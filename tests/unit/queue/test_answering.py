"""Errors inside an administrative call as the status that its caller sees (ADM-04)."""

import grpc
import psycopg
import pytest
from psycopg_pool import PoolTimeout

from mailrail_queue.admin.change_result import ChangeResult, PartlyDone
from mailrail_queue.admin.filters import BadRequest, NotFound
from mailrail_queue.rpc.answering import status_of

DEADLOCK = psycopg.errors.DeadlockDetected("deadlock detected")
CODE = grpc.StatusCode


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (BadRequest("say when"), CODE.INVALID_ARGUMENT, "say when"),
        (NotFound("no message 5"), CODE.NOT_FOUND, "no message 5"),
        (psycopg.errors.QueryCanceled(), CODE.DEADLINE_EXCEEDED, "narrow the filter"),
        (psycopg.errors.DatetimeFieldOverflow("out of range"), CODE.INVALID_ARGUMENT, "out of range"),
        (psycopg.errors.DiskFull("could not extend file"), CODE.RESOURCE_EXHAUSTED, "no space left"),
        (DEADLOCK, CODE.ABORTED, "deadlock detected"),
        (psycopg.errors.LockNotAvailable("lock timeout"), CODE.ABORTED, "lock timeout"),
        (psycopg.OperationalError("connection refused"), CODE.UNAVAILABLE, "connection refused"),
        (PoolTimeout("no connection"), CODE.UNAVAILABLE, "no connection"),
        (psycopg.errors.UndefinedTable("no such table"), CODE.INTERNAL, "no such table"),
    ],
)
def test_an_error_is_told_by_its_kind(error: Exception, code: grpc.StatusCode, words: str) -> None:
    status = status_of(error)
    assert status is not None
    assert status[0] is code
    assert words in status[1]


def test_a_change_that_was_made_in_part_says_how_many_and_why_whatever_ended_it() -> None:
    result = ChangeResult()
    result.add((number, False) for number in range(55_500))
    for cause in (DEADLOCK, psycopg.OperationalError("connection refused"), ValueError("unexpected")):
        error = PartlyDone(result)
        error.__cause__ = cause
        status = status_of(error)
        assert status is not None
        assert status[0] is CODE.ABORTED
        assert status[1].startswith("55500 recipients were changed before; repeat the call for the others.")
        assert str(cause) in status[1] or type(cause).__name__ in status[1]


def test_what_is_no_known_error_is_left_to_grpc() -> None:
    assert status_of(None) is None
    assert status_of(KeyError("x")) is None
