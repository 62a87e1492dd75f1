"""What an account may still send (ACC-08)."""

from collections.abc import Iterable

from mailrail.core.revision.revision import AccountLimits


def over_limit(limits: AccountLimits, messages: int, recipients: int, wanted: Iterable[int]) -> list[bool]:
    """Which messages exceed what an account may send in 24 hours. `wanted`: the recipients of each, in order.

    `messages` and `recipients` are those of the last 24 hours. A message that is refused counts for nothing, so a
    smaller one after it may be taken.
    """
    refused: list[bool] = []
    for count in wanted:
        too_many = limits.messages_per_day is not None and messages + 1 > limits.messages_per_day
        too_wide = limits.recipients_per_day is not None and recipients + count > limits.recipients_per_day
        refused.append(too_many or too_wide)
        if not refused[-1]:
            messages, recipients = messages + 1, recipients + count
    return refused
