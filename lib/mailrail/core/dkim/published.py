"""Whether the record of a key of ours stands in the DNS, as verifiers will read it: what rotation waits for."""

from dataclasses import dataclass
from enum import Enum

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from mailrail.core.dkim.key import (
    MAIL,
    RECORDS_LIMIT,
    KeyRecord,
    KeyRecordError,
    read_key_record,
    write_key_record,
)
from mailrail.core.dkim.signature import Algorithm, KeyName
from mailrail.core.lookups import Asking, DnsOutcome, DnsQuestion, LookupAnswer

PublicKey = RSAPublicKey | Ed25519PublicKey


class Publication(Enum):
    """What stands where a key's record should be."""

    STANDS = "stands"
    ABSENT = "absent"
    WRONG = "wrong"  # something that is not the key, or that verifiers do not use
    UNKNOWN = "unknown"  # the DNS did not say: what was known before still holds


@dataclass(frozen=True, slots=True)
class PublishedKey:
    """The answer, with what to do in words for people."""

    state: Publication
    text: str


def look_up_published(name: KeyName, key: PublicKey | None) -> Asking[PublishedKey]:
    """See `find_published`; asks for the records."""
    (answer,) = yield (DnsQuestion(str(name), "TXT"),)
    return find_published(name, key, answer)


def find_published(name: KeyName, key: PublicKey | None, answer: LookupAnswer) -> PublishedKey:
    """What the TXT records at `name` say of our key. None: it is not known here, so any that verifiers use will do."""
    if answer.outcome is DnsOutcome.TROUBLE:
        return PublishedKey(Publication.UNKNOWN, f"the DNS did not answer for {name}: {answer.text or 'no answer'}")
    expected = "the record of its key" if key is None else write_key_record(key)
    if answer.outcome is not DnsOutcome.FOUND or not answer.texts:
        return PublishedKey(Publication.ABSENT, f"{name} has no TXT record: publish {expected}")
    faults: list[str] = []
    for text in answer.texts[:RECORDS_LIMIT]:
        try:
            record = read_key_record(text)
        except KeyRecordError as error:
            faults.append(str(error))
            continue
        fault = _fault(record, key)
        if fault:
            faults.append(fault)
        elif len(answer.texts) > 1:
            # RFC 6376 3.6.2.2 leaves open which of them a verifier takes.
            return PublishedKey(Publication.WRONG, f"{name} has {len(answer.texts)} TXT records: leave only {expected}")
        elif key is not None:
            return PublishedKey(Publication.STANDS, f"{name} has the key")
        else:
            said = f"{name} has a key that verifiers use: {record.key_type.decode()}, {record.bits} bits"
            return PublishedKey(Publication.STANDS, said)
    return PublishedKey(Publication.WRONG, f"{name} cannot be used, for {faults[0]}: publish {expected}")


def _fault(record: KeyRecord, key: PublicKey | None) -> str:
    if key is not None and record.key != key:
        return "its record has another key"
    if record.testing:
        return "its key has t=y, with which mail counts as unsigned"
    rsa = isinstance(record.key, RSAPublicKey)
    return record.refusal(Algorithm.RSA_SHA256 if rsa else Algorithm.ED25519_SHA256, [MAIL])
