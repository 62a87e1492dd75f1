"""The ARC sets of a message: found, put in order, and judged as far as that goes without a key (RFC 8617 4, 5.2)."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple, TypeVar

from mailrail.core.authres.read import read_arc_results
from mailrail.core.authres.results import ResultsError, ResultsField
from mailrail.core.dkim.canonical import BodyForm
from mailrail.core.dkim.signature import (
    MessageSignature,
    Signature,
    SignatureError,
    check_times,
    read_message_signature,
    read_signature,
    read_time,
    required,
)
from mailrail.core.dkim.tags import TagError, read_tags
from mailrail.core.message.header import Field, Header
from mailrail.core.shown import shown_octets

SETS_LIMIT: Final = 50
"""ARC sets of a message (RFC 8617 4.2.1)."""
RESULTS, MESSAGE, SEAL = b"arc-authentication-results", b"arc-message-signature", b"arc-seal"
_SHORT: Final = {RESULTS: "ARC-Authentication-Results", MESSAGE: "ARC-Message-Signature", SEAL: "ARC-Seal"}

_INSTANCE = re.compile(rb"[1-9][0-9]?")
_RESULTS_INSTANCE = re.compile(rb"[ \t\r\n]*+i[ \t\r\n]*+=[ \t\r\n]*+([0-9]++)[ \t\r\n]*+;")  # RFC 8617 4.1.1

_T = TypeVar("_T")


class ChainError(ValueError):
    """The sets are no chain that can hold. The text says why, for people."""


class ChainValidation(Enum):
    """`cv=` of a seal: what its sealer found of the chain before (RFC 8617 4.4)."""

    NONE = b"none"
    PASS = b"pass"
    FAIL = b"fail"


class SealField(NamedTuple):
    """An ARC-Seal field, read."""

    field: Field
    signature: Signature
    validation: ChainValidation


class MessageField(NamedTuple):
    """An ARC-Message-Signature field. `signature` is None where the field is not valid, for which only the newest one
    is asked."""

    field: Field
    signature: MessageSignature | None
    fault: str


class UnreadSet(NamedTuple):
    """The three fields of one instance."""

    results: Field
    message: Field
    seal: Field


@dataclass(frozen=True, slots=True)
class ArcSet:
    """One set, read."""

    instance: int
    results: Field
    message: MessageField
    seal: SealField

    @property
    def findings(self) -> ResultsField | None:
        """What the sealer had found (RFC 8601 2.2); None: it cannot be read."""
        try:
            return read_arc_results(self.results.value)[1]
        except ResultsError:
            return None


@dataclass(frozen=True, slots=True)
class FoundChain:
    """The sets of a message, from instance 1 on."""

    sets: tuple[ArcSet, ...] = ()
    fault: str = ""
    """Why they are no chain, whatever keys and body say; empty: they may be one."""


def find_chain(header: Header, now: float) -> FoundChain:
    """The chain of a message that was received at `now` (Unix time)."""
    try:
        return FoundChain(_read(header, now))
    except ChainError as error:
        return FoundChain(fault=str(error))


def body_forms(chain: FoundChain) -> frozenset[BodyForm]:
    """The forms in which the body has to be hashed."""
    return frozenset(each.message.signature.body for each in chain.sets if each.message.signature is not None)


def _read(header: Header, now: float) -> tuple[ArcSet, ...]:
    ordered = _ordered(header)
    sets: list[ArcSet] = []
    for instance, fields in enumerate(ordered, 1):
        seal = _of(SEAL, instance, _seal, fields.seal)
        # ARC-01a: the first sealer had no chain before it, and the others had one that held.
        if seal.validation is ChainValidation.FAIL:
            raise ChainError(f"the seal of instance {instance} says that the chain was broken when it came there")
        if (seal.validation is ChainValidation.NONE) is not (instance == 1):
            raise ChainError(f"the seal of instance {instance} has cv={seal.validation.value.decode()}")
        message = _message(fields.message, now)
        if message.signature is None and instance == len(ordered):
            raise ChainError(f"{_SHORT[MESSAGE]} of instance {instance}: {message.fault}")
        sets.append(ArcSet(instance, fields.results, message, seal))
    return tuple(sets)


def _ordered(header: Header) -> list[UnreadSet]:
    """The fields by instance: ARC-01a wants one of each in every set, and no gap."""
    by_name: dict[bytes, dict[int, Field]] = {}
    for name, instance_of in ((RESULTS, _results_instance), (MESSAGE, _instance), (SEAL, _instance)):
        found: dict[int, Field] = {}
        for field in header.named(name, SETS_LIMIT + 1):
            try:
                instance = instance_of(field.value)
            except TagError as error:
                raise ChainError(f"{_SHORT[name]}: {error}") from error
            if instance in found:
                raise ChainError(f"{_SHORT[name]} is there twice with i={instance}")
            found[instance] = field
        by_name[name] = found
    instances = set().union(*by_name.values())
    for instance in range(1, max(instances, default=0) + 1):
        for name, found in by_name.items():
            if instance not in found:
                raise ChainError(f"{_SHORT[name]} with i={instance} is missing")
    return [
        UnreadSet(by_name[RESULTS][instance], by_name[MESSAGE][instance], by_name[SEAL][instance])
        for instance in sorted(instances)
    ]


def _checked(written: bytes) -> int:
    if not _INSTANCE.fullmatch(written) or int(written) > SETS_LIMIT:
        raise TagError(f"its instance {shown_octets(written)} is no number from 1 to {SETS_LIMIT}")
    return int(written)


def _instance(value: bytes) -> int:
    return _checked(required(read_tags(value), b"i"))


def _results_instance(value: bytes) -> int:
    found = _RESULTS_INSTANCE.match(value)
    if found is None:
        raise TagError("it does not begin with an instance")
    return _checked(found[1])


def _of(name: bytes, instance: int, read: Callable[[Field], _T], field: Field) -> _T:
    try:
        return read(field)
    except TagError as error:
        raise ChainError(f"{_SHORT[name]} of instance {instance}: {error}") from error


def _seal(field: Field) -> SealField:
    found = read_tags(field.value)
    if b"h" in found:
        raise TagError("it has h=, and a seal covers sets alone (RFC 8617 4.1.3)")  # ARC-01a
    written = required(found, b"cv")
    try:
        validation = ChainValidation(written)
    except ValueError:
        raise TagError(f"the tag cv= has {shown_octets(written)}, which is neither none, pass nor fail") from None
    read_time(found, b"t")
    return SealField(field, read_signature(found), validation)


def _message(field: Field, now: float) -> MessageField:
    try:
        found = read_tags(field.value)
        signature = read_message_signature(found)
        check_times(found, now)
        if SEAL in signature.signed:
            # The seal of its own set is made after it (RFC 8617 4.1.2).
            raise TagError("it covers ARC-Seal")
    except (TagError, SignatureError) as error:
        return MessageField(field, None, str(error))
    return MessageField(field, signature, "")
