"""CPU time and memory of trees of processes, from Linux's /proc."""

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

_TICK_MS = 1000 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class _Stat:
    parent: int
    cpu_ms: float  # of the process and of the children that it reaped


def _stats() -> dict[int, _Stat]:
    stats = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # proc(5): the second field, in parentheses, may hold anything; what follows it is regular
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile; its parent has its time now
        stats[int(entry.name)] = _Stat(int(fields[1]), sum(int(field) for field in fields[11:15]) * _TICK_MS)
    return stats


def _trees(roots: Iterable[int], stats: Mapping[int, _Stat]) -> set[int]:
    members = {pid for pid in roots if pid in stats}
    grown = True
    while grown:
        below = {pid for pid, stat in stats.items() if stat.parent in members and pid not in members}
        members |= below
        grown = bool(below)
    return members


def cpu_ms(parts: Mapping[str, Iterable[int]]) -> dict[str, float]:
    """CPU milliseconds used so far by each part: its root processes and everything below them.

    A process that is named as a root of one part is not counted in another that it descends from.
    """
    stats = _stats()
    roots = {pid for pids in parts.values() for pid in pids}
    return {
        part: sum(stats[pid].cpu_ms for pid in _own(pids, roots, stats))
        for part, pids in ((name, list(value)) for name, value in parts.items())
    }


def _own(pids: Iterable[int], roots: set[int], stats: Mapping[int, _Stat]) -> set[int]:
    own = list(pids)
    foreign = _trees(roots - set(own), {pid: stat for pid, stat in stats.items() if pid not in own})
    return _trees(own, {pid: stat for pid, stat in stats.items() if pid not in foreign})


def memory_mb(parts: Mapping[str, Iterable[int]]) -> dict[str, tuple[float, int]]:
    """Memory of each part in MiB, and how many processes it is: proportional set size (shared pages counted once)."""
    stats = _stats()
    roots = {pid for pids in parts.values() for pid in pids}
    result = {}
    for part, pids in parts.items():
        members = _own(pids, roots, stats)
        result[part] = (sum(_pss_kb(pid) for pid in members) / 1024, len(members))
    return result


def rss_mb(pid: int) -> float:
    """Resident set size of one process in MiB."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:")), 0.0)


def settle(parts: Mapping[str, Iterable[int]]) -> None:
    """Wait until the system has done what it does after the last delivery (results, history, clean-up), 5 s at most."""
    deadline = time.monotonic() + 5
    used = sum(cpu_ms(parts).values())
    while time.monotonic() < deadline:
        time.sleep(0.5)
        now = sum(cpu_ms(parts).values())
        if now - used < 25:  # under 5 % of one core
            return
        used = now


def _pss_kb(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
