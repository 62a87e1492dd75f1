"""Aggregate reports of others: those of real senders, what real senders get wrong, what strangers write to hurt."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.dmarc.report import read as reading
from mailrail.core.dmarc.report.build import AggregateForm
from mailrail.core.dmarc.report.read import DEPTH_LIMIT, TOKEN_LIMIT, ReceivedAggregate, read_aggregate
from mailrail.core.reports.incoming import ReportKind, carried_report, plain_report
from mailrail.core.reports.unpack import BOUNDS, ReportError

SAMPLES = Path(__file__).parents[5] / "shared" / "data" / "dmarc"
with_samples = pytest.mark.skipif(not SAMPLES.exists(), reason="reports of others are not here (../shared/data)")

EXPECTED_ELSE = {
    # The known figure counts a record once for each day of a period of years; two records are in the file.
    "test2.xml": ("Test Inc.", "test.net", 2, 12),
    # Packed twice.
    "test.xml.gz.gz": ("Test Inc.", "test.net", 2, 7),
}
REFUSED = {
    "test_empty.xml": "none of its 1 records can be read: the source_ip of a row is ''",
    "invalid_xml.xml": "not well-formed .* in line 5, column 18",
}
OTHERS = {
    "!example.com!1538204542!1538463818.xml": ("accurateplastics.com", "example.com", 1, 1),
    "Report domain- borschow.com Submitter- google.com Report-ID- 949348866075514174.eml": (
        "google.com",
        "borschow.com",
        1,
        1,
    ),
    "changed-input.xml": ("fred.com", "example.com", 20, 3047),
    "empty_reason.xml": ("example.org", "example.com", 1, 2),
    "example.net!example.com!1529366400!1529452799.xml": ("example.net", "example.com", 1, 1),
    "ikea.com!example.de!1538690400!1538776800.xml": ("ikea.com", "example.de", 1, 1),
    "nice-input.xml.gz": ("google.com", "example.com", 20, 3047),
    "old_draft_from_wiki.xml": ("acme.com", "example.com", 1, 2),
    "rfc9990-example.net!example.com!1700000000!1700086399.xml": ("example.net", "example.com", 2, 7),
    "twilight.eml": ("google.com", "twlnet.com", 1, 1),
    "veeam.com!example.com!1530133200!1530219600.xml": ("veeam.com", "example.com", 1, 1),
}


def sample(path: Path) -> ReceivedAggregate:
    carried = (carried_report if path.suffix == ".eml" else plain_report)(path.read_bytes())
    assert carried.kind is ReportKind.DMARC
    return read_aggregate(carried.octets)


@with_samples
@pytest.mark.parametrize("folder", ["mox", "samples", "tierpod", "viewer"])
def test_reports_of_real_senders_have_the_figures_that_are_known_or_the_reason_for_refusal_DAGG_21(folder: str) -> None:
    known = SAMPLES / folder / "expected.yml"
    facts = yaml.safe_load(known.read_text()) if known.exists() else {}
    files = [each for each in (SAMPLES / folder).iterdir() if each.name not in ("LICENSE", "expected.yml")]
    assert len(files) in (5, 6, 10, 12)
    for file in files:
        if file.name in REFUSED:
            with pytest.raises(ReportError, match=REFUSED[file.name]):
                sample(file)
            continue
        report = sample(file)
        seen = (report.organization, report.policy.domain, len(report.records), report.messages)
        expected = EXPECTED_ELSE.get(file.name) or OTHERS.get(file.name) or tuple(facts[file.name].values())
        assert (seen[0].lower(), *seen[1:]) == (expected[0].lower(), *expected[1:]), file.name
        assert report.rejected == 0, file.name


@with_samples
def test_the_newer_form_is_told_from_the_older_one_by_its_namespace_or_its_fields() -> None:
    assert sample(SAMPLES / "viewer" / "gmxnet.xml").form is AggregateForm.RFC9990
    assert sample(SAMPLES / "samples" / "rfc9990-example.net!example.com!1700000000!1700086399.xml").form is (
        AggregateForm.RFC9990
    )
    assert sample(SAMPLES / "viewer" / "aol.xml").form is AggregateForm.RFC7489


HEAD = (
    "<report_metadata><org_name>Rep</org_name><email>r@rep.example</email><report_id>1</report_id>"
    "<date_range><begin>1767225600</begin><end>1767311999</end></date_range></report_metadata>"
    "<policy_published><domain>Example.COM.</domain><p>REJECT</p></policy_published>"
)
ROW = (
    "<row><source_ip>192.0.2.1</source_ip><count>2</count><policy_evaluated><disposition>none</disposition>"
    "<dkim>pass</dkim><spf>fail</spf><reason><type>other</type><comment>because</comment></reason></policy_evaluated></row>"
)
RECORD = (
    f"<record>{ROW}<identifiers><header_from>example.com</header_from><envelope_from/></identifiers><auth_results>"
    "<dkim><domain>example.com</domain><selector>s</selector><result>pass</result><human_result>ok</human_result></dkim>"
    "<spf><domain>mx.example.com</domain><scope>helo</scope><result>softfail</result></spf></auth_results></record>"
)


def read(body: str, root: str = "<feedback>") -> ReceivedAggregate:
    return read_aggregate((root + body + "</feedback>").encode())


def test_a_record_is_read_with_all_that_it_says() -> None:
    report = read(HEAD + RECORD)
    (record,) = report.records
    assert (report.begin, report.end, report.id, report.policy.domain, report.policy.p) == (
        1767225600,
        1767311999,
        "1",
        "example.com",
        "reject",
    )
    assert (record.source_ip, record.count, record.disposition, record.dkim, record.spf) == (
        "192.0.2.1",
        2,
        "none",
        "pass",
        "fail",
    )
    assert [(each.type, each.comment) for each in record.reasons] == [("other", "because")]
    assert (record.header_from, record.envelope_from, record.envelope_to) == ("example.com", "", "")
    assert [(each.domain, each.selector, each.result, each.human) for each in record.signatures] == [
        ("example.com", "s", "pass", "ok")
    ]
    assert [(each.domain, each.scope, each.result) for each in record.spf_results] == [
        ("mx.example.com", "helo", "softfail")
    ]


@pytest.mark.parametrize(
    "written",
    [
        RECORD + HEAD,
        HEAD + "\n<!-- a comment -->" + RECORD.replace("<count>2<", "<count> <!-- x -->2.0\t<") + "stray",
        HEAD + RECORD.replace("192.0.2.1", "::ffff:192.0.2.1"),
        HEAD + RECORD.replace("identifiers>", "identities>"),
        HEAD + RECORD.replace("<count>2</count>", "<count>2</count><count>9</count>"),
        HEAD + RECORD + '<x:more xmlns:x="urn:x"><record/><x:count>9</x:count></x:more>',
        HEAD + RECORD.replace("<row>", '<row><e:count xmlns:e="urn:e">9</e:count>'),
    ],
)
def test_order_blanks_comments_and_extensions_change_nothing_DAGG_21(written: str) -> None:
    assert read(written).records == read(HEAD + RECORD).records


@pytest.mark.parametrize(
    "root",
    [
        '<?xml version="1.0" encoding="UTF-8"?>\n<feedback xmlns="urn:ietf:params:xml:ns:dmarc-2.0">',
        '<feedback xmlns="http://dmarc.org/dmarc-xml/0.1">',
        '<xs:schema xmlns:xs="http://www.w3.org/2001/XMLSchema"><feedback>',
        "<!DOCTYPE feedback><feedback>",
    ],
)
def test_roots_of_every_kind_are_read(root: str) -> None:
    assert read(HEAD + RECORD, root).messages == 2


def test_a_root_with_a_prefix_over_elements_without_one_is_the_form_of_7489() -> None:
    xml = f'<d:feedback xmlns:d="http://dmarc.org/dmarc-xml/0.1">{HEAD}{RECORD}</d:feedback>'
    assert read_aggregate(xml.encode()).messages == 2


@pytest.mark.parametrize(
    ("codec", "name"),
    [("utf-8-sig", "UTF-8"), ("utf-16", "utf-16"), ("windows-1252", "Windows-1252"), ("gb18030", "GB18030")],
)
def test_other_encodings_are_read(codec: str, name: str) -> None:
    xml = f'<?xml version="1.0" encoding="{name}"?><feedback>{HEAD.replace("Rep<", "Bär<")}{RECORD}</feedback>'
    assert read_aggregate(xml.encode(codec)).organization == "Bär"


def test_octets_that_are_not_of_the_encoding_are_replaced_and_controls_are_blanks() -> None:
    xml = f"<feedback>{HEAD.replace('Rep<', 'B?r<')}{RECORD}</feedback>".encode().replace(b"B?r", b"B\xe4r \x01x")
    assert read_aggregate(xml).organization == "B�r  x"


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("", "who reports"),
        (HEAD.replace("<report_id>1<", "<report_id><"), "no report_id"),
        (HEAD.replace("<begin>1767225600<", "<begin>now<"), "the begin of its date_range is 'now'"),
        (HEAD.replace("1767311999", "1"), "ends before it begins"),
        (HEAD.replace("1767311999", "9" * 18), "no such number"),
        (HEAD.replace("Example.COM.", ""), "which domain"),
        (HEAD + RECORD.replace("<count>2<", "<count>-2<"), "none of its 1 records"),
        (HEAD + "</wrong>", "mismatched tag, in line 1"),
    ],
)
def test_what_says_too_little_is_refused_with_the_reason(written: str, reason: str) -> None:
    with pytest.raises(ReportError, match=reason):
        read(written)


@pytest.mark.parametrize(
    ("octets", "reason"),
    [
        (b"", "no element found"),
        (b"<html/>", "its root is 'html'"),
        (f"<feedback>{HEAD}{RECORD}".encode(), "no element found"),
        (b'<!DOCTYPE f [<!ENTITY a "b">]><feedback>&a;</feedback>', "document type"),
        (b'<!DOCTYPE f [<!ENTITY % a SYSTEM "file:///etc/passwd">%a;]><feedback/>', "document type"),
        (b"<feedback>&a;</feedback>", "undefined entity"),
        (b"<feedback>" + b"<a>" * DEPTH_LIMIT, "nested more than"),
        (b"<feedback><a " + b"x" * (2 * TOKEN_LIMIT), "a tag or comment"),
        (b"<feedback><!--" + b"x" * (2 * TOKEN_LIMIT), "a tag or comment"),
        (b"<?xml version='1.0' encoding='utf-7'?><feedback/>", "encoding utf-7"),
        (b"<?xml version='1.0' encoding='rot13'?><feedback/>", "encoding rot13"),
        (b"<?xml version='1.0' encoding='nonsense'?><feedback/>", "encoding nonsense"),
        (b"<feedback><x:a/></feedback>", "unbound prefix"),
        (b" " * (BOUNDS.unpacked + 1), "octets"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # octets make long names
)
def test_what_could_hurt_or_is_half_a_report_is_refused_DAGG_21(octets: bytes, reason: str) -> None:
    with pytest.raises(ReportError, match=reason):
        read_aggregate(octets)


def test_an_entity_of_a_document_type_elsewhere_is_never_fetched_and_stands_for_nothing_DAGG_21() -> None:
    root = '<!DOCTYPE feedback SYSTEM "http://127.0.0.1:1/x.dtd"><feedback>'
    assert read(HEAD.replace(">Rep<", ">Rep&secret;<") + RECORD, root).organization == "Rep"


def test_records_and_results_are_bounded_DAGG_21(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "RECORDS_LIMIT", 20)
    monkeypatch.setattr(reading, "_ALL_RESULTS_LIMIT", 1500)
    least = "<record><row><source_ip>::1</source_ip><count>1</count></row></record>"
    report = read(HEAD + least * 22)
    assert (len(report.records), report.rejected) == (20, 2)
    assert "more than 20 records" in report.why[0]
    signed = f"<record>{ROW}<auth_results>{'<dkim/>' * 500}</auth_results></record>"
    report = read(HEAD + signed * 17)
    assert {len(record.signatures) for record in report.records} == {100}
    assert (len(report.records), report.rejected) == (14, 3)  # each has a reason, too
    assert "more than 1500 results" in report.why[0]


def test_a_text_is_one_bounded_line() -> None:
    report = read(HEAD.replace(">Rep<", ">R\n\u2028e" + "x" * 5000 + "<") + RECORD)
    assert report.organization.startswith("R  ex")
    assert len(report.organization) == 512


_pieces = st.sampled_from(
    [
        *("<record>", "</record>", "<row>", "</row>", "<count>1</count>", "<source_ip>::1</source_ip>"),
        *("<reason>", "</reason>", "<auth_results>", "<dkim>", "</dkim>", "<spf>"),
        *("&amp;", "<![CDATA[", "]]>", "<!--", "-->", "<?x", "?>", RECORD),
    ]
)


@given(st.lists(st.one_of(_pieces, st.text(max_size=8)), max_size=20).map("".join))
def test_nothing_but_the_named_error_is_raised(body: str) -> None:
    for written in (HEAD + body, body + HEAD, HEAD + f"<record>{body}</record>"):
        try:
            read_aggregate(f"<feedback>{written}</feedback>".encode("utf-8", "replace"))
        except ReportError:
            pass


@given(st.binary(max_size=200))
def test_octets_of_any_kind_raise_nothing_but_the_named_error(octets: bytes) -> None:
    for written in (octets, b"<?xml version='1.0' encoding='" + octets, b"<feedback>" + octets):
        try:
            read_aggregate(written)
        except ReportError:
            pass
