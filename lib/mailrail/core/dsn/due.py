"""Whether a delivery status notification is due at all: NOTIFY, the null sender, and senders that may be answered.

RFC 3461 4.1 and 5.2; standards DSN-05, DSN-07, DSN-08, DSN-09, DSN-10, DSN-24, DSN-26. One pure function, `due`, holds
the matrix.
"""

from collections.abc import Iterable
from enum import IntEnum, IntFlag, StrEnum


class DsnKind(StrEnum):
    """What a notification says; the values are the Action words of RFC 3464 2.3.3."""

    FAILED = "failed"
    DELAYED = "delayed"
    RELAYED = "relayed"
    DELIVERED = "delivered"
    EXPANDED = "expanded"


class SenderAuthentication(IntEnum):
    """Whether MAIL FROM was proven to belong to the sender of the message; the numbers are those of the proto."""

    UNKNOWN = 0
    YES = 1  # submitted with authentication, made by us, or proven by SPF or DMARC
    FORGED = 2  # proven not to be the sender's


class Asked(IntFlag):
    """What NOTIFY of RCPT asked for, as one small number to store (RFC 3461 4.1).

    UNSET: the client said nothing, which is not the same as NEVER.
    """

    UNSET = 0
    NEVER = 1
    SUCCESS = 2
    FAILURE = 4
    DELAY = 8

    @classmethod
    def of(cls, keywords: Iterable[str]) -> "Asked":
        """From the keywords, in any case. Raises ValueError for an unknown one, or for NEVER with another (DSN-01)."""
        found = cls.UNSET
        for keyword in keywords:
            try:
                found |= cls[keyword.upper()]
            except KeyError:
                raise ValueError(f"{keyword!r} is not a NOTIFY keyword") from None
        if found & cls.NEVER and found != cls.NEVER:
            raise ValueError("NEVER stands alone in NOTIFY")
        return found

    @property
    def keywords(self) -> tuple[str, ...]:
        """The keywords in upper case, in the order of RFC 3461; empty when unset."""
        return tuple(n.name for n in Asked if n in self and n.name is not None)


_YES, _FORGED = int(SenderAuthentication.YES), int(SenderAuthentication.FORGED)
_ASKED: dict[DsnKind, Asked] = {
    DsnKind.FAILED: Asked.FAILURE,
    DsnKind.DELAYED: Asked.DELAY,
    DsnKind.RELAYED: Asked.SUCCESS,
    DsnKind.DELIVERED: Asked.SUCCESS,
    DsnKind.EXPANDED: Asked.SUCCESS,
}
_UNASKED = frozenset({DsnKind.FAILED, DsnKind.DELAYED})
"""What RFC 3461 6.2 lets a recipient without NOTIFY expect."""


def due(kind: DsnKind, notify: Asked, *, null_sender: bool, sender_authentication: int) -> bool:
    """Whether the sender is told, by NOTIFY and kind (DSN-07, DSN-08, DSN-09).

    A null sender is never answered, whatever is asked (DSN-10, DSN-24). `sender_authentication` is a number of
    SenderAuthentication. An unknown sender is told only of failures of our own after the 250 (DSN-26a), and a forged
    one is told nothing (DSN-26b), so that forged mail makes no backscatter.
    """
    if null_sender or sender_authentication == _FORGED:
        return False
    if sender_authentication != _YES and kind is not DsnKind.FAILED:
        return False
    if notify is Asked.UNSET:
        return kind in _UNASKED
    return bool(_ASKED[kind] & notify)
