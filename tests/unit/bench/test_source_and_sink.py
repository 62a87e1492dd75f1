"""Our own generator and sink: what is sent is counted, with its recipients, over TLS too."""

import ssl
from pathlib import Path

from bench.__main__ import throughput
from bench.load import Load, own_sink
from bench.sink import Counters, serve
from bench.source import Run, all_at_once, at_a_rate
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
    arrived = dict(line.split() for line in (tmp_path / "log").read_text().splitlines())
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


def test_a_system_that_is_taken_along_is_sent_to_and_its_processes_are_counted() -> None:
    with own_sink() as sink:  # stands in for a mail system, too: what it is sent has arrived
        stand_in = Also("stand-in", sink.address, sink.port, (sink.pid,)).system()
        load = Load(50, 5, 2048, True, "a@a.test", "b@b.test", recipients=2)
        measured = throughput(stand_in, sink, load)
        assert sink.count() == 100
    assert measured.system == "stand-in"
    assert measured.delivered_per_s > 0
    assert list(measured.cpu_ms) == ["stand-in"]


async def test_nobody_there_is_a_message_refused(tmp_path: Path) -> None:
    load = run([2048] * 2)
    await all_at_once(load, 1, 5)
    assert (load.accepted, load.refused) == (0, 2)
    assert "Connection" in load.replies[0]
