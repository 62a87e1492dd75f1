"""A limit of open files that is too low for a gateway is told of."""

from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from mailrail.core.revision.revision import GatewayLimits
from mailrail.kit.open_files import OTHERS
from mailrail_ingress.open_files import check_limit

from testkit.ingress import setup


@pytest.mark.parametrize(("limit", "warned"), [(1024, True), (10_000 + OTHERS - 1, True), (10_000 + OTHERS, False)])
def test_a_gateway_that_allows_more_connections_than_there_can_be_is_warned_of(limit: int, warned: bool) -> None:
    gateway = replace(setup().revision.gateways[0], limits=GatewayLimits(connections=10_000))
    with capture_logs() as logs:
        check_limit(limit, [gateway])
    assert [entry["log_level"] for entry in logs] == (["warning"] if warned else [])
