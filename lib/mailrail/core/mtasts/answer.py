"""What a policy host answered: a policy, or why it is none (RFC 8461 3.3; standards STS-04, STS-05)."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from mailrail.core.mtasts.policy import BODY_LIMIT, Policy, PolicyError, parse_policy
from mailrail.core.shown import shown_octets

_OK: Final = 200


class FetchTrouble(StrEnum):
    """Why there is no policy, by the result type of RFC 8460 4.3.2.2 that says so."""

    FETCH = "sts-policy-fetch-error"
    """The host could not be asked, or gave no text that is to be read as a policy."""
    INVALID = "sts-policy-invalid"
    """What it gave is no valid policy."""
    WEBPKI = "sts-webpki-invalid"
    """Its certificate does not prove that it is the policy host."""


@dataclass(frozen=True, slots=True)
class FetchFailed:
    """A fetch that gave no policy."""

    trouble: FetchTrouble
    reason: str
    """In words, one line of ASCII."""


def judge_answer(status: int, content_type: str | None, body: bytes) -> Policy | FetchFailed:
    """What an answer is worth. `body` may be cut off anywhere beyond BODY_LIMIT. Never raises.

    STS-04: 200 alone counts. A redirect is one more host that could put a policy into place, and a 304 could keep one
    alive for ever, so both are failures. STS-05: the media type is text/plain, whatever its parameters.
    """
    if status != _OK:
        moved = "; redirects are not followed" if 300 <= status < 400 else ""
        return FetchFailed(FetchTrouble.FETCH, f"it answered with status {status}, not 200{moved}")
    media_type = (content_type or "").partition(";")[0].strip().lower()
    if media_type != "text/plain":
        said = shown_octets(media_type.encode("utf-8", "replace")) if media_type else "missing"
        return FetchFailed(FetchTrouble.FETCH, f"the media type of its answer is {said}, not text/plain")
    if len(body) > BODY_LIMIT:
        return FetchFailed(FetchTrouble.FETCH, f"its answer has more than {BODY_LIMIT} octets")
    try:
        return parse_policy(body)
    except PolicyError as error:
        return FetchFailed(FetchTrouble.INVALID, f"its policy is not valid: {error}")
