"""Connections to next hops are no more than there are files for."""

import pytest
from structlog.testing import capture_logs

from mailrail.kit.open_files import OTHERS
from mailrail_outbound.open_files import fitting
from mailrail_outbound.settings import OutboundSettings


@pytest.mark.parametrize(("limit", "connections"), [(1024, 1024 - OTHERS), (1000 + OTHERS, 1000), (2**62, 1000)])
def test_connections_fit_into_the_limit_of_open_files_and_the_log_says_so(limit: int, connections: int) -> None:
    with capture_logs() as logs:
        assert fitting(OutboundSettings(connections=1000), limit).connections == connections
    assert [entry["log_level"] for entry in logs] == (["warning"] if connections < 1000 else [])
