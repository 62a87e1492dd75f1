"""What a cluster may have besides Kubernetes, by the names of `cluster addon`: each has a file of tests of its own.

`MAILRAIL_TEST_ADDONS` names what is there, with spaces between; `.ci/run` starts all and names those that it started.
"""

import os

import pytest

ADDONS = frozenset(os.environ.get("MAILRAIL_TEST_ADDONS", "").split())


def needs(*names: str) -> pytest.MarkDecorator:
    """Skip what this cluster cannot show."""
    missing = " and ".join(name for name in names if name not in ADDONS)
    return pytest.mark.skipif(bool(missing), reason=f"MAILRAIL_TEST_ADDONS does not name {missing}")
