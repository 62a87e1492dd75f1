"""What answers of a server mean for the caller."""

import pytest

from mailrail.core.smtp.answer import Answer, Stage, Trouble
from mailrail.core.smtp.reply import Reply
from mailrail.sendmail.flush import delay_after
from mailrail.sendmail.outcome import Fate, fate_of, in_words, worst
from mailrail.sendmail.status import ExitStatus as E


@pytest.mark.parametrize(
    ("stage", "reply", "trouble", "fate", "status"),
    [
        (Stage.END, (250, None), None, Fate.SENT, E.OK),
        (Stage.RCPT, (550, "5.1.1"), None, Fate.REFUSED, E.NO_USER),
        (Stage.RCPT, (550, None), None, Fate.REFUSED, E.NO_USER),
        (Stage.RCPT, (550, "5.7.1"), None, Fate.REFUSED, E.UNAVAILABLE),
        (Stage.RCPT, (554, None), None, Fate.REFUSED, E.UNAVAILABLE),
        (Stage.RCPT, (450, "4.2.0"), None, Fate.LATER, E.TRY_AGAIN),
        (Stage.MAIL, (553, "5.7.1"), None, Fate.REFUSED, E.NO_PERMISSION),
        (Stage.MAIL, (451, None), None, Fate.LATER, E.TRY_AGAIN),
        (Stage.DATA, (554, None), None, Fate.REFUSED, E.UNAVAILABLE),
        (Stage.END, (554, "5.6.0"), None, Fate.REFUSED, E.DATA),
        (Stage.END, (451, None), None, Fate.LATER, E.TRY_AGAIN),
        (Stage.AUTH, (535, "5.7.8"), None, Fate.REFUSED, E.NO_PERMISSION),
        (Stage.AUTH, (454, None), None, Fate.LATER, E.TRY_AGAIN),
        (Stage.GREETING, (554, None), None, Fate.REFUSED, E.UNAVAILABLE),
        (Stage.GREETING, (421, None), None, Fate.LATER, E.TRY_AGAIN),
        (Stage.AUTH, None, Trouble.AUTH, Fate.REFUSED, E.NO_PERMISSION),
        (Stage.CONNECT, None, Trouble.UNREACHABLE, Fate.LATER, E.TRY_AGAIN),
        (Stage.HANDSHAKE, None, Trouble.TLS, Fate.LATER, E.TRY_AGAIN),
        (Stage.HELLO, None, Trouble.PROTOCOL, Fate.REFUSED, E.PROTOCOL),
        (Stage.PLAN, None, Trouble.TOO_LARGE, Fate.REFUSED, E.DATA),
        (Stage.PLAN, None, Trouble.REQUIRETLS, Fate.REFUSED, E.UNAVAILABLE),
        (Stage.PLAN, None, Trouble.NEEDS_SMTPUTF8, Fate.REFUSED, E.UNAVAILABLE),
        (Stage.CONTENT, None, Trouble.FAULT, Fate.REFUSED, E.IO),
    ],
)
def test_each_answer_has_its_status_SML_09(
    stage: Stage, reply: tuple[int, str | None] | None, trouble: Trouble | None, fate: Fate, status: E
) -> None:
    answer = Answer(stage, Reply.of(*reply, "words") if reply is not None else None, trouble, "detail")
    found = fate_of(answer)
    assert (found.fate, found.status) == (fate, status)
    assert ("detail" if trouble is not None else "words") in found.text


def test_nothing_after_the_final_dot_is_tried_again_SML_06() -> None:
    answer = Answer(Stage.END, None, Trouble.PROTOCOL, "nonsense came", uncertain=True)
    assert fate_of(answer).fate is Fate.LATER
    assert "may have the message" in fate_of(answer).text


def test_the_worst_status_is_told_SML_07() -> None:
    sent = fate_of(Answer(Stage.END, Reply.of(250, None, "ok")))
    unknown = fate_of(Answer(Stage.RCPT, Reply.of(550, "5.1.1", "no")))
    refused = fate_of(Answer(Stage.RCPT, Reply.of(554, None, "no")))
    later = fate_of(Answer(Stage.RCPT, Reply.of(450, None, "wait")))
    assert worst([sent, later]) is E.TRY_AGAIN
    assert worst([sent, unknown, later]) is E.NO_USER
    assert worst([unknown, refused, sent]) is E.UNAVAILABLE
    assert worst([sent]) is E.OK


def test_what_a_server_says_moves_no_terminal() -> None:
    text = in_words(Answer(Stage.RCPT, Reply(550, ("\x1b[2Jhello" + "x" * 5000,))))
    assert text.isprintable()
    assert len(text) == 1000


def test_the_pauses_grow_to_four_hours_SML_08() -> None:
    assert [delay_after(n) / 60 for n in (0, 1, 2, 3, 6, 7, 50, 10**9)] == [5, 5, 10, 20, 160, 240, 240, 240]
