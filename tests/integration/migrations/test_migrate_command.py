"""`mailrail migrate` against a real server (DBS-01, DBS-02)."""

import json
import subprocess
import sys

import psycopg
import pytest
from psycopg import sql
from typer.testing import CliRunner

from mailrail.cli.app import app
from mailrail.kit import migrations
from mailrail.local.postgres.server import EmbeddedPostgres


def test_an_empty_database_is_brought_up_to_date_and_a_second_call_does_nothing(empty_database: str) -> None:
    first = CliRunner().invoke(app, ["migrate", "--database-url", empty_database])
    assert first.exit_code == 0, first.output
    assert "queue/0001_" in first.stdout
    second = CliRunner().invoke(app, ["migrate", "--database-url", empty_database])
    assert (second.exit_code, second.stdout) == (0, "the database is up to date\n")


def test_the_database_may_be_named_by_the_environment_and_the_answer_be_json(
    empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAILRAIL_DATABASE_URL", empty_database)
    done = CliRunner().invoke(app, ["migrate", "--json"])
    assert done.exit_code == 0, done.output
    assert [a["step"] for a in json.loads(done.stdout)["applied"]] == [m.label for m in migrations.load_all()]


def test_a_direct_url_goes_around_a_pooler_that_stands_behind_the_other(empty_database: str) -> None:
    nobody = "postgresql://nobody:nothing@127.0.0.1:1/nowhere"
    done = CliRunner().invoke(app, ["migrate", "--database-url", nobody, "--direct-url", empty_database])
    assert done.exit_code == 0, done.output


def test_it_waits_for_a_database_that_is_not_there_yet(empty_database: str, postgres: EmbeddedPostgres) -> None:
    name = empty_database.rsplit("/", 1)[1]
    later = f"{name}_later"
    command = [sys.executable, "-m", "mailrail.cli", "migrate", "--wait", "60", "--database-url"]
    url = empty_database.replace(f"/{name}", f"/{later}")
    with subprocess.Popen([*command, url], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "waiting up to 60 s for the database" in process.stdout.readline()
        with psycopg.connect(postgres.superuser_url(), autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {} OWNER mailrail").format(sql.Identifier(later)))
        said = process.stdout.read()
    try:
        assert process.returncode == 0, said
        assert "queue/0001_" in said
    finally:
        with psycopg.connect(postgres.superuser_url(), autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(later)))


def test_after_waiting_in_vain_it_says_why() -> None:
    done = CliRunner().invoke(app, ["migrate", "--wait", "0.1", "--database-url", "postgresql://127.0.0.1:1/nowhere"])
    assert done.exit_code == 3
    assert "unreachable" in done.stderr


def test_roles_are_made_on_request_DBS_01(empty_database: str, postgres: EmbeddedPostgres) -> None:
    name = empty_database.rsplit("/", 1)[1]
    done = CliRunner().invoke(app, ["migrate", "--database-url", postgres.superuser_url(name), "--roles", "--json"])
    assert done.exit_code == 0, done.output
    roles = json.loads(done.stdout)["roles"]
    assert "mailrail_queue" in roles
    with psycopg.connect(empty_database) as connection:
        made = connection.execute("SELECT rolname FROM pg_roles WHERE rolname = ANY(%s)", (roles,)).fetchall()
    assert sorted(r for (r,) in made) == sorted(roles)


def test_a_role_that_may_not_make_schemas_is_told_what_the_database_said(
    empty_database: str, postgres: EmbeddedPostgres
) -> None:
    name = empty_database.rsplit("/", 1)[1]
    with psycopg.connect(postgres.superuser_url(name), autocommit=True) as connection:
        connection.execute(
            "DO $$ BEGIN CREATE ROLE weak LOGIN PASSWORD 'weak'; EXCEPTION WHEN duplicate_object THEN NULL; END $$"
        )
    url = f"postgresql://weak:weak@127.0.0.1:{postgres.port}/{name}"
    done = CliRunner().invoke(app, ["migrate", "--database-url", url])
    assert done.exit_code == 1
    assert "permission denied" in done.stderr
