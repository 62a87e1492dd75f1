"""The bundled Postgres: who gets in, and that it keeps its data."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import psycopg
import pytest

from testkit.bundled_postgres import running, started
from testkit.conditions import wait_until
from testkit.ports import free_port


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


def test_a_password_that_changes_while_it_runs_is_in_use_within_seconds(tmp_path: Path) -> None:
    with running(tmp_path / "data", "first", free_port()) as url, psycopg.connect(url) as connection:
        (tmp_path / "password").write_text("second\n")
        wait_until(lambda: connects(url.replace("first", "second")))
        assert not connects(url)
        assert connection.execute("SELECT 1").fetchone() == (1,), "sessions go on"


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


def test_it_starts_on_a_volume_that_the_kubelet_opened_to_its_group(tmp_path: Path) -> None:
    # fsGroup with fsGroupChangePolicy Always: at each mount all files and folders are given to the group.
    port = free_port()
    with running(tmp_path / "data", "secret", port) as url, psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    data = Path(json.loads((tmp_path / "data" / "postgres.json").read_text())["data"])
    for path in (data, *data.rglob("*")):
        path.chmod(path.stat().st_mode | (0o2770 if path.is_dir() else 0o660))
    with running(tmp_path / "data", "secret", port) as url, psycopg.connect(url) as connection:
        assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)


def test_it_tells_the_room_on_its_volume_where_it_is_asked_to(tmp_path: Path) -> None:
    listen = f"127.0.0.1:{free_port()}"
    with (
        running(tmp_path / "data", "secret", free_port(), metrics=listen),
        urllib.request.urlopen(f"http://{listen}/metrics", timeout=60) as page,
    ):
        text = page.read().decode()
    found = {name: float(value) for name, value in re.findall(r"^(\w+) (\S+)$", text, re.M)}
    volume = shutil.disk_usage(tmp_path)
    assert found == {
        "mailrail_postgres_volume_bytes": volume.total,
        "mailrail_postgres_volume_available_bytes": pytest.approx(volume.free, abs=volume.total / 10),
    }


@pytest.mark.parametrize("listen", ["nonsense", "127.0.0.1:99999"])
def test_metrics_at_no_address_stop_it_with_the_name_of_the_setting(tmp_path: Path, listen: str) -> None:
    with started(tmp_path / "data", "secret", free_port(), metrics=listen) as server:
        assert server.wait() == 2
        assert "MAILRAIL_METRICS_LISTEN" in "\n".join(server.lines)


def test_a_second_server_on_one_volume_waits_for_the_end_of_the_first(tmp_path: Path) -> None:
    with contextlib.ExitStack() as first:
        url = first.enter_context(running(tmp_path / "data", "secret", free_port()))
        with started(tmp_path / "data", "secret", free_port()) as second:
            second.wait_for_line("waiting until it ends")
            assert connects(url), "the first one goes on"
            first.close()
            second.wait_for_line("ready on port", 120)
            assert second.stop(60) == 0


def test_a_volume_that_cannot_be_written_to_is_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "volume").write_text("no folder")
    folder = tmp_path / "volume" / "postgres"
    command = [sys.executable, "-m", "mailrail.cli", "cluster", "postgres", "--folder", str(folder)]
    done = subprocess.run(command, env={**os.environ, "PGPASSWORD": "x"}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert str(folder) in done.stderr
    assert "fsGroup" in done.stderr


def test_without_a_password_it_says_what_to_do(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "PGPASSWORD"}
    command = [sys.executable, "-m", "mailrail.cli", "cluster", "postgres", "--folder", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "--password-file" in done.stderr
