"""The bundled Postgres: who gets in, and that it keeps its data."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from testkit.ports import free_port


@contextmanager
def running(folder: Path, password: str, port: int) -> Iterator[str]:
    """A server while the context lasts; yields its URL."""
    command = [
        sys.executable,
        "-m",
        "mailrail.cli",
        "cluster",
        "postgres",
        "--folder",
        str(folder),
        "--port",
        str(port),
    ]
    folder.with_name("password").write_text(f"{password}\n")
    command += ["--password-file", str(folder.with_name("password"))]
    url = f"postgresql://mailrail:{password}@127.0.0.1:{port}/mailrail"
    process = subprocess.Popen(
        [*command, "--port", str(port), "--listen", "127.0.0.1"], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        said = []
        for line in process.stderr:
            said.append(line)
            if "ready on port" in line:
                break
        else:
            pytest.fail(f"it did not start: {''.join(said)}")
        yield url
    finally:
        process.terminate()
        with process.stderr:
            process.stderr.read()
        assert process.wait(60) == 0


def connects(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=5).close()
    except psycopg.OperationalError:
        return False
    return True


def test_it_keeps_its_data_and_takes_a_new_password(tmp_path: Path) -> None:
    port = free_port()
    with running(tmp_path / "data", "first", port) as url, psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    with running(tmp_path / "data", "second", port) as url:
        assert not connects(url.replace("second", "first"))
        with psycopg.connect(url) as connection:
            assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)
            owner = connection.execute("SELECT rolsuper, rolcreaterole FROM pg_roles WHERE rolname = 'mailrail'")
            assert owner.fetchone() == (False, False)


def test_others_get_in_as_the_services_role_alone_and_never_as_superuser(tmp_path: Path) -> None:
    with running(tmp_path / "data", "secret", free_port()) as url, psycopg.connect(url) as connection:
        superuser = json.loads((tmp_path / "data" / "passwords.json").read_text())["postgres"]
        with psycopg.connect(url.replace("mailrail:secret", f"postgres:{superuser}")) as administration:
            rules = administration.execute(
                "SELECT user_name, database, auth_method FROM pg_hba_file_rules WHERE address IN ('0.0.0.0', '::')"
            ).fetchall()
        assert rules == [(["mailrail"], ["mailrail"], "scram-sha-256")] * 2
        durable = connection.execute("SELECT current_setting('fsync'), current_setting('synchronous_commit')")
        assert durable.fetchone() == ("on", "on")


def test_without_a_password_it_says_what_to_do(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "PGPASSWORD"}
    command = [sys.executable, "-m", "mailrail.cli", "cluster", "postgres", "--folder", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "--password-file" in done.stderr
