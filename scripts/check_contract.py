"""Compare the tree with the newest release: what users and older processes rely on only grows.

Each sentence on stderr is a change that is not additive. One that is meant stands in `accepted.toml` in tests/contract
with its reason, word for word, and beside it a fragment `changelog.d/*.changed.md` tells users:

    [[accepted]]
    what = "values.outbound.replicaCount: default 2, now 3"
    reason = "Two left no room for a roll-out."

Before the first release there is nothing to compare with.
"""

import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import additive
import contract
import yaml

ROOT: Final = contract.ROOT


def read(path: Path) -> Any:
    """A file of JSON or YAML, by the name's end."""
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)


def compare(old: Path, new: Path) -> Iterator[str]:
    """What is not additive between two folders that `contract.write` wrote, in sentences."""
    for name, differences in additive.COMPARED.items():
        yield from differences(read(old / f"{name}.json"), read(new / f"{name}.json"))
    yield from additive.defaults(read(old / "values.yaml"), read(new / "values.yaml"))
    name = "values.schema.json"
    yield from additive.schema(read(old / name), read(new / name), "values.schema")
    for file in sorted((old / "crds").glob("*.yaml")):
        now = new / "crds" / file.name
        if now.exists():
            yield from additive.crd(read(file), read(now))
        else:
            yield f"CRD {read(file)['metadata']['name']} is gone"


def agreements(old: Path, tree: Path = ROOT) -> Iterator[str]:
    """What buf finds in the proto/ of `tree` against an image."""
    command = [str(contract.BUF), "breaking", "--against", str(old)]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    yield from done.stdout.splitlines()
    if done.returncode and not done.stdout:
        yield f"buf breaking: {done.stderr.strip()}"


def examples(released: Path) -> Iterator[str]:
    """Documents of a release that are refused now."""
    known = read(released / "examples" / "refused.json")
    for name, before in known.items():
        for said in contract.judged(released / "examples" / name):
            if said not in before:
                yield f"example of {released.name} is refused now: {name}/{said}"


def judge(found: Sequence[str], accepted: Sequence[dict[str, str]], fragments: Sequence[str]) -> list[str]:
    """What is left: differences that nobody accepted, and acceptances without use, reason or fragment."""
    faults = [one for one in found if one not in {entry.get("what") for entry in accepted}]
    for entry in accepted:
        if entry.get("what") not in found:
            faults.append(f"accepted.toml: nothing differs so; take the entry away: {entry.get('what')}")
        elif not entry.get("reason", "").strip():
            faults.append(f"accepted.toml: the entry has no reason: {entry['what']}")
    if accepted and not any(name.endswith(".changed.md") for name in fragments):
        faults.append("accepted.toml: users are not told: write a fragment changelog.d/TOPIC.changed.md")
    return faults


def main() -> int:
    """Print each fault; 1 if there is one."""
    released = contract.releases()
    if not released:
        return 0
    newest = released[-1]
    with tempfile.TemporaryDirectory(prefix="mailrail-contract-") as folder, contract.migrated_database() as url:
        contract.write(Path(folder), url=url)
        found = [*compare(newest, Path(folder)), *agreements(newest / "proto.json")]
    for release in released:
        found += examples(release)
    file = contract.FROZEN / "accepted.toml"
    accepted = tomllib.loads(file.read_text(encoding="utf-8")).get("accepted", []) if file.exists() else []
    faults = judge(found, accepted, [path.name for path in (ROOT / "changelog.d").iterdir()])
    for fault in faults:
        print(fault, file=sys.stderr)
    if faults:
        print(
            f"{newest.name} was released otherwise, and its users and processes rely on it. Keep the old form beside"
            " the new one, or say in accepted.toml in tests/contract why not (scripts/check_contract.py)",
            file=sys.stderr,
        )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
