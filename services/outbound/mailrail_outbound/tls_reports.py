"""What attempts tell in TLS reports: from a host, its decision and its connection to the rows of core/tlsrpt/result.py.

Told is each attempt with an MX host of strangers, as the decision about it went (TRPT-06b), under the policies that
applied (TRPT-02b), with the fault that came of the DNS, of a policy (TRPT-07c, STS-15b) or of the handshake, and its
reason (TRPT-08b). A report on TLS is not told (TRPT-15b). A host of our own configuration gets no report of ours
(CHOICE).
"""

from functools import lru_cache
from typing import Final

from mailrail.core.dane.tlsa import TlsaRecord
from mailrail.core.outbound.targets import is_public
from mailrail.core.revision.revision import TlsMinimum, TlsProof
from mailrail.core.smtp.answer import Answer, Trouble
from mailrail.core.tlspolicy.decision import TlsDecision
from mailrail.core.tlsrpt.result import HostPolicies, SeenSession
from mailrail.core.tlsrpt.result_type import TLSA_MISMATCH, TlsFault
from mailrail_outbound.ports import Delivery
from mailrail_outbound.smtp import ClientConnection
from mailrail_outbound.tls_policy.dane import HostDane
from mailrail_outbound.tls_policy.sts import DomainSts

_DANE_ALONE: Final = (TlsProof.DANE,)


def applied_to(delivery: Delivery, host: str, sts: DomainSts, dane: HostDane) -> HostPolicies:
    """What applies to mail for a host that an MX record names."""
    floor = delivery.demanded.security
    return HostPolicies(
        delivery.domain,
        host,
        sts.policy,
        sts.verdict.failed if sts.verdict is not None else None,
        dane.facts.dane,
        dane.base,
        written(dane.demand.records) if dane.demand is not None else (),
        floor.minimum is TlsMinimum.AUTHENTICATED and floor.proofs == _DANE_ALONE,
    )


@lru_cache(maxsize=4096)  # a host has the same ones for each of its messages
def written(records: tuple[TlsaRecord, ...]) -> tuple[str, ...]:
    """TLSA records as people and reports have them."""
    return tuple(f"{each.usage} {each.selector} {each.matching} {each.data.hex()}" for each in records)


def seen_in(decision: TlsDecision, connection: ClientConnection, *, proxied: bool) -> SeenSession:
    """What a connection showed that carried the message, or offered to. `proxied`: its local address is not the one
    that the host sees (SOCK-06)."""
    facts = connection.tls_facts
    ip, local_ip = connection.ip, "" if proxied else _public(connection.local_ip)
    if facts is None:
        return SeenSession(ip, local_ip)
    name = decision.verify_name or decision.check_name
    matching = decision.verify_matching or decision.check_matching
    return SeenSession(
        ip,
        local_ip,
        encrypted=True,
        valid=facts.verified_name == name if name is not None else None,
        matched=facts.matched == matching if matching is not None else None,
        records_fault=connection.tls_fault,
    )


def seen_failing(decision: TlsDecision, answer: Answer, ip: str) -> SeenSession | None:
    """What a host showed that gave no session; None: TLS is not why (TRPT-09b)."""
    fault = answer.fault
    if answer.trouble is not Trouble.TLS or fault is None:
        return None
    if fault.reason == TLSA_MISMATCH:
        # Where a name was verified, too, it was well.
        return SeenSession(ip, encrypted=True, valid=_verified(decision), matched=False, records_fault=fault)
    if not fault.of_certificate:
        return SeenSession(ip, fault=fault)
    return _of_certificate(decision, fault, ip)


def _of_certificate(decision: TlsDecision, fault: TlsFault, ip: str) -> SeenSession:
    if decision.verify_name is None and decision.check_name is None:  # a chain below an issuer that TLSA names
        return SeenSession(ip, encrypted=True, matched=False, records_fault=fault)
    return SeenSession(ip, encrypted=True, valid=False, name_fault=fault)


def _verified(decision: TlsDecision) -> bool | None:
    return True if decision.verify_name is not None or decision.check_name is not None else None


def _public(address: str) -> str:
    """An address that tells the host something; those of our own networks are nobody's business."""
    return address if address and is_public(address) else ""
