"""What attempts tell in TLS reports: from a host, its decision and its connection to the rows of core/tlsrpt/result.py.

Told is each attempt with an MX host of strangers, as the decision about it went (TRPT-06b), under the policies that
applied (TRPT-02b), with the fault that came of the DNS, of a policy (TRPT-07c, STS-15b) or of the handshake, and its
reason (TRPT-08b). A report on TLS is not told (TRPT-15b). A host of our own configuration gets no report of ours
(CHOICE).
"""

import re
from functools import lru_cache
from typing import Final

from mailrail.core.dane.tlsa import TlsaRecord
from mailrail.core.outbound.targets import is_public
from mailrail.core.revision.revision import TlsMinimum, TlsProof
from mailrail.core.smtp.answer import Answer, Trouble
from mailrail.core.tlspolicy.decision import TlsDecision
from mailrail.core.tlsrpt.result import HostPolicies, SeenSession
from mailrail.core.tlsrpt.result_type import TLSA_MISMATCH
from mailrail_outbound.hops import NextHop
from mailrail_outbound.ports import Delivery
from mailrail_outbound.smtp import ClientConnection
from mailrail_outbound.tls_policy.dane import HostDane
from mailrail_outbound.tls_policy.sts import DomainSts

_DANE_ALONE: Final = (TlsProof.DANE,)
_NAME: Final = re.compile(r"[A-Za-z0-9._:\[\]-]{1,255}")
"""A domain or an address literal (RFC 5321 4.1.3): the rest of what servers write there has no place in a report."""


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


def seen_in(
    decision: TlsDecision, answer: Answer | None, connection: ClientConnection, hop: NextHop
) -> SeenSession | None:
    """What a connection showed. `answer`: why it gave no session; None: it carried the message, or offered to. None
    comes back where TLS is not why (TRPT-09b)."""
    name = connection.session.capabilities.name
    ends = connection.ip, _sending_ip(connection, hop), name if _NAME.fullmatch(name) else ""
    if answer is not None:
        return _seen_failing(decision, answer, ends)
    facts = connection.tls_facts
    if facts is None:
        return SeenSession(*ends)
    name = decision.verify_name or decision.check_name or ""
    matching = decision.verify_matching or decision.check_matching
    return SeenSession(
        *ends,
        encrypted=True,
        valid=facts.verified_name == name if name else None,
        matched=facts.matched == matching if matching is not None else None,
        records_fault=connection.tls_fault,
    )


def _seen_failing(decision: TlsDecision, answer: Answer, ends: tuple[str, str, str]) -> SeenSession | None:
    fault = answer.fault
    if answer.trouble is not Trouble.TLS or fault is None:
        return None
    if fault.reason == TLSA_MISMATCH:
        # Where a name was verified, too, it was well.
        return SeenSession(*ends, encrypted=True, valid=_verified(decision), matched=False, records_fault=fault)
    if not fault.of_certificate:
        return SeenSession(*ends, fault=fault)
    if decision.verify_name is None and decision.check_name is None:  # a chain below an issuer that TLSA names
        return SeenSession(*ends, encrypted=True, matched=False, records_fault=fault)
    return SeenSession(*ends, encrypted=True, valid=False, name_fault=fault)


def _verified(decision: TlsDecision) -> bool | None:
    return True if decision.verify_name is not None or decision.check_name is not None else None


def _sending_ip(connection: ClientConnection, hop: NextHop) -> str:
    """The address that the host saw, as far as we know it (SOCK-06); those of our own networks are nobody's business.
    Behind a proxy it is what the transport says that the proxy connects from: one address of the family, or none."""
    if not hop.proxied:
        return connection.local_ip if connection.local_ip and is_public(connection.local_ip) else ""
    found = [ip for ip in hop.transport.remote_ips if (":" in ip) == (":" in connection.ip)]
    return found[0] if len(found) == 1 else ""
