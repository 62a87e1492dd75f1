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
