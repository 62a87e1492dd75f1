"""The DMARC policy record (RFC 9989 4.7, 4.8)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.dmarc.record import (
    RECORD_LIMIT,
    TAGS_LIMIT,
    URIS_LIMIT,
    Alignment,
    DmarcPolicy,
    DmarcRecord,
    Psd,
    read_record,
    read_records,
    strictest,
)


@pytest.mark.parametrize(
    "text",
    [
        b"v=DMARC1",
        b"v=DMARC1;",
        b"v=DMARC1; p=none",
        b"v = DMARC1 ; p=none",
        b"v\t=\tDMARC1\t;p=none",
        b"V=DMARC1;p=none",
        b"v=DMARC1;;;p=none;;",
    ],
)
def test_a_record_begins_with_its_version_DMRC_02(text: bytes) -> None:
    assert read_records([text]) == DmarcRecord()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"v=spf1 -all",
        b"v=dmarc1; p=reject",
        b"v=DMARC2; p=reject",
        b"v=DMARC10; p=reject",
        b"v=DMARC1 p=reject",
        b"v=DMARC1, p=reject",
        b"p=reject; v=DMARC1",
        b" v=DMARC1; p=reject",
        b"v=\xc3\x84; p=reject",
    ],
)
def test_what_does_not_is_of_others_DMRC_02(text: bytes) -> None:
    assert read_records([text]) is None
    assert read_records([text, b"v=DMARC1; p=reject"]) == DmarcRecord(p=DmarcPolicy.REJECT)


def test_of_two_records_none_counts_DMRC_02() -> None:
    assert read_records([b"v=DMARC1; p=none", b"v=DMARC1; p=none"]) is None
    assert read_records([]) is None


def test_all_tags_are_read_in_any_order_and_case_DMRC_03a() -> None:
    text = b"v=DMARC1; fo=1:d:s; t=Y; ASPF=S; adkim=s; rua=mailto:a@b.example , mailto:c@d.example!10m; np=Reject;"
    found = read_record(text + b" ruf=mailto:e@f.example; psd=n; sp=quarantine; p=NONE; ri=3600")
    assert found == DmarcRecord(
        p=DmarcPolicy.NONE,
        sp=DmarcPolicy.QUARANTINE,
        np=DmarcPolicy.REJECT,
        adkim=Alignment.STRICT,
        aspf=Alignment.STRICT,
        psd=Psd.NO,
        testing=True,
        rua=("mailto:a@b.example", "mailto:c@d.example!10m"),
        ruf=("mailto:e@f.example",),
        fo="1:d:s",
        ri=3600,
    )


@pytest.mark.parametrize(
    ("tags", "faults"),
    [
        (b"p=reject; pct=0", 0),
        (b"p=reject; rf=afrf; pct=x; xyz=1", 0),
        (b"p=reject; adkim=x; aspf=strict; psd=maybe; t=1", 4),
        (b"p=reject; ri=never", 0),
        (b"p=reject; fo=2", 1),
        (b"p=reject; fo=0:1", 1),
        (b"p=reject; fo=d:d", 1),
        (b"p=reject; novalue; =x; a1=b; x=", 4),
        (b"p=reject; adkim=\xff", 1),
        (b"p=reject; p=none", 1),
        (b"p = reject ; ; ;", 0),
    ],
)
def test_unknown_tags_are_ignored_and_bad_values_fall_to_defaults_DMRC_03a(tags: bytes, faults: int) -> None:
    found = read_record(b"v=DMARC1; " + tags)
    assert (found.p, found.adkim, found.aspf, found.psd, found.testing, found.fo, found.ri, found.unusable) == (
        DmarcPolicy.REJECT,
        Alignment.RELAXED,
        Alignment.RELAXED,
        Psd.UNKNOWN,
        False,
        "",
        None,
        "",
    )
    assert len(found.faults) == faults


@pytest.mark.parametrize("rua", [b"", b"; rua=mailto:a@b.example"])
def test_a_missing_p_is_none_with_or_without_an_address_DMRC_04(rua: bytes) -> None:
    found = read_record(b"v=DMARC1; sp=reject" + rua)
    assert (found.p, found.sp, found.unusable) == (DmarcPolicy.NONE, DmarcPolicy.REJECT, "")


@pytest.mark.parametrize("tags", [b"p=rejct", b"p=reject; sp=no", b"p=reject; np=-", b"p=a; sp=b; np=c"])
@pytest.mark.parametrize(
    ("rua", "usable"),
    [
        (b"", False),
        (b"; rua=a@b.example", False),
        (b"; rua=mailto:a@b.example", True),
        (b"; rua=a@b.example, https://b.example/", True),
    ],
)
def test_a_bad_policy_acts_as_none_only_with_an_address_for_reports_DMRC_04(
    tags: bytes, rua: bytes, usable: bool
) -> None:
    found = read_record(b"v=DMARC1; " + tags + rua)
    assert (found.p, found.sp, found.np) == (DmarcPolicy.NONE, None, None)
    assert (found.unusable == "") is usable
    assert found.faults


def test_policies_are_of_three_degrees() -> None:
    assert [policy.lowered for policy in DmarcPolicy] == [DmarcPolicy.NONE, DmarcPolicy.NONE, DmarcPolicy.QUARANTINE]
    assert strictest([DmarcPolicy.NONE, DmarcPolicy.REJECT, DmarcPolicy.QUARANTINE]) is DmarcPolicy.REJECT
    assert strictest([]) is DmarcPolicy.NONE


@pytest.mark.parametrize(
    "tags",
    [
        b"; x=y" * (TAGS_LIMIT + 5),
        b"; rua=" + b",".join([b"mailto:a@b.example"] * (URIS_LIMIT + 5)),
        b"; p=" + b"x" * RECORD_LIMIT,
        b";" * RECORD_LIMIT,
        b"; " + b"a" * RECORD_LIMIT,
        b"; v =" + b" " * RECORD_LIMIT,
    ],
)
def test_what_is_read_of_a_record_is_bounded(tags: bytes) -> None:
    found = read_record(b"v=DMARC1" + tags)
    assert len(found.rua) <= URIS_LIMIT
    assert all(len(fault) < 200 for fault in found.faults)


@given(st.lists(st.binary(max_size=200), max_size=3))
def test_any_records_can_be_read(texts: list[bytes]) -> None:
    read_records(texts)


@given(st.binary(max_size=200) | st.text("vpsnadkimrufot=:;,!. \t\x00", max_size=80).map(str.encode))
def test_any_tags_make_a_record_and_printable_faults(tags: bytes) -> None:
    found = read_record(b"v=DMARC1;" + tags)
    assert all(fault.isascii() and fault.isprintable() for fault in (*found.faults, found.unusable))
    assert all(uri.isascii() for uri in (*found.rua, *found.ruf))
