"""Text of strangers made fit for what we write and store: one line, bounded, without what XML and I-JSON forbid."""

import re
from typing import Final

TEXT_LIMIT: Final = 512
"""Characters of one text in a report."""
# Controls, line separators, surrogates, and what is no character at all (XML 1.0 2.2, RFC 7493 2.1).
_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]|[\U0001fffe\U0001ffff]")


def clean(text: str, limit: int = TEXT_LIMIT) -> str:
    """At most `limit` characters of it, without blanks at its ends."""
    if len(text) <= limit and text.isprintable():
        return text.strip()
    return _UNFIT.sub(" ", text[: 4 * limit]).strip()[:limit]
