"""The first process of a development pod starts its child anew when code was synced, and ends as the child ends."""

import sys
from pathlib import Path

from testkit.conditions import wait_until
from testkit.processes import Program

ENTRYPOINT = Path(__file__).resolve().parents[3] / "tilt/entrypoint.py"


def start(folder: Path, child: str) -> Program:
    """The entry point with a child of our own in place of `mailrail`."""
    fake = folder / "mailrail"
    fake.mkdir()
    (fake / "__init__.py").touch()
    (fake / "cli.py").write_text(child, encoding="utf-8")
    env = {"PYTHONPATH": str(folder), "MAILRAIL_RELOAD_FILE": str(folder / "reload"), "PYTHONUNBUFFERED": "1"}
    return Program([sys.executable, str(ENTRYPOINT), "serve"], name="entrypoint", env=env)


def test_a_touched_file_starts_the_child_anew_and_a_stop_ends_both(tmp_path: Path) -> None:
    program = start(tmp_path, "import time\nprint('child runs')\ntime.sleep(600)\n")
    try:
        program.wait_for_line("child runs")
        (tmp_path / "reload").touch()
        wait_until(lambda: sum("child runs" in line for line in program.lines) == 2, 20, program.tail)
    finally:
        program.stop()
    assert not program.running


def test_a_child_that_ends_by_itself_ends_the_pod_with_its_status(tmp_path: Path) -> None:
    program = start(tmp_path, "raise SystemExit(7)\n")
    assert program.wait(20) == 7
    program.stop()
