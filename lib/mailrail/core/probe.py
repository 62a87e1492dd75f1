"""The address of a mail probe: who may use it, and for how long (decision 20).

The operator sends a message through the whole installation each minute. Its sender and its recipient are one address,
`MAC@MINUTE.probe.invalid`: the MAC is keyed with a sealing key, which strangers do not have, and the minute lets it
expire. The domain changes each minute, so that probes pass through the shards of all queue processes. `invalid` is
nobody's domain (RFC 2606 2), so no mail of others can be meant for it.
"""

import hmac

from mailrail.core.revision.sealing import Keyring
from mailrail.core.smtp.address import Address

SUFFIX = ".probe.invalid"
VALID_MINUTES = 5
"""How far the clocks of operator and ingress may be apart, in both directions."""
SIZE_LIMIT = 4096
"""Octets of a probe's content."""
_PURPOSE = b"probe"
_MAC_LENGTH = 40


def probe_address(keys: Keyring, now: float) -> str:
    """The address of a probe that is sent now (Unix seconds)."""
    minute = f"{int(now // 60):x}"
    return f"{keys.derive(_PURPOSE, minute.encode()).hex()[:_MAC_LENGTH]}@{minute}{SUFFIX}"


def in_probe_domain(domain: str) -> bool:
    """Whether a domain (lower case) is one of probes. This alone permits nothing."""
    return domain.endswith(SUFFIX)


def is_probe(keys: Keyring, address: Address, now: float) -> bool:
    """Whether this address was written just now (Unix seconds) with a sealing key of ours."""
    minute = address.domain.removesuffix(SUFFIX)
    if not in_probe_domain(address.domain) or not 0 < len(minute) <= 12:
        return False
    try:
        age = now // 60 - int(minute, 16)
    except ValueError:
        return False
    if abs(age) > VALID_MINUTES:
        return False
    said = address.local.encode("utf-8", "surrogateescape")
    return any(
        hmac.compare_digest(derived.hex()[:_MAC_LENGTH].encode(), said)
        for derived in keys.derive_each(_PURPOSE, minute.encode())
    )
