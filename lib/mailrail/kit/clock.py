"""The clock that leases are counted by.

A lease runs out by Postgres's clock, and Postgres is on another machine. A monotonic clock that stands still while this
machine is suspended would believe in a lease that others have had for hours: `CLOCK_BOOTTIME` goes on meanwhile
(Linux), as does `CLOCK_MONOTONIC` of macOS and Python's own on Windows. Time in which a virtual machine is paused from
outside is in none of them. The loop's clock remains right for what is timed within this process: a peer's silence, a
pause before the next try.
"""

import sys
import time

if sys.platform == "linux":
    _CLOCK = time.CLOCK_BOOTTIME

    def now() -> float:
        """Seconds, for differences only; they pass while the machine is suspended."""
        return time.clock_gettime(_CLOCK)

elif sys.platform == "darwin":

    def now() -> float:
        """Seconds, for differences only; they pass while the machine is suspended."""
        return time.clock_gettime(time.CLOCK_MONOTONIC)

else:

    def now() -> float:
        """Seconds, for differences only; they pass while the machine is suspended."""
        return time.monotonic()
