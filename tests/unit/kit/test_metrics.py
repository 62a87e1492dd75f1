"""What every process says of its certificates."""

from datetime import UTC, datetime, timedelta

import trustme
from cryptography import x509
from prometheus_client.registry import REGISTRY

from mailrail.kit.metrics import SnapshotGauge, bounded, certificates

EXPIRY = "mailrail_certificate_expiry_timestamp_seconds"
LIFETIME = "mailrail_certificate_lifetime_seconds"


def said(use: str, name: str = EXPIRY) -> float | None:
    return REGISTRY.get_sample_value(name, {"use": use})


def test_the_first_certificate_to_expire_is_what_counts() -> None:
    authority = trustme.CA()
    soon, late = (
        authority.issue_cert("mx.example.org", not_after=datetime.now(UTC) + timedelta(days=days)) for days in (3, 90)
    )
    certificates("test", [b.cert_chain_pems[0].bytes() for b in (late, soon)])
    expiry = said("test")
    assert expiry is not None
    assert timedelta(days=2, hours=23) < datetime.fromtimestamp(expiry, UTC) - datetime.now(UTC) <= timedelta(days=3)
    start = x509.load_pem_x509_certificate(soon.cert_chain_pems[0].bytes()).not_valid_before_utc.timestamp()
    assert said("test", LIFETIME) == expiry - start


def test_one_that_cannot_be_used_counts_as_expired_and_none_at_all_says_nothing() -> None:
    chain = trustme.CA().issue_cert("mx.example.org").cert_chain_pems[0].bytes()
    certificates("test-bad", [chain, None])
    assert said("test-bad") == 0.0
    certificates("test-bad", [chain, b"no certificate"])
    assert said("test-bad") == 0.0
    assert said("test-bad", LIFETIME) == 0.0
    certificates("test-bad", [])
    assert (said("test-bad"), said("test-bad", LIFETIME)) == (None, None)
    certificates("test-bad", [])


def test_a_listing_exports_what_was_set_last_and_nothing_else() -> None:
    listing = SnapshotGauge("mailrail_test_listing", "Only here", ["transport", "reason"])
    try:
        listing.set({("mail/a", "refused"): 1, ("mail/b", "no_answer"): 1})
        listing.set({("mail/b", "login_refused"): 1})
        (family,) = listing.collect()
        assert [(s.labels, s.value) for s in family.samples] == [
            ({"transport": "mail/b", "reason": "login_refused"}, 1)
        ]
    finally:
        REGISTRY.unregister(listing)


def test_beyond_a_bound_rows_are_added_up_under_other() -> None:
    rows: dict[tuple[str, ...], float] = {(f"mail/{n}", "refused"): 1.0 for n in range(5)}
    assert bounded(rows, 5) == rows
    assert bounded(rows, 2) == {("mail/0", "refused"): 1, ("mail/1", "refused"): 1, ("other", "other"): 3}
    assert bounded({}, 2) == {}
