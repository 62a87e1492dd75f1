"""Statements that go to libpq without a cursor give what a cursor gives, and fail as it does."""

import asyncio
from collections.abc import AsyncIterator

import psycopg
import pytest
from psycopg import AsyncConnection

from mailrail.kit.postgres import Login
from mailrail_queue.store import columns as c
from mailrail_queue.store.connection import Database, Lane, Row, Statement, run, run_columns


@pytest.fixture
async def lane(database: str) -> AsyncIterator[Lane]:
    """A connection of the message path."""
    opened = Database(Login.of(database), "test")
    yield opened.lane("test")
    await opened.close()


async def test_rows_and_types_are_those_that_a_cursor_gives(lane: Lane) -> None:
    text = "SELECT x, %(many)s, %(word)s || '%%', %(number)s FROM unnest(%(many)s) AS x"
    statement = Statement("rows", text)
    async with lane.use() as connection:
        for _ in range(2):  # prepared, then used again
            rows = await run_columns(
                connection,
                statement,
                {"many": c.bigints([3, 4]), "word": c.word("é"), "number": c.number(0.5)},
            )
            assert rows == [(3, [3, 4], "é%", 0.5), (4, [3, 4], "é%", 0.5)]
        assert rows == await run(connection, text, {"many": c.bigints([3, 4]), "word": "é", "number": 0.5})


async def test_parameters_larger_than_the_socket_takes_at_once_arrive_whole(lane: Lane) -> None:
    size = Statement("size", "SELECT sum(length(x)) FROM unnest(%(data)s) AS x")
    async with lane.use() as connection:
        assert await run_columns(connection, size, {"data": c.octets([b"x" * 1_000_000] * 8)}) == [(8_000_000,)]


async def test_a_statement_that_fails_leaves_the_connection_as_it_was(lane: Lane) -> None:
    divide = Statement("divide", "SELECT 1 / x FROM unnest(%(x)s) AS x")
    async with lane.use() as connection:
        before = connection
        for _ in range(2):
            with pytest.raises(psycopg.errors.DivisionByZero):
                await run_columns(connection, divide, {"x": c.bigints([0])})
        with pytest.raises(psycopg.errors.UndefinedTable):  # while it is prepared
            await run_columns(connection, Statement("none", "SELECT %(x)s FROM nowhere"), {"x": c.bigints([0])})

        async def fail_late() -> None:
            async with connection.transaction():
                await run(connection, "CREATE TABLE kept (x int)")
                await run_columns(connection, divide, {"x": c.bigints([0])})

        with pytest.raises(psycopg.errors.DivisionByZero):
            await fail_late()
        assert await run(connection, "SELECT to_regclass('kept')") == [(None,)]
        assert await run_columns(connection, divide, {"x": c.bigints([1])}) == [(1,)]
    async with lane.use() as connection:
        assert connection is before


async def test_a_connection_that_breaks_in_the_middle_is_replaced(lane: Lane) -> None:
    end = Statement("end", "SELECT pg_terminate_backend(pg_backend_pid()) FROM unnest(%(x)s) AS x")

    async def end_it() -> None:
        async with lane.use() as connection:
            await run_columns(connection, end, {"x": c.bigints([1])})

    with pytest.raises(psycopg.OperationalError):
        await end_it()
    assert await lane.run("SELECT 1") == [(1,)]


async def test_a_statement_that_is_given_up_takes_its_connection_along(lane: Lane) -> None:
    sleep = Statement("sleep", "SELECT pg_sleep(60) FROM unnest(%(x)s) AS x")
    used: list[AsyncConnection[Row]] = []

    async def give_up() -> None:
        async with asyncio.timeout(0.2), lane.use() as connection:
            used.append(connection)
            await run_columns(connection, sleep, {"x": c.bigints([1])})

    with pytest.raises(TimeoutError):
        await give_up()
    assert used[0].closed
    assert await lane.run("SELECT 1") == [(1,)]


async def test_a_server_that_takes_no_writes_is_out_of_reach_and_looked_for_again_ACC_06(lane: Lane) -> None:
    async with lane.use() as connection:
        before = connection
        await connection.execute("SET default_transaction_read_only = on")
    with pytest.raises(psycopg.OperationalError, match="takes no writes: default_transaction_read_only is on"):
        await lane.run("INSERT INTO sweep_candidate (message_id) SELECT gen_random_uuid()")
    assert before.closed
    await lane.run("INSERT INTO sweep_candidate (message_id) SELECT gen_random_uuid()")
