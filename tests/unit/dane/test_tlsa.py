"""TLSA records: which can be used, which of several digests counts, and what is refused as no record at all."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.dane.tlsa import MOST_RECORDS, MOST_SAID, Matching, TlsaRecord, judge, why_unusable

from testkit.chains import issue

SHA256, SHA512 = bytes(32), bytes(64)
SERVER = issue("mx.example.com", "mx.example.com")

records = st.builds(
    TlsaRecord,
    st.sampled_from([0, 1, 2, 3, 4, 255]),
    st.sampled_from([0, 1, 2]),
    st.sampled_from([0, 1, 2, 3]),
    st.one_of(
        st.binary(max_size=70),
        st.sampled_from([SHA256, SHA512, SERVER.der, SERVER.key_info, SERVER.der[:-1]]),
        st.binary(min_size=32, max_size=32),
        st.binary(min_size=64, max_size=64),
    ),
)


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (TlsaRecord(2, 0, 1, SHA256), None),
        (TlsaRecord(3, 1, 2, SHA512), None),
        (TlsaRecord(3, 0, 0, SERVER.der), None),
        (TlsaRecord(2, 1, 0, SERVER.key_info), None),
        (TlsaRecord(0, 0, 1, SHA256), "usage 0 is not used for SMTP"),
        (TlsaRecord(1, 1, 1, SHA256), "usage 1 is not used for SMTP"),
        (TlsaRecord(4, 1, 1, SHA256), "usage 4 is not known"),
        (TlsaRecord(255, 1, 1, SHA256), "usage 255 is not known"),
        (TlsaRecord(3, 2, 1, SHA256), "selector 2 is not known"),
        (TlsaRecord(3, 1, 3, SHA256), "matching type 3 is not known"),
        (TlsaRecord(3, 1, 1, SHA512), "has 32 octets, this one has 64"),
        (TlsaRecord(3, 1, 2, SHA256), "has 64 octets, this one has 32"),
        (TlsaRecord(3, 1, 1, b""), "has 32 octets, this one has 0"),
        (TlsaRecord(3, 0, 0, SERVER.der + b"\0"), "not a certificate in DER"),
        (TlsaRecord(2, 0, 0, SERVER.key_info), "not a certificate in DER"),
        (TlsaRecord(3, 1, 0, SERVER.der), "not a public key in DER"),
    ],
)
def test_a_record_is_usable_or_it_is_said_why_not_DANE_09(record: TlsaRecord, why: str | None) -> None:
    said = why_unusable(record)
    assert (said is None) == (why is None)
    assert why is None or (said is not None and why in said)


def test_of_digests_of_one_usage_and_selector_the_strongest_counts_alone_DANE_18() -> None:
    strong, weak = TlsaRecord(3, 1, 2, SHA512), TlsaRecord(3, 1, 1, SHA256)
    full = TlsaRecord(3, 1, 0, SERVER.key_info)
    of_another_selector, of_another_usage = TlsaRecord(3, 0, 1, SHA256), TlsaRecord(2, 1, 1, SHA256)
    judged = judge([weak, strong, full, of_another_selector, of_another_usage])
    assert set(judged.usable) == {strong, full, of_another_selector, of_another_usage}
    assert judged.ignored == (f"{weak}: only the strongest digest of its kind counts",)


def test_a_malformed_digest_displaces_no_good_one_DANE_18() -> None:
    good = TlsaRecord(3, 1, 1, SHA256)
    assert judge([TlsaRecord(3, 1, 2, SHA512[:-1]), good]).usable == (good,)


def test_which_digest_is_the_strongest_is_configurable_DANE_18() -> None:
    strong, weak = TlsaRecord(3, 1, 2, SHA512), TlsaRecord(3, 1, 1, SHA256)
    assert judge([strong, weak], (Matching.SHA256, Matching.SHA512)).usable == (weak,)
    assert judge([strong, weak], (Matching.SHA256,)).usable == (weak,)


@given(st.lists(records, max_size=30), st.randoms(use_true_random=False))
def test_no_order_of_the_records_changes_what_counts(given: list[TlsaRecord], random: object) -> None:
    judged = judge(given)
    shuffled = given[:]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert judge(shuffled) == judged
    assert set(judged.usable) <= set(given)
    assert all(why_unusable(record) is None for record in judged.usable)
    # DANE-18 thins out and never empties.
    assert bool(judged.usable) == any(why_unusable(record) is None for record in given)
    assert len(judged.ignored) <= MOST_SAID


def test_a_thousand_records_are_bounded() -> None:
    judged = judge([TlsaRecord(3, 1, 1, number.to_bytes(32, "big")) for number in range(1000)])
    assert len(judged.usable) == MOST_RECORDS
    assert judged.ignored == (f"{1000 - MOST_RECORDS} records: only {MOST_RECORDS} are looked at",)


@given(records)
def test_what_was_written_is_read_again(record: TlsaRecord) -> None:
    head = bytes(record[:3])
    assert TlsaRecord.from_wire(head + record.data) == record
    digits = record.data.hex().upper()
    assert (
        TlsaRecord.from_text(f"{record.usage} {record.selector}\t{record.matching} {digits[:9]} {digits[9:]}") == record
    )
    assert len(str(record)) < 40


@pytest.mark.parametrize(
    "text",
    ["", "3 1", "3 1 1 xy", "3 1 1 0", "256 1 1 00", "-1 1 1 00", "3 1 ¹ 00", "a b c d", "3 1 1 " + "0" * 300_000],
)
def test_what_is_no_record_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="TLSA record"):
        TlsaRecord.from_text(text)


@pytest.mark.parametrize("rdata", [b"", b"\3\1", bytes(65_536)])
def test_rdata_that_is_no_record_is_refused(rdata: bytes) -> None:
    with pytest.raises(ValueError, match="TLSA record has 3 to"):
        TlsaRecord.from_wire(rdata)


@given(st.text(max_size=60))
def test_any_text_is_a_record_or_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert TlsaRecord.from_text(text).usage <= 255
