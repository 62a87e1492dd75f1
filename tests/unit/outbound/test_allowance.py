"""The time that one transaction may take in all (RFC 5321 4.5.3.2)."""

from mailrail.core.outbound.allowance import Allowance


def test_one_recipient_has_what_the_rfc_gives_its_commands_SOUT_06() -> None:
    assert Allowance().seconds(1, 0) >= 300 + 300 + 120 + 600


def test_a_hundred_slow_recipients_do_not_hold_a_slot_for_hours() -> None:
    assert Allowance().seconds(100, 0) < 2 * 3600


def test_it_grows_with_recipients_and_content() -> None:
    allowance = Allowance(base=10, recipient=2, rate=100)
    assert allowance.seconds(3, 1000) == 10 + 6 + 10
