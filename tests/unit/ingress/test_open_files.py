"""The limit of open files is raised, and told of where it is too low."""

import subprocess
import sys
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from mailrail.core.revision.revision import GatewayLimits
from mailrail_ingress.open_files import OTHERS, check_limit

from testkit.ingress import setup


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_the_limit_of_open_files_is_raised_to_what_the_system_allows() -> None:
    script = (
        "import resource\n"
        "hard = min(2000, resource.getrlimit(resource.RLIMIT_NOFILE)[1])\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (hard - 500, hard))\n"
        "from mailrail_ingress.open_files import raise_limit\n"
        "limit = raise_limit()\n"
        "assert (limit, limit) == resource.getrlimit(resource.RLIMIT_NOFILE), limit\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.parametrize(("limit", "warned"), [(1024, True), (10_000 + OTHERS - 1, True), (10_000 + OTHERS, False)])
def test_a_gateway_that_allows_more_connections_than_there_can_be_is_warned_of(limit: int, warned: bool) -> None:
    gateway = replace(setup().revision.gateways[0], limits=GatewayLimits(connections=10_000))
    with capture_logs() as logs:
        check_limit(limit, [gateway])
    assert [entry["log_level"] for entry in logs] == (["warning"] if warned else [])
