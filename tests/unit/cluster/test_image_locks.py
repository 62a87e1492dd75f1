"""The image installs what the tests ran with: its lock files are parts of requirements.lock."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def pins(path: Path) -> dict[str, tuple[str, frozenset[str]]]:
    """Name → version (with its marker), and the hashes."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        if match := re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?==(\S+)", line):
            found[match[1]] = (match[2], frozenset(re.findall(r"--hash=(\S+)", line)))
    return found


@pytest.mark.parametrize("name", ["runtime.lock", "build.lock"])
def test_every_pin_of_the_image_is_that_of_the_tests(name: str) -> None:
    everything = pins(ROOT / "requirements.lock")
    part = pins(ROOT / "deploy/image" / name)
    assert part
    assert {n: p for n, p in part.items() if everything.get(n) != p} == {}
    assert all(hashes for _, hashes in part.values())


def test_the_image_has_nothing_that_only_tests_need() -> None:
    runtime = pins(ROOT / "deploy/image/runtime.lock")
    assert not {"pytest", "mypy", "ruff", "hypothesis", "uv", "hatchling"} & set(runtime)
