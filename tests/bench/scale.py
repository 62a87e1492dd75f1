"""`make bench ARGS='scale'`: whether what a message costs depends on what else there is.

Backlogs up to 5,000,000 recipients, 100,000 routes, 10,000 idle connections and 1,000 slow senders, a hundred messages
of 100 MB at once, and 1, 2 and 4 replicas of each service.
"""

import argparse
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import psycopg

from bench import aims, healthy, report
from bench.fleet import fleet
from bench.hostile import Strangers, attack
from bench.load import Load, OwnSink, own_sink, send, somewhere
from bench.measure import cpu_ms, memory_mb, settle
from bench.systems import SINK_DOMAIN, Mailrail, mailrail
from mailrail.pb.queue.v1 import admin_pb2, admin_pb2_grpc

from testkit.backlog import Backlog, seed
from testkit.conditions import wait_until
from testkit.peers.load import source_command
from testkit.ports import loopback_address
from testkit.rail import route, rule

PARTS = ("backlog", "routes", "connections", "large", "replicas")
BACKLOGS = (0, 10_000, 1_000_000, 5_000_000)
SITES = 50_000
ROUTES = 100_000
IDLE, SLOW = 10_000, 1_000
LARGE, LARGE_OCTETS = 100, 100_000_000
REPLICAS = (1, 2, 4)
_FILE = 2000  # routes in one file of resources
_EXPLAINED = 50
_NO_LIMITS = {"connections": 20_000, "connectionsPerIP": 20_000}


@dataclass(frozen=True)
class Case:
    """What was measured while something was there in a number."""

    part: str
    what: str
    seen: healthy.Seen | None = None
    per_s: float = 0.0
    """Messages of 2 KiB with reuse, as fast as they go."""
    cpu_ms: float = 0.0
    """A message of those."""
    pss_mb: dict[str, float] = field(default_factory=dict)
    """The largest of each part meanwhile."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Replicas:
    """What a message cost with so many of each service."""

    replicas: int
    per_s: float
    cpu_ms: dict[str, float]
    transactions: float
    """Of Postgres, a message."""
    wal_kib: float
    """A message."""
    waiting: float
    """Database sessions that waited for a lock, on average."""


@dataclass
class Result:
    """Everything."""

    machine: dict[str, str]
    cases: list[Case] = field(default_factory=list)
    replicas: list[Replicas] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


class Peak:
    """The most memory (PSS) that each part of a system had, looked at each second."""

    def __init__(self, system: Mailrail) -> None:
        self._system = system
        self._most: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._stop.wait(1):
            self._once()

    def _once(self) -> None:
        for part, (size, _) in memory_mb(self._system.parts()).items():
            self._most[part] = max(size, self._most.get(part, 0.0))

    def __enter__(self) -> dict[str, float]:
        self._once()
        self._thread.start()
        return self._most

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._once()


def _speed(system: Mailrail, sink: OwnSink, messages: int) -> tuple[float, float]:
    """Messages a second and CPU ms a message, of the second of two runs."""
    load = Load(messages, 40, 2048, True, "source@source.test", f"sink@{SINK_DOMAIN}")
    send(load.with_messages(-(-messages // 5)), system.address, system.port, sink, within=300)
    parts = dict(system.parts())
    settle(parts)
    before = sum(cpu_ms(parts).values())
    timing = send(load, system.address, system.port, sink, within=600)
    settle(parts)
    return messages / timing.delivered_s, (sum(cpu_ms(parts).values()) - before) / messages


def measure_backlog(queued: int, sink: OwnSink, chosen: argparse.Namespace) -> Case:
    """With so many recipients queued, none of them due, at so many sites; a thousand share a body."""
    with mailrail(sink) as system:
        took = 0.0
        if queued:
            backlog = Backlog(queued, sites=min(SITES, queued), due=0, held=0, bound=0)
            with psycopg.connect(system.rail.superuser_url(), autocommit=True) as connection:
                took = seed(connection, backlog).seconds
                # Nothing falls due during the measurement.
                connection.execute(
                    "UPDATE queue.recipient SET due = due + interval '2 hours' WHERE due < now() + interval '2 hours'"
                )
                connection.execute("VACUUM ANALYZE queue.recipient")
        with Peak(system) as most:
            per_s, used = _speed(system, sink, chosen.messages)
            seen = healthy.watch(system.address, system.port, sink, chosen.seconds, f"backlog{queued}", SINK_DOMAIN)
        notes = (f"seeded in {took:.0f} s",) if queued else ()
        return Case("backlog", f"{queued:,} queued", seen, per_s, used, dict(most), notes)


def measure_routes(count: int, sink: OwnSink, chosen: argparse.Namespace) -> Case:
    """With so many MailRoutes: accept, delivery, and the time that `explain` takes."""
    with mailrail(sink) as system:
        began = time.monotonic()
        for first in range(0, count, _FILE):
            many = [  # before `everything` in the order of names, so that they are looked at first
                route(f"a{number}", ("MailGateway", "local"), rule("one", "sink", to=[f"d{number}.route.test"]))
                for number in range(first, min(first + _FILE, count))
            ]
            system.rail.write(f"routes-{first}.yaml", many)
        with system.rail.channel("queue") as channel:
            admin = admin_pb2_grpc.QueueAdminServiceStub(channel)

            def explain(number: int) -> admin_pb2.ExplainResponse:
                request = admin_pb2.ExplainRequest(to=f"a@d{number}.route.test")
                setattr(request, "from", "b@source.test")  # a word of Python
                return admin.Explain(request, timeout=60)

            if count:
                last = f"a{count - 1}"
                wait_until(lambda: last in str(explain(count - 1).decision), 3600, "the last route is in force")
            in_force = time.monotonic() - began
            taken = []
            for number in range(_EXPLAINED):
                start = time.monotonic()
                explain(number * max(1, count // _EXPLAINED))
                taken.append((time.monotonic() - start) * 1000)
        with Peak(system) as most:
            per_s, used = _speed(system, sink, chosen.messages)
            seen = healthy.watch(system.address, system.port, sink, chosen.seconds, f"routes{count}", SINK_DOMAIN)
        notes: tuple[str, ...] = (
            f"explain p50 {statistics.median(taken):.1f}, p99 {aims.percentile(taken, 0.99):.1f} ms",
        )
        if count:
            notes += (f"in force after {in_force:.0f} s",)
        return Case("routes", f"{count:,} routes", seen, per_s, used, dict(most), notes)


def measure_connections(crowd: Strangers, sink: OwnSink, chosen: argparse.Namespace) -> Case:
    """With so many other connections open at one ingress."""
    with (
        mailrail(sink, limits=_NO_LIMITS) as system,
        Peak(system) as most,
        attack(crowd, (system.address, system.port)),
    ):
        seen = healthy.watch(
            system.address, system.port, sink, chosen.seconds, crowd.name, SINK_DOMAIN, from_address=loopback_address()
        )
    return Case("connections", crowd.what, seen, pss_mb=dict(most))


def measure_large(count: int, octets: int, sink: OwnSink) -> Case:
    """So many large messages at once."""
    load = Load(count, count, octets, False, "source@source.test", f"sink@{SINK_DOMAIN}", mix=((octets, 1),))
    with mailrail(sink) as system, Peak(system) as most:
        timing = send(load, system.address, system.port, sink, within=600 + count * octets / 2e6)
    rate = count * octets / timing.delivered_s / (1 << 20)
    what = f"{count} messages of {octets / 1e6:.0f} MB at once"
    return Case("large", what, pss_mb=dict(most), notes=(f"{rate:.0f} MiB/s", f"{timing.delivered_s:.0f} s"))


def measure_replicas(replicas: int, sink: OwnSink, chosen: argparse.Namespace) -> Replicas:
    """What a message costs with so many of ingress, queue and outbound, each ingress with its own generator."""
    each = max(1, chosen.messages // replicas)
    with fleet(replicas, sink) as running:
        _together(running.listen, each, sink)  # pools, caches, first use
        counted = running.counted()
        settle(running.parts)
        before = cpu_ms(running.parts)
        with running.waiting() as waiting:
            took = _together(running.listen, each, sink)
        settle(running.parts)
        messages = each * replicas
        used = {part: (ms - before[part]) / messages for part, ms in cpu_ms(running.parts).items()}
        after = running.counted()
        return Replicas(
            replicas,
            messages / took,
            used,
            (after.transactions - counted.transactions) / messages,
            (after.wal_octets - counted.wal_octets) / messages / 1024,
            statistics.fmean(waiting or [0]),
        )


def _together(listen: Sequence[tuple[str, int]], each: int, sink: OwnSink) -> float:
    """Seconds until the sink has what one generator for each ingress sent. Raises TimeoutError."""
    already, start = sink.count(), time.monotonic()
    commands = [
        source_command(
            address,
            port,
            messages=each,
            sessions=max(1, 40 // len(listen)),
            reuse=True,
            recipient=f"sink@{SINK_DOMAIN}",
        )
        for address, port in listen
    ]
    running = [subprocess.Popen(command) for command in commands]
    try:
        deadline = start + 120 + each * len(listen) / 20
        while sink.count() - already < each * len(listen):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{sink.count() - already} of {each * len(listen)} delivered in time")
            time.sleep(0.005)
        return time.monotonic() - start
    finally:
        for one in running:
            one.kill()
            one.wait()


def tables(result: Result) -> str:
    """The report in Markdown."""
    paragraphs = [
        f"{report.heading(result.machine)}. Speed is of 2 KiB messages with reuse; latencies are of a client that sends"
        f" {healthy.RATE:g} messages a second, each on a connection of its own. Memory is the largest PSS meanwhile."
    ]
    if result.cases:
        parts = list(dict.fromkeys(part for case in result.cases for part in case.pss_mb))
        rows = [
            [
                case.what,
                f"{case.per_s:,.0f}" if case.per_s else "",
                f"{case.cpu_ms:.2f}" if case.per_s else "",
                *(healthy.cells(case.seen) if case.seen is not None else [""] * len(healthy.HEAD)),
                *(f"{case.pss_mb[part]:.0f}" if part in case.pss_mb else "" for part in parts),
                "; ".join(case.notes),
            ]
            for case in result.cases
        ]
        head = ["what else there is", "messages/s", "CPU ms", *healthy.HEAD, *(f"{part} MiB" for part in parts), ""]
        paragraphs.append(report.table(head, rows))
    paragraphs += ["\n".join(flatness(result.cases)), _replicas(result.replicas)]
    paragraphs.append("\n".join(f"Not measured: {one.splitlines()[0]}" for one in result.failures))
    return "\n\n".join(one for one in paragraphs if one) + "\n"


def flatness(cases: Sequence[Case]) -> list[str]:
    """Whether speed with a backlog is that without one: a line for each."""
    of = [case for case in cases if case.part == "backlog" and case.per_s]
    if len(of) < 2:
        return []
    first = of[0]
    return [
        f"- {case.what}: {case.per_s / first.per_s:.2f} × the speed with {first.what}"
        f" ({aims.FLAT.verdict(round(case.per_s / first.per_s, 2))})."
        for case in of[1:]
    ]


def _replicas(measured: Sequence[Replicas]) -> str:
    if not measured:
        return ""
    parts = list(measured[0].cpu_ms)
    rows = [
        [
            f"{one.replicas} of each",
            f"{one.per_s:,.0f}",
            *(f"{one.cpu_ms[part]:.2f}" for part in parts),
            f"{one.transactions:.2f}",
            f"{one.wal_kib:.1f}",
            f"{one.waiting:.2f}",
        ]
        for one in measured
    ]
    head = ["replicas", "messages/s", *(f"CPU ms, {part}" for part in parts)]
    head += ["transactions a message", "WAL KiB a message", "sessions that wait for a lock"]
    lines = [report.table(head, rows), ""]
    lines += [f"- {computed(one)}" for one in measured]
    return "\n".join(lines)


def computed(one: Replicas) -> str:
    """Where one Postgres would end, from what a message costs it: said to be computed."""
    database = one.cpu_ms.get("postgres", 0.0)
    if database <= 0:
        return f"With {one.replicas} of each Postgres used too little to compute where it ends."
    return (
        f"Computed, not measured, with {one.replicas} of each: a Postgres on eight cores of its own would be busy at"
        f" {8000 / database:,.0f} messages a second, and would write {8000 / database * one.wal_kib / 1024:,.0f} MiB of"
        " WAL a second then; disks and locks may end it earlier."
    )


def options(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="make bench ARGS='scale ...'", description="Measure what a message costs beside very much else: an hour."
    )
    parser.add_argument("--only", action="append", choices=PARTS, help="only this part; may be repeated")
    parser.add_argument("--share", type=float, default=1.0, help="of all numbers: less to try it out")
    parser.add_argument("--messages", type=int, default=10_000, help="of a run for speed (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=healthy_seconds(), help="of a run for latency (%(default)g)")
    parser.add_argument("--json", type=Path, default=report.ROOT / ".bench" / "scale.json", help="where figures go")
    parser.add_argument("--page", action="store_true", help="write the table into docs/benchmarks.md, too")
    chosen = parser.parse_args(arguments)
    if chosen.page and (chosen.share < 1 or chosen.only):
        parser.error("--page writes the whole table: leave --share and --only out")
    if not 0 < chosen.share <= 1 or not 1 <= chosen.seconds <= 3600 or not 1 <= chosen.messages <= 1_000_000:
        parser.error("--share is above 0 and at most 1, --seconds from 1 to 3600, --messages from 1 to 1,000,000")
    chosen.only = chosen.only or list(PARTS)
    return chosen


def healthy_seconds() -> float:
    """How long latency is watched: 600 messages, so that the 99th percentile rests on six."""
    return 600 / healthy.RATE


def measure(chosen: argparse.Namespace, result: Result) -> None:
    """Every part. What fails is noted, and the rest goes on."""
    share = chosen.share

    def some(number: int) -> int:
        return int(number * share)

    with own_sink(somewhere(), timed=True) as sink:
        for queued in BACKLOGS if "backlog" in chosen.only else ():
            with report.noting(result, f"{some(queued):,} queued"):
                _told(result, measure_backlog(some(queued), sink, chosen))
        for count in (0, some(ROUTES)) if "routes" in chosen.only else ():
            with report.noting(result, f"{count:,} routes"):
                _told(result, measure_routes(count, sink, chosen))
        for kind, count, words in (("idle", IDLE, "idle connections"), ("slow", SLOW, "senders of an octet a second")):
            if "connections" in chosen.only:
                crowd = Strangers(f"many-{kind}", f"{some(count):,} {words}", kind, some(count), 100)
                with report.noting(result, crowd.what):
                    _told(result, measure_connections(crowd, sink, chosen))
        if "large" in chosen.only:
            with report.noting(result, "large messages"):
                _told(result, measure_large(max(1, some(LARGE)), LARGE_OCTETS, sink))
        for replicas in REPLICAS if "replicas" in chosen.only else ():
            with report.noting(result, f"{replicas} replicas"):
                result.replicas.append(measure_replicas(replicas, sink, chosen))
                print(_replicas(result.replicas[-1:]), file=sys.stderr, flush=True)


def _told(result: Result, case: Case) -> None:
    result.cases.append(case)
    print(tables(replace(result, cases=[case], replicas=[], failures=[])), file=sys.stderr, flush=True)


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write. Exit status 1 when a case could not be measured."""
    return report.carry_out(measure, options(arguments), Result(report.machine()), tables, "scale")
