"""`python -m bench`, what `make bench` runs: measure, print, write JSON and docs/benchmarks.md; or compare commits."""

import argparse
import contextlib
import sys
from pathlib import Path

from bench import alone, compare, instructions, report
from bench.load import CountingSink, Load, counting_sink, send
from bench.measure import cpu_ms, rss_mb, settle
from bench.systems import DEAD_DOMAIN, SINK_DOMAIN, Mailrail, System, idle_sessions, mailrail, postfix

from testkit.conditions import wait_until
from testkit.peers import missing

WHAT = ("postfix", "mailrail", "ingress", "outbound", "memory")


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="make bench ARGS='...'",
        description="Measure Mailrail against Postfix on this machine: all its cores, for some minutes.",
        epilog="`make bench ARGS='compare BASE [HEAD]'` compares two commits; `compare --help` lists its options.",
    )
    parser.add_argument("what", nargs="*", help=f"what to measure: {', '.join(WHAT)} (default: all)")
    parser.add_argument("--messages", type=int, default=5000, help="messages a run (default 5000, at most 1,000,000)")
    parser.add_argument("--size", type=int, default=2048, help="octets a message (default 2048)")
    parser.add_argument("--sessions", type=int, default=40, help="parallel sessions of the generator (default 40)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each kind, in turn (default 3)")
    parser.add_argument("--connections", type=int, default=1000, help="open connections for the memory figures")
    parser.add_argument("--queued", type=int, default=100_000, help="queued messages for the memory figures")
    parser.add_argument(
        "--json", type=Path, default=report.ROOT / ".bench" / "latest.json", help="where to write all figures"
    )
    parser.add_argument("--no-page", action="store_true", help="leave docs/benchmarks.md alone")
    chosen = parser.parse_args()
    unknown = set(chosen.what) - set(WHAT)
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: choose from {', '.join(WHAT)}")
    if not 0 < chosen.messages <= 1_000_000 or not 0 < chosen.sessions <= 1000 or not 0 < chosen.runs <= 20:
        parser.error("--messages goes up to 1,000,000, --sessions up to 1000, --runs up to 20")
    chosen.what = chosen.what or list(WHAT)
    return chosen


def say(text: str) -> None:
    """Progress, apart from the report."""
    print(text, file=sys.stderr, flush=True)


def throughput(system: System, sink: CountingSink, load: Load) -> report.Throughput:
    """One run: send, wait for the sink, and see what each part used meanwhile."""
    parts = dict(system.parts()) | {"sink": [sink.pid]}
    before = cpu_ms(parts)
    timing = send(load, system.address, system.port, sink, within=60 + load.messages / 20)
    settle(parts)
    after = cpu_ms(parts)
    used = {part: (after[part] - before[part]) / load.messages for part in parts}
    sink_ms = used.pop("sink")
    return report.Throughput(
        system.name,
        load.reuse,
        load.messages,
        load.messages / timing.delivered_s,
        load.messages / timing.accepted_s,
        used,
        timing.source_cpu_ms / load.messages,
        sink_ms,
    )


def measure_throughput(
    result: report.Result, systems: list[System], sink: CountingSink, chosen: argparse.Namespace
) -> None:
    """Every system in turn, so that all see the same weather."""
    for reuse in (False, True):
        load = Load(chosen.messages, chosen.sessions, chosen.size, reuse, "source@source.test", f"sink@{SINK_DOMAIN}")
        for system in systems:  # pools, caches and processes that start at first use
            warm = Load(min(1000, load.messages), load.sessions, load.size, reuse, load.sender, load.recipient)
            send(warm, system.address, system.port, sink, within=120)
        for number in range(chosen.runs):
            for system in systems:
                run = throughput(system, sink, load)
                result.throughput.append(run)
                parts = ", ".join(f"{name} {used:.2f}" for name, used in run.cpu_ms.items() if used >= 0.005)
                kind = "reuse " if reuse else "1/conn"
                say(
                    f"{system.name:9} {kind} run {number + 1}: "
                    f"{run.delivered_per_s:6.0f} msg/s, {run.total_ms:.2f} ms CPU ({parts})"
                )


def measure_alone(result: report.Result, sink: CountingSink, chosen: argparse.Namespace) -> None:
    """Ingress and outbound, each by itself."""
    for service, measured in (("ingress", alone.ingress), ("outbound", alone.outbound)):
        if service not in chosen.what:
            continue
        for reuse in (False, True):
            load = Load(
                chosen.messages, chosen.sessions, chosen.size, reuse, "source@source.test", f"sink@{SINK_DOMAIN}"
            )
            for run in measured(load, sink, chosen.runs):
                result.alone.append(run)
                kind = "reuse " if reuse else "1/conn"
                say(f"{service:9} {kind} alone: {run.per_s:6.0f} msg/s, {run.cpu_ms:.2f} ms CPU")


def measure_memory(result: report.Result, system: Mailrail, chosen: argparse.Namespace) -> None:
    """RSS of each service, idle, and with connections open and messages queued."""
    parts = system.parts()
    result.memory.append(report.Memory(0, 0, {name: rss_mb(pids[0]) for name, pids in parts.items()}))
    load = Load(chosen.queued, chosen.sessions, chosen.size, True, "source@source.test", f"nobody@{DEAD_DOMAIN}")
    say(f"queueing {chosen.queued} messages for a host that is down")
    send(load, system.address, system.port, None, within=120 + chosen.queued / 20)
    wait_until(lambda: system.rail.queued() >= chosen.queued, 60, "everything is queued")
    with idle_sessions(system.address, system.port, chosen.connections):
        settle({name: list(pids) for name, pids in parts.items()})
        figures = {name: rss_mb(pids[0]) for name, pids in system.parts().items()}
    result.memory.append(report.Memory(chosen.connections, chosen.queued, figures))


def main() -> int:
    """Measure, print, write."""
    if sys.argv[1:2] == ["compare"]:
        return compare.main(sys.argv[2:])
    if sys.argv[1:2] == ["instructions"]:
        return instructions.main(sys.argv[2:])
    chosen = options()
    for peer in ("smtp-source", "smtp-sink", *(["postfix"] if "postfix" in chosen.what else [])):
        if reason := missing(peer):
            say(f"the bench {reason}")
            return 1
    noted = {key: value for key, value in vars(chosen).items() if key not in ("json", "no_page")}
    result = report.Result(noted, report.machine())
    with contextlib.ExitStack() as stack:
        sink = stack.enter_context(counting_sink())
        systems: list[System] = []
        ours: Mailrail | None = None
        if "mailrail" in chosen.what or "memory" in chosen.what:
            say("starting Mailrail")
            ours = stack.enter_context(mailrail(sink))
            if "mailrail" in chosen.what:
                systems.append(ours)
        if "postfix" in chosen.what:
            systems.append(stack.enter_context(postfix(sink)))
        if systems:
            measure_throughput(result, systems, sink, chosen)
        measure_alone(result, sink, chosen)
        if ours is not None and "memory" in chosen.what:
            measure_memory(result, ours, chosen)
    print(report.tables(result))
    report.write_json(result, chosen.json)
    if not chosen.no_page and set(WHAT) <= set(chosen.what):
        report.write_page(result)
        say(f"wrote {report.PAGE.relative_to(report.ROOT)} and {chosen.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
