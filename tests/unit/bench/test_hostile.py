"""What a healthy client's messages say, and how rows of the hostile bench are told."""

import asyncio
import math
import socket
from dataclasses import replace

import pytest
from bench.healthy import HEAD, Seen, cells, milliseconds, seen
from bench.hostile import (
    NEW_SITES,
    SITES,
    STRANGERS,
    Result,
    Row,
    _beside,
    beside_idle,
    fewer_sites,
    fewer_strangers,
    options,
    tables,
    world,
)
from bench.load import own_sink
from bench.strangers import KINDS, crowd
from bench.systems import Also

from mailrail.kit.resolver import DnsResolver

from testkit.ports import free_port, loopback_address

MACHINE = {"date": "d", "commit": "c", "cpu": "p", "system": "s", "python": "3", "postfix": "3"}
GOOD = Seen(2, 2, 2, (4.0, 5.0), (0.5, 900.0))


def row(name: str, what: Seen, system: str = "Mailrail") -> Row:
    return Row(name, "what", system, what, (90.0, 95.0))


def test_a_message_is_timed_from_connect_to_250_and_from_there_to_the_sink() -> None:
    found = seen(
        {"times": [[0, 100.0, 0.25], [1, 101.0, 0.5]], "accepted": 2, "replies": []},
        {"0.row": 100.5, "1.row": 101.5, "0.other": 1.0},
        "row",
    )
    assert (found.sent, found.accepted, found.delivered) == (2, 2, 2)
    assert found.accept_ms == (250.0, 500.0)
    assert found.delivery_ms == (250.0, 0.0)


def test_what_was_refused_or_never_came_counts_as_infinite_and_not_as_missing() -> None:
    found = seen(
        {"times": [[0, 100.0, None], [1, 101.0, 0.5]], "accepted": 1, "replies": ["421 busy"]}, {"9.row": 1.0}, "row"
    )
    assert (found.sent, found.delivered, found.refusals) == (2, 0, ("421 busy",))
    assert found.accept_ms == (math.inf, 500.0)
    assert found.delivery_ms == (math.inf, math.inf)
    assert found.verdict() == "aim: 1000 ms, not reached"


def test_a_sink_that_is_quicker_than_the_250_counts_as_at_once() -> None:
    assert seen({"times": [[0, 1.0, 0.5]], "accepted": 1, "replies": []}, {"0.r": 1.4}, "r").delivery_ms == (0.0,)


def test_a_client_that_sent_nothing_is_no_measurement() -> None:
    with pytest.raises(ValueError, match="sent nothing"):
        seen({"times": [], "accepted": 0, "replies": []}, {}, "row")


def test_the_worse_of_both_latencies_decides() -> None:
    assert GOOD.verdict() == "aim: 1000 ms, reached"
    assert replace(GOOD, accept_ms=(4.0, 1001.0)).verdict() == "aim: 1000 ms, not reached"
    assert replace(GOOD, delivery_ms=(4.0, 1001.0)).verdict() == "aim: 1000 ms, not reached"


def test_a_row_says_never_for_what_never_came() -> None:
    assert cells(replace(GOOD, delivery_ms=(1.0, math.inf)))[4:] == ["1.0", "never", "never"]
    assert len(cells(GOOD)) == len(HEAD)
    assert milliseconds(12345.6) == "12,346"


def test_the_report_has_both_tables_what_refused_clients_were_told_and_what_failed() -> None:
    refused = replace(GOOD, refusals=("421 4.7.0 too many connections",))
    text = tables(Result(MACHINE, [row("d3", GOOD), row("idle", refused, "Postfix")], failures=["bdat: it ended"]))
    assert (
        "| (d3) what: Mailrail | 2 of 2 | 4.0 | 5.0 | 5.0 | 0.5 | 900 | 900 | 90 → 95 | aim: 1000 ms, reached |" in text
    )
    assert "| while strangers do this |" in text
    assert "- (idle) Postfix said: 421 4.7.0 too many connections" in text
    assert "Not measured: bdat: it ended" in text


def test_the_median_and_the_greatest_of_what_new_sites_waited_are_told() -> None:
    new = (*map(float, range(1, NEW_SITES)), 66_000.0)
    text = tables(Result(MACHINE, [replace(row("f", GOOD), new_sites_ms=new)]))
    assert "| MiB | new sites p50 ms | max | p99 |" in text
    assert "| 90 → 95 | 5.0 | 66,000 | aim: 1000 ms, reached |" in text
    assert "| never | aim" in tables(Result(MACHINE, [replace(row("f", GOOD), new_sites_ms=(*new[:-1], math.inf))]))


async def test_each_new_site_has_a_message_beside_the_healthy_client_and_an_address_of_its_own() -> None:
    addresses = [loopback_address() for _ in range(NEW_SITES)]
    with own_sink(timed=True, also=addresses) as sink, world(SITES[0], sink) as dns:
        found, new = _beside(Also("stand-in", sink.address, sink.port, (sink.pid,)).system(), sink, 0.5, "row")
        assert found.delivered == 10
        assert len(new) == NEW_SITES
        assert max(new) < math.inf
        resolver = DnsResolver(dns.endpoint)
        for i, address in enumerate(addresses):
            (mx,) = await resolver.mx(f"d{i}.new.test")
            assert await resolver.addresses(mx.host, ("ipv4",)) == (address,)
        for address in addresses:
            with socket.create_connection((address, sink.port), 10) as connection:
                assert connection.recv(3) == b"220"


def test_each_row_of_sites_is_compared_with_the_empty_queue_of_the_same_system() -> None:
    slow, lost = replace(GOOD, delivery_ms=(9.0, 1800.0)), replace(GOOD, delivery_ms=(1.0, math.inf))
    rows = [row("a", GOOD), row("d3", slow), row("e", lost), row("d3", slow, "Postfix"), row("idle", slow)]
    rows.append(row("a", lost, "Postfix"))
    assert beside_idle(rows) == ["- (d3) Mailrail: p99 of delivery 2.0 × that of an empty queue."]
    assert beside_idle(rows)[0] in tables(Result(MACHINE, rows))


def test_a_small_form_says_in_its_report_that_it_is_one() -> None:
    assert "**Only 0.1 of the numbers below" in tables(Result(MACHINE, [row("d3", GOOD)], share=0.1))
    assert "Only" not in tables(Result(MACHINE, [row("d3", GOOD)]))


def test_every_row_can_be_named_and_each_behaviour_exists() -> None:
    names = [one.name for one in (*SITES, *STRANGERS)]
    assert len(set(names)) == len(names)
    assert {one.kind for one in STRANGERS} <= set(KINDS)
    assert options(["--only", "d3"]).only == ["d3"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--share", "0"],
        ["--share", "2"],
        ["--page", "--share", "0.5"],
        ["--page", "--only", "d3"],
        ["--systems", "exim"],
        ["--only", "zz"],
    ],
)
def test_what_makes_no_sense_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        options(arguments)


def test_a_small_form_keeps_the_kind_of_a_row() -> None:
    small = fewer_sites(SITES[5], 0.1)
    assert small == replace(SITES[5], backlog=replace(SITES[5].backlog, recipients=100, sites=20))  # type: ignore[type-var]
    assert fewer_sites(SITES[0], 0.1) == SITES[0]
    assert fewer_strangers(STRANGERS[1], 0.01) == replace(STRANGERS[1], count=100)


async def test_strangers_come_back_when_they_are_thrown_out_and_tell_when_all_are_there(
    capsys: pytest.CaptureFixture[str],
) -> None:
    address = loopback_address()
    port, came = free_port(address), 0
    enough = asyncio.Event()

    async def throw_out(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal came
        came += 1
        writer.write(b"421 no\r\n")
        writer.close()
        if came > 6:
            enough.set()

    server = await asyncio.start_server(throw_out, address, port)
    there = asyncio.create_task(crowd("idle", (address, port), 3, [loopback_address()]))
    try:
        await asyncio.wait_for(enough.wait(), 30)
    finally:
        there.cancel()
        server.close()
    assert capsys.readouterr().out == "on\n"
