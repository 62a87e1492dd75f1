"""Our own generator and sink: what is sent is counted, with its recipients, over TLS too."""

import asyncio
import ssl
from pathlib import Path

import pytest
from bench import source
from bench.__main__ import throughput
from bench.load import Load, own_sink
from bench.sink import Counters, serve
from bench.source import Run, all_at_once, at_a_rate, body_size, pause
from bench.systems import Also

from testkit.ca import Authority, trusting_anybody
from testkit.ports import free_port, loopback_address


async def sent(tmp_path: Path, run: Run, *, tls: bool = False, rate: float = 0.0) -> tuple[int, int]:
    """What the sink counted of a run."""
    counters = Counters(tmp_path / "counters", make=True)
    certificate = Authority().issue("sink.test").write(tmp_path) if tls else None
    server = await serve(*run.address, counters, certificate, tmp_path / "log")
    try:
        await (at_a_rate(run, rate, 30) if rate else all_at_once(run, 3, 30))
    finally:
        server.close()
        await server.wait_closed()
    return Counters(tmp_path / "counters").read()


def run(sizes: list[int], *, recipients: int = 1, reuse: bool = False, tls: ssl.SSLContext | None = None) -> Run:
    address = loopback_address()
    return Run((address, free_port(address)), sizes, recipients, reuse, tls)


async def test_every_message_arrives_with_every_recipient(tmp_path: Path) -> None:
    load = run([300, 5000, 200_000, 300, 300], recipients=20)
    assert await sent(tmp_path, load) == (5, 100)
    assert (load.accepted, load.refused) == (5, 0)


async def test_connections_are_reused_and_nothing_is_lost_between_messages(tmp_path: Path) -> None:
    assert await sent(tmp_path, run([300, 100_000] * 10, reuse=True)) == (20, 20)


async def test_starttls_is_used_on_both_sides(tmp_path: Path) -> None:
    load = run([2048] * 4, reuse=True, tls=trusting_anybody())
    assert await sent(tmp_path, load, tls=True) == (4, 4)


async def test_handshakes_are_counted_one_a_connection(tmp_path: Path) -> None:
    assert await sent(tmp_path, run([2048] * 3, tls=trusting_anybody()), tls=True) == (3, 3)
    full, resumed = Counters(tmp_path / "counters").handshakes()
    assert (full + resumed, full >= 1) == (3, True)


async def test_a_sink_without_tls_refuses_starttls_and_the_source_says_so(tmp_path: Path) -> None:
    load = run([2048], tls=trusting_anybody())
    assert await sent(tmp_path, load) == (0, 0)
    assert load.refused == 1
    assert load.replies == ["250 2.0.0 ok"]


async def test_messages_at_a_rate_are_told_with_their_times_at_both_ends(tmp_path: Path) -> None:
    load = run([2048] * 5)
    load.numbered = True
    assert await sent(tmp_path, load, rate=500) == (5, 5)
    arrived = {line.split()[0]: line.split()[1] for line in (tmp_path / "log").read_text().splitlines()}
    assert sorted(arrived) == [f"{number}.sink" for number in range(5)]
    for number, begun, taken in load.times:
        assert taken is not None
        assert begun < float(arrived[f"{number}.sink"]) <= begun + taken


def test_recipients_can_be_spread_over_domains() -> None:
    load = Run(("127.0.0.1", 1), [300] * 3, domains=2)
    assert [load.paths(number) for number in range(3)] == [
        ["user0@d0.example"],
        ["user1@d1.example"],
        ["user2@d0.example"],
    ]


def test_numbered_recipients_can_be_spread_over_domains_below_theirs() -> None:
    load = Run(("127.0.0.1", 1), [300] * 3, domains=2, recipient="row@new.test", numbered=True)
    assert [load.paths(number) for number in range(3)] == [
        ["0.row@d0.new.test"],
        ["1.row@d1.new.test"],
        ["2.row@d0.new.test"],
    ]


def test_a_system_that_is_taken_along_is_sent_to_and_its_processes_are_counted() -> None:
    with own_sink() as sink:  # stands in for a mail system, too: what it is sent has arrived
        stand_in = Also("stand-in", sink.address, sink.port, (sink.pid,)).system()
        load = Load(50, 5, 2048, True, "a@a.test", "b@b.test", recipients=2)
        measured = throughput(stand_in, sink, load)
        assert sink.count() == 100
    assert measured.system == "stand-in"
    assert measured.delivered_per_s > 0
    assert list(measured.cpu_ms) == ["stand-in"]


async def test_the_sink_notes_the_octets_after_the_header_of_small_and_large_messages(tmp_path: Path) -> None:
    sizes = [1, 300, 100_000, 3_000_000]
    load = run(sizes, reuse=True)
    load.numbered = True
    assert await sent(tmp_path, load) == (4, 4)
    noted = {line.split()[0]: int(line.split()[2]) for line in (tmp_path / "log").read_text().splitlines()}
    assert noted == {f"{number}.sink": body_size(size) for number, size in enumerate(sizes)}
    assert 2_999_000 < noted["3.sink"] <= 3_000_000


class Full:
    """An SMTP server without room: so many replies to DATA or MAIL are another one, and the dialogue goes on."""

    def __init__(self, *, mail: list[str], data: list[str]) -> None:
        self.mail, self.data = mail, data
        self.said: list[str] = []
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        writer.write(b"220 full.test\r\n")
        while line := (await reader.readline()).decode().strip():
            self.said.append(line)
            reply = {"E": "250-full.test\r\n250 SIZE 0", "Q": "221 bye"}.get(line[0], "250 ok")
            if line.startswith("MAIL") and self.mail:
                reply = self.mail.pop(0)
            elif line == "DATA":
                writer.write(b"354 go on\r\n")
                await reader.readuntil(b"\r\n.\r\n")
                reply = self.data.pop(0) if self.data else "250 taken"
            writer.write(reply.encode() + b"\r\n")
            if line == "QUIT" or reply.startswith("421"):
                break
        writer.close()


async def tried(load: Run, server: Full) -> Run:
    """What became of a message that a server has room for only later."""
    running = await asyncio.start_server(server.serve, *load.address, limit=1 << 24)
    try:
        await all_at_once(load, 3, 30)
    finally:
        running.close()
        await running.wait_closed()
    return load


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "FIRST_PAUSE", 0.01)


@pytest.mark.usefixtures("short_pauses")
async def test_who_has_patience_tries_again_on_the_same_connection_until_the_message_is_taken() -> None:
    server = Full(mail=["452 4.3.1 full"], data=["452 4.3.1 full", "451 4.3.0 later"])
    load = run([600_000])
    load.patience = 20
    await tried(load, server)
    assert (load.accepted, load.refused, load.put_off) == (1, 0, {"452": 2, "451": 1})
    assert server.connections == 1
    assert [word.split()[0] for word in server.said if word[0] in "MDR"] == [
        *("MAIL", "RSET"),
        *("MAIL", "RCPT", "DATA", "RSET") * 2,
        *("MAIL", "RCPT", "DATA"),
    ]
    assert f"MAIL FROM:<source@source.test> SIZE={len(source.content(600_000)) - 3}" in server.said


@pytest.mark.usefixtures("short_pauses")
async def test_who_is_sent_away_comes_back_on_another_connection() -> None:
    server = Full(mail=["421 4.7.0 go away"], data=[])
    load = run([300])
    load.patience = 20
    await tried(load, server)
    assert (load.accepted, load.put_off, server.connections) == (1, {"421": 1}, 2)


@pytest.mark.usefixtures("short_pauses")
async def test_a_refusal_for_good_is_not_tried_again_nor_one_whose_time_is_over() -> None:
    for reply, patience in (("550 5.7.1 no", 20.0), ("452 4.3.1 full", 0.0), ("452 4.3.1 full", 0.001)):
        server = Full(mail=[reply], data=[])
        load = run([300])
        load.patience = patience
        await tried(load, server)
        assert (load.accepted, load.refused, load.replies, load.put_off) == (0, 1, [reply], {})


def test_pauses_double_up_to_a_minute_and_differ_by_chance() -> None:
    assert [pause(tries, 0.5) for tries in (1, 2, 3, 7, 8, 1000)] == [1, 2, 4, 60, 60, 60]
    assert (pause(1, 0.0), pause(1, 1.0)) == (0.5, 1.5)


def test_connections_come_from_so_many_clients_in_turn() -> None:
    load = Run(("127.0.0.1", 1), [300], local=("127.7.0.255", 0), clients=3)
    assert [load.source_address() for _ in range(4)] == [
        ("127.7.0.255", 0),
        ("127.7.1.0", 0),
        ("127.7.1.1", 0),
        ("127.7.0.255", 0),
    ]
    assert run([300]).source_address() is None


async def test_nobody_there_is_a_message_refused(tmp_path: Path) -> None:
    load = run([2048] * 2)
    await all_at_once(load, 1, 5)
    assert (load.accepted, load.refused) == (0, 2)
    assert "Connection" in load.replies[0]
