"""Which transports do not work, as the queue knows them: the condition `Healthy`, which is no part of Ready.

A refused login or an absent smarthost is no mistake of an object, so Ready stays True; it is told beside it.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from mailrail.core.delivery.outcome import BackoffReason


class HealthReason(StrEnum):
    """Why a transport is Healthy or not."""

    WORKS = "Works"
    LOGIN_REFUSED = "LoginRefused"
    REFUSED = "Refused"
    SETUP_FAILED = "SetupFailed"
    NO_ANSWER = "NoAnswer"


@dataclass(frozen=True, slots=True)
class TransportHealth:
    """What is to be said of one transport."""

    status: str
    reason: HealthReason
    message: str


HEALTHY: Final = TransportHealth("True", HealthReason.WORKS, "")
_REASONS: Final[dict[str, HealthReason]] = {
    BackoffReason.LOGIN_REFUSED: HealthReason.LOGIN_REFUSED,
    BackoffReason.REFUSED: HealthReason.REFUSED,
    BackoffReason.SETUP_FAILED: HealthReason.SETUP_FAILED,
    BackoffReason.NO_ANSWER: HealthReason.NO_ANSWER,
}


def health_of(reason: str, last_error: str) -> TransportHealth:
    """The health of a transport that fails; `last_error` comes from its server and is sanitised here."""
    words = "".join(c if c.isprintable() else "?" for c in last_error)
    found = _REASONS.get(reason, HealthReason.NO_ANSWER)  # a newer queue may know more reasons
    return TransportHealth("False", found, f"its mail is deferred: {words}")
