"""A process that is told to stop does not keep anybody waiting."""

import sys

import pytest

from testkit.processes import run

CYCLE = """
class Loud:
    def __del__(self):
        print("collected")

cycle = Loud()
cycle.itself = cycle
del cycle
"""


@pytest.mark.parametrize(
    ("before", "printed"), [("", "collected"), ("from mailrail.kit.run import leave_without_collecting as l; l()", "")]
)
def test_garbage_is_left_to_the_operating_system_at_the_end(before: str, printed: str) -> None:
    assert run([sys.executable, "-c", f"{before}\n{CYCLE}"]).strip() == printed
