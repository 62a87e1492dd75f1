"""What an account may still send (ACC-08)."""

import pytest

from mailrail.core.revision.revision import AccountLimits
from mailrail_queue.accept.limits import over_limit


@pytest.mark.parametrize(
    ("limits", "sent", "wanted", "refused"),
    [
        (AccountLimits(), (10**6, 10**6), [1, 100], [False, False]),
        (AccountLimits(messages_per_day=3), (2, 2), [1, 1], [False, True]),
        (AccountLimits(messages_per_day=0), (0, 0), [1], [True]),
        (AccountLimits(recipients_per_day=10), (1, 5), [6, 5, 1], [True, False, True]),
        (AccountLimits(messages_per_day=2, recipients_per_day=10), (0, 0), [11, 5, 5, 1], [True, False, False, True]),
    ],
)
def test_a_message_over_a_limit_is_refused_and_counts_for_nothing_ACC_08(
    limits: AccountLimits, sent: tuple[int, int], wanted: list[int], refused: list[bool]
) -> None:
    assert over_limit(limits, *sent, wanted) == refused
