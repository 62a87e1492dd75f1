"""How ids are laid out: of messages, of recipients, and the fencing tokens of leases.

Each says which *cell* it is of: one Postgres and what works on it. There is one so far, 0; the room is for several.
A token says also which *history* of that database it was given in. A database that goes back (a failover to a standby
that was behind, a restore) gives the same counters again, and its history another number (HIS-01): no token is of two
histories, and what is left of one can be told from the other.

    token         0 | cell 7 bits | history 16 bits | counter 40 bits
    recipient id  0 | cell 7 bits | counter 56 bits
    message id    UUID version 7 (RFC 9562 5.7) whose tenth octet, of the random part, is the cell

The Message-ID of the header is another thing: its sender chose it. Recipients are found by a hash of it, `header_key`.
"""

import hashlib
from typing import NamedTuple

CELL: int = 0
"""The only cell there is."""
CELLS = 1 << 7
HISTORIES = 1 << 16
COUNTERS = 1 << 40
"""Tokens of one history."""
RECIPIENTS = 1 << 56
"""Recipient ids of one cell."""
_CELL_OCTET = 9


class Token(NamedTuple):
    """The parts of a token."""

    cell: int
    history: int
    counter: int


class RecipientId(NamedTuple):
    """The parts of a recipient id."""

    cell: int
    counter: int


def pack_token(history: int, counter: int, cell: int = CELL) -> int:
    """A token, positive in a signed 64-bit column. Raises ValueError for a part that does not fit."""
    if not (0 <= cell < CELLS and 0 <= history < HISTORIES and 0 <= counter < COUNTERS):
        raise ValueError(f"no token has cell {cell}, history {history} and counter {counter}")
    return cell << 56 | history << 40 | counter


def unpack_token(token: int) -> Token:
    """The parts of any number of 63 bits; of what is larger the rest is left away."""
    return Token(token >> 56 & CELLS - 1, token >> 40 & HISTORIES - 1, token & COUNTERS - 1)


def history_of(token: int) -> int:
    """The history that a token was given in."""
    return token >> 40 & 0xFFFF


def unpack_recipient(number: int) -> RecipientId:
    """The parts of any number of 63 bits; of what is larger the rest is left away."""
    return RecipientId(number >> 56 & CELLS - 1, number & RECIPIENTS - 1)


def message_id(now: float, dice: bytes, cell: int = CELL) -> bytes:
    """The id of a message that begins `now` (Unix seconds), unique by `dice`, 10 random octets, and sorted by time."""
    made = bytearray(int(now * 1000).to_bytes(6, "big") + dice)
    made[6] = 0x70 | (made[6] & 0x0F)
    made[8] = 0x80 | (made[8] & 0x3F)
    made[_CELL_OCTET] = cell
    return bytes(made)


def began(message_id: bytes) -> float:
    """Unix seconds, to the millisecond, at which the message of an id began."""
    return int.from_bytes(message_id[:6], "big") / 1000


def header_key(message_id: str) -> int:
    """The number under which a Message-ID of the header is stored and looked for, with or without angle brackets.

    The first eight octets of the SHA-256 of its UTF-8, as a signed number: the same in every process and release, and
    Postgres can work it out as well. Two Message-IDs may share a number, so what is found is compared with the header.
    """
    text = message_id.removeprefix("<").removesuffix(">")
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big", signed=True)
