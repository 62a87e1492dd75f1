"""The policies of our own domains, as they are served, and the ids that say that they changed."""

import hashlib
from typing import Final

from mailrail.core.mtasts.policy import Mode, Policy, mx_pattern
from mailrail.core.mtasts.record import StsRecord
from mailrail.core.revision.revision import Domain, Revision

_ID_LENGTH: Final = 20  # characters; 32 at most


def own_policies(revision: Revision) -> dict[str, Policy]:
    """The policy of each domain that has one, by the domain's name."""
    hostnames = {gateway.ref: gateway.hostname for gateway in revision.gateways}
    return {
        domain.name: policy
        for domain in revision.domains
        if (policy := own_policy(domain, hostnames.get(domain.gateway) if domain.gateway else None)) is not None
    }


def own_policy(domain: Domain, hostname: str | None) -> Policy | None:
    """The policy of a domain whose gateway has this host name. None: it has none, or nothing to name in it."""
    said = domain.mta_sts
    if said is None:
        return None
    written = said.mx or ((hostname,) if hostname is not None else ())
    mx = tuple(pattern for each in written if (pattern := mx_pattern(each.encode())) is not None)
    return Policy(said.mode, said.max_age, mx) if mx or said.mode is Mode.NONE else None


def own_record(policy: Policy) -> StsRecord:
    """The record for a policy. Its id follows from the text of the policy, so that every replica knows it, and a policy
    that is put back has the id under which others may still keep it."""
    return StsRecord(hashlib.sha256(str(policy).encode()).hexdigest()[:_ID_LENGTH])
