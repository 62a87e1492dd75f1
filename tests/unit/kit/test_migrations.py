"""Reading migration files: names, order, what may run outside a transaction, and what is compared."""

import pytest

from mailrail.kit import migrations
from mailrail.kit.migrations import MigrationError, parse


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ([("1_a.sql", "")], "NNNN_what_it_does.sql"),
        ([("0001_A.sql", "")], "NNNN_what_it_does.sql"),
        ([("0002_a.sql", "")], "expected number 0001"),
        ([("0001_a.sql", ""), ("0001_b.sql", "")], "expected number 0002"),
        ([("0001_a.sql", ""), ("0003_b.sql", "")], "expected number 0002"),
        ([("0001_a.sql", "-- mailrail: no-transaction\nCREATE TABLE a (id int);")], "may be repeated after a crash"),
        ([("0001_a.sql", "-- mailrail: no-transaction\nCREATE INDEX a ON b (c);")], "may be repeated after a crash"),
        ([("0001_a.sql", "-- mailrail: no-transaction\nDROP INDEX CONCURRENTLY a;")], "may be repeated after a crash"),
        ([("0001_a.sql", "-- mailrail: no-transaction\nANALYZE a;\nANALYZE b;")], "one statement"),
        ([("0001_a.sql", "-- mailrail: no-transaction\n")], "one statement"),
    ],
)
def test_files_that_cannot_be_right_are_refused(files: list[tuple[str, str]], problem: str) -> None:
    with pytest.raises(MigrationError, match=problem):
        parse("queue", files)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE INDEX CONCURRENTLY a ON b (c)",
        "create unique index concurrently if not exists a on queue.b using btree (c) where d",
        'CREATE INDEX CONCURRENTLY "Odd" ON ONLY queue."B" (c)  -- why',
        "DROP INDEX CONCURRENTLY IF EXISTS a",
        "ANALYZE b",
    ],
)
def test_repeatable_statements_may_run_outside_a_transaction(statement: str) -> None:
    assert not parse("queue", [("0001_a.sql", f"-- why\n-- mailrail: no-transaction\n{statement};")])[0].transactional


def test_every_service_in_the_tree_ships_readable_migrations() -> None:
    loaded = {m.schema for m in migrations.load_all()}
    assert "queue" in loaded
    assert all(migrations.needed_version(s) >= 1 for s in loaded)
    assert migrations.needed_version("nonexistent") == 0


def test_the_checksum_covers_words_and_neither_comments_nor_the_spaces_between() -> None:
    def checksum(text: str) -> str:
        return parse("queue", [("0001_a.sql", text)])[0].checksum

    table = checksum("CREATE TABLE a (id int, b text);")
    assert checksum("-- why\nCREATE TABLE a (id int,  -- what\n  b   text);\r\n") == table
    assert checksum("CREATE TABLE a (id int, b text NOT NULL);") != table
    assert checksum("CREATE TABLE a (id int, -- b text);\n") != table
