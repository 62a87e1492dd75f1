"""What one compilation hands to the next: `previous` of CFG-01.

It is stored with each revision and read back before the first compile after a start, so that a broken document finds
the version that was accepted before, and a name stays with whom it belonged to. Beside each source is its compiled
piece, for a release that cannot read the source. It holds no secret: of a Secret only the references that were made
from it are kept.
"""

import zlib
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Final

from pydantic import TypeAdapter

from mailrail.core.revision.revision import REASON_LIMIT, ObjectRef, SecretRef, canonical_json

FORMAT: Final = 1
SIZE_LIMIT: Final = 256 * 1024 * 1024
"""Octets of the unpacked form."""
PIECES_LIMIT: Final = 64 * 1024 * 1024
"""Characters of all stored pieces together."""


@dataclass(frozen=True, slots=True)
class StoredPiece:
    """The compiled piece of an object (`pieces`), for versions that cannot read its source."""

    format: int
    text: str
    """Canonical JSON."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """The last accepted source of one object, as canonical JSON, and the file that it came from."""

    ref: ObjectRef
    source: str
    origin: str = ""
    generation: int | None = None
    """metadata.generation; None in files."""
    piece: StoredPiece | None = None
    """None: it was too large."""


@dataclass(frozen=True, slots=True)
class NameClaim:
    """Who has a name (`ownership`)."""

    key: str
    owner: ObjectRef
    parent: ObjectRef
    """What gave it the right to the name."""
    gone_since: int | None = None
    """Unix seconds when the owner was found gone, while its claim is kept; None: it is there."""


@dataclass(frozen=True, slots=True)
class SecretUse:
    """What an object got from a Secret: enough to go on when the Secret cannot be read for a while."""

    owner: ObjectRef
    purpose: str
    secret: str
    """Name, in the namespace of the owner."""
    origin: str
    """The file of the Secret."""
    ref: SecretRef
    username: str | None = None
    record: str | None = None
    """Of a DKIM key: the text that publishes it."""


@dataclass(frozen=True, slots=True)
class CompilerState:
    """Accepted sources, claims and uses of Secrets. The empty one is that of the first start."""

    format: int = FORMAT
    accepted: tuple[Accepted, ...] = ()
    claims: tuple[NameClaim, ...] = ()
    uses: tuple[SecretUse, ...] = field(default=())


def with_bounded_pieces(
    accepted: tuple[Accepted, ...], needed: Collection[ObjectRef], limit: int = PIECES_LIMIT
) -> tuple[Accepted, ...]:
    """Pieces that are too large together are left out, so that the state can always be stored and read: none of those
    that are `needed`, as their sources cannot be read, before all others, and the largest first."""
    sizes = {a.ref: len(a.piece.text) for a in accepted if a.piece is not None}
    excess = sum(sizes.values()) - limit
    if excess <= 0:
        return accepted
    left_out: set[ObjectRef] = set()
    for ref in sorted(sizes, key=lambda ref: (ref in needed, -sizes[ref], ref)):
        if excess <= 0:
            break
        left_out.add(ref)
        excess -= sizes[ref]
    return tuple(replace(a, piece=None) if a.ref in left_out else a for a in accepted)


class UnreadableState(ValueError):
    """The stored bytes are not a state that this version understands."""


_adapter: TypeAdapter[CompilerState] = TypeAdapter(CompilerState)


def encode_state(state: CompilerState) -> bytes:
    """Packed bytes, equal for equal states."""
    return zlib.compress(canonical_json(state), 1)


def decode_state(packed: bytes) -> CompilerState:
    """Read packed bytes back; no bytes are the empty state. Raises UnreadableState."""
    if not packed:
        return CompilerState()
    try:
        unpacker = zlib.decompressobj()
        plain = unpacker.decompress(packed, SIZE_LIMIT)
        if unpacker.unconsumed_tail:
            raise ValueError("it is too large")
        state = _adapter.validate_json(plain)
    except (zlib.error, ValueError) as error:
        reason = str(error)[:REASON_LIMIT]
        raise UnreadableState(f"the state of the last compilation cannot be read: {reason}") from error
    if state.format > FORMAT:
        raise UnreadableState(f"state format {state.format} is newer than {FORMAT}; upgrade this publisher")
    return state
