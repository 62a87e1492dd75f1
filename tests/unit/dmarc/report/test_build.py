"""The aggregate report that we make, in both forms."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from ipaddress import ip_address
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from mailrail.core.dkim.verify import DkimOutcome
from mailrail.core.dmarc.report.build import ERROR_LIMIT, NAMESPACE, AggregateForm, AggregateHead, aggregate_report
from mailrail.core.dmarc.report.facts import (
    SIGNATURES_LIMIT,
    ReasonType,
    ReportedDisposition,
    ReportedMessage,
    ReportedPolicy,
    ReportedReason,
    ReportedSignature,
    ReportedSpf,
    SignatureAlignment,
    decode,
    encode,
    reported_message,
)
from mailrail.core.dmarc.report.read import read_aggregate
from mailrail.core.reports.incoming import ReportKind
from mailrail.core.reports.names import Period, ReportName
from mailrail.core.smtp.address import parse_address
from mailrail.core.spf.result import SpfResult

SCHEMA = Path(__file__).parents[5] / "shared" / "data" / "dmarc" / "dmarc-2.0.xsd"
NONE, REJECT = ReportedDisposition.NONE, ReportedDisposition.REJECT
POLICY = ReportedPolicy("example.com", REJECT, np=REJECT, strict_dkim=True, fo="1:d", testing=True)
HEAD = AggregateHead(
    ReportName(ReportKind.DMARC, "mx.test", "example.com", Period.of_day(date(2026, 1, 1))),
    "Example & Sons",
    parse_address("dmarc@mx.test"),
    POLICY,
    "https://mx.test/",
    ("two records were found", "x" * ERROR_LIMIT),
)


def message(
    address: str = "192.0.2.1",
    *,
    disposition: ReportedDisposition = NONE,
    asked: ReportedDisposition = NONE,
    aligned: bool = False,
    reasons: Sequence[ReportedReason] = (),
    signatures: Sequence[ReportedSignature] = (),
    spf: ReportedSpf | None = None,
) -> ReportedMessage:
    return reported_message(
        ip_address(address),
        disposition=disposition,
        asked=asked,
        dkim_aligned=aligned,
        spf_aligned=False,
        header_from="Example.COM",
        envelope_from="bounce.example.com",
        envelope_to="mx.test",
        reasons=reasons,
        signatures=signatures,
        spf=spf,
    )


ROWS = [
    (
        message(
            disposition=ReportedDisposition.PASS,
            aligned=True,
            signatures=[
                ReportedSignature("other.example", "a", DkimOutcome.PERMERROR, human="<no> key & so"),
                ReportedSignature("example.com", "b", DkimOutcome.PASS, SignatureAlignment.STRICT),
            ],
            spf=ReportedSpf("bounce.example.com", SpfResult.SOFTFAIL, "~all"),
        ),
        3,
    ),
    (message("2001:db8::1", asked=REJECT, reasons=[ReportedReason(ReasonType.POLICY_TEST_MODE)]), 1),
    (message("::ffff:192.0.2.7", spf=ReportedSpf("helo.example", SpfResult.PASS, null_path=True)), 2),
]


def made(
    rows: Sequence[tuple[ReportedMessage, int]], form: AggregateForm = AggregateForm.RFC9990, head: AggregateHead = HEAD
) -> bytes:
    pieces = aggregate_report(head, rows, form)
    assert pieces is not None
    return b"".join(pieces)


def texts(xml: bytes, path: str) -> list[str]:
    """What the elements at a path hold."""
    root = ElementTree.fromstring(xml)
    return [each.text or "" for each in root.iterfind("/".join(f"{{*}}{name}" for name in path.split("/")))]


@pytest.mark.skipif(not SCHEMA.exists(), reason="the schema of RFC 9990 is not here (../shared/data)")
@pytest.mark.parametrize(
    "head", [HEAD, replace(HEAD, policy=ReportedPolicy("example.com", NONE), extra_contact="", errors=(), generator="")]
)
def test_the_newer_form_is_valid_by_the_schema_of_the_RFC_DAGG_05(head: AggregateHead) -> None:
    """DAGG-05, DAGG-20."""
    schema = etree.XMLSchema(etree.parse(str(SCHEMA)))
    schema.assertValid(etree.fromstring(made(ROWS, head=head)))


def test_all_elements_of_the_newer_form_are_in_its_namespace_and_the_root_has_no_prefix() -> None:
    xml = made(ROWS)
    assert f'<feedback xmlns="{NAMESPACE}">'.encode() in xml
    assert {each.tag.partition("}")[0] for each in ElementTree.fromstring(xml).iter()} == {f"{{{NAMESPACE}"}


@pytest.mark.parametrize("form", list(AggregateForm))
def test_what_we_write_is_read_as_it_was_meant_DAGG_03(form: AggregateForm) -> None:
    """DAGG-01a, DAGG-02a, DAGG-03, DAGG-06."""
    report = read_aggregate(made(ROWS, form))
    assert report.form is form
    assert (report.organization, report.email, report.id) == ("Example & Sons", "dmarc@mx.test", HEAD.name.id)
    assert (report.begin, report.end) == (1767225600, 1767311999)
    assert (report.policy.domain, report.policy.p, report.policy.adkim, report.policy.aspf, report.policy.fo) == (
        "example.com",
        "reject",
        "s",
        "r",
        "1:d",
    )
    assert [(record.source_ip, record.count) for record in report.records] == [
        ("192.0.2.1", 3),
        ("2001:db8::1", 1),
        ("192.0.2.7", 2),
    ]
    assert report.messages == 6
    assert report.records[0].header_from == "example.com"
    assert report.records[0].signatures[1].human == "<no> key & so"


def test_without_a_message_there_is_no_report_DAGG_03() -> None:
    assert aggregate_report(HEAD, []) is None


def test_the_older_form_has_what_its_schema_requires_in_its_order() -> None:
    xml = made(ROWS, AggregateForm.RFC7489)
    root = ElementTree.fromstring(xml)
    assert b"xmlns" not in xml
    assert [each.tag for each in root] == ["version", "report_metadata", "policy_published", *["record"] * 3]
    assert [each.tag for each in root[1]] == [
        *("org_name", "email", "extra_contact_info", "report_id", "date_range", "error", "error"),
    ]
    assert [(each.tag, each.text) for each in root[2]] == [
        ("domain", "example.com"),
        ("adkim", "s"),
        ("aspf", "r"),
        ("p", "reject"),
        ("sp", "reject"),
        ("pct", "100"),
        ("fo", "1:d"),
    ]
    assert texts(xml, "record/row/policy_evaluated/disposition") == ["none", "none", "none"]
    assert texts(xml, "record/auth_results/spf/scope") == ["mfrom", "mfrom", "helo"]
    assert texts(xml, "record/auth_results/spf/result") == ["softfail", "none", "pass"]
    assert texts(xml, "record/row/policy_evaluated/reason/type") == ["other"]
    assert texts(xml, "record/row/policy_evaluated/reason/comment") == ["policy_test_mode"]


def test_the_newer_form_says_what_the_older_one_cannot() -> None:
    xml = made(ROWS)
    assert texts(xml, "policy_published/np") == ["reject"]
    assert texts(xml, "policy_published/sp") == []
    assert texts(xml, "policy_published/testing") == ["y"]
    assert texts(xml, "record/row/policy_evaluated/disposition") == ["pass", "none", "none"]
    assert texts(xml, "record/row/policy_evaluated/reason/type") == ["policy_test_mode"]


@pytest.mark.parametrize(("by_list", "method"), [(False, "treewalk"), (True, "psl")])
def test_a_report_says_how_the_organization_was_found_DMRC_20c(by_list: bool, method: str) -> None:
    head = replace(HEAD, policy=replace(POLICY, public_suffix_list=by_list))
    assert texts(made(ROWS, head=head), "policy_published/discovery_method") == [method]


def test_one_spf_result_at_most_has_the_scope_mfrom_and_every_signature_a_selector_DAGG_05() -> None:
    xml = made(ROWS)
    assert texts(xml, "record/auth_results/spf/scope") == ["mfrom", "mfrom"]
    assert texts(xml, "record/auth_results/spf/domain") == ["bounce.example.com", "helo.example"]
    assert texts(xml, "record/auth_results/dkim/selector") == ["b", "a"]


def test_signatures_that_pass_come_first_the_closest_before_others_and_at_most_100_DAGG_05() -> None:
    given = [
        ReportedSignature("fail.example", "s", DkimOutcome.FAIL, SignatureAlignment.STRICT),
        ReportedSignature("other.example", "s", DkimOutcome.PASS),
        ReportedSignature("sub.example.com", "s", DkimOutcome.PASS, SignatureAlignment.RELAXED),
        ReportedSignature("example.com", "s", DkimOutcome.PASS, SignatureAlignment.STRICT),
    ]
    assert [each.domain for each in message(signatures=given).signatures] == [
        "example.com",
        "sub.example.com",
        "other.example",
        "fail.example",
    ]
    assert len(message(signatures=given * 100).signatures) == SIGNATURES_LIMIT


def test_numbers_of_one_message_do_not_make_a_record_of_it_DAGG_03() -> None:
    texts_of = [f"it covers {n} of the {3 * n} octets of the body (l=)" for n in (512, 4711)]
    first, second = (
        message(signatures=[ReportedSignature("example.com", "s", DkimOutcome.POLICY, human=text)]) for text in texts_of
    )
    assert first == second
    assert first.signatures[0].human == "it covers ... of the ... octets of the body (l=)"


@pytest.mark.parametrize(
    ("aligned", "disposition", "asked", "reasons"),
    [
        (False, NONE, REJECT, ["local_policy"]),
        (False, REJECT, NONE, ["local_policy"]),
        (False, REJECT, REJECT, []),
        (False, NONE, NONE, []),
        (True, NONE, REJECT, []),
    ],
)
def test_what_differs_from_what_the_policy_asks_has_a_reason_DAGG_04(
    aligned: bool, disposition: ReportedDisposition, asked: ReportedDisposition, reasons: list[str]
) -> None:
    told = message(aligned=aligned, disposition=disposition, asked=asked)
    assert [each.type.value for each in told.reasons] == reasons


def test_a_forwarder_s_message_fails_in_the_report_though_it_was_let_in_DAGG_04() -> None:
    forwarded = [ReportedReason(ReasonType.TRUSTED_FORWARDER, "list\nof ours")]
    xml = made([(message(asked=REJECT, reasons=forwarded), 1)])
    assert texts(xml, "record/row/policy_evaluated/disposition") == ["none"]
    assert texts(xml, "record/row/policy_evaluated/dkim") == ["fail"]
    assert texts(xml, "record/row/policy_evaluated/spf") == ["fail"]
    assert texts(xml, "record/row/policy_evaluated/reason/type") == ["trusted_forwarder"]
    assert texts(xml, "record/row/policy_evaluated/reason/comment") == ["list of ours"]


def test_faults_of_the_record_are_told_in_one_short_element_DAGG_20() -> None:
    (error,) = texts(made(ROWS), "report_metadata/error")
    assert error.startswith("two records were found; xxx")
    assert len(error) == ERROR_LIMIT


def test_the_null_path_is_an_empty_element() -> None:
    xml = made([(replace(message(), envelope_from=""), 1)])
    assert b"<envelope_from></envelope_from>" in xml


_text = st.text(max_size=20)
_messages = st.builds(
    reported_message,
    st.ip_addresses(),
    disposition=st.sampled_from(ReportedDisposition),
    asked=st.sampled_from(ReportedDisposition),
    dkim_aligned=st.booleans(),
    spf_aligned=st.booleans(),
    header_from=_text,
    envelope_from=_text,
    envelope_to=_text,
    reasons=st.lists(st.builds(ReportedReason, st.sampled_from(ReasonType), _text), max_size=2),
    signatures=st.lists(
        st.builds(
            ReportedSignature,
            _text,
            _text,
            st.sampled_from(DkimOutcome),
            st.sampled_from(SignatureAlignment),
            _text,
        ),
        max_size=3,
    ),
    spf=st.one_of(st.none(), st.builds(ReportedSpf, _text, st.sampled_from(SpfResult), _text, st.booleans())),
)


@given(st.lists(_messages, min_size=1, max_size=3), st.sampled_from(AggregateForm))
def test_whatever_strangers_said_the_report_is_well_formed(told: list[ReportedMessage], form: AggregateForm) -> None:
    report = read_aggregate(made([(each, 1) for each in told], form))
    assert [record.source_ip for record in report.records] == [each.source_ip for each in told]
    assert report.rejected == 0


@given(_messages)
def test_facts_are_read_as_they_were(told: ReportedMessage) -> None:
    assert decode(told.source_ip, encode(told)) == told


@pytest.mark.parametrize("octets", [b"", b"{}", b"[]", b"[1,2,3,4,5,6,7,8,9]", b'["none",1,1,"","","",[1],[],null]'])
def test_what_are_no_facts_is_refused(octets: bytes) -> None:
    with pytest.raises(ValueError):
        decode("192.0.2.1", octets)
