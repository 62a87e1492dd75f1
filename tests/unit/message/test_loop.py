"""Whether a message comes back to where it was delivered before (RFC 9228)."""

import pytest

from mailrail.core.message.header import Header
from mailrail.core.message.loop import was_delivered

ALICE = "alice@here.example"
FRESH = b"Received: from away.example by mx.here.example (Mailrail) with ESMTP\r\n\tid 2; now\r\n"
OURS = b"Received: from x by MX.here.example (Mailrail) with ESMTP\r\n\tid 1; before\r\n"
THEIRS = b"Received: from x by mx.away.example with ESMTP; before\r\n"
DELIVERED = b"Return-Path: <bob@away.example>\r\nDelivered-To: alice@here.example\r\n"


@pytest.mark.parametrize(
    ("block", "loops"),
    [
        (FRESH + THEIRS, False),
        (FRESH + DELIVERED + OURS, True),
        (FRESH + THEIRS + DELIVERED + OURS, True),
        (FRESH + DELIVERED + THEIRS, False),  # another system has an address that is spelt the same
        (DELIVERED + FRESH + THEIRS, True),  # ours wrote both
        (FRESH + DELIVERED, False),
        (FRESH + DELIVERED.replace(b"alice@", b"carol@") + OURS, False),
        (FRESH + b"Resent-To: alice@here.example\r\n" + DELIVERED + OURS, False),
        (FRESH + DELIVERED + OURS + b"Resent-To: alice@here.example\r\n", True),
    ],
)
def test_a_message_that_was_delivered_here_before_is_in_a_loop_OPT_06b(block: bytes, loops: bool) -> None:
    header = Header(block + b"Subject: x\r\n\r\nbody\r\n")
    assert was_delivered(header, ALICE, ["mx.here.example"]) is loops
