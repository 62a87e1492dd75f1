"""Migrations on a real server (DBS-01, DBS-02)."""

import psycopg
import pytest

from mailrail.kit import migrations


def test_a_fresh_database_has_no_schema_of_ours(empty_database: str) -> None:
    with psycopg.connect(empty_database) as connection:
        assert connection.execute("SELECT to_regnamespace('queue')").fetchone() == (None,)


def test_steps_are_applied_once_and_recorded_by_schema_DBS_02(empty_database: str) -> None:
    steps = migrations.parse(
        "queue",
        [("0001_letters.sql", "CREATE TABLE letters (id int);"), ("0002_more.sql", "INSERT INTO letters VALUES (7);")],
    )
    assert [a.migration.number for a in migrations.migrate(empty_database, steps)] == [1, 2]
    assert migrations.migrate(empty_database, steps) == []
    with psycopg.connect(empty_database) as connection:
        assert connection.execute("SELECT id FROM queue.letters").fetchall() == [(7,)]
        assert connection.execute("SELECT number, name FROM queue.migrations ORDER BY 1").fetchall() == [
            (1, "letters"),
            (2, "more"),
        ]


def test_a_step_that_fails_leaves_nothing_behind_DBS_02(empty_database: str) -> None:
    steps = migrations.parse("queue", [("0001_letters.sql", "CREATE TABLE letters (id int); SELECT nonsense;")])
    with pytest.raises(migrations.MigrationError, match=r"queue/0001_letters: .*nonsense"):
        migrations.migrate(empty_database, steps)
    with psycopg.connect(empty_database) as connection:
        assert connection.execute("SELECT to_regclass('queue.letters')").fetchone() == (None,)
