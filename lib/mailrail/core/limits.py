"""Sizes on which the services agree: what one sends, the next must take, store and send on."""

from typing import Final

INLINE_LIMIT: Final = 64 * 1024
"""Octets: a body up to this travels inside its commit, is stored in its message's row and goes out with the lease
(ACC-02, LSE-06)."""
CHUNK_SIZE: Final = 256 * 1024
"""Octets: of a larger body each frame and each stored row holds so many, the last one what is left (ACC-02, ACC-07)."""
