"""What a pod of the cluster tests gets of the testkit is all that its program imports."""

import ast
from pathlib import Path

from cluster.partner import _TESTKIT

TESTS = Path(__file__).parents[2]


def imported(path: Path) -> set[str]:
    """Modules of the testkit that a file imports when it is loaded."""
    froms = [node.module or "" for node in ast.parse(path.read_text()).body if isinstance(node, ast.ImportFrom)]
    return {module.removeprefix("testkit.") for module in froms if module.startswith("testkit.")}


def test_no_module_that_the_program_of_a_partner_needs_is_missing_in_its_pod() -> None:
    needed, new = set[str](), imported(TESTS / "cluster" / "post_office.py")
    while new:
        needed |= new
        new = {each for one in new for each in imported(TESTS / "testkit" / f"{one}.py")} - needed
    assert needed | {"__init__"} == set(_TESTKIT)
