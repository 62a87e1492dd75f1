"""Finding the end of a message in the octets of DATA and BDAT, in any split, without keeping what has passed.

DATA ends with CRLF.CRLF and with nothing else (SIN-02): every sender and every relay must agree on where a message
ends, or one message smuggles another past the checks of the first. So a CR or LF that stands alone is no line end
anywhere, and the scanner reports it; what to do with such content is the session's decision (SIN-03). Dots that the
sender stuffed are removed (RFC 5321 4.5.2, SIN-04). BDAT counts (RFC 3030 2); its text is watched likewise.
"""

from typing import Final

from mailrail.core.smtp.stuffing import find_dot_line, has_bare_line_ends

_END: Final = b"\r\n.\r\n"
_STUFFED: Final = b"\r\n."


class DataScanner:
    """The content of one DATA command. Feed it until `finished`; it yields the content with dots unstuffed."""

    __slots__ = ("_held", "_skip", "bare_line_end", "finished", "rest", "stuffed")

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Be as new, for the content of the next DATA command."""
        # The line end of the DATA command counts as the first line's start, so a message may be a dot alone.
        self._held = b"\r\n"
        self._skip = 2
        self.bare_line_end = False
        """A CR or LF stood alone somewhere in what came so far."""
        self.stuffed = False
        """A line began with a dot, the final one aside."""
        self.finished = False
        self.rest = b""
        """Octets after the final dot: the next commands of the client."""

    def feed(self, data: bytes) -> bytes:
        """Take the next octets; returns the content that is certain by now. Holds back at most 4 octets."""
        buffer = self._held + data
        # The first dot at a line's start is the end of most messages: then there is one pass, and nothing to take out.
        first = find_dot_line(buffer)
        end = first if first < 0 or buffer.startswith(_END, first) else buffer.find(_END, first + 1)
        if end >= 0:
            self.finished = True
            self.rest = buffer[end + 5 :]
            segment = buffer[: end + 2]
            self._held = b""
        else:
            held = 0
            if buffer and buffer[-1] in _END:
                for length in (4, 3, 2, 1):
                    if buffer.endswith(_END[:length]):
                        held = length
                        break
            segment = buffer[: len(buffer) - held] if held else buffer
            self._held = buffer[len(buffer) - held :] if held else b""
        if not self.bare_line_end and has_bare_line_ends(segment):
            self.bare_line_end = True
        if 0 <= first <= len(segment) - 3:
            self.stuffed = True
            content = segment.replace(_STUFFED, b"\r\n")
        else:
            content = segment
        if self._skip and segment:
            # The line end that was put before the content; a dot right after it is stuffing as well.
            self._skip = 0
            return content[2:]
        return content


class LineEndWatch:
    """Finds CR or LF that stand alone in content that comes in pieces (BDAT); optionally repairs them to CRLF."""

    __slots__ = ("_carry", "bare_line_end", "repair")

    def __init__(self, *, repair: bool = False) -> None:
        self._carry = b""
        self.bare_line_end = False
        self.repair = repair

    def feed(self, data: bytes) -> bytes:
        """Take the next octets and return those that may pass on. A CR at the end waits for what follows it."""
        if self._carry:
            data = self._carry + data
            self._carry = b""
        if data.endswith(b"\r"):
            data, self._carry = data[:-1], b"\r"
        if has_bare_line_ends(data):
            self.bare_line_end = True
            if self.repair:
                return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")
        return data

    def finish(self) -> bytes:
        """The content has ended: what was held back."""
        if not self._carry:
            return b""
        self._carry = b""
        self.bare_line_end = True
        return b"\r\n" if self.repair else b"\r"
