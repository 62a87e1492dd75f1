"""Reading migration files: names, order, and telling statements apart."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.kit import migrations
from mailrail.kit.migrations import MigrationError, parse, split


def test_statements_end_at_semicolons_outside_quotes_and_comments() -> None:
    text = """
    CREATE TABLE a (t text DEFAULT ';'); -- one; two
    /* three; /* nested; */ */ INSERT INTO a VALUES ('it''s; fine'), (E'a\\';b'), ($$;$$), ($x$;$$;$x$);
    SELECT "odd;name" FROM a WHERE b = $1;
    ;;
    -- nothing; here
    """
    assert [s.split()[0] for s in split(text)] == ["CREATE", "--", "SELECT"]
    assert len(split(text)) == 3


def test_a_function_body_stays_whole() -> None:
    body = "CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS $body$ BEGIN RETURN 1; END; $body$"
    assert split(body + ";\nSELECT f();") == [body, "SELECT f()"]


@pytest.mark.parametrize("text", ["SELECT 'open", 'SELECT "open', "SELECT $$ open", "SELECT 1 /* open", "$a$ $b$"])
def test_an_open_quote_is_an_error(text: str) -> None:
    with pytest.raises(MigrationError, match="never closed"):
        split(text)


@given(
    st.lists(
        st.sampled_from(["SELECT 1", "SELECT ';'", "SELECT $$;$$", "SELECT 1 -- ;\n", "SELECT /*;*/ 2"]), max_size=8
    )
)
def test_joined_statements_come_apart_again(parts: list[str]) -> None:
    assert split(";".join(parts)) == [p.strip() for p in parts]


@given(st.text(max_size=200))
def test_any_text_is_split_or_refused(text: str) -> None:
    try:
        statements = split(text)
    except MigrationError:
        return
    assert all(statement.strip() for statement in statements)


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
        '/* why */ CREATE INDEX CONCURRENTLY "Odd" ON ONLY queue."B" (c)',
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
