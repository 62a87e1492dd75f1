"""check_host() by itself: what decides, what bounds it, and what it tells of how it came to that."""

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.lookups import NO_DATA, NO_NAME, DnsOutcome, DnsQuestion, LookupAnswer, answered
from mailrail.core.spf.evaluation import QUESTION_LIMIT, SpfReceiver, check_host, domain_of
from mailrail.core.spf.explanation import EXPLANATION_LIMIT, as_said_by
from mailrail.core.spf.result import SpfIdentity, SpfResult, SpfScope, SpfStep, SpfVerdict

from testkit.dns_table import DnsTable

CLIENT = "192.0.2.1"
LATE = LookupAnswer(DnsOutcome.TROUBLE, text="no answer within 20 s", late=True)


def table(**records: str | list[str]) -> DnsTable:
    """A table of SPF records by the label before example.org; `at` is example.org itself."""
    made = DnsTable()
    for label, texts in records.items():
        name = "example.org" if label == "at" else f"{label}.example.org"
        for text in [texts] if isinstance(texts, str) else texts:
            made.add(name, "TXT", text)
    return made


def check(
    zone: DnsTable, client: str = CLIENT, *, local: str = "ann", domain: str = "example.org", void_limit: int = 2
) -> SpfVerdict:
    identity = SpfIdentity(SpfScope.MAIL_FROM, local, domain)
    receiver = SpfReceiver("mx.example.net", 1_700_000_000, void_limit)
    return answered(check_host(identity, ip_address(client), "Mail.Example.COM", receiver), zone)


def test_the_record_is_the_one_that_begins_with_the_version_SPF_01() -> None:
    assert check(table(at=["v=spf1 +all", "v=spf10 -all", "google-site=1"])).result is SpfResult.PASS
    assert check(table(at="v=spf2.0/pra +all")).result is SpfResult.NONE
    assert check(table(at=["v=spf1 +all", "V=SPF1 +all"])).result is SpfResult.PERMERROR
    assert check(table(at=[" v=spf1 +all", "v=spf1+all"])).result is SpfResult.NONE


def test_the_eleventh_term_that_asks_the_dns_is_one_too_many_SPF_02() -> None:
    zone = table(i="v=spf1 a:h.example.org")
    zone.add("h.example.org", "A", "192.0.2.200")
    nested = "include:i.example.org " * 5  # two terms each
    zone.add("example.org", "TXT", f"v=spf1 {nested}ip4:{CLIENT} a:h.example.org -all")
    assert check(zone).mechanism == f"ip4:{CLIENT}"
    beyond = check(zone, "192.0.2.2")
    assert (beyond.result, beyond.mechanism) == (SpfResult.PERMERROR, "a:h.example.org")
    assert "more than 10 terms" in beyond.reason


def test_a_redirect_is_a_term_that_asks_the_dns_SPF_02() -> None:
    assert check(table(at="v=spf1 redirect=example.org")).result is SpfResult.PERMERROR


@pytest.mark.parametrize(("hosts", "result"), [(10, SpfResult.PASS), (11, SpfResult.PERMERROR)])
def test_an_mx_may_have_ten_hosts_SPF_03(hosts: int, result: SpfResult) -> None:
    zone = table(at="v=spf1 mx -all")
    for number in range(hosts):
        zone.add("example.org", "MX", f"10 m{number}.example.org")
        zone.add(f"m{number}.example.org", "A", f"192.0.2.{hosts - number}")
    assert check(zone).result is result


def test_of_the_names_of_a_client_the_first_ten_count_SPF_03() -> None:
    zone = table(at="v=spf1 ptr -all")
    for number in range(11):
        zone.add("1.2.0.192.in-addr.arpa", "PTR", f"h{number}.example.{'net' if number < 10 else 'org'}")
        zone.add(f"h{number}.example.{'net' if number < 10 else 'org'}", "A", CLIENT)
    assert check(zone).result is SpfResult.FAIL
    assert DnsQuestion("h10.example.org", "A") not in zone.asked


def test_the_third_void_term_is_one_too_many_unless_more_are_allowed_SPF_04() -> None:
    zone = table(at="v=spf1 a:n1.example.org exists:n2.example.org mx:n3.example.org +all")
    assert check(zone).result is SpfResult.PERMERROR
    assert "mx:n3.example.org is the last" in check(zone).reason
    assert check(zone, void_limit=3).result is SpfResult.PASS


def test_a_term_is_void_once_and_only_if_nothing_was_found_for_it_SPF_04() -> None:
    zone = table(at="v=spf1 mx mx:two.example.org mx:three.example.org +all")
    for domain in ("example.org", "two.example.org", "three.example.org"):
        zone.add(domain, "MX", "10 gone.example.org")
        zone.add(domain, "MX", "20 gone2.example.org")
        zone.add(domain, "MX", "30 there.example.org")
    zone.add("there.example.org", "A", "192.0.2.99")
    assert check(zone).result is SpfResult.PASS


def test_a_null_mx_is_no_void_term_SPF_04() -> None:
    zone = table(at="v=spf1 mx mx mx +all")
    zone.add("example.org", "MX", "0 .")
    assert check(zone).result is SpfResult.PASS


@pytest.mark.parametrize("record", ["v=spf1 a -all", "v=spf1 ptr -all", "v=spf1 exists:%{p}.example.org -all"])
def test_an_evaluation_that_ran_out_of_time_is_a_temperror_whatever_it_waited_for(record: str) -> None:
    zone = table(at=record)
    verdict = answered(
        check_host(SpfIdentity(SpfScope.MAIL_FROM, "a", "example.org"), ip_address(CLIENT), "h.example"),
        lambda question: zone(question) if question.kind == "TXT" else LATE,
    )
    assert verdict.result is SpfResult.TEMPERROR
    assert "no answer within 20 s" in verdict.reason


@pytest.mark.parametrize("term", ["a:no.example.org", "mx:no.example.org", "include:no.example.org"])
def test_no_answer_is_a_temperror_and_is_not_taken_for_an_absence_SPF_06(term: str) -> None:
    zone = table(at=f"v=spf1 {term} ip4:{CLIENT} -all")
    zone.fail("no.example.org")
    verdict = check(zone)
    assert (verdict.result, verdict.mechanism) == (
        SpfResult.TEMPERROR,
        "" if term.startswith("include") else term,
    )
    assert "SERVFAIL" in verdict.reason


def test_a_host_of_an_mx_without_an_answer_does_not_hide_the_one_that_matches_SPF_06() -> None:
    zone = table(at="v=spf1 mx -all")
    zone.add("example.org", "MX", "10 broken.example.org")
    zone.add("example.org", "MX", "20 there.example.org")
    zone.fail("broken.example.org")
    zone.add("there.example.org", "A", CLIENT)
    assert check(zone).result is SpfResult.PASS
    assert check(zone, "192.0.2.2").result is SpfResult.TEMPERROR


@pytest.mark.parametrize(
    ("included", "result"),
    [
        ("v=spf1 +all", SpfResult.PASS),
        ("v=spf1 -all", SpfResult.SOFTFAIL),
        ("v=spf1 ~all", SpfResult.SOFTFAIL),
        ("v=spf1 ?all", SpfResult.SOFTFAIL),
        ("no record", SpfResult.PERMERROR),
        ("v=spf1 nonsense", SpfResult.PERMERROR),
        ("v=spf1 a:broken.example.org", SpfResult.TEMPERROR),
    ],
)
def test_what_comes_of_an_included_record_SPF_07(included: str, result: SpfResult) -> None:
    zone = table(at="v=spf1 include:i.example.org ~all", i=included)
    zone.fail("broken.example.org")
    assert check(zone).result is result


def test_an_included_domain_that_is_no_name_in_the_dns_has_no_record_SPF_07() -> None:
    assert check(table(at=f"v=spf1 include:{'a' * 64}.example.org +all")).result is SpfResult.PERMERROR


def test_a_redirect_counts_where_nothing_matches_and_there_is_no_all_SPF_08() -> None:
    target = "v=spf1 ip4:192.0.2.2 -all"
    assert check(table(at="v=spf1 redirect=r.example.org ?all", r=target)).result is SpfResult.NEUTRAL
    redirected = check(table(at="v=spf1 redirect=r.example.org ip4:192.0.2.9", r=target))
    assert (redirected.result, redirected.mechanism, redirected.record_domain) == (
        SpfResult.FAIL,
        "-all",
        "r.example.org",
    )
    assert "by the record of r.example.org" in redirected.reason
    assert check(table(at="v=spf1 redirect=r.example.org")).result is SpfResult.PERMERROR
    assert check(table(at=f"v=spf1 redirect={'a' * 64}.example.org")).result is SpfResult.PERMERROR


@pytest.mark.parametrize(
    "fault",
    ["nonsense", "ip4:192.0.2.300", "a:com", "include", "-all:x", "x=%", "ip4:192.0.2.1/33", "ip6:fe80::1%1", "a/-1"],
)
def test_a_fault_anywhere_counts_though_a_term_before_it_matches_SPF_09(fault: str) -> None:
    verdict = check(table(at=f"v=spf1 ip4:{CLIENT} {fault}"))
    assert (verdict.result, verdict.mechanism) == (SpfResult.PERMERROR, "")
    assert "the SPF record of example.org is not valid" in verdict.reason


def test_unknown_modifiers_are_passed_over_SPF_09() -> None:
    assert check(table(at="v=spf1 moo.cow-far_out=man:dog/cat ra=x ra=x +all")).result is SpfResult.PASS


def test_a_record_that_is_too_long_is_not_read_SPF_09() -> None:
    assert check(table(at="v=spf1 " + "ip4:192.0.2.1 " * 1300)).result is SpfResult.PERMERROR


def test_an_ipv4_address_in_ipv6_is_ipv4_SPF_12() -> None:
    assert check(table(at=f"v=spf1 ip4:{CLIENT} -all"), f"::ffff:{CLIENT}").result is SpfResult.PASS
    assert check(table(at="v=spf1 ip6:::ffff:0:0/96 -all"), f"::ffff:{CLIENT}").result is SpfResult.FAIL


def test_the_zone_of_a_link_local_address_does_not_count() -> None:
    zone = table(at="v=spf1 ptr exists:%{i}.x.example.org ip6:fe80::/10 -all")
    verdict = check(zone, "fe80::1%eth0")
    assert (verdict.result, verdict.mechanism) == (SpfResult.PASS, "ip6:fe80::/10")
    assert not any("%" in question.name for question in zone.asked)


def test_exists_asks_for_ipv4_addresses_alone_SPF_12() -> None:
    zone = table(at="v=spf1 exists:six.example.org -all")
    zone.add("six.example.org", "AAAA", "2001:db8::1")
    assert check(zone, "2001:db8::1").result is SpfResult.FAIL
    assert DnsQuestion("six.example.org", "A") in zone.asked


@pytest.mark.parametrize("domain", ["localhost", "[192.0.2.1]", "192.0.2.1", "", "a..example.org", f"{'a' * 64}.org"])
def test_what_is_no_domain_name_with_a_dot_is_not_asked_SPF_15(domain: str) -> None:
    zone = DnsTable()
    assert check(zone, domain=domain).result is SpfResult.NONE
    assert zone.asked == []


def test_a_domain_that_does_not_exist_says_nothing_SPF_15() -> None:
    verdict = check(DnsTable())
    assert (verdict.result, verdict.reason) == (SpfResult.NONE, "example.org does not exist")


@pytest.mark.parametrize("modifier", ["redirect=r.example.org", "exp=r.example.org"])
def test_a_modifier_that_may_stand_once_stands_once_SPF_15(modifier: str) -> None:
    assert check(table(at=f"v=spf1 {modifier} {modifier} +all")).result is SpfResult.PERMERROR


def test_the_explanation_counts_toward_no_limit_SPF_15() -> None:
    terms = " ".join(f"exists:e{number}.example.org" for number in range(10))
    zone = table(at=f"v=spf1 {terms} -all exp=why.example.org", why="not from %{i}")
    for number in range(8):
        zone.add(f"e{number}.example.org", "AAAA", "2001:db8::1")
    assert check(zone, void_limit=10).explanation == f"not from {CLIENT}"


def test_domains_are_asked_and_written_in_a_labels_SPF_16() -> None:
    zone = DnsTable()
    zone.add("xn--bcher-kva.example", "TXT", "v=spf1 exists:%{d}.%{o}.example.net -all")
    zone.add("xn--bcher-kva.example.xn--bcher-kva.example.example.net", "A", "127.0.0.2")
    verdict = check(zone, domain="Bücher.example")
    assert (verdict.result, verdict.domain) == (SpfResult.PASS, "xn--bcher-kva.example")


@pytest.mark.parametrize("letter", ["s", "l", "L1r", "S"])
def test_a_local_part_that_is_not_ascii_makes_its_terms_match_nothing_SPF_16(letter: str) -> None:
    zone = table(at=f"v=spf1 include:%{{{letter}}}.example.org exists:%{{{letter}}}.example.org ?all")
    verdict = check(zone, local="jürgen")
    assert verdict.result is SpfResult.NEUTRAL
    assert [question.kind for question in zone.asked] == ["TXT"]
    assert check(table(at=f"v=spf1 redirect=%{{{letter}}}.example.org"), local="é").result is SpfResult.NEUTRAL
    assert check(table(at=f"v=spf1 -all exp=%{{{letter}}}.example.org"), local="é").explanation == ""


def test_a_verdict_tells_step_by_step_what_was_evaluated() -> None:
    zone = table(at="v=spf1 ip4:198.51.100.1 include:i.example.org -all", i=f"v=spf1 ~ip4:{CLIENT} ip4:192.0.2.0/24")
    verdict = check(zone)
    assert verdict.reason == f"example.org does not permit {CLIENT}: -all matches"
    assert verdict.steps == (
        SpfStep(0, "example.org", "", "has the record v=spf1 ip4:198.51.100.1 include:i.example.org -all"),
        SpfStep(0, "example.org", "ip4:198.51.100.1", "does not match"),
        SpfStep(1, "i.example.org", "", f"has the record v=spf1 ~ip4:{CLIENT} ip4:192.0.2.0/24"),
        SpfStep(1, "i.example.org", "~ip4:192.0.2.1", "matches: softfail"),
        SpfStep(0, "example.org", "include:i.example.org", "does not match"),
        SpfStep(0, "example.org", "-all", "matches: fail"),
    )


def test_the_steps_of_a_long_record_are_cut_short() -> None:
    verdict = check(table(at="v=spf1 " + "ip4:10.0.0.1 " * 1000 + "-all"))
    assert verdict.result is SpfResult.FAIL
    assert len(verdict.steps) == 301
    assert "the rest is left out" in verdict.steps[-1].said


@pytest.mark.parametrize(
    ("term", "counted"),
    [("ip4:192.0.2.9", False), ("exists:%{i}.example.org", False), ("exists:%{l1}.a.example", True)],
)
def test_a_verdict_says_whether_another_sender_of_the_domain_may_get_another(term: str, counted: bool) -> None:
    assert check(table(at=f"v=spf1 {term} -all")).local_part_counted is counted


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("%{i} may not send for %{d}; see http://x.example/?s=%{S}&r=%{r}&t=%{t}", True),
        ("no\r\n250 accepted", False),
        ("caf\u00e9", False),
        ("50 % off", False),
        ("%{x}", False),
    ],
)
def test_an_explanation_is_a_line_of_ascii_or_nothing(text: str, told: bool) -> None:
    verdict = check(table(at="v=spf1 -all exp=why.example.org", why=text))
    assert verdict.result is SpfResult.FAIL
    wanted = f"{CLIENT} may not send for example.org; see http://x.example/?s=ann%40example.org&r=mx.example.net"
    assert verdict.explanation == (f"{wanted}&t=1700000000" if told else "")


def test_an_explanation_is_cut_off_and_marked_as_the_words_of_the_domain() -> None:
    verdict = check(table(at="v=spf1 -all exp=why.example.org", why="no " * 1000))
    assert len(verdict.explanation) == EXPLANATION_LIMIT
    assert as_said_by(verdict.domain, verdict.explanation).startswith("example.org explains: no no")


def test_what_a_client_says_leaves_no_control_characters_in_an_explanation() -> None:
    zone = table(at="v=spf1 -all exp=why.example.org", why="no, %{l}")
    assert check(zone, local="a\r\nb\x1b").explanation == "no, a??b?"


def test_nobody_asks_for_an_explanation_that_nobody_wants() -> None:
    zone = table(at="v=spf1 -all exp=why.example.org", why="no")
    identity = SpfIdentity(SpfScope.MAIL_FROM, "a", "example.org")
    answered(check_host(identity, ip_address(CLIENT), "h.example", SpfReceiver(explains=False)), zone)
    assert zone.asked == [DnsQuestion("example.org", "TXT")]


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        ("Mail.Example.ORG.", "mail.example.org"),
        ("_x.example.org", "_x.example.org"),
        ("a b.example.org", None),
        ("x; dkim=pass.example", None),
        ("example.123", None),
    ],
)
def test_which_names_are_domains(text: str, domain: str | None) -> None:
    assert domain_of(text) == domain


# --- hostile input ----------------------------------------------------------------------------------------------

_TERMS = st.sampled_from(
    [
        "a", "mx", "ptr", "all", "-all", "include:", "exists:", "redirect=", "exp=", "ip4:", "ip6:", "example.org",
        "%{", "}", "%{p}", "%{l}", "%{s}", "%{ir}", "%{h}", "%{d2r-}", "%%", "%_", "%-", ".", "/", "//", "24", "::",
        "192.0.2.1", " ", "?", "~", "+", "-", ":", "=", "i.example.org", "\x00", "é", "9" * 5000,
    ]
)  # fmt: skip
_RECORDS = st.lists(_TERMS, max_size=30).map(lambda parts: f"v=spf1 {''.join(parts)}".encode())
_NAMES = st.sampled_from(["example.org", "i.example.org", "", "a b", "x" * 70, "é.example", "h.example.org"])
_ANSWERS = st.one_of(
    st.sampled_from([NO_NAME, NO_DATA, LookupAnswer(DnsOutcome.TROUBLE, text="\x1b"), LATE]),
    st.just(None),
)


@given(st.data(), st.text(max_size=20), st.text(max_size=20), st.text(max_size=20))
def test_no_record_and_no_name_makes_it_raise_or_ask_without_end(
    data: st.DataObject, local: str, domain: str, helo: str
) -> None:
    asked: list[DnsQuestion] = []

    def answer(question: DnsQuestion) -> LookupAnswer:
        asked.append(question)
        assert question.name == question.name.lower()
        assert 0 < len(question.name) <= 253
        given_answer = data.draw(_ANSWERS)
        if given_answer is not None:
            return given_answer
        match question.kind:
            case "TXT":
                return LookupAnswer(DnsOutcome.FOUND, tuple(data.draw(st.lists(_RECORDS, min_size=1, max_size=2))))
            case "MX":
                hosts = data.draw(st.lists(_NAMES, min_size=1, max_size=12))
                return LookupAnswer(DnsOutcome.FOUND, tuple((10, host) for host in hosts))
            case "PTR":
                return LookupAnswer(DnsOutcome.FOUND, tuple(data.draw(st.lists(_NAMES, min_size=1, max_size=12))))
            case "A":
                return LookupAnswer(DnsOutcome.FOUND, (IPv4Address(CLIENT),))
            case _:
                return LookupAnswer(DnsOutcome.FOUND, (IPv6Address("2001:db8::1"),))

    identity = SpfIdentity(SpfScope.MAIL_FROM, local, data.draw(st.sampled_from(["example.org", domain])))
    client = data.draw(
        st.sampled_from(
            [ip_address("2001:db8::1"), ip_address(CLIENT), ip_address("::ffff:192.0.2.7"), ip_address("fe80::1%eth0")]
        )
    )
    verdict = answered(check_host(identity, client, helo), answer)
    assert len(asked) <= QUESTION_LIMIT
    texts = [verdict.reason, verdict.mechanism, verdict.record_domain, verdict.explanation, verdict.domain]
    texts += [text for step in verdict.steps for text in (step.domain, step.term, step.said)]
    assert all(text.isascii() and (text.isprintable() or not text) and len(text) <= 1100 for text in texts)


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_a_record_of_any_octets_gives_a_verdict(record: bytes, explanation: bytes) -> None:
    zone = DnsTable()
    zone.add("example.org", "TXT", b"v=spf1 " + record)
    assert check(zone).result in set(SpfResult)
    zone = table(at="v=spf1 -all exp=why.example.org")
    zone.add("why.example.org", "TXT", explanation)
    assert check(zone).result is SpfResult.FAIL
