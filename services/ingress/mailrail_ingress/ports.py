"""What the app needs of the world: a queue that takes messages, DNS facts about senders, a next hop to ask.

Answers come through callbacks, not futures: a message costs one call, and an implementation may answer at once.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, Protocol

from mailrail.core.dsn.due import SenderAuthentication
from mailrail.core.message_authentication.content import HashedContent
from mailrail.core.message_authentication.findings import AuthenticationFindings
from mailrail.core.message_authentication.verdict import AuthenticationRules, ClientIdentity, MessageVerdict
from mailrail.core.revision.revision import ObjectRef
from mailrail.core.smtp.address import Address
from mailrail.core.smtp.line_facts import UNKNOWN, LineFacts
from mailrail.core.smtp.parameters import MailParameters, Notify
from mailrail.core.smtp.reply import Reply
from mailrail.core.tlspolicy.decision import Requirement


class Origin(Enum):
    """Where a message came from (design 4, Route)."""

    MX = auto()
    SUBMISSION = auto()
    PROBE = auto()  # of our own operator (decision 20)


# What is made for each message is not frozen, since a frozen dataclass takes three times as long to make. It is not
# changed once it is made.


@dataclass(slots=True)
class ExpandedRecipient:
    """One recipient of a message, aliases expanded."""

    address: str
    rcpt_to: str  # as the client wrote it
    notify: tuple[Notify, ...]
    orcpt: str | None
    expanded: bool
    domain: ObjectRef | None
    account: ObjectRef | None  # whose built-in mailbox takes it
    mailbox: str
    reports: bool = False  # an address for reports


@dataclass(frozen=True, slots=True, eq=False)
class Provenance:
    """Where the messages of a client come from: the same object as long as all of it is the same."""

    origin: Origin
    gateway: ObjectRef
    account: ObjectRef | None
    client_ip: str
    client_name: str  # what it said with EHLO
    revision: int


@dataclass(slots=True)
class ReceivedMessage:
    """Everything that is known of a message when it is whole (ACC-01a)."""

    id: bytes  # 16 octets
    provenance: Provenance
    sender: Address | None
    parameters: MailParameters
    auth: str | None  # what AUTH= may say onwards: "<>" or xtext (AUTH-06)
    message_id: str | None
    subject: str | None
    received: float  # Unix time
    eight_bit: bool
    recipients: Sequence[ExpandedRecipient]
    prefix: bytes
    body: bytes | None  # None: it was uploaded
    size: int  # octets of prefix and body
    lines: LineFacts = UNKNOWN  # of the body alone
    requirement: Requirement = Requirement.DEFAULT  # what it demands of TLS on its way (RTLS-06)
    sender_authentication: SenderAuthentication = SenderAuthentication.UNKNOWN  # whom a DSN may answer (DSN-26)
    findings: AuthenticationFindings | None = None  # about who sent it


@dataclass(frozen=True, slots=True)
class CommitAnswer:
    """What became of a commit."""

    accepted: bool
    refusal: Reply | None = None  # when not accepted


ACCEPTED: Final = CommitAnswer(True)
NO_CREDIT: Final = Reply.of(452, "4.3.1", "the mail system is busy; try again later")
"""Said of a message that the queue took no more of for too long (ACC-07)."""


NO_ROOM: Final = Reply.of(452, "4.3.1", "too many large messages are being received; try again later")
"""Said of a large message while more is stored than may be before anybody knows that it is whole (ACC-07)."""


@dataclass(slots=True)
class OpenTransactions:
    """How many transactions are open: sessions count them, and the queue's port looks."""

    number: int = 0


class Wire(Protocol):
    """The shell around a session, as far as the session needs it."""

    def pump(self) -> None:
        """An answer was given: go on with what has come meanwhile, unless that is being done."""
        ...

    def pause(self) -> None:
        """Stop reading the client (ACC-07)."""
        ...

    def resume(self) -> None:
        """Read again."""
        ...


class Upload(Protocol):
    """A body above INLINE_LIMIT on its way."""

    def send(self, data: bytes) -> bool:
        """Pass on the next frame, at most CHUNK_SIZE octets. False: send nothing more until `resume` is called."""
        ...

    def abort(self) -> None:
        """There will be no commit. Idempotent."""
        ...


class Queue(Protocol):
    """The queue as ingress sees it."""

    @property
    def available(self) -> bool:
        """Whether a message that begins now has a chance (ACC-05)."""
        ...

    def upload(self, message_id: bytes, resume: Callable[[], None], lost: Callable[[], None], size: int = 0) -> Upload:
        """Begin a body, of so many octets if that is known. `resume`: there is credit again. `lost`: the body is gone,
        and so is the message (ACC-05)."""
        ...

    def commit(self, message: ReceivedMessage, done: Callable[[CommitAnswer], None]) -> None:
        """Hand over a message; `done` is called once, after the commit or when its fate is known (ACC-04)."""
        ...


class DomainFacts(Enum):
    """What DNS says about the domain of an address (SIN-23)."""

    RESOLVES = auto()
    NULL_MX = auto()  # RFC 7505: it sends no mail
    DOES_NOT_EXIST = auto()
    UNKNOWN = auto()  # DNS failed; ask again later


class MailDomains(Protocol):
    """Looks domains of mail addresses up."""

    def look_up(self, domain: str, done: Callable[[DomainFacts], None]) -> None:
        """Call `done` with the facts, at once if they are known."""
        ...


class Verification(Protocol):
    """Asks a domain's next hop whether a recipient exists (recipients: Verify)."""

    def verify(self, address: str, transport: ObjectRef, done: Callable[[Reply | None], None]) -> None:
        """Call `done` with None when it exists, else with what to say."""
        ...


@dataclass(frozen=True, slots=True)
class RecordedRecipients:
    """Recipients of a message in one domain of ours. They count as one message (RFC 9990 3.1.1.6: `count`)."""

    domain: str
    report_address: bool = False
    """All of them are report addresses of ours (DAGG-18)."""


class EvaluationRecorder(Protocol):
    """Takes what DMARC said of messages, for reports (DMRC-17)."""

    def record(self, verdict: MessageVerdict, recipients: Iterable[RecordedRecipients], *, refused: bool) -> None:
        """Take one that reached the end of its content. It never waits and never raises."""
        ...


class Authenticator(Protocol):
    """Finds out who sent a message."""

    def prepare_list(self) -> None:
        """The list of public suffixes is going to be needed."""
        ...

    def authenticate(
        self,
        client: ClientIdentity,
        content: HashedContent,
        rules: AuthenticationRules,
        done: Callable[[MessageVerdict | None], None],
        *,
        by_list: bool,
    ) -> None:
        """Call `done` once, with None where there is no room to check it now. `by_list`: go by a list of public
        suffixes."""
        ...
