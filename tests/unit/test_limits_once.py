"""A bound that several modules keep stands in one of them."""

import re
from pathlib import Path

from mailrail.core.lookups import NAME_LIMIT

CORE = Path(__file__).resolve().parents[2] / "lib/mailrail/core"
OF_OBJECTS = {"resources", "config"}
"""What Kubernetes allows as the name of an object has the same number, and is another bound."""


def test_the_octets_of_a_domain_name_are_bounded_in_one_place() -> None:
    written = {
        str(path.relative_to(CORE))
        for path in CORE.rglob("*.py")
        if path.relative_to(CORE).parts[0] not in OF_OBJECTS
        and re.search(rf"^[^#\"]*\b{NAME_LIMIT}\b", re.sub(r'""".*?"""', "", path.read_text("utf-8"), flags=re.S), re.M)
    }
    assert written == {"lookups.py"}
