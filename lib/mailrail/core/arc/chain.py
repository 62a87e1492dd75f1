"""Whether the ARC chain of a message holds (RFC 8617 5.2, standards ARC-01a).

As with DKIM: `find_chain` when the header is there, the body through a `BodyHasher` for what `body_forms` asks, then
`verify_chain`. It asks for the keys of the newest set first, since most chains that fail, fail there.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from mailrail.core.arc.sets import ArcSet, FoundChain
from mailrail.core.authres.results import ResultsField
from mailrail.core.dkim.canonical import BodyForm, BodyHash, Canonicalization
from mailrail.core.dkim.fields import SignedHeader
from mailrail.core.dkim.signature import Signature
from mailrail.core.dkim.verify import DkimOutcome, KeyAnswers, body_verdict, judge_key, key_answers
from mailrail.core.lookups import Asking
from mailrail.core.message.header import Header


class ArcOutcome(StrEnum):
    """The result of a chain (RFC 8617 4.4)."""

    NONE = "none"
    PASS = "pass"  # noqa: S105 - a result
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class SealedFindings:
    """What one sealer of a chain that holds had found."""

    instance: int
    sealer: str
    """`d=` of its seal, in lower-case A-labels: whom to trust, or not."""
    findings: ResultsField | None
    """Its Authentication-Results (RFC 8617 4.1.1), with its authserv-id; None: they cannot be read."""


@dataclass(frozen=True, slots=True)
class ArcResult:
    """What became of the chain of a message."""

    outcome: ArcOutcome
    reason: str
    """Why, in words for people."""
    oldest_pass: int | None = None
    """The lowest instance since which nothing was changed; 0: the first. None unless the chain holds (RFC 8617 5.2)."""
    sealed: tuple[SealedFindings, ...] = ()
    """From instance 1 on; empty unless the chain holds, for what a broken chain says counts for nothing."""


def verify_chain(header: Header, chain: FoundChain, hashes: Mapping[BodyForm, BodyHash]) -> Asking[ArcResult]:
    """The result of a chain. `hashes`: of the body, for all `body_forms`."""
    if chain.fault:
        return ArcResult(ArcOutcome.FAIL, chain.fault)
    if not chain.sets:
        return ArcResult(ArcOutcome.NONE, "there is no ARC field")
    newest = chain.sets[-1]
    if reason := _body_fault(newest, hashes):
        return _broken(newest, "ARC-Message-Signature", reason)
    assert newest.message.signature is not None  # else the chain has a fault
    signed = SignedHeader(header)
    answers: KeyAnswers = yield from key_answers([newest.message.signature.base, newest.seal.signature])
    if reason := _message_fault(newest, signed, answers):
        return _broken(newest, "ARC-Message-Signature", reason)
    seals = _seal_digests(signed, chain)
    if reason := _key_fault(newest.seal.signature, seals[-1], answers):
        return _broken(newest, "ARC-Seal", reason)
    older = chain.sets[-2::-1]
    bases = [each.seal.signature for each in older]
    bases += [each.message.signature.base for each in older if each.message.signature is not None]
    more: KeyAnswers = yield from key_answers(each for each in bases if str(each.key) not in answers)
    answers = {**answers, **more}
    for each in older:
        if reason := _key_fault(each.seal.signature, seals[each.instance - 1], answers):
            return _broken(each, "ARC-Seal", reason)
    sealed = tuple(SealedFindings(each.instance, each.seal.signature.key.domain, each.findings) for each in chain.sets)
    return ArcResult(ArcOutcome.PASS, "all seals verify", _oldest_pass(chain, signed, hashes, answers), sealed)


def _broken(each: ArcSet, name: str, reason: str) -> ArcResult:
    return ArcResult(ArcOutcome.FAIL, f"{name} of instance {each.instance}: {reason}")


def _oldest_pass(
    chain: FoundChain, signed: SignedHeader, hashes: Mapping[BodyForm, BodyHash], answers: KeyAnswers
) -> int:
    """Since which instance the message is what it was then: RFC 8617 5.2 step 5. It breaks no chain."""
    for each in chain.sets[-2::-1]:
        if each.message.signature is None or _body_fault(each, hashes) or _message_fault(each, signed, answers):
            return each.instance + 1
    return 0


def _body_fault(each: ArcSet, hashes: Mapping[BodyForm, BodyHash]) -> str:
    signature = each.message.signature
    assert signature is not None
    verdict = body_verdict(signature.body, signature.body_hash, hashes)
    if verdict is not None:
        return verdict[1]
    size = hashes[signature.body].size
    if signature.body.length is not None and signature.body.length < size:
        return f"it covers {signature.body.length} of the {size} octets of the body (l=)"  # as DKIM-07
    return ""


def _message_fault(each: ArcSet, signed: SignedHeader, answers: KeyAnswers) -> str:
    signature, field = each.message.signature, each.message.field
    assert signature is not None
    return _key_fault(signature.base, signed.digest(signature.signed, signature.header, field), answers)


def _key_fault(signature: Signature, digest: bytes, answers: KeyAnswers) -> str:
    """Why the signature is not good; empty: it is. ARC-01a: what the DNS could not say is as bad as a forgery, for a
    chain has no temporary result (RFC 8617 5.2.1)."""
    judgement = judge_key(signature, digest, answers)
    if judgement.outcome is not DkimOutcome.PASS:
        return judgement.reason
    if judgement.record is not None and judgement.record.testing:
        return "its domain tries signing out (t=y), so it does not count"
    return ""


def _seal_digests(signed: SignedHeader, chain: FoundChain) -> list[bytes]:
    """Of each seal: it covers all sets up to its own, in the order results, message signature, seal (RFC 8617 5.1.1),
    always relaxed. One running hash serves all."""
    running = hashlib.sha256()
    digests: list[bytes] = []
    relaxed = Canonicalization.RELAXED
    for each in chain.sets:
        running.update(signed.canonical(each.results, relaxed) + signed.canonical(each.message.field, relaxed))
        seal = each.seal.field
        own = running.copy()
        own.update(signed.signature(seal, relaxed))
        digests.append(own.digest())
        running.update(signed.canonical(seal, relaxed))
    return digests
