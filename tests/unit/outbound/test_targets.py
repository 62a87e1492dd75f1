"""MX and address order, and everything that must not be dialled (SOUT-01..05, reference F2)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.outbound.targets import MAX_HOSTS, HostList, Mx, NoHosts, address_order, is_public, mx_hosts
from mailrail.core.smtp.answer import Trouble

OURS = frozenset({"mail.us.example"})


def hosts(*records: Mx, random: float = 0.5) -> HostList | NoHosts:
    return mx_hosts("example.org", records, own_names=OURS, random=lambda: random)


def test_no_record_means_the_domain_itself() -> None:
    assert hosts() == HostList(("example.org",), implicit=True)


def test_a_null_mx_takes_no_mail() -> None:
    found = hosts(Mx(0, ""))
    assert isinstance(found, NoHosts)
    assert found.trouble is Trouble.NULL_MX


def test_a_root_target_beside_others_is_skipped() -> None:
    assert hosts(Mx(0, ""), Mx(10, "mx.example.org")) == HostList(("mx.example.org",))


def test_order_is_by_preference_and_equals_by_the_dice() -> None:
    rolls = iter([0.9, 0.1, 0.5])
    records = [Mx(20, "c"), Mx(10, "a"), Mx(10, "b")]
    found = mx_hosts("example.org", records, own_names=OURS, random=lambda: next(rolls))
    assert found == HostList(("a", "b", "c"))


def test_a_host_named_twice_counts_once_at_its_best() -> None:
    assert hosts(Mx(30, "a"), Mx(20, "b"), Mx(10, "a")) == HostList(("a", "b"))


@pytest.mark.parametrize("preference", [5, 10])
def test_what_is_no_better_than_we_are_is_dropped(preference: int) -> None:
    found = hosts(Mx(preference, "mail.us.example"), Mx(10, "x"))
    assert isinstance(found, NoHosts)
    assert found.trouble is Trouble.LOOP


def test_a_better_host_than_we_are_stays() -> None:
    assert hosts(Mx(5, "x"), Mx(10, "mail.us.example"), Mx(10, "y")) == HostList(("x",))


def test_our_own_name_without_mx_is_a_loop() -> None:
    found = mx_hosts("mail.us.example", [], own_names=OURS, random=lambda: 0.5)
    assert isinstance(found, NoHosts)
    assert found.trouble is Trouble.LOOP


@pytest.mark.parametrize("host", ["192.0.2.1", "a..b", "x" * 64 + ".example", "2001:db8::1"])
def test_a_target_that_is_no_name_is_not_usable(host: str) -> None:
    found = hosts(Mx(10, host))
    assert isinstance(found, NoHosts)
    assert found.trouble is Trouble.NO_ADDRESS


def test_an_endless_list_of_hosts_is_bounded() -> None:
    found = hosts(*(Mx(10, f"h{i}") for i in range(100)))
    assert isinstance(found, HostList)
    assert len(found.names) == MAX_HOSTS


@pytest.mark.parametrize(
    ("addresses", "dialled", "order"),
    [
        (["4a", "4b"], [], ["4a", "4b"]),
        (["4a", "4b"], ["4b"], ["4b", "4a"]),  # greylisted once: the same again
        (["4a", "4b"], ["4b", "4b"], ["4a", "4b"]),  # that did not help
        (["4a", ":a"], [], ["4a", ":a"]),
        (["4a", ":a"], ["4a"], [":a", "4a"]),  # the other family first
        (["4a", ":a"], ["4a", ":a"], ["4a", ":a"]),
        (["4a", "4b", ":a", ":b"], [":b"], ["4a", "4b", ":b", ":a"]),
        (["4a"], ["gone"], ["4a"]),
        (["4a", "4a"], [], ["4a"]),
    ],
)
def test_address_order_minds_greylisting_F2(addresses: list[str], dialled: list[str], order: list[str]) -> None:
    assert address_order(addresses, dialled) == tuple(order)


@given(st.lists(st.sampled_from(["4a", "4b", ":a", ":b"])), st.lists(st.sampled_from(["4a", ":b", "4c"])))
def test_every_address_is_tried_once(addresses: list[str], dialled: list[str]) -> None:
    assert sorted(address_order(addresses, dialled)) == sorted(set(addresses))


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("192.88.99.1", True),
        ("8.8.8.8", True),
        ("2600::1", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("::ffff:10.0.0.1", False),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::10.0.0.1", False),
        ("64:ff9b::8.8.8.8", True),
        ("2002:a00:1::1", False),
        ("::127.0.0.1", False),
        ("fec0::1", False),
        ("64:ff9b:1::10.0.0.1", False),
        ("::ffff:0:10.0.0.1", False),
        ("4000::1", False),
    ],
)
def test_addresses_of_the_internet_are_told_from_those_of_our_own_networks(address: str, public: bool) -> None:
    assert is_public(address) is public
