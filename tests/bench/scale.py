"""`make bench ARGS='scale'`: whether what a message costs depends on what else there is.

Backlogs up to 5,000,000 recipients, 100,000 routes, 10,000 idle connections and 1,000 slow senders, a hundred messages
of 100 MB at once, and 1, 2 and 4 replicas of each service. Each part has a sink of its own, and is told, written as
JSON and, with `--page`, on the page as it ends: whatever becomes of the others.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psycopg

from bench import aims, healthy, report
from bench.fleet import fleet
from bench.hostile import Strangers, attack
from bench.load import Arrival, Load, OwnSink, own_sink, send, somewhere
from bench.measure import cpu_ms, memory_mb, settle
from bench.side import with_bench
from bench.source import body_size
from bench.systems import SINK_DOMAIN, Mailrail, mailrail
from mailrail.core.limits import INLINE_LIMIT
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
_WAL = 4 << 30
"""Octets of WAL that the embedded Postgres may keep (max_wal_size)."""
_UPLOADS = 4 << 30
"""Octets of what is uploaded and given up that may lie in Postgres until vacuum has swept it: the queue's bound."""
_RESERVE = 2 << 30
"""Octets that stay free on the disk: with less, large messages are stopped."""
_KEEP_CONTENT = 30.0
"""Seconds for which the queue keeps large content once it is delivered, so that it does not all lie on the disk."""
_MESSAGES = 10_000  # of a run for speed
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
class Large:
    """What became of so many large messages that were begun at once by clients that come back after a 4yz."""

    what: str
    messages: int
    octets: int
    """Of each, about."""
    accepted: int
    whole: int
    """Of those accepted: how many the sink has, with every octet after the header."""
    twice: int
    """How many came more than once, as SMTP allows."""
    damaged: int
    """How many came with another size, accepted or not."""
    put_off: Mapping[str, int]
    """How often each 4yz code was said, or a connection was `lost`, and the message was tried again."""
    refusals: tuple[str, ...]
    """What was said to those that were never accepted, each once."""
    first_s: float
    """Until the first was accepted; 0 where none was."""
    accepted_s: float
    delivered_s: float
    pss_mb: Mapping[str, float]
    """The largest of each part meanwhile."""

    def broken(self) -> list[str]:
        """What Mailrail promised and did not keep, in words."""
        lost, said = self.accepted - self.whole, []
        if lost:
            said.append(f"{lost} of {self.accepted} accepted messages did not come whole")
        if self.damaged:
            said.append(f"{self.damaged} messages came with another size")
        return said


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
    large: list[Large] = field(default_factory=list)
    replicas: list[Replicas] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    """Each begins with its part and a colon."""

    def add(self, measured: Case | Large | Replicas) -> None:
        """One more measurement."""
        if isinstance(measured, Case):
            self.cases.append(measured)
        elif isinstance(measured, Replicas):
            self.replicas.append(measured)
        else:
            self.large.append(measured)
            self.failures += [f"large: {measured.what}: {one}" for one in measured.broken()]


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


def measure_large(clients: int, sink: OwnSink, chosen: argparse.Namespace) -> Large:
    """Large messages at once, each on a connection of its own, from so many addresses in turn.

    They are more than the bounds on what is uploaded and not committed allow (ACC-07), so most hear 452 and come back.
    Raises OSError when the disk has no room for it or is nearly full, TimeoutError when it does not end.
    """
    count, octets = chosen.large_messages, chosen.large_octets
    what = large_from(clients, chosen)
    folder = tempfile.gettempdir()
    free, wanted = shutil.disk_usage(folder).free, room_for(count, octets)
    if free < wanted:
        raise OSError(
            f"{what} need {wanted / 1e9:.0f} GB free in {folder}, which has {free / 1e9:.0f} GB: make room there, set"
            " TMPDIR, or choose fewer (--large-messages) or smaller ones (--large-octets)"
        )
    name, within = f"large{clients}", 600 + count * octets / 2e6
    settings = {"MAILRAIL_QUEUE_KEEP_CONTENT_SECONDS": f"{_KEEP_CONTENT:g}"}
    for bound in ("upload_octets", "client_upload_octets"):
        if (given := getattr(chosen, bound)) is not None:
            settings[f"MAILRAIL_INGRESS_{bound.upper()}"] = f"{given}"
    with (
        mailrail(sink, settings=settings) as system,
        Peak(system) as most,
        tempfile.TemporaryDirectory(prefix="mailrail-bench-large-") as place,
    ):
        noted = Path(place) / "report"
        command = [sys.executable, "-m", "bench.source", "--to", f"{system.address}:{system.port}"]
        command += ["--report", str(noted), "--messages", str(count), "--sessions", str(count), "--sizes", str(octets)]
        command += ["--numbered", "--times", "--retry", f"{within:g}", "--recipient", f"{name}@{SINK_DOMAIN}"]
        command += ["--from-address", loopback_address(), "--clients", str(clients)]
        _until_delivered(command, noted, sink, count, what, within + 300)
        if not noted.exists():
            raise RuntimeError(f"the generator failed with {what}")
        found = json.loads(noted.read_text())
        return became(what, octets, name, found, sink.arrived(), dict(most))


def large_from(clients: int, chosen: argparse.Namespace) -> str:
    """What is sent, in words."""
    of = "client" if clients == 1 else "clients"
    return f"{chosen.large_messages} messages of {chosen.large_octets / 1e6:g} MB from {clients} {of}"


def room_for(count: int, octets: int) -> int:
    """Octets of disk that so many large messages may take at most: none is deleted, WAL is full, uploads are not swept.

    A quarter more than they have is for the rows around them, and for partitions that wait to be dropped.
    """
    whole = count * octets
    return whole * 5 // 4 + min(2 * whole, _WAL) + min(2 * whole, _UPLOADS) + _RESERVE


def _until_delivered(command: Sequence[str], noted: Path, sink: OwnSink, count: int, what: str, within: float) -> None:
    """Run the generator until it ends and the sink has what was accepted, or for 60 s no more of it.

    Raises OSError when the disk becomes full, TimeoutError.
    """
    start = told = came = time.monotonic()
    already = delivered = sink.count()
    source = subprocess.Popen(command, env=with_bench())
    try:
        while True:
            time.sleep(0.2)
            now, before, delivered = time.monotonic(), delivered, sink.count()
            free = shutil.disk_usage(tempfile.gettempdir()).free
            if now - told >= 10:
                told = now
                whole = f"{delivered - already} of {count} delivered in {now - start:.0f} s"
                say(f"large: {whole}, {free / 1e9:.0f} GB free")
            if free < _RESERVE:
                raise OSError(f"{what} were stopped: only {free / 1e9:.1f} GB are left in {tempfile.gettempdir()}")
            if delivered != before or source.poll() is None:
                came = now
            else:  # what is missing after a minute, the verdict says
                accepted = json.loads(noted.read_text())["accepted"] if noted.exists() else 0
                if delivered - already >= accepted or now - came > 60:
                    return
            if now - start > within:
                raise TimeoutError(f"{what}: {delivered - already} delivered within {within:.0f} s")
    finally:
        source.kill()
        source.wait()


def became(
    what: str,
    octets: int,
    name: str,
    found: Mapping[str, Any],
    arrived: Mapping[str, Sequence[Arrival]],
    pss_mb: Mapping[str, float],
) -> Large:
    """Match what the generator noted with what came to the sink, for recipients NUMBER.`name`."""
    start = last = found["started"]
    body, accepted, whole = body_size(octets), 0, 0
    came = {number: arrived.get(f"{number}.{name}", ()) for number, _, _ in found["times"]}
    for number, _, taken in found["times"]:
        good = [one for one in came[number] if one.octets == body]
        accepted += taken is not None
        whole += taken is not None and bool(good)
        last = max([last, *(one.when for one in good[:1])])
    return Large(
        what,
        len(came),
        octets,
        accepted,
        whole,
        sum(len(ones) > 1 for ones in came.values()),
        sum(any(one.octets != body for one in ones) for ones in came.values()),
        found["put_off"],
        tuple(found["replies"]),
        min((begun + taken for _, begun, taken in found["times"] if taken is not None), default=start) - start,
        found["ended"] - start,
        last - start,
        pss_mb,
    )


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
    said = (
        f"{report.heading(result.machine)}. Speed is of 2 KiB messages with reuse; latencies are of a client that sends"
        f" {healthy.RATE:g} messages a second, each on a connection of its own. Memory is the largest PSS meanwhile."
    )
    return "\n\n".join([said, *filter(None, (part_table(part, result) for part in PARTS))]) + "\n"


def section(part: str, result: Result) -> str:
    """What the page says of a part; empty where nothing of it was measured."""
    of_cases = any(case.part == part for case in result.cases)
    if not (of_cases or (part == "large" and result.large) or (part == "replicas" and result.replicas)):
        return ""
    return f"{report.heading(result.machine)}.\n\n{part_table(part, result)}\n"


def part_table(part: str, result: Result) -> str:
    """What was measured of a part, in Markdown, and what was not."""
    of = [case for case in result.cases if case.part == part]
    paragraphs = [_cases(of), "\n".join(flatness(of))]
    if part == "large":
        paragraphs += [_large(result.large), "\n".join(f"- {line}" for one in result.large for line in remarks(one))]
    elif part == "replicas":
        paragraphs.append(_replicas(result.replicas))
    failures = [one.splitlines()[0] for one in result.failures if one.startswith(f"{part}: ")]
    paragraphs.append("\n".join(f"- Failed: {one}" for one in failures))
    return "\n\n".join(filter(None, paragraphs))


def _cases(cases: Sequence[Case]) -> str:
    """A table with those columns that any of the cases has."""
    if not cases:
        return ""
    speed, latency = any(case.per_s for case in cases), any(case.seen is not None for case in cases)
    notes = any(case.notes for case in cases)
    parts = list(dict.fromkeys(part for case in cases for part in case.pss_mb))
    rows = []
    for case in cases:
        row = [case.what]
        if speed:
            row += [f"{case.per_s:,.0f}", f"{case.cpu_ms:.2f}"] if case.per_s else ["", ""]
        if latency:
            row += healthy.cells(case.seen) if case.seen is not None else [""] * len(healthy.HEAD)
        row += _memory(case.pss_mb, parts)
        rows.append([*row, "; ".join(case.notes)] if notes else row)
    head = ["what else there is", *(["messages/s", "CPU ms"] if speed else []), *(healthy.HEAD if latency else [])]
    return report.table([*head, *(f"{part} MiB" for part in parts), *([""] if notes else [])], rows)


def _memory(pss_mb: Mapping[str, float], parts: Sequence[str]) -> list[str]:
    return [f"{pss_mb[part]:.0f}" if part in pss_mb else "" for part in parts]


def _large(measured: Sequence[Large]) -> str:
    if not measured:
        return ""
    parts = list(dict.fromkeys(part for one in measured for part in one.pss_mb))
    rows = [
        [
            one.what,
            f"{one.accepted} of {one.messages}",
            f"{one.put_off.get('452', 0):,}",
            f"{one.whole} of {one.accepted}",
            f"{one.first_s:,.0f}" if one.accepted else "",
            f"{one.accepted_s:,.0f}",
            f"{one.delivered_s:,.0f}",
            f"{one.whole * one.octets / one.delivered_s / (1 << 20):,.0f}" if one.delivered_s else "",
            *_memory(one.pss_mb, parts),
        ]
        for one in measured
    ]
    head = [
        "begun at once",
        "accepted",
        "times 452",
        "came whole",
        "first accepted s",
        "last s",
        "delivered s",
        "MiB/s",
    ]
    return report.table([*head, *(f"{part} MiB" for part in parts)], rows)


def remarks(one: Large) -> list[str]:
    """What the row of large messages does not say, a line for each."""
    others = ", ".join(f"{many} × {code}" for code, many in sorted(one.put_off.items()) if code != "452")
    return [
        *([f"{one.what}: tried again also after {others}."] if others else []),
        *([f"{one.what}: {one.twice} came more than once."] if one.twice else []),
        *([f"{one.what}: never accepted: {'; '.join(one.refusals)}."] if one.refusals else []),
    ]


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
    parser.add_argument("--messages", type=int, default=_MESSAGES, help="of a run for speed (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=healthy_seconds(), help="of a run for latency (%(default)g)")
    parser.add_argument("--large-messages", type=int, help=f"large ones at once (default {LARGE}, times --share)")
    parser.add_argument("--large-octets", type=int, default=LARGE_OCTETS, help="of each of them (default %(default)s)")
    for bound in ("upload-octets", "client-upload-octets"):
        parser.add_argument(f"--{bound}", type=int, help="this setting of ingress for them, lower to try it out")
    parser.add_argument("--json", type=Path, default=report.ROOT / ".bench" / "scale.json", help="where figures go")
    parser.add_argument("--page", action="store_true", help="write each part's table into docs/benchmarks.md, too")
    chosen = parser.parse_args(arguments)
    small = (
        chosen.share < 1
        or chosen.large_messages is not None
        or chosen.messages < _MESSAGES
        or chosen.seconds < healthy_seconds()
        or chosen.large_octets != LARGE_OCTETS
        or chosen.upload_octets is not None
        or chosen.client_upload_octets is not None
    )
    if chosen.page and small:
        parser.error("--page writes figures of the whole size: of the other options only --only and --json go with it")
    if not 0 < chosen.share <= 1 or not 1 <= chosen.seconds <= 3600 or not 1 <= chosen.messages <= 1_000_000:
        parser.error("--share is above 0 and at most 1, --seconds from 1 to 3600, --messages from 1 to 1,000,000")
    if chosen.large_messages is None:
        chosen.large_messages = max(1, int(LARGE * chosen.share))
    if not 1 <= chosen.large_messages <= 1000 or not INLINE_LIMIT < chosen.large_octets <= LARGE_OCTETS:
        parser.error(
            f"--large-messages is from 1 to 1000, --large-octets above {INLINE_LIMIT:,} and at most {LARGE_OCTETS:,}"
        )
    bounds = [one for one in (chosen.upload_octets, chosen.client_upload_octets) if one is not None]
    if any(chosen.large_octets * 4 > 3 * bound for bound in bounds):
        parser.error("three quarters of --upload-octets and --client-upload-octets must hold a message, or none begins")
    chosen.only = chosen.only or list(PARTS)
    return chosen


def healthy_seconds() -> float:
    """How long latency is watched: 600 messages, so that the 99th percentile rests on six."""
    return 600 / healthy.RATE


Step = Callable[[OwnSink], Case | Large | Replicas]


def steps(part: str, chosen: argparse.Namespace) -> list[tuple[str, Step]]:
    """What is measured of a part, one after the other: what it is, and how, given a sink."""

    def some(number: int) -> int:
        return int(number * chosen.share)

    match part:
        case "backlog":
            return [(f"{n:,} queued", partial(measure_backlog, n, chosen=chosen)) for n in map(some, BACKLOGS)]
        case "routes":
            return [(f"{n:,} routes", partial(measure_routes, n, chosen=chosen)) for n in (0, some(ROUTES))]
        case "connections":
            crowds = [
                Strangers(f"many-{kind}", f"{some(count):,} {words}", kind, some(count), 100)
                for kind, count, words in (
                    ("idle", IDLE, "idle connections"),
                    ("slow", SLOW, "senders of an octet a second"),
                )
            ]
            return [(crowd.what, partial(measure_connections, crowd, chosen=chosen)) for crowd in crowds]
        case "large":
            return [
                (large_from(clients, chosen), partial(measure_large, clients, chosen=chosen))
                for clients in dict.fromkeys((1, chosen.large_messages))
            ]
        case _:
            return [(f"{n} of each service", partial(measure_replicas, n, chosen=chosen)) for n in REPLICAS]


def measure(chosen: argparse.Namespace, result: Result) -> None:
    """Every part. What fails is noted, and the rest goes on; what was measured is kept as it comes."""
    for part in PARTS:
        if part in chosen.only:
            with report.noting(result, part), own_sink(somewhere(), timed=True) as sink:
                measure_part(part, steps(part, chosen), sink, chosen, result)
            if chosen.page:
                keep_on_page(part, result)


def measure_part(
    part: str, todo: Sequence[tuple[str, Step]], sink: OwnSink, chosen: argparse.Namespace, result: Result
) -> None:
    """One part, step by step, told at each."""
    begun = time.monotonic()
    for number, (what, step) in enumerate(todo, 1):
        say(f"{part}, {number} of {len(todo)}: {what}")
        with report.noting(result, f"{part}: {what}"):
            result.add(step(sink))
        report.write_json(result, chosen.json)
    say(f"{part} took {(time.monotonic() - begun) / 60:.1f} minutes\n\n{part_table(part, result)}\n")


def keep_on_page(part: str, result: Result, page: Path = report.PAGE) -> None:
    """Write the section of a part; what the page has stays where nothing was measured."""
    if text := section(part, result):
        report.write_page(f"scale {part}", text, page)
        say(f"wrote the section {part} of {page.name}")
    else:
        say(f"nothing of {part} was measured: {page.name} keeps what it says of it")


def say(text: str) -> None:
    """Progress, apart from the report."""
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write. Exit status 1 when a case could not be measured."""
    return report.carry_out(measure, options(arguments), Result(report.machine()), tables, None)
