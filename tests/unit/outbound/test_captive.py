"""What is loopback, and what a recipient's name asks for (design 10, reference C and H41)."""

import pytest

from mailrail.core.outbound.captive import is_loopback, simulated_reply


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.200.3.4", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("192.0.2.1", False),
        ("::ffff:192.0.2.1", False),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("::", False),
    ],
)
def test_loopback_is_this_machine_and_nothing_else(address: str, loopback: bool) -> None:
    assert is_loopback(address) is loopback


@pytest.mark.parametrize(
    ("local_part", "code"),
    [
        ("temperror", 451),
        ("me-permerror", 550),
        ("x400", 400),
        ("x599", 599),
        ("x421", 421),
        ("x600", None),
        ("x399", None),
        ("1450", None),
        ("450x", None),
        ("joe", None),
        ("", None),
    ],
)
def test_names_ask_for_codes_from_400_to_599_H41(local_part: str, code: int | None) -> None:
    reply = simulated_reply(local_part)
    assert (reply.code if reply is not None else None) == code


def test_what_ingress_noted_goes_first() -> None:
    reply = simulated_reply("joe", "452")
    assert reply is not None
    assert (reply.code, str(reply.status)) == (452, "4.0.0")
