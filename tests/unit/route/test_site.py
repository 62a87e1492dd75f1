"""Shards and sites (message-life SHD-01, SHD-03)."""

import zlib

from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.revision.revision import ObjectRef, Transport, TransportKind
from mailrail.core.route.site import MAILBOX, SHARDS, shard, site_of, site_of_missing


def transport(kind: TransportKind, name: str = "t") -> Transport:
    return Transport(ObjectRef("MailTransport", "mail", name), kind)


def test_a_shard_is_the_crc_32_of_the_lower_case_domain_modulo_256_SHD_01() -> None:
    assert shard("example.org") == zlib.crc32(b"example.org") % 256
    assert shard("Example.ORG") == shard("example.org")
    assert shard("[192.0.2.1]") == zlib.crc32(b"[192.0.2.1]") % 256


@given(st.text())
def test_every_text_has_a_shard_SHD_01(domain: str) -> None:
    assert 0 <= shard(domain) < SHARDS


def test_a_site_is_the_transport_for_one_next_hop_and_the_domain_for_direct_SHD_03() -> None:
    for kind in (TransportKind.SMTP, TransportKind.SUBMISSION, TransportKind.SUBMISSIONS, TransportKind.LMTP):
        assert site_of(transport(kind), "a.org").key == "transport:mail/t"
    assert site_of(None, "a.org").key == "domain:a.org"
    assert site_of(transport(TransportKind.SOCKS), "a.org").key == "proxy:mail/t:a.org"
    assert site_of(transport(TransportKind.FAIL), "a.org").key == "local:mail/t"
    assert MAILBOX.key == "mailbox"


def test_a_proxy_does_not_inherit_the_backoff_of_direct_delivery_SHD_05() -> None:
    direct, proxied = site_of(None, "a.org"), site_of(transport(TransportKind.SOCKS), "a.org")
    assert direct.key != proxied.key


def test_recipients_that_wait_for_a_transport_share_a_site_ADM_03() -> None:
    gone = ObjectRef("MailTransport", "mail", "gone")
    assert site_of_missing(gone, "a.org") == site_of_missing(gone, "b.org")
    assert site_of_missing(None, "a.org") != site_of_missing(None, "b.org")
