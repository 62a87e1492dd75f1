"""What many scenarios begin with: a next hop that takes all mail, and all of Mailrail in front of it."""

from collections.abc import Iterator

import pytest

from testkit.next_hop import NextHop
from testkit.older import Older, older
from testkit.rail import Rail, basics, everything_through


@pytest.fixture
def hop() -> Iterator[NextHop]:
    """The next hop of all mail."""
    with NextHop() as sink:
        yield sink


@pytest.fixture
def rail(hop: NextHop) -> Iterator[Rail]:
    """A running Mailrail that sends everything through `hop`."""
    with Rail([*basics(), *everything_through(hop.address, hop.port)]) as running:
        yield running


@pytest.fixture(scope="module")
def release() -> Iterator[Older]:
    """The newest release."""
    with older() as installed:
        yield installed
