"""Limits on which the services agree: what one sends or publishes, the next must take."""

from typing import Final

INLINE_LIMIT: Final = (1024 + 32) * 1024
"""Octets: 1 MiB, and the header that is sent with it. A body up to this travels inside its commit, is stored in its
message's row and goes out with the lease (ACC-02, LSE-06)."""
SMALL_LIMIT: Final = 64 * 1024
"""Octets: a message up to this is small. Small ones go ahead of large ones wherever both wait, and are never refused
for the room that large ones take (ACC-07)."""
CHUNK_SIZE: Final = 256 * 1024
"""Octets: of a larger body each frame and each stored row holds so many, the last one what is left (ACC-02, ACC-07)."""
EXPANSION_LIMIT: Final = 10_000
"""Addresses that one address may lead to, aliases on the way counted, each once. The compiler refuses a longer alias,
and ingress follows none. Longer lists are the business of a mailing list manager. There must be a limit, because all of
them are looked at while a client waits for its answer."""
