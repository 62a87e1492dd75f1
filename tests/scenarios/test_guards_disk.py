"""No room is left for Postgres in the middle of traffic: nothing lost, doubled or bounced, and it goes on by itself.

New mail is put off with 452 4.3.1 meanwhile (or 451, should Postgres have to start anew), and what was delivered is
written when there is room again. All of Postgres is on a small file system of its own, which a file fills: that needs
root, and a machine that lets it mount one.
"""

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from testkit.conditions import wait_until
from testkit.guards import books, short_and_long
from testkit.next_hop import NextHop
from testkit.rail import Rail, basics, everything_through
from testkit.traffic import Fate, Sender

ROOM = "400m"  # Postgres keeps up to 256 MB of its log for later
LARGE = 1100 * 1024  # octets; such bodies are several rows, stored in several transactions (ACC-05)
LATER = "later.test"  # is put off by the hop until the disk has room again


@pytest.fixture
def disk() -> Iterator[Path]:
    """A small file system."""
    if os.geteuid() != 0:
        pytest.skip("a small file system is mounted by root alone")
    folder = Path(tempfile.mkdtemp(prefix="mailrail-disk-"))
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={ROOM},mode=755", "tmpfs", str(folder)], capture_output=True, text=True
    )
    try:
        if done.returncode != 0:
            pytest.skip(f"this machine mounts no file system: {done.stderr.strip()}")
        yield folder
        subprocess.run(["umount", "--lazy", str(folder)], check=True, capture_output=True)
    finally:
        folder.rmdir()


@pytest.fixture
def rail(hop: NextHop, disk: Path) -> Iterator[Rail]:
    documents = [
        *basics(),
        *everything_through(hop.address, hop.port),
    ]
    with Rail(documents, state=disk / "state") as running:
        yield running


@contextmanager
def full(disk: Path) -> Iterator[None]:
    """No octet is free while the context lasts, but what is given back in it."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        fill(file.fileno())
        try:
            yield
        finally:
            ballast.unlink()


def fill(file: int) -> None:
    """Write until nothing more goes in."""
    for size in (1 << 20, 4096):
        try:
            while os.write(file, bytes(size)):
                pass
        except OSError:
            continue  # ENOSPC


@short_and_long("seconds", 8, 75)
def test_a_full_disk_of_Postgres_loses_and_doubles_nothing_and_mail_flows_when_there_is_room(
    rail: Rail, hop: NextHop, disk: Path, seconds: float
) -> None:
    hop.refuse(f"@{LATER}", "451 4.3.0 not now")
    waiting = Sender(*rail.mx, messages=30, recipient=f"w{{n}}x@{LATER}", sessions=2)
    sender = Sender(
        *rail.mx,
        messages=1_000_000,
        recipient="r{n}-{k}@partner.test",
        recipients=2,
        sessions=8,
        size=lambda number: LARGE if number % 10 == 0 else 1024,
        pace=0.05,
        patience=seconds + 180,
    )
    try:
        waiting.finish(60)
        wait_until(lambda: len(hop) >= 50, 60, "mail flows")
        with full(disk):
            began = time.monotonic()
            wait_until(lambda: put_off(sender, began), 60, lambda: f"mail is put off\n{rail.program.tail()}")
            time.sleep(seconds)  # the disk is full for so long; there is nothing to wait for
            roomy = time.monotonic()
        before = sender.accepted
        wait_until(lambda: sender.accepted > before + 50, 90, lambda: f"mail flows again\n{rail.program.tail()}")
        back = next(one.at for one in sender.traffic.tries if one.at > roomy and one.fate is Fate.ACCEPTED) - roomy
        hop.accept(f"@{LATER}")
        sender.enough()
        traffic = sender.finish(180)
        rail.wait_until_empty(180)
    finally:
        sender.stop()
        waiting.stop()
    replies = sorted({reply for one in traffic.tries if one.fate is Fate.REFUSED and (reply := one.reply[:9])})
    traffic.tries += waiting.traffic.tries
    found = books(traffic, hop.messages)
    print(f"{found}; put off with {replies}; the first accepted {back:.1f} s after there was room")
    found.check()
    assert traffic.given_up == 0
    assert len(found.accepted) == 2 * sender.messages + waiting.messages
    assert not [reply for reply in replies if reply.startswith("5")], replies
    (orphans,) = rail.sql(
        "SELECT count(*) FROM queue.chunk AS c"
        " WHERE NOT EXISTS (SELECT FROM queue.message AS m WHERE m.id = c.message_id)"
        " AND NOT EXISTS (SELECT FROM queue.upload AS u WHERE u.message_id = c.message_id)"
    )
    assert orphans == (0,), "chunks of large bodies that belong to nothing"


def put_off(sender: Sender, since: float) -> bool:
    """Whether mail was put off by a reply of 45x since a moment."""
    return any(one.at > since and one.reply.startswith("45") for one in list(sender.traffic.tries))
