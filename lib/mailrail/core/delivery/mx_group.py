"""What deliveries under way are counted by, once the MX hosts of their domain are known (SHD-03).

Domains with the same MX hosts share a limit. Whoever publishes an MX record chooses its names, so two things are kept
apart. Sites that never answered are counted among themselves: a stranger's domain that names the hosts of a large
provider throttles nobody whose mail arrives there. They are counted by their first host as well: a thousand sets of
hosts that differ, with one host in front that never answers, hold no more than one domain. Only the first counts, for
it is the one that is dialled: whoever names another's host there sends his mail to that host, which answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b

from mailrail.core.delivery.shares import SiteStanding

_MOST_HOSTS = 32
"""MX hosts that name a group; a longer set is cut, so that a remote cannot make names without bound."""
_MOST_OCTETS = 255
"""Of the name of a group, and of a host (RFC 1035 2.3.4). What is longer is named by its digest."""


@dataclass(frozen=True, slots=True)
class MxGroup:
    """Sites with the same MX hosts."""

    name: str
    proven: tuple[str, ...]
    """What a delivery to a site that answers is counted by."""
    unproven: tuple[str, ...]
    """What a delivery to a site without a success is counted by."""

    def counted_by(self, standing: SiteStanding) -> tuple[str, ...]:
        """What a delivery to a site of this standing is counted by."""
        return self.unproven if standing is SiteStanding.UNPROVEN else self.proven


def mx_group_of(hosts: Sequence[str]) -> MxGroup | None:
    """The group of MX hosts, the best first. None: there are none."""
    return _group(tuple(hosts[:_MOST_HOSTS])) if hosts else None


@lru_cache(maxsize=1024)
def _group(hosts: tuple[str, ...]) -> MxGroup:
    lower = [host.lower() for host in hosts]
    name = _short(",".join(sorted(set(lower))))
    first = _short(lower[0])
    return MxGroup(name, (name,), (f"unproven {name}", f"first {first}"))


def _short(name: str) -> str:
    octets = name.encode("utf-8", "surrogatepass")
    return name if len(octets) <= _MOST_OCTETS else blake2b(octets, digest_size=16).hexdigest()
