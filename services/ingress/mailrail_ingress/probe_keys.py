"""The sealing keys as ingress needs them to know a probe (decision 20)."""

import time
from collections.abc import Callable

from mailrail.core.probe import is_probe
from mailrail.core.revision.sealing import Keyring
from mailrail.core.smtp.address import Address
from mailrail.kit.settings import BadSettings

_READ_EVERY = 10.0
"""Seconds between two looks at the folder of keys, however many such addresses come."""


class ProbeKeys:
    """Knows the addresses of probes. Keys are rotated under a running process, so they are read again now and then."""

    def __init__(
        self,
        read: Callable[[], Keyring],
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`read`: the keys as they are now; raises BadSettings."""
        self._read, self._clock, self._monotonic = read, clock, monotonic
        self._keys: Keyring | None = None
        self._at = 0.0

    def know(self, address: Address) -> bool:
        """Whether the address is that of a probe which our own operator sends now."""
        now = self._monotonic()
        if self._keys is None or now >= self._at + _READ_EVERY:
            self._at = now
            try:
                self._keys = self._read()
            except BadSettings:  # the configuration client logs it; the last ones stay in use
                pass
        return self._keys is not None and is_probe(self._keys, address, self._clock())
