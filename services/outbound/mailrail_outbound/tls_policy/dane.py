"""What the DNS says of the TLS of a host: whether its name and addresses are proven, and which TLSA records count.

The order of the look-ups is that of RFC 7672 2.2: MX, then addresses, then TLSA. A TLSA record is asked for only where
the way to it is proven: name servers that never answer such questions are mostly those of unsigned zones (DANE-04).
Which host is dialled first is the business of the MX records alone (DANE-06).

All answers are kept by the resolver, and what follows from them is kept with them: while they last, nothing is asked
or computed. `core/dane/names.py` decides which names are asked for.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from mailrail.core.dane.demand import DaneDemand
from mailrail.core.dane.names import (
    Expansion,
    NextHopDomain,
    TlsaAnswer,
    base_candidates,
    found,
    next_candidate,
    reference_names,
    tlsa_name,
)
from mailrail.core.dane.tlsa import STRENGTH, Matching, TlsaRecord, judge
from mailrail.core.smtp.address import is_ip_address
from mailrail.core.tlspolicy.facts import NO_DNSSEC, DnsFacts, Tlsa
from mailrail.kit.resolver import LARGEST, DnsRecords, DnsResolver, LookupFailed, NoSuchDomain
from mailrail_outbound.hosts import Steps

_MOST_KEPT: Final = 4096
"""Hosts of which the conclusion is kept, with the answers that it rests on, 8 KiB of them at most."""


@dataclass(frozen=True, slots=True)
class HostDane:
    """What is known of one host, for the decision and for the handshake."""

    facts: DnsFacts
    demand: DaneDemand | None = None
    """What its certificates must match: set exactly where there are usable records."""
    base: str = ""
    """The TLSA base domain, which SNI says (DANE-17), also where no record is usable; empty: the host's own name."""
    failure: str = ""
    """Why it is not known, in words; then `facts.dane` is `Tlsa.FAILED`, and the host must not be dialled (DANE-03)."""


_UNTRUSTED: Final = HostDane(NO_DNSSEC)
_NOTHING: Final = HostDane(DnsFacts(trusted=True))

_Answer = DnsRecords[Any] | NoSuchDomain
"""What came of a question, if anything did."""


class DaneLookup:
    """Finds out what is known of a host; from memory while that lasts."""

    def __init__(self, resolver: DnsResolver, strength: Sequence[Matching] = STRENGTH) -> None:
        """`strength`: digests of TLSA records, the strongest first (DANE-18)."""
        self._resolver = resolver
        self._strength = strength
        self._kept: OrderedDict[tuple[str, str, int], tuple[list[_Answer], HostDane]] = OrderedDict()

    def of_host(self, domain: str, host: str, families: Sequence[str], port: int) -> Steps[HostDane]:
        """What is known of a host that the MX records of `domain` name, or that is the domain itself because it has
        none. `families`: as its addresses were looked up; `port`: the one that is dialled (DANE-07). Never raises."""
        if not self._resolver.trusted:
            return _UNTRUSTED
        if domain.startswith("["):
            return _NOTHING  # DANE-21
        return (yield from self._of((domain, host, port), families))

    def of_configured(self, host: str, families: Sequence[str], port: int) -> Steps[HostDane]:
        """What is known of a host that the configuration names (RTLS-25c): no MX record needs a proof. Never raises."""
        if not self._resolver.trusted:
            return _UNTRUSTED
        if is_ip_address(host):
            return _NOTHING  # DANE-21
        return (yield from self._of(("", host, port), families))

    def _of(self, question: tuple[str, str, int], families: Sequence[str]) -> Steps[HostDane]:
        answers: list[_Answer] = []
        try:
            known = yield from self._looked_up(question, families, answers)
        except (LookupFailed, NoSuchDomain) as error:
            # DANE-03: it may have records, and so counts as if it had. This holds for the answers before, too: an
            # attacker who can break one must gain nothing by it. But only an answer that names the host proves that it
            # is the domain's (RTLS-11b).
            named = bool(answers) or not question[0]
            failed = DnsFacts(trusted=True, mx_secure=named, address_secure=True, tlsa=Tlsa.FAILED)
            return HostDane(failed, failure=str(error))
        if sum(answer.octets for answer in answers if isinstance(answer, DnsRecords)) <= LARGEST:
            self._kept[question] = (answers, known)
            self._kept.move_to_end(question)
            if len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)
        return known

    def _looked_up(
        self, question: tuple[str, str, int], families: Sequence[str], answers: list[_Answer]
    ) -> Steps[HostDane]:
        """`answers` gets each answer that the conclusion rests on; a proven one about MX only if it names the host.
        Raises LookupFailed, and NoSuchDomain where the domain, or a host without one, is gone."""
        domain, host, port = question
        next_hop: NextHopDomain | None = None
        if domain:
            mx = self._resolver.kept_mx_answer(domain)
            if mx is None:
                mx = yield self._resolver.mx_answer(domain)
            next_hop = NextHopDomain(Expansion(domain, mx.name, mx.secure), implicit=not mx.records)
            if not mx.secure:
                # DANE-05b: whoever forged the MX record has TLSA records of his own; none of them proves anything.
                answers.append(mx)
                return _NOTHING
            if not any(record.host == host for record in mx.records) and not (host == domain and not mx.records):
                # The host came of an answer before, whatever that was worth; it is not what is proven now.
                raise LookupFailed(f"{host} is no MX host of {domain} any more")
            answers.append(mx)
        addresses = self._resolver.kept_address_answer(host, families)
        if addresses is None:
            addresses = yield self._resolver.address_answer(host, families)
        answers.append(addresses)
        alias_secure = False
        if not addresses.secure and addresses.name != host:
            # DANE-24: the AD bit is that of all aliases together; that of the first takes a question of its own.
            alias = yield from self._answer(host, "CNAME")
            answers.append(alias)
            alias_secure = isinstance(alias, DnsRecords) and bool(alias) and alias.secure
        expansion = Expansion(host, addresses.name, addresses.secure, alias_secure)
        asked: list[TlsaAnswer] = []
        while (base := next_candidate(expansion, asked)) is not None:
            answer = yield from self._answer(tlsa_name(base, port), "TLSA")
            answers.append(answer)
            asked.append(tlsa_answer(base, answer))
        return self._kept_conclusion(question, answers) or _conclusion(expansion, next_hop, asked, self._strength)

    def _answer(self, name: str, kind: str) -> Steps[_Answer]:
        try:
            kept = self._resolver.kept_answer(name, kind)
            if kept is None:
                kept = yield self._resolver.answer(name, kind)
        except NoSuchDomain as error:
            return error
        return kept

    def _kept_conclusion(self, question: tuple[str, str, int], answers: list[_Answer]) -> HostDane | None:
        kept = self._kept.get(question)
        if kept is None or len(kept[0]) != len(answers):
            return None
        # The resolver hands out the same object for as long as it keeps an answer.
        return kept[1] if all(map(_same, kept[0], answers)) else None


def _same(one: object, other: object) -> bool:
    return one is other


def tlsa_answer(base: str, answer: _Answer) -> TlsaAnswer:
    """What came of asking for the TLSA records of a base domain. Raises LookupFailed."""
    if isinstance(answer, NoSuchDomain):
        return TlsaAnswer(base, answer.secure, ())
    try:
        records = tuple(TlsaRecord.from_wire(each.to_generic().data) for each in answer.records)
    except ValueError as error:
        raise LookupFailed(f"TLSA of {base}: {error}") from None  # no answer (DANE-02), not one of no records
    return TlsaAnswer(base, answer.secure, records)


def _conclusion(
    host: Expansion, domain: NextHopDomain | None, asked: Sequence[TlsaAnswer], strength: Sequence[Matching]
) -> HostDane:
    proven = DnsFacts(trusted=True, mx_secure=True, address_secure=bool(base_candidates(host)))
    records = found(asked)
    if records is None:
        return HostDane(proven)  # DANE-16
    judged = judge(records.records, strength)
    if not judged.usable:
        return HostDane(DnsFacts(True, True, True, Tlsa.UNUSABLE, ignored=judged.ignored), base=records.base)
    # DANE-08: an alias of the TLSA name leaves the base domain what it was. DANE-12b: the domain's own names, too.
    demand = DaneDemand.of(records.base, judged.usable, reference_names(records.base, host, domain))
    facts = DnsFacts(True, True, True, Tlsa.USABLE, demand.matching, judged.ignored)
    return HostDane(facts, demand, records.base)
