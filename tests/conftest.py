"""Fixtures for every kind of test; peer programs that are missing skip a test with the reason, or fail it in CI."""

import os
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

# Tests start programs while gRPC runs in this process: its handlers around fork crash the child before it becomes one.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

from testkit import transcripts
from testkit.peers import require_peer
from testkit.postgres import (  # fixtures are found by being here
    _databases,
    database,
    database_for,
    disposable_postgres,
    empty_database,
    postgres,
)

__all__ = ["_databases", "database", "database_for", "disposable_postgres", "empty_database", "postgres"]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """`@pytest.mark.peer("postfix")`: the test needs that program."""
    transcripts.begin()
    for marker in item.iter_markers("peer"):
        for name in marker.args:
            require_peer(name)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that fails shows what its scripted servers heard and said."""
    report = yield
    if report.failed and (said := transcripts.shown()):
        report.sections.append(("scripted servers", said))
    return report


def pytest_configure() -> None:
    """An example that takes long on a busy machine is no fault: how fast something is belongs into `make bench`."""
    settings.register_profile("mailrail", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("mailrail")
