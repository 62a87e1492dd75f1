"""What MTA-STS says of the hosts of a recipient domain: its record, then its policy (RFC 8461 3, 5; STS-09b).

What both say is in memory for most deliveries, which then wait for nothing. Where Postgres cannot be read and a domain
is not in memory, nothing is known of it: the delivery goes back undialled.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Final

from mailrail.core.mtasts.cache import DnsTrouble, PolicyStep, PolicyVerdict, failing_since
from mailrail.core.mtasts.policy import Mode, Policy
from mailrail.core.mtasts.record import StsRecord, policy_domain, read_records, record_name
from mailrail.core.policy_record import NoRecord
from mailrail.core.tlspolicy.facts import NO_STS, StsFacts, StsPolicy
from mailrail.kit.resolver import DnsRecords, DnsResolver, LookupFailed, NoSuchDomain
from mailrail_outbound.hosts import Steps
from mailrail_outbound.tls_policy.cache import PolicyCache, Record

_TXT: Final = "TXT"
_MX: Final = "MX"  # asked anew; where mail goes is kept apart from it
_MOST_FAILING: Final = 10_000
"""Domains of which is known since when their look-ups fail."""
_UNREAD: Final = "Postgres cannot be read"
_NONE: Final = NoRecord("there is no TXT record")
_REFUSALS: Final = frozenset({"REFUSED", "NOTIMP"})
_MODES: Final = {Mode.ENFORCE: StsPolicy.ENFORCE, Mode.TESTING: StsPolicy.TESTING, Mode.NONE: StsPolicy.NONE}


@dataclass(frozen=True, slots=True)
class DomainSts:
    """What is known of a domain, for each of its hosts."""

    domain: str
    """The policy domain; empty: there can be none."""
    verdict: PolicyVerdict | None = None
    """Never FETCH; None: there can be no policy."""
    answered: bool = True
    """The DNS said whether there is a policy, and which is the newest."""

    @property
    def policy(self) -> Policy | None:
        """What the delivery goes by."""
        return self.verdict.policy if self.verdict is not None else None

    @property
    def enforced(self) -> bool:
        """Mail that no host of the policy takes waits, or fails. STS-13a: before it does, the record is asked for anew,
        whatever else kept the mail back, and whichever attempt turns out to have been its last."""
        return self.policy is not None and self.policy.mode is Mode.ENFORCE

    def facts(self, host: str) -> StsFacts:
        """For the TLS decision about a host. `host`: as its MX record names it (STS-08b)."""
        if self.verdict is None:
            return NO_STS
        policy, trouble = self.verdict.policy, self.verdict.trouble
        if policy is None:
            unknown = self.verdict.step is PolicyStep.DEFER
            return StsFacts(StsPolicy.UNKNOWN if unknown else StsPolicy.ABSENT, domain=self.domain, trouble=trouble)
        return StsFacts(_MODES[policy.mode], policy.matches(host), self.domain, trouble)


NO_POLICY: Final = DomainSts("")


def unread(domain: str) -> DomainSts:
    """For mail that no policy may hold back: whether there is one is not known."""
    return DomainSts(domain, PolicyVerdict(PolicyStep.DEFER, _UNREAD, trouble=_UNREAD))


class StsLookup:
    """Asks for records, and the cache for policies."""

    def __init__(self, resolver: DnsResolver, cache: PolicyCache) -> None:
        self._resolver, self._cache = resolver, cache
        self._failing: OrderedDict[str, tuple[float, float]] = OrderedDict()  # since when, and when last

    def of_domain(self, next_hop: str, *, anew: bool = False) -> Steps[DomainSts]:
        """What is known of the domain that mail goes to. `anew`: its record is asked for past every cache (STS-13b).
        Raises cache.PolicyUnread."""
        domain = policy_domain(next_hop)
        if domain is None:
            return NO_POLICY
        record: Record
        if anew:
            self._resolver.forget(record_name(domain), _TXT)
        try:
            answer = self._resolver.kept_answer(record_name(domain), _TXT)
            if answer is None:
                answer = yield self._resolver.answer(record_name(domain), _TXT)
            record = self._read(domain, answer)
        except NoSuchDomain:
            record = self._none(domain)
        except LookupFailed as error:
            refused = error.rcode in _REFUSALS and (yield from self._answers_else(domain))
            record = self._trouble(domain, error, refused=refused)
        verdict = self._cache.kept_verdict(domain, record)
        if verdict is None:
            verdict = yield self._cache.verdict(domain, record)
        return DomainSts(domain, verdict, answered=not isinstance(record, DnsTrouble))

    async def record(self, domain: str) -> Record:
        """The record of a policy domain, for a refresh that no delivery asks for."""
        try:
            return self._read(domain, await self._resolver.answer(record_name(domain), _TXT))
        except NoSuchDomain:
            return self._none(domain)
        except LookupFailed as error:
            return self._trouble(domain, error)

    def _read(self, domain: str, answer: DnsRecords[Any]) -> StsRecord | NoRecord:
        self._failing.pop(domain, None)
        return read_records([record.strings for record in answer.records])

    def _none(self, domain: str) -> NoRecord:
        self._failing.pop(domain, None)
        return _NONE

    def _answers_else(self, domain: str) -> Steps[bool]:
        """Whether another question about the domain is answered now. Where it is not, who refuses may be our own name
        server, which limits us or does not know us: that says nothing of the zone (STS-24a)."""
        self._resolver.forget(domain, _MX)
        try:
            yield self._resolver.answer(domain, _MX)
        except NoSuchDomain:
            return True
        except LookupFailed:
            return False
        return True

    def _trouble(self, domain: str, error: LookupFailed, *, refused: bool = False) -> DnsTrouble:
        now = self._cache.now()
        since = failing_since(*self._failing.pop(domain, (now, now)), now)
        self._failing[domain] = (since, now)
        while len(self._failing) > _MOST_FAILING:
            self._failing.popitem(last=False)
        return DnsTrouble(str(error), since, refused=refused)
