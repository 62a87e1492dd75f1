"""Times and spans as people type them: `-2h`, `1h30m`, `2026-11-22`, `2026-11-22T18:00:00Z`. Pure."""

import re
from datetime import UTC, datetime, timedelta
from typing import Final

_SPAN: Final = re.compile(r"(?:([0-9]{1,6})d)?(?:([0-9]{1,6})h)?(?:([0-9]{1,6})m)?(?:([0-9]{1,9})s)?", re.IGNORECASE)
_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_LONGEST: Final = 60
"""Characters of the longest text that is looked at."""


class UnreadableTime(ValueError):
    """The text is no time or span; the message says how to write one."""


def span(text: str) -> timedelta:
    """`90s`, `5m`, `1h30m`, `2d`, with a sign or without. Raises UnreadableTime."""
    bare = text.lstrip("+-")
    match = _SPAN.fullmatch(bare)
    if not bare or match is None or len(text) - len(bare) > 1:
        raise UnreadableTime(f"{text[:_LONGEST]!r} is not a duration; write 90s, 5m, 1h30m or 2d")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    length = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    return -length if text.startswith("-") else length


def is_date(text: str) -> bool:
    """Whether it is written as a day, `2026-11-22`."""
    return _DATE.fullmatch(text) is not None


def moment(text: str, now: datetime) -> datetime:
    """`now`, a span from now (`-2h` is two hours ago, `1d` in a day), or an RFC 3339 time or day. Without a zone it is
    UTC. Raises UnreadableTime."""
    wrong = f"{text[:_LONGEST]!r} is not a time; write -2h (ago), 1d (from now), 2026-11-22 or 2026-11-22T18:00:00Z"
    if text == "now":
        return now
    try:
        if len(text) > _LONGEST:
            raise UnreadableTime(wrong)
        if _SPAN.fullmatch(text.lstrip("+-")):
            return now + span(text)
        found = datetime.fromisoformat(text)
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):
        raise UnreadableTime(wrong) from None
