"""Who gets an aggregate report: the small cases (cases.yml), consent, what takes the place of an address, trouble."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from unit.dmarc.zone import TROUBLE, Zone

from mailrail.core.dmarc.discovery import Discoverer
from mailrail.core.dmarc.record import DmarcRecord, read_records
from mailrail.core.dmarc.report.recipients import ReportRecipients, report_recipients
from mailrail.core.lookups import LookupAnswer, answered

CASES: Sequence[Mapping[str, Any]] = [
    case
    for case in yaml.safe_load((Path(__file__).parent / "cases.yml").read_text("utf-8"))
    if case["when"] == "find the addresses for an aggregate report"
]
HERE = "example.com"
THERE = "reports.example.net"
CONSENT = f"{HERE}._report._dmarc.{THERE}"


def record(rua: str) -> DmarcRecord:
    found = read_records([f"v=DMARC1; p=none; rua={rua}".encode()])
    assert found is not None
    return found


def asked(rua: str, **texts: str | list[str] | LookupAnswer) -> tuple[ReportRecipients, Zone]:
    """`consent`: of the other host; `ours` and `theirs`: the records of the two domains."""
    names = {"consent": CONSENT, "ours": f"_dmarc.{HERE}", "theirs": f"_dmarc.{THERE}", "top": "_dmarc.com"}
    zone = Zone({f"_dmarc.{HERE}": "v=DMARC1; p=none"} | {names[name]: value for name, value in texts.items()})
    return answered(report_recipients(HERE, record(rua), Discoverer()), zone.answer), zone


def addresses(found: ReportRecipients) -> list[str]:
    return [str(one.address) for one in found.addresses]


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_the_addresses_of_a_record_are_found(case: Mapping[str, Any]) -> None:
    """DAGG-11a, DAGG-12, DAGG-13, DAGG-14, DAGG-15, DAGG-16, DMRC-18a."""
    given = case["given"]
    texts: dict[str, list[str]] = {one["name"]: one["strings"] for one in given["dns"] if one["type"] == "TXT"}
    # What a resolver makes of an alias.
    texts |= {one["name"]: texts[one["data"][0]] for one in given["dns"] if one["type"] == "CNAME"}
    zone = Zone({**texts})
    (text,) = texts[f"_dmarc.{given['record_domain']}"]
    found = read_records([text.encode()])
    assert found is not None
    recipients = answered(report_recipients(given["record_domain"], found, Discoverer()), zone.answer)
    assert addresses(recipients) == case["expect"]["send_to"]


def test_without_rua_nobody_gets_a_report_and_nobody_is_asked_DMRC_18a() -> None:
    zone = Zone({})
    assert answered(report_recipients(HERE, DmarcRecord(), Discoverer()), zone.answer) == ReportRecipients((), ())
    assert zone.asked == []


def test_the_domain_itself_needs_no_question_DAGG_14() -> None:
    found, zone = asked(f"mailto:d@{HERE}")
    assert addresses(found) == [f"d@{HERE}"]
    assert zone.asked == []


def test_a_host_of_another_organization_is_asked_once_for_all_its_addresses_DAGG_14() -> None:
    found, zone = asked(f"mailto:a@{THERE},mailto:b@{THERE}", consent="v=DMARC1")
    assert addresses(found) == [f"a@{THERE}", f"b@{THERE}"]
    assert zone.names.count(CONSENT) == 1


@pytest.mark.parametrize("text", ["v=spf1 -all", "v=DMARC2", "p=none; v=DMARC1", "v=dmarc1"])
def test_what_does_not_begin_with_the_version_is_no_consent_DAGG_14(text: str) -> None:
    found, _ = asked(f"mailto:a@{THERE}", consent=text)
    assert addresses(found) == []
    assert not found.trouble
    assert found.left_out[0].uri == f"mailto:a@{THERE}"
    assert f"{THERE} does not confirm" in found.left_out[0].reason


def test_a_consent_beside_texts_of_others_or_in_several_records_counts_DAGG_14() -> None:
    for texts in (["other", "v=DMARC1;"], ["v=DMARC1", "v=DMARC1"]):
        assert addresses(asked(f"mailto:a@{THERE}", consent=texts)[0]) == [f"a@{THERE}"]


def test_the_walk_says_where_an_organization_begins_DAGG_14() -> None:
    """Below an organization of its own, another one has to consent."""
    rua = f"mailto:a@own.{HERE}"
    zone = Zone({f"_dmarc.{HERE}": "v=DMARC1; p=none", f"_dmarc.own.{HERE}": "v=DMARC1; p=none; psd=n"})
    assert addresses(answered(report_recipients(HERE, record(rua), Discoverer()), zone.answer)) == []


@pytest.mark.parametrize(
    ("own", "sent_to"),
    [
        (f"mailto:other@{THERE}", [f"other@{THERE}"]),
        (f"mailto:x@{THERE},mailto:y@{THERE}!1k", [f"x@{THERE}", f"y@{THERE}"]),
        (f"mailto:x@{THERE},mailto:y@third.example", [f"x@{THERE}"]),
        ("mailto:y@third.example", []),
        (f"https://{THERE}/", []),
    ],
)
def test_a_consent_may_name_other_addresses_of_the_same_host_alone_DAGG_16(own: str, sent_to: list[str]) -> None:
    found, _ = asked(f"mailto:a@{THERE}", consent=f"v=DMARC1; rua={own}")
    assert addresses(found) == sent_to
    assert bool(found.left_out) is not bool(sent_to)


def test_what_takes_the_place_of_two_addresses_is_sent_once_DAGG_16() -> None:
    found, _ = asked(f"mailto:a@{THERE},mailto:b@{THERE}", consent=f"v=DMARC1; rua=mailto:x@{THERE}")
    assert addresses(found) == [f"x@{THERE}"]


def test_a_name_that_is_too_long_is_no_consent_and_is_not_asked_DAGG_15() -> None:
    long = ".".join(["x" * 60] * 4)
    zone = Zone({})
    found = answered(report_recipients(long, record(f"mailto:a@{THERE}"), Discoverer()), zone.answer)
    assert addresses(found) == []
    assert "too long" in found.left_out[0].reason
    assert not any("_report" in name for name in zone.names)


@pytest.mark.parametrize("silent", ["consent", "ours", "theirs"])
def test_an_address_that_the_dns_is_silent_about_may_get_its_report_later_DAGG_15(silent: str) -> None:
    found, _ = asked(f"mailto:a@{THERE},mailto:d@{HERE}", **{silent: TROUBLE})
    assert addresses(found) == [f"d@{HERE}"]
    assert found.trouble
    assert "did not answer" in found.left_out[0].reason


def test_a_consent_counts_though_an_organization_is_not_known_DAGG_15() -> None:
    found, _ = asked(f"mailto:a@{THERE}", theirs=TROUBLE, consent="v=DMARC1")
    assert (addresses(found), found.trouble) == ([f"a@{THERE}"], False)


def test_the_order_of_the_record_is_kept_and_what_is_malformed_told() -> None:
    found, _ = asked(f"mailto:z@{HERE},ftp:x,mailto:a@{THERE},mailto:b@{HERE}!1m", consent="v=DMARC1")
    assert addresses(found) == [f"z@{HERE}", f"a@{THERE}", f"b@{HERE}"]
    assert [one.uri for one in found.left_out] == ["'ftp:x'"]
