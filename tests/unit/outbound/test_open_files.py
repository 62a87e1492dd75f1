"""Connections to next hops are no more than there are files for."""

import pytest
from structlog.testing import capture_logs

from mailrail.kit.open_files import OTHERS
from mailrail_outbound.open_files import fitting
from mailrail_outbound.settings import OutboundSettings


@pytest.mark.parametrize(
    ("limit", "fits"), [(1024, (437, 218)), (2050 + OTHERS, (1000, 500)), (2**62, (1000, 500)), (10, (1, 1))]
)
def test_connections_and_lookups_fit_into_the_limit_of_open_files_and_the_log_says_so(
    limit: int, fits: tuple[int, int]
) -> None:
    with capture_logs() as logs:
        settings = fitting(OutboundSettings(connections=1000, lookups=500, fetches=50), limit)
    assert (settings.connections, settings.lookups) == fits
    assert [entry["log_level"] for entry in logs] == (["warning"] if fits != (1000, 500) else [])
