"""What a stranger wrote, for a sentence that says what is wrong with it."""

from typing import Final

_MOST: Final = 64  # octets


def shown(text: bytes) -> str:
    """A stranger's octets for a reason: one line of ASCII in quotes, not longer than a glance."""
    return repr(text[:_MOST])[1:] + ("..." if len(text) > _MOST else "")
