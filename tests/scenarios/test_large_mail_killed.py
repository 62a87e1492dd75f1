"""kill -9 at each step of a large message: what was accepted arrives, whole and once (promise 1, LSE-08).

A message below the inline limit travels with its commit, one above in chunks before it (ACC-02). Each is stopped after
its first part, before and after its commit, and in the middle of the hand-over to the next hop.
"""

import contextlib
import itertools
import socket
from collections.abc import Iterator
from typing import Self

import psycopg
import pytest

from mailrail.core.limits import INLINE_LIMIT

from testkit.conditions import wait_until
from testkit.next_hop import NextHop
from testkit.rail import Rail, basics, everything_through

pytestmark = pytest.mark.timeout(300)

LEASE = 16
SETTINGS = {
    "MAILRAIL_QUEUE_LEASE_SECONDS": str(LEASE),
    "MAILRAIL_QUEUE_HANDOUT_SECONDS": str(LEASE / 2),
    "MAILRAIL_QUEUE_SWEEP_SECONDS": "2",
    "MAILRAIL_OUTBOUND_LEASE_MARGIN": str(LEASE / 4),
}
LINE = b"0123456789abcdef" * 4 + b".\r\n"
SIZES = [pytest.param(INLINE_LIMIT * 2 // 3, id="inline"), pytest.param(INLINE_LIMIT * 3, id="chunks")]
_names = itertools.count()

HELD_COMMIT = """
    CREATE OR REPLACE FUNCTION public.wait() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN PERFORM pg_advisory_xact_lock_shared(42); RETURN NULL; END $$;
    DROP TRIGGER IF EXISTS wait ON queue.recipient;
    CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON queue.recipient
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.wait();
"""
"""What stores recipients waits while somebody has lock 42, in the middle of its commit."""
WAITING = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 42 AND NOT granted"


@pytest.fixture(scope="module")
def hop() -> Iterator[NextHop]:
    with NextHop() as sink:
        yield sink


@pytest.fixture(scope="module")
def rail(hop: NextHop) -> Iterator[Rail]:
    with Rail([*basics(), *everything_through(hop.address, hop.port)], settings=SETTINGS) as running:
        yield running


class Large:
    """One large message on its way in, by hand."""

    def __init__(self, rail: Rail, size: int) -> None:
        self.name = f"large{next(_names)}@partner.test"
        self.body = b"Subject: large\r\nMessage-ID: <1@far.example>\r\n\r\n" + LINE * (size // len(LINE))
        wait_until(lambda: self._begin(rail), 60, "mail is taken, after what was killed before")

    def _begin(self, rail: Rail) -> bool:
        self._socket = socket.create_connection(rail.mx, timeout=120)
        self._file = self._socket.makefile("rb")
        self._reply()
        for command in ("EHLO far.example", "MAIL FROM:<a@far.example>", f"RCPT TO:<{self.name}>", "DATA"):
            self._socket.sendall(command.encode() + b"\r\n")
            if self._reply()[:1] not in ("2", "3"):
                self.__exit__()
                return False
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()

    def _reply(self) -> str:
        """The last line of the next reply; empty: the connection is lost."""
        try:
            while (line := self._file.readline().decode())[3:4] == "-":
                pass
        except OSError:
            return ""
        return line

    def send(self, start: int = 0, end: int | None = None) -> None:
        """A part of it; to the end: with the final dot."""
        with contextlib.suppress(OSError):  # it was killed: the answer tells
            self._socket.sendall(self.body[start:end] + (b".\r\n" if end is None else b""))

    def answer(self) -> str:
        """The reply to the final dot; empty: none came."""
        return self._reply()

    def wait_until_it_came(self, hop: NextHop, rail: Rail, answer: str, *, stored: bool = False) -> None:
        """Wait until all has ended as was promised. `stored`: it was seen in the database."""
        if answer.startswith("250") or stored:
            hop.wait_for_recipient(self.name, 120)
        rail.wait_until_empty(120)
        copies = hop.received(self.name)
        if answer[:1] in ("4", "5"):
            assert not copies, "it was refused"
        assert len(copies) <= 1
        assert all(copy.content.endswith(self.body) for copy in copies)


@contextlib.contextmanager
def held_commits(rail: Rail) -> Iterator[psycopg.Connection]:
    """While the context lasts, or until the lock is given up, no recipient is stored."""
    with contextlib.closing(psycopg.connect(rail.superuser_url(), autocommit=True)) as holder:
        holder.execute(HELD_COMMIT)
        holder.execute("SELECT pg_advisory_lock(42)")
        yield holder


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("victim", ["ingress", "queue", "postgres"])
def test_killed_after_the_first_part_nothing_of_it_is_accepted_or_all_arrives_LSE_08(
    rail: Rail, hop: NextHop, victim: str, size: int
) -> None:
    with Large(rail, size) as message:
        first = size * 3 // 4
        ((began,),) = rail.sql("SELECT clock_timestamp()")
        message.send(0, first)
        if first > INLINE_LIMIT:
            stored = "SELECT count(*) FROM queue.upload JOIN queue.chunk USING (message_id) WHERE started > %s"
            wait_until(lambda: rail.sql(stored, began)[0][0], 60, "its first chunk is stored")
        pid = rail.kill(victim)
        message.send(first)
        answer = message.answer()
        rail.wait_until_back(victim, pid)
        assert victim != "ingress" or answer == "", "half a message died with it"
        message.wait_until_it_came(hop, rail, answer)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("victim", ["ingress", "queue", "postgres"])
def test_killed_before_its_commit_it_is_stored_once_or_refused_LSE_08(
    rail: Rail, hop: NextHop, victim: str, size: int
) -> None:
    with Large(rail, size) as message:
        with held_commits(rail) as holder:
            message.send()
            wait_until(lambda: rail.sql(WAITING)[0][0], 60, "its commit waits")
            pid = rail.kill(victim)
            if victim != "postgres":
                holder.execute("SELECT pg_advisory_unlock(42)")
        answer = message.answer()
        rail.wait_until_back(victim, pid)
        message.wait_until_it_came(hop, rail, answer)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("victim", ["ingress", "queue", "postgres"])
def test_killed_after_its_commit_and_before_the_answer_it_arrives_once_LSE_08(
    rail: Rail, hop: NextHop, victim: str, size: int
) -> None:
    with Large(rail, size) as message:
        pid = rail.pid(victim)
        with held_commits(rail) as holder:
            message.send()
            wait_until(lambda: rail.sql(WAITING)[0][0], 60, "its commit waits")
            with rail.frozen("ingress" if victim == "ingress" else "queue"):
                holder.execute("SELECT pg_advisory_unlock(42)")
                stored = "SELECT count(*) FROM queue.recipient WHERE address = %s"
                wait_until(lambda: rail.sql(stored, message.name)[0][0], 60, "it is stored")
                rail.kill(victim)
        answer = message.answer()
        rail.wait_until_back(victim, pid)
        assert answer.startswith("" if victim == "ingress" else "250")
        message.wait_until_it_came(hop, rail, answer, stored=True)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("victim", ["ingress", "queue", "outbound", "postgres"])
def test_killed_while_it_is_handed_over_it_arrives_once_LSE_08(
    rail: Rail, hop: NextHop, victim: str, size: int
) -> None:
    with Large(rail, size) as message:
        hop.answers.delays["DATA"] = 3.0
        try:
            message.send()
            assert message.answer().startswith("250")
            wait_until(lambda: hop.attempts(message.name), 60, "the next hop was asked")
            pid = rail.kill(victim)
        finally:
            del hop.answers.delays["DATA"]
        rail.wait_until_back(victim, pid)
        message.wait_until_it_came(hop, rail, "250")
