"""Every resource that a page, the chart's notes or an example folder shows can be read as it stands.

Those of docs/examples: tests/unit/operator/test_crds.py.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mailrail.core.resources import API_VERSION, KINDS, InvalidResource, canonical, read

ROOT = Path(__file__).resolve().parents[3]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("services/*/README.md"),
        *ROOT.glob("operator/*.md"),
        *ROOT.glob("changelog.d/*.md"),
    ]
)
NOTES = ROOT / "deploy/helm/mailrail/templates/NOTES.txt"
FILES = sorted([*ROOT.glob("lib/mailrail/local/example/*.yaml"), ROOT / "tilt/example.yaml"])
GATEWAY = {
    "hostname": "mx1.example.org",
    "listeners": [{"name": "mx", "protocol": "MX", "port": 25}],
    "postmaster": {"accountRef": {"name": "postmaster"}},
}


def blocks(page: str) -> Iterator[str]:
    """Fenced blocks of YAML, and what is between `<<'END'` and `END`, without the indentation of its first line."""
    for indent, block in re.findall(r"^( *)```ya?ml\n(.*?)^ *```", page, re.MULTILINE | re.DOTALL):
        yield re.sub(f"^{indent}", "", block, flags=re.MULTILINE)
    for first, block in re.findall(r"<<'?END'?\n(( *).*?)^ *END$", page, re.MULTILINE | re.DOTALL):
        yield re.sub(f"^{block}", "", first, flags=re.MULTILINE)


def rendered(notes: str) -> str:
    """Notes with every branch taken and a name in place of every value."""
    without = re.sub(r"^ *\{\{-? *(?:if|else|end|with|range)\b.*?\}\} *\n", "", notes, flags=re.MULTILINE)
    without = re.sub(r"\{\{-? *(?:if|else|end|with|range)\b.*?\}\}", "", without)
    return re.sub(r"\{\{.*?\}\}", "name", without)


def resources(block: str) -> list[dict[str, Any]]:
    """Documents of ours in a block of YAML; a gateway's around a list `attach` that stands alone."""
    documents = [d for d in yaml.safe_load_all(block) if isinstance(d, dict)]
    found = [d for d in documents if str(d.get("apiVersion")).partition("/")[0] == API_VERSION.partition("/")[0]]
    metadata = {"name": "a"}
    alone = [
        {"kind": "MailGateway", "metadata": metadata, "spec": GATEWAY | d} for d in documents if [*d] == ["attach"]
    ]
    return found + [{"apiVersion": API_VERSION} | d for d in alone]


SHOWN = [
    pytest.param(document, id=f"{path.relative_to(ROOT)}-{document['kind']}")
    for path, texts in (
        *((path, blocks(path.read_text("utf-8"))) for path in PAGES),
        (NOTES, blocks(rendered(NOTES.read_text("utf-8")))),
        *((path, (path.read_text("utf-8"),)) for path in FILES),
    )
    for text in texts
    for document in resources(text)
]


@pytest.mark.parametrize("document", SHOWN)
def test_a_resource_that_is_shown_can_be_read(document: dict[str, Any]) -> None:
    assert document["apiVersion"] == API_VERSION
    read(canonical(document), document["kind"])


def test_what_is_shown_is_found() -> None:
    kinds = [param.values[0]["kind"] for param in SHOWN]  # type: ignore[index]  # a document
    assert set(kinds) == set(KINDS)
    where = {str(param.id).rpartition("-")[0] for param in SHOWN}
    assert {"deploy/helm/mailrail/templates/NOTES.txt", "tilt/example.yaml"} <= where
    assert "docs/decisions/0018-the-api-that-can-stay.md" in where


def test_a_form_that_is_gone_would_be_found() -> None:
    spec = "{domainName: example.org, gatewayRef: {name: mx1}, delivery: mailbox}"
    lines = ("```yaml", f"apiVersion: {API_VERSION}", "kind: MailDomain", "metadata: {name: a}", f"spec: {spec}", "```")
    page = "Text.\n\n" + "".join(f"  {line}\n" for line in lines)
    (document,) = (document for block in blocks(page) for document in resources(block))
    with pytest.raises(InvalidResource, match="delivery"):
        read(canonical(document), document["kind"])
