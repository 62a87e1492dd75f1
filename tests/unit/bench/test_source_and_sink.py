"""Our own generator and sink: what is sent is counted, with its recipients, over TLS too."""

import ssl
from pathlib import Path

from bench.sink import Counters, serve
from bench.source import Run, all_at_once, at_a_rate

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


async def test_nobody_there_is_a_message_refused(tmp_path: Path) -> None:
    load = run([2048] * 2)
    await all_at_once(load, 1, 5)
    assert (load.accepted, load.refused) == (0, 2)
    assert "Connection" in load.replies[0]
