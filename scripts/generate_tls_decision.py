"""Write docs/reference/tls-decision.md from the tables of core/tlspolicy/table.py and core/outbound/tls_endings.py."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from mailrail.core.outbound.tls_endings import ENDINGS
from mailrail.core.tlspolicy.table import LEGEND, POSTFIX, TABLES

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference" / "tls-decision.md"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def page() -> str:
    """The reference page."""
    lines = [
        "<!-- Written by scripts/generate_tls_decision.py; `make generate` writes it anew. -->",
        "",
        "# Which TLS a host needs",
        "",
        "One function decides for each host before it is dialled, and these tables are what it says. Four are heard:",
        "the message (REQUIRETLS, or the header `TLS-Required: No`), the recipient's domain (MTA-STS and DANE), the",
        "transport with its own `tls`, and the floors that you set: `security` of MailGateway, MailDomain and",
        "MailTransport, and `rules[].require.tls` of MailRoute. Of the floors the strictest minimum counts, with the",
        "proofs that all of them allow and the strictest word on what happens otherwise.",
        "",
        "| Word | Meaning |",
        "|---|---|",
        *(f"| {word} | {meaning} |" for word, meaning in LEGEND),
    ]
    for each in TABLES:
        lines += ["", f"## {each.title}", "", each.intro, ""]
        rows = zip((label for label, _ in each.rows), each.cells(), strict=True)
        lines += table([each.corner, *(label for label, _ in each.columns)], ([label, *cells] for label, cells in rows))
    lines += [
        "",
        "## When no host took the mail",
        "",
        "A host that did not answer may be the one that conforms. Before a policy in mode `enforce` keeps mail back,",
        "its record is asked for anew, past every cache. Where there is another policy by now, all hosts are tried by",
        "that one, in the same attempt; where the DNS does not answer, the message is tried later (STS-13).",
        "",
    ]
    lines += table(["hosts", "the message"], ((each.hosts, each.result()) for each in ENDINGS))
    lines += ["", "## Postfix's words", "", "`smtp_tls_security_level`, and what is nearest to it here:", ""]
    lines += table(["Postfix", "Mailrail"], POSTFIX)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
