"""Which signatures of a message are good (RFC 6376 6, standards DKIM-01 to DKIM-07, DKIM-11).

In three steps, since a message streams: `find_signatures` once its header is there; then the body goes through a
`BodyHasher` for what `body_forms` asks; then `verify`, which compares the hash of the body before it asks the DNS for
any key, and asks for all keys at once. Every signature gets a result in the words of RFC 8601 2.7.1.
"""

from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from mailrail.core.dkim.canonical import BodyForm, BodyHash
from mailrail.core.dkim.fields import SignedHeader
from mailrail.core.dkim.key import MAIL, RECORDS_LIMIT, KeyRecord, KeyRecordError, read_key_record
from mailrail.core.dkim.signature import (
    DkimSignature,
    ExpiredError,
    Signature,
    SignatureError,
    SignatureFacts,
    read_dkim_signature,
    read_facts,
)
from mailrail.core.dkim.tags import TagError, read_tags
from mailrail.core.lookups import Asking, DnsOutcome, DnsQuestion, LookupAnswer
from mailrail.core.message.header import Field, Header

SIGNATURES_LIMIT: Final = 20
"""Signatures of a message that are evaluated, from the top (DKIM-01). The rest are counted."""
FIELD_NAME: Final = b"dkim-signature"
_PREFIXES: Final = (8, 12, 16, 24, 32, 64)  # characters of b= (RFC 6008 4: at least eight)


class DkimOutcome(StrEnum):
    """The result of one signature (RFC 8601 2.7.1)."""

    PASS = "pass"  # noqa: S105  # no password
    FAIL = "fail"
    NEUTRAL = "neutral"  # it counts as if it were not there: its domain tries DKIM out
    POLICY = "policy"  # it verifies, or might, and is not trusted
    TEMPERROR = "temperror"
    PERMERROR = "permerror"


@dataclass(frozen=True, slots=True)
class DkimResult:
    """What became of one signature."""

    outcome: DkimOutcome
    reason: str
    """Why, in words for people."""
    domain: str = ""
    """`d=` in lower-case A-labels; empty if it cannot be read. The same of the others."""
    selector: str = ""
    identity: str = ""
    algorithm: str = ""
    prefix: str = ""
    """The beginning of `b=`, as long as needed to tell the message's signatures apart (RFC 6008 4)."""
    bits: int | None = None
    """Of the key, if one was there."""
    testing: bool = False
    """The key has `t=y`."""
    strict: bool = False
    """The key has `t=s`."""


@dataclass(frozen=True, slots=True)
class FoundSignature:
    """A DKIM-Signature field, and what is known of it before the body has come."""

    field: Field
    facts: SignatureFacts
    signature: DkimSignature | None
    """None: it cannot be used, and `verdict` says why."""
    verdict: tuple[DkimOutcome, str] | None = None


def find_signatures(header: Header, now: float) -> tuple[FoundSignature, ...]:
    """The signatures of a message that was received at `now` (Unix time), from the top."""
    return tuple(
        _judged(field, now)
        if number < SIGNATURES_LIMIT
        # DKIM-01: a bound on the work that a stranger can make; what lies past it is told, not forgotten.
        else FoundSignature(field, SignatureFacts(), None, (DkimOutcome.POLICY, "not evaluated: too many signatures"))
        for number, field in enumerate(header.named(FIELD_NAME))
    )


def _judged(field: Field, now: float) -> FoundSignature:
    try:
        found = read_tags(field.value)
    except TagError as error:
        return FoundSignature(field, read_facts(error.before), None, (DkimOutcome.PERMERROR, str(error)))
    facts = read_facts(found)
    try:
        return FoundSignature(field, facts, read_dkim_signature(found, now))
    except ExpiredError as error:
        return FoundSignature(field, facts, None, (DkimOutcome.FAIL, str(error)))
    except SignatureError as error:
        return FoundSignature(field, facts, None, (DkimOutcome.PERMERROR, str(error)))


def body_forms(found: Iterable[FoundSignature]) -> frozenset[BodyForm]:
    """The forms in which the body has to be hashed; none if no signature can be used."""
    return frozenset(each.signature.message.body for each in found if each.signature is not None)


def verify(
    header: Header,
    found: Sequence[FoundSignature],
    hashes: Mapping[BodyForm, BodyHash],
    services: Collection[bytes] = (MAIL,),
) -> Asking[tuple[DkimResult, ...]]:
    """The results of all signatures in their order. `hashes`: of the body, for all `body_forms`.

    `services`: what the mail is for, by which a key may be limited (`s=`; RFC 8460 3 adds `tlsrpt`).
    """
    verdicts = [each.verdict or _of_body(each, hashes) for each in found]
    open_ones = [
        (number, each, each.signature)
        for number, each in enumerate(found)
        if each.signature is not None and verdicts[number] is None
    ]
    # DKIM-11: a key is asked for only if the body is what was signed.
    answers = yield from key_answers(each.message.base for _, _, each in open_ones)
    results: list[DkimResult | None] = [None] * len(found)
    if open_ones:
        signed = SignedHeader(header)
        for number, each, signature in open_ones:
            message = signature.message
            digest = signed.digest(message.signed, message.header, each.field)
            judgement = judge_key(message.base, digest, answers, signature, services)
            results[number] = _result(each, *_trusted(judgement, message.body, hashes), judgement.record)
    for number, (each, verdict) in enumerate(zip(found, verdicts, strict=True)):
        if verdict is not None:
            results[number] = _result(each, *verdict)
    return _with_prefixes([result for result in results if result is not None], found)


def _of_body(each: FoundSignature, hashes: Mapping[BodyForm, BodyHash]) -> tuple[DkimOutcome, str] | None:
    """What the body alone decides."""
    assert each.signature is not None
    return body_verdict(each.signature.message.body, each.signature.message.body_hash, hashes)


def body_verdict(form: BodyForm, signed: bytes, hashes: Mapping[BodyForm, BodyHash]) -> tuple[DkimOutcome, str] | None:
    """Why a signature over a body with the hash `signed` cannot be good; None: the body is what was signed."""
    body = hashes[form]
    if form.length is not None and form.length > body.size:
        return DkimOutcome.PERMERROR, f"it covers {form.length} octets of a body that has {body.size} (l=)"
    if body.digest != signed:
        return DkimOutcome.FAIL, "the body is not what was signed"
    return None


@dataclass(frozen=True, slots=True)
class KeyJudgement:
    """What the key of a signature says of it."""

    outcome: DkimOutcome
    reason: str
    record: KeyRecord | None = None
    """The key that decided, if there is one."""


KeyAnswers = Mapping[str, LookupAnswer]
"""What the DNS said of the names of keys."""


def key_answers(
    signatures: Iterable[Signature],
) -> Generator[tuple[DnsQuestion, ...], tuple[LookupAnswer, ...], KeyAnswers]:
    """Ask for the keys of all signatures at once, for each of them once."""
    names = tuple(dict.fromkeys(str(each.key) for each in signatures))
    if not names:
        return {}
    answers = yield tuple(DnsQuestion(name, "TXT") for name in names)
    return dict(zip(names, answers, strict=True))


def judge_key(
    signature: Signature,
    digest: bytes,
    answers: KeyAnswers,
    dkim: DkimSignature | None = None,
    services: Collection[bytes] = (MAIL,),
) -> KeyJudgement:
    """Whether the key makes the signature good, `digest` being that of what is signed. `dkim`: the whole of it, if it
    has an `i=`."""
    answer = answers[str(signature.key)]
    # DKIM-05: what the DNS could not say is temporary; that there is no key is an answer.
    if answer.outcome is DnsOutcome.TROUBLE:
        return KeyJudgement(DkimOutcome.TEMPERROR, f"the DNS did not say what its key is: {answer.text or 'no answer'}")
    if answer.outcome is not DnsOutcome.FOUND or not answer.texts:
        return KeyJudgement(DkimOutcome.PERMERROR, f"there is no key at {signature.key}")
    refusals: list[KeyJudgement] = []
    failed: KeyJudgement | None = None
    # DKIM-11: RFC 6376 3.6.2.2 leaves open which of several records counts, so each is tried.
    for text in answer.texts[:RECORDS_LIMIT]:
        try:
            record = read_key_record(text)
        except KeyRecordError as error:
            refusals.append(KeyJudgement(DkimOutcome.PERMERROR, str(error)))
            continue
        refusal = record.refusal(signature.algorithm, services)
        if not refusal and dkim is not None and record.strict and dkim.identity_domain != signature.key.domain:
            refusal = f"its key has t=s, and the domain of i= ({dkim.identity_domain}) is not that of d="  # DKIM-04
        if refusal:
            refusals.append(KeyJudgement(DkimOutcome.PERMERROR, refusal, record))
        elif record.verifies(signature.octets, digest):
            return KeyJudgement(DkimOutcome.PASS, "it verifies", record)
        elif failed is None:
            failed = KeyJudgement(DkimOutcome.FAIL, "the header is not what was signed, or another key signed", record)
    return failed or refusals[0]


def _trusted(judgement: KeyJudgement, form: BodyForm, hashes: Mapping[BodyForm, BodyHash]) -> tuple[DkimOutcome, str]:
    """The result, after what we choose not to trust."""
    record, outcome, reason = judgement.record, judgement.outcome, judgement.reason
    if record is not None and record.testing and outcome in (DkimOutcome.PASS, DkimOutcome.FAIL):
        # DKIM-05: such mail is treated as unsigned, whether its signature verifies or not (RFC 6376 3.6.1).
        return DkimOutcome.NEUTRAL, f"its domain tries DKIM out (t=y), so it does not count; besides: {reason}"
    size = hashes[form].size
    if outcome is DkimOutcome.PASS and form.length is not None and form.length < size:
        # DKIM-07: anybody may have added the rest (RFC 6376 8.2).
        return DkimOutcome.POLICY, f"it verifies, and covers {form.length} of the {size} octets of the body (l=)"
    return outcome, reason


def _result(each: FoundSignature, outcome: DkimOutcome, reason: str, record: KeyRecord | None = None) -> DkimResult:
    facts = each.facts
    return DkimResult(
        outcome,
        reason,
        domain=facts.domain,
        selector=facts.selector,
        identity=facts.identity,
        algorithm=facts.algorithm,
        bits=None if record is None else record.bits,
        testing=record is not None and record.testing,
        strict=record is not None and record.strict,
    )


def _with_prefixes(results: list[DkimResult], found: Sequence[FoundSignature]) -> tuple[DkimResult, ...]:
    signatures = [each.facts.octets for each in found]
    length = prefix_length(signatures)
    return tuple(replace(result, prefix=octets[:length]) for result, octets in zip(results, signatures, strict=True))


def prefix_length(signatures: Sequence[str]) -> int:
    """How many characters of each `b=` tell them apart: eight, or more where two begin alike (RFC 6008 4)."""
    different = len(set(signatures))
    return next((size for size in _PREFIXES if len({each[:size] for each in signatures}) == different), _PREFIXES[-1])
