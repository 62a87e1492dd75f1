"""A name of a class has one meaning in the whole tree (docs/glossary.md)."""

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("lib/mailrail", "services", "operator", "scripts")

# Both sides of one idea: an RPC's two ends, or a class and the Protocol that its user asks for.
ONE_MEANING = {
    "Delivery": {"services/outbound/mailrail_outbound/ports.py", "services/queue/mailrail_queue/delivery/attempt.py"},
    "Ids": {"services/queue/mailrail_queue/accept/prepare.py", "services/queue/mailrail_queue/store/ids.py"},
    "SetBack": {"lib/mailrail/kit/publisher.py", "services/config/mailrail_config/store.py"},
    "Worklist": {
        "services/queue/mailrail_queue/accept/batches.py",
        "services/queue/mailrail_queue/schedule/worklist.py",
    },
}


def test_no_name_of_a_class_has_two_meanings() -> None:
    places: defaultdict[str, list[str]] = defaultdict(list)
    for folder in FOLDERS:
        for file in (ROOT / folder).rglob("*.py"):
            where = file.relative_to(ROOT).as_posix()
            if where.startswith("lib/mailrail/pb/"):
                continue
            for node in ast.parse(file.read_text("utf-8")).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    places[node.name].append(where)
    again = {name: set(found) for name, found in places.items() if len(found) > 1}
    assert again == ONE_MEANING, "give one of them another name, or list it here with what they share"
