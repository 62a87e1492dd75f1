"""Write docs/reference/recipient-life.md from the table of a recipient's life (mailrail.core.delivery.life)."""

from pathlib import Path

from mailrail.core.delivery.life import FINAL, MEANINGS, STEPS, Event, State

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference" / "recipient-life.md"


def diagram() -> list[str]:
    """A Mermaid state diagram: one arrow for each pair of states, with its events."""
    arrows: dict[tuple[str, str], list[str]] = {}
    for (source, event), target in STEPS.items():
        arrows.setdefault((source or "[*]", target), []).append(event)
    lines = [f"    {source} --> {target}: {', '.join(events)}" for (source, target), events in arrows.items()]
    return ["```mermaid", "stateDiagram-v2", *lines, *(f"    {s} --> [*]" for s in State if s in FINAL), "```"]


def page() -> str:
    """The reference page."""
    lines = [
        "<!-- Written by scripts/generate_life.py; `make generate` writes it anew. -->",
        "",
        "# The life of a recipient",
        "",
        "Each recipient of a message has a row and a state of its own. An event that is not listed for a state changes",
        "nothing: a test drives every statement of the queue from every state.",
        "",
        *diagram(),
        "",
        "| State | Meaning |",
        "|---|---|",
        *(f"| {state} | {MEANINGS[state]} |" for state in State),
        "",
        "| Event | Meaning | From → to |",
        "|---|---|---|",
    ]
    for event in Event:
        steps = [f"{s or '–'} → {target}" for (s, e), target in STEPS.items() if e is event]
        lines.append(f"| {event} | {MEANINGS[event]} | {', '.join(steps)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
