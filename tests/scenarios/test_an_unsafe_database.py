"""A Postgres that would lose commits in a power cut gets no mail, and says so (promise 1, ACC-06)."""

from collections.abc import Iterator

import pytest

from testkit.conditions import wait_until
from testkit.failover import Server, single
from testkit.next_hop import NextHop
from testkit.peers.swaks import swaks
from testkit.rail import Rail, basics, everything_through

pytestmark = [pytest.mark.peer("swaks"), pytest.mark.timeout(300)]

ENQUEUE = "mailrail.queue.v1.EnqueueService"


@pytest.fixture
def server() -> Iterator[Server]:
    """A server that was started without fsync."""
    with single(fsync="off") as started:
        yield started


def test_no_mail_is_taken_while_postgres_does_not_keep_what_it_commits_ACC_06(server: Server) -> None:
    with (
        NextHop() as hop,
        Rail(
            [*basics(), *everything_through(hop.address, hop.port)],
            options=["--database-url", server.url],
            wait=False,
        ) as rail,
    ):
        sent = ("--from", "bob@elsewhere.test", "--to", "alice@example.org")
        rail.program.wait_for_line("fsync=off", within=60)
        assert not rail.serving("queue", ENQUEUE)

        server.restart_with(fsync="on")
        rail.wait_until_ready()
        assert rail.serving("queue", ENQUEUE)
        assert swaks(*rail.mx, *sent).accepted
        before = server.one("SELECT count(*) FROM queue.message")

        server.restart_with(fsync="off")
        wait_until(lambda: not rail.serving("queue", ENQUEUE), 60, "the queue says that it is not ready")
        said = swaks(*rail.mx, *sent)
        assert [reply[:3] for reply in said.replies if reply[0] in "45"][-1] == "451", said.text
        assert server.one("SELECT count(*) FROM queue.message") == before

        server.restart_with(fsync="on")
        wait_until(lambda: rail.serving("queue", ENQUEUE), 60, "the queue is ready again")
        wait_until(lambda: swaks(*rail.mx, *sent).accepted, 60, "mail is taken again")
