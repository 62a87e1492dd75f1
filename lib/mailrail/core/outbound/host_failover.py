"""The failover of one delivery over several hosts: which recipients are settled, which try the next host, and why.

The host-failover matrix (SOUT-13) in one place:

| what happened                                        | the recipients concerned            |
|------------------------------------------------------|-------------------------------------|
| no connection, 4yz/5yz greeting or EHLO, TLS failure | next host                           |
| 421 anywhere, connection lost before the dot         | next host                           |
| 421 or 4yz to MAIL before the content, on a          | once a fresh connection, same host, |
| connection that has carried mail                     | as if never asked (client.py)       |
| what it lacks: SIZE, SMTPUTF8, 8BITMIME              | next host (reference H43)           |
| 4yz to MAIL, DATA or the final dot                   | next host                           |
| 5yz to MAIL, RCPT (but 552), DATA or the final dot   | final                               |
| 4yz or 552 to RCPT                                   | one further host, then deferred     |
| 452 or 552 to RCPT after others were accepted        | another transaction, same connection|
| no reply to the final dot                            | deferred, no other host (LSE-08)    |
| lease low, cancelled, a mistake of our own           | nothing more in this attempt        |

Refused everywhere at the greeting is final only if every host said 521 or 554; where another host says anything else,
that decides. What one host refuses for its own reasons, while another cannot be asked, stays temporary.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mailrail.core.delivery.outcome import GENERAL_REFUSALS, HopKind, Outcome, Scope, Verdict, of_reply, of_trouble
from mailrail.core.smtp.answer import LACKING, OUR_OWN, Answer, Stage, Trouble
from mailrail.core.smtp.reply import EnhancedCode
from mailrail.core.tlspolicy.decision import NO_REQUIRETLS, NO_TLS

_TOO_MANY = frozenset({452, 552})
_NO_REQUIRED_TLS = frozenset({Trouble.TLS, Trouble.TLS_DEMAND, Trouble.REQUIRETLS})
"""TLS of a host of our own configuration is our trouble, and soon mended."""
_RCPT = Stage.RCPT  # reading a member off its enum costs four times as much (CPython 3.11)


@dataclass(slots=True)
class RecipientVerdict:
    """The result for one recipient."""

    verdict: Verdict
    answer: Answer
    cancelled: bool = False


def verdict_on(answer: Answer, *, hop: HopKind, passes_dsn: bool = False, every_host: bool = False) -> Verdict:
    """What an answer means by itself (core/delivery/outcome.py says it for replies and for troubles)."""
    stage, trouble = answer.stage, answer.trouble
    if answer.reply is not None and (trouble is None or trouble in (Trouble.TLS, Trouble.AUTH)):
        return of_reply(answer.reply, stage=stage, hop=hop, passes_dsn=passes_dsn, every_host=every_host)
    if hop is not HopKind.FOREIGN and trouble is Trouble.NO_ADDRESS:
        # A name in our own configuration: our fault, never a bounce (design 4, Attempt).
        return Verdict(Outcome.DEFERRED, EnhancedCode(4, 3, 5), answer.detail, scope=Scope.TRANSPORT)
    return of_trouble(trouble or Trouble.CLOSED, stage=stage, hop=hop, detail=answer.detail)


class HostFailover:
    """The recipients 0..n-1 of one delivery, and what the hosts said of each so far."""

    __slots__ = ("_greeted", "_open", "accepted", "hop", "settled")

    def __init__(self, recipients: int, *, hop: HopKind) -> None:
        self.hop = hop
        self.settled: dict[int, RecipientVerdict] = {}
        self.accepted = 0
        """Answers so far by which a host took the message."""
        self._open: dict[int, list[Answer]] = {i: [] for i in range(recipients)}  # with what they were answered so far
        self._greeted: list[Answer] = []  # how each host that let no session begin refused

    @property
    def open(self) -> tuple[int, ...]:
        """Recipients that want another host."""
        return tuple(self._open)

    @property
    def tried(self) -> bool:
        """Whether any host was heard of: a session refused, or a recipient answered."""
        return bool(self._greeted or self.settled or any(self._open.values()))

    @property
    def wants_tls(self) -> bool:
        """Whether hosts were asked, and each of them lacks the TLS that the message requires, and nothing else: then a
        notification goes to all of them once more, redacted (RTLS-21a, RTLS-21b)."""
        said = [answer for answers in self._open.values() for answer in answers]
        lacking = _NO_REQUIRED_TLS if self.hop is HopKind.FOREIGN else _NO_REQUIRED_TLS - {Trouble.TLS}
        return bool(said) and all(answer.trouble in lacking for answer in said)

    def leave_out(self, indexes: Iterable[int]) -> None:
        """These recipients were settled by other means."""
        for i in indexes:
            self._open.pop(i, None)

    def record_session_failure(self, answer: Answer) -> None:
        """A host gave no session to any of the open recipients."""
        self._greeted.append(answer)
        for answers in self._open.values():
            answers.append(answer)
        if answer.trouble in OUR_OWN:
            for i in list(self._open):
                self._settle(i, answer)

    def record_refusals(self, refused: Iterable[tuple[int, Answer]]) -> None:
        """Our own limits with this host: other hosts may be better (reference H43)."""
        for i, answer in refused:
            if i in self._open:
                self._open[i].append(answer)

    def record_answers(self, indexes: Sequence[int], answers: Sequence[Answer], *, passes_dsn: bool) -> tuple[int, ...]:
        """A transaction ended. Returns the recipients that go into a further one on the same connection at once."""
        again: list[int] = []
        some_taken = False
        for i, answer in zip(indexes, answers, strict=True):
            reply = answer.reply
            if answer.stage is _RCPT and reply is not None and answer.trouble is None:
                if some_taken and reply.code in _TOO_MANY:  # RFC 5321 4.5.3.1.10
                    again.append(i)
                    continue
            else:
                some_taken = True
            self._one(i, answer, passes_dsn)
        return tuple(again)

    def _one(self, i: int, answer: Answer, passes_dsn: bool) -> None:
        reply = answer.reply
        before = self._open[i]
        if answer.accepted:
            self.accepted += 1
            self._settle(i, answer, passes_dsn)
        elif answer.uncertain or answer.trouble in OUR_OWN:
            self._settle(i, answer, passes_dsn)
        elif answer.trouble is None and reply is not None:
            temporary = reply.transient or (answer.stage is _RCPT and reply.code == 552)
            if not temporary or (_refused_at_rcpt(answer) and any(map(_refused_at_rcpt, before))):
                self._settle(i, answer, passes_dsn)
        before.append(answer)

    def _settle(self, i: int, answer: Answer, passes_dsn: bool = False) -> None:
        del self._open[i]
        verdict = verdict_on(answer, hop=self.hop, passes_dsn=passes_dsn)
        self.settled[i] = RecipientVerdict(
            verdict, answer, answer.trouble is not None and answer.trouble is Trouble.CANCELLED
        )

    def keep_taken(self, indexes: Sequence[int], answers: Sequence[Answer | None], *, passes_dsn: bool) -> None:
        """Settle the recipients whose final dot was sent before a crash of our own: mail that a server has,
        or may have, must not be sent again."""
        for i, answer in zip(indexes, answers, strict=True):
            if i in self._open and answer is not None and (answer.accepted or answer.uncertain):
                self._settle(i, answer, passes_dsn)

    def conclude(self) -> dict[int, RecipientVerdict]:
        """No host is left: settle the open recipients and return all results.

        RTLS-16a: a message that requires TLS fails at once where TLS alone is why no host took it.
        """
        if not self._open:
            return self.settled
        for i, answers in self._open.items():
            # Who refuses all mail says nothing of this recipient, as if no MX named that host (RFC 7504). Of our
            # own hop it is our trouble: that host should take mail.
            others = [a for a in answers if not _refuses_all_mail(a)] if self.hop is HopKind.FOREIGN else answers
            found = [(verdict_on(a, hop=self.hop, every_host=not others), a) for a in others or answers]
            # A temporary failure at any host makes the result temporary, and one that another route may not have comes
            # before others. Among equals the last one counts, and one that quotes a server before one that does not.
            lacking = [pair for pair in found if pair[1].trouble in LACKING]
            hopeful = [pair for pair in found if pair[0].outcome is Outcome.DEFERRED] or lacking or found
            status = _decisive([verdict.status for verdict, _ in hopeful])
            said = [pair for pair in hopeful if pair[0].status == status]
            quoted = [pair for pair in hopeful if pair[1].remote] or said
            verdict, answer = quoted[-1]
            self.settled[i] = RecipientVerdict(verdict, answer)
        self._open = {}
        return self.settled


def _refuses_all_mail(answer: Answer) -> bool:
    general = answer.trouble is None and answer.reply is not None and answer.reply.code in GENERAL_REFUSALS
    return general and answer.stage in (Stage.GREETING, Stage.HELLO)


def _refused_at_rcpt(answer: Answer) -> bool:
    # Of a recipient that is still open, such a reply was temporary.
    return answer.stage is _RCPT and answer.trouble is None and answer.reply is not None and answer.reply.code != 421


def _decisive(statuses: Sequence[EnhancedCode]) -> EnhancedCode:
    """The status that the sender hears, of those of all hosts in order; there is one at least.

    RTLS-17a: 5.7.30 where it says why of some host, as TLS with that one was well, or no name is proven; what another
    host lacks says less.
    """
    return next((status for status in (NO_REQUIRETLS, NO_TLS) if status in statuses), statuses[-1])
