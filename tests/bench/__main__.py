"""`python -m bench`, what `make bench` runs: measure, print, write JSON and docs/benchmarks.md; or compare commits."""

import argparse
import contextlib
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from bench import alone, compare, hostile, instructions, proven, report, scale, sendmail
from bench.load import Load, Sink, counting_sink, own_sink, send, somewhere
from bench.measure import cpu_ms, memory_mb, settle
from bench.systems import DEAD_DOMAIN, SINK_DOMAIN, Also, Mailrail, System, idle_sessions, mailrail, postfix

from testkit.conditions import wait_until
from testkit.peers import missing

PARTS = ("sizes", "recipients", "mix", "tls", "steady", "ingress", "outbound", "memory")
SYSTEMS = ("mailrail", "postfix")
SIZES = (2048, 102_400)
ALL_SIZES = (2048, 20_480, 102_400, 1 << 20, 10 << 20)
MIX = ((5 << 10, 80), (100 << 10, 15), (2 << 20, 5))
"""Octets of a message, and how many of a hundred have them."""
RECIPIENTS = 20
OCTETS = 32 * 1024
"""Of a run, by message of a run of small ones: large messages are so much fewer."""
FEWEST = 24
KEEP_CONTENT = 30
"""Seconds for which the queue keeps content in the steady run."""
STEADY = 150.0
"""Seconds of the steady run, so that content is deleted and checkpoints are made all the time."""


def messages_of(size: float, base: int) -> int:
    """How many messages a run has: `base` of small ones, fewer of large ones, so that it takes some seconds."""
    return max(min(base, FEWEST), min(base, int(base * OCTETS / size)))


def loads_of(part: str, sizes: Sequence[int], base: int, sessions: int) -> list[Load]:
    """What a part sends, each with and without reuse of connections."""
    loads = []
    for reuse in (False, True):
        common = Load(base, sessions, 2048, reuse, "source@source.test", f"sink@{SINK_DOMAIN}")
        if part == "mix":
            made = replace(common, mix=MIX)
            loads.append(made.with_messages(messages_of(report.mean_size(made), base)))
        for size in () if part == "mix" else sizes:
            made = replace(common, size=size, messages=messages_of(size, base))
            # What takes longer than a plain message of its size is sent less often.
            if part == "recipients":
                made = replace(made, recipients=RECIPIENTS, messages=-(-made.messages // 4))
            elif part == "tls":
                made = replace(made, tls=True, messages=-(-made.messages // 3))
            loads.append(made)
    return sorted(loads, key=lambda load: load.size)


def options(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="make bench ARGS='...'",
        description="Measure Mailrail against Postfix on this machine: all its cores, for some minutes.",
        epilog="Others, each with a --help of its own: `compare BASE [HEAD]` (two commits), `instructions BASE [HEAD]`,"
        " `hostile` (slow sites and hostile clients), `scale` (backlogs, routes, connections, replicas),"
        " `sendmail` (its start).",
    )
    parser.add_argument(
        "--only", action="append", choices=PARTS, help=f"measure only this part; may be repeated ({', '.join(PARTS)})"
    )
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="which of them (default %(default)s)")
    parser.add_argument(
        "--sizes", help=f"octets a message, several separated by commas (default {SIZES}, with --long {ALL_SIZES})"
    )
    parser.add_argument("--long", action="store_true", help="all sizes everywhere, a checkpoint within, the steady run")
    parser.add_argument("--messages", type=int, default=5000, help="messages a run (default 5000; of large ones fewer)")
    parser.add_argument("--sessions", type=int, default=40, help="parallel sessions of the generator (default 40)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each kind, in turn (default 3; of some one less)")
    parser.add_argument("--connections", type=int, default=1000, help="open connections for the memory figures")
    parser.add_argument("--queued", type=int, default=100_000, help="queued messages for the memory figures")
    parser.add_argument("--seconds", type=float, default=STEADY, help="of the steady run (default %(default)g)")
    parser.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="NAME=HOST:PORT,PID[,PID...]",
        help="another mail system that you run and that relays to --sink; may be repeated",
    )
    parser.add_argument("--sink", metavar="HOST:PORT", help="where the sink listens (default: anywhere)")
    parser.add_argument("--json", type=Path, default=report.ROOT / ".bench" / "latest.json", help="where figures go")
    parser.add_argument("--page", action="store_true", help="write the figures into docs/benchmarks.md, too")
    chosen = parser.parse_args(arguments)
    chosen.only = chosen.only or [part for part in PARTS if chosen.long or part != "steady"]
    chosen.systems = chosen.systems.split(",")
    if unknown := set(chosen.systems) - set(SYSTEMS):
        parser.error(f"--systems {','.join(sorted(unknown))}: choose from {', '.join(SYSTEMS)}")
    try:
        chosen.sizes = [int(size) for size in (chosen.sizes.split(",") if chosen.sizes else _default_sizes(chosen))]
    except ValueError:
        parser.error(f"--sizes {chosen.sizes}: numbers separated by commas are wanted, such as 2048,102400")
    if not all(200 <= size <= 50_000_000 for size in chosen.sizes):
        parser.error("--sizes go from 200 to 50000000 octets")
    if not 0 < chosen.messages <= 1_000_000 or not 0 < chosen.sessions <= 1000 or not 0 < chosen.runs <= 20:
        parser.error("--messages goes up to 1,000,000, --sessions up to 1000, --runs up to 20")
    try:
        chosen.also = [Also.parse(text) for text in chosen.also]
        if chosen.sink is not None:
            host, _, port = chosen.sink.rpartition(":")
            chosen.sink = (host, int(port))
    except ValueError as error:
        parser.error(str(error))
    if chosen.also and chosen.sink is None:
        parser.error("--also needs --sink HOST:PORT: the address to which the other system relays everything")
    return chosen


def _default_sizes(chosen: argparse.Namespace) -> tuple[int, ...]:
    return ALL_SIZES if chosen.long else SIZES


def say(text: str) -> None:
    """Progress, apart from the report."""
    print(text, file=sys.stderr, flush=True)


def throughput(
    system: System, sink: Sink, load: Load, half: Callable[[], object] | None = None, *, steady: bool = False
) -> report.Throughput:
    """One run: send, wait for the sink, and see what each part used meanwhile. Raises as `send` does."""
    parts = dict(system.parts()) | {"sink": [sink.pid]}
    before = cpu_ms(parts)
    timing = send(load, system.address, system.port, sink, 120 + load.messages / 5, half)
    settle(parts)
    after = cpu_ms(parts)
    used = {part: (after[part] - before[part]) / load.messages for part in parts}
    sink_ms = used.pop("sink")
    return report.Throughput(
        system.name,
        load,
        load.messages / timing.delivered_s,
        load.messages / timing.accepted_s,
        used,
        timing.source_cpu_ms / load.messages,
        sink_ms,
        steady,
    )


def tell(run: report.Throughput, what: str) -> None:
    """Progress: a run."""
    parts = ", ".join(f"{name} {used:.2f}" for name, used in run.cpu_ms.items() if used >= 0.005)
    say(
        f"{run.system:9} {report.kind_of(run.load)}, {what}: "
        f"{run.delivered_per_s:6.0f} msg/s, {run.total_ms:.2f} ms CPU ({parts})"
    )


def measure_throughput(
    result: report.Result, part: str, systems: list[System], sink: Sink, chosen: argparse.Namespace
) -> None:
    """Every system in turn, so that all see the same weather."""
    sizes = chosen.sizes if part == "sizes" or chosen.long else chosen.sizes[:1]
    for load in loads_of(part, sizes, chosen.messages, chosen.sessions):
        for system in systems:  # pools, caches and processes that start at first use
            send(load.with_messages(-(-load.messages // 5)), system.address, system.port, sink, within=120)
        most = (part == "sizes" and load.size in SIZES) or chosen.long
        for number in range(chosen.runs if most else max(1, chosen.runs - 1)):
            for system in systems:
                half = None
                if chosen.long and isinstance(system, Mailrail):
                    half = partial(_checkpoint, system)
                run = throughput(system, sink, load, half)
                result.throughput.append(run)
                tell(run, f"run {number + 1}")


def _checkpoint(system: Mailrail) -> None:
    """Have Postgres begin a checkpoint. Not waited for: whoever measures has to read the sink's counters meanwhile."""
    threading.Thread(target=system.rail.sql, args=("CHECKPOINT",), daemon=True).start()


def measure_steady(result: report.Result, systems: list[System], sink: Sink, chosen: argparse.Namespace) -> None:
    """The mix for minutes, so that content is deleted after a checkpoint, which writes it to WAL once more.

    Each system sends as long, and so as many messages as its pace of a moment before allows.
    """
    settings = {"MAILRAIL_QUEUE_KEEP_CONTENT_SECONDS": str(KEEP_CONTENT)}
    with contextlib.ExitStack() as stack:
        ours: Mailrail | None = None
        if "mailrail" in chosen.systems:
            ours = stack.enter_context(mailrail(sink, settings=settings))
            ours.rail.sql("ALTER SYSTEM SET checkpoint_timeout = '30s'")
            ours.rail.sql("SELECT pg_reload_conf()")
        for system in [*([ours] if ours is not None else []), *(one for one in systems if one.name != report.OURS)]:
            load = loads_of("mix", (), chosen.messages, chosen.sessions)[1]
            send(load, system.address, system.port, sink, within=300)
            pace = send(load, system.address, system.port, sink, within=300)  # the first was slower: all was cold
            load = load.with_messages(max(10, int(load.messages / pace.delivered_s * chosen.seconds)))
            before = _database(ours) if system is ours and ours is not None else None
            run = throughput(system, sink, load, steady=True)
            result.throughput.append(run)
            tell(run, "steady")
            if before is not None and ours is not None:
                after = _database(ours)
                result.database = report.Database(
                    load.messages / run.delivered_per_s,
                    KEEP_CONTENT,
                    after[0] - before[0],
                    (after[1] - before[1]) / load.messages / 1024,
                )


def _database(system: Mailrail) -> tuple[int, int]:
    """Checkpoints and octets of WAL so far."""
    ((made, octets),) = system.rail.sql(
        "SELECT num_timed + num_requested, pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint"
        " FROM pg_stat_checkpointer"
    )
    return int(made), int(octets)


def measure_alone(result: report.Result, chosen: argparse.Namespace) -> None:
    """Ingress and outbound, each by itself."""
    with counting_sink() as sink:
        for service, measured in (("ingress", alone.ingress), ("outbound", alone.outbound)):
            if service not in chosen.only:
                continue
            for reuse in (False, True):
                load = Load(chosen.messages, chosen.sessions, 2048, reuse, "source@source.test", f"sink@{SINK_DOMAIN}")
                for run in measured(load, sink, chosen.runs):
                    result.alone.append(run)
                    kind = "reuse " if reuse else "1/conn"
                    say(f"{service:9} {kind} alone: {run.per_s:6.0f} msg/s, {run.cpu_ms:.2f} ms CPU")


def measure_memory(result: report.Result, systems: list[System], state: str) -> None:
    """PSS of each part of each system, as it is now."""
    for system in systems:
        parts = system.parts()
        settle(parts)
        figures = {name: size for name, (size, _) in memory_mb(parts).items()}
        result.memory.append(report.Memory(system.name, state, figures))
        say(f"{system.name:9} {state}: {sum(figures.values()):.0f} MiB")


def wait_until_rested(system: Mailrail) -> None:
    """Sessions that are seldom used are opened at the start, and close after a minute without use. Idle comes after."""
    say("waiting until sessions of Postgres that are not used are closed")
    seldom = " (read|upload|forget|outcome [12]|content [12])$"
    left = "SELECT application_name FROM pg_stat_activity WHERE application_name ~ %s"
    wait_until(lambda: not system.rail.sql(left, seldom), 180, "they are closed")


def measure_memory_full(result: report.Result, system: Mailrail, chosen: argparse.Namespace) -> None:
    """With connections open and messages queued."""
    load = Load(chosen.queued, chosen.sessions, 2048, True, "source@source.test", f"nobody@{DEAD_DOMAIN}")
    say(f"queueing {chosen.queued} messages for a host that is down")
    send(load, system.address, system.port, None, within=120 + chosen.queued / 20)
    wait_until(lambda: system.rail.queued() >= chosen.queued, 60, "everything is queued")
    with idle_sessions(system.address, system.port, chosen.connections):
        measure_memory(result, [system], f"{chosen.connections} connections, {chosen.queued} queued")


def measure(chosen: argparse.Namespace, result: report.Result) -> None:
    """Every part. The sinks change places at one address, so that each system always relays to the same one."""
    at = chosen.sink or somewhere()
    with contextlib.ExitStack() as stack:
        systems: list[System] = []
        with counting_sink(at) as sink:
            if "mailrail" in chosen.systems:
                say("starting Mailrail")
                systems.append(stack.enter_context(mailrail(sink)))
            if "postfix" in chosen.systems:
                systems.append(stack.enter_context(postfix(sink)))
            systems += [one.system() for one in chosen.also]
            if "memory" in chosen.only:
                for system in systems:
                    if isinstance(system, Mailrail):
                        wait_until_rested(system)
                measure_memory(result, systems, "idle")
            if "sizes" in chosen.only:
                measure_throughput(result, "sizes", systems, sink, chosen)
        if {"recipients", "mix", "steady"} & set(chosen.only):
            with own_sink(at) as own:
                for part in ("recipients", "mix"):
                    if part in chosen.only:
                        measure_throughput(result, part, systems, own, chosen)
                if "steady" in chosen.only:
                    measure_steady(result, systems, own, chosen)
        if "tls" in chosen.only:
            with own_sink(at, tls=True) as own:
                measure_throughput(result, "tls", systems, own, chosen)
            load = loads_of("tls", chosen.sizes[:1], chosen.messages, chosen.sessions)[0]
            proven.measure(chosen, result, load, throughput)
        if "memory" in chosen.only:
            measure_memory(result, systems, "after load")
            for system in systems:
                if isinstance(system, Mailrail):
                    measure_memory_full(result, system, chosen)
    measure_alone(result, chosen)


def main() -> int:
    """Measure, print, write."""
    others = {
        "compare": compare.main,
        "instructions": instructions.main,
        "hostile": hostile.main,
        "scale": scale.main,
        "sendmail": sendmail.main,
    }
    if sys.argv[1:2] and sys.argv[1] in others:
        return others[sys.argv[1]](sys.argv[2:])
    chosen = options(sys.argv[1:])
    for peer in ("smtp-source", "smtp-sink", *(["postfix"] if "postfix" in chosen.systems else [])):
        if reason := missing(peer):
            say(f"the bench {reason}")
            return 1
    noted = {key: value for key, value in vars(chosen).items() if key not in ("json", "page", "also")}
    result = report.Result(noted | {"also": [one.name for one in chosen.also]}, report.machine())
    try:
        measure(chosen, result)
    except KeyboardInterrupt:
        say("stopped; this is what was measured until then")
        chosen.page = False
    except (TimeoutError, RuntimeError, LookupError) as error:
        chosen.page = False
        result.failures.append(f"{error}; what would have come after it")
    text = report.tables(result)
    print(text)
    report.write_json(result, chosen.json)
    if chosen.page:
        report.write_page("measured", f"{report.write_plot(result)}\n{text}")
        say(f"wrote {report.PAGE.relative_to(report.ROOT)}, {report.PLOT.relative_to(report.ROOT)} and {chosen.json}")
    return 1 if result.failures else 0


if __name__ == "__main__":
    sys.exit(main())
