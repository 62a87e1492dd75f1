"""How .ci/run measures its stages, limits its steps, and ends with pytest's summaries."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def bash(script: str) -> list[str]:
    """The lines that a script prints (both outputs) after it sourced the functions of .ci/run."""
    whole = f"set -euo pipefail\n. {ROOT}/.ci/stages.sh\n{script}"
    done = subprocess.run(["bash", "-c", whole], capture_output=True, text=True, check=True, timeout=60)
    return (done.stdout + done.stderr).splitlines()


def test_the_table_has_the_minutes_of_each_stage_and_marks_what_is_over_its_ceiling() -> None:
    lines = bash(
        """
        SECONDS=100; stage "installing" 0
        SECONDS=1000; stage "make check" 5
        SECONDS=1300; stage "make test" 25
        SECONDS=2806; report
        """
    )
    assert [line.split() for line in lines if line] == [
        ["stage", "minutes", "ceiling"],
        ["installing", "15.0", "-"],
        ["make", "check", "5.0", "5"],
        ["make", "test", "25.1", "25", "OVER", "ITS", "CEILING"],
    ]


def test_the_last_lines_are_the_summaries_of_pytest_and_of_what_failed() -> None:
    lines = bash(
        """
        pytest() { printf '%s\\n' '...F' 'FAILED tests/a.py::test_b - no' '1 failed, 3 passed in 1s' 'make: Error'; }
        timeout() { shift 2; "$@"; }
        stage "make test" 25
        failing() { pytest; return 1; }
        tests "make test" 40 failing
        tests "make test-cluster" 40 pytest
        report
        echo "failed=$failed"
        """
    )
    assert lines[-8:] == [
        "something above failed",
        "== summary of make test",
        "FAILED tests/a.py::test_b - no",
        "1 failed, 3 passed in 1s",
        "== summary of make test-cluster",
        "FAILED tests/a.py::test_b - no",
        "1 failed, 3 passed in 1s",
        "failed=1",
    ]


def test_a_run_without_a_failure_does_not_speak_of_one() -> None:
    lines = bash('timeout() { echo "3 passed in 0.1s"; }; tests "make test" 40 pytest; report; echo "failed=$failed"')
    assert lines[-3:] == ["== summary of make test", "3 passed in 0.1s", "failed=0"]


def test_a_step_ends_at_its_limit_or_when_all_time_is_over() -> None:
    lines = bash(
        """
        timeout() { echo "$@"; }
        step 15 make check
        SECONDS=$((85 * 60)); step 15 make test
        SECONDS=$((88 * 60 - 59)); step 15 make test-cluster || echo refused
        """
    )
    assert lines == [
        "--kill-after=30s 900 make check",
        "--kill-after=30s 180 make test",
        "refused",
        "no time is left for: make test-cluster",
    ]


def test_the_ceilings_of_the_stages_are_those_that_the_page_about_testing_promises() -> None:
    page = (ROOT / "docs/contributing/testing.md").read_text()
    promised = [int(minutes) for minutes in re.findall(r"^\| .* \| ([0-9]+) \|$", page, re.MULTILINE)]
    used = re.findall(r'stage "[^"]+" ([0-9]+)', (ROOT / ".ci/run").read_text())
    assert [int(minutes) for minutes in used if minutes != "0"] == promised


def test_add_ons_that_start_are_named_to_the_tests_and_one_that_does_not_fails_the_run() -> None:
    lines = bash(
        """
        cluster_tool=tool
        tool() { [ $# -eq 1 ] || [ "$2" != broken ]; }
        timeout() { shift 2; "$@"; }
        start_addons first broken second
        report
        echo "failed=$failed $(bash -c 'echo "$MAILRAIL_TEST_ADDONS"')"
        """
    )
    assert lines[-2:] == ["== the add-on broken did not start, and its tests were not run", "failed=1 first second"]


def test_an_add_on_has_a_second_try() -> None:
    lines = bash(
        """
        cluster_tool=tool tries=0
        tool() { [ $# -eq 1 ] || { tries=$((tries + 1)); [ $tries -eq 2 ]; }; }
        timeout() { shift 2; "$@"; }
        start_addons slow
        echo "failed=$failed $MAILRAIL_TEST_ADDONS after $tries"
        """
    )
    assert lines[-1:] == ["failed=0 slow after 2"]


def test_what_a_killed_cluster_left_is_taken_away_and_no_stranger_with_its_number_is_harmed(tmp_path: Path) -> None:
    pids = tmp_path / "run" / "pids"
    pids.mkdir(parents=True)
    with (
        subprocess.Popen(["sleep", "60"], cwd=tmp_path / "run") as ours,
        subprocess.Popen(["sleep", "60"], cwd="/") as stranger,
    ):
        try:
            (pids / "etcd").write_text(f"{ours.pid}\n")
            (pids / "addon-metrics-server").write_text(f"{stranger.pid}\n")
            (pids / "kubelet").write_text("")
            lines = bash(
                f"""
                cluster_tool=tool
                tool() {{ echo "$1 with $(ls {pids})"; }}
                timeout() {{ shift 2; "$@"; }}
                clear_remains {tmp_path}/run
                clear_remains {tmp_path}/never
                """
            )
        finally:
            ours.kill()
            stranger.kill()
    assert lines == ["== taking away what is left of a cluster that was killed", "down with etcd"]


def test_a_cluster_tool_without_add_ons_is_no_failure_and_is_said() -> None:
    lines = bash(
        """
        cluster_tool=tool
        tool() { return 2; }
        start_addons first
        report
        echo "failed=$failed <$MAILRAIL_TEST_ADDONS>"
        """
    )
    assert lines[-2:] == ["== the tests of add-ons were SKIPPED: tool makes none", "failed=0 <>"]
