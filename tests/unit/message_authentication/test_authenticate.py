"""Who sent a message, and what follows: SPF, DKIM, ARC, DMARC and the client's name put together."""

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.message_authentication.scene import (
    CLIENT,
    ELSEWHERE,
    MESSAGE,
    NOW,
    SEALERS,
    Scene,
    signed,
)

from mailrail.core.authres.read import read_results
from mailrail.core.authres.results import ResultsField
from mailrail.core.dkim.verify import SIGNATURES_LIMIT
from mailrail.core.dmarc.disposition import EnforcementRules
from mailrail.core.dmarc.psl import read_list
from mailrail.core.lookups import DnsOutcome, DnsQuestion, LookupAnswer, answered
from mailrail.core.message.header import Header
from mailrail.core.message_authentication.authenticate import QUESTION_LIMIT, authenticate
from mailrail.core.message_authentication.content import hash_content
from mailrail.core.message_authentication.steps import steps_of
from mailrail.core.message_authentication.verdict import AuthenticationRules, MessageVerdict
from mailrail.core.smtp.reply import Reply
from mailrail.core.spf.result import SpfResult

from testkit.dns_table import DnsTable
from testkit.signed_mail import ed25519_key, published, sealed

RULES = AuthenticationRules("mx.here.example")
LATE = LookupAnswer(DnsOutcome.TROUBLE, text="no answer within 40 s", late=True)


def published_instead(name: str, text: str) -> Callable[[Scene], None]:
    """A change of one TXT record; without a text it goes."""

    def change(scene: Scene) -> None:
        scene.dns._records.pop(name, None)
        if text:
            scene.dns.add(name, "TXT", text)

    return change


def failing(name: str) -> Callable[[Scene], None]:
    def change(scene: Scene) -> None:
        scene.dns._records.pop(name, None)
        scene.dns.fail(name)

    return change


def changed(**what: object) -> Callable[[Scene], None]:
    """Another message, client, name, sender or rules."""

    def change(scene: Scene) -> None:
        for name, value in what.items():
            setattr(scene, name, value)

    return change


NO_DMARC = published_instead("_dmarc.example.com", "")
FORWARDED = changed(client=ELSEWHERE)
UNSIGNED = changed(message=MESSAGE)
ALTERED = changed(message=signed() + b"-- \r\nthe list\r\n")
SEALED = sealed(MESSAGE, 1, domain="lists.example", results="dmarc=pass header.from=example.com") + b"a footer\r\n"


def ruled(**what: object) -> Callable[[Scene], None]:
    return changed(rules=replace(RULES, **what))  # type: ignore[arg-type]


def add(name: str, kind: str, value: str) -> Callable[[Scene], None]:
    return lambda scene: scene.dns.add(name, kind, value)


TABLE = [
    # what, changes, action, DMRC result, sender, code and enhanced code
    ("all is right", [], "accept", "pass", "YES", ""),
    ("forwarded, and the signature holds", [FORWARDED], "accept", "pass", "YES", ""),
    ("unsigned, from the right host", [UNSIGNED], "accept", "pass", "YES", ""),
    ("forged", [FORWARDED, UNSIGNED], "reject", "fail", "FORGED", "550 5.7.1"),
    ("altered on the way", [FORWARDED, ALTERED], "reject", "fail", "FORGED", "550 5.7.1"),
    (
        "forged, p=quarantine",
        [FORWARDED, UNSIGNED, published_instead("_dmarc.example.com", "v=DMARC1; p=quarantine")],
        "quarantine",
        "fail",
        "FORGED",
        "",
    ),
    (
        "forged, p=none: its domain has said what follows, so SPF refuses nothing by itself",
        [FORWARDED, UNSIGNED, published_instead("_dmarc.example.com", "v=DMARC1; p=none")],
        "accept",
        "fail",
        "FORGED",
        "",
    ),
    ("forged, without DMARC", [FORWARDED, UNSIGNED, NO_DMARC], "reject", "none", "FORGED", "550 5.7.23"),
    ("without DMARC a signature outweighs -all", [FORWARDED, NO_DMARC], "accept", "none", "UNKNOWN", ""),
    (
        "a softfail refuses nothing",
        [FORWARDED, UNSIGNED, NO_DMARC, published_instead("example.com", "v=spf1 ~all")],
        "accept",
        "none",
        "UNKNOWN",
        "",
    ),
    (
        "a softfail refuses nothing, whatever the rules say",
        [
            FORWARDED,
            UNSIGNED,
            NO_DMARC,
            published_instead("example.com", "v=spf1 ~all"),
            ruled(refused_spf=frozenset(SpfResult)),
        ],
        "accept",
        "none",
        "UNKNOWN",
        "",
    ),
    (
        "observed",
        [FORWARDED, UNSIGNED, ruled(enforcement=EnforcementRules(enforce=False))],
        "accept",
        "fail",
        "FORGED",
        "",
    ),
    (
        "observed, without DMARC",
        [FORWARDED, UNSIGNED, NO_DMARC, ruled(enforcement=EnforcementRules(enforce=False))],
        "accept",
        "none",
        "FORGED",
        "",
    ),
    (
        "from a trusted network",
        [FORWARDED, UNSIGNED, ruled(trusted_forwarders=("198.51.100.0/24",))],
        "accept",
        "fail",
        "FORGED",
        "",
    ),
    (
        "from a trusted network, without DMARC",
        [FORWARDED, UNSIGNED, NO_DMARC, ruled(trusted_forwarders=("198.51.100.0/24",))],
        "accept",
        "none",
        "FORGED",
        "",
    ),
    (
        "from a trusted domain, by the SPF of its HELO",
        [
            FORWARDED,
            UNSIGNED,
            changed(helo="out.forward.example"),
            add("out.forward.example", "TXT", f"v=spf1 ip4:{ELSEWHERE} -all"),
            ruled(trusted_forwarders=("forward.example",)),
        ],
        "accept",
        "fail",
        "FORGED",
        "",
    ),
    (
        "sealed by a list that is trusted",
        [
            FORWARDED,
            changed(message=SEALED.removesuffix(b"a footer\r\n")),
            add("arc._domainkey.lists.example", "TXT", published(ed25519_key())),
            ruled(enforcement=SEALERS),
        ],
        "accept",
        "fail",
        "FORGED",
        "",
    ),
    (
        "sealed by a list that is not trusted",
        [
            FORWARDED,
            changed(message=SEALED.removesuffix(b"a footer\r\n")),
            add("arc._domainkey.lists.example", "TXT", published(ed25519_key())),
        ],
        "reject",
        "fail",
        "FORGED",
        "550 5.7.1",
    ),
    (
        "altered after the seal",
        [
            FORWARDED,
            changed(message=SEALED),
            add("arc._domainkey.lists.example", "TXT", published(ed25519_key())),
            ruled(enforcement=SEALERS),
        ],
        "reject",
        "fail",
        "FORGED",
        "550 5.7.1",
    ),
    (
        "the sealer saw another author pass",
        [
            FORWARDED,
            changed(message=sealed(MESSAGE, 1, domain="lists.example", results="dmarc=pass header.from=other.example")),
            add("arc._domainkey.lists.example", "TXT", published(ed25519_key())),
            ruled(enforcement=SEALERS),
        ],
        "reject",
        "fail",
        "FORGED",
        "550 5.7.1",
    ),
    ("the DNS of the policy does not answer", [failing("_dmarc.example.com")], "accept", "temperror", "YES", ""),
    (
        "the same, where such mail is deferred",
        [failing("_dmarc.example.com"), ruled(enforcement=EnforcementRules(defer_on_temperror=True))],
        "defer",
        "temperror",
        "YES",
        "451 4.7.1",
    ),
    (
        "the DNS of the sender does not answer",
        [UNSIGNED, NO_DMARC, failing("example.com")],
        "accept",
        "none",
        "UNKNOWN",
        "",
    ),
    (
        "the same, where SPF counts",
        [UNSIGNED, NO_DMARC, failing("example.com"), ruled(refused_spf=frozenset({SpfResult.TEMPERROR}))],
        "defer",
        "none",
        "UNKNOWN",
        "451 4.7.24",
    ),
    (
        "an SPF record with a fault, where that counts",
        [
            UNSIGNED,
            NO_DMARC,
            published_instead("example.com", "v=spf1 ip4:x -all"),
            ruled(refused_spf=frozenset({SpfResult.PERMERROR})),
        ],
        "reject",
        "none",
        "UNKNOWN",
        "550 5.7.24",
    ),
    (
        "two From fields",
        [changed(message=b"From: a@other.example\r\n" + MESSAGE)],
        "reject",
        "",
        "YES",
        "550 5.6.0",
    ),
    ("no author", [changed(message=b"Subject: x\r\n\r\n")], "accept", "", "YES", ""),
    (
        "no author, forged",
        [FORWARDED, changed(message=b"Subject: x\r\n\r\n")],
        "reject",
        "",
        "FORGED",
        "550 5.7.23",
    ),
    ("a notification", [UNSIGNED, changed(sender="")], "accept", "pass", "UNKNOWN", ""),
    (
        "a notification under a forged name",
        [FORWARDED, UNSIGNED, NO_DMARC, changed(sender="")],
        "reject",
        "none",
        "UNKNOWN",
        "550 5.7.23",
    ),
    (
        "an author of another domain beside ours",
        [
            changed(message=signed(MESSAGE.replace(b"Ann <", b"eve@other.example, Ann <"))),
            add("_dmarc.other.example", "TXT", "v=DMARC1; p=reject"),
        ],
        "reject",
        "fail",
        "YES",
        "550 5.7.1",
    ),
    (
        "strict alignment",
        [
            UNSIGNED,
            changed(sender="ann@mail.example.com"),
            published_instead("_dmarc.example.com", "v=DMARC1; p=reject; aspf=s"),
        ],
        "reject",
        "fail",
        "YES",
        "550 5.7.1",
    ),
    ("relaxed alignment", [UNSIGNED, changed(sender="ann@mail.example.com")], "accept", "pass", "YES", ""),
    (
        "a list of suffixes in place of the walk",
        [
            UNSIGNED,
            changed(sender="ann@mail.example.com"),
            ruled(suffixes=read_list(b"com\nexample.com\n")),
        ],
        "reject",
        "fail",
        "YES",
        "550 5.7.1",
    ),
]


@pytest.mark.parametrize(
    ("changes", "action", "dmarc", "sender", "reply"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_a_message_has_the_verdict_of_its_row_SPF_13_SPF_14a_DMRC_16(
    changes: list[Callable[[Scene], None]], action: str, dmarc: str, sender: str, reply: str
) -> None:
    scene = Scene()
    for change in changes:
        change(scene)
    verdict = scene.judged()
    assert verdict.action == action
    assert (verdict.dmarc.result or "") == dmarc
    assert verdict.sender.name == sender
    assert _codes(verdict.reply) == reply
    assert steps_of(verdict)[-1].result == action
    _is_well_formed(verdict)


def _codes(reply: Reply | None) -> str:
    return f"{reply.code} {reply.enhanced}" if reply is not None else ""


def _is_well_formed(verdict: MessageVerdict) -> ResultsField:
    """The field is one field, with lines that every server takes, and so is the reply. Returns the field, read."""
    (field,) = Header(verdict.results).fields
    assert (field.start, field.end, field.name) == (0, len(verdict.results), b"authentication-results")
    assert all(len(line) <= 998 and line.isascii() for line in verdict.results.split(b"\r\n"))
    if verdict.reply is not None:
        assert all(len(line) <= 512 for line in verdict.reply.encode().split(b"\r\n"))
        assert all(line.isprintable() and line.isascii() for line in verdict.reply.lines)
    found = read_results(field.value)
    assert not found.flawed
    return found


def results_of(verdict: MessageVerdict) -> list[tuple[str, str, dict[str, str]]]:
    found = _is_well_formed(verdict)
    return [(each.method, each.result, {p.name: p.value for p in each.properties}) for each in found.results]


def test_the_field_tells_each_result_with_what_it_is_about_ARC_01b_SPF_11b() -> None:
    scene = Scene(message=sealed(signed(), 1, domain="lists.example"))
    scene.dns.add("arc._domainkey.lists.example", "TXT", published(ed25519_key()))
    verdict = scene.judged()
    assert _is_well_formed(verdict).authserv_id == "mx.here.example"
    assert results_of(verdict) == [
        ("iprev", "pass", {"iprev": CLIENT}),
        ("spf", "pass", {"helo": "mail.example.com"}),
        ("spf", "pass", {"mailfrom": "ann@example.com"}),
        ("dkim", "pass", {"d": "example.com", "s": "sel", "a": "ed25519-sha256", "b": verdict.dkim[0].prefix}),
        ("arc", "pass", {"oldest-pass": "0"}),
        ("dmarc", "pass", {"from": "example.com", "dmarc": "reject"}),
    ]


def test_the_helo_name_has_a_result_of_its_own_beside_mail_from_SPF_11b() -> None:
    scene = Scene(client=ELSEWHERE, sender="ann@other.example")
    scene.dns.add("other.example", "TXT", f"v=spf1 ip4:{ELSEWHERE} -all")
    verdict = scene.judged()
    assert verdict.spf_helo is not None
    assert (verdict.spf_helo.result, verdict.spf.result) == (SpfResult.FAIL, SpfResult.PASS)
    assert [row[:2] for row in results_of(verdict) if row[0] == "spf"] == [("spf", "fail"), ("spf", "pass")]


@pytest.mark.parametrize(("helo", "sender"), [("mail.example.com", ""), ("localhost", "ann@example.com")])
def test_helo_has_no_second_result_where_it_is_no_name_or_all_that_there_is_SPF_11b(helo: str, sender: str) -> None:
    verdict = Scene(helo=helo, sender=sender).judged()
    assert verdict.spf_helo is None
    assert len([row for row in results_of(verdict) if row[0] == "spf"]) == 1


def test_an_override_stands_in_the_field_and_in_the_verdict_DMRC_16() -> None:
    rules = replace(RULES, trusted_forwarders=(ELSEWHERE,))
    verdict = Scene(message=MESSAGE, client=ELSEWHERE, rules=rules).judged()
    assert [reason.type for reason in verdict.disposition.reasons] == ["trusted_forwarder"]
    assert b"override trusted_forwarder" in verdict.results.replace(b"\r\n\t", b" ")
    assert verdict.dmarc.asked == "reject"
    assert any("trusted here" in detail for detail in steps_of(verdict)[-1].details)


def test_the_explanation_of_a_domain_is_marked_as_its_own_words_SPF_13() -> None:
    scene = Scene(message=MESSAGE, client=ELSEWHERE)
    published_instead("_dmarc.example.com", "")(scene)
    published_instead("example.com", "v=spf1 exp=why.example.com -all")(scene)
    scene.dns.add("why.example.com", "TXT", "%{i} is not ours. " + "Call us. " * 60)
    reply = scene.judged().reply
    assert reply is not None
    assert _codes(reply) == "550 5.7.23"
    assert reply.lines[-1].startswith(f"5.7.23 example.com explains: {ELSEWHERE} is not ours. Call us.")


def test_signatures_past_the_limit_are_told_in_one_result_DKIM_01() -> None:
    message = MESSAGE
    for _ in range(SIGNATURES_LIMIT + 30):
        message = b"DKIM-Signature: v=1; a=rsa-sha256; d=x.example; s=s; h=from; bh=; b=\r\n" + message
    verdict = Scene(message=message).judged()
    rows = [row for row in results_of(verdict) if row[0] == "dkim"]
    assert len(rows) == SIGNATURES_LIMIT + 1
    assert rows[-1] == ("dkim", "policy", {})
    assert b"30 more were not evaluated" in verdict.results.replace(b"\r\n\t", b" ")
    assert len(steps_of(verdict)) < 2 * SIGNATURES_LIMIT


def test_a_client_in_ipv6_form_is_the_ipv4_client_SPF_12() -> None:
    verdict = Scene(client=f"::ffff:{CLIENT}").judged()
    assert (verdict.iprev.result, verdict.spf.result) == ("pass", "pass")
    assert verdict.client.address == ip_address(CLIENT)


def test_a_chain_that_does_not_hold_counts_as_none_and_is_told_ARC_01b() -> None:
    verdict = Scene(message=SEALED, rules=replace(RULES, enforcement=SEALERS)).judged()
    assert verdict.arc.outcome == "fail"
    assert ("arc", "fail", {}) in results_of(verdict)
    assert verdict.action == "accept"  # SPF passes


# --- what is asked, and when ---


def rounds_of(scene: Scene) -> list[list[DnsQuestion]]:
    rounds: list[list[DnsQuestion]] = []
    asking = authenticate(scene.identity, hash_content(scene.message, NOW), scene.rules)
    try:
        questions = next(asking)
        while True:
            rounds.append(list(questions))
            questions = asking.send(tuple(map(scene.dns, questions)))
    except StopIteration:
        return rounds


def test_what_does_not_hang_on_each_other_is_asked_side_by_side() -> None:
    scene = Scene(message=sealed(signed(), 1, domain="lists.example"))
    rounds = rounds_of(scene)
    assert [[question.name for question in each] for each in rounds] == [
        ["_dmarc.example.com"],
        ["_dmarc.com"],
        [
            "mail.example.com",
            "example.com",
            "sel._domainkey.example.com",
            "arc._domainkey.lists.example",
            ip_address(CLIENT).reverse_pointer,
        ],
        ["mail.example.com"],
    ]
    assert len(scene.dns.asked) == len(set(scene.dns.asked))


class _SlowDns:
    """Gives no answer in time to anything after so many rounds, as `ask_dns` does."""

    def __init__(self, scene: Scene, rounds: int) -> None:
        self.scene, self.rounds = scene, rounds

    def judged(self) -> MessageVerdict:
        asking = authenticate(self.scene.identity, hash_content(self.scene.message, NOW), self.scene.rules)
        try:
            questions = next(asking)
            while True:
                self.rounds -= 1
                questions = asking.send(tuple(self.scene.dns(q) if self.rounds >= 0 else LATE for q in questions))
        except StopIteration as done:
            verdict: MessageVerdict = done.value
            return verdict


@pytest.mark.parametrize("rounds", range(8))
def test_a_forger_whose_own_records_take_all_time_gets_nothing_in_DMRC_13a(rounds: int) -> None:
    """His SPF asks for one name after the other, and each answer comes late."""
    scene = Scene(message=MESSAGE, client=ELSEWHERE, helo="a.evil.com", sender="x@evil.com")
    for name in ("a.evil.com", "evil.com"):
        scene.dns.add(name, "TXT", "v=spf1 " + "".join(f"include:i{n}.evil.com " for n in range(9)) + "+all")
    for number in range(9):
        scene.dns.add(f"i{number}.evil.com", "TXT", "v=spf1 -all")
    verdict = _SlowDns(scene, rounds).judged()
    assert verdict.action in ("reject", "defer")
    assert _codes(verdict.reply) == ("451 4.4.3" if rounds < 2 else "550 5.7.1")


def test_a_slow_helo_does_not_make_spf_of_the_author_unknown_for_good_DMRC_13a() -> None:
    scene = Scene(message=MESSAGE, client=ELSEWHERE, helo="a.evil.com")
    published_instead("example.com", "v=spf1 include:one.example.com -all")(scene)
    scene.dns.add("one.example.com", "TXT", "v=spf1 -all")
    assert _codes(_SlowDns(scene, 3).judged().reply) == "451 4.4.3"
    observing = replace(RULES, enforcement=EnforcementRules(enforce=False))
    scene.rules = observing
    assert _SlowDns(scene, 3).judged().action == "accept"


@pytest.mark.parametrize("name", ["example.com", "sel._domainkey.example.com", "_dmarc.example.com"])
def test_a_verdict_says_whether_answers_lack(name: str) -> None:
    scene = Scene()
    assert not scene.judged().lacks_answers
    failing(name)(scene)
    assert scene.judged().lacks_answers


# --- strangers ---

_FIELD_VALUES = st.sampled_from(
    [
        b"ann@example.com",
        b"a@x.example, b@y.example, c@" + b"a." * 100 + b"z.example",
        b"v=1; a=rsa-sha256; d=example.com; s=sel; h=from; bh=AAAA; b=AAAA",
        b"v=1; a=ed25519-sha256; d=\xc3\xa9.example; s=sel; h=from:from; bh="
        b"47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=; b=AAAA",
        b"i=1; a=rsa-sha256; cv=none; d=lists.example; s=arc; b=AAAA",
        b"i=1; mx.lists.example; dmarc=pass header.from=example.com",
        b'\x00\xff (((( "',
        b"",
    ]
)
_NAMES = st.sampled_from(
    [b"From", b"DKIM-Signature", b"ARC-Seal", b"ARC-Message-Signature", b"ARC-Authentication-Results", b"Subject"]
)
_TEXTS = st.sampled_from(
    [
        "v=spf1 include:%{d} -all",
        "v=spf1 a mx ptr exists:%{i}.%{l}.x.example redirect=%{h}",
        "v=spf1 " + "include:%{d2}.example " * 9 + "mx mx",
        "v=DMARC1; p=reject; np=quarantine",
        "v=DMARC1; p=none; psd=y",
        "v=DMARC1",
        "v=DKIM1; p=",
        "v=DKIM1; k=ed25519; p=AAAA",
        "",
        "\xff\x00",
    ]
)


class _HostileDns:
    """Answers by the draw, the same question always alike; counts the questions."""

    def __init__(self, data: st.DataObject) -> None:
        self._data, self._told, self.asked = data, DnsTable(), list[DnsQuestion]()

    def __call__(self, question: DnsQuestion) -> LookupAnswer:
        self.asked.append(question)
        draw = self._data.draw
        kind = draw(st.sampled_from(["found", "found", "nothing", "late", "trouble"]))
        if kind == "late":
            return LATE
        if kind == "trouble":
            return LookupAnswer(DnsOutcome.TROUBLE, text="SERVFAIL\r\n")
        if kind == "nothing":
            return LookupAnswer(draw(st.sampled_from([DnsOutcome.NO_DATA, DnsOutcome.NO_NAME])))
        match question.kind:
            case "TXT":
                texts = draw(st.lists(_TEXTS, min_size=1, max_size=2))
                return LookupAnswer(DnsOutcome.FOUND, tuple(text.encode("latin-1") for text in texts))
            case "A":
                return LookupAnswer(DnsOutcome.FOUND, (ip_address(CLIENT),))
            case "AAAA":
                return LookupAnswer(DnsOutcome.FOUND, (ip_address("2001:db8::1"),))
            case "MX":
                return LookupAnswer(
                    DnsOutcome.FOUND, tuple((n, f"h{n}.example") for n in range(draw(st.integers(0, 12))))
                )
            case _:
                return LookupAnswer(DnsOutcome.FOUND, tuple(f"p{n}.example" for n in range(draw(st.integers(1, 12)))))


@settings(max_examples=150)
@given(
    st.lists(st.tuples(_NAMES, _FIELD_VALUES), max_size=30),
    st.sampled_from([CLIENT, "2001:db8::1", "fe80::1%eth0", "::ffff:192.0.2.1"]),
    st.sampled_from(
        ["mail.example.com", "[192.0.2.1]", "", "x" * 300 + ".example", "\u00e9.example", "a b\r\nc.example"]
    ),
    st.sampled_from(["", "ann@example.com", '"a b\\"c"@xn--9ca.example', "\u00e9@\u00e9.example", "a@[192.0.2.1]"]),
    st.booleans(),
    st.data(),
)
def test_no_message_client_or_record_of_a_stranger_raises_and_questions_are_bounded(
    fields: list[tuple[bytes, bytes]], client: str, helo: str, sender: str, psl: bool, data: st.DataObject
) -> None:
    message = b"".join(name + b": " + value + b"\r\n" for name, value in fields) + b"\r\nbody\r\n"
    suffixes = read_list(b"com\nexample\n") if psl else None
    scene = Scene(message, client, helo, sender, replace(RULES, suffixes=suffixes))
    dns = _HostileDns(data)
    verdict = answered(authenticate(scene.identity, hash_content(message, NOW), scene.rules), dns)
    assert len(dns.asked) == len(set(dns.asked)) <= QUESTION_LIMIT
    _is_well_formed(verdict)
    assert len(verdict.results) < 64 * 1024
    assert steps_of(verdict)


def test_the_dearest_message_stays_within_the_questions_that_are_promised() -> None:
    """Ten authors with deep names, SPF that asks all it may, and each signature by another domain below an author."""
    authors = ", ".join(f"a@{'l.' * 10}d{n}.example" for n in range(10))
    signatures = b"".join(
        signed(MESSAGE, f"{'m.' * 8}s{n}.d{n % 10}.example").partition(b"From:")[0] for n in range(SIGNATURES_LIMIT)
    )
    message = signatures + MESSAGE.replace(b"Ann <ann@example.com>", authors.encode())
    scene = Scene(message, helo="h.evil.com", sender="x@evil.com")

    def dns(question: DnsQuestion) -> LookupAnswer:
        scene.dns.asked.append(question)
        if question.kind == "PTR":
            return LookupAnswer(DnsOutcome.FOUND, tuple(f"p{n}.example" for n in range(10)))
        if question.kind == "MX":
            hosts = tuple((n, f"{n}.{question.name}") for n in range(10))
            return LookupAnswer(DnsOutcome.FOUND, hosts)
        if question.kind != "TXT":
            return LookupAnswer(DnsOutcome.FOUND, (ip_address("203.0.113.7"),))
        if "_domainkey" in question.name:
            return LookupAnswer(DnsOutcome.FOUND, (published(ed25519_key()).encode(),))
        if question.name.startswith("_dmarc.") and question.name.count(".") == 2:
            return LookupAnswer(DnsOutcome.FOUND, (b"v=DMARC1; p=reject; np=none",))
        if question.name.endswith("evil.com"):
            terms = " ".join(f"mx:m{n}.{question.name}" for n in range(9))
            return LookupAnswer(DnsOutcome.FOUND, (f"v=spf1 {terms} ptr -all".encode(),))
        return LookupAnswer(DnsOutcome.NO_NAME)

    verdict = answered(authenticate(scene.identity, hash_content(message, NOW), scene.rules), dns)
    assert 300 < len(scene.dns.asked) <= QUESTION_LIMIT
    assert verdict.action == "reject"
