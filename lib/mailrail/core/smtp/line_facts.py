"""What ingress saw of a body's lines in its one pass, so that nobody has to look again (SOUT-12a).

A wrong word here would let content end its data early (SIN-03). So it is said only of the very octets that were looked
at, by whoever did, and travels in the envelope of that message; what is made or changed later has none.
"""

from dataclasses import dataclass
from typing import Final

from mailrail.core.smtp.stuffing import find_dot_line, has_bare_line_ends


@dataclass(frozen=True, slots=True)
class LineFacts:
    """What is known of the lines of some content; false: not known."""

    whole: bool = False
    """No CR and no LF stands alone, and there is no NUL: fit for DATA."""
    undotted: bool = False
    """No line begins with a dot: there is nothing to stuff."""

    def below(self, prefix: bytes) -> "LineFacts":
        """The same of `prefix` and this body together; the prefix is looked at."""
        if self is UNKNOWN or not prefix:
            return self
        if not prefix.endswith(b"\r\n"):
            return UNKNOWN  # the body would not begin a line
        whole = self.whole and b"\0" not in prefix and not has_bare_line_ends(prefix)
        undotted = self.undotted and not prefix.startswith(b".") and find_dot_line(prefix) < 0
        return LineFacts(whole, undotted)


UNKNOWN: Final = LineFacts()
WHOLE: Final = LineFacts(whole=True)
PLAIN: Final = LineFacts(whole=True, undotted=True)
