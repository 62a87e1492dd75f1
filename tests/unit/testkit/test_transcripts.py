"""What a failing test shows of its scripted servers."""

import asyncio
import os
import sys
from pathlib import Path

from testkit import transcripts
from testkit.processes import run
from testkit.smtp_peer import Flood, Raw, SmtpPeer

TESTS = Path(__file__).parents[2]
FAILING = """
import asyncio
from testkit.smtp_peer import Close, SmtpPeer

async def test_that_fails() -> None:
    async with SmtpPeer(replies={"MAIL": Close("421 4.3.2 going down")}) as peer:
        reader, writer = await asyncio.open_connection(peer.host, peer.port)
        writer.write(b"EHLO here\\r\\nMAIL FROM:<a@b.test>\\r\\n")
        await reader.read()
        await peer.until(lambda it: it.sessions[0].closed)
        writer.close()
        raise AssertionError("look below")
"""


def test_a_test_that_fails_shows_what_was_said_on_the_wire(tmp_path: Path) -> None:
    (tmp_path / "test_failing.py").write_text(FAILING)
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command += ["-c", str(TESTS.parent / "pyproject.toml"), "--rootdir", str(tmp_path), str(tmp_path)]
    said = run(command, env={"PYTHONPATH": f"{TESTS}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}, status=1)
    assert "scripted servers" in said
    wire = ["S: 220 peer.example ESMTP scripted", "C: EHLO here", "C: MAIL FROM:<a@b.test>", "S: 421 4.3.2 going down"]
    places = [said.index(line) for line in (*wire, "-- closed by the server")]
    assert places == sorted(places)


async def _talk(peer: SmtpPeer, *lines: bytes) -> None:
    reader, writer = await asyncio.open_connection(peer.host, peer.port)
    writer.write(b"\r\n".join([*lines, b""]))
    for _ in range(300):
        await reader.readline()
    writer.close()


async def test_floods_and_control_characters_leave_a_transcript_that_can_be_read() -> None:
    async with SmtpPeer(replies={"GREETING": Raw(b"220 \x1b[2J\xff\r\n"), "NOOP": Flood()}) as peer:
        await _talk(peer, b"NOOP \xff\x00")
        assert "S: 220 \\x1b[2J\\\\xff" in peer.transcript
        assert "C: NOOP \\udcff\\x00" in peer.transcript
        assert peer.transcript.count("\n") < 250
        assert peer.transcript in transcripts.shown()


async def test_a_server_that_has_ended_is_forgotten_when_the_next_test_begins() -> None:
    async with SmtpPeer() as ended:
        ended.sessions.clear()
    async with SmtpPeer() as serves:
        transcripts.begin()
        noted = list(transcripts._servers)
        assert serves in noted
        assert ended not in noted
