"""The limit of open files is raised."""

import subprocess
import sys

import pytest

from mailrail.kit.open_files import OTHERS, connections_in


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_the_limit_of_open_files_is_raised_to_what_the_system_allows() -> None:
    script = (
        "import resource\n"
        "hard = min(2000, resource.getrlimit(resource.RLIMIT_NOFILE)[1])\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (hard - 500, hard))\n"
        "from mailrail.kit.open_files import raise_limit\n"
        "limit = raise_limit()\n"
        "assert (limit, limit) == resource.getrlimit(resource.RLIMIT_NOFILE), limit\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_of_the_files_some_are_no_connections() -> None:
    assert connections_in(1024) == 1024 - OTHERS
    assert connections_in(10) == 1, "a process that cannot have one is of no use"
