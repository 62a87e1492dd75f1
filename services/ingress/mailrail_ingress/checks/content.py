"""The checks of a message's content, in their order.

A check is a name and a function: from a `CheckedMessage` to a verdict. The first refusal ends the message, and the log
has the check's name. The limit of size is not here: the protocol states it at EHLO, MAIL, BDAT and after the content.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

from mailrail.core.message.content_reader import ContentFault
from mailrail.core.message.header import Field, Header, subject
from mailrail.core.smtp.reply import Reply
from mailrail_ingress.checks import authentication, header, limits, signing
from mailrail_ingress.checks.verdicts import CheckedMessage, Edit, Pending, Refuse, Verdict


class Moment(Enum):
    """When a check is made."""

    FAULT = auto()  # as soon as the content's reader has found a fault
    HEADER = auto()  # once the header is whole; it may be edited then
    END = auto()  # once all content is there; fields may be put above the header, and a check may take its time


class Whose(Enum):
    """Whose messages a check is for."""

    ALL = auto()
    STRANGERS = auto()
    ACCOUNTS = auto()


@dataclass(frozen=True, slots=True)
class Check:
    """One check."""

    name: str
    moment: Moment
    whose: Whose
    judge: Callable[[CheckedMessage], Verdict]


CHECKS: Final = (
    Check("header-size", Moment.FAULT, Whose.ALL, limits.header_size),
    Check("header-fields", Moment.FAULT, Whose.ALL, limits.header_fields),
    Check("line-length", Moment.FAULT, Whose.ALL, limits.line_length),
    Check("part-header", Moment.FAULT, Whose.ALL, limits.part_header),
    Check("loop", Moment.HEADER, Whose.ALL, limits.loop),
    Check("bare-line-ends", Moment.HEADER, Whose.ALL, limits.bare_line_ends),
    Check("result-fields", Moment.HEADER, Whose.ALL, header.remove_foreign_results),
    Check("tls-required", Moment.HEADER, Whose.ALL, header.read_tls_required),
    Check("return-path", Moment.HEADER, Whose.STRANGERS, header.remove_return_path),
    Check("author", Moment.HEADER, Whose.ACCOUNTS, header.judge_author),
    Check("sender-field", Moment.HEADER, Whose.ACCOUNTS, header.judge_sender_field),
    Check("hidden-fields", Moment.HEADER, Whose.ACCOUNTS, header.remove_hidden_fields),
    Check("date", Moment.HEADER, Whose.ACCOUNTS, header.add_date),
    Check("message-id", Moment.HEADER, Whose.ALL, header.add_message_id),
    Check("qualified-addresses", Moment.HEADER, Whose.ACCOUNTS, header.qualify_addresses),
    Check("signer", Moment.HEADER, Whose.ACCOUNTS, signing.choose_signer),
    Check("signatures", Moment.HEADER, Whose.STRANGERS, authentication.find_signatures),
    Check("authentication", Moment.END, Whose.STRANGERS, authentication.judge),
    # Filters come here, at the end of the content.
    Check("signature", Moment.END, Whose.ACCOUNTS, signing.sign),
)
"""Every check, in order."""


def _of(moment: Moment, whose: Whose) -> tuple[Check, ...]:
    return tuple(check for check in CHECKS if check.moment is moment and check.whose in (Whose.ALL, whose))


class ContentChecks:
    """The checks of one message, and what came of them."""

    __slots__ = ("_checks", "added", "message", "refusal", "refused_by")

    def __init__(self, message: CheckedMessage, checks: "CheckLists | None" = None) -> None:
        """`checks`: others than those of CHECKS; for tests."""
        self.message = message
        self._checks = checks or (STRANGERS if message.account is None else ACCOUNTS)
        self.refusal: Reply | None = None
        self.refused_by = ""
        """The name of the check that refused the message."""
        self.added: bytes = b""
        """Fields to put above the header."""

    @property
    def enforces(self) -> bool:
        """Whether it matters who sent the message, beyond what is written into it."""
        evidence = self.message.evidence
        return evidence is not None and evidence.rules.enforcement.enforce

    def judge_fault(self, fault: ContentFault) -> None:
        """Refuse a message whose content has a fault."""
        self.message.fault = fault
        for check in self._checks.fault:
            if isinstance(verdict := check.judge(self.message), Refuse):
                self._refuse(check, verdict)
                return

    def edit(self, found: Header) -> bytes | None:
        """Judge the header: what is kept of it, or None where the message is refused."""
        message = self.message
        message.header = found
        message.subject = subject(found)
        changes: dict[Field, bytes] = {}
        added = b""
        for judge, check in self._checks.on_header:
            verdict = judge(message)
            if verdict is None:
                continue
            if isinstance(verdict, Refuse):
                self._refuse(check, verdict)
                return None
            assert isinstance(verdict, Edit)
            changes.update(verdict.changes)
            added += verdict.added
            message.edited = True
        if not message.edited:
            return found.block
        block = found.changed(changes)
        if added and block and not block.endswith(b"\n"):
            block += b"\r\n"  # BDAT may end inside a line
        return block + added

    def body_listener(self) -> Callable[[bytes], None] | None:
        """Who is to see the body as it came, once the header was judged."""
        evidence = self.message.evidence
        if evidence is None or evidence.hasher is None or not evidence.hasher.wants_body:
            return None
        return evidence.hasher.feed

    def judge_end(self, done: Callable[[], None]) -> None:
        """Judge the whole message; `done` is called once, at once unless a check takes its time."""
        if self._checks.end:
            self._go_on(self._checks.end, done)
        else:
            done()

    def _go_on(self, checks: Sequence[Check], done: Callable[[], None]) -> None:
        for at, check in enumerate(checks):
            verdict = check.judge(self.message)
            if isinstance(verdict, Pending):
                rest = checks[at + 1 :]

                def resume(late: Refuse | Edit | None, check: Check = check, rest: Sequence[Check] = rest) -> None:
                    self._heed(check, late)
                    self._go_on(() if self.refusal is not None else rest, done)

                verdict.start(resume)
                return
            self._heed(check, verdict)
            if self.refusal is not None:
                break
        done()

    def _heed(self, check: Check, verdict: Refuse | Edit | None) -> None:
        if isinstance(verdict, Refuse):
            self._refuse(check, verdict)
        elif verdict is not None:
            self.added += verdict.added

    def _refuse(self, check: Check, verdict: Refuse) -> None:
        self.refusal, self.refused_by = verdict.reply, check.name


@dataclass(frozen=True, slots=True)
class CheckLists:
    """Checks by their moment."""

    fault: tuple[Check, ...] = ()
    header: tuple[Check, ...] = ()
    end: tuple[Check, ...] = ()
    on_header: tuple[tuple[Callable[[CheckedMessage], Verdict], Check], ...] = field(init=False)
    """`header`, with what is called for each message at hand."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "on_header", tuple((check.judge, check) for check in self.header))


def _lists(whose: Whose) -> CheckLists:
    return CheckLists(_of(Moment.FAULT, whose), _of(Moment.HEADER, whose), _of(Moment.END, whose))


STRANGERS: Final = _lists(Whose.STRANGERS)
ACCOUNTS: Final = _lists(Whose.ACCOUNTS)
