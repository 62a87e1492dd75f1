"""Children that are forked are what programs of their own would be, and take less memory."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from testkit.processes import run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="children are forked on Linux alone")

SHOP = """
import json, os, signal, sys
import shop.metrics

def private():
    return sum(int(line.split()[1]) for line in open("/proc/self/smaps_rollup") if line.startswith("Private_Dirty"))

def main():
    from prometheus_client import REGISTRY, generate_latest
    from cryptography.hazmat.primitives.asymmetric import ec
    key = ec.generate_private_key(ec.SECP256R1())
    print(json.dumps({
        "title": open("/proc/self/cmdline").read().rstrip("\\0"),
        "session": os.getsid(0) == os.getpid(),
        "files": sorted(os.listdir("/proc/self/fd"))[:3] + [str(len(os.listdir("/proc/self/fd")) - 1)],
        "environment": dict(os.environ),
        "terminal": sys.stdout.isatty(),
        "signals": [signal.getsignal(one) in (signal.SIG_DFL, signal.default_int_handler) for one in (2, 15)],
        "series": [name for name in ("bought", "mended") if name in generate_latest(REGISTRY).decode()],
        "private": private(),
        "key": key.private_numbers().private_value,
    }))
    rest = sys.stdin.buffer.raw.read(100) if os.environ.get("READ") else b""
    print("ä, read", rest.decode())
    import atexit
    atexit.register(print, "last words")
    if os.environ.get("INTERRUPTED"):
        sys.stdout.flush()
        flush = lambda _: signal.raise_signal(signal.SIGINT)
        sys.stdout = type("Interrupted", (), {"write": lambda *_: 0, "flush": flush})()
    if os.environ.get("FAIL"):
        raise ValueError("a fault of the shop")
    return int(os.environ.get("STATUS", "0"))

if __name__ == "__main__":
    sys.exit(main())
"""
FILES = {
    "shop/__init__.py": "",
    "shop/__main__.py": SHOP,
    "shop/metrics.py": "from prometheus_client import Counter\nBOUGHT = Counter('bought', 'Things bought')\n",
    "guild/__init__.py": "",
    "guild/__main__.py": "def main(): return 0\n",
    "mender/__init__.py": "",
    "mender/metrics.py": "from prometheus_client import Counter\nMENDED = Counter('mended', 'Things mended')\n",
    "mender/__main__.py": "import mender.metrics\nBALLAST = [str(n) for n in range(300_000)]\ndef main(): return 0\n",
}
START = """
import atexit, json, os, signal, sys, threading
from mailrail.local.forks import Forks

atexit.register(print, "the supervisor's own end")
signal.signal(signal.SIGINT, lambda *_: None)
signal.signal(signal.SIGTERM, lambda *_: None)
held = open(os.devnull)
print("before", end=" ")
COMMAND = [sys.executable, "-m", "shop"]

def end(process):
    process.stdin.close()
    with process.stdout as output:
        lines = output.read().decode().splitlines()
    return process.wait(), lines
"""


@pytest.fixture
def supervised(tmp_path: Path) -> Any:
    """Runs a script that begins with START, where the packages are; its last line, as JSON."""
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    def go(script: str) -> Any:
        said = run([sys.executable, "-c", START + script], env={"PYTHONPATH": str(tmp_path)}).splitlines()
        assert sum("before" in line for line in said) == 1, said
        assert sum("own end" in line for line in said) == 1, said
        return json.loads(said[-2].removeprefix("before "))

    return go


def test_a_fork_is_what_a_program_of_its_own_would_be_but_for_its_memory(supervised: Any) -> None:
    found = supervised("""
forks = Forks.made({"shop": (), "mender": ()})
environment = {**os.environ, "A": "1", "STATUS": "7"}
first = forks.launch(COMMAND, environment)
second = forks.launch(COMMAND, environment)
forks.stop()
print(json.dumps({"forked": [first.pid, end(first)], "own": [second.pid, end(second)], "ours": os.getpid()}))
""")
    (status, lines), (own_status, own_lines) = found["forked"][1], found["own"][1]
    assert (status, own_status) == (7, 7)
    assert lines[1:] == own_lines[1:] == ["ä, read ", "last words"]
    forked, own = json.loads(lines[0]), json.loads(own_lines[0])
    assert forked["title"] == own["title"].replace("\0", " ") == f"{sys.executable} -m shop"
    for what in ("files", "environment", "terminal", "signals", "series"):
        assert forked[what] == own[what], what
    assert (forked["session"], forked["series"], forked["signals"]) == (True, ["bought"], [True, True])
    assert forked["private"] < 10_000 < own["private"], "KiB: what mender keeps is shared"


def test_a_package_that_runs_within_a_child_exports_its_series_there_and_nowhere_else(supervised: Any) -> None:
    series = supervised("""
found = []
for modules in ({"shop": ("mender",)}, {"shop": (), "mender": ()}, {"shop": (), "guild": ("mender",)}):
    forks = Forks.made(modules)
    found.append(json.loads(end(forks.launch(COMMAND, dict(os.environ)))[1][0])["series"])
    forks.stop()
print(json.dumps(found))
""")
    assert series == [["bought", "mended"], ["bought"], ["bought"]]


def test_forks_draw_random_numbers_of_their_own(supervised: Any) -> None:
    one, other = supervised("""
both = [Forks.made({"shop": ()}), Forks.made({"shop": ()})]
said = [end(forks.launch(COMMAND, dict(os.environ)))[1][0] for forks in both]
print(json.dumps([json.loads(line)["key"] for line in said]))
""")
    assert one != other


def test_what_follows_its_environment_on_the_leash_is_for_the_child(supervised: Any) -> None:
    found = supervised("""
forks = Forks.made({"shop": ()})
child = forks.launch(COMMAND, {**os.environ, "READ": "1", "LONG": "x" * 100_000})
child.stdin.write(b"go on")
print(json.dumps([child.poll(), end(child), child.poll()]))
""")
    assert [found[0], found[1][0], found[2]] == [None, 0, 0]
    assert found[1][1][1] == "ä, read go on"


def test_a_fault_of_a_child_is_printed_and_is_exit_status_1(supervised: Any) -> None:
    status, lines = supervised("""
print(json.dumps(end(Forks.made({"shop": ()}).launch(COMMAND, {**os.environ, "FAIL": "1"}))))
""")
    assert status == 1
    assert "ValueError: a fault of the shop" in lines


def test_a_child_that_was_killed_says_by_which_signal(supervised: Any) -> None:
    assert supervised("""
child = Forks.made({"shop": ()}).launch(COMMAND, {**os.environ, "READ": "1"})
child.stdout.readline()
child.kill()
print(json.dumps([child.wait(), child.poll()]))
""") == [-9, -9]


def test_one_that_ended_before_it_began_is_replaced_by_a_program_of_its_own(supervised: Any) -> None:
    was, now, (status, lines) = supervised("""
forks = Forks.made({"shop": ()})
(waiting,) = forks._waiting.values()
os.kill(waiting.pid, 9)
os.waitid(os.P_PID, waiting.pid, os.WEXITED | os.WNOWAIT)
child = forks.launch(COMMAND, dict(os.environ))
print(json.dumps([waiting.pid, child.pid, end(child)]))
""")
    assert was != now
    assert (status, lines[1:]) == (0, ["ä, read ", "last words"])


def test_those_that_never_began_end_with_the_forks_and_with_their_parent(supervised: Any) -> None:
    statuses = supervised("""
forks = Forks.made({"shop": (), "mender": ()})
waiting = list(forks._waiting.values())
waiting[0].stdin.close()
first = waiting[0].wait()
forks.stop()
print(json.dumps([first, waiting[1].wait()]))
""")
    assert statuses == [0, 0]


def test_nothing_is_forked_while_there_is_another_thread(supervised: Any) -> None:
    assert supervised("""
go_on = threading.Event()
thread = threading.Thread(target=go_on.wait)
thread.start()
forks = Forks.made({"shop": ()})
waiting = len(forks._waiting)
status, lines = end(forks.launch(COMMAND, dict(os.environ)))
go_on.set()
print(json.dumps([waiting, status, lines[-1]]))
""") == [0, 0, "last words"]


def test_nothing_is_forked_where_nobody_can_tell_how_many_threads_there_are(supervised: Any) -> None:
    assert supervised("""
def not_mounted(path="."):
    raise FileNotFoundError(2, "there is no /proc", str(path))
os.listdir = not_mounted
forks = Forks.made({"shop": ()})
waiting = len(forks._waiting)
status, lines = end(forks.launch(COMMAND, dict(os.environ)))
print(json.dumps([waiting, status, lines[-1]]))
""") == [0, 0, "last words"]


def test_the_end_of_a_child_is_noticed_where_its_parent_was_started_with_SIGCHLD_ignored(supervised: Any) -> None:
    """Some supervisors start programs so; the kernel then keeps no exit status, neither for Popen nor for us."""
    assert supervised("""
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
forks = Forks.made({"shop": ()})
children = [forks.launch(COMMAND, {**os.environ, "STATUS": "7"}) for _ in range(2)]
print(json.dumps([[end(child)[0], child.poll()] for child in children]))
""") == [[0, 0], [0, 0]]


def test_a_child_whose_end_is_interrupted_ends_all_the_same(supervised: Any) -> None:
    """It must not go on where its parent is, as a second supervisor."""
    status, lines = supervised("""
print(json.dumps(end(Forks.made({"shop": ()}).launch(COMMAND, {**os.environ, "INTERRUPTED": "1"}))))
""")
    assert (status, lines[1:]) == (1, ["ä, read "])
