"""What a message that we make because of another one demands of TLS (RFC 8689 5, 6)."""

from collections.abc import Iterable
from typing import Final

from mailrail.core.tlspolicy.facts import Requirement

_STRICTNESS: Final = (Requirement.NO, Requirement.DEFAULT, Requirement.REQUIRED)


def inherited(asked: Requirement, now: Iterable[Requirement]) -> Requirement:
    """What a notification demands: `asked` by the sender, and `now` of the recipients that it is about (RTLS-19c).

    The strictest of them. An administrator who lets mail to a recipient go without TLS has said nothing of the way back
    to the sender; what the sender protected stays protected, and so does what an administrator protected since.
    """
    return max((asked, *now), key=_STRICTNESS.index)
