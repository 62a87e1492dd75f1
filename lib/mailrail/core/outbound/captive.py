"""Captive mode: what a developer's machine dials and what it captures instead (design 10, reference C).

Nothing leaves the machine: a next hop is dialled only if its resolved address is loopback. Recipients whose local part
ends in `temperror`, `permerror` or a code from 400 to 599 behave so, that retries and DSNs can be seen.
"""

import re
from functools import lru_cache
from ipaddress import ip_address

from mailrail.core.smtp.address import plain_ip
from mailrail.core.smtp.reply import Reply

_CODE = re.compile(r"(?<![0-9])([45][0-9][0-9])\Z")


@lru_cache(maxsize=1024)
def is_loopback(address: str) -> bool:
    """Whether an IP address leads back to this machine: 127.0.0.0/8, ::1, and the former mapped into IPv6."""
    return plain_ip(ip_address(address)).is_loopback


def simulated_reply(local_part: str, simulate: str = "") -> Reply | None:
    """The reply that a recipient's local part asks for, None for ordinary ones.

    `simulate` is what ingress noted, when it did: "temperror", "permerror" or a code.
    """
    word = simulate or local_part
    if word.endswith("temperror"):
        return Reply.of(451, "4.3.0", "temporary failure, as the local part asks for")
    if word.endswith("permerror"):
        return Reply.of(550, "5.1.1", "permanent failure, as the local part asks for")
    found = _CODE.search(word) if word[-1:].isdigit() else None
    if found is None:
        return None
    code = int(found[1])  # 400..599: reference H41 let 600 through
    return Reply.of(code, f"{code // 100}.0.0", "failure with this code, as the local part asks for")
