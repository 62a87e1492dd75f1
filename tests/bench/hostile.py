"""`make bench ARGS='hostile'`: what a healthy client feels while sites do not answer or strangers attack.

Each row runs on a Mailrail of its own. A bench and never a test: that healthy mail is delivered in each of these cases
is what scenarios assert.
"""

import argparse
import contextlib
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from subprocess import PIPE, Popen, run
from time import sleep, time

import psycopg

from bench import aims, healthy, report
from bench.load import OwnSink, own_sink, somewhere
from bench.measure import memory_mb
from bench.side import with_bench
from bench.systems import SINK_DOMAIN, Mailrail, System, mailrail, postfix

from testkit.backlog import DEAD, Backlog, seed
from testkit.dns import DnsServer, Failure
from testkit.peers import missing
from testkit.ports import loopback_address

SECONDS = 40.0
"""For which the healthy client sends, each row."""
_BY_SMTP = 20_000
"""Messages of a backlog that Postfix is given by SMTP."""
NEW_DOMAINS = "new.test"
"""Below it are those of sites that had no mail before: their first messages go beside the healthy client's."""
NEW_SITES = 10
"""Whose first messages are spread over a row: one alone comes at once or late by chance."""
_EMPTY = Backlog(0, held=0, bound=0, octets=500, per_message=1, at_one_site=0, due=1)
"""What the backlogs of the rows have in common: one message a recipient, all of them due."""


@dataclass(frozen=True)
class Sites:
    """A row of slow or dead sites: what is queued for them, and how they behave."""

    name: str
    what: str
    backlog: Backlog | None = None
    behave: str = "dead"
    """`dead` refuses connections; `tarpit` takes 20 seconds for each reply; `silent`: its DNS never answers."""


@dataclass(frozen=True)
class Strangers:
    """A row of hostile clients: what they do, how many, from how many addresses, at which port."""

    name: str
    what: str
    kind: str
    count: int
    addresses: int = 1
    port: str = "mx"
    """`mx`, `submission` or `submissions`; Postfix here has the first alone."""


SITES = (
    Sites("a", "empty queue"),
    Sites("b", "300,000 due later at 20,000 sites", replace(_EMPTY, recipients=300_000, sites=20_000, due=0)),
    Sites("c", "300,000 due at one dead site", replace(_EMPTY, recipients=300_000, sites=1, at_one_site=1)),
    Sites("d", "50,000 due at one tarpit", replace(_EMPTY, recipients=50_000, sites=1, at_one_site=1), "tarpit"),
    Sites("d2", "50,000 due at 5,000 tarpits", replace(_EMPTY, recipients=50_000, sites=5_000), "tarpit"),
    Sites("d3", "1,000 due at 200 tarpits", replace(_EMPTY, recipients=1_000, sites=200), "tarpit"),
    Sites("e", "20,000 due at 20,000 dead sites", replace(_EMPTY, recipients=20_000, sites=20_000)),
    Sites(
        "f", "20,000 due at 20,000 sites with silent DNS", replace(_EMPTY, recipients=20_000, sites=20_000), "silent"
    ),
    Sites("g", "500,000 due at one dead site", replace(_EMPTY, recipients=500_000, sites=1, at_one_site=1)),
)
STRANGERS = (
    Strangers("quiet", "nobody else", "idle", 0),
    Strangers("idle", "10,000 idle connections from 100 addresses", "idle", 10_000, 100),
    Strangers("silent", "5,000 silent connections at the TLS port", "silent", 5_000, 100, "submissions"),
    Strangers("starttls", "3,000 unfinished STARTTLS", "starttls", 3_000, 100),
    Strangers("bdat", "20 clients send BDAT 0 without end", "bdat", 20),
    Strangers("headers", "10 clients send headers of 60,000 lines", "headers", 10),
    Strangers("uploads", "50 clients send 100 MB and go away", "uploads", 50),
    Strangers("auth", "50 clients begin logins of 8,000 octets", "auth", 50, 1, "submission"),
)


@dataclass(frozen=True)
class Row:
    """What was measured."""

    name: str
    what: str
    system: str
    seen: healthy.Seen
    pss_mb: tuple[float, float]
    """Of ingress and queue together (of all of another system), before and at the end."""
    seeded_s: float = 0.0
    new_sites_ms: tuple[float, ...] = ()
    """Until the first message to each new site was delivered, from its 250 on; infinite: it never was."""
    tried: int = 0
    """Recipients of the backlog that had an attempt meanwhile, or have one under way."""


@dataclass
class Result:
    """All rows."""

    machine: dict[str, str]
    rows: list[Row] = field(default_factory=list)
    share: float = 1.0
    """Of the numbers that the rows are named by."""
    failures: list[str] = field(default_factory=list)


def fewer_sites(row: Sites, share: float) -> Sites:
    """The same with a share of the backlog, for trying the bench out."""
    if row.backlog is None:
        return row
    sites = max(1, int(row.backlog.sites * share))
    return replace(
        row, backlog=replace(row.backlog, recipients=max(1, int(row.backlog.recipients * share)), sites=sites)
    )


def fewer_strangers(row: Strangers, share: float) -> Strangers:
    """The same with a share of them, for trying the bench out."""
    return replace(row, count=int(row.count * share))


_TRIED = """
SELECT (SELECT count(*) FROM queue.recipient WHERE (attempts > 1 OR token IS NOT NULL) AND address NOT LIKE %s)
    + (SELECT count(*) FROM queue.history WHERE address NOT LIKE %s)"""
"""Those of the backlog were seeded with one attempt each."""


@contextlib.contextmanager
def world(row: Sites, sink: OwnSink) -> Iterator[DnsServer]:
    """DNS and, for tarpits, the server that all sites of the row have as their MX. All listen at the sink's port. The
    new sites have an address of the sink each."""
    with contextlib.ExitStack() as stack:
        dns = stack.enter_context(DnsServer(port=53 if os.geteuid() == 0 else None))  # Postfix asks port 53 alone
        dns.add(SINK_DOMAIN, "MX", f"10 mx.{SINK_DOMAIN}.")
        dns.add(f"mx.{SINK_DOMAIN}", "A", sink.address)
        for number, new in enumerate(sink.also):
            dns.add(f"d{number}.{NEW_DOMAINS}", "MX", f"10 mx.d{number}.{NEW_DOMAINS}.")
            dns.add(f"mx.d{number}.{NEW_DOMAINS}", "A", new)
        address = loopback_address()
        if row.behave == "tarpit":
            stack.enter_context(own_sink((address, sink.port), delay=20.0))
        dns.add("mx.slow.test", "A", address)
        names = [DEAD, *(f"d{number}.example" for number in range(row.backlog.sites if row.backlog else 0))]
        for name in names:
            if row.behave == "silent":
                dns.fail(name, Failure.SILENT)
            else:
                dns.add(name, "MX", "10 mx.slow.test.")
        yield dns


def measure_sites(row: Sites, sink: OwnSink, seconds: float) -> Row:
    """A healthy client of a Mailrail with such a backlog. Everything goes by MX."""
    settings = {"MAILRAIL_OUTBOUND_DIRECT_PORT": str(sink.port)}
    with world(row, sink) as dns, mailrail(None, settings=settings, resolver=f"{dns.address}:{dns.port}") as system:
        before, took = _pss(system), 0.0
        _warm_up(system, sink, row.name)
        if row.backlog is not None:
            with psycopg.connect(system.rail.superuser_url(), autocommit=True) as connection:
                took = seed(connection, row.backlog).seconds
            sleep(2)  # the owner has seen it
        found, new = _beside(system, sink, seconds, f"{row.name}-row")
        ((tried,),) = system.rail.sql(_TRIED, "%.test", "%.test")
        return Row(row.name, row.what, system.name, found, (before, _pss(system)), took, new, tried)


def _warm_up(system: System, sink: OwnSink, name: str) -> None:
    """The healthy site answers a message before anything else happens."""
    seen = healthy.watch(system.address, system.port, sink, 1 / healthy.RATE, f"{name}-warm", SINK_DOMAIN)
    if not seen.delivered:
        raise RuntimeError("the healthy site was not reached on an idle system")


def _beside(system: System, sink: OwnSink, seconds: float, name: str) -> tuple[healthy.Seen, tuple[float, ...]]:
    """The healthy client, and how long the first message to each new site took meanwhile, in ms."""
    with ThreadPoolExecutor(1) as pool:
        at = system.address, system.port
        new = pool.submit(
            healthy.watch,
            *at,
            sink,
            seconds,
            f"{name}-new",
            NEW_DOMAINS,
            rate=NEW_SITES / seconds,
            domains=NEW_SITES,
        )
        found = healthy.watch(*at, sink, seconds, name, SINK_DOMAIN)
        return found, new.result().delivery_ms


def measure_sites_of_postfix(row: Sites, sink: OwnSink, seconds: float) -> Row | None:
    """The same of a Postfix, which gets its backlog by SMTP; None for a backlog that is too large for that."""
    backlog = row.backlog
    if backlog is not None and (backlog.recipients > _BY_SMTP or backlog.at_one_site or not backlog.due):
        return None
    with (
        world(row, sink) as dns,
        postfix(None, {"smtp_tcp_port": str(sink.port)}, resolver=dns.address) as system,
        tempfile.TemporaryDirectory(prefix="mailrail-bench-backlog-") as folder,
    ):
        _warm_up(system, sink, f"{row.name}-postfix")
        before, start = _pss(system), time()
        if backlog is not None:
            command = [sys.executable, "-m", "bench.source", "--to", f"{system.address}:{system.port}", "--reuse"]
            command += ["--report", f"{folder}/report", "--sizes", str(backlog.octets), "--sender", "a@source.test"]
            command += ["--messages", str(backlog.recipients), "--domains", str(backlog.sites)]
            run(command, check=True, timeout=600, env=with_bench())
        took = time() - start
        found, new = _beside(system, sink, seconds, f"{row.name}-postfix")
        return Row(row.name, row.what, system.name, found, (before, _pss(system)), took, new)


@contextlib.contextmanager
def attack(row: Strangers, to: tuple[str, int]) -> Iterator[None]:
    """The strangers, from when all are at it to the end of the context."""
    if row.count == 0:
        yield
        return
    addresses = ",".join(loopback_address() for _ in range(row.addresses))
    command = [sys.executable, "-m", "bench.strangers", row.kind, "--to", f"{to[0]}:{to[1]}"]
    command += ["--count", str(row.count), "--addresses", addresses]
    with Popen(command, stdin=PIPE, stdout=PIPE, env=with_bench()) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            # What it logs at its start comes before.
            while (line := process.stdout.readline()) != b"on\n":
                if not line:
                    raise RuntimeError(f"the strangers of row {row.name} ended: {process.wait()}")
            yield
        finally:
            process.stdin.close()
            with contextlib.suppress(Exception):
                process.wait(20)
            process.kill()


def measure_strangers(row: Strangers, system: System, sink: OwnSink, seconds: float) -> Row | None:
    """A healthy client of a system under attack; None where the system lacks the port that is attacked."""
    to = (system.address, system.port)
    if row.port != "mx":
        if not isinstance(system, Mailrail):
            return None
        to = system.rail.submission if row.port == "submission" else system.rail.submissions
    before = _pss(system)
    with attack(row, to):
        name = f"{row.name}-{system.name.lower()}"
        found = healthy.watch(
            system.address, system.port, sink, seconds, name, SINK_DOMAIN, from_address=loopback_address()
        )
        after = _pss(system)
    return Row(row.name, row.what, system.name, found, (before, after))


def _pss(system: System) -> float:
    parts = system.parts()
    figures = memory_mb(parts)
    return sum(size for name, (size, _) in figures.items() if name in ("ingress", "queue") or len(parts) == 1)


def tables(result: Result) -> str:
    """The report in Markdown."""
    paragraphs = [
        f"{report.heading(result.machine)}. A healthy client sends {healthy.RATE:g} messages a second, each on a"
        " connection of its own: *accept* is from connect to the 250, *delivery* from there to the sink, a site that"
        f" answered before. *New sites* is the delivery of one message to each of {NEW_SITES} sites that had none"
        " before, spread over the row. Memory is PSS of ingress and queue, before and at the end."
    ]
    if result.share < 1:
        paragraphs.append(f"**Only {result.share:g} of the numbers below: enough to try it out, not to say anything.**")
    for head, rows in (
        ("while sites behave so", [row for row in result.rows if row.name in {one.name for one in SITES}]),
        ("while strangers do this", [row for row in result.rows if row.name in {one.name for one in STRANGERS}]),
    ):
        if rows:
            lines = [
                [
                    f"({row.name}) {row.what}: {row.system}",
                    *healthy.cells(row.seen),
                    f"{row.pss_mb[0]:.0f} → {row.pss_mb[1]:.0f}",
                    *_of_new_sites(row),
                    row.seen.verdict(),
                ]
                for row in rows
            ]
            new = ["new sites p50 ms", "max"] if rows[0].new_sites_ms else []
            paragraphs.append(report.table([head, *healthy.HEAD, "MiB", *new, "p99"], lines))
    said = [
        f"- ({row.name}) {row.system} said: {'; '.join(row.seen.refusals)}" for row in result.rows if row.seen.refusals
    ]
    paragraphs += [
        "\n".join(beside_idle(result.rows)),
        "\n".join(said),
        "\n".join(f"Not measured: {one.splitlines()[0]}" for one in result.failures),
    ]
    return "\n\n".join(one for one in paragraphs if one) + "\n"


def _of_new_sites(row: Row) -> list[str]:
    """The median and the greatest, where the row has new sites."""
    found = row.new_sites_ms
    return [healthy.milliseconds(aims.percentile(found, share)) for share in (0.5, 1)] if found else []


def beside_idle(rows: Sequence[Row]) -> list[str]:
    """The 99th percentile of delivery of each row of sites, by that of the same system with an empty queue."""
    delivery = {(row.name, row.system): aims.percentile(row.seen.delivery_ms, 0.99) for row in rows}
    return [
        f"- ({row.name}) {row.system}: p99 of delivery {found / idle:.1f} × that of an empty queue."
        for row in rows
        if row.name in {one.name for one in SITES[1:]}
        and 0 < (idle := delivery.get((SITES[0].name, row.system), 0.0)) < math.inf
        and math.isfinite(found := delivery[row.name, row.system])
    ]


def options(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="make bench ARGS='hostile ...'",
        description="Measure what a healthy client feels while sites do not answer or strangers attack: half an hour.",
    )
    names = [row.name for row in (*SITES, *STRANGERS)]
    parser.add_argument("--only", action="append", choices=names, help="only this row; may be repeated")
    parser.add_argument("--systems", default="mailrail,postfix", help="which of them (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of a row (default %(default)g)")
    parser.add_argument(
        "--share", type=float, default=1.0, help="of the backlogs and the strangers: less to try it out"
    )
    parser.add_argument("--json", type=Path, default=report.ROOT / ".bench" / "hostile.json", help="where figures go")
    parser.add_argument("--page", action="store_true", help="write the table into docs/benchmarks.md, too")
    chosen = parser.parse_args(arguments)
    if chosen.page and (chosen.share < 1 or chosen.only):
        parser.error("--page writes the whole table: leave --share and --only out")
    if not 0 < chosen.share <= 1 or not 1 <= chosen.seconds <= 3600:
        parser.error("--share is above 0 and at most 1, --seconds from 1 to 3600")
    chosen.systems = chosen.systems.split(",")
    if unknown := set(chosen.systems) - {"mailrail", "postfix"}:
        parser.error(f"--systems {','.join(sorted(unknown))}: choose from mailrail, postfix")
    return chosen


def measure(chosen: argparse.Namespace, result: Result) -> None:
    """Every row, each on fresh systems. What fails is noted, and the rest goes on."""

    def wanted(row: Sites | Strangers) -> bool:
        return not chosen.only or row.name in chosen.only

    new = [loopback_address() for _ in range(NEW_SITES)]
    with own_sink(somewhere(), timed=True, also=new) as sink:
        for site in (fewer_sites(one, chosen.share) for one in SITES if wanted(one)):
            for system in chosen.systems:
                of = measure_sites_of_postfix if system == "postfix" else measure_sites
                with report.noting(result, f"{site.name}, {system}"):
                    _told(result, of(site, sink, chosen.seconds))
        for stranger in (fewer_strangers(one, chosen.share) for one in STRANGERS if wanted(one)):
            for system in chosen.systems:
                with report.noting(result, f"{stranger.name}, {system}"), _fresh(system, sink) as running:
                    _told(result, measure_strangers(stranger, running, sink, chosen.seconds))


def _told(result: Result, row: Row | None) -> None:
    if row is None:
        return
    result.rows.append(row)
    figures = ", ".join(f"{name} {cell}" for name, cell in zip(healthy.HEAD, healthy.cells(row.seen), strict=True))
    tried = f"; {row.tried} of the backlog were tried, seeded in {row.seeded_s:.1f} s" if row.tried else ""
    new = "".join(
        f"; new sites {name} {cell}" for name, cell in zip(("p50 ms", "max"), _of_new_sites(row), strict=False)
    )
    said = f"{figures}{new}{tried}; {row.seen.verdict()}"
    print(f"({row.name}) {row.what}: {row.system}: {said}", file=sys.stderr, flush=True)


_LIMITS: Mapping[str, object] = {}
"""Of a gateway under attack: its defaults."""


@contextlib.contextmanager
def _fresh(system: str, sink: OwnSink) -> Iterator[System]:
    if system == "postfix":
        with postfix(sink, {"smtpd_client_connection_count_limit": "50"}) as found:
            yield found
    else:
        with mailrail(sink, limits=_LIMITS) as ours:
            yield ours


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write. Exit status 1 when a row could not be measured."""
    chosen = options(arguments)
    if "postfix" in chosen.systems and (reason := missing("postfix")):
        print(f"the bench {reason}; or leave it out with --systems mailrail", file=sys.stderr)
        return 1
    return report.carry_out(measure, chosen, Result(report.machine(), share=chosen.share), tables, "hostile")
