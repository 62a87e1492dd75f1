"""The embedded Postgres: durable, closed to others, back after any kill, and no mode outside its folders touched."""

import contextlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from mailrail.kit.postgres import CONNECTIONS
from mailrail.local.lock import LockHeld
from mailrail.local.postgres import account as account_of
from mailrail.local.postgres import server as embedded
from mailrail.local.postgres.account import PostgresUnavailable, reachable_by
from mailrail.local.postgres.binaries import Binaries, wheel_binaries
from mailrail.local.postgres.server import EmbeddedPostgres

from testkit.conditions import wait_until
from testkit.ports import free_port
from testkit.postgres import SETTINGS, oldest_programs

as_root = pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() != 0, reason="only root needs another user for Postgres"
)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the user of Postgres may pass through, as pytest's own are not."""
    made = Path(tempfile.mkdtemp(prefix="mailrail-test-"))
    made.chmod(0o711)
    yield made
    shutil.rmtree(made, ignore_errors=True)


def _setting(server: EmbeddedPostgres, name: str) -> str:
    with psycopg.connect(server.superuser_url()) as connection:
        row = connection.execute("SELECT current_setting(%s)", (name,)).fetchone()
    assert row is not None
    return str(row[0])


def _alive(pid: int) -> bool:
    """Whether it runs: where nobody reaps orphans, a dead one keeps its number as a zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_commits_are_durable_ACC_06(postgres: EmbeddedPostgres) -> None:
    assert [_setting(postgres, n) for n in ("fsync", "synchronous_commit", "full_page_writes")] == ["on"] * 3


BEFORE = {
    "shared_buffers": "256MB",
    "wal_buffers": "16MB",
    "max_connections": "200",
    "max_logical_replication_workers": "4",
    "wal_init_zero": "on",
}
"""How release 0.1.0 started it."""


def test_a_cluster_of_an_older_release_gets_by_with_less_memory_and_writes_new_wal_segments_once(folder: Path) -> None:
    with EmbeddedPostgres(folder / "pg", settings=BEFORE) as older:
        with psycopg.connect(older.url()) as connection:
            connection.execute("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS n")
        assert {name: _setting(older, name) for name in BEFORE} == BEFORE
    with EmbeddedPostgres(folder / "pg") as server:
        assert {name: _setting(server, name) for name in BEFORE} == {
            "shared_buffers": "64MB",
            "wal_buffers": "4MB",
            "max_connections": "68",
            "max_logical_replication_workers": "0",
            "wal_init_zero": "off",
        }
        with psycopg.connect(server.url()) as connection:
            assert connection.execute("SELECT count(*) FROM kept").fetchone() == (1000,)


def test_nobody_reads_for_others_where_that_can_be_chosen(folder: Path) -> None:
    """Postgres 18 starts three processes for that; older ones do not know the setting."""
    with EmbeddedPostgres(folder / "pg") as server, psycopg.connect(server.superuser_url()) as connection:
        kinds = {kind for (kind,) in connection.execute("SELECT backend_type FROM pg_stat_activity").fetchall()}
        assert "checkpointer" in kinds
        assert not any("io worker" in kind for kind in kinds)


def test_a_build_that_is_older_than_a_setting_starts_without_it(folder: Path) -> None:
    with EmbeddedPostgres(folder / "pg", binaries=Binaries(oldest_programs())) as server:
        assert _setting(server, "server_version").startswith("15")


def test_it_has_room_for_services_that_are_started_again_beside_the_sessions_of_the_old_ones(folder: Path) -> None:
    with EmbeddedPostgres(folder / "pg") as server, contextlib.ExitStack() as stack:
        for _ in range(2 * (CONNECTIONS["queue"] + CONNECTIONS["outbound"]) + CONNECTIONS["config"]):
            stack.enter_context(psycopg.connect(server.url()))


def test_it_listens_on_this_machine_only_and_has_no_unix_socket(postgres: EmbeddedPostgres) -> None:
    assert _setting(postgres, "listen_addresses") == "127.0.0.1"
    assert _setting(postgres, "unix_socket_directories") == ""


def test_nobody_gets_in_without_the_password(postgres: EmbeddedPostgres) -> None:
    for user in (embedded.OWNER, embedded.SUPERUSER):
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(host="127.0.0.1", port=postgres.port, user=user, dbname="mailrail", password="guess")


def test_passwords_are_stored_as_scram_verifiers_only(postgres: EmbeddedPostgres) -> None:
    with psycopg.connect(postgres.superuser_url()) as connection:
        stored = connection.execute("SELECT rolname, rolpassword FROM pg_authid WHERE rolcanlogin").fetchall()
    assert {name for name, _ in stored} >= {embedded.OWNER, embedded.SUPERUSER}, (
        "tests beside this one may have made others"
    )
    assert all(verifier.startswith("SCRAM-SHA-256$") for _, verifier in stored)


def test_the_role_of_the_services_owns_its_database_and_is_no_superuser(postgres: EmbeddedPostgres) -> None:
    with psycopg.connect(postgres.url()) as connection:
        assert connection.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user").fetchone() == (False,)
        connection.execute("CREATE SCHEMA allowed")
        connection.rollback()


def test_what_was_committed_outlives_a_kill_and_a_stop(disposable_postgres: EmbeddedPostgres) -> None:
    server = disposable_postgres
    with psycopg.connect(server.url()) as connection:
        connection.execute("CREATE TABLE kept (n int)")
        connection.execute("INSERT INTO kept SELECT generate_series(1, 1000)")
    port, pid = server.port, server.pid
    assert pid is not None
    os.kill(pid, 9)
    assert server.wait(30) is not None
    server.restart()
    assert server.port == port
    server.stop()
    with server.start(), psycopg.connect(server.url()) as connection:
        assert connection.execute("SELECT count(*) FROM kept").fetchone() == (1000,)


def test_a_stale_pid_file_that_names_a_stranger_does_not_stop_the_start(folder: Path) -> None:
    server = EmbeddedPostgres(folder / "pg", settings=SETTINGS).start()
    pid = server.pid
    assert pid is not None
    lines = (server.data / "postmaster.pid").read_text().splitlines()
    os.kill(pid, 9)
    server.wait(30)
    server.stop()
    # The number of the dead postmaster went to another process of the same user: here one that sleeps.
    account = account_of.system_account()
    options = {"user": account.uid, "group": account.gid} if account else {}
    stranger = subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, cwd="/", **options)  # type: ignore[call-overload]
    try:
        (server.data / "postmaster.pid").write_text("\n".join([str(stranger.pid), *lines[1:]]) + "\n")
        with server.start():
            assert server.pid != stranger.pid
        assert stranger.poll() is None, "the stranger was harmed"
    finally:
        stranger.kill()
        stranger.communicate()


def test_a_stale_pid_file_does_not_stop_the_start_when_the_number_is_taken_meanwhile(folder: Path) -> None:
    # In a container process ids begin anew at each start: the dead postmaster's may be that of one of our own threads,
    # which is not there yet when we look and is there when Postgres does. Here the script in place of its program
    # stands for that: the number is taken as soon as Postgres begins.
    server = EmbeddedPostgres(folder / "pg", settings=SETTINGS).start()
    pid = server.pid
    assert pid is not None
    os.kill(pid, 9)
    server.wait(30)
    server.stop()
    stale = server.data / "postmaster.pid"
    assert stale.read_text().startswith(f"{pid}\n"), "nobody removed it"
    kept = stale.read_text().splitlines()[1:]
    real = server._binaries
    assert real is not None
    programs = folder / "bin"
    programs.mkdir()
    for program in ("initdb", "pg_config", "pg_ctl"):
        (programs / program).symlink_to(real.program(program))
    seen = folder / "seen"
    seen.touch()
    seen.chmod(0o666)
    (programs / "postgres").write_text(
        "#!/bin/sh\n"
        'if [ "$1" = -D ]; then\n'
        f"  cat '{stale}' >'{seen}'\n"
        f"  if [ \"$(head -n 1 '{stale}')\" = {pid} ]; then echo 'lock file exists'; exit 1; fi\n"
        "fi\n"
        f"exec '{real.program('postgres')}' \"$@\"\n"
    )
    (programs / "postgres").chmod(0o755)
    with EmbeddedPostgres(folder / "pg", settings=SETTINGS, binaries=Binaries(programs)) as again:
        assert again.pid != pid
    named, *rest = seen.read_text().splitlines()
    assert not _alive(int(named))
    assert rest == kept, "Postgres still knows the shared memory that children of the dead one may use"


def test_a_pid_file_that_names_nobody_does_not_stop_the_start(folder: Path) -> None:
    server = EmbeddedPostgres(folder / "pg", settings=SETTINGS).start()
    server.stop()
    (server.data / "postmaster.pid").write_text("")  # the machine lost power when it was made
    with server.start():
        assert server.pid is not None


def test_an_orphan_of_a_killed_guard_is_stopped_before_a_new_start(folder: Path) -> None:
    server = EmbeddedPostgres(folder / "pg", settings=SETTINGS).start()
    orphan = server.pid
    assert orphan is not None
    guard = psutil.Process(orphan).parent()
    assert guard is not None
    guard.kill()
    assert server.wait(30) is not None
    assert _alive(orphan), "a killed guard leaves Postgres running"
    with server.start(), psycopg.connect(server.url()) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
        assert server.pid != orphan
        assert not _alive(orphan)


def test_postgres_ends_when_the_process_that_started_it_is_killed(folder: Path) -> None:
    script = (
        "import sys, pathlib; from mailrail.local.postgres.server import EmbeddedPostgres\n"
        "server = EmbeddedPostgres(pathlib.Path(sys.argv[1])).start(); print(server.pid, flush=True); sys.stdin.read()"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", script, str(folder / "pg")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert owner.stdout is not None
    assert owner.stdin is not None
    with owner.stdin, owner.stdout:
        pid = int(owner.stdout.readline())
        assert psutil.pid_exists(pid)
        owner.kill()
        owner.wait(10)
    wait_until(lambda: not _alive(pid), 60, "Postgres has ended with its owner")


def test_an_initdb_that_was_cut_off_is_begun_anew(folder: Path) -> None:
    server = EmbeddedPostgres(folder / "pg", settings=SETTINGS)
    (folder / "pg" / "data.unfinished" / "base").mkdir(parents=True)
    (folder / "pg" / "data.unfinished" / "PG_VERSION").write_text("18\n")
    (folder / "pg").chmod(0o711)
    with server.start(), psycopg.connect(server.url()) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert not (folder / "pg" / "data.unfinished").exists()


def test_two_servers_never_share_a_folder(folder: Path) -> None:
    with EmbeddedPostgres(folder / "pg", settings=SETTINGS).start(), pytest.raises(LockHeld):
        EmbeddedPostgres(folder / "pg", settings=SETTINGS).start()


def test_another_server_on_the_remembered_port_moves_us_to_a_free_one(folder: Path) -> None:
    first = EmbeddedPostgres(folder / "a", settings=SETTINGS)
    second = EmbeddedPostgres(folder / "b", settings=SETTINGS)
    second.start()
    second.stop()
    with first.start():
        (folder / "b" / "postgres.json").write_text(json.dumps({"port": first.port}))
        with second.start():
            assert second.port != first.port
            assert _setting(second, "data_directory") == str(second.data)


def test_a_wanted_port_that_is_taken_is_an_error_that_names_it(folder: Path, postgres: EmbeddedPostgres) -> None:
    with pytest.raises(PostgresUnavailable, match=f"127.0.0.1:{postgres.port}: the port is taken"):
        EmbeddedPostgres(folder / "pg", port=postgres.port, settings=SETTINGS).start()


def test_data_of_another_version_is_refused_before_it_is_touched(folder: Path) -> None:
    server = EmbeddedPostgres(folder / "pg", settings=SETTINGS)
    server.start()
    server.stop()
    (server.data / "PG_VERSION").write_text("12\n")
    with pytest.raises(PostgresUnavailable, match=r"Postgres 12 made .*, and this is Postgres 18\.\d"):
        server.start()


def test_a_postgres_that_does_not_say_its_version_is_not_taken_for_another_one(folder: Path) -> None:
    """Advice to dump a database with an old version would be wrong."""
    with EmbeddedPostgres(folder / "pg", settings=SETTINGS):
        pass
    broken = folder / "broken"
    broken.mkdir()
    (broken / "postgres").write_text("#!/bin/sh\necho 'out of memory' >&2\nexit 1\n")
    (broken / "postgres").chmod(0o755)
    with pytest.raises(PostgresUnavailable, match=r"--version failed \(exit code 1\): out of memory; try again"):
        EmbeddedPostgres(folder / "pg", settings=SETTINGS, binaries=Binaries(broken)).start()


def test_lost_passwords_of_a_cluster_are_said_and_no_new_ones_are_made(folder: Path) -> None:
    with EmbeddedPostgres(folder, settings=SETTINGS):
        pass
    (folder / "passwords.json").unlink()
    with pytest.raises(PostgresUnavailable, match=r"passwords\.json is gone, .* put it back from a copy"):
        EmbeddedPostgres(folder, settings=SETTINGS).start()
    assert not (folder / "passwords.json").exists()


def test_a_bad_setting_gives_the_last_words_of_postgres(folder: Path) -> None:
    server = EmbeddedPostgres(folder / "pg", port=free_port(), settings={"shared_buffers": "nonsense"})
    with pytest.raises(PostgresUnavailable, match="shared_buffers"):
        server.start()


def test_the_log_is_handed_on_line_by_line(folder: Path) -> None:
    lines: list[str] = []
    with EmbeddedPostgres(folder / "pg", log=lines.append):
        pass
    assert any("starting PostgreSQL" in line for line in lines)
    assert any("database system is shut down" in line for line in lines)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps rights in access lists, not in modes")
def test_passwords_and_data_are_for_their_owners_alone(folder: Path) -> None:
    with EmbeddedPostgres(folder / "pg", settings=SETTINGS) as server:
        assert stat.S_IMODE((folder / "pg" / "passwords.json").stat().st_mode) == 0o600
        assert stat.S_IMODE(server.data.stat().st_mode) == 0o700
        passwords = json.loads((folder / "pg" / "passwords.json").read_text()).values()
        # Not on the command line either, where every user could read them.
        commands = []
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # processes of Postgres come and go
                commands.append(" ".join(process.cmdline()))
        assert any("postgres" in command for command in commands)
        assert not any(password in command for password in passwords for command in commands)


@as_root
def test_as_root_it_runs_as_a_user_of_its_own_from_copied_binaries(folder: Path) -> None:
    data_root = folder / "root"
    with EmbeddedPostgres(folder / "pg", settings=SETTINGS, data_root=data_root) as server:
        assert server.pid is not None
        process = psutil.Process(server.pid)
        assert process.username() == account_of.SYSTEM_USER
        assert process.uids().real == process.uids().effective == process.uids().saved != 0
        assert process.gids().real != 0
        assert Path(process.exe()).is_relative_to(data_root)


@as_root
def test_as_root_no_mode_outside_the_state_folder_changes(folder: Path) -> None:
    """Nor inside a closed one: data goes below the data root when the state is closed to the user of Postgres."""
    closed = folder / "closed" / "deeper"
    closed.mkdir(parents=True)
    (folder / "closed").chmod(0o700)
    wheel = wheel_binaries().folder
    watched = [
        *closed.parents,
        closed,
        *wheel.parents,
        *(p for p in wheel.parent.rglob("*") if not p.is_symlink()),
        Path(sys.executable).resolve(),
        *Path(sys.executable).resolve().parents,
    ]
    before = {p: (p.stat().st_mode, p.stat().st_uid, p.stat().st_gid) for p in watched}
    data_root = folder / "root"
    with EmbeddedPostgres(closed / "pg", settings=SETTINGS, data_root=data_root) as server:
        assert server.data.is_relative_to(data_root)
        assert _setting(server, "fsync") == "on"
    assert {p: (p.stat().st_mode, p.stat().st_uid, p.stat().st_gid) for p in watched} == before


@as_root
def test_a_folder_is_reachable_only_when_every_one_above_it_is(folder: Path) -> None:
    inner = folder / "a" / "b"
    inner.mkdir(parents=True)
    nobody = 65534
    assert reachable_by(inner, nobody, nobody)
    (folder / "a").chmod(0o750)
    assert not reachable_by(inner, nobody, nobody)
    assert reachable_by(inner, nobody, (folder / "a").stat().st_gid)


def test_programs_that_are_not_there_are_said_with_a_way_out(folder: Path) -> None:
    with pytest.raises(PostgresUnavailable, match="--database-url"):
        EmbeddedPostgres(folder / "pg", binaries=Binaries(folder / "nothing")).start()
