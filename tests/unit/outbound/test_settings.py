"""Settings of outbound that make no sense together are refused, in words."""

import pytest

from mailrail.kit.settings import BadSettings, load
from mailrail_outbound.settings import OutboundSettings


def test_a_resolver_is_declared_trusted_by_its_address_and_never_as_the_systems_own_DANE_25() -> None:
    with pytest.raises(BadSettings, match=r"RESOLVER_TRUST_AD.*MAILRAIL_OUTBOUND_RESOLVER=HOST:PORT"):
        load(OutboundSettings, "outbound", {"MAILRAIL_OUTBOUND_RESOLVER_TRUST_AD": "true"})
    settings = load(
        OutboundSettings,
        "outbound",
        {"MAILRAIL_OUTBOUND_RESOLVER_TRUST_AD": "true", "MAILRAIL_OUTBOUND_RESOLVER": "127.0.0.1:5335"},
    )
    assert settings.resolver_trust_ad
    assert not load(OutboundSettings, "outbound", {"MAILRAIL_OUTBOUND_RESOLVER": "127.0.0.1:5335"}).resolver_trust_ad


@pytest.mark.parametrize("digests", ["", "sha512", "sha512,sha256,sha512", "sha512,md5"])
def test_an_order_of_digests_names_each_of_them_once(digests: str) -> None:
    name = "MAILRAIL_OUTBOUND_TLSA_DIGESTS"
    assert load(OutboundSettings, "outbound", {name: "sha256,sha512"}).digest_strength == (1, 2)
    with pytest.raises(BadSettings, match=f"{name}.*the strongest first"):
        load(OutboundSettings, "outbound", {name: digests})


@pytest.mark.parametrize("setting", ["PRIVATE_NETWORKS", "FETCH_NETWORKS"])
@pytest.mark.parametrize(
    ("networks", "words"),
    [
        ("10.1.2.3/8", r"'10\.1\.2\.3/8'.*write 10\.0\.0\.0/8, or 10\.1\.2\.3 for the address alone"),
        ("127.0.0.0/8,fd00::1/64", r"'fd00::1/64'.*write fd00::/64, or fd00::1 for the address alone"),
        ("10.0.0.0/33", r"'10\.0\.0\.0/33'.*write networks as 10\.1\.0\.0/16"),
        ("mx.example.org", r"'mx\.example\.org'.*write networks as"),
    ],
)
def test_what_is_no_network_is_refused_with_the_setting_and_what_to_write(
    setting: str, networks: str, words: str
) -> None:
    with pytest.raises(BadSettings, match=f"MAILRAIL_OUTBOUND_{setting}: {words}"):
        load(OutboundSettings, "outbound", {f"MAILRAIL_OUTBOUND_{setting}": networks})


def test_networks_are_read_as_they_are_written() -> None:
    settings = load(
        OutboundSettings,
        "outbound",
        {"MAILRAIL_OUTBOUND_PRIVATE_NETWORKS": "127.0.0.0/8, ::1", "MAILRAIL_OUTBOUND_FETCH_NETWORKS": "10.8.0.0/16"},
    )
    assert [str(one) for one in settings.mail_networks] == ["127.0.0.0/8", "::1/128"]
    assert [str(one) for one in settings.policy_networks] == ["10.8.0.0/16"]
