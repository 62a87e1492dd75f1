"""Whether the resolver that is trusted for DNSSEC still validates.

One that has stopped (its trust anchor is gone, another server has its address) answers as before, only without proof:
no answer is secure then, and mail goes as if no destination had DANE. Nothing fails, so only a look finds it out.
"""

import asyncio
from typing import Final

from mailrail.kit import log
from mailrail.kit.resolver import DnsResolver, LookupFailed, NoSuchDomain
from mailrail_outbound import metrics

_EVERY: Final = 300.0
"""Seconds between two looks."""
_TYPE: Final = "SOA"


async def watch(resolver: DnsResolver, probe: str) -> None:
    """Look until cancelled. `probe`: a name whose SOA record is signed. While it gets no answer, what was seen last
    stands: that the DNS is away is told elsewhere."""
    if not resolver.trusted:
        return
    validates: bool | None = None
    while True:
        before = validates
        try:
            resolver.forget(probe, _TYPE)
            validates = (await resolver.answer(probe, _TYPE)).secure
        except NoSuchDomain as error:
            validates = error.secure
        except LookupFailed:
            pass
        except Exception:  # a mistake of ours must stop no mail
            log.get_logger().exception("cannot look whether the trusted resolver validates")
        if validates is not None:
            metrics.RESOLVER_VALIDATES.set(validates)
        if validates is False and before is not False:
            log.get_logger().warning(
                "the DNS resolver that is declared trusted does not validate, so there is no DANE: look at its trust "
                "anchor, or name a signed zone of your own in MAILRAIL_OUTBOUND_RESOLVER_PROBE",
                probe=probe,
            )
        await asyncio.sleep(_EVERY)
