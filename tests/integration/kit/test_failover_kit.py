"""The pair of servers with which failovers are tested does what it says."""

import contextlib
from collections.abc import Iterator

import psycopg
import pytest

from testkit.conditions import wait_until
from testkit.failover import Ledger, Pair, Server, pair, single

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def servers() -> Iterator[Pair]:
    """An asynchronous pair with a table `t`."""
    with pair() as made:
        made.primary.sql("CREATE TABLE t (n int)")
        made.primary.sql("GRANT ALL ON t TO mailrail")
        yield made


def rows(server: Server) -> list[int]:
    return sorted(n for (n,) in server.sql("SELECT n FROM t"))


def insert(url: str, number: int) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("INSERT INTO t VALUES (%s)", (number,))


def test_what_a_paused_standby_missed_is_lost_when_it_is_promoted_and_the_old_server_can_follow(servers: Pair) -> None:
    old = servers.primary
    insert(servers.url, 1)
    servers.wait_until_followed()
    assert servers.standby.is_standby
    assert rows(servers.standby) == [1]
    servers.standby.pause()
    insert(servers.url, 2)
    servers.fail_over()
    assert servers.primary is not old
    assert not servers.primary.is_standby
    insert(servers.url, 3)
    insert(servers.both_url, 4)
    assert rows(servers.primary) == [1, 3, 4]
    old.follow(servers.primary)
    servers.wait_until_followed()
    assert old.is_standby
    assert rows(old) == [1, 3, 4]
    servers.lead_to(old)
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        insert(servers.url, 5)
    insert(servers.both_url, 5)


def test_a_synchronous_commit_waits_for_the_standby_and_is_there_when_its_wait_is_broken_off() -> None:
    with pair(synchronous=True) as servers:
        servers.primary.sql("CREATE TABLE t (n int); GRANT ALL ON t TO mailrail")
        insert(servers.url, 1)
        assert rows(servers.standby) == [1]
        servers.standby.stop()
        writer = psycopg.connect(servers.url, autocommit=True, application_name="a writer")
        with contextlib.closing(writer) as connection:
            connection.pgconn.send_query(b"INSERT INTO t VALUES (2)")
            wait_until(lambda: servers.primary.waits("writer") == 1)
            assert servers.primary.end_backends("writer") == 1
        assert rows(servers.primary) == [1, 2], "it is visible, and no standby has it"
        servers.fail_over(Server.kill)
        assert rows(servers.primary) == [1]
        insert(servers.url, 3)


def test_a_killed_backend_takes_all_others_along_and_the_server_comes_back() -> None:
    with single() as server:
        with psycopg.connect(server.url, application_name="victim"), psycopg.connect(server.url) as other:
            server.kill_backend("victim")
            with pytest.raises(psycopg.OperationalError):
                other.execute("SELECT 1")
        assert server.one("SELECT 1") == 1


def test_a_data_folder_that_is_put_back_is_as_it_was() -> None:
    with single() as server:
        server.sql("CREATE TABLE t (n int)")
        server.sql("INSERT INTO t VALUES (1)")
        copy = server.copy()
        server.sql("INSERT INTO t VALUES (2)")
        server.kill()
        server.start()
        assert rows(server) == [1, 2]
        server.put_back(copy)
        assert rows(server) == [1]
        server.stop_immediately()
        server.start()
        server.restart()
        assert rows(server) == [1]


def test_the_ledger_knows_where_every_recipient_is(database: str) -> None:
    ledger = Ledger(accepted={"sent", "twice", "waits", "bounced", "gone", "unsent"}, refused={"no", "no-but"})
    ledger.sent.update(("sent", "twice", "twice", "no-but"))

    class Stored(Server):
        def __init__(self) -> None:
            pass

        def sql(self, query: str, *_: object) -> list[tuple[object, ...]]:
            with psycopg.connect(database, autocommit=True) as connection:
                connection.execute("SET search_path = queue")
                return connection.execute(query.encode()).fetchall()

    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("SET search_path = queue")
        connection.execute(
            "INSERT INTO recipient (id, message_id, shard, site, due, address, envelope_recipient)"
            " VALUES (1, gen_random_uuid(), 0, '', now(), 'waits', '')"
        )
        for number, (address, state) in enumerate({"sent": 3, "twice": 3, "bounced": 4, "unsent": 3}.items(), 2):
            connection.execute(
                "INSERT INTO history (id, message_id, state, outcome, attempts, tls_requirement, origin, queued, size,"
                " address, mail_from, site, envelope, envelope_recipient) VALUES"
                " (%s, gen_random_uuid(), %s, 1, 1, 0, 0, now(), 0, %s, '', '', '', '')",
                (number, state, address),
            )
    count = ledger.count(Stored())
    assert count.lost == {"gone"}
    assert count.ended_unsent == {"unsent"}
    assert count.doubled == {"twice"}
    assert count.failed == {"bounced"}
    assert count.queued == {"waits"}
    assert count.refused_and_sent == {"no-but"}
    assert "6 accepted" in str(count)
