"""How far mail went proven, and how far it could have: labels of a metric, of what is known anyway.

proof_of(decision, Proven) → what proved the server
adoption(decision, Proven, ...) → Adoption
"""

from typing import Final, NamedTuple

from mailrail.core.outbound.learned import Offered
from mailrail.core.revision.revision import TlsProof
from mailrail.core.tlspolicy.decision import Proven, PublishedProof, RequireTls, TlsDecision

CLEAR: Final = "clear"
"""In place of a proof: there was no TLS."""
UNPROVEN: Final = "none"
"""In place of a proof: TLS, with nothing that proved the server."""
_WHOLE: Final = frozenset({TlsProof.DANE, TlsProof.MTA_STS})


class Adoption(NamedTuple):
    """Of a message that a host took."""

    proof: str
    """`clear`, `none`, `pkix`, `mta_sts` or `dane`."""
    possible: str
    """What could have proven more, and was not demanded, or passed over: a `PublishedProof`, or `starttls`."""
    requiretls: str
    """`used`, `possible` (the server offers it and is proven as it asks, and the message did not demand it), `no`."""


def proof_of(decision: TlsDecision, proven: Proven) -> TlsProof | None:
    """What proved the server of a connection; None: nothing did. Where several did, the first of TlsProof."""
    if proven.matched:
        return TlsProof.DANE
    if proven.verified_name is None:
        return None
    return TlsProof.MTA_STS if decision.sts else TlsProof.PKIX


def adoption(decision: TlsDecision, proven: Proven, offered: Offered) -> Adoption:
    """What is to be counted of a message that a server took."""
    proof = proof_of(decision, proven)
    possible = PublishedProof.NOTHING if proof in _WHOLE else decision.published
    requiretls = "no"
    if decision.require_tls is RequireTls.MUST:
        requiretls = "used"
    elif offered.requiretls and proof is not None and decision.mx_proven:
        requiretls = "possible"
    if not proven.encrypted:
        unused = offered.starttls and possible is PublishedProof.NOTHING
        return Adoption(CLEAR, "starttls" if unused else _label(possible), requiretls)
    return Adoption(_label(proof) if proof is not None else UNPROVEN, _label(possible), requiretls)


def _label(word: str) -> str:
    return word.replace("-", "_")
