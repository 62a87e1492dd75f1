"""The address of a mail probe: only who has a sealing key can write one, and it expires (decision 20)."""

import pytest

from mailrail.core.probe import VALID_MINUTES, in_probe_domain, is_probe, probe_address
from mailrail.core.revision.sealing import Keyring
from mailrail.core.smtp.address import Address, parse_address

NOW = 1_800_000_000.0
OURS = Keyring({"k1": bytes(32)})
THEIRS = Keyring({"k1": bytes([7]) * 32})


def test_an_address_of_ours_is_known_for_some_minutes_whichever_clock_is_ahead() -> None:
    address = parse_address(probe_address(OURS, NOW))
    assert in_probe_domain(address.domain)
    for minutes in (-VALID_MINUTES, 0, VALID_MINUTES):
        assert is_probe(OURS, address, NOW + 60 * minutes)
    for minutes in (-VALID_MINUTES - 1, VALID_MINUTES + 1):
        assert not is_probe(OURS, address, NOW + 60 * minutes)


def test_while_keys_are_rotated_an_address_under_any_held_key_is_known() -> None:
    rotated = Keyring({"k1": bytes(32), "k2": bytes([2]) * 32})
    assert is_probe(rotated, parse_address(probe_address(OURS, NOW)), NOW)
    assert is_probe(rotated, parse_address(probe_address(rotated, NOW)), NOW)
    assert not is_probe(OURS, parse_address(probe_address(rotated, NOW)), NOW)


@pytest.mark.parametrize(
    "address",
    [
        parse_address(probe_address(THEIRS, NOW)),
        Address(parse_address(probe_address(OURS, NOW)).local, "probe.invalid"),
        Address(parse_address(probe_address(OURS, NOW)).local, parse_address(probe_address(OURS, NOW - 60)).domain),
        Address("", parse_address(probe_address(OURS, NOW)).domain),
        Address("\udcff", parse_address(probe_address(OURS, NOW)).domain),
        Address("x" * 40, "zz.probe.invalid"),
        Address("x" * 40, f"{'f' * 60}.probe.invalid"),
        Address("x" * 40, "-1.probe.invalid"),
        Address(parse_address(probe_address(OURS, NOW)).local, "example.org"),
    ],
)
def test_an_address_of_strangers_is_none(address: Address) -> None:
    assert not is_probe(OURS, address, NOW)


def test_each_minute_has_a_domain_of_its_own_so_that_all_shards_are_passed_through() -> None:
    assert len({probe_address(OURS, NOW + 60 * n).partition("@")[2] for n in range(100)}) == 100
