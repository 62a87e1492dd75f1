"""The checks of content: their order, what they answer, and what becomes of the message."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from mailrail.core.authres.foreign import authserv_ids
from mailrail.core.message.content_reader import ContentFault
from mailrail.core.message.header import Header
from mailrail.core.revision.revision import Account
from mailrail.core.route.recipients import Directory
from mailrail.core.smtp.address import Address, parse_address
from mailrail.core.smtp.reply import Reply
from mailrail_ingress.checks import header
from mailrail_ingress.checks.content import CHECKS, Check, CheckLists, ContentChecks, Moment, Whose
from mailrail_ingress.checks.header import RESULTS_LIMIT
from mailrail_ingress.checks.verdicts import CheckedMessage, Edit, Pending, Refuse, Verdict

from testkit.ingress import setup

NOW = 1_795_370_400.0
NO = Refuse(Reply.of(550, "5.7.1", "no"))
_REVISION = setup().revision
_DIRECTORY = Directory(_REVISION, _REVISION.gateways[0])
ADA = _REVISION.accounts[0]
ADDRESS = parse_address("ada@home.example")


def checked(account: Account | None = ADA, sender: Address | None = ADDRESS) -> CheckedMessage:
    return CheckedMessage(
        id=bytes(16),
        sender=sender,
        recipients=[],
        account=account,
        directory=_DIRECTORY,
        hostname="mx.home.example",
        authserv_ids=authserv_ids(["mx.home.example"]),
        now=NOW,
    )


def edited(header: str, account: Account | None = ADA, sender: Address | None = ADDRESS) -> str:
    """What becomes of a header: it, changed; or the name of the check that refuses it and the reply."""
    checks = ContentChecks(checked(account, sender))
    found = checks.edit(Header(header.replace("\n", "\r\n").encode()))
    if found is None:
        return f"{checks.refused_by}: {checks.refusal}"
    return found.decode().replace("\r\n", "\n")


WHOLE = "Date: Mon, 5 Jan 2026 10:00:00 +0000\nMessage-ID: <a@b.example>\n"


# --- the list ---


def test_each_check_has_a_name_of_its_own_and_is_made_once() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    assert [check.moment for check in CHECKS] == sorted((c.moment for c in CHECKS), key=lambda m: m.value)


def answers(name: str, verdict: Verdict, asked: list[str] | None = None) -> Check:
    """A check that says so."""

    def judge(_: CheckedMessage) -> Verdict:
        if asked is not None:
            asked.append(name)
        return verdict

    return Check(name, Moment.END, Whose.ALL, judge)


def test_the_first_check_that_refuses_is_the_last_that_is_asked() -> None:
    asked: list[str] = []
    lists = (answers("a", None, asked), answers("b", NO, asked), answers("c", None, asked))
    checks = ContentChecks(checked(), CheckLists(header=lists))
    assert checks.edit(Header(b"A: b\r\n")) is None
    assert (checks.refused_by, checks.refusal, asked) == ("b", NO.reply, ["a", "b"])


def test_edits_of_several_checks_are_made_together_and_what_is_added_comes_last() -> None:
    header = Header(b"A: 1\r\nB: 2\r\nC: 3")
    a, b, _ = header.fields
    lists = (answers("a", Edit({a: b""}, b"X: 1\r\n")), answers("b", Edit({b: b"B: two\r\n"}, b"Y: 2\r\n")))
    checks = ContentChecks(checked(), CheckLists(header=lists))
    assert checks.edit(header) == b"B: two\r\nC: 3\r\nX: 1\r\nY: 2\r\n"


def test_a_check_at_the_end_may_take_its_time_and_the_others_wait_for_it() -> None:
    waiting: list[Callable[[Refuse | Edit | None], None]] = []
    asked: list[str] = []
    done: list[bool] = []
    end = (
        answers("a", Edit(added=b"X: 1\r\n"), asked),
        answers("b", Pending(waiting.append), asked),
        answers("c", None, asked),
        answers("d", Pending(waiting.append), asked),
    )
    checks = ContentChecks(checked(), CheckLists(end=end))
    checks.judge_end(lambda: done.append(True))
    assert (asked, done) == (["a", "b"], [])
    waiting.pop()(Edit(added=b"Y: 2\r\n"))
    assert (asked, done) == (["a", "b", "c", "d"], [])
    waiting.pop()(NO)
    assert (checks.refused_by, checks.refusal, checks.added, done) == ("d", NO.reply, b"X: 1\r\nY: 2\r\n", [True])


def test_a_late_refusal_keeps_later_checks_from_being_asked() -> None:
    asked: list[str] = []
    done: list[bool] = []
    end = (answers("a", Pending(lambda answer: answer(NO))), answers("b", None, asked))
    checks = ContentChecks(checked(), CheckLists(end=end))
    checks.judge_end(lambda: done.append(True))
    assert (checks.refused_by, asked, done) == ("a", [], [True])


# --- the form of a message ---


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (ContentFault.LONG_HEADER, "header-size 552 5.3.4"),
        (ContentFault.MANY_FIELDS, "header-fields 550 5.6.0"),
        (ContentFault.LONG_LINE, "line-length 550 5.6.0"),
    ],
)
def test_a_fault_of_the_content_has_its_check_SOUT_12c(fault: ContentFault, expected: str) -> None:
    checks = ContentChecks(checked(None))
    checks.judge_fault(fault)
    assert checks.refusal is not None
    assert f"{checks.refused_by} {str(checks.refusal)[:9]}" == expected


@pytest.mark.parametrize("account", [ADA, None])
def test_more_result_fields_than_any_mail_has_are_refused_unread(
    account: Account | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = b"Authentication-Results: x; none\r\n" * 7000
    checks = ContentChecks(checked(account))
    with monkeypatch.context() as patch:
        patch.setattr(header, "foreign_results", None)  # whoever called it would fail
        assert checks.edit(Header(block)) is None
    assert checks.refused_by == "result-fields"
    some = ContentChecks(checked(None)).edit(Header(block[: 33 * RESULTS_LIMIT]))
    assert some == block[: 33 * RESULTS_LIMIT]


# --- the author ---


@pytest.mark.parametrize(
    ("header", "sender", "expected"),
    [
        ("From: ada@home.example\n", "", "From: ada@home.example\n"),
        ("From: Ada <ada@sending.example.>\n", "", "From: Ada <ada@sending.example.>\n"),
        ("From: ada\n", "", "From: ada@home.example\n"),
        ("From: Ada <ada> (at work)\n", "", "From: Ada <ada@home.example> (at work)\n"),
        ("From:\nSubject: s\n", "", "Subject: s\nFrom: ada@home.example\n"),
        ("Subject: s\n", "", "Subject: s\nFrom: ada@home.example\n"),
        ("Subject: s\n", "ada@sending.example", "Subject: s\nFrom: ada@sending.example\n"),
        ("From: ada@home.example\nFrom: <ada@HOME.example>\n", "", "From: ada@home.example\n"),
        ("From:\nFrom: ada@home.example\n", "", "From: ada@home.example\n"),
        ("From: ada@home.example\nFrom: ada@sending.example\n", "", "author: 550 5.6.0"),
        ("From: ada@home.example\nFrom: ceo@home.example\n", "", "author: 550 5.6.0"),
        ("From: ada@home.example\n" * 3, "", "author: 550 5.6.0"),
        ("From: ada@home.example\n" * 10_000, "", "author: 550 5.6.0"),
        ("From: root (Cron Daemon)\n", "", "author: 550 5.7.1"),
        ("From: Doe, Ada <ada@home.example>\n", "", "author: 550 5.7.1"),
        ('From: "Ada" ada@home.example\n', "", "author: 550 5.6.0"),
        ("From: <@ceo@home.example:ada@home.example>\n", "", "author: 550 5.6.0"),
        ("From: ada@home.example, ceo@home.example\n", "", "author: 550 5.7.1"),
        ("From: two words\n", "", "author: 550 5.6.0"),
    ],
)
def test_an_account_is_the_author_of_what_it_submits_SUB_03(header: str, sender: str, expected: str) -> None:
    found = edited(header + WHOLE, sender=parse_address(sender) if sender else None)
    if expected.startswith("author: "):
        assert found.startswith(expected)
    else:
        assert sorted(found.splitlines()) == sorted((expected + WHOLE).splitlines())


def test_a_message_without_an_author_has_none_to_add_where_the_account_has_no_address_SUB_03() -> None:
    nobody = replace(ADA, addresses=(), send_as=("@home.example",))
    assert edited(WHOLE, nobody, None).startswith("author: 550 5.6.0")


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("Sender: ada@sending.example\n", None),
        ("Sender: Ada <ada>\n", "Sender: Ada <ada@home.example>\n"),
        ("Sender:\n", None),
        ("Sender: ceo@home.example\n", "sender-field: 550 5.7.1"),
        ("Sender: ada@home.example, ceo@far.example\n", "sender-field: 550 5.7.1"),
        ("Sender: ???@\n", "sender-field: 550 5.6.0"),
    ],
)
def test_an_account_may_use_the_address_of_the_sender_field_SUB_03(field: str, expected: str | None) -> None:
    found = edited("From: ada@home.example\n" + field + WHOLE)
    if expected is not None and expected.startswith("sender-field"):
        assert found.startswith(expected)
    else:
        assert found == "From: ada@home.example\n" + (expected or field) + WHOLE


def test_a_stranger_may_write_what_it_likes() -> None:
    header = "From: a@x.example\nFrom: b@y.example\nSender: who\nTo: bob@foo, carol\nBcc: d\n"
    assert edited(header, None, None) == header


# --- qualified addresses ---


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ("To: bob@foo, carol\n", "qualified-addresses: 554 5.1.2"),
        ("Cc: bob@foo\n", "qualified-addresses: 554 5.1.2"),
        ("Reply-To: Ada <ada@box>\n", "qualified-addresses: 554 5.1.2"),
        ("To: carol\n", "To: carol@home.example\n"),
        (
            'To: team: carol, "d e" <dan> (he), bob@far.example;\n',
            'To: team: carol@home.example, "d e" <dan@home.example> (he), bob@far.example;\n',
        ),
        ("To: bob@far.example,\n\tcarol\n", "To: bob@far.example,\tcarol@home.example\n"),
        ("To: <bob@[192.0.2.1]>\nCc: undisclosed-recipients:;\n", None),
        ("To: a list of friends\nCc: <who knows>\n", None),
        ("To: bob.smith, <.>\nCc: .\n", None),
        ("To: bob.smith, carol\n", "To: bob.smith@home.example, carol@home.example\n"),
        ("To: " + "x@far.example, " * 2000 + "bob@foo\n", None),
    ],
)
def test_what_is_altered_has_qualified_addresses_SUB_02b(fields: str, expected: str | None) -> None:
    altered = f"From: ada@home.example\n{fields}Bcc: eve@far.example\n"
    found = edited(altered + WHOLE)
    if expected is not None and expected.startswith("qualified"):
        assert found.startswith(expected)
    else:
        assert found == f"From: ada@home.example\n{expected or fields}{WHOLE}"
    untouched = f"From: ada@home.example\n{fields}{WHOLE}"
    assert edited(untouched) == untouched
