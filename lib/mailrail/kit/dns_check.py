"""Looks up what `core/dnscheck` asks for, for the operator and the command line."""

import asyncio
import contextlib
from typing import Any, Final

import dns.exception
import dns.rdatatype
import dns.reversename

from mailrail.core.dnscheck.answers import DnsAnswer, DnsReason, DnsVerdict, Question
from mailrail.core.dnscheck.check import check
from mailrail.core.dnscheck.needs import Needs
from mailrail.core.spf.record import RECORD_LIMIT
from mailrail.kit.dns_questions import zone_form
from mailrail.kit.resolver import DnsResolver, LookupFailed, NoSuchDomain

_ROUNDS: Final = 24
"""SPF may ask ten times for hosts and then for their addresses, each in a round; more is answered as unknown."""
_VALUES: Final = 100
_OCTETS: Final = RECORD_LIMIT + 1
"""Octets of a TXT record; one that SPF finds too long is so still."""
_LIFETIME: Final = 8.0
"""Seconds for one question, retries included."""
_LONGEST: Final = 60.0
"""Seconds that an answer is kept: domains share what they ask for, and the next look sees what was repaired."""


class DnsCheckResolver:
    """The kit's resolver, with answers as `dnscheck` wants them."""

    def __init__(self, server: str, *, trust_ad: bool = False) -> None:
        """`server`: HOST:PORT, empty = those of the system. `trust_ad`: see the kit's resolver, which is `resolver`."""
        self.resolver = DnsResolver(server, timeout=_LIFETIME, longest=_LONGEST, trust_ad=trust_ad)

    async def ask(self, question: Question) -> DnsAnswer:
        """Never raises: an unknown name is an empty answer, everything else a failed one."""
        kinds = ("A", "AAAA") if question.type == "A" else (question.type,)
        values: list[str] = []
        try:
            if question.type == "PTR":
                name = dns.reversename.from_address(question.name).to_text()
            elif (named := zone_form(question.name)) is not None:  # SPF's macros make names of what strangers publish
                name = named
            else:
                return DnsAnswer()
            for kind in kinds:
                with contextlib.suppress(NoSuchDomain):
                    values += map(_in_text, await self.resolver.records(name, kind))
        except (LookupFailed, dns.exception.DNSException):
            return DnsAnswer(failed=True)
        return DnsAnswer(tuple(values[:_VALUES]))


def _in_text(record: Any) -> str:
    if record.rdtype == dns.rdatatype.TXT:
        return b"".join(record.strings)[:_OCTETS].decode("utf-8", "replace")
    if record.rdtype == dns.rdatatype.MX:
        return f"{record.preference} {record.exchange.to_text()}"
    text: str = record.to_text()
    return text


async def looked_up(needs: Needs, resolver: DnsCheckResolver) -> DnsVerdict:
    """The verdict about a domain. Never raises."""
    known: dict[Question, DnsAnswer] = {}
    for _ in range(_ROUNDS):
        result = check(needs, known)
        if isinstance(result, DnsVerdict):
            return result
        asked = sorted(result)
        known |= dict(zip(asked, await asyncio.gather(*map(resolver.ask, asked)), strict=True))
    return DnsVerdict("Unknown", DnsReason.LOOKUP_FAILED, f"{needs.domain} needs too many lookups")
